"""The figure of the paper's table: Dice of each row beside the paper's, and the paired difference with its margin."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from msfilm.evaluate.figure import OKABE_ITO

__all__ = ["table1_figure"]

_SPOKEN = {"rater-1": "the rater's mask", "truth": "the truth"}


def table1_figure(content: dict[str, Any]) -> Figure:
    """Two panels of Dice (against the rater, and the truth where it is known) and one of FiLMed minus plain.

    Args:
        content: of table1.json.
    """
    rows = [row for row in content["rows"] if row["contrast"] == "all" and row["dice"] is not None]
    references = [name for name in ("rater-1", "truth") if any(row["reference"] == name for row in rows)]
    names = list(dict.fromkeys(row["name"] for row in rows if row["name"] != "rater-1"))
    # No wider than a page shows without shrinking, so that 9 pt is read as 9 pt.
    figure = Figure(figsize=(2.7 + 2.5 * (len(references) + 1), 2.0 + 0.44 * len(names)), layout="constrained",
                    facecolor="white")
    axes = figure.subplots(1, len(references) + 1, width_ratios=[1.0] * len(references) + [1.05], squeeze=False)[0]
    y = {name: i for i, name in enumerate(names)}
    for ax, reference in zip(axes, references, strict=False):
        _dice_panel(ax, [row for row in rows if row["reference"] == reference], y, reference, content)
    for ax in axes[1:-1]:
        ax.tick_params(labelleft=False)
    _difference_panel(axes[-1], content, references)
    figure.legend(*_legend(), loc="outside lower center", fontsize=9, frameon=False, ncols=2, columnspacing=2.5)
    return figure


def _legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    looks = {"mean here, 95 % over patients and seeds": {"marker": "o", "color": OKABE_ITO["blue"]},
             "mean of each seed": {"marker": "|", "color": OKABE_ITO["black"], "linestyle": "", "markersize": 9},
             "in the paper": {"marker": "x", "color": OKABE_ITO["vermillion"], "linestyle": "", "markeredgewidth": 2},
             "raters here, mean and 95 %": {"color": OKABE_ITO["green"]},
             "two raters in the paper": {"color": OKABE_ITO["green"], "linestyle": "--"},
             "FiLMed minus plain: 90 % (thick) and 95 %": {"color": OKABE_ITO["blue"], "linewidth": 3}}
    return [Line2D([], [], **look) for look in looks.values()], list(looks)


def _dice_panel(ax: Any, rows: list[dict[str, Any]], y: dict[str, int], reference: str,
                content: dict[str, Any]) -> None:
    agreement = (content.get("agreement") or {}).get("truth" if reference == "truth" else "pairwise")
    if agreement:
        ax.axvspan(*agreement["ci"], color=OKABE_ITO["green"], alpha=0.18, linewidth=0)
        ax.axvline(agreement["dice"], color=OKABE_ITO["green"], linewidth=1)
    if reference != "truth":
        ax.axvline(content["paper"]["raters"], color=OKABE_ITO["green"], linestyle="--", linewidth=1)
    for row in rows:
        if row["name"] not in y:
            continue
        at = y[row["name"]]
        colour = OKABE_ITO["blue"] if row.get("trained_on") else "0.45"
        ax.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=2.4, solid_capstyle="butt")
        if row["seeds"] > 1:
            ax.plot(row["dice_by_seed"], [at] * len(row["dice_by_seed"]), "|", color=OKABE_ITO["black"], markersize=11)
        ax.plot(row["dice"], at, "o", color=colour, markersize=6, markeredgecolor="white")
        ax.annotate(f"{row['dice']:.2f}", (row["dice"], at), xytext=(0, -13), textcoords="offset points", fontsize=9,
                    ha="center", va="center", color=colour)
        if reference != "truth" and row.get("paper"):
            ax.plot(row["paper"], at, "x", color=OKABE_ITO["vermillion"], markersize=7, markeredgewidth=2)
    ax.set(xlim=(-0.03, 1.03), xticks=np.linspace(0, 1, 6), ylim=(len(y) - 0.35, -0.6),
           yticks=list(y.values()), yticklabels=list(y), xlabel="Dice of a volume")
    pair = "a rater" if reference == "truth" else "two raters"
    ax.set_title(f"against {_SPOKEN.get(reference, reference)}"
                 + (f"\n({pair} here: {agreement['dice']:.2f})" if agreement else ""), fontsize=10, loc="left")
    _tidy(ax)


def _difference_panel(ax: Any, content: dict[str, Any], references: list[str]) -> None:
    found = [entry for entry in content["differences"] if entry["rule"] == "exclude" and entry["mean"] is not None
             and entry["low95"] is not None and entry["a"].startswith("FiLM")
             and entry["b"] in {row["name"] for row in content["rows"] if len(row.get("trained_on") or ()) > 1}]
    ax.axvspan(-0.02, 0.02, color=OKABE_ITO["yellow"], alpha=0.35, linewidth=0)
    ax.axvline(0, color="0.4", linewidth=1)
    labels = []
    for at, entry in enumerate(found):
        colour = OKABE_ITO["blue"] if entry["contrast"] == "all" else "0.45"
        ax.plot([entry["low95"], entry["high95"]], [at, at], color=colour, linewidth=1.4)
        ax.plot([entry["low90"], entry["high90"]], [at, at], color=colour, linewidth=3.6, solid_capstyle="butt")
        ax.plot(entry["mean"], at, "o", color=colour, markersize=7, markeredgecolor="white")
        ax.annotate(f"{entry['mean']:+.3f}", (entry["mean"], at), xytext=(0, -12), textcoords="offset points",
                    fontsize=9, ha="center", va="center", color=colour)
        labels.append(f"{entry['contrast']}, {'truth' if entry['reference'] == 'truth' else 'rater'}")
    reach = max([0.04, *(abs(entry[key]) for entry in found for key in ("low95", "high95"))]) * 1.15
    ax.set(xlim=(-reach, reach), ylim=(max(len(found), 1) - 0.35, -0.6), yticks=np.arange(len(found)),
           yticklabels=labels, xlabel="difference in Dice, paired")
    ax.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    ax.yaxis.tick_right()
    ax.set_title("FiLMed minus plain U-Net\n(yellow: within .02)", fontsize=10, loc="left")
    _tidy(ax)


def _tidy(ax: Any) -> None:
    ax.grid(axis="x", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.xaxis.label.set_size(9)
    ax.tick_params(axis="y", length=0)
