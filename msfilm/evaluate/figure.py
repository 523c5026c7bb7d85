"""The figures of a report: Dice of every row with its interval, and how well calibrated a network is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from msfilm.evaluate.reliability import Reliability

__all__ = ["OKABE_ITO", "reliability_figure", "scores_figure"]

# Okabe and Ito's colours, distinct for all common kinds of colour vision; https://jfly.uni-koeln.de/color/
OKABE_ITO = {
    "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442",
    "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7", "black": "#000000",
}
_LOOKS = [("blue", "o"), ("vermillion", "s"), ("green", "D"), ("purple", "^"), ("orange", "v"), ("sky", "P")]


def scores_figure(rows: pd.DataFrame | list[dict], *, title: str | None = None) -> Figure:
    """Mean Dice with 95 % intervals, horizontal: one line a row, one panel a reference, grouped by contrast.

    Args:
        rows: columns name, contrast, reference, dice, low, high (and volumes), as in a report's metrics.json.
        title: above the panels.
    """
    rows = pd.DataFrame(rows)
    rows = rows[rows["dice"].notna()]
    references = list(dict.fromkeys(rows["reference"])) or [""]
    names, contrasts = list(dict.fromkeys(rows["name"])), list(dict.fromkeys(rows["contrast"]))
    looks = {name: _LOOKS[i % len(_LOOKS)] for i, name in enumerate(names)}
    # A line for every name under every contrast, whichever panel has it, so that the panels line up.
    lines = [(c, n) for c in contrasts for n in names if ((rows["contrast"] == c) & (rows["name"] == n)).any()]
    gaps = {c: i * 0.7 for i, c in enumerate(contrasts)}
    y = {line: i + gaps[line[0]] for i, line in enumerate(lines)}

    height = 1.5 + 0.36 * (len(lines) + 0.7 * len(contrasts))
    figure = Figure(figsize=(2.4 + 3.4 * len(references), height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(references), sharey=True, squeeze=False)[0]
    for ax, reference in zip(axes, references, strict=True):
        for row in rows[rows["reference"] == reference].itertuples():
            colour, marker = looks[row.name]
            low, high = (row.dice if value is None or np.isnan(value) else value for value in (row.low, row.high))
            at = y[row.contrast, row.name]
            ax.plot([low, high], [at, at], color=OKABE_ITO[colour], linewidth=2.2, solid_capstyle="butt")
            ax.plot(row.dice, at, marker, color=OKABE_ITO[colour], markersize=7, markeredgecolor="white")
            # The number stands on the roomier side of its interval.
            left = high > 0.8
            ax.annotate(f"{row.dice:.2f}", (low if left else high, at), xytext=(-6 if left else 6, 0),
                        textcoords="offset points", fontsize=9, va="center", ha="right" if left else "left")
        ax.set_xlim(-0.02, 1.02)
        ax.set_xticks(np.linspace(0, 1, 6))
        ax.grid(axis="x", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(labelsize=9)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("Dice of a volume: mean, 95 % over patients", fontsize=9)
        ax.set_title(f"against {_spoken(reference)}", fontsize=11, loc="left")
    for contrast in contrasts:
        inside = [at for (c, _), at in y.items() if c == contrast]
        for ax in axes:
            ax.axhspan(min(inside) - 0.5, max(inside) + 0.5, color="0.965", zorder=0)
    axes[0].set_yticks(list(y.values()), [f"{name}  ({contrast})" for contrast, name in y], fontsize=9)
    if y:
        axes[0].set_ylim(max(y.values()) + 0.6, -0.6)
    else:
        axes[0].text(0.5, 0.5, "no volume could be scored", transform=axes[0].transAxes, ha="center", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def reliability_figure(curves: Mapping[str, Reliability], *, title: str | None = None, least: int = 20) -> Figure:
    """How often a voxel of a given probability is lesion: one line a network, and below how many voxels there are.

    Args:
        curves: name -> counts.
        title: above the panels.
        least: bins of fewer voxels are drawn hollow, since their frequency is mostly chance.
    """
    figure = Figure(figsize=(5.2, 5.8), layout="constrained", facecolor="white")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    for i, (name, counts) in enumerate(curves.items()):
        colour, marker = _LOOKS[i % len(_LOOKS)]
        table = counts.table()
        table = table[table["count"] > 0]
        ax.plot(table["confidence"], table["frequency"], color=OKABE_ITO[colour], linewidth=1.6,
                label=f"{name} (ECE {counts.ece:.3f})")
        for enough, face in ((True, OKABE_ITO[colour]), (False, "white")):
            some = table[(table["count"] >= least) == enough]
            ax.plot(some["confidence"], some["frequency"], marker, color=OKABE_ITO[colour], markersize=6,
                    markerfacecolor=face, linestyle="none")
        edges = np.append(counts.table()["low"], 1.0)
        below.stairs(np.maximum(counts.count, 0.5), edges, color=OKABE_ITO[colour], linewidth=1.6, baseline=0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("share that is lesion", fontsize=9)
    ax.legend(fontsize=9, frameon=False, loc="upper left")
    below.set_yscale("log")
    below.set_ylabel("voxels", fontsize=9)
    below.set_xlabel("probability of lesion", fontsize=9)
    for part in (ax, below):
        part.grid(color="0.9", linewidth=0.8)
        part.set_axisbelow(True)
        part.spines[["top", "right"]].set_visible(False)
        part.tick_params(labelsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _spoken(reference: str) -> str:
    return {"truth": "the truth", "rater-1": "the rater's mask"}.get(reference, reference)
