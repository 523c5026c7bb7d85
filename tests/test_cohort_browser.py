"""CohortBrowser shows what the files hold, at the right place and the right way round, and goes on past broken ones."""

from __future__ import annotations

import gzip
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
from conftest import oriented_affine
from matplotlib.backend_bases import MouseEvent

from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import InputError, SettingError
from msfilm.view.cohort_browser import CohortBrowser
from msfilm.view.planes import PLANES, GreyScale, field_box


@pytest.fixture(scope="module")
def example():
    view = CohortBrowser.example()
    yield view
    view.close()


def _click(view, plane, column, row):
    x, y = plane.ax.transData.transform((column, row))
    event = MouseEvent("button_press_event", view.canvas, x, y, button=1)
    view.canvas.callbacks.process("button_press_event", event)


def _by_hand(data, position, name):
    """A plane as radiologists look at it, said once more without the rule of msfilm.view.planes."""
    x, y, z = position
    if name == "axial":  # front on top, the patient's right at the left
        return np.flipud(np.fliplr(data[:, :, z].T))
    if name == "sagittal":  # head on top, front at the left
        return np.flipud(np.fliplr(data[x].T))
    return np.flipud(np.fliplr(data[:, y].T))


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PSR", "ASL"])
def test_planes_and_letters_are_right_for_any_orientation_of_the_file(tmp_path, orientation):
    shape = (20, 24, 9)  # of the patient: right, front, up
    wanted = np.zeros(shape, np.int16)
    wanted[17, 12, 4], wanted[10, 21, 4], wanted[10, 12, 7] = 100, 200, 300  # to the right, in front, above
    canonical = nib.Nifti1Image(wanted, oriented_affine("RAS", (0.5, 0.7, 4.0), shape))
    turn = nib.orientations.ornt_transform(nib.io_orientation(canonical.affine),
                                           nib.orientations.axcodes2ornt(tuple(orientation)))
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    nib.save(canonical.as_reoriented(turn), folder / "sub-01_T2w.nii.gz")
    view = CohortBrowser(tmp_path)
    for name, voxel, letter in (("axial", (17, 12, 4), "R"), ("axial", (10, 21, 4), "A"),
                                ("sagittal", (10, 21, 4), "A"), ("sagittal", (10, 12, 7), "S"),
                                ("coronal", (17, 12, 4), "R"), ("coronal", (10, 12, 7), "S")):
        view.position = voxel
        plane = view.planes[name]
        shown = np.asarray(plane.panel.image.get_array())
        np.testing.assert_array_equal(shown, _by_hand(view.volume.data, voxel, name))
        row, column = np.argwhere(shown == wanted[voxel])[0]
        x, y = plane.ax.transAxes.inverted().transform(plane.ax.transData.transform((column, row)))
        side = {"R": x < 0.3, "A": y > 0.7 if name == "axial" else x < 0.3, "S": y > 0.6}[letter]
        text = next(text for text in plane.panel.letters if text.get_text() == letter)
        there = text.get_position()
        assert side and np.hypot(there[0] - x, there[1] - y) < 0.6, f"{letter} is on the side where {letter} is"
        assert view.volume.data[view.position] == wanted[voxel]
        np.testing.assert_allclose(plane.to_screen(np.array(voxel))[0], column)
    assert view.planes["sagittal"].ax.get_aspect() == pytest.approx(4.0 / 0.7)
    assert view.planes["axial"].ax.get_aspect() == pytest.approx(0.7 / 0.5)
    view.close()


def test_it_shows_what_the_files_hold(example):
    row = example.table.loc[example.controls["scan"].value]
    image = read_image(row["image"])
    np.testing.assert_array_equal(example.volume.data, image.data)
    cord = read_mask(row["cord"], image).data
    example.position = np.argwhere(cord)[0]
    assert "cord" in example.inside and "cord" in example.describe()
    mm = example.position_mm
    np.testing.assert_allclose(mm, nib.affines.apply_affine(image.affine, example.position))
    assert f"{mm[0]:.1f}, {mm[1]:.1f}, {mm[2]:.1f} mm" in example.describe()
    for text in (str(image.orientation), "Manufacturer", "RepetitionTime", "all "):
        assert text in example.facts.value


def test_sliders_and_clicks_move_the_crosshair_and_no_artist_is_made_anew(example):
    artists = {name: (plane.panel.image, plane.cross) for name, plane in example.planes.items()}
    count = len(example.figure.findobj())
    for name, axis, letter in (("axial", 2, "z"), ("sagittal", 0, "x"), ("coronal", 1, "y")):
        example.controls[letter].value = 5
        assert example.position[axis] == 5
        np.testing.assert_array_equal(np.asarray(example.planes[name].panel.image.get_array()),
                                      _by_hand(example.volume.data, example.position, name))
    for name, (_, across, down, through) in PLANES.items():
        plane, before = example.planes[name], example.position
        column, row = 6, 4
        _click(example, plane, column, row)
        assert example.position[across] == plane.box[across].stop - 1 - column
        assert example.position[down] == plane.box[down].stop - 1 - row
        assert example.position[through] == before[through]
        x, y = example.planes[name].cross.get_data()
        assert x[6] == column and y[0] == row, "the crosshair stands where the click was"
    assert {name: (plane.panel.image, plane.cross) for name, plane in example.planes.items()} == artists
    assert len(example.figure.findobj()) == count and not example.errors


def test_masks_are_outlined_only_where_they_are_wanted(example):
    lines = example.planes["axial"].panel._outlines["cord"][1]
    example.position = np.rint(np.argwhere(example.masks["cord"]).mean(axis=0))
    assert lines.get_segments()
    example.controls["cord"].value = False
    assert not lines.get_segments()
    example.controls["cord"].value = True
    assert lines.get_segments()


def test_grey_window_and_field(example):
    example.controls["grey"].value = (10.0, 90.0)
    shown = example.planes["axial"].panel.image.get_clim()
    values = example.volume.data
    step = max(1, values.size // 200_000) | 1
    np.testing.assert_allclose(shown, np.percentile(values.reshape(-1)[::step], (10, 90)), rtol=1e-6)
    np.testing.assert_allclose(shown, np.percentile(values, (10, 90)), rtol=0.05)
    example.position = [side // 2 for side in values.shape]
    assert example.controls["field"].label == "whole scan"
    example.controls["field"].value = 36.0
    height, width = example.planes["axial"].panel.image.get_array().shape
    assert width == round(36 / example.volume.voxel_mm[0]) and height == round(36 / example.volume.voxel_mm[1])
    box = example.planes["axial"].box
    assert all(side.start <= at < side.stop for side, at in zip(box, example.position, strict=True))
    example.controls["field"].value, example.controls["grey"].value = 0.0, (0.5, 99.5)


def test_another_scan_of_a_patient_keeps_the_place_and_another_patient_the_kind(example):
    example.controls["patient"].value = "sub-001"
    example.controls["scan"].value = "sub-001_T2w"
    mm = example.position_mm
    example.controls["scan"].value = "sub-001_T2star"
    assert (np.abs(example.position_mm - mm) <= example.volume.voxel_mm / 2 + 1e-6).all()
    assert example.volume.path.name == "sub-001_T2star.nii.gz"
    example.controls["patient"].value = "sub-002"
    assert example.controls["scan"].value == "sub-002_T2star" == example.volume.path.name[:-7]
    assert example.inside == ["cord"] or "cord" in example.inside, "it starts on the cord"
    example.controls["patient"].value = "sub-001"


def test_field_box_stays_within_the_volume():
    for middle in ((0, 0, 0), (49, 39, 8), (20, 20, 4), (-5, 99, 3)):
        box = field_box((50, 40, 9), (1.0, 0.5, 5.0), middle, 15.0)
        assert [side.stop - side.start for side in box] == [15, 30, 3]
        assert all(0 <= side.start and side.stop <= n for side, n in zip(box, (50, 40, 9), strict=True))
    assert field_box((50, 40, 9), (1, 1, 1), (0, 0, 0)) == (slice(0, 50), slice(0, 40), slice(0, 9))
    assert GreyScale(np.zeros((3, 3, 3))).limits((0, 100)) == (0.0, 1.0)


def test_a_broken_volume_is_named_and_the_rest_stays(example, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(example.dataset, folder)
    broken = folder / "sub-001" / "anat" / "sub-001_T2star.nii.gz"
    broken.write_bytes(gzip.compress(gzip.decompress(broken.read_bytes())[:5000]))
    (folder / "sub-001" / "anat" / "sub-001_acq-lower_T2w.nii.gz").unlink()
    mask = next(folder.rglob("sub-001_space-T2w_label-SC_mask.nii.gz"))
    mask.write_bytes(b"nothing")
    view = CohortBrowser(folder, patient="sub-001")
    view.controls["scan"].value = "sub-001_T2star"
    assert view.volume is None and view.fault.code == "NIFTI-TRUNCATED"
    assert "NIFTI-TRUNCATED" in view._sorry.get_text() and "NIFTI-TRUNCATED" in view.describe()
    assert "NIFTI-TRUNCATED" in view.facts.value and view.controls["x"].disabled
    assert str(tmp_path) not in view.describe() + view._sorry.get_text() + view.facts.value
    assert "sub-001/anat/sub-001_T2star.nii.gz" in view._sorry.get_text()
    before = view.picture()
    assert (before[150:160, :200] == 255).all(), "a white page, on which the words are read"
    view.controls["scan"].value = "sub-001_acq-lower_T2w"
    assert view.fault.code == "IMAGE-MISSING"
    view.controls["scan"].value = "sub-001_T2w"
    assert view.fault is None and view.volume is not None and "cord" not in view.masks
    assert view.controls["cord"].disabled
    assert any(fault.code.startswith("NIFTI") for fault in view.faults) and "Trouble" in view.describe()
    assert not view._sorry.get_text() and not np.array_equal(before, view.picture())
    assert not view.errors
    view.close()


def test_wrong_arguments_are_refused(example, tmp_path):
    with pytest.raises(SettingError, match="did you mean 'sub-002'") as refusal:
        CohortBrowser(example.dataset, patient="sub-02")
    assert refusal.value.code == "BROWSER-CHOICE"
    with pytest.raises(InputError) as refusal:
        CohortBrowser(tmp_path / "nowhere")
    assert refusal.value.code == "BIDS-MISSING"


def test_a_large_volume_is_browsed_without_copies_and_quickly(tmp_path):
    """As large as a 3-D T2w scan of 0.8 mm. An answer takes about 100 ms here; twice that is for a busy machine."""
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    data = np.random.default_rng(0).integers(0, 900, (320, 320, 192), dtype=np.int16)
    nib.save(nib.Nifti1Image(data, oriented_affine("PSR", (0.8, 0.8, 0.8), data.shape)), folder / "sub-01_T2w.nii")
    view = CohortBrowser(tmp_path)
    assert np.shares_memory(view.planes["coronal"].cut(view.volume.data, 3), view.volume.data)
    times = []
    for axis in "xyz":
        for at in range(40, 50):
            started = time.perf_counter()
            view.controls[axis].value = at
            view.canvas.draw()
            times.append(1000 * (time.perf_counter() - started))
    print(f"a step: median {np.median(times):.0f} ms, at most {max(times):.0f}")
    assert np.median(times) < 200
    view.close()


def test_real_scans_of_a_public_cohort(mirror):
    view = CohortBrowser(mirror / "sct_tutorial_data" / "multi_subject" / "data")
    assert view.volume is not None and view.volume.data.shape == (256, 256, 22)
    only_masks = CohortBrowser(mirror / "data_example_spinegeneric")  # the mirror holds its masks, not its images
    assert only_masks.fault.code == "IMAGE-MISSING" and "cannot be shown" in only_masks.describe()
    view.close()
    only_masks.close()


def test_the_still_says_what_header_and_sidecar_say(example):
    still = example.still().data
    assert still.count("<img") == 1 and "RepetitionTime" in still and "stored as" in still and "color:" not in still
