"""From heat maps to one centreline: a few places a slice, the best chain of them, and how warm it is."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Chain", "best_path", "candidates"]

PLACES = 6  # a slice
LEAST_HEAT = 0.08  # of a place; the mean over 3 x 3 pixels
REACH_PIXELS = 5  # over which a place's centroid is taken: 7.5 mm
PRICE = 0.2  # what a slice must give for the chain to go on to it
SKIP = 0.1  # price of a slice passed over
BRIDGE_MM = 25.0  # at most so much is passed over
LOOSE_MM, SLOPE, STRETCH = 2.0, 0.5, 0.25  # a step of d mm over dz mm costs STRETCH (d / (LOOSE + SLOPE dz))^2
SMOOTH_MM = 4.0
RIVAL_MM = 15.0
ENOUGH_MM = 40.0  # a longer chain is not believed more


@dataclass(frozen=True)
class Chain:
    """A chain of places, coarse pixels (column, row), one a slice from its first to its last.

    Attributes:
        zs: (n,) slices.
        places: (n, 2) column, row.
        heat: (n,) at the place, 0..1.
        rival: (n,) most heat anywhere else in the slice, more than 15 mm away.
        near: (n,) mean heat of the chain within 15 mm along the cord.
        length_mm: (n,) of the chain from its first place to its last, the same for all.
        area_mm2: (n,) of what the network takes for cord round the place.
        raw: (n, 2) places before they were smoothed; NaN where the chain passes a slice over.
    """

    zs: np.ndarray
    places: np.ndarray
    heat: np.ndarray
    rival: np.ndarray
    near: np.ndarray
    length_mm: np.ndarray
    area_mm2: np.ndarray
    raw: np.ndarray

    def features(self) -> np.ndarray:
        """(n, 4) what a slice's confidence is reckoned from: heat, near, length over 40 mm (at most 1), and 1."""
        length = np.minimum(1, self.length_mm / ENOUGH_MM)
        return np.column_stack([self.heat, self.near, length, np.ones(len(self.zs))])

    def part(self, start: int, stop: int) -> Chain:
        """The chain from its ``start``-th place up to its ``stop``-th, that one left out."""
        return Chain(*(getattr(self, one.name)[start:stop] for one in fields(self)))


def candidates(heat: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """The warmest places of each slice.

    Args:
        heat: (Z, H, W) share of cord, 0..1.

    Returns:
        For each slice: places (k, 2) as (column, row), sub-pixel centroids; their heat (k,). k is 0 to 6.
    """
    mean = F.avg_pool2d(heat[:, None], 3, 1, 1, count_include_pad=False)
    soft = F.avg_pool2d(F.avg_pool2d(mean, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)[:, 0]
    mean = mean[:, 0]
    peak = (soft == F.max_pool2d(soft[:, None], 7, 1, 3)[:, 0]) & (soft > LEAST_HEAT / 2)
    found = []
    for z in range(len(heat)):
        rows, columns = np.nonzero(peak[z].numpy())
        order = np.argsort(-soft[z].numpy()[rows, columns], kind="stable")[:PLACES]
        places, values = [], []
        for row, column in zip(rows[order], columns[order], strict=True):
            top, left = max(row - REACH_PIXELS, 0), max(column - REACH_PIXELS, 0)
            patch = heat[z, top : row + REACH_PIXELS + 1, left : column + REACH_PIXELS + 1].double().numpy() ** 2
            y, x = np.mgrid[top : top + patch.shape[0], left : left + patch.shape[1]]
            place = (patch * x).sum() / patch.sum(), (patch * y).sum() / patch.sum()
            warm = float(mean[z, round(place[1]), round(place[0])])
            if warm >= LEAST_HEAT and all(np.hypot(*np.subtract(place, other)) > 2 for other in places):
                places.append(place)
                values.append(warm)
        found.append((np.array(places).reshape(-1, 2), np.array(values)))
    return found


def best_path(heat: Tensor, step_mm: float, spacing_mm: float) -> Chain | None:
    """The chain with the most heat for the least bending (dynamic programming); None where no slice is warm enough.

    Args:
        heat: (Z, H, W) share of cord.
        step_mm: between slices.
        spacing_mm: of the pixels.
    """
    found = candidates(heat)
    chain = _chain(found, step_mm, spacing_mm)
    if not chain:
        return None
    at = np.array([z for z, _ in chain])
    raw = np.array([found[z][0][k] for z, k in chain])
    warm = np.array([found[z][1][k] for z, k in chain])
    zs = np.arange(at[0], at[-1] + 1)
    places = _smooth(zs, at, raw, warm, step_mm)
    mean = F.avg_pool2d(heat[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    rows, columns = (np.clip(np.rint(places[:, i]).astype(int), 0, heat.shape[2 - i] - 1) for i in (1, 0))
    here = mean[zs, rows, columns].numpy().astype(float)
    rival, area = np.zeros(len(zs)), np.zeros(len(zs))
    y, x = np.mgrid[: heat.shape[1], : heat.shape[2]]
    for i, z in enumerate(zs):
        away = np.hypot(found[z][0][:, 0] - places[i, 0], found[z][0][:, 1] - places[i, 1]) * spacing_mm
        rival[i] = max(found[z][1][away > RIVAL_MM], default=0.0)
        round_it = np.hypot(x - places[i, 0], y - places[i, 1]) * spacing_mm < RIVAL_MM
        area[i] = float((heat[z].numpy()[round_it] > 0.5).sum()) * spacing_mm**2
    apart = np.abs(zs[:, None] - zs) * step_mm <= RIVAL_MM
    near = (apart @ here) / apart.sum(axis=1)
    kept = np.full((len(zs), 2), np.nan)
    kept[at - zs[0]] = raw
    return Chain(zs, places, here, rival, near, np.full(len(zs), len(zs) * step_mm), area, kept)


def _chain(found: list[tuple[np.ndarray, np.ndarray]], step_mm: float, spacing_mm: float) -> list[tuple[int, int]]:
    """(slice, number of the place) along the best chain, from below."""
    most = 1 + int(BRIDGE_MM // step_mm)
    score = [values - PRICE for _, values in found]
    back: list[list[tuple[int, int] | None]] = [[None] * len(values) for _, values in found]
    best, end = 0.0, None
    for z, (places, _) in enumerate(found):
        for before in range(max(0, z - most), z):
            if not len(places) or not len(found[before][0]):
                continue
            steps = z - before
            d = np.linalg.norm(places[:, None] - found[before][0][None], axis=2) * spacing_mm
            cost = STRETCH * (d / (LOOSE_MM + SLOPE * steps * step_mm)) ** 2 + SKIP * (steps - 1)
            gain = score[before][None] - cost
            k = gain.argmax(axis=1)
            for j in range(len(places)):
                total = found[z][1][j] - PRICE + gain[j, k[j]]
                if total > score[z][j]:
                    score[z][j], back[z][j] = total, (before, int(k[j]))
        if len(places) and score[z].max() > best:
            best, end = float(score[z].max()), (z, int(score[z].argmax()))
    chain = []
    while end is not None:
        chain.append(end)
        end = back[end[0]][end[1]]
    return chain[::-1]


def _smooth(zs: np.ndarray, at: np.ndarray, raw: np.ndarray, warm: np.ndarray, step_mm: float) -> np.ndarray:
    """A line fitted to the chain round each slice, the nearest and warmest most: (n, 2). Bridges gaps."""
    if len(at) == 1:
        return raw.copy()
    out = np.empty((len(zs), 2))
    for i, z in enumerate(zs):
        apart = (at - z) * step_mm
        reach = max(SMOOTH_MM, np.sort(np.abs(apart))[1] / 1.5)
        weight = warm * np.exp(-0.5 * (apart / reach) ** 2) + 1e-9
        middle = (weight @ apart) / weight.sum()
        lean = apart - middle
        spread = weight @ lean**2
        slope = (weight * lean) @ raw / spread if spread > 1e-12 else np.zeros(2)
        out[i] = (weight @ raw) / weight.sum() - slope * middle
    return out
