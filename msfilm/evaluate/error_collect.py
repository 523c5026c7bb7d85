"""From a network's predictions to the voxels of every error: outlines, lesions and positions found once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from msfilm.data.crop import coverage, uncrop
from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import InputError, SettingError, suggest
from msfilm.evaluate.error_voxels import ErrorVoxels, OfReference, label_voxels, lesion_table
from msfilm.evaluate.metrics import lesion_labels
from msfilm.evaluate.predict import predict_slices
from msfilm.evaluate.reliability import Reliability, reliability
from msfilm.model.weights import Network

__all__ = ["collect_errors"]

_IN_PLANE = ndimage.generate_binary_structure(3, 1) & np.array([0, 1, 0], bool)  # a cross within the slice


def collect_errors(network: Network | np.ndarray, slices: SliceSet, *, references: Sequence[str] | None = None,
                   levels: Mapping[tuple[str, int], str] | pd.Series | None = None, floor: float = 0.05,
                   **settings: Any) -> ErrorVoxels:
    """Predict all slices, put them back on the scans' own grids, and keep the voxels that matter.

    Args:
        network: or its probabilities (N, 1, H, W) of these slices.
        slices: N of them.
        references: lesion masks to compare with; None: all that there are. A volume without one has no row for it.
        levels: (volume, z) -> vertebral level, where known; :func:`errors_by.phantom_levels` knows those of phantoms.
        floor: lowest threshold that may be asked for later, above 0.
        **settings: of ``predict_slices``.

    Raises:
        InputError: SLICES-EMPTY.
        SettingError: REFERENCE-UNKNOWN; SCORE-SHAPE for probabilities of another shape; THRESHOLD for a floor outside 0
            to 1; those of ``predict_slices``.
    """
    if not 0 < floor <= 1:
        raise SettingError("THRESHOLD", f"floor={floor}", mend="use more than 0, and at most 1")
    if not len(slices):
        raise InputError("SLICES-EMPTY", "there is no slice to look for errors in")
    names = _references(slices, references)
    crops = network if isinstance(network, np.ndarray) else predict_slices(network, slices, **settings)
    if crops.shape != slices.images.shape:
        raise SettingError("SCORE-SHAPE", f"probabilities {crops.shape} for slices {slices.images.shape}")
    rows = slices.table["volume"].to_numpy()
    about, stack, parts = _about(slices), [], []
    calibration: dict[tuple[str, str], Reliability] = {}
    begin = 0
    for number, volume in enumerate(slices.volumes.index):
        scan, here = slices.scans[volume], np.flatnonzero(rows == volume)
        grid = slices.grid(volume)
        probability = uncrop(crops[here, 0], grid)
        part = _voxels(scan, probability, names, floor)
        zs = np.union1d(grid.zs, part["voxels"][:, 2])
        row = dict(zip(grid.zs.tolist(), here.tolist(), strict=True))
        stack.append(pd.DataFrame({
            "volume": volume, "z": zs, "level": [None if levels is None else levels.get((volume, int(z))) for z in zs],
            "row": [row.get(int(z), -1) for z in zs], "outer": (zs == 0) | (zs == scan.shape[2] - 1)}))
        part["slice"] = begin + np.searchsorted(zs, part["voxels"][:, 2])
        part["volume"] = np.full(len(part["voxels"]), number)
        part["position"] = {name: _positions(part["voxels"][part["masks"][name]], zs, scan.shape[2]) for name in names}
        parts.append(part)
        begin += len(zs)
        _calibrate(calibration, scan, probability, coverage(grid), slices.volumes.loc[volume, "contrast"], names)
    return _joined(about, pd.concat(stack, ignore_index=True), parts, names, levels, crops, calibration, floor, slices)


def _references(slices: SliceSet, wanted: Sequence[str] | None) -> list[str]:
    known = sorted({name for scan in slices.scans.values() for name in scan.indices} - {"cord"})
    for name in wanted or ():
        if name not in known:
            raise SettingError("REFERENCE-UNKNOWN", f"no volume has a mask {name!r}", mend=suggest(name, known))
    return known if wanted is None else list(wanted)


def _about(slices: SliceSet) -> pd.DataFrame:
    volumes = slices.volumes
    table = volumes[["patient", "centre", "contrast", "rater"]].copy()
    found = [re.search(r"_acq-([^_]+)", str(name)) for name in volumes.index]
    table["station"] = [match[1] if match else "" for match in found]
    voxel = np.array([slices.scans[name].voxel_mm for name in volumes.index]).reshape(-1, 3)
    table["pixel_mm"], table["slice_mm"] = np.sqrt(voxel[:, 0] * voxel[:, 1]).round(4), voxel[:, 2].round(4)
    table["voxel_mm3"] = [slices.scans[name].voxel_volume_mm3 for name in volumes.index]
    table["cord_voxels"] = [len(slices.scans[name].indices["cord"]) for name in volumes.index]
    return table


def _voxels(scan: ScanMasks, probability: np.ndarray, names: list[str], floor: float) -> dict[str, Any]:
    """The voxels of one volume that matter, and what is known of each; outlines on the box round them and the cord."""
    flat = probability.reshape(-1)
    drawn = {name: scan.indices.get(name, np.zeros(0, np.int32)) for name in names}
    index = np.unique(np.concatenate([np.flatnonzero(flat >= np.float32(floor)), *drawn.values()]))
    voxels = np.stack(np.unravel_index(index, scan.shape), axis=1).reshape(-1, 3)
    cord = np.stack(np.unravel_index(scan.indices["cord"], scan.shape), axis=1).reshape(-1, 3)
    corners = np.concatenate([voxels, cord])
    low = corners.min(axis=0) - 1 if len(corners) else np.zeros(3, int)
    size = (corners.max(axis=0) - low + 2) if len(corners) else np.ones(3, int)
    in_box, cord_box = (tuple((places - low).T) for places in (voxels, cord))
    part = {"voxels": voxels, "probability": flat[index], "cord": np.isin(index, scan.indices["cord"]),
            "masks": {}, "near": {}, "places": {}, "lesion": {}}
    for name, of in drawn.items():
        part["masks"][name] = np.isin(index, of)
        mask = np.zeros(size, bool)
        mask[in_box] = part["masks"][name]
        near = ndimage.binary_dilation(mask, _IN_PLANE) & ~ndimage.binary_erosion(mask, _IN_PLANE)
        part["near"][name] = near[in_box]
        inside, healthy = mask[in_box], ~mask[cord_box]
        part["places"][name] = (inside.sum(), (inside & near[in_box]).sum(), healthy.sum(),
                                (healthy & near[cord_box]).sum())
        part["lesion"][name] = lesion_labels(mask)[in_box]
    return part


def _positions(voxels: np.ndarray, zs: np.ndarray, depth: int) -> np.ndarray:
    """Key of POSITIONS for each of the slices ``zs``, from the voxels (n, 3) of a reference."""
    pieces, z = label_voxels(voxels, min_voxels=1), voxels[:, 2]
    ends: set[int] = set()
    for piece in range(1, pieces.max(initial=0) + 1):
        of = z[pieces == piece]
        ends |= {int(end) for end, edge in ((of.min(), 0), (of.max(), depth - 1)) if end != edge}
    held = set(z.tolist())
    return np.array(["end" if at in ends else "middle" if at in held else
                     "beside" if {at - 1, at + 1} & held else "away" for at in zs.tolist()], dtype=object)


def _calibrate(into: dict, scan: ScanMasks, probability: np.ndarray, covered: np.ndarray, contrast: str,
               names: list[str]) -> None:
    looked = scan.indices["cord"][covered.reshape(-1)[scan.indices["cord"]]]
    found = np.clip(probability.reshape(-1)[looked], 0, 1)  # interpolation may leave the range by a rounding
    for name in names:
        if name in scan.indices:
            counts = reliability(found, np.isin(looked, scan.indices[name]))
            into[name, contrast] = into[name, contrast] + counts if (name, contrast) in into else counts


def _joined(about: pd.DataFrame, stack: pd.DataFrame, parts: list[dict], names: list[str], levels: Any,
            crops: np.ndarray, calibration: dict, floor: float, slices: SliceSet) -> ErrorVoxels:
    if isinstance(levels, pd.Series) and isinstance(levels.dtype, pd.CategoricalDtype):
        stack["level"] = stack["level"].astype(levels.dtype)

    def joined(key: str, name: str | None = None) -> np.ndarray:
        return np.concatenate([part[key] if name is None else part[key][name] for part in parts])

    masks = {name: joined("masks", name) for name in names}
    errors = ErrorVoxels(about, stack, *(joined(key) for key in ("volume", "slice", "voxels", "probability", "cord")),
                         masks, {}, crops, calibration, floor)
    for name in names:
        known = OfReference(np.array([name in slices.scans[volume].indices for volume in about.index]))
        before = np.cumsum([0, *(part["lesion"][name].max(initial=0) for part in parts)])
        known.lesion = np.concatenate([np.where(part["lesion"][name], part["lesion"][name] + offset, 0)
                                       for part, offset in zip(parts, before[:-1], strict=True)])
        known.near, known.position = joined("near", name), joined("position", name)
        known.places = np.array([part["places"][name] for part in parts], dtype=np.int64)
        known.lesions = lesion_table(known.lesion, errors)
        errors.references[name] = known
    return errors
