"""The STAPLE of a data set's raters as one more mask of it, so that a network can learn from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from msfilm.data.slices import UNDRAWN, ScanMasks, SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate.baselines import boxed_masks
from msfilm.evaluate.staple import staple

__all__ = ["STAPLE", "add_staple"]

STAPLE = "staple"   # the mask's name


def add_staple(slices: SliceSet) -> SliceSet:
    """The set with the mask 'staple': where lesion is at least as probable as not, by STAPLE on each volume.

    It is found twice: on the stack of the volume's crops, to learn from, and on the scan's own grid, to score against.
    A volume that fewer than two raters drew has none (255); of two raters alone STAPLE cannot tell who is right (see
    :func:`~msfilm.evaluate.staple.staple`).

    Raises:
        SettingError: AGREEMENT-FEW where no volume has two raters. RunError: NEEDS-SIMPLEITK.
    """
    out = np.full(slices.images.shape, UNDRAWN, np.uint8)
    raters = [name for name in slices.masks if name.startswith("rater-")]
    volumes = slices.table["volume"].to_numpy()
    scans, found = {}, 0
    for volume, scan in slices.scans.items():
        rows = np.flatnonzero(volumes == volume)
        stacks = {name: np.asarray(slices.masks[name][rows, 0]) for name in raters}            # (Z, H, W) each
        drawn = {name: stack for name, stack in stacks.items() if stack.size and stack.max() < UNDRAWN}
        if len(drawn) > 1:
            out[rows, 0] = staple(drawn).mask
            scan, found = _on_own_grid(scan), found + 1
        scans[volume] = scan
    if not found:
        raise SettingError("AGREEMENT-FEW", f"none of {len(scans)} volumes was drawn by two raters",
                           mend="make the cohort with panel_every: 1, so that four raters draw every patient")
    return replace(slices, masks={**slices.masks, STAPLE: out}, scans=scans)


def _on_own_grid(scan: ScanMasks) -> ScanMasks:
    """The scan with the STAPLE of its raters' untouched masks, where it has two of them."""
    indices = [voxels for name, voxels in scan.indices.items() if name.startswith("rater-")]
    if len(indices) < 2:
        return scan
    union = np.unique(np.concatenate(indices))
    marked = np.zeros(0, np.int32)
    if len(union):
        boxed = boxed_masks(scan.shape, *indices)    # STAPLE looks at no more than the box
        corner = np.min(np.unravel_index(union, scan.shape), axis=1)
        places = np.argwhere(staple(boxed).mask) + corner
        marked = np.ravel_multi_index(tuple(places.T), scan.shape).astype(np.int32)
    return replace(scan, indices={**scan.indices, STAPLE: marked})
