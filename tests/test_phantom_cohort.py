"""The cohort on disk: valid BIDS, the same bytes each time, resumable, and geometrically one patient in both
contrasts.
"""

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

from msfilm.errors import InputError, SettingError
from msfilm.phantom import write_cohort
from msfilm.phantom.facts import centres


def digests(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("phantom") / "a cohort", patients=4, seed=11, workers=2, progress=False)


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
    shutil.rmtree(copy / "derivatives/labels/sub-003")
    (copy / "sub-002/anat/.tmp-1-sub-002_T2w.nii.gz").write_bytes(b"half")
    write_cohort(copy, patients=4, seed=11, progress=False)
    assert digests(copy) == digests(cohort)


def test_a_cohort_can_grow_and_keeps_its_patients(cohort, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    write_cohort(copy, patients=5, seed=11, progress=False)
    before, after = digests(cohort), digests(copy)
    assert all(after[n] == h for n, h in before.items() if "sub-" in n)
    assert len(pd.read_csv(copy / "participants.tsv", sep="\t")) == 5


def test_a_folder_with_something_else_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match="PHANTOM-EXISTS"):
        write_cohort(cohort, patients=4, seed=99, progress=False)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="PHANTOM-EXISTS"):
        write_cohort(tmp_path, patients=1, progress=False)
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(("patients", "seed"), [(0, 0), (-3, 0), (2.5, 0), (2, -1)])
def test_wrong_numbers_are_refused(tmp_path, patients, seed):
    with pytest.raises(SettingError, match="PHANTOM-"):
        write_cohort(tmp_path / "x", patients=patients, seed=seed, progress=False)


def test_the_validator_finds_no_error(cohort):
    program = Path(sys.executable).parent / "bids-validator-deno"
    run = subprocess.run(
        [program, "--recursive", "--format", "json", str(cohort)], capture_output=True, text=True, timeout=120
    )
    report = json.loads(run.stdout)

    def errors(part):
        found = [i for i in part["issues"]["issues"] if i.get("severity") == "error"]
        return found + [e for sub in (part.get("derivativesSummary") or {}).values() for e in errors(sub)]

    assert report.get("derivativesSummary"), "the validator did not look at the derivatives"
    assert errors(report) == []


def test_masks_are_uint8_on_the_image_grid_and_agree(cohort):
    participants = pd.read_csv(cohort / "participants.tsv", sep="\t").set_index("participant_id")
    for image_path in sorted(cohort.glob("sub-*/anat/*.nii.gz")):
        patient, contrast = image_path.name.removesuffix(".nii.gz").split("_")
        image = nib.load(image_path)
        masks = {}
        for label in ("SC", "lesion_desc-rater1", "lesion_desc-truth"):
            mask = nib.load(
                cohort
                / "derivatives/labels"
                / patient
                / "anat"
                / f"{patient}_space-{contrast}_label-{label}_mask.nii.gz"
            )
            assert mask.get_data_dtype() == np.uint8
            assert mask.shape == image.shape
            np.testing.assert_array_equal(mask.affine, image.affine)
            masks[label] = np.asarray(mask.dataobj).astype(bool)
        assert "".join(nib.aff2axcodes(image.affine)) == centres().loc[participants.centre[patient], "order"]
        assert masks["SC"].any()
        truth = masks["lesion_desc-truth"]
        assert truth.sum() == 0 or (truth & ~masks["SC"]).sum() <= 0.05 * truth.sum()
        data = np.asarray(image.dataobj)
        assert data.dtype == np.int16 and data.min() >= 0
        assert image.shape[0] * image.header.get_zooms()[0] >= 96  # cropping is a real step


def test_both_contrasts_show_the_same_cord_in_the_same_place(cohort):
    """The mask's centroid in mm, slice by slice, follows one curve in both scans of a patient."""
    for patient in ("sub-001", "sub-002", "sub-003"):
        curves = []
        for contrast in ("T2w", "T2star"):
            mask = nib.as_closest_canonical(
                nib.load(cohort / f"derivatives/labels/{patient}/anat/{patient}_space-{contrast}_label-SC_mask.nii.gz")
            )
            data = np.asarray(mask.dataobj)
            points = (
                np.array([[*np.argwhere(data[:, :, k]).mean(axis=0), k, 1] for k in range(data.shape[2])])
                @ mask.affine.T
            )
            curves.append(points[:, :3])
        low, high = (f(c[:, 2].min() if f is max else c[:, 2].max() for c in curves) for f in (max, min))
        z = np.linspace(low, high, 20)
        for axis in (0, 1):
            ys = [np.interp(z, c[:, 2], c[:, axis]) for c in curves]
            np.testing.assert_allclose(ys[0], ys[1], atol=0.5)


def test_sidecars_say_how_the_scan_was_made(cohort):
    for path in sorted(cohort.glob("sub-*/anat/*.json")):
        sidecar = json.loads(path.read_text())
        assert {"EchoTime", "RepetitionTime", "FlipAngle", "MagneticFieldStrength", "Manufacturer"} <= set(sidecar)
        assert 0.008 < sidecar["EchoTime"] < 0.12 and 0.4 < sidecar["RepetitionTime"] < 5  # seconds, not milliseconds
        zooms = nib.load(path.with_suffix("").with_suffix(".nii.gz")).header.get_zooms()
        assert sidecar["SliceThickness"] == pytest.approx(float(zooms[2]), rel=1e-5)
