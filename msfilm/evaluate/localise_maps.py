"""What the cord localiser sees: axial slices on one coarse grid, each place set against what lies round it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from msfilm.data.nifti import Volume

__all__ = ["SPACING_MM", "coarse_grid", "coarse_slices", "even_out", "to_voxels"]

SPACING_MM = 1.5  # a neck cord is 8 by 5 such pixels
LEAST = 8  # pixels a side: less cannot be halved three times
ROUND_MM = 15.0  # spread of the Gaussian over which a place is compared with what lies round it


def coarse_grid(count: int, voxel_mm: float, spacing_mm: float = SPACING_MM) -> np.ndarray:
    """(m,) voxel coordinates of pixels ``spacing_mm`` apart, symmetric about the middle of ``count`` voxels."""
    m = max(LEAST, round(count * voxel_mm / spacing_mm))
    return (count - 1) / 2 + (np.arange(m) - (m - 1) / 2) * spacing_mm / voxel_mm


def coarse_slices(volume: Volume, spacing_mm: float = SPACING_MM) -> Tensor:
    """The scan's axial slices on the coarse grid, (Z, H, W) float32: rows to the front, columns to the right.

    Each pixel is a mean of the voxels round it with a triangle as wide as the larger of pixel and voxel.
    """
    sides = zip(volume.data.shape[:2], volume.voxel_mm[:2], strict=True)
    x, y = (_weights(count, size, spacing_mm) for count, size in sides)
    data = torch.from_numpy(np.ascontiguousarray(volume.data, dtype=np.float32))
    part = torch.einsum("wx,xyz->wyz", x, data)
    return torch.einsum("hy,wyz->zhw", y, part).contiguous()


def to_voxels(places: np.ndarray, volume: Volume, spacing_mm: float = SPACING_MM) -> np.ndarray:
    """(..., 2) coarse (column, row) -> voxel (x, y) of the canonical scan."""
    sides = zip(volume.data.shape[:2], volume.voxel_mm[:2], strict=True)
    first = [coarse_grid(count, size, spacing_mm)[0] for count, size in sides]
    return np.asarray(first) + np.asarray(places) * spacing_mm / volume.voxel_mm[:2]


def even_out(slices: Tensor, spacing_mm: float = SPACING_MM) -> Tensor:
    """Each pixel less the mean round it, over the spread round it: (N, H, W) -> (N, H, W), most values within -3..3.

    So a coil's fall-off, the scanner's units and the size of the field of view matter little. The spread has a floor, a
    third of what the slice's livelier quarter has, so that the noise of an empty background stays small.
    """
    down, across = (_gaussian(side, ROUND_MM / spacing_mm).to(slices) for side in slices.shape[1:])
    scale = slices.flatten(1).abs().amax(dim=1).clamp_min(1e-20)[:, None, None]
    slices = slices / scale
    mean = down @ slices @ across.T
    away = slices - mean
    spread = (down @ away.square() @ across.T).clamp_min(0).sqrt()
    floor = torch.quantile(spread.flatten(1), 0.75, dim=1)[:, None, None] / 3
    return (away / (spread + floor).clamp_min(1e-6)).clamp(-4, 4)


def _weights(count: int, voxel_mm: float, spacing_mm: float) -> Tensor:
    """(m, count) rows that sum to 1."""
    apart = np.abs(coarse_grid(count, voxel_mm, spacing_mm)[:, None] - np.arange(count)) * voxel_mm
    weights = np.clip(1 - apart / max(voxel_mm, spacing_mm), 0, None)
    empty = weights.sum(axis=1) == 0  # beyond the edge, where a scan is narrower than the least field
    weights[empty, apart[empty].argmin(axis=1)] = 1.0
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _gaussian(side: int, sigma: float) -> Tensor:
    """(side, side) blur whose rows sum to 1, at the edges too."""
    place = torch.arange(side, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)
