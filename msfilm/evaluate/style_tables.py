"""What the scores of styles against raters come to: the confusion matrix, paired differences, volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from msfilm.evaluate.metrics import EMPTY_RULES, apply_empty_rule
from msfilm.evaluate.stats import bootstrap_ci, paired_difference

__all__ = ["MEAN", "PLAIN", "against_plain", "best_style", "confusion", "drawn_volumes", "interval", "read_off",
           "style_differences", "style_volumes"]

MEAN = "mean"  # the style of an unknown rater: the same share of every rater known
PLAIN = "none"  # a network that is told no rater has one style
_KEYS = ["volume", "patient", "own", "rater", "seed"]


def confusion(scores: pd.DataFrame, *, n: int = 2000) -> list[dict[str, Any]]:
    """Mean Dice of each style against each rater and the truth, with its 95 % interval over patients (and seeds).

    Two empty masks are left out, and so not every style is scored on the same volumes: ``dice_lesion_only`` leaves out
    every volume in which this rater drew nothing, whatever the style.

    Args:
        scores: of ``score_styles``; with columns arm and seed where several networks are joined.
        n: resamples.
    """
    groups = scores.groupby(["arm", "style", "rater"] if "arm" in scores else ["style", "rater"], sort=False)
    return [{**dict(zip(groups.keys, key, strict=True)), **interval(part, "dice", n=n), **_other_rules(part)}
            for key, part in groups]


def style_differences(scores: pd.DataFrame, *, n: int = 2000) -> list[dict[str, Any]]:
    """The matching style minus the mean code, and minus the other styles' mean: paired, a rater at a time and all.

    Args:
        scores: of ``score_styles`` of one network, or of several seeds (column seed).
        n: resamples.
    """
    wide, raters = _wide(scores)
    matched = _matched(wide)
    against = ({"mean code": wide[MEAN]} if MEAN in wide else {}) | {"other styles": _others(wide, raters)}
    rows = []
    for rater in ("all", *raters):
        chosen = np.isin(wide.index.get_level_values("rater"), raters if rater == "all" else [rater])
        for name, other in against.items():
            rows.append({"a": "matching style", "b": name, "rater": rater,
                         **_difference(matched[chosen], other[chosen], f"matching style, {_whose(rater)}", name, n)})
    return rows


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """For JSON: five decimals, None for what is not known."""
    return {key: (None if np.isnan(value) else round(value, 5)) if isinstance(value, float) else value
            for key, value in values.items()}


def interval(part: pd.DataFrame, column: str, *, n: int = 2000) -> dict[str, Any]:
    """Mean of a column with its 95 % interval over patients (and seeds), for JSON."""
    found = bootstrap_ci(part[column], part["patient"], n=n, seeds=part["seed"] if "seed" in part else None)
    return _plain({column: found.mean, "low": found.low, "high": found.high, "patients": found.patients,
                   "scores": found.volumes})


def _other_rules(part: pd.DataFrame) -> dict[str, Any]:
    means = {rule: apply_empty_rule(part["dice"], part["reference_mm3"], rule) for rule in EMPTY_RULES}
    return _plain({f"dice_{rule.replace('-', '_')}": float(np.mean(known)) if len(known := all_[~np.isnan(all_)])
                   else float("nan") for rule, all_ in means.items() if rule != "exclude"})


def _difference(a: pd.Series, b: pd.Series, first: str, second: str, n: int = 2000) -> dict[str, Any]:
    found = paired_difference(a, b, a.index.get_level_values("patient"), n=n, seeds=a.index.get_level_values("seed"))
    return _plain({**found.as_dict(), "statement": found.statement(first, second)})


def _whose(rater: str) -> str:
    return {"all": "all raters", "own": "the scan's own rater", "truth": "against the truth"}.get(rater, rater)


def _wide(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Dice with a column a style, a row a volume, rater (not the truth) and seed; and the raters that are styles."""
    scores = scores if "seed" in scores else scores.assign(seed=0)
    raters = sorted((set(scores["style"]) & set(scores["rater"])) - {"truth"})
    scores = scores[scores["rater"].isin(raters)]
    return scores.pivot(index=_KEYS, columns="style", values="dice"), raters


def _matched(wide: pd.DataFrame, by: str = "rater") -> pd.Series:
    """Each row's score under the style of its rater, or of another level of the index."""
    columns = wide.columns.get_indexer(wide.index.get_level_values(by))
    values = np.where(columns >= 0, wide.to_numpy()[np.arange(len(wide)), columns], np.nan)
    return pd.Series(values, wide.index)


def _others(wide: pd.DataFrame, raters: list[str]) -> pd.Series:
    """Each row's mean score under the other raters' styles; NaN where one of them has none."""
    return (wide[raters].sum(axis=1, skipna=False) - _matched(wide)) / max(len(raters) - 1, 1)


def best_style(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """How often the matching style is the best of all (equals share): where the rater drew something, and styles
    differ at all.
    """
    wide, raters = _wide(scores[scores["reference_mm3"] > 0])
    styles = wide[raters]
    styles = styles[styles.max(axis=1) > styles.min(axis=1)]
    is_best = styles.eq(styles.max(axis=1), axis=0)
    share = _matched(is_best.div(is_best.sum(axis=1), axis=0))
    by_seed = wide[raters].groupby(level=["rater", "seed"]).mean()
    rows = []
    for rater in ("all", *raters):
        one = share if rater == "all" else share[share.index.get_level_values("rater") == rater]
        row = {"rater": rater, **interval(one.rename("share").reset_index(), "share"), "chance": 1 / len(raters)}
        if rater != "all":
            winners = by_seed.xs(rater, level="rater").idxmax(axis=1)
            row |= {"best_by_seed": winners.tolist(), "seeds_best": int((winners == rater).sum())}
        rows.append(row)
    return rows


def against_plain(told: pd.DataFrame, plain: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """The matching style and the mean code, minus a plain network: each rater, all, the scan's own, and the truth."""
    wide, raters = _wide(told)
    truth = told[told["rater"] == "truth"].pivot(index=_KEYS, columns="style", values="dice")
    base = plain.set_index(_KEYS)["dice"]
    cells = {rater: wide[wide.index.get_level_values("rater") == rater] for rater in raters}
    cells |= {"all": wide, "own": wide[wide.index.get_level_values("rater") == wide.index.get_level_values("own")],
              "truth": truth}
    rows = []
    for rater, part in cells.items():
        for a, values in (("matching style", _matched(part, "own" if rater == "truth" else "rater")),
                          ("mean code", part[MEAN])):
            if len(part):
                rows.append({"a": a, "b": "plain", "rater": rater,
                             **_difference(values, base.reindex(part.index), f"{a}, {_whose(rater)}", name)})
    return rows


def read_off(scores: pd.DataFrame) -> dict[str, Any]:
    """How much better a network agrees with a scan's own rater than the averages of that rater and that scan say.

    Above 0: the network reads from the image whose scan it is. The raters' averages are taken as known.
    """
    scores = scores[scores["rater"] != "truth"]
    dice = scores["dice"] - scores.groupby(["seed", "rater"])["dice"].transform("mean")
    own = scores["rater"] == scores["own"]
    keys = [scores[key] for key in ("volume", "patient", "seed")]
    wide = pd.DataFrame({"own": dice[own].groupby([key[own] for key in keys]).mean(),
                         "rest": dice[~own].groupby([key[~own] for key in keys]).mean()})
    return interval((wide["own"] - wide["rest"]).rename("dice").reset_index(), "dice")


def style_volumes(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Predicted minus true volume under each style; of all scans, and of those of each own rater."""
    scores = scores[scores["rater"] == "truth"]
    scores = scores.assign(difference_mm3=scores["prediction_mm3"] - scores["reference_mm3"])
    rows = []
    for style, part in scores.groupby("style", sort=False):
        for own in ("all", *sorted(part["own"].unique())):
            chosen = part if own == "all" else part[part["own"] == own]
            rows.append({"style": style, "own": own, "mm3": round(float(chosen["prediction_mm3"].mean()), 2),
                         **interval(chosen, "difference_mm3")})
    return rows


def drawn_volumes(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Drawn minus true volume of each rater."""
    one = scores[(scores["seed"] == scores["seed"].iloc[0]) & (scores["style"] == scores["style"].iloc[0])]
    wide = one.pivot(index=["volume", "patient"], columns="rater", values="reference_mm3")
    return [{"rater": rater, "mm3": round(float(wide[rater].mean()), 2),
             **interval((wide[rater] - wide["truth"]).rename("difference_mm3").reset_index(), "difference_mm3")}
            for rater in wide.columns if rater != "truth"]
