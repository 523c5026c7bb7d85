"""A neck by vertebral level: cord with its butterfly of grey matter, dural sac, roots, bone and muscle, painted back to
front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from msfilm.phantom.facts import levels
from msfilm.phantom.fields import RandomField, capsule, coverage, radial

__all__ = ["Patient", "cord_distance", "draw_patient", "grey_matter_distance", "layers"]

COLUMNS = ("cord_ap", "cord_rl", "gm_fraction", "gm_rl", "gm_ap", "canal_ap", "canal_rl", "offset", "triangle")


@dataclass(frozen=True)
class Patient:
    """One neck. ``s`` is the distance in mm below the top of C1, x points to the right, y to the front; all lengths in
    mm.
    """

    table: np.ndarray  # (levels, columns): this patient's own values at the middle of each level
    middles_mm: np.ndarray  # (levels,) s at the middle of each level
    tops_mm: np.ndarray  # (levels,)
    curve: np.ndarray  # (6,) lordosis, its phase, kyphosis slope, sway, its phase, rotation (rad)
    cord_field: RandomField
    csf_field: RandomField
    muscle_field: RandomField
    disc_dryness: float
    fat_mm: float

    @cached_property
    def _spline(self) -> PchipInterpolator:
        ends = [self.tops_mm[0], *self.middles_mm, self.middles_mm[-1] + 16]
        return PchipInterpolator(ends, np.vstack([self.table[:1], self.table, self.table[-1:]]))

    def profile(self, s: np.ndarray) -> dict[str, Tensor]:
        """Sizes at depths ``s`` (n,), each a tensor (n, 1, 1), with ``gm_t`` the half-thickness of the grey matter."""
        values = self._spline(np.clip(s, self.tops_mm[0], self.middles_mm[-1]))
        names = (*COLUMNS, "gm_t")
        return {name: torch.as_tensor(values[:, i], dtype=torch.float32)[:, None, None] for i, name in enumerate(names)}

    def centre(self, s: np.ndarray) -> np.ndarray:
        """Cord centre (n, 2) at depths ``s``: neck lordosis and a little sideways sway."""
        lordosis, phase, slope, sway, sway_phase, _ = self.curve
        y = lordosis * np.cos(2 * np.pi * s / 190 + phase) + slope * (s - 80)
        x = sway * np.sin(2 * np.pi * s / 240 + sway_phase)
        return np.stack([x, y], axis=1)

    def level(self, s: float) -> str:
        """Name of the vertebral level at depth ``s``."""
        names = levels().index
        return str(names[int(np.clip(np.searchsorted(self.tops_mm, s, side="right") - 1, 0, len(names) - 1))])


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a neck. Spread between subjects: cord area 9 %, canal area 13 %, grey matter fraction .02 (ten spine-generic
    subjects).
    """
    facts = levels()
    area, canal = rng.normal(1.03, 0.085), rng.normal(1.08, 0.12)
    aspect, canal_aspect = np.exp(rng.normal(0, [0.03, 0.05]))
    area, canal = np.clip(area, 0.82, 1.25), np.clip(canal, 0.85, 1.4)
    table = facts[list(COLUMNS)].to_numpy(float, copy=True)
    # AP and RL scale together by the root of the area; the aspect trades one for the other.
    scale = {
        "cord_ap": area**0.5 / aspect,
        "cord_rl": area**0.5 * aspect,
        "gm_rl": area**0.5 * aspect,
        "gm_ap": area**0.5 / aspect,
        "canal_ap": canal**0.5 / canal_aspect,
        "canal_rl": canal**0.5 * canal_aspect,
    }
    for name, factor in scale.items():
        table[:, COLUMNS.index(name)] *= factor
    # The canal must hold the cord with room for fluid.
    for canal_name, cord_name in (("canal_ap", "cord_ap"), ("canal_rl", "cord_rl")):
        i, j = COLUMNS.index(canal_name), COLUMNS.index(cord_name)
        table[:, i] = np.maximum(table[:, i], table[:, j] + 3.6)
    table[:, COLUMNS.index("gm_fraction")] += np.clip(rng.normal(0, 0.012), -0.02, 0.025)
    thickness = np.array(
        [
            _gm_thickness(*row)
            for row in table[:, [COLUMNS.index(n) for n in ("gm_rl", "gm_ap", "gm_fraction", "cord_ap", "cord_rl")]]
        ]
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
        muscle_field=RandomField.draw(rng, 3.5, length_s_mm=25.0, terms=14),
        disc_dryness=float(rng.uniform(0, 1)),
        fat_mm=float(rng.uniform(4, 11)),
    )


def _gm_thickness(gm_rl: float, gm_ap: float, fraction: float, cord_ap: float, cord_rl: float) -> float:
    """Half-thickness (mm) that gives the butterfly its share of the cord's area, found by bisection on a 0.15 mm grid
    of one half.
    """
    step = 0.15
    x, y = torch.meshgrid(torch.arange(step / 2, 5.5, step), torch.arange(-3.5, 3.5, step), indexing="xy")
    low, high = 0.05, 1.6
    for _ in range(14):
        middle = (low + high) / 2
        area = coverage(grey_matter_distance(x, y, gm_rl, gm_ap, middle), step).sum().item() * 2 * step**2
        low, high = (middle, high) if area < fraction * np.pi / 4 * cord_ap * cord_rl else (low, middle)
    return middle


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
    dorsal = capsule(x, y, 0.42 * wide, 0.0, 0.72 * wide, -tall, 0.75 * half)
    return torch.minimum(torch.minimum(commissure, ventral), dorsal)


def layers(patient: Patient, s: np.ndarray, x: Tensor, y: Tensor, pixel_mm: float) -> Iterator[tuple[str, Tensor]]:
    """Paint the neck back to front.

    Args:
        patient: the neck.
        s: (n,) depth of each slice, mm below the top of C1.
        x, y: (n, h, w) position in mm relative to the cord's centre in that slice, x to the right, y to the front.
        pixel_mm: width over which an edge is shared between tissues.

    Yields:
        (tissue, share): each share (n, h, w) in 0..1 covers what was painted before. The first covers everything.
    """
    p = patient.profile(s)
    depth = torch.as_tensor(s, dtype=torch.float32)[:, None, None]
    angle = float(patient.curve[5])
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    side = x.abs()
    phase = torch.as_tensor(_phase(patient, s), dtype=torch.float32)[:, None, None]  # 0 mid-vertebra, 1 mid-disc

    def paint(distance: Tensor, width: float = pixel_mm) -> Tensor:
        return coverage(distance, width)

    front = -p["offset"]  # canal centre in front of the cord's centre
    yc = y - front
    half_ap, half_rl = p["canal_ap"] / 2, p["canal_rl"] / 2

    yield "muscle", torch.ones_like(x)
    streaks = patient.muscle_field(x, y, depth)
    yield (
        "fat",
        (((streaks - 1.35) * 0.9).clamp(0, 0.8) + (0.55 - 4.5 * (streaks + 0.4).abs()).clamp_min(0)).clamp_max(0.85),
    )  # lumps and septa
    # Skin, fat under it, and the airway: only the outer part of a scan sees them.
    skin = radial(x, y + 4, 60.0, 58.0)
    yield "fat", paint(skin.abs() - patient.fat_mm) * (skin < 0)
    yield "air", paint(-skin)
    yield "air", paint(radial(x, yc - half_ap - 34, 8.5, 6.5))
    for sign in (-1.0, 1.0):
        yield "blood", paint(capsule(x, y, sign * 24.0, half_ap + 14, sign * 24.5, half_ap + 14.5, 2.6))
    # Vertebra: body or disc, lateral masses, lamina, spinous process, each marrow in a shell of cortical bone.
    body_y = half_ap + 9.3
    body = radial(x, yc - body_y, 12.5, 8.0)
    yield "bone", paint(body)
    is_disc = ((phase - 0.78) / 0.10).clamp(0, 1)
    yield "marrow", paint(body + 0.9) * (1 - is_disc)
    yield "disc", paint(body + 0.6) * is_disc * (1 - 0.6 * patient.disc_dryness)
    lateral = radial(side - half_rl - 7.2, yc + 2.5, 6.3, 5.6)
    yield "bone", paint(lateral)
    yield "marrow", paint(lateral + 0.9)
    lamina = capsule(side, yc, half_rl + 3.0, -half_ap * 0.55, 0.0, -half_ap - 4.6, 2.3)
    arch = (1 - (phase - 0.55) / 0.15).clamp(0, 1)  # between two laminae lies ligament
    yield "ligament", paint(lamina)
    yield "bone", paint(lamina) * arch
    yield "marrow", paint(lamina + 0.9) * arch
    spinous = capsule(x, yc, 0.0, -half_ap - 5.5, 0.0, -half_ap - 22.0, 2.4)
    yield "bone", paint(spinous) * arch
    yield "marrow", paint(spinous + 0.9) * arch
    yield "fat", paint(spinous + 1.2) * (1 - arch) * 0.7
    yield "blood", paint(radial(side - half_rl - 5.5, yc - 3.2, 1.9, 1.9))  # vertebral arteries
    yield "fat", paint(radial(side - half_rl - 2.0, yc - 1.5, 3.0, 2.3)) * is_disc  # foramen

    # Canal: ligament and dura, epidural fat behind, then the sac.
    canal = radial(x, yc, half_rl, half_ap, p["triangle"])
    yield "ligament", paint(canal - 1.0)
    yield "fat", paint(canal)
    yield "ligament", paint(canal + 0.35)
    fluid = radial(x, yc - 0.25, half_rl - 0.9, half_ap - 0.95, p["triangle"])
    yield "csf", paint(fluid)
    sweep = torch.sin(depth * 0.35)
    for along, (x0, y0) in ((0.9, (0.42, -0.34)), (0.75, (0.40, 0.36))):  # dorsal and ventral rootlets
        x1 = p["cord_rl"] * x0 + (half_rl - 1.4 - p["cord_rl"] * x0) * along
        rootlet = capsule(
            side, y, p["cord_rl"] * x0, p["cord_ap"] * y0, x1, p["cord_ap"] * y0 * (0.8 + 0.3 * sweep) + 0.3, 0.28
        )
        yield "wm", paint(rootlet) * 0.55 * paint(fluid + 0.4)

    # Cord.
    cord = cord_distance(x, y, p)
    yield "wm", paint(cord)
    grey = grey_matter_distance(x, y, p["gm_rl"], p["gm_ap"], p["gm_t"])
    yield "gm", paint(grey) * paint(cord)
    fissure = capsule(x, y, 0.0, p["cord_ap"] * 0.52, 0.0, p["cord_ap"] * 0.27, 0.16)
    yield "csf", paint(fissure) * 0.8


def _phase(patient: Patient, s: np.ndarray) -> np.ndarray:
    """0 in the middle of a vertebra, 1 in the middle of a disc."""
    edges = np.append(patient.tops_mm, patient.middles_mm[-1] + 16)
    index = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, len(patient.tops_mm) - 1)
    inside = (s - edges[index]) / (edges[index + 1] - edges[index])
    return np.clip(np.abs(2 * inside - 1), 0, 1)
