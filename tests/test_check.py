"""Looking a data set through: the 25 bad inputs by name, good volumes kept, any file read or refused with a reason."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import oriented_affine, write_plain
from typer.testing import CliRunner

from msfilm.cli import app
from msfilm.data.cast import checked_cast
from msfilm.data.check import check, known_contrasts
from msfilm.data.lay_out import lay_out_bids
from msfilm.data.mask_values import parse_values
from msfilm.data.nifti import read_image, read_mask
from msfilm.data.prepare import prepare
from msfilm.data.slices import SliceSet
from msfilm.data.stream import stream_slices
from msfilm.errors import InputError, RunError, SettingError
from msfilm.model.weights import load_network
from msfilm.phantom.faults import FAULTS, fault_files, make_fault

_SPEC = importlib.util.spec_from_file_location(
    "faults_table", Path(__file__).resolve().parent.parent / "benchmarks" / "faults_table.py"
)
faults_table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(faults_table)

CASES = [
    (row, vary, code, verdict)
    for row, fault in FAULTS.items()
    for vary, code, verdict in [({}, fault.code, fault.verdict), *faults_table.VARIANTS.get(row, [])]
]


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the 25 rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "vary", "code", "verdict"), CASES, ids=[f"{row}-{vary}" for row, vary, *_ in CASES])
def test_each_bad_input_is_named_and_the_good_volumes_go_on(tmp_path, row, vary, code, verdict):
    found = faults_table.run_row(row, tmp_path, **vary)
    entries = [(entry["code"], entry["verdict"]) for entry in found["entries"]]
    assert all(sorted(entry) == ["code", "message", "path", "verdict"] for entry in found["entries"])
    at_check = FAULTS[row].at == "check"
    others = {"sub-001", "sub-003"}
    assert others <= set(found["patients"])
    if row == 23:  # only a network minds: the files are right
        assert entries == [(code, "refused")] and found["exit_check"] == 1 and found["exit_prepare"] == 0
        assert "FLAIR" in found["entries"][0]["message"] and len(found["patients"]) == 3
    elif not at_check:
        assert not entries and found["exit_check"] == found["exit_prepare"] == 0 and len(found["patients"]) == 3
    elif verdict == "refused":
        assert (code, "refused") in entries and found["exit_check"] == found["exit_prepare"] == 1
        assert set(found["patients"]) == others and set(found["refused"]) == {code}
    else:
        assert set(entries) <= {(code, "warned"), ("MASK-NOPLACE", "warned")} and (code, "warned") in entries
        assert found["exit_check"] == found["exit_prepare"] == 0 and found["refused"] == []
        assert len(found["patients"]) == 3 and code in found["notes"]["sub-002_T2w"]
        assert code not in found["notes"]["sub-001_T2w"]
    if at_check:
        paths = {path.relative_to(found["dataset"]).as_posix() for path in fault_files(row, found["dataset"])}
        named = {entry["path"] for entry in found["entries"] if entry["code"] == code}
        assert (named <= paths or row == 10) and code in found["text"]  # row 10 may be all files of a volume
        assert all(" -> " in one["message"] for one in found["entries"] if one["code"] != "SIDECAR-BROKEN")


@pytest.mark.parametrize(
    ("row", "codes"),
    [
        (16, ["NIFTI-RANGE"]),
        (22, ["SPLIT-LEAK"]),
        (23, ["CONTRAST-UNKNOWN"]),
        (25, ["SLICES-WRITE", "NIFTI-WRITE", "SLICES-WRITE", "PATH-WRITE"]),
    ],
)
def test_faults_that_are_met_elsewhere_are_named_there_and_leave_nothing(tmp_path, row, codes):
    dataset, place = make_fault(row, tmp_path / "data"), tmp_path / "place"
    place.mkdir()
    before = snapshot(dataset)
    found = faults_table.other_ways(row, dataset, place)
    assert [code for _, code, _, _ in found] == codes
    assert all(message and exit_code in (None, 1, 2) for _, _, message, exit_code in found)
    assert [path.name for path in place.iterdir()] == (["file"] if row == 25 else [])
    assert snapshot(dataset) == before


def test_the_table_holds_every_row(tmp_path):
    """What benchmarks/faults_table.py wrote is of these rows and says what the tests above hold."""
    rows = json.loads(faults_table.OUT.read_text(encoding="utf-8"))["rows"]
    assert {line["row"] for line in rows} == set(FAULTS) == set(range(1, 26))
    checked = [line for line in rows if line["to"] == "check, prepare"]
    assert [line["row"] for line in checked] == [row for row, *_ in CASES]
    for line, (row, _, code, verdict) in zip(checked, CASES, strict=True):
        mine = FAULTS[row].at == "check" or row == 23
        assert (line["code"], line["verdict"]) == (
            (code, "warned" if verdict == "accepted" else verdict) if mine else ("", "good")
        )


def test_a_check_writes_nothing_and_tells_each_volumes_verdict(tmp_path):
    dataset = make_fault(4, tmp_path / "data")
    before = snapshot(tmp_path)
    report = check(dataset, progress=False)
    assert snapshot(tmp_path) == before
    assert report.volumes["verdict"].tolist() == ["good", "refused", "good"] and report.refused
    assert report.counts == {"good": 2, "warned": 0, "refused": 1} and report.volumes["codes"].iloc[1] == "NIFTI-NAN"
    assert "3 volumes: 2 good, 0 warned, 1 refused; contrasts T2w (3)" in report.text()
    assert json.loads(report.save(tmp_path / "a.json").read_text()) == report.entries()


def test_the_list_replaces_an_earlier_one_and_nothing_else(tmp_path):
    """A mistyped --json must cost nobody a scan: it is refused before anything is read."""
    dataset = make_fault(4, tmp_path / "data")
    scan = next(dataset.rglob("*_T2w.nii.gz"))
    (tmp_path / "mine.json").write_text('{"EchoTime": 0.1}')
    (tmp_path / "rows.json").write_text('[1, {"path": "a"}]')
    report = check(dataset, progress=False)
    before = snapshot(tmp_path)
    for path in (scan, tmp_path / "mine.json", tmp_path / "rows.json", dataset):
        with pytest.raises(RunError, match="OUT-EXISTS"):
            report.save(path)
        told = CliRunner().invoke(app, ["check", str(dataset), "--json", str(path), "--quiet"])
        assert isinstance(told.exception, RunError) and "volumes" not in told.output
    assert snapshot(tmp_path) == before
    (tmp_path / "a.json").write_text("[]")   # of a data set without a fault
    for _ in range(2):
        assert json.loads(report.save(tmp_path / "a.json").read_text()) == report.entries()


def test_a_crop_that_cannot_be_is_refused_once_not_volume_by_volume(tmp_path):
    with pytest.raises(SettingError, match="CROP-SETTING"):
        check(make_fault(4, tmp_path / "data"), spacing_mm=float("nan"), progress=False)


def test_every_fault_of_a_volume_is_named_at_once(tmp_path):
    """A damaged scan does not hide what is wrong with its masks."""
    dataset = make_fault(1, tmp_path / "data")
    labels = dataset / "derivatives/labels/sub-002/anat"
    for path in (labels / "sub-002_T2w_seg-manual.nii.gz", labels / "sub-002_T2w_lesion-manual-rater1.nii.gz"):
        path.write_bytes(path.read_bytes()[:-30])
    report = check(dataset, progress=False)
    assert report.table["code"].tolist() == ["NIFTI-TRUNCATED"] * 3 and report.table["path"].nunique() == 3


# --- what the user says -----------------------------------------------------------------------------------------------


def test_told_which_form_is_right_the_scan_is_used_there(tmp_path):
    dataset = make_fault(8, tmp_path / "data")
    path = fault_files(8, dataset)[0]
    image = nib.load(path)
    for form in ("sform", "qform"):
        volume, theirs = read_image(path, form=form), getattr(image, f"get_{form}")()
        turn = nib.io_orientation(theirs)
        np.testing.assert_allclose(volume.affine, theirs @ nib.orientations.inv_ornt_aff(turn, image.shape), atol=1e-5)
        assert f"the {form} is used, as told" in volume.notes[0] and volume.notes[0].startswith("NIFTI-FORMS: ")
    reports = {form: check(dataset, form=form, progress=False) for form in ("sform", "qform")}
    verdicts = {form: report.volumes["verdict"].tolist() for form, report in reports.items()}
    assert sorted(found[1] for found in verdicts.values()) == ["refused", "warned"], "the masks lie with one of them"
    right = next(form for form, found in verdicts.items() if found[1] == "warned")
    slices, refused = prepare(dataset, form=right, progress=False)
    assert not refused and len(slices.volumes) == 3
    for work in (check, prepare):
        with pytest.raises(SettingError, match="FORM-UNKNOWN.*did you mean 'sform'"):
            work(dataset, form="s-form", progress=False)
        with pytest.raises(SettingError, match="MASK-MAP"):
            work(dataset, lesion_values={2: 3}, progress=False)


@pytest.mark.parametrize(("value", "words"), [(255.0, ["255=1"]), (0.5, [">=0.5"]), (0.5, ["0.5=1"])])
def test_told_what_a_masks_values_mean_it_is_read_so(tmp_path, value, words):
    dataset = make_fault(14, tmp_path / "data", value=value)
    path = fault_files(14, dataset)[0]
    truth = read_mask(path.with_name(path.name.replace("manual-rater1", "truth"))).data
    np.testing.assert_array_equal(read_mask(path, values=parse_values(words)).data, truth)
    report = check(dataset, lesion_values=parse_values(words), progress=False)
    assert not report.refused and set(report.table["code"]) == {"MASK-MAPPED"}
    code, text = faults_table.command("check", dataset, "--quiet", "--lesion-values", words[0])
    assert code == 0 and "MASK-MAPPED" in text
    assert read_mask(path, values={value: 0}).data.sum() == 0
    with pytest.raises(InputError, match="MASK-VALUES"):
        read_mask(path, values={7.0: 1})


@pytest.mark.parametrize("words", [["a=1"], ["255=2"], ["255"], [">=x"], ["nan=1"], ["255=1", ">=0.5"]])
def test_words_that_map_nothing_are_refused(words):
    with pytest.raises(SettingError, match="MASK-MAP"):
        parse_values(words)


def test_contrasts_are_held_against_a_network_or_a_list(tmp_path, tree):
    network = load_network("film-contrast-small")
    assert known_contrasts(network) == known_contrasts(["T2w", "T2star"]) == ("T2star", "T2w")
    dataset = tree(patients=1)
    assert not check(dataset, network=network, progress=False).refused
    report = check(dataset, network=["T1w", "T2w"], progress=False)
    assert report.table["code"].tolist() == ["CONTRAST-UNKNOWN"] and "T2star" in report.table["message"].iloc[0]
    with pytest.raises(SettingError, match="NETWORK-CARD"):
        check(dataset, network="film-contrast-small", progress=False)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_files_that_no_volume_uses_are_read_and_a_broken_one_is_named(tree):
    dataset = tree(patients=1, contrasts=("T2w",))
    for name in ("sub-001/anat/sub-001_T2w_gmseg.nii.gz", "extra/readable.nii"):
        write_plain(dataset / name, np.ones((4, 4, 4)), oriented_affine(shape=(4, 4, 4)), np.uint8)
    (dataset / "extra" / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")
    (dataset / ".hidden").mkdir()
    (dataset / ".hidden" / "not looked at.nii").write_bytes(b"")
    report = check(dataset, progress=False)
    assert report.others == ("extra/broken.nii.gz", "extra/readable.nii", "sub-001/anat/sub-001_T2w_gmseg.nii.gz")
    assert report.table[["path", "verdict"]].values.tolist() == [["extra/broken.nii.gz", "warned"]]
    assert "no volume uses this file" in report.table["message"].iloc[0] and not report.refused


def test_what_concerns_the_whole_set_is_said_once(tree):
    dataset = tree(patients=3)
    (dataset / "T2w.json").write_text("{")
    (dataset / "participants.tsv").unlink()
    (dataset / "dataset_description.json").write_text('{"Name": "x"}')
    report = check(dataset, progress=False)
    assert sorted(zip(report.table["path"], report.table["code"], strict=True)) == [
        ("T2w.json", "SIDECAR-BROKEN"),
        ("dataset_description.json", "BIDS-DESCRIPTION"),
        ("participants.tsv", "PARTICIPANTS-MISSING"),
    ]
    assert report.counts == {"good": 3, "warned": 3, "refused": 0}


def test_a_copy_within_one_patient_is_a_warning_and_one_across_patients_is_not(tree):
    dataset = tree(patients=2, contrasts=("T2w",))
    for old, new in (("sub-001/anat/sub-001_T2w", "sub-001/anat/sub-001_acq-b_T2w"),
                     ("derivatives/labels/sub-001/anat/sub-001_space-T2w_label-SC_mask",
                      "derivatives/labels/sub-001/anat/sub-001_acq-b_space-T2w_label-SC_mask")):  # fmt: skip
        (dataset / f"{new}.nii.gz").write_bytes((dataset / f"{old}.nii.gz").read_bytes())
    report = check(dataset, progress=False)
    assert report.table["code"].tolist() == ["IMAGE-TWICE"] * 2 and not report.refused
    slices, refused = prepare(dataset, progress=False)
    assert not refused and "IMAGE-TWICE" in slices.volumes.loc["sub-001_acq-b_T2w", "notes"] + slices.volumes.loc[
        "sub-001_T2w", "notes"
    ]


def test_a_folder_without_scans_or_that_is_not_there(tmp_path):
    for folder, code in ((tmp_path, "BIDS-EMPTY"), (tmp_path / "none", "BIDS-MISSING")):
        with pytest.raises(InputError, match=code):
            check(folder, progress=False)


# --- streaming --------------------------------------------------------------------------------------------------------


def test_the_set_streamed_to_disk_is_the_one_held_in_memory_byte_for_byte(tree, tmp_path):
    dataset = tree(patients=3)
    labels = dataset / "derivatives/labels"
    (labels / "sub-001/anat/sub-001_space-T2w_label-lesion_desc-rater1_mask.nii.gz").unlink()
    scan = dataset / "sub-002/anat/sub-002_T2w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-20])
    alone = labels / "sub-002/anat/sub-002_space-T2w_label-lesion_desc-rater9_mask.nii.gz"  # only a refused volume's
    alone.write_bytes((labels / "sub-002/anat/sub-002_space-T2w_label-SC_mask.nii.gz").read_bytes())
    held, faults = prepare(dataset, progress=False)
    streamed, same_faults = prepare(dataset, tmp_path / "streamed", progress=False)
    held.save(tmp_path / "held")
    assert [str(fault) for fault in faults] == [str(fault) for fault in same_faults] and len(faults) == 1
    assert streamed.equals(held) and isinstance(streamed.images, np.memmap) and "rater-9" not in streamed.masks
    for path in (tmp_path / "held").iterdir():
        if path.name != "slices.json":  # that one lists refused.json too
            assert path.read_bytes() == (tmp_path / "streamed" / path.name).read_bytes(), path.name
    first, second = (json.loads((tmp_path / name / "slices.json").read_text()) for name in ("held", "streamed"))
    second["sha256"].pop("refused.json")
    first.pop("index_sha256"), second.pop("index_sha256")  # of all the rest
    assert first == second


def test_streaming_that_fails_leaves_the_older_set(tree, tmp_path):
    dataset, out = tree(patients=2, contrasts=("T2w",)), tmp_path / "out"
    before, _ = prepare(dataset, out, progress=False)
    copy = snapshot(out)
    with faults_table.full_disk(10_000), pytest.raises(RunError, match="SLICES-WRITE"):
        prepare(dataset, out, progress=False)
    for scan in dataset.glob("sub-*/anat/*.nii.gz"):
        scan.write_bytes(b"")
    with pytest.raises(InputError, match="PREPARE-NOTHING.*NIFTI-"):
        prepare(dataset, out, progress=False)
    assert snapshot(out) == copy and SliceSet.load(out).equals(before)
    assert {path.name for path in tmp_path.iterdir()} == {dataset.name, "out"}


# --- casts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "fine"),
    [(255, "u1", True), (256, "u1", False), (-1, "u2", False), (32767.0, "i2", True), (32768.0, "i2", False),
     (0.5, "i2", False), (65504.0, "f2", True), (65536.0, "f2", False), (1e39, "f4", False), (np.nan, "f4", False),
     (np.inf, "f8", False), (2**31, "i4", False), (2**53 + 1, "i8", True), (float(2**63), "i8", False)],
)  # fmt: skip
def test_a_cast_keeps_the_value_or_is_refused(value, dtype, fine):
    data = np.array([0, value])
    if fine:
        assert checked_cast(data, dtype).tolist() == [0, value]
    else:
        with pytest.raises(InputError, match="NIFTI-RANGE"):
            checked_cast(data, dtype)


def test_a_streamed_crop_of_another_type_does_not_wrap(tree, tmp_path):
    from dataclasses import replace

    from msfilm.data.bids import find_volumes
    from msfilm.data.cropped import PreparedVolume  # what examine hands on
    from msfilm.data.examine import Reading, examine

    dataset = tree(patients=1, contrasts=("T2w",))
    part = examine(dataset, "sub-001_T2w", find_volumes(dataset).iloc[0], Reading()).prepared
    assert isinstance(part, PreparedVolume)
    wide = replace(part, images=part.images.astype(np.float32) * 1e6)
    with pytest.raises(InputError, match="IMAGE-RANGE"):
        stream_slices([("a", wide)], tmp_path / "out", {"size": 48, "spacing_mm": 0.75}, ["cord", "truth", "rater-1"])
    assert not (tmp_path / "out").exists()


# --- any file: nibabel's own, and the public scans --------------------------------------------------------------------


def test_each_of_nibabels_own_files_is_read_as_it_reads_them_or_refused_with_a_reason():
    folder = Path(nib.__file__).parent / "tests" / "data"
    report = check(folder, progress=False)
    assert len(report.volumes) >= 60
    refused = report.table[report.table["verdict"] == "refused"]
    assert set(refused["code"]) == {"NIFTI-UNREADABLE", "NIFTI-4D", "NIFTI-NAN"} and refused["mend"].str.len().min() > 5
    good = report.volumes[report.volumes["verdict"] != "refused"]
    assert {"anatomical.nii", "standard.nii.gz", "reoriented_anat_moved.nii"} == set(good.index)
    for name in good.index:
        theirs = nib.as_closest_canonical(nib.load(folder / name))
        np.testing.assert_allclose(read_image(folder / name).data, theirs.get_fdata(), rtol=1e-6)
    assert set(refused["path"]) == set(report.volumes.index) - set(good.index)
    moved = nib.load(folder / "resampled_anat_moved.nii").get_fdata()
    assert np.isnan(moved).sum() == 153 and "153 of" in "".join(refused["fact"])


# What the data sets' own READMEs lead one to expect: codes, and how many volumes can be used.
PUBLIC = {
    "sct_testing_data": ({"MASK-MISSING", "SIDECAR-MISSING", "MASK-UNEVEN"}, 5),
    "sct_tutorial_data": ({"MASK-MISSING", "MASK-UNEVEN", "NIFTI-FORMS-NEAR", "SIDECAR-MISSING"}, 1),
    "data_example_spinegeneric": ({"IMAGE-MISSING"}, 0),  # masks and sidecars without their images
    "open_ms_data": ({"MASK-MISSING", "SIDECAR-MISSING"}, 0),  # brains have no cord mask
}


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_data_set_is_checked_and_prepared_or_refused_by_name(mirror, tmp_path, name):
    dataset = lay_out_bids(name, tmp_path / "data", progress=False)
    codes, usable = PUBLIC[name]
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    report = check(dataset, progress=False)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    assert set(report.table["code"]) == codes and report.refused
    assert report.counts["refused"] == len(report.volumes) - usable
    if usable:
        slices, refused = prepare(dataset, tmp_path / "slices", progress=False)
        assert len(slices.volumes) == usable and len(refused) == report.counts["refused"]
        assert set(slices.volumes.index) == set(report.volumes.index[report.volumes["verdict"] != "refused"])
    else:
        with pytest.raises(InputError, match="PREPARE-NOTHING"):
            prepare(dataset, tmp_path / "slices", progress=False)
        assert not (tmp_path / "slices").exists()


def test_the_broken_slice_of_a_real_cord_mask_is_found(mirror, tmp_path):
    """Its README says so: broken at slice 20, the last of 20 that it has."""
    report = check(lay_out_bids("sct_tutorial_data", tmp_path / "data", progress=False), progress=False)
    found = report.table[report.table["code"] == "MASK-UNEVEN"]
    assert len(found) == 1 and "34 mm2 in slice 20" in found["fact"].iloc[0] and "sub-05" in found["path"].iloc[0]


def test_a_hole_along_the_cord_is_a_warning(tree):
    dataset = tree(patients=1, contrasts=("T2w",))
    path = next(dataset.rglob("*label-SC_mask.nii.gz"))
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[:, :, 2] = 0
    nib.save(nib.Nifti1Image(mask, image.affine), path)
    report = check(dataset, progress=False)
    assert "MASK-UNEVEN" in set(report.table["code"]) and not report.refused
    assert "0 mm2 in slice 2 " in report.table.set_index("code").loc["MASK-UNEVEN", "fact"]


def test_a_single_file_is_checked(real_cords):
    code, text = faults_table.command("check", real_cords["PSR"][0], "--quiet")
    assert code == 0 and "1 files: " in text
    code, text = faults_table.command("check", Path(nib.__file__).parent / "tests/data/test.mgz", "--quiet")
    assert code == 1 and "NIFTI-UNREADABLE" in text and "mri_convert" in text


def test_a_mask_under_an_unknown_name_is_named_where_it_is_not_used(tmp_path):
    """A lesion mask that nobody looks for is as good as none: its own name has to be seen, and what mends it."""
    dataset = make_fault(4, tmp_path / "data")
    drawn = next(dataset.glob("derivatives/labels/sub-*/anat/*.nii.gz"))
    stray = drawn.with_name(drawn.name.split("_T2w")[0] + "_T2w_plaques.nii.gz")
    stray.write_bytes(drawn.read_bytes())
    (dataset / "a.nii.gz").write_bytes(drawn.read_bytes())
    summary = check(dataset, progress=False).summary()
    assert "2 other NIfTI files, not used" in summary and "code/msfilm.yml" in summary
    assert summary.index(stray.name) < summary.index("a.nii.gz; "), summary
