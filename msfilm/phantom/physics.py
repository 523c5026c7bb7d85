"""From tissue to signal and from signal to scan: equations of T2w and T2*w, receive field, k-space, ghosts, Rician
noise.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from msfilm.errors import SettingError, suggest
from msfilm.phantom.facts import tissues

__all__ = ["CONTRASTS", "gradient_echo", "mixed_tissue", "scan_image", "signals", "turbo_spin_echo"]

CONTRASTS = ("T2star", "T2w")


def turbo_spin_echo(pd_, t1, t2, *, tr, te):
    """2D turbo spin echo (T2w): PD (1 - exp(-TR/T1)) exp(-TE/T2). Times in ms, TE is the effective echo time."""
    return pd_ * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def gradient_echo(pd_, t1, t2star, *, tr, tes, flip_deg):
    """Spoiled multi-echo gradient echo (T2*w): Ernst equation times the root mean square of exp(-TE/T2*) over the
    echoes. Times in ms.
    """
    e1, angle = np.exp(-tr / t1), np.deg2rad(flip_deg)
    steady = pd_ * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
    echoes = np.stack([np.exp(-te / t2star) for te in tes])
    return steady * np.sqrt((echoes**2).mean(axis=0))


def _tissue_table(field_t: float) -> pd.DataFrame:
    table = tissues().astype(float)
    if field_t < 2:
        return pd.DataFrame({"pd": table.pd, "t1": table.t1_15t, "t2": table.t2, "t2star": 1.4 * table.t2star_3t})
    return pd.DataFrame({"pd": table.pd, "t1": table.t1_3t, "t2": table.t2, "t2star": table.t2star_3t})


def mixed_tissue(base: pd.Series, other: pd.Series, share: float) -> pd.Series:
    """Tissue part-way from ``base`` to ``other``: PD and times mixed in proportion."""
    return (1 - share) * base + share * other


def signals(contrast: str, protocol: dict, lesions: list[tuple[str, float]] = ()) -> dict[str, float]:
    """Signal of every tissue, white matter = 1.

    Args:
        contrast: 'T2w' or 'T2star'.
        protocol: tr, te or tes, flip_deg (ms, degrees) and field_t (tesla).
        lesions: (kind, strength) of each lesion; its signals are named ``lesion-0-wm`` (in white matter),
            ``lesion-0-gm`` and so on.
    """
    table = _tissue_table(protocol["field_t"])
    if contrast == "T2w":
        table.loc["gm"] = table.loc["gm_T2w"]
        table.loc["blood", "pd"] = 0.06  # flow void
    elif contrast == "T2star":
        table.loc["csf"] = table.loc["csf_inflow"]
    else:
        raise SettingError(
            "CONTRAST-UNKNOWN", f"the phantom has no contrast {contrast!r}", mend=suggest(contrast, CONTRASTS)
        )
    for i, (kind, strength) in enumerate(lesions):
        for base in ("wm", "gm"):
            table.loc[f"lesion-{i}-{base}"] = mixed_tissue(table.loc[base], table.loc[kind], strength)
    if contrast == "T2w":
        signal = turbo_spin_echo(table.pd, table.t1, table.t2, tr=protocol["tr"], te=protocol["te"])
        signal["fat"] *= 1.3  # TSE brightens fat (J-coupling); real scans show about 3.7 of white matter
    else:
        signal = gradient_echo(
            table.pd, table.t1, table.t2star, tr=protocol["tr"], tes=protocol["tes"], flip_deg=protocol["flip_deg"]
        )
    return (signal / signal["wm"]).to_dict()


def scan_image(
    clean: np.ndarray,
    rng: np.random.Generator,
    *,
    voxel_mm: float,
    snr: float,
    bias: float,
    kmax: float,
    corrupted: bool = False,
) -> np.ndarray:
    """What the scanner makes of a clean signal.

    Args:
        clean: (Z, H, W) signal, white matter = 1.
        rng: source of all randomness here.
        voxel_mm: in-plane voxel size.
        snr: white matter over the noise's standard deviation.
        bias: relative change of the receive field over 36 mm.
        kmax: share of k-space sampled per axis; the rest is zero-filled (Gibbs ringing at sharp edges, noise no longer
            white).
        corrupted: motion strong enough for visible ghosts.

    Returns:
        (Z, H, W) magnitude, white matter near 1.
    """
    depth, height, width = clean.shape
    y = (np.arange(height) - height / 2)[:, None] * voxel_mm / 36
    x = (np.arange(width) - width / 2)[None, :] * voxel_mm / 36
    z = np.linspace(-1, 1, depth)[:, None, None]
    tilt = rng.normal(0, 0.35, 2)
    receive = np.exp(bias * (-0.8 * y + tilt[0] * x + tilt[1] * y + 0.25 * (x * x - y * y))) * np.exp(
        rng.normal(0, 0.10) * z - 0.10 * z * z
    )
    gain = np.exp(rng.normal(0, 0.035, (depth, 1, 1)))  # slice-to-slice changes: cross-talk, breathing
    image = clean * receive * gain

    inside = (np.abs(np.fft.fftfreq(height)) <= kmax / 2)[:, None] & (np.abs(np.fft.fftfreq(width)) <= kmax / 2)[
        None, :
    ]
    # Complex noise of the sampled part only, scaled so that its standard deviation in the image is 1 / snr in each
    # channel.
    noise = rng.standard_normal((2, depth, height, width)).astype(np.float32)
    spectrum = np.fft.fft2(image.astype(np.float32)) + np.fft.fft2(noise[0] + 1j * noise[1]) / (
        snr * np.sqrt(inside.mean())
    )
    picture = np.fft.ifft2(spectrum * inside)
    # Motion and pulsation between lines of k-space: faint copies along the phase-encoding axis (anterior-posterior).
    ghost = np.abs(rng.normal(0, 0.008)) + (rng.uniform(0.06, 0.14) if corrupted else 0.0)
    shift = int(rng.integers(height // 5, height // 2))
    phase = np.exp(1j * rng.uniform(0, 2 * np.pi, (depth, 1, 1)))
    picture = picture + 0.5 * ghost * phase * (np.roll(picture, shift, axis=1) + np.roll(picture, -shift, axis=1))
    return np.abs(picture).astype(np.float32)
