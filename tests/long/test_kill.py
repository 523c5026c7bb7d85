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

from msfilm.model.weights import load_network

pytestmark = pytest.mark.long

EPOCHS, KILLS = 18, 5  # each try gets one epoch further and is killed within 1.5 more
SETTINGS = "--conditioning contrast --depth 2 --filters 4 --batch-size 16 --device cpu --precision fp32 --patience 0"


def _command(*words):
    return [sys.executable, "-m", "msfilm", *map(str, words)]


def _train(run, *more):
    return _command("train", run.parent / "slices", run, "--epochs", EPOCHS, *SETTINGS.split(), "--quiet", *more)


def _stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def _result(run):
    """What has to be the same: the bytes of the network, and the history but for the times."""
    return (run / "weights.safetensors").read_bytes(), pd.read_csv(run / "history.csv").drop(columns="seconds")


@pytest.mark.timeout(1800)
def test_a_killed_run_ends_like_one_that_was_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so small a network is no faster with more
    subprocess.run(_command("phantom", tmp_path / "cohort", "--patients", 6, "--seed", 5, "--quiet"), check=True)
    subprocess.run(_command("prepare", tmp_path / "cohort", tmp_path / "slices", "--quiet"), check=True)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    started = time.perf_counter()
    subprocess.run(_train(alone), check=True)
    an_epoch_s = (time.perf_counter() - started) / EPOCHS

    moments, state = random.Random(0), killed / "state.safetensors"
    for _ in range(KILLS):
        before = _stamp(state)
        process = subprocess.Popen(_train(killed, "--resume"), start_new_session=True)
        while _stamp(state) == before and process.poll() is None:  # until it trains, not only imports
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 1.5) * an_epoch_s)
        assert process.poll() is None, "it ended before it was killed: raise EPOCHS"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        load_network(killed)
        assert 0 < len(pd.read_csv(killed / "history.csv")) < EPOCHS
    subprocess.run(_train(killed, "--resume"), check=True)

    (weights, history), (same_weights, same_history) = _result(alone), _result(killed)
    assert weights == same_weights
    pd.testing.assert_frame_equal(history, same_history, check_exact=True)
    assert not list(killed.glob(".tmp-*")), "nothing half-written is left"
