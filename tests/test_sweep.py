"""Grids and sweeps: what YAML may say; a row a job, done runs kept, failures named; chosen by validation only."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluate_cohort import cohort

from msfilm.data.slices import UNDRAWN
from msfilm.errors import InputError, RunError, SettingError
from msfilm.train import jobs as jobs_module
from msfilm.train.augment import NO_AUGMENT
from msfilm.train.grid import MAX_JOBS, Grid, read_grid, write_grid
from msfilm.train.jobs import run_all
from msfilm.train.loop import RunResult, TrainConfig, fit
from msfilm.train.runs import run_name
from msfilm.train.sweep import sweep

ROOT = Path(__file__).resolve().parent.parent
BASE = {"depth": 1, "filters": 4, "epochs": 2, "lr": 0.01, "precision": "fp32", "device": "cpu", "mask": "truth",
        "patience": 0}
CONFIG = TrainConfig(**BASE, augment=NO_AUGMENT)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices():
    return cohort(5)


def write(folder, text, name="a grid é.yml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def fault(kind, code, call, *words):
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


def a_grid(**more):
    return Grid(**{"grid": {"batch_size": [8, 16]}, "base": BASE, "question": "q", "expected": "e"} | more)


def untimed(table):
    return table.drop(columns="seconds")


# The file


def test_a_grid_is_every_combination_with_every_seed(tmp_path):
    path = write(tmp_path, """
        question: which?
        expected: the deeper one
        slices: the slices
        base: &common {filters: 4, augment: {rotate_deg: 5}}
        grid:
          schedule: [cosine, constant]
          lr: [1e-3, 3.0e-4, 0.01]
          contrasts: [[], T2w, [T2w, T2star]]
          augment.elastic_p: [0, 0.5]
          fractions: [[.6, .2, .2]]
        seeds: [3, 1]
        """)
    grid = read_grid(path)
    jobs = grid.jobs()
    assert len(jobs) == 2 * 3 * 3 * 2 * 2
    assert (grid.question, grid.expected, grid.slices) == ("which?", "the deeper one", tmp_path / "the slices")
    for name, config in jobs.items():
        said = dict(part.split("=") for part in name.split(","))
        assert list(said) == ["augment.elastic_p", "contrasts", "fractions", "lr", "schedule", "seed"]
        assert config.augment.elastic_p == float(said["augment.elastic_p"]) and config.augment.rotate_deg == 5
        assert config.contrasts == {"[]": (), "T2w": ("T2w",), "T2w+T2star": ("T2w", "T2star")}[said["contrasts"]]
        assert (config.lr, config.schedule, config.seed) == (float(said["lr"]), said["schedule"], int(said["seed"]))
        assert config.filters == 4 and config.fractions == (0.6, 0.2, 0.2)
    assert len({repr(config) for config in jobs.values()}) == len(jobs)
    again = read_grid(write_grid(grid, tmp_path / "again.yml"))
    assert again.jobs() == jobs and list(again.jobs()) == list(jobs)


def test_names_are_sorted_and_the_seed_is_last():
    grid = Grid(grid={"schedule": ["cosine"], "depth": [2], "batch_size": [16]})
    assert list(grid.jobs()) == ["batch_size=16,depth=2,schedule=cosine,seed=0"]
    assert Grid(grid={"depth": (2, 3)}).grid == {"depth": [2, 3]}, "a tuple is a list in code"


def test_the_example_is_the_papers_grid():
    grid = read_grid(ROOT / "benchmarks" / "experiments" / "grid-search.yml")
    assert set(grid.grid) == {"schedule", "batch_size", "depth"} and len(grid.seeds) > 1
    assert grid.question and grid.expected and len(grid.jobs()) == math.prod(
        [len(values) for values in grid.grid.values()]) * len(grid.seeds)


@pytest.mark.parametrize(("text", "code", "words"), [
    ("grid: {dept: [2]}", "GRID-SETTING", ["'dept'", "'depth'"]),
    ("grid: {rotate_deg: [2]}", "GRID-SETTING", ["augment.rotate_deg"]),
    ("grid: {augment.rotate_degs: [2]}", "GRID-SETTING", ["'augment.rotate_deg'"]),
    ("grid: {depth.x: [2]}", "GRID-SETTING", ["depth.x"]),
    ("base: {augment: {elastic: 1}}\ngrid: {depth: [2]}", "GRID-SETTING", ["augment.elastic"]),
    ("grid: {1: [2]}", "GRID-SETTING", ["'1'"]),
    ("grid: {seed: [0, 1]}", "GRID-SETTING", ["seeds:"]),
    ("base: {seed: 1}\ngrid: {depth: [2]}", "GRID-SETTING", ["seeds:"]),
    ("grids: {depth: [2]}", "GRID-KEY", ["'grid'"]),
    ("grid: {depth: []}", "GRID-LIST", ["depth", "empty"]),
    ("grid: {depth: 2}", "GRID-LIST", ["depth", "no list"]),
    ("grid: {schedule: cosine}", "GRID-LIST", ["'cosine'"]),
    ("grid: {depth: [2]}\nseeds: 3", "GRID-LIST", ["seeds"]),
    ("grid: {depth: [2]}\nseeds: []", "GRID-LIST", ["seeds"]),
    ("base: {depth: 2}", "GRID-LIST", ["no setting varies"]),
    ("grid:", "GRID-LIST", ["no setting varies"]),
    ("grid: [depth]", "GRID-VALUE", ["grid"]),
    ("grid: {depth: [2, 3, 2]}", "GRID-TWICE", ["depth"]),
    ("grid: {contrasts: [T2w, [T2w]]}", "GRID-TWICE", ["contrasts=T2w"]),
    ("grid: {depth: [2]}\nseeds: [1, 1]", "GRID-TWICE", ["seeds"]),
    ("base: {depth: 2}\ngrid: {depth: [2]}", "GRID-TWICE", ["depth"]),
    ("base: {augment.noise: 0, augment: {noise: 0}}\ngrid: {depth: [2]}", "GRID-TWICE", ["augment.noise"]),
    ("base: {augment: strong}\ngrid: {augment.noise: [0]}", "GRID-TWICE", ["augment"]),
    ("grid: {augment: [{noise: 1}]}", "GRID-VALUE", ["augment.NAME"]),
    ("grid: {mask: [2020-01-01]}", "GRID-VALUE", ["date", "quotes"]),
    ("grid: {depth: [2]}\nquestion: no", "GRID-VALUE", ["question"]),
    ("grid: {depth: [2]}\nslices: [a]", "GRID-VALUE", ["slices"]),
    ("grid: {schedule: [cosine, cosin]}", "TRAIN-SETTING", ["'cosine'", "schedule=cosin,seed=0"]),
    ("grid: {depth: [2]}\nseeds: [-1]", "TRAIN-SETTING", ["seed=-1"]),
    ("grid: {lr: [.nan]}", "TRAIN-SETTING", ["lr=nan"]),
])
def test_a_wrong_grid_is_refused_by_name(tmp_path, text, code, words):
    path = write(tmp_path, text)
    fault(SettingError, code, lambda: read_grid(path), *words, str(path))


@pytest.mark.parametrize(("text", "words"), [
    ("question: a\ngrid: {depth: [2\nseeds: [0]", ["line 3"]),
    ("grid:\n\tdepth: [2]", ["line 2"]),
    ("grid:\n  depth: [2]\n  depth: [3]", ["line 3", "'depth'"]),
    ("\n\ngrid: !!python/object/apply:os.getcwd []", ["line 3"]),
    ("grid: *nobody", ["line 1"]),
    ("grid: {contrasts: [&a [*a]]}", ["an alias lies within"]),
    ("a: 1\n---\nb: 2", ["line 2"]),
    ("", ["line 1"]),
    ("- depth", ["line 1"]),
    ("grid: {mask: [2020-99-99]}", []),
    ("grid: {mask: [\x01]}", []),
    ("[" * 5000, []),
])
def test_what_is_no_yaml_is_refused_with_its_line(tmp_path, text, words):
    path = write(tmp_path, text)
    fault(InputError, "GRID-YAML", lambda: read_grid(path), *words, str(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    fault(InputError, "GRID-MISSING", lambda: read_grid(tmp_path / "none.yml"), "none.yml")
    fault(InputError, "GRID-MISSING", lambda: read_grid(tmp_path))
    (tmp_path / "latin.yml").write_bytes("question: é".encode("latin-1"))
    fault(InputError, "GRID-YAML", lambda: read_grid(tmp_path / "latin.yml"))


def test_a_grid_too_large_is_refused_before_it_is_built(monkeypatch):
    def never(self):
        raise AssertionError("a job was built")

    monkeypatch.setattr(Grid, "jobs", never)
    many = list(range(1, 1 + math.isqrt(MAX_JOBS)))
    fault(SettingError, "GRID-SIZE", lambda: Grid(grid={"epochs": many, "patience": many}, seeds=(0, 1)), "20000 jobs")


# Many runs


def test_a_row_a_job_in_order_with_what_differs(slices, tmp_path):
    jobs = {"b": replace(CONFIG, batch_size=8, augment=replace(NO_AUGMENT, noise=0.1)),
            "a": CONFIG, "the same": CONFIG, "one contrast": replace(CONFIG, contrasts=("T2w",), epochs=1)}
    table = run_all(jobs, slices, tmp_path, workers=1, progress=False)
    assert list(table["name"]) == list(jobs) and set(table["status"]) == {"done"}
    assert list(table.columns[:8]) == ["name", "run", "status", "val_dice", "best_epoch", "epochs", "seconds", "error"]
    assert sorted(table.columns[8:]) == ["augment.noise", "batch_size", "contrasts", "set_epochs"]
    assert table["run"][1] == table["run"][2] and table["run"].nunique() == 3
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert list(table["contrasts"]) == ["[]", "[]", "[]", '["T2w"]'] and list(table["set_epochs"]) == [2, 2, 2, 1]
    for name, config in jobs.items():
        row = table.set_index("name").loc[name]
        folder = tmp_path / "alone" / name
        alone = fit(slices, config, folder, progress=False)
        assert row["run"] == run_name(config, slices)
        assert (row["val_dice"], row["best_epoch"], row["epochs"]) == (alone.best_val_dice, alone.best_epoch,
                                                                      alone.epochs)
        assert (folder / "weights.safetensors").read_bytes() == (
            tmp_path / "runs" / row["run"] / "weights.safetensors").read_bytes()
    kept = pd.read_csv(tmp_path / "runs.csv", keep_default_na=False)
    assert list(kept["name"]) == list(jobs) and np.allclose(kept["val_dice"], table["val_dice"])


def test_done_jobs_are_kept_and_interrupted_ones_go_on(slices, tmp_path, monkeypatch):
    jobs = {f"seed={seed}": replace(CONFIG, seed=seed, dropout=0.2, epochs=3) for seed in (0, 1, 2)}
    whole = run_all(jobs, slices, tmp_path / "whole", workers=1, progress=False)

    stopped, trained = tmp_path / "stopped", []

    def interrupted(data, config, run, **more):
        def stop(row):
            trained.append((config.seed, row["epoch"]))
            if trained == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]:
                raise KeyboardInterrupt
        return fit(data, config, run, on_epoch=stop, **more)

    monkeypatch.setattr(jobs_module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, slices, stopped, workers=1, progress=False)
    assert list(pd.read_csv(stopped / "runs.csv")["name"]) == ["seed=0"], "kept after every job"
    again = run_all(jobs, slices, stopped, workers=1, progress=False)
    assert trained == [(seed, epoch) for seed in (0, 1, 2) for epoch in (1, 2, 3)], "no epoch twice"
    pd.testing.assert_frame_equal(untimed(again), untimed(whole), check_exact=True)

    monkeypatch.setattr(jobs_module, "fit", None)   # would fail if it were called
    pd.testing.assert_frame_equal(run_all(jobs, slices, stopped, progress=False), again)
    monkeypatch.setattr(jobs_module, "fit", interrupted)

    (stopped / "runs" / again["run"][2] / "result.json").write_text("{half")
    third = run_all(jobs, slices, stopped, workers=1, progress=False)
    assert len(trained) == 9, "a run whose result is broken is looked at, and not trained again"
    pd.testing.assert_frame_equal(untimed(third), untimed(whole), check_exact=True)


def test_a_failing_job_fills_its_row_and_the_others_go_on(slices, tmp_path, monkeypatch):
    masks = slices.masks | {"nobody": np.full_like(slices.masks["truth"], UNDRAWN)}
    slices = replace(slices, masks=masks)

    def fails(data, config, run, **more):
        if config.seed == 1:
            raise RuntimeError("first line\n  second line")
        return fit(data, config, run, **more)

    monkeypatch.setattr(jobs_module, "fit", fails)
    jobs = {"bug": replace(CONFIG, seed=1), "good": CONFIG, "nothing drawn": replace(CONFIG, mask="nobody"),
            "no mask": replace(CONFIG, mask="rater-9")}
    table = run_all(jobs, slices, tmp_path, workers=1, progress=False).set_index("name")
    assert list(table.index) == list(jobs) and list(table["status"]) == ["failed", "done", "failed", "failed"]
    assert "[TRAIN-" in table["error"]["nothing drawn"]
    assert "[MASK-UNKNOWN]" in table["error"]["no mask"] and "rater-1" in table["error"]["no mask"]
    assert table["error"]["bug"] == "RuntimeError: first line second line" and table["error"]["good"] == ""
    assert np.isnan(table["val_dice"]["bug"]) and pd.isna(table["epochs"]["bug"])
    monkeypatch.setattr(jobs_module, "fit", fit)
    table = run_all(jobs, slices, tmp_path, workers=1, progress=False).set_index("name")
    assert table["status"]["bug"] == "done", "a failed job is tried again"


def test_no_jobs_and_wrong_workers(slices, tmp_path):
    assert run_all({}, slices, tmp_path, workers=2, progress=False).empty
    for wrong in (0, -1, 1.5, True, "2"):
        fault(SettingError, "SWEEP-WORKERS", lambda wrong=wrong: run_all({}, slices, tmp_path, workers=wrong))
    fault(InputError, "SLICES-MISSING", lambda: run_all({"a": CONFIG}, tmp_path / "none", tmp_path))
    (tmp_path / "file").write_text("")
    fault(RunError, "SWEEP-WRITE", lambda: run_all({"a": CONFIG}, slices, tmp_path / "file", progress=False))


def test_two_processes_give_what_one_gives(slices, tmp_path):
    grid = a_grid(seeds=(0, 1))
    one = sweep(grid, tmp_path / "one", slices=slices, workers=1, progress=False)
    two = sweep(grid, tmp_path / "two", slices=slices, workers=2, progress=False)
    pd.testing.assert_frame_equal(untimed(one.table), untimed(two.table), check_exact=True)
    assert (one.name, one.best, one.run.name) == (two.name, two.best, two.run.name)
    for name in one.table["run"]:
        weights = [(tmp_path / which / "runs" / name / "weights.safetensors").read_bytes() for which in ("one", "two")]
        assert weights[0] == weights[1]
    assert (tmp_path / "two" / "slices" / "slices.json").is_file() and not (tmp_path / "one" / "slices").exists()
    stamp = os.stat(tmp_path / "two" / "slices" / "slices.json").st_mtime_ns
    assert jobs_module._kept(slices, tmp_path / "two") == tmp_path / "two" / "slices"
    assert os.stat(tmp_path / "two" / "slices" / "slices.json").st_mtime_ns == stamp, "saved once"
    other = cohort(3)
    assert jobs_module._kept(other, tmp_path / "two").name == "slices"
    assert jobs_module._slices(tmp_path / "two" / "slices", "new").equals(other), "other slices are not taken for them"


def test_the_default_is_a_process_a_core_and_one_on_a_gpu(monkeypatch):
    jobs = {"a": CONFIG, "b": replace(CONFIG, device="auto")}
    monkeypatch.setattr(jobs_module.joblib, "cpu_count", lambda: 7)
    monkeypatch.setattr(jobs_module, "resolve_device", lambda name: torch.device("cpu"))
    assert jobs_module._default_workers(jobs) == 7
    monkeypatch.setattr(jobs_module, "resolve_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda:0"))
    assert jobs_module._default_workers(jobs) == 1 and jobs_module._default_workers({"a": CONFIG}) == 7


# Grid search


def scripted(monkeypatch, scores):
    """run_all's training replaced: (batch size, seed) -> validation Dice, or an error's text."""

    def stub(data, config, run, **more):
        score = scores[config.batch_size, config.seed]
        if isinstance(score, str):
            raise RunError("TRAIN-NAN", score)
        run.mkdir(parents=True, exist_ok=True)
        (run / "weights.safetensors").write_bytes(b"")
        return RunResult(run, 1, score, 2, 0.5)

    monkeypatch.setattr(jobs_module, "fit", stub)


def test_the_best_has_the_highest_mean_over_seeds(slices, tmp_path, monkeypatch):
    scripted(monkeypatch, {(8, 0): 0.9, (8, 1): 0.1, (16, 0): 0.6, (16, 1): 0.7})
    grid = a_grid(seeds=(0, 1))
    result = sweep(grid, tmp_path, slices=slices, workers=1, progress=False)
    assert result.name == "batch_size=16" and result.val_dice == pytest.approx(0.65)
    assert result.best == grid.jobs()["batch_size=16,seed=1"]
    assert result.run == tmp_path / "runs" / run_name(result.best, slices)
    kept = json.loads((tmp_path / "best.json").read_text())
    assert kept["val_dice_by_seed"] == {"0": 0.6, "1": 0.7} and kept["tried"]["batch_size=8"] == pytest.approx(0.5)
    assert TrainConfig.from_dict(kept["config"]) == result.best and kept["expected"] == "e"
    assert json.loads(json.dumps(asdict(result.best))) == kept["config"]


def test_settings_with_a_failed_seed_come_after_whole_ones(slices, tmp_path, monkeypatch):
    grid = a_grid(seeds=(0, 1))
    scripted(monkeypatch, {(8, 0): 0.9, (8, 1): "lost", (16, 0): 0.6, (16, 1): 0.7})
    result = sweep(grid, tmp_path / "a", slices=slices, workers=1, progress=False)
    assert result.name == "batch_size=16" and list(result.table["status"]).count("failed") == 1
    scripted(monkeypatch, {(8, 0): 0.4, (8, 1): "lost", (16, 0): 0.6, (16, 1): "lost"})
    result = sweep(grid, tmp_path / "b", slices=slices, workers=1, progress=False)
    assert result.name == "batch_size=16" and result.val_dice == 0.6
    scripted(monkeypatch, dict.fromkeys([(8, 0), (8, 1), (16, 0), (16, 1)], "lost"))
    fault(RunError, "SWEEP-NONE", lambda: sweep(grid, tmp_path / "c", slices=slices, workers=1, progress=False),
          "4 jobs", "lost")
    assert len(pd.read_csv(tmp_path / "c" / "runs.csv")) == 4 and not (tmp_path / "c" / "best.json").exists()


def test_another_grid_is_not_mixed_into_the_folder(slices, tmp_path, monkeypatch):
    scripted(monkeypatch, {(size, seed): 0.5 for size in (8, 16, 32) for seed in (0, 1)})
    go = {"slices": slices, "workers": 1, "progress": False}
    first = sweep(a_grid(), tmp_path, **go)
    assert first.name == "batch_size=8", "the first of equals"
    written = write_grid(a_grid(), tmp_path / "again.yml")
    assert sweep(written, tmp_path, **go).best == first.best
    for word, other in {"grid.batch_size": a_grid(grid={"batch_size": [8, 32]}), "seeds": a_grid(seeds=(0, 1)),
                        "base.lr": a_grid(base=BASE | {"lr": 0.1}), "expected": a_grid(expected="the opposite"),
                        "base.dropout": a_grid(base=BASE | {"dropout": 0.1})}.items():
        fault(RunError, "SWEEP-CONFIG", lambda other=other: sweep(other, tmp_path, **go), word)
    (tmp_path / "grid.yml").write_text("grid: [")
    fault(InputError, "GRID-YAML", lambda: sweep(a_grid(), tmp_path, **go), "grid.yml")


def test_slices_have_to_be_named_and_to_be_there(tmp_path):
    fault(SettingError, "SWEEP-SLICES", lambda: sweep(a_grid(), tmp_path / "out"), "--slices")
    fault(InputError, "SLICES-MISSING", lambda: sweep(a_grid(slices=tmp_path / "none"), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_table_by_validation_dice(slices, tmp_path, monkeypatch, capsys):
    from msfilm import cli

    slices.save(tmp_path / "the slices")
    base = ", ".join(f"{name}: {value}" for name, value in BASE.items())
    path = write(tmp_path, f"slices: the slices\nbase: {{{base}}}\ngrid:\n  batch_size: [8, 16, 32]")
    scripted(monkeypatch, {(8, 0): 0.4, (16, 0): 0.6, (32, 0): 0.5})

    def called(*words):
        monkeypatch.setattr("sys.argv", ["msfilm", "sweep", *map(str, words), "--workers", "1", "--quiet"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr()

    code, said = called(path, tmp_path / "a")
    lines = said.out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines[1:4]] == [f"batch_size={n},seed=0" for n in (16, 32, 8)]
    assert "0.6000: batch_size=16" in said.out
    scripted(monkeypatch, {(8, 0): 0.4, (16, 0): "lost", (32, 0): 0.5})
    code, said = called(path, tmp_path / "b")
    assert code == 1 and "batch_size=16,seed=0: [TRAIN-NAN] lost" in said.err and "0.5000: batch_size=32" in said.out
    code, said = called(write(tmp_path, "grid: {dept: [1]}", "b.yml"), tmp_path / "c")
    assert code == 2 and "[GRID-SETTING]" in said.err


ARMS = """
question: do arms work?
base: {depth: 1, filters: 4, epochs: 2, augment: {noise: 0.0}}
arms:
  as it is: {}
  softer: {loss: bce, augment: {mask_soft_p: 0.5, noise: 0.1}}
seeds: [0, 1]
"""


def test_an_arm_changes_several_settings_at_once_on_top_of_the_base(tmp_path):
    jobs = read_grid(write(tmp_path, ARMS)).jobs()
    assert list(jobs) == ["arm=as it is,seed=0", "arm=as it is,seed=1", "arm=softer,seed=0", "arm=softer,seed=1"]
    plain, soft = jobs["arm=as it is,seed=1"], jobs["arm=softer,seed=1"]
    assert (plain.loss, plain.augment.mask_soft_p, plain.augment.noise) == ("dice", 0.0, 0.0)
    assert soft == replace(plain, loss="bce", augment=replace(plain.augment, mask_soft_p=0.5, noise=0.1))
    both = read_grid(write(tmp_path, ARMS + "grid: {batch_size: [4, 2]}\n"))
    assert len(both.jobs()) == 8 and "arm=softer,batch_size=2,seed=0" in both.jobs()
    assert read_grid(write_grid(both, tmp_path / "again.yml")).jobs() == both.jobs()


@pytest.mark.parametrize(("text", "code"), [
    ("arms: {a: {los: bce}}", "GRID-SETTING"), ("arms: {a: {loss: bce}}\ngrid: {loss: [dice]}", "GRID-TWICE"),
    ("arms: {a: [1]}", "GRID-VALUE"), ("arms: []", "GRID-VALUE"), ("arms: {a: {seed: 1}}", "GRID-SETTING"),
])
def test_wrong_arms_are_refused(tmp_path, text, code):
    fault(SettingError, code, lambda: read_grid(write(tmp_path, text)))
