"""How raters draw: a style each, a shift for each lesion, a wavering hand, end slices dropped or added, lesions missed
or invented.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from msfilm.phantom.fields import RandomField
from msfilm.phantom.lesions import REACH_MM

__all__ = ["NARROW", "RaterConfig", "detection_probability", "draw_mask", "rater_style_mm", "visibility"]


@dataclass(frozen=True)
class RaterConfig:
    """Spread of the raters; lengths in mm. Found in simulations where two raters agree at a Dice near .61."""

    style_sd_mm: float = 0.20  # a rater's habit of drawing small or large
    lesion_sd_mm: float = 0.15  # the same, lesion by lesion
    hand_sd_mm: float = 0.30  # smooth wavering of the outline
    hand_length_mm: float = 3.0
    end_slice_p: float = 0.17  # for dropping and for adding, at each end
    detect_intercept: float = 2.2
    detect_per_log_volume: float = 0.9  # per natural log of the volume over 100 mm3
    detect_per_visibility: float = 5.0  # times (visibility - .5)
    false_per_volume: float = 0.10
    half_visible_cnr: float = 4.5  # contrast-to-noise at which visibility is .5


NARROW = RaterConfig()


def rater_style_mm(rater: str, seed: int, config: RaterConfig = NARROW) -> float:
    """A rater's bias in mm (positive draws large), the same in every volume of a cohort."""
    number = int(rater.rsplit("-", 1)[-1])
    return float(np.random.default_rng([seed, 7919, number]).normal(0, config.style_sd_mm))


def visibility(cnr: float, config: RaterConfig = NARROW) -> float:
    """How well a lesion stands out to the eye, .12 to 1, from its contrast-to-noise ratio in the scan that the rater
    saw.
    """
    return float(np.clip(abs(cnr) / (abs(cnr) + config.half_visible_cnr), 0.12, 1.0))


def detection_probability(volume_mm3: float, cnr: float, config: RaterConfig = NARROW) -> float:
    """Logistic in the lesion's volume and visibility."""
    score = (
        config.detect_intercept
        + config.detect_per_log_volume * np.log(max(volume_mm3, 1.0) / 100)
        + config.detect_per_visibility * (visibility(cnr, config) - 0.5)
    )
    return float(1 / (1 + np.exp(-score)))


def draw_mask(
    distances: np.ndarray,
    cnrs: np.ndarray,
    positions: tuple[np.ndarray, np.ndarray, np.ndarray],
    voxel_mm3: float,
    style_mm: float,
    rng: np.random.Generator,
    config: RaterConfig = NARROW,
) -> np.ndarray:
    """One rater's mask of one scan.

    Args:
        distances: (L, Z, H, W) signed distance (mm) to each lesion as the scan resolves it, cut off at +-REACH_MM;
            truth is ``< 0``.
        cnrs: (L,) contrast-to-noise ratio of each lesion in this scan.
        positions: x, y (Z, H, W) in mm from the cord's centre and s (Z,) along the cord.
        voxel_mm3: volume of a voxel.
        style_mm: the rater's bias.
        rng: this rater's hand on this scan.
        config: spread of the raters. All zero: the truth is returned.

    Returns:
        (Z, H, W) bool.
    """
    x, y, s = positions
    mask = np.zeros(x.shape, bool)
    for distance, cnr in zip(distances, cnrs, strict=True):
        # Draw every number whether it is used or not: a change in one setting then leaves the other choices as they
        # were.
        found = rng.uniform() < detection_probability((distance < 0).sum() * voxel_mm3, cnr, config)
        shift = style_mm + rng.normal(0, 1) * config.lesion_sd_mm
        hand = _hand(rng, x, y, s, config)
        ends = rng.uniform(size=4) < config.end_slice_p
        if found:
            mask |= _move_ends(distance, ends) < np.clip(shift + hand, -REACH_MM + 0.1, REACH_MM - 0.1)
    for _ in range(rng.poisson(config.false_per_volume)):
        mask |= _false_lesion(rng, x, y, s)
    return mask


def _hand(rng, x, y, s, config: RaterConfig) -> np.ndarray:
    field = RandomField.draw(rng, config.hand_length_mm, length_s_mm=12.0, terms=8)
    if config.hand_sd_mm == 0:
        return np.zeros(x.shape, np.float32)
    tensors = (torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in (x, y, s[:, None, None]))
    return field(*tensors).numpy() * config.hand_sd_mm


def _move_ends(distance: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Drop or add the first and last slice of a lesion: ``ends`` = drop first, add first, drop last, add last."""
    present = np.flatnonzero((distance < 0).any(axis=(1, 2)))
    if not len(present):
        return distance
    first, last = present[0], present[-1]
    moved = distance.copy()
    if ends[1] and not ends[0] and first > 0:
        moved[first - 1] = distance[first]
    if ends[3] and not ends[2] and last < len(distance) - 1:
        moved[last + 1] = distance[last]
    if len(present) > 1:
        if ends[0]:
            moved[first] = REACH_MM
        if ends[2]:
            moved[last] = REACH_MM
    return moved


def _false_lesion(rng: np.random.Generator, x, y, s) -> np.ndarray:
    """A small blob in the cord on one or two slices, where there is nothing."""
    k = int(rng.integers(len(s)))
    slices = [k] if rng.uniform() < 0.5 else [k, min(k + 1, len(s) - 1)]
    cx, cy, radius = rng.uniform(-4.0, 4.0), rng.uniform(-2.5, 2.0), rng.uniform(0.8, 1.4)
    blob = np.zeros(x.shape, bool)
    blob[slices] = (x[slices] - cx) ** 2 + (y[slices] - cy) ** 2 < radius**2
    return blob
