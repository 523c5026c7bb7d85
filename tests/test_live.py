"""The base of all live views: what is drawn, when, and that no error stays unseen."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from msfilm.errors import SettingError
from msfilm.notebook import execute
from msfilm.stills import KeepStills
from msfilm.view.live import LiveView, slider
from msfilm.view.panels import SlicePanel, outline_paths


class Ramp(LiveView):
    """A line whose height follows a slider, and a slice beside it."""

    def __init__(self):
        super().__init__(5, 2.5)
        left, right = self.figure.subplots(1, 2)
        left.set_ylim(0, 10)
        [self.line] = left.plot([0, 1], [0, 0], color="black")
        self.panel = SlicePanel(self, right, looks={"disc": ("orange", "-")}, fill=0.3)
        self.move(self.line)
        self.updates = 0
        self.add("height", slider("height", 2.0, 0.0, 10.0, 0.5))
        self.add("other", slider("other", 1, 0, 9))
        self.finish(*self.controls.values())

    @classmethod
    def example(cls):
        return cls()

    def update(self):
        self.updates += 1
        height = self.controls["height"].value
        if height > 9:
            raise SettingError("TOO-HIGH", f"height {height:g}", mend="stay below 9")
        if height == 8:
            raise ZeroDivisionError("eight")
        self.line.set_ydata([height, height])
        disc = np.hypot(*np.mgrid[-10:11, -10:11]) < height
        self.panel.show(np.arange(441.0).reshape(21, 21), {"disc": disc}, title=f"{height:g}")

    def describe(self):
        return f"height {self.controls['height'].value:g} <of> 10"


@pytest.fixture
def ramp():
    return Ramp()


def test_a_picture_drawn_over_the_kept_ground_is_the_picture_drawn_whole(ramp):
    ramp.picture()
    for height in (3.0, 7.5, 0.5):
        ramp.controls["height"].value = height
        quick = ramp.picture()
        ramp.figure.stale = True
        np.testing.assert_array_equal(quick, ramp.picture())
        ramp.canvas.moving, kept = [], ramp.canvas.moving  # what saving draws: all artists, in matplotlib's own order
        for artist in kept:
            artist.set_animated(False)
        ramp.figure.stale = True
        whole = ramp.picture()
        assert (whole == quick).mean() > 0.995  # the order of what lies on what may differ at few pixels
        for artist in kept:
            artist.set_animated(True)
        ramp.canvas.moving, ramp.figure.stale = kept, True
        ramp.picture()


def test_only_a_change_of_what_stands_still_draws_the_ground_anew(ramp):
    ramp.picture()
    ground = ramp.canvas._ground
    ramp.controls["height"].value = 5.0
    ramp.picture()
    assert ramp.canvas._ground is ground
    ramp.figure.axes[0].set_title("new")
    ramp.picture()
    assert ramp.canvas._ground is not ground


def test_controls_set_together_are_answered_once(ramp):
    before = ramp.updates
    with ramp.hold():
        ramp.controls["height"].value = 6.0
        ramp.controls["other"].value = 7
        assert ramp.updates == before
    assert ramp.updates == before + 1 and ramp.line.get_ydata()[0] == 6


def test_an_error_is_raised_kept_shown_and_taken_away_for_a_reader_when_it_is_well_again(ramp):
    with pytest.raises(ZeroDivisionError, match="eight"):
        ramp.controls["height"].value = 8.0
    assert [type(error) for error in ramp.errors] == [ZeroDivisionError]
    [shown] = ramp.report.outputs
    assert (shown["output_type"], shown["ename"], shown["evalue"]) == ("error", "ZeroDivisionError", "eight")
    assert "role=\"alert\"" in ramp.words.value and "Not drawn" in ramp.words.value
    with pytest.raises(SettingError, match="TOO-HIGH"):
        ramp.controls["height"].value = 9.5
    assert "stay below 9" in ramp.report.outputs[0]["evalue"]

    ramp.controls["height"].value = 4.0
    assert "height 4" in ramp.words.value and ramp.report.outputs, "nobody looks: it stays for the scan after the run"
    ramp.canvas._handle_message(ramp.canvas, {"type": "initialized"}, [])
    ramp.controls["height"].value = 5.0
    assert ramp.report.outputs == () and len(ramp.errors) == 2


def test_an_error_in_the_answer_to_a_click_is_seen_too(ramp):
    ramp.connect("button_press_event", lambda event: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        MouseEvent("button_press_event", ramp.canvas, 100, 100, button=1)._process()
    assert ramp.errors and ramp.report.outputs


def test_the_still_is_the_picture_now_with_its_words_as_alt_text(ramp):
    first = ramp.still().data
    ramp.controls["height"].value = 7.0
    second = ramp.still().data
    assert 'alt="height 2 &lt;of&gt; 10"' in first and 'alt="height 7 &lt;of&gt; 10"' in second
    assert first.split("base64,")[1] != second.split("base64,")[1] and 'width="480"' in second
    bundle = ramp._repr_mimebundle_()
    assert bundle["text/html"] == second and "application/vnd.jupyter.widget-view+json" in bundle
    ramp.controls["height"].value = 3.0  # saving leaves the quick way of drawing as it was
    quick = ramp.picture()
    ramp.figure.stale = True
    np.testing.assert_array_equal(quick, ramp.picture())


@pytest.mark.parametrize("shape", [(5, 7), (21, 20), (1, 1)])
def test_an_outline_encloses_the_pixels_of_its_mask(shape):
    mask = np.random.default_rng(3).random(shape) < 0.5
    mask[shape[0] // 2, shape[1] // 2] = True
    area = 0.0
    for path in outline_paths(mask):
        assert np.array_equal(path[0], path[-1]), "closed"
        x, y = path.T
        area += 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
    edges = sum(np.abs(np.diff(np.pad(mask.astype(int), 1), axis=axis)).sum() for axis in (0, 1))
    # An eighth of a pixel inside along every edge, so the area is that of the pixels less such a strip.
    assert abs(area) == pytest.approx(mask.sum() - edges / 8, abs=0.05 * edges)
    assert outline_paths(np.zeros(shape, bool)) == []
    assert outline_paths(np.full(shape, 255)) == [], "a rater who never drew this slice"


def test_an_outline_lies_where_the_image_shows_the_mask():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 6:11] = True
    points = np.concatenate(outline_paths(mask))
    assert points.min(0) == pytest.approx([5.5, 1.5], abs=0.2) and points.max(0) == pytest.approx([10.5, 4.5], abs=0.2)


def test_a_panel_keeps_letters_scale_and_aspect_when_the_slice_changes(ramp):
    panel = ramp.panel
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((30, 50)), 2)
    panel.show(image, {"disc": np.full(image.shape, 255)}, spacing_mm=(3.0, 0.5))
    assert panel.ax.get_aspect() == 6 and panel.ax.get_xlim() == (-0.5, 49.5) and panel.ax.get_ylim() == (29.5, -0.5)
    x = panel._bar.get_xdata()
    assert (x[1] - x[0]) * 0.5 == 5 and panel._length.get_text() == "5 mm"
    assert [letter.get_text() for letter in panel.letters] == list("RLAP")
    assert panel._outlines["disc"][0].get_segments() == []
    panel.show(image, {"disc": image > image.mean()}, spacing_mm=(3.0, 0.5))
    assert panel._outlines["disc"][0].get_segments()


PLANTED = {
    "output": "import ipywidgets as w\nout = w.Output()\nwith out:\n    1 / 0\nout",
    "interact": "import ipywidgets as w\nw.interact(lambda x: 1 / x, x=w.IntSlider(0, 0, 3));",
    "view": "import sys; sys.path.insert(0, {here!r})\nfrom test_live import Ramp\nramp = Ramp()\n"
            "try:\n    ramp.controls['height'].value = 8.0\nexcept ZeroDivisionError:\n    pass\n"
            "ramp.controls['height'].value = 1.0\nramp",
}


@pytest.mark.parametrize("planted", [*PLANTED, None])
def test_a_planted_exception_makes_the_scan_after_a_run_fail(planted, tmp_path):
    code = PLANTED["view" if planted is None else planted].replace("{here!r}", repr(str(Path(__file__).parent)))
    if planted is None:
        code = code.replace("= 8.0", "= 7.0")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "planted.ipynb")
    ran = execute(tmp_path / "planted.ipynb", tmp_path / "out.ipynb", {}, cwd=tmp_path, timeout_s=60, progress=False)
    if planted is None:
        assert ran.error == ""
        [output] = nbformat.read(tmp_path / "out.ipynb", 4).cells[0].outputs
        assert set(output.data) == {"text/html", "text/plain"} and 'alt="height 1' in output.data["text/html"]
    else:
        assert ran.error.startswith("inside a widget: ZeroDivisionError"), ran


def test_a_stored_notebook_keeps_the_still_and_no_widget():
    view = "application/vnd.jupyter.widget-view+json"
    outputs = [nbformat.v4.new_output("display_data", data={view: {}, "text/html": "<img>"}),
               nbformat.v4.new_output("display_data", data={view: {}, "text/plain": "Box"}),
               nbformat.v4.new_output("stream", text="x")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=outputs)])
    kept, _ = KeepStills().preprocess(notebook, {})
    assert [sorted(output.get("data", {})) for output in kept.cells[0].outputs] == [
        ["text/html"], [view, "text/plain"], []]


def test_a_figure_without_words_is_refused(ramp):
    ramp.describe = lambda: " "
    with pytest.raises(SettingError, match="ALT-MISSING"):
        ramp.still()
    assert isinstance(ramp.figure, Figure) and Image.fromarray(ramp.picture()).size == (480, 240)


def test_a_closed_view_is_gone():
    """Running a cell again and again must be able to give back what it took."""
    before = set(_widgets())
    ramp = Ramp()
    ramp.connect("button_press_event", lambda event, view=ramp: view)
    ramp.still()
    gone = weakref.ref(ramp)
    ramp.close()
    del ramp
    gc.collect()
    assert gone() is None
    left = set(_widgets()) - before
    assert not left, [type(_widgets()[key]).__name__ for key in left]


def _widgets():
    from ipywidgets.widgets.widget import _instances

    return _instances
