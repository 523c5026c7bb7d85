"""Intervals: bootstrap over patients (and training seeds), paired differences, equivalence."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from msfilm.errors import SettingError

__all__ = ["Interval", "PairedDifference", "bootstrap_ci", "paired_difference", "ratio_ci"]


@dataclass(frozen=True)
class Interval:
    """A mean over volumes with its percentile interval; unpacks as ``mean, low, high``."""

    mean: float
    low: float
    high: float
    patients: int  # that have at least one scored volume
    volumes: int  # scored
    level: float = 0.95

    def __iter__(self):
        return iter((self.mean, self.low, self.high))

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b on the same volumes, with 90 % and 95 % intervals over patients."""

    mean: float
    low90: float
    high90: float
    low95: float
    high95: float
    patients: int
    volumes: int  # that both score
    unpaired: int  # that only one of them scores
    margin: float = 0.02

    @property
    def equivalent(self) -> bool:
        """Two one-sided tests at 5 %: the 90 % interval lies inside +-margin."""
        return bool(-self.margin < self.low90 and self.high90 < self.margin)

    def statement(self, a: str = "a", b: str = "b") -> str:
        """One sentence for a report; difference and equivalence are separate questions and are answered separately."""
        if np.isnan(self.mean):
            return f"{a} - {b}: no volume that both score."
        if np.isnan(self.low95):
            return f"{a} - {b} = {self.mean:+.3f} (one patient: no interval, nothing shown)."
        numbers = (f"{a} - {b} = {self.mean:+.3f} (95 % {self.low95:+.3f} to {self.high95:+.3f}; "
                   f"90 % {self.low90:+.3f} to {self.high90:+.3f}; {self.patients} patients)")
        differs = "no difference shown"
        if self.low95 > 0 or self.high95 < 0:
            differs = f"{a if self.mean > 0 else b} is better"
        equal = "equivalent" if self.equivalent else "equivalence not shown"
        return f"{numbers}: {differs}, {equal} within +-{self.margin:g}."

    def as_dict(self) -> dict[str, float | int | bool]:
        return asdict(self) | {"equivalent": self.equivalent}


def _table(values: np.ndarray, patients: np.ndarray, seeds: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of each (seed, patient): two arrays (S, P)."""
    patient_names, p = np.unique(patients, return_inverse=True)
    seed_names, s = np.unique(np.zeros(len(values)) if seeds is None else seeds, return_inverse=True)
    shape = (len(seed_names), len(patient_names))
    cell = np.ravel_multi_index((s, p), shape)
    sums = np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    return sums, counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Means of n samples in which patients, and seeds where there are several, are drawn with replacement."""
    generator = np.random.default_rng(seed)
    n_seeds, n_patients = sums.shape
    if n_patients < 2:
        return np.full(n, np.nan)  # one patient says nothing about how patients differ
    weight_p = generator.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n)  # (n, P)
    weight_s = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n)  # (n, S)
    total = ((weight_s @ sums) * weight_p).sum(axis=1)
    size = ((weight_s @ counts) * weight_p).sum(axis=1)
    return np.divide(total, size, out=np.full(n, np.nan), where=size > 0)


def _quantiles(means: np.ndarray, at: list[float]) -> np.ndarray:
    means = means[~np.isnan(means)]  # a sample of seeds and patients may hold no score at all
    return np.quantile(means, at) if len(means) else np.full(len(at), np.nan)


def _prepare(scores, patients, seeds) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    scores = np.asarray(scores, dtype=float)
    # Whatever type the names have, text compares; None and NaN would not sort.
    patients = np.asarray(patients).astype(str)
    seeds = None if seeds is None else np.asarray(seeds).astype(str)
    for name, other in (("patients", patients), ("seeds", seeds)):
        if other is not None and other.shape != scores.shape:
            raise SettingError("BOOTSTRAP-SHAPE", f"{len(scores)} scores, but {name} has shape {other.shape}")
    return scores, patients, seeds


def bootstrap_ci(scores, patients, *, n: int = 2000, seed: int = 0, level: float = 0.95, seeds=None) -> Interval:
    """Mean over volumes with a percentile interval from resampling patients: scans of one patient stay together.

    Args:
        scores: one score a volume; NaN ones are left out (see ``metrics.apply_empty_rule``).
        patients: the patient of each volume.
        n: resamples.
        seed: of the resampling; the same seed gives the same interval.
        level: coverage.
        seeds: training seed of each score, when several trainings are pooled: resampled too, crossed with patients.

    Returns:
        The interval; its ends are NaN when only one patient is scored.

    Raises:
        SettingError: BOOTSTRAP-SHAPE.
    """
    scores, patients, seeds = _prepare(scores, patients, seeds)
    scored = ~np.isnan(scores)
    if not scored.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0, level)
    scores, patients = scores[scored], patients[scored]
    sums, counts = _table(scores, patients, None if seeds is None else seeds[scored])
    low, high = _quantiles(_resampled_means(sums, counts, n, seed), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high), sums.shape[1], len(scores), level)


def ratio_ci(part, whole, patients, *, n: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Sum of ``part`` over sum of ``whole``, with a percentile interval from resampling patients.

    It is the mean over all voxels (or lesions) of all rows: rows that hold more count for more.

    Args:
        part, whole: of each row, such as error voxels near an outline and all error voxels; NaN ones are left out.
        patients, n, seed, level: as for :func:`bootstrap_ci`.

    Returns:
        The interval; ``volumes`` are the rows whose ``whole`` is not 0.

    Raises:
        SettingError: BOOTSTRAP-SHAPE.
    """
    part, patients, _ = _prepare(part, patients, None)
    whole = np.asarray(whole, dtype=float)
    if whole.shape != part.shape:
        raise SettingError("BOOTSTRAP-SHAPE", f"{len(part)} parts, but {len(whole)} wholes")
    counted = ~np.isnan(part) & ~np.isnan(whole) & (whole != 0)
    if not counted.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0, level)
    part, whole, patients = part[counted], whole[counted], patients[counted]
    (parts, _), (wholes, _) = (_table(values, patients, None) for values in (part, whole))
    low, high = _quantiles(_resampled_means(parts, wholes, n, seed), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(part.sum() / whole.sum()), float(low), float(high), parts.shape[1], len(part), level)


def paired_difference(
    a, b, patients, *, margin: float = 0.02, n: int = 2000, seed: int = 0, seeds=None
) -> PairedDifference:
    """Mean of ``a - b`` over the volumes that both score, resampling patients (and seeds).

    A volume without lesions that one method leaves empty has no Dice for it (rule ``exclude``), hence no pair; such
    volumes are counted in ``unpaired``, and compared by the specificity row of a report.

    Args:
        a, b: one score a volume, in the same order.
        patients: the patient of each volume.
        margin: of equivalence; shown when the 90 % interval lies inside +-margin.

    Raises:
        SettingError: BOOTSTRAP-SHAPE.
    """
    a, patients, seeds = _prepare(a, patients, seeds)
    b = np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise SettingError("BOOTSTRAP-SHAPE", f"paired scores differ in number: {a.shape} and {b.shape}",
                           mend="give both methods' scores for the same volumes in the same order")
    difference = a - b
    scored = ~np.isnan(difference)
    unpaired = int((np.isnan(a) != np.isnan(b)).sum())
    if not scored.any():
        return PairedDifference(*[float("nan")] * 5, 0, 0, unpaired, margin)
    sums, counts = _table(difference[scored], patients[scored], None if seeds is None else seeds[scored])
    low95, low90, high90, high95 = _quantiles(_resampled_means(sums, counts, n, seed), [0.025, 0.05, 0.95, 0.975])
    return PairedDifference(float(difference[scored].mean()), float(low90), float(high90), float(low95), float(high95),
                            sums.shape[1], int(scored.sum()), unpaired, margin)
