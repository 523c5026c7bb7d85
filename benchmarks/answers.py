"""Write ANSWERS.md, the table of what the nine experiments found, from their stored results."""

from __future__ import annotations

from pathlib import Path

from msfilm.evaluate.answers import answers, markdown

HERE = Path(__file__).parent
HEAD = """# Nine questions

Each was written down with the answer that was expected, and every setting, before its first run
([experiments](experiments)). Two were amended after a start: inside-film was begun anew with more patients, after nine
trainings with a validation Dice below .2, and whose-label was scored on healthy scans too. Each answer
is a difference in Dice of a volume between networks tested on the same 200
phantom patients of another cohort, three seeds each, with a 95 % interval over patients and seeds. "A tie" is a 90 %
interval within ±.02. `python benchmarks/answers.py` writes this table from [results](results); minutes are the sum
over the trainings, one core each, on a machine of 2 cores with other work beside them. Each file has more: by contrast,
against rater and truth, calibration, every network that was trained.

"""

if __name__ == "__main__":
    found = answers(HERE / "results")
    (HERE / "ANSWERS.md").write_text(HEAD + markdown(found), encoding="utf-8")
    print(markdown(found))
