"""Whether a NIfTI header's geometry can be believed: voxel sizes, affine, and its two forms against each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from msfilm.errors import InputError

__all__ = ["check_affine", "corner_shift"]

SHEAR_TOLERANCE = 1e-3  # largest cosine between two voxel axes
PIXDIM_TOLERANCE = 1e-2  # relative, voxel size in the header against the affine's
FORMS_TOLERANCE = 0.5  # of a voxel, at the corner where qform and sform differ most


def corner_shift(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> tuple[float, float]:
    """How far two affines put the corner voxels of one grid apart: in voxels of ``b`` along its axes, and in mm."""
    corners = np.array(list(product(*[(0, side - 1) for side in shape])), dtype=np.float64)
    apart = corners @ (a - b)[:3, :3].T + (a - b)[:3, 3]  # (8, 3) mm
    voxels = np.linalg.solve(b[:3, :3], apart.T)
    return float(np.abs(voxels).max()), float(np.linalg.norm(apart, axis=1).max())


def check_affine(header: nib.Nifti1Header, shape: Sequence[int], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The (4, 4) affine of a header, sform before qform, and notes on it.

    Raises:
        InputError: NIFTI-AFFINE for voxel sizes or axes that cannot be, NIFTI-FORMS where qform and sform disagree.
    """
    mend = "export the file again from its source, or mend the header with a tool that shows it"
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError("NIFTI-AFFINE", f"voxel sizes (pixdim) {_text(sizes)} mm", where=path, mend=mend)
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    qform = None
    if int(header["qform_code"]) > 0:
        try:
            qform = header.get_qform()
        except (ValueError, nib.spatialimages.HeaderDataError) as error:
            raise InputError("NIFTI-AFFINE", f"the qform is not a rotation ({error})", where=path, mend=mend) from error
    for name, form in (("sform", sform), ("qform", qform)):
        if form is not None:
            _check_form(name, form, sizes, path, mend)
    if sform is None and qform is None:
        return header.get_base_affine(), (
            "qform and sform codes are both 0: the orientation is a guess (LAS, centred)",
        )
    if sform is None or qform is None:
        return np.array(qform if sform is None else sform, dtype=np.float64), ()
    voxels, mm = corner_shift(qform, sform, shape)
    if voxels > FORMS_TOLERANCE:
        raise InputError(
            "NIFTI-FORMS",
            f"qform and sform put a corner {mm:.2f} mm ({voxels:.1f} voxels) apart",
            where=path,
            mend="decide which one is right and copy it over the other",
        )
    notes = (
        (f"qform and sform differ by up to {mm:.2f} mm ({voxels:.2f} voxels) at a corner; the sform is used",)
        if mm > 0.01
        else ()
    )
    return np.array(sform, dtype=np.float64), notes


def _check_form(name: str, form: np.ndarray, sizes: np.ndarray, path: Path, mend: str) -> None:
    if not np.isfinite(form).all():
        raise InputError("NIFTI-AFFINE", f"the {name} holds values that are not finite", where=path, mend=mend)
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    if lengths.min() <= 1e-6 or abs(np.linalg.det(form[:3, :3])) < 1e-3 * lengths.prod():
        raise InputError(
            "NIFTI-AFFINE",
            f"the {name} is singular: its axes do not span space (lengths {_text(lengths)} mm)",
            where=path,
            mend=mend,
        )
    axes = form[:3, :3] / lengths
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        raise InputError(
            "NIFTI-AFFINE",
            f"the {name} is sheared: two axes are {np.degrees(np.arcsin(min(shear, 1.0))):.2f} degrees off square",
            where=path,
            mend="resample the scan onto a grid with square corners",
        )
    if (np.abs(lengths - sizes) > PIXDIM_TOLERANCE * sizes).any():
        raise InputError(
            "NIFTI-AFFINE",
            f"voxel sizes are {_text(sizes)} mm by pixdim and {_text(lengths)} mm by the {name}",
            where=path,
            mend=mend,
        )


def _text(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
