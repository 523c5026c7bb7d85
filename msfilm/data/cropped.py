"""One scan with its masks -> its part of a SliceSet: crops round the cord, table rows, and what falls outside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from msfilm.data.crop import CropGrid, centres_from_mask, coverage, crop, crop_mask
from msfilm.data.slices import TABLE_COLUMNS, UNDRAWN, ScanMasks, SliceSet, hash_slice
from msfilm.errors import InputError
from msfilm.files import sha256_array

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["PreparedVolume", "join_volumes", "prepare_volume"]

_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class PreparedVolume:
    """One volume's part of a SliceSet: arrays (n, H, W), table rows, its row among the volumes, its scan's masks."""

    images: np.ndarray
    masks: dict[str, np.ndarray]
    table: pd.DataFrame
    row: dict[str, Any]
    scan: ScanMasks


def prepare_volume(
    name: str,
    image: Volume,
    masks: dict[str, Volume],
    about: dict[str, Any],
    *,
    spacing_mm: float = 0.75,
    size: int = 48,
    min_cord_pixels: int = 10,
    centres: tuple[np.ndarray, np.ndarray] | None = None,
) -> PreparedVolume:
    """Crop one scan and its masks round the cord.

    Args:
        name: of the volume.
        image: the scan.
        masks: by name, on the scan's grid, ``cord`` among them.
        about: patient, session, centre, contrast, rater and sidecar values; goes into the volume's row.
        spacing_mm: pixel size of the crop.
        size: H = W.
        min_cord_pixels: slices whose cropped cord has fewer pixels are left out (partial volume at the cord's ends).
        centres: slice numbers (n,) and where to crop in them, (n, 2) voxel x, y, where that is known better than by
            the middle of the cord mask.

    Raises:
        InputError: MASK-EMPTY, MASK-SMALL, IMAGE-BLANK or IMAGE-RANGE.
    """
    cord = masks["cord"].data
    zs, centres = centres_from_mask(cord) if centres is None else centres
    if not len(zs):
        raise InputError(
            "MASK-EMPTY",
            "the cord mask has no voxel, so there is nowhere to crop",
            where=masks["cord"].path,
            mend="draw it, or leave this volume out",
        )
    scan = ScanMasks.from_dense(image.affine, {key: mask.data for key, mask in masks.items()}, image.data)
    cord_median = float(np.median(np.abs(scan.cord_values)))
    if not cord_median > 0:
        raise InputError(
            "IMAGE-BLANK",
            f"the median intensity inside the cord mask is {cord_median:g}",
            where=image.path,
            mend="check that image and mask belong together",
        )
    grid = CropGrid(cord.shape, image.affine, zs, centres, size, spacing_mm)
    cord_crops = crop_mask(cord, grid)
    kept = cord_crops.sum(axis=(1, 2)) >= min_cord_pixels
    if not kept.any():
        raise InputError(
            "MASK-SMALL",
            f"no slice of {len(zs)} has {min_cord_pixels} cord pixels of {spacing_mm} mm",
            where=masks["cord"].path,
            mend="check the mask, or lower min_cord_pixels",
        )
    grid = CropGrid(cord.shape, image.affine, zs[kept], centres[kept], size, spacing_mm)
    crops, padded = crop(image.data, grid)
    with np.errstate(over="ignore"):  # what overflows is refused below
        crops /= np.float32(cord_median)
    peak = float(np.abs(crops).max())
    if peak > _HALF_MAX:
        raise InputError(
            "IMAGE-RANGE",
            f"intensity reaches {peak:.3g} times the cord's median, beyond float16",
            where=image.path,
            mend="check the scan's intensity scale and its cord mask",
        )
    crops = crops.astype(np.float16)
    cropped = {key: cord_crops[kept] if key == "cord" else crop_mask(mask.data, grid) for key, mask in masks.items()}
    table = pd.DataFrame(
        {
            "volume": name,
            "z": grid.zs,
            "centre_x": grid.centres[:, 0],
            "centre_y": grid.centres[:, 1],
            "spacing_mm": float(spacing_mm),
            "padded": padded,
            "slice_hash": [hash_slice(one) for one in crops],
        }
    )
    for column in ("patient", "centre", "contrast", "rater"):
        table[column] = about[column]
    voxel = image.voxel_mm
    row = {
        **about,
        "image_hash": sha256_array(image.data)[:32],
        "orientation": image.orientation,
        "voxel_x_mm": voxel[0],
        "voxel_y_mm": voxel[1],
        "voxel_z_mm": voxel[2],
        "cord_median": cord_median,
        "masks": ",".join(masks),
    }
    row |= _lesion_outside(scan, cord, grid)
    with np.errstate(over="ignore"):
        values = scan.cord_values / np.float32(cord_median)
    if not np.isfinite(values).all():
        raise InputError(
            "IMAGE-RANGE",
            f"intensity inside the cord mask, divided by its median {cord_median:g}, is beyond float32",
            where=image.path,
            mend="check the scan's intensity scale and its cord mask",
        )
    scan = replace(scan, cord_values=values)
    return PreparedVolume(crops, cropped, table[list(TABLE_COLUMNS)], row, scan)


def _lesion_outside(scan: ScanMasks, cord: np.ndarray, grid: CropGrid) -> dict[str, float]:
    """Lesion of rater-1 outside the cord mask, and beyond every crop, in mm3; NaN where nobody drew lesions."""
    if "rater-1" not in scan.indices:
        return {"lesion_mm3": np.nan, "lesion_outside_cord_mm3": np.nan, "lesion_outside_crop_mm3": np.nan}
    lesion, voxel = scan.indices["rater-1"], scan.voxel_volume_mm3
    return {
        "lesion_mm3": voxel * len(lesion),
        "lesion_outside_cord_mm3": voxel * int((cord.reshape(-1)[lesion] == 0).sum()),
        "lesion_outside_crop_mm3": voxel * int((~coverage(grid).reshape(-1)[lesion]).sum()),
    }


def join_volumes(parts: dict[str, PreparedVolume], meta: dict[str, Any]) -> SliceSet:
    """One SliceSet of the volumes in ``parts``, by name; a mask that one of them lacks is 255 there."""
    names = sorted(
        {mask for part in parts.values() for mask in part.masks}, key=lambda mask: (mask.startswith("rater"), mask)
    )
    images = np.concatenate([part.images for part in parts.values()])[:, None]
    masks = {
        mask: np.concatenate(
            [part.masks.get(mask, np.full(part.images.shape, UNDRAWN, np.uint8)) for part in parts.values()]
        )[:, None]
        for mask in names
    }
    volumes = pd.DataFrame([part.row for part in parts.values()], index=pd.Index(list(parts), name="volume"))
    return SliceSet(
        images,
        masks,
        pd.concat([part.table for part in parts.values()], ignore_index=True),
        volumes,
        {name: part.scan for name, part in parts.items()},
        meta,
    )
