"""A cohort to leaf through: each scan in three planes with its masks, what its header and its sidecar say."""

from __future__ import annotations

import html
import json
import os
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets
import nibabel as nib
import numpy as np

from msfilm.data.bids import find_volumes
from msfilm.data.centres import centres_from_mask
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.data.sidecars import find_sidecars, merge_sidecars
from msfilm.errors import MsfilmError, SettingError, suggest
from msfilm.view.live import LiveView, slider
from msfilm.view.planes import PLANES, GreyScale, PlanePanel, field_box, grey_slider
from msfilm.view.slices import OUTLINE_LOOKS, _key

__all__ = ["CohortBrowser"]

_FIELDS_MM = (("whole scan", 0.0), ("100 mm", 100.0), ("60 mm", 60.0), ("36 mm", 36.0))
_AXES = "xyz"
# of a sidecar, those shown first: field -> unit in BIDS
_SHOWN = {"Manufacturer": "", "ManufacturersModelName": "", "InstitutionName": "", "MagneticFieldStrength": "T",
          "ScanningSequence": "", "RepetitionTime": "s", "EchoTime": "s", "InversionTime": "s", "FlipAngle": "degrees",
          "SliceThickness": "mm"}


class CohortBrowser(LiveView):
    """Scans of a BIDS folder in three planes, with masks, header and sidecar: ``CohortBrowser("data/phantom")``.

    Choose patient and scan; move the yellow crosshair with the sliders or a click in any plane; switch outlines on and
    off; narrow the field. Between scans of one patient the crosshair stays at its place in millimetres. One volume
    is held at a time. One that cannot be opened is named with its fault, and the others stay at hand.

    Args:
        dataset: BIDS folder, as for ``msfilm.data.bids.find_volumes``.
        patient: whom to show first, such as 'sub-005'.
        volume: which scan first, such as 'sub-005_T2star'; that patient's first by default.

    Attributes:
        table: of ``find_volumes``.
        volume: the ``Volume`` shown, or None.
        masks: name -> (X, Y, Z) uint8 of the volume shown.
        fault: why there is no volume.
        faults: what is wrong with it, its masks or its sidecar, otherwise.

    Raises:
        InputError: BIDS-MISSING, BIDS-EMPTY; SettingError: BROWSER-CHOICE for a patient or volume that is not there.
    """

    def __init__(self, dataset: str | Path, *, patient: str | None = None, volume: str | None = None):
        self.dataset = Path(dataset).absolute()
        self.table = find_volumes(self.dataset)
        for given, known in ((patient, self.table["patient"]), (volume, self.table.index)):
            if given is not None and given not in set(known):
                raise SettingError("BROWSER-CHOICE", f"{given!r} is not in {self.dataset.name}",
                                   mend=suggest(given, set(known)))
        if patient is not None and volume is not None and self.table.loc[volume, "patient"] != patient:
            raise SettingError("BROWSER-CHOICE", f"{volume} is not of {patient}", mend="give one of the two")
        super().__init__(9.6, 3.9)
        self.volume: Volume | None = None
        self.masks: dict[str, np.ndarray] = {}
        self.fault: MsfilmError | None = None
        self.faults: list[MsfilmError] = []
        self._grey = GreyScale(np.zeros(2))
        self._of: str | None = None  # whose volume is open
        self._choosing = False
        leading = self.table.columns.tolist()
        self.names = leading[leading.index("image") + 1: leading.index("echo_time_s")]
        looks = {name: OUTLINE_LOOKS[i % len(OUTLINE_LOOKS)] for i, name in enumerate(self.names)}
        axes = self.figure.subplots(1, 3)
        self.planes = {name: PlanePanel(self, ax, name, looks=looks) for name, ax in zip(PLANES, axes, strict=True)}
        if looks:
            _key(self.figure, looks)
        self._sorry = self.figure.text(0.5, 0.5, "", ha="center", va="center", fontsize=10, zorder=9)
        self.move(self._sorry)
        self.facts = ipywidgets.HTML()
        self._controls(patient, volume)
        self.connect("button_press_event", self._click)

    def _controls(self, patient: str | None, volume: str | None) -> None:
        wide = {"description_width": "initial"}
        chosen = volume or (self.table.index[self.table["patient"] == patient][0] if patient else self.table.index[0])
        patients = list(dict.fromkeys(self.table["patient"]))
        who = ipywidgets.Dropdown(options=patients, value=self.table.loc[chosen, "patient"], description="patient",
                                  style=wide, layout={"width": "16em"})
        which = ipywidgets.Dropdown(options=self._scans(who.value), value=chosen, description="scan", style=wide,
                                    layout={"width": "18em"})
        field = ipywidgets.Dropdown(options=_FIELDS_MM, value=0.0, description="field", style=wide,
                                    layout={"width": "12em"})
        rows = [[self.add("patient", who, self._other_patient), self.add("scan", which, self._open),
                 self.add("field", field), self.add("grey", grey_slider())]]
        words = ("x: left to right", "y: back to front", "z: down to up")
        rows.append([self.add(axis, slider(text, 0, 0, 1, width="22em"))
                     for axis, text in zip(_AXES, words, strict=True)])
        rows.append([self.add(name, ipywidgets.Checkbox(value=True, description=name, indent=False,
                                                        layout={"width": "auto"})) for name in self.names])
        self._open()
        self.finish(*(ipywidgets.HBox(row, layout=ipywidgets.Layout(flex_flow="row wrap")) for row in rows),
                    below=(self.facts,))

    @classmethod
    def example(cls) -> CohortBrowser:
        """Two phantom patients, written to a temporary folder that goes with the view."""
        from msfilm.phantom import write_cohort

        folder = tempfile.TemporaryDirectory(prefix="msfilm-")
        view = cls(write_cohort(Path(folder.name) / "phantom", patients=2, seed=0, workers=1, progress=False))
        view._folder = folder
        return view

    # ----- state

    @property
    def position(self) -> tuple[int, int, int]:
        """The crosshair's voxel (x, y, z) of the canonical volume; set it to move there."""
        return tuple(self.controls[axis].value for axis in _AXES)

    @position.setter
    def position(self, voxel: tuple[float, float, float]) -> None:
        with self.hold():
            for axis, at in zip(_AXES, voxel, strict=True):
                control = self.controls[axis]
                control.value = int(np.clip(round(float(at)), control.min, control.max))

    @property
    def position_mm(self) -> np.ndarray:
        """(3,) scanner coordinates of the crosshair: right, front, up."""
        return self.volume.affine[:3, :3] @ self.position + self.volume.affine[:3, 3]

    @property
    def inside(self) -> list[str]:
        """Masks that hold the crosshair's voxel."""
        return [name for name, mask in self.masks.items() if mask[self.position]]

    # ----- what follows the controls

    def update(self) -> None:
        """Planes through the crosshair, or the fault in their place."""
        self._sorry.set_text("" if self.fault is None else textwrap.fill(self._say(self.fault), 100))
        if self.volume is None:
            for plane in self.planes.values():
                plane.blank()
            return
        shown = {name: mask for name, mask in self.masks.items() if self.controls[name].value}
        limits = self._grey.limits(self.controls["grey"].value)
        data, voxel_mm, position = self.volume.data, self.volume.voxel_mm, self.position
        box = field_box(data.shape, voxel_mm, position, self.controls["field"].value)
        for plane in self.planes.values():
            plane.show(data, shown, position, box=box, voxel_mm=voxel_mm, limits=limits)

    def describe(self) -> str:
        """Whose scan, where the crosshair is, and what is there."""
        name = self.controls["scan"].value
        if self.volume is None:
            return f"{name} cannot be shown: {self._say(self.fault)}"
        shape, mm = _by(self.volume.data.shape, "d"), ", ".join(f"{value:.1f}" for value in self.position_mm)
        masks = ", ".join(self.inside) or ("none" if self.masks else "none, as it has none")
        more = f" Trouble: {'; '.join(fault.code for fault in self.faults)}." if self.faults else ""
        return (f"{name} in axial, sagittal and coronal planes. Voxel {', '.join(map(str, self.position))} of {shape}, "
                f"at {mm} mm (right, front, up): value {self.volume.data[self.position]:.5g}; masks there: {masks}."
                + more)

    def still(self, *, dpi: int = 100):
        """The planes as an image, and what header and sidecar say."""
        from IPython.display import HTML

        return HTML(super().still(dpi=dpi).data + self._tables())

    def _say(self, fault: MsfilmError) -> str:
        """A fault with its file named from the cohort's folder on."""
        return str(fault).replace(f"{self.dataset}{os.sep}", "")

    def _click(self, event: Any) -> None:
        for plane in self.planes.values():
            if event.inaxes is plane.ax and self.volume is not None:
                position = list(self.position)
                for axis, at in plane.to_voxel(event.xdata, event.ydata).items():
                    position[axis] = at
                self.position = tuple(position)

    # ----- opening

    def _scans(self, patient: str) -> list[tuple[str, str]]:
        """(what to call it, volume) of a patient's scans: 'T2w', 'T2star acq-lower'."""
        rows = self.table[self.table["patient"] == patient]
        return [(" ".join([contrast, *name.split("_")[1:-1]]), name) for name, contrast in rows["contrast"].items()]

    def _other_patient(self) -> None:
        """Offer the new patient's scans, and of these the one like the last."""
        before = self.controls["scan"].label
        options = self._scans(self.controls["patient"].value)
        alike = [name for label, name in options if label == before]
        self._choosing = True  # new options choose the first of them, which need not be the one that is wanted
        self.controls["scan"].options = options
        self.controls["scan"].value = (alike or [options[0][1]])[0]
        self._choosing = False
        self._open()

    def _open(self) -> None:
        """Read the chosen volume and its masks, and let the former go."""
        if self._choosing:
            return
        name = self.controls["scan"].value
        row = self.table.loc[name]
        kept = self.position_mm if self.volume is not None and self._of == row["patient"] else None
        self.volume, self.masks, self.fault = None, {}, None
        self.faults = [fault for fault in (*row["errors"], *row["notes"]) if fault.code != "IMAGE-MISSING"]
        try:
            if row["image"] is None:
                raise next(fault for fault in row["errors"] if fault.code == "IMAGE-MISSING")
            self.volume = read_image(row["image"])
        except MsfilmError as fault:
            self.fault = fault
        else:
            self._of = row["patient"]
            self._read_masks(row)
            self._grey = GreyScale(self.volume.data)
            self._place(kept)
        for axis in _AXES:
            self.controls[axis].disabled = self.volume is None
        for mask in self.names:
            self.controls[mask].disabled = mask not in self.masks
        self.facts.value = self._tables(whole=True)

    def _read_masks(self, row: Mapping[str, Any]) -> None:
        for mask in self.names:
            if row[mask] is not None:
                try:
                    self.masks[mask] = read_mask(row[mask], self.volume).data
                except MsfilmError as fault:
                    self.faults.append(fault)

    def _place(self, kept_mm: np.ndarray | None) -> None:
        """The crosshair: where it was in mm, if the new volume reaches there, else on the cord, else in the middle."""
        shape = np.array(self.volume.data.shape)
        place = (shape - 1) / 2
        if "cord" in self.masks and self.masks["cord"].any():
            zs, centres = centres_from_mask(self.masks["cord"])
            place = np.array([*centres[len(zs) // 2], zs[len(zs) // 2]])
        if kept_mm is not None:
            voxel = np.linalg.solve(self.volume.affine, [*kept_mm, 1])[:3]
            place = voxel if ((voxel > -0.5) & (voxel < shape - 0.5)).all() else place
        with self.hold():
            for axis, side in zip(_AXES, shape, strict=True):
                self.controls[axis].max = int(side) - 1
            self.position = tuple(place)

    def _tables(self, whole: bool = False) -> str:
        """Header and sidecar of the chosen volume as HTML; ``whole``: with every field of the sidecar to unfold."""
        name = self.controls["scan"].value
        row = self.table.loc[name]
        header = {"centre": row["centre"], "contrast": row["contrast"], "raters": row["raters"] or "none"}
        if self.volume is not None:
            on_disk = nib.load(self.volume.path)
            header = {"file": self.volume.path.name, "voxels (right, front, up)": _by(self.volume.data.shape, "d"),
                      "voxel size": f"{_by(self.volume.voxel_mm, '.2f')} mm", "stored as": self.volume.orientation,
                      "values": str(on_disk.get_data_dtype()),
                      "qform, sform code": f"{on_disk.header['qform_code']}, {on_disk.header['sform_code']}"} | header
        folder = row["image"].parent if row["image"] is not None else self.dataset / row["patient"] / "anat"
        fields, _ = merge_sidecars(find_sidecars(self.dataset, folder, name, {}))
        sidecar = {key: f"{fields[key]} {unit}".strip() for key, unit in _SHOWN.items() if key in fields}
        faults = [*([self.fault] if self.fault else []), *self.faults]
        notes = [self._say(fault) for fault in faults]
        notes += list(self.volume.notes) if self.volume is not None else []
        text = '<div style="display:flex;flex-wrap:wrap;gap:1em 2em;align-items:flex-start">'
        text += _table("header", header) + _table("sidecar", sidecar or {"no sidecar": "nothing is known"})
        if whole and fields:
            rest = html.escape(json.dumps(fields, indent=1, ensure_ascii=False))
            text += (f"<details><summary>all {len(fields)} fields of the sidecar</summary>"
                     f'<pre style="max-height:16em;overflow:auto;line-height:1.3">{rest}</pre></details>')
        text += "</div>"
        if notes:
            text += "<p>Notes:</p><ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"
        return text


def _by(numbers: Any, how: str) -> str:
    return " x ".join(format(number, how) for number in numbers)


def _table(caption: str, rows: Mapping[str, Any]) -> str:
    lines = "".join(f'<tr><th scope="row" style="text-align:left;font-weight:normal;padding:0 1em 0 0">'
                    f'{html.escape(str(key))}</th><td style="text-align:left">{html.escape(str(value))}</td></tr>'
                    for key, value in rows.items())
    return (f'<table style="margin:0;line-height:1.4"><caption style="text-align:left;font-weight:bold">{caption}'
            f"</caption>{lines}</table>")
