"""Curves of signals along a scan's settings, and where they meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from msfilm.phantom.facts import ACQUISITIONS, protocol
from msfilm.phantom.physics import signals, tissue_table
from msfilm.view.contrast import (
    TISSUE_LOOKS,
    TISSUES,
    along,
    curves_figure,
    meeting_points,
    moved,
    ranges,
    signal_curves,
)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=4, unique=True))
def test_meeting_points_finds_the_roots_of_a_polynomial(tenths):
    roots = np.sort(tenths) / 10 + 0.0007  # between two samples
    x = np.linspace(-5.5, 5.5, 4401)
    found = meeting_points(x, np.prod([x - root for root in roots], axis=0), np.zeros_like(x))
    assert np.allclose(found, roots, atol=1e-4)


def test_curves_that_touch_a_sample_meet_there_and_once():
    x = np.arange(5.0)
    assert meeting_points(x, x, np.full(5, 2.0)).tolist() == [2.0]
    assert meeting_points(x, x, x + 1).tolist() == []


def test_signal_curves_draws_every_tissue_in_its_own_look_and_rings_on_the_lesion():
    x = np.linspace(0, 10, 11)
    ax = Figure().subplots()
    signal_curves(ax, x, {"white matter": x, "lesion": 2 * x}, xlabel="TE (ms)", mark=3.0, vanish=[2.5])
    looks = {(line.get_color(), str(line.get_linestyle())) for line in ax.lines[:2]}
    ring = ax.lines[-1]
    assert len(looks) == 2 and (ring.get_xdata()[0], ring.get_ydata()[0]) == (2.5, 5.0)
    assert len({colour for colour, _ in TISSUE_LOOKS.values()}) == len(TISSUE_LOOKS)


def test_curves_figure_has_one_key_for_all_panels():
    x = np.linspace(0, 10, 11)
    panel = {"x": x, "curves": {"white matter": x, "CSF": 2 * x}, "xlabel": "TE (ms)"}
    figure = curves_figure(panel, panel | {"xlabel": "TI (ms)"}, panel)
    assert [ax.get_xlabel() for ax in figure.axes] == ["TE (ms)", "TI (ms)", "TE (ms)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["white matter", "CSF"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["signal", "", ""]


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_protocol_lies_within_the_ranges_of_what_its_equation_takes(name):
    times = protocol("centre-01", name).times()
    found = ranges(times)
    assert set(found) <= {"tr", "te", "ti", "flip_deg"} and {"tr", "te"} <= set(found)
    assert ("ti" in found) == (times["sequence"] in ("MPRAGE", "STIR", "PSIR"))
    assert ("flip_deg" in found) == (times["sequence"] in ("GRE", "GRE-MT", "MPRAGE"))
    for setting, (low, high) in found.items():
        assert low <= times[setting] <= high
        # What is no setting of a scan changes nothing in it, what is one changes something.
        assert signals(moved(times, setting, (times[setting] + high) / 2)) != signals(times)
    for setting in {"ti", "flip_deg"} - set(found):
        assert signals(moved(times, setting, 77.0)) == signals(times)


def test_echoes_keep_their_distance():
    times = protocol("centre-01", "T2star_ax").times()
    later = moved(times, "te", 20.0)
    assert np.allclose(np.diff(later["tes"]), np.diff(times["tes"])) and np.mean(later["tes"]) == pytest.approx(20.0)
    assert moved(times, "tr", 100.0)["tes"] == pytest.approx(times["tes"])


def test_signals_along_a_setting_are_the_equation_and_a_refusal_leaves_a_gap():
    times, te = protocol("centre-01", "T2w_ax").times(), np.linspace(0, 200, 9)
    found, tissue = along(times, "te", te, ("lesion", 1.0)), tissue_table(3.0).loc["lesion"]
    assert list(found) == list(TISSUES)
    assert np.allclose(found["lesion"], tissue.pd * (1 - np.exp(-times["tr"] / tissue.t1)) * np.exp(-te / tissue.t2))
    tr = np.array([1000.0, 1910.0])  # half of the train does not fit after TI
    gap = along(protocol("centre-01", "T1w_iso").times(), "tr", tr, ("lesion", 1.0))
    assert all(np.isnan(y[0]) and np.isfinite(y[1]) for y in gap.values())
