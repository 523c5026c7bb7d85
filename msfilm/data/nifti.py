"""Open a NIfTI scan or mask safely, or say why not; write results back in the scan's own orientation."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from msfilm.data.cast import checked_cast
from msfilm.data.geometry import check_affine, corner_shift
from msfilm.data.mask_values import MaskValues, to_binary
from msfilm.data.nifti_bytes import MAX_BYTES, RawNifti, read_nifti_bytes
from msfilm.errors import InputError, RunError
from msfilm.files import atomic_path

__all__ = ["Volume", "read_image", "read_mask", "write_nifti"]

GRID_TOLERANCE = 0.1  # of a voxel, at the corner that differs most
SPACING_TOLERANCE = 1e-2  # relative, between the voxel sizes of a mask and its scan


@dataclass(frozen=True)
class Volume:
    """A scan or mask in canonical order: X towards the patient's right, Y anterior, Z superior.

    The reordering is flips and swaps only, so it is undone exactly by ``to_file_order``.

    Attributes:
        data: (X, Y, Z) float32 image, or uint8 mask.
        affine: (4, 4) float64, canonical voxel -> RAS mm, also where the file is in metres or micrometres (what
            ``write_nifti`` makes of it is in the file's own unit again).
        orientation: of the file, for example "LAS".
        path: the file, or None for one made in memory.
        notes: what is odd about the file but did not stop it, each as "CODE: fact" (NIFTI-FORMS-NEAR, NIFTI-NOFORM,
            NIFTI-UNITS, NIFTI-SCALE, NIFTI-AXES, NIFTI-BYTES, NIFTI-ENDIAN, MASK-FLOAT, MASK-MAPPED, MASK-NOPLACE,
            MASK-TURNED).
    """

    data: np.ndarray
    affine: np.ndarray
    orientation: str = "RAS"
    path: Path | None = None
    notes: tuple[str, ...] = ()
    _header: nib.Nifti1Header | None = field(default=None, repr=False, compare=False)

    @property
    def voxel_mm(self) -> np.ndarray:
        """(3,) voxel size along the canonical axes in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def to_file_order(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn a canonical (X, Y, Z) array into the file's axis order and direction: array, affine."""
        if data.shape != self.data.shape[:3]:
            raise InputError(
                "NIFTI-SHAPE",
                f"an array of {data.shape} does not fit the scan of {self.data.shape[:3]}",
                where=self.path,
            )
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(self.orientation))
        return apply_orientation(data, turn), self.affine @ inv_ornt_aff(turn, data.shape)


def read_image(path: str | Path, *, form: str | None = None, max_bytes: int = MAX_BYTES) -> Volume:
    """Read an image as float32 in canonical order.

    Args:
        path: .nii or .nii.gz.
        form: 'sform' or 'qform', to say which one is right where a file has both; without it they must agree to half a
            voxel, and the sform is used.
        max_bytes: what the file may take in memory as float32.

    Raises:
        InputError: NIFTI-MISSING, NIFTI-UNREADABLE, NIFTI-TRUNCATED, NIFTI-CRC, NIFTI-4D, NIFTI-NAN, NIFTI-PIXDIM,
            NIFTI-SHEAR, NIFTI-SINGULAR, NIFTI-AFFINE, NIFTI-FORMS, NIFTI-DTYPE, NIFTI-SCALE, NIFTI-DIMS,
            NIFTI-OFFSET or NIFTI-SIZE; each names the file, the fact and how to mend it.
        SettingError: FORM-UNKNOWN.
    """
    raw = read_nifti_bytes(path, max_bytes=max_bytes)
    stored, affine, orientation, notes = _canonical(raw, form)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted below
        if (raw.slope, raw.intercept) != (1.0, 0.0):
            stored = stored * np.float64(raw.slope) + raw.intercept
        data = _in_c_order(stored, np.float32)
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        beyond = bad - (stored.size - int(np.count_nonzero(np.isfinite(stored))))
        raise InputError(
            "NIFTI-NAN",
            f"{bad} of {data.size} voxels are NaN or infinite" + (f" ({beyond} beyond float32)" if beyond else ""),
            where=raw.path,
            mend="find out what made them; do not only fill them with 0",
        )
    return Volume(data, affine, orientation, raw.path, notes, raw.header)


def read_mask(
    path: str | Path,
    like: Volume | None = None,
    *,
    allow_empty: bool = True,
    form: str | None = None,
    values: MaskValues = None,
    max_bytes: int = MAX_BYTES,
) -> Volume:
    """Read a 0/1 mask as uint8 in canonical order.

    Args:
        path: the file.
        like: the scan it was drawn on; the mask must lie on the same voxels, in whatever axis order it is stored.
        allow_empty: whether a mask without a voxel is fine (a lesion mask) or not (a cord mask).
        form: as in ``read_image``.
        values: what stored values mean, where they are not 0 and 1: a mapping to 0 and 1 such as {255: 1}, or the level
            from which on a soft mask is 1.
        max_bytes: as in ``read_image``.

    Raises:
        InputError: those of ``read_image``, MASK-VALUES, MASK-GRID (another shape or spacing), MASK-APART (the scan's
            shape and spacing, but somewhere else or flipped) or MASK-EMPTY.
        SettingError: FORM-UNKNOWN, MASK-MAP.
    """
    raw = read_nifti_bytes(path, max_bytes=max_bytes)
    stored, affine, orientation, notes = _canonical(raw, form)
    inside, more = to_binary(stored, raw.slope, raw.intercept, values, raw.path)
    mask = Volume(
        _in_c_order(inside.view(np.uint8), np.uint8), affine, orientation, raw.path, notes + more, raw.header
    )
    if like is not None:
        mask = replace(mask, notes=mask.notes + _check_same_grid(mask, like))
    if not allow_empty and not mask.data.any():
        raise InputError(
            "MASK-EMPTY", "the mask has no voxel", where=raw.path, mend="draw it, or leave this volume out"
        )
    return mask


def write_nifti(path: str | Path, data: np.ndarray, like: Volume, *, dtype: np.dtype | type | str) -> Path:
    """Write a canonical (X, Y, Z) array in ``like``'s own axis order, affine, unit and form codes.

    Atomic; the same array gives the same bytes (no time or name goes into the gzip header).

    Args:
        path: ends in .nii or .nii.gz.
        data: values; for an integer ``dtype`` they must be whole numbers within its range.
        like: the scan it belongs to. One made in memory gets its affine as qform and sform, both with code 1 (scanner).
        dtype: stored type.

    Raises:
        InputError: NIFTI-RANGE, NIFTI-SHAPE; RunError: NIFTI-WRITE where the disk refuses.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError("NIFTI-WRITE", "the name must end in .nii or .nii.gz", where=path)
    ordered, affine = like.to_file_order(np.asarray(data))
    cast = checked_cast(ordered, dtype.newbyteorder("<"), path)
    if like._header is None:
        header = nib.Nifti1Header()
        header.set_data_shape(cast.shape)
        header.set_xyzt_units("mm")
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_qform(affine, code=1, strip_shears=True)
        header.set_sform(affine, code=1)
    else:
        header = like._header.as_byteswapped("<") if like._header.endianness == ">" else like._header.copy()
        header["dim"] = [3, *cast.shape, 1, 1, 1, 1]
        for name in ("intent_code", "intent_p1", "intent_p2", "intent_p3", "cal_max", "cal_min"):
            header[name] = 0
        header["intent_name"] = b""
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = b"n+1" if int(header["sizeof_hdr"]) == 348 else header["magic"]
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4  # + 4 bytes that say: no extension follows
    content = header.binaryblock + b"\0\0\0\0" + cast.tobytes(order="F")
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(filename="", mode="wb", compresslevel=5, fileobj=handle, mtime=0) as packed:
                    packed.write(content)
            else:
                handle.write(content)
    except OSError as error:
        raise RunError(
            "NIFTI-WRITE",
            f"cannot write: {error.strerror or error}",
            where=path,
            mend="check free space and permissions; nothing was left half-written",
        ) from error
    return path


def _canonical(raw: RawNifti, form: str | None) -> tuple[np.ndarray, np.ndarray, str, tuple[str, ...]]:
    """Stored values and affine in canonical order, the file's orientation, and the notes."""
    shape, notes = raw.stored.shape, list(raw.notes)
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise InputError(
            "NIFTI-4D",
            f"{len(shape)} axes of {' x '.join(map(str, shape))} voxels; one 3-D volume is needed",
            where=raw.path,
            mend="split it into its volumes, or average them" if len(shape) > 3 else "give a stack of slices",
        )
    if len(shape) > 3:
        notes.append(f"NIFTI-AXES: {len(shape)} axes, the last of length 1")
    affine, more = check_affine(raw.header, shape[:3], raw.path, form)
    turn = nib.io_orientation(affine)
    stored = apply_orientation(raw.stored.reshape(shape[:3], order="F"), turn)
    return (stored, affine @ inv_ornt_aff(turn, shape[:3]), "".join(nib.aff2axcodes(affine)), tuple(notes) + more)


def _in_c_order(array: np.ndarray, dtype: type) -> np.ndarray:
    """Copy to C order, a few rows at a time: files are in Fortran order, and one big transposition misses the cache."""
    out = np.empty(array.shape, dtype)
    for start in range(0, array.shape[1], 16):
        out[:, start : start + 16] = array[:, start : start + 16]
    return out


def _check_same_grid(mask: Volume, like: Volume) -> tuple[str, ...]:
    """Refuse a mask that lies on other voxels than its scan; notes on one that is taken all the same.

    Where a header has no form at all its place is a guess, so only what both know is compared: shape, spacing, and the
    order of the axes.
    """
    where = f"the scan {like.path.name}" if like.path else "the scan"
    mend = f"resample the mask onto {where}, or find the scan that it was drawn on"
    if mask.data.shape != like.data.shape:
        raise InputError(
            "MASK-GRID",
            f"{' x '.join(map(str, mask.data.shape))} voxels (right, anterior, superior) where {where} has "
            f"{' x '.join(map(str, like.data.shape))}",
            where=mask.path,
            mend=mend,
        )
    if (np.abs(mask.voxel_mm - like.voxel_mm) > SPACING_TOLERANCE * like.voxel_mm).any():
        raise InputError(
            "MASK-GRID",
            f"voxels of {' x '.join(f'{side:.4g}' for side in mask.voxel_mm)} mm where {where} has "
            f"{' x '.join(f'{side:.4g}' for side in like.voxel_mm)} mm",
            where=mask.path,
            mend=mend,
        )
    voxels, mm = corner_shift(mask.affine, like.affine, like.data.shape)
    if voxels <= GRID_TOLERANCE:
        if mask.orientation == like.orientation:
            return ()
        stored = f"the mask is stored as {mask.orientation}, the scan as {like.orientation}"
        return (f"MASK-TURNED: {stored}: rightly so after a conversion, wrong if its header was flipped",)
    placeless = [volume for volume in (mask, like) if any(note.startswith("NIFTI-NOFORM") for note in volume.notes)]
    if len(placeless) != 1 or mask.orientation != like.orientation:
        raise InputError(
            "MASK-APART",
            f"lies up to {mm:.2f} mm ({voxels:.1f} voxels) off {where} (mask {mask.orientation}, scan "
            f"{like.orientation}{'' if mask.orientation == like.orientation else ': turned or flipped by its header'})",
            where=mask.path,
            mend="find the scan that it was drawn on; where only the header is wrong, copy the scan's header to it",
        )
    which = "the scan" if placeless[0] is like else "the mask"
    return (f"MASK-NOPLACE: {which} has no place of its own (no form), so the mask is taken voxel by voxel",)
