"""An experiment: a grid whose networks are scored on patients that nothing was chosen by, each point against the first.

Which question, what is expected and every setting stand in a YAML file before anything is trained. Nothing is chosen
by the result: every point of the grid is a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.errors import RunError, SettingError
from msfilm.evaluate.score_runs import RunToScore, score_runs
from msfilm.evaluate.table1_rows import difference, table
from msfilm.files import made_by, write_json
from msfilm.train.grid import Grid, read_grid
from msfilm.train.sweep import sweep

__all__ = ["Experiment", "experiment"]


@dataclass(frozen=True, eq=False)
class Experiment:
    """What :func:`experiment` found; ``content`` is experiment.json: question, expected, rows, differences, made_by."""

    folder: Path
    content: dict[str, Any]

    def summary(self) -> pd.DataFrame:
        """For reading: each point on all test volumes, against each reference."""
        rows = pd.DataFrame(self.content["rows"])
        rows = rows[rows["contrast"] == "all"]
        return pd.DataFrame({
            "point": rows["name"], "against": rows["reference"], "Dice": rows["dice"].astype(float).round(3),
            "95 %": [f"{low:.3f} to {high:.3f}" for low, high in zip(rows["low"], rows["high"], strict=True)],
            "seeds": rows["seeds"], "ECE in cord": rows["ece_cord"].astype(float).round(4),
            "false mm3, healthy real": [", ".join(f"{name} {one['mean']:.0f}" for name, one in marked.items())
                                        if isinstance(marked, dict) else "" for marked in rows["healthy_false_mm3"]],
        })

    def statements(self) -> list[str]:
        """Each point minus the first, a sentence each."""
        return [entry["statement"] for entry in self.content["differences"]]


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
    held_out = SliceSet.load(test)
    known = set(SliceSet.load(slices, verify=False).volumes["image_hash"]) - {""}
    if shared := known & set(held_out.volumes["image_hash"]):
        raise SettingError("EXPERIMENT-TEST", f"{len(shared)} images are in both the training and the test slices",
                           where=test, mend="test on other patients")
    tried = sweep(grid, out, slices=slices, workers=workers, progress=progress).table
    if len(failed := tried[tried["status"] != "done"]):
        raise RunError("EXPERIMENT-RUN", f"{len(failed)} trainings failed, the first, '{failed.iloc[0]['name']}', by: "
                       f"{failed.iloc[0]['error']}", where=out / "runs.csv", mend="mend that, and call again")
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
