"""The notebooks at work: each runs with profile quick, and its exercises are told apart, stub and solution."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from notebook_files import ROOT, code_cells, every_notebook, numbered, printed, read, tagged

from msfilm.notebook import Execution, execute


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """Folder in which all notebooks run, so that the phantom is made once."""
    return tmp_path_factory.mktemp("a course é")


def _with_solutions(source: Path) -> nbformat.NotebookNode:
    """The notebook with, after each exercise's stub, the same cell solved: both ways in one run."""
    notebook = read(source)
    solutions = tagged(notebook, "solution-")
    for tag, cell in tagged(notebook, "exercise-").items():
        number = tag.removeprefix("exercise-")
        code = re.search(r"```python\n(.*?)```", solutions[f"solution-{number}"].source, re.DOTALL)[1]
        solved = nbformat.v4.new_code_cell(
            code + "# check\n" + cell.source.split("# check\n")[1],
            id=f"solved-{number}",
            metadata={"tags": [f"solved-{number}"]},
        )
        notebook.cells.insert(notebook.cells.index(cell) + 1, solved)
    return notebook


Run = Callable[..., tuple[Execution, nbformat.NotebookNode]]


@pytest.fixture(scope="session")
def run(workshop) -> Run:
    """Execute a notebook with its solutions beside its stubs; each (notebook, parameters) once."""
    done: dict[str, tuple[Execution, nbformat.NotebookNode]] = {}

    def once(source: Path, name: str | None = None, **parameters):
        name = name or source.stem
        if name not in done:
            solved = workshop / "solved" / f"{name}.ipynb"
            solved.parent.mkdir(exist_ok=True)
            nbformat.write(_with_solutions(source), solved)
            known = {"PROFILE": "quick", "DATA_DIR": "data"}
            if "RUN_DIR" in code_cells(read(source))[0].source:
                known["RUN_DIR"] = "runs"
            executed = workshop / "executed" / f"{name}.ipynb"
            how = execute(solved, executed, known | parameters, cwd=workshop, timeout_s=300, progress=False)
            done[name] = how, read(executed)
        return done[name]

    return once


def _judged(notebook, start: str) -> dict[str, list[str]]:
    """Tag -> the lines in which check_exercise spoke."""
    return {
        tag: re.findall(r"^Exercise \d+: (right|not yet)\b", printed(cell), re.MULTILINE)
        for tag, cell in tagged(notebook, start).items()
    }


def _assert_both_ways(notebook) -> None:
    for tag, said in _judged(notebook, "exercise-").items():
        assert said and set(said) == {"not yet"}, f"{tag}: the untouched stub says {said}"
    for tag, said in _judged(notebook, "solved-").items():
        assert said and set(said) == {"right"}, f"{tag}: the solution says {said}"


@every_notebook
def test_it_runs_with_profile_quick(source, run):
    how, notebook = run(source)
    assert not how.error
    assert how.peak_mb < 2000
    assert all(cell.execution_count for cell in code_cells(notebook))


@every_notebook
def test_a_stub_is_told_not_yet_and_its_solution_right(source, run):
    _assert_both_ways(run(source)[1])


def test_without_the_public_patient_a_phantom_stands_in(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MSFILM_MIRROR", str(tmp_path))  # a mirror that holds nothing: the network is not asked
    how, notebook = run(numbered("13"), "13_without_network")
    text = "".join(printed(cell) for cell in code_cells(notebook))
    assert not how.error
    assert "A PHANTOM PATIENT STANDS IN" in text and "Dice with the truth" in text and "there is no table" in text
    _assert_both_ways(notebook)


@pytest.mark.parametrize("place", ["CORD", "CENTRELINE"])
def test_a_scan_of_ones_own(run, mirror, place, tmp_path):
    healthy, patient = mirror / "sct_testing_data/t2", mirror / "sct_tutorial_data/single_subject/data/t2_ms"
    if place == "CORD":
        given = {"IMAGE": str(healthy / "t2.nii.gz"), "CORD": str(healthy / "t2_seg-manual.nii.gz")}
    else:
        centreline = ROOT / "data_manifests" / "centrelines" / "t2_ms.csv"
        given = {"IMAGE": str(patient / "t2.nii.gz"), "CENTRELINE": str(centreline)}
    how, notebook = run(numbered("13"), f"13_own_{place}", DATA_DIR=str(tmp_path), **given)
    text = "".join(printed(cell) for cell in code_cells(notebook))
    assert not how.error
    assert "your scan: " in text and "the draft" not in text and "public patient" not in text
    assert (tmp_path / "segmented" / "t2_label-lesion_mask.nii.gz").is_file()
    assert "same grid as the scan: True" in text
    _assert_both_ways(notebook)


def test_a_network_that_is_told_nothing_is_not_compared_with_itself(run, mirror, tmp_path):
    how, notebook = run(numbered("13"), "13_told_nothing", NETWORK="unet-small", DATA_DIR=str(tmp_path))
    text = "".join(printed(cell) for cell in code_cells(notebook))
    assert not how.error
    assert "told nothing about the scan's contrast" in text and "unet-small (not told)" in text
    assert "told T2star" not in text and "told the other" not in text
    _assert_both_ways(notebook)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"NETWORK": "unet-smal"}, "NETWORK-UNKNOWN.*did you mean 'unet-small'.*known: (?!.*cord-localiser)"),
        ({"NETWORK": "cord-localiser"}, "NETWORK-KIND.*finds the cord"),
        ({"IMAGE": "."}, "NIFTI-MISSING.*a folder, not one scan"),
        ({"IMAGE": "no such.nii.gz"}, "NIFTI-MISSING.*no such file"),
    ],
    ids=["mistyped", "localiser", "folder", "missing"],
)
def test_what_it_cannot_take_is_refused_by_name(run, tmp_path, given, said):
    how, _ = run(numbered("13"), f"13_{'_'.join(given.values())}".replace(".", ""), DATA_DIR=str(tmp_path), **given)
    assert re.search(said, str(how.error), re.DOTALL), how.error
