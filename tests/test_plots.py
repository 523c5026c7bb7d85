"""Figures: what is drawn lies where the data are, text is legible, and no state of pyplot is touched."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from msfilm.data.crop import CropGrid, crop
from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.plots import (
    crop_figure,
    dice_points,
    error_overlay,
    film_heatmap,
    scores_figure,
    show,
    slice_montage,
    training_curves,
)
from msfilm.view.slices import ERROR_LOOKS


def crops(n=5, height=47, width=53):
    rng = np.random.default_rng(0)
    masks = np.zeros((n, height, width), np.uint8)
    masks[:, 20:24, 30:33] = 1
    return rng.random((n, height, width)), masks


def history(n=6):
    return pd.DataFrame({"epoch": range(1, n + 1), "train_loss": np.linspace(1, 0.3, n),
                         "val_dice": [0.1] * (n - 1) + [0.6], "lr": 1e-3, "seconds": 1.0})


def rows():
    return [{"name": name, "contrast": contrast, "reference": reference, "dice": value, "low": value - 0.1,
             "high": value + 0.05, "volumes": 4}
            for reference in ("rater-1", "truth") for contrast in ("T2w", "all")
            for name, value in (("network", 0.9), ("threshold", 0.4), ("all-cord", None))
            if value is not None]


def grid():
    centres = np.array([[20.5, 30.0], [21.0, 31.0]])
    return CropGrid((60, 70, 4), np.diag([0.5, 0.6, 4.0, 1.0]), np.array([1, 2]), centres)


def scores():
    return pd.DataFrame({"contrast": ["T2w", "T2star"] * 4, "method": "network", "reference": "rater-1",
                         "reference_mm3": [0, 10, 20, 40, 80, 100, 200, 400],
                         "dice": [np.nan, *np.linspace(0.2, 0.9, 7)]})


def film_params(codes=2):
    return {name: (torch.randn(codes, c) + 1, torch.randn(codes, c)) for name, c in (("down1", 4), ("logits", 1))}


def every_figure():
    images, masks = crops()
    volume = np.random.default_rng(0).random((60, 70, 4))
    cropped, _ = crop(volume, grid())
    return {
        "montage": slice_montage(images, {"cord": masks, "rater": np.full_like(masks, 255)}, list("abcde"), title="T"),
        "errors": error_overlay(images, masks, np.roll(masks, 2, axis=1)),
        "crop": crop_figure(volume, grid(), cropped, 1, outlines={"cord": cropped > 0.5}),
        "curves": training_curves({"a": history(), "b": history(1)}, title="two"),
        "film": film_heatmap(film_params(), ("T2star", "T2w")),
        "points": dice_points(scores()),
        "scores": scores_figure(rows(), title="t"),
    }


def test_every_figure_is_legible_and_on_white():
    for name, figure in every_figure().items():
        assert isinstance(figure, Figure)
        figure.canvas.draw()
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        small = [text for text in texts if text.get_fontsize() < 9]
        assert not small, (name, small)
        html = show(figure, f"the {name}").data
        assert f'alt="the {name}"' in html
        picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))
        pixels = np.asarray(picture.convert("RGBA"))
        assert (pixels[..., 3] == 255).all(), name
        assert (pixels[0, :, :3] == 255).all(), name
        assert 300 < picture.size[0] < 1600


def test_no_pyplot_and_no_backend_is_touched():
    code = ("import sys, numpy as np, matplotlib; before = matplotlib.rcParams._get_backend_or_none() if "
            "hasattr(matplotlib.rcParams, '_get_backend_or_none') else None\n"
            "from msfilm.view.plots import slice_montage, show, scores_figure\n"
            "show(slice_montage(np.eye(9)), 'a line')\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n"
            "if before is None and hasattr(matplotlib.rcParams, '_get_backend_or_none'):\n"
            "    assert matplotlib.rcParams._get_backend_or_none() is None\n")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_show_closes_pyplots_figures_and_wants_an_alt_text():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure()
    assert 'alt="a &quot;quoted&quot; &lt;alt&gt;"' in show(figure, 'a "quoted" <alt>').data
    assert not plt.fignum_exists(figure.number)
    with pytest.raises(SettingError, match="ALT-MISSING"):
        show(Figure(), "  ")


def test_a_shown_picture_has_few_colours_and_still_the_right_ones():
    figure = every_figure()["errors"]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    before = Image.open(buffer).convert("RGB")
    shown = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", show(figure, "errors").data)[1])))
    assert shown.mode == "P" and shown.size == before.size
    off = np.abs(np.asarray(shown.convert("RGB"), dtype=int) - np.asarray(before, dtype=int)).max(axis=2)
    assert (off > 16).mean() < 0.003 and off.max() < 80  # green, red and blue stay apart


def outlines(figure):
    """(colour, style, (x0, x1, y0, y1)) of every outline on the first picture, its dark underlay left out."""
    found = []
    for collection in figure.axes[0].collections:
        colour = collection.get_edgecolor()
        if len(colour) and tuple(colour[0][:3]) != (0, 0, 0):
            box = collection.get_paths()[0].get_extents()
            found.append((to_hex(colour[0]).upper(), str(collection.get_linestyle()), (box.x0, box.x1, box.y0, box.y1)))
    return found


def test_outlines_follow_the_mask_and_differ_in_colour_and_style():
    images, masks = crops(2)
    drawn = {"cord": masks, "rater": np.roll(masks, 5, 1), "network": np.roll(masks, 9, 1)}
    found = outlines(slice_montage(images, drawn))
    assert len(found) == len({colour for colour, _, _ in found}) == len({style for _, style, _ in found}) == 3
    np.testing.assert_allclose(found[0][2], [29.5, 32.5, 19.5, 23.5], atol=0.2)
    np.testing.assert_allclose(found[1][2], [29.5, 32.5, 24.5, 28.5], atol=0.2)


def test_undrawn_masks_show_nothing():
    images, masks = crops(1)
    figure = slice_montage(images, {"rater": np.full_like(masks, 255)})
    assert not figure.axes[0].collections


def test_error_overlay_parts_found_false_and_missed():
    images, reference = crops(1)
    prediction = np.roll(reference, 2, axis=1)  # two rows lower: two rows missed, two found, two false
    boxes = {colour: box for colour, _, box in outlines(error_overlay(images, reference, prediction, fill=0.0))}
    for name, rows in (("missed", (19.5, 21.5)), ("found", (21.5, 23.5)), ("false", (23.5, 25.5))):
        np.testing.assert_allclose(boxes[OKABE_ITO[ERROR_LOOKS[name][0]]][2:], rows, atol=0.2)
    assert len({style for _, style in ERROR_LOOKS.values()} | {"x"}) == 4


def test_montage_has_letters_scale_and_titles():
    images, _ = crops(3)
    figure = slice_montage(images, titles=["a", "b", "c"], columns=2, spacing_mm=0.5)
    texts = {text.get_text(): text for text in figure.findobj(Text)}
    assert {"R", "L", "A", "P", "a", "b", "c", "5 mm"} <= set(texts)
    assert texts["R"].get_position()[0] < 0.5 < texts["L"].get_position()[0]  # radiological
    assert texts["P"].get_position()[1] < 0.5 < texts["A"].get_position()[1]
    bar = figure.axes[2].lines[0].get_xdata()
    assert bar[1] - bar[0] == pytest.approx(5 / 0.5)


def test_crop_square_covers_what_the_crop_shows():
    g = grid()
    volume = np.zeros(g.shape, np.float32)
    volume[23, 36, 2] = 1  # right of and anterior to the centre (21, 31)
    cropped, _ = crop(volume, g)
    figure = crop_figure(volume, g, cropped, 1)
    left, right = figure.axes[:2]
    shown = left.images[0].get_array()
    row, column = np.argwhere(shown == 1)[0]
    assert (column, row) == (60 - 1 - 23, 70 - 1 - 36)
    square = next(patch for patch in left.patches if isinstance(patch, Rectangle))
    across = (column - square.get_x()) / square.get_width()  # 0..1 within the square
    down = (row - square.get_y()) / square.get_height()
    peak = np.argwhere(cropped[1] == cropped[1].max())[0]
    np.testing.assert_allclose([(peak[0] + 0.5) / 48, (peak[1] + 0.5) / 48], [down, across], atol=0.02)
    assert square.get_width() * 0.5 == pytest.approx(36) and square.get_height() * 0.6 == pytest.approx(36)
    assert right.images[0].get_array().shape == (48, 48)


def test_curves_mark_the_best_epoch():
    figure = training_curves(history())
    assert "best 0.600 at epoch 6" in figure.axes[1].get_title(loc="left")


def test_film_heatmap_is_centred_on_what_changes_nothing():
    figure = film_heatmap(film_params(), ("T2star", "T2w"))
    gamma, beta = figure.axes[0].images[0], figure.axes[1].images[0]
    assert np.mean(gamma.get_clim()) == pytest.approx(1) and np.mean(beta.get_clim()) == pytest.approx(0)
    assert gamma.get_cmap().name == "cividis" and gamma.get_array().shape == (2, 4)
    with pytest.raises(SettingError, match="3 codes"):
        film_heatmap(film_params(), ("a", "b", "c"))
    with pytest.raises(SettingError, match="no FiLM layer"):
        film_heatmap({}, ())


def test_scores_figure_shows_each_row_at_its_value():
    figure = scores_figure(rows())
    drawn = sorted(line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1)
    assert drawn == [0.4, 0.4, 0.9, 0.9]
    assert len(figure.axes) == 2
    one_patient = scores_figure([{**rows()[0], "low": None, "high": None}])
    one_patient.canvas.draw()
    assert "0.90" in {text.get_text() for text in one_patient.findobj(Text)}
    assert scores_figure([{**rows()[0], "dice": None}]).axes  # nothing to show is said, not raised


def test_dice_points_leave_out_volumes_without_lesions():
    figure = dice_points(scores())
    points = np.concatenate([line.get_xdata() for line in figure.axes[0].lines])
    assert sorted(points) == [10, 20, 40, 80, 100, 200, 400]


def test_shapes_that_do_not_fit_are_refused():
    images, masks = crops(3)
    for call in (lambda: slice_montage(images, {"cord": masks[:2]}), lambda: slice_montage(images, titles=["a"]),
                 lambda: slice_montage(images[:0]), lambda: slice_montage(np.zeros((2, 3, 4, 5)))):
        with pytest.raises(SettingError, match="PLOT-SHAPE"):
            call()
