"""Labels of several raters: one at random or their mean; soft masks in augmentation; STAPLE as a mask of the set."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loop import CONFIG, toy

from msfilm.data.slices import UNDRAWN, ScanMasks
from msfilm.errors import SettingError
from msfilm.files import sha256_file
from msfilm.train import loop
from msfilm.train.alter import MASK_OPERATIONS, morph
from msfilm.train.augment import NO_AUGMENT, AugmentConfig, augment
from msfilm.train.config import TrainConfig, with_settings
from msfilm.train.loop import fit
from msfilm.train.runs import run_name
from msfilm.train.targets import MEAN, RANDOM, one_of, targets_of
from msfilm.train.tensors import gather, slices_hash, usable_rows, volume_dice

SHORT = replace(CONFIG, epochs=2, augment=NO_AUGMENT)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn():
    """Three raters: the second shifts the mask by a pixel, the third drew T2w only; one volume was drawn by nobody."""
    slices = toy()
    first = slices.masks["rater-1"]
    third = np.roll(first, -1, axis=3)
    third[(slices.table["contrast"] == "T2star").to_numpy()] = UNDRAWN
    masks = {"truth": first, "rater-10": third, "rater-1": first.copy(), "rater-2": np.roll(first, 1, axis=2)}
    nobody = (slices.table["volume"] == "sub-003_T2w").to_numpy()
    for name in ("rater-1", "rater-2", "rater-10"):
        masks[name][nobody] = UNDRAWN
    return replace(slices, masks=masks)


def test_a_random_rater_is_each_of_those_who_drew_equally_often_and_never_another(drawn):
    rows = np.flatnonzero(usable_rows(drawn, RANDOM, ()))
    masks = torch.from_numpy(targets_of(drawn, rows, RANDOM))
    assert masks.shape == (len(rows), 3, 17, 17) and not (masks[:, :, 0, 0] < UNDRAWN).all()
    generator, times = seeded(), 600
    counts = torch.zeros(len(rows), 3)
    lesion = torch.from_numpy(np.flatnonzero(drawn.masks["rater-1"][rows].any((1, 2, 3))))   # elsewhere all are alike
    for _ in range(times):
        got = one_of(masks, generator)
        assert got.shape == (len(rows), 1, 17, 17) and got.max() <= 1
        counts += (got == masks).flatten(2).all(2)
    who = (masks[:, :, 0, 0] < UNDRAWN)[lesion]
    share = counts[lesion] / times
    assert not share[~who].any()
    assert ((share - 1 / who.sum(1, keepdim=True)).abs()[who] < 0.1).all()      # five standard deviations
    again, same = one_of(masks, seeded(1)), one_of(masks, seeded(1))
    assert torch.equal(again, same)


def test_the_mean_is_numpys_over_those_who_drew(drawn):
    rows = np.flatnonzero(usable_rows(drawn, MEAN, ()))
    assert len(rows) == len(drawn) - 4                                            # the volume that nobody drew
    stack = np.stack([drawn.masks[name][rows] for name in ("rater-1", "rater-2", "rater-10")]).astype(float)
    expected = np.nanmean(np.where(stack == UNDRAWN, np.nan, stack), axis=0)
    found = targets_of(drawn, rows, MEAN)
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-7)
    assert {0, 1 / 2, 1} < {round(float(v), 6) for v in np.unique(found)}


@pytest.mark.parametrize("mask", [RANDOM, MEAN])
def test_two_raters_are_needed_and_a_misspelt_name_is_told(drawn, mask):
    one = toy()
    with pytest.raises(SettingError, match=rf"MASK-UNKNOWN.*'{mask}' needs two raters.* have 1 -> use 'rater-1'"):
        usable_rows(one, mask, ())
    with pytest.raises(SettingError, match=rf"MASK-UNKNOWN.*did you mean '{mask}'"):
        usable_rows(drawn, mask.replace("-", "_"), ())
    with pytest.raises(SettingError, match="MASK-UNKNOWN"):
        run_name(replace(CONFIG, mask=mask), one)


def test_the_hash_sees_every_rater_and_not_the_truth(drawn):
    before, other = slices_hash(drawn, RANDOM), {name: mask.copy() for name, mask in drawn.masks.items()}
    other["truth"][1] ^= 1
    assert slices_hash(replace(drawn, masks=other), RANDOM) == before
    for name in ("rater-1", "rater-2", "rater-10"):
        changed = {**drawn.masks, name: drawn.masks[name].copy()}
        changed[name][1, 0, 3, 3] ^= 1
        assert slices_hash(replace(drawn, masks=changed), RANDOM) != before
    names = [run_name(replace(CONFIG, mask=mask), drawn) for mask in (RANDOM, MEAN, "rater-1", "truth")]
    assert len(set(names)) == 4


def test_where_raters_agree_learning_from_their_mean_is_learning_from_one(tmp_path):
    slices = toy()
    slices.masks["rater-2"] = slices.masks["rater-1"]
    made = {mask: fit(slices, replace(SHORT, mask=mask, epochs=1), tmp_path / mask, progress=False)
            for mask in ("rater-1", MEAN, RANDOM)}
    weights = {mask: sha256_file(run.folder / "weights.safetensors") for mask, run in made.items()}
    assert weights["rater-1"] == weights[MEAN] == weights[RANDOM]   # dropout has a generator of its own
    assert made[RANDOM].best_val_dice == made["rater-1"].best_val_dice


@pytest.mark.parametrize("frozen", [False, True])
def test_a_random_rater_is_drawn_anew_each_epoch_unless_frozen_and_a_resumed_run_is_the_same(
        drawn, tmp_path, monkeypatch, frozen):
    shown, bce = [], loop.LOSSES["bce"]

    def watch(logits, targets):
        assert targets.shape == logits.shape and targets.max() == 1
        shown.append(targets.float().sum(0))     # of a whole epoch: one batch holds all slices, in whatever order
        return bce(logits, targets)

    monkeypatch.setitem(loop.LOSSES, "bce", watch)
    config = replace(SHORT, mask=RANDOM, batch_size=48, loss="bce", frozen_augmentation=frozen)
    fit(drawn, config, tmp_path / "whole", progress=False)
    assert len(shown) == 2 and torch.equal(*shown) == frozen

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(drawn, config, tmp_path / "stopped", progress=False, on_epoch=stop)
    fit(drawn, config, tmp_path / "stopped", progress=False, resume=True)
    weights = [sha256_file(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_validation_cuts_the_mean_at_one_half(drawn):
    rows = usable_rows(drawn, MEAN, ())
    side = gather(drawn, rows, MEAN, None, torch.device("cpu"), "val")

    class Answer(torch.nn.Module):
        def forward(self, x, z):
            return next(batches)

    batches = iter((side.targets >= 0.5).float().sub(0.5).split(256))
    assert volume_dice(Answer(), side, torch.autocast("cpu", enabled=False)) == 1.0


def test_soft_masks_stay_soft_and_hard_ones_come_out_as_ever():
    """Interpolation is linear: of a mean, the mean of the masks' own; morphology acts on every level as on a mask."""
    rng = np.random.default_rng(0)
    hard = torch.from_numpy((rng.random((6, 3, 19, 17)) < 0.3).astype(np.uint8))
    images, config = torch.from_numpy(rng.random((6, 1, 19, 17), np.float32)), AugmentConfig(elastic_p=1.0)
    _, each = augment(images, hard.float(), config, seeded(), spacing_mm=0.75)
    _, mean = augment(images, hard.float().mean(1, keepdim=True), config, seeded(), spacing_mm=0.75)
    assert torch.allclose(mean, each.mean(1, keepdim=True), atol=1e-6) and ((mean > 0.4) & (mean < 0.6)).any()
    _, cut = augment(images, hard, config, seeded(), spacing_mm=0.75)
    assert cut.dtype == torch.uint8 and torch.equal(cut, (each > 0.5).to(torch.uint8))
    soft = torch.from_numpy(rng.integers(0, 5, (6, 2, 19, 17)).astype(np.float32) / 4)
    for name in MASK_OPERATIONS:
        levels = torch.stack([morph((soft >= level).to(torch.uint8), 1.0, seeded(), (name,)).float()
                              for level in (0.25, 0.5, 0.75, 1.0)]).mean(0)
        assert torch.equal(morph(soft, 1.0, seeded(), (name,)), levels)
    assert augment(images, soft, NO_AUGMENT, seeded())[1] is soft


def test_newer_settings_that_are_off_leave_no_trace():
    off = CONFIG.as_dict()
    assert "split_unit" not in off and "without_centres" not in off and TrainConfig.from_dict(off) == CONFIG
    on = replace(CONFIG, split_unit="slice", without_centres="centre-1")
    assert TrainConfig.from_dict(json.loads(json.dumps(on.as_dict()))) == on and on.without_centres == ("centre-1",)
    assert replace(CONFIG, seed=7, split_seed="seed").split_seed == 7
    assert with_settings(CONFIG, ["split_seed=seed", "seed=3", "without_centres=[a, b]"]).without_centres == ("a", "b")
    with pytest.raises(SettingError, match="split_unit='slices'.*did you mean 'slice'"):
        replace(CONFIG, split_unit="slices")


def test_staple_becomes_a_mask_of_the_crops_and_of_the_scan(drawn):
    pytest.importorskip("SimpleITK")
    from msfilm.evaluate.consensus_masks import add_staple
    from msfilm.evaluate.staple import staple

    rng, scans = np.random.default_rng(0), dict(drawn.scans)
    dense = [np.pad(rng.random((5, 4, 3)) < 0.4, ((9, 2), (0, 7), (1, 3))) for _ in range(3)]
    names = ("rater-1", "rater-2", "rater-10")
    cord = np.zeros(0, np.int32)
    for volume, masks in {"sub-000_T2w": dense, "sub-001_T2w": [np.zeros_like(dense[0])] * 2}.items():
        voxels = {name: np.flatnonzero(mask).astype(np.int32) for name, mask in zip(names, masks, strict=False)}
        scans[volume] = ScanMasks(dense[0].shape, np.eye(4), {"cord": cord, **voxels}, cord.astype(np.float32))
    found = add_staple(replace(drawn, scans=scans))
    mask, volumes = found.masks["staple"], found.table["volume"].to_numpy()
    assert mask.dtype == np.uint8 and (mask[volumes == "sub-003_T2w"] == UNDRAWN).all()
    for volume, raters in (("sub-000_T2w", names), ("sub-000_T2star", names[:2])):     # the third drew T2w only
        rows = volumes == volume
        expected = staple([drawn.masks[name][rows, 0] for name in raters]).mask
        assert np.array_equal(mask[rows, 0].astype(bool), expected)
    assert np.array_equal(found.scans["sub-000_T2w"].dense("staple"), staple(dense).mask)
    assert len(found.scans["sub-001_T2w"].indices["staple"]) == 0 and "staple" not in found.scans["sub-002_T2w"].indices
    assert "staple" not in drawn.masks and usable_rows(found, "staple", ()).sum() == len(drawn) - 4
    with pytest.raises(SettingError, match="AGREEMENT-FEW.*panel_every"):
        add_staple(toy())
