"""CentrelinePicker: points by click, keyboard or code give the curve, the crops and the file for segmenting."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import map_coordinates
from typer.testing import CliRunner

from msfilm.cli import app
from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline, write_centreline
from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import InputError, RunError
from msfilm.evaluate import segment
from msfilm.view.centreline_picker import CentrelinePicker


@pytest.fixture
def picker(real_cords, tmp_path):
    view = CentrelinePicker(real_cords["PSR"][0], tmp_path / "points.csv")
    yield view
    view.close()


def _press(view, ax, column, row):
    x, y = ax.transData.transform((column, row))
    event = MouseEvent("button_press_event", view.canvas, x, y, button=1)
    view.canvas.callbacks.process("button_press_event", event)


def _cord(real_cords, orientation):
    scan, mask = real_cords[orientation]
    image = read_image(scan)
    return scan, image, *centres_from_mask(read_mask(mask, image).data)


# Every fifth slice of the T2w scan (1 mm); the T2*w scan has nine slices of 7.5 mm, so there every fourth.
@pytest.mark.parametrize(("orientation", "every"), [("PSR", 5), ("LAS", 4)])
def test_picked_points_follow_a_real_cord(real_cords, tmp_path, orientation, every):
    scan, image, zs, centres = _cord(real_cords, orientation)
    view = CentrelinePicker(scan, tmp_path / "points.csv")
    picked = np.unique([*range(0, len(zs), every), len(zs) - 1])
    with view.hold():
        for k in picked:
            view.pick(*centres[k], zs[k])
    np.testing.assert_array_equal(view.curve[0], zs)
    away = np.hypot(*((view.curve[1] - centres) * image.voxel_mm[:2]).T)
    between = np.setdiff1d(np.arange(len(zs)), picked)
    print(f"{scan.name}: {len(picked)} points; {away[between].mean():.2f} mm on average in the {len(between)} slices "
          f"between, {away[between].max():.2f} mm at most")
    assert away[picked].max() < 1e-3 and away[between].mean() < 1 and away[between].max() < 2
    view.close()


def test_the_curve_is_scipys(picker):
    voxels = np.array([[20.0, 22, 4], [24, 25, 20], [23, 30, 37], [27, 29, 50]])
    for x, y, z in voxels[[2, 0, 3, 1]]:
        picker.pick(x, y, z)
    np.testing.assert_allclose(picker.points_mm, nib.affines.apply_affine(picker.volume.affine, voxels), atol=1e-4)
    zs = np.arange(4, 51)
    np.testing.assert_array_equal(picker.curve[0], zs)
    for axis in (0, 1):
        np.testing.assert_allclose(picker.curve[1][:, axis],
                                   PchipInterpolator(voxels[:, 2], voxels[:, axis])(zs), atol=1e-3)
    np.testing.assert_allclose(picker.centreline_mm, nib.affines.apply_affine(
        picker.volume.affine, np.column_stack([picker.curve[1], zs])))
    np.testing.assert_allclose(picker.centre_at(0), voxels[0, :2], atol=1e-3)
    np.testing.assert_allclose(picker.centre_at(54), voxels[-1, :2], atol=1e-3)
    picker.points_mm = picker.points_mm[[0, 2]]
    line = np.linspace(voxels[0], voxels[2], 37 - 4 + 1)
    np.testing.assert_allclose(picker.curve[1], line[:, :2], atol=1e-3, err_msg="two points: straight")
    picker.points_mm = picker.points_mm[:1]
    assert not len(picker.grid) and not len(picker.curve[0]) and not len(picker.centreline_mm)
    np.testing.assert_allclose(picker.centre_at(33), voxels[0, :2], atol=1e-3)


def test_the_same_by_keyboard_and_by_click(picker):
    controls = picker.controls
    assert picker.centre_at(5) is None and controls["points"].disabled and "No point yet" in picker.describe()
    controls["z"].value = 10
    controls["right_left"].value, controls["front_back"].value = -3.0, 4.5
    middle = (np.array(picker.volume.data.shape) - 1) / 2
    wanted = middle[:2] - np.array([-3.0, 4.5]) / picker.volume.voxel_mm[:2]
    np.testing.assert_allclose(picker.cursor, [*wanted, 10])
    assert picker.cursor[0] > middle[0], "to the left of the slider is the patient's right"
    controls["set_point"].click()
    np.testing.assert_allclose(picker.points_mm[0],
                               nib.affines.apply_affine(picker.volume.affine, [*wanted, 10]), atol=1e-4)
    controls["z"].value = 40
    np.testing.assert_allclose(picker.cursor[:2], wanted, err_msg="clamped beyond the only point")
    _press(picker, picker.axial.ax, 30, 21)
    shape = picker.volume.data.shape
    at = np.array([shape[0] - 1 - 30, shape[1] - 1 - 21, 40])
    np.testing.assert_allclose(picker.cursor, at)
    np.testing.assert_allclose(picker.points_mm[1], nib.affines.apply_affine(picker.volume.affine, at), atol=1e-4)
    assert [z for _, z in controls["points"].options] == [10, 40] and controls["points"].value == 40
    controls["points"].value = 10
    np.testing.assert_allclose(picker.cursor, [*wanted, 10])
    controls["next_slice"].click()
    assert picker.cursor[2] == 11 and controls["points"].value is None
    np.testing.assert_allclose(picker.cursor[:2], picker.centre_at(11), err_msg="on the curve")
    controls["previous_slice"].click()
    controls["remove_point"].click()
    assert [z for _, z in controls["points"].options] == [40] and not len(picker.grid)
    row = shape[2] - 1 - 25
    _press(picker, picker.sagittal.ax, 5, row)
    assert controls["z"].value == 25 and len(picker.points_mm) == 1, "a click from the side sets nothing"
    controls["z"].value = 0
    controls["previous_slice"].click()
    assert controls["z"].value == 0
    assert not picker.errors


def test_the_preview_is_the_crop_round_the_cursor(picker):
    picker.pick(24.3, 26.8, 12)
    pixel = (np.arange(48) - 23.5) * 0.75
    x, y = (24.3 - pixel / picker.volume.voxel_mm[0]), (26.8 - pixel / picker.volume.voxel_mm[1])
    columns, rows = np.meshgrid(x, y)
    by_hand = map_coordinates(picker.volume.data[:, :, 12], [columns, rows], order=1, mode="nearest")
    np.testing.assert_allclose(picker.crop_panel.image.get_array(), by_hand, rtol=1e-4, atol=1e-3)


def test_artists_are_moved_and_none_is_made(picker):
    count, image = len(picker.figure.findobj()), picker.axial.panel.image
    before = picker.picture()
    for z in (5, 20, 40):
        picker.pick(25, 26, z)
    assert not np.array_equal(before, picker.picture())
    curve, dots = picker._lines["sagittal"]
    assert len(dots.get_xdata()) == 3 and len(curve.get_xdata()) == 36
    assert len(picker.figure.findobj()) == count and picker.axial.panel.image is image


def test_the_field_narrows_round_the_cursor_and_stays_while_it_moves(picker):
    picker.pick(25, 26, 12)
    picker.controls["field"].value = 40.0
    box = picker.axial.box
    assert all(side.start <= at < side.stop for side, at in zip(box, (25, 26, 12), strict=True))
    picker.controls["right_left"].value += 2
    assert picker.axial.box == box
    _press(picker, picker.axial.ax, 10, 12)
    np.testing.assert_allclose(picker.cursor[:2], [box[0].stop - 11, box[1].stop - 13])


@pytest.mark.parametrize("orientation", ["PSR", "LAS"])
def test_the_saved_file_segments_the_same_crops(real_cords, tmp_path, orientation):
    scan, _, zs, centres = _cord(real_cords, orientation)
    out = tmp_path / "new" / "points.csv"
    view = CentrelinePicker(scan, out)
    for k in (0, len(zs) // 2, len(zs) - 1):
        view.pick(*centres[k], zs[k])
    view.controls["save"].click()
    assert view.saved == out and str(out) in view.describe()
    np.testing.assert_array_equal(read_centreline(out), view.points_mm)
    contrast = {"PSR": "T2w", "LAS": "T2star"}[orientation]
    found = segment(scan, None, contrast=contrast, centreline=out)
    assert len(found.grid)
    np.testing.assert_array_equal(found.grid.zs, view.grid.zs)
    np.testing.assert_array_equal(found.grid.centres, view.grid.centres)
    np.testing.assert_array_equal(view.grid.centres, view.curve[1])
    np.testing.assert_array_equal(found.mask, view.segment(contrast).mask)
    mask = tmp_path / "mask.nii.gz"
    command = ["segment", str(scan), str(mask), "--contrast", contrast, "--centreline", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and mask.is_file(), result.output
    np.testing.assert_array_equal(read_mask(mask).data, found.mask)
    again = CentrelinePicker(scan, out)
    np.testing.assert_array_equal(again.points_mm, view.points_mm)
    np.testing.assert_array_equal(again.grid.centres, view.grid.centres)
    assert not len(CentrelinePicker(scan, out, points=()).points_mm), "() begins anew"


def test_refusals_are_clear_and_change_nothing(picker, tmp_path):
    with pytest.raises(InputError) as refusal:
        picker.save()
    assert refusal.value.code == "CENTRELINE-FEW" and not picker.out.exists()
    picker.pick(20, 20, 5)
    picker.controls["save"].click()
    assert "Not saved" in picker.describe() and "at least two points" in picker.describe() and not picker.errors
    for place in ((-2, 20, 5), (20, 20, 99), (np.nan, 1, 1)):
        with pytest.raises(InputError, match="CENTRELINE-"):
            picker.pick(*place)
    with pytest.raises(InputError, match="CENTRELINE-VALUES"):
        picker.points_mm = [1.0, 2.0]
    low = nib.affines.apply_affine(picker.volume.affine, [[20, 20, 5], [21, 20, 5], [21, 20, 9]])
    with pytest.raises(InputError, match="CENTRELINE-TWICE"):
        picker.points_mm = low
    assert len(picker.points_mm) == 1 and [z for _, z in picker.controls["points"].options] == [5]
    picker.pick(21, 20, 9)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as refusal:
        picker.save(tmp_path / "file" / "points.csv")
    assert refusal.value.code == "CENTRELINE-WRITE"
    with pytest.raises(InputError, match="CENTRELINE-MISSING"):
        picker.load(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="NIFTI-MISSING"):
        CentrelinePicker(tmp_path / "nowhere.nii.gz")


def test_a_file_of_points_is_written_whole_and_read_back(tmp_path):
    points = np.random.default_rng(0).normal(0, 50, (6, 3)).round(4)
    path = write_centreline(tmp_path / "a" / "points.csv", points, about="of a scan\nin two lines")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# of a scan\n# in two lines\n") and "x_mm,y_mm,z_mm\n" in text
    np.testing.assert_array_equal(read_centreline(path), points)
    with pytest.raises(InputError, match="CENTRELINE-VALUES"):
        write_centreline(path, points * np.nan)
    assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["points.csv"]


def test_points_between_slices_of_another_tool_are_kept(picker, tmp_path):
    voxels = np.array([[20.2, 21, 3.4], [22, 24, 17.6], [23, 25.5, 40.1]])
    points = nib.affines.apply_affine(picker.volume.affine, voxels)
    picker.load(write_centreline(tmp_path / "other.csv", points))
    zs, centres = centres_from_points(picker.points_mm, picker.volume)
    np.testing.assert_array_equal(picker.curve[0], zs)
    np.testing.assert_array_equal(picker.curve[1], centres)
    np.testing.assert_allclose(picker.points_mm, points, atol=1e-4)
    assert [z for _, z in picker.controls["points"].options] == [3, 18, 40]
    picker.pick(22, 23, 18)
    assert len(picker.points_mm) == 3, "a slice has one point"
