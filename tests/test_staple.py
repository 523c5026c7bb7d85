"""STAPLE against its own equations in a few lines, and on masks that leave little or nothing to estimate."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from msfilm.data.slices import ScanMasks
from msfilm.errors import RunError, SettingError
from msfilm.evaluate.metrics import dice
from msfilm.evaluate.staple import panel_staple, staple


def expectation_maximisation(masks, steps=3000):
    """Warfield's equations, from raters that are nearly perfect; masks already cut to the box."""
    d = np.stack([mask.ravel() for mask in masks]).astype(float)  # (R, V)
    prior, p, q = d.mean(), np.full((len(d), 1), 0.99999), np.full((len(d), 1), 0.99999)
    for _ in range(steps):
        lesion = prior * np.prod(np.where(d == 1, p, 1 - p), axis=0)
        other = (1 - prior) * np.prod(np.where(d == 1, 1 - q, q), axis=0)
        w = lesion / (lesion + other)
        p, q = (d @ w / w.sum())[:, None], ((1 - d) @ (1 - w) / (1 - w).sum())[:, None]
    return w.reshape(masks[0].shape), p[:, 0], q[:, 0]


def raters(seed=0, errors=(0.02, 0.05, 0.2), shape=(9, 7, 5)):
    rng = np.random.default_rng(seed)
    truth = rng.random(shape) < 0.2
    return truth, [truth ^ (rng.random(shape) < error) for error in errors]


def boxed(masks, margin):
    """The smallest box round all masks, with a margin of nothing, worked out independently."""
    union = np.any(masks, axis=0)
    for axis in range(union.ndim):
        held = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        masks = [np.take(mask, range(held[0], held[-1] + 1), axis=axis) for mask in masks]
    return [np.pad(mask, margin) for mask in masks]


@pytest.mark.parametrize("margin", [1, 3])
@pytest.mark.parametrize("errors", [(0.02, 0.05, 0.2), (0.1, 0.1, 0.1, 0.3, 0.02)])
def test_it_is_the_equations(errors, margin):
    _, masks = raters(1, errors)
    scan = [np.pad(mask, ((9, 4), (6, 8), (5, 7))) for mask in masks]
    found = staple(scan, margin=margin)
    w, p, q = expectation_maximisation(boxed(scan, margin))
    np.testing.assert_allclose(found.probability[found.box], w, atol=1e-4)
    np.testing.assert_allclose(list(found.sensitivity.values()), p, atol=1e-4)
    np.testing.assert_allclose(list(found.specificity.values()), q, atol=1e-4)
    assert found.prior == pytest.approx(np.mean(boxed(scan, margin)))
    outside = found.probability.copy()
    outside[found.box] = 0
    assert not outside.any() and found.probability.dtype == np.float32 and found.probability.shape == scan[0].shape
    assert list(found.sensitivity) == [f"rater-{i}" for i in range(1, len(errors) + 1)]


def test_at_the_border_of_the_array_the_box_goes_on():
    _, masks = raters(2)
    inside = staple([np.pad(mask, 4) for mask in masks])
    at_border = staple(masks)
    assert at_border.probability.shape == masks[0].shape
    np.testing.assert_array_equal(at_border.probability, inside.probability[4:-4, 4:-4, 4:-4])
    assert at_border.sensitivity == inside.sensitivity


def test_the_better_rater_is_known_for_it_and_the_estimate_beats_each():
    truth, masks = raters(3, errors=(0.03, 0.1, 0.1, 0.1), shape=(15, 15, 9))
    found = staple(dict(zip("abcd", masks, strict=True)))
    assert found.sensitivity["a"] == max(found.sensitivity.values())
    assert found.specificity["a"] == max(found.specificity.values())
    assert dice(truth, found.mask) > max(dice(truth, mask) for mask in masks)


def test_equal_masks_are_the_estimate():
    truth, _ = raters(4)
    for masks in ([truth] * 3, [np.ones((3, 3, 3), bool)] * 2, [truth[..., 0]] * 2):
        found = staple(masks)
        np.testing.assert_array_equal(found.probability, masks[0])
        assert set(found.sensitivity.values()) == set(found.specificity.values()) == {1.0}


def test_empty_masks():
    _, masks = raters(5)
    empty = np.zeros_like(masks[0])
    found = staple([*masks, empty])
    assert found.sensitivity["rater-4"] < 1e-6 and found.specificity["rater-4"] == pytest.approx(1)
    _, p, _ = expectation_maximisation(boxed([*masks, empty], 2))
    np.testing.assert_allclose(list(found.sensitivity.values()), p, atol=1e-4)
    nothing = staple([empty, empty])
    assert not nothing.probability.any() and nothing.box is None and nothing.iterations == 0
    assert set(nothing.specificity.values()) == {1.0} and np.isnan(list(nothing.sensitivity.values())).all()
    undecided = staple([masks[0], empty])
    np.testing.assert_allclose(undecided.probability[masks[0]], 0.5, atol=1e-6)
    assert np.isfinite(undecided.probability).all()


def test_a_panel_of_scans():
    truth, masks = raters(6)
    affine, cord = np.eye(4), np.ones_like(truth)

    def scan(drawn):
        named = {f"rater-{i}": mask for i, mask in enumerate(drawn, start=1)}
        return ScanMasks.from_dense(affine, {"cord": cord, "truth": truth} | named, np.ones(truth.shape))

    scans = {"a_T2w": scan(masks), "b_T2w": scan(masks[:1]), "c_T2w": scan(masks[:2])}
    table = panel_staple(scans)
    assert table[["patient", "volume", "rater"]].values.tolist() == [
        [v[0], v, f"rater-{i}"] for v, n in (("a_T2w", 3), ("c_T2w", 2)) for i in range(1, n + 1)]
    of_a = staple(masks)
    assert table["sensitivity"].tolist()[:3] == list(of_a.sensitivity.values())
    assert table["dice"][0] == dice(staple(masks[1:]).mask, masks[0])  # he himself is left out
    assert table["dice"][3:].isna().all()  # of two, one other is left, whom nobody can judge
    with pytest.raises(SettingError, match="AGREEMENT-FEW"):
        panel_staple({"b_T2w": scans["b_T2w"]})


def test_refusals(monkeypatch):
    _, masks = raters(7)
    for arguments, settings, code in [
        ((masks[:1],), {}, "AGREEMENT-FEW"), (([],), {}, "AGREEMENT-FEW"),
        (([masks[0], masks[1][:3]],), {}, "SCORE-SHAPE"), (([masks[0], 255 * masks[1]],), {}, "SCORE-VALUES"),
        (([masks[0].ravel()] * 2,), {}, "SCORE-SHAPE"), ((masks,), {"margin": 0}, "STAPLE-SETTING"),
        ((masks,), {"max_iterations": 0}, "STAPLE-SETTING"),
    ]:
        with pytest.raises(SettingError) as caught:
            staple(*arguments, **settings)
        assert caught.value.code == code
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(RunError, match=r"NEEDS-SIMPLEITK.*pip install SimpleITK"):
        staple(masks)
