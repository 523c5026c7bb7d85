"""Shapes as signed distances and smooth random fields: the two things the phantom is drawn with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomField", "capsule", "coverage", "radial"]


def coverage(distance: Tensor, width: float | Tensor) -> Tensor:
    """Share of a pixel of ``width`` mm that lies inside a shape whose signed distance at its centre is ``distance`` mm
    (negative inside).

    Exact for a straight edge parallel to the pixel; this is the in-plane partial volume of a box-shaped pixel.
    """
    return (0.5 - distance / width).clamp(0, 1)


def radial(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, triangle: Tensor | float = 0.0) -> Tensor:
    """Signed distance along the radius to an ellipse with semi-axes ``a``, ``b`` (mm), pulled towards a triangle with
    its tip at -y.

    ``triangle`` adds that share of the radius at 30, 150 and 270 degrees and takes it away between (third harmonic).
    """
    r = (x * x + y * y).sqrt().clamp_min(1e-4)
    f = ((x / a) ** 2 + (y / b) ** 2).sqrt().clamp_min(1e-4)
    radius = r / f
    sine = y / r
    return r - radius * (1 + triangle * (3 * sine - 4 * sine**3))


def capsule(x: Tensor, y: Tensor, x0, y0, x1, y1, radius) -> Tensor:
    """Signed distance (mm) to a line from (x0, y0) to (x1, y1) thickened by ``radius``."""
    dx, dy = x1 - x0, y1 - y0
    along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    return ((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2).sqrt() - radius


@dataclass(frozen=True)
class RandomField:
    """A smooth random function of position with mean 0 and variance 1: a sum of random cosines.

    Being a formula and not an array, it has a value anywhere, so two scans of one patient on two grids see the same
    tissue.
    """

    waves: np.ndarray  # (K, 3) radians per mm along x, y, s
    phases: np.ndarray  # (K,)

    @staticmethod
    def draw(
        rng: np.random.Generator, length_mm: float, *, length_s_mm: float | None = None, terms: int = 10
    ) -> RandomField:
        """Draw a field whose details are about ``length_mm`` large in the plane and ``length_s_mm`` along the cord."""
        scale = np.array([1 / length_mm, 1 / length_mm, 1 / (length_s_mm or length_mm)])
        return RandomField(rng.normal(size=(terms, 3)) * 1.5 * scale, rng.uniform(0, 2 * np.pi, terms))

    def __call__(self, x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Value at ``x``, ``y`` (n, h, w) and ``s`` (n, 1, 1), all in mm."""
        total = torch.zeros_like(x)
        for (wx, wy, ws), phase in zip(self.waves.tolist(), self.phases.tolist(), strict=True):
            total += torch.cos(wx * x + wy * y + (ws * s + phase))
        return total * (2 / len(self.phases)) ** 0.5
