"""Segment one scan file: a mask in the scan's own space, and a JSON that says what made it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msfilm.data.crop import CropGrid, uncrop
from msfilm.errors import SettingError, printable, suggest
from msfilm.evaluate.cord_position import cord_position
from msfilm.evaluate.doubts import check_kind, contrast_told, doubts
from msfilm.evaluate.metrics import lesion_labels
from msfilm.evaluate.predict import predict_images, weights_sha256
from msfilm.evaluate.segmentation_files import beside, check_free, targets_of, write_together
from msfilm.files import made_by, sha256_file
from msfilm.model.weights import Network, load_network

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["Segmentation", "segment"]


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
    localise: bool = False,
    accept_unsure: bool = False,
    as_contrast: str | None = None,
    network: str | Path | Network = "film-contrast-small",
    threshold: float = 0.5,
    probability: str | Path | None = None,
    centre: str | None = None,
    rater: str | None = None,
    acquisition: Mapping[str, Any] | None = None,
    form: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    overwrite: bool = False,
) -> Segmentation:
    """Segment the lesions of one scan; write the mask in the scan's own space and a JSON of what made it.

    The intensity is divided by the median of |image| over the cord mask, as in training; without one, over a disc of
    3 mm radius round the centreline in each slice. Files appear all together at the end, or not at all.

    Args:
        image: NIfTI of any orientation.
        out: mask to write (.nii or .nii.gz; a .json of the same name goes beside it); None writes nothing.
        contrast: of the image, for example 'T2w'.
        cord: cord mask on the image's grid; exactly one of this, ``centreline`` and ``localise``.
        centreline: CSV of a few points x_mm, y_mm, z_mm, or such an array (k, 3), RAS mm; crops lie on the curve.
        localise: take the cord where the localiser finds it.
        accept_unsure: even where it is unsure, which is refused otherwise.
        as_contrast: what to take a contrast for that the network was not trained on; refused without it.
        network: a run, a folder, a shipped network's name, or a Network.
        threshold: a voxel is marked when its probability is at least this.
        probability: NIfTI of the probabilities to write besides.
        centre, rater: for a network conditioned on them; unknown ones get the mean code, with a warning.
        acquisition: for a network conditioned on them: repetition_time_s, echo_time_s, flip_angle_deg, field_T and
            manufacturer; what is not given comes from the scan's own sidecar, and what that lacks is unknown.
        form: 'sform' or 'qform', which to believe where a file's two disagree.
        device, precision: as in :func:`predict_slices`.
        overwrite: even a mask that msfilm did not write, or that somebody has changed since; refused otherwise.

    Raises:
        SettingError: CENTRE-SOURCE (not exactly one of the three), THRESHOLD, OUT-NAME, CONTRAST-UNKNOWN,
            NETWORK-KIND (one that finds cords).
        InputError: OUT-EXISTS, MASK-CHANGED (see ``overwrite``); of the files (NIFTI-*, MASK-*, CENTRELINE-*);
            IMAGE-BLANK for a cord without signal, CORD-UNSURE.
        RunError: NIFTI-WRITE.
    """
    # Only here are files opened: everything above runs where nibabel is missing.
    from msfilm.data.nifti import read_image
    from msfilm.data.prepare import prepare_volume

    check_threshold(threshold)
    targets = targets_of(out, probability, [image, cord, centreline])
    if not overwrite:
        check_free(targets)
    name = "given in memory" if isinstance(network, Network) else str(network)
    network = check_kind(network if isinstance(network, Network) else load_network(network))
    told, notes = contrast_told(network, contrast, as_contrast)
    trained_on = network.card.get("data", {})
    size, spacing = int(trained_on.get("size", 48)), float(trained_on.get("spacing_mm", 0.75))

    volume = read_image(image, form=form)
    notes += [f"image: {note}" for note in volume.notes]
    reading = {} if form is None else {"form": form}
    where = cord_position(volume, cord=cord, centreline=centreline, localise=localise, accept_unsure=accept_unsure,
                          **reading)
    notes += where.notes
    about = {"patient": "", "centre": centre, "contrast": told, "rater": rater}
    prepared = prepare_volume(Path(image).name, volume, {"cord": where.mask}, about, size=size, spacing_mm=spacing,
                              min_cord_pixels=int(trained_on.get("min_cord_pixels", 10)),
                              centres=(where.zs, where.centres))
    table = prepared.table
    grid = CropGrid(volume.data.shape, volume.affine, table["z"], table[["centre_x", "centre_y"]], size, spacing)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        acquired = _acquisition(image, acquisition)
        z = network.code(table.assign(**acquired))
    notes += [str(warning.message) for warning in caught]
    notes += doubts(trained_on, volume.voxel_mm, table["padded"].to_numpy(), acquired)
    if lost := len(where.zs) - len(table):
        notes.append(f"{lost} slices with hardly any cord were left out")
    found = predict_images(network, prepared.images[:, None], z, device=device, precision=precision)[:, 0]
    chance = uncrop(found, grid)
    marked = chance >= threshold
    if where.kind == "cord" and (outside := np.count_nonzero(marked & (where.mask.data == 0))):
        notes.append(f"{outside / np.count_nonzero(marked):.0%} of the marked volume lies outside the cord mask")

    voxel_mm3 = float(np.prod(volume.voxel_mm))
    record = {
        "Type": "Lesion",
        "Sources": [printable(Path(image).name)],
        "image_sha256": sha256_file(image),
        "network": {"name": name, "weights_sha256": weights_sha256(network),
                    "conditioning": network.conditioning},
        "settings": {"contrast": contrast, "threshold": threshold, "centred_on": where.kind,
                     "size": size, "spacing_mm": spacing, "precision": precision, "centre": centre, "rater": rater}
        | ({"as_contrast": told} if told != contrast else {}) | reading,
        "lesion_mm3": np.count_nonzero(marked) * voxel_mm3,
        "lesions": count_lesions(marked),
        "slices": len(table),
        "slices_with_lesion": int(marked.any(axis=(0, 1)).sum()),
        "cord_median": prepared.row["cord_median"],
        "voxel_mm": [round(float(side), 4) for side in volume.voxel_mm],
        "orientation": volume.orientation,
        "warnings": notes,
        "must_not_be_used_for": network.card.get("must_not_be_used_for", "any decision about a patient"),
        "made_by": made_by(),
    } | ({"localiser": where.record} if where.record else {})
    if "record" in targets:
        record["mask_sha256"] = write_together(targets, marked, chance, {"record": record}, volume)
    else:
        write_together(targets, marked, chance, {}, volume)
    crops = prepared.images.astype(np.float32)
    return Segmentation(volume, marked, chance, grid, crops, found >= threshold, record, targets.get("mask"))


def check_threshold(threshold: float) -> None:
    """Raises SettingError THRESHOLD where it is no probability above 0."""
    if not 0 < threshold <= 1:
        raise SettingError("THRESHOLD", f"threshold={threshold}", mend="use a probability above 0, up to 1")


def count_lesions(marked: np.ndarray) -> int:
    """Number of lesions in a mask (X, Y, Z), as the rule 'any' counts them: three touching voxels or more."""
    if not marked.any():
        return 0
    box = tuple(slice(*(np.flatnonzero(marked.any(axis=axes))[[0, -1]] + (0, 1))) for axes in ((1, 2), (0, 2), (0, 1)))
    return int(lesion_labels(marked[box]).max())


def _acquisition(image: str | Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Acquisition parameters: as given, else from the sidecar; a broken sidecar is a warning, not the end."""
    from msfilm.data.sidecars import SIDECAR_COLUMNS, acquisition, merge_sidecars

    given = dict(given or {})
    for name in given:
        if name not in SIDECAR_COLUMNS:
            raise SettingError("ACQUISITION-NAME", f"there is no acquisition parameter '{name}'",
                               mend=suggest(name, SIDECAR_COLUMNS))
    if set(given) == set(SIDECAR_COLUMNS):
        return given
    sidecar = beside(Path(image))
    fields, faults = merge_sidecars([sidecar] if sidecar.is_file() else [])
    values, more = acquisition(fields, sidecar)
    for fault in (*faults, *more):
        warnings.warn(str(fault), stacklevel=2)
    return values | given
