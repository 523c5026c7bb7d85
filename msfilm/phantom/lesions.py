"""Where lesions sit, how long, how wide and how strong they are; each a shape with a signed distance in mm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msfilm.phantom.anatomy import Patient, Points, cord_distance

__all__ = ["REACH_MM", "Lesion", "draw_lesions", "lesion_distance"]

REACH_MM = 1.5  # signed distances are cut off here, inside and out: no rater strays further from the border

# Kearney (abstract): 59 % lateral, 35 % posterior, 6 % anterior; mean area 8.5, 11.3, 4.3 mm2; mean length 17.6, 24.8,
# 18.3 mm.
SITES = {
    "lateral": (0.59, 0.95, 0.95),
    "posterior": (0.35, 1.25, 1.25),
    "anterior": (0.06, 0.5, 1.0),
}  # share, area and length factors
# 60 % of focal lesions lie at C3-C5 (abstract); the rest is spread over the neighbours.
LEVEL_WEIGHTS = {
    "C1": 0.05,
    "C2": 0.12,
    "C3": 0.21,
    "C4": 0.22,
    "C5": 0.17,
    "C6": 0.10,
    "C7": 0.07,
    "T1": 0.03,
    "T2": 0.03,
}
CHEST_MEAN = 0.9  # lesions below T2 of a patient who has any (no number for it was found; fewer than in the neck)


@dataclass(frozen=True)
class Lesion:
    """One lesion: a wedge-like blob on the cord's edge, tapering along the cord. Lengths in mm."""

    s_mm: float  # middle, mm below the top of C1
    length_mm: float
    site: str
    kind: str  # row of the tissue table it mixes towards: lesion, lesion_mild (diffuse), lesion_acute
    strength: float  # 0 white matter .. 1 pure lesion
    edge_mm: float  # width of the soft border
    angle: float  # direction from the cord's centre, radians, 0 = right, pi/2 = front
    radial_mm: float  # semi-axis along that direction
    across_mm: float  # semi-axis across it
    depth: float  # how far inside the surface the centre lies, in units of radial_mm
    ripples: tuple[tuple[float, float], ...]  # (cos, sin) of harmonics 2..4 of the outline


def draw_lesions(rng: np.random.Generator, patient: Patient, *, free_share: float = 0.2) -> list[Lesion]:
    """Draw a patient's lesions: none in ``free_share`` of patients, else 1 + NB(r 1.6, mean 2.2) in the neck and a few
    in the chest; 10 % diffuse.
    """
    if rng.uniform() < free_share:
        return []
    count = 1 + int(rng.negative_binomial(1.6, 1.6 / (1.6 + 2.2)))
    neck = [_draw_lesion(rng, patient, _neck_depth(rng, patient)) for _ in range(count)]
    chest = [
        _draw_lesion(rng, patient, rng.uniform(patient.tops_mm[9], patient.bottom_mm))
        for _ in range(rng.poisson(CHEST_MEAN))
    ]
    return neck + chest


def _neck_depth(rng: np.random.Generator, patient: Patient) -> float:
    weights = np.array(list(LEVEL_WEIGHTS.values()))
    level = int(rng.choice(len(weights), p=weights / weights.sum()))
    return rng.uniform(patient.tops_mm[level], patient.tops_mm[level + 1])


def _draw_lesion(rng: np.random.Generator, patient: Patient, s_mm: float) -> Lesion:
    names = list(SITES)
    site = names[int(rng.choice(3, p=[SITES[n][0] for n in names]))]
    _, area_factor, length_factor = SITES[site]
    area = np.clip(rng.lognormal(np.log(9), 0.55) * area_factor, 2, 35)
    length = np.clip(rng.lognormal(np.log(15), 0.55) * length_factor, 5, 60)
    kind, low, high = "lesion", 0.4, 1.0
    if rng.uniform() < 0.10:
        kind, low, area, length = "lesion_mild", 0.7, np.clip(area * 2, 10, 35), np.clip(length * 2, 20, 60)
    elif rng.uniform() < 0.15:
        kind, high = "lesion_acute", 0.75
    angle = {
        "lateral": rng.choice([0.0, np.pi]) + rng.normal(0, 0.35),
        "posterior": -np.pi / 2 + rng.normal(0, 0.35),
        "anterior": np.pi / 2 + rng.normal(0, 0.45),
    }[site]
    # The part outside the cord is cut off: about a third at this depth, so the whole ellipse is half as large again.
    depth = rng.uniform(0.35, 0.9)
    aspect = np.exp(rng.normal(0.1, 0.3))
    widest = np.clip(1.35 * area, 2, 35)  # the taper towards both ends leaves .72 of it on average
    whole = widest * (1.75 - 0.7 * depth)
    return Lesion(
        s_mm=float(s_mm),
        length_mm=float(length),
        site=site,
        kind=kind,
        strength=float(np.clip(rng.beta(3.2, 1.6), low, high)),
        edge_mm=float(rng.uniform(0.3, 0.5)),
        angle=float(angle),
        radial_mm=float(np.sqrt(whole / np.pi / aspect)),
        across_mm=float(np.sqrt(whole / np.pi * aspect)),
        depth=float(depth),
        ripples=tuple((float(a), float(b)) for a, b in rng.normal(0, [[0.07], [0.05], [0.035]], (3, 2))),
    )


def lesion_distance(lesion: Lesion, patient: Patient, points: Points) -> Tensor:
    """Signed distance (mm, negative inside, cut off at +-REACH_MM) to a lesion within the cord.

    Args:
        lesion, patient: what and in whom.
        points: (n, h, w) positions.

    Returns:
        (n, h, w); where the lesion does not reach a row, +REACH_MM.
    """
    p = points.profile
    angle = float(patient.curve[5])
    u = math.cos(angle) * points.x - math.sin(angle) * points.y
    v = math.sin(angle) * points.x + math.cos(angle) * points.y
    cosine, sine = math.cos(lesion.angle), math.sin(lesion.angle)
    surface = 1 / ((2 * cosine / p["cord_rl"]) ** 2 + (2 * sine / p["cord_ap"]) ** 2).sqrt()
    along = u * cosine + v * sine - (surface - lesion.depth * lesion.radial_mm).clamp_min(0)
    across = v * cosine - u * sine
    size = (1 - (2 * (points.s - lesion.s_mm) / lesion.length_mm) ** 2).clamp(0, 1) ** 0.4
    a, b = lesion.radial_mm * size.clamp_min(0.05), lesion.across_mm * size.clamp_min(0.05)
    r = torch.hypot(along, across).clamp_min_(1e-4)
    radius = r / torch.hypot(along / a, across / b).clamp_min_(1e-4)
    c1, s1 = along / r, across / r
    wave, c, s = 1.0, c1, s1
    for cos_k, sin_k in lesion.ripples:  # harmonics 2, 3, 4 by the angle-addition formulas
        c, s = c * c1 - s * s1, s * c1 + c * s1
        wave = wave + (cos_k * c + sin_k * s)
    distance = torch.maximum(r - radius * wave, cord_distance(u, v, p))
    return torch.where(size > 0, distance, REACH_MM).clamp_(-REACH_MM, REACH_MM)
