"""Errors by lesion size, contrast, centre, resolution, level or position; near outlines; where raters disagree too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate.agreement import consensus
from msfilm.evaluate.error_voxels import ErrorVoxels
from msfilm.evaluate.metrics import LESION_SIZES_MM3
from msfilm.evaluate.stats import bootstrap_ci, ratio_ci
from msfilm.phantom.facts import levels as level_facts
from msfilm.phantom.roster import make_patient

__all__ = ["PIXELS_MM", "boundary_shares", "classes", "disagreement", "errors_by", "phantom_levels", "size_class"]

PIXELS_MM = (0.0, 0.55, 0.65)  # classes of resolution, by the side of a pixel: a third of the phantom's centres each


def errors_by(table: pd.DataFrame, by: str | Sequence[str], value: str | tuple[str, str], *, n: int = 2000,
              seed: int = 0) -> pd.DataFrame:
    """A score in each group of a table, with its 95 % interval over patients.

    Args:
        table: volumes, lesions or slices of :class:`ErrorVoxels`; it has a column patient.
        by: the column (or columns) that makes the groups; ordered categories keep their order.
        value: a column, whose mean is taken (NaN left out: a volume with both masks empty has no Dice); or two, whose
            sums are divided: ('missed_mm2', 'reference_mm2') is the share of the lesions' area that was missed.
        n, seed: of the bootstrap.

    Returns:
        A row a group (index): value, low, high, patients, rows (that count).

    Raises:
        SettingError: ERRORS-COLUMN for a column that the table lacks.
    """
    keys = [by] if isinstance(by, str) else list(by)
    wanted = [value] if isinstance(value, str) else list(value)
    for name in (*keys, *wanted, "patient"):
        if name not in table:
            raise SettingError("ERRORS-COLUMN", f"the table has no column {name!r}",
                               mend=f"it has {', '.join(map(str, table.columns))}")
    rows = {}
    for group, part in table.groupby(by if isinstance(by, str) else keys, observed=True):
        numbers = [part[name].to_numpy(dtype=float) for name in wanted]
        score = bootstrap_ci if len(numbers) == 1 else ratio_ci
        found = score(*numbers, part["patient"], n=n, seed=seed)
        rows[group] = (*found, found.patients, found.volumes)
    out = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "patients", "rows"])
    if len(keys) > 1:
        out.index = pd.MultiIndex.from_tuples(list(rows), names=keys)
    return out.rename_axis(keys if len(keys) > 1 else keys[0]).astype({"patients": int, "rows": int})


def classes(values, edges: Sequence[float], unit: str = "") -> pd.Categorical:
    """Numbers in ordered classes that say their bounds: 'under 50 mm3', '50 to 200 mm3', '200 mm3 and more'.

    Args:
        values: from the first edge up; below it, or NaN, in no class.
        edges: where each class begins, rising; the last one has no end.
        unit: said with each.

    Raises:
        SettingError: SCORE-BINS for edges that do not rise.
    """
    edges = np.asarray(edges, dtype=float)
    if len(edges) < 1 or not (np.diff(edges) > 0).all():
        raise SettingError("SCORE-BINS", f"edges={tuple(edges)}", mend="give numbers that rise")
    unit = f" {unit}" if unit else ""
    names = [f"{low:g} to {high:g}{unit}" for low, high in pairwise(edges)]
    names = [*names, f"{edges[-1]:g}{unit} and more"]
    if edges[0] == 0 and len(edges) > 1:
        names[0] = f"under {edges[1]:g}{unit}"
    values = np.asarray(values, dtype=float)
    code = np.where(values >= edges[0], np.searchsorted(edges, values, side="right") - 1, -1)
    return pd.Categorical.from_codes(np.where(np.isnan(values), -1, code), names, ordered=True)


def size_class(mm3) -> pd.Categorical:
    """Classes of lesion volume, as in ``lesion_scores_by_size``."""
    return classes(mm3, LESION_SIZES_MM3, "mm\u00b3")


def boundary_shares(table: pd.DataFrame, *, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """What share of the error lies within one voxel of the reference's outline, and what chance would put there.

    Args:
        table: as ``ErrorVoxels.boundary`` gives it; some of its rows, for a group.
        n, seed: of the bootstrap over patients.

    Returns:
        Rows missed, false, all: voxels, near (of them), share, low, high (95 %), chance, chance_low, chance_high.
        Chance: each volume's errors of a kind, as many as they are, spread evenly over where they could lie (missed:
        over the reference; false: over the rest of the cord, and what is marked beside it).
    """
    def even(kind: str, where: str) -> np.ndarray:
        room = table[where].to_numpy(dtype=float)
        near = table[f"{where}_near"].to_numpy(dtype=float)
        return table[kind].to_numpy() * np.divide(near, room, out=np.zeros(len(table)), where=room > 0)

    counts = {"missed": (table["missed"], table["missed_near"], even("missed", "inside")),
              "false": (table["false"], table["false_near"], even("false", "outside"))}
    counts["all"] = tuple(a + b for a, b in zip(counts["missed"], counts["false"], strict=True))
    rows = {}
    for kind, (voxels, near, by_chance) in counts.items():
        share = ratio_ci(near, voxels, table["patient"], n=n, seed=seed)
        chance = ratio_ci(by_chance, voxels, table["patient"], n=n, seed=seed)
        rows[kind] = (int(voxels.sum()), int(near.sum()), *share, *chance)
    return pd.DataFrame.from_dict(rows, orient="index", columns=[
        "voxels", "near", "share", "low", "high", "chance", "chance_low", "chance_high"]).rename_axis("error")


def disagreement(errors: ErrorVoxels, threshold: float = 0.5) -> pd.DataFrame:
    """Does the network err where raters disagree? On volumes that three raters or more drew, against each panel that
    leaves one rater out: so the network and the rater left out are judged by the same masks, and nobody by his own.

    Returns:
        Two rows for each volume and rater left out, ``who`` network and rater: volume, patient, contrast, left_out,
        who; in voxels: error (other than the others' consensus), error_disputed (those where the others disagree),
        disputed (where they disagree), region (the cord, and what anybody marked beside it).

    Raises:
        SettingError: AGREEMENT-FEW where no volume has three raters; THRESHOLD.
    """
    marked = errors.marked(threshold)
    raters = [name for name in errors.masks if name.startswith("rater-")]
    rows = []
    for number, (volume, about) in enumerate(errors.about.iterrows()):
        here = errors.volume == number
        panel = {name: errors.masks[name][here] for name in raters if errors.references[name].drawn[number]}
        if len(panel) < 3:
            continue
        cord, answer = errors.cord[here], marked[here]
        anybody = np.any([answer, *panel.values()], axis=0)
        region = int(about["cord_voxels"] + (anybody & ~cord).sum())
        for left_out, own in panel.items():
            others = {name: mask for name, mask in panel.items() if name != left_out}
            votes, right = np.sum(list(others.values()), axis=0), consensus(others)
            disputed = (votes > 0) & (votes < len(others))
            for who, mask in (("network", answer), ("rater", own)):
                wrong = mask != right
                rows.append({"volume": volume, "patient": about["patient"], "contrast": about["contrast"],
                             "left_out": left_out, "who": who, "error": int(wrong.sum()),
                             "error_disputed": int((wrong & disputed).sum()), "disputed": int(disputed.sum()),
                             "region": region})
    if not rows:
        raise SettingError("AGREEMENT-FEW", f"none of {len(errors.about)} volumes was drawn by three raters",
                           mend="make phantoms with CohortPlan(panel_every=1), or give more masks of each volume")
    return pd.DataFrame(rows)


def phantom_levels(slices: SliceSet, seed: int) -> pd.Series:
    """The vertebral level of every slice of a phantom, at the centre of its crop.

    Args:
        slices: of phantoms, by files or by the direct route.
        seed: of their cohort.

    Returns:
        (volume, z) -> level, ordered categories from C1 down.

    Raises:
        SettingError: LEVELS-PHANTOM where the patients' centres are not those of that seed's phantoms. With one
            patient another seed has the same centre by chance about once in 13; with more hardly ever.
    """
    names = []
    for row in slices.table.itertuples():
        number = re.fullmatch(r"sub-(\d+)", str(row.patient))
        centre, patient, *_ = make_patient(int(number[1]) - 1, seed) if number and int(number[1]) else ("", None)
        if centre != row.centre:
            raise SettingError("LEVELS-PHANTOM", f"{row.patient} of {row.centre} is no phantom of seed {seed}",
                               mend="give the seed of the cohort; for real scans make the table from labels of discs")
        depth = -(slices.scans[row.volume].affine @ [row.centre_x, row.centre_y, row.z, 1.0])[2]
        names.append(patient.level(depth))  # the phantom's z is 0 at the top of C1
    index = pd.MultiIndex.from_frame(slices.table[["volume", "z"]])
    return pd.Series(pd.Categorical(names, list(level_facts().index), ordered=True), index=index, name="level")
