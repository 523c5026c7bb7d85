"""Calibration: is a voxel with a lesion probability of .3 lesion in 3 of 10 cases? Counts that add up over volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd

from msfilm.errors import SettingError

__all__ = ["Reliability", "reliability"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Counts of voxels by probability, in bins of equal width from 0 to 1; those of several volumes add up with ``+``.

    Attributes:
        count: (bins,) voxels in each bin; the last one holds probability 1 too.
        confidence_sum: (bins,) sum of their probabilities.
        lesion: (bins,) how many of them are lesion.
        squared_error: sum of (probability - lesion) squared over all voxels.
    """

    count: np.ndarray
    confidence_sum: np.ndarray
    lesion: np.ndarray
    squared_error: float

    def __add__(self, other: Reliability) -> Reliability:
        if len(self.count) != len(other.count):
            raise SettingError("SCORE-BINS", f"{len(self.count)} bins and {len(other.count)} bins do not add up",
                               mend="use the same number of bins for every volume")
        return Reliability(self.count + other.count, self.confidence_sum + other.confidence_sum,
                           self.lesion + other.lesion, self.squared_error + other.squared_error)

    @classmethod
    def total(cls, parts) -> Reliability:
        """The sum of one or more."""
        return reduce(add, parts)

    @property
    def voxels(self) -> int:
        return int(self.count.sum())

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over voxels of their bin's |frequency - mean confidence|; NaN of none.

        Of the probability of lesion, not of the more probable class. Most voxels are far from any lesion and certain,
        so it is small even for a network that is wrong wherever it doubts: look at the table, or at cord voxels only.
        """
        return float(np.abs(self.lesion - self.confidence_sum).sum() / self.voxels) if self.voxels else float("nan")

    @property
    def brier(self) -> float:
        """Mean squared error of the probability; NaN of no voxels."""
        return self.squared_error / self.voxels if self.voxels else float("nan")

    def table(self) -> pd.DataFrame:
        """A row for each bin: low, high, confidence (mean probability), frequency (share of lesion), count."""
        edges = np.linspace(0, 1, len(self.count) + 1)
        unknown, filled = np.full(len(self.count), np.nan), self.count > 0
        return pd.DataFrame({
            "low": edges[:-1], "high": edges[1:],
            "confidence": np.divide(self.confidence_sum, self.count, out=unknown.copy(), where=filled),
            "frequency": np.divide(self.lesion, self.count, out=unknown.copy(), where=filled),
            "count": self.count,
        })

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"count": self.count.tolist(), "confidence_sum": self.confidence_sum.tolist(),
                "lesion": self.lesion.tolist(), "squared_error": self.squared_error}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Reliability:
        return cls(np.asarray(entry["count"], dtype=np.int64), np.asarray(entry["confidence_sum"], dtype=float),
                   np.asarray(entry["lesion"], dtype=np.int64), float(entry["squared_error"]))


def reliability(probability: np.ndarray, reference: np.ndarray, bins: int = 15, *,
                where: np.ndarray | None = None) -> Reliability:
    """Count the voxels of one volume (or of anything) by probability.

    An evaluation counts on the scan's own grid, where the network looked: the voxels that its crops cover. Elsewhere it
    has said nothing, and the zeros of an uncropped volume would count as certainty.

    Args:
        probability: of lesion, any shape, 0 to 1.
        reference: mask of 0 and 1 of the same shape.
        bins: of equal width.
        where: bool of the same shape, the voxels to count; all by default.

    Raises:
        SettingError: SCORE-SHAPE; SCORE-VALUES for probabilities outside 0 to 1, NaN, or another reference than 0 and
            1; SCORE-BINS.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise SettingError("SCORE-BINS", f"bins={bins!r}", mend="use a whole number, 1 or more")
    probability, reference = np.asarray(probability), np.asarray(reference)
    if probability.shape != reference.shape or (where is not None and np.shape(where) != probability.shape):
        raise SettingError("SCORE-SHAPE", f"probability {probability.shape}, reference {reference.shape}"
                           + ("" if where is None else f", where {np.shape(where)}"))
    if where is not None:
        probability, reference = probability[where], reference[where]
    p, lesion = probability.ravel().astype(float), reference.ravel()
    if lesion.dtype != bool and not np.isin(lesion, (0, 1)).all():
        raise SettingError("SCORE-VALUES", "the reference holds values other than 0 and 1",
                           mend="a mask of 255 means that it was never drawn")
    if not ((p >= 0) & (p <= 1)).all():
        raise SettingError("SCORE-VALUES", "probabilities outside 0 to 1, or NaN",
                           mend="give probabilities, not logits")
    lesion = lesion.astype(float)
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    return Reliability(np.bincount(bin_of, minlength=bins), np.bincount(bin_of, weights=p, minlength=bins),
                       np.bincount(bin_of, weights=lesion, minlength=bins).astype(np.int64),
                       float(((p - lesion) ** 2).sum()))
