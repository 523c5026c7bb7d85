"""Where the cord's centre lies slice by slice: from a cord mask, or from a short list of points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msfilm.errors import InputError, RunError
from msfilm.files import atomic_path

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["centres_from_mask", "centres_from_points", "points_to_voxels", "read_centreline", "write_centreline"]

_DECIMALS = 4  # of a millimetre in a file


def centres_from_mask(cord: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid of the cord in every slice that shows it.

    Args:
        cord: (X, Y, Z) canonical mask.

    Returns:
        zs (n,) slice numbers, rising, and centres (n, 2) in voxel coordinates (x, y). Both empty for an empty mask.
    """
    cord = np.asarray(cord) > 0
    along_x, along_y = cord.sum(axis=1, dtype=np.int64), cord.sum(axis=0, dtype=np.int64)  # (X, Z), (Y, Z)
    area = along_x.sum(axis=0)  # (Z,)
    zs = np.flatnonzero(area)
    x = np.arange(cord.shape[0]) @ along_x[:, zs] / area[zs]
    y = np.arange(cord.shape[1]) @ along_y[:, zs] / area[zs]
    return zs, np.stack([x, y], axis=1)


def centres_from_points(points_mm: np.ndarray, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Join a few points along the cord by a monotone cubic (PCHIP, Fritsch and Carlson 1980) in z.

    Args:
        points_mm: (k, 3) scanner coordinates x, y, z (RAS, mm), k >= 2, in any order.
        volume: the scan; its canonical grid gives the slices.

    Returns:
        zs (n,) and centres (n, 2) for the slices between the lowest and the highest point, as in ``centres_from_mask``.

    Raises:
        InputError: CENTRELINE-FEW, CENTRELINE-VALUES, CENTRELINE-OUTSIDE or CENTRELINE-TWICE.
    """
    from scipy.interpolate import PchipInterpolator

    voxels = points_to_voxels(_checked(points_mm, least=2), volume)
    x, y, z = voxels.T
    shape = volume.data.shape
    if (np.diff(z) < 0.01).any():
        raise InputError(
            "CENTRELINE-TWICE",
            f"two points lie at the same height (voxel z {z[np.diff(z).argmin()]:.2f})",
            where=volume.path,
            mend="keep one of them",
        )
    zs = np.arange(int(np.rint(z[0])), int(np.rint(z[-1])) + 1)
    zs = zs[(zs >= 0) & (zs < shape[2])]
    at = np.clip(zs, z[0], z[-1])  # an end point half a slice off a slice's centre still counts for that slice
    return zs, np.stack([PchipInterpolator(z, x)(at), PchipInterpolator(z, y)(at)], axis=1)


def points_to_voxels(points_mm: np.ndarray, volume: Volume) -> np.ndarray:
    """(k, 3) scanner mm (RAS) -> (k, 3) voxel coordinates of the canonical scan, from the lowest up.

    Raises:
        InputError: CENTRELINE-VALUES or CENTRELINE-OUTSIDE.
    """
    points_mm = _checked(points_mm)
    shape = np.array(volume.data.shape[:3])
    inverse = np.linalg.inv(volume.affine)
    voxels = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    voxels = voxels[np.argsort(voxels[:, 2], kind="stable")]
    outside = ((voxels < -0.5) | (voxels > shape - 0.5)).any(axis=1)
    if outside.any():
        first = np.round(voxels[outside][0], 1).tolist()
        raise InputError(
            "CENTRELINE-OUTSIDE",
            f"{int(outside.sum())} of {len(voxels)} points lie outside the scan, the "
            f"first at voxel {first} of {shape.tolist()}",
            where=volume.path,
            mend="give scanner coordinates in mm, x to the right, y anterior, z superior",
        )
    return voxels


def read_centreline(path: str | Path) -> np.ndarray:
    """Read points from a small CSV with columns ``x_mm,y_mm,z_mm`` (RAS, mm); lines that begin with # are comments.

    Returns:
        (k, 3) float64.

    Raises:
        InputError: CENTRELINE-MISSING, CENTRELINE-VALUES.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError("CENTRELINE-MISSING", error.strerror or str(error), where=path) from error
    except UnicodeDecodeError as error:
        raise InputError("CENTRELINE-VALUES", "not a text file in UTF-8", where=path) from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    mend = "first line x_mm,y_mm,z_mm, then three numbers a line"
    if not lines or [name.strip() for name in lines[0].split(",")] != ["x_mm", "y_mm", "z_mm"]:
        heading = lines[0][:80] if lines else ""
        raise InputError("CENTRELINE-VALUES", f"the heading is {heading!r}", where=path, mend=mend)
    points = []
    for line in lines[1:]:
        try:
            points.append([float(value) for value in line.split(",")])
        except ValueError:
            raise InputError("CENTRELINE-VALUES", f"not numbers: {line[:80]!r}", where=path, mend=mend) from None
        if len(points[-1]) != 3 or not np.isfinite(points[-1]).all():
            raise InputError("CENTRELINE-VALUES", f"not three finite numbers: {line[:80]!r}", where=path, mend=mend)
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def write_centreline(path: str | Path, points_mm: np.ndarray, *, about: str = "") -> Path:
    """Write points as the CSV that ``read_centreline`` reads, whole or not at all, to 0.0001 mm.

    Args:
        path: of the file; by custom it ends in .csv.
        points_mm: (k, 3) scanner coordinates (RAS, mm), k >= 2.
        about: a line of comment, such as the name of the scan.

    Raises:
        InputError: CENTRELINE-FEW, CENTRELINE-VALUES; RunError: CENTRELINE-WRITE where the disk refuses.
    """
    path, points_mm = Path(path), _checked(points_mm, least=2)
    lines = [f"# {' '.join(line.split())}" for line in about.splitlines() if line.strip()]
    lines += ["# Scanner millimetres (RAS+): x to the patient's right, y to the front, z upwards.", "x_mm,y_mm,z_mm"]
    lines += [",".join(f"{value:.{_DECIMALS}f}" for value in point) for point in points_mm]
    try:
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(
            "CENTRELINE-WRITE",
            f"cannot write: {error.strerror or error}",
            where=path,
            mend="choose a folder that you may write to",
        ) from error
    return path


def _checked(points_mm: np.ndarray, least: int = 0) -> np.ndarray:
    """Points as (k, 3) float64 with k >= ``least``, or CENTRELINE-VALUES, CENTRELINE-FEW."""
    points_mm = np.asarray(points_mm, dtype=np.float64)
    if points_mm.ndim != 2 or points_mm.shape[1:] != (3,) or not np.isfinite(points_mm).all():
        raise InputError(
            "CENTRELINE-VALUES",
            f"points of shape {points_mm.shape} with {int((~np.isfinite(points_mm)).sum())} values that are not finite",
            mend="give x_mm, y_mm, z_mm for every point",
        )
    if len(points_mm) < least:
        raise InputError(
            "CENTRELINE-FEW",
            f"{len(points_mm)} point(s)",
            mend="give at least two points, one near each end of the cord in the scan",
        )
    return points_mm
