"""A BIDS folder becomes a table: names of both kinds, sidecars with inheritance, centres, and every fault by name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import write_plain

from msfilm.data.bids import contrast_of, find_volumes, parse_mask_name
from msfilm.errors import InputError


def codes(faults):
    return [fault.code for fault in faults]


@pytest.mark.parametrize(("stem", "expected"), [
    ("sub-001_space-T2w_label-SC_mask", ("sub-001_T2w", "cord")),
    ("sub-001_ses-02_acq-ax_run-1_space-T2starw_label-SC_mask", ("sub-001_ses-02_acq-ax_run-1_T2starw", "cord")),
    ("sub-001_space-T2w_label-lesion_desc-rater1_mask", ("sub-001_T2w", "rater-1")),
    ("sub-001_space-T2w_label-lesion_desc-rater12_mask", ("sub-001_T2w", "rater-12")),
    ("sub-001_space-T2w_label-lesion_desc-truth_mask", ("sub-001_T2w", "truth")),
    ("sub-unf01_T2star_seg-manual", ("sub-unf01_T2star", "cord")),
    ("sub-05_acq-MTon_MTS_seg", ("sub-05_acq-MTon_MTS", "cord")),
    ("sub-1_T2w_label-SC_mask", ("sub-1_T2w", "cord")),
    ("sub-1_T2w_lesion-manual", ("sub-1_T2w", "rater-1")),
    ("sub-1_T2w_lesion", ("sub-1_T2w", "rater-1")),
    ("sub-1_T2w_lesion-manual-rater2", ("sub-1_T2w", "rater-2")),
    ("sub-1_T2w_csfseg-manual", None),
    ("sub-1_T2w_gmseg", None),
    ("sub-1_T2w_seg-manual_labeled", None),
    ("sub-1_T2w", None),
    ("notes", None),
])  # fmt: skip
def test_mask_names_of_both_kinds_are_understood(stem, expected):
    parsed = parse_mask_name(stem)
    assert (parsed if parsed is None else parsed[:2]) == expected


def test_contrast_is_the_suffix_and_both_spellings_of_t2star_are_one():
    assert [contrast_of(suffix) for suffix in ("T2starw", "T2star", "T2w", "MTS")] == ["T2star", "T2star", "T2w", "MTS"]
    names = {
        "sub-01_flip-1_mt-on_MTS": "MTon", "sub-01_acq-MToff_MTS": "MToff", "sub-01_acq-T1w_MTS": "MTS",
        "sub-01_acq-stir_T2w": "STIR", "sub-01_acq-sagPSIR_T1w": "PSIR", "sub-01_STIR": "STIR",
        "sub-01_acq-sag_T2w": "T2w",
    }  # fmt: skip
    assert {name: contrast_of(name) for name in names} == names


@pytest.mark.parametrize("valid", [True, False])
def test_tree_becomes_a_table(tree, valid):
    table = find_volumes(tree(patients=3, valid=valid))
    assert list(table.index) == [f"sub-{n:03d}_{c}" for n in (1, 2, 3) for c in ("T2starw", "T2w")]
    row = table.loc["sub-002_T2w"]
    assert (row.patient, row.session, row.contrast, row.centre) == ("sub-002", None, "T2w", "centre-00")
    assert row.rater == "rater-of-0"
    assert row.image.name == "sub-002_T2w.nii.gz" and row.cord.is_file() and row["rater-1"].is_file()
    assert ("truth" in table.columns) == valid and not row.notes and not row.errors
    # inherited from the root, and its own
    assert (row.echo_time_s, row.repetition_time_s, row.field_T, row.flip_angle_deg, row.manufacturer) == (
        0.1,
        4.0,
        3.0,
        90.0,
        "Acme",
    )
    star = table.loc["sub-002_T2starw"]
    assert math.isnan(star.echo_time_s) and star.contrast == "T2star"  # T2w.json is not for it
    assert table.attrs["notes"] == []


def test_nearer_sidecar_wins_and_other_entities_do_not_apply(tree):
    root = tree(patients=1, contrasts=("T2w",))
    folder = root / "sub-001"
    (folder / "sub-001_T2w.json").write_text('{"EchoTime": 0.09, "RepetitionTime": 3.0}')
    (folder / "anat" / "sub-001_T2w.json").write_text('{"EchoTime": [0.05, 0.07]}')
    (root / "acq-ax_T2w.json").write_text('{"RepetitionTime": 9}')
    row = find_volumes(root).loc["sub-001_T2w"]
    assert row.echo_time_s == pytest.approx(0.06) and row.repetition_time_s == 3.0 and row.field_T == 3.0


def test_of_two_sidecars_in_one_folder_the_more_particular_wins(tmp_path):
    anat = tmp_path / "sub-1" / "anat"
    write_plain(anat / "sub-1_acq-ax_run-1_T2w.nii", np.zeros((3, 3, 3)), np.eye(4), np.int16)
    for name, value in (("run-1", 0.2), ("acq-ax_run-1", 0.1), ("run-2", 0.3), ("acq-sag_run-1", 0.4)):
        (tmp_path / f"{name}_T2w.json").write_text(json.dumps({"EchoTime": value}))
    assert find_volumes(tmp_path).loc["sub-1_acq-ax_run-1_T2w"].echo_time_s == 0.1


def test_sessions_and_entities_are_kept(tmp_path):
    anat = tmp_path / "sub-ä" / "ses-02" / "anat"
    write_plain(anat / "sub-ä_ses-02_acq-ax_T2w.nii", np.zeros((3, 3, 3)), np.eye(4), np.int16)
    write_plain(anat / "sub-ä_ses-02_acq-ax_T2w_seg.nii.gz", np.zeros((3, 3, 3)), np.eye(4), np.uint8)
    row = find_volumes(tmp_path).loc["sub-ä_ses-02_acq-ax_T2w"]
    assert (
        (row.patient, row.session, row.centre) == ("sub-ä", "ses-02", "unknown")
        and row.cord.parent == anat
        and not row.errors
    )


@pytest.mark.parametrize(("content", "code", "column"), [
    ("{", "SIDECAR-BROKEN", "flip_angle_deg"),
    ("[1, 2]", "SIDECAR-BROKEN", "flip_angle_deg"),
    ('{"EchoTime": "short"}', "SIDECAR-FIELD", "echo_time_s"),
    ('{"EchoTime": null}', "SIDECAR-FIELD", "echo_time_s"),
    ('{"EchoTime": true}', "SIDECAR-FIELD", "echo_time_s"),
    ('{"EchoTime": 85}', "SIDECAR-UNIT", "echo_time_s"),
    ('{"RepetitionTime": 4000}', "SIDECAR-UNIT", "repetition_time_s"),
    ('{"FlipAngle": -5}', "SIDECAR-UNIT", "flip_angle_deg"),
    ('{"MagneticFieldStrength": 30000}', "SIDECAR-UNIT", "field_T"),
    ('{"Manufacturer": 7}', "SIDECAR-FIELD", "manufacturer"),
])  # fmt: skip
def test_broken_sidecar_is_noted_with_file_and_field_and_the_volume_goes_on(tree, content, code, column):
    root = tree(patients=1, contrasts=("T2w",))
    sidecar = root / "sub-001" / "anat" / "sub-001_T2w.json"
    sidecar.write_text(content)
    row = find_volumes(root).loc["sub-001_T2w"]
    assert codes(row.notes) == [code] and row.notes[0].where == str(sidecar) and not row.errors
    assert row[column] is None or math.isnan(row[column])
    field = next(iter(json.loads(content)), None) if content.startswith('{"') else None
    assert field is None or field in row.notes[0].what


def test_missing_sidecar_is_noted(tree):
    root = tree(patients=1)
    (root / "sub-001" / "anat" / "sub-001_T2starw.json").unlink()
    row = find_volumes(root).loc["sub-001_T2starw"]
    assert codes(row.notes) == ["SIDECAR-MISSING"] and not row.errors


@pytest.mark.parametrize(("content", "code"), [
    (None, "PARTICIPANTS-MISSING"),
    ("", "PARTICIPANTS-BROKEN"),
    ("participant_id\tage\nsub-001\t3\n", "PARTICIPANTS-BROKEN"),
    ("participant_id,centre\nsub-001,a\n", "PARTICIPANTS-BROKEN"),
    (b"\xff\xfe\x00participant_id", "PARTICIPANTS-BROKEN"),
])  # fmt: skip
def test_without_a_good_participants_file_every_centre_is_unknown_and_it_is_said_once(tree, content, code):
    root = tree(patients=2)
    if content is None:
        (root / "participants.tsv").unlink()
    else:
        (root / "participants.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    table = find_volumes(root)
    assert (
        set(table.centre) == {"unknown"} and len(table.attrs["notes"]) == 1 and table.attrs["notes"][0].startswith(code)
    )


def test_patient_that_participants_lacks_is_named(tree):
    root = tree(patients=2, contrasts=("T2w",))
    (root / "participants.tsv").write_text("participant_id\tsite\n001\tOslo\nsub-009\tn/a\n")
    table = find_volumes(root)
    assert list(table.centre) == ["Oslo", "unknown"] and [codes(notes) for notes in table.notes] == [
        [],
        ["PARTICIPANTS-LACK"],
    ]


def test_a_mask_is_found_without_the_entities_that_masks_may_not_have(tree):
    root = tree(patients=1, contrasts=("T2w",))
    for path in [*root.rglob("sub-001*T2w*")]:
        name = path.name.replace("space-T2w", "acq-MTon_space-MTS").replace("_T2w.", "_acq-MTon_flip-1_mt-on_MTS.")
        path.rename(path.with_name(name))
    table = find_volumes(root)
    assert list(table.index) == ["sub-001_acq-MTon_flip-1_mt-on_MTS"] and table["contrast"].tolist() == ["MTon"]
    assert table["cord"].notna().all() and table["rater-1"].notna().all() and not table["errors"].iloc[0]


def test_cord_mask_of_another_contrast_is_not_used(tree):
    root = tree(patients=1)
    (root / "derivatives/labels/sub-001/anat/sub-001_space-T2w_label-SC_mask.nii.gz").unlink()
    table = find_volumes(root)
    (fault,) = table.loc["sub-001_T2w"].errors
    assert fault.code == "MASK-MISSING" and "_seg-manual.nii.gz" in fault.mend and "--centreline" in fault.mend
    assert table.loc["sub-001_T2w"].cord is None and not table.loc["sub-001_T2starw"].errors


def test_hand_drawn_mask_goes_before_a_programs_and_derivatives_before_the_images_folder(tree):
    root = tree(patients=1, contrasts=("T2w",))
    anat, labels = root / "sub-001/anat", root / "derivatives/labels/sub-001/anat"
    good = labels / "sub-001_space-T2w_label-SC_mask.nii.gz"
    for other in (anat / "sub-001_T2w_seg.nii.gz", anat / "sub-001_T2w_label-SC_mask.nii.gz"):
        other.write_bytes(good.read_bytes())
    row = find_volumes(root).loc["sub-001_T2w"]
    assert row.cord == good and codes(row.notes) == ["MASK-TWICE"]
    manual = anat / "sub-001_T2w_seg-manual.nii.gz"
    manual.write_bytes(good.read_bytes())
    assert find_volumes(root).loc["sub-001_T2w"].cord == manual


def test_older_spelling_of_a_masks_image_is_followed(tree):
    root = tree(patients=1, contrasts=("T2starw",), valid=False)
    labels = root / "derivatives/labels/sub-001/anat"
    for path in labels.glob("*T2starw*"):
        path.rename(labels / path.name.replace("T2starw", "T2star"))
    row = find_volumes(root).loc["sub-001_T2starw"]
    assert row.cord.name == "sub-001_T2star_seg-manual.nii.gz" and not row.errors


def test_real_data_set_without_images_says_so_for_every_volume(mirror):
    table = find_volumes(mirror / "data_example_spinegeneric")
    assert len(table) == 29 and table.patient.nunique() == 10
    assert {code for errors in table.errors for code in codes(errors)} == {"IMAGE-MISSING"}
    assert table.image.isna().all() and table.cord.notna().all()
    assert dict(table.groupby("contrast").size()) == {"T1w": 10, "T2star": 9, "T2w": 10}
    row = table.loc["sub-unf01_T2star"]
    assert (row.centre, row.echo_time_s, row.repetition_time_s, row.flip_angle_deg) == ("unf", 0.014, 0.6, 30)
    assert (row.field_T, row.manufacturer) == (3.0, "Siemens")


def test_real_masks_beside_their_images_are_found(mirror):
    table = find_volumes(mirror / "sct_tutorial_data/multi_subject/data")
    assert (
        len(table) == 4
        and table.cord.notna().sum() == 1
        and table.cord["sub-05_acq-MTon_MTS"].name.endswith("_seg.nii.gz")
    )
    assert [codes(errors) for errors in table.errors].count(["MASK-MISSING"]) == 3


def test_no_folder_and_no_scans_are_refused(tmp_path):
    for folder, code in ((tmp_path / "none", "BIDS-MISSING"), (tmp_path, "BIDS-EMPTY")):
        with pytest.raises(InputError, match=code) as caught:
            find_volumes(folder)
        assert caught.value.where and caught.value.mend
