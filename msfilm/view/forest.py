"""The answers of all experiments in one picture: each difference with its interval, and what had been expected."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from msfilm.evaluate.answers import Answer
from msfilm.evaluate.figure import OKABE_ITO

__all__ = ["forest"]

_MARKS = {"+": ("green", "o", "above 0"), "-": ("vermillion", "s", "below 0"), "0": ("blue", "D", "a tie, within ±.02"),
          "?": ("black", "x", "nothing shown")}
_EDGE = 0.105   # beyond it the axis is cut: an arrow and a number say how far


def forest(answers: Sequence[Answer], *, limit: float = _EDGE) -> Figure:
    """Differences in Dice, a line each, under their question; grey: where the interval was expected.

    Args:
        answers: as ``msfilm.evaluate.answers.answers`` gives them.
        limit: half the width of the axis; what lies beyond is drawn at its edge, with its value.
    """
    groups = [(key, list(part)) for key, part in groupby(answers, key=lambda one: (one.number, one.question))]
    rows = len(answers) + 1.25 * len(groups)
    figure = Figure(figsize=(9.2, 0.8 + 0.245 * rows), layout="constrained", facecolor="white")
    ax = figure.subplots()
    y, places, labels = 0.0, [], []
    for (number, question), part in groups:
        y += 0.55
        ax.text(-0.005, y, f"{number}  {question}", transform=ax.get_yaxis_transform(), ha="right", va="center",
                fontsize=10, fontweight="bold")
        y += 0.95
        for answer in part:
            _line(ax, answer, y, limit)
            places.append(y)
            labels.append(answer.what)
            y += 1.0
        y -= 0.25
    ax.set_yticks(places, labels, fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=9)
    ax.set_ylim(y + 0.1, 0)
    ax.set_xlim(-limit * 1.16, limit * 1.16)
    ax.axvline(0, color="0.35", linewidth=1, zorder=1)
    ax.set_xlabel("difference in Dice (95 % over patients and seeds)", fontsize=10)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(axis="x", color="0.93", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    _legend(figure, ax)
    return figure


def _line(ax: Axes, answer: Answer, y: float, limit: float) -> None:
    if answer.expected != "?":
        low, high = np.clip(answer.span, -limit * 1.16, limit * 1.16)
        ax.add_patch(Rectangle((low, y - 0.42), high - low, 0.84, facecolor="0.88", edgecolor="none", zorder=0.5))
    colour, mark, _ = _MARKS[answer.found]
    colour = OKABE_ITO[colour]
    if abs(answer.mean) > limit:
        side = float(np.sign(answer.mean))
        ax.plot(side * limit * 1.08, y, ">" if side > 0 else "<", color=colour, markersize=8, zorder=3)
        ax.text(side * limit * 1.02, y, f"{answer.mean:+.2f} ({answer.low:+.2f} to {answer.high:+.2f})", color=colour,
                ha="right" if side > 0 else "left", va="center", fontsize=9, zorder=3)
        return
    if np.isfinite(answer.low):
        ax.plot(np.clip([answer.low, answer.high], -limit * 1.16, limit * 1.16), [y, y], color=colour, linewidth=1.8,
                solid_capstyle="butt", zorder=2)
    ax.plot(answer.mean, y, mark, color=colour, markersize=6.5, markeredgewidth=1.8, zorder=3)


def _legend(figure: Figure, ax: Axes) -> None:
    handles = [ax.plot([], [], mark, color=OKABE_ITO[colour], markersize=6.5, markeredgewidth=1.8, linestyle="")[0]
               for colour, mark, _ in _MARKS.values()]
    handles.append(Rectangle((0, 0), 1, 1, facecolor="0.88"))
    names = [name for *_, name in _MARKS.values()] + ["expected, written down before"]
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
