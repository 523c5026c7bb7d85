"""The paper's table: U-Nets on each contrast and on both, a FiLMed one on both; searched, trained and tested alike.

Train and search: a phantom cohort (or anybody's slices), split by patient. Test: an independent phantom cohort (or the
split's own test side), the same patients for every row, looked at only when everything is chosen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.data.split import split_patients
from msfilm.errors import MsfilmError, RunError, SettingError
from msfilm.evaluate.agreement import panel_agreement
from msfilm.evaluate.baselines import ThresholdBaseline, all_cord_baseline
from msfilm.evaluate.figure_table1 import table1_figure
from msfilm.evaluate.score_runs import RunToScore, score_runs
from msfilm.evaluate.summary import REFERENCES, score_pair
from msfilm.evaluate.table1_plan import PAPER_DICE, PAPER_RATERS, Row, Table1Plan, table_rows
from msfilm.evaluate.table1_rows import agreement_entry, differences, table
from msfilm.files import atomic_path, made_by, read_json, write_json
from msfilm.train.jobs import run_all

__all__ = ["Table1", "table1"]

TEST_SEED = 1000   # of the independent phantom cohort; 'test' in phantom.roster.COHORTS


@dataclass(frozen=True, eq=False)
class Table1:
    """What :func:`table1` found; ``content`` is table1.json: rows, differences, agreement, search, made_by ..."""

    folder: Path
    content: dict[str, Any]

    @property
    def rows(self) -> pd.DataFrame:
        """A row for each method x contrast x reference."""
        return pd.DataFrame(self.content["rows"])

    def summary(self) -> pd.DataFrame:
        """For reading: each row on all its test volumes, against each reference, beside the paper's."""
        rows = self.rows[self.rows["contrast"] == "all"]
        return pd.DataFrame({
            "row": rows["name"], "against": rows["reference"], "Dice": rows["dice"].astype(float).round(3),
            "95 %": [f"{low:.3f} to {high:.3f}" for low, high in zip(rows["low"], rows["high"], strict=True)],
            "seeds": rows["seeds"], "volumes": rows["volumes"], "paper": rows["paper"],
            "settings": rows["chosen"].fillna(""),
            "false mm3, healthy real": [", ".join(f"{name} {one['mean']:.0f}" for name, one in (marked or {}).items())
                                        if isinstance(marked, dict) else "" for marked in rows["healthy_false_mm3"]],
        })

    def statements(self) -> list[str]:
        """The paired comparisons, a sentence each."""
        return [entry["statement"] for entry in self.content["differences"]]


def table1(out: str | Path, plan: Table1Plan, *, slices: SliceSet | str | Path | None = None,
           test: SliceSet | str | Path | None = None, workers: int | None = None, healthy: bool = True,
           progress: bool = True, command: str | None = None) -> Table1:
    """Make the table in a folder; called again, go on where it stopped.

    Args:
        out: folder: plan.json, slices/, test/, runs/ and runs.csv (every setting tried), scores/, table1.json,
            table1.csv and table1.png.
        plan: everything that decides the table. The folder keeps it; another plan is refused.
        slices: train on these instead of a phantom cohort.
        test: test on these; by default the independent phantom cohort, or the test side of ``slices`` where given.
        workers: processes side by side; by default one a core, and 1 on a GPU.
        healthy: measure false lesion on healthy real scans, from the mirror or the network.
        progress: show bars.
        command: what to write down as the command that made it.

    Raises:
        SettingError: TABLE1-CONTRASTS. RunError: TABLE1-CONFIG (another plan), TABLE1-SEARCH (a row has no run that
            worked), and what training raises. InputError: of the slices.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _same_plan(out, plan, slices, test)
    folder, data = _data(out, plan, slices, workers, progress)
    test_folder, held_out = _test_data(out, plan, data, slices, test, workers, progress)
    rows = table_rows(data.contrasts)

    search = {f"{row.name} | search | {name}": config
              for row in rows for name, config in plan.search_jobs(row).items()}
    if search:
        tried = run_all(search, folder, out, workers=workers, progress=progress)
        chosen = {row.name: plan.candidates()[_best(row, plan, tried)] for row in rows}
    else:
        chosen = {row.name: _carried(row, plan) for row in rows}
    final = {f"{row.name} | seed {seed}": config
             for row in rows for seed, config in plan.final_jobs(row, chosen[row.name]).items()}
    tried = run_all(search | final, folder, out, workers=workers, progress=progress)
    if len(failed := tried[(tried["status"] == "failed") & tried["name"].isin(final)]):
        raise RunError("TABLE1-RUN", f"{len(failed)} trainings failed, the first, '{failed.iloc[0]['name']}', by: "
                       f"{failed.iloc[0]['error']}", where=out / "runs.csv",
                       mend="mend that and run the same command again: what is done is kept")
    run_of = tried.set_index("name")["run"]
    jobs = [RunToScore(row.name, seed, out / "runs" / run_of[f"{row.name} | seed {seed}"], row.contrasts)
            for row in rows for seed in range(plan.seeds)]
    scores, calibration, false = score_runs(jobs, test_folder, out / "scores", workers=workers, healthy=healthy,
                                            progress=progress)
    baselines, thresholds = _baselines(data, held_out, plan)

    scores = pd.concat([scores, baselines], ignore_index=True)
    content = {
        "rows": table(scores, calibration, false, _settings(rows, plan, chosen, tried)),
        "differences": differences(scores, rows),
        "agreement": _agreement(held_out),
        "paper": {"dice": PAPER_DICE, "raters": PAPER_RATERS},
        "search": tried.drop(columns="seconds").replace({np.nan: None}).to_dict("records"),
        "search_seconds": round(float(tried.drop_duplicates("run")["seconds"].sum()), 1),
        "chosen": chosen,
        "thresholds": {name: baseline.as_dict() for name, baseline in thresholds.items()},
        "plan": plan.as_dict(),
        "data": {"trained_on": _described(data), "tested_on": _described(held_out),
                 "independent": slices is None or test is not None},
        "rules": {"unit": "volume, on the scan's own grid, against the untouched mask", "empty": "exclude",
                  "interval": "95 %, patients and seeds resampled together", "margin": 0.02},
        "made_by": made_by(command),
    }
    write_json(out / "table1.json", content)
    with atomic_path(out / "table1.csv") as temporary:
        pd.DataFrame(content["rows"]).to_csv(temporary, index=False)
    with atomic_path(out / "table1.png") as temporary:
        table1_figure(content).savefig(temporary, format="png", dpi=144)
    return Table1(out, content)


def _same_plan(out: Path, plan: Table1Plan, *given: Any) -> None:
    """Write the plan down, or see that the folder's is the same; where it runs may change."""
    content = plan.as_dict() | {"slices": [str(one) if isinstance(one, str | Path) else one is not None
                                           for one in given]}
    content["base"] = content["base"] | {"device": "auto"}
    content = json.loads(json.dumps(content))
    path = out / "plan.json"
    if not path.exists():
        write_json(path, content)
        return
    kept = read_json(path, code="TABLE1-CONFIG")
    if kept != content:
        other = [key for key in content if kept.get(key) != content[key]]
        raise RunError("TABLE1-CONFIG", f"this folder holds a table of another plan: {', '.join(other)} differ",
                       where=path, mend="choose another folder, or give the same settings")


def _data(out: Path, plan: Table1Plan, slices: Any, workers: int | None, progress: bool) -> tuple[Path, SliceSet]:
    if isinstance(slices, str | Path):
        return Path(slices), SliceSet.load(slices)
    folder = out / "slices"
    if slices is not None and not (folder / "slices.json").is_file():
        slices.save(folder)
    return folder, _cohort(folder, plan.patients, plan.cohort_seed, workers, progress)


def _cohort(folder: Path, patients: int, seed: int, workers: int | None, progress: bool) -> SliceSet:
    """The phantom cohort's slices: read, or made."""
    if not (folder / "slices.json").is_file():
        from msfilm.phantom.direct import make_slices
        from msfilm.phantom.roster import CohortPlan

        make_slices(patients, CohortPlan(seed), folder, workers=workers, progress=progress)
    return SliceSet.load(folder)


def _test_data(out: Path, plan: Table1Plan, data: SliceSet, slices: Any, test: Any, workers: int | None,
               progress: bool) -> tuple[Path, SliceSet]:
    if isinstance(test, str | Path):
        return Path(test), SliceSet.load(test)
    folder = out / "test"
    if (folder / "slices.json").is_file():
        return folder, SliceSet.load(folder)
    if test is None and slices is not None:
        side = split_patients(data.volumes, fractions=plan.base.fractions, seed=plan.base.split_seed)
        test = data.select((data.table["patient"].map(side) == "test").to_numpy())
    if test is not None:
        test.save(folder)
        return folder, SliceSet.load(folder)
    return folder, _cohort(folder, plan.test_patients, TEST_SEED, workers, progress)


def _best(row: Row, plan: Table1Plan, tried: pd.DataFrame) -> str:
    """The candidate with the best validation Dice; the first of equals."""
    names = {f"{row.name} | search | {name}": name for name in plan.candidates()}
    done = tried[tried["name"].isin(names) & (tried["status"] == "done") & tried["val_dice"].notna()]
    if done.empty:
        first = tried[tried["name"].isin(names)].iloc[0]
        raise RunError("TABLE1-SEARCH", f"no run of the search for '{row.name}' worked; the first one: "
                       f"{first['error']}", mend="mend that and run the same command again")
    return names[done.loc[done["val_dice"].idxmax(), "name"]]


def _carried(row: Row, plan: Table1Plan) -> dict[str, Any]:
    if row.name not in plan.chosen:
        raise SettingError("TABLE1-SETTING", f"nothing is chosen for the row '{row.name}'",
                           mend=f"there are settings for: {', '.join(plan.chosen)}")
    return plan.chosen[row.name]


def _settings(rows: Sequence[Row], plan: Table1Plan, chosen: dict[str, dict[str, Any]],
              tried: pd.DataFrame) -> dict[str, dict[str, Any]]:
    val = tried.set_index("name")["val_dice"]
    return {row.name: {"trained_on": list(row.contrasts), "conditioning": row.conditioning,
                       "chosen": ", ".join(f"{key}={value}" for key, value in chosen[row.name].items()),
                       "candidates": 0 if plan.chosen else len(plan.candidates()), "paper": PAPER_DICE.get(row.name),
                       "val_dice": [round(float(val[f"{row.name} | seed {seed}"]), 4) for seed in range(plan.seeds)]}
            for row in rows}


def _baselines(data: SliceSet, test: SliceSet, plan: Table1Plan) -> tuple[pd.DataFrame, dict[str, ThresholdBaseline]]:
    """All-cord mask and best threshold a contrast, chosen on the validation side, scored on the test patients."""
    side = split_patients(data.volumes, fractions=plan.base.fractions, seed=plan.base.split_seed)
    val = data.volumes[data.volumes["patient"].map(side) == "val"]
    thresholds, rows = {}, []
    for contrast in data.contrasts:
        try:
            scans = [data.scans[name] for name in val.index[val["contrast"] == contrast]]
            thresholds[contrast] = ThresholdBaseline.fit(scans, contrast, reference=plan.base.mask)
        except SettingError:
            continue   # no validation volume of this contrast has the mask: no such baseline
    for name, about in test.volumes.iterrows():
        scan, answers = test.scans[name], {"all-cord": all_cord_baseline(test.scans[name])}
        if about["contrast"] in thresholds:
            answers["threshold"] = thresholds[about["contrast"]].predict(scan)
        for reference in (one for one in REFERENCES if one in scan.indices):
            for method, answer in answers.items():
                rows.append({"volume": name, "patient": about["patient"], "contrast": about["contrast"], "seed": 0,
                             "method": method, "reference": reference,
                             **score_pair(scan, scan.indices[reference], answer)})
            if reference == "truth" and "rater-1" in scan.indices:
                rows.append({"volume": name, "patient": about["patient"], "contrast": about["contrast"], "seed": 0,
                             "method": "rater-1", "reference": reference,
                             **score_pair(scan, scan.indices["truth"], scan.indices["rater-1"])})
    return pd.DataFrame(rows), thresholds


def _agreement(test: SliceSet) -> dict[str, Any] | None:
    try:
        return agreement_entry(panel_agreement(test))
    except MsfilmError:
        return None   # nobody's volumes were drawn twice


def _described(slices: SliceSet) -> dict[str, Any]:
    return {"patients": int(slices.volumes["patient"].nunique()), "volumes": len(slices.volumes), "slices": len(slices),
            "contrasts": list(slices.contrasts),
            **{key: slices.meta.get(key) for key in ("source", "size", "spacing_mm")}}
