"""One scan of one patient: the anatomy sampled on the scan's grid with the voxel's partial volume, true masks, and the
image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from msfilm.phantom.anatomy import Patient, cord_distance, layers
from msfilm.phantom.fields import coverage
from msfilm.phantom.lesions import Lesion, lesion_distance

__all__ = ["CleanScan", "ScanPlan", "render"]

BOX_MM = 21.0  # half-width of the part rendered finely: the 36 mm crop, moved and turned, lies inside
BLEND_MM = 3.0


@dataclass(frozen=True)
class ScanPlan:
    """Where a scan's voxels lie. Arrays are (Z, H, W): z upwards, rows to the front, columns to the right."""

    s_mm: np.ndarray  # (Z,) depth of the slices below the top of C1, descending (z upwards)
    thickness_mm: float
    voxel_mm: float
    height: int
    width: int
    centre_mm: tuple[float, float]  # patient's x, y at the middle of the matrix

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """x (W,) and y (H,) of the voxel centres in mm."""
        x = self.centre_mm[0] + (np.arange(self.width) - (self.width - 1) / 2) * self.voxel_mm
        y = self.centre_mm[1] + (np.arange(self.height) - (self.height - 1) / 2) * self.voxel_mm
        return x, y


@dataclass(frozen=True)
class CleanScan:
    """A scan before the scanner: noise-free signal and everything that is known about it."""

    signal: np.ndarray  # (Z, H, W) float32, white matter = 1
    cord: np.ndarray  # (Z, H, W) bool, at least half of the voxel is cord
    box: tuple[slice, slice]  # rows and columns that hold the cord
    distances: np.ndarray  # (L, Z, h, w) float32 signed distance (mm) to each lesion, in the box
    positions: tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y (Z, h, w) relative to the cord's centre; s (Z,)

    @property
    def truth(self) -> np.ndarray:
        """(Z, H, W) bool true lesion mask."""
        mask = np.zeros(self.signal.shape, bool)
        if len(self.distances):
            mask[:, self.box[0], self.box[1]] = (self.distances < 0).any(axis=0)
        return mask

    def cnr(self, snr: float) -> np.ndarray:
        """(L,) contrast-to-noise of each lesion: mean in the lesion minus mean of the healthy cord on its slices, over
        the noise.
        """
        signal = self.signal[:, self.box[0], self.box[1]]
        healthy = (
            self.cord[:, self.box[0], self.box[1]] & ~(self.distances < 0).any(axis=0) if len(self.distances) else None
        )
        values = []
        for distance in self.distances:
            inside = distance < 0
            slices = inside.any(axis=(1, 2))
            around = healthy[slices]
            usable = inside.any() and around.any()
            values.append((signal[inside].mean() - signal[slices][around].mean()) * snr if usable else 0.0)
        return np.array(values)


@torch.no_grad()
def render(
    patient: Patient, lesions: list[Lesion], signal: dict[str, float], plan: ScanPlan, *, sub_slices: int = 5
) -> CleanScan:
    """Sample the anatomy on a scan's grid.

    Within the plane an edge is shared by the width of a pixel; through the plane ``sub_slices`` thin slices are
    averaged (two
    outside the box round the cord), so that thick slices blur what the cord does along its length.
    """
    x, y = plan.axes()
    centres = patient.centre(plan.s_mm)
    rows = _window(y, centres[:, 1].min() - BOX_MM, centres[:, 1].max() + BOX_MM)
    columns = _window(x, centres[:, 0].min() - BOX_MM, centres[:, 0].max() + BOX_MM)
    weight = (
        _ramp(y[rows], len(y) > rows.stop - rows.start)[:, None]
        * _ramp(x[columns], len(x) > columns.stop - columns.start)[None, :]
    )
    shape = (len(plan.s_mm), plan.height, plan.width)
    image, cord = np.empty(shape, np.float32), np.zeros(shape, bool)
    distances = np.empty((len(lesions), shape[0], rows.stop - rows.start, columns.stop - columns.start), np.float32)
    for k, s in enumerate(plan.s_mm):
        image[k] = _sub_slices(patient, lesions, signal, s, plan, x, y, 2)[0]
        fine, share, distance = _sub_slices(patient, lesions, signal, s, plan, x[columns], y[rows], sub_slices)
        image[k, rows, columns] = (1 - weight) * image[k, rows, columns] + weight * fine
        cord[k, rows, columns] = share >= 0.5
        distances[:, k] = distance
    box = distances.shape[1:]  # (Z, h, w), also without a lesion
    relative_x = np.broadcast_to(x[columns][None, None, :] - centres[:, 0, None, None], box)
    relative_y = np.broadcast_to(y[rows][None, :, None] - centres[:, 1, None, None], box)
    return CleanScan(image, cord, (rows, columns), distances, (relative_x, relative_y, plan.s_mm))


def _sub_slices(patient, lesions, signal, s, plan, x, y, count):
    """Mean signal (h, w), mean share of cord (h, w) and mean distances (L, h, w) over ``count`` thin slices of one
    thick one.
    """
    depths = s + plan.thickness_mm * ((np.arange(count) + 0.5) / count - 0.5)
    centres = torch.as_tensor(patient.centre(depths), dtype=torch.float32)
    gx = torch.as_tensor(x, dtype=torch.float32)[None, None, :] - centres[:, 0, None, None]
    gy = torch.as_tensor(y, dtype=torch.float32)[None, :, None] - centres[:, 1, None, None]
    gx, gy = gx.expand(-1, len(y), -1), gy.expand(-1, -1, len(x))
    depth = torch.as_tensor(depths, dtype=torch.float32)[:, None, None]
    cord_texture = 1 + 0.03 * patient.cord_field(gx, gy, depth)
    csf_texture = 1 - 0.16 * (patient.csf_field(gx, gy, depth) - 0.6).clamp_min(0)  # flow takes signal away
    textures = {"wm": cord_texture, "gm": cord_texture, "csf": csf_texture}
    image, grey = torch.zeros_like(gx), torch.zeros_like(gx)
    for tissue, share in layers(patient, depths, gx, gy, plan.voxel_mm):
        image = image + share * (signal[tissue] * textures.get(tissue, 1.0) - image)
        if tissue == "gm":
            grey = share
    share = coverage(cord_distance(gx, gy, patient.profile(depths)), plan.voxel_mm)
    distances = torch.empty(len(lesions), *gx.shape[1:])
    for i, lesion in enumerate(lesions):
        distance = lesion_distance(lesion, patient, depths, gx, gy)
        value = (1 - grey) * signal[f"lesion-{i}-wm"] + grey * signal[f"lesion-{i}-gm"]
        image = image + coverage(distance, lesion.edge_mm + plan.voxel_mm) * share * (value * cord_texture - image)
        distances[i] = distance.mean(dim=0)
    return image.mean(dim=0).numpy(), share.mean(dim=0).numpy(), distances.numpy()


def _window(axis: np.ndarray, low: float, high: float) -> slice:
    return slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high, side="right")))


def _ramp(axis: np.ndarray, inside: bool) -> np.ndarray:
    """1 in the middle, falling to 0 over BLEND_MM at both ends (unless the window ends with the scan itself)."""
    if not inside:
        return np.ones(len(axis), np.float32)
    edge = np.minimum(axis - axis[0], axis[-1] - axis)
    return np.clip(edge / BLEND_MM, 0, 1).astype(np.float32)
