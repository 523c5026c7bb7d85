"""FilmExplorer: move the code of a FiLMed network, change its gamma and beta, and see what a slice makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np

from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate.metrics import dice
from msfilm.model.weights import Network, load_network
from msfilm.phantom.direct import make_slices
from msfilm.phantom.roster import CohortPlan
from msfilm.view.film_codes import Codes
from msfilm.view.film_panels import FilmPicture
from msfilm.view.film_parts import CHANGES, Change, Probe, apart, film_forward
from msfilm.view.live import LiveView, slider
from msfilm.view.slice_picker import SlicePicker

__all__ = ["FilmExplorer"]

class FilmExplorer(LiveView):
    """A slice, its prediction, and gamma and beta of every FiLM layer, all following the code z.

    ``FilmExplorer()`` shows the shipped network on phantom patients; ``FilmExplorer("runs/mine", slices)`` a run of
    your own on a SliceSet.

    Upper row: the slice with both outlines; the probability of lesion; one channel's feature map before and after FiLM
    (one grey window); the slice's Dice along the slider (grey, dashed: with nothing changed; full dot: the right code;
    green squares: each rater's code against that rater's own mask). Below: gamma and beta of all layers, each with
    three rows (code at one end, now, at the other), their distribution, and how far the ends are apart. Click a channel
    in a heat map, or choose layer and channel, to see its maps.

    Args:
        network: a Network, a run's folder, or the name of a shipped network; it must have FiLM.
        slices: what to look at; by default two phantom patients of another seed than those that shipped networks saw.
        threshold: of the probability.

    Attributes:
        z: (M,) the code in use.
        params: layer -> (gamma, beta) in use, (C,) each.
        probability: (H, W) of lesion; dice: of this slice against the chosen reference (NaN: both empty, or none).
        right_dice: with the right code and nothing changed.
        feature_maps: the chosen channel before and after FiLM, (h, w) each.
        curve: values of the slider that was moved last, and the Dice there.
        distances: layer -> root mean square difference of gamma, and of beta, between the slider's ends.

    Raises:
        SettingError: FILM-NONE for a network without FiLM; CONTRAST-UNKNOWN for slices that it cannot read.
        InputError: SLICES-EMPTY.
    """

    def __init__(self, network: Network | str | Path = "film-contrast-small", slices: SliceSet | None = None, *,
                 threshold: float = 0.5):
        self._network = network if isinstance(network, Network) else load_network(network)
        model = self._network.model
        if not model.film_on:
            raise SettingError("FILM-NONE", "this network has no FiLM layer, so no gamma and beta",
                               mend="give one trained with conditioning, such as film-contrast-small")
        self.slices = _phantom(self._network) if slices is None else slices
        self.threshold = threshold
        self.codes = Codes(self._network, self.slices.described())
        self._channels = _channels(self._network)
        self.probe, self._following = Probe(self._network, self.codes), False
        super().__init__(10.2, 6.4)
        self.drawn = FilmPicture(self, self._channels)
        self.panels = self.drawn.slice, self.drawn.map
        self._control()

    @classmethod
    def example(cls) -> FilmExplorer:
        return cls()

    def _control(self) -> None:
        wide = {"description_width": "initial"}
        self._names = {key: "z" if len(self.codes.knobs) == 1 else key for key in self.codes.knobs}
        self._along = next(iter(self.codes.knobs))
        self.picker = SlicePicker(self, self.slices, self._follow_code)

        def choose(name: str, words: str, options: list, width: str, then: Callable[[], None] | None,
                   **more: str) -> None:
            self.add(name, ipywidgets.Dropdown(options=options, description=words, style=wide,
                                               layout={"width": width}, **more), then)

        self.add("code", ipywidgets.ToggleButtons(
            options=["right", "wrong", "slider"], description="code", layout={"width": "25em", "display": "flex"},
            style=wide | {"button_width": "6em"},
            tooltips=["the code of this slice", "another contrast, rater or acquisition", "as the sliders say"]),
            self._follow_code)
        for key, name in self._names.items():
            knob = self.codes.knobs[key]
            self.add(name, slider(self._words(key), knob.ends[0], knob.low, knob.high, knob.step, width="36em",
                                  readout_format=".2f" if knob.stops else ".4g"),
                     lambda key=key: self._moved(key))
        for part in self.codes.parts:
            if len(part.ways) > 1:
                choose(f"way-{part.key}", "way", [("all in turn" if way is part.ways[0] else " to ".join(way), way)
                                                  for way in part.ways], "17em", self._other_way)
            if getattr(part, "vendors", ()):
                choose("manufacturer", "maker", list(part.vendors), "13em", lambda: self._moved(None))
        # What is nearly the answer: the maps of the last layer but for the logits.
        first = next((name for name in reversed(self._channels) if name != "logits"), "logits")
        choose("layer", "layer", list(self._channels), "12em", self._other_layer, value=first)
        self.add("channel", slider("channel", 0, 0, 1, 1, width="20em"))
        choose("change", "change", list(CHANGES), "17em", self._other_change)
        self.add("deal", slider("deal", 0, 0, 19, 1, width="15em"))
        choose("show", "show", ["values", "minus mean code"], "16em", None)
        self.connect("button_press_event", self._clicked)
        with self.hold():
            self._follow_code()
            self._other_layer()
            self._other_change()
        where, what = ("patient", "scan", "slice", "reference"), ("layer", "channel", "change", "deal", "show")
        rows = [where, tuple(name for name in self.controls if name not in where + what), what]
        self.finish(*(ipywidgets.HBox([self.controls[name] for name in row], layout={"flex_flow": "row wrap"})
                      for row in rows))

    # ----- answers to controls

    @contextmanager
    def _follow(self) -> Iterator[None]:
        """Set controls that follow others, without taking it for a reader's move."""
        before, self._following = self._following, True
        try:
            yield
        finally:
            self._following = before

    def _follow_code(self) -> None:
        """Let the sliders stand where the chosen code is."""
        code = self.controls["code"].value
        if code == "slider":
            return
        settings = getattr(self.codes, code)(self.picker.index)[1]
        with self._follow():
            for key, value in settings.items():
                self.controls[self._names.get(key, key)].value = value

    def _moved(self, key: str | None) -> None:
        if not self._following:
            self._along = key or self._along
            with self._follow():
                self.controls["code"].value = "slider"

    def _words(self, key: str) -> str:
        stops = self.codes.knobs[key].stops
        if len(stops) > 2:  # the curve's axis has their names
            return "z"
        return f"z, {next(iter(stops.values()))} 0" + "".join(
            f", {name} {at:g}" for at, name in [*stops.items()][1:]) if stops else self.codes.knobs[key].label

    def _other_way(self) -> None:
        with self._follow():
            for part in self.codes.parts:
                if len(part.ways) > 1:
                    part.way = self.controls[f"way-{part.key}"].value
                    control = self.controls[self._names[part.key]]
                    control.max = self.codes.knobs[part.key].high
                    control.description = self._words(part.key)
            self._follow_code()

    def _other_layer(self) -> None:
        self.controls["channel"].max = self._channels[self.controls["layer"].value] - 1
        self.controls["channel"].disabled = self.controls["channel"].max == 0

    def _other_change(self) -> None:
        self.controls["deal"].disabled = not self.controls["change"].value.endswith("permuted")

    def _clicked(self, event: Any) -> None:
        for half in self.drawn.halves.values():
            if event.inaxes is half.heat and (found := half.at(event.xdata, event.ydata)):
                self.controls["layer"].value = list(self._channels)[found[0]]
                self.controls["channel"].value = found[1]

    # ----- the picture

    def update(self) -> None:
        controls, probe, index = self.controls, self.probe, self.picker.index
        settings = {key: controls[self._names.get(key, key)].value for part in self.codes.parts for key in part.keys}
        others = tuple((key, value) for key, value in settings.items() if key != self._along)
        way = (self._along, others, *(part.way for part in self.codes.parts if part.ways))
        layer, channel = controls["layer"].value, controls["channel"].value
        change = Change.of(controls["change"].value, layer, channel, controls["deal"].value)
        right, code = self.codes.right(index)[0], controls["code"].value
        z = self.codes.encode(settings) if code == "slider" else getattr(self.codes, code)(index)[0]
        images = self.picker.image[None, None]

        probe.keep("ends", (way, controls["show"].value), lambda: self._fit(settings))
        parameters = probe.parameters(z, change)
        [probability], maps = film_forward(self._network, images, parameters)
        grid, along = probe.keep("along", (index, way, change),
                                 lambda: probe.curve(images, settings, self._along, change))
        _, plain = probe.keep("plain", (index, way), lambda: (grid, along) if change == Change() else
                              probe.curve(images, settings, self._along, Change()))
        [sure], usual = probe.keep("right", index,
                                   lambda: film_forward(self._network, images, probe.parameters(right)))

        self.z, self.probability = z[0].numpy(), probability
        self.params = {name: (gamma[0].numpy(), beta[0].numpy()) for name, (gamma, beta) in parameters.items()}
        self.dice, self.right_dice = self._dice(probability), self._dice(sure)
        self.feature_maps = tuple(half[channel] for half in maps[layer])
        self.curve = grid, np.array([self._dice(one) for one in along])
        self._show_slice(layer, channel, np.stack([half[channel] for half in usual[layer]]))
        for i, half in enumerate(self.drawn.halves.values()):
            half.follow([pair[i] for pair in self.params.values()], list(self._channels).index(layer), channel)
        unchanged = None if change == Change() else np.array([self._dice(one) for one in plain])
        self._show_curve(settings[self._along], unchanged, along)

    def _dice(self, probability: np.ndarray, name: str | None = None) -> float:
        reference = self.picker.mask(name)
        return float("nan") if reference is None else dice(reference, probability >= self.threshold)

    def _fit(self, settings: dict[str, Any]) -> None:
        """What stands still while the slider moves: values at its ends, scales, names."""
        knob = self.codes.knobs[self._along]
        ends = self.probe.parameters(self.codes.encode(settings, self._along, knob.ends))
        grid = self.probe.parameters(self.codes.encode(settings, self._along, knob.grid(9)))
        middle = self.probe.parameters(self.codes.middle()) if self.controls["show"].value != "values" else None
        self.distances, self.ends = apart(ends), tuple(knob.said(value) for value in knob.ends)
        self.drawn.fit(ends, grid, middle, list(self.distances.values()), self.ends)
        self.drawn.curve.fit(knob.low, knob.high, knob.stops)

    def _show_slice(self, layer: str, channel: int, usual: np.ndarray) -> None:
        """The slice, its probability and the feature maps; ``usual`` has these for the right code, (2, h, w)."""
        picker, spacing = self.picker, self.picker.spacing_mm
        outline = {"network": self.probability >= self.threshold}
        reference = picker.mask()
        self.drawn.slice.show(picker.image, outline | ({} if reference is None else {"reference": reference}),
                              spacing_mm=spacing, title=f"{picker.about['contrast']}, slice {picker.about['z']}")
        said = "no Dice" if np.isnan(self.dice) else f"Dice {self.dice:.3f}"
        self.drawn.map.show(self.probability, outline, spacing_mm=spacing, limits=(0, 1), title=f"probability, {said}")
        self.drawn.maps(self.feature_maps, usual, self.params[layer], layer, channel)

    def _show_curve(self, value: float, unchanged: np.ndarray | None, along: np.ndarray) -> None:
        knob, code, index = self.codes.knobs[self._along], self.controls["code"].value, self.picker.index
        grid, scores = self.curve
        self.own_dice = {name: self._dice(along[int(np.flatnonzero(grid == at)[0])], self.picker.raters[name])
                         for at, name in knob.stops.items() if self._along == "rater" and name in self.picker.raters}
        right = self.codes.right(index)[1].get(self._along)
        self.drawn.curve.show(grid, scores, unchanged, [*knob.stops], right, {
            at: self.own_dice[name] for at, name in knob.stops.items() if name in self.own_dice})
        placed = code == "slider" or self._along in getattr(self.codes, code)(index)[1]
        self.drawn.curve.follow(value if placed else None, self.dice)
        self.drawn.curve.title.set_text("Dice of this slice along z" if knob.stops else f"Dice along {knob.label}")

    def describe(self) -> str:
        layer, channel, change = (self.controls[name].value for name in ("layer", "channel", "change"))
        right = np.allclose(self.z, self.codes.right(self.picker.index)[0][0].numpy())
        code = {"right": "the right code", "wrong": "the only code there is" if right else "a wrong code",
                "slider": "the sliders' code, " + ("the right one" if right else "which is not this scan's")}
        z = ", ".join(f"{label} {value:.2f}" for label, value in
                      zip(self._network.encoder.labels, self.z, strict=True) if value or len(self.z) < 5)
        reference = self.picker.said
        now = (f"Dice {self.dice:.3f} against {reference}" if self.dice == self.dice else
               "no reference" if not reference else f"no Dice, as prediction and {reference} are both empty")
        usual = f"{self.right_dice:.3f}" if self.right_dice == self.right_dice else "no Dice"
        gamma, beta = (half[channel] for half in self.params[layer])
        most = [max(self.distances, key=lambda name, i=i: self.distances[name][i]) for i in (0, 1)]
        far = [self.distances[name][i] for i, name in enumerate(most)]
        about, code = self.picker.about, code[self.controls["code"].value]
        return (f"{about['volume']}, slice {about['z']}, with {code} (z: {z})"
                f"{'' if change == 'nothing' else f' and {change}'}: {now}; {usual} with the right code and nothing "
                f"changed. {layer}, channel {channel}: gamma {gamma:.3f}, beta {beta:.3f}. {self.ends[0]} and "
                f"{self.ends[1]} are farthest apart in gamma at {most[0]} (RMS {far[0]:.3f}) and in beta at {most[1]} "
                f"({far[1]:.3f}).")

    # ----- state

    @property
    def network(self) -> Network:
        """The network in use; set it, or call ``replace``, to put another of the same layers and codes in its place."""
        return self._network

    @network.setter
    def network(self, network: Network | str | Path) -> None:
        self.replace(network)

    def replace(self, network: Network | str | Path) -> None:
        """Go on with another network of the same layers and codes, or with one whose weights were changed in place.

        Raises:
            SettingError: FILM-OTHER, it has other layers or codes.
        """
        network = network if isinstance(network, Network) else load_network(network)
        if network.encoder != self._network.encoder or _channels(network) != self._channels:
            raise SettingError("FILM-OTHER", "the other network has other FiLM layers or other codes",
                               mend="make a new FilmExplorer for it")
        self._network = network
        self.codes.network, self.probe = network, Probe(network, self.codes)
        self.refresh()


def _channels(network: Network) -> dict[str, int]:
    """FiLM layer -> its channels."""
    on = network.model.film_on
    return dict(zip(on, network.model.generator.channels, strict=True)) if on else {}


def _phantom(network: Network) -> SliceSet:
    """Patients that no shipped network has seen, of the kind that this one was made for."""
    seen = set(getattr(network.encoder, "categories", ()))
    if seen == {"bright", "dark"}:  # the eighth has a slice with a lesion and a decoy, far enough apart
        plan = CohortPlan(1000, stations=1, acquisitions=("bright_ax", "dark_ax"), decoys=True)
        return make_slices(8, plan, workers=1, progress=False)
    # Four raters of clear styles for a network that knows raters.
    styles = (-0.45, -0.15, 0.15, 0.45) if "rater" in network.encoder.columns else ()
    plan = CohortPlan(1000, stations=1, panel_every=1, raters="crossed" if styles else "nested", styles_mm=styles)
    return make_slices(2, plan, workers=1, progress=False)
