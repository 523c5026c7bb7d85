"""The notebooks as stored: laws that each file keeps, and outputs that come out again."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from notebook_files import NOTEBOOKS, ROOT, code_cells, every_notebook, numbered, read, tagged

EXACT = ("00", "05", "08", "09")  # their stored numbers must come out again
MAX_BYTES = 1_500_000
MIN_ALT = 16


def _html(cell) -> str:
    """What the cell shows as HTML."""
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


def test_there_are_notebooks_and_the_first_lists_them_all():
    first = "".join(cell.source for cell in read(numbered("00")).cells if cell.cell_type == "markdown")
    for source in NOTEBOOKS[1:]:
        assert f"({source.name})" in first, f"00 does not link {source.name}"


@every_notebook
def test_parameters_are_commented_literals_checked_in_the_next_code_cell(source):
    notebook = read(source)
    codes = code_cells(notebook)
    assert "parameters" in codes[0].metadata.get("tags", ()), "the first code cell is tagged 'parameters'"
    tree = ast.parse(codes[0].source)
    names = []
    for statement in tree.body:
        assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        ast.literal_eval(statement.value)  # raises for anything but a literal
        names.append(statement.targets[0].id)
        line = codes[0].source.splitlines()[statement.lineno - 1]
        assert "#" in line, f"no comment: {line}"
    assert {"PROFILE", "DATA_DIR"} <= set(names) and all(name.isupper() for name in names)

    body = ast.parse(codes[1].source).body
    calls = [
        statement.value
        for statement in body
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == "check_parameters"
    ]
    assert len(calls) == 1, "the second code cell calls check_parameters(globals(), ...) once"
    assert ast.unparse(calls[0].args[0]) == "globals()"
    assert sorted(keyword.arg for keyword in calls[0].keywords) == sorted(names)
    earlier = [ast.unparse(s) for s in body if isinstance(s, ast.Assign) and s.lineno < calls[0].lineno]
    assert not earlier, f"set before the check, which takes them for parameters: {earlier}"


@every_notebook
def test_a_stored_notebook_is_whole_small_and_anonymous(source):
    text = source.read_text(encoding="utf-8")
    notebook = read(source)
    nbformat.validate(notebook)
    assert len(text.encode()) < MAX_BYTES
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code_cells(notebook):
        assert cell.execution_count, f"not executed, and nbval would pass it over: {cell.source[:60]}"
        assert not any(output.output_type == "error" for output in cell.outputs), f"stored error: {cell.source[:60]}"
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert not any("widget" in kind for kind in kinds), "a widget: JupyterLab would say 'model not found'"
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|private|mnt)/|[A-Z]:\\\\", words), "a path of a machine"
    assert not re.search(r"\b(TIME|MEM)_\d\d\b", words), "time and memory are not filled in"


@every_notebook
def test_every_picture_says_what_it_shows(source):
    for cell in code_cells(read(source)):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert not any(kind.startswith("image/") for kind in kinds), "a picture without alt text: use show(figure, alt)"
        for tag in re.findall(r"<img[^>]*>", _html(cell)):
            alt = re.search(r'alt="([^"]*)"', tag)
            assert alt and len(alt[1]) >= MIN_ALT, tag[:80]


@every_notebook
def test_links_between_notebooks_lead_somewhere(source):
    text = "".join(cell.source for cell in read(source).cells if cell.cell_type == "markdown")
    targets = [target for target in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in target]
    assert targets and all((source.parent / target).exists() for target in targets), targets


@every_notebook
def test_every_exercise_has_a_check_and_a_solution_below(source):
    notebook = read(source)
    exercises, solutions = tagged(notebook, "exercise-"), tagged(notebook, "solution-")
    assert len(exercises) >= 2
    assert [tag.split("-")[1] for tag in exercises] == [tag.split("-")[1] for tag in solutions]
    for (tag, cell), solution in zip(exercises.items(), solutions.values(), strict=True):
        assert notebook.cells.index(solution) == notebook.cells.index(cell) + 1, tag
        assert cell.source.count("# check\n") == 1 and "check_exercise(" in cell.source.split("# check\n")[1], tag
        assert solution.source.startswith("<details>") and solution.source.rstrip().endswith("</details>"), tag
        assert solution.source.count("```python\n") == 1, tag


def _shell(*arguments, cwd, **more) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "code", "right"),
    [
        ("EPOCSH", "3", "PARAM-UNKNOWN", "did you mean 'EPOCHS'"),
        ("CONDITIONING", "contarst", "PARAM-VALUE", "did you mean 'contrast'"),
    ],
)
def test_plain_papermill_stops_at_a_misspelt_name_and_at_a_wrong_value(name, value, code, right, tmp_path):
    ran = _shell(
        "-m", "papermill", "--no-progress-bar", numbered("06"), "out.ipynb", "-p", name, value, cwd=tmp_path
    )
    assert ran.returncode != 0
    assert code in ran.stderr and right in ran.stderr and repr(value if code == "PARAM-VALUE" else name) in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ipynb"], "nothing was begun"


@pytest.mark.parametrize("number", EXACT)
def test_stored_outputs_come_out_again(number, tmp_path):
    source = numbered(number)
    shutil.copy(source, tmp_path)
    ran = _shell(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--nbval", "--nbval-current-env",
        "--nbval-sanitize-with", ROOT / "tests" / "nbval_sanitize.cfg", source.name,
        cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert re.search(r"\d{2,} passed", ran.stdout) and "failed" not in ran.stdout
