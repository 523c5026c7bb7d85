"""One volume looked through: its image, masks and sidecar read and cropped, with every reason against it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from msfilm.data.cropped import PreparedVolume, prepare_volume
from msfilm.data.geometry import check_form_name
from msfilm.data.mask_values import MaskValues, check_values
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.data.sidecars import SIDECAR_COLUMNS
from msfilm.errors import InputError, MsfilmError
from msfilm.files import sha256_array

__all__ = ["Examined", "Reading", "SeenImages", "as_faults", "examine", "mask_columns", "read_ahead"]

_MENDS = {  # what to do about a note on a file
    "NIFTI-FORMS-NEAR": "nothing, if that shift does not matter; else say which one is right (--form)",
    "NIFTI-FORMS": "copy the right form over the other, so that every program agrees",
    "NIFTI-NOFORM": "look which side is right, and write an affine that says so",
    "NIFTI-UNITS": "nothing, if the sizes in mm are right; else set the header's unit (xyzt_units 2 is mm)",
    "NIFTI-SCALE": "look whether the intensities are right, and save the file again without a scale",
    "NIFTI-AXES": "nothing: that axis means nothing",
    "NIFTI-BYTES": "nothing, if the scan looks whole; else export it again",
    "NIFTI-ENDIAN": "nothing: it reads right",
    "MASK-FLOAT": "nothing; or save it as uint8 with 0 and 1",
    "MASK-MAPPED": "save it with 0 and 1, so that nobody has to be told",
    "MASK-TURNED": "look at mask and scan together; if left and right are changed over, copy the scan's header to it",
    "MASK-NOPLACE": "look at mask and scan together, then copy the header of the one that has a place",
}
EVEN = 0.6  # a cord's cross-section against that of the next slice; real masks: .80 and more, the two broken ones .43
_WORKERS = 2  # unpacking gzip leaves Python's lock, so a second thread helps; more only holds more scans in memory
Job, Answer = TypeVar("Job"), TypeVar("Answer")


@dataclass(frozen=True)
class Reading:
    """How volumes are read: which form and which mask values to believe, and the crop.

    Attributes:
        form: 'sform' or 'qform' where a file's two disagree.
        lesion_values, cord_values: what masks' stored values mean, see ``read_mask``.
        spacing_mm, size, min_cord_pixels: of the crops.
        every_file: read all files of a volume that is refused already, so that each fault is found.
        keep: hold on to the crops.
    """

    form: str | None = None
    lesion_values: MaskValues = None
    cord_values: MaskValues = None
    spacing_mm: float = 0.75
    size: int = 48
    min_cord_pixels: int = 10
    every_file: bool = False
    keep: bool = True

    def __post_init__(self):
        """Raises SettingError FORM-UNKNOWN or MASK-MAP: a wrong setting is no fault of each volume."""
        check_form_name(self.form)
        check_values(self.lesion_values)
        check_values(self.cord_values)


@dataclass(frozen=True)
class Examined:
    """What was found of one volume.

    Attributes:
        name: of the volume.
        prepared: its crops; None if it is refused, or they were not to be kept.
        refused: the reasons against it.
        warned: what is odd but does not stop it.
        image_hash: of the image's canonical content; "" where it could not be read.
    """

    name: str
    prepared: PreparedVolume | None
    refused: tuple[MsfilmError, ...]
    warned: tuple[InputError, ...]
    image_hash: str = ""


def mask_columns(row: pd.Series) -> list[str]:
    """Names of the masks in a row of ``find_volumes``, whether there or not."""
    return [key for key in row.index if key in ("cord", "truth") or str(key).startswith("rater-")]


def examine(dataset: Path, name: str, row: pd.Series, how: Reading) -> Examined:
    """Read and crop one volume, or list every reason why not.

    Args:
        dataset: absolute path of its folder.
        name: of the volume.
        row: of ``find_volumes``.
        how: to read.
    """
    refused: list[MsfilmError] = list(row["errors"])
    warned: list[InputError] = []
    notes = [f"{note.code}: {note.what}" for note in row["notes"]]  # of the sidecar, after those of the files
    if refused and not how.every_file:
        return Examined(name, None, tuple(refused), tuple(row["notes"]))
    image, masks, image_hash = None, {}, ""
    if row["image"] is not None:
        try:
            image = read_image(row["image"], form=how.form)
            warned += as_faults(image)
            image_hash = sha256_array(image.data)[:32] if how.every_file else ""
        except MsfilmError as fault:
            refused.append(fault)
    if image is not None or how.every_file:
        for mask in mask_columns(row):
            if row[mask] is None:
                continue
            values = how.cord_values if mask == "cord" else how.lesion_values
            try:
                masks[mask] = read_mask(row[mask], image, allow_empty=mask != "cord", form=how.form, values=values)
                warned += as_faults(masks[mask], mask)
            except MsfilmError as fault:
                refused.append(fault)
    if image is not None and "cord" in masks:
        warned += _uneven(masks["cord"]) + _outside(masks)
    notes = [f"{note.code}: {note.what}" for note in warned] + notes
    prepared = None
    if not refused:
        about = {key: row[key] for key in ("patient", "session", "centre", "contrast", "rater", "raters")}
        about |= {key: row[key] for key in SIDECAR_COLUMNS}
        about |= {"image": Path(row["image"]).relative_to(dataset).as_posix(), "notes": " | ".join(notes)}
        crop = {"spacing_mm": how.spacing_mm, "size": how.size, "min_cord_pixels": how.min_cord_pixels}
        try:
            prepared = prepare_volume(name, image, masks, about, **crop)
            image_hash = prepared.row["image_hash"]
        except MsfilmError as fault:
            refused.append(fault)
    kept = prepared if how.keep else None
    return Examined(name, kept, tuple(refused), (*warned, *row["notes"]), image_hash)


def as_faults(volume: Volume, mask: str = "") -> list[InputError]:
    """A file's notes ("CODE: fact") as errors with a code, which can be listed like others."""
    found = []
    for note in volume.notes:
        code, _, what = note.partition(": ")
        found.append(InputError(code, f"{mask}: {what}" if mask else what, where=volume.path, mend=_MENDS.get(code)))
    return found


def _uneven(cord: Volume) -> list[InputError]:
    """MASK-UNEVEN for a cord mask with a hole along its length, or a slice far smaller than the next one."""
    area = np.count_nonzero(cord.data, axis=(0, 1)).astype(float)  # (Z,)
    zs = np.flatnonzero(area)
    if len(zs) < 2:
        return []
    area = area[zs[0] : zs[-1] + 1]
    odd = np.flatnonzero(np.minimum(area[1:], area[:-1]) < EVEN * np.maximum(area[1:], area[:-1]))
    if not len(odd):
        return []
    mm2 = float(np.prod(cord.voxel_mm[:2]))
    here = int(odd[0])
    more = f", and {len(odd) - 1} more such" if len(odd) > 1 else ""
    return [
        InputError(
            "MASK-UNEVEN",
            f"cord: {area[here] * mm2:.0f} mm2 in slice {zs[0] + here}, {area[here + 1] * mm2:.0f} mm2 in slice "
            f"{zs[0] + here + 1} (counted upwards from 0){more}",
            where=cord.path,
            mend="look at these slices: a cord does not change so fast",
        )
    ]


def _outside(masks: dict[str, Volume]) -> list[InputError]:
    """MASK-OUTSIDE for each lesion mask that leaves the cord mask."""
    beyond, found = masks["cord"].data == 0, []
    for name, mask in masks.items():
        if name == "cord" or not (voxels := int(np.count_nonzero(mask.data))):
            continue
        if outside := int(np.count_nonzero(mask.data[beyond])):
            mm3 = outside * float(abs(np.linalg.det(mask.affine[:3, :3])))
            found.append(
                InputError(
                    "MASK-OUTSIDE",
                    f"{name}: {mm3:.1f} mm3 ({outside / voxels:.1%}) of the lesion lie outside the cord mask",
                    where=mask.path,
                    mend="look at both masks; lesion outside the crop cannot be learnt, and counts as missed",
                )
            )
    return found


class SeenImages:
    """Images met so far, by content: the same one under two patients would leak from one side of a split to the other.

    Only 32 characters an image are kept.
    """

    def __init__(self):
        self._first: dict[str, tuple[str, str, Path]] = {}  # hash -> volume, patient, path

    def twin(self, image_hash: str, name: str, patient: str, path: Path) -> tuple[str, str, Path] | None:
        """The first volume with this content (name, patient, path), or None if there was none before."""
        if not image_hash:
            return None
        first = self._first.setdefault(image_hash, (name, patient, path))
        return None if first[0] == name else first

    @staticmethod
    def fault(path: Path, patient: str, other: tuple[str, str, Path]) -> InputError:
        """IMAGE-TWICE, said of ``path``."""
        whose = "the same patient" if other[1] == patient else f"another patient ({other[1]}, this is {patient})"
        return InputError(
            "IMAGE-TWICE",
            f"the same image content as {other[0]} of {whose}",
            where=path,
            mend="find out whose scan it is and take the other copy away: a split by patient would leak",
        )


def read_ahead(work: Callable[[Job], Answer], jobs: Iterable[Job]) -> Iterator[Answer]:
    """``work`` over ``jobs`` in order; a few are done ahead in threads, so that only as many scans are held at once."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: list[Future] = []
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > _WORKERS:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
