"""Rater styles: the confusion matrix against the scores that everything else is scored by, and networks whose style is
known beforehand.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluate_cohort import SHAPE, VOXEL_MM, part_row
from torch import nn
from typer.testing import CliRunner

from msfilm.cli import app
from msfilm.data.nifti import Volume
from msfilm.data.prepare import prepare_volume
from msfilm.data.sidecars import SIDECAR_COLUMNS
from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate import metrics
from msfilm.evaluate.plan import cohort_plan, read_plan
from msfilm.evaluate.predict import predict_images
from msfilm.evaluate.style_tables import best_style, drawn_volumes, read_off, style_volumes
from msfilm.evaluate.styles import (
    MEAN,
    PLAIN,
    confusion,
    measure_styles,
    predict_style,
    raters_agree,
    score_styles,
    style_differences,
    styles_of,
)
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, save_network
from msfilm.train.config import TrainConfig
from msfilm.train.loop import RunResult
from msfilm.view.styles import confusion_figure, confusion_panels, style_figure

ROOT = Path(__file__).resolve().parent.parent
RATERS = ("rater-01", "rater-02", "rater-03", "rater-04")
LEVELS = (1.75, 1.55, 1.35, 1.05)  # marks above: rater-01 draws small, rater-04 large; their mean draws as rater-02


def _volume(patient: int, own: int, lesion: bool) -> SliceSet:
    """Four nested masks, the smallest brightest; around the cord it is as bright as the own rater's number says."""
    cord = np.zeros(SHAPE, np.uint8)
    cord[14:26, 16:26, :] = 1
    image = np.where(cord > 0, 1.0, 0.1 + 0.1 * own)
    drawn = {}
    for k, rater in enumerate(RATERS, start=1):
        mask = np.zeros(SHAPE, np.uint8)
        if lesion:
            mask[18 - k // 2 : 20 + (k + 1) // 2, 20 - k // 2 : 21 + k // 2, 2:4] = 1
        drawn[rater] = mask
    for value, rater in zip((1.2, 1.4, 1.6, 1.8), reversed(RATERS), strict=True):
        image[drawn[rater] > 0] = value
    order = [RATERS[(own + k) % 4] for k in range(4)]
    masks = {"cord": cord, "truth": drawn["rater-02"]} | {f"rater-{k + 1}": drawn[name] for k, name in enumerate(order)}
    affine = np.diag([*VOXEL_MM, 1.0])
    about = {"patient": f"sub-{patient:03d}", "session": "", "centre": f"centre-{own}", "contrast": "T2w",
             "rater": order[0], "raters": ",".join(order), "image": "", "notes": ""} | dict.fromkeys(SIDECAR_COLUMNS)
    name = f"sub-{patient:03d}_T2w"
    part = prepare_volume(name, Volume((700 * image).astype(np.float32), affine),
                          {key: Volume(mask, affine) for key, mask in masks.items()}, about)
    return SliceSet(part.images[:, None], {key: mask[:, None] for key, mask in part.masks.items()}, part.table,
                    part_row(name, part.row), {name: part.scan}, {"size": 48, "spacing_mm": 0.75, "source": "test"})


@pytest.fixture(scope="module")
def panel() -> SliceSet:
    """Eight patients, two of each rater's; nobody drew anything in the last."""
    return SliceSet.concat([_volume(patient, patient % 4, patient != 8) for patient in range(1, 9)])


class Told(nn.Module):
    """Draws as z says: exactly as each rater."""

    def __init__(self):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(LEVELS))

    def forward(self, x, z):
        return 1000 * (x - (z @ self.levels)[:, None, None, None])


class Reads(nn.Module):
    """Told nothing; draws as the scan's own rater, whom the surroundings betray: 0.1, 0.2, 0.3, 0.4."""

    def forward(self, x, z=None):
        own = torch.round(x[:, 0, 0, 0] * 10 - 1).long()
        return 1000 * (x - torch.tensor(LEVELS)[own][:, None, None, None])


class Fixed(nn.Module):
    def forward(self, x, z=None):
        return 1000 * (x - LEVELS[2])


TOLD = Network(Told(), CategoryEncoder("rater", RATERS))


def test_every_cell_is_the_dice_of_that_style_with_that_raters_mask(panel):
    scores = score_styles(TOLD, panel)
    assert len(scores) == 8 * 5 * 5 and set(scores["style"]) == {*RATERS, MEAN}
    for row in scores.sample(60, random_state=0).itertuples():
        scan, about = panel.scans[row.volume], panel.volumes.loc[row.volume]
        k = about["raters"].split(",").index(row.rater) + 1 if row.rater != "truth" else 0
        level = np.mean(LEVELS) if row.style == MEAN else LEVELS[RATERS.index(row.style)]
        brightness = np.zeros(scan.shape)
        for value, rater in zip((1.2, 1.4, 1.6, 1.8), reversed(RATERS), strict=True):
            brightness[scan.dense(f"rater-{about['raters'].split(',').index(rater) + 1}")] = value
        expected = metrics.volume_scores(scan.dense(f"rater-{k}" if k else "truth"), brightness > level,
                                         scan.voxel_volume_mm3)
        np.testing.assert_equal((row.dice, row.own), (expected.dice, about["rater"]))
        assert (row.prediction_mm3, row.reference_mm3) == pytest.approx((expected.prediction_mm3,
                                                                         expected.reference_mm3))


def test_a_network_that_draws_as_each_rater_does_has_ones_on_the_diagonal(panel):
    scores = score_styles(TOLD, panel)
    table = pd.DataFrame(confusion(scores, n=50)).set_index(["style", "rater"])
    assert (table.loc[[(r, r) for r in RATERS], "dice"] == 1).all()
    for rater in RATERS:
        column = table.xs(rater, level="rater")["dice"]
        assert (column.drop(rater).drop(MEAN) < 1).all() and column[MEAN] == column["rater-02"]
    assert set(table["patients"]) == {7} and set(table["scores"]) == {7}  # nothing drawn, nothing marked: left out
    assert (table["dice_lesion_only"] == table["dice"]).all() and (table["dice_one"] >= table["dice"]).all()

    wide = scores.pivot(index=["volume", "rater"], columns="style", values="dice").drop("truth", level="rater")
    found = {(row["rater"], row["b"]): row for row in style_differences(scores, n=200)}
    for rater in RATERS:
        part = wide.xs(rater, level="rater")
        others = part[[name for name in RATERS if name != rater]].mean(axis=1)
        assert found[rater, "other styles"]["mean"] == pytest.approx((part[rater] - others).mean(), abs=1e-5)
        assert found[rater, "mean code"]["mean"] == pytest.approx((part[rater] - part[MEAN]).mean(), abs=1e-5)
    assert found["rater-02", "mean code"]["mean"] == 0 < found["all", "other styles"]["low95"]


def test_raters_agree_as_their_masks_do(panel):
    scan = panel.scans["sub-001_T2w"]  # the others have the same lesion
    order = panel.volumes.loc["sub-001_T2w", "raters"].split(",")
    found = {(row["first"], row["second"]): row for row in raters_agree(panel, n=50)}
    assert len(found) == 10
    for (first, second), row in found.items():
        a, b = (scan.dense("truth" if who == "truth" else f"rater-{order.index(who) + 1}") for who in (first, second))
        assert row["dice"] == pytest.approx(metrics.dice(a, b), abs=1e-5) and row["patients"] == 7


@pytest.mark.parametrize(("model", "knows"), [(Reads(), True), (Fixed(), False)])
def test_a_network_that_reads_whose_scan_it_is_agrees_better_with_that_rater(panel, model, knows):
    lesions = panel.select((panel.table["patient"] < "sub-005").to_numpy())  # one of each rater's
    scores = score_styles(Network(model), lesions).assign(seed=0)
    assert set(scores["style"]) == {PLAIN}
    found = read_off(scores)
    assert found["dice"] > 0.1 if knows else found["dice"] == pytest.approx(0, abs=1e-9)


def test_a_style_is_told_whoever_drew_the_scan_and_the_mean_code_does_not_warn(panel, recwarn):
    few = panel.select(np.arange(6))
    for k, rater in enumerate(RATERS):
        z = torch.eye(4)[k].repeat(len(few), 1)
        assert np.array_equal(predict_style(TOLD, few, rater), predict_images(TOLD, few.images, z))
    assert np.array_equal(predict_style(TOLD, few, MEAN), predict_images(TOLD, few.images, torch.full((6, 4), 0.25)))
    assert not recwarn.list
    assert styles_of(TOLD) == RATERS and styles_of(Network(Fixed())) == ()


def test_refusals_name_what_there_is(panel):
    with pytest.raises(SettingError, match=r"STYLE-UNKNOWN.*rater-1.*rater-01"):
        predict_style(TOLD, panel, "rater-1")
    with pytest.raises(SettingError, match=r"STYLE-UNKNOWN"):
        predict_style(Network(Fixed()), panel, MEAN)
    alone = SliceSet(panel.images, panel.masks, panel.table, panel.volumes.assign(raters="rater-01"), panel.scans)
    with pytest.raises(SettingError, match=r"STYLE-RATERS.*8 volumes"):
        score_styles(TOLD, alone)


@dataclass(frozen=True)
class Run:
    """What an experiment hands to a measure."""

    arm: str
    seed: int
    run: Path
    slices: Path
    test: Path
    config: TrainConfig
    plan: dict
    training: dict


def _random(seed: int, n_codes: int) -> UNet:
    """Any weights, FiLM's too, so that styles differ."""
    model = UNet(UNetConfig(depth=1, filters=4, n_codes=n_codes, prior=0.5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_a_measure_is_kept_and_read_again_and_other_weights_are_scored_anew(panel, tmp_path, monkeypatch):
    panel.save(tmp_path / "test")
    runs = []
    for arm, encoder in (("none, x", None), ("rater, x", CategoryEncoder("rater", RATERS))):
        for seed in (0, 1):
            model = _random(seed, 4 if encoder else 0)
            save_network(tmp_path / f"{arm}{seed}", Network(model, encoder))
            runs.append(Run(arm, seed, tmp_path / f"{arm}{seed}", tmp_path / "train", tmp_path / "test", TrainConfig(),
                            {"styles_mm": [-0.4, -0.1, 0.1, 0.4], "raters": "crossed"}, {}))
    found = measure_styles(runs, tmp_path / "kept", workers=1, progress=False)
    text = json.dumps(found, allow_nan=False)
    assert str(tmp_path) not in text
    assert len(found["confusion"]) == (1 + 5) * 5 and found["style_patients"] == 8
    assert found["style_mm"] == dict(zip(RATERS, (-0.4, -0.1, 0.1, 0.4), strict=True))
    rows = {(row["a"], row["rater"]): row for row in found["own_style_minus_plain"]}
    assert {rater for _, rater in rows} == {*RATERS, "all", "own", "truth"} and len(rows) == 14

    own = {}
    for run in runs:
        weights = json.loads((run.run / "network.json").read_text())["weights_sha256"]
        [file] = (tmp_path / "kept").glob(f"{weights[:12]}*.csv")
        table = pd.read_csv(file)
        table = table[(table["rater"] == table["own"]) & table["style"].where(table["style"] != PLAIN, table["own"])
                      .eq(table["own"])]
        own[run.arm, run.seed] = table.set_index("volume")
    paired = pd.concat([own["rater, x", seed]["dice"] - own["none, x", seed]["dice"] for seed in (0, 1)])
    assert rows["matching style", "own"]["mean"] == pytest.approx(paired.mean(), abs=1e-5) and paired.notna().any()

    with monkeypatch.context() as patch:
        patch.setattr("msfilm.evaluate.styles.score_styles", None)  # would be called if anything were scored again
        assert json.dumps(measure_styles(runs, tmp_path / "kept", workers=1, progress=False)) == text
    save_network(runs[0].run, Network(_random(9, 0)))
    measure_styles(runs, tmp_path / "kept", workers=1, progress=False)
    assert len(list((tmp_path / "kept").iterdir())) == 5
    assert measure_styles(runs, tmp_path / "few", workers=1, progress=False, patients=3)["style_patients"] == 3


def test_best_style_and_volumes_of_a_network_that_draws_as_each_rater_does(panel):
    scores = score_styles(TOLD, panel).assign(seed=0)
    best = {row["rater"]: row for row in best_style(scores)}
    assert [best[rater]["share"] for rater in ("all", *RATERS)] == [1] * 5
    assert all(best[rater]["best_by_seed"] == [rater] and best[rater]["seeds_best"] == 1 for rater in RATERS)
    drawn = {row["rater"]: row["difference_mm3"] for row in drawn_volumes(scores)}
    made = {row["style"]: row["difference_mm3"] for row in style_volumes(scores) if row["own"] == "all"}
    assert made == drawn | {MEAN: drawn["rater-02"]} and sorted(drawn.values()) == [drawn[rater] for rater in RATERS]
    assert drawn["rater-02"] == 0  # the truth here


def test_the_confusion_figure_shows_every_number_and_frames_the_raters_own(panel):
    rows = confusion(score_styles(TOLD, panel), n=50)
    plain = confusion(score_styles(Network(Fixed()), panel), n=50)
    biases = dict(zip(RATERS, (-1, -0.5, 0, 1), strict=True))
    figure = confusion_figure({"told": rows, "told and plain": rows + plain}, biases)
    first, second, _ = figure.axes
    for ax, some in ((first, rows), (second, rows + plain)):
        text = [one.get_text() for one in ax.texts]
        assert sorted(t for t in text if "to" not in t) == sorted(f"{row['dice']:.3f}" for row in some)
        frames = [patch for patch in ax.patches if not patch.get_fill()]
        assert len(frames) == 2 * len(RATERS)  # a dark and a light line each
        centres = {(round(p.get_x() + p.get_width() / 2, 6), round(p.get_y() + p.get_height() / 2, 6)) for p in frames}
        assert centres == {(k, k) for k in range(4)}
    bold = [t for t in first.texts if t.get_fontweight() == "bold"]
    assert [t.get_text() for t in bold] == ["1.000"] * 4
    assert min(t.get_fontsize() for ax in figure.axes for t in (*ax.texts, *ax.get_xticklabels())) >= 9
    content = {"confusion": [{**row, "arm": "a"} for row in rows] + [{**row, "arm": "b"} for row in plain],
               "own_style_minus_plain": [{"arm": "a", "plain": "b"}]}
    assert {arm: len(some) for arm, some in confusion_panels(content).items()} == {"a": 30}
    with pytest.raises(SettingError, match="PLOT-SHAPE"):
        confusion_figure({})


def test_the_style_figure_draws_each_style_together_and_alone(panel):
    maps = {rater: predict_style(TOLD, panel, rater)[2, 0] for rater in RATERS}
    masks = {rater: panel.masks["rater-1"][2, 0] for rater in RATERS}
    figure = style_figure(panel.images[2], maps, masks)
    assert len(figure.axes) == 5 and [ax.get_title() for ax in figure.axes] == ["all styles", *RATERS]
    lines = [len(ax.collections) for ax in figure.axes]
    assert lines[0] == 2 * 4 and lines[1:] == [4] * 4  # a style or a mask: a dark line below a light one
    assert style_figure(panel.images[2], {"a": np.zeros((48, 48))}) is not None  # nothing marked
    with pytest.raises(SettingError, match="PLOT-SHAPE.*47"):
        style_figure(panel.images[2], {"a": np.zeros((47, 48))})


def test_make_pretrained_makes_the_network_of_the_experiment_again(panel, tmp_path, monkeypatch):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    raters, training = (shlex.split(re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE)[1])
                        for name in ("RATERS", "TRAIN_RATER"))
    experiment = read_plan(ROOT / "benchmarks" / "experiments" / "rater-identity.yml")
    seen = {}
    monkeypatch.setattr("msfilm.phantom.direct.make_slices", lambda *given, **_: seen.update(cohort=given[:2]))
    monkeypatch.setattr("msfilm.train.loop.fit", lambda _, config, *__, **___: seen.update(config=config)
                        or RunResult(tmp_path, 1, 0.0, 1, 0.0))
    panel.save(tmp_path / "slices")
    patients = re.search(r"rater-slices (--slices .*?) \$\(RATERS\)", makefile)[1].split()
    for words in (["phantom", "x", *patients, *raters], ["train", str(tmp_path / "slices"), "y", *training]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    wanted = experiment.cohorts["crossed"]
    assert seen["cohort"] == (wanted["patients"], cohort_plan(wanted))
    assert seen["config"] == experiment.grid("crossed").jobs()["arm=rater, crossed,seed=0"]
