"""ErrorBrowser: every test volume as a point; choose some, and see on which slices the network is wrong, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.backend_bases import MouseEvent

from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.error_collect import collect_errors
from msfilm.evaluate.error_voxels import ErrorVoxels
from msfilm.evaluate.errors_by import PIXELS_MM, classes, phantom_levels, size_class
from msfilm.model.weights import Network, load_network
from msfilm.view.error_picture import ErrorPicture
from msfilm.view.error_tables import error_tables_html
from msfilm.view.live import LiveView, slider

__all__ = ["ErrorBrowser"]

_SORTS = {"lowest Dice": ("dice", True), "most false mm\u00b3": ("false_mm3", False),
          "most missed mm\u00b3": ("missed_mm3", False)}
_ORDERS = ("most error", "place, from the top")
_ALL, _FREE = "all", "no lesion"
_NEAR_PX, _CLICK_PX = 18.0, 5.0  # a click chooses a point as near as this; a shorter drag is a click


class ErrorBrowser(LiveView):
    """Dice of every volume against its lesion volume, and the slices of the chosen ones: found, false, missed.

    ``ErrorBrowser(slices, "film-contrast-small")`` as the last line of a cell. Click on a point (shift: add it), or
    drag a box round several; or choose in the list, which stands in order of worst, or with the slider above it.
    Volumes without lesions stand apart at the left edge. The filters narrow points, list and tables; the tables below
    speak of the chosen volumes where they are several, and else of all that pass the filters. Numbers are on the
    scans' own grids, the pictures are the network's crops.

    Args:
        slices: whose volumes are shown; they have lesion masks.
        network: name or folder of one, the network itself, or its probabilities (N, 1, H, W) of these slices.
        threshold: on the probability, to begin with; .05 to .95.
        references: lesion masks to choose from; by default rater-1 and truth, as far as there are.
        levels: (volume, z) -> vertebral level, where known, as ``errors_by.phantom_levels`` gives it.
        colour_by: contrast, centre or spacing, to begin with.

    Attributes:
        errors_found: the ErrorVoxels behind all numbers.
        scores: a row a volume, at this reference and threshold.
        shown: volumes that pass the filters, the worst first.
        slices_shown: (volume, z) of the slices in the panels.

    Raises:
        SettingError: REFERENCE-UNKNOWN, BROWSER-COLOUR, THRESHOLD; those of ``collect_errors``.
    """

    def __init__(self, slices: SliceSet, network: Network | np.ndarray | str | Path = "film-contrast-small", *,
                 threshold: float = 0.5, references: Sequence[str] | None = None,
                 levels: Mapping[tuple[str, int], str] | pd.Series | None = None, colour_by: str = "contrast"):
        super().__init__(10.2, 5.2)
        names = {name for scan in slices.scans.values() for name in scan.indices}
        references = [name for name in ("rater-1", "truth") if name in names] if references is None else references
        if not references:
            raise SettingError("REFERENCE-UNKNOWN", "no volume has a mask rater-1 or truth",
                               mend="name the lesion masks in references=")
        if not 0.05 <= threshold <= 0.95:
            raise SettingError("THRESHOLD", f"threshold={threshold}", mend="use .05 to .95")
        if isinstance(network, str | Path):
            network = load_network(network)
        self.data = slices
        self.errors_found: ErrorVoxels = collect_errors(network, slices, references=references, levels=levels)
        self._groups = {"contrast": pd.Categorical(self.errors_found.about["contrast"]),
                        "centre": pd.Categorical(self.errors_found.about["centre"]),
                        "spacing": classes(self.errors_found.about["pixel_mm"], PIXELS_MM, "mm")
                        .remove_unused_categories()}
        if colour_by not in self._groups:
            raise SettingError("BROWSER-COLOUR", f"colour_by={colour_by!r}", mend=suggest(colour_by, self._groups))
        self.shown: tuple[str, ...] = ()
        self.slices_shown: list[tuple[str, int]] = []
        self._drag: tuple[float, float] | None = None
        self._tables_of: Any = None
        self._margin = _margin(slices, self.errors_found, references)
        mm3 = [self.errors_found.volumes(name, marked_lesions=False)["reference_mm3"] for name in references]
        groups = max(len(group.categories) for group in self._groups.values())
        self.seen = ErrorPicture(self, np.concatenate(mm3), groups)
        self._add_controls(list(references), threshold, colour_by)
        self._rescore()
        self._relist(choose_worst=True)
        self._recolour()
        for event, answer in (("button_press_event", self._press), ("motion_notify_event", self._motion),
                              ("button_release_event", self._release)):
            self.connect(event, answer)
        c = self.controls
        wrap = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        self.tables = ipywidgets.HTML(layout={"flex": "1 1 34em"})
        chosen = ipywidgets.VBox([c["sort"], c["rank"], c["volumes"]])
        self.finish(
            ipywidgets.HBox([c["reference"], c["threshold"], c["colour_by"]], layout=wrap),
            ipywidgets.HBox([c["contrast"], c["centre"], c["size"], c["order"], c["page"]], layout=wrap),
            below=(ipywidgets.HBox([chosen, self.tables], layout=ipywidgets.Layout(flex_flow="row wrap")),))

    @classmethod
    def example(cls) -> ErrorBrowser:
        """The shipped network on four phantom patients that it has not seen."""
        from msfilm.phantom.direct import make_slices
        from msfilm.phantom.roster import CohortPlan

        slices = make_slices(4, CohortPlan(1000), workers=1, progress=False)
        return cls(slices, "film-contrast-small", levels=phantom_levels(slices, 1000))

    @property
    def selected(self) -> tuple[str, ...]:
        """The chosen volumes."""
        return tuple(self.controls["volumes"].value)

    def _add_controls(self, references: list[str], threshold: float, colour_by: str) -> None:
        def choice(name: str, options: Sequence[str], description: str, then: Any, value: str | None = None) -> None:
            width = 3.5 + 0.55 * (len(description) + max(map(len, options)))
            self.add(name, ipywidgets.Dropdown(options=options, value=value or options[0], description=description,
                                               style={"description_width": "initial"},
                                               layout={"width": f"{width:.0f}em"}), then)

        about = self.errors_found.about
        sizes = [str(name) for name in size_class([]).categories]
        choice("reference", references, "against", self._rescored)
        self.add("threshold", slider("threshold", float(threshold), 0.05, 0.95, 0.05), self._rescored)
        choice("colour_by", list(self._groups), "colour by", self._recolour, colour_by)
        choice("contrast", [_ALL, *sorted(about["contrast"].unique())], "contrast", self._refiltered)
        choice("centre", [_ALL, *sorted(about["centre"].unique())], "centre", self._refiltered)
        choice("size", [_ALL, _FREE, *sizes], "with a lesion of", self._refiltered)
        choice("sort", list(_SORTS), "volumes in order of", self._refiltered)
        choice("order", list(_ORDERS), "slices in order of", self._first_page)
        self.add("page", ipywidgets.IntSlider(value=1, min=1, max=1, description="page", layout={"width": "16em"},
                                              style={"description_width": "initial"}))
        # The worst, the next worst ... with one key.
        self.add("rank", ipywidgets.IntSlider(value=1, min=1, max=1, description="place in the list",
                                              style={"description_width": "initial"}, layout={"width": "24em"}),
                 self._choose_by_rank)
        self.add("volumes", ipywidgets.SelectMultiple(rows=11, description="volumes", layout={"width": "30em"},
                                                      style={"description_width": "initial"}), self._chosen)

    # ----- answers to controls

    def _rescore(self) -> None:
        reference, threshold = self.controls["reference"].value, self.controls["threshold"].value
        self.scores = self.errors_found.volumes(reference, threshold, marked_lesions=False)
        slices = self.errors_found.slices(reference, threshold)
        self._slices = slices.assign(error=slices["false_mm2"] + slices["missed_mm2"])
        lesions = self.errors_found.lesions(reference, threshold, marked=False)
        self._lesions = lesions.assign(size=size_class(lesions["mm3"]))

    def _rescored(self) -> None:
        page = self.controls["page"].value
        self._rescore()
        self._relist()
        self.controls["page"].value = min(page, self.controls["page"].max)

    def _refiltered(self) -> None:
        self._relist(choose_worst=True)

    def _relist(self, choose_worst: bool = False) -> None:
        """The list of volumes in its order; who was chosen stays so, unless the worst shall be."""
        chosen, scores = self.controls["volumes"].value, self.scores
        keep = np.ones(len(scores), bool)
        for name in ("contrast", "centre"):
            if (value := self.controls[name].value) != _ALL:
                keep &= (scores[name] == value).to_numpy()
        if (size := self.controls["size"].value) == _FREE:
            keep &= (scores["reference_mm3"] == 0).to_numpy()
        elif size != _ALL:
            keep &= scores.index.isin(self._lesions.loc[self._lesions["size"] == size, "volume"])
        column, rising = _SORTS[self.controls["sort"].value]
        scores = scores.assign(error_mm3=scores["false_mm3"] + scores["missed_mm3"])  # before rows are left out: to
        # a frame without rows, pandas adds those of the column
        order = scores[keep].sort_values([column, "error_mm3"], ascending=[rising, False], kind="stable",
                                         na_position="last")
        self.shown = tuple(order.index)
        labels = [(f"{_two(row.dice)}  +{row.false_mm3:.0f} \u2212{row.missed_mm3:.0f} mm\u00b3  {name}", name)
                  for name, row in zip(order.index, order.itertuples(), strict=True)]
        chosen = () if choose_worst else tuple(name for name in chosen if name in self.shown)
        self.controls["volumes"].options = labels
        self.controls["rank"].max = max(1, len(labels))
        self.controls["volumes"].value = chosen or self.shown[:1]
        self._chosen()

    def _choose_by_rank(self) -> None:
        at = self.controls["rank"].value - 1
        if self.shown and self.selected[:1] != (self.shown[at],):
            self.controls["volumes"].value = (self.shown[at],)

    def _chosen(self) -> None:
        if self.selected:
            self.controls["rank"].value = self.shown.index(self.selected[0]) + 1
        self._first_page()

    def _first_page(self) -> None:
        self.controls["page"].value = 1
        self._paginate()

    def _paginate(self) -> None:
        count = int((self._slices["volume"].isin(self.selected) & (self._slices["row"] >= 0)).sum())
        page = self.controls["page"]
        page.max = max(1, -(-count // ErrorPicture.SLICES))

    def _recolour(self) -> None:
        by = self.controls["colour_by"].value
        self.seen.name_groups([str(name) for name in self._groups[by].categories],
                              "side of a pixel in mm" if by == "spacing" else by)

    # ----- the mouse

    def _press(self, event: MouseEvent) -> None:
        if event.inaxes is self.seen.ax:
            self._drag = event.x, event.y

    def _motion(self, event: MouseEvent) -> None:
        if self._drag is not None:
            self.seen.frame(self._drag, (event.x, event.y))
            self.canvas.draw_idle()

    def _release(self, event: MouseEvent) -> None:
        if self._drag is None:
            return
        corners = np.sort([self._drag, (event.x, event.y)], axis=0)
        self._drag = None
        self.seen.frame()
        self.refresh()
        if not self.shown:
            return
        places = self.seen.ax.transData.transform(self.seen.places(self.scores).loc[list(self.shown)].to_numpy())
        if np.ptp(corners, axis=0).max() < _CLICK_PX:
            away = np.hypot(*(places - corners[0]).T)
            hit = [self.shown[int(away.argmin())]] if away.min() <= _NEAR_PX else []
        else:
            inside = ((places >= corners[0]) & (places <= corners[1])).all(axis=1)
            hit = [self.shown[i] for i in np.flatnonzero(inside)]
        if hit:
            added = self.selected if event.key == "shift" else ()
            self.controls["volumes"].value = tuple(dict.fromkeys([*added, *hit]))

    # ----- what is seen

    def update(self) -> None:
        group = pd.Series(self._groups[self.controls["colour_by"].value].codes, self.errors_found.about.index)
        self.seen.show_points(self.scores, group.loc[self.scores.index].to_numpy(),
                              self.scores.index.isin(self.shown), list(self.selected))
        self._show_slices()
        self._show_tables()

    def _show_slices(self) -> None:
        table = self._slices[self._slices["volume"].isin(self.selected) & (self._slices["row"] >= 0)]
        if self.controls["order"].value == _ORDERS[0]:
            table = table.sort_values(["error", "reference_mm2"], ascending=False, kind="stable")
        else:
            table = table.sort_values(["volume", "z"], ascending=[True, False])
        start = (self.controls["page"].value - 1) * ErrorPicture.SLICES
        table = table.iloc[start: start + ErrorPicture.SLICES]
        self.slices_shown = list(zip(table["volume"], table["z"], strict=True))
        reference, threshold = self.data.masks[self.controls["reference"].value], self.controls["threshold"].value
        middle = slice(self._margin, -self._margin or None)
        shown = []
        for row in table.itertuples():
            at = (row.row, 0, middle, middle)
            drawn, marked = reference[at] == 1, self.errors_found.crops[at] >= threshold
            level = "" if pd.isna(row.level) else f" ({row.level})"
            shown.append((self.data.images[at].astype(np.float32),
                          {"found": drawn & marked, "false": marked & ~drawn, "missed": drawn & ~marked},
                          f"{row.volume}\nz {row.z}{level}: +{row.false_mm2:.0f} \u2212{row.missed_mm2:.0f}"))
        self.seen.show_slices(shown, float(self.data.meta.get("spacing_mm", 0.75)))

    def _show_tables(self) -> None:
        several = len(self.selected) > 1
        volumes = self.selected if several else self.shown
        wanted = (self.controls["reference"].value, self.controls["threshold"].value, volumes)
        if wanted == self._tables_of:
            return
        self._tables_of = wanted
        which = "that are chosen" if several else "that pass the filters"
        self.tables.value = error_tables_html(
            self.scores.loc[list(volumes)], self._lesions[self._lesions["volume"].isin(volumes)],
            self._slices[self._slices["volume"].isin(volumes)],
            f"The {len(volumes)} volumes {which}, against {wanted[0]} at threshold {wanted[1]:.2f}:")

    def describe(self) -> str:
        reference, threshold = self.controls["reference"].value, self.controls["threshold"].value
        head = (f"{len(self.shown)} of {len(self.scores)} volumes pass the filters, in order of "
                f"{self.controls['sort'].value}")
        if not self.selected:
            return f"{head}: none to show."
        part = self.scores.loc[list(self.selected)]
        who = self.selected[0] if len(part) == 1 else f"{len(part)} volumes"
        mean = part["dice"].mean()
        dice = "both masks empty, so no Dice" if np.isnan(mean) else f"{'mean ' * (len(part) > 1)}Dice {mean:.3f}"
        sums = part[["reference_mm3", "false_mm3", "missed_mm3", "lesions", "missed_lesions"]].sum()
        return (f"{head}. Chosen: {who}, against {reference} at threshold {threshold:.2f}: {dice}; "
                f"{sums['reference_mm3']:.0f} mm\u00b3 of lesion, of which {sums['missed_mm3']:.0f} missed, and "
                f"{sums['false_mm3']:.0f} mm\u00b3 falsely marked; {sums['missed_lesions']:.0f} of "
                f"{sums['lesions']:.0f} lesions missed. {len(self.slices_shown)} slices shown, in order "
                f"of {self.controls['order'].value}.")


def _two(dice: float) -> str:
    return "  \u2013 " if np.isnan(dice) else f"{dice:.2f}"


def _margin(slices: SliceSet, errors: ErrorVoxels, references: Sequence[str]) -> int:
    """Pixels at each side of the crops that may be left out: nowhere in the set is anything drawn or marked there."""
    height, width = errors.crops.shape[-2:]
    held = (errors.crops >= errors.floor).any(axis=(0, 1))
    for name in references:
        held |= (slices.masks[name] == 1).any(axis=(0, 1))
    rows, columns = np.nonzero(held)
    free = min([height // 4, *rows, *columns, *(height - 1 - rows), *(width - 1 - columns)])
    return int(max(free - 2, 0))
