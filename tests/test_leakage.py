"""Splits that leak and centres left out: training says so, and the measure finds what was put in, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_loop import CONFIG, toy

from msfilm.data.split import LEAKY, SIDES, sides_of, split_slices
from msfilm.errors import InputError, RunError, SettingError
from msfilm.evaluate import leakage
from msfilm.evaluate.leakage import crop_dice, difference_of_means, measure_leakage, slice_counts
from msfilm.evaluate.report import evaluate
from msfilm.evaluate.trained import TrainedRun
from msfilm.files import sha256_file
from msfilm.train.loop import fit, load_run
from msfilm.train.tensors import usable_rows

SHORT = replace(CONFIG, epochs=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "fractions"), [(1, (0.6, 0.2, 0.2)), (997, (0.6, 0.2, 0.2)), (50, (0.75, 0.25, 0.0)),
                                              (7, (0.0, 0.0, 1.0))])
def test_slices_are_split_to_the_slice_by_seed(n, fractions):
    split = split_slices(n, fractions=fractions, seed=3)
    assert split.index.tolist() == list(range(n)) and split.index.name == "slice"
    for side, share in zip(SIDES, fractions, strict=True):
        assert abs((split == side).sum() - share * n) < 1
    assert split.equals(split_slices(n, fractions=fractions, seed=3))
    assert n < 20 or not split.equals(split_slices(n, fractions=fractions, seed=4))
    with pytest.raises(SettingError, match="SPLIT-FRACTIONS"):
        split_slices(n, fractions=(0.6, 0.2, 0.1))


def test_a_split_by_slice_says_that_it_leaks_and_its_own_sides_are_not_reported(tmp_path):
    slices = toy()
    slices.table.loc[slices.table["z"] == 2, "slice_hash"] = "the same slice in all patients"
    _, side = sides_of(slices, unit="slice", seed=0)
    assert (pd.crosstab(slices.table["patient"], side) > 0).sum(axis=1).max() == 3
    run = fit(slices, replace(SHORT, split_unit="slice"), tmp_path / "slice", progress=False).folder
    assert json.loads((run / "config.json").read_text())["split"] == LEAKY == load_run(run).card["split"]
    assert LEAKY.startswith("leaky split") and pd.read_csv(run / "split.csv")["side"].tolist() == side.tolist()
    with pytest.raises(InputError, match=r"RUN-SPLIT.*patient"):
        evaluate(run, slices, split="test")
    with pytest.raises(InputError, match="SPLIT-LEAK"):
        fit(slices, SHORT, tmp_path / "patient", progress=False)


def test_a_centre_left_out_is_seen_neither_in_training_nor_in_validation(tmp_path):
    """Its pixels could be anything: the run is the same, bit for bit; and so are all other patients' sides."""
    weights = []
    for value in (0.0, 7.0):
        slices, folder = toy(), tmp_path / str(value)
        slices.images[(slices.table["centre"] == "centre-1").to_numpy()] += np.float16(value)
        fit(slices, replace(SHORT, without_centres="centre-1"), folder, progress=False)
        weights.append(sha256_file(folder / "weights.safetensors"))
    assert weights[0] == weights[1]
    whole = fit(slices, SHORT, tmp_path / "whole", progress=False).folder
    assert (whole / "split.csv").read_text() == (folder / "split.csv").read_text()
    assert "split" not in json.loads((whole / "config.json").read_text())
    counts = [json.loads((run / "config.json").read_text())["counts"]["train_slices"] for run in (folder, whole)]
    assert counts[0] < counts[1]
    with pytest.raises(SettingError, match=r"CENTRE-UNKNOWN.*did you mean 'centre-1'"):
        usable_rows(toy(), "rater-1", (), ("center-1",))


def test_a_networks_dice_here_is_the_one_that_chose_its_epoch(tmp_path):
    slices = toy()
    result = fit(slices, replace(CONFIG, epochs=6, dropout=0.0), tmp_path / "run", progress=False)
    assert result.best_val_dice > 0.2
    _, side = sides_of(slices, seed=CONFIG.split_seed)
    found = crop_dice(slice_counts(result.folder, slices, "rater-1"), slices.table, side == "val")
    assert len(found) == 4 and found["dice"].mean() == pytest.approx(result.best_val_dice, abs=1e-9)


def test_dice_of_some_of_a_volumes_slices_by_hand():
    table = pd.DataFrame({"volume": list("aaabbc"), "patient": list("111223"), "centre": "x"})
    counts = np.array([[2, 4, 2], [9, 9, 9], [0, 0, 3], [0, 0, 0], [0, 0, 0], [-1, -1, -1]])
    rows = np.array([True, False, True, True, True, True])
    found = crop_dice(counts, table, rows)
    assert found.index.tolist() == ["a", "b"] and found["dice"]["a"] == 2 * 2 / (4 + 2 + 3)
    assert np.isnan(found["dice"]["b"]) and found["patient"].tolist() == ["1", "2"]


def test_the_interval_of_a_difference_between_patients_is_the_normal_one_and_what_seeds_share_cancels():
    rng = np.random.default_rng(0)

    def scores(patients, mean, shift):
        own = rng.normal(mean, 0.2, patients)
        return pd.DataFrame([{"patient": f"{mean}-{p}", "seed": s, "dice": own[p] + shift * s}
                             for p in range(patients) for s in range(3)])

    a, b = scores(40, 0.7, 0.3), scores(90, 0.6, 0.3)
    mean, low, high = difference_of_means(a, b)
    per = [frame.groupby("patient")["dice"].mean() for frame in (a, b)]
    width = 1.96 * np.sqrt(sum(one.var() / len(one) for one in per))
    assert mean == pytest.approx(per[0].mean() - per[1].mean())
    assert (high - low) / 2 == pytest.approx(width, rel=0.1) and low < mean < high
    nothing = a.assign(dice=np.nan)
    assert np.isnan(difference_of_means(nothing, b)).all()


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """Networks whose Dice is .5; a tenth more on patients it had met; two tenths less on those of an unseen centre."""
    own, test = toy(20), toy(24, seed=1)
    test.table["patient"] += "n"
    test.volumes["patient"] += "n"
    places = [str(part.save(tmp_path / name)) for name, part in (("own", own), ("test", test))]
    made, runs = [], []
    arms = {"patient": {}, "slice": {"split_unit": "slice"}, "without 0": {"without_centres": ("centre-0",)},
            "without 1": {"without_centres": ("centre-1",)}}
    for arm, change in arms.items():
        for seed in (0, 1):
            config = replace(CONFIG, seed=seed, split_seed=seed, **change)
            runs.append(TrainedRun(arm, seed, tmp_path / f"{arm}-{seed}", *map(type(tmp_path), places), config, {}, {}))

    def counts(run, slices, mask, contrasts):
        made.append(run.name)
        one = next(one for one in runs if one.run == run)
        _, side = sides_of(own, unit=one.config.split_unit, seed=one.seed)
        strange = slices.table["centre"].isin(one.config.without_centres)
        met = slices.table["patient"].isin(own.table["patient"][side == "train"]) & ~strange
        dice = 50 + 10 * met - 20 * strange
        return np.stack([dice, 0 * dice + 100, 0 * dice + 100], axis=1).astype(np.int32)

    monkeypatch.setattr(leakage, "slice_counts", counts)
    return runs, made


def test_the_measure_finds_the_leak_and_the_centres_that_were_put_in(arms, tmp_path):
    runs, made = arms
    found = measure_leakage(runs, tmp_path / "kept", workers=1, progress=False)
    rows = {row["arm"]: row for row in found["leakage"]}
    assert list(rows) == ["patient", "slice", "without 0", "without 1", "each centre left out"]
    expected = {"patient": (0.5, 0.5), "slice": (0.6, 0.5)}
    for arm, (internal, independent) in expected.items():
        row = rows[arm]
        assert (row["split"], row["internal"], row["independent"]) == pytest.approx((arm, internal, independent))
        assert row["optimism"] == pytest.approx(internal - independent)
        assert row["optimism_low"] == pytest.approx(row["optimism"]) == row["optimism_high"]
    assert rows["patient"]["independent_patients"] == 24 and 4 <= rows["patient"]["internal_patients"] <= 8
    assert rows["without 0"]["split"] == "centre" and rows["without 0"]["internal"] == pytest.approx(0.3)
    assert rows["without 0"]["internal_patients"] == 7 and rows["each centre left out"]["internal_patients"] == 14
    assert [(row["a"], row["b"]) for row in found["paired"]] == [("slice", "patient")]
    pair = [found["paired"][0][name] for name in ("seen", "unseen", "leak", "leak_low")]
    assert pair == pytest.approx([0.1, 0, 0.1, 0.1])
    assert [row["centre"] for row in found["centres"]] == ["centre-0", "centre-1", "centre-0+centre-1"]
    for row, patients in zip(found["centres"], (8, 8, 16), strict=True):
        assert (row["with"], row["without"], row["difference"]) == pytest.approx((0.5, 0.3, -0.2))
        assert (row["high"], row["elsewhere"], row["patients"]) == (pytest.approx(-0.2), pytest.approx(0), patients)
    json.dumps(found, allow_nan=False)
    assert len(made) == 16   # two files a network; the second time they are read
    assert measure_leakage(runs, tmp_path / "kept", workers=1, progress=False) == found and len(made) == 16
    with pytest.raises(RunError, match="LEAKAGE-RUNS.*seed 0"):
        measure_leakage(runs[4:], tmp_path / "kept", workers=1, progress=False)
