"""The checks that notebooks make of their own parameters and exercises."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from msfilm.errors import SettingError
from msfilm.nbcheck import check_exercise, check_parameters

RULES = {
    "PROFILE": ("quick", "course", "paper"),
    "EPOCHS": (int | None, range(1, 1001)),
    "LR": (float, (1e-6, 1.0)),
    "DATA_DIR": str,
    "SIZE": (int, lambda value: value % 2 == 0),
    "CONDITIONING": ("none", "contrast", None),
}
GOOD = {"PROFILE": "quick", "EPOCHS": 3, "LR": 1e-3, "DATA_DIR": "data", "SIZE": 48, "CONDITIONING": None}


def _refused(**changes):
    with pytest.raises(SettingError) as caught:
        check_parameters({**GOOD, **changes}, **RULES)
    return str(caught.value)


def test_right_values_pass_beside_what_a_kernel_always_holds():
    kernel = {
        "In": [""],
        "Out": {},
        "exit": None,
        "quit": None,
        "_oh": {},
        "__name__": "__main__",
        "sys": sys,
        "get_ipython": len,
        "SettingError": SettingError,
    }
    check_parameters({**GOOD, **kernel}, **RULES)
    check_parameters({**GOOD, "EPOCHS": None, "LR": 1}, **RULES)


def test_a_misspelt_name_names_the_right_one():
    assert "[PARAM-UNKNOWN]" in _refused(EPOCSH=3) and "did you mean 'EPOCHS'" in _refused(EPOCSH=3)
    assert "did you mean 'EPOCHS'" in _refused(epochs=3)
    assert "use one of: CONDITIONING" in _refused(zzz=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PROFILE": "quik"}, "did you mean 'quick'"),
        ({"PROFILE": 3}, "'quick', 'course', 'paper'"),
        ({"EPOCHS": 0}, "allowed: 1 to 1000"),
        ({"EPOCHS": "3"}, "give int or None"),
        ({"EPOCHS": True}, "give int or None"),
        ({"EPOCHS": 3.0}, "give int or None"),
        ({"LR": 2.0}, "allowed: 1e-06 to 1.0"),
        ({"LR": float("nan")}, "allowed:"),
        ({"DATA_DIR": None}, "give str"),
        ({"SIZE": 47}, "out of bounds"),
        ({"CONDITIONING": "contrasts"}, "'contrast'"),
    ],
)
def test_a_wrong_value_names_what_is_allowed(changes, said):
    message = _refused(**changes)
    assert "[PARAM-VALUE]" in message and said in message and next(iter(changes)) in message


def test_a_missing_value_is_named():
    with pytest.raises(SettingError, match="PARAM-MISSING.*'SIZE'"):
        check_parameters({name: value for name, value in GOOD.items() if name != "SIZE"}, **RULES)


def test_the_cell_can_be_run_again_after_later_cells():
    namespace = dict(GOOD)
    check_parameters(namespace, **RULES)
    namespace["n_slices"] = 5
    check_parameters(namespace, **RULES)
    namespace["EPOCSH"] = 5
    with pytest.raises(SettingError, match="EPOCHS"):
        check_parameters(namespace, **RULES)


def test_papermill_by_hand_stops_at_a_misspelt_parameter(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("EPOCHS = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from msfilm.nbcheck import check_parameters\n"
            "check_parameters(globals(), EPOCHS=(int, range(1, 10)))\nprint('fine')"
        ),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nbformat.write(notebook, tmp_path / "nb.ipynb")

    def run(*parameters):
        return subprocess.run(
            [sys.executable, "-m", "papermill", "nb.ipynb", "out.ipynb", "--no-progress-bar", *parameters],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    wrong = run("-p", "EPOCSH", "3")
    assert wrong.returncode != 0 and "did you mean 'EPOCHS'" in wrong.stderr
    assert run("-p", "EPOCHS", "3").returncode == 0


def test_an_exercise_says_right_or_teaches(capsys):
    assert check_exercise("Exercise 1", 1 + 1 == 2, "add them") is None, "a cell would show it below the verdict"
    assert capsys.readouterr().out == "Exercise 1: right\n"
    for stub in (None, ..., False, lambda: None):
        check_exercise("Exercise 1", stub, "add them")
        assert capsys.readouterr().out == "Exercise 1: not yet: add them\n"
    check_exercise("Exercise 1", lambda: 1 / 0, "add them")
    assert "add them (your attempt raised ZeroDivisionError" in capsys.readouterr().out
