"""Real lesions of two brains: the package on another organ, and that the stored tables are those of the stored runs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from msfilm.data.slices import SliceSet
from msfilm.data.split import check_split, sides_of
from msfilm.errors import InputError, SettingError
from msfilm.files import read_json

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "brain_lesions.py"
if not SCRIPT.is_file():
    pytest.skip("benchmarks/ is not part of a source archive", allow_module_level=True)
spec = importlib.util.spec_from_file_location("brain_lesions", SCRIPT)
brain_lesions = importlib.util.module_from_spec(spec)
sys.modules["brain_lesions"] = brain_lesions
spec.loader.exec_module(brain_lesions)

SHAPE, CROP = (31, 37, 141), {"size": 24, "spacing_mm": 2.0}
BRIGHTNESS = {"T1": 0.7, "T1post": 0.7, "T2": 1.5, "FLAIR": 1.5}   # of a lesion, over the brain's


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two ellipsoid brains in LAS files: a zero inside, a speck outside, lesions of either polarity."""
    root = tmp_path_factory.mktemp("brains")
    x, y, z = np.meshgrid(*[np.arange(side, dtype=np.float32) - (side - 1) / 2 for side in SHAPE], indexing="ij")
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    for number, patient in enumerate(brain_lesions.PATIENTS):
        random = np.random.default_rng(number)
        inside = (x / 12) ** 2 + (y / 15) ** 2 + (z / 69) ** 2 < 1
        lesion = inside & (abs(x - 4) < 2 + number) & (abs(y) < 3) & (np.arange(SHAPE[2]) % 5 < 3)
        (root / patient).mkdir()
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), affine), root / patient / "GOLD_STANDARD_x.nii.gz")
        for contrast, begins in brain_lesions.CONTRASTS.items():
            image = np.where(lesion, BRIGHTNESS[contrast], 1.0) * (100 + random.normal(0, 3, SHAPE)) * inside
            image[15, 18, 70], image[0, 0, 0] = 0.0, 5.0
            nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / patient / f"{begins}_x.nii.gz")
    return root


@pytest.fixture(scope="module")
def slices(folder) -> SliceSet:
    return brain_lesions.brains(folder, **CROP)


def test_a_brain_is_prepared_as_a_cord_is(folder, slices):
    """The mask is the brain without speck or hole, intensities are over its median, lesions keep their polarity."""
    inside = slices.scans["patient07_T2"].dense("cord")
    assert inside[15, 18, 70] and not inside[0, 0, 0] and not inside[30, 0, 0]
    assert set(slices.masks) == {"cord", "rater-1"} and set(slices.contrasts) == set(brain_lesions.CONTRASTS)
    for scan in slices.scans.values():
        assert np.median(scan.cord_values) == pytest.approx(1, abs=1e-3)
    for row in brain_lesions.facts(slices):
        assert row["lesion"] == pytest.approx(BRIGHTNESS[row["contrast"]], rel=0.02), row
        assert (row["lesion"] > row["around"]) == (row["contrast"] in brain_lesions.BRIGHT)
        assert row["outside_crop_mm3"] < 10 and 0.5 < row["dice_of_the_crop"] <= 1   # the ends are too thin
    with pytest.raises(SettingError, match="BRAIN-FILES"):
        brain_lesions.brains(folder / "nothing here")


@pytest.mark.parametrize("fold", brain_lesions.FOLDS)
def test_slabs_are_apart_and_the_package_s_own_split_puts_them_where_they_belong(slices, fold):
    joined, config = brain_lesions.fold_slices(slices, fold)
    split, sides = sides_of(joined, fractions=config.fractions, seed=config.split_seed)   # proves that nothing leaks
    trained, tested = brain_lesions.FOLDS[fold]
    assert split.to_dict() == {f"{trained}-train": "train", f"{trained}-val": "val", f"{trained}-own": "test",
                               tested: "test"}
    zs = {name: np.unique(joined.table["z"][joined.table["patient"] == name]) for name in split.index}
    for a, b in (("train", "val"), ("train", "own"), ("val", "own")):
        apart = abs(zs[f"{trained}-{a}"][:, None] - zs[f"{trained}-{b}"][None]).min()
        assert apart > 3, f"{a} and {b}: {apart - 1} slices between"
    assert (np.diff(zs[tested]) == brain_lesions.TEST_STEP).all()
    for name, scan in joined.scans.items():
        whole = slices.scans[f"{trained if trained in name else tested}_{joined.volumes.loc[name, 'contrast']}"]
        kept = np.zeros(SHAPE, bool)
        side = name.split("_")[0].removeprefix(f"{trained}-")
        for low, high in brain_lesions.SLABS.get(side, ()):
            kept[:, :, low:high] = True
        if side == tested:
            kept[:, :, :: brain_lesions.TEST_STEP] = True
        for mask in ("cord", "rater-1"):   # masks end where the slab does, and lose nothing inside of it
            np.testing.assert_array_equal(scan.dense(mask), whole.dense(mask) & kept)
    assert (sides == "train").sum() % (4 * config.batch_size) == 0, "whole batches for one contrast and for four"
    # Without a hash of its own a slab would be refused: the scan that it comes from lies on two sides.
    whole_hash = joined.volumes.assign(image_hash=joined.volumes["contrast"] + trained)
    with pytest.raises(InputError, match="SPLIT-LEAK"):
        check_split(replace(joined, volumes=whole_hash), split)


def test_a_run_scores_both_patients_in_each_contrast_with_each_code_and_is_not_done_twice(slices, tmp_path):
    joined, config = brain_lesions.fold_slices(slices, next(iter(brain_lesions.FOLDS)))
    config = replace(config, depth=1, filters=4, epochs=1, batch_size=32, precision="fp32", lr=5e-3)
    film = brain_lesions.run_one(joined, replace(config, conditioning="contrast"), tmp_path / "film")
    tested = {"patient19-own", "patient07"}
    assert {(row["patient"], row["contrast"], row["code"]) for row in film["test"]} == {
        (patient, contrast, code) for patient in tested for contrast in BRIGHTNESS for code in BRIGHTNESS}
    written = (tmp_path / "film" / "weights.safetensors").stat().st_mtime_ns
    assert brain_lesions.run_one(joined, replace(config, conditioning="contrast"), tmp_path / "film") == film
    assert (tmp_path / "film" / "weights.safetensors").stat().st_mtime_ns == written
    alone = brain_lesions.run_one(joined, replace(config, contrasts=("T2",)), tmp_path / "alone")
    assert [(row["contrast"], row["code"]) for row in alone["test"]] == [("T2", None)] * 2
    runs = [{"fold": "f", "arm": "FiLM, full rate", "seed": 0, **film},
            {"fold": "f", "arm": "T2 alone", "seed": 0, **alone}]
    tables = brain_lesions.summary(runs)
    [mean] = [row for row in tables["dice"] if (row["tested"], row["arm"], row["contrast"]) == (
        "other", "FiLM, full rate", "mean")]
    right = [row["dice"] for row in film["test"] if row["patient"] == "patient07" and row["code"] == row["contrast"]]
    assert mean["mean"] == pytest.approx(np.mean(right), abs=2e-4)
    assert all(row["mean"] is None for row in tables["dice"] if (row["arm"], row["contrast"]) == ("each alone", "mean"))


RESULTS = {60: "brain-lesions.json", 10: "brain-lesions-10-epochs.json"}


@pytest.fixture(scope="module", params=RESULTS, ids="{} epochs".format)
def result(request) -> dict:
    found = read_json(ROOT / "benchmarks" / "results" / RESULTS[request.param])
    assert found["settings"]["epochs"] == request.param == {run["epochs"] for run in found["runs"]}.pop()
    return found


def test_the_stored_tables_are_those_of_the_stored_runs(result):
    for name, table in brain_lesions.summary(result["runs"]).items():
        assert table == result[name], name
    rows = [{"fold": run["fold"], "arm": run["arm"], "seed": run["seed"], **row} for run in result["runs"]
            for row in run["test"] if row["code"] in (None, row["contrast"])]
    dice = pd.DataFrame(rows)
    for entry in result["differences"]:   # once more, another way
        if entry["contrast"] == "mean" or "alone" in entry["b"]:
            continue
        of = dice[(dice["fold"] == entry["fold"]) & (dice["contrast"] == entry["contrast"])
                  & (dice["patient"].str.endswith("-own") == (entry["tested"] == "own"))]
        a, b = (of[of["arm"] == entry[key]].set_index("seed")["dice"] for key in "ab")
        gaps = (a - b).dropna().sort_index().to_numpy()   # of the seeds that both have
        np.testing.assert_allclose(entry["seeds"], gaps, atol=2e-4)
        assert entry["mean"] == pytest.approx(np.mean(gaps), abs=2e-4)


def test_the_stored_result_says_what_was_done(result):
    for name, now in (("question", brain_lesions.QUESTION), ("expected", brain_lesions.EXPECTED),
                      ("arms", brain_lesions.ARMS), ("slabs", brain_lesions.SLABS), ("crop", brain_lesions.CROP)):
        assert result[name] == json.loads(json.dumps(now)), f"{name} is another in the script"
    together = {run["steps"] for run in result["runs"] if "alone" not in run["arm"]}
    alone = {run["steps"] for run in result["runs"] if "alone" in run["arm"]}
    assert len(together) == 1 and alone <= {next(iter(together)) // 4}, "equal passes"
    expected = len(result["folds"]) * len(result["arms"]) * len(result["seeds"])
    assert len(result["runs"]) + result["not_done"] == expected and len(result["seeds"]) >= 3
    done = [(run["fold"], run["arm"], run["seed"]) for run in result["runs"]]
    assert len(set(done)) == len(done)
    for row in result["facts"]:   # what the question rests on
        assert (row["lesion"] > row["around"]) == (row["contrast"] in brain_lesions.BRIGHT), row
    text = json.dumps(result)
    assert not re.search(r'"/|\.nii|/(home|root|work|tmp)/', text) and "10.1007/s12021-017-9348-7" in text


def test_the_readme_s_figures_are_the_result_s():
    result = read_json(ROOT / "benchmarks" / "results" / RESULTS[60])
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    mean = {(row["fold"], row["tested"], row["arm"]): row for row in result["dice"] if row["contrast"] == "mean"}
    fold, little = brain_lesions.FOLDS
    film, plain = (mean[fold, "own", arm] for arm in ("FiLM, a tenth", "plain"))
    assert all(a > b for a, b in zip(film["seeds"], plain["seeds"], strict=True)) and len(film["seeds"]) == 3
    other = max(row["mean"] for (_, tested, _), row in mean.items() if tested == "other")
    taught = max(row["mean"] for (f, _, arm), row in mean.items() if f == little and arm != "each alone")
    [wrong] = [row["mean"] for row in result["wrong_codes"] if (fold, "own", "FiLM, a tenth", "other polarity") == (
        row["fold"], row["tested"], row["arm"], row["code"])]
    assert 0.4 < 1 - wrong / film["mean"] < 0.5 and taught < 0.05

    def said(value):
        return f"{value:.2f}".lstrip("0")

    assert f"FiLM reaches {said(film['mean'])} where the plain U-Net reaches {said(plain['mean'])}" in text
    assert f"poor ({said(other)} at best)" in text and f"{result['seconds'] / 60:.0f} minutes on 2 cores" in text


def test_a_real_brain_reads_as_the_stored_facts_say(mirror, result):
    from msfilm.data.nifti import read_image, read_mask

    folder = mirror / "open_ms_data" / "cross_sectional" / "MNI" / "patient19"
    image = read_image(next(folder.glob("FLAIR_N4_*")))
    lesions = read_mask(next(folder.glob("GOLD_*")), like=image)
    [row] = [row for row in result["facts"] if (row["patient"], row["contrast"]) == ("patient19", "FLAIR")]
    assert image.orientation == "LAS" and lesions.data.sum() == row["lesion_mm3"]
    assert brain_lesions.brain_mask(image).data.sum() / 1000 == pytest.approx(row["brain_ml"], abs=1e-3)
