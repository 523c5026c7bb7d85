"""Charts: training curves, gamma and beta of every layer, Dice against lesion volume, scores with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO, scores_figure

__all__ = ["dice_points", "film_heatmap", "scores_figure", "training_curves"]

_LINES = [("blue", "-"), ("vermillion", (0, (5, 2))), ("green", (0, (1, 1))), ("purple", (0, (5, 1.5, 1, 1.5)))]
_POINTS = [("blue", "o"), ("vermillion", "^"), ("green", "s"), ("purple", "D")]


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)


def training_curves(history: pd.DataFrame | Mapping[str, pd.DataFrame], *, title: str | None = None) -> Figure:
    """Training loss and validation Dice over the epochs, the best epoch marked.

    Args:
        history: columns epoch, train_loss, val_dice (a run's history.csv); or several runs by name.
        title: above both panels.
    """
    runs = dict(history) if isinstance(history, Mapping) else {"": history}
    figure = Figure(figsize=(8.4, 3.3), layout="constrained", facecolor="white")
    loss, score = figure.subplots(1, 2)
    for (name, table), (colour, style) in zip(runs.items(), _LINES * len(runs), strict=False):
        look = {"color": OKABE_ITO[colour], "linestyle": style, "linewidth": 1.9}
        # One epoch is a point: a line through it would be invisible.
        mark = "o" if len(table) == 1 else None
        loss.plot(table["epoch"], table["train_loss"], marker=mark, **look)
        score.plot(table["epoch"], table["val_dice"], marker=mark, label=name or None, **look)
        if table["val_dice"].notna().any():
            best = table.loc[table["val_dice"].idxmax()]
            score.plot(best["epoch"], best["val_dice"], "o", markersize=8, markerfacecolor="white",
                       markeredgecolor=OKABE_ITO[colour], markeredgewidth=1.9)
            if len(runs) == 1:
                score.set_title(f"validation Dice: best {best['val_dice']:.3f} at epoch {best['epoch']:.0f}",
                                fontsize=11, loc="left")
    loss.set_title("training loss", fontsize=11, loc="left")
    if len(runs) > 1:
        score.set_title("validation Dice; circle: the best epoch", fontsize=11, loc="left")
        figure.legend(*score.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), frameon=False,
                      fontsize=10, handlelength=3.4)
    for ax in (loss, score):
        _tidy(ax)
        ax.set_xlabel("epoch", fontsize=10)
        ax.xaxis.get_major_locator().set_params(integer=True)
    score.set_ylim(0, max(1.0, score.get_ylim()[1]))
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def film_heatmap(params: Mapping[str, tuple], codes: Sequence[str], *, title: str | None = None) -> Figure:
    """Gamma and beta of every FiLM layer: one strip a layer, one row a code (contrast), one column a channel.

    Args:
        params: layer -> (gamma, beta), each (N, C), as ``model.film_parameters(z)`` gives them.
        codes: names of the N rows of z.
        title: above all.

    Raises:
        SettingError: PLOT-SHAPE when rows and ``codes`` differ in number.
    """
    layers = {name: tuple(np.asarray(_plain(half), dtype=float) for half in pair) for name, pair in params.items()}
    for name, (gamma, _) in layers.items():
        if gamma.ndim != 2 or len(gamma) != len(codes):
            raise SettingError("PLOT-SHAPE", f"layer {name!r} has gamma {gamma.shape}, but {len(codes)} codes")
    if not layers:
        raise SettingError("PLOT-SHAPE", "the network has no FiLM layer that is on",
                           mend="train with --conditioning contrast")
    strip = max(0.3, 0.19 * len(codes))
    figure = Figure(figsize=(9.2, 1.2 + len(layers) * (strip + 0.1)), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(hspace=0.03, h_pad=0.03)
    axes = figure.subplots(len(layers), 2, squeeze=False)
    for column, (symbol, neutral) in enumerate((("gamma", 1.0), ("beta", 0.0))):
        # Symmetric about the value that changes nothing, and one scale for all layers.
        reach = max(max(np.abs(pair[column] - neutral).max() for pair in layers.values()), 1e-3)
        for ax, (name, pair) in zip(axes[:, column], layers.items(), strict=True):
            picture = ax.imshow(pair[column], cmap="cividis", vmin=neutral - reach, vmax=neutral + reach, aspect="auto",
                                interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks(range(len(codes)), codes if column == 0 else [], fontsize=9)
            ax.tick_params(length=0)
            ax.set_yticks(np.arange(len(codes) - 1) + 0.5, minor=True)
            ax.grid(which="minor", axis="y", color="white", linewidth=1.2)
            if column == 0:
                ax.set_ylabel(f"{name} ({pair[0].shape[1]})", fontsize=9, rotation=0, ha="right", va="center",
                              labelpad=9 + 5.2 * max(len(str(code)) for code in codes) - 22)
        axes[0, column].set_title(f"{symbol}   ({neutral:g} changes nothing)", fontsize=11)
        bar = figure.colorbar(picture, ax=axes[:, column], location="bottom", fraction=0.06, pad=0.02, aspect=40)
        bar.ax.tick_params(labelsize=9)
    figure.supylabel("layer (channels)", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _plain(array):
    return array.detach().cpu().numpy() if hasattr(array, "detach") else array


def dice_points(
    scores: pd.DataFrame, *, reference: str = "truth", method: str = "network", title: str | None = None
) -> Figure:
    """Dice of every volume against its lesion volume, one colour and marker a contrast.

    Args:
        scores: a report's scores (columns contrast, method, reference, dice, reference_mm3).
        reference: against which mask; 'rater-1' is taken where this one is not in ``scores``.
        method: whose scores.
        title: above.
    """
    if reference not in set(scores["reference"]):
        reference = "rater-1"
    rows = scores[(scores["reference"] == reference) & (scores["method"] == method)]
    rows = rows[rows["dice"].notna() & (rows["reference_mm3"] > 0)]
    figure = Figure(figsize=(6.2, 3.9), layout="constrained", facecolor="white")
    ax = figure.subplots()
    handles = []
    for contrast, (colour, marker) in zip(sorted(set(rows["contrast"])), _POINTS * 8, strict=False):
        part = rows[rows["contrast"] == contrast]
        ax.plot(part["reference_mm3"], part["dice"], marker, color=OKABE_ITO[colour], markersize=6.5, alpha=0.8,
                markeredgecolor="white", markeredgewidth=0.7)
        handles.append(Line2D([], [], color=OKABE_ITO[colour], marker=marker, linestyle="", markersize=8,
                              label=f"{contrast}: mean {part['dice'].mean():.2f}, {len(part)} volumes"))
    _tidy(ax)
    ax.set_ylim(-0.03, 1.03)
    if len(rows):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.legend(handles=handles, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.17), ncols=2, frameon=False)
    else:
        ax.text(0.5, 0.5, "no volume with lesions was scored", transform=ax.transAxes, ha="center", fontsize=10)
    ax.set_xlabel("lesion volume in the reference (mm\u00b3, log scale)", fontsize=10)
    ax.set_ylabel("Dice", fontsize=10)
    against = {"truth": "the truth", "rater-1": "the rater's mask"}.get(reference, reference)
    ax.set_title(title or f"{method} against {against}: a point a volume", fontsize=11, loc="left")
    return figure
