"""Break one NIfTI file on purpose: its bytes, its header or its values, so that exactly one known fault lies in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msfilm.errors import SettingError, suggest
from msfilm.phantom import fault_bytes
from msfilm.phantom.fault_bytes import NiftiParts, gzip_bytes, nearest_middle, nifti_bytes, parse, wrong_option

__all__ = ["FILE_ROWS", "break_image", "options_of"]


def break_image(row: int, source: str | Path, out: str | Path, **vary: Any) -> Path:
    """Copy the NIfTI file ``source`` to ``out`` with the fault of one row of the list of bad inputs in it.

    Everything else stays: for a fault of the header the stored values are those of ``source`` and the other way round.
    The same arguments give the same bytes. ``out`` may be ``source``. Bytes are written as they are, so a good file
    is made with nibabel and NumPy alone and none of what msfilm reads or writes files with has a part in it.

    Args:
        row: 1 to 20 or 24; see ``options_of(row)`` for what each can vary. 11 to 15 and 24 break a mask, the others an
            image. Row 16 is no fault of the file: it reads right, but a cast to its stored type does not hold it.
        source: a good file (NIfTI-1 or -2, packed or not).
        out: ends in .nii or .nii.gz, which decides whether it is packed.
        vary: what the row's own function takes, for example ``keep=.5`` or ``degrees=10``.

    Returns:
        ``out``.

    Raises:
        SettingError: FAULT-ROW (not a row of one file), FAULT-OPTION (unknown name, or a value that makes no sense).
    """
    source, out = Path(source), Path(out)
    if row not in _BREAKERS:
        raise SettingError("FAULT-ROW", f"row {row} is no fault of one file",
                           mend=f"use one of {', '.join(map(str, FILE_ROWS))}, or make_fault")  # fmt: skip
    known = options_of(row)
    for name in vary:
        if name not in known:
            raise SettingError("FAULT-OPTION", f"row {row} has no option {name!r}", mend=suggest(name, known))
    if vary.get("axis", 0) not in (0, 1, 2):
        raise wrong_option(f"axis={vary['axis']}", "use 0, 1 or 2")
    if not out.name.endswith((".nii", ".nii.gz")):
        raise SettingError("FAULT-OPTION", "the name must end in .nii or .nii.gz", where=out)
    raw, packed = nifti_bytes(source), out.name.endswith(".gz")
    file = parse(raw)
    if row == 1:
        whole = fault_bytes.truncated(_as_it_is(source, raw, packed), **vary)
    elif row in _WHOLE:
        raw = raw if raw[1:2] != b"\0" else file.bytes()  # sizeof_hdr of a big-endian file begins with zeros
        whole = _BREAKERS[row](raw, packed, **vary)
    else:
        _BREAKERS[row](file, **vary)
        whole = gzip_bytes(file.bytes()) if packed else file.bytes()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(whole)
    return out


def _as_it_is(source: Path, raw: bytes, packed: bool) -> bytes:
    """The source's own bytes, or those packed or unpacked where ``out`` is to be the other."""
    whole = source.read_bytes()
    if (whole[:2] == b"\x1f\x8b") == packed:
        return whole
    return gzip_bytes(raw) if packed else raw


def options_of(row: int) -> dict[str, Any]:
    """What can be varied in a fault of one file, with the values that are used unless told otherwise."""
    given = list(inspect.signature(_BREAKERS[row]).parameters.values())
    return {one.name: one.default for one in given if one.default is not inspect.Parameter.empty}


def _nan(file: NiftiParts, count: int = 60, value: str = "nan") -> None:
    """Row 4: ``count`` voxels amid the middle slice are ``value`` ('nan', 'inf' or '-inf'); stored as float32."""
    if value not in ("nan", "inf", "-inf") or count < 1:
        raise wrong_option(f"value={value!r}, count={count}", "one voxel or more of nan, inf or -inf")
    data = file.values()
    data[nearest_middle(data.shape, count)] = float(value)
    file.store(data)


def _four_d(file: NiftiParts, volumes: int = 2) -> None:
    """Row 5: ``volumes`` copies along a fourth axis; 1 is a fourth axis that means nothing, and is accepted."""
    if volumes < 1:
        raise wrong_option(f"volumes={volumes}", "one or more")
    file.stored = np.stack([file.stored] * volumes, axis=3)
    file.header["dim"][:6] = 4, *file.stored.shape, 1
    file.header["pixdim"][4] = 1


def _pixdim(file: NiftiParts, value: float = 0.0, axis: int = 0) -> None:
    """Row 6: voxel size ``value`` (mm: 0, negative, NaN, or merely unlike the affine) along ``axis``."""
    file.header["pixdim"][1 + axis] = value


def _shear(file: NiftiParts, degrees: float = 10.0) -> None:
    """Row 7: the second axis is ``degrees`` off square to the first; voxel sizes stay. Only the sform can say so."""
    affine = file.affine
    first, second = affine[:3, 0] / np.linalg.norm(affine[:3, 0]), affine[:3, 1].copy()
    turn = math.radians(degrees)
    affine[:3, 1] = math.cos(turn) * second + math.sin(turn) * np.linalg.norm(second) * first
    file.forms(affine, None)


def _forms(file: NiftiParts, mm: float = 5.0, axis: int = 0, wrong: str = "qform") -> None:
    """Row 8: qform and sform lie ``mm`` apart along patient axis ``axis``: refused beyond half a voxel, else noted.

    ``wrong`` says which of the two was moved; nothing in the file does.
    """
    if wrong not in ("qform", "sform"):
        raise wrong_option(f"wrong={wrong!r}", suggest(wrong, ("qform", "sform")))
    affine = file.affine
    moved = affine.copy()
    moved[axis, 3] += mm
    file.forms(*((affine, moved) if wrong == "qform" else (moved, affine)))


def _singular(file: NiftiParts, kind: str = "zero") -> None:
    """Row 9: the sform's second axis is 'zero', or the 'same' as its first."""
    if kind not in ("zero", "same"):
        raise wrong_option(f"kind={kind!r}", suggest(kind, ("zero", "same")))
    affine = file.affine
    affine[:3, 1] = 0 if kind == "zero" else affine[:3, 0]
    file.forms(affine, None)


def _no_form(file: NiftiParts) -> None:
    """Row 10: both form codes are 0: voxel sizes, but no word on where right, front and up are."""
    file.forms(None, None)


def _apart(file: NiftiParts, kind: str = "shift", mm: float = 30.0, axis: int = 2) -> None:
    """Row 11, by the mask's header: 'shift' lays it ``mm`` further along patient axis ``axis``; 'flip' swaps right and
    left (``axis`` 0), back and front (1) or down and up (2) about the scanner's zero, as a tool does that counts the
    other way; 'mirror' does so about the mask's own middle: it fills the same box, and only the drawing is flipped.
    """
    affine = file.affine
    middle = (affine @ [*(np.array(file.stored.shape[:3]) - 1) / 2, 1])[axis]
    if kind == "shift":
        affine[axis, 3] += mm
    elif kind in ("flip", "mirror"):
        affine[axis] *= -1
        affine[axis, 3] += 2 * middle if kind == "mirror" else 0
    else:
        raise wrong_option(f"kind={kind!r}", suggest(kind, ("shift", "flip", "mirror")))
    file.forms(affine, affine)


def _grid(file: NiftiParts, kind: str = "shape", less: int = 4, factor: float = 1.5) -> None:
    """Row 12: 'shape': ``less`` columns are missing on the far side; 'spacing': voxels ``factor`` as wide and high."""
    affine = file.affine
    if kind == "shape":
        if not 0 < less < file.stored.shape[0]:
            raise wrong_option(f"less={less} of {file.stored.shape[0]}", "leave one column or more")
        file.stored = file.stored[:-less]
        file.header.set_data_shape(file.stored.shape)
    elif kind == "spacing":
        affine[:3, :2] *= factor
        file.header["pixdim"][1:3] *= factor
    else:
        raise wrong_option(f"kind={kind!r}", suggest(kind, ("shape", "spacing")))
    file.forms(affine, affine)


def _empty(file: NiftiParts) -> None:
    """Row 13: a mask with no voxel."""
    file.stored = np.zeros_like(file.stored)


def _values(file: NiftiParts, value: float = 255.0) -> None:
    """Row 14: what was 1 reads ``value`` (255 as painting programs save it; 0.5 as a soft mask holds it)."""
    kind = np.uint8 if float(value).is_integer() and 0 <= value <= 255 else np.float32
    file.store((file.values() > 0.5).astype(kind) * kind(value))


def _float_mask(file: NiftiParts, one: int = 255) -> None:
    """Row 15: stored as 0 and ``one`` with the scale 1 / ``one`` in float32, so that 1 reads 1.00000006 or so."""
    file.store((file.values() > 0.5).astype(np.uint8) * np.uint8(one))
    file.header["scl_slope"], file.header["scl_inter"] = np.float32(1 / one), 0


def _range(file: NiftiParts, peak: float = 70_000.0) -> None:
    """Row 16: stored as int16 with a scale that makes the brightest voxel ``peak``, which int16 cannot hold."""
    data = file.values()
    top = max(float(np.abs(data).max()), 1e-6)
    file.store(np.rint(data / top * 30_000).astype(np.int16))
    file.header["scl_slope"], file.header["scl_inter"] = peak / 30_000, 0


def _scale(file: NiftiParts, slope: float = 2.0, intercept: float = math.nan) -> None:
    """Row 17: values are to be scaled by ``slope`` and moved by ``intercept``, of which one is no number."""
    file.header["scl_slope"], file.header["scl_inter"] = slope, intercept


def _dtype(file: NiftiParts, kind: str = "rgb") -> None:
    """Row 18: three colours a voxel ('rgb'), or a real and an imaginary part ('complex')."""
    data = file.values()
    if kind == "rgb":
        grey = np.rint(255 * (data - data.min()) / max(float(np.ptp(data)), 1e-6)).astype(np.uint8)
        colour = np.empty(data.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        for name in colour.dtype.names:
            colour[name] = grey
        file.store(colour)
    elif kind == "complex":
        file.store(data.astype(np.complex64))
    else:
        raise wrong_option(f"kind={kind!r}", suggest(kind, ("rgb", "complex")))


def _dims(file: NiftiParts, value: int = 0, axis: int = 1) -> None:
    """Row 20: ``value`` voxels (0 or fewer) along ``axis``; the data are all there."""
    file.header["dim"][1 + axis] = value


def _outside(file: NiftiParts, voxels: int = 8) -> None:
    """Row 24: what was drawn lies ``voxels`` voxels further along the first axis: out of the cord."""
    file.stored = np.roll(file.stored, voxels, axis=0)


_WHOLE = {2, 3, 19}
_BREAKERS: dict[int, Callable[..., Any]] = {
    1: fault_bytes.truncated, 2: fault_bytes.wrong_checksum, 3: fault_bytes.magic, 19: fault_bytes.size,
    4: _nan, 5: _four_d, 6: _pixdim, 7: _shear, 8: _forms, 9: _singular, 10: _no_form, 11: _apart, 12: _grid,
    13: _empty, 14: _values, 15: _float_mask, 16: _range, 17: _scale, 18: _dtype, 20: _dims, 24: _outside,
}  # fmt: skip
FILE_ROWS = tuple(sorted(_BREAKERS))
