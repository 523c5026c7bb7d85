"""Signals of tissues as curves along a scan's settings, and where two of them meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from msfilm.errors import MsfilmError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.phantom.physics import signals

__all__ = [
    "TISSUES",
    "TISSUE_LOOKS",
    "along",
    "curves_figure",
    "meeting_points",
    "moved",
    "ranges",
    "round_ticks",
    "signal_curves",
]

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
# Name in a live view -> key of ``physics.signals``, with the lesion's number to fill in.
TISSUES = {"white matter": "wm", "grey matter": "gm", "CSF": "csf", "lesion": "lesion-{}-wm", "fat": "fat"}


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


def ranges(times: Mapping) -> dict[str, tuple[float, float]]:
    """How far a scan's settings reach on a slider: those that its equation uses, te always and tr always.

    Args:
        times: ``Protocol.times()``.
    """
    sequence, te, tr = times["sequence"], times["te"], times["tr"]
    found = {"tr": (tr / 4, 2 * tr), "te": (te - min(times["tes"]) + 1, 200.0 if te > 30 else 60.0)}
    if times.get("ti"):
        low, high = (450, 1500) if sequence == "MPRAGE" else (50, 2500)
        found["ti"] = min(low, times["ti"]), max(high, times["ti"])
    if sequence in ("GRE", "GRE-MT", "MPRAGE"):
        found["flip_deg"] = (1, 90)
    return found


def moved(times: Mapping, name: str, value: float) -> dict:
    """Settings of which one is another; echoes keep their distance."""
    now = dict(times) | {name: value}
    now["tes"] = tuple(te + now["te"] - times["te"] for te in times["tes"])
    return now


def along(times: Mapping, name: str, x: np.ndarray, lesion: tuple[str, float]) -> dict[str, np.ndarray]:
    """Signals of ``TISSUES`` along one setting, in the unit of the equation; NaN where it cannot be played.

    Args:
        times: the other settings.
        name: tr, te, ti or flip_deg.
        x: (n,) its values.
        lesion: its kind and strength.
    """
    rows = []
    for value in x.tolist():
        try:
            found = signals(moved(times, name, value), [lesion], relative=False)
            rows.append([found[key.format(0)] for key in TISSUES.values()])
        except MsfilmError:
            rows.append([np.nan] * len(TISSUES))
    return dict(zip(TISSUES, np.transpose(rows), strict=True))


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two, about ``most`` of them."""
    return [float(at) for at in MaxNLocator(most).tick_values(low, high) if low <= at <= high]
