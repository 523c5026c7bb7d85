"""Nine questions and their answers in one table, read from the experiments' results: what was expected, what came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.errors import SettingError, suggest
from msfilm.files import read_json

__all__ = ["EXPERIMENTS", "Answer", "answers", "answers_table", "markdown"]

MARGIN = 0.02   # of equivalence, as everywhere (scores: the 90 % interval within it)
SIGNS = {"+": "above 0", "-": "below 0", "0": f"within ±{MARGIN:g}", "?": "no sign expected"}


@dataclass(frozen=True)
class Answer:
    """One difference in Dice that an experiment was made for.

    Attributes:
        number, question, file: of the experiment.
        what: which difference.
        expected: a key of ``SIGNS``, or a range as '.02..0.12' or '0.2..', as the experiment's file said it before.
        mean, low, high: with its 95 % interval over patients and seeds.
        low90, high90: where equivalence is asked; NaN where only the 95 % interval is known.
        networks, minutes: trained for the experiment, and how long that took, one core each.
    """

    number: int
    question: str
    what: str
    expected: str
    mean: float
    low: float
    high: float
    low90: float
    high90: float
    networks: int
    minutes: float
    file: str

    @property
    def found(self) -> str:
        """'+', '-', '0' (equivalent within the margin) or '?' (nothing shown); a difference goes before a tie."""
        if self.low > 0 or self.high < 0:
            return "+" if self.mean > 0 else "-"
        low, high = (self.low90, self.high90) if np.isfinite(self.low90) else (self.low, self.high)
        return "0" if -MARGIN < low and high < MARGIN else "?"

    @property
    def span(self) -> tuple[float, float]:
        """Where the difference was expected; everywhere, where no sign was."""
        if self.expected in SIGNS:
            return {"+": (0, np.inf), "-": (-np.inf, 0), "0": (-MARGIN, MARGIN), "?": (-np.inf, np.inf)}[self.expected]
        low, high = self.expected.split("..")
        return float(low or -np.inf), float(high or np.inf)

    @property
    def said(self) -> str:
        """What was expected, in words."""
        if self.expected in SIGNS:
            return SIGNS[self.expected]
        low, high = self.span
        return (f"above {low:g}" if np.isinf(high) else f"below {high:g}" if np.isinf(low)
                else f"{low:+g} to {high:+g}")

    @property
    def verdict(self) -> str:
        """In words: whether it came as expected."""
        if self.expected not in SIGNS and self.found != "?":
            low, high = self.span
            if self.high < low:
                return "less than expected"
            if self.low > high:
                return "more than expected"
            return "as expected" if low <= self.mean <= high else "the sign as expected, the size open"
        if self.found == "?":
            return "nothing shown"
        if self.expected == "?":
            return {"+": "above 0", "-": "below 0", "0": "a tie"}[self.found]
        if self.found == self.expected or (self.expected == "0" and self._inside()):
            return "as expected"
        if self.found == "0":
            return "a tie instead"
        return "a difference instead of a tie" if self.expected == "0" else "the opposite"

    def _inside(self) -> bool:
        low, high = (self.low90, self.high90) if np.isfinite(self.low90) else (self.low, self.high)
        return bool(-MARGIN < low and high < MARGIN)


Found = tuple[str, str, dict[str, Any]]   # what, expected sign, entry with mean, low95, high95 (and low90, high90)


def _pairs(*wanted: tuple[str, str, str, str, str]) -> Callable[[dict[str, Any]], Iterator[Found]]:
    """Paired differences of two arms: (what, expected, a, b, reference), all contrasts together."""

    def find(content: dict[str, Any]) -> Iterator[Found]:
        for what, expected, a, b, reference in wanted:
            entry = next((one for one in content["differences"] if (one["a"], one["b"]) == (a, b)
                          and (one["contrast"], one["reference"]) == ("all", reference)), None)
            if entry is None:
                raise SettingError("ANSWERS-MISSING", f"no difference {a} - {b} against {reference}",
                                   mend=suggest(a, {one["a"] for one in content["differences"]}))
            yield f"{what}, against {'the truth' if reference == 'truth' else 'the rater'}", expected, entry

    return find


def _ceilings(content: dict[str, Any]) -> Iterator[Found]:
    gaps = {(one["spread"], one["a"], one["b"]): one for one in content["gaps"]}
    for spread, expected in ((0.0, "+"), (1.0, ".02..0.12"), (2.2, "+")):
        yield (f"best possible mask − network, against a rater; spread {spread:g}", expected,
               gaps[spread, "expected", "network"])
    for spread in (1.0, 2.2):
        yield (f"network against the truth − against a rater; spread {spread:g}", "+",
               gaps[spread, "network, truth", "network"])


def _new_contrast(content: dict[str, Any]) -> Iterator[Found]:
    for entry in content["new_contrast_differences"]:
        if entry["reference"] == "rater-1" and entry["headline"]:
            yield f"{entry['held_out']}: {entry['a']} − {entry['b']}", entry["expected"], entry


def _leakage(content: dict[str, Any]) -> Iterator[Found]:
    for row in content["paired"]:
        yield "split by slice − by patient, beyond what new patients show", ".01..0.03", _as_entry(row, "leak")
    for row in content["centres"][-1:]:
        what = f"without a centre − with it, on its patients ({row['centre']})"
        yield what, "-0.03..0", _as_entry(row, "difference", "")


def _as_entry(row: dict[str, Any], mean: str, prefix: str | None = None) -> dict[str, Any]:
    start = f"{mean}_" if prefix is None else prefix
    return {"mean": row[mean], "low95": row[f"{start}low"], "high95": row[f"{start}high"]}


def _styles(content: dict[str, Any]) -> Iterator[Found]:
    for row in content["styles"]:
        if row["rater"] == "all" and row["b"] == "mean code":
            yield f"told whose style − mean code ({row['arm']})", "+" if "crossed" in row["arm"] else "?", row
    for kind, expected in (("crossed", ".02..0.06"), ("nested", "0")):
        yield from _pairs((f"told the rater − not told, {kind}", expected, f"rater, {kind}", f"none, {kind}",
                           "rater-1"))(content)


# number -> question, result's name, which differences answer it
EXPERIMENTS: dict[int, tuple[str, str, Callable[[dict[str, Any]], Iterator[Found]]]] = {
    1: ("Do the raters set the limit?", "ceiling-nested", _ceilings),
    2: ("Whose label teaches best?", "whose-label", _pairs(
        ("truth − centre's rater", ".02..0.06", "truth", "rater-1", "truth"),
        ("STAPLE − centre's rater", "0..0.03", "staple", "rater-1", "truth"),
        ("mean of raters − centre's rater", "0..0.02", "mean-rater", "rater-1", "truth"),
        ("random rater − centre's rater", "0..0.02", "random-rater", "rater-1", "truth"),
        ("truth − centre's rater", "0", "truth", "rater-1", "rater-1"))),
    3: ("Where does FiLM win, where does it tie?", "polarity", _pairs(
        ("FiLM − plain: polarity unknowable", "0.2..", "FiLM, decoys", "plain, decoys", "rater-1"),
        ("FiLM − plain: polarity in the image", "0", "FiLM, no decoys", "plain, no decoys", "rater-1"),
        ("FiLM − plain: few labels", "?", "FiLM, few labels", "plain, few labels", "rater-1"),
        ("FiLM − plain: labels missing in one contrast", "-", "FiLM, missing labels", "plain, missing labels",
         "rater-1"))),
    4: ("How large is the confound of frozen augmentation?", "frozen-augmentation", _pairs(
        ("live − frozen, U-Net", "+", "plain, live", "plain, frozen", "rater-1"),
        ("live − frozen, FiLM", "+", "FiLM, live", "FiLM, frozen", "rater-1"),
        ("FiLM frozen − U-Net live, as earlier code compared", "-", "FiLM, frozen", "plain, live", "rater-1"),
        ("FiLM live − U-Net live", "0", "FiLM, live", "plain, live", "rater-1"))),
    5: ("What of FiLM matters?", "inside-film", _pairs(
        ("sigmoid − 1 + dγ, both at full rate", "-", "sigmoid, full rate", "full rate", "rater-1"),
        ("generator at full rate − at a tenth", "?", "full rate", "FiLM", "rater-1"),
        ("before − after the ReLU", "0", "before ReLU", "FiLM", "rater-1"),
        ("z as input channels − FiLM", "0", "input channels", "FiLM", "rater-1"),
        ("generator of width 8 − 64", "0", "width 8", "FiLM", "rater-1"),
        ("weight decay .01 − none", "-", "weight decay .01", "FiLM", "rater-1"),
        ("first layer off − all on", "0", "without down1", "FiLM", "rater-1"),
        ("last layer off − all on", "0", "without logits", "FiLM", "rater-1"))),
    6: ("Acquisition parameters or contrast as z?", "acquisition", _pairs(
        ("parameters − contrast, many protocols", "0", "acquisition, many protocols", "contrast, many protocols",
         "rater-1"),
        ("parameters − contrast, trained on one protocol", "..-0.02", "acquisition, one protocol",
         "contrast, one protocol", "rater-1"),
        ("contrast − plain, many protocols", "0", "contrast, many protocols", "none, many protocols", "rater-1"))),
    7: ("What to do with a contrast never seen?", "new-contrast", _new_contrast),
    8: ("What do leakage and new centres cost?", "leakage", _leakage),
    9: ("Can a rater's style be chosen?", "rater-identity", _styles),
}


def answers(folder: str | Path, numbers: tuple[int, ...] = tuple(EXPERIMENTS)) -> list[Answer]:
    """Every difference that the experiments were made for, in their order.

    Args:
        folder: with the results, NAME.json each.
        numbers: of EXPERIMENTS.

    Raises:
        InputError: a result is missing or broken; SettingError: ANSWERS-MISSING, a result lacks a comparison.
    """
    found = []
    for number in numbers:
        question, name, find = EXPERIMENTS[number]
        content = read_json(Path(folder) / f"{name}.json")
        for what, expected, entry in find(content):
            values = [float("nan") if entry.get(key) is None else float(entry[key])
                      for key in ("mean", "low95", "high95", "low90", "high90")]
            found.append(Answer(number, question, what, expected, *values, len(content["tried"]),
                                content["train_seconds"] / 60, f"{name}.json"))
    return found


def answers_table(found: list[Answer]) -> pd.DataFrame:
    """For reading: a row a difference."""
    return pd.DataFrame([{
        "": one.number, "question": one.question, "difference in Dice": one.what, "expected": one.said,
        "found (95 %)": f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})", "so": one.verdict,
        "budget": f"{one.networks} networks, {one.minutes:.0f} min", "file": one.file} for one in found])


def markdown(found: list[Answer]) -> str:
    """The table for a README; a question is written once."""
    table = answers_table(found)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    before = None
    for row in table.to_dict("records"):
        number = row[""]
        if number == before:
            row |= {"": "", "question": "", "budget": "", "file": ""}
        else:
            row["file"] = f"[{row['file']}](results/{row['file']})"
        before = number
        lines.append("| " + " | ".join(str(value).replace("|", "\\|") for value in row.values()) + " |")
    return "\n".join(lines) + "\n"
