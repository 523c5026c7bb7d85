"""Scores of one volume: voxel-wise and lesion-wise, and the named rules for empty masks and for found lesions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from msfilm.errors import SettingError, suggest

__all__ = [
    "EMPTY_RULES",
    "LESION_RULES",
    "LESION_SIZES_MM3",
    "LesionScores",
    "VolumeScores",
    "apply_empty_rule",
    "dice",
    "lesion_labels",
    "lesion_scores",
    "lesion_scores_by_size",
    "mask_pair",
    "pool_sizes",
    "volume_scores",
]

EMPTY_RULES = {
    "exclude": "reference and prediction both empty: left out of the mean; one empty: 0 (the rule used throughout)",
    "one": "both empty: 1; one empty: 0",
    "lesion-only": "every volume whose reference is empty is left out",
}
LESION_RULES = {
    "any": "26-connected, at least 3 voxels; found if one voxel of the other mask lies in it",
    "iou": "26-connected, at least 3 voxels; found if its intersection over union with one lesion of the other mask is "
           "above .1",
    "overlap10": "the rule of the nnU-Net lesion model: 6-connected, of any size; a reference lesion is found if a "
                 "tenth of its voxels is marked, a marked lesion is false if no voxel of it is in the reference",
    "ivadomed": "the rule of the paper's own code: 18-connected, of any size; a reference lesion is found, and a "
                "marked one is not false, if it shares at least 3 voxels with the other mask",
}
# Bins for scores by size: [0, 50), [50, 200), [200, inf) mm3 hold about a fifth, two fifths and two fifths of the
# phantom's lesions; one of 50 mm3 is a ball of 4.6 mm.
LESION_SIZES_MM3 = (0.0, 50.0, 200.0)


@dataclass(frozen=True)
class _Counting:
    """What a rule calls a lesion; ``published``: precision from found reference lesions, as in prior work."""

    neighbours: int  # 1, 2, 3: voxels touch by faces (6), edges too (18), corners too (26)
    min_voxels: int
    published: bool = False


_COUNTING = {"any": _Counting(3, 3), "iou": _Counting(3, 3), "overlap10": _Counting(1, 1, True),
             "ivadomed": _Counting(2, 1, True)}


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


def mask_pair(reference: np.ndarray, prediction: np.ndarray, *, ndim: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two masks as bool arrays. Raises SettingError SCORE-SHAPE, SCORE-VALUES where they are no pair of masks."""
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    if reference.shape != prediction.shape:
        raise SettingError("SCORE-SHAPE", f"reference {reference.shape}, but prediction {prediction.shape}",
                           mend="score on the scan's own grid: put the prediction back into it first")
    if ndim and reference.ndim != ndim:
        raise SettingError("SCORE-SHAPE", f"lesions are counted in {ndim}-D, but the masks are {reference.shape}")
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
    reference, prediction = mask_pair(reference, prediction)
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
    reference, prediction = mask_pair(reference, prediction)
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


def lesion_labels(mask: np.ndarray, *, min_voxels: int | None = None, rule: str = "any") -> np.ndarray:
    """The lesions of a mask (X, Y, Z) numbered from 1, as a rule of LESION_RULES counts them; 0 is none.

    Raises:
        SettingError: SCORE-RULE, SCORE-VALUES, SCORE-SHAPE.
    """
    if rule not in _COUNTING:
        raise SettingError("SCORE-RULE", f"unknown lesion rule {rule!r}", mend=suggest(rule, LESION_RULES))
    structure = ndimage.generate_binary_structure(3, _COUNTING[rule].neighbours)
    labels, _ = ndimage.label(mask_pair(mask, mask, ndim=3)[0], structure=structure)
    counted = np.bincount(labels.ravel()) >= (_COUNTING[rule].min_voxels if min_voxels is None else min_voxels)
    counted[0] = False
    return np.where(counted, np.cumsum(counted), 0)[labels]


@dataclass(frozen=True)
class _Lesions:
    """The lesions of one mask: voxels of each that counts, and whether each was found (or, marked, is true)."""

    voxels: np.ndarray
    hit: np.ndarray


def _match(reference: np.ndarray, prediction: np.ndarray, rule: str,
           min_voxels: int | None) -> tuple[_Lesions, _Lesions]:
    """Label both masks and find which lesions of each are hit, under one of LESION_RULES."""
    if rule not in LESION_RULES:
        raise SettingError("SCORE-RULE", f"unknown lesion rule {rule!r}", mend=suggest(rule, LESION_RULES))
    reference, prediction = mask_pair(reference, prediction, ndim=3)
    union = ndimage.find_objects((reference | prediction).astype(np.uint8))
    if union and union[0] is not None:  # only the box that holds both masks is worth labelling
        reference, prediction = reference[union[0]], prediction[union[0]]

    structure = ndimage.generate_binary_structure(3, _COUNTING[rule].neighbours)
    labels_r, labels_p = (ndimage.label(mask, structure=structure)[0] for mask in (reference, prediction))
    size_r, size_p = (np.bincount(labels.ravel()) for labels in (labels_r, labels_p))  # [0]: what is no lesion
    touch = reference & prediction
    shared_r = np.bincount(labels_r[touch], minlength=len(size_r))  # voxels that the other mask has of each lesion
    shared_p = np.bincount(labels_p[touch], minlength=len(size_p))
    if rule == "iou":
        pairs, shared = np.unique(np.stack([labels_r[touch], labels_p[touch]]), axis=1, return_counts=True)
        pairs = pairs[:, shared / (size_r[pairs[0]] + size_p[pairs[1]] - shared) > 0.1]
        hit_r, hit_p = np.zeros(len(size_r), bool), np.zeros(len(size_p), bool)
        hit_r[pairs[0]], hit_p[pairs[1]] = True, True
    elif rule == "overlap10":
        hit_r, hit_p = 10 * shared_r >= size_r, shared_p >= 1
    else:
        least = 3 if rule == "ivadomed" else 1
        hit_r, hit_p = shared_r >= least, shared_p >= least

    least = _COUNTING[rule].min_voxels if min_voxels is None else min_voxels
    found = []
    for size, hit in ((size_r, hit_r), (size_p, hit_p)):
        counted = size >= least
        counted[0] = False
        found.append(_Lesions(size[counted], hit[counted]))
    return found[0], found[1]


def _lesion_ratios(n_r: int, n_p: int, found: int, true: int, rule: str) -> tuple[float, float, float]:
    """Sensitivity, precision and F1 from counts; NaN without a denominator, F1 0 where only one side has lesions."""
    sensitivity, precision = _ratio(found, n_r), _ratio(true, n_p)
    if _COUNTING[rule].published and n_p:
        precision = _ratio(found, found + n_p - true)
    if not (n_r or n_p):
        return sensitivity, precision, float("nan")
    if not (found and precision > 0):  # NaN is not above 0
        return sensitivity, precision, 0.0
    return sensitivity, precision, 2 * sensitivity * precision / (sensitivity + precision)


def lesion_scores(
    reference: np.ndarray, prediction: np.ndarray, *, min_voxels: int | None = None, rule: str = "any"
) -> LesionScores:
    """Lesion-wise sensitivity, precision and F1 of one volume, under one of LESION_RULES.

    A smaller component than ``min_voxels`` is no lesion, neither found nor missed nor false; but it is part of the
    mask, so a lesion that touches it is found. Under rule ``iou``, lesions are compared one with one.

    ``overlap10`` and ``ivadomed`` count as published, oddities included: precision is (found reference lesions) /
    (those + false marked lesions), so two marked pieces of one lesion count once; and under ``ivadomed`` a perfectly
    marked lesion of 1 or 2 voxels is missed, and false besides. Only two empty masks are as everywhere here, NaN; the
    nnU-Net lesion model's own scoring gives them 1.

    Args:
        reference, prediction: masks (X, Y, Z) of 0 and 1.
        min_voxels: of a lesion; by default the rule's own (3, or 1 for the rules of prior work).
        rule: a key of LESION_RULES.

    Raises:
        SettingError: SCORE-SHAPE, SCORE-VALUES; SCORE-RULE for an unknown rule.

    Source: ``ivadomed/evaluation.py`` of ivadomed 2.9 (Evaluation3DMetrics, its default ``overlap_vox`` of 3);
    ``evaluation/utils.py`` of ivadomed/ms-lesion-agnostic. Written anew from what they do.
    """
    reference_lesions, marked = _match(reference, prediction, rule, min_voxels)
    n_r, n_p = len(reference_lesions.hit), len(marked.hit)
    found, true = int(reference_lesions.hit.sum()), int(marked.hit.sum())
    return LesionScores(n_r, n_p, found, true, *_lesion_ratios(n_r, n_p, found, true, rule))


def lesion_scores_by_size(
    reference: np.ndarray, prediction: np.ndarray, voxel_volume_mm3: float, *,
    edges_mm3: Sequence[float] = LESION_SIZES_MM3, min_voxels: int | None = None, rule: str = "any",
) -> pd.DataFrame:
    """Lesion-wise scores of one volume by size of lesion: sensitivity by the reference lesion's own volume, precision
    by the marked lesion's own, F1 of the two.

    Precision is here always (true marked lesions) / (marked lesions): found reference lesions may be of another bin.

    Args:
        reference, prediction: masks (X, Y, Z) of 0 and 1.
        voxel_volume_mm3: volume of one voxel.
        edges_mm3: where each bin begins, rising; the last one has no end. What is smaller than the first is left out.
        min_voxels, rule: as for :func:`lesion_scores`.

    Returns:
        A row for each bin: low_mm3, high_mm3 (not in it; inf), reference_lesions, prediction_lesions, found, true,
        sensitivity, precision, f1. :func:`pool_sizes` joins those of many volumes.

    Raises:
        SettingError: SCORE-SHAPE, SCORE-VALUES, SCORE-RULE; SCORE-BINS for edges that do not rise.
    """
    edges = np.append(np.asarray(edges_mm3, dtype=float), np.inf)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise SettingError("SCORE-BINS", f"edges_mm3={tuple(edges_mm3)}", mend="give volumes in mm3 that rise")
    (of_reference, found), (of_prediction, true) = (
        [np.histogram(voxels * voxel_volume_mm3, edges)[0] for voxels in (lesions.voxels, lesions.voxels[lesions.hit])]
        for lesions in _match(reference, prediction, rule, min_voxels)
    )
    return _size_table(edges[:-1], edges[1:], np.stack([of_reference, of_prediction, found, true], axis=1))


def pool_sizes(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Counts of several :func:`lesion_scores_by_size` of the same bins added up, and the scores that follow."""
    table = pd.concat(tables).groupby(["low_mm3", "high_mm3"], as_index=False)[list(_SIZE_COUNTS)].sum()
    return _size_table(table["low_mm3"], table["high_mm3"], table[list(_SIZE_COUNTS)].to_numpy())


_SIZE_COUNTS = ("reference_lesions", "prediction_lesions", "found", "true")


def _size_table(low: np.ndarray, high: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    """Bins and their counts (B, 4) as a table, with the scores that follow."""
    scores = np.array([_lesion_ratios(*map(int, row), rule="any") for row in counts])
    return pd.DataFrame({"low_mm3": low, "high_mm3": high, **dict(zip(_SIZE_COUNTS, counts.T, strict=True)),
                         **dict(zip(("sensitivity", "precision", "f1"), scores.T, strict=True))})


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
