"""Texts that are none, and what participants.tsv says twice or not at all: named, and the rest goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluate_cohort import Brighter, known

from msfilm.data.bids import find_volumes
from msfilm.data.check import check
from msfilm.data.labels import NamingRules
from msfilm.data.prepare import prepare
from msfilm.errors import SettingError, printable
from msfilm.evaluate import segment_dataset
from msfilm.files import json_bytes, sha256_json


def codes(faults):
    return [fault.code for fault in faults]


@pytest.mark.parametrize(("text", "shown"), [
    ("a é 日 b", "a é 日 b"), ("M\udcfcller", r"M\xfcller"), ("\ud800", r"\ud800"), ("\udfff.", r"\udfff."), (7, "7"),
])  # fmt: skip
def test_what_no_encoding_takes_is_written_out(text, shown):
    assert printable(text) == shown and printable(shown) == shown and printable(text).encode()


def test_half_a_pair_of_surrogates_stays_what_it_is_in_json():
    for content in ({"a": "\ud800"}, {"a": "é"}, ["\udcfc"]):
        assert json.loads(json_bytes(content)) == content and len(sha256_json(content)) == 64
    assert sha256_json("\ud800") != sha256_json("\ud801")


def test_a_sidecars_text_that_is_none_is_named_and_left_out(tree, tmp_path):
    dataset = tree(patients=2, contrasts=("T2w",))
    sidecar = dataset / "sub-001/anat/sub-001_T2w.json"
    sidecar.write_text(r'{"Manufacturer": "\ud800"}')
    drawn = dataset / "derivatives/labels/sub-002/anat/sub-002_space-T2w_label-lesion_desc-rater1_mask.json"
    drawn.write_text(r'{"Rater": "\udfff"}')
    (dataset / "dataset_description.json").write_text(r'{"Name": "a\ud800", "BIDSVersion": "1.9.0"}')
    table = find_volumes(dataset)
    assert [codes(notes) for notes in table.notes] == [["SIDECAR-FIELD"]] * 2
    assert table.manufacturer["sub-001_T2w"] is None and table.rater["sub-002_T2w"] == "unknown"
    assert [notes[0].where for notes in table.notes] == [str(sidecar), str(drawn)]
    report = check(dataset, progress=False)
    assert report.counts == {"good": 0, "warned": 2, "refused": 0} and report.text().encode()
    slices, refused = prepare(dataset, tmp_path / "slices", progress=False)
    assert not refused and len(slices.volumes) == 2
    done = segment_dataset(dataset, tmp_path / "out", network=known(Brighter(1.5)), progress=False)
    assert not done.refused and r"a\ud800" in (tmp_path / "out/README.md").read_text()


def test_a_name_that_is_not_utf8_is_refused_by_name_and_the_rest_goes_on(tree, tmp_path):
    dataset = tree(patients=2, contrasts=("T2w",))
    odd = os.fsdecode(b"sub-M\xfcller")
    try:
        shutil.copytree(dataset / "sub-002", dataset / odd)
    except OSError:
        pytest.skip("names are text on this file system")
    for root in (dataset, dataset / "derivatives/labels"):
        (root / odd / "anat").mkdir(parents=True, exist_ok=True)
        for path in [*root.glob("sub-002/anat/*")]:
            shutil.copy(path, root / odd / "anat" / path.name.replace("sub-002", odd))
    for left in (dataset / odd / "anat").glob("sub-002*"):
        left.unlink()
    table = find_volumes(dataset)
    name = r"sub-M\xfcller_T2w"
    assert list(table.index) == ["sub-001_T2w", "sub-002_T2w", name] and codes(table.errors[name]) == ["BIDS-NAME"]
    assert table.errors[name][0].where.endswith(rf"sub-M\xfcller/anat/{name}.nii.gz") and table.errors[name][0].mend
    assert not table.errors.iloc[0] and any(note.startswith("BIDS-NAME") for note in table.attrs["notes"])
    report = check(dataset, progress=False)
    assert report.volumes["verdict"].to_dict() == {"sub-001_T2w": "good", "sub-002_T2w": "good", name: "refused"}
    assert report.save(tmp_path / "a.json").read_bytes() and report.text().encode()
    slices, refused = prepare(dataset, tmp_path / "slices", progress=False)
    assert codes(refused) == ["BIDS-NAME"] and list(slices.volumes.index) == ["sub-001_T2w", "sub-002_T2w"]
    done = segment_dataset(dataset, tmp_path / "out", network=known(Brighter(1.5)), progress=False)
    assert codes(done.refused) == ["BIDS-NAME"] and list(done.table.status) == ["made", "made", "refused"]
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    said = subprocess.run([sys.executable, "-m", "msfilm", "check", dataset, "--quiet"], capture_output=True, env=env)
    assert said.returncode == 1 and rb"M\xfcller" in said.stdout and b"3 volumes" in said.stdout, said.stderr


def test_a_folder_above_whose_name_is_not_utf8_stops_nothing(tree, tmp_path):
    dataset = tree(patients=1, contrasts=("T2w",))
    try:
        odd = dataset.rename(tmp_path / os.fsdecode(b"d\xe4ta"))
    except OSError:
        pytest.skip("names are text on this file system")
    (odd / "sub-001/anat/sub-001_T2w.json").write_text("{")
    report = check(odd, progress=False)
    assert not report.refused and report.text().encode() and report.save(tmp_path / "a.json")
    slices, _ = prepare(odd, tmp_path / "slices", progress=False)
    assert slices.meta["source"] == r"d\xe4ta"
    assert not segment_dataset(odd, tmp_path / "out", network=known(Brighter(1.5)), progress=False).refused


def test_rules_of_names_hold_text_only(tmp_path):
    for text in (r'cord: "\ud800"', r'contrasts: {"\udfff": {suffix: T2w}}', r'raters: ["\udcfc"]'):
        (tmp_path / "names.yml").write_text(text)
        with pytest.raises(SettingError, match="NAMES-VALUE.*is no text"):
            NamingRules.from_file(tmp_path / "names.yml")


def test_a_patient_with_two_centres_has_none_and_it_is_said(tree):
    dataset = tree(patients=3, contrasts=("T2w",))
    lines = ["participant_id\tcentre", "sub-001\tOslo", "001\tBergen", *["sub-002\tOslo"] * 2, "sub-003\tOslo"]
    (dataset / "participants.tsv").write_text("\n".join(lines))
    table = find_volumes(dataset)
    assert list(table.centre) == ["unknown", "Oslo", "Oslo"] and not table.notes.map(len).any()
    (note,) = table.attrs["notes"]
    assert note.startswith("PARTICIPANTS-TWICE: sub-001") and "'Oslo', 'Bergen'" in note
    report = check(dataset, progress=False)
    assert report.table[["path", "code", "verdict"]].values.tolist() == [
        ["participants.tsv", "PARTICIPANTS-TWICE", "warned"]
    ]


def test_an_empty_centre_is_noted_and_one_said_to_be_unknown_is_not(tree):
    dataset = tree(patients=3, contrasts=("T2w",))
    (dataset / "participants.tsv").write_text("participant_id\tcentre\nsub-001\t \nsub-002\tn/a\nsub-003\tOslo\n")
    table = find_volumes(dataset)
    assert list(table.centre) == ["unknown", "unknown", "Oslo"]
    assert [codes(notes) for notes in table.notes] == [["PARTICIPANTS-LACK"], [], []]
    assert "no centre in its line" in table.notes.iloc[0][0].what
