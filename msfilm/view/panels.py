"""A slice in a live view: image, outlines of masks, letters and scale bar, all moved and never made anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import contourpy
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.live import LiveView

__all__ = ["SlicePanel", "outline_paths"]

_HALO = [patheffects.withStroke(linewidth=2.2, foreground="black")]
_FINE = 4  # sub-pixels along an edge


def outline_paths(mask: np.ndarray) -> list[np.ndarray]:
    """The outline of a mask as closed lines along the edges of its pixels, an eighth of a pixel inside.

    Args:
        mask: (H, W); 1 or True is inside.

    Returns:
        Lines (n, 2) of (column, row), the centre of pixel (0, 0) at 0, 0.
    """
    mask = np.asarray(mask)
    if mask.dtype != bool:
        mask = mask == 1
    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    inner = np.pad(mask[top: rows[-1] + 1, left: columns[-1] + 1], 1)
    fine = np.repeat(np.repeat(inner, _FINE, 0), _FINE, 1).astype(np.float32)
    y, x = ((np.arange(n) + 0.5) / _FINE - 1.5 + start for n, start in zip(fine.shape, (top, left), strict=True))
    return contourpy.contour_generator(x, y, fine).lines(0.999)


class SlicePanel:
    """One slice on one axes of a live view. Radiological: row 0 anterior, column 0 the patient's right.

    Args:
        view: whose picture it is on.
        ax: where.
        looks: outline's name -> (colour of OKABE_ITO, line style): colour AND style differ, as in OUTLINE_LOOKS.
        letters: at left, right, top and bottom, such as 'RLAP' for an axial slice; '' for none.
        fill: opacity of the outlined areas' insides.
        cmap: of the image.
        scale_bar: whether to draw one.
    """

    def __init__(self, view: LiveView, ax: Axes, *, looks: Mapping[str, tuple[str, Any]] | None = None,
                 letters: Sequence[str] = "RLAP", fill: float = 0.0, cmap: str = "gray", scale_bar: bool = True):
        self.ax, self.looks, self.fill = ax, dict(looks or {}), fill
        ax.set_axis_off()
        ax.set(xticks=[], yticks=[])  # none is seen, none is to be laid out
        self.image = ax.imshow(np.zeros((2, 2)), cmap=cmap, vmin=0, vmax=1, interpolation="nearest", zorder=1)
        self.title = ax.set_title(" ", fontsize=10, pad=4)
        self._fill = ax.imshow(np.zeros((2, 2, 4)), interpolation="nearest", zorder=2) if fill else None
        self._outlines: dict[str, tuple[LineCollection, LineCollection]] = {}
        for name, (colour, style) in self.looks.items():
            under = LineCollection([], colors="black", linewidths=2.6, alpha=0.4, zorder=3)
            over = LineCollection([], colors=OKABE_ITO.get(colour, colour), linewidths=1.7, linestyles=[style],
                                  zorder=4)
            self._outlines[name] = ax.add_collection(under, autolim=False), ax.add_collection(over, autolim=False)
        self._bar, = ax.plot([], [], color="white", linewidth=2.6, solid_capstyle="butt", zorder=6,
                             path_effects=[patheffects.Stroke(linewidth=4.6, foreground="black"),
                                           patheffects.Normal()])
        self._length = ax.annotate("", (0, 0), xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
                                   color="white", fontsize=9, path_effects=_HALO, zorder=6)
        self._bar.set_visible(scale_bar)
        self._length.set_visible(scale_bar)
        self.letters = [ax.text(x, y, letter, transform=ax.transAxes, ha=ha, va=va, color="white", fontsize=10,
                                fontweight="bold", path_effects=_HALO, zorder=6)
                        for letter, (x, y, ha, va) in zip(letters, _PLACES, strict=False)]
        self._shape: tuple | None = None
        view.move(self.image, self.title, *([self._fill] if self._fill else []),
                  *(line for pair in self._outlines.values() for line in pair), self._bar, self._length, *self.letters)

    def show(self, image: np.ndarray, masks: Mapping[str, np.ndarray] | None = None, *,
             spacing_mm: tuple[float, float] | float = 0.75, limits: tuple[float, float] | None = None,
             title: str | None = None) -> None:
        """Move all to another slice.

        Args:
            image: (H, W).
            masks: outline's name -> (H, W); a name of ``looks`` that is not here shows nothing.
            spacing_mm: of (rows, columns).
            limits: grey window; 0.5th to 99.5th percentile of this slice by default.
            title: above the slice; None leaves it.
        """
        image = np.asarray(image)
        spacing = (float(spacing_mm),) * 2 if np.isscalar(spacing_mm) else tuple(map(float, spacing_mm))
        if self._shape != (image.shape, spacing):
            self._fit(image.shape, spacing)
        if limits is None:
            low, high = np.percentile(image, (0.5, 99.5))
            limits = float(low), float(high if high > low else low + 1)
        self.image.set_data(image)
        self.image.set_clim(*limits)
        masks = dict(masks or {})
        for name, (under, over) in self._outlines.items():
            paths = outline_paths(masks[name]) if name in masks else []
            under.set_segments(paths)
            over.set_segments(paths)
        if self._fill is not None:
            self._fill.set_data(self._filled(image.shape, masks))
        if title is not None:
            self.title.set_text(title)

    def _fit(self, shape: tuple[int, ...], spacing: tuple[float, float]) -> None:
        """Limits, aspect and scale bar for slices of another size."""
        height, width = shape
        self._shape = shape, spacing
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        for picture in filter(None, (self.image, self._fill)):
            picture.set_extent(extent)
        self.ax.set(xlim=extent[:2], ylim=extent[2:], aspect=spacing[0] / spacing[1])
        length = max((step for step in (1, 2, 5, 10, 20, 50, 100) if step <= width * spacing[1] / 4), default=1)
        x, y = width * 0.965 - 0.5, height * 0.955 - 0.5
        self._bar.set_data([x - length / spacing[1], x], [y, y])
        self._length.xy = (x, y)
        self._length.set_text(f"{length:g} mm")

    def _filled(self, shape: tuple[int, ...], masks: Mapping[str, np.ndarray]) -> np.ndarray:
        rgba = np.zeros((*shape, 4))
        for name, (colour, _) in self.looks.items():
            if name in masks:
                rgba[np.asarray(masks[name]) == 1] = (*to_rgb(OKABE_ITO.get(colour, colour)), self.fill)
        return rgba


_PLACES = [(0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"),
           (0.5, 0.02, "center", "bottom")]
