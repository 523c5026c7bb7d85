"""The bytes of a NIfTI file, checked before they are believed: complete, undamaged, with a header that can be true."""

from __future__ import annotations

import io
import math
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from msfilm.errors import InputError

__all__ = ["MAX_BYTES", "RawNifti", "read_nifti_bytes"]

MAX_BYTES = 1_000_000_000  # in memory as float32 (645 voxels a side): far above any spinal scan
_BLOCK = 1 << 20
_DEFLATE_LIMIT = 1032  # deflate cannot pack tighter than this (zlib technical notes)
_COPY_AGAIN = "copy or export the file again"


@dataclass(frozen=True)
class RawNifti:
    """A file as it is: checked header, and stored values (dims, Fortran order) before scaling."""

    path: Path
    header: nib.Nifti1Header
    stored: np.ndarray
    slope: float  # values are stored * slope + intercept
    intercept: float
    notes: tuple[str, ...]


def read_nifti_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> RawNifti:
    """Read one .nii or .nii.gz file to its very end, so that a truncation or a checksum error is found.

    Raises:
        InputError: NIFTI-MISSING, NIFTI-UNREADABLE, NIFTI-TRUNCATED, NIFTI-CRC, NIFTI-DIMS, NIFTI-SIZE, NIFTI-DTYPE,
            NIFTI-OFFSET or NIFTI-SCALE.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(
            "NIFTI-UNREADABLE",
            "the name does not end in .nii or .nii.gz",
            where=path,
            mend=f"convert it to NIfTI, for example with {_converter(path.name.lower())}",
        )
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for without end
            raise InputError("NIFTI-UNREADABLE", "not an ordinary file", where=path, mend="give a file")
        on_disk = about.st_size
        with open(path, "rb") as handle:
            packed = handle.read(2) == b"\x1f\x8b"
            handle.seek(0)
            if packed != path.name.endswith(".gz"):
                is_, as_ = ("gzip", ".nii") if packed else ("not gzip", ".nii.gz")
                raise InputError(
                    "NIFTI-UNREADABLE",
                    f"the content is {is_} but the name ends in {as_} ({on_disk} bytes)",
                    where=path,
                    mend="give it the right ending, or copy it again",
                )
            reader = _Reader(_gunzip(handle, path) if packed else iter(lambda: handle.read(_BLOCK), b""))
            header, swapped = _header(reader.take(348), reader, path)
            size = _check_header(header, path, max_bytes)
            possible = on_disk * _DEFLATE_LIMIT if packed else on_disk
            if size > possible:
                raise InputError(
                    "NIFTI-TRUNCATED",
                    f"the header promises {size} bytes, the file of {on_disk} bytes holds at most {possible}",
                    where=path,
                    mend=_COPY_AGAIN,
                )
            content = reader.take(size)
            if len(content) < size:
                raise InputError(
                    "NIFTI-TRUNCATED", f"ends after {len(content)} of {size} bytes", where=path, mend=_COPY_AGAIN
                )
            extra = reader.drain(limit=4096)
            if extra > 4096:
                raise InputError(
                    "NIFTI-SIZE",
                    f"goes on beyond the {size} bytes that its header says",
                    where=path,
                    mend="the header does not belong to this content: export the file again",
                )
    except FileNotFoundError:
        if path.is_symlink():
            what, mend = "a link to a file that is not here", "fetch its content (git-annex: git annex get FILE)"
        else:
            what, mend = "no such file", "check the path"
        raise InputError("NIFTI-MISSING", what, where=path, mend=mend) from None
    except MemoryError as error:
        what = "does not fit into the memory that is free here"
        raise InputError("NIFTI-SIZE", what, where=path, mend="close other programs, or crop the scan") from error
    except OSError as error:
        raise InputError(
            "NIFTI-UNREADABLE", error.strerror or str(error), where=path, mend="check the path and its permissions"
        ) from error
    notes = [f"NIFTI-BYTES: {extra} bytes follow the data"] if extra else []
    if swapped:
        notes.append("NIFTI-ENDIAN: big-endian file; read as such")
    dims = [int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]]
    stored = np.frombuffer(content, header.get_data_dtype(), count=math.prod(dims), offset=_offset(header))
    slope, intercept, more = _scaling(header, path)
    notes += more
    return RawNifti(path, header, stored.reshape(dims, order="F"), slope, intercept, tuple(notes))


def _converter(name: str) -> str:
    """What turns a file of this name into NIfTI."""
    known = {
        (".dcm", ".ima", ".par", ".rec"): "dcm2niix",
        (".mgz", ".mgh"): "mri_convert (FreeSurfer), or nibabel",
        (".mnc", ".mnc.gz"): "mnc2nii (MINC), or nibabel",
        (".head", ".brik", ".brik.gz"): "3dAFNItoNIFTI (AFNI), or nibabel",
        (".hdr", ".img", ".img.gz"): "nibabel: nib.save(nib.load('a.hdr'), 'a.nii.gz') joins the pair of files",
        (".nrrd", ".nhdr", ".mha", ".mhd"): "SimpleITK: WriteImage(ReadImage('a.nrrd'), 'a.nii.gz')",
    }
    return next((tool for endings, tool in known.items() if name.endswith(endings)), "dcm2niix")


class _Reader:
    """Takes blocks from an iterator and gives them out by number of bytes."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks, self.buffer = blocks, bytearray()

    def take(self, upto: int) -> bytearray:
        """The first ``upto`` bytes of the file, or fewer where it ends before; taken bytes are kept."""
        while len(self.buffer) < upto and (block := next(self.blocks, b"")):
            self.buffer += block
        self.size = min(upto, len(self.buffer))
        return self.buffer[:upto] if upto < 1024 else self.buffer

    def drain(self, limit: int) -> int:
        """Read on to the end, throwing away; stops once more than ``limit`` bytes are left over."""
        left = len(self.buffer) - self.size
        while left <= limit and (block := next(self.blocks, b"")):
            left += len(block)
        return left


def _gunzip(handle: BinaryIO, path: Path) -> Iterator[bytes]:
    """Unpack a gzip file block by block, all members, checking each member's CRC and length."""
    engine, rest = zlib.decompressobj(wbits=31), b""
    try:
        while True:
            block = rest or handle.read(_BLOCK)
            if not block:
                break
            out = engine.decompress(block, 4 * _BLOCK)
            rest = engine.unconsumed_tail
            if out:
                yield out
            while not engine.eof and not rest and len(out) == 4 * _BLOCK:  # output is still held back inside zlib
                out = engine.decompress(b"", 4 * _BLOCK)
                if out:
                    yield out
            if engine.eof:
                rest = engine.unused_data.lstrip(b"\0")  # zeros after the end are padding
                while len(rest) < 2 and (more := handle.read(_BLOCK)):
                    rest = (rest + more).lstrip(b"\0")
                if not rest:
                    return
                if not rest.startswith(b"\x1f\x8b"):
                    raise InputError(
                        "NIFTI-CRC", "other bytes follow the end of the gzip stream", where=path, mend=_COPY_AGAIN
                    )
                engine = zlib.decompressobj(wbits=31)
    except zlib.error as error:
        wrong = "data check" in str(error)
        what = "the checksum does not fit the content" if wrong else f"the gzip stream is damaged ({error})"
        raise InputError("NIFTI-CRC", what, where=path, mend=_COPY_AGAIN) from error
    raise InputError("NIFTI-TRUNCATED", "the gzip stream ends too early", where=path, mend=_COPY_AGAIN)


def _header(start: bytearray, reader: _Reader, path: Path) -> tuple[nib.Nifti1Header, bool]:
    """Parse the header, NIfTI-1 or -2, of either byte order; the magic must be that of a single file."""
    if len(start) < 348:
        raise InputError(
            "NIFTI-TRUNCATED", f"ends after {len(start)} bytes, within the header", where=path, mend=_COPY_AGAIN
        )
    sizes = {order: int.from_bytes(start[:4], order) for order in ("little", "big")}
    for order, size in sizes.items():
        kind = {348: nib.Nifti1Header, 540: nib.Nifti2Header}.get(size)
        if kind is None:
            continue
        magic = bytes(start[344:348]) if size == 348 else bytes(start[4:8])
        if magic != {348: b"n+1\0", 540: b"n+2\0"}[size]:
            break
        raw = bytes(reader.take(size)[:size])
        if len(raw) < size:
            raise InputError(
                "NIFTI-TRUNCATED", f"ends after {len(raw)} bytes, within the header", where=path, mend=_COPY_AGAIN
            )
        header = kind.from_fileobj(io.BytesIO(raw), endianness="<" if order == "little" else ">", check=False)
        return header, order == "big"
    raise InputError(
        "NIFTI-UNREADABLE",
        f"not a single-file NIfTI: begins with {bytes(start[:4]).hex()}, magic {bytes(start[344:348])!r} (NIfTI-1) or "
        f"{bytes(start[4:8])!r} (NIfTI-2)",
        where=path,
        mend="convert it to NIfTI again",
    )


def _offset(header: nib.Nifti1Header) -> int:
    return int(header["vox_offset"])


def _check_header(header: nib.Nifti1Header, path: Path, max_bytes: int) -> int:
    """Bytes that the file must hold, header included."""
    count, dims = int(header["dim"][0]), [int(n) for n in header["dim"][1:]]
    if not 1 <= count <= 7 or min(dims[:count]) < 1:
        raise InputError(
            "NIFTI-DIMS",
            f"{count} axes of {' x '.join(map(str, dims[: max(0, min(count, 7))])) or 'no'} voxels",
            where=path,
            mend="every axis needs at least one voxel: export the file again",
        )
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        dtype = None
    if dtype is None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = {128: "RGB", 2304: "RGBA", 32: "complex", 1792: "complex", 2048: "complex", 1: "binary"}.get(
            code, "not known here"
        )
        raise InputError(
            "NIFTI-DTYPE",
            f"data type {code} ({name})",
            where=path,
            mend="save one real number a voxel, for example int16 or float32",
        )
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise InputError(
            "NIFTI-DTYPE",
            f"data type {dtype.name} with {int(header['bitpix'])} bits a voxel",
            where=path,
            mend="export the file again",
        )
    offset = float(header["vox_offset"])
    if not 0 <= offset <= max_bytes:  # also catches NaN
        raise InputError(
            "NIFTI-SIZE", f"data are said to begin at byte {offset}", where=path, mend="export the file again"
        )
    first = int(header["sizeof_hdr"]) + 4
    if offset < first or offset != int(offset):  # here readers differ: by 4 bytes, or the header is taken for voxels
        raise InputError(
            "NIFTI-OFFSET",
            f"data are said to begin at byte {offset:g} (vox_offset); the header takes the first {first}",
            where=path,
            mend="look where the data begin: export the file again, or set vox_offset to it",
        )
    voxels = math.prod(dims[:count])
    size = _offset(header) + voxels * dtype.itemsize
    taken = max(size, voxels * 4)  # a uint8 file takes four times its bytes once it is read as float32
    if taken > max_bytes:
        raise InputError(
            "NIFTI-SIZE",
            f"{' x '.join(map(str, dims[:count]))} voxels of {dtype.name} take {_amount(taken)} once "
            f"read as float32; the limit is {_amount(max_bytes)}",
            where=path,
            mend="crop the scan, or mend its header",
        )
    return size


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _scaling(header: nib.Nifti1Header, path: Path) -> tuple[float, float, list[str]]:
    """Slope, intercept and notes; a slope of 0 or NaN means unscaled (NIfTI-1 standard; NaN: what other tools do)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        lost = f"NIFTI-SCALE: a scale slope of {slope:g} means unscaled, so the intercept {intercept:g} is left out"
        return 1.0, 0.0, [f"{lost}; some readers add it"] if intercept != 0 and not math.isnan(intercept) else []
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(
            "NIFTI-SCALE",
            f"scale slope {slope} with intercept {intercept}",
            where=path,
            mend="set scl_inter to 0, or save the file again",
        )
    return slope, intercept, []
