"""Figures of rater styles: the confusion matrix of styles against raters, and one slice drawn in every style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.evaluate.style_tables import MEAN, PLAIN
from msfilm.view.slices import _image, _key, _letters, _limits, _outline, _scale_bar

__all__ = ["confusion_figure", "confusion_panels", "style_figure"]

_SPECIAL = {MEAN: "mean code\n(rater unknown)", PLAIN: "plain network\n(told nothing)", "truth": "the truth"}
_GAP = 0.22  # between the raters and what is not one, in cells
_LOOKS = [("sky", "-"), ("orange", (0, (5, 1.5))), ("green", (0, (1.4, 1.2))), ("purple", (0, (6, 1.5, 1.2, 1.5))),
          ("vermillion", (0, (3, 3))), ("blue", "-")]
_DRAWN = ("yellow", (0, (1, 1.2)))


def confusion_panels(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The confusion matrices of a result of ``measure_styles``: a panel for each arm that is told the rater, with the
    plain arm of the same patients below it.
    """
    partner = {row["arm"]: row["plain"] for row in content["own_style_minus_plain"]}
    told = dict.fromkeys(row["arm"] for row in content["confusion"] if row["style"] == MEAN)
    return {arm: [row for row in content["confusion"] if row["arm"] in (arm, partner.get(arm))] for arm in told}


def confusion_figure(panels: Mapping[str, Sequence[Mapping[str, Any]]], style_mm: Mapping[str, float] | None = None, *,
                     title: str | None = None) -> Figure:
    """Dice of each style (row) with each rater's masks (column), a matrix a panel.

    Large raters are easier to agree with than small ones, so the colour compares within a column: above or below the
    mean of that column's styles. The frame marks a rater's own style; bold is the best of a column's styles.

    Args:
        panels: title -> rows of ``confusion``: style, rater, dice, low, high.
        style_mm: rater -> bias, for the labels.
        title: above all.

    Raises:
        SettingError: PLOT-SHAPE without a row.
    """
    grids = {name: _Grid(rows) for name, rows in panels.items()}
    if not grids or not all(grid.raters for grid in grids.values()):
        raise SettingError("PLOT-SHAPE", "there is no confusion matrix to draw", mend="give rows of confusion()")
    first = next(iter(grids.values()))
    reach = max([0.01, *(abs(v) for grid in grids.values() for v in grid.above.values() if not np.isnan(v))])
    size = (1.9 + sum(0.95 * len(grid.columns) + 0.3 for grid in grids.values()),
            1.75 + 0.56 * max(len(grid.rows) for grid in grids.values()) + (0.3 if title else 0))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    scale = Normalize(-reach, reach)
    for ax, (name, grid) in zip(axes, grids.items(), strict=True):
        _matrix(ax, grid, scale)
        ax.set_title(name, fontsize=11, fontweight="bold", loc="left", pad=8)
        ax.set_xticks(list(grid.columns.values()), [_label(one, style_mm) for one in grid.columns], fontsize=9)
        same = list(grid.rows) == list(first.rows) and ax is not axes[0]
        ax.set_yticks(list(grid.rows.values()), [] if same else [_label(one, style_mm) for one in grid.rows],
                      fontsize=9)
        ax.set_xlabel("scored against the masks of", fontsize=10)
    axes[0].set_ylabel("told to draw as", fontsize=10)
    bar = figure.colorbar(ScalarMappable(scale, "cividis"), ax=list(axes), fraction=0.04, pad=0.015, aspect=26)
    bar.set_label("Dice above or below the mean\nof that column's rater styles", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


class _Grid:
    """Where rows and columns lie, and how far each cell is above its column's mean."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.cells = {(row["style"], row["rater"]): row for row in rows}
        styles = list(dict.fromkeys(style for style, _ in self.cells))
        self.raters = sorted(set(styles) - {MEAN, PLAIN})
        others = [one for one in (MEAN, PLAIN) if one in styles]
        columns = sorted({rater for _, rater in self.cells} - {"truth"})
        truth = ["truth"] if any(rater == "truth" for _, rater in self.cells) else []
        self.rows = {name: i + (_GAP if name in others else 0) for i, name in enumerate([*self.raters, *others])}
        self.columns = {name: i + (_GAP if name in truth else 0) for i, name in enumerate([*columns, *truth])}
        self.best, self.above = {}, {}
        for column in self.columns:
            known = {style: self.value(style, column) for style in self.raters}
            known = {style: value for style, value in known.items() if not np.isnan(value)}
            if known and column != "truth":
                self.best[column] = max(known, key=known.get)
            for style in self.rows:
                self.above[style, column] = (self.value(style, column) - float(np.mean(list(known.values())))
                                             if known else float("nan"))

    def value(self, style: str, rater: str, key: str = "dice") -> float:
        found = self.cells.get((style, rater), {}).get(key)
        return float("nan") if found is None else float(found)


def _matrix(ax: Axes, grid: _Grid, scale: Normalize) -> None:
    colours = colormaps["cividis"]
    for style, y in grid.rows.items():
        for rater, x in grid.columns.items():
            dice, above = grid.value(style, rater), grid.above[style, rater]
            if np.isnan(dice):
                continue
            colour = colours(scale(0.0 if np.isnan(above) else above))
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
            ink = "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.45 else "white"
            best = grid.best.get(rater) == style
            ax.text(x, y - 0.17, f"{dice:.3f}", ha="center", va="center", color=ink, fontsize=11,
                    fontweight="bold" if best else "normal")
            low, high = grid.value(style, rater, "low"), grid.value(style, rater, "high")
            if not np.isnan(low + high):
                ax.text(x, y + 0.24, f"{low:.2f} to {high:.2f}".replace("0.", "."), ha="center", va="center",
                        color=ink, fontsize=9)
    for rater in grid.raters:
        if rater in grid.columns:
            corner = (grid.columns[rater] - 0.465, grid.rows[rater] - 0.465)
            for colour, width in (("black", 4.2), ("white", 2.0)):
                ax.add_patch(Rectangle(corner, 0.93, 0.93, fill=False, edgecolor=colour, linewidth=width))
    ax.set(xlim=(-0.52, max(grid.columns.values()) + 0.52), ylim=(max(grid.rows.values()) + 0.52, -0.52))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _label(name: str, style_mm: Mapping[str, float] | None) -> str:
    if name in _SPECIAL:
        return _SPECIAL[name]
    bias = (style_mm or {}).get(name)
    return name if bias is None else f"{name}\n{bias:+.2f} mm"


def style_figure(image: np.ndarray, probabilities: Mapping[str, np.ndarray],
                 drawn: Mapping[str, np.ndarray] | None = None, *, style_mm: Mapping[str, float] | None = None,
                 spacing_mm: float = 0.75, side_mm: float = 20.0, title: str | None = None) -> Figure:
    """One slice in every style: all outlines together, then each with the mask of the rater it is meant to be.

    Outlines are where the probability is one half, between pixels too: styles differ by less than a pixel.

    Args:
        image: (H, W), row 0 anterior and column 0 the patient's right.
        probabilities: style -> (H, W), from small to large.
        drawn: rater -> (H, W) mask of 0 and 1.
        style_mm: rater -> bias, for the labels.
        spacing_mm: pixel size.
        side_mm: side of the square that is shown, round what is marked.
        title: above all.

    Raises:
        SettingError: PLOT-SHAPE when shapes do not fit.
    """
    image, drawn = np.asarray(image, dtype=np.float32).squeeze(), dict(drawn or {})
    maps = {name: np.asarray(one, dtype=np.float32).squeeze() for name, one in {**probabilities, **drawn}.items()}
    if image.ndim != 2 or not probabilities or any(one.shape != image.shape for one in maps.values()):
        raise SettingError("PLOT-SHAPE", f"slice {image.shape} with "
                           + (", ".join(f"{name} {one.shape}" for name, one in maps.items()) or "no style"))
    shown = {name: np.asarray(one, dtype=np.float32).squeeze() for name, one in probabilities.items()}
    masks = {name: np.asarray(one).squeeze() == 1 for name, one in drawn.items()}
    part = _window(image.shape, [*(one >= 0.5 for one in shown.values()), *masks.values()], side_mm / spacing_mm)
    looks = dict(zip(shown, _LOOKS * len(shown), strict=False))
    panels = [*([tuple(shown)] if len(shown) > 1 else []), *((name,) for name in shown)]
    figure = Figure(figsize=(max(2.05 * len(panels), 4.1), 3.0 + (0.3 if title else 0)), layout="constrained",
                    facecolor="white")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    limits = _limits(image[part])
    for ax, names in zip(axes, panels, strict=True):
        _image(ax, image[part], (1.0, 1.0), limits)
        for name in names:
            if len(names) == 1 and name in masks:
                _outline(ax, masks[name][part], OKABE_ITO[_DRAWN[0]], _DRAWN[1], width=1.5)
            _level(ax, shown[name][part], *looks[name])
        ax.set_title("all styles" if len(names) > 1 else _label(names[0], style_mm), fontsize=9, pad=3)
    _letters(axes[0])
    _scale_bar(axes[-1], *image[part].shape[::-1], spacing_mm)
    _key(figure, looks | ({"the rater's own mask": _DRAWN} if masks else {}))
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _level(ax: Axes, probability: np.ndarray, colour: str, style: Any) -> None:
    if probability.min() < 0.5 <= probability.max():
        ax.contour(probability, levels=[0.5], colors=["black"], linewidths=2.8, alpha=0.45)
        ax.contour(probability, levels=[0.5], colors=[OKABE_ITO[colour]], linestyles=[style], linewidths=1.9)


def _window(shape: tuple[int, ...], masks: Sequence[np.ndarray], side: float) -> tuple[slice, slice]:
    """A square round all that is marked, as far as the image goes; round the middle where nothing is."""
    marked = np.any(masks, axis=0) if len(masks) else np.zeros(shape, bool)
    window = []
    for axis, length in enumerate(shape):
        at = np.flatnonzero(marked.any(axis=1 - axis))
        low, high = (at[0], at[-1] + 1) if len(at) else (length // 2, length // 2)
        extent = int(min(length, max(round(side), high - low + 4)))
        start = int(np.clip((low + high - extent) // 2, 0, length - extent))
        window.append(slice(start, start + extent))
    return window[0], window[1]
