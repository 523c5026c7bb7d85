"""The numbers of a RaterExplorer: a matrix of Dice, bars for each rater, and lesion volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.live import LiveView

__all__ = ["NETWORK", "TOGETHER", "TRUTH", "RaterCharts"]

TOGETHER, TRUTH, NETWORK = "together", "truth", "network"
_BARS = {TRUTH: "0.75", TOGETHER: OKABE_ITO["yellow"], NETWORK: OKABE_ITO["vermillion"]}


class RaterCharts:
    """Three charts on three axes of a live view.

    Args:
        view: whose picture they are on.
        axes: for the matrix, for each rater's bars, and for volumes.
        looks: who can be there -> (colour of OKABE_ITO, line style): numbers from '1' for raters, TRUTH, TOGETHER,
            NETWORK.
    """

    def __init__(self, view: LiveView, axes: Sequence[Axes], looks: Mapping[str, tuple[str, Any]]):
        self._matrix_axes, self._bar_axes, self._volume_axes = axes
        self.network = NETWORK in looks
        self._who: list[str] = []
        self._matrix(view, axes[0], len(looks) - 1)
        self._bars(view, axes[1], sum(name not in (TOGETHER, NETWORK) for name in looks))
        self._volumes(view, axes[2], [_BARS.get(name) or OKABE_ITO[look[0]] for name, look in looks.items()])
        for ax in axes[1:]:
            ax.tick_params(labelsize=9)
            ax.spines[["top", "right"]].set_visible(False)

    def _matrix(self, view: LiveView, ax: Axes, n: int) -> None:
        """Pairs below the diagonal: a picture of colours, and a number in each."""
        self._cells = ax.imshow(np.full((n, n), np.nan), cmap="cividis", vmin=0, vmax=1, zorder=1)
        ax.set_title("Dice of each pair, whole volume", fontsize=10, pad=4)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        self._numbers = {(i, j): ax.text(j, i, "", ha="center", va="center", fontsize=9, zorder=2)
                         for i in range(n) for j in range(i + 1)}
        view.move(self._cells, *self._numbers.values())

    def _bars(self, view: LiveView, ax: Axes, n: int) -> None:
        """How each agrees with all raters together, and the network with each."""
        width, at = (0.38 if self.network else 0.6), np.arange(n)
        shift = width / 2 if self.network else 0.0
        self._with = ax.bar(at - shift, np.zeros(n), width, color=_BARS[TOGETHER], edgecolor="0.2",
                            label="with all together")
        self._by, self._mean = [], None
        if self.network:
            self._by = ax.bar(at + shift, np.zeros(n), width, color=_BARS[NETWORK], edgecolor="0.2",
                              label="with the network")
            self._mean, = ax.plot(at + shift, np.full(n, np.nan), "D", color="black", markersize=5, zorder=4,
                                  markeredgecolor="white", label="with the mean code")
        self._heights = [ax.text(bar.get_x() + width / 2, 0, "", ha="center", va="bottom", fontsize=9, zorder=5)
                         for bar in (*self._with, *self._by)]
        ax.set(ylim=(0, 1.34), xlim=(-0.6, n - 0.4), yticks=[0, 0.5, 1])
        ax.set_ylabel("Dice, whole volume", fontsize=9)
        legend = ax.legend(fontsize=9, loc="upper right", ncols=3, frameon=False, handlelength=1.0, columnspacing=0.8,
                           handletextpad=0.4, borderaxespad=0.0)
        self._partner = next(text for text in legend.get_texts() if "together" in text.get_text())
        view.move(*self._with, *self._by, *([self._mean] if self._mean else []), *self._heights)

    def _volumes(self, view: LiveView, ax: Axes, colours: Sequence[Any]) -> None:
        """Bars from the top, in shares of what fits; their numbers stand beside them."""
        n = len(colours)
        self._mm3 = ax.barh(np.arange(n), np.zeros(n), 0.72, color=colours, edgecolor="0.2")
        self._mm3_words = [ax.text(0, k, "", ha="left", va="center", fontsize=9, zorder=5) for k in range(n)]
        ax.set(ylim=(n - 0.4, -0.6), xlim=(0, 1.12), xticks=[])
        ax.set_title("lesion volume, mm³", fontsize=10, pad=4)
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        view.move(*self._mm3, *self._mm3_words)

    def name(self, who: Sequence[str], styles: Mapping[str, str]) -> None:
        """Write who is who, '' for nobody, and what a rater's style is. This draws all anew: only where it changes."""
        self._who, ends = list(who), [name for name in who if name not in (TOGETHER, NETWORK)]
        at = range(len(who) - 1)
        self._matrix_axes.set_xticks(at, who[:-1], fontsize=9, rotation=45, ha="right", rotation_mode="anchor")
        self._matrix_axes.set_yticks(at, who[1:], fontsize=9)
        self._volume_axes.set_yticks(range(len(who)), who, fontsize=9)
        self._bar_axes.set_xticks(range(len(ends)), [f"{one}\n{styles[one]}" if one in styles else one for one in ends],
                                  fontsize=9)

    def show(self, agreement: pd.DataFrame, scored: Mapping[str, float], left_out: bool, told: Mapping[str, float],
             mean: Mapping[str, float], mm3: Mapping[str, float], reach: float) -> None:
        """Move all.

        Args:
            agreement: Dice of pairs, by name.
            scored: name -> Dice with the raters together, or (``left_out``) with the others.
            told, mean: name -> Dice with the network as it is told now, and told the mean code.
            mm3: name -> volume. reach: mm3 of a bar of full length.
        """
        self._pairs(np.array(agreement.reindex(index=self._who[1:], columns=self._who[:-1]), float))
        ends = [name for name in self._who if name not in (TOGETHER, NETWORK)]
        heights = [scored.get(who, np.nan) for who in ends] + [told.get(who, np.nan) for who in ends] * self.network
        marks = np.array([mean.get(who, np.nan) for who in ends])
        if self._mean:
            self._mean.set_ydata(marks)
        above = np.nan_to_num([*np.zeros(len(ends)), *(marks + 0.04)])   # no number behind a diamond
        for bar, text, height, free in zip((*self._with, *self._by), self._heights, heights, above, strict=False):
            bar.set_height(np.nan_to_num(height))
            text.set(y=max(np.nan_to_num(height), free) + 0.02, text=f"{height:.2f}" if np.isfinite(height) else "")
        partner = "with the others" if left_out else "with all together"
        if self._partner.get_text() != partner:
            self._partner.set_text(partner)
        for bar, text, name in zip(self._mm3, self._mm3_words, self._who, strict=True):
            length = min(mm3.get(name, 0.0) / reach, 1.0)
            bar.set_width(length)
            text.set(x=length, text=f" {mm3[name]:.0f}" if name in mm3 else "")

    def _pairs(self, table: np.ndarray) -> None:
        table[np.triu_indices(len(table), 1)] = np.nan
        self._cells.set_data(np.ma.masked_invalid(table))
        ink = colormaps["cividis"](np.nan_to_num(table))[..., :3] @ (0.299, 0.587, 0.114) > 0.45
        for (i, j), text in self._numbers.items():
            known = np.isfinite(table[i, j])
            text.set_text(f"{table[i, j]:.2f}" if known else "-" if self._who[i + 1] and self._who[j] else "")
            text.set_color("black" if ink[i, j] or not known else "white")
