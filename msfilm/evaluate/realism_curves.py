"""Intensity histogram and radial power spectrum of the 36 mm crop round the cord, on real and phantom scans alike."""

from __future__ import annotations

import numpy as np

from msfilm.data.crop import CropGrid, centres_from_mask, crop

__all__ = ["HISTOGRAM_EDGES", "crop_values", "radial_spectrum"]

HISTOGRAM_EDGES = np.linspace(0.0, 6.0, 61)  # of image / cord median
CROP_SIZE, CROP_MM = 48, 0.75  # the network's own crop: 36 mm


def radial_spectrum(crops: np.ndarray, spacing_mm: float = CROP_MM) -> tuple[np.ndarray, np.ndarray]:
    """Radial power spectrum of square crops (n, H, H), a Hann window against the edges: frequencies and power.

    The window-weighted mean is taken away; each crop's power is divided by its own total, so brightness and contrast do
    not count; then the mean over crops, and over the ring |f| in [k - 1/2, k + 1/2) / (H x spacing), k = 1 ... H / 2.

    Returns:
        (H // 2,) cycles/mm and (H // 2,) power per Fourier cell.
    """
    crops = np.asarray(crops, dtype=np.float64)
    size = crops.shape[-1]
    window = np.outer(np.hanning(size), np.hanning(size))
    mean = (crops * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    power = np.abs(np.fft.fft2((crops - mean) * window)) ** 2
    power = power / np.maximum(power.sum(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    index = np.fft.fftfreq(size, 1 / size)
    ring = np.floor(np.hypot(index[:, None], index[None]) + 0.5).astype(int).ravel()
    total = np.bincount(ring, weights=power.mean(axis=0).ravel())[1 : size // 2 + 1]
    return np.arange(1, size // 2 + 1) / (size * spacing_mm), total / np.bincount(ring)[1 : size // 2 + 1]


def crop_values(
    image: np.ndarray, cord: np.ndarray, affine: np.ndarray, zs: np.ndarray
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Histogram and spectrum of the crops that lie wholly within the scan (at most 5 % padded).

    Args:
        image, cord, affine: of the scan, canonical (X, Y, Z).
        zs: slices to take, each with cord.

    Returns:
        The values crop_p05 ... crop_p95 and spectrum_fine, and the curves "histogram" (density over HISTOGRAM_EDGES),
        "spectrum" and "frequency"; both empty where the scan does not cover the crop.
    """
    every, centres = centres_from_mask(cord)
    grid = CropGrid(cord.shape, affine, zs, centres[np.isin(every, zs)], CROP_SIZE, CROP_MM)
    crops, padded = crop(image, grid)
    scale = float(np.median(np.abs(np.asarray(image)[cord])))
    if not scale > 0 or not (padded <= 0.05).any():
        return {}, {}
    crops = crops[padded <= 0.05] / scale
    density, _ = np.histogram(np.clip(crops, 0, HISTOGRAM_EDGES[-1]), bins=HISTOGRAM_EDGES, density=True)
    frequency, power = radial_spectrum(crops)
    curves = {"histogram": density.tolist(), "spectrum": power.tolist(), "frequency": frequency.tolist()}
    cells = frequency * power  # cells in a ring grow with its radius
    fine, coarse = cells[(frequency >= 0.3) & (frequency <= 0.6)], cells[(frequency >= 0.05) & (frequency < 0.3)]
    marks = np.percentile(crops, (5, 25, 50, 75, 95))
    values = {f"crop_p{p:02d}": float(v) for p, v in zip((5, 25, 50, 75, 95), marks, strict=True)}
    if coarse.sum() > 0:
        values["spectrum_fine"] = float(fine.sum() / coarse.sum())
    return values, curves
