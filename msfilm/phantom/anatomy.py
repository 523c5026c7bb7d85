"""Who a patient is: cord, grey matter and canal along a curved spine, C1 to T12; shapes of cord and grey matter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from msfilm.phantom.facts import levels
from msfilm.phantom.fields import RandomField, capsule, coverage, radial

__all__ = ["Patient", "Points", "cord_distance", "draw_patient", "grey_matter_distance"]

COLUMNS = (
    "cord_ap",
    "cord_rl",
    "gm_fraction",
    "gm_rl",
    "gm_ap",
    "canal_ap",
    "canal_rl",
    "offset",
    "triangle",
    "body_rl",
    "body_ap",
)
STEP_MM = 0.5  # of the table that profiles are read from


@dataclass(frozen=True)
class Points:
    """Where the rows and columns of a batch of thin slices lie in a patient, in mm.

    A slice may be tilted about the left-right axis, so depth belongs to the row. Everything is relative to the cord:
    x to the right, y to the front.
    """

    columns: Tensor  # (w,) x in the scanner
    shift: Tensor  # (n, h, 1) x of the cord's centre
    y: Tensor  # (n, h, 1)
    s: Tensor  # (n, h, 1) depth below the top of C1, along the cord: the same for a vertebra's front and back
    profile: dict[str, Tensor]  # sizes, each (n, h, 1)

    @cached_property
    def x(self) -> Tensor:
        """(n, h, w)."""
        return self.columns - self.shift

    def field(self, field: RandomField) -> Tensor:
        """Values (n, h, w) of a random field."""
        return field(self.columns, self.shift, self.y, self.s)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, h, w)."""
        return (*self.y.shape[:2], len(self.columns))


@dataclass(frozen=True)
class Patient:
    """One spine. ``s`` is the distance in mm below the top of C1, x points to the right, y to the front; all lengths in
    mm.
    """

    table: np.ndarray  # (levels, columns): this patient's own values at the middle of each level
    middles_mm: np.ndarray  # (levels,) s at the middle of each level
    tops_mm: np.ndarray  # (levels,)
    curve: np.ndarray  # (6,) lordosis, its phase, kyphosis slope, sway, its phase, rotation (rad)
    cord_field: RandomField
    csf_field: RandomField
    muscle_field: RandomField
    septa_field: RandomField
    marrow_field: RandomField
    fat_field: RandomField
    disc_dryness: float
    fat_mm: float  # under the skin
    infiltration: float  # fat within and between the muscles, 0..
    roots_mm: float  # where along the cord the rootlets leave
    vessel: np.ndarray  # (3, 2) angle (rad) and radius (mm) of vessels on the cord's surface

    @property
    def bottom_mm(self) -> float:
        """Depth of the lower end of T12."""
        return float(2 * self.middles_mm[-1] - self.tops_mm[-1])

    @cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Depths and all that depends on depth alone: sizes, cord centre, slope, phase within a vertebra."""
        ends = [self.tops_mm[0], *self.middles_mm, self.middles_mm[-1] + 16]
        spline = PchipInterpolator(ends, np.vstack([self.table[:1], self.table, self.table[-1:]]))
        s = np.arange(-60, self.bottom_mm + 60, STEP_MM)
        values = spline(np.clip(s, self.tops_mm[0], self.middles_mm[-1]))
        centre = self.centre(s)
        slope = np.gradient(centre[:, 1], STEP_MM)
        edges = np.append(self.tops_mm, self.bottom_mm)
        index = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, len(self.tops_mm) - 1)
        phase = np.clip(np.abs(2 * (s - edges[index]) / (edges[index + 1] - edges[index]) - 1), 0, 1)
        thorax = np.clip((s - self.tops_mm[7]) / 45, 0, 1)  # 0 in the neck, 1 from T2 or T3 down
        return s, np.column_stack([values, slope, phase, thorax])

    def profile(self, s: np.ndarray) -> dict[str, np.ndarray]:
        """Sizes at depths ``s``, in its shape: ``COLUMNS``, ``gm_t`` (half-thickness of the grey matter), ``slope``
        (dy/ds of the cord), ``phase`` (0 mid-vertebra, 1 mid-disc) and ``thorax`` (0 neck .. 1 chest).
        """
        depths, values = self._lookup
        place = np.clip((np.asarray(s) - depths[0]) / STEP_MM, 0, len(depths) - 1.001)
        low = place.astype(np.int64)
        part = (place - low)[..., None]
        rows = values[low] * (1 - part) + values[low + 1] * part
        return {name: rows[..., i] for i, name in enumerate((*COLUMNS, "gm_t", "slope", "phase", "thorax"))}

    def centre(self, s: np.ndarray) -> np.ndarray:
        """Cord centre (..., 2) at depths ``s``: neck lordosis, chest kyphosis and a little sideways sway."""
        lordosis, phase, slope, sway, sway_phase, _ = self.curve
        s = np.asarray(s, dtype=float)
        y = lordosis * np.cos(2 * np.pi * s / 190 + phase) + slope * (s - 80)
        y = y - 14 * (1 - np.cos(np.pi * np.clip((s - 130) / 220, 0, 1)))  # the chest's kyphosis sets in below C7
        x = sway * np.sin(2 * np.pi * s / 240 + sway_phase)
        return np.stack([x, y], axis=-1)

    def points(self, columns: np.ndarray, y: np.ndarray, s: np.ndarray, device=None) -> Points:
        """Points of thin slices.

        Args:
            columns: (w,) x in the scanner, mm.
            y: (n, h) y in the scanner, mm.
            s: (n, h) depth below the top of C1, mm.
            device: of the tensors.
        """
        centre = self.centre(s)
        y = y - centre[..., 1]
        p = self.profile(s)
        # A vertebra stands at right angles to the cord: what lies in front of it is, along the cord, higher or lower.
        along = s + np.clip(p["slope"], -0.6, 0.6) * np.clip(y, -30, 30)
        p["phase"] = self.profile(along)["phase"]

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32), device=device)[..., None]

        return Points(
            torch.as_tensor(np.asarray(columns, dtype=np.float32), device=device),
            tensor(centre[..., 0]),
            tensor(y / np.sqrt(1 + p["slope"] ** 2)),  # as seen at right angles to the cord
            tensor(s),
            {name: tensor(values) for name, values in p.items()},
        )

    def level(self, s: float) -> str:
        """Name of the vertebral level at depth ``s``."""
        names = _level_names()
        return str(names[int(np.clip(np.searchsorted(self.tops_mm, s, side="right") - 1, 0, len(names) - 1))])


@cache
def _level_names() -> tuple[str, ...]:
    return tuple(levels().index)


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a spine. Spread between subjects: cord area 9 %, canal area 13 %, grey matter fraction .02 (ten
    spine-generic subjects).
    """
    facts = levels()
    area, canal = rng.normal(1.0, 0.07), rng.normal(1.1, 0.12)
    aspect, canal_aspect = np.exp(rng.normal(0, [0.018, 0.05]))
    area, canal = np.clip(area, 0.86, 1.2), np.clip(canal, 0.85, 1.4)
    table = facts[list(COLUMNS)].to_numpy(float, copy=True)
    # AP and RL scale together by the root of the area; the aspect trades one for the other.
    scale = {
        "cord_ap": area**0.5 / aspect,
        "cord_rl": area**0.5 * aspect,
        "gm_rl": area**0.5 * aspect,
        "gm_ap": area**0.5 / aspect,
        "canal_ap": canal**0.5 / canal_aspect,
        "canal_rl": canal**0.5 * canal_aspect * 1.06,  # ten people: 21.3 mm where the template has 19
    }
    for name, factor in scale.items():
        table[:, COLUMNS.index(name)] *= factor
    # The canal must hold the cord with room for fluid.
    for canal_name, cord_name in (("canal_ap", "cord_ap"), ("canal_rl", "cord_rl")):
        i, j = COLUMNS.index(canal_name), COLUMNS.index(cord_name)
        table[:, i] = np.maximum(table[:, i], table[:, j] + 3.6)
    table[:, COLUMNS.index("gm_fraction")] += np.clip(rng.normal(0.006, 0.012), -0.012, 0.03)
    thickness = _gm_thickness(
        *table[:, [COLUMNS.index(n) for n in ("gm_rl", "gm_ap", "gm_fraction", "cord_ap", "cord_rl")]].T
    )
    stretch = np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)
    heights = facts["height_mm"].to_numpy(float) * stretch
    tops = np.concatenate([[0.0], np.cumsum(heights)[:-1]])
    curve = np.array(
        [
            rng.normal(4, 2),
            rng.normal(0.3, 0.4),
            rng.normal(0, 0.04),
            rng.normal(0, 1.5),
            rng.uniform(0, 6.28),
            rng.normal(0, 0.05),
        ]
    )
    return Patient(
        table=np.column_stack([table, thickness]),
        middles_mm=tops + heights / 2,
        tops_mm=tops,
        curve=curve,
        cord_field=RandomField.draw(rng, 3.0, length_s_mm=9.0),
        csf_field=RandomField.draw(rng, 2.2, length_s_mm=6.0),
        muscle_field=RandomField.draw(rng, 4.5, length_s_mm=25.0, terms=14),
        septa_field=RandomField.draw(rng, 14.0, length_s_mm=30.0, terms=8),
        marrow_field=RandomField.draw(rng, 2.5, length_s_mm=5.0),
        fat_field=RandomField.draw(rng, 3.0, length_s_mm=9.0, terms=12),
        disc_dryness=float(rng.uniform(0, 1)),
        fat_mm=float(rng.uniform(4, 11)),
        infiltration=float(rng.uniform(0.1, 0.9)),
        roots_mm=float(rng.uniform(0, 17)),
        vessel=np.column_stack([rng.normal([np.pi / 2, -1.57, -1.9], [0.15, 0.35, 0.6]), rng.uniform(0.3, 0.6, 3)]),
    )


def _gm_thickness(gm_rl, gm_ap, fraction, cord_ap, cord_rl) -> np.ndarray:
    """Half-thickness (mm) that gives the butterfly its share of the cord's area at each level, found by bisection on a
    0.15 mm grid of one half. All (levels,).
    """
    step = 0.15
    x, y = torch.meshgrid(torch.arange(step / 2, 5.5, step), torch.arange(-3.5, 3.5, step), indexing="xy")
    rl, ap = (torch.as_tensor(v, dtype=torch.float32)[:, None, None] for v in (gm_rl, gm_ap))
    wanted = fraction * np.pi / 4 * cord_ap * cord_rl / (2 * step**2)  # in pixels of the half
    low, high = np.full(len(gm_rl), 0.05), np.full(len(gm_rl), 1.6)
    for _ in range(10):
        middle = (low + high) / 2
        half = torch.as_tensor(middle, dtype=torch.float32)[:, None, None]
        area = coverage(grey_matter_distance(x, y, rl, ap, half), step).sum(dim=(1, 2)).double().numpy()
        low, high = np.where(area < wanted, middle, low), np.where(area < wanted, high, middle)
    return (low + high) / 2


def cord_distance(x: Tensor, y: Tensor, profile: dict[str, Tensor]) -> Tensor:
    """Signed distance (mm) to the cord's surface; x, y relative to the cord's centre. Flattened in front, with the area
    of its ellipse.
    """
    return radial(x, y, profile["cord_rl"] / 2, profile["cord_ap"] / 2, triangle=0.025)


def grey_matter_distance(x: Tensor, y: Tensor, gm_rl, gm_ap, half) -> Tensor:
    """Signed distance (mm) to the butterfly: commissure, broad ventral horns, slender dorsal horns reaching back and
    out.
    """
    x, y = x.abs(), y - 0.15  # left and right alike; the butterfly sits a little in front of the centre
    wide, tall = gm_rl / 2 - half, gm_ap / 2 - half
    commissure = capsule(x, y, 0.0, 0.0, 0.4 * wide, 0.0, 0.65 * half)
    ventral = capsule(x, y, 0.42 * wide, 0.05 * tall, 0.86 * wide, 0.72 * tall, 1.15 * half)
    dorsal = capsule(x, y, 0.42 * wide, 0.0, 0.78 * wide, -1.12 * tall, 0.62 * half)
    return torch.minimum(torch.minimum(commissure, ventral), dorsal)
