"""What experiments ask of the phantom: raters of given styles and spread, polarity and decoys, protocols, few scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msfilm.errors import SettingError
from msfilm.phantom import write_cohort
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.direct import make_slices
from msfilm.phantom.facts import EXPERIMENTAL, centres, protocol
from msfilm.phantom.raters import NARROW
from msfilm.phantom.roster import CohortPlan, make_patient, raters_of, scans_of

DARK_TO_BRIGHT = CohortPlan(0, ("bright_ax", "dark_ax"), decoys=True)


@pytest.fixture(scope="module")
def with_lesions():
    return [i for i in range(40) if make_scan(i, 0, "T2w_ax", raters=(), crop_only=True).truth.sum() > 60][:6]


def contrast_in_truth(index: int, name: str, plan: CohortPlan) -> float:
    """Lesion over healthy cord, by the noise-free signal."""
    scan = make_scan(index, 0, name, plan=plan, raters=(), crop_only=True, noise=False)
    image = scan.image.astype(float)
    slices = scan.truth.any(axis=(0, 1))
    return image[scan.truth].mean() / np.median(image[:, :, slices][(scan.cord & ~scan.truth)[:, :, slices]])


def test_lesions_are_bright_in_one_contrast_and_dark_in_the_other(with_lesions):
    plain = replace(DARK_TO_BRIGHT, decoys=False)
    bright, dark = (np.array([contrast_in_truth(i, name, plain) for i in with_lesions])
                    for name in ("bright_ax", "dark_ax"))
    assert (bright > 1.08).all() and (dark < 0.95).all()
    assert bright * dark == pytest.approx(np.ones(len(bright)), abs=0.12)   # mirrored as ratios


def test_decoys_are_of_the_other_polarity_and_in_nobodys_mask(with_lesions):
    for index in with_lesions[:3]:
        for name, sign in (("bright_ax", -1), ("dark_ax", 1)):
            both, alone = (make_scan(index, 0, name, plan=plan, crop_only=True, noise=False)
                           for plan in (DARK_TO_BRIGHT, replace(DARK_TO_BRIGHT, decoys=False)))
            assert np.array_equal(both.truth, alone.truth) and np.array_equal(both.cord, alone.cord)
            signal = both.clean.signal.numpy() - alone.clean.signal.numpy()
            rows, columns = both.clean.window
            healthy = (both.clean.cord & ~both.clean.truth)[:, rows, columns]
            changed = signal[healthy]
            strong = changed[np.abs(changed) > 0.1]
            if len(strong) > 20:
                assert (np.sign(strong) == sign).mean() > 0.95


def test_the_decoys_of_a_scan_are_as_many_and_as_large_as_its_lesions():
    lesions = [len(make_patient(i, 0)[2]) for i in range(150)]
    from msfilm.phantom.lesions import draw_lesions

    decoys = [len(draw_lesions(np.random.default_rng([0, i, 6]), make_patient(i, 0)[1])) for i in range(150)]
    assert np.mean(decoys) == pytest.approx(np.mean(lesions), rel=0.2)
    assert abs(np.corrcoef(lesions, decoys)[0, 1]) < 0.2


def test_at_spread_0_everyone_draws_the_truth(with_lesions):
    scan = make_scan(with_lesions[0], 0, "T2w_ax", plan=CohortPlan(spread=0.0, panel_every=1), crop_only=True)
    assert len(scan.masks) == 4
    assert all(np.array_equal(mask, scan.truth) for mask in scan.masks.values())
    with pytest.raises(SettingError, match="RATERS-FACTOR"):
        NARROW.scaled(-1)


def test_raters_of_given_styles_draw_small_or_large(with_lesions):
    plan = CohortPlan(styles_mm=(-0.4, 0.0, 0.4), panel_every=1)
    sizes = []
    for index in with_lesions:
        scan = make_scan(index, 0, "T2w_ax", plan=plan, crop_only=True)
        assert sorted(scan.rater_names) == ["rater-01", "rater-02", "rater-03"]
        sizes.append([scan.masks[f"rater-{1 + scan.rater_names.index(name)}"].sum()
                      for name in sorted(scan.rater_names)])
    small, middle, large = np.sum(sizes, axis=0)
    assert small < 0.9 * middle < 0.9 * large


def test_styles_are_dealt_to_centres_and_nested_raters_are_their_centres():
    plan = CohortPlan(styles_mm=(-0.4, 0.0, 0.4))
    names = plan.rater_names()
    assert list(names.values())[:4] == ["rater-01", "rater-02", "rater-03", "rater-01"]
    assert all(raters_of(i, plan)[0] == names[make_patient(i, 0)[0]] for i in range(30))
    crossed = replace(plan, raters="crossed")
    assert len({(make_patient(i, 0)[0], raters_of(i, crossed)[0]) for i in range(200)}) > 2 * 13
    assert all(set(raters_of(i, replace(plan, panel_every=1))) == {"rater-01", "rater-02", "rater-03"} for i in (1, 2))


def test_one_protocol_is_the_first_centres_and_wide_ones_differ_from_scan_to_scan():
    usual, one, wide = ([make_scan(i, 0, "T2w_ax", plan=CohortPlan(protocols=kind), raters=(), crop_only=True)
                         for i in range(6)] for kind in ("table", "one", "wide"))
    first = protocol(centres().index[0], "T2w_ax")
    assert {(scan.protocol.te, scan.protocol.xy) for scan in one} == {(first.te, first.xy)}
    assert [scan.protocol.centre for scan in one] == [scan.protocol.centre for scan in usual]
    ratio = np.log([a.protocol.te / b.protocol.te for a, b in zip(wide, usual, strict=True)])
    assert len(set(np.round(ratio, 6))) == 6 and 0.1 < ratio.std() < 0.8
    assert [scan.sidecar["EchoTime"] for scan in wide] == [round(scan.protocol.te / 1000, 5) for scan in wide]


def test_stations_and_panel_are_counted():
    plan = CohortPlan(stations=1, panel_every=2)
    assert scans_of(3, plan) == [("T2w_ax", "upper"), ("T2star_ax", "upper")]
    assert [len(raters_of(i, plan)) for i in range(4)] == [4, 1, 4, 1]
    assert "rater-4" in make_slices(1, plan, progress=False, workers=1).masks


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_an_acquisition_of_experiments_goes_straight_to_slices_only(name, tmp_path):
    made = make_slices(1, CohortPlan(0, (name,)), progress=False, workers=1)
    assert made.contrasts == (EXPERIMENTAL[name][0][0],) and 8 <= len(made) <= 30
    with pytest.raises(SettingError, match="PHANTOM-SLICES-ONLY"):
        write_cohort(tmp_path / "x", patients=1, plan=CohortPlan(0, (name,)), progress=False)


@pytest.mark.parametrize("settings", [
    {"spread": -1}, {"spread": "much"}, {"stations": -1}, {"panel_every": 0}, {"decoys": 1}, {"styles_mm": (99,)},
    {"styles_mm": ("large",)},
])
def test_a_plan_that_means_nothing_is_refused(settings):
    with pytest.raises(SettingError, match="PHANTOM-PLAN"):
        CohortPlan(**settings)


def test_settings_are_read_from_words():
    plan = CohortPlan().with_settings({"spread": "0.5", "styles_mm": "[-0.1, 0.1]", "decoys": "true", "stations": 1})
    assert (plan.spread, plan.styles_mm, plan.decoys, plan.stations) == (0.5, (-0.1, 0.1), True, 1)
    with pytest.raises(SettingError, match="did you mean 'spread'"):
        CohortPlan().with_settings({"spred": "1"})
    with pytest.raises(SettingError, match="PHANTOM-PROTOCOLS"):
        CohortPlan(protocols="few")
