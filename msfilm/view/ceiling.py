"""The figure of the ceilings: Dice of networks, raters and the best possible masks as raters disagree more and more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO

__all__ = ["PAPER", "ceiling_figure"]

PAPER = {"pairwise": 0.61, "network": 0.72}  # of two raters, and of the networks against a rater
_DASHES = {"dashed": (0, (5, 1.6)), "dashdot": (0, (6, 1.5, 1.2, 1.5)), "dotted": (0, (1, 1.2))}
# line -> words, colour, style, width, marker
_LOOKS = {
    "network, truth": ("network\nagainst the truth", "blue", "-", 2.6, "o"),
    "network": ("network\nagainst a rater", "vermillion", "-", 2.6, "s"),
    "style": ("ceiling: style known", "orange", _DASHES["dashdot"], 1.5, "^"),
    "expected": ("ceiling: best mask", "green", _DASHES["dashed"], 1.5, "v"),
    "truth": ("ceiling: the truth", "purple", _DASHES["dotted"], 2.0, "D"),
    "pairwise": ("rater against rater", "black", "-", 1.1, ""),
}
_ASIDE = {"style": 0.005, "truth": -0.005, "pairwise": 0.01}  # so that intervals lie beside each other
_TITLES = {"nested": "nested: each centre has its own rater", "crossed": "crossed: any rater draws any patient"}


def ceiling_figure(*results: Mapping[str, Any], title: str | None = None) -> Figure:
    """One panel a result, such as nested and crossed raters.

    To the right raters disagree more. The line of rater against rater runs straight by construction, for its height is
    also the place on the axis; what lies above it agrees with a rater better than another rater does.

    Args:
        results: each with ``ceilings`` (of ``measure_ceilings``), and ``rows`` of the networks where there are any.
        title: above all.

    Raises:
        SettingError: PLOT-SHAPE without a result, or for one without ceilings.
    """
    if not results or not all(result.get("ceilings") for result in results):
        raise SettingError("PLOT-SHAPE", "there are no ceilings to draw", mend="give what measure_ceilings returns")
    panels = [_lines(result) for result in results]
    figure = Figure(figsize=(0.6 + 4.9 * len(results), 5.0 + (0.3 if title else 0)), layout="constrained",
                    facecolor="white")
    axes = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
    low = min([PAPER["network"] - 0.05, *(point[2] for lines in panels for line in lines.values() for point in line)])
    least = min([PAPER["pairwise"], *(point[0] for lines in panels for line in lines.values() for point in line)])
    floor, across = np.floor(low * 10) / 10, 1.02 - least
    for ax, result, lines in zip(axes, results, panels, strict=True):
        ax.set(xlim=(1.02, least - 0.7 * across), ylim=(floor, 1.02), xticks=np.arange(round(least * 10), 11) / 10)
        _panel(ax, lines)
        _spreads(ax, result["ceilings"])
        raters = result["ceilings"][0]["raters"]
        ax.set_title(_TITLES.get(raters, raters), fontsize=11, loc="left", fontweight="bold")
    axes[0].set_ylabel("Dice of a volume, mean with 95 % interval", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _lines(result: Mapping[str, Any]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Line -> (agreement of two raters, Dice, low, high) of every spread, agreement falling."""
    ceilings = [row for row in result["ceilings"] if row["dice"] is not None]
    agreement = {row["arm"]: row["dice"] for row in ceilings if row["kind"] == "pairwise"}
    found: dict[str, list[tuple[float, float, float, float]]] = {}

    def add(line: str, row: Mapping[str, Any], arm: str) -> None:
        if arm in agreement and row["dice"] is not None:
            low, high = (row["dice"] if row[end] is None else row[end] for end in ("low", "high"))
            found.setdefault(line, []).append((agreement[arm], row["dice"], low, high))

    for row in result.get("rows", ()):
        if row["contrast"] == "all" and row["reference"] in ("rater-1", "truth"):
            add("network, truth" if row["reference"] == "truth" else "network", row, row["name"])
    for row in ceilings:
        add(row["kind"], row, row["arm"])
    return {line: sorted(found[line], reverse=True) for line in _LOOKS if line in found}


def _panel(ax: Axes, lines: Mapping[str, list[tuple[float, float, float, float]]]) -> None:
    for line, points in lines.items():
        _, colour, style, width, marker = _LOOKS[line]
        x, y, low, high = np.array(points).T
        look = {"color": OKABE_ITO[colour], "zorder": 3 + (width > 2.2)}
        if line.startswith("network"):
            ax.fill_between(x, low, high, color=OKABE_ITO[colour], alpha=0.18, linewidth=0, zorder=2)
        else:
            ax.vlines(x + _ASIDE.get(line, 0.0), low, high, linewidth=1.1, alpha=0.7, **look)
        ax.plot(x, y, linestyle=style, linewidth=width, marker=marker, markersize=5, markeredgecolor="white",
                markeredgewidth=0.6, **look)
    _name(ax, lines)
    ax.plot(PAPER["pairwise"], PAPER["network"], "X", color="black", markersize=11, markeredgecolor="white", zorder=6)
    ax.annotate("the paper's networks .72,\nits raters .61", (PAPER["pairwise"], PAPER["network"]), xytext=(0.62, 0.93),
                textcoords="axes fraction", fontsize=9, ha="left", va="top", zorder=6,
                arrowprops={"arrowstyle": "-", "color": "0.3", "linewidth": 0.8, "shrinkB": 6})
    ax.set_xlabel("Dice of two raters (to the right they disagree more)", fontsize=10)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def _name(ax: Axes, lines: Mapping[str, list[tuple[float, float, float, float]]]) -> None:
    """Each line's name beside its right end, moved up or down until none lies on another."""
    bottom, top = ax.get_ylim()
    step = (top - bottom) * 0.058
    order = sorted(lines, key=lambda line: lines[line][-1][1])
    heights = [_LOOKS[line][0].count("\n") * 0.8 * step + step for line in order]
    places = [lines[line][-1][1] for line in order]
    for _ in range(500):   # neighbours push each other apart
        for i in range(len(order) - 1):
            lack = (heights[i] + heights[i + 1]) / 2 - (places[i + 1] - places[i])
            if lack > 1e-6:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
        places = [min(max(place, bottom + height / 2), top - height / 2)
                  for place, height in zip(places, heights, strict=True)]
    for line, place in zip(order, places, strict=True):
        x, y = lines[line][-1][:2]
        words, colour = _LOOKS[line][0], OKABE_ITO[_LOOKS[line][1]]
        gap = (ax.get_xlim()[0] - ax.get_xlim()[1]) * np.array([0.015, 0.06])
        ax.plot([x - gap[0], x - gap[1]], [y, place], color=colour, linewidth=0.9, solid_capstyle="round", zorder=2)
        ax.text(x - gap[1] * 1.12, place, f"{words} {y:.2f}", color=_readable(colour), fontsize=9, va="center",
                ha="left", linespacing=1.05)


def _readable(colour: str) -> str:
    """Darker where text of that colour would be faint on white."""
    return {OKABE_ITO["orange"]: "#8F6000", OKABE_ITO["purple"]: "#8E3E6F", OKABE_ITO["green"]: "#00694C",
            OKABE_ITO["vermillion"]: "#A84900"}.get(colour, colour)


def _spreads(ax: Axes, ceilings: list[Mapping[str, Any]]) -> None:
    """The spread of the raters along the top."""
    pairs = {row["dice"]: row["spread"] for row in ceilings if row["kind"] == "pairwise" and row["dice"] is not None}
    above = ax.secondary_xaxis("top")
    above.set_xticks(sorted(pairs), [f"{pairs[x]:g}" for x in sorted(pairs)])
    above.set_xlabel("spread of the raters (1: as in this kit)", fontsize=9, loc="left")
    above.tick_params(labelsize=9, length=3)
    above.spines["top"].set_visible(False)
