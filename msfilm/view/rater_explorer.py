"""RaterExplorer: what several raters drew of one lesion, their masks combined, and a network in every rater's style."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.agreement import pairwise_dice
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.evaluate.metrics import dice
from msfilm.model.weights import Network, load_network
from msfilm.view.live import LiveView, slider
from msfilm.view.panels import SlicePanel
from msfilm.view.rater_charts import NETWORK, TOGETHER, TRUTH, RaterCharts
from msfilm.view.rater_volume import COMBINED, RaterVolume, StyleAxis, several_raters

__all__ = ["RaterExplorer"]

_RATERS = [("sky", "-"), ("orange", (0, (5, 1.5))), ("green", (0, (1.4, 1.2))), ("purple", (0, (6, 1.5, 1.2, 1.5))),
           ("sky", (0, (2, 2))), ("orange", (0, (1, 1))), ("green", "-"), ("purple", (0, (3, 1)))]
_LOOKS = {TRUTH: ("white", (0, (1, 1.2))), TOGETHER: ("yellow", (0, (7, 1.5))), NETWORK: ("vermillion", "-")}
_CLOSE_MM = 18.0
_STYLES_MM = (-0.45, -0.15, 0.15, 0.45)   # of the raters that film-rater-small was trained on


class RaterExplorer(LiveView):
    """Several raters' masks of one lesion, combined by share or by STAPLE; with a network, a slider along their styles.

    In one line: ``RaterExplorer(slices)`` for a SliceSet that several raters drew, ``RaterExplorer()`` for a phantom
    that four raters of clear styles drew, and ``RaterExplorer(slices, "film-rater-small", style_mm=...)`` with the
    network. Outlines are of the crop; Dice and mm³ are of the whole volume on the scan's own grid. 'together' is where
    the share of raters (or STAPLE's probability) reaches the threshold; a half is the majority, ties marked. The bars
    say how each rater agrees with it, or with what the others alone would make of it.

    The style slider gives the network a code between those of its raters, in the order of their styles, and a little
    beyond either end; its outline, its volume and its Dice with each rater follow. A diamond is the mean code's Dice.

    Args:
        slices: with masks rater-1, rater-2 ..; ``volumes['raters']`` says who they are.
        network: told the rater: a Network, a run's folder, or the name of one that comes with msfilm. Without one there
            is no style slider.
        style_mm: rater -> bias in mm of the network's raters. The phantom's own are known; else the raters stand in
            the order of the code.
        volume: to start with; by default the one in which most is marked.

    Attributes:
        volume: a ``RaterVolume``. agreement: Dice of all pairs (DataFrame). scored: rater -> Dice with all together or
        the others. dice: rater (and truth) -> Dice of the network's mask. weights: rater -> share of its code.
        nearest: rater whose style is nearest; '' for the mean code. mm3: who -> lesion volume.

    Raises:
        SettingError: AGREEMENT-FEW, VOLUME-UNKNOWN, STYLE-UNKNOWN, NETWORK-UNKNOWN.
    """

    def __init__(self, slices: SliceSet | None = None, network: Network | str | Path | None = None, *,
                 style_mm: Mapping[str, float] | None = None, volume: str | None = None):
        super().__init__(10.0, 6.3)
        if slices is None:
            slices, style_mm = _phantom(), style_mm or {f"rater-{k:02d}": mm for k, mm in enumerate(_STYLES_MM, 1)}
        names = several_raters(slices)
        if volume is not None and volume not in names:
            raise SettingError("VOLUME-UNKNOWN", f"no volume '{volume}' of several raters", mend=suggest(volume, names))
        self._volumes = {name: RaterVolume(slices, name) for name in names}
        self.axis = None
        if network is not None:
            self.axis = StyleAxis(network if isinstance(network, Network) else load_network(network), style_mm)
        self.style_mm = {} if style_mm is None else dict(style_mm)
        start = volume or max(names, key=lambda name: self._volumes[name].marked_mm3)
        self.places = max(len(one.raters) for one in self._volumes.values())
        if self.places > len(_RATERS):
            raise SettingError("AGREEMENT-FEW", f"{self.places} raters of a volume; at most {len(_RATERS)} can be told "
                               "apart", mend="leave some of the masks out")
        truth = any(TRUTH in one.own for one in self._volumes.values())
        self._extra = [*([TRUTH] if truth else []), TOGETHER, *([NETWORK] if self.axis else [])]
        rows = self._controls(start)
        self._draw()
        self._who: dict[str, str] = {}
        self._shown: tuple[bool, ...] = ()
        self._turn()
        self.finish(*rows)

    @classmethod
    def example(cls) -> RaterExplorer:
        return cls(network="film-rater-small")

    # ----- made once

    def _controls(self, start: str) -> list[ipywidgets.Widget]:
        wrap = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        words = {"description_width": "initial"}

        def choice(name: str, text: str, options: Any, value: Any, then: Any = None) -> ipywidgets.Widget:
            return self.add(name, ipywidgets.Dropdown(options=options, value=value, description=text, style=words,
                                                      layout={"width": "auto", "margin": "2px 1em 2px 2px"}), then)

        def tick(name: str, text: str, value: bool) -> ipywidgets.Widget:
            return self.add(name, ipywidgets.Checkbox(value=value, description=text, indent=False,
                                                      layout={"width": "auto", "margin": "0 1.2em 0 0"}))

        options = [(f"{name} (marked: {one.marked_mm3:.0f} mm³)", name)
                   for name, one in self._volumes.items()]
        first = [choice("volume", "volume", options, start, self._turn),
                 self.add("slice", slider("slice", 0, 0, 1, width="20em")), tick("close", "close view", True)]
        shown = [tick(f"show {k}", f"rater {k}", True) for k in range(1, self.places + 1)]
        shown += [tick(f"show {name}", name, name == (NETWORK if self.axis else TRUTH)) for name in self._extra]
        third = [choice("combine", "together by", COMBINED, COMBINED[0]),
                 self.add("threshold", slider("threshold", 0.5, 0.05, 0.95, 0.05, width="20em")),
                 tick("leave out", "score each with the others only", False)]
        rows = [first, [ipywidgets.Label("outlines:"), *shown], third]
        if self.axis:
            styles, unit = self.axis.styles, self.axis.unit
            step = np.diff(styles).min() / 6

            def along() -> None:
                self.controls["mean code"].value = False

            rows.append([
                self.add("style", slider(f"style{',' if unit else ''}{unit}", float(styles[0]), styles[0] - 3 * step,
                                         styles[-1] + 3 * step, float(step), width="26em"), along),
                tick("mean code", "the mean code instead", False),
                choice("map", "map of", (NETWORK, TOGETHER), NETWORK)])
        return [ipywidgets.HBox(row, layout=wrap) for row in rows]

    def _draw(self) -> None:
        grid = self.figure.add_gridspec(2, 6, height_ratios=(3.0, 1.75))
        looks = {str(k): _RATERS[k - 1] for k in range(1, self.places + 1)}
        looks |= {name: _LOOKS[name] for name in self._extra}
        self.looks = looks
        self.slice = SlicePanel(self, self.figure.add_subplot(grid[0, :2]), looks=looks)
        self.map = SlicePanel(self, self.figure.add_subplot(grid[0, 2:4]), cmap="cividis",
                              looks={name: looks[name] for name in (TOGETHER, NETWORK) if name in looks})
        self.map.image.set_clim(0, 1)
        below = self.map.ax.inset_axes((0, -0.075, 1, 0.045))
        self.figure.colorbar(self.map.image, cax=below, orientation="horizontal", ticks=[0, 0.5, 1])
        below.tick_params(labelsize=9)
        for panel in (self.slice, self.map):
            panel.ax.set_anchor("N")
        places = (grid[0, 4:], grid[1, :3], grid[1, 3:])
        self.charts = RaterCharts(self, [self.figure.add_subplot(place) for place in places], looks)
        handles = [Line2D([], [], color=OKABE_ITO.get(colour, colour), linestyle=style, linewidth=2.2, label=" " * 9)
                   for colour, style in looks.values()]
        self._key = self.figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9,
                                       handlelength=3.0, columnspacing=1.2, facecolor="0.25", labelcolor="white",
                                       framealpha=1, edgecolor="none")

    # ----- another volume

    def _turn(self) -> None:
        """Names, limits and the busiest slice of the chosen volume."""
        self.volume = volume = self._volumes[self.controls["volume"].value]
        with self.hold():
            move = self.controls["slice"]
            move.max, move.value = len(volume.images) - 1, volume.busiest
        self._reach = max(1.0, volume.marked_mm3)   # mm3 at the bars' full length
        self._window = self._close_view(np.any([*volume.crops.values()], axis=(0, 1)))
        blank = [""] * (self.places - len(volume.raters))
        who = dict(zip(self.looks, [*volume.raters, *blank, *self._extra], strict=True))   # look -> name
        if who != self._who:
            self._who = who
            self._name()

    def _name(self) -> None:
        """Write who is who; this draws all anew, so only where it changes."""
        names = list(self._who.values())
        for k in range(1, self.places + 1):
            self.controls[f"show {k}"].description = self._who[str(k)] or "(no rater)"
        for text, name in zip(self._key.get_texts(), names, strict=True):
            text.set_text(name)
        unit = self.axis.unit if self.axis else " mm"
        self.charts.name(names, {who: f"{style:+.2f}{unit}" for who, style in self.style_mm.items()})

    def _close_view(self, marked: np.ndarray) -> tuple[slice, slice]:
        """A square that holds all that anybody marked in the volume, of 18 mm or as much as it takes."""
        at = np.argwhere(marked) if marked.any() else np.array([marked.shape]) // 2
        low, high = at.min(axis=0), at.max(axis=0) + 1
        side = min(max(round(_CLOSE_MM / self.volume.spacing_mm), int((high - low).max()) + 4), *marked.shape)
        start = [int(np.clip((a + b - side) // 2, 0, length - side))
                 for a, b, length in zip(low, high, marked.shape, strict=True)]
        return slice(start[0], start[0] + side), slice(start[1], start[1] + side)

    # ----- each move

    def update(self) -> None:
        value = {name: control.value for name, control in self.controls.items()}
        volume, together = self.volume, (value["combine"], value["threshold"])
        crops, own = volume.marked(*together)
        masks, scored = dict(volume.crops) | {TOGETHER: crops}, dict(volume.own) | {TOGETHER: own}
        level = volume.combined(value["combine"])[0]
        self.mm3 = {who: float(np.count_nonzero(mask) * volume.voxel_mm3) for who, mask in scored.items()}
        self.dice, self.weights, self.nearest, mean = {}, {}, "", {}
        if self.axis:
            style = None if value["mean code"] else value["style"]
            probability, scored[NETWORK], self.mm3[NETWORK] = self.axis.predict(volume, style)
            masks[NETWORK] = probability >= 0.5
            self.weights = dict(zip(self.axis.raters, self.axis.weights(style).tolist(), strict=True))
            self.nearest = "" if style is None else self.axis.nearest(style)
            self.dice = {who: dice(mask, scored[NETWORK]) for who, mask in volume.own.items()}
            other = self.axis.predict(volume, None)[1]
            mean = {who: dice(mask, other) for who, mask in volume.own.items()}
            level = probability if value["map"] == NETWORK else level
        self.agreement: pd.DataFrame = pairwise_dice(scored)
        self.scored = volume.scored(*together, value["leave out"])
        if TRUTH in volume.own:
            self.scored[TRUTH] = dice(volume.own[TRUTH], own)
        self._pictures(value, masks, level)
        self._fade(value)
        self.charts.show(self.agreement, self.scored, value["leave out"], self.dice, mean, self.mm3, self._reach)

    def _pictures(self, value: Mapping[str, Any], masks: Mapping[str, np.ndarray], level: np.ndarray) -> None:
        at, volume = value["slice"], self.volume
        part, stale = (at, *self._window) if value["close"] else (at,), self.figure.stale
        ticked = {look: masks[who][part] for look, who in self._who.items() if who in masks and value[f"show {look}"]}
        self.slice.show(volume.images[part], ticked, spacing_mm=volume.spacing_mm, title=f"{volume.name}, slice "
                        f"{int(volume.grid.zs[at])}")
        which = value.get("map", TOGETHER)
        title = f"network's probability, cut at {0.5:g}" if which == NETWORK else \
            f"{value['combine']}, cut at {value['threshold']:.2f}"
        self.map.show(level[part], {which: masks[which][part]}, spacing_mm=volume.spacing_mm, limits=(0, 1),
                      title=title)
        self.figure.stale = stale   # squares both, and all on them moves: another window needs no full drawing

    def _fade(self, value: Mapping[str, Any]) -> None:
        """Grey out what is not ticked in the key; a full drawing, so only on a change."""
        shown = tuple(bool(value[f"show {look}"]) for look in self._who)
        if shown != self._shown:
            self._shown = shown
            for text, line, ticked in zip(self._key.get_texts(), self._key.get_lines(), shown, strict=True):
                text.set_alpha(1.0 if ticked else 0.45)
                line.set_alpha(1.0 if ticked else 0.25)
            self.figure.stale = True   # a key's parts do not tell the figure

    def describe(self) -> str:
        value = {name: control.value for name, control in self.controls.items()}
        pairs = self.agreement.loc[list(self.volume.raters), list(self.volume.raters)].to_numpy()
        pairs = pairs[np.triu_indices(len(pairs), 1)]
        pairs = pairs[np.isfinite(pairs)]
        among = f"{pairs.mean():.2f} on average over {len(pairs)} pairs" if len(pairs) else "not defined, all are empty"
        text = (f"{self.volume.name}, slice {int(self.volume.grid.zs[value['slice']])}, drawn by "
                f"{len(self.volume.raters)} raters: Dice of two of them {among}. Together ({value['combine']} at least "
                f"{value['threshold']:.2f}): {self.mm3[TOGETHER]:.0f} mm³")
        text += f"; the truth: {self.mm3[TRUTH]:.0f} mm³." if TRUTH in self.mm3 else "."
        if not self.axis:
            return text
        told = "the mean code" if value["mean code"] else \
            f"style {value['style']:+.2f}{self.axis.unit}, nearest {self.nearest}"
        scores = ", ".join(f"{who} {one:.2f}" for who, one in self.dice.items() if np.isfinite(one))
        return f"{text} Network told {told}: {self.mm3[NETWORK]:.0f} mm³; Dice with {scores or 'nobody, all empty'}."


def _phantom() -> SliceSet:
    """Six patients of fixed seed, whom four raters of clear styles drew."""
    from msfilm.phantom.direct import make_slices
    from msfilm.phantom.roster import CohortPlan

    plan = CohortPlan(1000, raters="crossed", stations=1, panel_every=1, styles_mm=_STYLES_MM)
    return make_slices(6, plan, workers=1, progress=False)
