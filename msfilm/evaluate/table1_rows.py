"""From the scores of many networks on the same patients to the table's rows, and to what may be said of differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from msfilm.evaluate.agreement import Agreement
from msfilm.evaluate.metrics import EMPTY_RULES, apply_empty_rule
from msfilm.evaluate.reliability import Reliability
from msfilm.evaluate.stats import bootstrap_ci, paired_difference
from msfilm.evaluate.table1_plan import Row

__all__ = ["agreement_entry", "difference", "differences", "table"]

_RESAMPLES = 2000


def table(scores: pd.DataFrame, calibration: Mapping[tuple[str, str], Sequence[Reliability]],
          false: Mapping[str, Sequence[Mapping[str, float] | None]],
          settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, contrast (and all together) and reference; unknown values are None.

    Args:
        scores: a row a volume, method, seed and reference, with the columns of ``score_pair``.
        calibration: (method, reference) -> one count a seed.
        false: method -> mm3 on each healthy real scan, one mapping a seed (None: no scans at hand).
        settings: method -> what else its row says.
    """
    rows = []
    for (method, reference), group in scores.groupby(["method", "reference"], sort=False):
        for contrast, part in _contrasts(group):
            interval = bootstrap_ci(part["dice"], part["patient"], n=_RESAMPLES, seeds=part["seed"])
            dice, free = part["dice"].to_numpy(), part["reference_mm3"].to_numpy() == 0
            by_seed = part.groupby("seed")["dice"].mean()
            row = {"name": method, "contrast": contrast, "reference": reference, "dice": interval.mean,
                   "low": interval.low, "high": interval.high, "ci": [interval.low, interval.high],
                   "seeds": int(part["seed"].nunique()), "dice_by_seed": [round(float(x), 4) for x in by_seed],
                   "patients": interval.patients, "volumes": int(part.loc[part["dice"].notna(), "volume"].nunique()),
                   "lesion_free": int(part.loc[free, "volume"].nunique()),
                   "left_empty": _mean((part["prediction_mm3"].to_numpy() == 0)[free]),
                   "false_mm3_lesion_free": _mean(part["false_mm3"].to_numpy()[free])}
            row |= {f"dice_{rule.replace('-', '_')}":
                    _mean(apply_empty_rule(dice, part["reference_mm3"].to_numpy(), rule))
                    for rule in EMPTY_RULES if rule != "exclude"}
            row |= {key: _mean(part[key].to_numpy(dtype=float)) for key in
                    ("precision", "recall", "lesion_sensitivity", "lesion_precision", "lesion_f1", "difference_mm3")}
            if contrast == "all" and (counts := calibration.get((method, reference))):
                row |= {"ece_cord": _mean([one.ece for one in counts]),
                        "brier_cord": _mean([one.brier for one in counts]),
                        "reliability": Reliability.total(counts).as_dict()}
            if contrast == "all":
                row["healthy_false_mm3"] = _healthy(false.get(method))
                row |= settings.get(method, {})
            rows.append({key: None if isinstance(value, float) and np.isnan(value) else value
                         for key, value in row.items()})
    return rows


def differences(scores: pd.DataFrame, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Paired differences on the same volumes and seeds: FiLMed minus plain on all contrasts, per contrast and under
    each rule for empty masks; and what training on all contrasts changes against training on one."""
    filmed, plain, singles = rows[-1].name, rows[-2].name, [row for row in rows if len(row.contrasts) == 1]
    entries = []
    for reference in scores["reference"].unique():
        part = scores[scores["reference"] == reference]
        for rule in EMPTY_RULES:
            for contrast in (*sorted(part["contrast"].unique()), "all"):
                if rule == "exclude" or contrast == "all":
                    entries.append(difference(part, filmed, plain, contrast, reference, rule))
        entries += [difference(part, other, row.name, row.contrasts[0], reference, "exclude")
                    for row in singles for other in (plain, filmed)]
    return entries


def difference(scores: pd.DataFrame, a: str, b: str, contrast: str, reference: str, rule: str) -> dict[str, Any]:
    """Method a minus method b, paired by volume and seed; on one contrast or 'all', under a rule for empty masks."""
    scores = scores[scores["reference"] == reference]
    if contrast != "all":
        scores = scores[scores["contrast"] == contrast]
    first, second = (scores[scores["method"] == name].set_index(["volume", "seed"]) for name in (a, b))
    index = first.index.intersection(second.index)
    first, second = first.loc[index], second.loc[index]
    dice = [apply_empty_rule(one["dice"], one["reference_mm3"], rule) for one in (first, second)]
    found = paired_difference(*dice, first["patient"], n=_RESAMPLES, seeds=index.get_level_values("seed"))
    entry = {"a": a, "b": b, "contrast": contrast, "reference": reference, "rule": rule, **found.as_dict(),
             "statement": f"{contrast}, against {reference}" + ("" if rule == "exclude" else f", rule '{rule}'")
             + f": {found.statement(a, b)}"}
    return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in entry.items()}


def agreement_entry(agreement: Agreement) -> dict[str, Any]:
    """Raters with each other, with the truth and with the consensus of the others; 95 % over patients."""
    entry = {}
    for comparison in agreement.scores["comparison"].unique():
        row = agreement.row(comparison)
        entry[comparison] = {"dice": float(row["dice"]), "ci": [float(row["low"]), float(row["high"])],
                             "patients": int(row["patients"]), "volumes": int(row["volumes"])}
    return entry


def _contrasts(group: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield from group.groupby("contrast", sort=True)
    yield "all", group


def _healthy(marked: Sequence[Mapping[str, float] | None] | None) -> dict[str, dict[str, float]] | None:
    """Contrast -> mean, lowest and highest mm3 over the seeds."""
    known = [one for one in marked or () if one is not None]
    if not known:
        return None
    return {contrast: {"mean": float(np.mean([one[contrast] for one in known])),
                       "low": float(min(one[contrast] for one in known)),
                       "high": float(max(one[contrast] for one in known))} for contrast in known[0]}


def _mean(values: Any) -> float | None:
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
