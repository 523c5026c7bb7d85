"""Signal equations against their limits, ratios against the measured ranges, noise against Rice's formula."""

import numpy as np
import pytest

from msfilm.errors import SettingError
from msfilm.phantom.facts import centres
from msfilm.phantom.physics import gradient_echo, scan_image, signals, turbo_spin_echo


def protocols(contrast):
    for _, site in centres().iterrows():
        if contrast == "T2w":
            yield {"tr": site.t2w_tr, "te": site.t2w_te, "field_t": site.field}
        else:
            yield {
                "tr": site.t2s_tr,
                "tes": tuple(site.t2s_te1 + i * site.t2s_dte for i in range(3)),
                "flip_deg": site.t2s_fa,
                "field_t": site.field,
            }


def test_turbo_spin_echo_limits_and_formula():
    assert turbo_spin_echo(0.7, 900.0, 70.0, tr=1e9, te=0.0) == pytest.approx(0.7)
    assert turbo_spin_echo(0.7, 900.0, 70.0, tr=4000, te=70.0) == pytest.approx(0.7 * (1 - np.exp(-4000 / 900)) / np.e)


def test_gradient_echo_is_strongest_at_the_ernst_angle():
    flips = np.arange(1, 90, 0.05)
    signal = gradient_echo(1.0, 900.0, 40.0, tr=600.0, tes=(9.0,), flip_deg=flips)
    assert flips[signal.argmax()] == pytest.approx(np.rad2deg(np.arccos(np.exp(-600 / 900))), abs=0.06)


def test_gradient_echo_combines_echoes_by_root_mean_square():
    one = [gradient_echo(0.8, 900.0, 40.0, tr=600.0, tes=(te,), flip_deg=30.0) for te in (9.0, 14.0, 19.0)]
    assert gradient_echo(0.8, 900.0, 40.0, tr=600.0, tes=(9.0, 14.0, 19.0), flip_deg=30.0) == pytest.approx(
        np.sqrt(np.mean(np.square(one)))
    )


# Ranges measured on real scans (T2w axial: CSF/WM 2.1-3.8, GM/WM 1.0-1.15; T2*w: GM/WM 1.12-1.23, CSF/WM 1.35-1.9).
@pytest.mark.parametrize(
    ("contrast", "tissue", "low", "high"),
    [
        ("T2w", "csf", 2.1, 3.8),
        ("T2w", "gm", 1.0, 1.15),
        ("T2w", "lesion-0-wm", 1.3, 2.0),
        ("T2star", "gm", 1.12, 1.24),
        ("T2star", "csf", 1.35, 1.9),
        ("T2star", "lesion-0-wm", 1.15, 1.4),
    ],
)
def test_every_centre_has_the_ratios_of_real_scans(contrast, tissue, low, high):
    for protocol in protocols(contrast):
        signal = signals(contrast, protocol, [("lesion", 1.0)])
        assert signal["wm"] == 1
        assert low <= signal[tissue] <= high, (protocol, signal[tissue])


def test_in_t2star_a_lesion_looks_like_grey_matter():
    protocol = next(protocols("T2star"))
    signal = signals("T2star", protocol, [("lesion", 0.7)])
    assert abs(signal["lesion-0-wm"] / signal["gm"] - 1) < 0.1


def test_lesion_strength_0_is_no_lesion():
    signal = signals("T2w", next(protocols("T2w")), [("lesion", 0.0)])
    assert signal["lesion-0-wm"] == pytest.approx(signal["wm"])
    assert signal["lesion-0-gm"] == pytest.approx(signal["gm"])


def test_unknown_contrast_names_the_known_ones():
    with pytest.raises(SettingError, match="did you mean 'T2w'"):
        signals("T2W", next(protocols("T2w")))


def test_noise_is_rician():
    rng = np.random.default_rng(0)
    clean = np.zeros((4, 64, 64), np.float32)
    clean[:, :, 32:] = 1.0
    image = scan_image(clean, rng, voxel_mm=0.5, snr=20, bias=0.0, kmax=1.0)
    background = image[:, :, 6:26]  # away from the edge, so ghosts of the bright half are the only other thing
    assert background.std() == pytest.approx(np.sqrt(2 - np.pi / 2) / 20, rel=0.15)
    residual = image[:, 8:-8, 40:58] - image[:, 8:-8, 40:58].mean(axis=(1, 2), keepdims=True)
    assert residual.std() == pytest.approx(1 / 20, rel=0.35)  # also holds ghosts and the slow receive field


def test_a_smaller_k_space_blurs_and_rings():
    clean = np.zeros((1, 65, 65), np.float32)
    clean[:, 20:45, 20:45] = 1.0
    image = scan_image(clean, np.random.default_rng(1), voxel_mm=0.5, snr=1e6, bias=0.0, kmax=0.5)
    assert image.max() > 1.05 * np.median(image[:, 28:37, 28:37])  # Gibbs overshoot
