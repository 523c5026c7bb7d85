"""The cohort on disk: valid BIDS, the same bytes each time, resumable, and geometrically one patient in both
contrasts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from msfilm.data.bids import find_volumes
from msfilm.errors import InputError, SettingError
from msfilm.phantom import write_cohort
from msfilm.phantom.facts import ACQUISITIONS, centres, protocol
from msfilm.phantom.roster import CohortPlan, make_patient, patient_name, raters_of, scan_name, scans_of

MASKS = "derivatives/labels"


def digests(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four patients, so that two processes are really started."""
    return write_cohort(tmp_path_factory.mktemp("phantom") / "a cohort", patients=4, seed=11, workers=2, progress=False)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All nine acquisitions; the first patient has the panel of raters."""
    out = tmp_path_factory.mktemp("phantom") / "nine"
    plan = CohortPlan(2, acquisitions=tuple(ACQUISITIONS), raters="crossed", setting="wide")
    return write_cohort(out, patients=2, plan=plan, workers=1, progress=False)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_with_any_number_of_workers(cohort, tmp_path):
    assert digests(write_cohort(tmp_path / "again", patients=4, seed=11, workers=1, progress=False)) == digests(cohort)


def test_another_seed_is_another_cohort(cohort, tmp_path):
    other = write_cohort(tmp_path / "other", patients=1, seed=12, progress=False)
    name = "sub-001/anat/sub-001_T2w.nii.gz"
    assert digests(other)[name] != digests(cohort)[name]


def test_an_interrupted_cohort_is_completed_with_the_same_bytes(cohort, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    (copy / "sub-002/anat/sub-002_T2w.nii.gz").unlink()
    (copy / "sub-004/anat/sub-004_T2starw.json").unlink(missing_ok=True)
    shutil.rmtree(copy / MASKS / "sub-003")
    (copy / "participants.tsv").unlink()
    (copy / "sub-002/anat/.tmp-1-sub-002_T2w.nii.gz").write_bytes(b"half")
    untouched = copy / "sub-001/anat/sub-001_T2w.nii.gz"
    before = untouched.stat().st_mtime_ns
    write_cohort(copy, patients=4, seed=11, workers=1, progress=False)
    assert digests(copy) == digests(cohort)
    assert untouched.stat().st_mtime_ns == before, "what was there already is not made again"


def test_a_run_that_dies_midway_leaves_no_half_files_and_is_finished_by_the_next(cohort, tmp_path, monkeypatch):
    from msfilm.phantom import dataset

    real, made = dataset.make_scan, []

    def failing(*arguments, **more):
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(dataset, "make_scan", failing)
    def scans(folder):  # of the first two patients
        return {name: d for name, d in digests(folder).items() if "sub-001" in name or "sub-002" in name}

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "x", patients=2, seed=11, workers=1, progress=False)
    found, whole = scans(tmp_path / "x"), scans(cohort)
    assert 0 < len(found) < len(whole) and found.items() <= whole.items()
    assert not list((tmp_path / "x").rglob(".tmp-*"))
    monkeypatch.setattr(dataset, "make_scan", real)
    write_cohort(tmp_path / "x", patients=2, seed=11, workers=1, progress=False)
    assert scans(tmp_path / "x") == whole


def test_a_cohort_can_grow_and_keeps_its_patients(cohort, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    write_cohort(copy, patients=5, seed=11, workers=1, progress=False)
    before, after = digests(cohort), digests(copy)
    assert all(after[n] == h for n, h in before.items() if "sub-" in n)
    assert len(pd.read_csv(copy / "participants.tsv", sep="\t")) == 5


def test_a_patient_is_the_same_in_cohorts_of_any_size_and_content(cohort, tmp_path):
    one = write_cohort(tmp_path / "one", patients=1, plan=CohortPlan(11, ("T2star_ax",)), progress=False)
    whole = digests(cohort)
    mine = {name: digest for name, digest in digests(one).items() if "sub-001" in name}
    assert len(mine) >= 20 and all(whole[name] == digest for name, digest in mine.items())


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_folder_with_something_else_is_refused(cohort, tmp_path):
    before = digests(cohort)
    for plan in (CohortPlan(99), CohortPlan(11, ("T2w_ax",)), CohortPlan(11, raters="crossed"),
                 CohortPlan(11, setting="wide")):  # fmt: skip
        with pytest.raises(InputError, match="PHANTOM-EXISTS"):
            write_cohort(cohort, patients=4, plan=plan, progress=False)
    assert digests(cohort) == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="PHANTOM-EXISTS"):
        write_cohort(tmp_path, patients=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(("patients", "seed"), [(0, 0), (-3, 0), (2.5, 0), (True, 0), (2, -1), (2, 1.5)])
def test_wrong_numbers_are_refused(tmp_path, patients, seed):
    with pytest.raises(SettingError, match="PHANTOM-(PATIENTS|SEED)"):
        write_cohort(tmp_path / "x", patients=patients, seed=seed, progress=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"acquisitions": ("T2w_axial",)}, "ACQUISITION-UNKNOWN.*'T2w_ax'"),
        ({"acquisitions": ("T2w_ax", "T2w_ax")}, "PHANTOM-ACQUISITIONS"),
        ({"acquisitions": ()}, "PHANTOM-ACQUISITIONS"),
        ({"raters": "both"}, "PHANTOM-RATERS"),
        ({"setting": "middling"}, "RATERS-UNKNOWN"),
    ],
)
def test_a_plan_that_makes_no_cohort_is_refused(tmp_path, settings, code):
    with pytest.raises(SettingError, match=code):
        write_cohort(tmp_path / "x", patients=1, plan=CohortPlan(0, **settings), progress=False)


# ---- valid BIDS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["cohort", "everything"])
def test_the_validator_finds_no_error(which, request):
    folder = request.getfixturevalue(which)
    program = Path(sys.executable).parent / "bids-validator-deno"
    run = subprocess.run(
        [program, "--recursive", "--format", "json", str(folder)], capture_output=True, text=True, timeout=120
    )
    report = json.loads(run.stdout)

    def errors(part):
        found = [i for i in part["issues"]["issues"] if i.get("severity") == "error"]
        return found + [e for sub in (part.get("derivativesSummary") or {}).values() for e in errors(sub)]

    assert report.get("derivativesSummary"), "the validator did not look at the derivatives"
    assert errors(report) == []


def test_every_scan_has_its_valid_name_and_is_found_again(everything):
    plan = CohortPlan(2, acquisitions=tuple(ACQUISITIONS))
    found = find_volumes(everything)
    assert not any(found["errors"].map(len)) and len(found) == sum(len(scans_of(i, plan)) for i in range(2)) == 22
    names = {p.name.removesuffix(".nii.gz") for p in (everything / "sub-001/anat").glob("*.nii.gz")}
    assert names == {
        "sub-001_T2w", "sub-001_acq-lower_T2w", "sub-001_T2star", "sub-001_acq-lower_T2star", "sub-001_acq-sag_T2w",
        "sub-001_acq-iso_T2w", "sub-001_T1w", "sub-001_acq-MTon_flip-1_mt-on_MTS",
        "sub-001_acq-MToff_flip-1_mt-off_MTS", "sub-001_acq-stir_T2w", "sub-001_acq-psir_T1w",
    }  # fmt: skip
    for index in range(2):
        for name, station in scans_of(index, plan):
            row = found.loc[scan_name(index, name, station)]
            assert row["patient"] == patient_name(index)
            assert (row["rater-4"] is not None) == (index == 0), "four raters in the panel, one elsewhere"
    rater = json.loads(
        (everything / MASKS / "sub-001/anat/sub-001_space-T2w_label-lesion_desc-rater1_mask.json").read_text()
    )["Rater"]
    assert rater == raters_of(0, CohortPlan(2, acquisitions=tuple(ACQUISITIONS), raters="crossed"))[0]


def test_masks_are_uint8_on_the_image_grid_and_agree(cohort):
    participants = pd.read_csv(cohort / "participants.tsv", sep="\t").set_index("participant_id")
    seen = 0
    for image_path in sorted(cohort.glob("sub-*/anat/*.nii.gz")):
        stem = image_path.name.removesuffix(".nii.gz")
        entities, contrast = stem.rsplit("_", 1)
        patient = stem.split("_")[0]
        image = nib.load(image_path)
        masks = {}
        raters = 4 if participants.panel[patient] else 1
        labels = ("SC", *(f"lesion_desc-rater{k + 1}" for k in range(raters)), "lesion_desc-truth")
        for label in labels:
            mask = nib.load(
                cohort / MASKS / patient / "anat" / f"{entities}_space-{contrast}_label-{label}_mask.nii.gz"
            )
            assert mask.get_data_dtype() == np.uint8
            assert mask.shape == image.shape
            np.testing.assert_array_equal(mask.affine, image.affine)
            values = np.asarray(mask.dataobj)
            assert values.max() <= 1
            masks[label] = values.astype(bool)
            seen += 1
        assert "".join(nib.aff2axcodes(image.affine)) == centres().loc[participants.centre[patient], "order"]
        assert masks["SC"].any()
        truth = masks["lesion_desc-truth"]
        assert truth.sum() == 0 or (truth & ~masks["SC"]).sum() <= 0.1 * truth.sum()
        data = np.asarray(image.dataobj)
        assert data.dtype == np.int16 and data.min() >= 0
        assert (data > 0).mean() > 0.5, "files hold the whole plane"
        assert image.shape[0] * image.header.get_zooms()[0] >= 96  # cropping is a real step
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    assert seen == len(list((cohort / MASKS).rglob("*.nii.gz")))


def test_all_scans_of_a_patient_show_the_same_cord_in_the_same_place(everything):
    """The mask's centroid in mm, slice by slice, follows one curve in every file of a patient."""
    for index in range(2):
        patient = make_patient(index, 2)[1]
        count = 0
        for path in sorted((everything / MASKS / patient_name(index) / "anat").glob("*label-SC_mask.nii.gz")):
            mask = nib.as_closest_canonical(nib.load(path))
            data = np.asarray(mask.dataobj)
            voxels = [np.argwhere(data[:, :, k]).mean(axis=0) for k in range(data.shape[2]) if data[:, :, k].any()]
            depths = np.flatnonzero(data.any(axis=(0, 1)))
            points = (np.column_stack([voxels, depths, np.ones(len(depths))]) @ mask.affine.T)[2:-2, :3]
            centre = patient.centre(-points[:, 2])
            np.testing.assert_allclose(points[:, 1], centre[:, 1], atol=0.6, err_msg=path.name)
            np.testing.assert_allclose(points[:, 0].mean(), centre[:, 0].mean(), atol=0.7, err_msg=path.name)
            count += 1
        assert count == 11


def test_sidecars_say_how_the_scan_was_made(everything):
    seen = set()
    for index in range(2):
        centre = make_patient(index, 2)[0]
        for name, station in scans_of(index, CohortPlan(2, acquisitions=tuple(ACQUISITIONS))):
            how = protocol(centre, name)
            path = everything / patient_name(index) / "anat" / f"{scan_name(index, name, station)}.json"
            sidecar = json.loads(path.read_text())
            assert sidecar["EchoTime"] == pytest.approx(how.te / 1000, abs=1e-5)  # seconds, not milliseconds
            assert sidecar["RepetitionTime"] == pytest.approx(how.tr / 1000, rel=0.15)
            assert sidecar["FlipAngle"] == how.flip_deg and sidecar["MagneticFieldStrength"] == how.field_t
            assert sidecar["Manufacturer"] == centres().loc[centre, "manufacturer"]
            zooms = sorted(nib.load(path.with_suffix(".nii.gz")).header.get_zooms())
            assert sidecar["SliceThickness"] == pytest.approx(float(zooms[2]), rel=1e-5)
            assert ("InversionTime" in sidecar) == (name in ("T1w_iso", "STIR_sag", "PSIR_ax"))
            if "InversionTime" in sidecar:
                assert sidecar["InversionTime"] == pytest.approx(how.ti / 1000, abs=1e-4)
            assert ("MTState" in sidecar) == name.startswith("MT")
            if name.startswith("MT"):
                assert sidecar["MTState"] is (name == "MTon_ax")
                assert 0.02 < sidecar["RepetitionTimeExcitation"] < 0.06
            assert sidecar["PhantomArtefact"] in ("none", "motion", "flow", "dropout", "noise")
            seen.add(name)
    assert seen == set(ACQUISITIONS)


def test_the_participants_table_tells_who_has_lesions_and_a_panel(cohort):
    table = pd.read_csv(cohort / "participants.tsv", sep="\t")
    assert list(table.participant_id) == [patient_name(i) for i in range(4)]
    for index, row in table.iterrows():
        centre, _, lesions, _ = make_patient(index, 11)
        assert (row.centre, row.lesions, row.panel) == (centre, len(lesions), index % 5 == 0)
    described = json.loads((cohort / "participants.json").read_text())
    assert set(described) == set(table.columns) - {"participant_id"}


# ---- the roster -----------------------------------------------------------------------------------------------------


def test_the_papers_cohort_has_2549_volumes_of_642_patients():
    counts = np.array([len(scans_of(i)) for i in range(642)])
    assert counts.sum() == 2549 and counts.mean() == pytest.approx(3.97, abs=0.005)
    assert counts.min() >= 2 and counts.max() <= 5
    scans = [scan for i in range(642) for scan in scans_of(i)]
    names = [scan_name(i, *scan) for i in range(642) for scan in scans_of(i)]
    assert len(set(names)) == len(names)
    assert {station for _, station in scans} == {"upper", "lower", "chest"}
    assert np.mean([name == "T2w_ax" for name, _ in scans]) == pytest.approx(0.5, abs=0.05)


def test_other_acquisitions_come_once_and_leave_the_axial_ones_alone():
    plan = CohortPlan(0, acquisitions=tuple(ACQUISITIONS))
    for index in range(40):
        scans = scans_of(index, plan)
        assert [s for s in scans if s[0] in ("T2w_ax", "T2star_ax")] == scans_of(index)
        others = [s for s in scans if s[0] not in ("T2w_ax", "T2star_ax")]
        assert others == [(name, "upper") for name in list(ACQUISITIONS)[2:]]


def test_patients_come_from_13_centres_by_weight():
    seen = pd.Series([make_patient(i, 0)[0] for i in range(300)]).value_counts(normalize=True)
    weight = centres().weight / centres().weight.sum()
    assert len(seen) == 13
    np.testing.assert_allclose(seen.reindex(weight.index), weight, atol=0.05)
