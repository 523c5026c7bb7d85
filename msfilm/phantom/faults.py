"""Broken scans whose fault is known: the 25 bad inputs that this kit promises to name, each made on purpose."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from msfilm.errors import SettingError, suggest
from msfilm.phantom.fault_bytes import gzip_bytes, nifti_bytes
from msfilm.phantom.fault_edits import FILE_ROWS, break_image, options_of
from msfilm.phantom.fault_set import LABELS, write_good_set

__all__ = ["FAULTS", "GROUPS", "Fault", "break_image", "fault_files", "fault_options", "make_fault"]

GROUPS = ("the file", "its values", "its geometry", "its masks", "the data set", "the disk")
_AGAIN = "copy or export the file again"


@dataclass(frozen=True)
class Fault:
    """One row of the list of bad inputs.

    Attributes:
        row: 1 to 25.
        name: a short word for it.
        title: what is wrong.
        code: under which it is named, with the options that ``make_fault`` takes unless told otherwise.
        verdict: 'refused' (the volume, with its reason; the others go on), 'warned' (used, and said aloud) or
            'accepted' (right, within a stated tolerance).
        mend: what to do about it.
        group: one of ``GROUPS``.
        at: where it is met: 'check' (a check of the files finds it), or only 'cast', 'network' or 'write'.
        also: other codes that its variants give.
    """

    row: int
    name: str
    title: str
    code: str
    verdict: str
    mend: str
    group: str
    at: str = "check"
    also: tuple[str, ...] = ()



_FILE, _VALUES, _GEOMETRY, _MASKS, _SET, _DISK = GROUPS
_ALL = (
    Fault(1, "truncated", "the file ends too early", "NIFTI-TRUNCATED", "refused", _AGAIN, _FILE),
    Fault(2, "checksum", "the gzip checksum does not fit the content", "NIFTI-CRC", "refused", _AGAIN, _FILE),
    Fault(3, "magic", "no NIfTI magic, or unpacked data named .gz", "NIFTI-UNREADABLE", "refused",
          "convert it again, or give it the right ending", _FILE),
    Fault(4, "nan", "NaN or infinite voxels", "NIFTI-NAN", "refused",
          "find out what made them before you fill them in", _VALUES),
    Fault(5, "four-d", "four axes, the last longer than 1", "NIFTI-4D", "refused",
          "split it into volumes, or average them", _GEOMETRY, also=("NIFTI-AXES",)),
    Fault(6, "pixdim", "voxel size 0, negative, NaN or unlike the affine", "NIFTI-PIXDIM", "refused",
          "find the true voxel size and write it into pixdim and affine alike", _GEOMETRY),
    Fault(7, "shear", "a sheared affine", "NIFTI-SHEAR", "refused", "resample onto a square grid", _GEOMETRY),
    Fault(8, "forms", "qform and sform disagree", "NIFTI-FORMS", "refused", "say which one is right, or copy it over",
          _GEOMETRY, also=("NIFTI-FORMS-NEAR",)),
    Fault(9, "singular", "an affine that does not span space", "NIFTI-SINGULAR", "refused",
          "export the file again, or write a true affine", _GEOMETRY),
    Fault(10, "no-form", "neither qform nor sform", "NIFTI-NOFORM", "warned",
          "look which side is right, then write an affine that says so", _GEOMETRY),
    Fault(11, "apart", "the mask lies elsewhere or is flipped by its header", "MASK-APART", "refused",
          "find the scan that it was drawn on, or mend its header", _MASKS),
    Fault(12, "grid", "the mask has another shape or spacing", "MASK-GRID", "refused",
          "resample the mask onto the scan", _MASKS),
    Fault(13, "empty", "an empty cord mask", "MASK-EMPTY", "refused", "draw it, or leave the volume out", _MASKS),
    Fault(14, "not-binary", "a lesion mask of 0 and 255, or soft", "MASK-VALUES", "refused",
          "save 0 and 1, or say what the values mean", _MASKS),
    Fault(15, "float-mask", "a mask in which 1 reads 1.00000006", "MASK-FLOAT", "accepted",
          "nothing: it is within 0.0001 of 0 and 1", _MASKS),
    Fault(16, "range", "values beyond the stored type once scaled", "NIFTI-RANGE", "refused",
          "write it as a wider type, for example float32", _VALUES, at="cast"),
    Fault(17, "scale", "a scale slope with an intercept that is NaN", "NIFTI-SCALE", "refused",
          "set the intercept (to 0, if that is true)", _VALUES),
    Fault(18, "rgb", "three colours a voxel", "NIFTI-DTYPE", "refused", "save one number a voxel", _VALUES),
    Fault(19, "huge", "a header, or a small packed file, of many GB", "NIFTI-SIZE", "refused",
          "mend the header, or crop the scan", _FILE),
    Fault(20, "dims", "an axis of no voxel or fewer", "NIFTI-DIMS", "refused", "export the file again", _FILE),
    Fault(21, "sidecar", "a JSON sidecar missing, broken, or with a wrong type or unit", "SIDECAR-BROKEN", "warned",
          "mend the JSON; only networks conditioned on it need it", _SET,
          also=("SIDECAR-MISSING", "SIDECAR-FIELD", "SIDECAR-UNIT")),
    Fault(22, "twice", "one image under two patients", "IMAGE-TWICE", "refused",
          "find out whose it is and remove the other", _SET, also=("SPLIT-LEAK",)),
    Fault(23, "contrast", "a contrast that the network was not trained on", "CONTRAST-UNKNOWN", "refused",
          "use a network that knows it, or one without conditioning", _SET, at="network"),
    Fault(24, "outside", "lesion drawn outside the cord mask", "MASK-OUTSIDE", "warned",
          "look at both masks: one of them is wrong there", _MASKS),
    Fault(25, "disk", "spaces and other letters in names; a disk that cannot be written", "NIFTI-WRITE", "refused",
          "free space, or write elsewhere", _DISK, at="write", also=("SLICES-WRITE", "PATH-WRITE")),
)  # fmt: skip
FAULTS: dict[int, Fault] = {fault.row: fault for fault in _ALL}

BROKEN = "002"  # the patient in whom the fault lies
_ON_MASK = {11: "seg-manual", 12: "seg-manual", 13: "seg-manual", 14: "lesion-manual-rater1",
            15: "lesion-manual-rater1", 24: "lesion-manual-rater1"}  # fmt: skip


def make_fault(row: int, folder: str | Path, **vary: Any) -> Path:
    """Write a BIDS data set of three patients, of whom ``sub-002`` has the fault of that row and the others are good.

    The good data set is ``fault_set.write_good_set``; nothing that msfilm reads or writes scans with has a part in it.
    The same arguments give the same bytes. At most a few MB are written, whatever the fault claims to hold.

    Four rows are met by another way than a check of the files:

    - 16: the scan reads right; ``write_nifti(.., dtype=np.int16)``, or any other cast, is where it would wrap round.
    - 22: besides the check, a split must not put the two patients on two sides (SPLIT-LEAK).
    - 23: the files are right; a network that does not know the contrast is asked to segment it.
    - 25: the data set lies under a folder with spaces and non-ASCII letters and must work; that a disk is full or
      read-only has to be done to the process which writes (RLIMIT_FSIZE, or a folder without permission).

    Args:
        row: 1 to 25.
        folder: where the data set goes; row 25 makes a folder below it.
        vary: as ``fault_options(row)`` lists them.

    Returns:
        The data set's folder.

    Raises:
        SettingError: FAULT-ROW, FAULT-OPTION.
    """
    if row not in FAULTS:
        raise SettingError("FAULT-ROW", f"there is no row {row}", mend="use 1 to 25")
    known = fault_options(row)
    for name in vary:
        if name not in known:
            raise SettingError("FAULT-OPTION", f"row {row} has no option {name!r}", mend=suggest(name, known))
    if row == 25:
        return _odd_names(Path(folder), **vary)
    dataset = write_good_set(folder)
    if row in FILE_ROWS:
        for path in _files_to_break(row, dataset):
            break_image(row, path, path, **vary)
    else:
        _SET_FAULTS[row](dataset, **vary)
    return dataset


def fault_options(row: int) -> dict[str, Any]:
    """What ``make_fault`` can vary for a row, with the values that are used unless told otherwise."""
    if row in FILE_ROWS:
        return options_of(row)
    given = list(inspect.signature(_odd_names if row == 25 else _SET_FAULTS[row]).parameters.values())
    return {one.name: one.default for one in given[1:]}


def fault_files(row: int, dataset: str | Path) -> tuple[Path, ...]:
    """The files of a data set of ``make_fault`` in which the fault lies; a scan first."""
    dataset = Path(dataset)
    if row == 25:
        return tuple(sorted(dataset.glob("sub-*/anat/*.nii.gz")))
    anat = dataset / f"sub-{BROKEN}" / "anat"
    if row in _ON_MASK:
        return (dataset / LABELS / f"sub-{BROKEN}" / "anat" / f"sub-{BROKEN}_T2w_{_ON_MASK[row]}.nii.gz",)
    if row == 21:
        return (anat / f"sub-{BROKEN}_T2w.json",)
    images = tuple(sorted(anat.glob("*.nii*")))
    return (dataset / "sub-001" / "anat" / "sub-001_T2w.nii.gz", *images) if row == 22 else images


def _files_to_break(row: int, dataset: Path) -> tuple[Path, ...]:
    """The file with the fault; for row 10 the masks as well, since what was drawn on a scan has the scan's geometry."""
    masks = sorted((dataset / LABELS / f"sub-{BROKEN}" / "anat").glob("*.nii.gz")) if row == 10 else []
    return (*fault_files(row, dataset)[:1], *masks)


def _sidecar(dataset: Path, kind: str = "broken") -> None:
    """Row 21: the sidecar is 'missing', 'broken' (no JSON), has a 'field' of the wrong type, or another 'unit' (an
    echo time in ms).
    """
    (path,) = fault_files(21, dataset)
    text = path.read_text(encoding="utf-8")
    if kind == "missing":
        path.unlink()
    elif kind == "broken":
        path.write_text(text[: text.index("FlipAngle")], encoding="utf-8")
    elif kind in ("field", "unit"):
        echo = "a hundred" if kind == "field" else 100.0
        path.write_text(json.dumps(json.loads(text) | {"EchoTime": echo}, indent=2) + "\n", encoding="utf-8")
    else:
        raise SettingError("FAULT-OPTION", f"kind={kind!r}",
                           mend=suggest(kind, ("missing", "broken", "field", "unit")))  # fmt: skip


def _twice(dataset: Path, resaved: bool = False) -> None:
    """Row 22: sub-002's scan and masks are those of sub-001; ``resaved`` as float32, so that no byte is the same."""
    for place in (".", LABELS):
        here, there = (dataset / place / f"sub-{label}" / "anat" for label in ("001", BROKEN))
        for path in sorted(here.glob("*.nii.gz")):
            target = there / path.name.replace("sub-001", f"sub-{BROKEN}")
            shutil.copyfile(path, target)
            if resaved and place == ".":
                image = nib.Nifti1Image.from_bytes(nifti_bytes(path))
                again = nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine, image.header)
                again.header.set_data_dtype(np.float32)
                target.write_bytes(gzip_bytes(again.to_bytes()))


def _contrast(dataset: Path, suffix: str = "FLAIR") -> None:
    """Row 23: sub-002's files are named as of contrast ``suffix``."""
    if not suffix[:1].isupper() or not suffix.isalnum():
        raise SettingError("FAULT-OPTION", f"suffix={suffix!r}", mend="letters and digits, the first a capital")
    for path in sorted(dataset.rglob(f"sub-{BROKEN}_T2w*")):
        path.rename(path.with_name(path.name.replace("_T2w", f"_{suffix}")))


def _odd_names(folder: Path, name: str = "Zoë's été 2026, Räume (1)", label: str = "Zoë") -> Path:
    """Row 25: the data set lies in a folder ``name`` and has a patient ``sub-<label>``."""
    return write_good_set(folder / name, ("001", label, "003"))


_SET_FAULTS: dict[int, Callable[..., None]] = {21: _sidecar, 22: _twice, 23: _contrast}
