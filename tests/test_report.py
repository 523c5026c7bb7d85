"""A whole evaluation on cohorts whose answer is known, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluate_cohort import Brighter, cohort, known
from PIL import Image

import msfilm.evaluate
from msfilm.data.slices import SliceSet
from msfilm.errors import InputError, RunError, SettingError
from msfilm.evaluate import ThresholdBaseline, evaluate
from msfilm.evaluate.metrics import LESION_RULES, dice, lesion_scores
from msfilm.evaluate.report import Report
from msfilm.evaluate.stats import bootstrap_ci
from msfilm.model.encode import CategoryEncoder
from msfilm.model.weights import Network

SIDES = {"sub-001": "train", "sub-002": "val", "sub-003": "val",
         "sub-004": "test", "sub-005": "test", "sub-006": "test"}


def make_run(folder, monkeypatch, model, sides=SIDES, **config):
    folder.mkdir()
    pd.Series(sides, name="side").rename_axis("patient").to_csv(folder / "split.csv")
    (folder / "config.json").write_text(json.dumps({"config": {"mask": "rater-1"}} | config))
    monkeypatch.setattr("msfilm.evaluate.report.load_network", lambda path: known(model))
    return folder


def test_scores_of_a_network_that_is_right(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter(1.25))
    slices = cohort(6, free=(5,), shift=1)  # the rater draws one voxel off; patient 5 has no lesion
    report = evaluate(run, slices)

    truth = report.row(reference="truth")
    assert (truth["dice"], truth["low"], truth["high"]) == (1, 1, 1)
    assert (truth["volumes"], truth["patients"]) == (4, 2)  # patient 5's two volumes are left out ...
    assert (truth["both_empty"], truth["lesion_free"], truth["false_mm3"]) == (2, 2, 0)  # ... and counted
    assert truth["dice_one"] == truth["dice_lesion_only"] == 1

    rater = report.row(reference="rater-1")  # a box 4 voxels wide, one voxel off: 2 * 3 / (4 + 4)
    assert rater["dice"] == pytest.approx(0.75)
    assert report.row("rater-1", reference="truth")["dice"] == pytest.approx(0.75)
    assert set(report.scores["volume"]) == {f"sub-00{i}_{c}" for i in (4, 5, 6) for c in ("T2w", "T2star")}
    assert set(zip(report.rows["name"], report.rows["contrast"], report.rows["reference"], strict=True)) == {
        (name, contrast, reference) for name in ("network", "threshold", "all-cord", "rater-1")
        for contrast in ("T2w", "T2star", "all") for reference in ("rater-1", "truth")
    } - {("rater-1", contrast, "rater-1") for contrast in ("T2w", "T2star", "all")}

    cord = report.row("all-cord", reference="truth")
    assert (cord["one_empty"], cord["both_empty"]) == (2, 0)
    lesion, whole = 4 * 4 * 2, 12 * 10 * 6
    assert cord["dice_lesion_only"] == pytest.approx(2 * lesion / (lesion + whole))
    assert cord["dice"] == pytest.approx(cord["dice_lesion_only"] * 4 / 6)  # Dice 0 where the reference is empty
    assert cord["false_mm3"] == pytest.approx(whole * 0.75 * 0.75 * 5)


def test_rows_follow_from_scores_and_files_from_both(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter(1.6))  # finds T2w lesions, misses T2star ones
    slices = cohort(6, free=(5,), shift=1)
    report = evaluate(run, slices, seed=3)
    assert report.row(contrast="T2w", reference="truth")["dice"] == 1
    missed = report.row(contrast="T2star", reference="truth")
    assert (missed["dice"], missed["one_empty"], missed["lesion_sensitivity"]) == (0, 2, 0)
    of_all = report.scores[(report.scores["method"] == "network") & (report.scores["reference"] == "truth")]
    mean, low, high = bootstrap_ci(of_all["dice"], of_all["patient"], seed=3)
    row = report.row(reference="truth")
    assert (row["dice"], row["low"], row["high"]) == (mean, low, high)
    assert mean == 0.5

    folder = run / "evaluate-test"
    assert {path.name for path in folder.iterdir()} == {"scores.csv", "metrics.json", "scores.png"}
    assert Image.open(folder / "scores.png").size[0] > 600
    again = Report.load(folder)
    pd.testing.assert_frame_equal(again.scores, report.scores, check_exact=False, rtol=1e-6, check_dtype=False)
    assert again.metrics == json.loads(json.dumps(report.metrics))
    assert {"name", "contrast", "reference", "dice", "low", "high", "patients", "volumes", "both_empty",
            "one_empty"} <= set(again.metrics["rows"][0])
    assert {"version", "date"} <= set(again.metrics["made_by"])
    table = again.table()
    assert len(table) == len(again.metrics["rows"])
    assert "no lesion, left empty" in table.columns and "2 of 2" in set(table["no lesion, left empty"])
    assert "0.500" in again._repr_html_() and "both empty: left out" in again._repr_html_()
    with pytest.raises(SettingError, match="REPORT-ROW"):
        again.row("netwrk")


def test_a_folder_of_other_things_is_never_replaced(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter(1.6))
    slices, thesis = cohort(6), tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.txt").write_text("long work")
    (tmp_path / "notes.txt").write_text("notes")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("msfilm.evaluate.report.score_volumes", None)   # refused before anything is scored
    for out in (thesis, run, tmp_path / "notes.txt"):
        with pytest.raises(SettingError, match="REPORT-TARGET.*would be lost"):
            evaluate(run, slices, out=out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    run = make_run(tmp_path / "another", monkeypatch, Brighter(1.6))
    (tmp_path / "new" / ".tmp-new-left").mkdir(parents=True)   # empty but for what a killed process left
    for _ in range(2):                                         # and an evaluation may be replaced by another
        assert evaluate(run, slices, out=tmp_path / "new").folder == tmp_path / "new"


def test_threshold_is_chosen_on_validation_and_scored_on_test(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    slices = cohort(6, shift=1)
    report = evaluate(run, slices)
    chosen = report.metrics["thresholds"]
    for contrast in ("T2w", "T2star"):
        scans = [slices.scans[f"{patient}_{contrast}"] for patient, side in SIDES.items() if side == "val"]
        assert chosen[contrast] == ThresholdBaseline.fit(scans, contrast).as_dict()
    for name in ("sub-004_T2w", "sub-006_T2star"):
        scan, found = slices.scans[name], report.scores.set_index(["volume", "method", "reference"])
        prediction, threshold = np.zeros(scan.shape, bool), chosen[name.split("_")[1]]["threshold"]
        prediction.flat[scan.indices["cord"][scan.cord_values >= threshold]] = True
        by_hand = dice(scan.dense("rater-1"), prediction)
        assert found.loc[(name, "threshold", "rater-1"), "dice"] == pytest.approx(by_hand)
    assert any("on these same patients" in note for note in evaluate(run, slices, split="val").metrics["notes"])


def test_differences_are_paired(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    report = evaluate(run, cohort(6))
    entry = next(e for e in report.metrics["differences"] if (e["b"], e["contrast"], e["reference"]) ==
                 ("all-cord", "all", "truth"))
    assert entry["mean"] == pytest.approx(report.row(reference="truth")["dice"]
                                          - report.row("all-cord", reference="truth")["dice"])
    assert entry["low95"] <= entry["low90"] <= entry["mean"] and not entry["equivalent"]
    assert any("network is better" in statement for statement in report.statements())
    assert all(statement.startswith("T2w, against") for statement in report.statements("T2w"))


def test_an_independent_cohort(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    others = cohort(3, shift=2)
    report = evaluate(run, others, split="all")
    assert "threshold" not in set(report.rows["name"])
    assert any("no threshold baseline for T2star, T2w" in note for note in report.metrics["notes"])
    chosen = evaluate(run, cohort(6)).metrics["thresholds"]
    later = evaluate(run, others, split="all")
    assert later.metrics["thresholds"] == chosen
    assert [note.split(":")[0] for note in later.metrics["notes"]] == ["3 patients"]
    assert len(later.rows["patients"].unique()) == 1 and later.row()["patients"] == 3
    given = evaluate(run, others, split="all", validation=cohort(2, shift=3), out=tmp_path / "elsewhere")
    assert given.metrics["thresholds"] != chosen and given.folder == tmp_path / "elsewhere"


def test_volumes_without_any_lesion_mask_are_listed(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    report = evaluate(run, cohort(2, rater=False), split="all")
    row = report.row(reference="unmarked")
    assert row["dice"] is None and row["lesion_free"] == 4
    assert row["prediction_mm3"] == pytest.approx(4 * 4 * 2 * 0.75 * 0.75 * 5)
    assert len(report.table()) == 3 and report.statements() == []


def test_only_one_contrast(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    report = evaluate(run, cohort(6), contrasts=["T2w"])
    assert set(report.scores["contrast"]) == {"T2w"}
    with pytest.raises(SettingError, match=r"CONTRAST-UNKNOWN.*did you mean 'T2w'"):
        evaluate(run, cohort(6), contrasts=["T2W"])


def test_contrasts_that_a_network_has_no_code_for_are_left_out_and_said(tmp_path, monkeypatch, capsys):
    """A network told the contrast and trained on one of two: its own slices hold both, and the other is no fault."""
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    told = Network(Brighter(), CategoryEncoder("contrast", ("T2w",)), {"data": {"contrasts": ["T2w"]}})
    monkeypatch.setattr("msfilm.evaluate.report.load_network", lambda path: told)
    report = evaluate(run, cohort(6), progress=True)
    assert set(report.scores["contrast"]) == {"T2w"} and set(report.rows["contrast"]) == {"T2w", "all"}
    assert any("3 volumes of T2star left out" in note for note in report.metrics["notes"])
    assert "3/3" in capsys.readouterr().err
    with pytest.raises(SettingError, match="CONTRAST-UNKNOWN.*told of T2w, and these slices are T2star"):
        evaluate(run, cohort(6), contrasts=["T2star"])
    plain = make_run(tmp_path / "plain", monkeypatch, Brighter())   # what one does on a contrast it never saw is asked
    monkeypatch.setattr("msfilm.evaluate.report.load_network",
                        lambda path: Network(Brighter(), None, {"data": {"contrasts": ["T2w"]}}))
    assert set(evaluate(plain, cohort(6)).scores["contrast"]) == {"T2w", "T2star"}
    assert capsys.readouterr().err == ""


def test_refusals(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    with pytest.raises(SettingError, match=r"SPLIT-UNKNOWN.*sub-007.*split 'all'"):
        evaluate(run, cohort(7))
    with pytest.raises(SettingError, match="did you mean 'test'"):
        evaluate(run, cohort(6), split="tests")
    with pytest.raises(SettingError, match=r"SPLIT-EMPTY.*train"):
        evaluate(run, cohort(1))
    slices = cohort(6)
    twin = slices.images.copy()
    twin[:6], hashes = twin[-6:], slices.table["slice_hash"].to_numpy().copy()
    hashes[:6] = hashes[-6:]
    table = slices.table.assign(slice_hash=hashes)
    leak = SliceSet(twin, slices.masks, table, slices.volumes, slices.scans, slices.meta)
    with pytest.raises(InputError, match="SPLIT-LEAK"):
        evaluate(run, leak)
    (run / "split.csv").unlink()
    with pytest.raises(InputError, match="RUN-SPLIT"):
        evaluate(run, cohort(6))
    assert not (run / "evaluate-test").exists()


def test_all_is_not_for_the_slices_of_the_training(tmp_path, monkeypatch):
    from msfilm.train.tensors import slices_hash

    slices = cohort(2)
    run = make_run(tmp_path / "run", monkeypatch, Brighter(), slices_sha256=slices_hash(slices, "rater-1"))
    with pytest.raises(SettingError, match="SPLIT-LEAK"):
        evaluate(run, slices, split="all")


def test_an_older_report_survives_a_failure(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    evaluate(run, cohort(6))
    before = (run / "evaluate-test/metrics.json").read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msfilm.evaluate.report.write_json", full)
    with pytest.raises(RunError, match=r"REPORT-WRITE.*No space left"):
        evaluate(run, cohort(6), seed=1)
    assert (run / "evaluate-test/metrics.json").read_bytes() == before
    assert {path.name for path in run.iterdir()} == {"split.csv", "config.json", "evaluate-test"}


quick = functools.partial(evaluate, resamples=100)


def with_masks(slices, volumes, **masks):
    """The same set, whose scans in ``volumes`` have more masks; a name with the value None takes that mask away."""
    scans = dict(slices.scans)
    for volume in volumes:
        indices = scans[volume].indices | {name.replace("_", "-"): mask for name, mask in masks.items()}
        scans[volume] = dataclasses.replace(scans[volume], indices={k: v for k, v in indices.items() if v is not None})
    return SliceSet(slices.images, slices.masks, slices.table, slices.volumes, scans, slices.meta)


def test_surface_scores_only_where_asked(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter(1.6))  # finds T2w lesions, misses T2star ones
    slices = cohort(6, free=(5,), shift=1)
    plain = quick(run, slices)
    assert plain.row()["surface_dice"] is None and "surface Dice" not in plain.table()
    report = quick(run, slices, surface=True)
    found, missed = (report.row(contrast=contrast, reference="truth") for contrast in ("T2w", "T2star"))
    assert (found["surface_dice"], found["hd95_mm"], found["hd95_median_mm"], found["hd95_volumes"]) == (1, 0, 0, 2)
    assert (missed["surface_dice"], missed["hd95_volumes"]) == (0, 0)  # one of the masks is empty in both volumes
    assert np.isnan(missed["hd95_mm"]) and np.isnan(missed["hd95_median_mm"])
    both = report.row(reference="truth")
    assert (both["surface_dice"], both["hd95_mm"], both["hd95_volumes"]) == (0.5, 0, 2)
    assert np.isnan(both["hd95_median_mm"])  # half of the volumes are infinitely far
    rater = report.row("rater-1", reference="truth")  # one voxel off
    assert rater["surface_dice"] == 1 and rater["hd95_mm"] == pytest.approx(0.75)
    again = Report.load(report.folder)
    hd95 = again.scores.set_index(["volume", "method", "reference"])["hd95_mm"]
    assert np.isinf(hd95["sub-004_T2star", "network", "truth"])
    assert np.isnan(hd95["sub-005_T2w", "network", "truth"])
    assert {"surface Dice", "HD95 mm"} <= set(again.table())
    json.loads((report.folder / "metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


@pytest.mark.parametrize("rule", LESION_RULES)
def test_the_lesion_rule_is_the_one_named(tmp_path, monkeypatch, rule):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    slices = cohort(6, free=(5,), shift=3)
    report = quick(run, slices, lesion_rule=rule)
    by_hand = []
    for volume in report.scores["volume"].unique():
        scan = slices.scans[volume]
        by_hand.append(lesion_scores(scan.dense("rater-1"), scan.dense("truth"), rule=rule).f1)
    assert report.row()["lesion_f1"] == pytest.approx(np.nanmean(by_hand))
    assert report.metrics["lesion_rule"] == rule and f"rule '{rule}'" in report._repr_html_()
    with pytest.raises(SettingError, match=r"SCORE-RULE.*did you mean 'ivadomed'"):
        quick(run, slices, lesion_rule="ivadome")


def test_lesions_by_size_are_those_of_all_volumes(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter(1.6))
    report = Report.load(quick(run, cohort(6, free=(5,), shift=1)).folder)
    for name, reference in (("network", "truth"), ("all-cord", "rater-1"), ("rater-1", "truth")):
        rows = report.scores[(report.scores["method"] == name) & (report.scores["reference"] == reference)]
        table = report.lesions_by_size(name, reference)
        assert table["high_mm3"].iloc[-1] == np.inf and table["low_mm3"].iloc[0] == 0
        assert table["reference_lesions"].sum() == rows["lesions_reference"].sum()
        assert table["prediction_lesions"].sum() == rows["lesions_prediction"].sum()
    table = report.lesions_by_size("network", "truth", "T2w")  # a lesion is 4 * 4 * 2 voxels, 90 mm3
    one_bin = table[(table["low_mm3"] <= 90) & (table["high_mm3"] > 90)].iloc[0]
    assert (one_bin["reference_lesions"], one_bin["found"], one_bin["f1"]) == (2, 2, 1)
    with pytest.raises(SettingError, match="REPORT-ROW"):
        report.lesions_by_size("nobody")


def test_the_rule_for_empty_masks_is_the_one_named(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    slices = cohort(6, free=(5,), shift=1)
    plain = quick(run, slices)
    for rule, column in (("one", "dice_one"), ("lesion-only", "dice_lesion_only")):
        report = quick(run, slices, empty_rule=rule)
        assert [row["dice"] for row in report.metrics["rows"]] == [row[column] for row in plain.metrics["rows"]]
        assert [row["dice_exclude"] for row in report.metrics["rows"]] == [row["dice"] for row in plain.metrics["rows"]]
        entry = next(e for e in report.metrics["differences"]
                     if (e["b"], e["contrast"], e["reference"]) == ("all-cord", "all", "rater-1"))
        assert entry["mean"] == pytest.approx(report.row()["dice"] - report.row("all-cord")["dice"])
        assert f"rule '{rule}'" in report._repr_html_()
        assert "Dice, both empty left out" in report.table() and "Dice, both empty left out" not in plain.table()
    assert report.row()["volumes"] == 4 and quick(run, slices, empty_rule="one").row()["volumes"] == 6
    with pytest.raises(SettingError, match=r"SCORE-RULE.*lesion-only"):
        quick(run, slices, empty_rule="lesions")


def test_other_raters_of_a_panel_only_where_asked(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    slices = cohort(6)
    truth = slices.scans["sub-004_T2w"].indices["truth"]
    slices = with_masks(slices, ["sub-004_T2w"], rater_2=truth[:16], rater_3=truth[:8])
    plain = quick(run, slices)
    assert set(plain.rows["reference"]) == {"rater-1", "truth"} == set(plain.metrics["references"])
    assert "rater-2" not in set(plain.rows["name"])
    report = quick(run, slices, references=["rater-2", "truth"])
    assert set(report.rows["reference"]) == {"rater-2", "truth"}
    assert report.row(reference="rater-2")["dice"] == pytest.approx(2 * 16 / (16 + 32))
    assert report.row("rater-2", reference="truth")["volumes"] == 1
    assert "rater-3" not in set(report.rows["name"])
    with pytest.raises(SettingError, match=r"REFERENCE-UNKNOWN.*rater-9"):
        quick(run, slices, references=["rater-9"])
    alone = with_masks(slices, ["sub-005_T2w"], rater_2=truth, rater_1=None, truth=None)
    noted = quick(run, alone)
    assert any("1 volumes have none of the masks rater-1, truth" in note for note in noted.metrics["notes"])
    assert "sub-005_T2w" not in set(noted.scores["volume"]) and "unmarked" not in set(noted.rows["reference"])


def test_the_mask_that_was_learned_from_is_a_reference(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter(), config={"mask": "rater-2"})
    slices = cohort(6)
    slices = with_masks(slices, slices.scans, rater_2=slices.scans["sub-004_T2w"].indices["truth"])
    assert set(quick(run, slices).rows["reference"]) == {"rater-1", "rater-2", "truth"}


def test_calibration_of_a_network_that_is_always_sure(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", monkeypatch, Brighter())
    slices = cohort(6, free=(5,), shift=1)
    report = Report.load(quick(run, slices).folder)
    right, off = report.row(reference="truth"), report.row()
    assert right["ece"] == right["ece_cord"] == pytest.approx(0, abs=1e-6)
    # Sure and wrong on two strips of 4 x 2 voxels in four volumes: those that it missed are as many as those that it
    # marked beside, and stand in the lowest and in the highest bin.
    cord = report.calibration(region="cord")
    assert cord.voxels == 6 * 12 * 10 * 6
    wrong = 4 * 2 * 4 * 2 / cord.voxels
    assert off["ece_cord"] == cord.ece == pytest.approx(wrong, rel=1e-4) and cord.brier == pytest.approx(wrong)
    crop = report.calibration()
    assert (off["ece"], off["brier"]) == (crop.ece, crop.brier) and crop.voxels > cord.voxels
    assert crop.voxels == sum(report.calibration(contrast).voxels for contrast in ("T2w", "T2star"))
    assert report.row(contrast="T2w")["ece"] == report.calibration("T2w").ece
    assert pd.isna(report.row("all-cord")["ece"]) and "ECE in the cord" in report.table()
    with pytest.raises(SettingError, match="REPORT-ROW"):
        report.calibration(region="brain")


def test_every_name_of_the_package_is_there_whatever_was_imported():
    folder = Path(msfilm.evaluate.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert not modules & set(msfilm.evaluate.__all__)  # a module hides a function of its name
    for name in msfilm.evaluate.__all__:
        home = import_module(f"msfilm.evaluate.{msfilm.evaluate._HOMES[name]}")
        assert getattr(msfilm.evaluate, name) is getattr(home, name)
