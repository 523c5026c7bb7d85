"""A data set's own names: rules from YAML, misspelt ones refused, and every mask matched to its own scan."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import oriented_affine, write_plain
from hypothesis import given, settings
from hypothesis import strategies as st

from msfilm.data.bids import contrast_of, find_volumes, parse_mask_name
from msfilm.data.labels import NamingRules, entities_of
from msfilm.data.nifti import read_image
from msfilm.data.prepare import prepare
from msfilm.errors import InputError, MsfilmError, SettingError


def put(root, *names):
    """Empty files: finding volumes opens no image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def codes(faults):
    return [fault.code for fault in faults]


# ---- the rules themselves -------------------------------------------------------------------------------------------


def test_a_whole_file_is_read_and_all_of_it_means_something(tmp_path):
    file = tmp_path / "names é.yml"
    file.write_text(
        "folders: [derivatives/labels, 'derivatives/experts-{rater}', .]\n"
        "cord: [seg-manual, label-SC_mask]\n"
        "lesion: [lesion-manual, 'lesion-manual-{rater}', '_T2lesion*.nii.gz']\n"
        "raters: [ben, anna]\n"
        "contrasts:\n  T1post: {suffix: T1w, ce: '*'}\n  FLAIR: {suffix: FLAIR}\n"
        "take: {ses: [01, 02], acq: [ax, '']}\n"
        "leave: {run: 2}\n"
        "centre: hospital\n"
        "truth:\n",
        encoding="utf-8",
    )
    rules = NamingRules.from_file(file)
    assert rules.path == file and rules.centre == ("hospital",) and rules.raters == ("ben", "anna")
    assert rules.truth == NamingRules().truth, "a key with nothing after it keeps the usual"
    assert rules.kind_of("lesion-manual-anna") == ("lesion", 1, "anna")
    assert rules.kind_of("T2lesion3") == ("lesion", 2, None) and rules.kind_of("T2lesion_x") is None
    assert rules.kind_of("seg") is None
    assert rules.contrast_of("sub-1_ce-gad_T1w") == "T1post" and rules.contrast_of("sub-1_T1w") is None
    taken = ["sub-1_ses-01_T2w", "sub-1_ses-02_acq-AX_T2w"]
    left = ["sub-1_ses-1_T2w", "sub-1_T2w", "sub-1_ses-01_acq-sag_T2w", "sub-1_ses-01_run-2_T2w"]
    assert [rules.takes(stem) for stem in (*taken, *left)] == [True, True, False, False, False, False]


@pytest.mark.parametrize(("text", "error", "code", "said"), [
    ("lesions: [a]", SettingError, "NAMES-KEY", "did you mean 'lesion'"),
    ("take: {session: 1}", SettingError, "NAMES-KEY", "did you mean 'ses'"),
    ("contrasts: {FLAIR: {sufix: FLAIR}}", SettingError, "NAMES-KEY", "did you mean 'suffix'"),
    ("contrasts: {FLAIR: {}}", SettingError, "NAMES-VALUE", "FLAIR"),
    ("contrasts: FLAIR", SettingError, "NAMES-VALUE", "contrasts"),
    ("lesion: ['lesion-{ratre}']", SettingError, "NAMES-PATTERN", "did you mean 'rater'"),
    ("lesion: ['lesion-{rater']", SettingError, "NAMES-PATTERN", "brace"),
    ("lesion: ['{rater}-{n}']", SettingError, "NAMES-PATTERN", "2 of"),
    ("cord: ['seg-{rater}']", SettingError, "NAMES-PATTERN", "cord"),
    ("cord: ['a/b']", SettingError, "NAMES-PATTERN", "a/b"),
    ("cord: {a: b}", SettingError, "NAMES-VALUE", "a dict"),
    ("cord: []", SettingError, "NAMES-VALUE", "empty"),
    ("cord: [[a]]", SettingError, "NAMES-VALUE", "a list"),
    ("cord: [lesion]", SettingError, "NAMES-TWICE", "'lesion'"),
    ("folders: [../elsewhere]", SettingError, "NAMES-VALUE", "outside"),
    ("folders: [/etc]", SettingError, "NAMES-VALUE", "outside"),
    ("cord: [a]\ncord: [b]", InputError, "NAMES-YAML", "'cord' stands there twice"),
    ("cord: [a", InputError, "NAMES-YAML", "line"),
    ("- a", InputError, "NAMES-YAML", "key: value"),
    ("", InputError, "NAMES-YAML", "key: value"),
    ("a: &x [*x]", InputError, "NAMES-YAML", "line 1: "),
])  # fmt: skip
def test_wrong_rules_are_refused_with_file_and_mend(tmp_path, text, error, code, said):
    file = tmp_path / "names.yml"
    file.write_text(text)
    with pytest.raises(error) as caught:
        NamingRules.from_file(file)
    assert caught.value.code == code and said in str(caught.value), str(caught.value)
    assert caught.value.where == str(file) and caught.value.mend


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    for name, code in (("none.yml", "NAMES-MISSING"), ("bytes.yml", "NAMES-YAML"), (".", "NAMES-MISSING")):
        with pytest.raises(InputError, match=code):
            NamingRules.from_file(tmp_path / name)


def test_a_small_file_cannot_take_long(tmp_path):
    file = tmp_path / "laughs.yml"
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    file.write_text("\n".join([*lines, "cord: *a59"]))
    with pytest.raises(InputError, match="NAMES-YAML.*line 1.: more than 100000 parts"):
        NamingRules.from_file(file)
    with pytest.raises(SettingError, match="NAMES-VALUE.*a list"):
        nested = ["x"]
        for _ in range(60):
            nested = [nested, nested]
        NamingRules(cord=nested)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abcdelnorst:[]{}-'\"*&!#%,. \n01", max_size=60))
def test_any_text_is_read_or_refused_by_name(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "names.yml"
        file.write_text(text, encoding="utf-8")
        try:
            NamingRules.from_file(file)
        except MsfilmError as error:
            assert error.code.startswith("NAMES-") and error.where == str(file)


def test_rules_in_the_data_set_are_found_and_two_of_them_refused(tmp_path):
    put(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/sub-1_T2w_mycord.nii.gz")
    assert find_volumes(tmp_path).loc["sub-1_T2w"].cord is None
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "msfilm.yml").write_text("cord: mycord")
    assert find_volumes(tmp_path).loc["sub-1_T2w"].cord.name == "sub-1_T2w_mycord.nii.gz"
    assert find_volumes(tmp_path, NamingRules()).loc["sub-1_T2w"].cord is None, "rules given go first"
    (tmp_path / "msfilm.yml").write_text("cord: seg")
    with pytest.raises(SettingError, match="NAMES-TWICE"):
        find_volumes(tmp_path)
    assert find_volumes(tmp_path, tmp_path / "code" / "msfilm.yml").loc["sub-1_T2w"].cord is not None


# ---- contrasts, sessions, runs, parts -------------------------------------------------------------------------------


def test_contrasts_beyond_the_two():
    names = {
        "sub-1_T1w": "T1w", "sub-1_FLAIR": "FLAIR", "sub-1_UNIT1": "UNIT1", "sub-1_ce-gad_T1w": "T1post",
        "sub-1_ce-gad_FLAIR": "FLAIRpost", "sub-1_acq-axPSIR_T1w": "PSIR", "sub-1_acq-STIR_run-1_T2w": "STIR",
        "sub-1_mt-ON_MTS": "MTon", "sub-1_acq-sag_T2w": "T2w", "sub-1_acq-cor_run-2_T2starw": "T2star",
    }  # fmt: skip
    assert {name: contrast_of(name) for name in names} == names


def test_volumes_keep_their_names_and_masks_their_scan(tmp_path):
    kinds = ("run-1_", "run-2_", "acq-sag_", "acq-sag_run-2_")
    stems = [f"sub-1_ses-{ses}_{more}T2w" for ses in (1, 2) for more in kinds]
    for stem in stems:
        folder = f"sub-1/ses-{stem[10]}/anat"
        put(tmp_path, f"{folder}/{stem}.nii.gz", f"derivatives/labels/{folder}/{stem}_seg-manual.nii.gz",
            f"{folder}/{stem}_lesion-manual-rater2.nii.gz", f"{folder}/{stem}_lesion.nii.gz")  # fmt: skip
    table = find_volumes(tmp_path)
    assert list(table.index) == sorted(stems) and set(table.contrast) == {"T2w"} and not table.errors.map(len).any()
    assert list(table.session) == [f"ses-{stem[10]}" for stem in sorted(stems)]
    for stem, row in table.iterrows():
        assert {row[name].name for name in ("cord", "rater-1", "rater-2")} == {
            f"{stem}_{more}.nii.gz" for more in ("seg-manual", "lesion", "lesion-manual-rater2")
        }
        assert row.cord.parent.parent.name == row.session


def test_a_mask_that_may_belong_to_two_runs_is_used_for_neither(tmp_path):
    put(tmp_path, *(f"sub-1/anat/sub-1_run-{run}_T2w.nii.gz" for run in (1, 2)), "sub-1/anat/sub-1_T2w_seg.nii.gz",
        "sub-2/anat/sub-2_run-1_T2w.nii.gz", "sub-2/anat/sub-2_T2w_seg.nii.gz")  # fmt: skip
    table = find_volumes(tmp_path)
    assert list(table.index) == ["sub-1_run-1_T2w", "sub-1_run-2_T2w", "sub-2_run-1_T2w"]
    assert table.loc["sub-2_run-1_T2w"].cord is not None, "there is one run only"
    for stem in table.index[:2]:
        assert table.loc[stem].cord is None and codes(table.loc[stem].errors) == ["MASK-MISSING"]
        assert "MASK-WHOSE" in codes(table.loc[stem].notes)


def test_a_mask_of_another_session_is_never_used(tmp_path):
    put(tmp_path, "sub-1/ses-1/anat/sub-1_ses-1_T2w.nii.gz", "sub-1/ses-2/anat/sub-1_ses-2_T2w_seg.nii.gz",
        "sub-2/ses-1/anat/sub-2_ses-1_T2w.nii.gz", "sub-2/anat/sub-2_T2w_seg.nii.gz")  # fmt: skip
    table = find_volumes(tmp_path)
    assert table.loc["sub-1_ses-1_T2w"].cord is None
    assert table.loc["sub-2_ses-1_T2w"].cord is None, "nor one that names no session"
    assert codes(table.loc["sub-1_ses-2_T2w"].errors) == ["IMAGE-MISSING"]


def test_echoes_and_parts_share_a_mask_and_phase_images_are_left_out(tmp_path):
    put(tmp_path, *(f"sub-1/anat/sub-1_echo-{echo}_part-{part}_T2starw.nii.gz" for echo in (1, 2) for part in
                    ("mag", "phase")), "sub-1/anat/sub-1_T2starw_seg.nii.gz")  # fmt: skip
    table = find_volumes(tmp_path)
    assert list(table.index) == ["sub-1_echo-1_part-mag_T2starw", "sub-1_echo-2_part-mag_T2starw"]
    assert table.cord.nunique() == 1 and table.cord.notna().all() and not table.errors.map(len).any()
    assert any(note.startswith("BIDS-PASSED: 2 scans") for note in table.attrs["notes"])


def test_one_name_in_two_folders_is_refused_and_a_wrong_folder_noted(tmp_path):
    put(tmp_path, *(f"sub-1/ses-{ses}/anat/sub-1_T2w.nii.gz" for ses in (1, 2)),
        "sub-2/ses-1/anat/sub-2_T2w.nii.gz")  # fmt: skip
    table = find_volumes(tmp_path)
    assert "BIDS-TWICE" in codes(table.loc["sub-1_T2w"].errors)
    assert "BIDS-NAME" in codes(table.loc["sub-2_T2w"].notes) and "BIDS-TWICE" not in codes(
        table.loc["sub-2_T2w"].errors)  # fmt: skip


def test_take_and_leave_choose_scans_and_nothing_left_is_said(tmp_path):
    put(tmp_path, *(f"sub-1/ses-{ses}/anat/sub-1_ses-{ses}_acq-{acq}_T2w.nii.gz" for ses in "ab" for acq in
                    ("ax", "sag")))  # fmt: skip
    rules = NamingRules(take={"ses": "a"}, leave={"acq": "s*"})
    table = find_volumes(tmp_path, rules)
    assert list(table.index) == ["sub-1_ses-a_acq-ax_T2w"]
    assert any("BIDS-PASSED: 3 scans" in note for note in table.attrs["notes"])
    with pytest.raises(InputError, match="BIDS-EMPTY.*none of 4"):
        find_volumes(tmp_path, NamingRules(take={"ses": "c"}))


# ---- several raters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rules", "names"), [
    ({"lesion": "lesion-manual-{rater}"}, {"sub-1/anat/sub-1_T2w_lesion-manual-anna": "anna",
                                            "sub-1/anat/sub-1_T2w_lesion-manual-ben": "ben"}),
    ({"lesion": "label-lesion_desc-{rater}_mask"},
     {"derivatives/labels/sub-1/anat/sub-1_space-T2w_label-lesion_desc-anna_mask": "anna",
      "derivatives/labels/sub-1/anat/sub-1_space-T2w_label-lesion_desc-ben_mask": "ben"}),
    ({"lesion": "lesion", "folders": ["derivatives/by-{rater}"]},
     {"derivatives/by-anna/sub-1/anat/sub-1_T2w_lesion": "anna",
      "derivatives/by-ben/sub-1/anat/sub-1_T2w_lesion": "ben"}),
    ({"lesion": {"anna": "les1", "ben": ["les2", "les2b"]}}, {"sub-1/anat/sub-1_T2w_les1": "anna",
                                                               "sub-1/anat/sub-1_T2w_les2b": "ben"}),
])  # fmt: skip
def test_a_rater_is_told_by_suffix_desc_folder_or_list(tmp_path, rules, names):
    put(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", *(f"{name}.nii.gz" for name in names))
    for order in ((), ("ben",)):
        row = find_volumes(tmp_path, NamingRules(**rules, raters=order)).loc["sub-1_T2w"]
        who = ["ben", "anna"] if order else ["anna", "ben"]
        assert row.raters == ",".join(who) and row.rater == who[0]
        for number, rater in enumerate(who, 1):
            found = row[f"rater-{number}"].relative_to(tmp_path).as_posix().removesuffix(".nii.gz")
            assert names[found] == rater


def test_numbers_stay_names_take_what_is_free_and_a_sidecar_knows_best(tmp_path):
    rules = NamingRules(lesion=("lesion-{rater}",))
    anat = "sub-1/anat/sub-1_T2w"
    put(tmp_path, f"{anat}.nii.gz", *(f"{anat}_lesion-{who}.nii.gz" for who in ("rater2", "anna", "03", "zoe")))
    (tmp_path / f"{anat}_lesion-zoe.json").write_text('{"Rater": "Zoe K"}')
    row = find_volumes(tmp_path, rules).loc["sub-1_T2w"]
    found = {number: row[f"rater-{number}"].name.split("-")[-1].split(".")[0] for number in (1, 2, 3, 4)}
    assert found == {1: "anna", 2: "rater2", 3: "03", 4: "zoe"}
    assert row.raters == "anna,unknown,unknown,Zoe K" and row.rater == "anna"


# ---- masks whose name tells less ------------------------------------------------------------------------------------


def test_a_mask_without_its_scans_suffix_is_matched_by_its_sidecar_or_where_there_is_one_scan(tmp_path):
    put(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/sub-1_T2star.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz",
        *(f"derivatives/labels/sub-{n}/anat/sub-{n}_label-lesion_desc-rater2_mask.nii.gz" for n in (1, 2)),
        "derivatives/labels/sub-1/anat/sub-1_label-SC_mask.nii.gz")  # fmt: skip
    sidecar = tmp_path / "derivatives/labels/sub-1/anat/sub-1_label-SC_mask.json"
    sidecar.write_text(json.dumps({"Sources": ["bids::sub-1/anat/sub-1_T2star.nii.gz"]}))
    table = find_volumes(tmp_path)
    assert table.loc["sub-2_T2w"]["rater-2"] is not None, "one scan: no doubt"
    assert table.loc["sub-1_T2star"].cord is not None and table.loc["sub-1_T2w"].cord is None
    assert table.loc["sub-1_T2w"]["rater-2"] is None and "MASK-WHOSE" in codes(table.loc["sub-1_T2w"].notes)
    sidecar.write_text(json.dumps({"SpatialReference": "bids::sub-2/anat/sub-2_T2w.nii.gz"}))
    assert find_volumes(tmp_path).loc["sub-2_T2w"].cord is None, "never another patient's"


def test_a_centreline_is_found_beside_the_scan_or_in_the_labels(tmp_path):
    put(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/sub-1_T2w_centreline.csv", "sub-2/anat/sub-2_T2w.nii.gz",
        "derivatives/labels/sub-2/anat/sub-2_space-T2w_desc-centreline.csv", "sub-3/anat/sub-3_T2w.nii.gz",
        "sub-3/anat/sub-3_T2w_centreline.nii.gz")  # fmt: skip
    table = find_volumes(tmp_path)
    assert [path and path.suffix for path in table.centreline] == [".csv", ".csv", None]
    assert "sub-3_T2w_centreline.csv" in table.loc["sub-3_T2w"].errors[0].mend


label = st.text(alphabet="abcXYZ019", min_size=1, max_size=5)
ENTITIES = ("ses", "acq", "ce", "rec", "run", "echo")


@settings(max_examples=150, deadline=None)
@given(
    sub=label, given_=st.dictionaries(st.sampled_from(ENTITIES), label), rater=st.integers(1, 40),
    suffix=st.sampled_from(["T2w", "T2starw", "T1w", "FLAIR", "PSIR", "STIR", "UNIT1", "MTS"]), valid=st.booleans(),
)  # fmt: skip
def test_every_entity_of_a_scan_stands_in_its_masks_name_and_comes_back(sub, given_, rater, suffix, valid):
    entities = "_".join([f"sub-{sub}", *(f"{key}-{given_[key]}" for key in ENTITIES if key in given_)])
    image = f"{entities}_{suffix}"
    mask = f"{image}_lesion-manual{rater}"
    mask = f"{entities}_space-{suffix}_label-lesion_desc-rater{rater}_mask" if valid else mask
    assert parse_mask_name(mask)[:2] == (image, f"rater-{rater}")
    assert entities_of(image) == {"sub": sub, **given_, "suffix": suffix}
    assert parse_mask_name(image) is None, "a scan is no mask"


@pytest.mark.parametrize("degrees", [0.0, 13.0])
@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSR", "SAL"])
def test_own_names_go_all_the_way_to_slices_in_every_orientation(tmp_path, orientation, degrees):
    order = [int(axis) for axis, _ in nib.orientations.axcodes2ornt(orientation)]
    shape, voxel = np.array((44, 46, 5))[order], np.array((0.8, 0.8, 3.0))[order]
    affine = oriented_affine(orientation, voxel, shape, degrees)
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij"), -1) @ affine[:3, :3].T
    far = np.linalg.norm((grid - grid.reshape(-1, 3).mean(axis=0))[..., :2], axis=-1)
    root, name = tmp_path / "own é", "sub-a/ses-1/anat/sub-a_ses-1_acq-sag_run-1_FLAIR"
    write_plain(root / f"{name}.nii.gz", 300 + 300 * (far < 7), affine, np.int16)
    write_plain(root / f"derivatives/x/{name}_kord.nii.gz", far < 6, affine, np.uint8)
    write_plain(root / f"derivatives/x/{name}_les-anna.nii.gz", far < 2, affine, np.uint8)
    (root / "code").mkdir()
    (root / "code" / "msfilm.yml").write_text("folders: derivatives/x\ncord: kord\nlesion: 'les-{rater}'\n")
    slices, refused = prepare(root, progress=False)
    assert not refused and set(slices.table.contrast) == {"FLAIR"} and set(slices.table.rater) == {"anna"}
    assert slices.masks["rater-1"].sum() and read_image(root / f"{name}.nii.gz").orientation == orientation
    middle = slices.masks["rater-1"][:, 0] > 0
    rows, columns = np.nonzero(middle.any(axis=0))
    assert abs(rows.mean() - 23.5) < 2.5 and abs(columns.mean() - 23.5) < 2.5, "the lesion is in the cord's middle"
