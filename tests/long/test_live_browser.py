"""The live views as a person uses them: in a real JupyterLab in Chromium, by keyboard."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import ROOT, Lab, LabPage
from live_views import VIEWS

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SHOTS = os.environ.get("MSFILM_SHOTS", "")  # a folder to keep the screenshots in


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab é"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def driver(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(driver, chromium):
    opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    yield opened
    opened.close()


@pytest.fixture
def open_notebook(lab, browser):
    pages = []

    def opened(name: str, theme: str = "JupyterLab Light") -> LabPage:
        lab.theme(theme)
        pages.append(LabPage(lab, browser.new_page(viewport={"width": 1280, "height": 1100}), name))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


def _shot(page: LabPage, name: str, index: int = 0) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.page.locator(".msfilm-live").nth(index).screenshot(path=Path(SHOTS) / f"{name}.png")


def _focus(page: LabPage, description: str = "", index: int = 0) -> bool:
    """Focus a view's first slider that can move, or the one whose description begins so; the Tab key stops at it."""
    sliders = page.page.locator(".msfilm-live").nth(index).locator(".widget-slider")
    if description:
        sliders = sliders.filter(has=page.page.locator(".widget-label").filter(
            has_text=re.compile(f"^{description}")))
    handles = sliders.locator(".noUi-handle:not([disabled])")
    for i in range(handles.count()):
        if handles.nth(i).is_visible() and handles.nth(i).get_attribute("tabindex") == "0":
            handles.nth(i).focus()
            return True
    return False


def _press(page: LabPage, values: str, index: int = 0) -> np.ndarray:
    """Press arrow keys on a view's first slider until the kernel's values are others, and give the picture then."""
    held = page.ask(values)
    assert _focus(page, index=index), "no slider is reached by keyboard"
    for key in ("ArrowRight", "ArrowLeft"):  # it may stand at its upper end
        for _ in range(4):
            page.page.keyboard.press(key)
        after = page.settled(index=index)
        if page.ask(values) != held:
            return after
    raise AssertionError("the kernel's value did not change")


# The view's Dice by another way than its own: the network as it is, the code and the mask of the slice.
FRESH = """
import numpy as np, torch
from msfilm.view import FilmExplorer
view = next(Out[n] for n in sorted(Out) if isinstance(Out[n], FilmExplorer))
def fresh():
    i = view.picker.index
    model = view.network.model.eval()
    with torch.no_grad():
        image = torch.as_tensor(np.asarray(view.slices.images[i:i + 1], dtype=np.float32))
        logits = model(image, torch.as_tensor(view.z)[None])
    found = torch.sigmoid(logits)[0, 0].numpy() >= 0.5
    drawn = np.asarray(view.slices.masks[view.controls["reference"].value][i, 0]) == 1
    return float(2 * (found & drawn).sum() / (found.sum() + drawn.sum()))
"""


VALUES = "{{name: repr(control.value) for name, control in {0}.controls.items() if hasattr(control, 'value')}}"
VIEWS_SHOWN = "[Out[n] for n in sorted(Out) if hasattr(Out[n], 'controls') and hasattr(Out[n], 'describe')]"


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("name", list(VIEWS))
def test_a_view_in_the_browser(name, theme, lab, open_notebook):
    """By keyboard: the kernel's value and the picture's pixels change; nothing goes wrong unseen."""
    source = lab.write(f"{name}-{theme}.ipynb", f"from msfilm.view import {name}\nview = {name}.example()\nview")
    page = open_notebook(source, f"JupyterLab {theme}")
    page.run_all()
    before = page.settled()
    assert before.std() > 5, "an empty picture"
    _shot(page, f"{name}-{theme.lower()}-0")
    after = _press(page, VALUES.format("view"))
    assert before.shape == after.shape and (before != after).any(), "the picture did not change"
    assert page.ask("len(view.errors)") == "0" and page.ask("len(view.report.outputs)") == "0"
    drawn = json.loads(page.ask("__import__('json').dumps(view.picture().mean((0, 1)).tolist())").strip("'"))
    assert np.allclose(drawn[:3], after.mean((0, 1)), atol=6), "the browser shows what the kernel has drawn"
    _shot(page, f"{name}-{theme.lower()}-1")
    if theme == "Dark":
        ground = page.page.evaluate("getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor")
        assert max(int(part) for part in ground[ground.index("(") + 1: -1].split(",")[:3]) < 80, ground
        said = page.page.locator("p[role=status]").first.evaluate("node => getComputedStyle(node).color")
        assert min(int(part) for part in said[said.index("(") + 1: -1].split(",")[:3]) > 120, said


def test_many_key_presses_do_not_pile_up(lab, open_notebook):
    page = open_notebook(lab.write("pile.ipynb", "from msfilm.view import FilmExplorer\n"
                                   "view = FilmExplorer.example()\nview"))
    page.run_all()
    page.settled()
    page.tell("updates = []\n_update = view.update\nview.update = lambda: (updates.append(1), _update())[1]")
    assert _focus(page)
    started = time.monotonic()
    for _ in range(80):
        page.page.keyboard.press("ArrowRight")
    pressed = time.monotonic() - started
    shown = page.page.locator(".widget-readout").first
    page.page.wait_for_function("node => node.getAnimations().length === 0", arg=shown.element_handle())
    released = time.monotonic()
    page.ask("None", 30)  # answered when all that was queued is done
    waited = time.monotonic() - released
    assert waited < 2, f"the kernel worked {waited:.1f} s longer than the keys took ({pressed:.1f} s)"
    assert 1 <= int(page.ask("len(updates)")) <= 80


def test_an_error_in_an_answer_is_seen_on_the_page(lab, open_notebook):
    page = open_notebook(lab.write("fault.ipynb", "from msfilm.view import SequenceLab\n"
                                   "view = SequenceLab.example()\nview"))
    page.run_all()
    page.settled()
    page.tell("def broken():\n    raise LookupError('planted here')\nwhole, view.update = view.update, broken")
    assert _focus(page)
    page.page.keyboard.press("ArrowRight")
    page.page.get_by_text("planted here").first.wait_for(timeout=20_000)
    assert page.ask("type(view.errors[0]).__name__") == "'LookupError'"
    page.tell("view.update = whole")
    _focus(page)
    page.page.keyboard.press("ArrowLeft")
    page.page.get_by_text("planted here").first.wait_for(state="detached", timeout=20_000)


def test_arrow_keys_choose_in_a_list_and_do_not_leave_the_cell(lab, open_notebook):
    page = open_notebook(lab.write("list.ipynb", "from msfilm.view import FilmExplorer\n"
                                   "view = FilmExplorer.example()\nview", "1 + 1"))
    page.run_all()
    before = page.settled()
    lists = page.page.locator(".msfilm-live select")
    lists.nth(1).focus()
    scan = page.ask("view.controls['scan'].value")
    page.page.keyboard.press("ArrowUp")
    page.page.keyboard.press("ArrowUp")
    if page.ask("view.controls['scan'].value") == scan:  # it was the first
        page.page.keyboard.press("ArrowDown")
    after = page.settled()
    assert page.ask("view.controls['scan'].value") != scan and (before != after).any()
    assert page.page.evaluate("document.activeElement.tagName") == "SELECT"


def test_a_volume_turns_where_there_is_webgl(lab, driver, chromium):
    """With WebGL in software, and no network: ipyniivue's script comes with it."""
    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    code = ("import tempfile\nfrom msfilm.phantom import write_cohort\nfrom msfilm.view import volume_3d\n"
            "folder = write_cohort(tempfile.mkdtemp(), patients=1, progress=False)\n"
            "view = volume_3d(next(folder.rglob('sub-*_T2w.nii.gz')))\nview")
    browser = driver.chromium.launch(executable_path=chromium, args=flags)
    try:
        page = LabPage(lab, browser.new_page(viewport={"width": 1280, "height": 1100}), lab.write("turn.ipynb", code))
        page.run_all()
        canvas = page.page.locator(".jp-OutputArea canvas").first
        canvas.wait_for(timeout=60_000)
        page.page.wait_for_timeout(5000)
        shown = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("L"))
        assert shown.std() > 5 and len(np.unique(shown)) > 20, "nothing was drawn"
        page.close()
    finally:
        browser.close()


NOTEBOOKS = {"01": ["CohortBrowser"], "02": ["SequenceLab"], "03": ["CropExplorer"],
             "04": ["AugmentExplorer", "RaterExplorer"], "08": ["FilmExplorer"] * 3, "09": ["ErrorBrowser"],
             "10": ["RaterExplorer"], "13": ["CentrelinePicker"]}


def _quick(lab, number: str, use: str) -> str:
    """A copy of a notebook with the quick profile and no outputs; its name."""
    source = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    notebook = nbformat.read(source, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert 'PROFILE = "course"' in cell.source
    cell.source = cell.source.replace('PROFILE = "course"', 'PROFILE = "quick"')
    for each in notebook.cells:
        if each.cell_type == "code":
            each.outputs, each.execution_count = [], None
    name = f"{use}-{source.name}"
    nbformat.write(notebook, lab.folder / name)
    return name


@pytest.mark.parametrize("number", list(NOTEBOOKS))
def test_a_notebook_run_by_a_reader(number, lab, open_notebook):
    """Open it, run all, and move a slider of each of its views by keyboard."""
    page = open_notebook(_quick(lab, number, "run"))
    page.run_all(600)
    page.tell(f"views = {VIEWS_SHOWN}")
    assert page.ask("[type(view).__name__ for view in views]") == repr(NOTEBOOKS[number])
    assert page.page.locator(".msfilm-live").count() == len(NOTEBOOKS[number])
    for i in range(len(NOTEBOOKS[number])):
        before = page.settled(index=i)
        after = _press(page, VALUES.format(f"views[{i}]"), i)
        assert before.shape == after.shape and (before != after).any(), "the picture did not change"
        assert page.ask(f"len(views[{i}].errors)") == "0"
        _shot(page, f"notebook-{number}-{i}", i)


def test_the_notebook_of_gamma_and_beta_run_by_a_reader(lab, open_notebook):
    """Run all, move z by keyboard: the Dice shown is that of a new computation, and another with random weights."""
    page = open_notebook(_quick(lab, "08", "dice"))
    page.run_all(600)
    page.tell(FRESH)
    before, dice = page.settled(), page.ask("round(view.dice, 6)")
    z = page.ask("view.z.tolist()")
    assert float(dice) == pytest.approx(float(page.ask("fresh()")), abs=1e-6)
    assert f"Dice {float(dice):.3f}" in page.page.locator(".msfilm-live p[role=status]").first.inner_text()

    assert _focus(page, "z")
    for _ in range(10):
        page.page.keyboard.press("ArrowRight")
    after = page.settled()
    assert page.ask("view.z.tolist()") != z and (before != after).any()
    assert float(page.ask("view.dice")) == pytest.approx(float(page.ask("fresh()")), abs=1e-6)
    _shot(page, "notebook-08")

    held = float(page.ask("view.dice"))
    page.tell("import torch\ntorch.manual_seed(0)\nwith torch.no_grad():\n"
              "    for weights in view.network.model.parameters():\n"
              "        weights.copy_(torch.randn_like(weights) * 0.1)\nview.replace(view.network)")
    random = page.settled()
    shown = page.page.locator(".msfilm-live p[role=status]").first.inner_text()
    replaced = float(page.ask("view.dice"))
    assert replaced != pytest.approx(held, abs=1e-3) and f"Dice {replaced:.3f}" in shown
    assert replaced == pytest.approx(float(page.ask("fresh()")), abs=1e-6) and (random != after).any()
    assert page.ask("len(view.errors)") == "0"
