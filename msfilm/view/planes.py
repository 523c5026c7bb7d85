"""Axial, sagittal and coronal planes of one volume in a live view: the same rule for each, its letters and crosshair.

Canonical axes run to the right, front and up; on the screen all three run backwards (the patient's right at the left,
the front at the top or left, the head at the top), so column and row are counted from the far end of their axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.axes import Axes

from msfilm.view.live import LiveView
from msfilm.view.panels import SlicePanel

__all__ = ["PLANES", "GreyScale", "PlanePanel", "field_box", "grey_slider"]

# name -> (letters at left, right, top, bottom; axis of the columns, of the rows, through which axis it cuts)
PLANES = {"axial": ("RLAP", 0, 1, 2), "sagittal": ("APSI", 1, 2, 0), "coronal": ("RLSI", 0, 2, 1)}
_SAMPLE = 200_000  # voxels from which a volume's percentiles are taken


class GreyScale:
    """Percentiles of a volume's values at once: from an evenly spread sample, sorted when the volume is opened."""

    def __init__(self, data: np.ndarray):
        flat = data.reshape(-1)
        self.values = np.sort(flat[:: max(1, flat.size // _SAMPLE) | 1])  # an odd step does not beat with the axes

    def limits(self, percent: Sequence[float]) -> tuple[float, float]:
        """The grey window from a low to a high percentile; never of no width."""
        place = np.asarray(percent, float) / 100 * (len(self.values) - 1)
        low, high = np.interp(place, np.arange(len(self.values)), self.values)
        return float(low), float(high if high > low else low + 1)


def grey_slider() -> ipywidgets.FloatRangeSlider:
    """The control of a grey window: a low and a high percentile."""
    return ipywidgets.FloatRangeSlider(value=(0.5, 99.5), min=0, max=100, step=0.5, description="grey (percentile)",
                                       readout_format=".1f", style={"description_width": "initial"},
                                       layout={"width": "24em"})


def field_box(shape: Sequence[int], voxel_mm: Sequence[float], middle: Sequence[float],
              field_mm: float = 0) -> tuple[slice, slice, slice]:
    """The box of a volume that is shown: as near to ``middle`` as the volume's ends allow; all of it for 0.

    Args:
        shape: (X, Y, Z).
        voxel_mm: (3,).
        middle: (3,) voxel coordinates.
        field_mm: side of the box.
    """
    box = []
    for side, length, at in zip(shape, voxel_mm, middle, strict=True):
        n = int(np.clip(round(field_mm / length), 1, side)) if field_mm else side
        low = int(np.clip(round(at - (n - 1) / 2), 0, side - n))
        box.append(slice(low, low + n))
    return tuple(box)


class PlanePanel:
    """One of the three planes on one axes of a live view, with a crosshair. Slices are views: nothing is copied here.

    Args:
        view: whose picture it is on.
        ax: where.
        name: axial, sagittal or coronal.
        looks: as for ``SlicePanel``.
    """

    def __init__(self, view: LiveView, ax: Axes, name: str, looks: Mapping[str, tuple[str, Any]] | None = None):
        letters, self.across, self.down, self.through = PLANES[name]
        self.name, self.ax = name, ax
        self.panel = SlicePanel(view, ax, looks=looks, letters=letters)
        self.cross, = ax.plot([], [], color="#F0E442", linewidth=0.9, zorder=5)
        view.move(self.cross)
        self.box: tuple[slice, slice, slice] = (slice(0, 2),) * 3

    def cut(self, data: np.ndarray, at: int) -> np.ndarray:
        """The plane of a canonical (X, Y, Z) array within the box, turned as it is shown: a view."""
        index: list[Any] = list(self.box)
        index[self.through] = at
        return data[tuple(index)].T[::-1, ::-1]

    def show(self, data: np.ndarray, masks: Mapping[str, np.ndarray], position: Sequence[float], *,
             box: tuple[slice, slice, slice], voxel_mm: Sequence[float], limits: tuple[float, float],
             title: str | None = None) -> None:
        """Move to the plane through ``position``.

        Args:
            data: (X, Y, Z) canonical.
            masks: name -> (X, Y, Z).
            position: (3,) voxel coordinates of the crosshair.
            box: what part is shown, of ``field_box``.
            voxel_mm: (3,).
            limits: grey window.
            title: above; by default the plane's name and number.
        """
        self._mark(True)
        self.box, at = box, round(position[self.through])
        spacing = float(voxel_mm[self.down]), float(voxel_mm[self.across])
        title = f"{self.name}, {'xyz'[self.through]} = {at}" if title is None else title
        self.panel.show(self.cut(data, at), {name: self.cut(mask, at) for name, mask in masks.items()},
                        spacing_mm=spacing, limits=limits, title=title)
        (column,), (row,) = self.to_screen(np.asarray(position, float)[None])
        height, width = (box[axis].stop - box[axis].start for axis in (self.down, self.across))
        gap = 0.04 * min(height * spacing[0], width * spacing[1])  # mm left free round the place itself
        x, y = gap / spacing[1], gap / spacing[0]
        nan = np.nan
        self.cross.set_data([-0.5, column - x, nan, column + x, width - 0.5, nan, column, column, nan, column, column],
                            [row, row, nan, row, row, nan, -0.5, row - y, nan, row + y, height - 0.5])

    def blank(self) -> None:
        """A white page, for there is no volume."""
        self.panel.show(np.zeros((2, 2)), {}, spacing_mm=1.0, limits=(-1, 0), title="")
        self.cross.set_data([], [])
        self._mark(False)

    def _mark(self, visible: bool) -> None:
        for artist in (*self.panel.letters, self.panel._bar, self.panel._length):
            artist.set_visible(visible)

    def to_screen(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k, 3) voxel coordinates -> columns (k,) and rows (k,) of the picture."""
        voxels = np.asarray(voxels, float).reshape(-1, 3)
        return tuple(self.box[axis].stop - 1 - voxels[:, axis] for axis in (self.across, self.down))

    def to_voxel(self, column: float, row: float) -> dict[int, float]:
        """A place in the picture -> axis -> voxel coordinate, for the two axes that it shows."""
        return {axis: self.box[axis].stop - 1 - float(place)
                for axis, place in ((self.across, column), (self.down, row))}
