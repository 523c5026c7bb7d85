"""From predictions to a table: scores of every volume, rows with intervals, paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.evaluate.baselines import ThresholdBaseline, all_cord_baseline, boxed_masks
from msfilm.evaluate.metrics import apply_empty_rule, lesion_scores, volume_scores
from msfilm.evaluate.predict import predict_volumes
from msfilm.evaluate.stats import bootstrap_ci, paired_difference
from msfilm.model.weights import Network

__all__ = ["UNMARKED", "compare", "score_pair", "score_volumes", "summarise"]

UNMARKED = "unmarked"  # reference of a volume on which nobody has drawn lesions
_MEANS = ("precision", "recall", "difference_mm3", "prediction_mm3", "lesion_sensitivity", "lesion_precision",
          "lesion_f1")


def score_pair(scan: ScanMasks, reference: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """All scores of one prediction against one reference, both flat indices into the scan's own grid."""
    a, b = boxed_masks(scan.shape, reference, prediction)
    lesions = lesion_scores(a, b)
    return volume_scores(a, b, scan.voxel_volume_mm3).as_dict() | {
        "lesions_reference": lesions.reference_lesions,
        "lesions_prediction": lesions.prediction_lesions,
        "lesion_sensitivity": lesions.sensitivity,
        "lesion_precision": lesions.precision,
        "lesion_f1": lesions.f1,
    }


def score_volumes(network: Network, slices: SliceSet, thresholds: Mapping[str, ThresholdBaseline], *,
                  threshold: float = 0.5, **settings: Any) -> pd.DataFrame:
    """Scores of network and baselines on every volume, against each of its lesion masks: one row each.

    Args:
        network: scored as method 'network'.
        slices: its volumes are scored.
        thresholds: the threshold baseline of each contrast; one that is missing gives no row.
        threshold: on the network's probability.
        **settings: of ``predict_slices``.

    Returns:
        Columns volume, patient, centre, contrast, rater, method, reference, then the scores.
    """
    rows = []
    for name, probability in predict_volumes(network, slices, **settings):
        scan, about = slices.scans[name], slices.volumes.loc[name]
        answers = {"network": np.flatnonzero(probability >= threshold)}
        if about["contrast"] in thresholds:
            answers["threshold"] = thresholds[about["contrast"]].predict(scan)
        answers["all-cord"] = all_cord_baseline(scan)
        for method, reference, answer, drawn in _pairs(scan, answers):
            row = {"volume": name, **{key: about[key] for key in ("patient", "centre", "contrast", "rater")},
                   "method": method, "reference": reference}
            if drawn is None:
                row["prediction_mm3"] = len(answer) * scan.voxel_volume_mm3
            else:
                row |= score_pair(scan, drawn, answer)
            rows.append(row)
    return pd.DataFrame(rows)


def _pairs(scan: ScanMasks, answers: dict[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray | None]]:
    references = sorted(name for name in scan.indices if name != "cord")
    for reference in references:
        for method, answer in answers.items():
            yield method, reference, answer, scan.indices[reference]
    if "truth" in references:
        for rater in references:
            if rater != "truth":
                yield rater, "truth", scan.indices[rater], scan.indices["truth"]
    if not references:
        yield "network", UNMARKED, answers["network"], None


def _groups(scores: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(reference, contrast, rows), the contrasts one by one and then all together."""
    for reference, of_reference in scores.groupby("reference", sort=True):
        contrasts = sorted(of_reference["contrast"].unique())
        for contrast in contrasts:
            yield reference, contrast, of_reference[of_reference["contrast"] == contrast]
        yield reference, "all", of_reference


def summarise(scores: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Mean scores of each method, per contrast and for all, against each reference; unknown values are None.

    ``volumes`` and ``patients`` count those in the mean Dice (rule ``exclude``). ``lesion_free`` volumes have an empty
    reference; ``both_empty`` of them were left empty, and ``false_mm3`` is the mean volume marked in them.
    """
    rows = []
    for reference, contrast, group in _groups(scores):
        for method, part in group.groupby("method", sort=False):
            row = {"name": method, "contrast": contrast, "reference": reference}
            if reference == UNMARKED:
                row |= {"dice": None, "low": None, "high": None, "patients": part["patient"].nunique(), "volumes": 0,
                        "both_empty": int((part["prediction_mm3"] == 0).sum()), "one_empty": 0, "dice_one": None,
                        "dice_lesion_only": None, "lesion_free": len(part), "false_mm3": None}
            else:
                dice, reference_mm3 = part["dice"].to_numpy(), part["reference_mm3"].to_numpy()
                interval = bootstrap_ci(dice, part["patient"], n=resamples, seed=seed)
                free, blank = reference_mm3 == 0, part["prediction_mm3"].to_numpy() == 0
                row |= {"dice": interval.mean, "low": interval.low, "high": interval.high,
                        "patients": interval.patients, "volumes": interval.volumes,
                        "both_empty": int((free & blank).sum()), "one_empty": int((free != blank).sum()),
                        "dice_one": _mean(apply_empty_rule(dice, reference_mm3, "one")),
                        "dice_lesion_only": _mean(apply_empty_rule(dice, reference_mm3, "lesion-only")),
                        "lesion_free": int(free.sum()), "false_mm3": _mean(part["false_mm3"].to_numpy()[free])}
            row |= {key: _mean(part[key].to_numpy(dtype=float)) if key in part else None for key in _MEANS}
            rows.append({key: None if isinstance(value, float) and np.isnan(value) else value
                         for key, value in row.items()})
    return rows


def compare(scores: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Paired difference in Dice of the network and each other method, per contrast and for all."""
    entries = []
    for reference, contrast, group in _groups(scores):
        if reference == UNMARKED:
            continue
        wide = group.pivot(index="volume", columns="method", values="dice")
        patients = group.drop_duplicates("volume").set_index("volume")["patient"].loc[wide.index]
        for other in [name for name in group["method"].unique() if name != "network"]:
            difference = paired_difference(wide["network"], wide[other], patients, n=resamples, seed=seed)
            entry = {"a": "network", "b": other, "contrast": contrast, "reference": reference, **difference.as_dict(),
                     "statement": f"{contrast}, against {reference}: {difference.statement('network', other)}"}
            entries.append({key: None if isinstance(value, float) and np.isnan(value) else value
                            for key, value in entry.items()})
    return entries


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
