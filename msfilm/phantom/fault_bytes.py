"""A NIfTI file taken apart and put together by its bytes; faults of a whole file: cut, damaged, unreadable, huge."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from msfilm.errors import SettingError, suggest

__all__ = ["NiftiParts", "gzip_bytes", "magic", "nearest_middle", "nifti_bytes", "parse", "size", "truncated",
           "wrong_checksum", "wrong_option"]  # fmt: skip

_PIECE = 1 << 24  # bytes of zeros in one member of a bomb


@dataclass
class NiftiParts:
    """A NIfTI file taken apart: header, and stored values (dims; unscaled)."""

    header: nib.Nifti1Header
    stored: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        return np.array(self.header.get_best_affine(), dtype=np.float64)

    def forms(self, sform: np.ndarray | None, qform: np.ndarray | None) -> None:
        """Set both forms as they are given, with no check; None sets the code 0."""
        self.header["sform_code"] = 0 if sform is None else 1
        self.header["qform_code"] = 0
        if sform is not None:
            for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
                self.header[name] = sform[row]
        if qform is not None:
            self.header.set_qform(qform, code=1, strip_shears=True)

    def values(self) -> np.ndarray:
        """Scaled values, float32."""
        slope, intercept = float(self.header["scl_slope"]), float(self.header["scl_inter"])
        plain = not math.isfinite(slope) or slope == 0
        return self.stored.astype(np.float32) if plain else (self.stored * slope + intercept).astype(np.float32)

    def store(self, stored: np.ndarray) -> None:
        """Other values, of whatever type and shape, unscaled."""
        self.stored = stored
        self.header.set_data_dtype(stored.dtype)
        self.header.set_data_shape(stored.shape)
        self.header["scl_slope"], self.header["scl_inter"] = 1, 0

    def bytes(self) -> bytes:
        self.header["vox_offset"] = int(self.header["sizeof_hdr"]) + 4
        return self.header.binaryblock + b"\0\0\0\0" + self.stored.tobytes(order="F")


def gzip_bytes(raw: bytes) -> bytes:
    """Packed, the same bytes every time: neither time nor name goes into the gzip header."""
    return gzip.compress(raw, 6, mtime=0)


def nifti_bytes(path: str | Path) -> bytes:
    """The unpacked content of a good .nii or .nii.gz file."""
    raw = Path(path).read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def parse(raw: bytes) -> NiftiParts:
    """Take a good file apart; a big-endian one is turned into little-endian."""
    second = 540 in (*struct.unpack_from("<i", raw), *struct.unpack_from(">i", raw))
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    header = kind.from_fileobj(io.BytesIO(raw))
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    stored = np.frombuffer(raw, dtype, count=math.prod(shape), offset=int(header["vox_offset"]))
    if header.endianness == ">":
        header, stored = header.as_byteswapped("<"), stored.astype(dtype.newbyteorder("<"))
    return NiftiParts(header, stored.reshape(shape, order="F"))


def wrong_option(what: str, mend: str) -> SettingError:
    return SettingError("FAULT-OPTION", what, mend=mend)


def nearest_middle(shape: tuple[int, ...], count: int) -> tuple[np.ndarray, ...]:
    """Index of the ``count`` voxels of the middle slice that lie nearest to its centre."""
    if not 0 <= count <= shape[0] * shape[1]:
        raise wrong_option(f"{count} voxels of a slice of {shape[0]} x {shape[1]}", "take fewer")
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    away = np.hypot(x - (shape[0] - 1) / 2, y - (shape[1] - 1) / 2).reshape(-1)
    i, j = np.unravel_index(np.argsort(away, kind="stable")[:count], shape[:2])
    return i, j, np.full(count, shape[2] // 2)


# -- bytes of the whole file: (unpacked bytes, whether to pack) -> what lies on the disk


def truncated(whole: bytes, keep: float = 0.5) -> bytes:
    """Row 1: the first ``keep`` of the file's bytes, as after a copy that broke off."""
    if not 0 < keep < 1:
        raise wrong_option(f"keep={keep}", "a share between 0 and 1")
    return whole[: max(4, int(len(whole) * keep))]


def wrong_checksum(raw: bytes, packed: bool, voxels: int = 400) -> bytes:
    """Row 2: ``voxels`` voxels amid the middle slice got other values after the checksum was taken.

    With 0 the values are whole and only the checksum is wrong.
    """
    if not packed:
        raise wrong_option("a plain .nii has no checksum", "let the name end in .nii.gz")
    file = parse(raw)
    changed = np.array(file.stored)
    changed[nearest_middle(changed.shape, voxels)] = changed.max()
    file.stored = changed
    whole = bytearray(gzip_bytes(file.bytes()))
    wrong = zlib.crc32(raw if voxels else raw + b"\0")
    whole[-8:-4] = struct.pack("<I", wrong)
    return bytes(whole)


def magic(raw: bytes, packed: bool, kind: str = "magic") -> bytes:
    """Row 3: ``kind`` 'magic' (the four letters that say NIfTI are others) or 'raw' (unpacked bytes named .gz,
    or packed bytes named .nii).
    """
    if kind not in ("magic", "raw"):
        raise wrong_option(f"kind={kind!r}", suggest(kind, ("magic", "raw")))
    if kind == "raw":
        return raw if packed else gzip_bytes(raw)
    at = 4 if struct.unpack_from("<i", raw)[0] == 540 else 344
    whole = raw[:at] + b"abc\0" + raw[at + 4 :]
    return gzip_bytes(whole) if packed else whole


def size(raw: bytes, packed: bool, kind: str = "header", cap_bytes: float = 2e9) -> bytes:
    """Row 19: ``kind`` 'header' (32767 voxels along each axis, and no data), 'bomb' (packed zeros that unpack beyond
    ``cap_bytes``, as the header says) or 'tail' (the same behind a good scan, about which its header says nothing).

    A bomb is one packed piece of 16 MiB of zeros over and over (a gzip file may have many members), so neither making
    it nor keeping it takes much: 2 GB are 2 MB on the disk.
    """
    file = parse(raw)
    if kind == "header":
        file.header["dim"][:4] = 3, 32767, 32767, 32767
        whole = file.bytes()[: int(file.header["sizeof_hdr"]) + 4] + bytes(64)
        return gzip_bytes(whole) if packed else whole
    if kind not in ("bomb", "tail"):
        raise wrong_option(f"kind={kind!r}", suggest(kind, ("header", "bomb", "tail")))
    if not packed or not 0 < cap_bytes <= 4e9:
        raise wrong_option(f"cap_bytes={cap_bytes:g} for {'.nii.gz' if packed else '.nii'}",
                     "a bomb is a .nii.gz of up to 4e9 bytes")  # fmt: skip
    head = file.bytes()
    if kind == "bomb":
        side = 1024
        deep = int(cap_bytes // (side * side * file.stored.dtype.itemsize)) + 1
        file.header["dim"][:5] = 3, side, side, deep, 1
        head = file.bytes()[: int(file.header["sizeof_hdr"]) + 4]
    pieces = int(cap_bytes // _PIECE) + 2
    return gzip_bytes(head) + gzip.compress(bytes(_PIECE), 9, mtime=0) * pieces
