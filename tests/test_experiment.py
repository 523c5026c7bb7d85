"""Experiments: every point of a grid scored on other patients, compared with the first; the example files can run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from evaluate_cohort import cohort

from msfilm.errors import SettingError
from msfilm.evaluate.experiment import experiment
from msfilm.evaluate.plan import is_plan, read_plan
from msfilm.evaluate.stats import paired_difference
from msfilm.train.augment import AugmentConfig, with_altered_truth
from msfilm.train.grid import Grid, read_grid

ROOT = Path(__file__).resolve().parent.parent
GRID = Grid(question="does it run?", expected="yes", seeds=(0, 1),
            base={"depth": 1, "filters": 4, "epochs": 2, "precision": "fp32", "device": "cpu", "patience": 0,
                  "lr": 0.01},
            arms={"plain": {}, "told": {"conditioning": "contrast"}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("experiment")
    cohort(6).save(place / "slices")
    other = cohort(10)
    other = other.select((other.table["patient"] > "sub-006").to_numpy())
    other.save(place / "test")
    return place


def test_each_point_is_a_row_and_a_paired_difference_from_the_first(folders):
    found = experiment(GRID, folders / "out", slices=folders / "slices", test=folders / "test", workers=1,
                       healthy=False, progress=False)
    rows = pd.DataFrame(found.content["rows"])
    assert list(rows["name"].unique()) == ["arm=plain", "arm=told"] and (rows["seeds"] == 2).all()
    assert set(rows["reference"]) == {"rater-1", "truth"} and set(rows["contrast"]) == {"T2w", "T2star", "all"}
    assert found.content["question"] == "does it run?" and len(found.content["tried"]) == 4
    assert rows[rows["contrast"] == "all"]["ece_cord"].notna().all()

    scores = {}
    tried = pd.DataFrame(found.content["tried"]).set_index("name")["run"]
    for arm in ("plain", "told"):
        parts = [pd.read_csv(found.folder / "scores" / f"{tried[f'arm={arm},seed={seed}']}.csv").assign(seed=seed)
                 for seed in (0, 1)]
        scores[arm] = pd.concat(parts).query("reference == 'truth'").set_index(["volume", "seed"]).sort_index()
    expected = paired_difference(scores["told"]["dice"], scores["plain"]["dice"], scores["told"]["patient"],
                                 seeds=scores["told"].index.get_level_values("seed"))
    entry = next(e for e in found.content["differences"] if e["contrast"] == "all" and e["reference"] == "truth")
    assert (entry["a"], entry["b"], entry["mean"]) == ("arm=told", "arm=plain", pytest.approx(expected.mean))
    assert len(found.statements()) == 6 and len(found.summary()) == 4
    assert json.loads((found.folder / "experiment.json").read_text())["seeds"] == [0, 1]


def test_patients_that_were_trained_on_are_no_test(folders):
    with pytest.raises(SettingError, match="EXPERIMENT-TEST"):
        experiment(GRID, folders / "no", slices=folders / "slices", test=folders / "slices", progress=False)


def test_the_experiment_on_altered_truth_differs_in_what_is_recommended_and_in_nothing_else():
    jobs = read_grid(ROOT / "benchmarks" / "experiments" / "altered-truth.yml").jobs()
    for seed in range(3):
        drawn, altered = jobs[f"arm=as drawn,seed={seed}"], jobs[f"arm=altered,seed={seed}"]
        assert altered == replace(drawn, augment=with_altered_truth(AugmentConfig()))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/experiments").glob("*.yml")), ids=lambda path: path.name)
def test_every_experiment_says_what_is_asked_and_expected(path):
    plan = read_plan(path) if is_plan(path) else read_grid(path)
    assert len(plan.question) > 20 and len(plan.expected) > 20
    if is_plan(path):
        assert len(plan.seeds) >= 3 and plan.budget and plan.arms
        assert all(one["patients"] == 200 and one["seed"] == 1000 for one in plan.tests.values())
        assert not {one["seed"] for one in plan.cohorts.values()} & {one["seed"] for one in plan.tests.values()}
    else:
        assert plan.jobs()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/experiments").glob("*.yml")), ids=lambda path: path.name)
def test_a_stored_result_is_of_the_settings_that_were_written_down(path):
    result = ROOT / "benchmarks/results" / f"{path.stem}.json"
    if path.stem == "grid-search":   # an example
        return
    content = json.loads(result.read_text(encoding="utf-8"))
    if not is_plan(path):
        grid = read_grid(path)
        assert (content["arms"], content["seeds"]) == (grid.arms, list(grid.seeds))
        return
    plan = read_plan(path)
    assert {key: content[key] for key in plan.as_dict()} == json.loads(json.dumps(plan.as_dict()))
    jobs = [name for cohort in plan.cohorts if (grid := plan.grid(cohort)) for name in grid.jobs()]
    assert sorted(row["name"] for row in content["tried"]) == sorted(jobs)   # all that were tried, and no others
    assert len(content["made_by"]["commit"]) >= 7
