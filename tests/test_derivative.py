"""A BIDS data set becomes a BIDS derivative: every scan its mask or its refusal, resumable, valid."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import write_plain
from evaluate_cohort import Brighter, known
from typer.testing import CliRunner

from msfilm.cli import app
from msfilm.data.bids import find_volumes
from msfilm.data.centres import centres_from_mask, centres_from_points, write_centreline
from msfilm.data.nifti import read_mask
from msfilm.errors import InputError, RunError, SettingError
from msfilm.evaluate import segment, segment_dataset
from msfilm.evaluate.derivative_files import mask_names
from msfilm.evaluate.localise import CordLocation
from msfilm.files import sha256_file
from msfilm.model.weights import load_network
from msfilm.phantom import write_cohort

LABELS = Path("derivatives/labels")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A patient's T2w and T2star, axial, at two heights."""
    out = tmp_path_factory.mktemp("bids é") / "phantom cohort"
    return write_cohort(out, patients=1, seed=4, workers=1, progress=False)


@pytest.fixture
def scans(phantom, tmp_path):
    return Path(shutil.copytree(phantom, tmp_path / "scans é"))


def table_of(out):
    return pd.read_csv(out / "logs" / "lesions.tsv", sep="\t").set_index("scan")


def errors_of(folder):
    program = Path(sys.executable).parent / "bids-validator-deno"
    run = subprocess.run([program, "--recursive", "--format", "json", str(folder)], capture_output=True, text=True,
                         timeout=120)  # fmt: skip

    def errors(part):
        found = [one for one in part["issues"]["issues"] if one.get("severity") == "error"]
        return found + [one for sub in (part.get("derivativesSummary") or {}).values() for one in errors(sub)]

    return errors(json.loads(run.stdout))


def test_every_scan_gets_a_mask_that_is_found_by_its_name_and_says_what_made_it(scans):
    out = scans / "derivatives" / "msfilm"
    network = load_network("film-contrast-small")
    done = segment_dataset(scans, out, probability=True, progress=False)
    volumes = find_volumes(scans)
    assert list(done.table.index) == list(volumes.index) and not done.refused and len(done.table) >= 4
    assert set(done.table.status) == {"made"}
    for stem, row in done.table.iterrows():
        scan = volumes.loc[stem]
        alone = segment(scan.image, None, contrast=scan.contrast, cord=scan.cord, network=network)
        made = nib.load(out / row["mask"])
        np.testing.assert_array_equal(np.asarray(made.dataobj), alone.image.to_file_order(alone.mask)[0])
        np.testing.assert_array_equal(made.affine, nib.load(scan.image).affine)
        record = json.loads((out / row["mask"].replace(".nii.gz", ".json")).read_text())
        uri = f"bids:raw:{scan.image.relative_to(scans).as_posix()}"
        assert record["SpatialReference"] == uri == record["Sources"][0]
        assert record["Sources"][1] == f"bids:raw:{scan.cord.relative_to(scans).as_posix()}"
        assert record["network"]["weights_sha256"] and record["network"]["name"] == "film-contrast-small"
        assert record["made_by"]["version"] and record["settings"]["contrast"] == scan.contrast
        assert record["mask_sha256"] == sha256_file(out / row["mask"])
        assert record["lesion_mm3"] == pytest.approx(row["lesion_mm3"]) and record["lesions"] == row["lesions"]
        assert "patient" in record["must_not_be_used_for"]
        chance = out / row["mask"].replace("_mask.nii.gz", "_probseg.nii.gz")
        marked = nib.load(chance).get_fdata(dtype=np.float32) >= 0.5
        np.testing.assert_array_equal(marked, np.asarray(made.dataobj) > 0)
        assert chance.with_name(chance.name.replace(".nii.gz", ".json")).is_file()
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "msfilm"
    assert (out / description["DatasetLinks"]["raw"]).resolve() == scans.resolve()
    assert description["SourceDatasets"] == [{"URL": description["DatasetLinks"]["raw"]}]
    written = table_of(out)
    assert list(written.index) == list(done.table.index)
    np.testing.assert_allclose(written.lesion_mm3, done.table.lesion_mm3.astype(float), atol=1e-3)
    assert "Not for diagnosis" in (out / "README.md").read_text()
    assert errors_of(scans) == [] == errors_of(out)


def test_run_again_it_keeps_what_is_done_and_makes_what_is_not(scans, tmp_path):
    out = tmp_path / "out"
    masks = [out / name for name in segment_dataset(scans, out, progress=False).table["mask"]]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in masks}
    again = segment_dataset(scans, out, progress=False)
    assert set(again.table.status) == {"kept"} and {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in masks} == before
    volumes = find_volumes(scans)
    masks[0].unlink()  # a run that was cut short
    image = volumes.loc[volumes.index[1], "image"]
    other = nib.load(image)
    nib.save(nib.Nifti1Image(np.asarray(other.dataobj)[::-1], other.affine, other.header), image)
    statuses = dict(segment_dataset(scans, out, progress=False).table.status)
    assert list(statuses.values()) == ["made", "made", *["kept"] * (len(masks) - 2)]
    for change in ({"threshold": 0.4}, {"network": "unet-small", "threshold": 0.4}):
        assert set(segment_dataset(scans, out, progress=False, **change).table.status) == {"made"}
    probed = segment_dataset(scans, out, progress=False, network="unet-small", threshold=0.4, probability=True)
    assert set(probed.table.status) == {"made"} and len(list(out.rglob("*_probseg.nii.gz"))) == len(masks)


def test_a_mask_that_somebody_changed_is_never_written_over(scans, tmp_path):
    out = tmp_path / "out"
    stem = segment_dataset(scans, out, progress=False).table.index[0]
    mask = out / table_of(out).loc[stem, "mask"]
    corrected = nib.load(mask)
    nib.save(nib.Nifti1Image(1 - np.asarray(corrected.dataobj), corrected.affine, corrected.header), mask)
    content = mask.read_bytes()
    for settings in ({}, {"threshold": 0.9}):
        done = segment_dataset(scans, out, progress=False, **settings)
        assert [fault.code for fault in done.refused] == ["MASK-CHANGED"] and mask.read_bytes() == content
        assert done.table.loc[stem, "status"] == "refused" and (done.table.status == "refused").sum() == 1


def test_what_cannot_be_used_is_listed_and_the_rest_goes_on(scans, tmp_path):
    broken, blank, lone = list(find_volumes(scans).index)[:3]
    volumes = find_volumes(scans)
    broken_file = volumes.loc[broken, "image"]
    broken_file.write_bytes(broken_file.read_bytes()[:3000])
    data = nib.load(volumes.loc[blank, "image"])
    write_plain(volumes.loc[blank, "image"], np.zeros(data.shape), data.affine, np.int16)
    volumes.loc[lone, "cord"].unlink()
    out = tmp_path / "out put"
    done = segment_dataset(scans, out, localise=False, progress=False)
    assert [fault.code for fault in done.refused] == ["NIFTI-TRUNCATED", "IMAGE-BLANK", "MASK-MISSING"]
    table = table_of(out)
    assert list(table.status[:4]) == ["refused"] * 3 + ["made"] and set(table.status[4:]) <= {"made"}
    assert table.loc[broken, "warnings"].startswith("NIFTI-TRUNCATED") and np.isnan(table.loc[broken, "lesion_mm3"])
    listed = json.loads((out / "logs" / "refused.json").read_text())
    assert [one["code"] for one in listed] == [fault.code for fault in done.refused]
    assert listed[0]["path"] == broken_file.relative_to(scans).as_posix() and listed[0]["verdict"] == "refused"
    assert len(list(out.rglob("*_mask.nii.gz"))) == len(table) - 3 and not list(out.rglob(".tmp*"))
    said = CliRunner().invoke(app, ["segment", str(scans), str(out), "--no-localise", "--quiet"])
    assert said.exit_code == 1 and "3 refused" in said.output and f"{len(table) - 3} kept" in said.output


def test_a_contrast_beyond_the_training_needs_to_be_asked_for(scans, tmp_path):
    for path in sorted(scans.rglob("sub-001_*T2star*")):
        path.rename(path.with_name(path.name.replace("T2star", "FLAIR")))
    out = tmp_path / "out"
    done = segment_dataset(scans, out, progress=False)
    assert {fault.code for fault in done.refused} == {"CONTRAST-UNKNOWN"} and "--as" in done.refused[0].mend
    assert "sub-001_FLAIR" in done.refused[0].where
    taken = segment_dataset(scans, out, as_contrast="T2w", progress=False)
    row = taken.table.loc["sub-001_FLAIR"]
    assert not taken.refused and row["contrast"] == "FLAIR" and "taken for T2w" in row["warnings"]
    assert "taken for" not in taken.table.loc["sub-001_T2w", "warnings"]
    forced = segment_dataset(scans, tmp_path / "forced", contrast="T2w", progress=False)
    assert not forced.refused and set(forced.table.contrast) == {"T2w"}
    for settings in ({"contrast": "FLAIR"}, {"as_contrast": "FLAIR"}, {"threshold": 2}, {"network": "no-such"}):
        with pytest.raises(SettingError):
            segment_dataset(scans, tmp_path / "none", progress=False, **settings)
    assert not (tmp_path / "none").exists()


def test_the_cord_is_had_from_mask_then_centreline_then_localiser(scans, tmp_path, monkeypatch):
    volumes = find_volumes(scans)
    by_line, by_program = volumes.index[:2]
    ends = {}
    for stem in (by_line, by_program):
        mask = read_mask(volumes.loc[stem, "cord"])
        zs, centres = centres_from_mask(mask.data)
        voxels = np.column_stack([centres, zs])[[0, len(zs) // 2, -1]]
        ends[stem] = nib.affines.apply_affine(mask.affine, voxels)
        volumes.loc[stem, "cord"].unlink()
    image = volumes.loc[by_line, "image"]
    write_centreline(image.with_name(f"{by_line}_centreline.csv"), ends[by_line])
    sure = [True]

    def proposal(volume):
        zs, centres = centres_from_points(ends[by_program], volume)
        return CordLocation(ends[by_program], zs, centres, np.full(len(zs), 0.2), 0.2, sure[0], ())

    monkeypatch.setattr("msfilm.evaluate.localise.localise", proposal)
    out = tmp_path / "out"
    done = segment_dataset(scans, out, progress=False)
    assert list(done.table.centred_on[:3]) == ["centreline", "localiser", "cord"] and not done.refused
    record = json.loads((out / done.table["mask"].iloc[0].replace(".nii.gz", ".json")).read_text())
    assert record["Sources"][1].endswith(f"{by_line}_centreline.csv")
    sure[0] = False
    done = segment_dataset(scans, tmp_path / "unsure", progress=False)
    assert [fault.code for fault in done.refused] == ["CORD-UNSURE"]
    done = segment_dataset(scans, tmp_path / "unsure", accept_unsure=True, progress=False)
    assert not done.refused and "UNSURE" in done.table.loc[by_program, "warnings"]
    again = segment_dataset(scans, tmp_path / "unsure", accept_unsure=True, progress=False)
    assert set(again.table.status) == {"kept"}
    again = segment_dataset(scans, tmp_path / "unsure", progress=False)
    assert list(again.table.status) == ["kept", "refused", "kept", "kept"], "what was accepted once is asked for again"
    assert "earlier run still lies there" in again.table.loc[by_program, "warnings"]


def test_a_folder_that_holds_something_else_is_left_alone(scans, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    for out, error in ((mine, InputError), (mine / "thesis.txt", InputError), (scans, SettingError),
                       (scans / LABELS, SettingError)):  # fmt: skip
        with pytest.raises(error, match="OUT-"):
            segment_dataset(scans, out, progress=False)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_disk_that_refuses_stops_it_and_what_was_done_stays(scans, tmp_path, monkeypatch):
    from msfilm.evaluate import segmentation_files

    out, count = tmp_path / "out", [0]
    plain = segmentation_files.write_json

    def full(path, content):
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        return plain(path, content)

    monkeypatch.setattr(segmentation_files, "write_json", full)
    with pytest.raises(RunError, match="No space left"):
        segment_dataset(scans, out, progress=False)
    assert len(list(out.rglob("*_mask.nii.gz"))) == 2 and not list(out.rglob(".tmp*"))
    monkeypatch.setattr(segmentation_files, "write_json", plain)
    assert list(segment_dataset(scans, out, progress=False).table.status[:3]) == ["kept", "kept", "made"]
    (tmp_path / "file").write_text("")
    with pytest.raises((RunError, InputError), match="PATH-WRITE|OUT-EXISTS"):
        segment_dataset(scans, tmp_path / "file" / "out", progress=False)


def test_no_two_scans_share_a_name_and_own_names_are_followed(tmp_path):
    stems = ["sub-1_T2w", "sub-1_T2starw", "sub-1_acq-a_T2w", "sub-1_run-2_T2w", "sub-1_ce-gad_T1w", "sub-1_T1w",
             "sub-1_flip-1_mt-on_MTS", "sub-1_flip-1_mt-off_MTS", "sub-1_flip-2_mt-off_MTS", "sub-1_inv-1_MP2RAGE",
             "sub-1_inv-2_MP2RAGE", "sub-1_echo-1_part-mag_T2starw"]  # fmt: skip
    names = [name for stem in stems for name in mask_names(stem)]
    assert len(set(names)) == len(names)
    assert mask_names("sub-1_ses-2_acq-a_T2w") == ("sub-1_ses-2_acq-a_space-T2w_label-lesion_mask",
                                                   "sub-1_ses-2_acq-a_space-T2w_label-lesion_probseg")  # fmt: skip
    shape, affine = (50, 52, 4), np.diag([0.7, 0.7, 4, 1])
    x, y, _ = np.meshgrid(*map(np.arange, shape), indexing="ij")
    cord = np.hypot(x - 25, y - 26) < 8
    for stem in stems:
        bright = 300 + 300 * cord + 900 * (np.hypot(x - 27, y - 26) < 2)
        write_plain(tmp_path / "ds/sub-1/anat" / f"{stem}.nii.gz", bright, affine, np.int16)
        write_plain(tmp_path / "ds/derivatives/k/sub-1/anat" / f"{stem}_kord.nii.gz", cord, affine, np.uint8)
    rules = tmp_path / "names.yml"
    rules.write_text("folders: derivatives/k\ncord: kord\nleave: {inv: 2}\n")
    done = segment_dataset(tmp_path / "ds", tmp_path / "out", names=rules, network=known(Brighter(1.5)), progress=False)
    assert len(done.table) == len(stems) - 1 and not done.refused and (done.table.lesion_mm3 > 20).all()
    assert len(list((tmp_path / "out").rglob("*_mask.nii.gz"))) == len(stems) - 1
    assert errors_of(tmp_path / "out") == []
    with pytest.raises(SettingError, match="NAMES-KEY"):
        rules.write_text("cords: kord")
        segment_dataset(tmp_path / "ds", tmp_path / "out", names=rules, progress=False)


def test_the_command_tells_a_scan_from_a_data_set(scans, tmp_path):
    volumes = find_volumes(scans)
    stem = volumes.index[0]
    image, cord = volumes.loc[stem, "image"], volumes.loc[stem, "cord"]
    run = CliRunner().invoke
    said = run(app, ["segment", str(image), str(tmp_path / "o.nii.gz"), "--cord", str(cord), "--probability"])
    assert said.exit_code == 0 and (tmp_path / "o_probseg.nii.gz").is_file(), said.output
    assert json.loads((tmp_path / "o.json").read_text())["settings"]["contrast"] == volumes.loc[stem, "contrast"]
    plain = shutil.copy(image, tmp_path / "scan.nii.gz")
    for words, code in (
        ([str(plain), "x.nii.gz", "--cord", str(cord)], "CONTRAST-MISSING"),
        ([str(scans), "x", "--cord", str(cord)], "CLI-ARGUMENT"),
        ([str(image), "x.nii.gz", "--cord", str(cord), "--names", "n.yml"], "CLI-ARGUMENT"),
        ([str(image), "x.nii.gz"], "CENTRE-SOURCE"),
        ([str(image), "x.nii.gz", "--cord", str(cord), "--localise"], "CENTRE-SOURCE"),
    ):
        found = run(app, ["segment", *words])
        assert isinstance(found.exception, SettingError) and found.exception.code == code
    said = run(app, ["segment", str(scans), str(tmp_path / "all"), "--quiet"])
    assert said.exit_code == 0 and f"{len(volumes)} made" in said.output and "not for diagnosis" in said.output
