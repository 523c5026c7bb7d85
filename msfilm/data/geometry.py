"""Whether a NIfTI header's geometry can be believed: voxel sizes, affine, and its two forms against each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from msfilm.errors import InputError, SettingError, suggest

__all__ = ["FORMS", "check_affine", "check_form_name", "corner_shift"]

FORMS = ("sform", "qform")

SHEAR_TOLERANCE = 1e-3  # largest cosine between two voxel axes
PIXDIM_TOLERANCE = 1e-2  # relative, voxel size in the header against the affine's
SMALLEST, LARGEST = 0.01, 50.0  # mm a voxel: from ex-vivo microscopy to a scout; beyond it the unit is wrong
UNITS = {0: ("mm", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}  # of xyzt_units -> mm
FARTHEST = 1e9  # mm: 1000 km; NIfTI-2 can hold numbers whose squares no float holds
LAST_CODE = 5  # of a form: 1 scanner to 4 MNI, 5 another template
FORMS_TOLERANCE = 0.5  # of a voxel, at the corner where qform and sform differ most


def check_form_name(form: str | None) -> None:
    """Raise SettingError FORM-UNKNOWN for anything but None, 'sform' and 'qform'."""
    if form is not None and form not in FORMS:
        raise SettingError("FORM-UNKNOWN", f"form={form!r}", mend=suggest(form, FORMS))


def corner_shift(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> tuple[float, float]:
    """How far two affines put the corner voxels of one grid apart: in voxels of ``b`` along its axes, and in mm."""
    corners = np.array(list(product(*[(0, side - 1) for side in shape])), dtype=np.float64)
    apart = corners @ (a - b)[:3, :3].T + (a - b)[:3, 3]  # (8, 3) mm
    voxels = np.linalg.solve(b[:3, :3], apart.T)
    return float(np.abs(voxels).max()), float(np.linalg.norm(apart, axis=1).max())


def check_affine(
    header: nib.Nifti1Header, shape: Sequence[int], path: Path, form: str | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The (4, 4) affine of a header in mm, sform before qform, and notes on it.

    Metres and micrometres (xyzt_units) become mm, as in SimpleITK; a unit that is not given is mm, as in all readers.

    Args:
        header: of the file.
        shape: (X, Y, Z) voxels.
        path: for the messages.
        form: 'sform' or 'qform': the one to believe where a file has both, however far apart they are.

    Raises:
        InputError: NIFTI-PIXDIM for voxel sizes that no scan has or that do not fit the affine, NIFTI-SHEAR,
            NIFTI-SINGULAR, NIFTI-AFFINE for a form that is not finite or no rotation, NIFTI-FORMS where qform and sform
            disagree and ``form`` does not say which one is right.
        SettingError: FORM-UNKNOWN.
    """
    check_form_name(form)
    mend = "export the file again from its source, or mend the header with a tool that shows it"
    scale, notes = _unit(header)
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64) * scale
    _check_sizes(sizes, scale, path, mend)
    present = {name: int(header[f"{name}_code"]) > 0 for name in FORMS}
    if not any(present.values()):
        noform = "NIFTI-NOFORM: qform and sform codes are both 0: the orientation is a guess (LAS, centred)"
        return _in_mm(header.get_base_affine(), scale), (*notes, noform)
    notes += tuple(
        f"NIFTI-FORMS: the {name} has the code {int(header[f'{name}_code'])}, which NIfTI does not know; some readers "
        "leave it out, it counts here"
        for name in FORMS
        if int(header[f"{name}_code"]) > LAST_CODE
    )
    both = all(present.values())
    forms = {}
    for name in FORMS:
        if not present[name]:
            continue
        try:
            forms[name] = _in_mm(getattr(header, f"get_{name}")(), scale)
            _check_form(name, forms[name], sizes, path, mend)
        except (ValueError, nib.spatialimages.HeaderDataError) as error:
            if both and form not in (None, name):
                forms.pop(name, None)  # the other one is to be believed: this one may be broken
                continue
            if isinstance(error, InputError):
                raise
            what = f"the {name} is not a rotation ({error})"
            raise InputError("NIFTI-AFFINE", what, where=path, mend=mend) from error
    if not both:
        return next(iter(forms.values())), notes
    used = form or "sform"
    if len(forms) == 1:
        other = FORMS[1 - FORMS.index(used)]
        return forms[used], (*notes, f"NIFTI-FORMS: the {other} is broken; the {used} is used, as told")
    voxels, mm = corner_shift(forms["qform"], forms["sform"], shape)
    if voxels > FORMS_TOLERANCE and form is None:
        raise InputError(
            "NIFTI-FORMS",
            f"qform and sform put a corner {mm:.2f} mm ({voxels:.1f} voxels) apart",
            where=path,
            mend="find out which one is right, and say so (--form sform or --form qform) or copy it over the other",
        )
    if mm <= 0.01:
        return forms[used], notes
    code = "NIFTI-FORMS" if voxels > FORMS_TOLERANCE else "NIFTI-FORMS-NEAR"
    apart = f"qform and sform differ by up to {mm:.2f} mm ({voxels:.2f} voxels) at a corner"
    return forms[used], (*notes, f"{code}: {apart}; the {used} is used{', as told' if form else ''}")


def _unit(header: nib.Nifti1Header) -> tuple[float, tuple[str, ...]]:
    """How many mm the header's unit of length has, and a note where that is not 1 or not known."""
    code = int(header["xyzt_units"]) & 7  # the other bits are the unit of time
    if code not in UNITS:
        return 1.0, (f"NIFTI-UNITS: the unit of length has the code {code}, which NIfTI does not know; taken as mm",)
    name, scale = UNITS[code]
    return scale, () if scale == 1 else (f"NIFTI-UNITS: sizes and places are in {name}; taken times {scale:g}, as mm",)


def _in_mm(affine: np.ndarray, scale: float) -> np.ndarray:
    return np.array(affine, dtype=np.float64) * np.array([[scale], [scale], [scale], [1.0]])


def _check_sizes(sizes: np.ndarray, scale: float, path: Path, mend: str) -> None:
    """Refuse voxel sizes (mm) that no scan has; float32 rounds .01, so the range is a little wider than it says."""
    if ((sizes >= SMALLEST * (1 - 1e-6)) & (sizes <= LARGEST * (1 + 1e-6))).all():  # neither does NaN lie between
        return
    what = f"voxel sizes {'' if scale != 1 else '(pixdim) '}{_text(sizes)} mm"
    if np.isfinite(sizes).all() and (sizes > 0).all():
        what += f"; a scan's are {SMALLEST:g} to {LARGEST:g} mm"
        if scale == 1:
            what += ": are they in metres or micrometres?"
            mend = "set the header's unit (xyzt_units: 1 metres, 2 mm, 3 micrometres), or export the file again in mm"
        else:
            what += f" (pixdim {_text(sizes / scale)}, which the header says is in {_name(scale)})"
            mend = "if pixdim is in mm, set the header's unit to mm (xyzt_units 2); else export the file again"
    raise InputError("NIFTI-PIXDIM", what, where=path, mend=mend)


def _name(scale: float) -> str:
    return next(name for name, mm in UNITS.values() if mm == scale)


def _check_form(name: str, form: np.ndarray, sizes: np.ndarray, path: Path, mend: str) -> None:
    if not np.isfinite(form).all():
        raise InputError("NIFTI-AFFINE", f"the {name} holds values that are not finite", where=path, mend=mend)
    if (far := float(np.abs(form).max())) > FARTHEST:
        raise InputError("NIFTI-AFFINE", f"the {name} holds {far:.3g} mm", where=path, mend=mend)
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    if lengths.min() <= 1e-6 or abs(np.linalg.det(form[:3, :3])) < 1e-3 * lengths.prod():
        raise InputError(
            "NIFTI-SINGULAR",
            f"the {name} is singular: its axes do not span space (lengths {_text(lengths)} mm)",
            where=path,
            mend=mend,
        )
    axes = form[:3, :3] / lengths
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        raise InputError(
            "NIFTI-SHEAR",
            f"the {name} is sheared: two axes are {np.degrees(np.arcsin(min(shear, 1.0))):.2f} degrees off square",
            where=path,
            mend="resample the scan onto a grid with square corners",
        )
    if (np.abs(lengths - sizes) > PIXDIM_TOLERANCE * sizes).any():
        raise InputError(
            "NIFTI-PIXDIM",
            f"voxel sizes are {_text(sizes)} mm by pixdim and {_text(lengths)} mm by the {name}",
            where=path,
            mend=mend,
        )


def _text(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
