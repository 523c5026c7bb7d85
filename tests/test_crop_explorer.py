"""The crop explorer: its numbers against a crop made anew, its clicks and sliders, and scans with and without masks."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from msfilm.data.crop import CropGrid, centres_from_mask, coverage, crop, crop_mask, uncrop
from msfilm.data.nifti import Volume, write_nifti
from msfilm.errors import InputError, SettingError
from msfilm.evaluate.metrics import dice
from msfilm.view.crop_explorer import CropExplorer


@pytest.fixture(scope="module")
def shared():
    return CropExplorer.example()


@pytest.fixture
def view(shared):
    with shared.hold():
        start = {"z": 12, "right_mm": 0.0, "front_mm": 0.0, "spacing_mm": 0.75, "size": 48}
        for name, value in start.items():
            shared.controls[name].value = value
        shared._wanted = True
    return shared


def anew(view):
    """The grid of all slices with cord as the sliders say, made without the view."""
    zs, centres = centres_from_mask(view.cord)
    c = view.controls
    offset = np.array([c["right_mm"].value, c["front_mm"].value]) / view.image.voxel_mm[:2]
    return CropGrid(view.image.data.shape, view.image.affine, zs, centres + offset, c["size"].value,
                    c["spacing_mm"].value)  # fmt: skip


@pytest.mark.parametrize("right, front, spacing, size", [(0, 0, 0.75, 48), (3.0, -7.5, 0.4, 24), (-12, 11, 1.6, 15)])
def test_the_numbers_are_those_of_a_crop_of_the_whole_scan(view, right, front, spacing, size):
    for name, value in {"right_mm": right, "front_mm": front, "spacing_mm": spacing, "size": size}.items():
        view.controls[name].value = value
    grid, mask = anew(view), view.lesion
    k = int(np.flatnonzero(grid.zs == 12)[0])
    crops, padded = crop(view.image.data, grid)
    assert np.array_equal(view.crop.image.get_array(), crops[k]) and view.padded == padded[k]
    hard, soft = (uncrop(values.astype(np.float32), grid) >= 0.5 for values in (crop_mask(mask, grid),
                                                                                crop(mask, grid)[0]))
    voxel = np.prod(view.image.voxel_mm)
    assert view.lesion_mm3 == pytest.approx(mask.sum() * voxel)
    assert view.lost_mm3 == pytest.approx((mask & ~coverage(grid)).sum() * voxel)
    assert view.dice == pytest.approx(dice(mask, hard)) and view.soft_dice == pytest.approx(dice(mask, soft))
    assert view.slice_dice == pytest.approx(dice(mask[:, :, 12], hard[:, :, 12]), nan_ok=True)
    assert view.grid.centres[0] == pytest.approx(grid.centres[k]) and view.grid.zs.tolist() == [12]
    assert f"{size * spacing:.1f} x {size * spacing:.1f} mm" in view.describe()
    assert [bar.get_width() for bar in view.bars] == pytest.approx(
        [view.padded, view.lost_mm3 / view.lesion_mm3, view.dice, view.soft_dice])


def test_some_case_loses_lesion_and_some_pads(view):
    assert view.lost_mm3 == 0 and view.padded == 0 and 0.8 < view.dice < view.soft_dice < 1
    view.controls["right_mm"].value = -19.75
    assert view.lost_mm3 == pytest.approx(view.lesion_mm3) and view.dice == 0
    view.controls["size"].value = 160
    assert view.lost_mm3 == 0 and view.padded > 0.05


def test_a_click_on_the_whole_slice_moves_the_centre_there_and_the_button_back(view):
    view.picture()
    axes = view.whole.ax
    step, centre = view.image.voxel_mm, view.centres[view._index]
    voxel = np.array([centre[0] + 4.5 / step[0], centre[1] - 3.0 / step[1]])  # 4.5 mm to the right, 3 to the back
    column, row = view.image.data.shape[0] - 1 - voxel[0], view.image.data.shape[1] - 1 - voxel[1]
    click = SimpleNamespace(inaxes=axes, xdata=column, ydata=row)
    view._click(click)
    assert view.controls["right_mm"].value == pytest.approx(4.5, abs=0.01)
    assert view.controls["front_mm"].value == pytest.approx(-3.0, abs=0.01)
    assert view.grid.centres[0] == pytest.approx(voxel, abs=0.02)
    x, y = view._squares[0].get_data()
    assert (np.mean(x[:4]), np.mean(y[:4])) == pytest.approx((column, row), abs=0.05)
    assert x.max() - x.min() == pytest.approx(36 / step[0])
    view._click(SimpleNamespace(inaxes=view.crop.ax, xdata=1, ydata=1))
    view._click(SimpleNamespace(inaxes=None, xdata=None, ydata=None))
    assert view.controls["right_mm"].value == pytest.approx(4.5, abs=0.01), "elsewhere a click does nothing"
    view._click(SimpleNamespace(inaxes=axes, xdata=0, ydata=0))
    assert view.controls["right_mm"].value == 20 and view.controls["front_mm"].value == 20, "as far as the slider goes"
    view.controls["back"].click()
    assert view.controls["right_mm"].value == view.controls["front_mm"].value == 0


def test_a_real_mouse_event_reaches_the_answer(view):
    from matplotlib.backend_bases import MouseEvent

    view.picture()
    x, y = view.whole.ax.transData.transform((80, 95))
    view.canvas.callbacks.process("button_press_event", MouseEvent("button_press_event", view.canvas, x, y, 1))
    assert view._cross.get_xdata()[0] == pytest.approx(80, abs=0.1)
    assert view._cross.get_ydata()[0] == pytest.approx(95, abs=0.1)


def test_artists_stay_and_every_panel_shows_the_slice(view):
    before = [*view.figure.axes, *view.bars, view.crop.image, view.near.image, *view._squares]
    view.controls["spacing_mm"].value = 1.5
    view.controls["size"].value = 24
    view.controls["z"].value = 3
    after = [*view.figure.axes, *view.bars, view.crop.image, view.near.image, *view._squares]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert np.array_equal(view.whole.image.get_array(), view.image.data[::-1, ::-1, 3].T)
    assert view._pixel.get_width() == 1.5 and "24 x 24" in view.crop.title.get_text()
    assert np.isnan(view.slice_dice) and view.dice > 0, "no lesion on this slice, but in the scan"
    assert not view.near._outlines["put back"][1].get_segments()


def box(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def small(shape=(20, 24, 6), voxel=(1.2, 0.9, 3.0)):
    data = np.random.default_rng(0).uniform(0, 100, shape).astype(np.float32)
    return Volume(data, np.diag([*voxel, 1.0]))


def test_a_scan_smaller_than_the_square_gets_room_and_shows_its_end():
    scan = small()
    view = CropExplorer(scan, box(scan.data.shape, (8, 9, 0), (13, 15, 6)))
    assert view.scored == "cord" and view.padded == pytest.approx(crop(scan.data, anew(view))[1][3])
    shown = view.whole.image.get_array()
    step = scan.voxel_mm
    assert shown.shape[1] * step[0] >= 44 and shown.shape[0] * step[1] >= 44
    column, row = view._place(10, 11)
    assert shown[row, column] == scan.data[10, 11, view.controls["z"].value], "the padding is reckoned with"
    x, y = view._end.get_data()
    assert x.max() - x.min() == pytest.approx(20 * 1.2 / 0.75) and y.max() - y.min() == pytest.approx(24 * 0.9 / 0.75)
    view.close()


def test_files_and_centrelines_are_taken(tmp_path):
    scan = small()
    cord = box(scan.data.shape, (8, 9, 1), (13, 15, 5))
    image = write_nifti(tmp_path / "scan.nii.gz", scan.data, like=scan, dtype=np.float32)
    mask = write_nifti(tmp_path / "cord.nii.gz", cord.astype(np.uint8), like=scan, dtype=np.uint8)
    from_files = CropExplorer(str(image), mask, size=20, spacing_mm=1.0)
    assert from_files.zs.tolist() == [1, 2, 3, 4] and from_files.grid.size == 20 and "scan.nii.gz" in from_files.name
    points = np.array([[12.0, 10.35, 3.0], [12.0, 10.35, 12.0]])
    lines = ["x_mm,y_mm,z_mm", *(",".join(map(str, point)) for point in points)]
    (tmp_path / "line.csv").write_text("\n".join(lines))
    for centreline in (points, tmp_path / "line.csv"):
        view = CropExplorer(scan, centreline=centreline)
        assert view.zs.tolist() == [1, 2, 3, 4] and view.centres[0] == pytest.approx([10, 11.5])
        assert np.isnan(view.dice) and "no mask" in view.describe()
        assert view._numbers[2].get_text() == "no mask"
        view.close()


def test_a_mask_of_very_many_slices_is_scored_on_the_slice_that_is_shown():
    scan = small((20, 24, 60))
    cord = box(scan.data.shape, (8, 9, 0), (13, 15, 60))
    view = CropExplorer(scan, cord)
    assert not view.whole_scan and "In this slice" in view.describe() and view.dice == view.slice_dice
    assert view.lesion_mm3 == pytest.approx(cord[:, :, 0].sum() * 1.2 * 0.9 * 3)
    view.close()


def test_wrong_arguments_are_refused():
    scan = small()
    cord = box(scan.data.shape, (8, 9, 1), (13, 15, 5))
    line = {"centreline": [[0, 0, 0]]}
    for arguments, options, code in (((scan,), {}, "CROP-CORD"), ((scan, cord), line, "CROP-CORD"),
                                     ((None, cord), {}, "CROP-CORD"), ((scan, cord[1:]), {}, "CROP-SHAPE"),
                                     ((scan, cord, cord[:, :, 1:]), {}, "CROP-SHAPE")):  # fmt: skip
        with pytest.raises(SettingError, match=code):
            CropExplorer(*arguments, **options)
    with pytest.raises(InputError, match="CROP-EMPTY"):
        CropExplorer(scan, np.zeros(scan.data.shape, bool))


def test_an_error_is_seen_and_raised_and_the_still_has_numbers(view, monkeypatch):
    alt = re.search(r'alt="([^"]*)"', view.still().data)[1]
    assert f"{view.dice:.3f}" in alt and "48 x 48 pixels" in alt
    monkeypatch.setattr("msfilm.view.crop_explorer.crop", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        view.controls["right_mm"].value = 1.0
    assert view.report.outputs[0]["ename"] == "ZeroDivisionError" and len(view.errors) == 1
    view.errors.clear()
    view.report.outputs = ()


def test_lesion_on_slices_without_cord_is_lost_and_counts():
    cord, lesion = np.zeros((60, 60, 12), bool), np.zeros((60, 60, 12), bool)
    cord[25:35, 25:35, 3:9] = True
    lesion[28:32, 28:32, 6:12] = True  # three slices of six have no cord, and no crop
    affine = np.diag([0.75, 0.75, 3.0, 1.0])
    view = CropExplorer(Volume(np.random.default_rng(0).random(cord.shape, np.float32), affine), cord, lesion)
    voxel = 0.75 * 0.75 * 3
    assert view.lesion_mm3 == pytest.approx(lesion.sum() * voxel)
    assert view.lost_mm3 == pytest.approx(lesion[:, :, 9:].sum() * voxel)
    assert view.dice == pytest.approx(2 * 0.5 / 1.5, abs=0.05)
    view.close()
