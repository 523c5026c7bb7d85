"""What FilmExplorer draws: gamma or beta of every layer as heat map, strips and distances; Dice along a slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.film_parts import Parameters
from msfilm.view.live import LiveView
from msfilm.view.panels import SlicePanel

__all__ = ["CODE_LOOKS", "CurvePanel", "FilmPicture", "LayersPanel", "MapPanel"]

_LOOKS = {"reference": ("orange", "-"), "network": ("sky", (0, (4, 1.5)))}
# From top to bottom in each layer: the code at one end, the one in use, the code at the other end.
CODE_LOOKS = {"first": ("blue", "o"), "now": ("vermillion", "D"), "last": ("black", "^")}
_ROW, _GAP = 5, 1  # pixels of the heat map's picture: of each of the three rows, and of white below each layer
_LAYER = 3 * _ROW + _GAP
_PAD = (0.86, 0.86, 0.86, 1.0)


class LayersPanel:
    """Gamma (or beta) of every FiLM layer: heat map (layers by channels), strips of its values, distances.

    Each layer has three rows, in the order of CODE_LOOKS. Grey: the layer has no such channel.

    Args:
        view: whose picture it is on.
        axes: for heat map, strips and distances.
        symbol: 'γ' or 'β'.
        channels: layer -> how many it has.
    """

    def __init__(self, view: LiveView, axes: Sequence[Axes], symbol: str, channels: Mapping[str, int]):
        self.heat, self.strips, self.bars = axes
        self.symbol, self.channels = symbol, dict(channels)
        n, most = len(channels), max(channels.values())
        self._centre = np.zeros((n, most))
        self._values = np.full((3, n, most), np.nan)
        self._reach = 1.0
        self.picture = self.heat.imshow(np.zeros((2, 2, 4)), aspect="auto", interpolation="nearest", zorder=1,
                                        extent=(-0.5, most - 0.5, n, 0))
        self.mark = self.heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=OKABE_ITO["vermillion"], zorder=3,
                                                  linewidth=1.8, path_effects=[
                                                      patheffects.Stroke(linewidth=3.8, foreground="white"),
                                                      patheffects.Normal()]))
        self.points = {name: self.strips.plot([], [], marker, color=OKABE_ITO[colour], markersize=3.4, alpha=0.75,
                                              markeredgewidth=0, zorder=2)[0]
                       for name, (colour, marker) in CODE_LOOKS.items()}
        self.chosen, = self.strips.plot([], [], "o", markersize=9, markerfacecolor="none", zorder=4,
                                        markeredgecolor=OKABE_ITO["vermillion"], markeredgewidth=1.6)
        # In units of the largest value shown, so that another scale moves three texts and no axis.
        self.strips.imshow(np.linspace(0, 1, 128)[None], cmap="cividis", aspect="auto", zorder=1,
                           extent=(-1, 1, n + 0.32, n + 0.08))
        self.strips.set_xlim(-1.06, 1.06)
        self.strips.set_xticks(np.linspace(-1, 1, 5), [])
        self.scale = [self.strips.annotate("", (x, 0), (0, -5), xycoords=("data", "axes fraction"), ha=ha, va="top",
                                           textcoords="offset points", fontsize=9)
                      for x, ha in ((-1, "left"), (0, "center"), (1, "right"))]
        self.lengths = self.bars.barh(np.arange(n) + 0.47, np.zeros(n), height=0.55, color=OKABE_ITO["sky"],
                                      edgecolor="black", linewidth=0.8)
        for ax in (self.heat, self.strips, self.bars):
            ax.set_ylim(n + 0.36, -0.04)
            ax.tick_params(labelsize=9, length=2)
            ax.tick_params(axis="y", length=0)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.set_yticks(np.arange(n) + 0.47, [])
        self.heat.set_yticks(np.arange(n) + 0.47, [f"{name} ({c})" for name, c in channels.items()], fontsize=9)
        self.heat.spines["bottom"].set_visible(False)
        self.heat.set_xlim(-0.5, most - 0.5)
        self.heat.set_xticks([0, most - 1], ["channel 0", str(most - 1)])
        self.heat.xaxis.get_major_ticks()[0].label1.set_horizontalalignment("left")
        self.title = self.heat.set_title(" ", fontsize=10, loc="left", pad=4)
        self.strips.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        for ax in (self.strips, self.bars):
            ax.hlines(np.arange(1, n) - 0.03, 0, 1, color="0.9", linewidth=0.8, zorder=0,
                      transform=ax.get_yaxis_transform())
        view.move(self.picture, self.mark, *self.points.values(), self.chosen, *self.scale)

    def fit(self, first: Sequence[np.ndarray], last: Sequence[np.ndarray], centre: Sequence[np.ndarray], reach: float,
            distances: Sequence[float], words: str) -> None:
        """Set what stands still: both ends' values of each layer (C,), what is taken from all values, the scale.

        Args:
            first, last: of the codes at the two ends.
            centre: the value of each channel that is shown as 0.
            reach: largest value shown, to either side.
            distances: between the ends, a layer.
            words: what the scale is of.
        """
        for row, values in ((0, first), (2, last)):
            self._set(row, values)
        for layer, values in enumerate(centre):
            self._centre[layer, : len(values)] = values
        self._reach = reach
        for name, row in (("first", 0), ("last", 2)):
            self.points[name].set_data(*self._strip(row))
        for text, said in zip(self.scale, (f"−{reach:.2f}", words, f"+{reach:.2f}"), strict=True):
            text.set_text(said)
        if [bar.get_width() for bar in self.lengths] == [*distances]:
            return  # else all that stands still would be drawn anew
        for bar, distance in zip(self.lengths, distances, strict=True):
            bar.set_width(distance)
        most = max(*distances, 1e-6)
        ten = 10 ** np.floor(np.log10(most))
        self.bars.set_xlim(0, most * 1.15)
        self.bars.set_xticks([0, np.floor(most / ten) * ten], ["0", f"{np.floor(most / ten) * ten:g}"])

    def follow(self, now: Sequence[np.ndarray], layer: int, channel: int) -> None:
        """Set the row of the code in use, and mark a channel."""
        self._set(1, now)
        self.picture.set_data(self._rgba())
        self.points["now"].set_data(*self._strip(1))
        self.mark.set_bounds(channel - 0.5, layer, 1, 3 * _ROW / _LAYER)
        x = np.clip(self._shown(1)[layer, channel] / self._reach, -1.04, 1.04)
        self.chosen.set_data([x], [layer + 1.5 * _ROW / _LAYER])

    def at(self, x: float, y: float) -> tuple[int, int] | None:
        """Layer and channel under a point of the heat map; None where there is none."""
        layer, channel = int(np.floor(y)), round(x)
        if 0 <= layer < len(self.channels) and 0 <= channel < list(self.channels.values())[layer]:
            return layer, channel
        return None

    def _set(self, row: int, values: Sequence[np.ndarray]) -> None:
        for layer, half in enumerate(values):
            self._values[row, layer, : len(half)] = half

    def _shown(self, row: int) -> np.ndarray:
        return self._values[row] - self._centre

    def _strip(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        shown = self._shown(row)
        y = np.broadcast_to(np.arange(len(shown))[:, None] + (row + 0.5) * _ROW / _LAYER, shown.shape)
        known = ~np.isnan(shown)
        return np.clip(shown[known] / self._reach, -1.04, 1.04), y[known]

    def _rgba(self) -> np.ndarray:
        shown = self._values - self._centre  # (3, layers, channels)
        rgba = matplotlib.colormaps["cividis"](np.clip((shown / self._reach + 1) / 2, 0, 1))
        rgba[np.isnan(shown)] = _PAD
        rows = np.repeat(rgba.transpose(1, 0, 2, 3), _ROW, axis=1)  # (layers, 3 rows of pixels, channels, 4)
        white = np.ones((len(rows), _GAP, *rows.shape[2:]))
        return np.concatenate([rows, white], axis=1).reshape(-1, *rows.shape[2:])


class CurvePanel:
    """Dice of the slice along a slider: as changed, unchanged, at each stop, and where one stands.

    Args:
        view: whose picture it is on.
        ax: where.
    """

    def __init__(self, view: LiveView, ax: Axes):
        self.ax = ax
        blue, red, green = OKABE_ITO["blue"], OKABE_ITO["vermillion"], OKABE_ITO["green"]
        self.unchanged, = ax.plot([], [], color="0.45", linestyle=(0, (4, 2)), linewidth=1.4, zorder=1)
        self.line, = ax.plot([], [], color=blue, linewidth=2, zorder=2)
        self.stops, = ax.plot([], [], "o", color=blue, markersize=7, markerfacecolor="white", markeredgewidth=1.6,
                              zorder=3)
        self.right, = ax.plot([], [], "o", color=blue, markersize=7, zorder=4)
        self.own, = ax.plot([], [], "s", color=green, markersize=6, markeredgecolor="white", zorder=4.5)
        self.at, = ax.plot([], [], color=red, linewidth=1.2, zorder=5)
        self.now, = ax.plot([], [], "D", color=red, markersize=7, markeredgecolor="white", zorder=6)
        ax.set_ylim(-0.03, 1.03)
        ax.set_yticks([0, 0.5, 1])
        ax.tick_params(labelsize=9, length=2)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", linewidth=0.8)
        ax.set_axisbelow(True)
        self._fitted: tuple = ()
        self.title = ax.set_title(" ", fontsize=10, pad=4)
        self.none = ax.text(0.5, 0.5, "no Dice here", transform=ax.transAxes, fontsize=9, ha="center", va="center")
        view.move(self.unchanged, self.line, self.stops, self.right, self.own, self.at, self.now, self.title, self.none)

    def fit(self, low: float, high: float, stops: Mapping[float, str]) -> None:
        """The axis of another slider."""
        if self._fitted == (fitted := (low, high, dict(stops))):
            return
        self._fitted = fitted
        self.ax.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
        if stops:
            crowded = sum(map(len, stops.values())) > 30
            self.ax.set_xticks([*stops], [*stops.values()], fontsize=9, rotation=30 if crowded else 0,
                               ha="right" if crowded else "center", rotation_mode="anchor")
        else:
            at = np.linspace(low, high, 5)[1:4]
            self.ax.set_xticks(at, [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in at], fontsize=9,
                               rotation=0, ha="center")

    def show(self, grid: np.ndarray, dice: np.ndarray, unchanged: np.ndarray | None, stops: Sequence[float],
             right: float | None, own: Mapping[float, float]) -> None:
        """Another slice, change or reference.

        Args:
            grid, dice: values of the slider and Dice there; ``unchanged`` the same without a change, or None.
            stops: values where a code is exact.
            right: the right code's.
            own: value -> Dice against the mask of the rater who stands there.
        """
        self.line.set_data(grid, dice)
        self.unchanged.set_data(*(([], []) if unchanged is None else (grid, unchanged)))
        self.none.set_visible(not np.isfinite(dice).any())  # both masks empty, or no reference
        at = np.isin(grid, [*stops])
        self.stops.set_data(grid[at], dice[at])
        here = grid == right if right is not None else np.zeros(len(grid), bool)
        self.right.set_data(grid[here], dice[here])
        self.own.set_data([*own], [*own.values()])

    def follow(self, value: float | None, dice: float) -> None:
        """Where the slider stands."""
        shown = [] if value is None else [value]
        self.at.set_data(shown * 2, [-0.03, 1.03][: 2 * len(shown)])
        self.now.set_data(shown, [dice] * len(shown))


class MapPanel:
    """One feature map over the whole of the slice, however coarse: the axes stay when the layer is another one."""

    def __init__(self, view: LiveView, ax: Axes):
        ax.set_axis_off()
        self.image = ax.imshow(np.zeros((2, 2)), cmap="gray", interpolation="nearest", extent=(0, 1, 1, 0))
        self.title = ax.set_title(" ", fontsize=10, pad=4)
        view.move(self.image, self.title)


class FilmPicture:
    """All panels of FilmExplorer on the figure of ``view``.

    Args:
        view: whose figure it is.
        channels: FiLM layer -> how many channels.
    """

    def __init__(self, view: LiveView, channels: Mapping[str, int]):
        figure = view.figure
        figure.get_layout_engine().set(w_pad=0.05, h_pad=0.03, wspace=0.01, hspace=0.03)
        outer = GridSpec(2, 1, figure, height_ratios=[2.35, 4.0])
        top = [figure.add_subplot(cell) for cell in
               GridSpecFromSubplotSpec(1, 5, outer[0], width_ratios=[1, 1, 1, 1, 1.3])]
        low = GridSpecFromSubplotSpec(2, 3, outer[1], width_ratios=[4.6, 2.9, 1.5])
        self.slice = SlicePanel(view, top[0], looks=_LOOKS)
        self.map = SlicePanel(view, top[1], looks={"network": _LOOKS["network"]}, cmap="cividis", scale_bar=False)
        self.before, self.after = (MapPanel(view, ax) for ax in top[2:4])
        self.curve = CurvePanel(view, top[4])
        self.halves = {symbol: LayersPanel(view, [figure.add_subplot(low[row, i]) for i in range(3)], symbol, channels)
                       for row, symbol in enumerate("γβ")}
        lines = [Line2D([], [], color=OKABE_ITO[colour], linestyle=style, linewidth=1.8)
                 for colour, style in _LOOKS.values()]
        top[0].legend(lines, list(_LOOKS), loc="upper left", bbox_to_anchor=(-0.04, 0.0), ncols=2, fontsize=9,
                      frameon=False, borderaxespad=0.2, handlelength=2.2, columnspacing=0.9,
                      handletextpad=0.4).set_in_layout(False)
        marks = [Line2D([], [], color=OKABE_ITO[colour], marker=marker, linestyle="", markersize=5)
                 for colour, marker in CODE_LOOKS.values()]
        self._key = self.halves["γ"].strips.legend(
            marks, list(CODE_LOOKS), loc="lower left", bbox_to_anchor=(-0.03, 0.98), ncols=3, fontsize=9, frameon=False,
            handletextpad=0.1, columnspacing=0.8, borderaxespad=0.1).get_texts()
        self.halves["γ"].bars.set_title("ends apart, RMS", fontsize=10)

    def fit(self, ends: Parameters, grid: Parameters, middle: Parameters | None, distances: Sequence[tuple],
            names: Sequence[str]) -> None:
        """What stands still while a slider moves.

        Args:
            ends: gamma and beta at the slider's two ends, (2, C).
            grid: the same all along it, (n, C), for the scales.
            middle: of the mean code, (1, C), to show differences from it; None: from the identity.
            distances: of the ends' gamma and beta, a layer.
            names: of the ends.
        """
        for i, (symbol, half) in enumerate(self.halves.items()):
            zero = [np.full(pair[i].shape[1], 1.0 - i) if middle is None else middle[name][i][0].numpy()
                    for name, pair in ends.items()]
            reach = max(float(np.abs(pair[i].numpy() - here).max()) for pair, here in
                        zip(grid.values(), zero, strict=True))
            words = f"{symbol} − that of the mean code" if middle is not None else "γ − 1" if symbol == "γ" else "β"
            half.fit(*([pair[i][row].numpy() for pair in ends.values()] for row in (0, -1)), zero, max(reach, 1e-6),
                     [distance[i] for distance in distances], words)
            half.title.set_text(f"{symbol} of each layer: rows {names[0]}, now, {names[1]}")
        for text, words in zip(self._key, (names[0], "now", names[1]), strict=True):
            text.set_text(words)

    def maps(self, maps: Sequence[np.ndarray], usual: np.ndarray, pair: tuple[np.ndarray, np.ndarray], layer: str,
             channel: int) -> None:
        """A channel before and after FiLM, (h, w) each, both in one grey window: that of ``usual`` (2, h, w)."""
        low, high = (float(value) for value in np.percentile(usual, (0.5, 99.5)))
        gamma, beta = (half[channel] for half in pair)
        titles = f"before: {layer}, ch. {channel}", f"after: × {gamma:.2f} {'−' if beta < 0 else '+'} {abs(beta):.2f}"
        for panel, seen, title in zip((self.before, self.after), maps, titles, strict=True):
            panel.image.set_data(seen)
            panel.image.set_clim(low, high if high > low else low + 1)
            panel.title.set_text(title)
