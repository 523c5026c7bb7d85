"""What check says of a data set as a whole: the same as prepare of twins, other formats, each row, each volume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import oriented_affine, write_plain

from msfilm.data.bids import find_volumes
from msfilm.data.check import CheckReport, check
from msfilm.data.prepare import prepare

SCAN = "sub-{0:03d}/anat/sub-{0:03d}_T2w.nii.gz"
CORD = "derivatives/labels/sub-{0:03d}/anat/sub-{0:03d}_space-T2w_label-SC_mask.nii.gz"
LESION = "derivatives/labels/sub-{0:03d}/anat/sub-{0:03d}_space-T2w_label-lesion_desc-rater1_mask.nii.gz"


def both(dataset, **settings):
    """Volumes that check refuses, and those that prepare does not keep."""
    report = check(dataset, progress=False, **settings)
    slices, _ = prepare(dataset, progress=False, **settings)
    bad = report.volumes.index[report.volumes["verdict"] == "refused"]
    return report, set(bad), set(report.volumes.index) - set(slices.volumes.index)


def copy(dataset, name, source, target):
    shutil.copy(dataset / name.format(source), dataset / name.format(target))


def test_a_volume_that_is_refused_anyway_is_nobodys_twin(tree):
    dataset = tree(patients=3, contrasts=("T2w",))
    copy(dataset, SCAN, 1, 2)
    (dataset / CORD.format(1)).unlink()
    report, bad, left_out = both(dataset)
    assert bad == left_out == {"sub-001_T2w"} and "IMAGE-TWICE" not in set(report.table["code"])


def test_twins_are_noted_on_both_volumes_and_prepare_keeps_the_first(tree):
    dataset = tree(patients=3, contrasts=("T2w",))
    copy(dataset, SCAN, 1, 3)
    report, bad, left_out = both(dataset)
    assert bad == {"sub-001_T2w", "sub-003_T2w"} and left_out == {"sub-003_T2w"}
    assert report.volumes["codes"].to_dict() == {"sub-001_T2w": "IMAGE-TWICE", "sub-002_T2w": "",
                                                 "sub-003_T2w": "IMAGE-TWICE"}  # fmt: skip
    facts = report.table.set_index("path")["fact"]
    assert "sub-003_T2w of another patient" in facts[SCAN.format(1)]
    assert "sub-001_T2w of another patient" in facts[SCAN.format(3)]


def test_every_field_of_one_sidecar_has_its_row(tree):
    dataset = tree(patients=1, contrasts=("T2w",))
    sidecar = "sub-001/anat/sub-001_T2w.json"
    (dataset / sidecar).write_text('{"EchoTime": 85, "RepetitionTime": 4000, "FlipAngle": "x", "Manufacturer": 3}')
    table = check(dataset, progress=False).table
    assert sorted(table["code"]) == ["SIDECAR-FIELD"] * 2 + ["SIDECAR-UNIT"] * 2
    assert set(table["path"]) == {sidecar} and table["fact"].nunique() == 4


def test_sourcedata_and_hidden_folders_are_left_alone(tree):
    dataset = tree(patients=1, contrasts=("T2w",))
    for folder in ("sourcedata", "sub-001/sourcedata", ".git", "more"):
        write_plain(dataset / folder / "x.nii", np.ones((4, 4, 4)), oriented_affine(shape=(4, 4, 4)), np.uint8)
    assert check(dataset, progress=False).others == ("more/x.nii",)


@pytest.mark.parametrize("known", [["t2w", "T2star"], ["T2W", "T2STAR"], ["T2w", "t2STAR"]])
def test_contrasts_are_compared_letter_by_letter(tree, known):
    dataset = tree(patients=1)
    report = check(dataset, network=known, progress=False)
    wrong = [contrast for contrast in ("T2star", "T2w") if contrast not in known]
    assert report.table["code"].tolist() == ["CONTRAST-UNKNOWN"] * len(wrong) and report.refused


@pytest.mark.parametrize(("rows", "volumes", "refused"), [
    (["refused"], ["good"], True), (["warned", "refused"], ["warned"], True), (["warned"], ["warned"], False),
    ([], ["good"], False),
])  # fmt: skip
def test_whatever_is_refused_makes_the_whole_refused(rows, volumes, refused):
    table = pd.DataFrame({"verdict": pd.Series(rows, dtype=object)})
    assert CheckReport(Path("x"), table, pd.DataFrame({"verdict": volumes})).refused is refused


def two_forms(path):
    """Give a file a qform 4 mm off its sform: refused, unless told which one to believe."""
    image = nib.load(path)
    data, sform = np.asarray(image.dataobj), image.affine
    shifted = sform.copy()
    shifted[0, 3] += 4
    moved = nib.Nifti1Image(data, sform)
    moved.set_sform(sform, code=1)
    moved.set_qform(shifted, code=1)
    nib.save(moved, path)


@pytest.mark.parametrize("name", [LESION, CORD])
def test_what_form_to_believe_holds_for_masks_too(tree, name):
    dataset = tree(patients=2, contrasts=("T2w",))
    two_forms(dataset / name.format(1))
    report, bad, left_out = both(dataset)
    assert bad == left_out == {"sub-001_T2w"} and "NIFTI-FORMS" in set(report.table["code"])
    report, bad, left_out = both(dataset, form="sform")
    assert bad == left_out == set()


def test_cords_and_lesions_have_each_their_own_values(tree):
    dataset = tree(patients=2, contrasts=("T2w",))
    for name, value in ((CORD, 255), (LESION, 7)):
        image = nib.load(dataset / name.format(1))
        write_plain(dataset / name.format(1), np.asarray(image.dataobj) * value, image.affine, np.uint8)
    for settings, refused in (
        ({}, {"sub-001_T2w"}), ({"cord_values": {255: 1}}, {"sub-001_T2w"}),
        ({"lesion_values": {7: 1}}, {"sub-001_T2w"}),
        ({"cord_values": {255: 1, 1: 1}, "lesion_values": {7: 1, 1: 1}}, set()),
    ):  # fmt: skip
        _, bad, left_out = both(dataset, **settings)
        assert bad == left_out == refused, settings


def test_a_cord_mask_without_a_voxel_is_refused(tree):
    dataset = tree(patients=2, contrasts=("T2w",))
    image = nib.load(dataset / CORD.format(1))
    write_plain(dataset / CORD.format(1), np.zeros(image.shape), image.affine, np.uint8)
    report, bad, left_out = both(dataset)
    assert bad == left_out == {"sub-001_T2w"} and "MASK-EMPTY" in set(report.table["code"])


@pytest.mark.parametrize("ending", [".nii.bz2", ".nii.zst", ".mgz", ".nrrd", ".MHA"])
def test_a_scan_of_another_format_is_named(tree, ending):
    dataset = tree(patients=1, contrasts=("T2w",))
    odd = dataset / f"sub-002/anat/sub-002_T2w{ending}"
    odd.parent.mkdir(parents=True)
    odd.write_bytes(b"x")
    (dataset / "sub-001/anat/sub-001_T2w.mgz").write_bytes(b"the same scan once more")
    (dataset / "sub-001/anat/sub-001_labels.mgz").write_bytes(b"no scan")
    report = check(dataset, progress=False)
    path = odd.relative_to(dataset).as_posix()
    assert report.table[["path", "code", "verdict"]].values.tolist() == [[path, "NIFTI-UNREADABLE", "warned"]]
    slices, refused = prepare(dataset, progress=False)
    assert not refused and any(path in note for note in slices.meta["notes"])


def test_header_and_image_of_a_pair_are_named_once(tree):
    dataset = tree(patients=1, contrasts=("T2w",))
    for ending in ("hdr", "img"):
        (dataset / f"sub-001/anat/sub-001_T1w.{ending}").write_bytes(b"")
    assert find_volumes(dataset).attrs["notes"] == [
        "NIFTI-UNREADABLE: sub-001/anat/sub-001_T1w.hdr is of a format that is not read: left out"
    ]


def test_what_concerns_the_whole_set_is_said_of_its_own_file(tree):
    dataset = tree(patients=1, contrasts=("T2w",))
    anat = dataset / "derivatives/labels/sub-002/anat"
    write_plain(anat / "sub-002_label-SC_mask.nii.gz", np.ones((4, 4, 4)), np.eye(4), np.uint8)
    report = check(dataset, progress=False)
    assert report.table[["path", "code"]].values.tolist() == [
        [(anat / "sub-002_label-SC_mask.nii.gz").relative_to(dataset).as_posix(), "MASK-WHOSE"]
    ]


# --- files by themselves, against a network ---------------------------------------------------------------------------


def test_in_a_plain_folder_names_tell_the_contrast_or_it_is_said_that_they_do_not(tmp_path):
    shape = (12, 12, 4)
    for name in ("FLAIR", "sub-1_acq-x_T2starw", "T2w", "sub-1_T2w_seg", "scan"):
        write_plain(tmp_path / f"{name}.nii.gz", np.arange(576).reshape(shape), oriented_affine(shape=shape), np.int16)
    assert not check(tmp_path, progress=False).refused
    report = check(tmp_path, network=["T2w", "T2star"], progress=False)
    assert report.refused and report.volumes["verdict"].to_dict() == {
        "FLAIR.nii.gz": "refused", "T2w.nii.gz": "good", "scan.nii.gz": "good", "sub-1_T2w_seg.nii.gz": "good",
        "sub-1_acq-x_T2starw.nii.gz": "good",
    }  # fmt: skip
    said = report.table.set_index("code")
    assert said.path["CONTRAST-UNKNOWN"] == "FLAIR.nii.gz" and said.path["CONTRAST-MISSING"] == "."
    assert "2 of 5 files" in said.fact["CONTRAST-MISSING"] and "scan.nii.gz" in said.fact["CONTRAST-MISSING"]
    for name, code in (("FLAIR", "CONTRAST-UNKNOWN"), ("scan", "CONTRAST-MISSING"), ("T2w", None)):
        report = check(tmp_path / f"{name}.nii.gz", network=["T2w"], progress=False)
        assert report.table["code"].tolist() == ([code] if code else []) and report.refused == (name == "FLAIR")
        assert set(report.table["path"]) <= {f"{name}.nii.gz"}
    assert json.loads(report.save(tmp_path / "a.json").read_text()) == report.entries()
