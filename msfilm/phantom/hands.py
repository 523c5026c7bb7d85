"""Many raters at one scan: each hand's random numbers are drawn once and used again for any style and setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from msfilm.phantom.anatomy import Points
from msfilm.phantom.fields import RandomField
from msfilm.phantom.lesions import REACH_MM
from msfilm.phantom.raters import RaterConfig, _false_lesion, _move_ends, detection_probability
from msfilm.phantom.scan import CleanScan

__all__ = ["Hands"]


class Hands:
    """R raters' hands at one scan.

    ``draw`` returns what ``msfilm.phantom.raters.draw_mask`` would with the same generators, at about a tenth of its
    time where several styles or settings are asked for: how the hands waver is computed once.

    Args:
        clean: the scan.
        cnrs: (L,) contrast-to-noise ratio of each lesion.
        voxel_mm3: volume of a voxel.
        generators: one a hand.
        config: how finely hands waver (``hand_length_mm``); ``draw`` must be given settings with the same.
    """

    def __init__(self, clean: CleanScan, cnrs: np.ndarray, voxel_mm3: float,
                 generators: Sequence[np.random.Generator], config: RaterConfig):
        self.positions, self.cnrs, self.voxel_mm3 = clean.positions, cnrs, voxel_mm3
        self.length_mm, self.lesions = config.hand_length_mm, []
        for distance in clean.distances:
            seen, shift, fields, ends = [], [], [], []
            for rng in generators:   # in the order of draw_mask
                seen.append(rng.uniform())
                shift.append(rng.normal(0, 1))
                fields.append(RandomField.draw(rng, config.hand_length_mm, length_s_mm=12.0, terms=8))
                ends.append(rng.uniform(size=4))
            present = np.flatnonzero((distance < 0).any(axis=(1, 2)))
            if not len(present):
                self.lesions.append(None)
                continue
            part = slice(max(present[0] - 1, 0), present[-1] + 2)
            near = distance[part] < REACH_MM - 0.1   # no hand strays further
            rows, columns = (_span(near.any(axis=axes)) for axes in ((0, 2), (0, 1)))
            self.lesions.append((distance[:, rows, columns], (part, rows, columns), present, np.array(seen),
                                 np.array(shift), np.array(ends),
                                 _fields(fields, clean.positions, part, rows, columns)))
        self.states = [rng.bit_generator.state for rng in generators]

    def draw(self, styles_mm: Sequence[float] | np.ndarray, config: RaterConfig) -> np.ndarray:
        """Masks (R, Z, h, w) bool.

        Args:
            styles_mm: (R,) bias of each rater.
            config: spread of the raters.
        """
        styles_mm = np.asarray(styles_mm, float)
        masks = np.zeros((len(self.states), *self.positions.shape), bool)
        for lesion, cnr in zip(self.lesions, self.cnrs, strict=True):
            if lesion is None:
                continue
            distance, place, present, seen, shift, ends, fields = lesion
            found = seen < detection_probability((distance < 0).sum() * self.voxel_mm3, cnr, config)
            bias = (styles_mm + shift * config.lesion_sd_mm).astype(np.float32)[:, None, None, None]
            limit = np.clip(bias + fields * np.float32(config.hand_sd_mm), -REACH_MM + 0.1, REACH_MM - 0.1)
            moves, which = np.unique(ends < config.end_slice_p, axis=0, return_inverse=True)
            for number, move in enumerate(moves):
                who = np.flatnonzero(found & (which.reshape(-1) == number))
                masks[(who, *place)] |= _move_ends(distance, move, present)[place[0]] < limit[who]
        if config.false_per_volume:
            for mask, state in zip(masks, self.states, strict=True):
                rng = np.random.Generator(getattr(np.random, state["bit_generator"])())
                rng.bit_generator.state = state
                for _ in range(rng.poisson(config.false_per_volume)):
                    mask |= _false_lesion(rng, self.positions)
        return masks


def _span(which: np.ndarray) -> slice:
    places = np.flatnonzero(which)
    return slice(int(places[0]), int(places[-1]) + 1)


def _fields(fields: Sequence[RandomField], where: Points, part: slice, rows: slice, columns: slice) -> np.ndarray:
    """(R, n, h, w) values of random fields, all at once: ``RandomField.__call__`` with one more axis."""
    waves = torch.as_tensor(np.stack([field.waves for field in fields]), dtype=torch.float32)[:, None, None]
    phases = torch.as_tensor(np.stack([field.phases for field in fields]), dtype=torch.float32)[:, None, None]
    shift, y, s = (values[part, rows] for values in (where.shift, where.y, where.s))
    across = where.columns[columns, None] * waves[:, 0, :, :, 0]                        # (R, w, K)
    down = (y * waves[..., 1] - shift * waves[..., 0]) + (s * waves[..., 2] + phases)  # (R, n, h, K)
    left = torch.cat([down.cos(), -down.sin()], dim=-1) * (2 / phases.shape[-1]) ** 0.5
    right = torch.cat([across.cos(), across.sin()], dim=-1)
    return (left.flatten(1, 2) @ right.transpose(1, 2)).unflatten(1, down.shape[1:3]).numpy()
