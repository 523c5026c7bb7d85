"""The table of answers: which interval means what, and that it is read from the results as they are stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from msfilm.errors import MsfilmError
from msfilm.evaluate.answers import EXPERIMENTS, Answer, answers, answers_table, markdown
from msfilm.places import shipped
from msfilm.view.forest import forest

NAN = float("nan")


def an(expected: str, mean: float, low: float, high: float, low90: float = NAN, high90: float = NAN) -> Answer:
    return Answer(3, "Where?", "a − b", expected, mean, low, high, low90, high90, 6, 12.4, "polarity.json")


@pytest.mark.parametrize("answer, found, verdict", [
    (an("+", 0.10, 0.05, 0.15), "+", "as expected"),
    (an("-", 0.10, 0.05, 0.15), "+", "the opposite"),
    (an("0", 0.10, 0.05, 0.15), "+", "a difference instead of a tie"),
    (an("0", 0.01, 0.002, 0.018, 0.003, 0.017), "+", "as expected"),      # shown, but within the margin
    (an("0", 0.00, -0.021, 0.021, -0.018, 0.018), "0", "as expected"),    # the 90 % interval decides
    (an("0", 0.00, -0.021, 0.021), "?", "nothing shown"),                 # without one the 95 % does
    (an("+", 0.00, -0.01, 0.01), "0", "a tie instead"),
    (an("?", -0.05, -0.06, -0.04), "-", "below 0"),
    (an("+", 0.03, -0.01, 0.07, 0.0, 0.06), "?", "nothing shown"),
    (an("+", NAN, NAN, NAN), "?", "nothing shown"),
    (an(".02..0.12", 0.31, 0.25, 0.37), "+", "more than expected"),
    (an("0.2..", 0.12, 0.05, 0.25), "+", "the sign as expected, the size open"),   # .2 is not excluded
    (an("0.2..", 0.12, 0.05, 0.15), "+", "less than expected"),
    (an("-0.03..0", 0.0, -0.01, 0.01), "0", "as expected"),
    (an("0..0.02", 0.02, -0.01, 0.05), "?", "nothing shown"),
])
def test_an_interval_means_what_it_says(answer, found, verdict):
    assert (answer.found, answer.verdict) == (found, verdict)


def test_answers_come_from_the_stored_comparison(tmp_path):
    entry = {"a": "FiLM, decoys", "b": "plain, decoys", "contrast": "all", "reference": "rater-1", "mean": 0.2,
             "low95": 0.1, "high95": 0.3, "low90": 0.12, "high90": 0.28}
    pairs = ["no decoys", "few labels", "missing labels"]
    others = [entry | {"a": f"FiLM, {kind}", "b": f"plain, {kind}", "mean": 0.0} for kind in pairs]
    wrong = [entry | {"contrast": "dark", "mean": 9.0}, entry | {"reference": "truth", "mean": 9.0}]
    content = {"differences": [*wrong, entry, *others], "tried": [{}] * 24, "train_seconds": 600.0}
    (tmp_path / "polarity.json").write_text(json.dumps(content))
    found = answers(tmp_path, (3,))
    assert [one.mean for one in found] == [0.2, 0.0, 0.0, 0.0] and found[0].networks == 24
    text = markdown(found)
    assert text.count("\n") == 6 and "| 24 networks, 10 min |" in text and text.count("polarity.json") == 2
    assert answers_table(found)["so"].iloc[0] == "as expected"
    content["differences"] = wrong
    (tmp_path / "polarity.json").write_text(json.dumps(content))
    with pytest.raises(MsfilmError, match="ANSWERS-MISSING"):
        answers(tmp_path, (3,))


def test_every_stored_result_is_answered_and_the_table_is_up_to_date():
    folder = shipped("results")
    found = answers(folder)
    assert {one.number for one in found} == set(EXPERIMENTS) == set(range(1, 10))
    assert all(np.isfinite([one.mean, one.low, one.high]).all() and one.low <= one.mean <= one.high for one in found)
    stored = (folder.parent / "ANSWERS.md").read_text(encoding="utf-8")
    assert markdown(found) in stored


def test_the_picture_has_a_line_for_each_difference():
    figure = forest([an("+", 0.1, 0.05, 0.15), an("0", 0.4, 0.3, 0.5), an("?", NAN, NAN, NAN)])
    (ax,) = figure.axes
    assert [one.get_text() for one in ax.get_yticklabels()] == ["a − b"] * 3
    assert any("+0.40 (+0.30 to +0.50)" in one.get_text() for one in ax.texts)   # beyond the edge: said in numbers
