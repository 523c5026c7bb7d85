"""kill -9 at random moments of a training run: what is on disk loads, and the resumed run ends as if never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from test_loop import toy

from msfilm.data.slices import SliceSet
from msfilm.locks import LOCK
from msfilm.model.weights import load_network

pytestmark = pytest.mark.long

EPOCHS = 72
# So slow a learner gets better in many epochs, and each time the network's two files are written as well.
SETTINGS = "--conditioning contrast --depth 2 --filters 4 --lr 5e-4 --loss dice-bce --device cpu --precision fp32"
# When each kill comes: while the process starts, at any moment of an epoch, or while a file is being written.
MOMENTS = ["starting"] * 4 + ["epoch"] * 10 + ["writing"] * 10


def _command(*words):
    return [sys.executable, "-m", "msfilm", *map(str, words)]


def _train(run, *more):
    words = (*SETTINGS.split(), "--epochs", EPOCHS, "--patience", 0, "--quiet", *more)
    return _command("train", run.parent / "slices", run, *words)


def _stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def _half_written(run):
    """Names of the files that are being written right now."""
    try:
        with os.scandir(run) as entries:
            return {entry.name for entry in entries if entry.name.startswith(".tmp-")}
    except FileNotFoundError:
        return set()


def _wait_for(moment, run, process, draw, start_s, epoch_s):
    """Come back when it is time to kill; the names of the files that were being written."""
    state, before = run / "state.safetensors", _stamp(run / "state.safetensors")
    if moment == "starting":
        time.sleep(draw.uniform(0.05, 1.1) * start_s)
        return _half_written(run)
    if moment == "epoch":
        while _stamp(state) == before and process.poll() is None:   # until it trains, not only imports
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 1.5) * epoch_s)
        return _half_written(run)
    sightings, seen = draw.randint(1, 6), set()   # the files follow each other: network.json, weights, checkpoint ..
    while process.poll() is None:
        now = _half_written(run)
        sightings -= len(now - seen)
        if sightings <= 0 and now:
            return now
        seen = now
    return set()


def _result(run):
    """What has to be the same: the bytes of the network, and the history but for the times."""
    return (run / "weights.safetensors").read_bytes(), pd.read_csv(run / "history.csv").drop(columns="seconds")


@pytest.mark.timeout(1800)
def test_a_killed_run_ends_like_one_that_was_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so small a network is no faster with more
    toy(patients=15, slices=8).save(tmp_path / "slices")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    started = time.perf_counter()
    subprocess.run(_train(alone), check=True)
    epoch_s = float(pd.read_csv(alone / "history.csv")["seconds"].median())
    start_s = time.perf_counter() - started - EPOCHS * epoch_s

    draw = random.Random(0)
    moments = draw.sample(MOMENTS, len(MOMENTS))
    caught, kills, reached = [], 0, []
    for moment in moments:
        process = subprocess.Popen(_train(killed, "--resume"), start_new_session=True)
        caught += _wait_for(moment, killed, process, draw, start_s, epoch_s)
        assert process.poll() is None, "it ended before it was killed: raise EPOCHS"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if (killed / "history.csv").exists():   # what is on disk is whole, after every kill
            load_network(killed)
            reached.append(len(pd.read_csv(killed / "history.csv")))
            assert 0 < reached[-1] < EPOCHS
    print(f"{kills} kills, {len(caught)} of them in the middle of {sorted(name.split('-', 2)[2] for name in caught)}; "
          f"epochs on disk after each: {reached}; {time.perf_counter() - started:.0f} s")
    assert kills >= 20 and len(caught) >= 5 and reached == sorted(reached)
    assert (killed / LOCK).exists(), "the last process could not clear up, and blocks nobody"
    subprocess.run(_train(killed, "--resume"), check=True)

    (weights, history), (same_weights, same_history) = _result(alone), _result(killed)
    assert weights == same_weights
    pd.testing.assert_frame_equal(history, same_history, check_exact=True)
    assert not list(killed.glob(".*")), "nothing half-written is left"


@pytest.mark.timeout(600)
def test_preparing_killed_at_any_moment_leaves_the_old_slices_or_the_new_ones(tmp_path, monkeypatch):
    """The folder takes its place in one step; what a killed process leaves beside it is hidden, and harms nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    phantom = ("phantom", tmp_path / "slices", "--slices", "--patients", 2, "--seed", 5, "--quiet")
    started = time.perf_counter()
    subprocess.run(_command(*phantom), check=True)
    took_s = time.perf_counter() - started
    known = SliceSet.load(tmp_path / "slices")
    draw = random.Random(1)
    for _ in range(6):
        process = subprocess.Popen(_command(*phantom), start_new_session=True)
        time.sleep(draw.uniform(0.6, 1.0) * took_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert SliceSet.load(tmp_path / "slices").equals(known)
