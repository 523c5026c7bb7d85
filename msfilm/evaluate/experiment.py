"""An experiment: a grid whose networks are scored on patients that nothing was chosen by, each point against the first.

Which question, what is expected and every setting stand in a YAML file before anything is trained. Nothing is chosen
by the result: every point of the grid is a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.errors import RunError, SettingError
from msfilm.evaluate.plan import ExperimentPlan, make_cohort, read_plan
from msfilm.evaluate.score_runs import RunToScore, score_runs
from msfilm.evaluate.table1_rows import difference, table
from msfilm.evaluate.trained import TrainedRun
from msfilm.files import made_by, write_json
from msfilm.train.grid import Grid, read_grid
from msfilm.train.sweep import sweep

__all__ = ["Experiment", "experiment", "run_plan"]

# What else an experiment may measure, beside the scores: where it is built.
_MEASURES = {
    "ceilings": ("msfilm.evaluate.ceiling", "measure_ceilings"),
    "styles": ("msfilm.evaluate.styles", "measure_styles"),
    "new-contrast": ("msfilm.evaluate.new_contrast", "measure_new_contrast"),
    "leakage": ("msfilm.evaluate.leakage", "measure_leakage"),
}


@dataclass(frozen=True, eq=False)
class Experiment:
    """What :func:`experiment` found; ``content`` is experiment.json: question, expected, rows, differences, made_by."""

    folder: Path
    content: dict[str, Any]

    def summary(self) -> pd.DataFrame:
        """For reading: each point on all test volumes, against each reference."""
        rows = pd.DataFrame(self.content.get("rows", []))
        if rows.empty:
            return rows
        rows = rows[rows["contrast"] == "all"]
        return pd.DataFrame({
            "point": rows["name"], "against": rows["reference"], "Dice": rows["dice"].astype(float).round(3),
            "95 %": [f"{low:.3f} to {high:.3f}" for low, high in zip(rows["low"], rows["high"], strict=True)],
            "seeds": rows["seeds"],
            "ECE in cord": rows["ece_cord"].astype(float).round(4),
            "false mm3, healthy real": [", ".join(f"{name} {one['mean']:.0f}" for name, one in marked.items())
                                        if isinstance(marked, dict) else "" for marked in rows["healthy_false_mm3"]],
        })

    def statements(self) -> list[str]:
        """Each point minus the first, a sentence each."""
        return [entry["statement"] for entry in self.content.get("differences", [])]


def experiment(grid: Grid | str | Path, out: str | Path, *, slices: str | Path, test: str | Path,
               workers: int | None = None, healthy: bool = True, progress: bool = True,
               command: str | None = None) -> Experiment:
    """Train every point of a grid with every seed, score all on the same test patients, compare each with the first.

    Args:
        grid: the grid, or its YAML file.
        out: folder; an experiment in it that was interrupted goes on.
        slices: folder of the slices to train and choose epochs on.
        test: folder of the slices of other patients.
        workers: processes side by side; by default one a core.
        healthy: false lesion on healthy real scans too.
        progress: show bars.
        command: what to write down as the command that made it.

    Raises:
        SettingError: EXPERIMENT-TEST, a patient of the test set was trained on.
        RunError: EXPERIMENT-RUN, a training failed; and those of ``sweep``.
    """
    grid, out = grid if isinstance(grid, Grid) else read_grid(grid), Path(out)
    held_out = _other_patients(slices, test)
    tried = _train(grid, out, slices, workers, progress)
    configs = grid.jobs()
    jobs = []
    for name, run in zip(tried["name"], tried["run"], strict=True):
        point, _, seed = name.rpartition("seed=")
        contrasts = configs[name].contrasts or held_out.contrasts
        jobs.append(RunToScore(point.rstrip(",") or "all", int(seed), out / "runs" / run, tuple(contrasts)))
    scores, calibration, false = score_runs(jobs, test, out / "scores", workers=workers, healthy=healthy,
                                            progress=progress)
    points = list(dict.fromkeys(job.method for job in jobs))
    content = {
        "question": grid.question, "expected": grid.expected,
        "rows": table(scores, calibration, false, {}),
        "differences": [difference(scores, point, points[0], contrast, reference, "exclude")
                        for reference in scores["reference"].unique() for point in points[1:]
                        for contrast in (*sorted(scores["contrast"].unique()), "all")],
        "tried": tried.drop(columns="seconds").replace({np.nan: None}).to_dict("records"),
        "train_seconds": round(float(tried["seconds"].sum()), 1),
        "base": grid.base, "arms": grid.arms, "grid": grid.grid, "seeds": list(grid.seeds),
        "data": {"train_patients": int(SliceSet.load(slices, verify=False).volumes["patient"].nunique()),
                 "test_patients": int(held_out.volumes["patient"].nunique())},
        "made_by": made_by(command),
    }
    write_json(out / "experiment.json", content)
    return Experiment(out, content)


def run_plan(plan: ExperimentPlan | str | Path, out: str | Path, *, cohorts: str | Path | None = None,
             workers: int | None = None, progress: bool = True, command: str | None = None) -> Experiment:
    """Make an experiment's cohorts, train every arm with every seed, and measure.

    Args:
        plan: the experiment, or its YAML file.
        out: folder; an experiment in it that was interrupted goes on.
        cohorts: folder of the phantom cohorts, which experiments may share; default ``out/cohorts``.
        workers: processes side by side; by default one a core.
        progress: show bars.
        command: what to write down as the command that made it.

    Raises:
        SettingError: EXPERIMENT-TEST, and those of ``read_plan``; RunError: EXPERIMENT-RUN, and those of ``sweep``.
    """
    plan, out = plan if isinstance(plan, ExperimentPlan) else read_plan(plan), Path(out)
    cohorts = Path(cohorts) if cohorts is not None else out / "cohorts"

    def made(settings: dict[str, Any]) -> Path:
        return make_cohort(settings, cohorts, workers=workers, progress=progress)

    tests = {name: made(settings) for name, settings in plan.tests.items()}
    runs, tried = [], []
    for name, settings in plan.cohorts.items():
        grid = plan.grid(name)
        if grid is None:
            continue
        slices, folder = made(settings), out / "trained" / name.replace(" ", "-")
        for test in {arm.test for arm in plan.arms.values() if arm.cohort == name}:
            _other_patients(slices, tests[test])
        table_of_runs, configs = _train(grid, folder, slices, workers, progress), grid.jobs()
        tried += table_of_runs.to_dict("records")
        for job, run in zip(table_of_runs["name"], table_of_runs["run"], strict=True):
            arm, _, seed = job.removeprefix("arm=").rpartition(",seed=")
            test = plan.arms[arm].test
            runs.append(TrainedRun(arm, int(seed), folder / "runs" / run, slices, tests[test], configs[job],
                                   plan.tests[test], settings))
    order = list(plan.arms)
    runs.sort(key=lambda one: (order.index(one.arm), one.seed))
    content = plan.as_dict()
    for measure in plan.measures:
        if measure == "scores":
            content |= _scores(runs, plan, out / "scores", workers, progress)
        else:
            module, function = _MEASURES[measure]
            content |= getattr(import_module(module), function)(runs, out / measure, workers=workers, progress=progress)
    content |= {"chosen": "a run's epoch, by its own validation patients; nothing else, and nothing by test patients",
                "tried": [_plain(row) for row in tried],
                "train_seconds": round(float(sum(row["seconds"] for row in tried)), 1), "made_by": made_by(command)}
    write_json(out / "experiment.json", content)
    return Experiment(out, content)


def _scores(runs: list[TrainedRun], plan: ExperimentPlan, folder: Path, workers: int | None,
            progress: bool) -> dict[str, Any]:
    """Rows and paired differences: the same patients for all arms of a test cohort."""
    parts, calibration, false = [], {}, {}
    for test in dict.fromkeys(run.test for run in runs):
        known = SliceSet.load(test, verify=False).contrasts
        jobs = [RunToScore(run.arm, run.seed, run.run, run.config.contrasts or known) for run in runs
                if run.test == test]
        scores, counts, marked = score_runs(jobs, test, folder / test.name, workers=workers, healthy=plan.healthy,
                                            progress=progress)
        parts.append(scores)
        calibration |= counts
        false |= marked
    scores = pd.concat(parts, ignore_index=True)
    return {"rows": table(scores, calibration, false, {}),
            "differences": [difference(scores, a, b, contrast, reference, "exclude")
                            for reference in scores["reference"].unique() for a, b in plan.compare
                            for contrast in (*_shared(scores, a, b), "all")]}


def _shared(scores: pd.DataFrame, a: str, b: str) -> list[str]:
    first, second = (set(scores.loc[scores["method"] == name, "contrast"]) for name in (a, b))
    return sorted(first & second)


def _other_patients(slices: str | Path, test: str | Path) -> SliceSet:
    """The test set; refused where it holds an image that is trained on."""
    held_out = SliceSet.load(test)
    known = set(SliceSet.load(slices, verify=False).volumes["image_hash"]) - {""}
    if shared := known & set(held_out.volumes["image_hash"]):
        raise SettingError("EXPERIMENT-TEST", f"{len(shared)} images are in both the training and the test slices",
                           where=test, mend="test on other patients")
    return held_out


def _train(grid: Grid, out: Path, slices: str | Path, workers: int | None, progress: bool) -> pd.DataFrame:
    tried = sweep(grid, out, slices=slices, workers=workers, progress=progress).table
    if len(failed := tried[tried["status"] != "done"]):
        raise RunError("EXPERIMENT-RUN", f"{len(failed)} trainings failed, the first, '{failed.iloc[0]['name']}', by: "
                       f"{failed.iloc[0]['error']}", where=out / "runs.csv", mend="mend that, and call again")
    return tried


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row of runs.csv for JSON, without what repeats the plan."""
    keep = ("name", "run", "val_dice", "best_epoch", "epochs", "seconds")
    return {key: row[key] if not hasattr(row[key], "item") else row[key].item() for key in keep}
