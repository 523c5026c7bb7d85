"""Broken NIfTI files: each fault has its own name, and no damage goes unseen."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from conftest import refused, write_plain

from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import InputError

SHAPE = (5, 6, 7)


def voxels(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def patch(offset, fmt, *values):
    """A fault made by overwriting header fields of the unpacked file."""

    def make(raw):
        raw = bytearray(raw)
        struct.pack_into("<" + fmt, raw, offset, *values)
        return bytes(raw)

    return make


def whole_affine(row_x, row_y, row_z):
    return patch(280, "12f", *row_x, *row_y, *row_z)


NAN = float("nan")
HEADER_FAULTS = {
    "wrong magic": (patch(344, "4s", b"abc\0"), "NIFTI-UNREADABLE"),
    "pair of files": (patch(344, "4s", b"ni1\0"), "NIFTI-UNREADABLE"),
    "not NIfTI at all": (lambda raw: b"hello" * 200, "NIFTI-UNREADABLE"),
    "empty": (lambda raw: b"", "NIFTI-TRUNCATED"),
    "ends in the header": (lambda raw: raw[:200], "NIFTI-TRUNCATED"),
    "ends in the data": (lambda raw: raw[:-1], "NIFTI-TRUNCATED"),
    "more than the header says": (lambda raw: raw + bytes(10_000), "NIFTI-SIZE"),
    "huge dims": (patch(40, "4h", 3, 32767, 32767, 32767), "NIFTI-SIZE"),
    "large dims, small file": (patch(40, "4h", 3, 600, 600, 600), "NIFTI-TRUNCATED"),
    "zero dim": (patch(40, "4h", 3, 5, 0, 7), "NIFTI-DIMS"),
    "negative dim": (patch(40, "4h", 3, 5, -6, 7), "NIFTI-DIMS"),
    "no axes": (patch(40, "h", 0), "NIFTI-DIMS"),
    "nine axes": (patch(40, "h", 9), "NIFTI-DIMS"),
    "2-D": (patch(40, "4h", 2, 5, 6, 1), "NIFTI-4D"),
    "4-D": (patch(40, "5h", 4, 5, 6, 1, 7), "NIFTI-4D"),
    "pixdim 0": (patch(80, "f", 0.0), "NIFTI-PIXDIM"),
    "pixdim negative": (patch(84, "f", -0.6), "NIFTI-PIXDIM"),
    "pixdim NaN": (patch(88, "f", NAN), "NIFTI-PIXDIM"),
    "pixdim unlike the affine": (patch(80, "f", 1.5), "NIFTI-PIXDIM"),
    "sheared": (whole_affine((0.5, 0.2, 0, 0), (0, 0.5657, 0, 0), (0, 0, 3, 0)), "NIFTI-SHEAR"),
    "singular": (whole_affine((0.5, 0, 0, 0), (0, 0, 0, 0), (0, 0, 3, 0)), "NIFTI-SINGULAR"),
    "two axes the same": (whole_affine((0.5, 0.6, 0, 0), (0, 0, 0, 0), (0, 0, 3, 0)), "NIFTI-SINGULAR"),
    "affine NaN": (whole_affine((0.5, 0, 0, NAN), (0, 0.6, 0, 0), (0, 0, 3, 0)), "NIFTI-AFFINE"),
    "qform is no rotation": (patch(256, "3f", 0.9, 0.9, 0.9), "NIFTI-AFFINE"),
    "qform NaN": (patch(256, "f", NAN), "NIFTI-AFFINE"),
    "forms 0.4 mm apart": (patch(268, "f", 0.4), "NIFTI-FORMS"),
    "forms flipped": (whole_affine((-0.5, 0, 0, 2), (0, 0.6, 0, 0), (0, 0, 3, 0)), "NIFTI-FORMS"),
    "RGB": (patch(70, "2h", 128, 24), "NIFTI-DTYPE"),
    "complex": (patch(70, "2h", 32, 64), "NIFTI-DTYPE"),
    "unknown type": (patch(70, "2h", 9999, 16), "NIFTI-DTYPE"),
    "type and bits disagree": (patch(70, "2h", 4, 32), "NIFTI-DTYPE"),
    "slope without intercept": (patch(112, "2f", 2.0, NAN), "NIFTI-SCALE"),
    "slope infinite": (patch(112, "2f", float("inf"), 0.0), "NIFTI-SCALE"),
    "scaled beyond float32": (patch(112, "2f", 3e38, 0.0), "NIFTI-NAN"),
    "data begin beyond the end": (patch(108, "f", 1e6), "NIFTI-TRUNCATED"),
    "data begin nowhere": (patch(108, "f", NAN), "NIFTI-SIZE"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Bytes of a good .nii file with the affine diag(.5, .6, 3)."""
    path = write_plain(tmp_path_factory.mktemp("plain") / "a.nii", voxels(), np.diag([0.5, 0.6, 3, 1]))
    return path.read_bytes()


@pytest.mark.parametrize("fault", HEADER_FAULTS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_broken_header_or_length_is_refused_by_name(tmp_path, plain, fault, ending):
    make, code = HEADER_FAULTS[fault]
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(make(plain)) if ending == ".nii.gz" else make(plain))
    refused(path, code)


def test_file_too_small_for_its_header_is_refused_before_anything_is_unpacked(tmp_path, plain):
    for ending in (".nii", ".nii.gz"):
        path, raw = tmp_path / f"a{ending}", patch(40, "4h", 3, 600, 600, 600)(plain)
        path.write_bytes(gzip.compress(raw) if ending == ".nii.gz" else raw)
        assert "holds at most" in refused(path, "NIFTI-TRUNCATED").what


@pytest.mark.parametrize("seed", range(4))
def test_no_random_header_ends_in_anything_but_a_volume_or_a_named_refusal(tmp_path, plain, seed):
    rng, path = np.random.default_rng(seed), tmp_path / "a.nii"
    for _ in range(100):
        raw = bytearray(plain)
        for position in rng.integers(0, 352, rng.integers(1, 6)):
            raw[position] = rng.integers(0, 256)
        path.write_bytes(raw)
        for read in (read_image, read_mask):
            try:
                volume = read(path)
            except InputError as fault:
                assert fault.where == str(path) and fault.mend
            else:
                assert np.isfinite(volume.data).all() and np.isfinite(volume.affine).all()


def test_the_good_file_of_the_fault_list_is_accepted(tmp_path, plain):
    path = tmp_path / "a.nii"
    path.write_bytes(plain)
    np.testing.assert_array_equal(read_image(path).data, voxels())


def test_missing_folder_and_wrong_ending_are_refused(tmp_path, plain):
    refused(tmp_path / "none.nii.gz", "NIFTI-MISSING")
    (tmp_path / "folder.nii").mkdir()
    refused(tmp_path / "folder.nii", "NIFTI-UNREADABLE")
    for name, raw in {"a.img": plain, "raw.nii.gz": plain, "packed.nii": gzip.compress(plain)}.items():
        (tmp_path / name).write_bytes(raw)
        refused(tmp_path / name, "NIFTI-UNREADABLE")


def test_every_shortened_gzip_file_is_refused(tmp_path, plain):
    packed, path = gzip.compress(plain), tmp_path / "a.nii.gz"
    for length in range(2, len(packed)):
        path.write_bytes(packed[:length])
        refused(path, "NIFTI-TRUNCATED")


def test_wrong_checksum_that_nibabel_overlooks_is_refused(tmp_path, plain):
    packed, path = bytearray(gzip.compress(plain)), tmp_path / "a.nii.gz"
    packed[-6] ^= 1  # in the CRC
    path.write_bytes(packed)
    refused(path, "NIFTI-CRC")


def test_no_flipped_byte_of_a_gzip_file_changes_a_value_unseen(tmp_path, plain):
    packed, path = gzip.compress(plain), tmp_path / "a.nii.gz"
    seen = 0
    for position in range(0, len(packed), 3):
        path.write_bytes(packed[:position] + bytes([packed[position] ^ 0x55]) + packed[position + 1 :])
        try:
            np.testing.assert_array_equal(read_image(path).data, voxels())
        except InputError:
            seen += 1
    assert seen > len(packed) / 3 - 12  # all but the gzip header's time, flags of the packer and operating system


def test_members_zero_padding_and_trailing_garbage_of_gzip(tmp_path, plain):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]) + bytes(700))
    np.testing.assert_array_equal(read_image(path).data, voxels())
    path.write_bytes(gzip.compress(plain) + b"garbage")
    refused(path, "NIFTI-CRC")


def test_small_file_that_unpacks_to_much_more_is_refused_without_unpacking_it(tmp_path, plain):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(plain + bytes(64 * 2**20)))
    assert path.stat().st_size < 100_000
    refused(path, "NIFTI-SIZE")


def test_size_cap_is_a_setting(tmp_path, plain):
    path = tmp_path / "a.nii"
    path.write_bytes(plain)
    refused(path, "NIFTI-SIZE", max_bytes=500)
    refused(path, "NIFTI-SIZE", max_bytes=839)  # 210 voxels take 840 bytes as float32


def test_bytes_that_grow_fourfold_when_read_count_as_what_they_take(tmp_path):
    path = write_plain(tmp_path / "a.nii.gz", np.zeros((100, 100, 100)), np.eye(4), np.uint8)
    assert "take 4 MB once read as float32; the limit is 3 MB" in refused(path, "NIFTI-SIZE", max_bytes=3_000_000).what
    assert read_image(path, max_bytes=4_000_400).data.shape == (100, 100, 100)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(tmp_path, value):
    data = voxels(dtype=np.float32)
    data[1, 2, 3] = data[0, 0, 0] = value
    fault = refused(write_plain(tmp_path / "a.nii.gz", data, np.diag([0.5, 0.6, 3, 1])), "NIFTI-NAN")
    assert fault.what.startswith("2 of 210 voxels")
