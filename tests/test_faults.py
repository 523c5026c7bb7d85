"""Broken scans made on purpose: each has the fault that it is said to have, and no other; and what readers make of it.

That a file is broken as promised is seen here with struct, gzip and nibabel alone; that the package names each fault is
held in test_check.py.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import signal
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from msfilm.data.bids import find_volumes
from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import SettingError
from msfilm.evaluate.readers import Readers, what_readers_do
from msfilm.phantom.fault_set import write_good_set
from msfilm.phantom.faults import FAULTS, GROUPS, break_image, fault_files, fault_options, make_fault

IMAGE = "sub-002/anat/sub-002_T2w.nii.gz"
LESION = "derivatives/labels/sub-002/anat/sub-002_T2w_lesion-manual-rater1.nii.gz"
CORD = "derivatives/labels/sub-002/anat/sub-002_T2w_seg-manual.nii.gz"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_good_set(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def readers():
    with Readers() as running:
        yield running


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def field(path: Path, offset: int, fmt: str):
    """Values of a header field, read from the bytes."""
    found = struct.unpack_from("<" + fmt, unpacked(path), offset)
    return found[0] if len(found) == 1 else found


def affine_of(path: Path) -> np.ndarray:
    return np.vstack([np.reshape(field(path, 280, "12f"), (3, 4)), [0, 0, 0, 1]])


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_there_are_25_rows_and_each_says_what_it_is():
    assert list(FAULTS) == list(range(1, 26))
    assert len({fault.name for fault in FAULTS.values()}) == 25
    for row, fault in FAULTS.items():
        assert fault.row == row and fault.title and fault.mend and fault.group in GROUPS
        assert fault.verdict in ("refused", "warned", "accepted") and fault.at in ("check", "cast", "network", "write")


def test_the_good_set_is_good(good):
    volumes = find_volumes(good)
    assert list(volumes.index) == ["sub-001_T2w", "sub-002_T2w", "sub-003_T2w"]
    assert not any(volumes["notes"]) and not any(volumes["errors"])
    for _, row in volumes.iterrows():
        image = nib.load(row["image"])
        assert image.get_data_dtype() == np.int16 and nib.aff2axcodes(image.affine) == ("L", "A", "S")
        np.testing.assert_array_equal(image.get_qform(), image.get_sform())
        scan = read_image(row["image"])
        assert not scan.notes
        cord, lesion = (read_mask(row[name], scan, allow_empty=False).data > 0 for name in ("cord", "rater-1"))
        assert not (lesion & ~cord).any() and cord.any(axis=(0, 1)).all()
        assert scan.data[lesion].mean() > scan.data[cord & ~lesion].mean() + 100, "a lesion shows"
        # a lesion on one side only, so that a flip is seen
        assert np.mean(np.nonzero(lesion)[0]) < np.mean(np.nonzero(cord)[0]) - 3


@pytest.mark.parametrize("row", FAULTS)
def test_only_the_named_files_differ_and_the_same_call_gives_the_same_bytes(row, good, tmp_path):
    dataset = make_fault(row, tmp_path / "a")
    found, again = contents(dataset), contents(make_fault(row, tmp_path / "b"))
    assert found == again
    assert sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file()) < 5e6
    if row in (22, 23, 25):
        return
    differ = {name for name, digest in contents(good).items() if found.get(name) != digest}
    named = {path.relative_to(dataset).as_posix() for path in fault_files(row, dataset)}
    assert named <= differ and all("sub-002" in name for name in differ)
    assert differ == named or row == 10, "a scan without forms has masks without forms"
    assert found.keys() - contents(good).keys() == set()


def test_1_truncated(good, tmp_path):
    whole = (good / IMAGE).read_bytes()
    for keep in (0.1, 0.5, 0.95):
        cut = break_image(1, good / IMAGE, tmp_path / "a.nii.gz", keep=keep).read_bytes()
        assert len(cut) == int(len(whole) * keep) and whole.startswith(cut)
        with pytest.raises(EOFError):
            gzip.decompress(cut)
    plain = break_image(1, good / IMAGE, tmp_path / "a.nii", keep=0.5).read_bytes()
    assert unpacked(good / IMAGE).startswith(plain)


@pytest.mark.parametrize("voxels", [0, 1, 400])
def test_2_checksum(voxels, good, tmp_path):
    raw = unpacked(good / IMAGE)
    packed = break_image(2, good / IMAGE, tmp_path / "a.nii.gz", voxels=voxels).read_bytes()
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        gzip.decompress(packed)
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed[10:])  # the packed stream without its frame
    assert len(content) == len(raw) and struct.unpack("<I", packed[-4:])[0] == len(raw)
    changed = np.frombuffer(content[352:], "<i2") != np.frombuffer(raw[352:], "<i2")
    assert content[:352] == raw[:352] and changed.sum() in range(max(0, voxels - 2), voxels + 1)


def test_3_magic_and_raw(good, tmp_path):
    raw = unpacked(good / IMAGE)
    wrong = gzip.decompress(break_image(3, good / IMAGE, tmp_path / "a.nii.gz").read_bytes())
    assert wrong[344:348] == b"abc\0" and wrong[:344] + wrong[348:] == raw[:344] + raw[348:]
    assert break_image(3, good / IMAGE, tmp_path / "b.nii.gz", kind="raw").read_bytes() == raw
    assert gzip.decompress(break_image(3, good / IMAGE, tmp_path / "b.nii", kind="raw").read_bytes()) == raw


@pytest.mark.parametrize(("value", "is_it"), [("nan", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)])
def test_4_nan(value, is_it, good, tmp_path):
    path = break_image(4, good / IMAGE, tmp_path / "a.nii.gz", count=7, value=value)
    data, before = np.asarray(nib.load(path).dataobj), np.asarray(nib.load(good / IMAGE).dataobj)
    assert data.dtype == np.float32 and is_it(data).sum() == 7
    np.testing.assert_array_equal(data[np.isfinite(data)], before[np.isfinite(data)])
    np.testing.assert_array_equal(nib.load(path).affine, nib.load(good / IMAGE).affine)


def test_5_to_10_and_20_are_faults_of_the_header_alone(good, tmp_path):
    at = tmp_path / "a.nii.gz"
    values, affine = unpacked(good / IMAGE)[352:], affine_of(good / IMAGE)

    break_image(5, good / IMAGE, at, volumes=3)
    assert field(at, 40, "5h") == (4, 72, 64, 6, 3) and unpacked(at)[352:] == values * 3
    for value in (0.0, -0.75, 1.5):
        assert field(break_image(6, good / IMAGE, at, value=value), 80, "f") == value
        np.testing.assert_array_equal(affine_of(at), affine)
    assert math.isnan(field(break_image(6, good / IMAGE, at, value=math.nan, axis=2), 88, "f"))
    for degrees in (1.0, 10.0):
        columns = affine_of(break_image(7, good / IMAGE, at, degrees=degrees))[:3, :3]
        lengths = np.linalg.norm(columns, axis=0)
        np.testing.assert_allclose(lengths, field(at, 80, "3f"), rtol=1e-6)
        cosine = columns[:, 0] @ columns[:, 1] / lengths[0] / lengths[1]
        assert np.degrees(np.arcsin(cosine)) == pytest.approx(degrees, rel=1e-4) and field(at, 252, "2h") == (0, 1)
    break_image(8, good / IMAGE, at, mm=3.0, axis=1)
    assert field(at, 252, "2h") == (1, 1)
    apart = np.zeros((4, 4))
    apart[1, 3] = 3
    np.testing.assert_allclose(nib.load(at).get_qform() - nib.load(at).get_sform(), apart, atol=1e-5)
    moved = affine_of(break_image(8, good / IMAGE, at, mm=3.0, axis=1, wrong="sform"))
    np.testing.assert_allclose(moved - affine, apart, atol=1e-5)
    for kind, column in (("zero", [0, 0, 0]), ("same", affine[:3, 0])):
        singular = affine_of(break_image(9, good / IMAGE, at, kind=kind))
        np.testing.assert_array_equal(singular[:3, 1], column)
        assert np.linalg.matrix_rank(singular[:3, :3]) == 2
    assert field(break_image(10, good / IMAGE, at), 252, "2h") == (0, 0)
    for value in (0, -5):
        assert field(break_image(20, good / IMAGE, at, value=value), 40, "4h") == (3, 72, value, 6)
    assert unpacked(at)[352:] == values


def test_11_and_12_are_of_the_mask_and_its_place(good, tmp_path):
    at, affine, drawn = tmp_path / "a.nii.gz", affine_of(good / CORD), unpacked(good / CORD)[352:]
    middle = affine @ [35.5, 31.5, 2.5, 1]
    for vary, wanted in (
        ({"mm": 12.0, "axis": 0}, middle + np.array([12, 0, 0, 0])),
        ({"kind": "flip", "axis": 0}, middle * [-1, 1, 1, 1]),
        ({"kind": "mirror", "axis": 0}, middle),
    ):
        moved = affine_of(break_image(11, good / CORD, at, **vary))
        np.testing.assert_allclose(moved @ [35.5, 31.5, 2.5, 1], wanted, atol=1e-4)
        np.testing.assert_allclose(nib.load(at).get_qform(), moved, atol=1e-4)
        assert unpacked(at)[352:] == drawn
        turned = nib.aff2axcodes(moved)
        assert turned == (("L", "A", "S") if "kind" not in vary else ("R", "A", "S"))
    break_image(12, good / CORD, at, less=5)
    assert field(at, 40, "4h") == (3, 67, 64, 6)
    before = np.asarray(nib.load(good / CORD).dataobj)
    np.testing.assert_array_equal(nib.load(at).dataobj, before[:-5])
    break_image(12, good / CORD, at, kind="spacing", factor=2.0)
    assert field(at, 40, "4h") == (3, 72, 64, 6) and nib.load(at).header.get_zooms() == (1.5, 1.5, 4.0)


def test_13_to_15_and_24_are_of_what_was_drawn(good, tmp_path):
    at, before = tmp_path / "a.nii.gz", np.asarray(nib.load(good / LESION).dataobj)
    assert not np.asarray(nib.load(break_image(13, good / CORD, at)).dataobj).any()
    for value in (255.0, 0.5, 2.0):
        np.testing.assert_array_equal(nib.load(break_image(14, good / LESION, at, value=value)).dataobj, before * value)
    values = np.asarray(nib.load(break_image(15, good / LESION, at)).dataobj)
    one = values.max()
    assert 0 < abs(one - 1) < 1e-6 and f"{one:.8f}" == "1.00000006" and ((values == one) == (before == 1)).all()
    cord = np.asarray(nib.load(good / CORD).dataobj)
    outside = [
        int((np.asarray(nib.load(break_image(24, good / LESION, at, voxels=n)).dataobj) > cord).sum())
        for n in (0, 3, 8)
    ]
    assert outside[0] == 0 < outside[1] < outside[2] == before.sum()


def test_16_to_18_are_of_the_values(good, tmp_path):
    at, before = tmp_path / "a.nii.gz", nib.load(good / IMAGE).get_fdata()
    image = nib.load(break_image(16, good / IMAGE, at, peak=90_000))
    assert image.get_data_dtype() == np.int16 and image.get_fdata().max() == pytest.approx(90_000, rel=1e-4)
    assert np.corrcoef(image.get_fdata().ravel(), before.ravel())[0, 1] > 0.9999
    assert image.get_fdata().max() > np.iinfo(np.int16).max
    break_image(17, good / IMAGE, at, slope=3.0)
    assert field(at, 112, "f") == 3 and math.isnan(field(at, 116, "f"))
    assert unpacked(at)[352:] == unpacked(good / IMAGE)[352:]
    break_image(18, good / IMAGE, at)
    assert field(at, 70, "2h") == (128, 24) and len(unpacked(at)) == 352 + 3 * before.size
    break_image(18, good / IMAGE, at, kind="complex")
    assert field(at, 70, "2h") == (32, 64) and np.array_equal(nib.load(at).dataobj, before)


def test_19_huge_is_small_on_the_disk(good, tmp_path):
    header = break_image(19, good / IMAGE, tmp_path / "a.nii.gz")
    assert field(header, 40, "4h") == (3, 32767, 32767, 32767) and header.stat().st_size < 500
    bomb = break_image(19, good / IMAGE, tmp_path / "b.nii.gz", kind="bomb", cap_bytes=3e8)
    tail = break_image(19, good / IMAGE, tmp_path / "c.nii.gz", kind="tail", cap_bytes=3e8)
    for path in (bomb, tail):
        assert path.stat().st_size < 1e6
        length, head = 0, b""
        with gzip.open(path) as stream:
            while block := stream.read(1 << 22):
                head, length = head or block[:352], length + len(block)
        promised = math.prod(struct.unpack_from("<3h", head, 42)) * 2 + 352
        assert length > 3e8 and ((promised > 3e8) == (path is bomb)) and promised <= length
    big = break_image(19, good / IMAGE, tmp_path / "d.nii.gz", kind="bomb", cap_bytes=3e9)
    assert big.stat().st_size < 5e6


def test_21_to_23_and_25_are_of_the_data_set(good, tmp_path):
    at = {kind: fault_files(21, make_fault(21, tmp_path / kind, kind=kind))[0]
          for kind in ("missing", "broken", "field", "unit")}  # fmt: skip
    assert not at["missing"].exists()
    with pytest.raises(json.JSONDecodeError):
        json.loads(at["broken"].read_text())
    assert isinstance(json.loads(at["field"].read_text())["EchoTime"], str)
    assert json.loads(at["unit"].read_text())["EchoTime"] == 100

    for resaved in (False, True):
        one, other = fault_files(22, make_fault(22, tmp_path / f"twice {resaved}", resaved=resaved))
        assert one.parts[-3:-1] == ("sub-001", "anat") and other.parts[-3:-1] == ("sub-002", "anat")
        assert (one.read_bytes() == other.read_bytes()) == (not resaved)
        np.testing.assert_array_equal(nib.load(one).dataobj, nib.load(other).dataobj)

    dataset = make_fault(23, tmp_path / "contrast", suffix="STIRx")
    assert not list(dataset.rglob("sub-002_T2w*")) and len(list(dataset.rglob("sub-002_STIRx*"))) == 6
    assert fault_files(23, dataset)[0].read_bytes() == (good / IMAGE).read_bytes()

    odd = make_fault(25, tmp_path / "names")
    assert " " in odd.name and not odd.name.isascii() and len(fault_files(25, odd)) == 3
    assert any(not path.name.isascii() for path in fault_files(25, odd))


@pytest.mark.parametrize(
    ("row", "vary"),
    [(0, {}), (26, {}), (1, {"kepe": 0.5}), (1, {"keep": 1.0}), (3, {"kind": "x"}), (6, {"axis": 3}), (9, {"kind": 1}),
     (11, {"kind": "x"}), (12, {"less": 72}), (19, {"kind": "x"}), (21, {"kind": "x"}), (22, {"kind": "x"})],
)  # fmt: skip
def test_a_wrong_row_or_option_is_refused(row, vary, tmp_path):
    with pytest.raises(SettingError, match="FAULT-"):
        make_fault(row, tmp_path, **vary)
    if row in FAULTS:
        assert fault_options(row).keys().isdisjoint({"file", "raw", "packed", "dataset"})


def test_a_file_of_ones_own_is_broken_where_it_lies_and_big_endian_too(good, tmp_path):
    image = nib.load(good / IMAGE)
    turned = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))
    turned.to_filename(tmp_path / "a.nii")
    break_image(4, tmp_path / "a.nii", tmp_path / "a.nii", count=3)
    assert np.isnan(nib.load(tmp_path / "a.nii").get_fdata()).sum() == 3
    with pytest.raises(SettingError, match="make_fault"):
        break_image(22, good / IMAGE, tmp_path / "b.nii.gz")


# -- what readers do: numbers of the installed versions; a law first


def test_a_good_file_reads_the_same_in_all_four(good, readers):
    table = what_readers_do(good / IMAGE, good / LESION, original=good / IMAGE, original_mask=good / LESION,
                            readers=readers)  # fmt: skip
    assert list(table.index) == ["nibabel", "SimpleITK", "MONAI", "msfilm"]
    assert (table["verdict"] == "read").all() and not table["silent"].any() and not table["warnings"].any()
    assert (table["changed"] == 0).all() and (table["moved_mm"] < 1e-4).all()
    assert set(table["shape"]) == {"72 x 64 x 6"} and set(table["orientation"]) == {"LAS"}
    assert len(set(table["happened"])) == 1 and "image mean under it" in table["happened"].iloc[0]


def test_what_is_known_of_a_truncated_file(good, tmp_path, readers):
    table = what_readers_do(break_image(1, good / IMAGE, tmp_path / "a.nii.gz"), original=good / IMAGE, readers=readers)
    assert table["verdict"].to_dict() == {"nibabel": "error", "SimpleITK": "read", "MONAI": "error", "msfilm": "error"}
    itk = table.loc["SimpleITK"]
    assert itk["silent"] and 0.3 < itk["zeros_at_end"] < 0.7 and itk["changed"] == pytest.approx(itk["zeros_at_end"])
    assert "NIFTI-TRUNCATED" in table.loc["msfilm", "happened"]


def test_nan_is_passed_on_or_turned_into_0_and_a_wrong_checksum_is_overlooked(good, tmp_path, readers):
    table = what_readers_do(break_image(4, good / IMAGE, tmp_path / "a.nii.gz", count=9), original=good / IMAGE,
                            readers=readers)  # fmt: skip
    assert table["not_finite"].dropna().to_dict() == {"nibabel": 9, "SimpleITK": 0, "MONAI": 9}
    assert table.loc["SimpleITK", "low"] == 0 and table.loc["SimpleITK", "silent"]
    table = what_readers_do(break_image(2, good / IMAGE, tmp_path / "b.nii.gz"), original=good / IMAGE, readers=readers)
    assert table.loc["nibabel", "silent"] and table.loc["nibabel", "changed"] > 0.01
    assert table.loc["msfilm", "verdict"] == "error"


def test_a_mask_apart_is_overlooked_by_those_who_lay_it_by_index(good, tmp_path, readers):
    table = what_readers_do(good / IMAGE, break_image(11, good / CORD, tmp_path / "a.nii.gz"), original=good / IMAGE,
                            original_mask=good / CORD, readers=readers)  # fmt: skip
    assert table["silent"].to_dict() == {"nibabel": True, "SimpleITK": False, "MONAI": True, "msfilm": False}
    assert "mask: a corner lies 30 mm off" in table.loc["nibabel", "happened"]


def test_a_huge_header_takes_nothing_down(good, tmp_path, readers):
    for kind in ("header", "bomb"):
        path = break_image(19, good / IMAGE, tmp_path / "a.nii.gz", kind=kind)
        table = what_readers_do(path, readers=readers)
        assert (table["verdict"] == "error").all() and "NIFTI-SIZE" in table.loc["msfilm", "happened"]
    assert (what_readers_do(good / IMAGE, readers=readers)["verdict"] == "read").all(), "the process lives on"


def test_a_reader_that_takes_too_long_is_stopped_and_one_that_dies_is_told(good):
    with Readers() as running:
        assert running.ask("nibabel", good / IMAGE)["verdict"] == "read"
        running._process.send_signal(signal.SIGSTOP)  # as if it never came to an end with this file
        report = running._talk({"reader": "nibabel", "path": str(good / IMAGE), "memory_mb": 600}, 0.25)
        assert report["error"] == "timeout" and "0.25 s" in report["message"]
        running._talk({"reader": "nibabel", "warm": True}, 60)
        running._process.kill()
        running._process.wait()
        assert running.ask("nibabel", good / IMAGE)["verdict"] == "read", "and started again"
    assert running._process is None


def test_no_folder_of_this_machine_and_no_address_is_told(good, tmp_path, readers):
    for row in (1, 3, 6):
        table = what_readers_do(break_image(row, good / IMAGE, tmp_path / f"{row}.nii.gz"), readers=readers)
        text = " ".join(table["happened"]) + " ".join(table["warnings"])
        assert str(tmp_path) not in text and "0x" not in text and ".cxx" not in text
