"""Where to crop one scan: round a cord mask, along a centreline, or where the localiser takes the cord to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.errors import InputError, SettingError

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["DISC_RADIUS_MM", "CordPosition", "cord_position", "disc_round"]

DISC_RADIUS_MM = 3.0  # of the stand-in for the cord when only its centreline is known; a cervical cord is 12 x 8 mm


@dataclass(frozen=True, eq=False)
class CordPosition:
    """Where one scan's cord is.

    Attributes:
        kind: 'cord' (a mask), 'centreline' or 'localiser'.
        mask: the cord mask, or discs along the centreline that stand in for it where intensity is scaled.
        zs, centres: slices (n,) and the crops' centres in them, (n, 2) voxel x, y.
        notes: what a user should know.
        record: for the JSON beside a result.
    """

    kind: str
    mask: Volume
    zs: np.ndarray
    centres: np.ndarray
    notes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)


def cord_position(
    volume: Volume,
    *,
    cord: str | Path | None = None,
    centreline: str | Path | np.ndarray | None = None,
    localise: bool = False,
    accept_unsure: bool = False,
    **reading: Any,
) -> CordPosition:
    """The cord's place in a scan, from exactly one of three sources.

    Args:
        volume: the scan.
        cord: mask on its grid; ``reading`` goes to ``read_mask``.
        centreline: CSV of points x_mm, y_mm, z_mm, or such an array (k, 3), RAS mm.
        localise: ask the localiser.
        accept_unsure: go on, with a warning, where the localiser is unsure.

    Raises:
        SettingError: CENTRE-SOURCE; InputError: MASK-*, CENTRELINE-*, CORD-UNSURE.
    """
    if (cord is not None) + (centreline is not None) + bool(localise) != 1:
        raise SettingError("CENTRE-SOURCE", "give one of a cord mask, a centreline and --localise"
                           + (", not several" if cord or centreline is not None else ""),
                           mend="--cord FILE is best (it also sets the intensity scale), else --centreline FILE; "
                           "--localise where there is neither")  # fmt: skip
    if cord is not None:
        from msfilm.data.nifti import read_mask

        mask = read_mask(cord, like=volume, allow_empty=False, **reading)
        return CordPosition("cord", mask, *centres_from_mask(mask.data), tuple(f"cord mask: {n}" for n in mask.notes))
    if centreline is not None:
        points = centreline if isinstance(centreline, np.ndarray) else read_centreline(centreline)
        zs, centres = centres_from_points(points, volume)
        return CordPosition("centreline", disc_round(volume, zs, centres), zs, centres)
    return _localised(volume, accept_unsure)


def _localised(volume: Volume, accept_unsure: bool) -> CordPosition:
    from msfilm.evaluate.localise import localise

    found = localise(volume)
    if not found.sure and not accept_unsure:
        raise InputError("CORD-UNSURE", f"the localiser is unsure where the cord is (confidence {found.confidence:.2f})"
                         + (f": {'; '.join(found.notes)}" if found.notes else ""), where=volume.path,
                         mend="draw a cord mask or a centreline (CentrelinePicker); or look at what it proposes with "
                         "--accept-unsure")  # fmt: skip
    notes = [f"the cord's place is the localiser's proposal (confidence {found.confidence:.2f}): look whether it fits"]
    if not found.sure:
        notes = [f"THE LOCALISER IS UNSURE where the cord is (confidence {found.confidence:.2f}) and was taken all the "
                 "same"]  # fmt: skip
    record = {"confidence": round(float(found.confidence), 4), "sure": bool(found.sure),
              "slice_confidence": np.round(found.slice_confidence, 3).tolist(),
              "points_mm": np.round(found.points_mm, 3).tolist()}  # fmt: skip
    notes += [f"localiser: {note}" for note in found.notes]
    disc = disc_round(volume, found.zs, found.centres)
    return CordPosition("localiser", disc, found.zs, found.centres, tuple(notes), record)


def disc_round(volume: Volume, zs: np.ndarray, centres: np.ndarray) -> Volume:
    """A disc of 3 mm radius round each centre: where there is no cord mask, the intensity inside it sets the scale."""
    x = (np.arange(volume.data.shape[0])[None, :, None] - centres[:, 0, None, None]) * volume.voxel_mm[0]
    y = (np.arange(volume.data.shape[1])[None, None, :] - centres[:, 1, None, None]) * volume.voxel_mm[1]
    disc = np.zeros(volume.data.shape, dtype=np.uint8)
    disc[:, :, zs] = np.moveaxis(x**2 + y**2 <= DISC_RADIUS_MM**2, 0, 2)
    return replace(volume, data=disc, notes=())
