"""Say where the cord is in a scan of one's own: a few clicks, a curve between them, the crops that follow, a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.lines import Line2D

from msfilm.data.centres import centres_from_points, points_to_voxels, read_centreline, write_centreline
from msfilm.data.crop import CropGrid, crop
from msfilm.data.nifti import read_image
from msfilm.errors import MsfilmError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.evaluate.localise import CordLocation, localise
from msfilm.evaluate.segmentation import Segmentation, segment
from msfilm.view.centreline_example import example_picker
from msfilm.view.live import LiveView, slider
from msfilm.view.panels import SlicePanel
from msfilm.view.planes import PLANES, GreyScale, PlanePanel, field_box, grey_slider

__all__ = ["CentrelinePicker"]

_FIELDS_MM = (("whole slice", 0.0), ("120 mm", 120.0), ("80 mm", 80.0), ("40 mm", 40.0))
_SIZE, _SPACING_MM = 48, 0.75  # of the crop, as in training
_POINT, _CURVE = {"color": OKABE_ITO["orange"], "marker": "o", "markerfacecolor": "none"}, OKABE_ITO["sky"]


class CentrelinePicker(LiveView):
    """Click the cord in a few slices of a scan, and save the points: ``CentrelinePicker("scan.nii.gz")``.

    A click in the axial slice sets its point; a click in the other planes goes to that slice. By keyboard: move the
    yellow cursor with the two sliders, then *set point*. *propose* begins with what the localiser finds. Two points do
    for a straight cord, one every 15 mm for a curved one. Between them runs a monotone cubic
    (``msfilm.data.centres.centres_from_points``); only slices from the lowest to the highest point are segmented, and
    beyond them the cursor stays at the end point. The crop shows what a network would see round the cursor. The file
    is what ``msfilm segment --centreline FILE`` reads.

    Args:
        scan: NIfTI of any orientation.
        out: file to save to, '<scan>_centreline.csv' in the working folder by default. One that is there is loaded.
        points: to begin with, instead of ``out``'s: another such file, or (k, 3) scanner mm (RAS); () for none.

    Attributes:
        volume: the scan, canonical.
        out: where ``save`` writes.
        saved: where it has written last, or None.
        curve: slices (n,) from the lowest to the highest point, and their voxel x, y (n, 2); empty before two points.

    Raises:
        InputError: of the scan (NIFTI-*) or of the points (CENTRELINE-*).
    """

    def __init__(self, scan: str | Path, out: str | Path | None = None, *, points: Any = None):
        self.scan, self.volume = Path(scan), read_image(scan)
        stem = self.scan.name.removesuffix(".gz").removesuffix(".nii")
        self.out = Path(out) if out is not None else Path(f"{stem}_centreline.csv")
        super().__init__(9.6, 3.6)
        self.saved: Path | None = None
        self._said, self._listing = "", False
        self._voxels = np.empty((0, 3))  # the points, by height
        self.curve = np.empty(0, int), np.empty((0, 2))
        self._grey = GreyScale(self.volume.data)
        self._middle = (np.array(self.volume.data.shape) - 1) / 2
        self._window = self._middle  # what the narrowed field is centred on: not the cursor, which would drag it along
        self._draw()
        self._controls()
        if points is None and self.out.is_file():
            points = self.out
        if points is not None:
            self.points_mm = read_centreline(points) if isinstance(points, str | Path) else points
        if len(self._voxels):
            self.controls["z"].value = self._slices()[0]
        self._to_slice()
        self.connect("button_press_event", self._click)
        self.finish(*self._rows, below=(self._lists,))

    def _draw(self) -> None:
        axes = self.figure.subplots(1, 4, width_ratios=[1.3, 1, 1, 1])
        self.axial, self.sagittal, self.coronal = map(PlanePanel, [self] * 3, axes[[0, 2, 3]], PLANES)
        self.crop_panel = SlicePanel(self, axes[1])
        self._here, = axes[0].plot([], [], linestyle="none", markersize=10, markeredgewidth=1.8, zorder=7, **_POINT)
        self._curve_here, = axes[0].plot([], [], "+", color=_CURVE, markersize=12, markeredgewidth=1.8, zorder=7)
        middle = (_SIZE - 1) / 2
        cross, = axes[1].plot(middle, middle, "+", color="#F0E442", markersize=12, markeredgewidth=1.2, zorder=7)
        self.move(self._here, self._curve_here, cross)
        self._lines = {}
        for plane in (self.sagittal, self.coronal):
            curve, = plane.ax.plot([], [], color=_CURVE, linestyle=(0, (4, 1.5)), linewidth=1.8, zorder=7)
            dots, = plane.ax.plot([], [], linestyle="none", markersize=6, markeredgewidth=1.8, zorder=8, **_POINT)
            self._lines[plane.name] = curve, dots
            self.move(curve, dots)
        handles = [Line2D([], [], linestyle="none", markeredgewidth=1.8, label="point", **_POINT),
                   Line2D([], [], color=_CURVE, linestyle=(0, (4, 1.5)), marker="+", linewidth=2, label="curve"),
                   Line2D([], [], color="#F0E442", label="cursor")]
        self.figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, handlelength=3.2,
                           facecolor="0.25", labelcolor="white", framealpha=1, edgecolor="none")

    def _controls(self) -> None:
        shape, voxel_mm = self.volume.data.shape, self.volume.voxel_mm
        wide = {"description_width": "initial"}
        half = (np.array(shape) - 1) / 2 * voxel_mm
        z = self.add("z", slider("slice", int(self._middle[2]), 0, shape[2] - 1), self._to_slice)
        across = self.add("right_left", slider("right-left mm", 0.0, -half[0], half[0], 0.25))
        down = self.add("front_back", slider("front-back mm", 0.0, -half[1], half[1], 0.25))
        field = self.add("field", ipywidgets.Dropdown(options=_FIELDS_MM, value=0.0, description="field", style=wide,
                                                      layout={"width": "12em"}), self._recentre)
        grey = self.add("grey", grey_slider())
        buttons = [self.add(name, ipywidgets.Button(description=name.replace("_", " "), layout={"width": "auto"}), do)
                   for name, do in (("set_point", lambda: self.pick(*self.cursor)), ("remove_point", self._remove),
                                    ("previous_slice", lambda: self._step(-1)), ("next_slice", lambda: self._step(1)),
                                    ("propose", lambda: self._try(self.propose, "Nothing proposed")),
                                    ("save", lambda: self._try(self.save, "Not saved")))]
        self._lists = self.add("points", ipywidgets.Select(options=[], rows=6, description="points", style=wide,
                                                           layout={"width": "30em"}), self._go)
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        self._rows = [ipywidgets.HBox(row, layout=wrap) for row in ([z, across, down], [field, grey], buttons)]

    @classmethod
    def example(cls) -> CentrelinePicker:
        """A phantom's T2w scan in a temporary folder that goes with the view, with three points."""
        return example_picker(cls)

    # ----- state

    @property
    def cursor(self) -> np.ndarray:
        """(3,) canonical voxel coordinates of the cursor."""
        across, down = (self.controls[name].value for name in ("right_left", "front_back"))  # grow as on the screen
        x, y = self._middle[:2] - np.array([across, down]) / self.volume.voxel_mm[:2]
        return np.array([x, y, self.controls["z"].value])

    @property
    def points_mm(self) -> np.ndarray:
        """(k, 3) scanner mm (RAS) of the points, from the lowest up, as they are saved; set it to replace all."""
        return self._rounded_mm(self._voxels)

    @points_mm.setter
    def points_mm(self, points_mm: Any) -> None:
        points_mm = np.reshape(points_mm, (0, 3)) if np.size(points_mm) == 0 else points_mm
        self._keep(points_to_voxels(points_mm, self.volume))

    @property
    def grid(self) -> CropGrid:
        """Where ``segment`` crops: on the curve."""
        return CropGrid(self.volume.data.shape, self.volume.affine, *self.curve, _SIZE, _SPACING_MM)

    @property
    def centreline_mm(self) -> np.ndarray:
        """(n, 3) scanner mm of the curve, one place a slice; none before two points."""
        return self._to_mm(self._on_curve())

    def centre_at(self, z: int) -> np.ndarray | None:
        """(2,) voxel x, y of the curve in a slice, of the nearer end beyond it; None without a point."""
        zs, centres = self.curve
        if len(zs):
            return centres[np.clip(np.searchsorted(zs, z), 0, len(zs) - 1)]
        return self._voxels[0, :2] if len(self._voxels) else None

    def pick(self, x: float, y: float, z: int) -> None:
        """Set the point of slice z to the canonical voxel coordinates x, y, and go there; as a click does."""
        place = np.array([[x, y, np.rint(z)]], float)
        points_to_voxels(self._to_mm(place), self.volume)  # refuses what lies outside the scan
        with self.hold():
            self._keep(np.vstack([self._voxels[self._slices() != place[0, 2]], place]))
            self.controls["z"].value = int(place[0, 2])
            self._to_slice()

    def load(self, path: str | Path) -> None:
        """Take the points of a file in place of those here."""
        with self.hold():
            self.points_mm = read_centreline(path)
            self._said = f"Loaded {len(self._voxels)} points of {Path(path).name}."
            self.refresh()

    def save(self, path: str | Path | None = None) -> Path:
        """Write the points and say where; errors as for ``write_centreline``."""
        about = f"Points along the cord in {self.scan.name}, picked with msfilm's CentrelinePicker."
        self.saved = write_centreline(self.out if path is None else path, self.points_mm, about=about)
        self._said = f"Saved {len(self._voxels)} points to {self.saved}."
        self.refresh()
        return self.saved

    def propose(self) -> CordLocation:
        """Take at most six points of the built-in localiser in place of those here, and say how sure it is."""
        found = localise(self.volume)
        with self.hold():
            self.points_mm = found.thinned()
            self._said = f"Proposed: {found.verdict}"
            self._to_slice()
            self.refresh()
        return found

    def segment(self, contrast: str, out: str | Path | None = None, **settings: Any) -> Segmentation:
        """Segment the scan along the curve; arguments and result as of ``msfilm.evaluate.segment``."""
        return segment(self.scan, out, contrast=contrast, centreline=self.points_mm, **settings)

    # ----- what follows the controls

    def update(self) -> None:
        """The slice with cursor, point and curve; the crop round the cursor; the curve from the side and front."""
        data, voxel_mm, cursor = self.volume.data, self.volume.voxel_mm, self.cursor
        look = {"voxel_mm": voxel_mm, "limits": self._grey.limits(self.controls["grey"].value)}
        z, tall = int(cursor[2]), data.shape[2] * voxel_mm[2]  # from the side and front: no wider than tall
        beside = field_box(data.shape, voxel_mm, self._voxels.mean(0) if len(self._voxels) else self._middle, tall)
        box = field_box(data.shape, voxel_mm, self._window, self.controls["field"].value)
        self.axial.show(data, {}, cursor, box=box, title=f"axial, z = {z} of 0 to {data.shape[2] - 1}", **look)
        self._here.set_data(*self.axial.to_screen(self._voxels[self._slices() == z]))
        curve = self._on_curve()
        self._curve_here.set_data(*self.axial.to_screen(curve[curve[:, 2] == z]))
        crops, _ = crop(data, CropGrid(data.shape, self.volume.affine, [z], [cursor[:2]], _SIZE, _SPACING_MM))
        self.crop_panel.show(crops[0], spacing_mm=_SPACING_MM, title=f"crop at the cursor, {_SIZE * _SPACING_MM:g} mm")
        for plane in (self.sagittal, self.coronal):
            plane.show(data, {}, cursor, box=beside, **look)
            for line, voxels in zip(self._lines[plane.name], (curve, self._voxels), strict=True):
                line.set_data(*plane.to_screen(voxels))

    def describe(self) -> str:
        """Where the cursor is, which slices have a point, and which the curve reaches."""
        cursor, slices = self.cursor, self._slices()
        right, front, up = self._to_mm(cursor[None])[0]
        text = (f"{self.scan.name}, slice {int(cursor[2])} of 0 to {self.volume.data.shape[2] - 1}; cursor at "
                f"{right:.1f}, {front:.1f}, {up:.1f} mm (right, front, up). ")
        text += f"{len(slices)} points, in slices {', '.join(map(str, slices))}. " if len(slices) else "No point yet. "
        if len(zs := self.curve[0]):
            centre = self.centre_at(int(cursor[2]))
            away = np.hypot(*((cursor[:2] - centre) * self.volume.voxel_mm[:2]))
            text += f"The curve runs through {len(zs)} slices, {zs[0]} to {zs[-1]}; the cursor is "
            text += f"{away:.1f} mm from it. " if zs[0] <= cursor[2] <= zs[-1] else "beyond its ends. "
        else:
            text += "A curve needs two points. "
        return text + self._said

    # ----- answers

    def _to_mm(self, voxels: np.ndarray) -> np.ndarray:
        return voxels @ self.volume.affine[:3, :3].T + self.volume.affine[:3, 3]

    def _on_curve(self) -> np.ndarray:
        """(n, 3) voxel coordinates."""
        return np.column_stack([self.curve[1], self.curve[0]])

    def _rounded_mm(self, voxels: np.ndarray) -> np.ndarray:
        return np.round(self._to_mm(voxels), 4)  # as a file holds them, so that the curve is the file's to the last bit

    def _slices(self) -> np.ndarray:
        """The slice of each point."""
        return np.rint(self._voxels[:, 2]).astype(int)

    def _keep(self, voxels: np.ndarray) -> None:
        """Other points: the curve, the list and what was said follow."""
        voxels = voxels[np.argsort(voxels[:, 2], kind="stable")]
        curve = np.empty(0, int), np.empty((0, 2))
        if len(voxels) > 1:  # first, so that points which it refuses change nothing
            curve = centres_from_points(self._rounded_mm(voxels), self.volume)
        with self.hold():
            self._voxels, self._said, self.curve = voxels, "", curve
            self._list()
            self.refresh()

    def _list(self) -> None:
        chosen, slices = self.controls["points"], self._slices()
        options = [(f"z = {z}: {', '.join(f'{value:.1f}' for value in mm)} mm", int(z))
                   for z, mm in zip(slices, self.points_mm, strict=True)]
        z = self.controls["z"].value
        self._listing = True
        if tuple(options) != tuple(chosen.options):
            chosen.options = options
        chosen.value = z if z in slices else None
        chosen.disabled, self._listing = not options, False

    def _to_slice(self) -> None:
        """In another slice the cursor goes to the point there, else to the curve, else it stays."""
        z = self.controls["z"].value
        own = self._voxels[self._slices() == z]
        centre = own[0, :2] if len(own) else self.centre_at(z)
        if centre is not None:
            self._put(centre)
        self._recentre()
        self._list()

    def _put(self, xy: np.ndarray) -> None:
        away = (self._middle[:2] - xy) * self.volume.voxel_mm[:2]
        with self.hold():
            for name, mm in zip(("right_left", "front_back"), away, strict=True):
                self.controls[name].value = float(np.clip(mm, self.controls[name].min, self.controls[name].max))

    def _recentre(self) -> None:
        self._window = self.cursor

    def _remove(self) -> None:
        self._keep(self._voxels[self._slices() != self.controls["z"].value])

    def _step(self, by: int) -> None:
        control = self.controls["z"]
        control.value = int(np.clip(control.value + by, control.min, control.max))

    def _go(self) -> None:
        if not self._listing and self.controls["points"].value is not None:
            self.controls["z"].value = self.controls["points"].value

    def _try(self, do: Callable[[], Any], words: str) -> None:
        try:
            do()
        except MsfilmError as refusal:
            self._said = f"{words}: {refusal}"

    def _click(self, event: Any) -> None:
        for plane in (self.axial, self.sagittal, self.coronal):
            if event.inaxes is plane.ax:
                place = plane.to_voxel(event.xdata, event.ydata)
                if plane is self.axial:
                    self.pick(place[0], place[1], self.controls["z"].value)
                else:
                    control = self.controls["z"]
                    control.value = int(np.clip(round(place[2]), control.min, control.max))
