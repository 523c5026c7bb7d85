"""Charts of an error analysis: a score in groups with its interval, and where raters and the network disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from msfilm.errors import SettingError
from msfilm.evaluate.agreement import consensus
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.slices import ERROR_LOOKS, OUTLINE_LOOKS, _as_stack, _image, _letters, _limits, _outline, _scale_bar

__all__ = ["disagreement_figure", "error_groups"]

_DISPUTED = ("yellow", (0, (2.5, 2.5)))


def error_groups(panels: Mapping[str, pd.DataFrame], *, xlabel: str, columns: int = 3,
                 limits: tuple[float, float] = (0, 1), title: str | None = None) -> Figure:
    """A score in groups, a panel for each way to make them: mean, 95 % interval, and how many rows it comes from.

    Args:
        panels: what the groups are -> table as ``errors_by`` gives it (value, low, high, rows); where it has a column
            chance, a grey diamond stands there.
        xlabel: what is shown, for all panels.
        columns: panels side by side.
        limits: of the axis.
        title: above all.
    """
    if not panels:
        raise SettingError("PLOT-SHAPE", "there is no panel to draw")
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    tables = {name: table[table["rows"] > 0] if "rows" in table else table for name, table in panels.items()}
    most = [max(len(table) for table in list(tables.values())[i * columns: (i + 1) * columns]) for i in range(lines)]
    figure = Figure(figsize=(9.4 if columns > 1 else 5.6, 0.55 * lines + 0.27 * sum(most) + 0.5 + 0.3 * bool(title)),
                    layout="constrained", facecolor="white")
    axes = figure.subplots(lines, columns, squeeze=False, height_ratios=[n + 1 for n in most]).ravel()
    chance = any("chance" in table for table in tables.values())
    for ax in axes[len(tables):]:
        ax.set_axis_off()
    for ax, (name, table) in zip(axes, tables.items(), strict=False):
        for y, row in enumerate(table.itertuples()):
            low, high = (row.value if np.isnan(end) else end for end in (row.low, row.high))
            single = np.isnan(row.low)  # one patient: no interval
            ax.plot([low, high], [y, y], color=OKABE_ITO["blue"], linewidth=2.2, solid_capstyle="butt")
            ax.plot(row.value, y, "o", color=OKABE_ITO["blue"], markersize=6.5, markeredgewidth=1.4,
                    markerfacecolor="white" if single else OKABE_ITO["blue"])
            if "chance" in table:
                ax.plot(row.chance, y, "D", color="0.55", markersize=6)
        names = [f"{group} ({rows})" for group, rows in zip(table.index, table["rows"], strict=True)] \
            if "rows" in table else list(map(str, table.index))
        ax.set_yticks(range(len(table)), names, fontsize=9)
        ax.set_ylim(len(table) - 0.5, -0.5)
        ax.set_xlim(limits[0] - 0.03 * np.ptp(limits), limits[1] + 0.03 * np.ptp(limits))
        ax.set_title(name, fontsize=10, loc="left")
        ax.tick_params(labelsize=9)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color="0.92", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel(xlabel, fontsize=10)
    if chance:
        figure.legend(handles=[Line2D([], [], color=OKABE_ITO["blue"], marker="o", label="found here"),
                               Line2D([], [], color="0.55", marker="D", linestyle="", label="by chance")],
                      loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def disagreement_figure(images, raters: Mapping[str, object], probabilities, titles: Sequence[str] | None = None, *,
                        threshold: float = 0.5, spacing_mm: float = 0.75) -> Figure:
    """A row a slice: the raters' outlines, how many of them marked each pixel, the network's probability, and its
    errors against their consensus with the area on which they disagree.

    Args:
        images: (n, H, W) or (n, 1, H, W).
        raters: name -> masks of that shape.
        probabilities: of that shape.
        titles: one a slice.
        threshold: on the probability.
        spacing_mm: pixel size.

    Raises:
        SettingError: PLOT-SHAPE where shapes differ or there is no slice; AGREEMENT-FEW, SCORE-VALUES.
    """
    images, probabilities = _as_stack(images), _as_stack(probabilities)
    masks = {name: _as_stack(mask) for name, mask in raters.items()}
    if not len(images) or any(one.shape != images.shape for one in (probabilities, *masks.values())):
        raise SettingError("PLOT-SHAPE", f"images {images.shape}, probabilities {probabilities.shape}, raters "
                           + ", ".join(str(mask.shape) for mask in masks.values()))
    reference, votes = consensus(masks), np.sum([mask == 1 for mask in masks.values()], axis=0)
    marked = probabilities >= threshold
    height, width = images.shape[1:]
    figure = Figure(figsize=(9.4, 2.32 * len(images) * height / width + 1.15), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.06, wspace=0, hspace=0)
    axes = figure.subplots(len(images), 4, squeeze=False)
    looks = {name: OUTLINE_LOOKS[i % len(OUTLINE_LOOKS)] for i, name in enumerate(masks)}
    heads = ("raters", "how many marked it", "network's probability", "network against their consensus")
    for i, line in enumerate(axes):
        for ax in (line[0], line[3]):
            _image(ax, images[i], (1.0, 1.0), _limits(images[i]))
        for name, mask in masks.items():
            _outline(line[0], mask[i] == 1, OKABE_ITO[looks[name][0]], looks[name][1], width=1.4)
        counts = line[1].imshow(votes[i], cmap="cividis", vmin=0, vmax=len(masks), interpolation="nearest")
        shares = line[2].imshow(probabilities[i], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        errors = {"found": reference[i] & marked[i], "false": marked[i] & ~reference[i],
                  "missed": reference[i] & ~marked[i]}
        for name, mask in errors.items():
            _outline(line[3], mask, OKABE_ITO[ERROR_LOOKS[name][0]], ERROR_LOOKS[name][1], fill=0.35)
        disputed = (votes[i] > 0) & (votes[i] < len(masks))
        _outline(line[3], disputed, OKABE_ITO[_DISPUTED[0]], _DISPUTED[1], width=1.2)
        for ax in line:
            ax.set_axis_off()
            _letters(ax, "RLAP" if ax is line[0] and i == 0 else "")
        for k, ax in enumerate(line):
            words = [heads[k]] * (i == 0) + ([titles[i] if k == 0 else " "] if titles is not None else [])
            ax.set_title("\n".join(words), fontsize=9.5, pad=3)
    _scale_bar(axes[-1][0], width, height, spacing_mm)
    for ax, picture, ticks in ((axes[:, 1], counts, range(len(masks) + 1)), (axes[:, 2], shares, (0, 0.5, 1))):
        bar = figure.colorbar(picture, ax=list(ax), location="bottom", fraction=0.05, pad=0.02, aspect=22)
        bar.set_ticks(list(ticks))
        bar.ax.tick_params(labelsize=9)
    lines = {**looks, **ERROR_LOOKS, "raters disagree": _DISPUTED}
    figure.legend(handles=[Line2D([], [], color=OKABE_ITO[colour], linestyle=style, linewidth=2.2, label=name)
                           for name, (colour, style) in lines.items()], loc="outside lower center", ncols=4,
                  fontsize=9, handlelength=3.2, facecolor="0.25", labelcolor="white", framealpha=1, edgecolor="none")
    return figure
