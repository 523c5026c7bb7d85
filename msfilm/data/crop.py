"""The cord-centred sampling grid: scan -> (n, H, W) crops by one batched interpolation, and crops -> scan.

Arrays are canonical: (X, Y, Z), X towards the patient's right, Y anterior, Z superior; slices are ``array[:, :, z]``.
A crop's row 0 is anterior and its column 0 is the patient's right, which is how radiologists look at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.errors import SettingError

__all__ = [
    "CropGrid",
    "centres_from_mask",
    "centres_from_points",
    "check_crop",
    "coverage",
    "crop",
    "crop_mask",
    "read_centreline",
    "uncrop",
]

FINEST_MM, COARSEST_MM, LARGEST_SIZE = 0.01, 10.0, 1024  # of a crop's pixels, and how many on a side
_MOST_VOXELS = 4096  # that a crop may span along one axis: 36 mm of voxels of .01 mm
_CHUNK_BYTES = 64 * 2**20  # of interpolation input held at once; a tall sagittal scan goes through in several chunks


def check_crop(size: int, spacing_mm: float) -> None:
    """Raise SettingError CROP-SETTING for crops that no scan could fill, or no memory hold."""
    if not 1 <= size <= LARGEST_SIZE or not FINEST_MM <= spacing_mm <= COARSEST_MM:  # NaN is not between either
        raise SettingError(
            "CROP-SETTING",
            f"crops of {size:g} pixels of {spacing_mm:g} mm",
            mend=f"give 1 to {LARGEST_SIZE} pixels of {FINEST_MM:g} to {COARSEST_MM:g} mm; 48 of 0.75 mm is usual",
        )


@dataclass(frozen=True)
class CropGrid:
    """Where the crops of one scan lie.

    Attributes:
        shape: (X, Y, Z) of the canonical scan.
        affine: (4, 4) canonical voxel -> RAS mm.
        zs: (n,) slice numbers, each once.
        centres: (n, 2) cord centre in canonical voxel coordinates (x, y), voxel centres at whole numbers.
        size: H = W in pixels.
        spacing_mm: pixel size.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    zs: np.ndarray
    centres: np.ndarray
    size: int = 48
    spacing_mm: float = 0.75

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))
        object.__setattr__(self, "zs", np.asarray(self.zs, dtype=np.int64).reshape(-1))
        object.__setattr__(self, "centres", np.asarray(self.centres, dtype=np.float64).reshape(-1, 2))
        check_crop(self.size, self.spacing_mm)
        if len(self.shape) != 3 or self.affine.shape != (4, 4) or len(self.zs) != len(self.centres):
            raise SettingError(
                "CROP-SETTING",
                f"shape {self.shape}, affine {self.affine.shape}, {len(self.zs)} slices "
                f"and {len(self.centres)} centres do not fit together",
            )
        if len(np.unique(self.zs)) != len(self.zs) or (
            len(self.zs) and not 0 <= self.zs.min() <= self.zs.max() < self.shape[2]
        ):
            raise SettingError(
                "CROP-SETTING", f"slices {self.zs.tolist()} must be different and within 0..{self.shape[2] - 1}"
            )

        with np.errstate(divide="ignore", invalid="ignore"):
            spans = (self.size - 1) * self.spacing_mm / self.voxel_mm[:2]
        if not (spans <= _MOST_VOXELS - 3).all():  # the box has three more; NaN is refused too
            raise SettingError(
                "CROP-SETTING",
                f"crops of {self.size} pixels of {self.spacing_mm:g} mm span {spans.max():.4g} voxels of "
                f"{' x '.join(f'{side:.3g}' for side in self.voxel_mm[:2])} mm; at most {_MOST_VOXELS - 3} can be held",
                mend="use fewer or smaller pixels, or resample the scan to larger voxels",
            )

    def __len__(self) -> int:
        return len(self.zs)

    @property
    def voxel_mm(self) -> np.ndarray:
        """(3,) voxel size along X, Y, Z in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def voxel_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxel coordinates of every crop's columns, x (n, W), and rows, y (n, H); both fall as the index rises."""
        offsets = (np.arange(self.size) - (self.size - 1) / 2) * self.spacing_mm
        x = self.centres[:, :1] - offsets / self.voxel_mm[0]
        y = self.centres[:, 1:] - offsets / self.voxel_mm[1]
        return x, y

    def pixel_coordinates(self, which: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Voxels that the chosen crops may reach, and where in the crop they fall.

        Returns:
            ix (n, A) and iy (n, B): voxel numbers, which may lie outside the scan; w (n, A) and h (n, B): their
            column and row in the crop, as real numbers.
        """
        results = []
        for axis, reach in enumerate(self._reach()):
            ratio = self.voxel_mm[axis] / self.spacing_mm  # pixels in a voxel
            centre = self.centres[which, axis, None]
            index = np.floor(centre).astype(np.int64) + np.arange(-reach, reach + 2)
            results += [index, (self.size - 1) / 2 - (index - centre) * ratio]
        ix, w, iy, h = results
        return ix, iy, w, h

    def _reach(self) -> tuple[int, int]:
        """Voxels from the centre to beyond the crop's edge, along x and y."""
        x, y = (int(np.ceil(self.size / 2 / (side / self.spacing_mm))) + 1 for side in self.voxel_mm[:2])
        return x, y


def crop(data: np.ndarray, grid: CropGrid, *, mode: str = "linear") -> tuple[np.ndarray, np.ndarray]:
    """Sample a scan on its crop grid: linear interpolation in the plane of each slice, none across slices.

    Where the scan ends, the nearest in-plane voxel is repeated.

    Args:
        data: (X, Y, Z) canonical array of any real type.
        grid: where the crops lie.
        mode: ``"linear"`` or ``"nearest"``.

    Returns:
        (n, H, W) float32 crops, and (n,) the share of each crop's pixels whose centre lies outside the scan.
    """
    if tuple(data.shape) != grid.shape:
        raise SettingError("CROP-SHAPE", f"array of shape {tuple(data.shape)} does not fit a grid for {grid.shape}")
    if mode not in ("linear", "nearest"):
        raise SettingError("CROP-MODE", f"mode={mode!r}", mend="use 'linear' or 'nearest'")
    x, y = grid.voxel_coordinates()  # (n, W), (n, H)
    inside_x = (x >= -0.5) & (x <= grid.shape[0] - 0.5)
    inside_y = (y >= -0.5) & (y <= grid.shape[1] - 0.5)
    padded = 1 - inside_x.mean(axis=1) * inside_y.mean(axis=1)
    # Each slice brings only the box of voxels that its crop touches, indices clipped to the scan (= border padding).
    x0, y0 = np.floor(x[:, -1]).astype(np.int64), np.floor(y[:, -1]).astype(np.int64)
    columns, rows = (_power_of_two((grid.size - 1) * grid.spacing_mm / side_mm + 3) for side_mm in grid.voxel_mm[:2])
    out = np.empty((len(grid), grid.size, grid.size), np.float32)
    for part in _chunks(len(grid), max(rows * columns, grid.size**2)):
        ix = np.clip(x0[part, None] + np.arange(columns), 0, grid.shape[0] - 1)  # (n, columns)
        iy = np.clip(y0[part, None] + np.arange(rows), 0, grid.shape[1] - 1)
        box = data[ix[:, None, :], iy[:, :, None], grid.zs[part, None, None]]  # (n, rows, columns): y down, x across
        out[part] = _sample(box, y[part] - y0[part, None], x[part] - x0[part, None], mode)
    return out, padded


def crop_mask(mask: np.ndarray, grid: CropGrid) -> np.ndarray:
    """Sample a 0/1 mask exactly as its image is, then cut at one half: (n, H, W) uint8."""
    if not mask.any():  # many a lesion mask
        return np.zeros((len(grid), grid.size, grid.size), np.uint8)
    values, _ = crop(mask, grid)
    return (values >= 0.5).astype(np.uint8)


def uncrop(values: np.ndarray, grid: CropGrid, *, fill: float = 0.0) -> np.ndarray:
    """Put crops back on the scan's own canonical grid, by linear interpolation.

    Args:
        values: (n, H, W), for example probabilities.
        grid: where the crops lie.
        fill: value of every voxel whose centre no crop covers.

    Returns:
        (X, Y, Z) float32.
    """
    if tuple(values.shape) != (len(grid), grid.size, grid.size):
        raise SettingError(
            "CROP-SHAPE",
            f"values of shape {tuple(values.shape)} do not fit a grid of {len(grid)} crops "
            f"of {grid.size} x {grid.size}",
        )
    out = np.full(grid.shape, fill, np.float32)
    side = _power_of_two(grid.size)
    reached = np.prod([2 * reach + 2 for reach in grid._reach()])
    for part in _chunks(len(grid), max(side * side, int(reached))):
        ix, iy, w, h = grid.pixel_coordinates(part)
        box = np.pad(values[part], ((0, 0), (0, side - grid.size), (0, side - grid.size)), mode="edge")
        sampled = _sample(box, np.clip(h, 0, grid.size - 1), np.clip(w, 0, grid.size - 1), "linear")  # (n, B, A)
        n, b, a = np.nonzero(
            _covered(ix, w, grid.shape[0], grid.size)[:, None, :]
            & _covered(iy, h, grid.shape[1], grid.size)[:, :, None]
        )
        out[ix[n, a], iy[n, b], grid.zs[part][n]] = sampled[n, b, a]
    return out


def coverage(grid: CropGrid) -> np.ndarray:
    """(X, Y, Z) bool: voxels whose centre lies in a crop, so that a prediction can reach them."""
    inside = []
    for axis in (0, 1):
        index = np.arange(grid.shape[axis])
        pixel = (grid.size - 1) / 2 - (index - grid.centres[:, axis, None]) * grid.voxel_mm[axis] / grid.spacing_mm
        inside.append(_covered(index, pixel, grid.shape[axis], grid.size))  # (n, X), then (n, Y)
    out = np.zeros(grid.shape, bool)
    out[:, :, grid.zs] = inside[0].T[:, None, :] & inside[1].T[None, :, :]
    return out


def _covered(index: np.ndarray, pixel: np.ndarray, side: int, size: int) -> np.ndarray:
    """Voxels that exist and whose centre lies within the crop's outer edges."""
    return (index >= 0) & (index < side) & (pixel >= -0.5) & (pixel <= size - 0.5)


def _sample(box: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """One grid_sample: box (n, R, C) at rows (n, H) x columns (n, W) -> (n, H, W) float32.

    R and C are powers of two and the arithmetic is float64, so that grid_sample's own scaling of coordinates to -1..1
    and back is exact, and a point on a voxel's centre returns that voxel bit for bit.
    """
    n, height, width = box.shape
    vertical = torch.from_numpy((2 * rows + 1) / height - 1)  # align_corners=False: pixel i sits at (2 i + 1) / n - 1
    horizontal = torch.from_numpy((2 * columns + 1) / width - 1)
    points = torch.stack(
        [horizontal[:, None, :].expand(n, rows.shape[1], -1), vertical[:, :, None].expand(n, -1, columns.shape[1])],
        dim=-1,
    )
    image = torch.from_numpy(np.ascontiguousarray(box, dtype=np.float64))[:, None]
    sampled = F.grid_sample(
        image, points, mode="bilinear" if mode == "linear" else mode, padding_mode="border", align_corners=False
    )
    return sampled[:, 0].to(torch.float32).numpy()


def _power_of_two(extent: float) -> int:
    return 1 << int(np.ceil(extent) - 1).bit_length()


def _chunks(n: int, values_each: int) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // (8 * values_each))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
