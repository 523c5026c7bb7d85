"""Figures of the realism report: ranges against real values, histograms and spectra, and slices to guess from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO

__all__ = ["realism_chart", "realism_curves", "side_by_side"]

_REAL = [("vermillion", "o"), ("purple", "s"), ("black", "D"), ("orange", "^")]
_PLANES = {"ax": "axial", "sag": "sagittal", "cor": "coronal", "iso": "isotropic"}


def _spoken(contrast: str) -> str:
    base, _, plane = contrast.partition("_")
    base = {"any": "any contrast", "T2star": "T2*w"}.get(base, base)
    return f"{base}, {_PLANES[plane]}" if plane in _PLANES else contrast


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def realism_chart(report: dict, *, contrasts: Sequence[str] | None = None, title: str | None = None) -> Figure:
    """Every quantity on a line of its own scale: what is asked (band), the phantom's range (bar), real scans (points).

    Args:
        report: of ``msfilm.evaluate.realism.realism_report``.
        contrasts: which, such as ("T2w_ax", "any_ax"); default those that phantom and real scans share.
        title: above.
    """
    rows = [row for row in report["rows"] if row["low"] is not None and (row["real_values"] or row["target_low"])]
    if contrasts is None:
        contrasts = list(dict.fromkeys(row["contrast"] for row in rows if row["inside"] is not None))
    rows = [row for contrast in contrasts for row in rows if row["contrast"] == contrast]
    count, top = max(len(rows), 1), 0.55 + (0.3 if title else 0.0)
    height = top + 0.3 * count + 0.45
    figure = Figure(figsize=(9.2, height), facecolor="white")
    ax = figure.add_axes((0.4, 0.45 / height, 0.23, 0.3 * count / height))  # the lines; the words stand beside it
    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_ylim(count - 0.5, -0.5)
    label, real_at, phantom_at, within = -1.72, 1.06, 1.52, 2.56  # where columns begin, in widths of a line
    heads = [(label, "quantity", "left"), (0.0, "smallest ... largest", "left"), (real_at, "real (scans)", "left"),
             (phantom_at, "phantom", "left"), (within, "within", "right")]
    for x, text, side in heads:
        ax.text(x, -0.95, text, fontsize=9, fontweight="bold", ha=side)
    for y, row in enumerate(rows):
        real = list(row["real_values"].values())
        marks = [v for v in (row["low"], row["high"], row["target_low"], row["target_high"], *real) if v is not None]
        least, most = min(marks), max(marks)
        span = (most - least) or 1.0

        def at(value, least=least, span=span):
            return (value - least) / span

        ax.plot([0, 1], [y, y], color="0.88", linewidth=0.8, zorder=0)
        if row["target_low"] is not None:
            ends = [at(row["target_low"]), at(row["target_high"])]
            ax.fill_between(ends, y - 0.36, y + 0.36, color=OKABE_ITO["green"], alpha=0.22, linewidth=0, zorder=1)
        ends = [at(row["low"]), at(row["high"])]
        ax.plot(ends, [y, y], color=OKABE_ITO["blue"], linewidth=5, solid_capstyle="butt", zorder=2, clip_on=False)
        ax.plot([at(v) for v in real], [y] * len(real), "o", color=OKABE_ITO["vermillion"], markersize=6,
                markeredgecolor="white", markeredgewidth=0.8, zorder=3, clip_on=False)
        if y == 0 or rows[y - 1]["contrast"] != row["contrast"]:
            ax.plot([label, within], [y - 0.5, y - 0.5], color="0.6", linewidth=0.8, clip_on=False)
        ax.text(label, y, f"{row['label']}  ({_spoken(row['contrast'])})", fontsize=9, va="center")
        told = f"{_number(row['real'])} ({row['real_scans']})" if real else "none"
        ax.text(real_at, y, told, fontsize=9, va="center")
        ax.text(phantom_at, y, f"{_number(row['low'])} to {_number(row['high'])}", fontsize=9, va="center")
        share = row["share_in_target"]
        ax.text(within, y, "" if share is None else f"{share:.0%}", fontsize=9, va="center", ha="right",
                fontweight="normal" if row["met"] in (None, True) else "bold")
    handles = [Patch(color=OKABE_ITO["green"], alpha=0.22, label="asked of the phantom"),
               Line2D([], [], color=OKABE_ITO["blue"], linewidth=5, label="phantom, 95 % of uncorrupted volumes"),
               Line2D([], [], color=OKABE_ITO["vermillion"], marker="o", linestyle="", label="a real scan")]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=9, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12, y=1 - 0.08 / height, va="top")
    return figure


def realism_curves(report: dict, *, contrasts: Sequence[str] | None = None, title: str | None = None) -> Figure:
    """Histogram of the 36 mm crop and its radial power spectrum, real scans as lines in the phantom's band.

    Args:
        report: of ``msfilm.evaluate.realism.realism_report``.
        contrasts: one row each; default those that both sides have.
        title: above.

    Raises:
        SettingError: PLOT-EMPTY when no contrast has curves.
    """
    curves = report["curves"]
    if contrasts is None:
        contrasts = [c for c, kinds in curves.items() if kinds["spectrum"]["real"] and kinds["spectrum"]["phantom"]]
    contrasts = [c for c in contrasts if c in curves]
    if not contrasts:
        raise SettingError("PLOT-EMPTY", "no contrast has curves of real and phantom scans")
    figure = Figure(figsize=(8.6, 0.5 + 2.6 * len(contrasts)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(contrasts), 2, squeeze=False)
    for row, contrast in zip(axes, contrasts, strict=True):
        for ax, kind in zip(row, ("histogram", "spectrum"), strict=True):
            part = curves[contrast][kind]
            x, band = np.asarray(part["x"]), part["phantom"]
            if band:
                ax.fill_between(x, band["low"], band["high"], color=OKABE_ITO["sky"], alpha=0.35, linewidth=0,
                                label="phantom, 95 %")
                ax.plot(x, band["median"], color=OKABE_ITO["blue"], linewidth=1.6, label="phantom, median")
            for i, (name, y) in enumerate(part["real"].items()):
                colour, marker = _REAL[i % len(_REAL)]
                ax.plot(x, y, color=OKABE_ITO[colour], linewidth=1.5, linestyle=(0, (4, 1.2)), marker=marker,
                        markevery=4, markersize=4.5, label=f"real: {name}")
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(color="0.92", linewidth=0.8)
            ax.set_axisbelow(True)
            ax.tick_params(labelsize=9)
            if kind == "histogram":
                ax.set_ylim(bottom=0)
            else:
                ax.set_yscale("log")
            ax.set_xlabel("intensity / cord's median" if kind == "histogram" else "cycles per mm", fontsize=9)
            ax.set_title(f"{_spoken(contrast)}: {'36 mm crop, density' if kind == 'histogram' else 'radial power'}",
                         fontsize=10, loc="left")
        row[0].set_xlim(0, 4)
        row[1].legend(fontsize=9, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def side_by_side(
    real, phantom, *, spacing_mm: float = 0.75, seed: int = 0, columns: int = 6, panel_inches: float = 1.6,
    title: str | None = None,
) -> tuple[Figure, list[str]]:
    """Real and phantom slices in shuffled order, each in its own grey window; the key below, upside down.

    Args:
        real, phantom: (n, H, W) slices of the same size, row 0 anterior.
        spacing_mm: pixel size.
        seed: of the order.
        columns: pictures in a row.
        panel_inches: width of one picture.
        title: above.

    Returns:
        The figure, and the key: "real" or "phantom" for every picture in reading order.

    Raises:
        SettingError: PLOT-SHAPE when the slices' sizes differ or there are none.
    """
    real, phantom = (np.asarray(part, dtype=np.float32) for part in (real, phantom))
    if real.ndim != 3 or real.shape[1:] != phantom.shape[1:] or not len(real) + len(phantom):
        raise SettingError("PLOT-SHAPE", f"real slices {real.shape}, phantom slices {phantom.shape}")
    pictures, names = np.concatenate([real, phantom]), ["real"] * len(real) + ["phantom"] * len(phantom)
    order = np.random.default_rng(seed).permutation(len(pictures))
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height = panel_inches * pictures.shape[1] / pictures.shape[2]
    figure = Figure(figsize=(panel_inches * columns + 0.1, rows * (height + 0.25) + 0.75), layout="constrained",
                    facecolor="white")
    greys = colormaps["gray"].resampled(32)  # the eye hardly sees it, and the file is half as large
    for ax in (axes := figure.subplots(rows, columns, squeeze=False).ravel()):
        ax.set_axis_off()
    for number, (ax, i) in enumerate(zip(axes, order, strict=False), start=1):
        low, high = np.percentile(pictures[i], (0.5, 99.5))
        ax.imshow(pictures[i], cmap=greys, vmin=low, vmax=max(high, low + 1e-6), interpolation="bilinear",
                  interpolation_stage="data")
        ax.set_title(str(number), fontsize=9, pad=2)
    side = pictures.shape[2] * spacing_mm
    key = [names[i] for i in order]
    told = "real: " + ", ".join(str(n) for n, name in enumerate(key, start=1) if name == "real") + "; others: phantom"
    figure.supxlabel(f"pictures {side:g} mm wide, patient's right at the left. Which are real?\n", fontsize=9)
    figure.text(0.5, 0.005, told, fontsize=9, rotation=180, ha="center", va="bottom", color="0.35")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure, key
