"""What the error browser draws: the volumes as points, what their marks mean, and slices with their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.live import LiveView
from msfilm.view.panels import SlicePanel
from msfilm.view.slices import ERROR_LOOKS

__all__ = ["ErrorPicture"]

_COLOURS = ("blue", "vermillion", "green", "purple", "orange", "sky", "black")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">")  # colour AND marker differ from group to group
_BOTH_EMPTY = 1.1  # height at which a volume stands that has no Dice, since both masks are empty


class ErrorPicture:
    """Points at the left, two rows of slices at the right, and below what both mean; made once, then moved.

    Args:
        view: whose picture it is.
        mm3: lesion volumes of all references, for the limits of the axis.
        groups: how many kinds of points there may be.
    """

    ROWS, COLUMNS = 2, 3
    SLICES = ROWS * COLUMNS

    def __init__(self, view: LiveView, mm3: np.ndarray, groups: int):
        grid = view.figure.add_gridspec(self.ROWS + 1, self.COLUMNS + 1, width_ratios=[2.0, *[1] * self.COLUMNS],
                                        height_ratios=[*[1] * self.ROWS, 0.32])
        view.figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.01, hspace=0.01)
        self.ax = view.figure.add_subplot(grid[: self.ROWS, 0])
        self._axis(mm3)
        looks = [(OKABE_ITO[_COLOURS[i % len(_COLOURS)]], _MARKERS[i % len(_MARKERS)]) for i in range(groups)]
        self._pale, = self.ax.plot([], [], "o", color="0.85", markersize=4.5, zorder=2)
        self._points = [self.ax.plot([], [], marker, color=colour, markersize=7.5, markeredgecolor="white",
                                     markeredgewidth=0.7, zorder=3)[0] for colour, marker in looks]
        self._rings, = self.ax.plot([], [], "o", markerfacecolor="none", markeredgecolor="black", markersize=13,
                                    markeredgewidth=1.8, zorder=4)
        self._frame, = self.ax.plot([], [], color="black", linewidth=1.2, linestyle="--", zorder=5)
        view.move(self._pale, *self._points, self._rings, self._frame)
        self._key(view, grid, looks)
        self._panels, self._parts, moving = [], [], len(view.canvas.moving)
        for row, column in np.ndindex(self.ROWS, self.COLUMNS):
            first = not self._panels  # letters and scale on one slice say it for all, and halve the time to draw
            panel = SlicePanel(view, view.figure.add_subplot(grid[row, column + 1]), looks=ERROR_LOOKS, fill=0.3,
                               letters="RLAP" if first else "", scale_bar=first)
            panel.title.set_fontsize(9)
            panel.title.set_text(" \n ")
            self._panels.append(panel)
            self._parts.append([part for part in view.canvas.moving[moving:] if part.get_visible()])
            moving = len(view.canvas.moving)

    def _axis(self, mm3: np.ndarray) -> None:
        ax = self.ax
        logs = np.log10(mm3[mm3 > 0]) if (mm3 > 0).any() else np.array([1.0, 2.0])
        low, high = logs.min() - 0.12, logs.max() + 0.12
        self._strip = (low - 0.2 * (high - low), low - 0.04 * (high - low))  # for volumes without lesions
        decades = np.arange(np.ceil(low), np.floor(high) + 1)
        ax.set_xticks([np.mean(self._strip), *decades], ["none", *[f"{10 ** d:g}" for d in decades]], fontsize=9)
        tenths = np.linspace(0, 1, 6)
        ax.set_yticks([*tenths, _BOTH_EMPTY], [*[f"{y:.1f}" for y in tenths], "both\nempty"], fontsize=9)
        ax.set(xlim=(self._strip[0] - 0.02 * (high - low), high), ylim=(-0.05, 1.17))
        ax.axvline(self._strip[1], color="0.6", linewidth=1, linestyle=(0, (2, 2)))
        ax.set_xlabel("lesion volume in the reference (mm\u00b3, log scale)", fontsize=9.5)
        self._title = ax.set_title(" ", fontsize=10, loc="left")
        ax.grid(color="0.93", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)

    def _key(self, view: LiveView, grid: Any, looks: list[tuple[str, str]]) -> None:
        """What marks and outlines mean: a slot for each group, whose words follow the choice of colours."""
        ax = view.figure.add_subplot(grid[self.ROWS, 0])
        ax.set_axis_off()
        ax.set(xlim=(0, 1), ylim=(0, 1))
        columns, lines = 4, max(4, -(-len(looks) // 4))
        self._names = []
        for i, (colour, marker) in enumerate(looks):
            x, y = (i % columns) / columns, 1 - (i // columns + 0.5) / lines
            mark, = ax.plot([x + 0.02], [y], marker, color=colour, markersize=7, clip_on=False)
            self._names.append((mark, ax.text(x + 0.05, y, "", fontsize=9, va="center")))
        key = view.figure.add_subplot(grid[self.ROWS, 1:])
        key.set_axis_off()
        words = {"found": "found", "false": "+ false", "missed": "\u2212 missed"}
        key.legend(handles=[Line2D([], [], color=OKABE_ITO[colour], linestyle=style, linewidth=2.2, label=words[name])
                            for name, (colour, style) in ERROR_LOOKS.items()], loc="upper center", ncols=3,
                   fontsize=10, handlelength=3.2, facecolor="0.25", labelcolor="white", framealpha=1, edgecolor="none")
        key.text(0.5, 0.12, "above each slice: mm\u00b2 falsely marked (+) and missed (\u2212)", fontsize=9,
                 ha="center", va="center", transform=key.transAxes)

    def name_groups(self, names: Sequence[str], by: str) -> None:
        """Say which marks are whose, and what the groups are made by."""
        self._title.set_text(f"Dice of each volume, by {by}")
        for i, (mark, text) in enumerate(self._names):
            mark.set_visible(i < len(names))
            text.set_text(_short(names[i]) if i < len(names) else "")

    def places(self, scores: pd.DataFrame) -> pd.DataFrame:
        """x and y of every volume's point on the axes; volumes without lesions stand in the strip at the left."""
        x = np.log10(scores["reference_mm3"].where(scores["reference_mm3"] > 0))
        free = np.flatnonzero(x.isna())
        left, right = self._strip
        x.iloc[free] = left + (np.arange(len(free)) + 0.5) / max(len(free), 1) * 0.9 * (right - left)
        return pd.DataFrame({"x": x, "y": scores["dice"].fillna(_BOTH_EMPTY)})

    def show_points(self, scores: pd.DataFrame, groups: np.ndarray, passes: np.ndarray, chosen: list[str]) -> None:
        """Move the points: those that do not pass the filters are pale, the chosen ones have a ring."""
        places = self.places(scores)
        xy = places.to_numpy().T
        self._pale.set_data(*xy[:, ~passes])
        for i, points in enumerate(self._points):
            points.set_data(*xy[:, passes & (groups == i)])
        self._rings.set_data(*places.loc[chosen].to_numpy().T)

    def frame(self, one: tuple[float, float] | None = None, other: tuple[float, float] | None = None) -> None:
        """A box between two places of the canvas (pixels); without them none."""
        if one is None or other is None:
            self._frame.set_data([], [])
            return
        (a, b), (c, d) = self.ax.transData.inverted().transform([one, other])
        self._frame.set_data([a, c, c, a, a], [b, b, d, d, b])

    def show_slices(self, shown: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray], str]], spacing_mm: float) -> None:
        """Image (H, W), masks by kind of error, and title of up to ``SLICES`` slices."""
        for i, (panel, parts) in enumerate(zip(self._panels, self._parts, strict=True)):
            for part in parts:
                part.set_visible(i < len(shown))
            if i < len(shown):
                image, masks, title = shown[i]
                panel.show(image, masks, spacing_mm=spacing_mm, title=title)


def _short(name: str) -> str:
    for long, short in ((" and more", "+"), ("under ", "< "), (" to ", "\u2013"), ("centre-", "c-"), (" mm", "")):
        name = name.replace(long, short)
    return name
