"""Opening and writing NIfTI: read as nibabel reads, every fault by name, written where it belongs."""

from __future__ import annotations

import itertools
import os

import nibabel as nib
import numpy as np
import pytest
from conftest import oriented_affine, refused, write_plain

from msfilm.data.nifti import Volume, read_image, read_mask, write_nifti
from msfilm.errors import InputError, RunError

SHAPE = (5, 6, 7)
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]


def content(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_orientation_reads_as_nibabels_closest_canonical_and_goes_back_exactly(tmp_path, orientation):
    affine = oriented_affine(orientation, (0.5, 0.6, 3.0), SHAPE, degrees=12)
    path = write_plain(tmp_path / "a.nii.gz", content(), affine)
    volume = read_image(path)
    canonical = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.data, np.asarray(canonical.dataobj, np.float32))
    np.testing.assert_allclose(volume.affine, canonical.affine, atol=1e-6)
    assert volume.orientation == orientation and volume.data.dtype == np.float32
    back, back_affine = volume.to_file_order(volume.data)
    np.testing.assert_array_equal(back, content())
    np.testing.assert_allclose(back_affine, nib.load(path).affine, atol=1e-5)


@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR"])
def test_real_scans_read_as_nibabel_reads_them(real_cords, name):
    for path in real_cords[name]:
        volume, canonical = read_image(path), nib.as_closest_canonical(nib.load(path))
        assert volume.orientation == name
        np.testing.assert_array_equal(volume.data, canonical.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, canonical.affine, atol=1e-5)
        np.testing.assert_allclose(volume.voxel_mm, canonical.header.get_zooms()[:3], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_types_byte_orders_versions_and_scaling_read_as_nibabel_reads_them(tmp_path, dtype, big_endian, kind):
    header = kind.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(dtype)
    image = kind(content(dtype=dtype), oriented_affine(shape=SHAPE), header)
    image.header.set_slope_inter(0.25, -3)
    path = tmp_path / "a.nii"
    nib.save(image, path)
    np.testing.assert_allclose(read_image(path).data, nib.load(path).get_fdata(), atol=1e-5)


def test_real_patients_forms_differ_by_less_than_half_a_voxel_and_this_is_noted(mirror):
    volume = read_image(mirror / "sct_tutorial_data/single_subject/data/t2_ms/t2.nii.gz")
    assert volume.data.shape == (320, 256, 19) and volume.orientation == "LAS"
    assert len(volume.notes) == 1 and volume.notes[0].startswith("NIFTI-FORMS-NEAR: ")
    assert "qform and sform differ by up to 0.26 mm" in volume.notes[0]


def test_path_may_have_spaces_and_letters_of_any_alphabet(tmp_path):
    path = write_plain(tmp_path / "ein Ordner ü 脊髄" / "s c.nii.gz", content(), oriented_affine(shape=SHAPE))
    np.testing.assert_array_equal(write_like(path, tmp_path / "ö ut.nii.gz"), content())


def write_like(path, out):
    volume = read_image(path)
    write_nifti(out, volume.data, volume, dtype=np.int16)
    return np.asarray(nib.load(out).dataobj)


def test_fourth_axis_of_length_one_and_form_codes_zero_are_noted(tmp_path):
    path = write_plain(tmp_path / "a.nii", content((*SHAPE, 1)), np.diag([0.5, 0.6, 3, 1]), codes=(0, 0))
    volume = read_image(path)
    assert volume.data.shape == SHAPE
    assert any("both 0" in note for note in volume.notes) and any("last of length 1" in note for note in volume.notes)
    np.testing.assert_allclose(volume.affine, nib.as_closest_canonical(nib.load(path)).affine[:4, :4], atol=1e-6)


# --- masks -----------------------------------------------------------------------------------------------------------


def box(dtype=np.uint8, value=1):
    mask = np.zeros(SHAPE, dtype)
    mask[1:3, 2:4, 3:6] = value
    return mask


@pytest.fixture
def scan(tmp_path):
    return read_image(write_plain(tmp_path / "scan.nii.gz", content(), oriented_affine("LAS", (0.5, 0.6, 3), SHAPE)))


def test_mask_is_uint8_in_canonical_order_and_may_be_empty(tmp_path, scan):
    affine = oriented_affine("LAS", (0.5, 0.6, 3), SHAPE)
    mask = read_mask(write_plain(tmp_path / "m.nii.gz", box(), affine), scan)
    assert mask.data.dtype == np.uint8
    np.testing.assert_array_equal(mask.data, box()[::-1])
    empty = write_plain(tmp_path / "e.nii.gz", box(value=0), affine)
    assert not read_mask(empty, scan).data.any()
    refused(empty, "MASK-EMPTY", read_mask, like=scan, allow_empty=False)


def test_mask_saved_through_a_uint8_scale_reads_1_00000006_and_is_accepted(tmp_path, scan):
    image = nib.Nifti1Image(box(np.float32), oriented_affine("LAS", (0.5, 0.6, 3), SHAPE))
    image.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "m.nii")
    stored = nib.load(tmp_path / "m.nii").get_fdata().max()
    assert 1 < stored < 1 + 1e-4 or stored == 1
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii", scan).data, box()[::-1])
    for off, fine in ((9e-5, True), (2e-4, False)):
        path = write_plain(tmp_path / "n.nii", box(np.float64, 1 + off), oriented_affine("LAS", (0.5, 0.6, 3), SHAPE))
        if fine:
            np.testing.assert_array_equal(read_mask(path, scan).data, box()[::-1])
        else:
            refused(path, "MASK-VALUES", read_mask)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint8, 255), (np.uint8, 2), (np.int16, -1), (np.float32, 0.5), (np.float32, -1)]
)
def test_mask_that_is_not_binary_is_refused_with_its_values(tmp_path, dtype, value):
    fault = refused(
        write_plain(tmp_path / "m.nii.gz", box(dtype, value), np.diag([0.5, 0.6, 3, 1])), "MASK-VALUES", read_mask
    )
    assert f"{value:g}" in fault.what and "12 voxels" in fault.what
    with pytest.raises(InputError, match="NIFTI-NAN"):
        read_mask(write_plain(tmp_path / "n.nii.gz", box(np.float32, np.nan), np.diag([0.5, 0.6, 3, 1])))


def test_mask_in_another_axis_order_on_the_same_voxels_is_the_same_mask(tmp_path, scan):
    straight = nib.Nifti1Image(box(), oriented_affine("LAS", (0.5, 0.6, 3), SHAPE))
    turned = straight.as_reoriented(nib.orientations.axcodes2ornt("LAS")[[2, 0, 1]] * [1, -1])
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert turned.shape != straight.shape
    np.testing.assert_array_equal(read_mask(tmp_path / "turned.nii.gz", scan).data, box()[::-1])


@pytest.mark.parametrize("fault", ["shape", "30 mm off", "flipped", "spacing", "a fifth of a voxel"])
def test_mask_on_another_grid_is_refused(tmp_path, scan, fault):
    data, affine = box(), oriented_affine("LAS", (0.5, 0.6, 3), SHAPE)
    if fault == "shape":
        data = data[:-1]
    elif fault == "30 mm off":
        affine[2, 3] += 30
    elif fault == "flipped":
        affine[0] *= -1
    elif fault == "spacing":
        affine[:3, :3] *= 1.1
    else:
        affine[0, 3] += 0.1
    code = "MASK-GRID" if fault in ("shape", "spacing") else "MASK-APART"
    what = refused(write_plain(tmp_path / "m.nii.gz", data, affine), code, read_mask, like=scan).what
    assert "scan.nii.gz" in what and ("30.00 mm" in what or fault != "30 mm off")


def test_mask_a_hundredth_of_a_voxel_off_is_the_same_grid(tmp_path, scan):
    affine = oriented_affine("LAS", (0.5, 0.6, 3), SHAPE)
    affine[0, 3] += 0.005
    assert read_mask(write_plain(tmp_path / "m.nii.gz", box(), affine), scan).data.any()


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR"])
def test_written_result_lies_in_the_real_scans_own_space(real_cords, tmp_path, name):
    path, cord = real_cords[name]
    volume, mask = read_image(path), read_mask(real_cords[name][1])
    out = write_nifti(tmp_path / "out.nii.gz", mask.data, volume, dtype=np.uint8)
    written, scan = nib.load(out), nib.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(nib.load(cord).dataobj))
    assert written.get_data_dtype() == np.uint8 and "".join(nib.aff2axcodes(written.affine)) == name
    for form in ("get_qform", "get_sform"):
        (mine, my_code), (theirs, their_code) = (getattr(image, form)(coded=True) for image in (written, scan))
        assert my_code == their_code
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(read_mask(out, volume).data, mask.data)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSR", "IPL"])
def test_volume_made_in_memory_is_written_in_the_orientation_it_names(tmp_path, orientation):
    volume = Volume(content(dtype=np.float32), oriented_affine("RAS", (0.5, 0.6, 3), SHAPE, degrees=9), orientation)
    path = write_nifti(tmp_path / "a.nii.gz", volume.data, volume, dtype=np.int16)
    assert "".join(nib.aff2axcodes(nib.load(path).affine)) == orientation
    again = read_image(path)
    assert again.orientation == orientation and not again.notes
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


def test_big_endian_scaled_or_version_2_originals_are_written_plainly(tmp_path):
    for kind, order in itertools.product((nib.Nifti1Image, nib.Nifti2Image), "<>"):
        image = kind(content(), oriented_affine("LAS", shape=SHAPE), kind.header_class(endianness=order))
        image.header.set_slope_inter(0.5, 1)
        nib.save(image, tmp_path / "a.nii")
        volume = read_image(tmp_path / "a.nii")
        out = write_nifti(tmp_path / "b.nii", volume.data, volume, dtype=np.float32)
        np.testing.assert_array_equal(nib.load(out).get_fdata(), nib.load(tmp_path / "a.nii").get_fdata())
        np.testing.assert_allclose(nib.load(out).affine, image.affine, atol=1e-6)
        np.testing.assert_array_equal(read_image(out).data, volume.data)


def test_same_array_gives_the_same_bytes_under_any_name_and_at_any_time(tmp_path, scan, monkeypatch):
    first = write_nifti(tmp_path / "a.nii.gz", scan.data, scan, dtype=np.float32).read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert write_nifti(tmp_path / "another name.nii.gz", scan.data, scan, dtype=np.float32).read_bytes() == first


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (256, np.uint8),
        (-1, np.uint8),
        (40000, np.int16),
        (0.5, np.uint8),
        (np.nan, np.int16),
        (np.nan, np.float32),
        (1e39, np.float32),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused_and_nothing_is_written(tmp_path, scan, value, dtype):
    data = scan.data.astype(np.float64)
    data[0, 0, 0] = value
    refused(tmp_path / "a.nii.gz", "NIFTI-RANGE", lambda path: write_nifti(path, data, scan, dtype=dtype))
    assert not list(tmp_path.glob("*a.nii.gz"))


def test_array_of_another_shape_is_refused(tmp_path, scan):
    with pytest.raises(InputError, match="NIFTI-SHAPE"):
        write_nifti(tmp_path / "a.nii.gz", scan.data[1:], scan, dtype=np.float32)


def test_full_disk_leaves_the_older_file(tmp_path, scan, monkeypatch):
    out = write_nifti(tmp_path / "a.nii.gz", box()[::-1], scan, dtype=np.uint8)
    before = out.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="NIFTI-WRITE.*No space left"):
        write_nifti(out, scan.data, scan, dtype=np.int16)
    assert out.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", "scan.nii.gz"}
