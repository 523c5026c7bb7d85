"""A program's masks and people's stay apart, and whoever is killed half way can go on."""

from __future__ import annotations

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from evaluate_cohort import Brighter, known
from typer.testing import CliRunner

from msfilm.cli import app
from msfilm.data.bids import find_volumes
from msfilm.errors import InputError, RunError, SettingError
from msfilm.evaluate import segment, segment_dataset
from msfilm.files import sha256_file
from msfilm.locks import LOCK, hold_folder

NET = known(Brighter(1.2))
CORD = "derivatives/labels/sub-{0:03d}/anat/sub-{0:03d}_T2w_seg-manual.nii.gz"


def run(dataset, out, **settings):
    return segment_dataset(dataset, out, **{"network": NET, "progress": False} | settings)


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def scans(tree):
    return tree(patients=2, contrasts=("T2w",), valid=False)


def beside(scans):
    """Masks beside their scans, none of them a lesion's."""
    for path in (scans / "derivatives/labels").rglob("*seg-manual*"):
        path.rename(scans / path.relative_to(scans / "derivatives/labels"))
    shutil.rmtree(scans / "derivatives")
    return scans


# --- a program's masks are no rater's ---------------------------------------------------------------------------------


def test_masks_never_go_where_raters_are_looked_for(scans):
    before = snapshot(beside(scans))
    (scans / "link").symlink_to(scans / "derivatives" / "labels")
    for out in (".", "sub-001", "sub-001/anat", "sub-009/x", "derivatives/labels", "derivatives/labels/sub-001",
                "derivatives/../derivatives/labels/", "link"):  # fmt: skip
        with pytest.raises(SettingError, match="OUT-NAME"):
            run(scans, scans / out)
    (scans / "code").mkdir()
    (scans / "code/msfilm.yml").write_text("folders: [derivatives/mine, .]")
    with pytest.raises(SettingError, match="OUT-NAME"):
        run(scans, scans / "derivatives/mine")
    (scans / "code/msfilm.yml").unlink()
    assert snapshot(scans) == before
    assert not run(scans, scans / "derivatives/msfilm").refused and not run(scans, scans / "other").refused


def test_a_derivative_among_the_raters_folders_is_no_rater(scans):
    labels = scans / "derivatives/labels"
    for patient in ("sub-001", "sub-002"):
        anna = scans / "derivatives/anna" / patient / "anat"
        anna.mkdir(parents=True)
        shutil.copy(labels / f"{patient}/anat/{patient}_T2w_lesion-manual.nii.gz", anna)
    (scans / "code").mkdir()
    rules = 'folders: ["derivatives/{rater}"]\nlesion: [lesion-manual, label-lesion_mask]\n'
    (scans / "code/msfilm.yml").write_text(rules)
    before = find_volumes(scans)
    assert [who.split(",")[0] for who in before.raters] == ["anna"] * 2 and "rater-3" not in before
    assert not run(scans, scans / "derivatives/msfilm", probability=True).refused
    after = find_volumes(scans)
    assert after.drop(columns="notes").equals(before.drop(columns="notes")) and not after.notes.map(len).any()
    (note,) = after.attrs["notes"]
    assert note.startswith("MASK-PROGRAM: 2 lesion masks in derivatives/msfilm"), note
    assert set(run(scans, scans / "derivatives/msfilm", probability=True).table.status) == {"kept"}


def test_a_programs_mask_beside_a_scan_is_passed_over_until_a_person_answers_for_it(scans):
    beside(scans)
    image = scans / "sub-001/anat/sub-001_T2w.nii.gz"
    out = scans / "sub-001/anat/sub-001_T2w_lesion-manual.nii.gz"
    segment(image, out, contrast="T2w", cord=image.with_name("sub-001_T2w_seg-manual.nii.gz"), network=NET)
    table = find_volumes(scans)
    assert "rater-1" not in table and [note.code for note in table.notes["sub-001_T2w"]] == ["MASK-PROGRAM"]
    fault = table.notes["sub-001_T2w"][0]
    assert fault.where == str(out) and "Rater" in fault.mend
    sidecar = out.with_name("sub-001_T2w_lesion-manual.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Rater": "anna"}))
    row = find_volumes(scans).loc["sub-001_T2w"]
    assert row["rater-1"] == out and row.rater == "anna" and not row.notes


def test_masks_that_an_older_msfilm_put_among_the_labels_are_passed_over(scans, tmp_path):
    run(beside(scans), tmp_path / "out")
    shutil.copytree(tmp_path / "out", scans / "derivatives/labels")
    table = find_volumes(scans)
    assert "rater-1" not in table and table.cord.notna().all()
    assert [note.partition(":")[0] for note in table.attrs["notes"]] == ["MASK-PROGRAM"]
    (scans / "derivatives/labels/dataset_description.json").unlink()
    table = find_volumes(scans)
    assert "rater-1" not in table and [[note.code for note in notes] for notes in table.notes] == [["MASK-PROGRAM"]] * 2


# --- one writer -------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_the_lock_goes_away(scans, tmp_path):
    out = tmp_path / "out"
    run(scans, out)
    before = snapshot(out)
    assert not (out / LOCK).exists()
    with hold_folder(out):
        held = snapshot(out)
        with pytest.raises(RunError, match="RUN-BUSY"):
            run(scans, out, threshold=0.3)
        assert snapshot(out) == held
    assert snapshot(out) == before
    (out / LOCK).write_text("{}")  # of a process that was killed
    (out / "sub-001/anat/.tmp-99999-sub-001_x_mask.nii.gz").write_bytes(b"half")
    assert set(run(scans, out).table.status) == {"kept"} and snapshot(out).keys() == before.keys()
    new = tmp_path / "new"
    new.mkdir()
    (new / LOCK).write_text("{}")
    assert not run(scans, new).refused, "killed before its first file"


# --- killed half way --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL: nothing is done after it."""


def killed_at(monkeypatch, count, work):
    """Do ``work`` and end it before its ``count``-th file takes its place; True if it came so far."""
    plain, left = os.replace, [count]

    def replace(*paths):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return plain(*paths)

    with monkeypatch.context() as patch:
        patch.setattr("msfilm.files.os.replace", replace)
        try:
            work()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("probability", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_killed_at_any_write_the_same_command_goes_on(tree, tmp_path, monkeypatch, older, probability):
    scans = tree(patients=1, contrasts=("T2w",), valid=False)
    settings = {"threshold": 1e-6, "probability": probability}
    run(scans, tmp_path / "whole", **settings)
    whole = {path.relative_to(tmp_path / "whole"): sha256_file(path) for path in (tmp_path / "whole").rglob("*.nii.gz")}
    if older:
        before = {"network": known(Brighter(1.3)), "probability": probability}
        run(scans, tmp_path / "older", **before)
        first = {one.relative_to(tmp_path / "older"): sha256_file(one) for one in tmp_path.glob("older/**/*.nii.gz")}
        assert not set(first.values()) & set(whole.values())
    for count in range(30):
        out = tmp_path / f"out{count}"
        if older:
            shutil.copytree(tmp_path / "older", out)
        came = killed_at(monkeypatch, count, lambda out=out: run(scans, out, **settings))
        for mask in out.rglob("*_mask.nii.gz"):  # whatever lies there is known to be msfilm's
            said = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
            assert sha256_file(mask) in (said["mask_sha256"], said.get("replaces_sha256"))
        if older:  # who goes back to what was there before has that
            back = tmp_path / f"back{count}"
            shutil.copytree(out, back)
            assert not run(scans, back, **before).refused
            assert {path.relative_to(back): sha256_file(path) for path in back.rglob("*.nii.gz")} == first
        done = run(scans, out, **settings)
        assert not done.refused, count
        assert {path.relative_to(out): sha256_file(path) for path in out.rglob("*.nii.gz")} == whole
        for path in out.rglob("sub-*.json"):
            said = json.loads(path.read_text())
            assert "replaces_sha256" not in said and said["settings"]["threshold"] == 1e-6
        assert not list(out.rglob(".*")) and set(run(scans, out, **settings).table.status) == {"kept"}
        if not came:
            break
    assert 5 < count < 29


def test_one_scan_killed_at_any_write_can_be_segmented_again(scans, tmp_path, monkeypatch):
    scan = scans / "sub-001/anat/sub-001_T2w.nii.gz"
    out, chance = tmp_path / "o.nii.gz", tmp_path / "o_probseg.nii.gz"

    def work(threshold=0.5):
        return segment(scan, out, contrast="T2w", cord=scans / CORD.format(1), network=NET, threshold=threshold,
                       probability=chance)  # fmt: skip

    for count in range(10):
        came = killed_at(monkeypatch, count, lambda count=count: work(0.999 if count % 2 else 1e-6))
        assert work().record["mask_sha256"] == sha256_file(out)
        if not came:
            break
    assert 3 < count < 9 and "replaces_sha256" not in json.loads((tmp_path / "o.json").read_text())


def test_a_mask_put_there_by_hand_after_a_kill_is_still_not_written_over(scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(scans, out, threshold=0.9)
    assert killed_at(monkeypatch, 6, lambda: run(scans, out, threshold=1e-6))
    mask = next(path for path in sorted(out.rglob("*_mask.nii.gz")))
    assert "replaces_sha256" in json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    mask.write_bytes(b"by hand")
    assert [fault.code for fault in run(scans, out, threshold=1e-6).refused] == ["MASK-CHANGED"]
    assert mask.read_bytes() == b"by hand"


# --- one scan: nothing of anybody else's is written over --------------------------------------------------------------


def test_one_scans_mask_is_written_over_only_if_msfilm_made_it(scans, tmp_path):
    scan, cord = scans / "sub-001/anat/sub-001_T2w.nii.gz", scans / CORD.format(1)
    drawn = cord.with_name("sub-001_T2w_lesion-manual.nii.gz")
    before = snapshot(scans)

    def work(out, **more):
        return segment(scan, out, contrast="T2w", cord=cord, network=NET, **more)

    for change in (lambda: None, lambda: drawn.with_name("sub-001_T2w_lesion-manual.json").unlink()):
        change()
        with pytest.raises(InputError, match="OUT-EXISTS.*--overwrite"):
            work(drawn)
        assert drawn.read_bytes() == before[drawn]
    out = tmp_path / "o.nii.gz"
    for name in ("o.json", "o_p.nii.gz"):  # a file of the same name that is no mask
        (tmp_path / name).write_text("{}")
        with pytest.raises(InputError, match="OUT-EXISTS"):
            work(out, probability=tmp_path / "o_p.nii.gz")
        assert not out.exists() and (tmp_path / name).read_text() == "{}"
        (tmp_path / name).unlink()
    for threshold in (0.5, 0.5, 1e-6):
        assert work(out, threshold=threshold, probability=tmp_path / "o_p.nii.gz").path == out
    older = json.loads((tmp_path / "o.json").read_text())
    del older["mask_sha256"]  # as records of single masks once were
    (tmp_path / "o.json").write_text(json.dumps(older))
    assert work(out, probability=tmp_path / "o_p.nii.gz").path == out
    image = nib.load(out)
    nib.save(nib.Nifti1Image(1 - np.asarray(image.dataobj), image.affine), out)
    by_hand = out.read_bytes()
    with pytest.raises(InputError, match="MASK-CHANGED.*--overwrite"):
        work(out)
    assert out.read_bytes() == by_hand
    assert work(out, overwrite=True).record["mask_sha256"] == sha256_file(out) and work(out)


def test_the_command_says_how_to_overwrite(scans, tmp_path):
    scan, out = scans / "sub-001/anat/sub-001_T2w.nii.gz", tmp_path / "o.nii.gz"
    words = ["segment", str(scan), str(out), "--cord", str(scans / CORD.format(1))]
    out.write_bytes(b"mine")
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 1 and said.exception.code == "OUT-EXISTS" and out.read_bytes() == b"mine"
    for more in (["--overwrite"], []):
        assert CliRunner().invoke(app, words + more).exit_code == 0
    said = CliRunner().invoke(app, ["segment", str(scans), str(tmp_path / "d"), "--overwrite"])
    assert said.exception.code == "CLI-ARGUMENT" and not (tmp_path / "d").exists()
