"""Pictures of slices: outlines of masks, errors, and where a crop was taken; radiological letters and a scale in mm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import ndimage

from msfilm.data.crop import CropGrid
from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO

__all__ = ["ERROR_LOOKS", "OUTLINE_LOOKS", "crop_figure", "error_overlay", "slice_montage"]

# Colour AND line style differ, so that outlines are told apart in grey print and by any eye.
OUTLINE_LOOKS = [("orange", "-"), ("sky", (0, (4, 1.5))), ("green", (0, (1, 1))), ("purple", (0, (5, 1.2, 1, 1.2))),
                 ("yellow", (0, (2.5, 2.5))), ("vermillion", (0, (8, 1.5)))]
ERROR_LOOKS = {"found": ("green", "-"), "false": ("vermillion", (0, (4, 1.5))), "missed": ("sky", (0, (1, 1)))}
_HALO = [patheffects.withStroke(linewidth=2.2, foreground="black")]


def _as_stack(images) -> np.ndarray:
    """(H, W), (n, H, W) or (n, 1, H, W) -> (n, H, W)."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3:
        raise SettingError("PLOT-SHAPE", f"expected slices (n, H, W) or (n, 1, H, W), got {images.shape}")
    return images


def _outline(ax: Axes, mask: np.ndarray, colour: str, style, *, width: float = 1.7, fill: float = 0.0) -> None:
    """Draw the outline of a mask along the edges of its pixels, just inside, so that neighbours stay apart."""
    if not mask.any():
        return
    fine = 8  # sub-pixels: the contour then follows pixel edges instead of cutting their corners
    padded = np.kron(np.pad(mask.astype(bool), 1), np.ones((fine, fine), bool))
    padded = ndimage.binary_erosion(padded, np.ones((3, 3), bool)).astype(np.float32)
    at = [(np.arange(n) + 0.5) / fine - 1.5 for n in padded.shape]
    if fill:
        ax.contourf(at[1], at[0], padded, levels=[0.5, 1.5], colors=[colour], alpha=fill)
    # A dark line below, also under the gaps of a dashed one: light colours stay readable on bright tissue.
    ax.contour(at[1], at[0], padded, levels=[0.5], colors=["black"], linewidths=width + 0.9, alpha=0.4)
    ax.contour(at[1], at[0], padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=width)


def _letters(ax: Axes, which: str = "RLAP") -> None:
    """Radiological view: the patient's right at the left, anterior at the top."""
    places = {"R": (0.02, 0.5, "left", "center"), "L": (0.98, 0.5, "right", "center"),
              "A": (0.5, 0.98, "center", "top"), "P": (0.5, 0.02, "center", "bottom")}
    for letter in which:
        x, y, ha, va = places[letter]
        ax.text(x, y, letter, transform=ax.transAxes, ha=ha, va=va, color="white", fontsize=10, fontweight="bold",
                path_effects=_HALO)


def _scale_bar(ax: Axes, width_px: int, height_px: int, spacing_x_mm: float) -> None:
    """A bar of about a quarter of the picture in the lower right corner, a round number of mm."""
    wanted = width_px * spacing_x_mm / 4
    length = max((step for step in (1, 2, 5, 10, 20, 50, 100) if step <= wanted), default=1)
    x1, y = width_px * 0.965 - 0.5, height_px * 0.955 - 0.5
    x0 = x1 - length / spacing_x_mm
    ax.plot([x0, x1], [y, y], color="white", linewidth=2.6, solid_capstyle="butt",
            path_effects=[patheffects.Stroke(linewidth=4.6, foreground="black"), patheffects.Normal()])
    ax.annotate(f"{length:g} mm", (x1, y), xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
                color="white", fontsize=9, path_effects=_HALO)


def _image(ax: Axes, image: np.ndarray, spacing: tuple[float, float], limits: tuple[float, float]) -> None:
    ax.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest",
              aspect=spacing[0] / spacing[1])
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)
    ax.set_axis_off()


def _limits(images: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(np.asarray(images, dtype=np.float32), [0.5, 99.5])
    return float(low), float(high if high > low else low + 1)


def _key(figure: Figure, looks: Mapping[str, tuple[str, object]]) -> None:
    # On a grey patch, as in the image: yellow and sky blue lines are pale on white.
    handles = [Line2D([], [], color=OKABE_ITO[colour], linestyle=style, linewidth=2.2, label=name)
               for name, (colour, style) in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=10, handlelength=3.2,
                  facecolor="0.25", labelcolor="white", framealpha=1, edgecolor="none")


def slice_montage(
    images,
    outlines: Mapping[str, object] | None = None,
    titles: Sequence[str] | None = None,
    *,
    spacing_mm: float | tuple[float, float] = 0.75,
    columns: int = 5,
    panel_inches: float = 1.85,
    limits: tuple[float, float] | None = None,
    fill: float = 0.0,
    looks: Mapping[str, tuple[str, object]] | None = None,
    title: str | None = None,
) -> Figure:
    """Slices side by side with outlines of masks.

    Args:
        images: (n, H, W) or (n, 1, H, W), row 0 anterior and column 0 the patient's right, as crops are.
        outlines: name -> masks of the same shape; 255 (never drawn) shows nothing.
        titles: one a slice.
        spacing_mm: pixel size, one number or (row, column).
        columns: pictures in a row.
        panel_inches: width of one picture.
        limits: grey window; the same for all slices, from the 0.5th to the 99.5th percentile by default.
        fill: opacity of the masks' insides.
        looks: name -> (colour of OKABE_ITO, line style) instead of OUTLINE_LOOKS.
        title: above all.

    Returns:
        A figure that pyplot does not know of; nothing needs closing.

    Raises:
        SettingError: PLOT-SHAPE when shapes or numbers do not fit.
    """
    images = _as_stack(images)
    n, height, width = images.shape
    masks = {name: _as_stack(mask) for name, mask in (outlines or {}).items()}
    for name, mask in masks.items():
        if mask.shape != images.shape:
            raise SettingError("PLOT-SHAPE", f"outline {name!r} is {mask.shape}, the images are {images.shape}")
    if titles is not None and len(titles) != n:
        raise SettingError("PLOT-SHAPE", f"{len(titles)} titles for {n} slices")
    if n == 0:
        raise SettingError("PLOT-SHAPE", "there is no slice to show")
    spacing = (float(spacing_mm),) * 2 if np.isscalar(spacing_mm) else tuple(float(s) for s in spacing_mm)
    looks = dict(looks or {name: OUTLINE_LOOKS[i % len(OUTLINE_LOOKS)] for i, name in enumerate(masks)})
    limits = limits or _limits(images)

    columns = max(1, min(columns, n))
    rows = math.ceil(n / columns)
    panel_height = panel_inches * height * spacing[0] / (width * spacing[1])
    size = (columns * panel_inches + 0.1, rows * (panel_height + (0.22 if titles else 0.06))
            + (0.4 if masks else 0.05) + (0.3 if title else 0))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_axis_off()
    for i, ax in enumerate(axes[:n]):
        _image(ax, images[i], spacing, limits)
        for name, mask in masks.items():
            colour, style = looks[name]
            _outline(ax, mask[i] == 1, OKABE_ITO[colour], style, fill=fill)
        if titles is not None:
            ax.set_title(str(titles[i]), fontsize=9, pad=3)
    _letters(axes[0])
    _scale_bar(axes[n - 1], width, height, spacing[1])
    if masks:
        _key(figure, looks)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def error_overlay(images, references, predictions, titles: Sequence[str] | None = None, **settings) -> Figure:
    """Slices with what a prediction found, marked falsely and missed, each in its own colour and line style.

    Args:
        images, references, predictions: (n, H, W) or (n, 1, H, W); masks of 0 and 1, or bool.
        titles: one a slice.
        **settings: as for :func:`slice_montage`.
    """
    reference, prediction = _as_stack(references) == 1, _as_stack(predictions) == 1
    outlines = {"found": reference & prediction, "false": prediction & ~reference, "missed": reference & ~prediction}
    settings = {"looks": ERROR_LOOKS, "fill": 0.3, "columns": 4, "panel_inches": 2.3} | settings
    return slice_montage(images, outlines, titles, **settings)


def crop_figure(
    volume: np.ndarray,
    grid: CropGrid,
    crops: np.ndarray,
    index: int,
    *,
    outlines: Mapping[str, np.ndarray] | None = None,
    title: str | None = None,
) -> Figure:
    """A whole axial slice with the square that the crop covers, and the crop beside it.

    Args:
        volume: image (X, Y, Z) in canonical order.
        grid: where its crops lie.
        crops: (n, H, W), one a slice of ``grid``.
        index: which of the n slices.
        outlines: name -> masks (n, H, W) drawn on the crop.
        title: above both.
    """
    crops = _as_stack(crops)
    voxel = grid.voxel_mm
    whole = np.asarray(volume)[::-1, ::-1, int(grid.zs[index])].T  # row 0 anterior, column 0 the patient's right
    nx, ny = whole.shape[1], whole.shape[0]
    column, row = nx - 1 - grid.centres[index][0], ny - 1 - grid.centres[index][1]
    side = grid.size * grid.spacing_mm

    ratio = ny * voxel[1] / (nx * voxel[0])
    panel = 3.6
    size = (2 * panel + 0.3, panel * max(1, min(ratio, 1.6)) + 0.5)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    _image(left, whole, (voxel[1], voxel[0]), _limits(whole))
    corner = (column - side / 2 / voxel[0], row - side / 2 / voxel[1])
    left.add_patch(Rectangle(corner, side / voxel[0], side / voxel[1],
                             fill=False, edgecolor=OKABE_ITO["orange"], linewidth=2))
    # The square may reach beyond the scan; what lies there is padded.
    left.set_xlim(min(-0.5, corner[0] - 1), max(nx - 0.5, corner[0] + side / voxel[0] + 1))
    left.set_ylim(max(ny - 0.5, corner[1] + side / voxel[1] + 1), min(-0.5, corner[1] - 1))
    _letters(left)
    _scale_bar(left, nx, ny, voxel[0])
    left.set_anchor("N")
    right.set_anchor("N")
    left.set_title(f"slice {int(grid.zs[index])}: {voxel[0]:.2f} x {voxel[1]:.2f} mm pixels", fontsize=10)
    _image(right, crops[index], (1.0, 1.0), _limits(crops[index]))
    looks = {name: OUTLINE_LOOKS[(i + 1) % len(OUTLINE_LOOKS)] for i, name in enumerate(outlines or {})}
    for name, (colour, style) in looks.items():
        _outline(right, _as_stack(outlines[name])[index] == 1, OKABE_ITO[colour], style, width=2)
    _letters(right)
    _scale_bar(right, crops.shape[2], crops.shape[1], grid.spacing_mm)
    right.set_title(f"crop: {grid.size} x {grid.size} pixels of {grid.spacing_mm:g} mm", fontsize=10)
    for spine in ("left", "right", "top", "bottom"):
        right.spines[spine].set(color=OKABE_ITO["orange"], linewidth=2)
    right.set_axis_on()
    right.set_xticks([])
    right.set_yticks([])
    if looks:
        _key(figure, looks)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure
