"""What a network learns where several raters drew: a stored mask, one of the raters' at random, or their mean."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.errors import SettingError, suggest

__all__ = ["MEAN", "RANDOM", "check_mask", "drawn_rows", "has_mask", "one_of", "rater_masks", "targets_of",
           "validation_mask"]

RANDOM = "random-rater"   # each time a slice is shown, the mask of one of the raters who drew it
MEAN = "mean-rater"       # the share of the raters who marked a pixel: a soft label


def rater_masks(slices: SliceSet) -> list[str]:
    """The raters' masks that a set holds: rater-1, rater-2 ..."""
    numbers = [int(found[1]) for name in slices.masks if (found := re.fullmatch(r"rater-(\d+)", name))]
    return [f"rater-{number}" for number in sorted(numbers)]


def check_mask(slices: SliceSet, mask: str) -> None:
    """Raises SettingError MASK-UNKNOWN for a mask that is not there, or one of several raters where there are none."""
    raters = rater_masks(slices)
    if mask in (RANDOM, MEAN) and len(raters) < 2:
        raise SettingError("MASK-UNKNOWN", f"mask '{mask}' needs two raters, and these slices have {len(raters)}",
                           mend=f"use '{(raters or [*slices.masks, 'rater-1'])[0]}', or slices drawn by several raters")
    known = [*slices.masks, *((RANDOM, MEAN) if len(raters) > 1 else ())]
    if mask not in known:
        raise SettingError("MASK-UNKNOWN", f"these slices have no mask '{mask}'", mend=suggest(mask, known))


def has_mask(slices: SliceSet, mask: str) -> bool:
    """Whether a network could learn this mask from these slices."""
    return mask in slices.masks or (mask in (RANDOM, MEAN) and len(rater_masks(slices)) > 1)


def drawn_rows(slices: SliceSet, mask: str) -> np.ndarray:
    """(N,) bool: slices that have this mask; for those of several raters, slices that any of them drew."""
    names = rater_masks(slices) if mask in (RANDOM, MEAN) else [mask]
    return np.any([np.asarray(slices.masks[name]).max(axis=(1, 2, 3), initial=0) < UNDRAWN for name in names], axis=0)


def targets_of(slices: SliceSet, index: np.ndarray, mask: str) -> np.ndarray:
    """What is learnt from the slices ``index`` (n,), which all have the mask (``drawn_rows``).

    Returns:
        (n, 1, H, W) uint8 of 0 and 1; for RANDOM (n, R, H, W) with each of R raters, 255 where one did not draw the
        slice; for MEAN (n, 1, H, W) float32, from 0 to 1.
    """
    if mask not in (RANDOM, MEAN):
        return np.ascontiguousarray(slices.masks[mask][index])
    masks = np.concatenate([slices.masks[name][index] for name in rater_masks(slices)], axis=1)
    if mask == RANDOM:
        return masks
    drawn = masks < UNDRAWN                                                          # (n, R, H, W)
    return ((masks * drawn).sum(1, keepdims=True) / drawn.sum(1, keepdims=True)).astype(np.float32)


def one_of(masks: Tensor, generator: torch.Generator | None) -> Tensor:
    """(n, R, H, W) -> (n, 1, H, W): for each slice one of the masks that were drawn, each as likely."""
    drawn = masks[:, :, 0, 0] < UNDRAWN                                              # (n, R); a mask is 255 throughout
    # Numbers in 0 to 1, with 1 added where there is a mask: the highest is that of some mask, at random.
    chosen = (torch.rand(drawn.shape, generator=generator, device=masks.device) + drawn).argmax(1)
    return masks[torch.arange(len(masks), device=masks.device), chosen][:, None]


def validation_mask(mask: str) -> str:
    """The mask whose Dice chooses the epoch: for one of several raters their mean, which is cut at one half there."""
    return MEAN if mask == RANDOM else mask
