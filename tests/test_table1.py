"""The paper's table: every row the same search budget, chosen by validation, one test cohort; rows by formula."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluate_cohort import cohort

from msfilm.errors import RunError, SettingError
from msfilm.evaluate import table1 as table1_room
from msfilm.evaluate.figure_table1 import table1_figure
from msfilm.evaluate.table1 import table1
from msfilm.evaluate.table1_plan import PAPER_DICE, PLANS, Table1Plan, table1_plan, table_rows
from msfilm.evaluate.table1_rows import differences, table
from msfilm.train.augment import NO_AUGMENT
from msfilm.train.config import TrainConfig

ROWS = table_rows(("T2star", "T2w"))
TINY = Table1Plan(10, 2, TrainConfig(filters=4, depth=2, epochs=2, patience=0, augment=NO_AUGMENT, precision="fp32",
                                     device="cpu", loss="dice-bce"),
                  {"schedule": ("cosine", "constant")}, search_epochs=1, seeds=2)


@pytest.fixture(scope="module")
def data():
    train, test = cohort(10, free=(3,)), cohort(4, free=(2,))
    rename = {f"sub-{i:03d}": f"sub-{100 + i}" for i in range(1, 5)}
    # Other patients than those of the training, with other names.
    volumes = test.volumes.assign(patient=test.volumes["patient"].map(rename))
    return train, replace(test, table=test.table.assign(patient=test.table["patient"].map(rename)), volumes=volumes)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "a table"
    return table1(folder, TINY, slices=data[0], test=data[1], workers=1, healthy=False, progress=False)


def test_the_rows_are_the_papers():
    assert [row.name for row in ROWS] == ["U-Net, T2w", "U-Net, T2star", "U-Net, both", "FiLMed U-Net, both"]
    assert [row.name for row in ROWS] == list(PAPER_DICE)
    assert [row.conditioning for row in ROWS] == ["none", "none", "none", "contrast"]
    assert [row.name for row in table_rows(("T2w", "T2star", "T1w"))][-2:] == ["U-Net, all", "FiLMed U-Net, all"]
    with pytest.raises(SettingError, match="TABLE1-CONTRASTS"):
        table_rows(("T2w", "T2w"))


@pytest.mark.parametrize("name", PLANS)
def test_every_row_gets_the_same_search_budget_and_the_same_patients(name):
    plan = PLANS[name]
    budgets = [{candidate: (job.epochs, job.seed, job.split_seed, job.mask, job.fractions, job.augment)
                for candidate, job in plan.search_jobs(row).items()} for row in ROWS]
    assert all(budget == budgets[0] for budget in budgets) and len(budgets[0]) == len(plan.candidates())
    finals = [{seed: (job.epochs, job.split_seed) for seed, job in plan.final_jobs(row, {"depth": 2}).items()}
              for row in ROWS]
    assert all(final == finals[0] for final in finals) and len(finals[0]) == plan.seeds


def test_plain_and_filmed_rows_differ_in_the_conditioning_and_in_nothing_else():
    plain, filmed = (TINY.final_jobs(row, {"schedule": "cosine"})[1] for row in ROWS[-2:])
    assert replace(plain, conditioning="contrast") == filmed


def test_plans_can_be_varied_and_wrong_ones_are_refused():
    plan = table1_plan("course", patients=100, epochs=60, seeds=5, filters=8, loss="dice", cohort_seed=1)
    assert (plan.patients, plan.base.epochs, plan.seeds, plan.base.filters) == (100, 60, 5, 8)
    assert plan.search_epochs == 2 * PLANS["course"].search_epochs
    for wrong, code in (({"profile": "huge"}, "PROFILE-UNKNOWN"), ({"seeds": 0}, "TABLE1-SETTING"),
                        ({"loss": "dise"}, "did you mean 'dice'")):
        with pytest.raises(SettingError, match=code):
            table1_plan(**wrong)
    with pytest.raises(SettingError, match="TRAIN-SETTING"):
        replace(TINY, grid={"shedule": ("cosine",)})


def test_a_table_has_all_its_rows_and_says_what_was_tried(made):
    content = made.content
    names = list(dict.fromkeys(row["name"] for row in content["rows"]))
    assert names[:4] == list(PAPER_DICE) and set(names[4:]) == {"all-cord", "threshold", "rater-1"}
    assert len(content["search"]) == 4 * 2 + 4 * 2 and {row["status"] for row in content["search"]} == {"done"}
    film = made.rows[(made.rows["name"] == "FiLMed U-Net, both") & (made.rows["reference"] == "truth")]
    assert set(film["contrast"]) == {"T2w", "T2star", "all"} and (film["seeds"] == 2).all()
    assert film["patients"].max() <= 4 and film["lesion_free"].tolist() == [1, 1, 2]
    one = made.rows[made.rows["name"] == "U-Net, T2w"]
    assert set(one["contrast"]) == {"T2w", "all"}    # a network of one contrast is tested on that contrast
    assert json.loads((made.folder / "table1.json").read_text()) == json.loads(json.dumps(content))
    assert (made.folder / "table1.png").stat().st_size > 10_000
    assert len(pd.read_csv(made.folder / "table1.csv")) == len(content["rows"])
    assert content["data"]["independent"] and content["made_by"]["version"]
    assert content["agreement"] is None              # one rater only
    assert len(made.summary()) == 4 * 2 + 2 * 2 + 1 and len(made.statements()) == len(content["differences"])


def test_the_search_is_decided_by_validation_dice_alone(made):
    tried = pd.DataFrame(made.content["search"]).set_index("name")["val_dice"]
    for name, chosen in made.content["chosen"].items():
        found = {candidate: tried[f"{name} | search | {candidate}"] for candidate in TINY.candidates()}
        best = max(found, key=found.get)
        assert chosen == TINY.candidates()[best]


def test_a_table_goes_on_where_it_stopped_and_trains_nothing_twice(data, made, tmp_path, monkeypatch):
    before = (made.folder / "table1.json").read_bytes()
    (next((made.folder / "scores").glob("*.json"))).unlink()   # as if it had been killed before this one
    monkeypatch.setattr("msfilm.train.jobs.fit", lambda *a, **k: pytest.fail("trained again"))
    again = table1(made.folder, TINY, slices=data[0], test=data[1], workers=1, healthy=False, progress=False)
    then, now = json.loads(before), again.content
    assert json.loads(json.dumps(now["rows"])) == then["rows"] and now["search"] == then["search"]
    with pytest.raises(RunError, match=r"TABLE1-CONFIG.*seeds"):
        table1(made.folder, replace(TINY, seeds=3), slices=data[0], test=data[1], workers=1, progress=False)


def test_settings_that_an_earlier_search_chose_are_carried_over(data, made, tmp_path):
    plan = replace(TINY, seeds=1, chosen=made.content["chosen"])
    found = table1(tmp_path / "t", plan, slices=data[0], test=data[1], workers=1, healthy=False, progress=False)
    assert [row["name"] for row in found.content["search"]] == [f"{row.name} | seed 0" for row in ROWS]
    assert found.content["chosen"] == made.content["chosen"]
    earlier = pd.DataFrame(made.content["search"]).set_index("name")["val_dice"]
    for row in found.content["search"]:
        assert row["val_dice"] == earlier[row["name"]]    # the same training
    with pytest.raises(SettingError, match=r"TABLE1-SETTING.*U-Net, T2w"):
        table1(tmp_path / "u", replace(plan, chosen={"U-Net, both": {}}), slices=data[0], test=data[1], workers=1,
               healthy=False, progress=False)


def test_a_row_whose_search_never_works_is_named(data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RunError("TRAIN-NAN", "the loss became nan")
    monkeypatch.setattr("msfilm.train.jobs.fit", refuse)
    with pytest.raises(RunError, match=r"TABLE1-SEARCH.*U-Net, T2w.*TRAIN-NAN"):
        table1(tmp_path / "t", TINY, slices=data[0], test=data[1], workers=1, healthy=False, progress=False)


def test_without_a_test_set_the_splits_own_test_side_is_taken(data, tmp_path, monkeypatch):
    plan = replace(TINY, grid={}, seeds=1)
    found = table1(tmp_path / "t", plan, slices=data[0], workers=1, healthy=False, progress=False)
    assert not found.content["data"]["independent"] and found.content["data"]["tested_on"]["patients"] == 2
    split = pd.read_csv(next((found.folder / "runs").iterdir()) / "split.csv", index_col="patient")["side"]
    tested = pd.concat(pd.read_csv(path) for path in (found.folder / "scores").glob("*.csv"))["patient"]
    assert set(split[tested.unique()]) == {"test"}


def made_up(seeds=(0, 1), volumes=30, gap=0.1):
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        for i in range(volumes):
            contrast = ("T2w", "T2star")[i % 2]
            hard = rng.normal(0.6, 0.1)
            for row in ROWS:
                if contrast in row.contrasts:
                    better = gap if row.conditioning != "none" else 0.0
                    rows.append({"method": row.name, "seed": seed, "volume": f"v{i}", "patient": f"p{i // 2}",
                                 "contrast": contrast, "reference": "rater-1", "dice": hard + better,
                                 "reference_mm3": 50.0, "prediction_mm3": 40.0, "false_mm3": 5.0, "precision": 0.8,
                                 "recall": 0.7, "lesion_sensitivity": 0.5, "lesion_precision": 0.5, "lesion_f1": 0.5,
                                 "difference_mm3": -10.0})
    return pd.DataFrame(rows)


def test_differences_are_paired_by_volume_and_seed():
    scores = made_up().sample(frac=1, random_state=0)   # in any order
    found = differences(scores, ROWS)
    first = next(entry for entry in found if entry["contrast"] == "all" and entry["rule"] == "exclude")
    assert (first["a"], first["b"]) == ("FiLMed U-Net, both", "U-Net, both")
    for key in ("mean", "low95", "high95"):
        assert first[key] == pytest.approx(0.1)          # what is hard is hard for both, and drops out
    assert first["volumes"] == 60 and first["patients"] == 15 and not first["equivalent"]
    assert "FiLMed U-Net, both is better" in first["statement"]
    same = [entry for entry in differences(made_up(gap=0.0), ROWS) if entry["rule"] == "exclude"]
    assert all(entry["equivalent"] for entry in same)
    singles = {(entry["a"], entry["b"], entry["contrast"]) for entry in found}
    assert {("U-Net, both", "U-Net, T2w", "T2w"), ("FiLMed U-Net, both", "U-Net, T2star", "T2star")} <= singles


def test_a_row_is_the_mean_over_volumes_and_seeds_and_empty_masks_follow_the_rules():
    scores = made_up(seeds=(0, 1, 2))
    blank = (scores["volume"] == "v0") & (scores["method"] == "U-Net, both")
    scores.loc[blank, ["dice", "reference_mm3", "prediction_mm3"]] = [np.nan, 0.0, 0.0]   # both empty
    rows = pd.DataFrame(table(scores, {}, {"U-Net, both": [{"T2w": 3.0}, None, {"T2w": 5.0}]}, {}))
    row = rows[(rows["name"] == "U-Net, both") & (rows["contrast"] == "all")].iloc[0]
    part = scores[scores["method"] == "U-Net, both"]
    assert row["dice"] == pytest.approx(part["dice"].mean()) and row["seeds"] == 3
    assert row["dice_by_seed"] == [round(x, 4) for x in part.groupby("seed")["dice"].mean()]
    assert row["dice_one"] == pytest.approx(part["dice"].fillna(1.0).mean())
    assert row["dice_lesion_only"] == pytest.approx(part["dice"].mean())
    assert row["lesion_free"] == 1 and row["left_empty"] == 1.0 and row["low"] < row["dice"] < row["high"]
    assert row["healthy_false_mm3"] == {"T2w": {"mean": 4.0, "low": 3.0, "high": 5.0}}


def test_the_figure_draws_every_row_and_the_margin(made):
    figure = table1_figure(made.content)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[:4] == list(PAPER_DICE) and "threshold" in labels
    assert "FiLMed minus plain" in figure.axes[-1].get_title(loc="left")
    assert table1_room.TEST_SEED == 1000   # another cohort than any that is trained on
