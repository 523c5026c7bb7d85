"""What no network is needed for: the whole cord as the answer, and the best single threshold inside the cord."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from msfilm.data.slices import ScanMasks
from msfilm.errors import SettingError

__all__ = ["ThresholdBaseline", "all_cord_baseline", "boxed_masks", "lesion_volume_mm3"]


def all_cord_baseline(scan: ScanMasks) -> np.ndarray:
    """The cord mask as prediction: flat indices (C order) into the scan's own grid."""
    return scan.indices["cord"]


def lesion_volume_mm3(scan: ScanMasks, mask: str | np.ndarray = "rater-1") -> float:
    """Volume in mm3 of a mask of the scan, given by name or as flat indices."""
    indices = scan.indices[mask] if isinstance(mask, str) else mask
    return len(indices) * float(scan.voxel_volume_mm3)


def boxed_masks(shape: tuple[int, ...], *indices: np.ndarray) -> list[np.ndarray]:
    """Masks given as flat indices, as bool arrays cut to the smallest box that holds them all.

    Overlaps, volumes and connected components are the same in the box as on the whole grid, and it is far smaller.
    """
    corners = [np.stack(np.unravel_index(np.asarray(flat, dtype=np.int64), shape), axis=1) for flat in indices]
    filled = [corner for corner in corners if len(corner)]
    first = np.min([corner.min(axis=0) for corner in filled], axis=0) if filled else np.zeros(len(shape), int)
    last = np.max([corner.max(axis=0) for corner in filled], axis=0) if filled else first
    masks = []
    for corner in corners:
        mask = np.zeros(last - first + 1, dtype=bool)
        mask[tuple((corner - first).T)] = True
        masks.append(mask)
    return masks


@dataclass(frozen=True)
class ThresholdBaseline:
    """Every cord voxel above (or below) one intensity, relative to the median of the cord.

    Attributes:
        contrast: the contrast that it was chosen for.
        direction: 'above' keeps intensities >= threshold, 'below' those <= threshold.
        threshold: intensity / median over the volume's cord mask.
        dice: mean Dice on the volumes that it was chosen on (rule ``exclude``).
        volumes: how many of them counted.
        reference: name of the mask that it was chosen against.
    """

    contrast: str
    direction: str
    threshold: float
    dice: float
    volumes: int
    reference: str = "rater-1"

    def predict(self, scan: ScanMasks) -> np.ndarray:
        """Flat indices (C order) of the voxels that the threshold marks."""
        values = np.asarray(scan.cord_values)
        chosen = values >= self.threshold if self.direction == "above" else values <= self.threshold
        return np.asarray(scan.indices["cord"])[chosen]

    def as_dict(self) -> dict[str, float | int | str]:
        return asdict(self)

    @classmethod
    def fit(cls, scans: Iterable[ScanMasks], contrast: str, *, reference: str = "rater-1", candidates: int = 512):
        """Choose direction and threshold with the best mean Dice over ``scans``, all of one contrast.

        Candidates are the pooled cord intensities, or so many quantiles of them, in both directions; the widest marks
        the whole cord.
        Lesion voxels outside the cord mask count as missed. Of equal candidates the first (above, lower) is taken.

        Raises:
            SettingError: BASELINE-EMPTY when no scan has a non-empty cord and the reference mask.
        """
        scans = [scan for scan in scans if reference in scan.indices and len(scan.indices["cord"])]
        if not scans:
            raise SettingError("BASELINE-EMPTY", f"no {contrast} volume with mask {reference!r} to choose a threshold",
                               mend="choose on validation patients that have this contrast and mask")
        pooled = np.concatenate([np.asarray(scan.cord_values, dtype=np.float32) for scan in scans])
        levels = np.unique(pooled)
        if len(levels) > candidates:
            levels = np.unique(np.quantile(pooled, np.linspace(0, 1, candidates)).astype(np.float32))
        best = None
        for direction, sign in (("above", 1), ("below", -1)):
            table = np.stack([_dice_curve(scan, sign * levels, sign, reference) for scan in scans])  # (scans, levels)
            scored = ~np.isnan(table)
            count = scored.sum(axis=0)
            total = np.where(scored, table, 0).sum(axis=0)
            mean = np.divide(total, count, out=np.full(len(levels), -1.0), where=count > 0)
            i = int(mean.argmax())
            if best is None or mean[i] > best.dice:
                best = cls(contrast, direction, float(levels[i]), float(mean[i]), int(count[i]), reference)
        return best


def _dice_curve(scan: ScanMasks, levels: np.ndarray, sign: int, reference: str) -> np.ndarray:
    """Dice of ``sign * value >= level`` for every level at once; NaN where reference and prediction are empty."""
    values = sign * np.asarray(scan.cord_values, dtype=np.float32)
    lesion = np.isin(scan.indices["cord"], scan.indices[reference])
    order = np.argsort(values)
    hits_below = np.concatenate([[0], np.cumsum(lesion[order])])  # lesion voxels among the k lowest values
    start = np.searchsorted(values[order], levels, side="left")
    predicted, hits = len(values) - start, hits_below[-1] - hits_below[start]
    whole = predicted + len(scan.indices[reference])
    return np.divide(2 * hits, whole, out=np.full(len(levels), np.nan), where=whole > 0)
