"""Laws of the measure of contrasts left out: whose scans it adapts to, how it scores, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_cohort import one_volume

from msfilm.data.crop import uncrop
from msfilm.data.slices import SliceSet
from msfilm.errors import RunError
from msfilm.evaluate import new_contrast
from msfilm.evaluate.new_contrast import VARIANTS, labelled_scans, measure_new_contrast, volume_dice
from msfilm.evaluate.predict import predict_images
from msfilm.evaluate.summary import score_pair
from msfilm.evaluate.trained import TrainedRun
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, save_network
from msfilm.train.config import TrainConfig

CONTRASTS = ("MTon", "T2star", "T2w")


def _cohort(patients, contrasts=CONTRASTS, free=()):
    return SliceSet.concat([one_volume(patient, contrast, lesion=patient not in free, shift=1)
                            for patient in patients for contrast in contrasts])


def _network(contrasts, seed):
    """Lightly random, with FiLM where there are contrasts; marks about a tenth of the pixels."""
    model = UNet(UNetConfig(depth=1, filters=2, n_codes=len(contrasts)), seed=seed)
    with torch.no_grad():
        for i, head in enumerate(model.generator.heads if model.generator else ()):
            head.weight.copy_(0.3 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed + i)))
        model.blocks["logits"].bias.sub_(0.3)
    return Network(model.eval(), CategoryEncoder("contrast", tuple(contrasts)) if contrasts else None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new_contrast")
    _cohort(range(1, 8), free=(3,)).save(folder / "slices")
    _cohort(range(21, 26), ("MTon",), free=(23,)).save(folder / "test")
    found = []
    for seed in (0, 1):
        for arm, known, conditioning in (("film with all", CONTRASTS, "contrast"),
                                         ("film without MTon", CONTRASTS[1:], "contrast"),
                                         ("plain without MTon", CONTRASTS[1:], "none")):
            run = folder / f"{arm.replace(' ', '-')}-{seed}"
            save_network(run, _network(known if conditioning == "contrast" else (), seed))
            config = TrainConfig(conditioning=conditioning, seed=seed,
                                 contrasts=() if known == CONTRASTS else known)
            found.append(TrainedRun(arm, seed, run, folder / "slices", folder / "test", config, {}, {}))
    return found


@pytest.fixture(scope="module")
def measured(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as few:
        few.setattr(new_contrast.adapt, "CODE_STEPS", 4)
        few.setattr(new_contrast.adapt, "TUNE_STEPS", 4)
        content = measure_new_contrast(runs, folder, workers=1, progress=False)
    return folder, content


def test_labelled_scans_are_nested_have_lesions_and_are_of_different_patients():
    slices = SliceSet.concat([_cohort(range(1, 9), free=(3, 5))])
    orders = [labelled_scans(slices, "MTon", seed, 6) for seed in range(4)]
    assert len({tuple(order) for order in orders}) > 1
    for seed, order in enumerate(orders):
        assert labelled_scans(slices, "MTon", seed, 2) == order[:2]
        assert sorted(order) == [f"sub-{patient:03d}_MTon" for patient in (1, 2, 4, 6, 7, 8)]
    with pytest.raises(RunError, match="NEW-CONTRAST-SCANS"):
        labelled_scans(slices, "MTon", 0, 7)
    slices.table["contrast"] = "MTon"   # now every patient has three such volumes
    assert len({name[:7] for name in labelled_scans(slices, "MTon", 0, 6)}) == 6


def test_volume_dice_is_that_of_a_report():
    slices, network = _cohort((1, 2, 3), ("MTon",), free=(2,)), _network(CONTRASTS, 0)
    table = volume_dice(network, slices, torch.tensor([0.3, 0.3, 0.4])).set_index(["volume", "reference"])
    full = torch.tensor([[0.3, 0.3, 0.4]]).expand(len(slices), -1)
    probability = predict_images(network, slices.images, full)[:, 0]
    for (volume, reference), row in table.iterrows():
        scan = slices.scans[volume]
        rows = (slices.table["volume"] == volume).to_numpy()
        marked = np.flatnonzero(uncrop(probability[rows], slices.grid(volume)) >= 0.5)
        assert row["dice"] == pytest.approx(score_pair(scan, scan.indices[reference], marked)["dice"], nan_ok=True)
        assert (row["marked"], row["drawn"]) == (len(marked), len(scan.indices[reference]))
    assert (table["dice"] > 0).any() and len(table) == 6


def test_every_variant_is_scored_and_compared(measured):
    _, content = measured
    rows = {(row["variant"], row["reference"]): row for row in content["new_contrast"]}
    assert list(dict.fromkeys(variant for variant, _ in rows)) == list(VARIANTS) and len(rows) == 2 * len(VARIANTS)
    for row in rows.values():
        assert (row["held_out"], row["seeds"], row["volumes"], row["lesion_free"]) == ("MTon", 2, 5, 1)
        assert row["low"] <= row["dice"] <= row["high"]
    assert [rows[name, "truth"]["scans"] for name in ("zeros", "code, 1 scan", "fine-tuned, 5 scans")] == [0, 1, 5]
    pairs = {(one["a"], one["b"]) for one in content["new_contrast_differences"]}
    assert pairs == {(name, "plain") for name in VARIANTS if name != "plain"} | {
        (f"code, {k}", f"fine-tuned, {k}") for k in ("1 scan", "2 scans", "5 scans")}
    # Those with a lesion are scored by all variants, so that a paired difference is the difference of their means.
    for one in content["new_contrast_differences"]:
        if one["unpaired"] == 0:
            gap = rows[one["a"], one["reference"]]["dice"] - rows[one["b"], one["reference"]]["dice"]
            assert one["mean"] == pytest.approx(gap, abs=1e-6)
    for one in content["new_contrast_all_cord"]:   # a lesion of 4 x 4 x 2 voxels in a cord of 12 x 10 x 6
        assert one["dice"] == pytest.approx((4 * 2 * 32 / (32 + 720) + 0) / 5) and one["held_out"] == "MTon"
    assert len(content["new_contrast_all_cord"]) == 2
    headline = {(one["a"], one["expected"]) for one in content["new_contrast_differences"] if one["headline"]}
    assert headline == {("code, 1 scan", "+"), ("code, 5 scans", "-")}


def test_codes_were_fitted_to_training_patients_and_nested_scans(measured):
    codes = measured[1]["new_contrast_codes"]
    assert [(one["seed"], one["scans"]) for one in codes] == [(0, 1), (0, 2), (0, 5), (1, 1), (1, 2), (1, 5)]
    for one in codes:
        assert len(one["volumes"]) == one["scans"] and one["labels"] == ["T2star", "T2w"] and len(one["z"]) == 2
        assert {name[:7] for name in one["volumes"]} <= {f"sub-{patient:03d}" for patient in (1, 2, 4, 5, 6, 7)}
        assert one["nearest"] == min(one["distances"], key=one["distances"].get) == "T2star"   # lesions as bright
    for one, two, five in (codes[:3], codes[3:]):
        assert set(one["volumes"]) < set(two["volumes"]) < set(five["volumes"])
    assert codes[0]["volumes"] != codes[3]["volumes"]


def test_what_was_kept_is_read_and_what_other_networks_left_is_not(measured, runs, monkeypatch):
    folder, content = measured

    def refuse(*_):
        raise AssertionError("made anew")

    monkeypatch.setattr(new_contrast, "volume_dice", refuse)
    monkeypatch.setattr(new_contrast.adapt, "CODE_STEPS", 4)
    monkeypatch.setattr(new_contrast.adapt, "TUNE_STEPS", 4)
    assert measure_new_contrast(runs, folder, workers=1, progress=False) == content
    monkeypatch.setattr(new_contrast.adapt, "CODE_STEPS", 7)   # another setting, another result
    with pytest.raises(AssertionError, match="made anew"):
        measure_new_contrast(runs, folder, workers=1, progress=False)


@pytest.mark.parametrize("missing", ["plain without MTon", "film with all", "film without MTon"])
def test_without_its_partners_nothing_is_measured(runs, tmp_path, missing):
    with pytest.raises(RunError, match="NEW-CONTRAST-RUNS"):
        measure_new_contrast([run for run in runs if run.arm != missing], tmp_path, progress=False)
