"""The pictures of a report on one segmented scan: every slice, where the crops lie, and the sanity figures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from msfilm.data.crop import CropGrid, crop
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.evaluate.scan_facts import BEND_MM, FAR_MM, Intensities, Sensitivity
from msfilm.evaluate.segmentation import Segmentation
from msfilm.view.slices import _image, _letters, _limits, _outline, _scale_bar

__all__ = ["chance_figure", "grey_limits", "intensity_figure", "position_figure", "sensitivity_figure", "slice_figures",
           "where_figure", "window_mm"]

_DASH_DOT = (0, (5, 1.2, 1, 1.2))
_MARK, _STYLE = "orange", (0, (4, 1.5))
_AWAY = "vermillion", (0, (1, 1))  # marks where no cord can be
_CURVE, _BOX = OKABE_ITO["sky"], OKABE_ITO["yellow"]
_HALF_MM = 13.5  # half the side of what is shown of a slice: cord and canal with room to spare
_LEAST = 0.01  # of a probability that is counted
_WIDE = 7.8  # inches: about what a printed page holds, so that 9 pt stay 9 pt on paper
_SLICE_PT = 12  # of letters, scale and numbers on a slice, which a screen shows at two thirds


def slice_figures(found: Segmentation, labels: np.ndarray, slices: pd.DataFrame, *,
                  probability: bool = True) -> Iterator[tuple[int, Figure, str]]:
    """Each slice that the network saw, from the highest down: the bare crop, the crop with its marks, the probability.

    Args:
        found: what was segmented.
        labels: (X, Y, Z) numbers of the marks, which stand beside their outlines.
        slices: of ``slice_table``.
        probability: a third picture, in cividis.

    Yields:
        z, a figure of one row, and its alt text. The figure is the same one each time, drawn anew.
    """
    grid, facts = found.grid, slices.set_index("z")
    marked, _ = crop(found.mask.astype(np.uint8), grid, mode="nearest")  # of the scan's voxels, as the numbers are
    inner, away = _window(found, marked), _away(found.crops.shape[1:], grid.spacing_mm)
    crops, marked, away = found.crops[:, inner, inner], marked[:, inner, inner] > 0, away[inner, inner]
    shown = crop(found.probability, grid)[0][:, inner, inner]
    limits = grey_limits(found)
    columns = 3 if probability else 2
    height, width = crops.shape[1:]
    side = 2.35
    figure = Figure(figsize=(columns * (side + 0.05), side * height / width), facecolor="white")
    axes = [figure.add_axes(((i + 0.01) / columns, 0, 0.98 / columns, 1)) for i in range(columns)]
    away = _away(crops.shape[1:], grid.spacing_mm)
    for k in np.argsort(-grid.zs):
        z, mask = int(grid.zs[k]), marked[k]
        for ax in axes:
            for artist in (*ax.images, *ax.lines, *ax.texts, *ax.collections):  # much quicker than ax.clear()
                artist.remove()
        for ax in axes[:2]:
            _image(ax, crops[k], (grid.spacing_mm,) * 2, limits)
        for part, (colour, style) in ((mask & ~away, (_MARK, _STYLE)), (mask & away, _AWAY)):
            _outline(axes[1], part, OKABE_ITO[colour], style, width=1.6)
        _numbers(axes[1], labels[:, :, z], grid, k, inner)
        axes[0].plot((width - 1) / 2, (height - 1) / 2, "+", color=OKABE_ITO["yellow"], markersize=7,
                     markeredgewidth=1.2)
        if probability:
            axes[2].imshow(shown[k], cmap="cividis", norm=Normalize(0, 1), interpolation="nearest")
            axes[2].set_axis_off()
        for ax in axes:
            _letters(ax)
            _scale_bar(ax, width, height, grid.spacing_mm)
            for text in ax.texts:
                text.set_fontsize(_SLICE_PT)
        yield z, figure, _slice_alt(z, facts.loc[z], sorted(set(np.unique(labels[:, :, z]).tolist()) - {0}))


def window_mm(found: Segmentation) -> float:
    """Side of the square that ``slice_figures`` shows: 27 mm, or more where marks lie farther off."""
    inner = _window(found, crop(found.mask.astype(np.uint8), found.grid, mode="nearest")[0])
    return (inner.stop - inner.start) * found.grid.spacing_mm


def grey_limits(found: Segmentation) -> tuple[float, float]:
    """The grey window, in units of the cord's median: bright CSF may be all white, or a lesion would be too faint."""
    low, high = _limits(found.crops)
    return max(low, 0.25), min(max(high, 1.2), 2.0)


def _window(found: Segmentation, marked: np.ndarray) -> slice:
    """Rows and columns that are shown, the same in all slices."""
    size = found.grid.size
    reach = int(np.ceil(_HALF_MM / found.grid.spacing_mm))
    places = np.nonzero(marked.any(axis=0))
    if len(places[0]):
        reach = max(reach, int(np.ceil(max(np.abs(axis - (size - 1) / 2).max() for axis in places))) + 3)
    start = max(0, size // 2 - reach)
    return slice(start, size - start)


def _away(shape: tuple[int, int], spacing_mm: float) -> np.ndarray:
    rows, columns = ((np.arange(side) - (side - 1) / 2) * spacing_mm for side in shape)
    return np.hypot(rows[:, None], columns[None]) > FAR_MM


def _numbers(ax: Axes, labels: np.ndarray, grid: CropGrid, k: int, inner: slice) -> None:
    """The number of each mark, on the side of it that looks away from the cord's centre."""
    for number in np.unique(labels[labels > 0]):
        x, y = np.nonzero(labels == number)
        place = []
        for axis, values in ((0, x), (1, y)):
            ratio = grid.voxel_mm[axis] / grid.spacing_mm
            place.append((grid.size - 1) / 2 - (values - grid.centres[k, axis]) * ratio - inner.start)
        column, row = place
        width = inner.stop - inner.start
        outward = 1 if column.mean() > (width - 1) / 2 else -1
        at = (column.max() if outward > 0 else column.min()) + 2 * outward
        ax.text(np.clip(at, 1, width - 2), row.mean(), str(number), color="white", fontsize=10, fontweight="bold",
                ha="left" if outward > 0 else "right", va="center",
                bbox={"facecolor": "black", "alpha": 0.55, "pad": 1, "edgecolor": "none"})


def _slice_alt(z: int, row: pd.Series, marks: list[int]) -> str:
    parts = [f"{row[f'{side}_mm2']:.1f} mm2 on the patient's {side}" for side in ("right", "left")
             if row[f"{side}_mm2"] > 0]
    if row["far_mm2"] > 0:
        parts.append(f"{row['far_mm2']:.1f} mm2 where no cord can be, if the centre is right")
    said = "marked: " + ", ".join(parts) if parts else "nothing is marked"
    named = f" (mark {', '.join(map(str, marks))})" if marks else ""
    return (f"Slice z = {z}: the crop round the cord, without and with the network's outline; {said}{named}. "
            f"Highest probability {row['probability']:.2f}. Not for diagnosis.")


def where_figure(found: Segmentation, points_mm: np.ndarray | None = None) -> Figure:
    """Sagittal and coronal sections that follow the cord, with its centreline and the band that the crops cover.

    Args:
        found: what was segmented.
        points_mm: (k, 3) points that were given or picked along the cord (RAS mm), drawn as rings.
    """
    data, grid, voxel = found.image.data, found.grid, found.image.voxel_mm
    order = np.argsort(grid.zs)
    zs, centres = grid.zs[order], grid.centres[order]
    along = [np.interp(np.arange(data.shape[2]), zs, centres[:, axis]) for axis in (0, 1)]
    limits = _limits(data[tuple(slice(None, None, max(1, side // 64)) for side in data.shape)])
    tall, half = data.shape[2] * voxel[2], grid.size * grid.spacing_mm / 2
    wide = [data.shape[1] * voxel[1], data.shape[0] * voxel[0]]
    height = float(np.clip((_WIDE - 0.2) * tall / sum(wide), 2.2, 6.0))
    figure = Figure(figsize=(_WIDE, height + 0.75), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, width_ratios=wide)
    at = np.arange(data.shape[2])
    fixed = [np.clip(np.rint(line), 0, side - 1).astype(int) for line, side in zip(along, data.shape, strict=False)]
    sections = [("sagittal", data[fixed[0], :, at], 1, "APSI"), ("coronal", data[:, fixed[1], at].T, 0, "RLSI")]
    marks = [found.mask.any(axis=0).T, found.mask.any(axis=1).T]  # (Z, Y) and (Z, X)
    inverse = np.linalg.inv(found.image.affine)
    picked = np.empty((0, 3)) if points_mm is None else points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    for ax, (name, section, axis, letters), mark in zip(axes, sections, marks, strict=True):
        last = data.shape[axis] - 1  # both axes run backwards on the screen: front and right at the left, head on top
        _image(ax, section[::-1, ::-1], (voxel[2], voxel[axis]), limits)
        _outline(ax, mark[::-1, ::-1], OKABE_ITO[_MARK], _STYLE, width=1.3)
        rows, columns = data.shape[2] - 1 - zs, last - centres[:, axis]
        ax.plot(columns, rows, color=_CURVE, linewidth=1.8, marker=".", markersize=4)
        for sign in (-1, 1):
            ax.plot(columns + sign * half / voxel[axis], rows, color=_BOX, linewidth=1.6, linestyle=_DASH_DOT)
        if len(picked):
            ax.plot(last - picked[:, axis], data.shape[2] - 1 - picked[:, 2], linestyle="none", marker="o",
                    markersize=7, markerfacecolor="none", markeredgecolor=OKABE_ITO["purple"], markeredgewidth=1.8)
        _letters_of(ax, letters)
        _scale_bar(ax, section.shape[1], section.shape[0], float(voxel[axis]))
        ax.set_title(f"{name}, following the cord", fontsize=10)
    handles = [Line2D([], [], color=_CURVE, linewidth=2, marker=".", label="centreline"),
               Line2D([], [], color=_BOX, linewidth=2, linestyle=_DASH_DOT, label="edge of the crops"),
               Line2D([], [], color=OKABE_ITO[_MARK], linewidth=2, linestyle=_STYLE, label="marked, in any section")]
    if len(picked):
        handles.append(Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgewidth=1.8,
                              markeredgecolor=OKABE_ITO["purple"], label="points given"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, handlelength=3.2,
                  facecolor="0.25", labelcolor="white", framealpha=1, edgecolor="none")
    return figure


def _letters_of(ax: Axes, letters: str) -> None:
    """Letters at left, right, top and bottom, for any plane; the last two in the corner, as the line ends midway."""
    for letter, (x, y, ha, va) in zip(letters, ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"),
                                                (0.02, 0.98, "left", "top"), (0.02, 0.02, "left", "bottom")),
                                      strict=True):
        ax.text(x, y, letter, transform=ax.transAxes, ha=ha, va=va, color="white", fontsize=10, fontweight="bold",
                bbox={"facecolor": "black", "alpha": 0.55, "pad": 1, "edgecolor": "none"})


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def position_figure(slices: pd.DataFrame) -> Figure:
    """Where the cord's centre was put, slice by slice, and how far each lies from the line between its neighbours."""
    figure = Figure(figsize=(_WIDE, 2.7), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for column, name, colour, style, marker in (("centre_right_mm", "to the right", "blue", "-", "o"),
                                                ("centre_front_mm", "to the front", "vermillion", _STYLE, "s")):
        left.plot(slices["z"], slices[column], color=OKABE_ITO[colour], linestyle=style, marker=marker, markersize=3.5,
                  label=name)
    left.set_ylabel("cord's centre, mm (RAS)", fontsize=9)
    left.legend(fontsize=9, frameon=False)
    right.axhline(BEND_MM, color="0.5", linestyle=":", linewidth=1.4)
    right.annotate(f"from {BEND_MM:g} mm: look", (0, BEND_MM), xycoords=("axes fraction", "data"), xytext=(4, 3),
                   textcoords="offset points", fontsize=9, color="0.35")
    jumps = slices["bend_mm"] > BEND_MM
    right.vlines(slices["z"], 0, slices["bend_mm"], color=OKABE_ITO["blue"], linewidth=1.6)
    right.plot(slices["z"][jumps], slices["bend_mm"][jumps], "X", color=OKABE_ITO["vermillion"], markersize=8)
    right.set_ylim(0, max(1.3 * BEND_MM, 1.15 * slices["bend_mm"].max()))
    right.set_ylabel("off its neighbours' line, mm", fontsize=9)
    for ax in (left, right):
        _plain(ax)
        ax.set_xlabel("slice z (head to the right)", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def intensity_figure(found: Intensities) -> Figure:
    """Histogram of the cord's middle over that of the training scans."""
    figure = Figure(figsize=(5.4, 2.9), layout="constrained", facecolor="white")
    ax = figure.subplots()
    middles = (found.edges[:-1] + found.edges[1:]) / 2
    if found.mean is not None:
        ax.fill_between(middles, *found.band, color="0.82", step="mid", label="training: 90 % of scans")
        ax.plot(middles, found.mean, color="0.45", linestyle=_STYLE, linewidth=1.6, label="training: mean")
    ax.stairs(found.shares, found.edges, color=OKABE_ITO["blue"], linewidth=1.8, label="this scan")
    ends = np.flatnonzero(found.shares > 0.001) if found.shares.any() else np.array([0])
    ax.set_xlim(0, max(2.0, found.edges[ends[-1] + 1] + 0.1))
    ax.set_ylim(0, None)
    ax.set_xlabel("intensity, times the cord's median", fontsize=9)
    ax.set_ylabel("share of pixels", fontsize=9)
    ax.legend(fontsize=9, frameon=False)
    _plain(ax)
    return figure


def chance_figure(found: Segmentation) -> Figure:
    """How sure the network is: voxels by probability, the threshold among them; and the highest in each slice."""
    threshold = found.record["settings"]["threshold"]
    figure = Figure(figsize=(_WIDE, 2.7), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    values = found.probability[found.probability >= _LEAST]
    counts, edges = np.histogram(values, np.linspace(0, 1, 21))
    left.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color="0.75")
    left.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, color=OKABE_ITO["blue"], linewidth=1.4)
    left.set_yscale("log")
    left.set_ylim(0.5, max(10, 2.5 * counts.max(initial=1)))
    left.axvline(threshold, color=OKABE_ITO["vermillion"], linestyle=_STYLE, linewidth=1.8)
    left.annotate("threshold", (threshold, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0),
                  textcoords="offset points", fontsize=9, va="top", color=OKABE_ITO["vermillion"])
    left.set_xlabel(f"probability of lesion (from {_LEAST:g})", fontsize=9)
    left.set_ylabel("voxels", fontsize=9)
    highest = [float(found.probability[:, :, z].max()) for z in found.grid.zs]
    right.plot(found.grid.zs, highest, color=OKABE_ITO["blue"], marker="o", markersize=3.5)
    right.axhline(threshold, color=OKABE_ITO["vermillion"], linestyle=_STYLE, linewidth=1.8)
    right.set_ylim(-0.03, 1.03)
    right.set_xlabel("slice z (head to the right)", fontsize=9)
    right.set_ylabel("highest probability", fontsize=9)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in (left, right):
        _plain(ax)
    return figure


def sensitivity_figure(found: Sensitivity, threshold: float, mm3: float) -> Figure:
    """Volume against the threshold, and what it becomes when centre or scale are a little off."""
    moves = len(found.moves) > 0
    figure = Figure(figsize=(_WIDE if moves else 5.0, 2.7), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2 if moves else 1, squeeze=False)[0]
    left = axes[0]
    left.plot(found.thresholds["threshold"], found.thresholds["mm3"], color=OKABE_ITO["blue"], marker="o",
              markersize=3.5)
    left.axvline(threshold, color=OKABE_ITO["vermillion"], linestyle=_STYLE, linewidth=1.8)
    left.set_ylim(0, 1.08 * max(1.0, found.thresholds["mm3"].max()))
    left.set_xlabel("threshold", fontsize=9)
    left.set_ylabel("marked, mm³", fontsize=9)
    _plain(left)
    if moves:
        right = axes[1]
        names = ["as it is", *found.moves["change"]]
        values = [mm3, *found.moves["mm3"]]
        right.barh(names, values, color=[OKABE_ITO["blue"], *["0.72"] * (len(names) - 1)])
        right.axvline(mm3, color=OKABE_ITO["blue"], linewidth=1.2, linestyle=":")
        for y, value in enumerate(values):
            right.annotate(f"{value:.0f}", (value, y), xytext=(3, 0), textcoords="offset points", va="center",
                           fontsize=9)
        right.invert_yaxis()
        right.set_xlim(0, 1.18 * max(1.0, *values))
        right.set_xlabel("marked, mm³", fontsize=9)
        _plain(right)
        right.grid(axis="y", visible=False)
    return figure
