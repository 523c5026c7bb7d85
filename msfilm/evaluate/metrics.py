"""Scores of one volume: voxel-wise and lesion-wise, and the three rules for empty masks."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from msfilm.errors import SettingError, suggest

__all__ = [
    "EMPTY_RULES",
    "LESION_RULES",
    "LesionScores",
    "VolumeScores",
    "apply_empty_rule",
    "dice",
    "lesion_scores",
    "volume_scores",
]

EMPTY_RULES = {
    "exclude": "reference and prediction both empty: left out of the mean; one empty: 0 (the rule used throughout)",
    "one": "both empty: 1; one empty: 0",
    "lesion-only": "every volume whose reference is empty is left out",
}
LESION_RULES = {
    "any": "found if one voxel of the other mask lies in it",
    "iou": "found if its intersection over union with one lesion of the other mask is above .1",
}
_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class VolumeScores:
    """Voxel-wise scores of one volume; volumes in mm3; NaN where a score has no denominator."""

    dice: float
    precision: float
    recall: float
    reference_mm3: float
    prediction_mm3: float
    difference_mm3: float  # prediction - reference
    false_mm3: float  # predicted, not in the reference
    missed_mm3: float  # in the reference, not predicted

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise scores of one volume; NaN where there is nothing to count."""

    reference_lesions: int
    prediction_lesions: int
    found: int  # reference lesions that the prediction finds
    true: int  # predicted lesions that are lesions of the reference
    sensitivity: float
    precision: float
    f1: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _pair(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    if reference.shape != prediction.shape:
        raise SettingError("SCORE-SHAPE", f"reference {reference.shape}, but prediction {prediction.shape}",
                           mend="score on the scan's own grid: put the prediction back into it first")
    for name, mask in (("reference", reference), ("prediction", prediction)):
        # A probability map or a label map passed by mistake would be scored as a mask of everything above 0.
        if mask.dtype != bool and mask.size and not np.isin(mask, (0, 1)).all():
            raise SettingError("SCORE-VALUES", f"the {name} holds values other than 0 and 1",
                               mend="threshold probabilities first; a mask of 255 means that it was never drawn")
    return reference.astype(bool, copy=False), prediction.astype(bool, copy=False)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice overlap 2|A and B| / (|A| + |B|) of two masks of one shape; NaN when both are empty.

    Raises:
        SettingError: SCORE-SHAPE, SCORE-VALUES.
    """
    reference, prediction = _pair(reference, prediction)
    both = np.count_nonzero(reference & prediction)
    return _ratio(2 * both, np.count_nonzero(reference) + np.count_nonzero(prediction))


def volume_scores(reference: np.ndarray, prediction: np.ndarray, voxel_volume_mm3: float) -> VolumeScores:
    """Voxel-wise scores of one volume.

    Args:
        reference: mask (X, Y, Z) of 0 and 1, untouched, on the scan's own grid.
        prediction: mask of the same shape.
        voxel_volume_mm3: volume of one voxel.

    Raises:
        SettingError: SCORE-SHAPE, SCORE-VALUES.
    """
    reference, prediction = _pair(reference, prediction)
    hits = np.count_nonzero(reference & prediction)
    n_reference, n_prediction = np.count_nonzero(reference), np.count_nonzero(prediction)
    return VolumeScores(
        dice=_ratio(2 * hits, n_reference + n_prediction),
        precision=_ratio(hits, n_prediction),
        recall=_ratio(hits, n_reference),
        reference_mm3=n_reference * voxel_volume_mm3,
        prediction_mm3=n_prediction * voxel_volume_mm3,
        difference_mm3=(n_prediction - n_reference) * voxel_volume_mm3,
        false_mm3=(n_prediction - hits) * voxel_volume_mm3,
        missed_mm3=(n_reference - hits) * voxel_volume_mm3,
    )


def _lesions(mask: np.ndarray, min_voxels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label 26-connected components: labels, size of each label (0 first), and which are large enough to count."""
    labels, _ = ndimage.label(mask, structure=_NEIGHBOURS_26)
    sizes = np.bincount(labels.ravel())
    counted = sizes >= min_voxels
    counted[0] = False
    return labels, sizes, counted


def lesion_scores(
    reference: np.ndarray, prediction: np.ndarray, *, min_voxels: int = 3, rule: str = "any"
) -> LesionScores:
    """Lesion-wise sensitivity, precision and F1 of one volume.

    A lesion is a 26-connected component of at least ``min_voxels``. Smaller components are no lesions, neither found
    nor missed nor false; but they are part of the mask, so a lesion that touches one is found. Under rule ``iou``,
    lesions are compared one with one.

    Raises:
        SettingError: SCORE-SHAPE, SCORE-VALUES; SCORE-RULE for an unknown rule.
    """
    if rule not in LESION_RULES:
        raise SettingError("SCORE-RULE", f"unknown lesion rule {rule!r}", mend=suggest(rule, LESION_RULES))
    reference, prediction = _pair(reference, prediction)
    if reference.ndim != 3:
        raise SettingError("SCORE-SHAPE", f"lesions are counted in 3-D, but the masks are {reference.shape}")
    union = ndimage.find_objects((reference | prediction).astype(np.uint8))
    if union and union[0] is not None:  # only the box that holds both masks is worth labelling
        reference, prediction = reference[union[0]], prediction[union[0]]

    labels_r, sizes_r, counted_r = _lesions(reference, min_voxels)
    labels_p, sizes_p, counted_p = _lesions(prediction, min_voxels)
    touch = reference & prediction
    pairs, shared = np.unique(np.stack([labels_r[touch], labels_p[touch]]), axis=1, return_counts=True)
    if rule == "iou":
        overlap = shared / (sizes_r[pairs[0]] + sizes_p[pairs[1]] - shared)
        pairs = pairs[:, overlap > 0.1]
    hit_r, hit_p = np.zeros_like(counted_r), np.zeros_like(counted_p)
    hit_r[pairs[0]] = True
    hit_p[pairs[1]] = True

    n_r, n_p = int(counted_r.sum()), int(counted_p.sum())
    found, true = int((counted_r & hit_r).sum()), int((counted_p & hit_p).sum())
    sensitivity, precision = _ratio(found, n_r), _ratio(true, n_p)
    if n_r and n_p:
        f1 = 2 * sensitivity * precision / (sensitivity + precision) if found and true else 0.0
    else:
        f1 = float("nan") if n_r == n_p else 0.0
    return LesionScores(n_r, n_p, found, true, sensitivity, precision, f1)


def apply_empty_rule(scores: np.ndarray, reference_mm3: np.ndarray, rule: str = "exclude") -> np.ndarray:
    """Dice values under one of EMPTY_RULES; volumes that the rule leaves out are NaN.

    Args:
        scores: Dice of each volume as :func:`dice` gives it (NaN: both masks empty).
        reference_mm3: lesion volume of each reference.
        rule: a key of EMPTY_RULES.

    Raises:
        SettingError: SCORE-RULE for an unknown rule.
    """
    if rule not in EMPTY_RULES:
        raise SettingError("SCORE-RULE", f"unknown rule for empty masks {rule!r}", mend=suggest(rule, EMPTY_RULES))
    scores, reference_mm3 = np.asarray(scores, dtype=float), np.asarray(reference_mm3, dtype=float)
    if rule == "one":
        return np.where(np.isnan(scores), 1.0, scores)
    if rule == "lesion-only":
        return np.where(reference_mm3 > 0, scores, np.nan)
    return scores.copy()
