"""Every limit of the NIfTI reader as a law at its boundary: just within is taken, just beyond is refused by name."""

from __future__ import annotations

import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from conftest import oriented_affine, refused, write_plain

from msfilm.data.nifti import read_image, read_mask

SHAPE = (5, 6, 7)
SIZES = np.array([0.5, 0.6, 3.0])
NAN, INF = float("nan"), float("inf")
LAS = oriented_affine("LAS", SIZES, SHAPE)


def content(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(1, 100, shape).astype(dtype)


def box(shape=SHAPE, value=1):
    mask = np.zeros(shape, np.uint8)
    mask[1:3, 2:4, 3:6] = value
    return mask


def moved(affine, voxels, axis=0):
    """The affine with its origin ``voxels`` along an axis of the grid from where it was."""
    affine = affine.copy()
    affine[:3, 3] += voxels * affine[:3, axis]
    return affine


def patched(path, *changes):
    """Write header fields over: (offset, format, values...)."""
    raw = bytearray(path.read_bytes())
    for offset, form, *values in changes:
        struct.pack_into("<" + form, raw, offset, *values)
    path.write_bytes(raw)
    return path


def codes_of(volume):
    return [note.split(":")[0] for note in volume.notes]


@pytest.fixture
def plain(tmp_path):
    """A good file with the affine diag(.5, .6, 3)."""
    return write_plain(tmp_path / "a.nii", content(), np.diag([*SIZES, 1]))


@pytest.fixture
def scan(tmp_path):
    return read_image(write_plain(tmp_path / "scan.nii.gz", content(), LAS))


# --- a mask and its scan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("empty", [False, True])
def test_a_mask_may_lie_a_tenth_of_a_voxel_off_and_no_more_though_it_is_empty(tmp_path, scan, axis, empty):
    mask = box(value=0 if empty else 1)
    near, far = (write_plain(tmp_path / f"{off}.nii", mask, moved(LAS, off, axis)) for off in (0.098, 0.102))
    assert read_mask(near, scan).data.any() != empty
    refused(far, "MASK-APART", read_mask, like=scan)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("empty", [False, True])
def test_a_masks_voxels_may_differ_by_a_hundredth_and_no_more_though_it_is_empty(tmp_path, scan, axis, empty):
    mask, sides = box(value=0 if empty else 1), np.ones(4)
    for more, fine in ((0.0098, True), (-0.0098, True), (0.0102, False), (-0.0102, False)):
        sides[axis] = 1 + more
        path = write_plain(tmp_path / "m.nii", mask, LAS @ np.diag(sides))
        if fine:
            assert read_mask(path, scan).data.any() != empty
        else:
            refused(path, "MASK-GRID", read_mask, like=scan)


def test_an_empty_mask_of_another_shape_or_place_is_refused(tmp_path, scan):
    empty = box(value=0)
    refused(write_plain(tmp_path / "a.nii", empty[1:], LAS), "MASK-GRID", read_mask, like=scan)
    refused(write_plain(tmp_path / "b.nii", empty, moved(LAS, 10)), "MASK-APART", read_mask, like=scan)
    refused(write_plain(tmp_path / "c.nii", empty, np.diag([-1, 1, 1, 1]) @ LAS), "MASK-APART", read_mask, like=scan)


@pytest.mark.parametrize("which", ["mask", "scan"])
@pytest.mark.parametrize("orientation", ["LAS", "RAS", "LPS", "LAI"])
def test_without_a_place_a_mask_is_taken_voxel_by_voxel_only_in_the_same_orientation(tmp_path, which, orientation):
    """A header without a form reads as LAS; put on a scan of another direction the mask would be flipped unseen."""
    placed, guessed = oriented_affine(orientation, SIZES, SHAPE), np.diag([*SIZES, 1])
    codes, affines = ((1, 1), (0, 0)), (placed, guessed)
    if which == "scan":
        codes, affines = codes[::-1], affines[::-1]
    scan = read_image(write_plain(tmp_path / "s.nii", content(), affines[0], codes=codes[0]))
    path = write_plain(tmp_path / "m.nii", box(), affines[1], codes=codes[1])
    if orientation != "LAS":
        refused(path, "MASK-APART", read_mask, like=scan)
        return
    mask = read_mask(path, scan)
    assert f"MASK-NOPLACE: the {which} has no place" in mask.notes[-1]
    np.testing.assert_array_equal(mask.data, box()[::-1])


def test_two_without_a_place_must_agree_like_any_others(tmp_path):
    shape, sides = (61, 6, 7), np.array([1.008, 1, 1, 1])  # .8 % over 30 voxels from the middle: .24 voxels
    scan = read_image(write_plain(tmp_path / "s.nii", content(shape), np.diag([*SIZES, 1]), codes=(0, 0)))
    same = write_plain(tmp_path / "m.nii", box(shape), np.diag([*SIZES, 1]), codes=(0, 0))
    assert codes_of(read_mask(same, scan)) == ["NIFTI-NOFORM"]
    wider = write_plain(tmp_path / "w.nii", box(shape), np.diag([*SIZES, 1] * sides), codes=(0, 0))
    refused(wider, "MASK-APART", read_mask, like=scan)


# --- the header's geometry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_two_axes_may_be_a_thousandth_off_square(plain, pair, sign):
    def sheared(cosine):
        axes = np.eye(3)
        axes[pair[0], pair[1]], axes[pair[1], pair[1]] = sign * cosine, np.sqrt(1 - cosine**2)
        rows = np.column_stack([axes * SIZES, np.zeros(3)])
        return patched(plain, (252, "2h", 0, 1), (280, "12f", *rows.ravel()))

    assert not read_image(sheared(0.97e-3)).notes
    for cosine in (1.03e-3, 0.05, 0.99):
        assert "degrees off square" in refused(sheared(cosine), "NIFTI-SHEAR").what


def test_axes_that_nearly_coincide_are_singular_and_not_only_sheared(plain):
    for volume, code in ((0.97e-3, "NIFTI-SINGULAR"), (1.03e-3, "NIFTI-SHEAR")):  # of the box of three unit axes
        rows = np.zeros((3, 4))
        rows[:, :3] = np.array([[1, np.sqrt(1 - volume**2), 0], [0, volume, 0], [0, 0, 1]]) * SIZES
        refused(patched(plain, (252, "2h", 0, 1), (280, "12f", *rows.ravel())), code)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("more", [-1, 1])
def test_pixdim_may_differ_from_the_affine_by_a_hundredth(plain, axis, more):
    def stretched(share):
        sides = np.ones(3)
        sides[axis] += more * share
        rows = np.column_stack([np.diag(SIZES * sides), np.zeros(3)])
        return patched(plain, (252, "2h", 0, 1), (280, "12f", *rows.ravel()))

    assert read_image(stretched(0.0098)).voxel_mm[axis] == pytest.approx(SIZES[axis] * (1 + more * 0.0098))
    for share in (0.0102, 0.25):
        assert "by pixdim" in refused(stretched(share), "NIFTI-PIXDIM").what


@pytest.mark.parametrize("axis", range(3))
def test_forms_may_be_half_a_voxel_apart_and_more_than_a_hundredth_of_a_mm_is_noted(plain, axis):
    def apart(mm):
        return patched(plain, (268 + 4 * axis, "f", mm))

    assert not read_image(apart(0.0098)).notes
    assert codes_of(read_image(apart(0.0102))) == ["NIFTI-FORMS-NEAR"]
    assert "(0.49 voxels)" in read_image(apart(0.49 * SIZES[axis])).notes[0]
    refused(apart(0.51 * SIZES[axis]), "NIFTI-FORMS")
    assert codes_of(read_image(apart(0.51 * SIZES[axis]), form="qform")) == ["NIFTI-FORMS"]


@pytest.mark.parametrize("codes", [(-1, -1), (-1, 0), (0, -2)])
def test_a_negative_form_code_is_no_form(plain, codes):
    volume = read_image(patched(plain, (252, "2h", *codes)))
    assert codes_of(volume) == ["NIFTI-NOFORM"] and volume.orientation == "LAS"


@pytest.mark.parametrize("codes", [(0, 6), (6, 0), (99, 5), (5, 5)])
def test_a_form_code_that_nifti_does_not_know_counts_as_in_simpleitk_and_is_noted(plain, codes):
    """nibabel takes such a code for 0, so where no other form is left it puts the scan elsewhere."""
    volume = read_image(patched(plain, (252, "2h", *codes)))
    assert codes_of(volume) == ["NIFTI-FORMS"] * sum(code > 5 for code in codes)
    np.testing.assert_allclose(volume.affine, np.diag([*SIZES, 1]), atol=1e-6)
    assert SimpleITK.ReadImage(str(plain)).GetDirection() == (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def test_a_form_with_a_negative_code_is_not_asked(plain):
    patched(plain, (252, "2h", -1, 1), (268, "f", 99))
    assert not read_image(plain).notes
    patched(plain, (252, "2h", 1, -1), (268, "f", 0), (280, "f", 99))
    assert not read_image(plain).notes


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept"), [(1, 10), (1, -0.5), (2, 0), (-1, 0), (-2, 7), (1, 0)])
def test_slope_and_intercept_are_used_as_others_use_them(plain, slope, intercept):
    patched(plain, (112, "2f", slope, intercept))
    volume = read_image(plain)
    assert not volume.notes
    np.testing.assert_array_equal(volume.data, slope * content() + intercept)
    np.testing.assert_array_equal(volume.data, nib.load(plain).get_fdata())
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(plain)))
    np.testing.assert_array_equal(volume.data, itk.transpose(2, 1, 0))


@pytest.mark.parametrize("slope", [0, NAN])
@pytest.mark.parametrize("intercept", [0, NAN, 5, -1, INF])
def test_slope_0_or_nan_means_unscaled_and_a_lost_intercept_is_noted(plain, slope, intercept):
    patched(plain, (112, "2f", slope, intercept))
    volume = read_image(plain)
    np.testing.assert_array_equal(volume.data, content())
    np.testing.assert_array_equal(volume.data, nib.load(plain).get_fdata())
    assert codes_of(volume) == (["NIFTI-SCALE"] if intercept in (5, -1, INF) else [])
    mask = patched(write_plain(plain.with_name("m.nii"), box(), np.diag([*SIZES, 1])), (112, "2f", slope, intercept))
    np.testing.assert_array_equal(read_mask(mask, volume).data, box())
    assert codes_of(read_mask(mask)) == codes_of(volume)


def test_a_masks_intercept_is_not_lost(tmp_path):
    path = patched(write_plain(tmp_path / "m.nii", box(), np.diag([*SIZES, 1])), (112, "2f", 1, 1))
    assert "values 1, 2" in refused(path, "MASK-VALUES", read_mask).what
    patched(path, (112, "2f", -1, 1))
    np.testing.assert_array_equal(read_mask(path).data, 1 - box())


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "a.nii"
    os.mkfifo(path)
    both_ends = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # so that whoever opens it is not kept waiting
    try:
        os.write(both_ends, b"\0" * 4096)
        assert refused(path, "NIFTI-UNREADABLE").what == "not an ordinary file"
    finally:
        os.close(both_ends)


def test_a_real_number_of_sixteen_bytes_is_refused_also_where_numpy_has_one(plain, monkeypatch):
    """nibabel knows float128 on some processors only."""
    patched(plain, (70, "2h", 1536, 128))
    plain.write_bytes(plain.read_bytes() + bytes(np.prod(SHAPE) * 14))
    monkeypatch.setattr(nib.Nifti1Header, "get_data_dtype", lambda header: np.dtype(np.longdouble))
    if np.dtype(np.longdouble).itemsize > 8:  # on Windows it is a double
        refused(plain, "NIFTI-DTYPE")


@pytest.mark.parametrize(("code", "bits"), [(1536, 128), (1792, 128), (2048, 256)])
def test_numbers_of_more_than_eight_bytes_are_refused(plain, code, bits):
    patched(plain, (70, "2h", code, bits))
    plain.write_bytes(plain.read_bytes() + bytes(np.prod(SHAPE) * (bits // 8 - 2)))
    refused(plain, "NIFTI-DTYPE")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_data_begin_after_the_header_and_exactly_where_it_says(tmp_path, kind, order):
    """Below that nibabel refuses or takes the header for voxels, and SimpleITK reads 4 bytes earlier than we would."""
    path, header = tmp_path / "a.nii", kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    nib.save(kind(content(), LAS, header), path)
    raw, size = path.read_bytes(), int(header["sizeof_hdr"])
    place, form = (108, "f") if size == 348 else (168, "q")
    for offset, begins in ((size + 4, size + 4), (size + 5, size + 5), (size + 68, size + 68), (size, size),
                           (size + 3, size + 4), (1, size + 4), (0, size), (0, size + 4)):  # fmt: skip
        start = bytearray(raw[:size])
        struct.pack_into(order + form, start, place, offset)
        path.write_bytes(bytes(start) + bytes(begins - size) + raw[size + 4 :] + bytes(8))
        if offset >= size + 4:
            np.testing.assert_array_equal(read_image(path).data, content()[::-1])
        else:
            assert f"byte {offset} " in refused(path, "NIFTI-OFFSET").what
    if size == 348:
        start = bytearray(raw[:size])
        struct.pack_into(order + form, start, place, 352.5)
        path.write_bytes(bytes(start) + raw[size:])
        refused(path, "NIFTI-OFFSET")


@pytest.mark.parametrize(("kind", "place", "magic", "fine"), [
    (nib.Nifti1Image, 344, b"n+1\0", True), (nib.Nifti1Image, 344, b"n+2\0", False),
    (nib.Nifti1Image, 344, b"ni1\0", False), (nib.Nifti1Image, 344, b"ni2\0", False),
    (nib.Nifti2Image, 4, b"n+2\0", True), (nib.Nifti2Image, 4, b"n+1\0", False),
    (nib.Nifti2Image, 4, b"ni2\0", False), (nib.Nifti2Image, 4, b"ni1\0", False)])  # fmt: skip
def test_each_version_has_its_own_magic_and_pairs_of_files_are_refused(tmp_path, kind, place, magic, fine):
    path = tmp_path / "a.nii"
    nib.save(kind(content(), LAS), path)
    patched(path, (place, "4s", magic))
    if fine:
        assert read_image(path).data.shape == SHAPE
    else:
        assert magic[:3].decode() in refused(path, "NIFTI-UNREADABLE").what


def test_no_more_is_unpacked_than_a_file_of_its_size_can_hold(tmp_path, plain):
    """An unpacked file holds its own size; gzip at most 1032 times as much (deflate's limit)."""
    raw = plain.read_bytes()
    plain.write_bytes(raw[:-1])
    assert f"the file of {len(raw) - 1} bytes holds at most {len(raw) - 1}" in refused(plain, "NIFTI-TRUNCATED").what
    path, least = tmp_path / "a.nii.gz", -(-(352 + 2 * 1000 * 100 * 10) // 1032)
    packed = gzip.compress(patched(plain, (40, "4h", 3, 1000, 100, 10)).read_bytes())
    for size, what in ((least, "ends after"), (least - 1, "holds at most")):
        path.write_bytes(packed + bytes(size - len(packed)))  # zeros after the end of gzip are padding
        assert what in refused(path, "NIFTI-TRUNCATED").what
