"""Controls that choose a slice of a SliceSet, by patient, scan and number, and the mask that it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import numpy as np

from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.errors import InputError
from msfilm.view.live import LiveView, slider

__all__ = ["SlicePicker"]

_WIDE = {"description_width": "initial"}


class SlicePicker:
    """Four controls of a live view: patient, scan, slice, reference. It starts where most lesion is in one slice.

    Args:
        view: whose controls they are.
        slices: to choose from.
        then: what to do when another slice is chosen, before the picture follows.

    Attributes:
        raters: who drew the chosen scan -> the name of that mask.

    Raises:
        InputError: SLICES-EMPTY.
    """

    def __init__(self, view: LiveView, slices: SliceSet, then: Callable[[], None]):
        if not len(slices):
            raise InputError("SLICES-EMPTY", "there is no slice to show")
        self.slices, self.controls = slices, view.controls
        self._then: Callable[[], None] | None = None  # what a view does can need controls that come after these
        self.raters: dict[str, str] = {}
        name = next((name for name in ("truth", "rater-1") if name in slices.masks), None)
        self._areas = np.array([0 if name is None else np.count_nonzero(slices.masks[name][i] == 1)
                                for i in range(len(slices))])
        best = slices.table.iloc[int(self._areas.argmax())]

        def choose(name: str, options: list, width: str, then: Callable[[], None] | None, **more: str) -> None:
            view.add(name, ipywidgets.Dropdown(options=options, description=name, style=_WIDE,
                                               layout={"width": width}, **more), then)

        choose("patient", list(dict.fromkeys(slices.table["patient"])), "12em", self._patient, value=best["patient"])
        choose("scan", self._scans(best["patient"]), "14em", self._scan, value=best["volume"])
        view.add("slice", slider("slice", 0, 0, 1, 1, width="20em"), self._chosen)
        choose("reference", [("none", "")], "17em", None)
        with view.hold():
            self._scan()
        self._then = then

    @property
    def rows(self) -> np.ndarray:
        """Places in ``slices`` of the chosen scan's slices."""
        return np.flatnonzero((self.slices.table["volume"] == self.controls["scan"].value).to_numpy())

    @property
    def index(self) -> int:
        """The chosen slice's place in ``slices``."""
        return int(self.rows[self.controls["slice"].value])

    @property
    def image(self) -> np.ndarray:
        """(H, W) float32."""
        return self.slices.images[self.index, 0].astype(np.float32)

    @property
    def about(self) -> dict:
        """The slice's row of the table."""
        return self.slices.table.iloc[self.index].to_dict()

    @property
    def said(self) -> str:
        """What the reference is called; empty where there is none."""
        return next((label for label, name in self.controls["reference"].options
                     if name and name == self.controls["reference"].value), "")

    @property
    def spacing_mm(self) -> float:
        return float(self.slices.table["spacing_mm"].iloc[self.index])

    def mask(self, name: str | None = None) -> np.ndarray | None:
        """(H, W) uint8 of this slice, by default the reference; None where there is none."""
        name = self.controls["reference"].value if name is None else name
        return self.slices.masks[name][self.index, 0] if name else None

    def _scans(self, patient: str) -> list[tuple[str, str]]:
        rows = self.slices.table[self.slices.table["patient"] == patient].drop_duplicates("volume")
        names = [str(volume).removeprefix(f"{patient}_") for volume in rows["volume"]]
        return [(name if str(contrast) in name else f"{name} ({contrast})", volume)
                for name, contrast, volume in zip(names, rows["contrast"], rows["volume"], strict=True)]

    def _patient(self) -> None:
        patient = self.controls["patient"].value
        own = np.flatnonzero((self.slices.table["patient"] == patient).to_numpy())
        best = self.slices.table["volume"].iloc[own[self._areas[own].argmax()]]
        self.controls["scan"].options = self._scans(patient)
        self.controls["scan"].value = best
        self._scan()

    def _chosen(self) -> None:
        if self._then is not None:
            self._then()

    def _scan(self) -> None:
        """The slices and masks of another scan; the same kind of reference where it has one."""
        rows, about = self.rows, self.slices.volumes.loc[self.controls["scan"].value]
        drawn = [name for name, masks in self.slices.masks.items()
                 if name != "cord" and masks[rows[0], 0, 0, 0] != UNDRAWN]
        people = [about.get("raters"), about.get("rater")]
        people = next((str(who).split(",") for who in people if isinstance(who, str) and who), [])
        self.raters = {person: f"rater-{i}" for i, person in enumerate(people, 1) if f"rater-{i}" in drawn}
        called = {name: f"{name}: {person}" for person, name in self.raters.items()}
        options = tuple((called.get(name, name), name) for name in drawn) or (("none", ""),)
        reference, before = self.controls["reference"], self.controls["reference"].value
        if options != reference.options:
            reference.options = options
            reference.value = before if before in drawn else next(
                (name for name in ("truth", "rater-1", *drawn) if name in drawn), "")
        self.controls["slice"].max = len(rows) - 1
        self.controls["slice"].disabled = len(rows) == 1
        self.controls["slice"].value = int(self._areas[rows].argmax())
        self._chosen()
