"""AugmentExplorer: what it shows is what ``augment`` gives with its config, and each control does what it says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from msfilm.errors import SettingError
from msfilm.evaluate.metrics import dice
from msfilm.train.augment import (
    ALTERED_TRUTH,
    NO_AUGMENT,
    PAPER_2020,
    AugmentConfig,
    affine_matrices,
    augment,
    elastic_field,
)
from msfilm.view.augment_explorer import PRESETS, AugmentExplorer


@pytest.fixture(scope="module")
def phantom() -> AugmentExplorer:
    return AugmentExplorer.example()


@pytest.fixture
def view(phantom) -> AugmentExplorer:
    """The phantom's slices, everything back to where it was."""
    with phantom.hold():
        for name, value in (("draw", 3), ("slice", 3), ("chances", False), ("grid", "where the result reads"),
                            ("preset", "none")):
            phantom.controls[name].value = value
    return phantom


def _set(view: AugmentExplorer, **values: object) -> None:
    with view.hold():
        for name, value in values.items():
            view.controls[name].value = value


def _fresh(view: AugmentExplorer, config: AugmentConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = torch.from_numpy(view.before)[None, None], torch.from_numpy(view.mask)[None, None].to(torch.uint8)
    out, marks = augment(image, mask, config, torch.Generator().manual_seed(seed), spacing_mm=view.spacing_mm)
    return out[0, 0].numpy(), marks[0, 0].float().numpy()


@pytest.mark.parametrize("values", [
    {"preset": "altered truth"}, {"preset": "like the paper", "draw": 9}, {"rotate_deg": 20.0, "strength": 2.0},
    {"elastic_mm": 1.0, "mask_soft_mm": 1.5, "noise": 0.1}, {"flip": True, "operation": "dilate"},
    {"preset": "course default", "chances": True}])
def test_what_is_shown_is_what_augment_gives(view, values):
    _set(view, **values)
    after, altered = _fresh(view, view.config, view.controls["draw"].value)
    assert np.array_equal(after, view.after) and np.array_equal(altered, view.altered)
    assert np.array_equal(np.asarray(view.panels[1].image.get_array()), after)
    assert view.area_mm2["altered"] == pytest.approx((altered > 0.5).sum() * 0.75**2)
    assert view.dice == pytest.approx(dice(view.moved, altered > 0.5), nan_ok=True)
    assert f"Dice of the two {view.dice:.2f}" in view.describe()


def test_nothing_asked_for_is_nothing_done(view):
    assert view.config == NO_AUGMENT and np.array_equal(view.after, view.before)
    assert np.array_equal(view.moved, view.mask) and np.array_equal(view.altered > 0.5, view.mask)
    assert view.largest_mm == 0 and view.dice == 1 and not view.flipped


@pytest.mark.parametrize(("name", "config"), [("course default", AugmentConfig()), ("like the paper", PAPER_2020),
                                              ("altered truth", ALTERED_TRUTH)])
def test_a_preset_sets_its_amounts_and_a_slider_makes_it_ones_own(view, name, config):
    _set(view, preset=name)
    for field, chance in (("rotate_deg", "affine_p"), ("elastic_mm", "elastic_p"), ("gamma", "intensity_p")):
        expected = getattr(config, field) if getattr(config, chance) else 0
        assert view.controls[field].value == pytest.approx(expected, abs=0.01)
        assert getattr(view.config, field) == pytest.approx(expected, abs=0.01)
    assert view.controls["flip"].value == (config.flip_lr_p > 0) and view.controls["preset"].value == name
    assert view.config.affine_p == view.config.elastic_p == view.config.intensity_p == 1
    _set(view, chances=True)
    usual = AugmentConfig()
    assert view.config.affine_p == config.affine_p and view.config.elastic_p == config.elastic_p
    assert view.config.intensity_p == (config.intensity_p or usual.intensity_p)
    _set(view, rotate_deg=30.0)
    assert view.controls["preset"].value == "own settings" and view.config.rotate_deg == 30


@pytest.mark.parametrize("name", ["rotate_deg", "scale", "translate_mm", "elastic_mm", "brightness", "contrast",
                                  "gamma", "bias", "blur", "noise"])
def test_each_amount_is_seen_for_every_draw_and_grows(view, name):
    """p = 1: an effect in each draw, and the further the slider, the larger."""
    high = view.controls[name].max
    for draw in (0, 1, 2):
        _set(view, draw=draw)
        change = []
        for share in (0.25, 0.5):
            _set(view, **{name: share * high})
            change.append(float(np.abs(view.after - view.before).mean()))
        assert 1e-4 < change[0] < change[1], (draw, change)
        _set(view, **{name: 0.0})
        assert np.array_equal(view.after, view.before)


def test_one_slider_leaves_the_other_draws_alone(view):
    _set(view, rotate_deg=20.0, elastic_mm=0.8, gamma=0.3)
    reading, moved = view.reading.copy(), view.moved.copy()
    for name, value in (("gamma", 0.0), ("noise", 0.2), ("strength", 2.5), ("operation", "erode"),
                        ("mask_shift_mm", 1.0), ("mask_soft_mm", 2.0)):
        _set(view, **{name: value})
        assert np.allclose(view.reading, reading, atol=1e-4) and np.array_equal(view.moved, moved), name
    assert not np.array_equal(view.moved, view.altered > 0.5)
    _set(view, preset="none", noise=0.1)
    noise = view.after - view.before
    for name, value in (("bias", 1e-3), ("brightness", 0.5), ("elastic_mm", 1e-4)):   # what is drawn before the noise
        _set(view, **{name: value})
        assert (view.after - view.before - noise).std() < 0.01 < noise.std(), name


def test_the_grid_is_where_the_result_reads(view):
    """Affine matrix and elastic field drawn again by hand, in augment's order; and the image read there by SciPy."""
    _set(view, rotate_deg=10.0, scale=0.1, translate_mm=1.0, elastic_mm=0.7, draw=5)
    generator = torch.Generator().manual_seed(5)
    torch.rand(1, generator=generator)   # a die for morphology
    matrix = affine_matrices(1, 1.0, 10.0, 0.1, 1.0 / 0.75, 0.0, generator)[0].numpy()
    torch.rand(1, generator=generator)   # and one for the elastic field
    field = elastic_field(1, 48, 48, 0.7 / 0.75, generator)[0].numpy()
    rows, columns = np.mgrid[:48, :48] - 23.5
    places = np.stack([columns, rows, np.ones((48, 48))], axis=-1) @ matrix.T + field + 23.5
    assert np.allclose(view.reading, places.clip(0, 47), atol=1e-3)
    read = ndimage.map_coordinates(view.before, [places[..., 1], places[..., 0]], order=1, mode="nearest")
    assert np.allclose(read, view.after, atol=1e-3)
    inside = ((places > 1e-3) & (places < 47 - 1e-3)).all(axis=-1)
    far = np.hypot(places[..., 0] - columns - 23.5, places[..., 1] - rows - 23.5)[inside]
    assert view.largest_mm == pytest.approx(0.75 * far.max(), abs=1e-3)

    bent, straight = (grid.get_segments() for grid in view._grids)
    assert len(bent) == len(straight) == 22
    known = inside[8]   # of the line of row 8 what lies in the slice; matplotlib leaves the rest out
    assert known.sum() > 24 and np.allclose(bent[1], places[8][known], atol=1e-3)
    _set(view, grid="carried along with the image")
    carried = np.concatenate([np.asarray(some) for some in view._grids[1].get_segments()])
    back = np.stack([ndimage.map_coordinates(places[..., axis], carried.T[::-1], order=1) for axis in (0, 1)], axis=-1)
    off = np.abs(back - 4 * np.round(back / 4)).min(axis=1)   # each lies on a line of the slice as it was
    assert np.quantile(off, 0.95) < 0.05
    _set(view, grid="none")
    assert not any(grid.get_segments() for grid in view._grids)


def test_a_flip_swaps_the_letters_and_is_not_counted_as_a_move(view):
    assert [letter.get_text() for letter in view.panels[1].letters[:2]] == ["R", "L"]
    _set(view, flip=True)
    assert view.flipped and np.allclose(view.after, view.before[:, ::-1], atol=1e-4) and view.largest_mm < 0.01
    assert [letter.get_text() for letter in view.panels[1].letters[:2]] == ["L", "R"] and "mirrored" in view.describe()


def test_the_mask_alone_is_altered_as_it_is_called(view):
    for name, grown in (("dilate", True), ("erode", False)):
        _set(view, operation=name)
        by_hand = getattr(ndimage, f"binary_{'dilation' if grown else 'erosion'}")(view.mask)
        assert np.array_equal(view.altered > 0.5, by_hand) and np.array_equal(view.moved, view.mask)
        assert np.allclose(view.after, view.before, atol=1e-4)
    _set(view, operation="none", mask_soft_mm=2.0)
    assert len(np.unique(view.altered)) > 3 and view.altered.sum() == pytest.approx(view.mask.sum(), abs=0.01)
    _set(view, mask_soft_mm=0.0, mask_shift_mm=2.0, draw=4)
    shifted = ndimage.center_of_mass(view.altered > 0.5), ndimage.center_of_mass(view.mask)
    assert 0 < np.hypot(*np.subtract(*shifted)) * 0.75 <= 2 * np.sqrt(2) + 0.3


def test_slices_draws_and_artists(view):
    before, first = view.picture(), view.before.copy()
    artists = [view.panels[0].image, view.panels[2].image, *view._grids, *view.figure.axes]
    _set(view, slice=2)
    assert not np.array_equal(first, view.before) and view.names[2] in view.describe()
    _set(view, rotate_deg=20.0)
    one = view.after.copy()
    _set(view, draw=8)
    assert not np.array_equal(one, view.after) and not np.array_equal(before, view.picture())
    assert artists == [view.panels[0].image, view.panels[2].image, *view._grids, *view.figure.axes]
    assert re.search(r'<img alt="[^"]*draw 8[^"]*Dice', view.still().data)


def test_arrays_of_every_shape_and_slices_without_a_mask():
    rng = np.random.default_rng(0)
    images, masks = rng.random((3, 1, 21, 34)).astype(np.float32), np.zeros((3, 1, 21, 34), np.uint8)
    masks[2, 0, 5:9, 20:30] = 1
    masks[1] = 255
    view = AugmentExplorer(torch.from_numpy(images), masks, spacing_mm=1.5, preset="like the paper", seed=1)
    assert view.names == ["slice 0", "slice 2"] and view.mask.sum() == 40 and view.after.shape == (21, 34)
    assert view.area_mm2["before"] == 40 * 2.25 and view.config == replace(view.config, rotate_deg=4.6)
    view.controls["slice"].value = 0
    assert np.isnan(view.dice) and "both are empty" in view.describe()
    assert AugmentExplorer(images[0, 0], masks[0, 0]).names == ["slice 0"]


def test_refusals_and_errors_are_seen(view, monkeypatch):
    images, masks = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), np.uint8)
    for code, given, settings in (
            ("PLOT-SHAPE", (images,), {}), ("PLOT-SHAPE", (images, masks[:1]), {}),
            ("PLOT-SHAPE", (images, masks + 255), {}), ("SCORE-VALUES", (images, masks + 2), {}),
            ("AUGMENT-PRESET", (images, masks), {"preset": "strong"}), ("AUGMENT-SEED", (images, masks), {"seed": -1})):
        with pytest.raises(SettingError) as caught:
            AugmentExplorer(*given, **settings)
        assert caught.value.code == code
    assert set(PRESETS) >= {"none", "course default", "like the paper", "altered truth"}
    broken = AugmentExplorer(images, masks)
    with monkeypatch.context() as patch:
        patch.setattr("msfilm.view.augment_explorer.dice", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            broken.controls["draw"].value = 5
    assert broken.errors and broken.report.outputs[0]["ename"] == "ZeroDivisionError"
