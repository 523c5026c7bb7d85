"""Distances between the surfaces of two masks: surface Dice and the 95th percentile of the Hausdorff distance."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np

from msfilm.errors import RunError, SettingError
from msfilm.evaluate.metrics import mask_pair

__all__ = ["SurfaceScores", "surface_scores"]


@dataclass(frozen=True)
class SurfaceScores:
    """Of one volume; see :func:`surface_scores` for empty masks."""

    surface_dice: float
    hd95_mm: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def surface_scores(
    reference: np.ndarray, prediction: np.ndarray, voxel_mm: np.ndarray, tolerance_mm: float = 1.0
) -> SurfaceScores:
    """Surface Dice and HD95 of two masks, by MONAI.

    The surface of a mask is its voxels with a face towards the outside, which the border of the array is too; a
    distance is between voxel centres, in mm. Surface Dice is the share of both surfaces' voxels that lie within the
    tolerance of the other surface. HD95 is the larger of the two directed 95th percentiles.

    Both masks empty: NaN for both, left out of means. One empty: surface Dice 0, HD95 infinite, since there is nothing
    to measure to; so a mean of HD95 is over volumes where both are marked, and goes with their number, whereas a
    median can count the infinite ones.

    Args:
        reference, prediction: masks of 0 and 1, of one shape, 2-D or 3-D.
        voxel_mm: voxel size along each axis.
        tolerance_mm: of surface Dice; 1 mm is more than a pixel in the axial plane, and less than a slice.

    Raises:
        SettingError: SCORE-SHAPE, SCORE-VALUES; SCORE-VOXEL for a voxel size or tolerance that cannot be.
        RunError: NEEDS-MONAI where MONAI is not installed.

    Source: Nikolov et al., J Med Internet Res 2021 (surface Dice); ``monai.metrics``, which counts surface voxels and
    not their area.
    """
    reference, prediction = mask_pair(reference, prediction)
    voxel_mm = np.asarray(voxel_mm, dtype=float)
    if reference.ndim not in (2, 3):
        raise SettingError("SCORE-SHAPE", f"surfaces are measured in 2-D or 3-D, but the masks are {reference.shape}")
    if voxel_mm.shape != (reference.ndim,) or not (np.isfinite(voxel_mm) & (voxel_mm > 0)).all():
        raise SettingError("SCORE-VOXEL", f"voxel_mm={voxel_mm.tolist()} for masks {reference.shape}",
                           mend="give the size of a voxel in mm along each axis")
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise SettingError("SCORE-VOXEL", f"tolerance_mm={tolerance_mm}", mend="use 0 or more")
    if not (reference.any() and prediction.any()):
        alike = reference.any() == prediction.any()
        return SurfaceScores(float("nan") if alike else 0.0, float("nan") if alike else float("inf"))
    try:
        import torch
        from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    except ImportError as error:
        raise RunError("NEEDS-MONAI", f"surface scores need MONAI, which cannot be imported: {error}",
                       mend="pip install monai") from error

    # Only the smallest box that holds both masks, and a voxel round it, so that the border of the array is a surface
    # whatever a version of MONAI makes of it.
    corners = [np.nonzero((reference | prediction).any(axis=tuple(set(range(reference.ndim)) - {axis})))[0]
               for axis in range(reference.ndim)]
    box = tuple(slice(at[0], at[-1] + 1) for at in corners)
    a, b = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (reference, prediction))  # (1, 1, X, Y, Z)
    spacing = voxel_mm.tolist()
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 warn of an argument that their own code passes.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        hd95 = compute_hausdorff_distance(b, a, include_background=True, percentile=95, spacing=spacing)
        near = compute_surface_dice(b, a, [float(tolerance_mm)], include_background=True, spacing=spacing)
    return SurfaceScores(float(near), float(hd95))
