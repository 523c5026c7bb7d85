"""The sequence lab: its slice is the phantom's, its numbers are the equations', and every control does what it says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from msfilm.errors import InputError
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.facts import ACQUISITIONS, protocol
from msfilm.phantom.physics import signals
from msfilm.phantom.roster import make_patient
from msfilm.phantom.scan import render
from msfilm.phantom.scanner import Scanner, scan_image
from msfilm.phantom.slice_maps import SliceMaps, one_slice
from msfilm.view.sequence_lab import SequenceLab


@pytest.fixture(scope="module")
def shared():
    return SequenceLab(slices=2)


@pytest.fixture
def lab(shared):
    """At its first scan's protocol, whatever a test before this one did."""
    with shared.hold():
        for name, value in {"scan": "T2w_ax", "scanner": False, "gain": "now", "window": 1.5, "outline": True}.items():
            shared.controls[name].value = value
        shared.controls["slice"].index = 0
        shared._start()
        shared._wanted = True
    return shared


def rendered(lab, **more):
    """The slice as the phantom renders it, the whole scan's grid and all, with the settings of the lab."""
    _, patient, lesions, _ = make_patient(lab.patient, lab.seed)
    plan = make_scan(lab.patient, lab.seed, "T2w_ax", crop_only=True, noise=False).plan
    signal = signals(lab.settings, [(lesion.kind, lesion.strength) for lesion in lesions])
    return render(patient, lesions, signal, plan, **more).signal[lab.controls["slice"].value].numpy(), signal


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_at_the_protocol_the_slice_is_what_the_phantom_renders(lab, name):
    lab.controls["scan"].value = name
    how = protocol(make_patient(19, 0)[0], name)
    assert lab.settings == how.times() and lab.snr == pytest.approx(how.snr)
    inflow = how.sequence in ("GRE", "GRE-MT")
    expected, signal = rendered(lab, te_ms=how.te if inflow else 0.0, flow=0.05 if inflow else 0.16)
    assert np.abs(lab.clean - expected).max() < 1e-5 * expected.max()
    assert lab.brightness["CSF"] == pytest.approx(signal["csf"]) and lab.brightness["white matter"] == 1
    assert set(lab.brightness) == {"white matter", "grey matter", "CSF", "lesion", "fat"}


def test_the_slice_follows_each_slider_as_the_phantom_would(lab):
    for name, changes in {"T2w_ax": {"te": 30.0, "tr": 2000.0}, "T1w_iso": {"ti": 700.0, "flip_deg": 20.0, "te": 6.0},
                          "T2star_ax": {"te": 30.0, "flip_deg": 70.0, "field_t": 1.5}}.items():
        lab.controls["scan"].value = name
        for control, value in changes.items():
            before = lab.clean
            lab.controls[control].value = value
            assert not np.array_equal(lab.clean, before), f"{name} {control}"
        gre = name == "T2star_ax"
        expected, _ = rendered(lab, te_ms=lab.settings["te"] if gre else 0.0, flow=0.05 if gre else 0.16)
        assert np.abs(lab.clean - expected).max() < 1e-5 * expected.max()
    assert np.allclose(np.diff(lab.settings["tes"]), np.diff(lab.protocol.tes)), "echoes keep their distance"


def test_one_slice_lies_where_it_lay_in_the_scan():
    plan = make_scan(19, 0, "T2w_ax", crop_only=True, noise=False).plan
    for z in (0, 7, plan.shape[0] - 1):
        y, s = plan.rows()
        there_y, there_s = one_slice(plan, z).rows()
        assert np.allclose(there_y[0], y[z]) and np.allclose(there_s[0], s[z])


def test_maps_are_shares_that_sum_to_the_slice_of_ones(lab):
    maps = lab.maps_here
    ones = dict.fromkeys([*maps.names, "csf"], 1.0)
    assert np.abs(maps.picture(ones, flow=0.0) - maps.scan.signal[0].numpy()).max() < 1e-5
    assert maps.maps.min() > -1e-6 and "lesion-0-wm" not in maps.names, "far lesions have no map"
    assert isinstance(maps, SliceMaps)


def test_contrast_and_noise_are_the_phantoms(lab):
    times = lab.protocol.times()
    lesions = make_patient(lab.patient, 0)[2]
    here = lab.maps_here.scan
    which = int((here.distances < 0).sum((1, 2, 3)).argmax())
    found = signals(times, [(lesions[which].kind, lesions[which].strength)])
    assert lab.contrast == pytest.approx(found["lesion-0-wm"] - 1)
    assert lab.cnr["grey matter"] == pytest.approx((found["lesion-0-wm"] - found["gm"]) * lab.protocol.snr)
    lesion = here.distances[which, 0] < 0
    rows, columns = here.box
    healthy = here.cord[0, rows, columns] & ~(here.distances[:, 0] < 0).any(0)
    inner = lab.clean[rows, columns]
    expected = (inner[lesion].mean() - inner[healthy].mean()) * lab.protocol.snr
    assert lab.cnr["in the picture"] == pytest.approx(expected, rel=1e-4)
    assert 0 < lab.cnr["in the picture"] < lab.cnr["white matter"], "partial volume takes some of it"
    lab.controls["te"].value = 2 * lab.protocol.te  # a spin echo fades, the noise stays
    fades = np.exp(-lab.protocol.te / 73)
    assert lab.snr == pytest.approx(lab.protocol.snr * fades, rel=1e-6)


def test_the_curve_passes_through_the_bars_and_rings_sit_where_two_curves_meet(lab):
    for scan, over in (("T2w_ax", "te"), ("STIR_sag", "ti"), ("T2star_ax", "flip_deg")):
        lab.controls["scan"].value = scan
        lab.controls["over"].value = over
        for tissue, line in lab.lines.items():
            assert np.interp(lab.settings[over], *line.get_data()) == pytest.approx(
                lab.signal[tissue], rel=0.02, abs=0.015 * lab.curve.get_ylim()[1])  # fmt: skip
        assert lab.mark.get_xdata()[0] == lab.settings[over]
        for at, tissue in lab.rings:
            lab.controls[over].value = at
            gap = abs(lab.signal["lesion"] - lab.signal[tissue])
            assert gap < 0.02 * max(lab.signal.values()), f"{scan}: {tissue} at {at}"
        lab.controls["reset"].click()
    lab.controls["scan"].value = "STIR_sag"
    assert {tissue for _, tissue in lab.rings} >= {"white matter", "grey matter"}
    assert len(lab._rings.get_xdata()) == len(lab.rings)


def test_artists_stay_and_show_the_numbers(lab):
    artists = [*lab.bars, *lab.lines.values(), *lab.cnr_bars, lab.neck.image, lab.zoom.image, *lab.figure.axes]
    lab.controls["te"].value = 40.0
    lab.controls["scan"].value = "PSIR_ax"
    again = [*lab.bars, *lab.lines.values(), *lab.cnr_bars, lab.neck.image, lab.zoom.image, *lab.figure.axes]
    assert all(one is other for one, other in zip(artists, again, strict=True))
    assert [bar.get_width() for bar in lab.bars] == pytest.approx([min(v, 4) for v in lab.brightness.values()])
    assert [bar.get_width() for bar in lab.cnr_bars] == pytest.approx([np.clip(v, -40, 40) for v in lab.cnr.values()])
    assert lab.contrast < 0 and "darker" in lab.describe(), "a lesion is dark in PSIR"


def test_the_slice_is_seen_as_radiologists_do_in_a_window_that_stays(lab):
    shown = lab.neck.image.get_array()
    assert np.array_equal(shown, lab.clean[::-1, ::-1]), "front on top, the patient's right on the left"
    assert lab.neck.image.get_clim() == (0, 2.5)
    lab.controls["window"].value = 0.5
    assert lab.zoom.image.get_clim() == (0.5, 1.5)
    lab.controls["outline"].value = False
    assert not lab.zoom._outlines["lesion"][1].get_segments()
    first = lab.neck.image.get_array().copy()
    lab.controls["slice"].index = 1
    assert not np.array_equal(lab.neck.image.get_array(), first) and "slice" in lab.neck.title.get_text()


def test_the_scanner_adds_noise_of_the_signal_to_noise_and_always_the_same(lab):
    lab.controls["scanner"].value = True
    first = lab.neck.image.get_array().copy()
    assert np.array_equal(lab.scanned()[::-1, ::-1], first)
    import torch

    plan, how = lab.maps_here.plan, lab.protocol
    y = (np.arange(plan.shape[1]) - (plan.shape[1] - 1) / 2) * plan.voxel_mm[1]
    quiet = scan_image(torch.from_numpy(lab.clean)[None], Scanner(how.snr, how.kmax, lab._scanner.field, np.ones(1)),
                       plan.columns() - plan.centre_mm[0], y)[0].numpy()  # fmt: skip
    bright = lab.clean > 0.6  # where a magnitude's noise is Gaussian
    assert np.std((lab.scanned() - quiet)[bright]) == pytest.approx(1 / lab.snr, rel=0.05)


def test_a_fixed_gain_shows_the_signal_fade(lab):
    lab.controls["gain"].value = "at the protocol"
    assert lab.bars[0].get_width() == pytest.approx(1)
    lab.controls["te"].value = 2 * lab.protocol.te
    fade = np.exp(-lab.protocol.te / 73)
    assert lab.bars[0].get_width() == pytest.approx(fade) and lab.brightness["white matter"] == 1
    assert np.allclose(lab.neck.image.get_array(), fade * lab.clean[::-1, ::-1])


def test_unused_sliders_are_off_and_reset_goes_back(lab):
    assert lab.controls["ti"].disabled and lab.controls["flip_deg"].disabled
    lab.controls["scan"].value = "T1w_iso"
    assert not lab.controls["ti"].disabled and not lab.controls["flip_deg"].disabled
    lab.controls["ti"].value, lab.controls["field_t"].value = 500.0, 1.5
    lab.controls["reset"].click()
    assert lab.settings == lab.protocol.times()


def test_what_no_scanner_can_play_is_said_and_nothing_old_stays(lab):
    lab.controls["scan"].value = "T1w_iso"
    lab.controls["tr"].value = 1000.0
    assert lab.refused and lab.brightness == {} and "not played" in lab.describe() and "not played" in lab.words.value
    assert not lab.clean.any() and not any(bar.get_width() for bar in lab.bars)
    assert all(not len(line.get_xdata()) for line in lab.lines.values())
    lab.controls["reset"].click()
    assert not lab.refused and lab.brightness["lesion"] < 1 and not lab.errors


def test_another_scan_draws_once(lab, monkeypatch):
    drawn = []
    monkeypatch.setattr(lab.canvas, "draw_idle", lambda: drawn.append(1))
    lab.controls["scan"].value = "STIR_sag"
    assert drawn == [1]


def test_any_other_error_is_shown_and_raised(lab, monkeypatch):
    monkeypatch.setattr("msfilm.view.sequence_lab.signals", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lab.controls["te"].value = 50.0
    assert isinstance(lab.errors[-1], ZeroDivisionError)
    assert lab.report.outputs[0]["ename"] == "ZeroDivisionError"
    lab.errors.clear()
    lab.report.outputs = ()


def test_the_still_says_the_numbers(lab):
    alt = re.search(r'alt="([^"]*)"', lab.still().data)[1]
    assert f"lesion {lab.brightness['lesion']:.2f}" in alt and "T2w_ax" in alt
    assert "data:image/png" in lab.still().data


def test_a_patient_without_a_lesion_in_the_scan_is_refused():
    none = next(i for i in range(40) if not make_scan(i, 0, "T2w_ax", crop_only=True, noise=False).truth.any())
    with pytest.raises(InputError, match="LAB-LESION"):
        SequenceLab(none)
    some = SequenceLab(seed=3, slices=1, centre="centre-05")  # finds somebody
    assert some.protocol.centre == "centre-05" and some.patient >= 19 and some.maps_here.scan.truth.any()
    some.close()
