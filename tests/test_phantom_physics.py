"""The scanner: noise against Rice's formula, k-space, motion, receive field; and the contrasts of every protocol."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from msfilm.errors import SettingError
from msfilm.phantom import cohort
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.facts import ACQUISITIONS, centres, protocol
from msfilm.phantom.physics import signals
from msfilm.phantom.scanner import PAD, Scanner, draw_scanner, response, scan_image


def plain(slices=4, snr=20.0, kmax=0.75, **more) -> Scanner:
    """No receive field, no gains."""
    return Scanner(snr, kmax, np.zeros(6), np.ones(slices), **more)


def scan(clean, scanner, **more):
    """With the plane's own coordinates in pixels of .5 mm."""
    clean = torch.as_tensor(np.asarray(clean, np.float32))
    height, width = (clean.shape[1], clean.shape[2])
    x, y = ((np.arange(n) - (n - 1) / 2) * 0.5 for n in (width, height))
    return scan_image(clean, scanner, x, y, **more).numpy()


def box(shape=(1, 96, 96), inner=slice(36, 60)):
    clean = np.zeros(shape, np.float32)
    clean[:, inner, inner] = 1.0
    return clean


# ---- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kmax", [0.66, 0.85, 1.0])
@pytest.mark.parametrize("level", [0.0, 0.08, 0.2, 1.0])
def test_noise_is_rician_whatever_k_space_holds(kmax, level):
    """A flat signal A gives Rice's distribution with sigma = 1 / snr: Rayleigh's where there is no signal."""
    snr = 20.0
    image = scan(np.full((6, 150, 140), level), plain(6, snr, kmax), noise=np.random.default_rng(1)).ravel()
    expected = stats.rice(b=level * snr, scale=1 / snr)
    assert image.mean() == pytest.approx(expected.mean(), rel=0.01)
    assert image.std() == pytest.approx(expected.std(), rel=0.025)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(image, quantiles), expected.ppf(quantiles), rtol=0.04)
    if level == 0:
        assert image.mean() == pytest.approx(np.sqrt(np.pi / 2) / snr, rel=0.01)
        assert image.std() == pytest.approx(np.sqrt(2 - np.pi / 2) / snr, rel=0.025)
    if level == 1:
        assert image.std() == pytest.approx(1 / snr, rel=0.025)


def test_noise_comes_from_its_generator_alone():
    first, again, other = (scan(box(), plain(1), noise=np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.01
    np.testing.assert_array_equal(scan(box(), plain(1)), scan(box(), plain(1)))


# ---- k-space --------------------------------------------------------------------------------------------------------


def test_the_response_is_1_then_fades_to_0_at_the_edge_of_what_is_sampled():
    f = torch.linspace(-0.5, 0.5, 2001, dtype=torch.float64)
    for kmax in (0.5, 0.7, 1.0):
        share = response(f, kmax)
        assert (share[f.abs() <= 0.8 * kmax / 2 - 1e-9] == 1).all()
        assert share[f.abs() >= kmax / 2].abs().max() < 1e-9
        assert (share.diff()[f[1:] > 0] <= 1e-12).all() and torch.allclose(share, share.flip(0))
        assert response(torch.tensor([0.9 * kmax / 2]), kmax).item() == pytest.approx(0.5, abs=1e-5)


def test_with_all_of_k_space_and_nothing_else_the_scan_is_the_signal():
    clean = np.random.default_rng(0).uniform(0.2, 2, (3, 41, 37)).astype(np.float32)
    np.testing.assert_allclose(scan(clean, plain(3, kmax=2.0)), clean, atol=2e-5)


@pytest.mark.parametrize("kmax", [0.66, 0.8])
def test_cropped_k_space_rings_at_edges_leaves_the_mean_and_dies_away(kmax):
    clean = 1 + box((1, 120, 120), slice(40, 80))
    image = scan(clean, plain(1, kmax=kmax))
    assert image.max() > 2.03 and image.min() < 0.97, "Gibbs: it overshoots on both sides of an edge"
    assert image[0, 40:80, 40:80].mean() == pytest.approx(2, abs=0.06)
    assert image.mean() == pytest.approx(clean.mean(), rel=1e-4)
    far = np.ones((120, 120), bool)
    far[40 - PAD : 80 + PAD, 40 - PAD : 80 + PAD] = False
    far[40 + PAD : 80 - PAD, 40 + PAD : 80 - PAD] = True
    assert np.abs(image - clean)[0][far].max() < 0.04
    # It is one linear filter: separable, and the same as multiplying the spectrum of the repeated plane.
    padded = np.pad(clean[0], PAD, mode="edge")
    keep = [response(torch.fft.fftfreq(n), kmax).numpy() for n in padded.shape]
    direct = np.fft.ifft2(np.fft.fft2(padded) * np.outer(*keep)).real[PAD:-PAD, PAD:-PAD]
    np.testing.assert_allclose(image[0], np.abs(direct), atol=1e-5)


# ---- motion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_motion_throws_ghosts_along_the_phase_encoding_axis_and_keeps_the_energy(plane):
    clean = box((1, 128, 128), slice(54, 74))
    if plane == "sagittal":  # (Z, H, 1): rows of the plane are z, its columns y
        clean = clean.transpose(1, 2, 0)
    still, moved = (scan(clean, plain(1, kmax=0.8, motion_mm=mm), plane=plane, pixel_mm=0.5) for mm in (0.0, 0.6))
    assert np.square(moved).sum() == pytest.approx(np.square(still).sum(), rel=0.01)
    ghost = np.abs(moved) - np.abs(still)
    in_plane = ghost[0] if plane == "axial" else ghost[:, :, 0]
    if plane == "sagittal":
        in_plane = in_plane.T  # rows now run along y
    along = in_plane[np.r_[0:40, 88:128], 54:74]
    across = in_plane[54:74, np.r_[0:40, 88:128]]
    assert along.mean() > 0.005 and along.max() > 0.05
    assert np.abs(across).max() < 0.2 * along.max()


def test_more_motion_more_ghosts():
    clean = box((1, 128, 128), slice(54, 74))
    share = []
    for mm in (0.0, 0.2, 0.4, 0.8):
        image = scan(clean, plain(1, kmax=0.8, motion_mm=mm))
        share.append(image[0, :40].mean())
    assert share == sorted(share) and share[-1] > 3 * share[1]


# ---- receive field and gains ----------------------------------------------------------------------------------------


def test_the_receive_field_is_the_smooth_function_it_is_said_to_be():
    drawn = draw_scanner(np.random.default_rng(3), snr=20, bias=0.15, kmax=1.0, slices=5)
    ones = torch.ones(5, 90, 80)
    x, y = (np.arange(80) - 39.5) * 0.5, (np.arange(90) - 44.5) * 0.5
    image = scan_image(ones, drawn, x, y).numpy()
    z = np.linspace(-1, 1, 5)[:, None, None]
    u, v, f = x[None, None] / 36, y[None, :, None] / 36, drawn.field
    expected = f[0] * v + f[1] * u + f[2] * (u**2 - v**2) + f[3] * z + f[4] * z**2 + np.log(drawn.gain)[:, None, None]
    inner = (slice(None), slice(PAD, -PAD), slice(PAD, -PAD))
    np.testing.assert_allclose(np.log(image)[inner], expected[inner], atol=2e-3)
    bend = np.diff(np.log(image)[inner], 2, axis=1), np.diff(np.log(image)[inner], 2, axis=2)
    assert max(np.abs(b).max() for b in bend) < 1e-3
    part = scan_image(ones[:, 20:80, 10:60], drawn, x[10:60], y[20:80]).numpy()
    np.testing.assert_allclose(part[inner], image[:, 20:80, 10:60][inner], atol=3e-3)


def test_the_receive_field_changes_over_36_mm_by_about_what_the_centre_has():
    rng = np.random.default_rng(0)
    change = [draw_scanner(rng, snr=20, bias=0.2, kmax=0.8, slices=9).field[0] for _ in range(400)]
    assert np.mean(change) == pytest.approx(-0.16, abs=0.01)  # brighter at the back, where the coil lies
    assert np.quantile(np.abs(change), 0.95) < 0.3
    gains = [np.log(draw_scanner(rng, snr=20, bias=0.2, kmax=0.8, slices=9).gain) for _ in range(200)]
    assert np.std(gains) == pytest.approx(0.035, rel=0.1)


def test_a_sagittal_scan_is_an_axial_one_turned():
    clean = np.random.default_rng(0).uniform(0.5, 2, (30, 40, 6)).astype(np.float32)
    gain = np.linspace(0.8, 1.2, 9)
    scanner = replace(plain(9), gain=gain)
    turned = scan(clean, scanner, plane="sagittal", which=slice(2, 8))
    flat = scan(clean.transpose(2, 0, 1), scanner, which=slice(2, 8))
    np.testing.assert_allclose(turned, flat.transpose(1, 2, 0), atol=1e-5)
    assert turned[..., 5].mean() / clean[..., 5].mean() == pytest.approx(gain[7], rel=0.02)


# ---- the window adds the same noise and faults as the whole plane ---------------------------------------------------


PLACES = [(2, "T2w_ax"), (5, "T2star_ax"), (6, "T2w_ax"), (8, "T2star_ax"), (10, "T2w_ax"), (11, "T2star_ax")]


@pytest.fixture(scope="module")
def residuals():
    """What noise adds, times the scan's SNR, in window and whole: lists of (cord, plane round the cord)."""
    found = []
    for i, name in PLACES:
        routes = []
        for part in (True, False):
            noisy, quiet = (make_scan(i, 0, name, crop_only=part, noise=noise) for noise in (True, False))
            off = (noisy.image.astype(float) - quiet.image) / noisy.units * noisy.scanner.snr
            rows, columns = make_window(noisy)
            routes.append((off[noisy.cord], off.transpose(2, 1, 0)[:, rows, columns]))
        found.append(tuple(routes))
    return found


def make_window(scan, side=64):
    """Rows and columns of a square round the cord that both routes have rendered."""
    x, y, _ = np.argwhere(scan.cord).mean(axis=0).round().astype(int)
    return slice(y - side // 2, y + side // 2), slice(x - side // 2, x + side // 2)


def bands(planes):
    """Mean power of (Z, 64, 64) in six rings of frequency."""
    power = np.abs(np.fft.fft2(planes - planes.mean(axis=(1, 2), keepdims=True))) ** 2
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    edges = [0.01, 0.08, 0.14, 0.2, 0.26, 0.32, 0.4]
    return np.array([power[:, (f >= a) & (f < b)].mean() for a, b in pairwise(edges)])


def test_noise_of_the_window_is_the_noise_of_the_whole(residuals):
    for (window, _), (whole, _) in residuals:
        assert window.std() == pytest.approx(1, rel=0.06) and whole.std() == pytest.approx(1, rel=0.06)
        assert window.std() == pytest.approx(whole.std(), rel=0.08)
    pooled = [np.concatenate([pair[route][0] for pair in residuals]) for route in (0, 1)]
    assert pooled[0].std() == pytest.approx(pooled[1].std(), rel=0.03)
    assert abs(pooled[0].mean() - pooled[1].mean()) < 0.06  # Rice's bias is the same


def test_noise_of_the_window_has_the_power_spectrum_of_the_whole(residuals):
    window, whole = (np.mean([bands(pair[route][1]) for pair in residuals], axis=0) for route in (0, 1))
    np.testing.assert_allclose(window, whole, rtol=0.10)
    assert whole[-1] < 0.8 * whole[0]  # and k-space ends: the noise is not white


def test_one_scan_in_twenty_goes_wrong():
    rng = np.random.default_rng(0)
    for name, fault in (("T2w_ax", "flow"), ("T2star_ax", "dropout")):
        drawn = [cohort._artefact(protocol("centre-01", name), rng) for _ in range(8000)]
        assert np.mean(np.array(drawn) != "none") == pytest.approx(0.05, abs=0.008)
        assert set(drawn) == {"none", "motion", fault, "noise"}
        assert drawn.count(fault) / (8000 - drawn.count("none")) == pytest.approx(1 / 3, abs=0.08)


@pytest.mark.parametrize(("fault", "name"), [("motion", "T2w_ax"), ("noise", "T2w_ax"), ("dropout", "T2star_ax"),
                                             ("flow", "T2w_ax")])  # fmt: skip
def test_a_scan_that_goes_wrong_does_so_alike_in_both_routes(monkeypatch, fault, name):
    before = make_scan(2, 0, name, crop_only=True)
    original = cohort._artefact
    monkeypatch.setattr(cohort, "_artefact", lambda *arguments: (original(*arguments), fault)[1])
    window, whole = make_scan(2, 0, name, crop_only=True), make_scan(2, 0, name)
    assert window.artefact == fault == window.sidecar["PhantomArtefact"] and window.corrupted
    assert not before.corrupted
    rows, columns = make_window(whole)
    one, other, good = (s.image.transpose(2, 1, 0)[:, rows, columns] / s.units for s in (window, whole, before))
    np.testing.assert_array_equal(window.cord, whole.cord)
    np.testing.assert_array_equal(window.truth, whole.truth)
    assert one.mean() == pytest.approx(other.mean(), rel=0.01) and one.std() == pytest.approx(other.std(), rel=0.02)
    if fault == "motion":  # ghosts come from far away: it is rendered whole in both, and is the same scan
        np.testing.assert_array_equal(window.image, whole.image)
        quiet = make_scan(2, 0, name, noise=False)
        still = replace(quiet.scanner, motion_mm=0.0)
        clean = scan_image(quiet.clean.signal, still, quiet.plan.columns() - quiet.plan.centre_mm[0],
                           (np.arange(quiet.plan.shape[1]) - (quiet.plan.shape[1] - 1) / 2) * quiet.plan.voxel_mm[1])
        assert np.abs(quiet.image.transpose(2, 1, 0) / quiet.units - clean.numpy()).mean() > 0.03
    if fault == "noise":
        assert window.scanner.snr == pytest.approx(before.scanner.snr / 2)
    if fault == "flow":
        canal = (whole.canal & ~whole.cord).transpose(2, 1, 0)[:, rows, columns]
        assert one[canal].mean() < good[canal].mean() - 0.05
    if fault == "dropout":
        assert one.mean() < 0.98 * good.mean()


# ---- contrasts ------------------------------------------------------------------------------------------------------


# Ranges measured on real scans (T2w axial: CSF/WM 2.1-3.8, GM/WM 1.0-1.15; T2*w: GM/WM 1.12-1.23, CSF/WM 1.35-1.9).
@pytest.mark.parametrize(
    ("name", "tissue", "low", "high"),
    [
        ("T2w_ax", "csf", 2.1, 3.8),
        ("T2w_ax", "gm", 1.0, 1.15),
        ("T2w_ax", "lesion-0-wm", 1.3, 2.0),
        ("T2w_ax", "muscle", 0.25, 0.5),
        ("T2w_ax", "fat", 2.9, 4.6),
        ("T2star_ax", "gm", 1.12, 1.24),
        ("T2star_ax", "csf", 1.35, 1.9),
        ("T2star_ax", "lesion-0-wm", 1.15, 1.4),
        ("T2w_iso", "csf", 2.8, 4.0),
        ("T1w_iso", "csf", 0.1, 0.4),
        ("MTon_ax", "gm", 1.0, 1.2),
    ],
)
def test_every_centre_has_the_ratios_of_real_scans(name, tissue, low, high):
    for centre in centres().index:
        signal = signals(protocol(centre, name).times(), [("lesion", 1.0)])
        assert low <= signal[tissue] / signal["wm"] <= high, centre


def test_in_t2star_a_lesion_looks_like_grey_matter():
    signal = signals(protocol("centre-01", "T2star_ax").times(), [("lesion", 0.7)])
    assert abs(signal["lesion-0-wm"] / signal["gm"] - 1) < 0.1


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_lesion_strength_0_is_no_lesion(name):
    signal = signals(protocol("centre-02", name).times(), [("lesion", 0.0)])
    assert signal["lesion-0-wm"] == pytest.approx(signal["wm"]) == pytest.approx(1)
    assert signal["lesion-0-gm"] == pytest.approx(signal["gm"])


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(SettingError, match="SEQUENCE-UNKNOWN.*'TSE'"):
        signals(protocol("centre-01", "T2w_ax").times() | {"sequence": "TSF"})
    with pytest.raises(SettingError, match="ACQUISITION-UNKNOWN.*'T2w_ax'"):
        protocol("centre-01", "T2w_axx")
    with pytest.raises(SettingError, match="CENTRE-UNKNOWN.*'centre-1[0-9]'"):
        protocol("centre-1", "T2w_ax")
