"""One scan of one patient before the scanner: the anatomy on the scan's grid with each voxel's partial volume, and the
true masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from msfilm.phantom.anatomy import Patient, Points
from msfilm.phantom.fields import coverage
from msfilm.phantom.lesions import REACH_MM, Lesion, lesion_distance
from msfilm.phantom.tissue import canal, canal_outline, surroundings, susceptibility

__all__ = ["CleanScan", "ScanPlan", "render"]

CROP_MM, CROP_PIXELS = 18.5, 12  # what the 36 mm crop can reach, and a margin in pixels for the blur of k-space
CORD_TEXTURE = 0.03  # spread of the signal within white matter at a scale of 2 to 3 mm
BAND_MM = 15.0
CHUNK = 100_000  # values in one batch: small enough for the processor's cache


@dataclass(frozen=True)
class ScanPlan:
    """Where a scan's voxels lie. Arrays are (Z, H, W): z upwards, rows to the front, columns to the right."""

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]  # along z, rows, columns
    centre_mm: tuple[float, float, float]  # x, y, z of the middle; z = 0 at the top of C1
    tilt_deg: float = 0.0  # about the left-right axis
    plane: str = "axial"  # or sagittal: the slices' normal is z or the column axis

    def columns(self) -> np.ndarray:
        """(W,) x in mm."""
        return self.centre_mm[0] + (np.arange(self.shape[2]) - (self.shape[2] - 1) / 2) * self.voxel_mm[2]

    def rows(self, z_shift_mm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """y and depth s (Z, H) in mm of every row's centre, ``z_shift_mm`` above it along the slices' normal."""
        angle = np.deg2rad(self.tilt_deg)
        w = ((np.arange(self.shape[0]) - (self.shape[0] - 1) / 2) * self.voxel_mm[0] + z_shift_mm)[:, None]
        v = ((np.arange(self.shape[1]) - (self.shape[1] - 1) / 2) * self.voxel_mm[1])[None, :]
        y = self.centre_mm[1] + v * np.cos(angle) - w * np.sin(angle)
        return y, -(self.centre_mm[2] + v * np.sin(angle) + w * np.cos(angle))

    def affine(self) -> np.ndarray:
        """(4, 4) canonical voxel (x, y, z) -> mm."""
        angle = np.deg2rad(self.tilt_deg)
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        affine = np.eye(4)
        affine[:3, :3] = turn * np.array(self.voxel_mm[::-1])
        affine[:3, 3] = np.array(self.centre_mm) - affine[:3, :3] @ ((np.array(self.shape[::-1]) - 1) / 2)
        return affine

    def shifts(self, most: int = 3) -> list[tuple[float, float]]:
        """Thin slices that a thick one is the mean of: shifts (z, x) in mm, 1 mm apart or more."""
        thick = self.voxel_mm[0] if self.plane == "axial" else self.voxel_mm[2]
        count = int(np.clip(round(thick), 1, most))
        offsets = thick * ((np.arange(count) + 0.5) / count - 0.5)
        return [(o, 0.0) if self.plane == "axial" else (0.0, o) for o in offsets.tolist()]


@dataclass(frozen=True)
class CleanScan:
    """A scan before the scanner: noise-free signal and everything that is known about it."""

    signal: Tensor  # (Z, h, w) white matter = 1, in ``window``
    window: tuple[slice, slice]  # rows and columns of the scan that were rendered
    box: tuple[slice, slice]  # rows and columns of the scan that hold the cord
    cord: np.ndarray  # (Z, H, W) bool, at least half of the voxel is cord
    grey: np.ndarray  # (Z, H, W) bool, at least half of the voxel is grey matter
    canal: np.ndarray  # (Z, H, W) bool, at least half of the voxel is cord or the fluid round it
    levels_mm: np.ndarray  # (Z,) depth of each slice at the cord
    distances: np.ndarray  # (L, Z, h, w) float32 signed distance (mm) to each lesion, in the box
    positions: Points  # of the box

    @property
    def truth(self) -> np.ndarray:
        """(Z, H, W) bool true lesion mask."""
        mask = np.zeros(self.cord.shape, bool)
        if len(self.distances):
            mask[:, self.box[0], self.box[1]] = (self.distances < 0).any(axis=0)
        return mask

    def cnr(self, snr: float) -> np.ndarray:
        """(L,) contrast-to-noise of each lesion: mean in the lesion minus mean of the healthy cord on its slices, over
        the noise. 0 for a lesion that the scan does not hold.
        """
        if not len(self.distances):
            return np.zeros(0)
        rows, columns = self.box
        first_row, first_column = self.window[0].start, self.window[1].start
        signal = self.signal[:, rows.start - first_row : rows.stop - first_row]
        signal = signal[:, :, columns.start - first_column : columns.stop - first_column].cpu().numpy()
        inside = self.distances < 0
        healthy = self.cord[:, rows, columns] & ~inside.any(axis=0)
        values = []
        for mask in inside:
            slices = mask.any(axis=(1, 2))
            around = healthy[slices]
            usable = slices.any() and around.any()
            values.append((signal[mask].mean() - signal[slices][around].mean()) * snr if usable else 0.0)
        return np.array(values)


@torch.no_grad()
def render(
    patient: Patient,
    lesions: list[Lesion],
    signal: dict[str, float],
    plan: ScanPlan,
    *,
    crop_only: bool = False,
    te_ms: float = 0.0,
    flow: float = 0.16,
    device: str | torch.device | None = None,
) -> CleanScan:
    """Sample the anatomy on a scan's grid.

    Each voxel is the mean of thin slices through it (``ScanPlan.shifts``), and within a thin slice an edge is shared
    between tissues by the width of a pixel: partial volume along all three axes, in tilted slices of a curved spine.

    Args:
        patient, lesions: who.
        signal: of each tissue, white matter = 1 (``msfilm.phantom.physics.signals``).
        plan: the grid.
        crop_only: only the rows and columns near the cord that a crop can show.
        te_ms: echo time over which a gradient echo loses signal near air and bone; 0 for spin echo.
        flow: share of CSF signal that flow takes away in places (below 0: inflow that adds some).
        device: where to compute.
    """
    y, s = plan.rows()
    columns = plan.columns()
    whole = patient.points(columns, y, s)
    relative_y, shift = whole.y[..., 0].numpy(), whole.shift[..., 0].numpy()
    p = whole.profile
    near = np.abs(relative_y) < 12  # rows that may hold cord

    def window(reach_y: float, reach_x: float) -> tuple[slice, slice]:
        rows = np.flatnonzero((np.abs(relative_y) <= reach_y).any(axis=0))
        low, high = (shift[near].min(), shift[near].max()) if near.any() else (0.0, 0.0)
        inside = np.flatnonzero((columns >= low - reach_x) & (columns <= high + reach_x))
        if not len(rows) or not len(inside):
            return slice(0, 0), slice(0, 0)
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(inside[0]), int(inside[-1]) + 1)

    half_rl, half_ap = float(p["canal_rl"].max()) / 2, float(p["canal_ap"].max()) / 2
    reach = CROP_MM + CROP_PIXELS * plan.voxel_mm[1]
    outer = window(reach, reach) if crop_only else (slice(0, plan.shape[1]), slice(0, plan.shape[2]))
    middle = window(half_ap + 3.5, half_rl + 3.0)
    box = window(float(p["cord_ap"].max()) / 2 + REACH_MM + 2.5, float(p["cord_rl"].max()) / 2 + REACH_MM + 1.5)
    depth = plan.shape[0]
    image = torch.empty(depth, outer[0].stop - outer[0].start, outer[1].stop - outer[1].start, device=device)
    cord, grey, sac = (np.zeros(plan.shape, bool) for _ in range(3))
    size = (box[0].stop - box[0].start, box[1].stop - box[1].start)
    distances = torch.full((len(lesions), depth, *size), REACH_MM, device=device)
    shifts = plan.shifts()
    pixel = plan.voxel_mm[1], plan.voxel_mm[2] / (len(shifts) if plan.plane == "sagittal" else 1)
    pixel_mm = float(np.mean(pixel))

    def points(part: slice, rows: slice, cols: slice, chosen: list[tuple[float, float]]) -> Points:
        """Rows of several thin slices of each slice in ``part``: (len(part) * len(chosen), h, w)."""
        grids = [plan.rows(z_shift) for z_shift, _ in chosen]
        ys, ss = (np.stack([grid[i][part, rows] for grid in grids], axis=1) for i in (0, 1))
        n = ys.shape[0] * ys.shape[1]
        found = patient.points(columns[cols], ys.reshape(n, -1), ss.reshape(n, -1), device)
        if plan.plane == "axial" or len(chosen) == 1:
            return found
        sideways = torch.tensor([x for _, x in chosen], device=device).repeat(ys.shape[0])[:, None, None]
        return Points(found.columns, found.shift - sideways, found.y, found.s, found.profile)

    # Bone and muscle change slowly along the spine: an axial slice's thickness is reckoned with in their formulas.
    coarse = [(0.0, 0.0)] if plan.plane == "axial" else plan.shifts(2)
    thick_mm = plan.voxel_mm[0]
    values = {tissue: torch.tensor(value, dtype=torch.float32, device=device) for tissue, value in signal.items()}
    values["root"] = values["wm"]
    for rows in _bands(outer[0], BAND_MM / plan.voxel_mm[1]):  # what is far from a band of rows is passed over
        band = slice(rows.start - outer[0].start, rows.stop - outer[0].start)
        for part in _chunks(depth, len(coarse) * (rows.stop - rows.start) * image.shape[2]):
            where = points(part, rows, outer[1], coarse)
            image[part, band] = _mean(_paint_surroundings(patient, where, values, pixel_mm, thick_mm), len(coarse))
    in_window = tuple(slice(m.start - o.start, m.stop - o.start) for m, o in zip(middle, outer, strict=True))
    in_middle = tuple(slice(b.start - m.start, b.stop - m.start) for b, m in zip(box, middle, strict=True))
    middle_size = (middle[0].stop - middle[0].start) * (middle[1].stop - middle[1].start)
    for part in _chunks(depth, len(shifts) * middle_size) if middle_size and size[0] * size[1] else ():
        where = points(part, *middle, shifts)
        painted, covered, (cord_share, grey_share, sac_share) = _paint_canal(patient, where, values, pixel_mm, flow)
        inner = points(part, *box, shifts)
        patch = (slice(None), *in_middle)
        texture = 1 + CORD_TEXTURE * inner.field(patient.cord_field)
        for i, lesion in enumerate(lesions):
            reach = lesion.length_mm / 2 + 1.0
            touched = ((inner.s - lesion.s_mm).abs() < reach).flatten(1).any(dim=1)  # thin slices that it may reach
            by_slice = touched.view(-1, len(shifts)).any(dim=1)
            if not by_slice.any():
                continue
            chosen = by_slice.repeat_interleave(len(shifts))
            few = _select(inner, chosen)
            distance = lesion_distance(lesion, patient, few)
            distances[i, part][by_slice] = _mean(distance, len(shifts))
            value = torch.lerp(values[f"lesion-{i}-wm"], values[f"lesion-{i}-gm"], grey_share[patch][chosen])
            # Strongest in the middle: real lesions are graded.
            weight = coverage(distance, lesion.edge_mm + pixel_mm) * (0.88 - distance * 0.15).clamp_(0.88, 1)
            weight *= cord_share[patch][chosen]
            kept = painted[patch]
            kept[chosen] = torch.lerp(kept[chosen], value * texture[chosen], weight)
        under = image[part][(slice(None), *in_window)]
        image[(part, *in_window)] = under * (1 - _mean(covered, len(shifts))) + _mean(painted, len(shifts))
        for mask, share in ((cord, cord_share), (grey, grey_share), (sac, sac_share)):
            mask[(part, *middle)] = (_mean(share, len(shifts)) >= 0.5).cpu().numpy()
    if te_ms:
        for part in _chunks(depth, image.shape[1] * image.shape[2]):
            image[part] *= torch.exp(-te_ms * susceptibility(patient, points(part, *outer, [(0.0, 0.0)])))
    positions = patient.points(columns[box[1]], y[:, box[0]], s[:, box[0]])
    nearest = np.abs(relative_y).argmin(axis=1)
    depths = s[np.arange(depth), nearest]
    return CleanScan(image, outer, box, cord, grey, sac, depths, distances.cpu().numpy(), positions)


def _paint_surroundings(
    patient: Patient, where: Points, values: dict[str, Tensor], pixel_mm: float, thick_mm: float
) -> Tensor:
    """(n, h, w) signal of everything but the canal."""
    grain = 1 + 0.08 * where.field(patient.marrow_field)
    layers = surroundings(patient, where, pixel_mm, thick_mm)
    tissue, _ = next(layers)
    image = values[tissue] * (1 + 0.09 * where.field(patient.fat_field))  # fibres
    for tissue, share in layers:
        value = values[tissue] * grain if tissue == "marrow" else values[tissue]
        image = image.lerp_(value, share)
    return image


def _paint_canal(patient: Patient, where: Points, values: dict[str, Tensor], pixel_mm: float, flow: float):
    """Canal over nothing: signal times share; share covered; shares of cord, grey matter and sac; each (n, h, w)."""
    outline = canal_outline(patient, where)
    covered = coverage(outline, pixel_mm)
    cord_texture = 1 + CORD_TEXTURE * where.field(patient.cord_field)
    csf_texture = 1 - flow * (where.field(patient.csf_field) - 0.3).clamp_min(0)
    textures = {"wm": cord_texture, "gm": cord_texture, "csf": csf_texture}
    image = torch.zeros(where.shape, device=covered.device)
    shares = {}
    for tissue, share in canal(patient, where, pixel_mm, outline):
        image = image.lerp_(values[tissue] * textures[tissue] if tissue in textures else values[tissue], share)
        shares.setdefault(tissue, share)  # the first fluid is the whole sac
    return image, covered, (shares["wm"], shares["gm"], shares["csf"])


def _mean(values: Tensor, count: int) -> Tensor:
    """Mean over the thin slices of each slice: (n * count, h, w) -> (n, h, w)."""
    return values if count == 1 else values.view(-1, count, *values.shape[1:]).mean(dim=1)


def _select(points: Points, chosen: Tensor) -> Points:
    profile = {name: value[chosen] for name, value in points.profile.items()}
    return Points(points.columns, points.shift[chosen], points.y[chosen], points.s[chosen], profile)


def _bands(rows: slice, height: float) -> list[slice]:
    """``rows`` cut into bands of about ``height``."""
    count = max(1, round((rows.stop - rows.start) / height))
    edges = np.linspace(rows.start, rows.stop, count + 1).round().astype(int).tolist()
    return [slice(low, high) for low, high in pairwise(edges)]


def _chunks(depth: int, values_each: int) -> list[slice]:
    step = max(1, CHUNK // max(values_each, 1))
    return [slice(start, min(start + step, depth)) for start in range(0, depth, step)]
