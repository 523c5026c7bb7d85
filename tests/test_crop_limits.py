"""How large and how fine crops may be: refused by name before memory is asked for, and right up to the limit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from msfilm.data import crop as crop_module
from msfilm.data.check import check
from msfilm.data.crop import CropGrid, check_crop, coverage, crop, uncrop
from msfilm.data.prepare import prepare
from msfilm.errors import SettingError


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": float("inf")},
        {"spacing_mm": 1e9},
        {"spacing_mm": 1e-12},
        {"spacing_mm": 0.0099},
        {"spacing_mm": 10.1},
        {"size": 1025},
        {"size": 10**9},
        {"affine": np.diag([1e-6, 1, 1, 1])},
        {"affine": np.diag([1, 1e-6, 1, 1])},
        {"affine": np.diag([0, 1, 1, 1])},
        {"affine": np.diag([1, np.nan, 1, 1])},
    ],
)
def test_grids_that_no_memory_could_hold_are_refused(change):
    with pytest.raises(SettingError, match="CROP-SETTING") as caught:
        CropGrid(**{"shape": (5, 5, 5), "affine": np.eye(4), "zs": [1], "centres": [[2, 2]]} | change)
    assert caught.value.mend


@pytest.mark.parametrize("axis", [0, 1])
def test_a_crop_spans_at_most_4093_voxels_and_just_that_is_held_and_right(axis):
    """The default crop fits voxels of .01 mm; one voxel more than the limit is refused before memory is asked for."""
    shape, sides, centre = [31, 31, 1], np.array([1.0, 1, 1, 1]), np.array([[15.0, 15]])
    sides[axis], shape[axis], centre[0, axis] = 10 * 7 / 4093, 5000, 2500
    data = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    grid = CropGrid(shape, np.diag(sides), [0], centre, 8, 10.0)
    x, y = grid.voxel_coordinates()
    points = np.broadcast_arrays(x[0], y[0][:, None])
    expected = ndimage.map_coordinates(data[:, :, 0].astype(np.float64), points, order=1, mode="nearest")
    np.testing.assert_allclose(crop(data, grid)[0][0], expected, atol=1e-5)
    back = uncrop(np.ones((1, 8, 8)), grid)
    assert (back[coverage(grid)] == 1).all() and not back[~coverage(grid)].any()
    sides[axis] = 10 * 7 / 4094
    with pytest.raises(SettingError, match="CROP-SETTING.*4094 voxels.*at most 4093"):
        CropGrid(shape, np.diag(sides), [0], centre, 8, 10.0)
    CropGrid((5, 5, 5), np.diag([0.01, 0.01, 1, 1]), [1], [[2, 2]])
    for spacing in (0.01, 10.0):
        CropGrid((5, 5, 5), np.eye(4), [1], [[2, 2]], 48, spacing)
    CropGrid((5, 5, 5), np.eye(4), [1], [[2, 2]], 1024, 0.75)


def test_a_crop_of_many_fine_pixels_goes_through_in_parts(monkeypatch):
    data = np.random.default_rng(6).normal(size=(9, 9, 6)).astype(np.float32)
    grid = CropGrid(data.shape, np.eye(4), np.arange(6), np.full((6, 2), 4.2), 200, 0.02)
    whole = crop(data, grid)[0]
    parts = []
    sample = crop_module._sample
    monkeypatch.setattr(crop_module, "_CHUNK_BYTES", 8 * 200**2 * 2)
    monkeypatch.setattr(crop_module, "_sample", lambda *a: parts.append(len(a[0])) or sample(*a))
    np.testing.assert_array_equal(crop(data, grid)[0], whole)
    assert parts == [2, 2, 2]


@pytest.mark.parametrize("setting", [{"spacing_mm": 1e9}, {"spacing_mm": float("inf")}, {"spacing_mm": 1e-12},
                                     {"spacing_mm": float("nan")}, {"spacing_mm": 0}, {"size": 10**6}, {"size": 0}])
def test_prepare_and_check_refuse_such_a_setting_at_once(tree, setting, tmp_path):
    root = tree(patients=1, contrasts=("T2w",))
    with pytest.raises(SettingError, match="CROP-SETTING.*0.01 to 10 mm"):
        prepare(root, tmp_path / "out", progress=False, **setting)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="CROP-SETTING.*0.01 to 10 mm"):
        check(root, progress=False, **setting)


def test_what_is_taken_at_the_ends_of_the_range():
    for size, spacing in ((1, 0.01), (1, 10), (1024, 0.01), (1024, 10), (48, 0.75)):
        check_crop(size, spacing)
