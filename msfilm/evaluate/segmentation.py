"""Segment one scan file: a mask in the scan's own space, and a JSON that says what made it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msfilm.data.crop import CropGrid, centres_from_points, read_centreline, uncrop
from msfilm.errors import RunError, SettingError, suggest
from msfilm.evaluate.predict import predict_images, weights_sha256
from msfilm.files import atomic_path, made_by, sha256_file, write_json
from msfilm.model.weights import Network, load_network

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["Segmentation", "segment"]

DISC_RADIUS_MM = 3.0  # of the stand-in for the cord when only its centreline is known; a cervical cord is 12 x 8 mm


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What :func:`segment` found, and what made it.

    Attributes:
        image: the scan, canonical.
        mask: (X, Y, Z) bool, canonical.
        probability: (X, Y, Z) float32, canonical.
        grid: where the crops lie.
        crops: (n, H, W) float32, the network's input.
        crop_masks: (n, H, W) bool, its answer on the crops, for pictures.
        record: what the JSON beside the mask says.
        path: of the mask, or None.
    """

    image: Volume
    mask: np.ndarray
    probability: np.ndarray
    grid: CropGrid
    crops: np.ndarray
    crop_masks: np.ndarray
    record: dict[str, Any]
    path: Path | None

    @property
    def lesion_mm3(self) -> float:
        """Volume of all that was marked."""
        return self.record["lesion_mm3"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the result."""
        return tuple(self.record["warnings"])


def segment(
    image: str | Path,
    out: str | Path | None,
    *,
    contrast: str,
    cord: str | Path | None = None,
    centreline: str | Path | np.ndarray | None = None,
    network: str | Path | Network = "film-contrast-small",
    threshold: float = 0.5,
    probability: str | Path | None = None,
    centre: str | None = None,
    rater: str | None = None,
    acquisition: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> Segmentation:
    """Segment the lesions of one scan; write the mask in the scan's own space and a JSON of what made it.

    The intensity is divided by the median of |image| over the cord mask, as in training; with a centreline only, over
    a disc of 3 mm radius round it in each slice. Files appear all together at the end, or not at all.

    Args:
        image: NIfTI of any orientation.
        out: mask to write (.nii or .nii.gz; a .json of the same name goes beside it); None writes nothing.
        contrast: of the image, for example 'T2w'.
        cord: cord mask on the image's grid; either this or ``centreline``.
        centreline: CSV of a few points x_mm, y_mm, z_mm, or such an array (k, 3), RAS mm.
        network: a run, a folder, a shipped network's name, or a Network.
        threshold: a voxel is marked when its probability is at least this.
        probability: NIfTI of the probabilities to write besides.
        centre, rater: for a network conditioned on them; unknown ones get the mean code, with a warning.
        acquisition: for a network conditioned on them: repetition_time_s, echo_time_s, flip_angle_deg, field_T and
            manufacturer; what is not given comes from the scan's own sidecar, and what that lacks is unknown.
        device, precision: as in :func:`predict_slices`.

    Raises:
        SettingError: CENTRE-SOURCE (not exactly one of cord and centreline), THRESHOLD, OUT-NAME, CONTRAST-UNKNOWN.
        InputError: of the files (NIFTI-*, MASK-*, CENTRELINE-*), IMAGE-BLANK for a cord without signal.
        RunError: NIFTI-WRITE.
    """
    # Only here are files opened: everything above runs where nibabel is missing.
    from msfilm.data.nifti import read_image, read_mask
    from msfilm.data.prepare import prepare_volume

    if (cord is None) == (centreline is None):
        raise SettingError("CENTRE-SOURCE", "give either a cord mask or a centreline" + (", not both" if cord else ""),
                           mend="--cord FILE is better (it also sets the intensity scale), or --centreline FILE")
    if not 0 < threshold <= 1:
        raise SettingError("THRESHOLD", f"threshold={threshold}", mend="use a probability above 0, up to 1")
    targets = _targets(out, probability, [image, cord, centreline])
    if isinstance(network, Network):
        name = "given in memory"
    else:
        name, network = str(network), load_network(network)
    trained_on = network.card.get("data", {})
    size, spacing = int(trained_on.get("size", 48)), float(trained_on.get("spacing_mm", 0.75))

    volume = read_image(image)
    notes = [f"image: {note}" for note in volume.notes]
    if cord is not None:
        inside = read_mask(cord, like=volume, allow_empty=False)
        notes += [f"cord mask: {note}" for note in inside.notes]
    else:
        points = centreline if isinstance(centreline, np.ndarray) else read_centreline(centreline)
        inside = _disc(volume, *centres_from_points(points, volume))
    about = {"patient": "", "centre": centre, "contrast": contrast, "rater": rater}
    prepared = prepare_volume(Path(image).name, volume, {"cord": inside}, about, size=size, spacing_mm=spacing,
                              min_cord_pixels=int(trained_on.get("min_cord_pixels", 10)))
    table = prepared.table
    grid = CropGrid(volume.data.shape, volume.affine, table["z"], table[["centre_x", "centre_y"]], size, spacing)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        z = network.code(table.assign(**_acquisition(image, acquisition)))
    notes += [str(warning.message) for warning in caught] + _doubts(trained_on, contrast, volume, table["padded"])
    if lost := np.count_nonzero(inside.data.any(axis=(0, 1))) - len(table):
        notes.append(f"{lost} slices with hardly any cord were left out")
    found = predict_images(network, prepared.images[:, None], z, device=device, precision=precision)[:, 0]
    chance = uncrop(found, grid)
    marked = chance >= threshold
    if cord is not None and (outside := np.count_nonzero(marked & (inside.data == 0))):
        notes.append(f"{outside / np.count_nonzero(marked):.0%} of the marked volume lies outside the cord mask")

    voxel_mm3 = float(np.prod(volume.voxel_mm))
    record = {
        "Type": "Lesion",
        "Sources": [Path(image).name],
        "image_sha256": sha256_file(image),
        "network": {"name": name, "weights_sha256": weights_sha256(network),
                    "conditioning": network.conditioning},
        "settings": {"contrast": contrast, "threshold": threshold,
                     "centred_on": "centreline" if cord is None else "cord",
                     "size": size, "spacing_mm": spacing, "precision": precision, "centre": centre, "rater": rater},
        "lesion_mm3": np.count_nonzero(marked) * voxel_mm3,
        "slices": len(table),
        "slices_with_lesion": int(marked.any(axis=(0, 1)).sum()),
        "cord_median": prepared.row["cord_median"],
        "voxel_mm": [round(float(side), 4) for side in volume.voxel_mm],
        "orientation": volume.orientation,
        "warnings": notes,
        "made_by": made_by(),
    }
    _write(targets, marked, chance, record, volume)
    crops = prepared.images.astype(np.float32)
    return Segmentation(volume, marked, chance, grid, crops, found >= threshold, record, targets.get("mask"))


def _acquisition(image: str | Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Acquisition parameters: as given, else from the sidecar; a broken sidecar is a warning, not the end."""
    from msfilm.data.sidecars import SIDECAR_COLUMNS, acquisition, merge_sidecars

    for name in given or {}:
        if name not in SIDECAR_COLUMNS:
            raise SettingError("ACQUISITION-NAME", f"there is no acquisition parameter '{name}'",
                               mend=suggest(name, SIDECAR_COLUMNS))
    sidecar = _beside(Path(image))
    fields, faults = merge_sidecars([sidecar] if sidecar.is_file() else [])
    values, more = acquisition(fields, sidecar)
    for fault in (*faults, *more):
        warnings.warn(str(fault), stacklevel=2)
    return values | dict(given or {})


def _disc(volume: Volume, zs: np.ndarray, centres: np.ndarray) -> Volume:
    """A disc round each centre, where there is no cord mask: it stands in for it."""
    x = (np.arange(volume.data.shape[0])[None, :, None] - centres[:, 0, None, None]) * volume.voxel_mm[0]
    y = (np.arange(volume.data.shape[1])[None, None, :] - centres[:, 1, None, None]) * volume.voxel_mm[1]
    disc = np.zeros(volume.data.shape, dtype=np.uint8)
    disc[:, :, zs] = np.moveaxis(x**2 + y**2 <= DISC_RADIUS_MM**2, 0, 2)
    return replace(volume, data=disc, notes=())


def _doubts(trained_on: dict[str, Any], contrast: str, volume: Volume, padded: np.ndarray) -> list[str]:
    """What makes this scan unlike those of the training, as far as the network's card records them."""
    notes = []
    known = trained_on.get("contrasts", [])
    if known and contrast not in known:
        notes.append(f"the network was trained on {', '.join(known)}, not on {contrast}")
    sides = {"in_plane": sorted(volume.voxel_mm[:2]), "slice": [volume.voxel_mm[2]] * 2}
    for name, (low, high) in trained_on.get("voxel_mm", {}).items():
        if name in sides and (sides[name][0] < 0.95 * low or sides[name][1] > 1.05 * high):
            notes.append(f"{name.replace('_', '-')} voxel size {sides[name][0]:.2f} to {sides[name][1]:.2f} mm, "
                         f"in training {low:.2f} to {high:.2f} mm")
    if np.any(padded > 0.05):
        notes.append(f"the crop reaches beyond the scan in {np.count_nonzero(padded > 0.05)} slices "
                     f"(by up to {np.max(padded):.0%}); there the nearest voxels are repeated")
    return notes


def _targets(out, probability, sources) -> dict[str, Path]:
    """Where mask, probability and record go; refused where a source file would be overwritten."""
    targets = {}
    if out is not None:
        targets["mask"] = Path(out)
    if probability is not None:
        targets["probability"] = Path(probability)
    for path in targets.values():
        if not path.name.endswith((".nii", ".nii.gz")):
            raise SettingError("OUT-NAME", "the name must end in .nii.gz or .nii", where=path)
    if "mask" in targets:
        targets["record"] = _beside(targets["mask"])
    kept = [Path(source) for source in sources if isinstance(source, str | Path)]
    kept += [_beside(source) for source in kept]
    taken = [path.resolve() for path in [*kept, *targets.values()]]
    for path in targets.values():
        if taken.count(path.resolve()) > 1:
            raise SettingError("OUT-NAME", "this file is an input, an input's own JSON, or asked for twice", where=path,
                               mend="choose another name")
    return targets


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def _write(targets: dict[str, Path], mask: np.ndarray, chance: np.ndarray, record: dict, volume: Volume) -> None:
    """All files at once: each is complete on disk before the first takes its place."""
    from msfilm.data.nifti import write_nifti

    try:
        with ExitStack() as stack:
            staged = {key: stack.enter_context(atomic_path(path)) for key, path in targets.items()}
            if "mask" in staged:
                write_nifti(staged["mask"], mask.astype(np.uint8), volume, dtype=np.uint8)
            if "probability" in staged:
                write_nifti(staged["probability"], chance, volume, dtype=np.float32)
            if "record" in staged:
                write_json(staged["record"], record)
    except (OSError, RunError) as error:
        reason = error.what if isinstance(error, RunError) else f"cannot write: {error.strerror or error}"
        raise RunError("NIFTI-WRITE", reason, where=next(iter(targets.values())),
                       mend="check free space and permissions; nothing was left half-written") from error
