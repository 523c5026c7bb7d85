"""kill -9 at random moments of a sweep: resumed, it ends with the table and networks of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

pytestmark = pytest.mark.long

KILLS = 6
GRID = """
slices: slices
base: {conditioning: contrast, filters: 4, epochs: 6, patience: 0, device: cpu, precision: fp32, dropout: 0.2}
grid:
  depth: [1, 2]
  schedule: [cosine, constant]
seeds: [0, 1]
"""


def _command(*words):
    return [sys.executable, "-m", "msfilm", *map(str, words)]


def _epochs(out):
    """Every checkpoint's time: another one when any run got further."""
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/state.safetensors")}


def _result(out):
    table = pd.read_csv(out / "runs.csv").drop(columns="seconds")
    return table, {run: (out / "runs" / run / "weights.safetensors").read_bytes() for run in table["run"]}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_sweep_ends_like_one_that_was_left_alone(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(_command("phantom", tmp_path / "slices", "--slices", "--patients", 6, "--seed", 5, "--quiet"),
                   check=True)
    grid = tmp_path / "grid.yml"
    grid.write_text(GRID, encoding="utf-8")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    started = time.perf_counter()
    subprocess.run(_command("sweep", grid, alone, "--workers", 1, "--quiet"), check=True)
    a_job_s = (time.perf_counter() - started) / 8

    again = _command("sweep", grid, killed, "--workers", workers, "--quiet")
    moments = random.Random(workers)
    for number in range(KILLS):
        before = _epochs(killed)
        process = subprocess.Popen(again, start_new_session=True)
        while _epochs(killed) == before and process.poll() is None:  # until it trains, not only imports
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5) * a_job_s)
        assert process.poll() is None, "it ended before it was killed: raise epochs"
        if number % 2:  # all of it, or the parent alone, whose workers have to follow
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (killed / "runs.csv").exists():
            assert set(pd.read_csv(killed / "runs.csv")["status"]) <= {"done"}
    subprocess.run(again, check=True)

    (table, weights), (same_table, same_weights) = _result(alone), _result(killed)
    pd.testing.assert_frame_equal(table, same_table, check_exact=True)
    assert weights == same_weights and set(table["status"]) == {"done"} and len(table) == 8
    assert not list(killed.rglob(".tmp-*")), "nothing half-written is left"
    trained = _epochs(killed)
    subprocess.run(again, check=True)
    assert _epochs(killed) == trained and len(trained) == 8, "what is done is not trained again"


@pytest.mark.timeout(600)
def test_workers_end_with_their_parent(tmp_path, monkeypatch):
    """One that trained on would write into a run that somebody resumes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(_command("phantom", tmp_path / "slices", "--slices", "--patients", 6, "--seed", 5, "--quiet"),
                   check=True)
    grid, out = tmp_path / "grid.yml", tmp_path / "out"
    grid.write_text(GRID.replace("epochs: 6", "epochs: 5000"), encoding="utf-8")
    process = subprocess.Popen(_command("sweep", grid, out, "--workers", 2, "--quiet"), start_new_session=True)
    while len(_epochs(out)) < 2 and process.poll() is None:
        time.sleep(0.01)
    assert len(psutil.Process(process.pid).children()) >= 2
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    try:
        assert not alive, f"{len(alive)} train on without a parent"
    finally:
        for one in alive:
            one.kill()
