"""From predictions to a table: scores of every volume, rows with intervals, paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from msfilm.data.crop import coverage
from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.baselines import ThresholdBaseline, all_cord_baseline, boxed_masks
from msfilm.evaluate.metrics import (
    apply_empty_rule,
    lesion_scores,
    lesion_scores_by_size,
    volume_scores,
)
from msfilm.evaluate.predict import predict_volumes
from msfilm.evaluate.reliability import Reliability, reliability
from msfilm.evaluate.stats import bootstrap_ci, paired_difference
from msfilm.evaluate.surface import surface_scores
from msfilm.model.weights import Network

__all__ = ["REFERENCES", "REGIONS", "UNMARKED", "Tally", "choose_references", "compare", "plain_rows", "score_pair",
           "score_volumes", "summarise"]

UNMARKED = "unmarked"  # reference of a volume on which nobody has drawn lesions
REFERENCES = ("rater-1", "truth")  # what a report scores against, unless asked for more
REGIONS = {
    "crop": "the voxels of the scan's own grid that the network's crops cover",
    "cord": "those of them that the cord mask holds",
}
_MEANS = ("precision", "recall", "difference_mm3", "prediction_mm3", "lesion_sensitivity", "lesion_precision",
          "lesion_f1", "surface_dice")


@dataclass
class Tally:
    """What adds up over volumes, and so is no column of their table; :func:`score_volumes` fills it.

    Attributes:
        sizes: (method, reference, contrast) -> lesions by size of each volume.
        calibration: (reference, contrast, key of REGIONS) -> the network's reliability.
    """

    sizes: dict[tuple[str, str, str], list[pd.DataFrame]] = field(default_factory=dict)
    calibration: dict[tuple[str, str, str], Reliability] = field(default_factory=dict)

    def add_sizes(self, key: tuple[str, str, str], table: pd.DataFrame) -> None:
        self.sizes.setdefault(key, []).append(table)

    def add_calibration(self, key: tuple[str, str, str], counts: Reliability) -> None:
        self.calibration[key] = self.calibration[key] + counts if key in self.calibration else counts


def score_pair(scan: ScanMasks, reference: np.ndarray, prediction: np.ndarray, *, lesion_rule: str = "any",
               surface: bool = False) -> dict[str, float]:
    """All scores of one prediction against one reference, both flat indices into the scan's own grid.

    Args:
        scan: gives the grid.
        reference, prediction: flat indices.
        lesion_rule: a key of LESION_RULES.
        surface: surface Dice (within 1 mm) and HD95 too, which take longer and need MONAI.
    """
    a, b = boxed_masks(scan.shape, reference, prediction)
    lesions = lesion_scores(a, b, rule=lesion_rule)
    scores = volume_scores(a, b, scan.voxel_volume_mm3).as_dict() | {
        "lesions_reference": lesions.reference_lesions,
        "lesions_prediction": lesions.prediction_lesions,
        "lesion_sensitivity": lesions.sensitivity,
        "lesion_precision": lesions.precision,
        "lesion_f1": lesions.f1,
    }
    if not surface:
        return scores
    if not len(reference) and not len(prediction):
        return scores | {"surface_dice": np.nan, "hd95_mm": np.nan}
    return scores | surface_scores(a, b, scan.voxel_mm).as_dict()


def score_volumes(network: Network, slices: SliceSet, thresholds: Mapping[str, ThresholdBaseline], *,
                  threshold: float = 0.5, lesion_rule: str = "any", surface: bool = False,
                  references: Sequence[str] | None = REFERENCES, tally: Tally | None = None,
                  progress: bool = False, **settings: Any) -> pd.DataFrame:
    """Scores of network and baselines on every volume, against its lesion masks: one row each.

    Args:
        network: scored as method 'network'.
        slices: its volumes are scored.
        thresholds: the threshold baseline of each contrast; one that is missing gives no row.
        threshold: on the network's probability.
        lesion_rule, surface: as for :func:`score_pair`.
        references: the lesion masks to score against, where a volume has them; None: all that it has. Its raters among
            them are scored against the truth too.
        tally: is filled with lesions by size and with the network's calibration.
        progress: show a bar over the volumes.
        **settings: of ``predict_slices``.

    Returns:
        Columns volume, patient, centre, contrast, rater, method, reference, then the scores.
    """
    rows = []
    for name, probability in tqdm(predict_volumes(network, slices, **settings), total=len(slices.volumes),
                                  desc="evaluate", unit="volume", disable=not progress):
        scan, about = slices.scans[name], slices.volumes.loc[name]
        answers = {"network": np.flatnonzero(probability >= threshold)}
        if about["contrast"] in thresholds:
            answers["threshold"] = thresholds[about["contrast"]].predict(scan)
        answers["all-cord"] = all_cord_baseline(scan)
        for method, reference, answer, drawn in _pairs(scan, answers, references):
            row = {"volume": name, **{key: about[key] for key in ("patient", "centre", "contrast", "rater")},
                   "method": method, "reference": reference}
            if drawn is None:
                row["prediction_mm3"] = len(answer) * scan.voxel_volume_mm3
            else:
                row |= score_pair(scan, drawn, answer, lesion_rule=lesion_rule, surface=surface)
                if tally is not None:
                    tally.add_sizes((method, reference, about["contrast"]), lesion_scores_by_size(
                        *boxed_masks(scan.shape, drawn, answer), scan.voxel_volume_mm3, rule=lesion_rule))
            rows.append(row)
        if tally is not None:
            looked = np.flatnonzero(coverage(slices.grid(name)))
            for reference in _references(scan, references):
                counts = _calibration(scan, probability.reshape(-1), looked, reference)
                for region, part in counts.items():
                    tally.add_calibration((reference, about["contrast"], region), part)
    return pd.DataFrame(rows)


def _calibration(scan: ScanMasks, probability: np.ndarray, looked: np.ndarray,
                 reference: str) -> dict[str, Reliability]:
    """Counts in each of REGIONS; ``looked``: flat indices that a crop covers."""
    lesion = np.isin(looked, scan.indices[reference], assume_unique=True)
    cord = np.isin(looked, scan.indices["cord"], assume_unique=True)
    found = np.clip(probability[looked], 0, 1)  # interpolation may leave the range by a rounding
    return {"crop": reliability(found, lesion), "cord": reliability(found, lesion, where=cord)}


def _references(scan: ScanMasks, wanted: Sequence[str] | None) -> list[str]:
    return sorted(name for name in scan.indices if name != "cord" and (wanted is None or name in wanted))


def _pairs(scan: ScanMasks, answers: dict[str, np.ndarray],
           wanted: Sequence[str] | None) -> Iterator[tuple[str, str, np.ndarray, np.ndarray | None]]:
    references = _references(scan, wanted)
    for reference in references:
        for method, answer in answers.items():
            yield method, reference, answer, scan.indices[reference]
    if "truth" in references:
        for rater in references:
            if rater != "truth":
                yield rater, "truth", scan.indices[rater], scan.indices["truth"]
    if set(scan.indices) <= {"cord"}:
        yield "network", UNMARKED, answers["network"], None


def choose_references(slices: SliceSet, references: Sequence[str] | None, mask: str,
                      notes: list[str]) -> tuple[str, ...]:
    """The masks to score against; a volume whose masks are all others gets no row, and that is noted.

    Args:
        slices: what is scored.
        references: what was asked for; None: REFERENCES, and ``mask``, which the run learned from.
        notes: gets the note.

    Raises:
        SettingError: REFERENCE-UNKNOWN.
    """
    drawn = {name: set(scan.indices) - {"cord"} for name, scan in slices.scans.items()}
    known = set().union(*drawn.values())
    if references is None:
        against = tuple(dict.fromkeys([*REFERENCES, mask]))
    else:
        against = tuple(dict.fromkeys([references] if isinstance(references, str) else references))
        for name in against:
            if name not in known:
                raise SettingError("REFERENCE-UNKNOWN", f"no volume has a mask {name!r}", mend=suggest(name, known))
    if left_out := sum(bool(names) and not names & set(against) for names in drawn.values()):
        notes.append(f"{left_out} volumes have none of the masks {', '.join(against)}: not scored")
    return against


def plain_rows(table: pd.DataFrame | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for JSON: what is unknown or infinite is None."""
    rows = table if isinstance(table, list) else table.to_dict("records")
    return [{key: None if isinstance(value, float) and not np.isfinite(value) else value
             for key, value in row.items()} for row in rows]


def _groups(scores: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(reference, contrast, rows), the contrasts one by one and then all together."""
    for reference, of_reference in scores.groupby("reference", sort=True):
        contrasts = sorted(of_reference["contrast"].unique())
        for contrast in contrasts:
            yield reference, contrast, of_reference[of_reference["contrast"] == contrast]
        yield reference, "all", of_reference


def summarise(scores: pd.DataFrame, *, resamples: int = 2000, seed: int = 0, empty_rule: str = "exclude",
              tally: Tally | None = None) -> list[dict[str, Any]]:
    """Mean scores of each method, per contrast and for all, against each reference; unknown values are None.

    ``volumes`` and ``patients`` count those in the mean Dice (under ``empty_rule``, a key of EMPTY_RULES; the Dice of
    each rule is given beside it). ``lesion_free`` volumes have an empty reference; ``both_empty`` of them were left
    empty, and ``false_mm3`` is the mean volume marked in them. ``hd95_mm`` is a mean over the ``hd95_volumes`` where
    both masks hold something; ``hd95_median_mm`` counts the others as infinitely far (None where it is infinite).
    With a tally, rows of the network have ``ece`` and ``brier`` (where crops cover the scan), and ``ece_cord``.
    """
    rows = []
    for reference, contrast, group in _groups(scores):
        for method, part in group.groupby("method", sort=False):
            row = {"name": method, "contrast": contrast, "reference": reference}
            if reference == UNMARKED:
                row |= {"dice": None, "low": None, "high": None, "patients": part["patient"].nunique(), "volumes": 0,
                        "both_empty": int((part["prediction_mm3"] == 0).sum()), "one_empty": 0, "dice_exclude": None,
                        "dice_one": None, "dice_lesion_only": None, "lesion_free": len(part), "false_mm3": None}
            else:
                dice, reference_mm3 = part["dice"].to_numpy(), part["reference_mm3"].to_numpy()
                interval = bootstrap_ci(apply_empty_rule(dice, reference_mm3, empty_rule), part["patient"],
                                        n=resamples, seed=seed)
                free, blank = reference_mm3 == 0, part["prediction_mm3"].to_numpy() == 0
                row |= {"dice": interval.mean, "low": interval.low, "high": interval.high,
                        "patients": interval.patients, "volumes": interval.volumes,
                        "both_empty": int((free & blank).sum()), "one_empty": int((free != blank).sum()),
                        "dice_exclude": _mean(dice),
                        "dice_one": _mean(apply_empty_rule(dice, reference_mm3, "one")),
                        "dice_lesion_only": _mean(apply_empty_rule(dice, reference_mm3, "lesion-only")),
                        "lesion_free": int(free.sum()), "false_mm3": _mean(part["false_mm3"].to_numpy()[free])}
            row |= {key: _mean(part[key].to_numpy(dtype=float)) if key in part else None for key in _MEANS}
            row |= _distances(part) | _calibration_of(tally, method, reference, contrast)
            rows.append(row)
    return plain_rows(rows)


def _distances(part: pd.DataFrame) -> dict[str, float | int | None]:
    if "hd95_mm" not in part:
        return {"hd95_mm": None, "hd95_median_mm": None, "hd95_volumes": None}
    hd95 = part["hd95_mm"].dropna().to_numpy(dtype=float)
    both = hd95[np.isfinite(hd95)]
    # Sorted by hand: a median between a number and infinity is infinite, not undefined.
    middle = np.sort(hd95)[[(len(hd95) - 1) // 2, len(hd95) // 2]].mean() if len(hd95) else np.inf
    return {"hd95_mm": _mean(both), "hd95_median_mm": float(middle) if np.isfinite(middle) else None,
            "hd95_volumes": len(both)}


def _calibration_of(tally: Tally | None, method: str, reference: str, contrast: str) -> dict[str, float | None]:
    empty = dict.fromkeys(("ece", "brier", "ece_cord"))
    if tally is None or method != "network":
        return empty
    found = {region: [counts for (r, c, where), counts in tally.calibration.items()
                      if (r, where) == (reference, region) and contrast in (c, "all")] for region in REGIONS}
    if not found["crop"]:
        return empty
    crop, cord = Reliability.total(found["crop"]), Reliability.total(found["cord"])
    return {"ece": crop.ece, "brier": crop.brier, "ece_cord": cord.ece}


def compare(scores: pd.DataFrame, *, resamples: int = 2000, seed: int = 0,
            empty_rule: str = "exclude") -> list[dict[str, Any]]:
    """Paired difference in Dice of the network and each other method, per contrast and for all."""
    entries = []
    for reference, contrast, group in _groups(scores):
        if reference == UNMARKED:
            continue
        group = group.assign(dice=apply_empty_rule(group["dice"], group["reference_mm3"], empty_rule))
        wide = group.pivot(index="volume", columns="method", values="dice")
        patients = group.drop_duplicates("volume").set_index("volume")["patient"].loc[wide.index]
        for other in [name for name in group["method"].unique() if name != "network"]:
            difference = paired_difference(wide["network"], wide[other], patients, n=resamples, seed=seed)
            entry = {"a": "network", "b": other, "contrast": contrast, "reference": reference, **difference.as_dict(),
                     "statement": f"{contrast}, against {reference}: {difference.statement('network', other)}"}
            entries.append(entry)
    return plain_rows(entries)


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
