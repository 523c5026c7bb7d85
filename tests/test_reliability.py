"""Calibration: bins against a loop, sums over volumes, ECE and Brier by formula, and the figure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from msfilm.errors import SettingError
from msfilm.evaluate.figure import reliability_figure
from msfilm.evaluate.reliability import Reliability, reliability


def some(seed, shape=(7, 5, 3)):
    rng = np.random.default_rng(seed)
    p = rng.random(shape) ** 2
    return p, rng.random(shape) < p ** 0.7


def by_loop(p, lesion, bins):
    rows, ece = [], 0.0
    for i in range(bins):
        inside = (p >= i / bins) & ((p < (i + 1) / bins) | (i == bins - 1))
        rows.append((p[inside].sum(), lesion[inside].sum(), inside.sum()))
        if inside.any():
            ece += inside.mean() * abs(p[inside].mean() - lesion[inside].mean())
    return np.array(rows), ece


@pytest.mark.parametrize("bins", [1, 2, 15])
def test_bins_are_those_of_a_loop(bins):
    p, lesion = some(0)
    p.flat[:3] = 0.0, 1.0, 0.5
    found, (rows, ece) = reliability(p, lesion, bins), by_loop(p, lesion, bins)
    np.testing.assert_allclose(found.confidence_sum, rows[:, 0])
    assert (found.lesion == rows[:, 1]).all() and (found.count == rows[:, 2]).all()
    assert found.ece == pytest.approx(ece)
    assert found.brier == pytest.approx(((p - lesion) ** 2).mean())
    table = found.table()
    assert list(table.columns) == ["low", "high", "confidence", "frequency", "count"] and len(table) == bins
    filled = table["count"] > 0
    assert ((table["confidence"] >= table["low"]) & (table["confidence"] <= table["high"]))[filled].all()
    np.testing.assert_allclose((table["frequency"] * table["count"])[filled], rows[:, 1][filled])
    if bins == 1:
        assert found.ece == pytest.approx(abs(p.mean() - lesion.mean()))


def test_volumes_add_up():
    volumes = [some(seed, shape) for seed, shape in enumerate([(3, 5), (7, 1), (11, 2)])]
    together = Reliability.total(reliability(*volume) for volume in volumes)
    joined = reliability(*(np.concatenate([part.ravel() for part in parts])
                           for parts in zip(*volumes, strict=True)))
    assert (together.count == joined.count).all() and (together.lesion == joined.lesion).all()
    assert (together.ece, together.brier) == pytest.approx((joined.ece, joined.brier))
    again = Reliability.from_dict(json.loads(json.dumps(together.as_dict())))
    assert again.ece == together.ece and again.voxels == sum(p.size for p, _ in volumes)


def test_only_where_asked():
    p, lesion = some(1)
    where = np.random.default_rng(2).random(p.shape) < 0.4
    assert reliability(p, lesion, where=where).as_dict() == reliability(p[where], lesion[where]).as_dict()


def test_a_calibrated_probability_has_a_small_error_and_a_perfect_one_none():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert reliability(p, rng.random(len(p)) < p).ece < 0.006
    assert reliability(p, rng.random(len(p)) < p / 2).ece == pytest.approx(0.25, abs=0.006)
    lesion = rng.random(100) < 0.3
    sure = reliability(lesion.astype(np.float32), lesion)
    assert sure.ece == sure.brier == 0
    assert reliability(1.0 - lesion, lesion).ece == reliability(1.0 - lesion, lesion).brier == 1


def test_no_voxels():
    none = reliability(np.zeros(0), np.zeros(0, bool))
    assert np.isnan(none.ece) and np.isnan(none.brier) and none.table()["confidence"].isna().all()
    p, lesion = some(3)
    assert (none + reliability(p, lesion)).ece == reliability(p, lesion).ece


def test_what_is_no_probability_is_refused():
    p, lesion = some(4)
    for arguments, settings, code in [
        ((p + 1, lesion), {}, "SCORE-VALUES"), ((np.where(p > 0.5, np.nan, p), lesion), {}, "SCORE-VALUES"),
        ((p, 255 * lesion), {}, "SCORE-VALUES"), ((p, lesion[:2]), {}, "SCORE-SHAPE"),
        ((p, lesion), {"where": lesion[0]}, "SCORE-SHAPE"), ((p, lesion), {"bins": 0}, "SCORE-BINS"),
    ]:
        with pytest.raises(SettingError) as caught:
            reliability(*arguments, **settings)
        assert caught.value.code == code
    with pytest.raises(SettingError, match="SCORE-BINS"):
        reliability(p, lesion, 10) + reliability(p, lesion, 15)


def test_the_figure_shows_each_bin_and_marks_the_small_ones():
    p, lesion = some(5, (40, 40))
    counts = {"one": reliability(p, lesion), "other": reliability(*some(6, (1, 3)))}
    figure = reliability_figure(counts, title="a title")
    upper, lower = figure.axes
    lines = {line.get_label(): line for line in upper.lines}
    for name, part in counts.items():
        table = part.table().dropna()
        line = next(line for label, line in lines.items() if label.startswith(f"{name} "))
        np.testing.assert_allclose(line.get_xydata(), table[["confidence", "frequency"]])
        assert f"{part.ece:.3f}" in line.get_label()
    hollow = [line for line in upper.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in hollow) == sum(
        int(((part.count > 0) & (part.count < 20)).sum()) for part in counts.values())
    assert len(lower.patches) == 2 and lower.get_yscale() == "log"
