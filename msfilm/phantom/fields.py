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
    if isinstance(width, Tensor):
        return (0.5 - distance / width).clamp_(0, 1)
    return torch.rsub(distance, 0.5, alpha=1 / width).clamp_(0, 1)


def radial(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, triangle: Tensor | float = 0.0) -> Tensor:
    """Signed distance along the radius to an ellipse with semi-axes ``a``, ``b`` (mm), pulled towards a triangle with
    its tip at -y.

    ``triangle`` adds that share of the radius at 30, 150 and 270 degrees and takes it away between (third harmonic).
    """
    r = torch.hypot(x, y).clamp_min_(1e-4)
    f = torch.hypot(x * (1 / a), y * (1 / b)).clamp_min_(1e-4)
    radius = r / f
    if isinstance(triangle, Tensor) or triangle != 0:
        sine = y / r
        wave = 3 - 4 * (sine * sine)
        radius = radius * (1 + triangle * (wave.mul_(sine)))
    return r.sub_(radius)


def capsule(x: Tensor, y: Tensor, x0, y0, x1, y1, radius) -> Tensor:
    """Signed distance (mm) to a line from (x0, y0) to (x1, y1) thickened by ``radius``."""
    dx, dy = x1 - x0, y1 - y0
    scale = 1 / (dx * dx + dy * dy + 1e-9)
    x = x if isinstance(x0, float) and x0 == 0.0 else x - x0
    y = y if isinstance(y0, float) and y0 == 0.0 else y - y0
    along = (x * (dx * scale) + y * (dy * scale)).clamp_(0, 1)
    return torch.hypot(x - along * dx, y - along * dy).sub_(radius)


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

    def __call__(self, columns: Tensor, shift: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Values (n, h, w) at x = ``columns`` - ``shift``, ``y`` and ``s``, in mm.

        Args:
            columns: (w,).
            shift, y, s: (n, h, 1).

        x varies along a row only and the rest across rows only, so cos(a + b) = cos a cos b - sin a sin b turns the sum
        of cosines into one matrix product of (n h, 2 K) and (2 K, w).
        """
        waves = torch.as_tensor(self.waves, dtype=torch.float32, device=columns.device)
        phases = torch.as_tensor(self.phases, dtype=torch.float32, device=columns.device)
        across = columns[:, None] * waves[:, 0]  # (w, K)
        down = (y * waves[:, 1] - shift * waves[:, 0]) + (s * waves[:, 2] + phases)  # (n, h, K)
        scale = (2 / len(self.phases)) ** 0.5
        left = torch.cat([down.cos(), -down.sin()], dim=-1) * scale
        right = torch.cat([across.cos(), across.sin()], dim=-1)
        return left @ right.T
