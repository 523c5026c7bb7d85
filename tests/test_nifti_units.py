"""Units and sizes that a scan can have: metres and micrometres as SimpleITK reads them, nothing that no scan has."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from conftest import oriented_affine, refused, write_plain

from msfilm.data.check import check
from msfilm.data.nifti import read_image, read_mask, write_nifti
from msfilm.data.prepare import prepare
from msfilm.errors import InputError

SHAPE = (5, 6, 7)
UNITS = {"metres": (1, 1e-3), "micrometres": (3, 1e3)}  # code of the header, and its numbers for 1 mm


def content(dtype=np.int16):
    return np.random.default_rng(0).integers(1, 100, SHAPE).astype(dtype)


def in_unit(path, data, affine, unit, codes=(1, 1), seconds=True):
    """A file whose header holds ``affine`` (mm) in another unit, and says so; with a unit of time beside it."""
    code, each = UNITS[unit]
    write_plain(path, data, np.diag([each, each, each, 1]) @ affine, codes=codes)
    image = nib.load(path)
    kept = np.asarray(image.dataobj).copy()  # a copy: the file is written over
    image.header["xyzt_units"] = code | (8 if seconds else 0)
    nib.save(nib.Nifti1Image(kept, None, image.header), path)
    assert nib.load(path).header["xyzt_units"] == code | (8 if seconds else 0)
    return path


def itk_affine(path):
    """Voxel -> RAS mm of a file in its own axis order, as SimpleITK sees it."""
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
@pytest.mark.parametrize("orientation", ["LAS", "PSR"])
def test_metres_and_micrometres_become_mm_as_in_simpleitk(tmp_path, unit, codes, orientation):
    affine = oriented_affine(orientation, (0.5, 0.6, 3.0), SHAPE, degrees=12)
    path = in_unit(tmp_path / "a.nii.gz", content(), affine, unit, codes)
    volume = read_image(path)
    assert volume.notes == (f"NIFTI-UNITS: sizes and places are in {unit}; taken times "
                            f"{1 / UNITS[unit][1]:g}, as mm",)  # fmt: skip
    data, mine = volume.to_file_order(volume.data)
    np.testing.assert_allclose(mine, affine, atol=1e-5)
    np.testing.assert_allclose(mine, itk_affine(path), atol=1e-5)
    np.testing.assert_array_equal(data, content())


@pytest.mark.parametrize("unit", UNITS)
def test_without_a_form_the_guess_is_in_mm_too(tmp_path, unit):
    volume = read_image(in_unit(tmp_path / "a.nii", content(), np.diag([0.5, 0.6, 3, 1]), unit, (0, 0)))
    plain = read_image(write_plain(tmp_path / "b.nii", content(), np.diag([0.5, 0.6, 3, 1]), codes=(0, 0)))
    np.testing.assert_allclose(volume.affine, plain.affine, rtol=1e-6)
    assert [note.split(":")[0] for note in volume.notes] == ["NIFTI-UNITS", "NIFTI-NOFORM"]


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_written_is_in_the_scans_own_unit_and_on_its_voxels_for_every_reader(tmp_path, unit):
    affine = oriented_affine("LAS", (0.5, 0.6, 3.0), SHAPE, degrees=12)
    scan = read_image(in_unit(tmp_path / "a.nii.gz", content(), affine, unit))
    out = write_nifti(tmp_path / "mask.nii.gz", scan.data > 50, scan, dtype=np.uint8)
    theirs, mine = nib.load(scan.path), nib.load(out)
    assert mine.header["xyzt_units"] == theirs.header["xyzt_units"]
    np.testing.assert_array_equal(mine.affine, theirs.affine)
    np.testing.assert_array_equal(itk_affine(out), itk_affine(scan.path))
    again = read_mask(out, scan)
    np.testing.assert_array_equal(again.data, scan.data > 50)
    np.testing.assert_array_equal(again.affine, scan.affine)


@pytest.mark.parametrize("unit", UNITS)
def test_scan_in_mm_and_mask_in_another_unit_lie_on_each_other(tmp_path, unit):
    affine = oriented_affine("LAS", (0.5, 0.6, 3.0), SHAPE)
    scan = read_image(write_plain(tmp_path / "a.nii", content(), affine))
    mask = in_unit(tmp_path / "m.nii", (content() > 50).astype(np.uint8), affine, unit)
    np.testing.assert_array_equal(read_mask(mask, scan).data, scan.data > 50)
    lying = write_plain(tmp_path / "n.nii", (content() > 50).astype(np.uint8), affine @ np.diag([2, 2, 2, 1]))
    refused(lying, "MASK-GRID", read_mask, like=scan)


@pytest.mark.parametrize("code", range(8))
def test_a_unit_not_given_is_mm_and_one_that_nifti_does_not_know_is_noted(tmp_path, code):
    if code in (1, 3):  # numbers of mm under another unit: voxels of half a metre, or of half a micrometre
        path = write_plain(tmp_path / "a.nii", content(), np.diag([0.5, 0.6, 3, 1]))
        path.write_bytes(path.read_bytes()[:123] + bytes([code]) + path.read_bytes()[124:])
        fault = refused(path, "NIFTI-PIXDIM")
        assert f"says is in {'metres' if code == 1 else 'micrometres'}" in fault.what and "xyzt_units 2" in fault.mend
        return
    path = write_plain(tmp_path / "a.nii", content(), np.diag([0.5, 0.6, 3, 1]))
    path.write_bytes(path.read_bytes()[:123] + bytes([code | 16]) + path.read_bytes()[124:])
    volume = read_image(path)
    np.testing.assert_allclose(volume.affine, itk_affine(path), atol=1e-6)
    assert [note.split(":")[0] for note in volume.notes] == (["NIFTI-UNITS"] if code > 3 else [])


@pytest.mark.parametrize("unit", [None, *UNITS])
@pytest.mark.parametrize(("size", "fine"), [(0.01, True), (50, True), (0.0098, False), (51, False), (7e-4, False),
                                            (700, False)])  # fmt: skip
def test_voxels_are_a_hundredth_of_a_mm_to_fifty(tmp_path, unit, size, fine):
    for axis in range(3):
        sides = [0.5, 0.6, 3]
        sides[axis] = size
        affine = np.diag([*sides, 1.0])
        path = tmp_path / "a.nii"
        in_unit(path, content(), affine, unit) if unit else write_plain(path, content(), affine)
        if fine:
            np.testing.assert_allclose(read_image(path).voxel_mm, sides, rtol=1e-5)
        else:
            fault = refused(path, "NIFTI-PIXDIM")
            assert f"{size:.4g}" in fault.what and "a scan's are 0.01 to 50 mm" in fault.what
            assert unit or "in metres or micrometres?" in fault.what


def resized(root, patient, times):
    """Every file of a patient with a header ``times`` as large, and nothing said of the unit."""
    for path in root.rglob(f"*{patient}*.nii.gz"):
        image = nib.load(path)
        write_plain(path, np.asarray(image.dataobj).copy(), np.diag([times, times, times, 1]) @ image.affine)


@pytest.mark.parametrize("times", [1e-3, 1e-6, 1e3])
def test_one_scan_of_impossible_size_does_not_stop_the_others(tree, times):
    root = tree(patients=2, contrasts=("T2w",))
    resized(root, "sub-001", times)
    slices, faults = prepare(root, progress=False)
    assert set(slices.volumes["patient"]) == {"sub-002"}
    assert {fault.code for fault in faults} == {"NIFTI-PIXDIM"}
    listed = check(root, progress=False).table
    assert set(listed.loc[listed["verdict"] == "refused", "code"]) == {"NIFTI-PIXDIM"}


def test_a_patient_in_micrometres_gives_the_same_crops_and_volumes_as_in_mm(tree):
    root = tree(patients=2, contrasts=("T2w",))
    before, _ = prepare(root, progress=False)
    for path in root.rglob("*sub-001*.nii.gz"):
        image = nib.load(path)
        in_unit(path, np.asarray(image.dataobj).copy(), image.affine, "micrometres")
    after, faults = prepare(root, progress=False)
    assert not faults and "NIFTI-UNITS" in after.volumes["notes"].iloc[0] and not after.volumes["notes"].iloc[1]
    np.testing.assert_allclose(after.images[:].astype(float), before.images[:].astype(float), atol=2e-3)
    for name in before.masks:
        assert np.mean(np.asarray(after.masks[name]) != np.asarray(before.masks[name])) < 1e-3
    np.testing.assert_allclose(after.volumes["lesion_mm3"], before.volumes["lesion_mm3"], rtol=1e-5)


def test_a_form_is_judged_in_mm(tmp_path):
    """The corner of two forms a third of a voxel apart is told in mm, whatever the file's unit."""
    affine = np.diag([0.5, 0.6, 3.0, 1.0])
    path = in_unit(tmp_path / "a.nii", content(), affine, "micrometres")
    raw = bytearray(path.read_bytes())
    raw[268:272] = np.float32(150).tobytes()  # qoffset_x
    path.write_bytes(raw)
    assert "qform and sform differ by up to 0.15 mm (0.30 voxels)" in read_image(path).notes[1]
    raw[268:272] = np.float32(400).tobytes()
    path.write_bytes(raw)
    with pytest.raises(InputError, match="0.40 mm"):
        read_image(path)


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_where_the_other_form_is_broken_the_unit_counts_and_is_noted_too(tmp_path, form):
    affine = np.diag([0.5, 0.6, 3.0, 1.0])
    path = in_unit(tmp_path / "a.nii", content(), affine, "micrometres")
    raw = bytearray(path.read_bytes())
    place = 256 if form == "sform" else 280  # of the form that is not the one to believe
    raw[place : place + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    volume = read_image(path, form=form)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert [note.split(":")[0] for note in volume.notes] == ["NIFTI-UNITS", "NIFTI-FORMS"]
