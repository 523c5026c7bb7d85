"""The course runner on small notebooks made here: what goes well, fails, hides, and need not run again."""

from __future__ import annotations

import json

import nbformat
import pytest
from bs4 import BeautifulSoup

from msfilm.course import run_course
from msfilm.errors import SettingError
from msfilm.notebook import hidden_errors

PARAMETERS = "PROFILE = 'course'\nDATA_DIR = 'data'\nEPOCHS = 1"


def _write(folder, name, *code, title="A title", parameters=PARAMETERS, text=""):
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nWhat is **asked** here?\n\n{text}")]
    if parameters:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source) for source in code]
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Five notebooks, run once: two good ones, one that raises, one with an error inside a widget, one too slow."""
    folder = tmp_path_factory.mktemp("a course é")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    _write(
        notebooks,
        "00_good",
        "print('profile', PROFILE, DATA_DIR, EPOCHS)",
        "from IPython.display import HTML\nblock = bytearray(150_000_000)\nimport time; time.sleep(0.7)\n"
        'HTML(\'<img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">\')',
        text="Where $T_2^*$ decays, $$y = \\gamma(z) \\odot x + \\beta(z)$$ holds. [Next](05_last.ipynb#A-title)",
    )
    _write(
        notebooks, "01_raises", "print('so far')", "raise ValueError('no such <scan>\\nsecond line')", "print('never')"
    )
    _write(notebooks, "02_hides", "import ipywidgets as w\nout = w.Output()\nwith out:\n    print(1 / 0)\nout")
    _write(notebooks, "03_slow", "import time; time.sleep(60)", parameters="PROFILE = 'course'")
    (notebooks / "04_broken.ipynb").write_text("{ not a notebook")
    _write(notebooks, "05_last", "1 + 1", title="The last")
    (notebooks / "draft.ipynb").write_text("no number: not part of the course")
    results = run_course(
        "quick", out=folder / "out", notebooks_dir=notebooks, timeout_s=4, progress=False, parameters={"EPOCHS": 7}
    )
    return folder, {result.name: result for result in results}


def _page(folder, name):
    return BeautifulSoup((folder / "out" / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def test_a_failure_stops_no_other_notebook(course):
    _, results = course
    assert {name: result.status for name, result in results.items()} == {
        "00_good": "ok",
        "01_raises": "failed",
        "02_hides": "failed",
        "03_slow": "failed",
        "04_broken": "failed",
        "05_last": "ok",
    }
    assert results["01_raises"].error == "ValueError: no such <scan>"
    assert results["02_hides"].error == "inside a widget: ZeroDivisionError: division by zero"
    assert "CellTimeoutError" in results["03_slow"].error
    assert "JSON" in results["04_broken"].error


def test_parameters_reach_the_notebooks_that_declare_them(course):
    folder, _ = course
    assert "profile quick data 7" in _page(folder, "00_good").get_text()
    assert "EPOCHS" not in _page(folder, "03_slow").get_text()


def test_time_and_memory_of_the_kernel_are_measured(course):
    _, results = course
    assert 150 < results["00_good"].peak_mb < 1000
    assert 0.7 < results["00_good"].seconds < 60


@pytest.mark.parametrize("name", ["00_good", "01_raises", "02_hides", "03_slow", "04_broken", "05_last", "index"])
def test_pages_need_nothing_from_elsewhere(course, name):
    folder, _ = course
    page = _page(folder, name)
    assert page.html["lang"] == "en" and len(page.find_all("h1")) <= 1
    assert page.find_all("script") == [] and page.find_all("link") == []
    for tag in page.find_all(src=True):
        assert tag["src"].startswith("data:")
    for tag in page.find_all("a", href=True):
        target, _, anchor = tag["href"].partition("#")
        assert (folder / "out" / target).is_file() if target else page.find(id=anchor), tag["href"]


def test_links_between_notebooks_lead_from_page_to_page(course):
    assert _page(course[0], "00_good").find("a", string="Next")["href"] == "05_last.html#A-title"


def test_a_failed_page_shows_how_far_it_came_and_why(course):
    folder, _ = course
    text = _page(folder, "01_raises").get_text()
    assert "so far" in text and "This notebook stopped early: ValueError: no such <scan>" in " ".join(text.split())
    assert "widgets" not in json.loads((folder / "out" / "notebooks" / "02_hides.ipynb").read_text())["metadata"]


def test_formulas_and_alternative_text_survive(course):
    page = _page(course[0], "00_good")
    assert page.find("math", display="block") and page.find("math", display="inline") and "$" not in page.get_text()
    assert page.find("img")["alt"] == "a dot"


def test_the_index_names_everything(course):
    folder, results = course
    page = _page(folder, "index")
    rows = page.find("tbody").find_all("tr")
    assert page.table.caption and [row.td.get_text() for row in rows] == ["00", "01", "02", "03", "04", "05"]
    assert rows[5].th.a["href"] == "05_last.html" and rows[5].th.a.get_text() == "The last"
    assert rows[0].find("strong").get_text() == "asked"
    assert "no such <scan>" in rows[1].get_text() and "failed" in rows[1].get_text() and "quick" in rows[1].get_text()
    assert f"{results['00_good'].peak_mb} MB" in rows[0].get_text()


def test_only_what_changed_or_failed_runs_again(course, capsys):
    folder, _ = course
    run = {"out": folder / "out", "notebooks_dir": folder / "notebooks", "only": ["0", "05_last"]}
    results = run_course("quick", parameters={"EPOCHS": 7}, **run)
    assert [result.fresh for result in results] == [False] * 6
    assert "unchanged" in capsys.readouterr().out
    assert [result.status for result in results].count("failed") == 4, "what --only leaves out keeps its result"
    _write(folder / "notebooks", "05_last", "1 + 2", title="The last")
    assert [result.name for result in run_course("quick", parameters={"EPOCHS": 7}, **run) if result.fresh] == [
        "05_last"
    ]
    results = run_course("quick", parameters={"EPOCHS": 8}, force=True, **run | {"only": ["00"]})
    assert [result.name for result in results if result.fresh] == ["00_good"]


def test_a_notebook_runs_again_once_the_public_scans_are_there(course, monkeypatch, tmp_path):
    folder, _ = course
    run = {"out": folder / "out", "notebooks_dir": folder / "notebooks", "only": ["00"], "parameters": {"EPOCHS": 9}}
    run_course("quick", **run)
    monkeypatch.setenv("MSFILM_MIRROR", str(tmp_path))
    assert [result.name for result in run_course("quick", **run) if result.fresh] == ["00_good"]


def test_wrong_settings_are_refused_before_anything_runs(course, tmp_path):
    folder, _ = course
    run = {"out": tmp_path / "out", "notebooks_dir": folder / "notebooks"}
    with pytest.raises(SettingError, match="PARAM-UNKNOWN.*did you mean 'EPOCHS'"):
        run_course("quick", parameters={"EPOCSH": 3}, **run)
    with pytest.raises(SettingError, match="PROFILE-UNKNOWN.*did you mean 'quick'"):
        run_course("quik", **run)
    with pytest.raises(SettingError, match="COURSE-ONLY.*'01_raises'"):
        run_course("quick", only=["01_raise"], **run)
    with pytest.raises(SettingError, match="COURSE-EMPTY"):
        run_course("quick", out=tmp_path / "out", notebooks_dir=tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_a_parameters_cell_a_notebook_fails(tmp_path):
    _write(tmp_path, "00_none", "1", parameters="")
    [result] = run_course("quick", out=tmp_path / "out", notebooks_dir=tmp_path, progress=False)
    assert result.status == "failed" and "tagged 'parameters'" in result.error


def test_hidden_errors_of_a_notebook_without_widgets():
    assert hidden_errors(nbformat.v4.new_notebook()) == []
