"""Raters tuned on the phantom: more scatter, less agreement; the factor that is found gives what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from msfilm.errors import SettingError
from msfilm.evaluate import calibration
from msfilm.evaluate.calibration import (
    TARGETS,
    agreement_of,
    calibrate_raters,
    scans_to_draw,
    settings_row,
    summary_table,
)
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.facts import rater_settings
from msfilm.phantom.raters import NARROW, WIDE, RaterConfig, rater_config
from msfilm.phantom.roster import CohortPlan, scans_of

PATIENTS = 6


@pytest.fixture(scope="module")
def scans():
    return scans_to_draw(PATIENTS, workers=1, progress=False)


def test_what_is_drawn_on_is_the_cohorts_own_scans(scans):
    assert [(s.patient, s.contrast[:2]) for s in scans] == [
        (i, name[:2]) for i in range(PATIENTS) for name, _ in scans_of(i, CohortPlan(0))
    ]
    assert any(scan.truth.any() for scan in scans)
    for scan in scans[:3]:
        name, station = scans_of(scan.patient)[[s.name for s in scans if s.patient == scan.patient].index(scan.name)]
        made = make_scan(scan.patient, 0, name, station, raters=(), crop_only=True)
        assert scan.name == made.name and scan.truth.sum() == made.truth.sum()
        np.testing.assert_allclose(scan.cnrs, [x["cnr"] for x in made.lesions], atol=0.006)
        assert scan.voxel_mm3 == pytest.approx(abs(np.linalg.det(made.affine[:3, :3])))


@pytest.mark.parametrize(("setting", "start"), [("narrow", NARROW), ("wide", WIDE)])
def test_the_more_raters_scatter_the_less_they_agree(scans, setting, start):
    comparison, raters = TARGETS[setting]
    found = [
        agreement_of(scans, start.scaled(factor), raters, n=2).row(comparison)["dice"]
        for factor in (0.3, 0.8, 1.4, 2.0)
    ]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] + 0.15
    assert found[0] > 0.61 > found[-1], "the bracket of the bisection holds the target"


def test_raters_who_do_not_scatter_agree_wholly(scans):
    perfect = RaterConfig(0, 0, 0, 0, np.inf, 0)
    table = summary_table(agreement_of(scans, perfect, 3, n=2)).set_index("comparison")
    assert (table["dice"] == 1).all() and set(table.index) == {"pairwise", "truth", "consensus"}


def test_the_same_seed_gives_the_same_agreement(scans):
    one, again, other = (agreement_of(scans, NARROW, 2, seed=seed, n=2).row("pairwise")["dice"] for seed in (0, 0, 1))
    assert one == again != other


def test_calibration_finds_the_factor(scans, monkeypatch):
    monkeypatch.setattr(calibration, "scans_to_draw", lambda *arguments, **more: scans)
    start = rater_config("narrow").scaled(0.9)
    config, found, agreement = calibrate_raters("narrow", start=start, tolerance=0.01, progress=False)
    assert found.reached and found.target == 0.61
    assert config == start.scaled(found.scale)
    assert agreement.row("pairwise")["dice"] == pytest.approx(0.61, abs=0.01)
    assert agreement.row("pairwise")["dice"] == pytest.approx(found.agreement)


def test_a_setting_that_does_not_exist_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(calibration, "scans_to_draw", lambda *_, **__: pytest.fail("it went to work"))
    with pytest.raises(SettingError, match="RATERS-UNKNOWN.*'narrow'"):
        calibrate_raters("narow", progress=False)


@pytest.mark.parametrize("setting", ["narrow", "wide"])
def test_a_setting_goes_to_its_table_and_back(setting):
    row = settings_row(rater_config(setting))
    assert list(row) == list(rater_settings().columns)
    assert row == pytest.approx(rater_settings().loc[setting].to_dict(), abs=1e-4)
    assert RaterConfig(**row) == rater_config(setting)
