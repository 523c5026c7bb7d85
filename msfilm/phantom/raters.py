"""How raters draw: a style each, a shift for each lesion, a wavering hand, end slices dropped or added, lesions missed
or invented.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from msfilm.errors import SettingError, suggest
from msfilm.phantom.anatomy import Points
from msfilm.phantom.facts import rater_settings
from msfilm.phantom.fields import RandomField
from msfilm.phantom.lesions import REACH_MM

__all__ = [
    "NARROW",
    "WIDE",
    "RaterConfig",
    "detection_probability",
    "draw_mask",
    "rater_config",
    "rater_style_mm",
    "visibility",
]


@dataclass(frozen=True)
class RaterConfig:
    """Spread of the raters; lengths in mm. The two settings of ``tables/raters.csv`` are calibrated by ``msfilm
    calibrate``.
    """

    style_sd_mm: float  # a rater's habit of drawing small or large
    lesion_sd_mm: float  # the same, lesion by lesion
    hand_sd_mm: float  # smooth wavering of the outline
    end_slice_p: float  # for dropping and for adding, at each end
    detect_intercept: float
    false_per_volume: float
    detect_per_log_volume: float = 0.9  # per natural log of the volume over 100 mm3
    detect_per_visibility: float = 5.0  # times (visibility - .5)
    half_visible_cnr: float = 3.0  # contrast-to-noise at which visibility is .5: about the median lesion's
    hand_length_mm: float = 3.0

    def scaled(self, factor: float) -> RaterConfig:
        """All disagreement about outlines ``factor`` times as large, misses and inventions with it: one knob to
        calibrate.

        Lengths, end slices and false lesions grow in proportion; the odds of missing a lesion by the same factor.
        At 0 every rater draws the truth.

        Raises:
            SettingError: RATERS-FACTOR for a negative factor.
        """
        if not 0 <= factor < float("inf"):
            raise SettingError("RATERS-FACTOR", f"factor={factor!r}", mend="use 0 or more")
        return replace(
            self,
            style_sd_mm=self.style_sd_mm * factor,
            lesion_sd_mm=self.lesion_sd_mm * factor,
            hand_sd_mm=self.hand_sd_mm * factor,
            end_slice_p=min(self.end_slice_p * factor, 0.5),
            detect_intercept=self.detect_intercept - float(np.log(factor)) if factor else float("inf"),
            false_per_volume=self.false_per_volume * factor,
        )


def rater_config(name: str) -> RaterConfig:
    """A setting of ``tables/raters.csv``: 'narrow' (two raters agree at a Dice of .61) or 'wide' (a rater agrees at .61
    with the consensus of the others).

    Raises:
        SettingError: RATERS-UNKNOWN.
    """
    table = rater_settings()
    if name not in table.index:
        raise SettingError("RATERS-UNKNOWN", f"no rater setting {name!r}", mend=suggest(name, table.index))
    return RaterConfig(**{key: float(value) for key, value in table.loc[name].items()})


NARROW, WIDE = rater_config("narrow"), rater_config("wide")


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
    positions: Points,
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
        positions: where those voxels lie.
        voxel_mm3: volume of a voxel.
        style_mm: the rater's bias.
        rng: this rater's hand on this scan.
        config: spread of the raters. All zero: the truth is returned.

    Returns:
        (Z, H, W) bool.
    """
    mask = np.zeros(positions.shape, bool)
    for distance, cnr in zip(distances, cnrs, strict=True):
        # Draw every number whether it is used or not: a change in one setting then leaves the other choices as they
        # were.
        inside = distance < 0
        found = rng.uniform() < detection_probability(inside.sum() * voxel_mm3, cnr, config)
        shift = style_mm + rng.normal(0, 1) * config.lesion_sd_mm
        hand = RandomField.draw(rng, config.hand_length_mm, length_s_mm=12.0, terms=8)
        ends = rng.uniform(size=4) < config.end_slice_p
        present = np.flatnonzero(inside.any(axis=(1, 2)))
        if found and len(present):
            part = slice(max(present[0] - 1, 0), present[-1] + 2)
            limit = shift + (_of(positions, part).field(hand).numpy() * config.hand_sd_mm if config.hand_sd_mm else 0.0)
            moved = _move_ends(distance, ends, present)
            mask[part] |= moved[part] < np.clip(limit, -REACH_MM + 0.1, REACH_MM - 0.1)
    for _ in range(rng.poisson(config.false_per_volume)):
        mask |= _false_lesion(rng, positions)
    return mask


def _of(points: Points, part: slice) -> Points:
    """Some of the slices, without their profiles."""
    return Points(points.columns, points.shift[part], points.y[part], points.s[part], {})


def _move_ends(distance: np.ndarray, ends: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Drop or add the first and last slice of a lesion: ``ends`` = drop first, add first, drop last, add last."""
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


def _false_lesion(rng: np.random.Generator, positions: Points) -> np.ndarray:
    """A small blob in the cord on one or two slices, where there is nothing."""
    blob = np.zeros(positions.shape, bool)
    k = int(rng.integers(len(blob)))
    slices = [k] if rng.uniform() < 0.5 else [k, min(k + 1, len(blob) - 1)]
    angle, place, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8), rng.uniform(0.8, 1.4)
    p = positions.profile
    cx = (p["cord_rl"] / 2 * place * np.cos(angle)).numpy()[slices]
    cy = (p["cord_ap"] / 2 * place * np.sin(angle)).numpy()[slices]
    x, y = positions.x.numpy()[slices], positions.y.numpy()[slices]
    blob[slices] = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
    return blob
