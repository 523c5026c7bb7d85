"""An experiment's file: cohorts made as it says, arms trained and compared on the same patients; bad files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.errors import InputError, MsfilmError, SettingError
from msfilm.evaluate.experiment import run_plan
from msfilm.evaluate.plan import cohort_plan, is_plan, make_cohort, read_plan

SMALL = {
    "question": "Does the contrast help here?", "expected": "No.", "budget": "seconds",
    "cohorts": {"one": {"patients": 8, "seed": 0, "stations": 1}},
    "tests": {"one": {"patients": 3, "seed": 1000, "stations": 1}},
    "base": {"depth": 1, "filters": 4, "epochs": 1, "precision": "fp32", "device": "cpu", "lr": 0.01,
             "fractions": [0.75, 0.25, 0.0]},
    "arms": {"plain": {}, "told": {"conditioning": "contrast"}}, "seeds": [0, 1],
}


def written(folder: Path, **changes) -> Path:
    path = folder / "plan.yml"
    path.write_text(yaml.safe_dump({key: value for key, value in (SMALL | changes).items() if value is not None}))
    return path


def test_a_plan_is_run_from_its_file_alone(tmp_path):
    path = written(tmp_path)
    assert is_plan(path)
    found = run_plan(path, tmp_path / "out", workers=1, progress=False)
    content = found.content
    rows = pd.DataFrame(content["rows"])
    assert set(rows["name"]) == {"plain", "told"} and (rows["seeds"] == 2).all()
    assert len(content["tried"]) == 4 and content["arms"]["told"] == {"cohort": "one", "test": "one",
                                                                     "conditioning": "contrast"}
    assert {(one["a"], one["b"]) for one in content["differences"]} == {("told", "plain")}
    assert str(tmp_path) not in (tmp_path / "out/experiment.json").read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/trained").rglob("weights.safetensors")}
    again = run_plan(path, tmp_path / "out", workers=1, progress=False)   # nothing is trained or made twice
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert again.content["rows"] == content["rows"]


@pytest.mark.parametrize("changes, code", [
    ({"question": None}, "PLAN-KEY"),
    ({"colour": 1}, "PLAN-KEY"),
    ({"measure": ["luck"]}, "PLAN-KEY"),
    ({"arms": {"plain": {"cohort": "two"}}}, "PLAN-ARM"),
    ({"compare": [["plain", "tolt"]]}, "PLAN-ARM"),
    ({"cohorts": {"one": {"patients": 4, "seed": 0, "station": 1}}}, "PHANTOM-PLAN"),
    ({"cohorts": {"one": {"patients": 4}}}, "PLAN-COHORT"),
    ({"arms": {"plain": {"epoch": 3}}}, "GRID-SETTING"),
])
def test_a_file_that_cannot_be_run_is_refused_before_anything_is_made(tmp_path, changes, code):
    with pytest.raises(MsfilmError, match=code):
        read_plan(written(tmp_path, **changes))
    with pytest.raises(InputError, match="GRID-MISSING"):
        read_plan(tmp_path / "none.yml")


def test_arms_are_compared_with_the_first_of_their_own_test_patients(tmp_path):
    tests = {"one": SMALL["tests"]["one"], "two": {"patients": 3, "seed": 1001}}
    arms = {"a": {}, "b": {"depth": 2}, "c": {"test": "two"}, "d": {"test": "two", "depth": 2}}
    plan = read_plan(written(tmp_path, tests=tests, arms=arms))
    assert plan.compare == [("b", "a"), ("d", "c")]


def test_labels_are_taken_from_a_share_of_the_patients_and_nothing_else_changes(tmp_path):
    settings = {"patients": 5, "seed": 3, "stations": 1}
    whole = SliceSet.load(make_cohort(settings, tmp_path, workers=1, progress=False))
    part = SliceSet.load(make_cohort(settings | {"labelled": {"T2star": 0.4}}, tmp_path, workers=1, progress=False))
    drawn = part.masks["rater-1"].max(axis=(1, 2, 3)) < UNDRAWN
    star = (part.table["contrast"] == "T2star").to_numpy()
    assert drawn[~star].all() and part.table["patient"][star & drawn].nunique() == 2
    assert np.array_equal(whole.images, part.images) and np.array_equal(whole.masks["truth"], part.masks["truth"])
    assert np.array_equal(whole.masks["rater-1"][drawn], part.masks["rater-1"][drawn])
    lost = part.table["volume"][star & ~drawn].unique()
    assert all("rater-1" not in part.scans[name].indices and "truth" in part.scans[name].indices for name in lost)
    assert make_cohort(settings, tmp_path, progress=False) != make_cohort(settings | {"labelled": {"T2star": 0.4}},
                                                                          tmp_path, progress=False)


def test_a_cohorts_settings_are_the_phantoms():
    plan = cohort_plan({"patients": 9, "seed": 7, "stations": 1, "styles_mm": [-0.2, 0.3], "staple": True})
    assert (plan.seed, plan.stations, plan.styles_mm) == (7, 1, (-0.2, 0.3))
    with pytest.raises(SettingError, match="did you mean 'styles_mm'"):
        cohort_plan({"patients": 9, "seed": 7, "style_mm": [1]})
