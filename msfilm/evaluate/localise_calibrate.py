"""How far the localiser may be believed: phantoms it has not seen, spoiled in many ways, and a curve fitted to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from msfilm.data.centres import centres_from_mask
from msfilm.data.nifti import Volume
from msfilm.evaluate.localise_maps import SPACING_MM, to_voxels
from msfilm.evaluate.localise_path import best_path
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.facts import ACQUISITIONS

__all__ = ["NEAR_MM", "cut_away", "distances_mm", "fit_confidence", "phantom_volume", "spoiled"]

NEAR_MM = 3.0  # a place nearer to the cord's centre counts as right
MOST_SLICES = 48  # of an isotropic scan


def phantom_volume(index: int, seed: int, acquisition: str, station: str = "upper") -> tuple[Volume, np.ndarray]:
    """One phantom scan, whole, and its cord (X, Y, Z)."""
    scan = make_scan(index, seed, acquisition, station, raters=())
    return Volume(scan.image.astype(np.float32), scan.affine), scan.cord


def distances_mm(zs: np.ndarray, centres: np.ndarray, cord: np.ndarray, volume: Volume) -> np.ndarray:
    """(n,) in-plane distance from each place to the centroid of the cord in that slice; infinite where it has none."""
    true_zs, truth = centres_from_mask(cord)
    apart = np.full(len(zs), np.inf)
    _, here, there = np.intersect1d(zs, true_zs, return_indices=True)
    apart[here] = np.linalg.norm((centres[here] - truth[there]) * volume.voxel_mm[:2], axis=1)
    return apart


def cut_away(volume: Volume, cord: np.ndarray, rng: np.random.Generator) -> Volume:
    """The scan with the canal covered, in every slice, by what lies behind it, to one side where there is room."""
    data = volume.data.copy()
    x, y = np.meshgrid(*(np.arange(side) * mm for side, mm in zip(data.shape[:2], volume.voxel_mm[:2], strict=True)),
                       indexing="ij")
    radius = rng.uniform(11, 14)
    width = data.shape[0] * volume.voxel_mm[0]
    side = rng.choice([-1, 1]) * max(0.0, min(0.4 * width - radius, 2.4 * radius))
    move = np.rint(np.array([side, -2.4 * radius]) / volume.voxel_mm[:2]).astype(int)
    for z, centre in zip(*centres_from_mask(cord), strict=True):
        cover = np.hypot(x - centre[0] * volume.voxel_mm[0], y - centre[1] * volume.voxel_mm[1]) < radius
        data[cover, z] = np.roll(data[:, :, z], -move, (0, 1))[cover]
    return replace(volume, data=data)


def spoiled(patients: int, seed: int) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Held-out scans as real ones might be: (how, scan, cord); the cord is empty where it was taken out.

    Every patient has three of the nine acquisitions; each comes as it is, cropped to a field of 24 to 70 mm, with its
    greys bent or turned under noise and a coil's fall-off, and without its cord.
    """
    names = list(ACQUISITIONS)
    for index in range(patients):
        for k in range(3):
            rng = np.random.default_rng([seed, index, k, 80])
            volume, cord = phantom_volume(index, seed, names[(3 * index + k) % len(names)],
                                          ("upper", "lower", "chest")[(index // 3 + k) % 3])
            first = int(rng.integers(0, max(1, volume.data.shape[2] - MOST_SLICES)))
            some = slice(first, first + MOST_SLICES)
            volume, cord = replace(volume, data=volume.data[:, :, some]), cord[:, :, some]
            yield "plain", volume, cord
            half = rng.uniform(12, 35, 2) / volume.voxel_mm[:2]
            _, centres = centres_from_mask(cord)
            middle = centres.mean(axis=0) + rng.uniform(-0.3, 0.3, 2) * half
            box = tuple(slice(max(0, int(m - h)), int(m + h) + 1) for m, h in zip(middle, half, strict=True))
            yield "cropped", replace(volume, data=volume.data[box]), cord[box]
            yield "altered", _altered(volume, rng), cord
            yield "cut away", cut_away(volume, cord, rng), np.zeros_like(cord)


def _altered(volume: Volume, rng: np.random.Generator) -> Volume:
    data = np.clip(volume.data / max(float(np.percentile(volume.data, 99)), 1e-6), 0, 4)
    data = data ** np.exp(rng.uniform(-0.8, 0.8))
    if rng.uniform() < 0.3:
        data = np.clip(1.6 - data, 0, None)
    place = np.linspace(-1, 1, data.shape[1])[None, :, None]
    data = data * np.exp(-rng.uniform(0, 2.0) * place) * np.exp(rng.normal(0, 0.2, data.shape[2]))
    return replace(volume, data=(data + rng.normal(0, rng.uniform(0, 0.4), data.shape)).astype(np.float32))


def fit_confidence(heat_of, patients: int, seed: int) -> dict:
    """Logistic curve from a chain's features to the chance of being within 3 mm, each scan of the same weight.

    Args:
        heat_of: function from a scan to its heat maps (``cord_heat``).
        patients, seed: of the held-out phantoms.

    Returns:
        weights (4,), and what they were fitted to and how well.
    """
    features, right, weight, kinds = [], [], [], {}
    for how, volume, cord in spoiled(patients, seed):
        chain = best_path(heat_of(volume), float(volume.voxel_mm[2]), SPACING_MM)
        tally = kinds.setdefault(how, [0, 0, 0])
        tally[0] += 1
        if chain is None:
            continue
        near = distances_mm(chain.zs, to_voxels(chain.places, volume), cord, volume) < NEAR_MM
        tally[1] += len(near)
        tally[2] += int(near.sum())
        features.append(chain.features())
        right.append(near)
        weight.append(np.full(len(near), 1 / len(near)))
    x = torch.tensor(np.concatenate(features), dtype=torch.float64)
    y = torch.tensor(np.concatenate(right), dtype=torch.float64)
    w = torch.tensor(np.concatenate(weight), dtype=torch.float64)
    weights = torch.zeros(4, dtype=torch.float64)
    for _ in range(50):  # Newton, with a little ridge
        p = torch.sigmoid(x @ weights)
        slope = x.T @ (w * (y - p)) - 0.1 * weights
        curve = (x * (w * p * (1 - p))[:, None]).T @ x + 0.1 * torch.eye(4, dtype=torch.float64)
        weights = weights + torch.linalg.solve(curve, slope)
    p = torch.sigmoid(x @ weights)
    return {
        "weights": [round(float(value), 4) for value in weights],
        "features": ["heat", "near", "length", "1"],
        "near_mm": NEAR_MM,
        "data": f"{patients} phantom patients of seed {seed}, three acquisitions each",
        "scans, slices of the chains, slices within 3 mm": kinds,
        "brier": round(float((w * (p - y) ** 2).sum() / w.sum()), 4),
        "brier_of_the_mean": round(float((w * ((w * y).sum() / w.sum() - y) ** 2).sum() / w.sum()), 4),
    }
