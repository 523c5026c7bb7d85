"""Baselines against a search by brute force on dense arrays."""

from __future__ import annotations

import numpy as np
import pytest

from msfilm.data.slices import ScanMasks
from msfilm.errors import SettingError
from msfilm.evaluate.baselines import ThresholdBaseline, all_cord_baseline, boxed_masks, lesion_volume_mm3
from msfilm.evaluate.metrics import dice


def scan(seed, *, sign=1, lesion=True, shape=(11, 13, 6)):
    """A cord with noise and a lesion that is brighter (sign 1) or darker (-1), a part of it outside the cord."""
    rng = np.random.default_rng(seed)
    image = rng.normal(1, 0.2, size=shape).astype(np.float32)
    cord, mask = np.zeros((2, *shape), bool)
    cord[3:9, 3:10, :] = True
    if lesion:
        mask[4:7, 8:12, 2:4] = True
        image[mask] += sign * 0.5
    affine = np.diag([0.5, 0.5, 4.0, 1.0])
    return ScanMasks.from_dense(affine, {"cord": cord, "rater-1": mask}, image), image


def brute_force(scans, images):
    best = (-1, None, None)
    for direction in ("above", "below"):
        for level in np.unique(np.concatenate([s.cord_values for s in scans])):
            values = []
            for s, image in zip(scans, images, strict=True):
                chosen = (image >= level if direction == "above" else image <= level) & s.dense("cord")
                values.append(dice(s.dense("rater-1"), chosen))
            if not np.isnan(values).all() and np.nanmean(values) > best[0]:
                best = (np.nanmean(values), direction, level)
    return best


@pytest.mark.parametrize("sign", [1, -1])
def test_threshold_is_the_best_one(sign):
    scans, images = zip(*(scan(seed, sign=sign, lesion=seed != 2) for seed in range(4)), strict=True)
    best, direction, level = brute_force(scans, images)
    found = ThresholdBaseline.fit(scans, "T2w", candidates=10**5)
    assert (found.direction, found.threshold) == (direction, pytest.approx(level, abs=1e-6))
    assert found.direction == ("above" if sign == 1 else "below")
    assert found.dice == pytest.approx(best, abs=1e-6)
    coarse = ThresholdBaseline.fit(scans, "T2w")
    assert best - 0.01 < coarse.dice <= best + 1e-9


def test_fit_and_predict_agree():
    scans = [scan(seed)[0] for seed in range(5)]
    found = ThresholdBaseline.fit(scans, "T2star")
    again = []
    for s in scans:
        prediction = np.zeros(s.shape, bool)
        prediction.flat[found.predict(s)] = True
        assert not (prediction & ~s.dense("cord")).any()
        again.append(dice(s.dense("rater-1"), prediction))
    assert found.dice == pytest.approx(np.nanmean(again))
    assert found.volumes == 5
    assert ThresholdBaseline(**found.as_dict()) == found


def test_both_empty_is_left_out_of_the_choice():
    # A threshold that leaves the lesion-free volume empty must not be rewarded for it: rule 'exclude'.
    scans = [scan(0)[0], scan(1, lesion=False)[0]]
    found = ThresholdBaseline.fit(scans, "T2w")
    assert found.volumes in (1, 2)
    assert found.dice <= 1


def test_all_cord_marks_the_cord():
    s, _ = scan(0)
    prediction = np.zeros(s.shape, bool)
    prediction.flat[all_cord_baseline(s)] = True
    assert (prediction == s.dense("cord")).all()
    assert lesion_volume_mm3(s) == pytest.approx(s.dense("rater-1").sum() * 1.0)
    assert lesion_volume_mm3(s, all_cord_baseline(s)) == pytest.approx(6 * 7 * 6)


def test_no_volume_to_choose_on():
    with pytest.raises(SettingError, match=r"BASELINE-EMPTY.*T2w.*rater-2"):
        ThresholdBaseline.fit([scan(0)[0]], "T2w", reference="rater-2")


def test_boxed_masks_keep_overlap_and_size():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 9, 12, 5)) < 0.03
    x, y = boxed_masks(a.shape, np.flatnonzero(a), np.flatnonzero(b))
    assert (x.sum(), y.sum(), (x & y).sum()) == (a.sum(), b.sum(), (a & b).sum())
    where = np.argwhere(a | b)
    assert x.shape == tuple(np.ptp(where, axis=0) + 1)
    assert (x == a[tuple(slice(lo, hi + 1) for lo, hi in zip(where.min(0), where.max(0), strict=True))]).all()
    empty = boxed_masks(a.shape, np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert not any(m.any() for m in empty)
