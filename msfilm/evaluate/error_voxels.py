"""Where a network is wrong, voxel by voxel: what it marked and what was drawn, as tables of volumes, lesions, slices.

The rules are those of the rest of this room: the scan's own grid, the untouched masks, 26-connected lesions of 3 voxels
or more, found if one voxel of the other mask lies in them. Only voxels that matter are kept (drawn, or of some
probability), so that another threshold is a matter of milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from msfilm.errors import SettingError, suggest
from msfilm.evaluate.metrics import lesion_labels
from msfilm.evaluate.reliability import Reliability

__all__ = ["POSITIONS", "ErrorVoxels", "OfReference", "label_voxels", "lesion_table"]

POSITIONS = {
    "end": "a connected piece of the reference begins or ends here, though the scan goes on",
    "middle": "the reference is here, and all its pieces go on above and below",
    "beside": "nothing drawn here, but on the next slice above or below",
    "away": "nothing drawn here, nor on a neighbouring slice",
}


@dataclass(frozen=True, eq=False)
class ErrorVoxels:
    """What :func:`error_collect.collect_errors` found; V voxels of all volumes, S slices.

    Attributes:
        about: a row a volume: patient, centre, contrast, rater, station (its ``acq-``), pixel_mm, slice_mm, voxel_mm3,
            cord_voxels.
        stack: a row a slice: volume, z, level (None where unknown), row (of the SliceSet; -1: no crop), outer (first or
            last slice of the scan).
        volume, slice: (V,) rows of ``about`` and ``stack``.
        voxels: (V, 3) on the scan's own grid.
        probability: (V,) float32; 0 where no crop reaches.
        cord: (V,) whether it lies in the cord mask.
        masks: reference -> (V,) bool.
        references: reference -> what belongs to it: volumes that have it, lesions, outline, positions.
        crops: (N, 1, H, W) float32 probabilities of the SliceSet's slices.
        calibration: (reference, contrast) -> reliability over the cord's voxels that crops cover.
        floor: probabilities below it were dropped, so no threshold may lie below it.
    """

    about: pd.DataFrame
    stack: pd.DataFrame
    volume: np.ndarray
    slice: np.ndarray
    voxels: np.ndarray
    probability: np.ndarray
    cord: np.ndarray
    masks: dict[str, np.ndarray]
    references: dict[str, OfReference]
    crops: np.ndarray
    calibration: dict[tuple[str, str], Reliability]
    floor: float

    def marked(self, threshold: float) -> np.ndarray:
        """(V,) bool: what the network marks. Raises SettingError THRESHOLD below ``floor`` or above 1."""
        if not self.floor <= threshold <= 1:
            raise SettingError("THRESHOLD", f"threshold={threshold}",
                               mend=f"use {self.floor:g} to 1, or collect the errors with a lower floor")
        return self.probability >= np.float32(threshold)

    def _of(self, reference: str) -> OfReference:
        if reference not in self.references:
            raise SettingError("REFERENCE-UNKNOWN", f"no volume has a mask {reference!r}",
                               mend=suggest(reference, self.references))
        return self.references[reference]

    def counts(self, reference: str, threshold: float = 0.5) -> np.ndarray:
        """(S, 3) voxels found, false and missed on each slice."""
        self._of(reference)
        drawn, marked = self.masks[reference], self.marked(threshold)
        kinds = (drawn & marked, marked & ~drawn, drawn & ~marked)
        return np.stack([np.bincount(self.slice[kind], minlength=len(self.stack)) for kind in kinds], axis=1)

    def slices(self, reference: str = "rater-1", threshold: float = 0.5) -> pd.DataFrame:
        """A row a slice: whose it is, z, level, position (POSITIONS), outer, row; reference_mm2, prediction_mm2,
        found_mm2, false_mm2, missed_mm2, and the slice's own Dice (NaN: both empty).
        """
        known, counts = self._of(reference), self.counts(reference, threshold)
        table = self.stack.join(self.about, on="volume")
        table["position"] = pd.Categorical(known.position, list(POSITIONS))
        area = (table["voxel_mm3"] / table["slice_mm"]).to_numpy()
        table = table.assign(**_sums(counts, area, "mm2")).drop(columns=["voxel_mm3", "cord_voxels"])
        return table[known.drawn[self._volume_of_slice]].reset_index(drop=True)

    def volumes(self, reference: str = "rater-1", threshold: float = 0.5, *, marked_lesions: bool = True
                ) -> pd.DataFrame:
        """A row a volume (index): whose it is, Dice, reference_mm3, prediction_mm3, found_mm3, false_mm3, missed_mm3,
        lesions, found_lesions, missed_lesions; marked_lesions and false_lesions too unless ``marked_lesions`` is off
        (connected pieces have to be found anew at each threshold).
        """
        known, counts = self._of(reference), self.counts(reference, threshold)
        summed = np.stack([np.bincount(self._volume_of_slice, weights=column, minlength=len(self.about))
                           for column in counts.T], axis=1)
        table = self.about.assign(**_sums(summed, self.about["voxel_mm3"].to_numpy(), "mm3"))
        hit = self._hit(reference, threshold)
        of = self.about.index.get_indexer(known.lesions["volume"])
        table["lesions"] = np.bincount(of, minlength=len(table))
        table["found_lesions"] = np.bincount(of[hit], minlength=len(table))
        table["missed_lesions"] = table["lesions"] - table["found_lesions"]
        if marked_lesions:
            marked = self._marked_lesions(reference, threshold)
            of = self.about.index.get_indexer(marked["volume"])
            table["marked_lesions"] = np.bincount(of, minlength=len(table))
            table["false_lesions"] = np.bincount(of[~marked["hit"].to_numpy(bool)], minlength=len(table))
        return table[known.drawn]

    def lesions(self, reference: str = "rater-1", threshold: float = 0.5, *, marked: bool = True) -> pd.DataFrame:
        """A row a lesion, the reference's (kind found or missed) and the network's (kind true or false; these only
        with ``marked``): whose it is, hit, covered (share of its voxels in the other mask), voxels, mm3, z of its
        middle, first_z, last_z, slices, level of its middle, stack_position (0: top of
        the slices that were looked at, 1: bottom), cut (it reaches the first or last slice of the scan).
        """
        table = self._of(reference).lesions
        hit = self._hit(reference, threshold)
        covered = np.bincount(self._of(reference).lesion[self.marked(threshold)], minlength=len(table) + 1)[1:]
        table = table.assign(hit=hit, covered=covered / table["voxels"], kind=np.where(hit, "found", "missed"))
        if marked:
            table = pd.concat([table, self._marked_lesions(reference, threshold)], ignore_index=True)
        return table.join(self.about.drop(columns=["voxel_mm3", "cord_voxels"]), on="volume")

    def boundary(self, reference: str = "rater-1", threshold: float = 0.5) -> pd.DataFrame:
        """A row a volume (index): voxels missed and false, how many of them lie within one voxel of the reference's
        outline (``_near``), and the same for where they could have lain: inside the reference (missed), outside it in
        the cord or where the network marks something beside the cord (false).

        Within one voxel, in the plane of the slice: a voxel of the reference that has a face in common with a voxel
        outside it, or the reverse. What is marked on a slice where nothing is drawn is never near.
        """
        known, marked = self._of(reference), self.marked(threshold)
        drawn = self.masks[reference]

        def per_volume(chosen: np.ndarray) -> np.ndarray:
            return np.bincount(self.volume[chosen], minlength=len(self.about))

        missed, false = drawn & ~marked, marked & ~drawn
        beyond = false & ~self.cord
        table = self.about[["patient", "centre", "contrast"]].assign(
            missed=per_volume(missed), missed_near=per_volume(missed & known.near),
            false=per_volume(false), false_near=per_volume(false & known.near),
            inside=known.places[:, 0], inside_near=known.places[:, 1],
            outside=known.places[:, 2] + per_volume(beyond),
            outside_near=known.places[:, 3] + per_volume(beyond & known.near))
        return table[known.drawn]

    @property
    def _volume_of_slice(self) -> np.ndarray:
        return self.about.index.get_indexer(self.stack["volume"])

    def _hit(self, reference: str, threshold: float) -> np.ndarray:
        """(lesions,) whether the network marks a voxel of each."""
        known = self._of(reference)
        hit = np.zeros(len(known.lesions) + 1, bool)
        hit[known.lesion[self.marked(threshold)]] = True
        return hit[1:]

    def _marked_lesions(self, reference: str, threshold: float) -> pd.DataFrame:
        marked, drawn = self.marked(threshold), self.masks[reference]
        labels = np.zeros(len(marked), np.int64)
        for number in np.flatnonzero(self._of(reference).drawn):
            at = np.flatnonzero((self.volume == number) & marked)
            found = label_voxels(self.voxels[at])
            labels[at[found > 0]] = found[found > 0] + labels.max(initial=0)
        table = lesion_table(labels, self)
        shared = np.bincount(labels[drawn], minlength=len(table) + 1)[1:]
        return table.assign(hit=shared > 0, covered=shared / table["voxels"],
                            kind=np.where(shared > 0, "true", "false"))


@dataclass(eq=False)
class OfReference:
    """What belongs to one lesion mask."""

    drawn: np.ndarray  # (volumes,) bool
    lesion: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (V,) number of the lesion, from 1
    near: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (V,) within one voxel of its outline
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))  # inside, near; outside, near
    position: np.ndarray = field(default_factory=lambda: np.zeros(0, object))  # (S,)
    lesions: pd.DataFrame = field(default_factory=pd.DataFrame)


def label_voxels(voxels: np.ndarray, **how: Any) -> np.ndarray:
    """Number of the lesion of each voxel (n, 3)."""
    if not len(voxels):
        return np.zeros(0, np.int64)
    low = voxels.min(axis=0)
    mask = np.zeros(voxels.max(axis=0) - low + 1, bool)
    places = tuple((voxels - low).T)
    mask[places] = True
    return lesion_labels(mask, **how)[places]


def lesion_table(labels: np.ndarray, errors: ErrorVoxels) -> pd.DataFrame:
    """A row for each of the lesions 1, 2 .. of labels (V,): where it lies and how large it is."""
    at = np.flatnonzero(labels)
    number, z = labels[at], errors.voxels[at, 2]
    n = int(number.max(initial=0))
    voxels = np.bincount(number, minlength=n + 1)[1:]
    first, last, owner = (np.zeros(n, np.int64) for _ in range(3))
    if n:
        order = np.lexsort((z, number))
        start = np.searchsorted(number[order], np.arange(1, n + 1))
        first, last = z[order][start], z[order][np.append(start[1:], len(order)) - 1]
        owner = errors.volume[at][order][start]
    middle = np.bincount(number, weights=z, minlength=n + 1)[1:] / np.maximum(voxels, 1)
    about, tops = errors.about.iloc[owner], errors.stack.groupby("volume")["z"].agg(["min", "max"])
    tops = tops.reindex(about.index)
    depth = np.maximum(tops["max"] - tops["min"], 1).to_numpy()
    nearest = np.rint(middle).astype(np.int64)
    where = pd.MultiIndex.from_frame(errors.stack[["volume", "z"]])
    row = where.get_indexer(pd.MultiIndex.from_arrays([about.index, nearest]))
    outer = errors.stack.loc[errors.stack["outer"], ["volume", "z"]]
    edges = set(zip(outer["volume"], outer["z"], strict=True))
    return pd.DataFrame({
        "volume": about.index, "voxels": voxels, "mm3": voxels * about["voxel_mm3"].to_numpy(), "z": nearest,
        "first_z": first, "last_z": last, "slices": last - first + 1,
        "level": errors.stack["level"].take(row).reset_index(drop=True),
        "stack_position": (tops["max"].to_numpy() - middle) / depth,
        "cut": [(v, a) in edges or (v, b) in edges for v, a, b in zip(about.index, first, last, strict=True)],
    })


def _sums(counts: np.ndarray, size: np.ndarray, unit: str) -> dict[str, np.ndarray]:
    """Columns from counts (n, 3) of found, false, missed and the size of one: sizes and Dice."""
    found, false, missed = counts.T
    total = 2 * found + false + missed
    dice = np.divide(2.0 * found, total, out=np.full(len(counts), np.nan), where=total > 0)
    return {"dice": dice, f"reference_{unit}": (found + missed) * size, f"prediction_{unit}": (found + false) * size,
            f"found_{unit}": found * size, f"false_{unit}": false * size, f"missed_{unit}": missed * size}
