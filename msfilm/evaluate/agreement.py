"""How far raters agree: pair by pair, with the truth, with the consensus of the others; and tuning a model of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.metrics import EMPTY_RULES, apply_empty_rule
from msfilm.evaluate.stats import bootstrap_ci

__all__ = ["COMPARISONS", "Agreement", "Calibration", "calibrate", "consensus", "pairwise_dice", "panel_agreement",
           "panel_masks", "rater_agreement"]

COMPARISONS = {
    "pairwise": "two raters",
    "truth": "a rater and the truth",
    "consensus": "a rater and the consensus of the others",
}
Masks = Mapping[str, np.ndarray] | Sequence[np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """What :func:`rater_agreement` found.

    Attributes:
        scores: a row for every comparison of two masks: patient, volume, unit ('volume', or 'slice' with its z),
            comparison (a key of COMPARISONS), first, second, dice (NaN: both empty), reference_voxels (see there).
        table: a row for each volume: patient, raters, and the mean Dice of each comparison, volume-wise and slice-wise,
            under rule ``exclude``.
        summary: a row for each unit, comparison and rule for empty masks: mean Dice, low and high (95 % over
            patients), patients, volumes, scored (comparisons), both_empty (comparisons of two empty masks).
    """

    scores: pd.DataFrame
    table: pd.DataFrame
    summary: pd.DataFrame

    def row(self, comparison: str = "pairwise", *, unit: str = "volume", rule: str = "exclude") -> pd.Series:
        """One row of ``summary``. Raises SettingError AGREEMENT-ROW if it holds no such row."""
        match = (self.summary[["unit", "comparison", "rule"]] == [unit, comparison, rule]).all(axis=1)
        if not match.any():
            raise SettingError("AGREEMENT-ROW", f"no row for {unit}, {comparison}, {rule}",
                               mend="a comparison with the truth needs volumes whose truth is known")
        return self.summary[match].iloc[0]


def _named(masks: Masks) -> tuple[list[str], np.ndarray]:
    """Names and masks (R, ...) as bool, checked; without names they are rater-1, rater-2 ..."""
    if not isinstance(masks, Mapping):
        masks = {f"rater-{i}": mask for i, mask in enumerate(masks, start=1)}
    if not masks:
        raise SettingError("AGREEMENT-FEW", "there is no mask")
    arrays = {name: np.asarray(mask) for name, mask in masks.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise SettingError("SCORE-SHAPE", f"masks of different shapes: {shapes}", mend="compare masks of one scan")
    for name, array in arrays.items():
        if array.dtype != bool and array.size and not np.isin(array, (0, 1)).all():
            raise SettingError("SCORE-VALUES", f"{name} holds values other than 0 and 1",
                               mend="a mask of 255 means that it was never drawn: leave it out")
    return list(arrays), np.stack([array.astype(bool, copy=False) for array in arrays.values()])


def _dice(shared: np.ndarray) -> np.ndarray:
    """Counts of shared voxels (..., R, R), a mask's own size on the diagonal -> Dice, NaN where both are empty."""
    size = np.diagonal(shared, axis1=-2, axis2=-1)
    total = size[..., :, None] + size[..., None, :]
    return np.divide(2.0 * shared, total, out=np.full(shared.shape, np.nan), where=total > 0)


def pairwise_dice(masks: Masks) -> pd.DataFrame:
    """Dice of every mask with every other, (R, R); NaN for two empty masks (so on the diagonal of an empty one too).

    Args:
        masks: by rater's name, or in a row (then rater-1, rater-2 ...); of one shape, bool or 0 and 1.

    Raises:
        SettingError: AGREEMENT-FEW without any mask, SCORE-SHAPE, SCORE-VALUES.
    """
    names, stack = _named(masks)
    flat = stack.reshape(len(names), -1)
    flat = flat[:, flat.any(axis=0)].astype(float)
    return pd.DataFrame(_dice(flat @ flat.T), index=names, columns=names)


def consensus(masks: Masks, leave_out: str | int | None = None) -> np.ndarray:
    """What most raters marked: a voxel belongs to it if at least half of them marked it.

    A tie, possible with an even number of raters, counts as marked; so of two raters the consensus is the union.

    Args:
        masks: by rater's name, or in a row.
        leave_out: a rater who is to be scored against it, by name or position: his own mask must not help him.

    Raises:
        SettingError: RATER-UNKNOWN, AGREEMENT-FEW if nobody is left, SCORE-SHAPE, SCORE-VALUES.
    """
    names, stack = _named(masks)
    if leave_out is not None:
        at = leave_out if isinstance(leave_out, int) else names.index(leave_out) if leave_out in names else -1
        if not 0 <= at < len(names):
            raise SettingError("RATER-UNKNOWN", f"no rater {leave_out!r} among {', '.join(names)}",
                               mend=suggest(str(leave_out), names))
        stack = np.delete(stack, at, axis=0)
    if not len(stack):
        raise SettingError("AGREEMENT-FEW", "nobody is left to agree", mend="give at least two raters")
    return 2 * stack.sum(axis=0) >= len(stack)


def _volume_scores(masks: Masks, truth: np.ndarray | None) -> pd.DataFrame:
    """All comparisons within one volume (X, Y, Z): as a whole (z = -1) and slice by slice."""
    names, stack = _named(masks)
    if stack.ndim != 4:
        raise SettingError("SCORE-SHAPE", f"agreement is scored on volumes (X, Y, Z), not on {stack.shape[1:]}")
    if len(names) < 2:
        raise SettingError("AGREEMENT-FEW", f"{names[0]} alone agrees with nobody", mend="give two raters or more")
    r, depth = len(names), stack.shape[-1]
    rows = [stack, np.stack([consensus(list(stack), i) for i in range(r)]), consensus(list(stack))[None]]
    if truth is not None:
        _, known = _named({names[0]: stack[0], "truth": truth})
        rows.append(known[1:])
    everything = np.concatenate(rows)                                            # (M, X, Y, Z)
    *_, z = np.nonzero(everything.any(axis=0))
    voxels = everything[:, everything.any(axis=0)].astype(float)                 # (M, V)
    shared = np.zeros((depth + 1, len(voxels), len(voxels)))
    for k in np.unique(z):
        part = voxels[:, z == k]
        shared[1 + k] = part @ part.T
    shared[0] = shared[1:].sum(axis=0)                                           # the whole volume
    dice, size = _dice(shared), np.diagonal(shared, axis1=1, axis2=2)

    last = len(voxels) - 1                                                       # the truth, or everyone's consensus
    pairs = [("pairwise", i, j, last) for i, j in combinations(range(r), 2)]
    pairs += [("consensus", i, r + i, r + i) for i in range(r)]
    pairs += [("truth", i, last, last) for i in range(r) if truth is not None]
    label = [*names, *["others"] * r, "everyone", "truth"]
    return pd.concat([
        pd.DataFrame({"unit": np.where(np.arange(depth + 1), "slice", "volume"), "z": np.arange(-1, depth),
                      "comparison": kind, "first": names[i], "second": label[j], "dice": dice[:, i, j],
                      "reference_voxels": size[:, reference].astype(int)})
        for kind, i, j, reference in pairs
    ], ignore_index=True)  # fmt: skip


def rater_agreement(
    volumes: Iterable[tuple[str, Masks, np.ndarray | None]], *, names: Sequence[str] | None = None, n: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Agreement of raters over many volumes: every pair, each with the truth, each with the consensus of the others.

    Means are over all comparisons that are scored, intervals from resampling patients. So a figure does not depend on
    how many raters there were: were a volume's pairs averaged first, one imagined lesion in a healthy volume would
    make its score 0 for a panel of any size, although most of a large panel's pairs agree that there is nothing.

    Both masks empty: left out; one empty: 0; the other two of EMPTY_RULES are reported beside it. For ``lesion-only``
    the reference of a pair is the truth, or the consensus of all raters where no truth is known; otherwise it is the
    truth or the consensus that a rater is compared with.

    Args:
        volumes: (patient, masks by rater, truth or None) for each volume; masks (X, Y, Z) on the scan's own grid. They
            are read one at a time and not kept.
        names: of the volumes; numbers from 0 by default.
        n: resamples.
        seed: of the resampling.

    Raises:
        SettingError: AGREEMENT-FEW for a volume with fewer than two raters, or no volume; SCORE-SHAPE, SCORE-VALUES.
    """
    parts = []
    for number, (patient, masks, truth) in enumerate(volumes):
        part = _volume_scores(masks, truth)
        part.insert(0, "volume", names[number] if names is not None else number)
        part.insert(0, "patient", patient)
        parts.append(part)
    if not parts:
        raise SettingError("AGREEMENT-FEW", "there is no volume", mend="give volumes that two or more raters drew")
    scores = pd.concat(parts, ignore_index=True)
    return Agreement(scores, _per_volume(scores), _summary(scores, n, seed))


def _per_volume(scores: pd.DataFrame) -> pd.DataFrame:
    means = scores.pivot_table(index="volume", columns=["unit", "comparison"], values="dice", aggfunc="mean",
                               dropna=False)
    one_a_rater = scores[(scores["unit"] == "volume") & (scores["comparison"] == "consensus")].groupby("volume")
    table = pd.DataFrame({"patient": one_a_rater["patient"].first(), "raters": one_a_rater.size()})
    for unit in ("volume", "slice"):
        for comparison in COMPARISONS:
            if (unit, comparison) in means:
                table[comparison if unit == "volume" else f"{comparison}_slicewise"] = means[unit, comparison]
    return table


def _summary(scores: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    rows = []
    for (unit, comparison), part in scores.groupby(["unit", "comparison"], sort=False):
        for rule in EMPTY_RULES:
            dice = apply_empty_rule(part["dice"], part["reference_voxels"], rule)
            interval = bootstrap_ci(dice, part["patient"], n=n, seed=seed)
            scored = ~np.isnan(dice)
            rows.append({"unit": unit, "comparison": comparison, "rule": rule, "dice": interval.mean,
                         "low": interval.low, "high": interval.high, "patients": interval.patients,
                         "volumes": part["volume"][scored].nunique(), "scored": int(scored.sum()),
                         "both_empty": int(part["dice"].isna().sum())})
    return pd.DataFrame(rows)


def panel_agreement(
    scans: SliceSet | Mapping[str, ScanMasks], *, patients: Mapping[str, str] | None = None, n: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Agreement on the volumes of a data set that two or more raters drew (masks rater-1, rater-2 ...); others are
    passed over.

    Args:
        scans: a SliceSet, or its ``scans``.
        patients: volume -> patient; a SliceSet knows them, and otherwise a volume's name up to its first '_' is taken.
        n, seed: as for :func:`rater_agreement`.

    Raises:
        SettingError: AGREEMENT-FEW where no volume has two raters.
    """
    names: list[str] = []

    def volumes():
        for volume, *what in panel_masks(scans, patients):
            names.append(volume)
            yield what

    return rater_agreement(volumes(), names=names, n=n, seed=seed)


def panel_masks(
    scans: SliceSet | Mapping[str, ScanMasks], patients: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str, dict[str, np.ndarray], np.ndarray | None]]:
    """The volumes that two or more raters drew, one at a time: volume, patient, masks by rater, truth or None.

    Args:
        scans, patients: as for :func:`panel_agreement`.

    Raises:
        SettingError: AGREEMENT-FEW where no volume has two raters.
    """
    if isinstance(scans, SliceSet):
        patients = scans.volumes["patient"].to_dict() if patients is None else patients
        scans = scans.scans
    raters = {volume: [name for name in scan.indices if name.startswith("rater-")] for volume, scan in scans.items()}
    panel = [volume for volume, names in raters.items() if len(names) > 1]
    if not panel:
        raise SettingError("AGREEMENT-FEW", f"none of {len(scans)} volumes was drawn by two raters",
                           mend="agreement needs masks rater-1 and rater-2 of the same volume")
    for volume in panel:
        scan, patient = scans[volume], patients[volume] if patients is not None else volume.split("_")[0]
        truth = scan.dense("truth") if "truth" in scan.indices else None
        yield volume, patient, {name: scan.dense(name) for name in raters[volume]}, truth


@dataclass(frozen=True)
class Calibration:
    """Where a bisection arrived: ``tried`` holds every scale and agreement, in order."""

    scale: float
    agreement: float
    target: float
    reached: bool  # within the tolerance
    tried: pd.DataFrame  # columns scale, agreement


def calibrate(
    evaluate: Callable[[float], float], target: float, tolerance: float, low: float, high: float, *, steps: int = 20
) -> Calibration:
    """Find the scale at which a monotone function reaches a target, by bisection; rising or falling is found out.

    Args:
        evaluate: scale -> agreement; with the same random numbers at every scale it is smooth enough to bisect.
        target: agreement that is wanted.
        tolerance: how near is near enough.
        low, high: scales on both sides of the answer.
        steps: evaluations at most, the two ends included. When they are used up, the nearest one comes back with
            ``reached`` False.

    Raises:
        SettingError: CALIBRATE-BRACKET if both ends lie on one side of the target; CALIBRATE-NAN if there was no
            agreement to compute.
    """
    tried: list[tuple[float, float]] = []

    def off(scale: float) -> float:
        agreement = float(evaluate(scale))
        if np.isnan(agreement):
            raise SettingError("CALIBRATE-NAN", f"no agreement at scale {scale:g}")
        tried.append((scale, agreement))
        return agreement - target

    at_low, at_high = off(low), off(high)
    if at_low * at_high > 0 and min(abs(at_low), abs(at_high)) > tolerance:
        raise SettingError("CALIBRATE-BRACKET", f"agreement is {at_low + target:.3f} at scale {low:g} and "
                           f"{at_high + target:.3f} at {high:g}: {target:g} does not lie between",
                           mend="move low or high further out")
    while min(abs(agreement - target) for _, agreement in tried) > tolerance and len(tried) < steps:
        middle = (low + high) / 2
        here = off(middle)
        if (here > 0) == (at_low > 0):
            low, at_low = middle, here
        else:
            high = middle
    scale, agreement = min(tried, key=lambda pair: abs(pair[1] - target))
    return Calibration(scale, agreement, target, abs(agreement - target) <= tolerance,
                       pd.DataFrame(tried, columns=["scale", "agreement"]))
