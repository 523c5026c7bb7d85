"""Where the crop lies and what it costs: centre, pixel and size as sliders, the whole slice and the crop beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.data.crop import CropGrid, coverage, crop, crop_mask, uncrop
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.errors import InputError, SettingError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.evaluate.metrics import dice
from msfilm.phantom.cohort import make_scan
from msfilm.view.live import LiveView, slider
from msfilm.view.panels import SlicePanel

__all__ = ["CropExplorer"]

LOOKS = {"cord": ("sky", (0, (4, 1.5))), "lesion": ("vermillion", "-")}
BACK = {"lesion": ("vermillion", "-"), "cord": ("sky", (0, (4, 1.5))), "put back": ("yellow", (0, (1, 1)))}
REACH_MM, NEAR_MM, ROOM_MM = 20.0, 30.0, 44.0  # of the centre; of the scan's voxels shown; of the whole slice at least
MOST_SLICES = 40  # of a mask that are cropped and put back at each move
LINE = 1.8


class CropExplorer(LiveView):
    """Move the square that is cut from a scan, change its pixels, and see what is lost on the way there and back.

    Left the whole axial slice with the square, in the middle the crop as a network gets it (dashed: where the scan
    ends, beyond it the last voxel is repeated), right the scan's own voxels near the cord with the mask as it comes
    back from the crop (dotted). Below, what that costs, and a voxel beside a pixel at one scale. To use: click into
    the left picture to put the centre there, or move the sliders; 'back to the cord' undoes it. The offset holds for
    all slices.

    Args:
        image: a scan (``Volume``) or its path; without one, a patient of the phantom.
        cord: its mask, (X, Y, Z) canonical array, ``Volume`` or path.
        lesion: likewise, if there is one. What is put back is the lesion, or the cord where there is none.
        centreline: instead of a cord mask, points (k, 3) in scanner mm, or the CSV file that holds them.
        size, spacing_mm: pixels along a side, and the size of one, to begin with.

    Raises:
        SettingError: CROP-CORD without cord and centreline, or with both; CROP-SHAPE where a mask is no match.
        InputError: CROP-EMPTY where the cord mask is empty; what reading the files and points raises.

    Attributes:
        grid: the square on the slice that is shown.
        padded: share of its pixels beyond the scan.
        lesion_mm3, lost_mm3: of the mask that is put back, in the whole scan, and how much lies outside the square.
        dice, soft_dice: of it, cropped and put back, against itself: cut at one half in the crop, or only in the scan.
        slice_dice: the first of the two on the slice that is shown.
        whole_scan: False where the mask has so many slices that these numbers are of the slice that is shown.
    """

    def __init__(
        self,
        image: Volume | str | Path | None = None,
        cord: Any = None,
        lesion: Any = None,
        *,
        centreline: Any = None,
        size: int = 48,
        spacing_mm: float = 0.75,
    ):
        if image is None:
            if cord is not None or lesion is not None or centreline is not None:
                raise SettingError("CROP-CORD", "a mask or a centreline without a scan", mend="give the scan first")
            scan = make_scan(6, 0, "T2w_ax", raters=())
            image, cord, lesion = Volume(scan.image.astype(np.float32), scan.affine), scan.cord, scan.truth
            self.name = "sub-007_T2w of the phantom"
        else:
            image = image if isinstance(image, Volume) else read_image(image)
            self.name = image.path.name if image.path else "the scan"
        if (cord is None) == (centreline is None):
            raise SettingError("CROP-CORD", "neither a cord mask nor a centreline" if cord is None else "both a cord "
                               "mask and a centreline", mend="give one of them")  # fmt: skip
        super().__init__(9.9, 5.4)
        self.image = image
        self.cord, self.lesion = self._mask(cord, "cord"), self._mask(lesion, "lesion")
        if cord is not None:
            self.zs, self.centres = centres_from_mask(self.cord)
            if not len(self.zs):
                raise InputError("CROP-EMPTY", "the cord mask is empty", mend="give the mask of this scan's cord")
        else:
            points = read_centreline(centreline) if isinstance(centreline, str | Path) else np.asarray(centreline)
            self.zs, self.centres = centres_from_points(points, image)
        self.scored = "lesion" if self.lesion is not None and self.lesion[:, :, self.zs].any() else "cord"
        mask = getattr(self, self.scored)
        self._rows = np.flatnonzero(mask[:, :, self.zs].any((0, 1))) if mask is not None else np.zeros(0, int)
        self._outside = np.setdiff1d(np.arange(image.data.shape[2]), self.zs)
        self._outside = self._outside[mask[:, :, self._outside].any((0, 1))] if mask is not None else self._outside[:0]
        self.whole_scan = len(self._rows) <= MOST_SLICES
        where = self.zs[len(self.zs) // 2] if mask is None or not len(self._rows) else self.zs[
            self._rows[mask[:, :, self.zs[self._rows]].sum((0, 1)).argmax()]]  # fmt: skip
        x, y = image.data.shape[:2] * image.voxel_mm[:2]
        self._pad = [max(0, int(np.ceil((ROOM_MM - mm) / 2 / step))) for mm, step in zip((x, y), image.voxel_mm,
                                                                                        strict=False)]
        self._limits: dict[int, tuple[float, float]] = {}
        self._add_controls(int(where), size, spacing_mm)
        self._draw_first()
        c, row = self.controls, {"flex_flow": "row wrap"}
        self.finish(ipywidgets.HBox([c["z"], c["back"]], layout=row),
                    ipywidgets.HBox([c["right_mm"], c["front_mm"]], layout=row),
                    ipywidgets.HBox([c["spacing_mm"], c["size"]], layout=row))

    @classmethod
    def example(cls) -> CropExplorer:
        return cls()

    def _mask(self, mask: Any, name: str) -> np.ndarray | None:
        if mask is None:
            return None
        if isinstance(mask, str | Path):
            mask = read_mask(mask, self.image)
        found = np.asarray(mask.data if isinstance(mask, Volume) else mask)
        if found.shape != self.image.data.shape:
            raise SettingError("CROP-SHAPE", f"the {name} mask is {found.shape}, the scan {self.image.data.shape}",
                               mend="give a mask on the scan's own grid, in canonical order")  # fmt: skip
        return found == 1

    def _add_controls(self, z: int, size: int, spacing_mm: float) -> None:
        plain = {"style": {"description_width": "initial"}}
        self.add("z", ipywidgets.SelectionSlider(options=self.zs.tolist(), value=z, description="slice",
                                                 layout={"width": "24em"}, **plain))
        self.add("back", ipywidgets.Button(description="back to the cord", icon="crosshairs",
                                           layout={"width": "auto"}), self._back)
        for name, text in (("right_mm", "to the patient's right (mm)"), ("front_mm", "to the front (mm)")):
            self.add(name, slider(text, 0.0, -REACH_MM, REACH_MM, 0.25, width="30em"))
        self.add("spacing_mm", slider("pixel (mm)", float(spacing_mm), min(0.2, spacing_mm), max(2.0, spacing_mm), 0.05,
                                      width="30em"))
        self.add("size", slider("pixels along a side", int(size), min(8, size), max(160, size), 2, width="30em"))

    def _back(self) -> None:
        for name in ("right_mm", "front_mm"):
            self.controls[name].value = 0.0

    def _draw_first(self) -> None:
        above, below = self.figure.subfigures(2, 1, height_ratios=(2.75, 1))
        axes = above.subplots(1, 3)
        self.whole, self.crop = (SlicePanel(self, ax, looks=LOOKS) for ax in axes[:2])
        self.near = SlicePanel(self, axes[2], looks=BACK)
        line = {"color": OKABE_ITO["orange"], "linewidth": LINE, "zorder": 5}
        self._squares = [panel.ax.plot([], [], **line)[0] for panel in (self.whole, self.near)]
        self._cross, = self.whole.ax.plot([], [], "+", color=OKABE_ITO["orange"], markersize=9, zorder=5)
        self._end, = self.crop.ax.plot([], [], linestyle="--", **line | {"color": OKABE_ITO["purple"]})
        known = {name: look for name, look in BACK.items() if name not in LOOKS or getattr(self, name) is not None}
        lines = [*((name, OKABE_ITO[colour], style) for name, (colour, style) in known.items()),
                 ("the square", OKABE_ITO["orange"], "-"), ("where the scan ends", OKABE_ITO["purple"], "--")]
        above.legend(handles=[Line2D([], [], color=colour, linestyle=style, linewidth=2.2, label=name)
                              for name, colour, style in lines], loc="outside lower center", ncols=5, fontsize=9,
                     handlelength=3, facecolor="0.25", labelcolor="white", framealpha=1, edgecolor="none")
        bars, sizes = below.subplots(1, 2, width_ratios=(2, 1))
        names = ["beyond the scan", f"{self.scored} outside", "Dice, mask put back", "the same, soft edges"]
        colours = [OKABE_ITO[name] for name in ("purple", "vermillion", "blue", "sky")]
        self.bars = bars.barh(names, [0.0] * 4, color=colours, height=0.62)
        self._numbers = [bars.text(1.0, i, "", transform=bars.get_yaxis_transform(), fontsize=9, va="center",
                                   ha="right") for i in range(4)]
        bars.set(xlim=(0, 1.45), xticks=np.linspace(0, 1, 5))
        bars.invert_yaxis()
        bars.tick_params(labelsize=9)
        bars.spines[["top", "right"]].set_visible(False)
        step = self.image.voxel_mm
        top = max(2.1, 1.1 * float(step[:2].max()))
        sizes.set(xlim=(0, 3.2 * top), ylim=(0, 1.3 * top), aspect="equal", anchor="C")
        sizes.set_axis_off()
        sizes.add_patch(Rectangle((0.1, 0), step[0], step[1], facecolor="0.75", edgecolor="0.3"))
        sizes.text(0.1, step[1] + 0.08 * top, f"voxel {step[0]:.2f} x {step[1]:.2f} mm", fontsize=9, va="bottom")
        self._pixel = sizes.add_patch(Rectangle((1.75 * top, 0), 1, 1, facecolor="none",
                                                edgecolor=OKABE_ITO["orange"], linewidth=LINE))
        self._pixel_text = sizes.text(1.75 * top, 0, "", fontsize=9, va="bottom")
        self._gap = 0.08 * top
        self.move(*self._squares, self._cross, self._end, *self.bars, *self._numbers, self._pixel, self._pixel_text)
        self.connect("button_press_event", self._click)

    def _click(self, event: Any) -> None:
        """Put the square's centre where the whole slice was clicked."""
        if event.inaxes is not self.whole.ax or event.xdata is None:
            return
        x, y = self._place(event.xdata, event.ydata)
        centre, step = self.centres[self._index], self.image.voxel_mm
        moves = (x - centre[0]) * step[0], (y - centre[1]) * step[1]
        for name, mm in zip(("right_mm", "front_mm"), moves, strict=True):
            self.controls[name].value = float(np.clip(round(mm, 2), -REACH_MM, REACH_MM))

    def _place(self, column, row):
        """From the left picture to voxels and back: the same formula both ways."""
        nx, ny = self.image.data.shape[:2]
        return nx - 1 + self._pad[0] - column, ny - 1 + self._pad[1] - row

    @property
    def _index(self) -> int:
        return int(np.flatnonzero(self.zs == self.controls["z"].value)[0])

    def _grid(self, shape: tuple[int, int, int], zs: np.ndarray, rows: np.ndarray) -> CropGrid:
        step = self.image.voxel_mm
        offset = self.controls["right_mm"].value / step[0], self.controls["front_mm"].value / step[1]
        return CropGrid(shape, self.image.affine, zs, self.centres[rows] + offset, self.controls["size"].value,
                        self.controls["spacing_mm"].value)

    def update(self) -> None:
        index, z = self._index, self.controls["z"].value
        nx, ny = self.image.data.shape[:2]
        here = np.s_[:, :, z: z + 1]  # one slice, so that nothing grows with the scan
        masks = {name: mask[here] for name, mask in (("cord", self.cord), ("lesion", self.lesion)) if mask is not None}
        flat = self._grid((nx, ny, 1), np.zeros(1, int), np.array([index]))
        self.grid = self._grid(self.image.data.shape, np.array([z]), np.array([index]))
        pixels, padded = crop(self.image.data[here], flat)
        self.padded = float(padded[0])
        cropped = {name: crop_mask(mask, flat)[0] for name, mask in masks.items()}
        back = self._round_trip(index)
        self._show_slices(z, flat, pixels[0], masks, cropped, back)
        share = self.lost_mm3 / self.lesion_mm3 if self.lesion_mm3 else float("nan")
        values = (self.padded, share, self.dice, self.soft_dice)
        texts = (f"{self.padded:.0%} of the pixels", f"{self.lost_mm3:.1f} of {self.lesion_mm3:.1f} mm³",
                 f"{self.dice:.3f}", f"{self.soft_dice:.3f}")
        for bar, number, value, text in zip(self.bars, self._numbers, values, texts, strict=True):
            bar.set_width(value if np.isfinite(value) else 0.0)
            number.set_text(text if np.isfinite(value) else "no mask")
        side = self.grid.spacing_mm
        self._pixel.set_bounds(self._pixel.get_x(), 0, side, side)
        self._pixel_text.set_text(f"pixel {side:.2f} mm")
        self._pixel_text.set_y(side + self._gap)

    def _round_trip(self, index: int) -> np.ndarray | None:
        """Crop the mask, put it back and score it; gives (X, Y) of the slice that is shown, or None without a mask."""
        rows = self._rows if self.whole_scan else self._rows[self._rows == index]
        mask = getattr(self, self.scored)
        self.lesion_mm3 = self.lost_mm3 = 0.0
        self.dice = self.soft_dice = self.slice_dice = float("nan")
        if mask is None or not len(rows):
            return None
        outside = mask[:, :, self._outside] if self.whole_scan else mask[:, :, :0]  # slices that no crop has
        mask = mask[:, :, self.zs[rows]]
        grid = self._grid(mask.shape, np.arange(len(rows)), rows)
        soft, _ = crop(mask, grid)
        hard = uncrop((soft >= 0.5).astype(np.float32), grid) >= 0.5
        voxel_mm3 = float(np.prod(self.image.voxel_mm))
        self.lesion_mm3 = (mask.sum() + outside.sum()) * voxel_mm3
        self.lost_mm3 = ((mask & ~coverage(grid)).sum() + outside.sum()) * voxel_mm3
        everywhere, nothing = np.concatenate([mask, outside], axis=2), np.zeros_like(outside)
        self.dice, self.soft_dice = (dice(everywhere, np.concatenate([found, nothing], axis=2))
                                     for found in (hard, uncrop(soft, grid) >= 0.5))
        if index not in rows:
            return None
        k = int(np.flatnonzero(rows == index)[0])
        self.slice_dice = dice(mask[:, :, k], hard[:, :, k])
        return hard[:, :, k]

    def _show_slices(self, z, grid, pixels, masks, cropped, back) -> None:
        image, step = self.image.data[:, :, z], self.image.voxel_mm
        if z not in self._limits:
            low, high = np.percentile(image, (0.5, 99.5))
            self._limits[z] = float(low), float(max(high, low + 1e-6))
        limits = self._limits[z]
        flipped = {name: self._whole(mask[:, :, 0]) for name, mask in masks.items()}
        self.whole.show(self._whole(image), flipped, spacing_mm=(step[1], step[0]), limits=limits,
                        title=f"slice {z} of {self.zs[0]} to {self.zs[-1]}")
        self.crop.show(pixels, cropped, spacing_mm=grid.spacing_mm, limits=limits,
                       title=f"the crop: {grid.size} x {grid.size} pixels, {grid.size * grid.spacing_mm:.1f} mm")
        part = tuple(self._near(axis) for axis in (0, 1))
        shown = {self.scored: masks[self.scored][:, :, 0][part][::-1, ::-1].T} if self.scored in masks else {}
        if back is not None:
            shown["put back"] = back[part][::-1, ::-1].T
        self.near.show(image[part][::-1, ::-1].T, shown, spacing_mm=(step[1], step[0]), limits=limits,
                       title=f"{self.scored} on the scan's voxels, and put back")
        half = grid.size * grid.spacing_mm / 2 / step[:2]
        corners = grid.centres[0] + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)])
        self._squares[0].set_data(*self._place(*corners.T))
        self._cross.set_data(*np.reshape(self._place(*grid.centres[0]), (2, 1)))
        self._squares[1].set_data(*(part[axis].stop - 1 - corners[:, axis] for axis in (0, 1)))
        ends = np.array([(-0.5, -0.5), (-0.5, image.shape[1] - 0.5), np.array(image.shape) - 0.5,
                         (image.shape[0] - 0.5, -0.5), (-0.5, -0.5)])  # fmt: skip
        self._end.set_data(*((grid.size - 1) / 2 - (ends - grid.centres[0]) * step[:2] / grid.spacing_mm).T)

    def _whole(self, plane: np.ndarray) -> np.ndarray:
        """(X, Y) as it is looked at, with room round a scan that is smaller than the square."""
        if any(self._pad):
            plane = np.pad(plane, [(each, each) for each in self._pad])
        return plane[::-1, ::-1].T

    def _near(self, axis: int) -> slice:
        """Voxels near the cord, always as many, and none that the scan does not have."""
        count = min(self.image.data.shape[axis], round(NEAR_MM / self.image.voxel_mm[axis]))
        start = round(self.centres[self._index][axis] - count / 2)
        start = int(np.clip(start, 0, self.image.data.shape[axis] - count))
        return slice(start, start + count)

    def describe(self) -> str:
        grid, step, c = self.grid, self.image.voxel_mm, self.controls
        side = grid.size * grid.spacing_mm
        text = (f"Slice {c['z'].value} of {self.name}: {grid.size} x {grid.size} pixels of {grid.spacing_mm:.2f} mm "
                f"see {side:.1f} x {side:.1f} mm, {c['right_mm'].value:+.1f} mm to the right and "
                f"{c['front_mm'].value:+.1f} mm to the front of the cord's centre; {self.padded:.0%} of them lie "
                f"beyond the scan. A pixel covers {grid.spacing_mm**2 / (step[0] * step[1]):.1f} voxels. ")
        if not self.lesion_mm3:
            return text + "There is no mask to put back" + ("." if self.whole_scan else " on this slice.")
        where = "the whole scan" if self.whole_scan else "this slice"
        here = f" ({self.slice_dice:.3f} on this slice)" if self.whole_scan and np.isfinite(self.slice_dice) else ""
        return text + (f"In {where} {self.lost_mm3:.1f} of {self.lesion_mm3:.1f} mm3 of {self.scored} lie outside the "
                       f"square; cropped and put back it has a Dice of {self.dice:.3f}{here} with itself, with soft "
                       f"edges {self.soft_dice:.3f}.")
