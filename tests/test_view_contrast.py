"""Curves of signals and where they meet; the panel of sliders, moved from Python, draws what its function gives."""

from __future__ import annotations

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from msfilm.errors import SettingError
from msfilm.phantom.facts import ACQUISITIONS, protocol
from msfilm.phantom.physics import signals
from msfilm.view.contrast import TISSUE_LOOKS, ContrastPanel, curves_figure, meeting_points, signal_curves


def brightness(settings):
    found = signals(settings, [("lesion", 1.0)])
    return {"white matter": 1.0, "grey matter": found["gm"], "CSF": found["csf"], "lesion": found["lesion-0-wm"]}


@pytest.fixture
def panel():
    return ContrastPanel(brightness, {name: protocol("centre-01", name).times() for name in ACQUISITIONS})


def pixels(panel):
    return np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("RGB"), dtype=int)


def widths(panel):
    return [bar.get_width() for bar in panel._bars]


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
def test_each_scan_starts_at_its_protocol(panel, name):
    panel.controls["scan"].value = name
    assert panel.brightness == brightness(protocol("centre-01", name).times())
    assert widths(panel) == pytest.approx([min(value, panel.TOP) for value in panel.brightness.values()])
    assert f"lesion {panel.brightness['lesion']:.2f}" in panel.message.value
    assert panel.settings == protocol("centre-01", name).times()


def test_a_slider_changes_the_numbers_and_the_picture_but_not_the_artists(panel):
    bars, lines, before = list(panel._bars), list(panel._right.lines), pixels(panel)
    panel.controls["te"].value = 30.0
    times = protocol("centre-01", "T2w_ax").times() | {"te": 30.0, "tes": (30.0,)}
    assert panel.brightness == brightness(times)
    assert (pixels(panel) != before).any()
    assert list(panel._bars) == bars and list(panel._right.lines) == lines
    panel.controls["te"].value = 94.0
    assert (pixels(panel) == before).all()


def test_the_curve_runs_over_the_axis_and_passes_through_the_bar(panel):
    for name, axis in (("T2w_ax", "te"), ("STIR_sag", "ti")):
        panel.controls["scan"].value = name
        x, y = panel._lines[list(panel.brightness).index("lesion")].get_data()
        at = panel.controls[axis].value
        assert np.interp(at, x, y) == pytest.approx(panel.brightness["lesion"], rel=0.02)
        assert panel._mark.get_xdata() == [at, at]
    panel.controls["field_t"].value = 1.5  # the kept curve is drawn anew when anything else moves
    changed = panel._lines[list(panel.brightness).index("lesion")].get_ydata()
    assert not np.allclose(changed, y)


def test_another_scan_moves_all_sliders_and_draws_once(panel):
    pictures = []
    panel.picture.observe(pictures.append, names="value")
    panel.controls["scan"].value = "STIR_sag"
    assert len(pictures) == 1


def test_echoes_keep_their_distance(panel):
    panel.controls["scan"].value = "T2star_ax"
    panel.controls["te"].value = 20.0
    assert np.allclose(np.diff(panel.settings["tes"]), 5.0) and np.mean(panel.settings["tes"]) == pytest.approx(20.0)


def test_sliders_that_a_scan_does_not_use_are_off(panel):
    panel.controls["scan"].value = "T2w_ax"
    assert panel.controls["ti"].disabled and panel.controls["flip_deg"].disabled
    panel.controls["scan"].value = "T1w_iso"
    assert not panel.controls["ti"].disabled and not panel.controls["flip_deg"].disabled


def test_a_refused_setting_is_said_and_nothing_old_stays_drawn(panel):
    panel.controls["scan"].value = "T1w_iso"
    panel.controls["tr"].value = 1000.0  # half of the train does not fit after TI
    assert panel.brightness == {} and widths(panel) == [0.0] * 4
    assert 'role="alert"' in panel.message.value and "not drawn" in panel.message.value
    panel.controls["tr"].value = 1910.0
    assert panel.brightness and "alert" not in panel.message.value


def test_any_other_error_is_shown_and_raised():
    def broken(settings):
        if settings["te"] < 50:
            raise ZeroDivisionError("at <short> TE")
        return brightness(settings)

    panel = ContrastPanel(
        lambda settings: {"white matter": 1.0} | brightness(settings), {"T2w": protocol("centre-01", "T2w_ax").times()}
    )
    panel._function = broken
    with pytest.raises(ZeroDivisionError):
        panel.controls["te"].value = 10.0
    assert "ZeroDivisionError: at &lt;short&gt; TE" in panel.message.value and panel.brightness == {}


def test_a_refusal_along_the_curve_leaves_a_gap():
    def choosy(settings):
        if settings["te"] > 150:
            raise SettingError("TIMES", "too long")
        return brightness(settings)

    panel = ContrastPanel(choosy, {"T2w": protocol("centre-01", "T2w_ax").times()})
    x, y = panel._lines[0].get_data()
    assert np.isnan(y[x > 150]).all() and np.isfinite(y[x <= 150]).all() and panel.brightness


def test_without_a_kernel_a_still_picture_stands_in(panel):
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    alt = re.search(r'<img alt="([^"]*)"', bundle["text/html"])[1]
    assert "T2w_ax" in alt and f"lesion {panel.brightness['lesion']:.2f}" in alt
    assert plt.get_fignums() == []
