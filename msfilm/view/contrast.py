"""Signals of tissues as curves, where two of them meet, and a panel of sliders that moves them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from msfilm.errors import MsfilmError
from msfilm.evaluate.figure import OKABE_ITO

__all__ = ["TISSUE_LOOKS", "ContrastPanel", "curves_figure", "meeting_points", "signal_curves"]

# Colour AND line style differ, so that curves are told apart in grey print and by any eye.
TISSUE_LOOKS = {
    "white matter": ("black", "-"),
    "grey matter": ("blue", (0, (5, 2))),
    "CSF": ("sky", (0, (1, 1))),
    "lesion": ("vermillion", "-"),
    "mild lesion": ("orange", (0, (5, 1.5, 1, 1.5))),
    "acute lesion": ("purple", (0, (2.5, 1.5))),
    "fat": ("green", (0, (1, 2.5))),
}


def meeting_points(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where two sampled curves meet: x of every change of sign of first - second, on a straight line between samples.

    Args:
        x: (n,) ascending.
        first, second: (n,) values of the curves.
    """
    gap = np.asarray(first, float) - np.asarray(second, float)
    i = np.flatnonzero(np.sign(gap[:-1]) * np.sign(gap[1:]) < 0)
    inside = x[i] - gap[i] * (x[i + 1] - x[i]) / (gap[i + 1] - gap[i])
    return np.sort(np.concatenate([inside, np.asarray(x)[gap == 0]]))


def signal_curves(
    ax: Axes,
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ylabel: str = "signal",
    title: str = "",
    mark: float | None = None,
    vanish: Sequence[float] = (),
) -> None:
    """Draw one curve a tissue, the protocol's own setting as a grey line, and rings where the lesion cannot be seen.

    Args:
        ax: where to.
        x: (n,) the setting that varies.
        curves: tissue (a key of TISSUE_LOOKS, in the order of the key) -> (n,) signals.
        xlabel, ylabel, title: what is drawn.
        mark: the protocol's x.
        vanish: x where lesion and another tissue are equally bright; the ring sits on the lesion's curve.
    """
    for name, y in curves.items():
        colour, style = TISSUE_LOOKS[name]
        ax.plot(x, y, color=OKABE_ITO[colour], linestyle=style, linewidth=2.4 if "lesion" in name else 1.8, label=name)
    if mark is not None:
        ax.axvline(mark, color="0.6", linewidth=5, alpha=0.35, zorder=0)
    for at in vanish:
        ax.plot(at, np.interp(at, x, curves["lesion"]), "o", markersize=10, markerfacecolor="none",
                markeredgecolor="black", markeredgewidth=1.6, zorder=5)
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(xlabel, fontsize=10)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.set_title(title, fontsize=11, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)


def curves_figure(*panels: Mapping) -> Figure:
    """Panels of :func:`signal_curves` side by side with one key below.

    Args:
        panels: for each its arguments by name, without ``ax``; the curves of all are of the same tissues.
    """
    width = 0.4 + min(4.1 * len(panels), 9)
    figure = Figure(figsize=(width, 3.5), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        signal_curves(ax, **panel)
        ax.locator_params(nbins=5, axis="x")  # long numbers stay apart
        if ax is not axes[0] and "ylabel" not in panel:
            ax.set_ylabel("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=10)
    return figure


class ContrastPanel:
    """Sliders for a scan's settings beside the brightness of the tissues; without a kernel a still picture of it.

    Artists are moved, never made anew. What a setting's function raises is shown: a refusal (``MsfilmError``) as a
    sentence in the panel, anything else there too and raised again.

    Args:
        brightness: function of the settings (sequence, field_t, tr, te, tes, ti, train, flip_deg) -> tissue ->
            brightness, white matter 1.
        starts: name of a scan -> the settings that it starts with.
        varies: sequences whose curve runs over TI; all others run over TE.

    Attributes:
        controls: scan, tr, te, ti, flip_deg, field_t: the widgets. Setting a ``value`` does what a hand would.
        brightness: tissue -> brightness as it is drawn; empty when the settings were refused.
        message: the widget with the sentence below the picture.
    """

    POINTS = 41
    TOP = 4.0  # brightness where the axes end: where white matter is nulled, the ratio to it has no end

    def __init__(
        self,
        brightness: Callable[[Mapping], Mapping[str, float]],
        starts: Mapping[str, Mapping],
        *,
        varies: Sequence[str] = ("MPRAGE", "STIR", "PSIR"),
    ):
        import ipywidgets as widgets  # only who wants sliders needs it

        self._function, self._starts, self._varies = brightness, dict(starts), tuple(varies)
        self._curves: tuple | None = None
        self._starting = False
        self.brightness: dict[str, float] = {}
        wide = {"layout": widgets.Layout(width="340px"), "style": {"description_width": "80px"}}
        self.controls = {
            "scan": widgets.Dropdown(options=list(starts), description="scan", **wide),
            "tr": widgets.FloatSlider(description="TR (ms)", min=0, max=1e4, **wide),
            "te": widgets.FloatSlider(description="TE (ms)", min=0, max=1e4, **wide),
            "ti": widgets.FloatSlider(description="TI (ms)", min=0, max=1e4, **wide),
            "flip_deg": widgets.FloatSlider(description="flip (degrees)", min=1, max=90, step=1, **wide),
            "field_t": widgets.ToggleButtons(description="field", options=[("1.5 T", 1.5), ("3 T", 3.0)], **wide),
        }
        self.controls["field_t"].style.button_width = "80px"
        self.picture, self.message = widgets.Image(format="png"), widgets.HTML()
        self._box = widgets.VBox([
            widgets.HBox([widgets.VBox(list(self.controls.values())[:3]),
                          widgets.VBox(list(self.controls.values())[3:])]),
            self.picture, self.message,
        ])  # fmt: skip
        self._draw_first(brightness(next(iter(starts.values()))))
        self._start()
        for name, control in self.controls.items():
            control.observe(self._start if name == "scan" else self.update, names="value")

    @property
    def settings(self) -> dict:
        """What the equations get now."""
        base = self._starts[self.controls["scan"].value]
        now = dict(base) | {name: control.value for name, control in self.controls.items()
                            if name != "scan" and not control.disabled}
        middle = sum(base["tes"]) / len(base["tes"])
        now["tes"] = tuple(te + now["te"] - middle for te in base["tes"])  # the echoes keep their distance
        return now

    def _draw_first(self, values: Mapping[str, float]) -> None:
        self.figure = Figure(figsize=(8.4, 3.3), dpi=90, layout="constrained", facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)
        left, self._right = self.figure.subplots(1, 2, width_ratios=(1, 1.25))
        names = list(values)
        colours = [OKABE_ITO[TISSUE_LOOKS[name][0]] for name in names]
        self._bars = left.barh(names, [0.0] * len(names), color=colours, height=0.6)
        self._numbers = [left.text(0, i, "", fontsize=9, va="center") for i in range(len(names))]
        left.invert_yaxis()
        left.set_xlim(0, self.TOP * 1.12)
        left.axvline(1, color="0.5", linewidth=1)
        left.set_xlabel("brightness (white matter 1)", fontsize=10)
        signal_curves(self._right, np.array([0.0, 1.0]), {name: np.zeros(2) for name in names}, xlabel="TE (ms)",
                      ylabel="brightness", mark=0.0)
        self._lines, self._mark = self._right.lines[: len(names)], self._right.lines[len(names)]
        self._right.set_ylim(0, self.TOP)
        for ax in (left, self._right):
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=9)

    def _start(self, _change: object = None) -> None:
        """Put all sliders where the chosen scan starts."""
        base = self._starts[self.controls["scan"].value]
        reach = {
            "tr": (base["tr"], base["tr"] / 4, 2 * base["tr"]),
            "te": (base["te"], base["te"] - min(base["tes"]) + 1, 200 if base["te"] > 30 else 60),
            "ti": (base["ti"] or 0, *((450, 1500) if base["sequence"] == "MPRAGE" else (50, 2500))),
            "flip_deg": (base["flip_deg"], 1, 180),
            "field_t": (base["field_t"],),
        }
        unused = {"ti": base.get("ti") is None, "flip_deg": base["sequence"] not in ("GRE", "GRE-MT", "MPRAGE")}
        self._starting = True  # the sliders move together and the picture once, at the end
        for name, (value, *limits) in reach.items():
            control = self.controls[name]
            control.disabled = unused.get(name, False)
            if limits:  # wide first, so that no order of the three can be refused
                control.min, control.max = min(control.min, limits[0]), max(control.max, limits[1], value)
                control.step = 0.1 if name == "te" and value < 30 else 1
                if not control.disabled:
                    control.value, control.min, control.max = value, min(limits[0], value), max(limits[1], value)
            else:
                control.value = value
        self._starting = False
        self.update()

    def update(self, _change: object = None) -> None:
        """Draw what the sliders say."""
        if self._starting:
            return
        try:
            settings = self.settings
            axis = "ti" if settings["sequence"] in self._varies else "te"
            self.brightness = {}
            self.brightness = dict(self._function(settings))
            x, curves = self._over(axis, settings)
            words = ", ".join(f"{name} {value:.2f}" for name, value in self.brightness.items())
            self.message.value = f"<p>{html.escape(words)}</p>"
            self._move(axis, settings, x, curves)
        except Exception as error:
            self._blank()
            said = getattr(error, "what", None) or f"{type(error).__name__}: {error}"
            self.message.value = f'<p role="alert"><b>not drawn:</b> {html.escape(str(said))}</p>'
            if not isinstance(error, MsfilmError):
                raise
        finally:
            buffer = io.BytesIO()
            self._canvas.print_png(buffer)
            self.picture.value = buffer.getvalue()

    def _over(self, axis: str, settings: Mapping) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Brightness over the whole slider of TE or TI; kept while nothing but this slider moves."""
        control = self.controls[axis]
        rest = {name: value for name, value in settings.items() if name not in (axis, "tes")}
        spread = tuple(round(te - settings["te"], 6) for te in settings["tes"])
        key = axis, control.min, control.max, spread, settings["te"] if axis == "ti" else 0, *sorted(rest.items())
        if self._curves is None or self._curves[0] != key:
            x = np.linspace(control.min, control.max, self.POINTS)
            rows = []
            for value in x:
                moved = dict(settings) | {axis: float(value)}
                if axis == "te":
                    moved["tes"] = tuple(float(value) + gap for gap in spread)
                try:
                    rows.append(list(self._function(moved).values()))
                except MsfilmError:  # cannot be played: a gap in the curve
                    rows.append([np.nan] * len(self._bars))
            self._curves = key, x, dict(zip(self.brightness, np.transpose(rows), strict=True))
        return self._curves[1], self._curves[2]

    def _move(self, axis: str, settings: Mapping, x: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
        for bar, number, value in zip(self._bars, self._numbers, self.brightness.values(), strict=True):
            bar.set_width(min(value, self.TOP))
            number.set_text(f"{value:.2f}")
            number.set_x(min(value, self.TOP) + 0.05)
        for line, y in zip(self._lines, curves.values(), strict=True):
            line.set_data(x, np.minimum(y, 10 * self.TOP))
        self._mark.set_xdata([settings[axis]] * 2)
        self._right.set_xlim(x[0], x[-1])
        self._right.set_xlabel(f"{axis.upper()} (ms)", fontsize=10)
        self._right.set_title(f"{self.controls['scan'].value} at {settings['field_t']:g} T", fontsize=11, loc="left")

    def _blank(self) -> None:
        for bar, number in zip(self._bars, self._numbers, strict=True):
            bar.set_width(0)
            number.set_text("")
        for line in self._lines:
            line.set_data([], [])

    def still(self) -> str:
        """The panel's picture as HTML, with its numbers as alt text."""
        words = ", ".join(f"{name} {value:.2f}" for name, value in self.brightness.items())
        alt = html.escape(f"Brightness of tissues, white matter 1, in a {self.controls['scan'].value} scan: {words}")
        data = base64.b64encode(self.picture.value).decode("ascii")
        style = "max-width:100%;height:auto;background:#fff"
        return f'<img alt="{alt}" style="{style}" src="data:image/png;base64,{data}">'

    def _repr_mimebundle_(self, **how: object) -> dict:
        """Sliders where there is a kernel, and the still picture for every reader without one."""
        return dict(self._box._repr_mimebundle_(**how) or {}) | {"text/html": self.still()}
