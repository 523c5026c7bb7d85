"""Ceilings: the best mask is the best there is, raters are those of the cohort, and the figure says what was found."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from msfilm.errors import SettingError
from msfilm.evaluate.agreement import pairwise_dice
from msfilm.evaluate.ceiling import (
    KINDS,
    best_mask,
    ceiling_rows,
    ceiling_scores,
    measure_ceilings,
    scan_ceilings,
    worth_marking,
)
from msfilm.evaluate.metrics import dice
from msfilm.evaluate.stats import bootstrap_ci, paired_difference
from msfilm.evaluate.trained import TrainedRun
from msfilm.model.weights import SHIPPED
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.direct import make_slices
from msfilm.phantom.hands import Hands
from msfilm.phantom.raters import draw_mask
from msfilm.phantom.roster import CohortPlan
from msfilm.train.config import TrainConfig
from msfilm.view.ceiling import ceiling_figure

PLAN = CohortPlan(3, stations=1, panel_every=1, styles_mm=(-0.2, 0.0, 0.1, 0.25, -0.1))


@pytest.fixture(scope="module")
def scan():
    """One with several lesions."""
    made = [make_scan(i, 3, "T2w_ax", raters=(), plan=PLAN, crop_only=True, noise=False) for i in range(5)]
    return made.index(best := max(made, key=lambda s: (s.clean.distances < 0).any(axis=(1, 2, 3)).sum())), best


@pytest.fixture(scope="module")
def scores():
    plans = [replace(PLAN, spread=0.0, styles_mm=()), PLAN, replace(PLAN, raters="crossed"), replace(PLAN, spread=2.0)]
    return ceiling_scores(6, plans, sampled=30, workers=1, progress=False)


def _dice(a, b):
    """The formula, 0 where one is empty."""
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


# ---- the best mask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_no_mask_at_all_does_better_than_the_best(seed):
    rng = np.random.default_rng(seed)
    masks = rng.uniform(size=(int(rng.integers(1, 7)), 3, 3)) < rng.uniform(0.1, 0.9, size=(3, 3))
    masks[rng.uniform(size=len(masks)) < 0.2] = False
    every = [np.array(bits, bool).reshape(3, 3) for bits in product((0, 1), repeat=9)]
    found, value = best_mask(masks)
    assert value == pytest.approx(max(np.mean([_dice(a, m) for m in masks]) for a in every), abs=1e-6)
    assert np.mean([_dice(found, m) for m in masks]) == pytest.approx(value, abs=1e-6)


def test_large_masks_are_found_as_well_as_by_trying_every_size():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:40, :41]
    centres, radii = rng.normal(20, 3, size=(9, 2)), rng.uniform(4, 15, 9)
    masks = np.stack([(y - a) ** 2 + (x - b) ** 2 < r**2 for (a, b), r in zip(centres, radii, strict=True)])
    flat = masks.reshape(9, -1)
    best = max(
        np.mean([_dice(a, m) for m in flat])
        for n in range(1, flat.any(axis=0).sum() + 1)
        for a in [_top((flat * (2 / (flat.sum(axis=1) + n))[:, None]).sum(axis=0), n)]
    )
    assert best_mask(masks)[1] == pytest.approx(best, abs=1e-4)


def _top(gain, n):
    mask = np.zeros(len(gain), bool)
    mask[np.argsort(-gain)[:n]] = True
    return mask


def test_raters_who_agree_leave_no_choice():
    mask = np.random.default_rng(0).uniform(size=(4, 5, 6)) < 0.3
    found, value = best_mask(np.stack([mask] * 3))
    np.testing.assert_array_equal(found, mask)
    assert value == pytest.approx(1)
    found, value = best_mask(np.zeros((3, 4, 5), bool))
    assert not found.any() and value == 0
    with pytest.raises(SettingError, match="CEILING-SAMPLE"):
        best_mask(np.zeros((0, 4, 5), bool))


@pytest.mark.parametrize("seed", range(8))
def test_volumes_are_left_empty_where_that_raises_the_mean(seed):
    """Against every way to choose: two empty masks are left out of the mean, one empty one counts 0."""
    rng = np.random.default_rng(seed)
    empty = rng.uniform(0, 1, 8)
    value = (1 - empty) * rng.uniform(0.2, 1, 8)

    def mean(mark):
        return value[mark].sum() / (mark.sum() + (1 - empty)[~mark].sum())

    best = max(mean(np.array(bits, bool)) for bits in product((0, 1), repeat=8))
    assert mean(worth_marking(value, empty)) == pytest.approx(best)
    assert not worth_marking(np.zeros(3), np.ones(3)).any()


# ---- who draws ------------------------------------------------------------------------------------------------------


def test_hands_draw_as_a_rater_draws(scan):
    """Lesions missed, shifted and invented, end slices too: the same as one rater after the other, but for rounding."""
    _, scan = scan
    clean, config = scan.clean, replace(PLAN, setting="wide", spread=2.5).rater_config()
    cnrs, voxel = clean.cnr(15.0), float(np.prod(scan.plan.voxel_mm))
    hands = Hands(clean, cnrs, voxel, [np.random.default_rng([9, k]) for k in range(20)], config)
    for styles, settings in ((np.linspace(-0.4, 0.4, 20), config), (np.full(20, 0.2), PLAN.rater_config())):
        alone = np.stack([draw_mask(clean.distances, cnrs, clean.positions, voxel, style,
                                    np.random.default_rng([9, k]), settings) for k, style in enumerate(styles)])
        together = hands.draw(styles, settings)
        assert (alone != together).sum() <= 1e-5 * alone.size
        assert len({mask.tobytes() for mask in alone}) > 10


def test_the_raters_are_the_cohorts_own(scan):
    """Scored without the image are those whose masks the slices hold."""
    index, scan = scan
    for plan in (PLAN, replace(PLAN, raters="crossed", spread=1.7)):
        drawn = make_scan(index, 3, "T2w_ax", plan=plan, crop_only=True)
        row = scan_ceilings(scan, (index, "T2w_ax", "upper"), [plan], sampled=2)[0]
        table = pairwise_dice(drawn.masks).to_numpy()[np.triu_indices(4, 1)]
        assert row["pairwise"] == pytest.approx(np.nanmean(table), abs=1e-3)
        assert row["truth"] == pytest.approx(dice(drawn.truth, drawn.masks["rater-1"]), abs=1e-3)


def test_the_sample_knows_nothing_of_the_rater_who_is_scored(scores):
    """Nested or crossed another rater draws; the mask made from raters at large is the same."""
    nested, crossed = (scores[scores["plan"] == plan].reset_index() for plan in (1, 2))
    pd.testing.assert_series_equal(nested["value_expected"], crossed["value_expected"])
    assert (nested["truth"] != crossed["truth"]).any()


def test_raters_without_spread_leave_every_ceiling_at_1(scores):
    none = scores[scores["plan"] == 0]
    healthy = none["truth"].isna()
    assert (none.loc[~healthy, list(KINDS)] == 1).all(axis=None)
    assert none.loc[healthy, list(KINDS)].isna().all(axis=None)   # nobody marks anything


def test_ceilings_lie_above_rater_against_rater_and_fall_with_the_spread(scores):
    rows = pd.DataFrame(ceiling_rows(scores)).pivot(index="plan", columns="kind", values="dice")
    assert (rows.loc[1:, ["truth", "expected", "style"]].min(axis=1) > rows.loc[1:, "pairwise"] + 0.05).all()
    assert (rows.loc[0] > rows.loc[1]).all() and (rows.loc[1] > rows.loc[3]).all()
    part = scores[scores["plan"] == 3]
    found = bootstrap_ci(part["truth"], part["patient"])
    row = next(r for r in ceiling_rows(scores) if r["plan"] == 3 and r["kind"] == "truth")
    assert row["patients"] <= 6 < row["volumes"]   # a patient's scans stay together
    assert (row["low"], row["high"]) == (pytest.approx(found.low, abs=1e-5), pytest.approx(found.high, abs=1e-5))


def test_plans_share_a_scan_only_if_the_raters_alone_differ():
    with pytest.raises(SettingError, match="CEILING-PLANS"):
        ceiling_scores(1, [PLAN, replace(PLAN, seed=4)], progress=False)
    with pytest.raises(SettingError, match="CEILING-PLANS"):
        ceiling_scores(1, [], progress=False)


# ---- beside the networks, and the figure ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two spreads with a network of the package in the place of a trained one."""
    place = tmp_path_factory.mktemp("ceilings")
    runs = []
    for spread in (1.0, 2.0):
        plan = {"patients": 3, "seed": 3, "stations": 1, "panel_every": 1, "spread": spread}
        make_slices(3, CohortPlan(3, stations=1, panel_every=1, spread=spread), place / f"test-{spread}", workers=1,
                    progress=False)
        runs.append(TrainedRun(f"spread {spread:g}", 0, SHIPPED / "unet-small", place, place / f"test-{spread}",
                               TrainConfig(), plan, plan))

    def again():
        return measure_ceilings(runs, place / "ceilings", workers=1, progress=False, sampled=12)

    return again(), again, place


def test_gaps_are_paired_with_the_networks_scores(measured):
    found, again, place = measured
    assert {(row["arm"], row["kind"]) for row in found["ceilings"]} == set(product(("spread 1", "spread 2"), KINDS))
    assert all(row["raters"] == "nested" for row in found["ceilings"])
    network = pd.read_csv(place / "scores" / "test-2.0" / "unet-small.csv").query("reference == 'rater-1'")
    table = ceiling_scores(3, [CohortPlan(3, stations=1, panel_every=1, spread=s) for s in (1.0, 2.0)], sampled=12,
                           workers=1, progress=False).query("plan == 1").set_index("volume")
    wanted = paired_difference(table["truth"].loc[network["volume"]], network["dice"], network["patient"])
    gap = next(g for g in found["gaps"] if (g["arm"], g["a"], g["b"]) == ("spread 2", "truth", "network"))
    for key in ("mean", "low95", "high90", "patients"):
        assert gap[key] == pytest.approx(getattr(wanted, key), abs=1e-5)
    assert again() == found   # from what was kept


def _rows(arm, network, truth):
    return [{"name": arm, "contrast": "all", "reference": reference, "dice": value, "low": value - 0.01,
             "high": value + 0.01} for reference, value in (("rater-1", network), ("truth", truth))]


@pytest.mark.parametrize("panels", [1, 2])
def test_the_figure_names_each_line_beside_it_and_nothing_overlaps(measured, panels):
    found = measured[0] | {"rows": [*_rows("spread 1", 0.55, 0.7), *_rows("spread 2", 0.4, 0.69)]}
    figure = ceiling_figure(*[found] * panels)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    assert figure.get_facecolor()[3] == 1
    for ax in figure.axes:
        drawn = {tuple(np.round(line.get_ydata(), 6)) for line in ax.lines}
        for kind in KINDS:   # every number is on the figure where it belongs
            values = sorted((row["arm"], row["dice"]) for row in found["ceilings"] if row["kind"] == kind)
            assert tuple(round(value, 6) for _, value in values) in drawn
        assert (0.55, 0.4) in drawn and (0.7, 0.69) in drawn
        texts = [text for text in ax.texts if text.get_text().strip()]
        assert sum("ceiling:" in text.get_text() for text in texts) == 3 and len(texts) == len(KINDS) + 3
        boxes = [text.get_window_extent(renderer) for text in texts if "paper" not in text.get_text()]
        assert not any(a.shrunk(1, 0.7).overlaps(b.shrunk(1, 0.7)) for i, a in enumerate(boxes) for b in boxes[:i])
    sizes = [text.get_fontsize() for text in figure.findobj(lambda one: hasattr(one, "get_fontsize"))]
    assert min(sizes) >= 9


def test_a_figure_needs_ceilings(measured):
    with pytest.raises(SettingError, match="PLOT-SHAPE"):
        ceiling_figure({"rows": []})
    with pytest.raises(SettingError, match="PLOT-SHAPE"):
        ceiling_figure()
    assert len(ceiling_figure({"ceilings": measured[0]["ceilings"]}).axes) == 1   # without networks
