"""Faults of a run: a full disk, flipped bytes, two writers, no numbers, no memory, misspelt names. Each is named.

Real processes where the operating system decides: RLIMIT_FSIZE for the disk, and locks that end with their process.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_loop import CONFIG, toy

from msfilm import nbcheck
from msfilm.data.slices import SliceSet
from msfilm.errors import InputError, MsfilmError, RunError, SettingError, suggest
from msfilm.evaluate.plan import read_plan
from msfilm.files import atomic_folder, sha256_file
from msfilm.locks import LOCK, hold_folder
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, load_network, save_network
from msfilm.train import loop
from msfilm.train.config import with_settings
from msfilm.train.grid import read_grid
from msfilm.train.jobs import run_all
from msfilm.train.loop import TrainConfig, fit
from msfilm.train.state import load_state, save_state

QUICK = replace(CONFIG, epochs=6, lr=0.03)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices():
    return toy()


@pytest.fixture(scope="module")
def stored(slices, tmp_path_factory):
    """The same slices as a folder, for other processes."""
    return slices.save(tmp_path_factory.mktemp("stored") / "slices")


@pytest.fixture(scope="module")
def alone(slices, tmp_path_factory):
    """The run that nothing happened to."""
    return fit(slices, QUICK, tmp_path_factory.mktemp("runs") / "alone", progress=False).folder


def result_of(folder):
    """What has to be the same, bit for bit."""
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds")
    return sha256_file(folder / "weights.safetensors"), history.to_csv(index=False)


def start(code, *words):
    """A process that runs ``code``; sys.argv[1:] are the words."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True,
                            cwd=os.path.dirname(__file__), env=os.environ | {"OMP_NUM_THREADS": "1"})


# ---- a full disk

FULL = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from msfilm.data.slices import SliceSet
from msfilm.errors import MsfilmError
from msfilm.model.weights import load_network
from msfilm.train.loop import TrainConfig, fit
from msfilm.train.state import open_run

slices, config, out = SliceSet.load(sys.argv[1]), TrainConfig.from_dict(json.loads(sys.argv[2])), Path(sys.argv[3])
said = []

def limit(size, run=None):
    if size == "state":   # the next one is longer by a row
        size = (run / "state.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

for number, (epoch, size) in enumerate(json.loads(sys.argv[4])):
    run = out / f"full-{number}"
    try:
        if not epoch:
            limit(size)
        fit(slices, config, run, progress=False, on_epoch=lambda row: row["epoch"] == epoch and limit(size, run))
        said.append([None, "", 0])
    except MsfilmError as error:
        limit(resource.RLIM_INFINITY)
        kept = len((run / "history.csv").read_text().splitlines()) - 1 if epoch else 0
        if epoch:
            load_network(run)
        said.append([error.code, str(error), kept, sorted(p.name for p in run.iterdir() if p.name.startswith("."))])
    fit(slices, config, run, resume=True, progress=False)
print(json.dumps(said))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
def test_a_full_disk_keeps_the_last_good_epoch_and_the_run_goes_on_to_the_same_bytes(stored, alone, tmp_path):
    """A limit on the size of files from an epoch on: each kind of file is the first that does not fit."""
    size = {file.name: file.stat().st_size for file in alone.iterdir()}
    assert size["state.safetensors"] > size["weights.safetensors"] > size["network.json"] > 700
    tries = [(0, 20), (0, 300), (1, "state"), (4, "state"), (2, size["weights.safetensors"] - 1),
             (3, size["network.json"] - 400), (3, 100), (5, size["weights.safetensors"] // 2)]
    process = start(FULL, stored, json.dumps(QUICK.as_dict()), tmp_path, json.dumps(tries))
    said = json.loads(process.communicate(timeout=120)[0])
    for (epoch, limit), (code, message, kept, hidden) in zip(tries, said, strict=True):
        assert code == ("WEIGHTS-WRITE" if epoch else "RUN-WRITE"), (epoch, limit, message)
        assert "File too large" in message and ("make room" in message or "free space" in message), message
        assert kept == epoch and not hidden, "the last good epoch is there, and nothing half-written"
    for number in range(len(tries)):
        assert result_of(tmp_path / f"full-{number}") == result_of(alone)


@pytest.mark.parametrize("name", ["history.csv", "split.csv"])
def test_a_table_that_cannot_be_written_is_an_error_of_ours(slices, alone, tmp_path, monkeypatch, name):
    def full(self, target, **kind):
        if name in str(target):
            raise OSError(28, "No space left on device")
        return write(self, target, **kind)

    for kind in (pd.DataFrame, pd.Series):
        write = kind.to_csv
        with monkeypatch.context() as patch:
            patch.setattr(kind, "to_csv", full)
            if kind is (pd.DataFrame if name == "history.csv" else pd.Series):
                with pytest.raises(RunError, match=rf"RUN-WRITE.*{name}.*No space left"):
                    fit(slices, QUICK, tmp_path / "run", progress=False)
    fit(slices, QUICK, tmp_path / "run", resume=True, progress=False)
    assert result_of(tmp_path / "run") == result_of(alone) and (tmp_path / "run" / "split.csv").is_file()


# ---- no numbers, no memory

def broken(value):
    slices = toy()
    slices.images[int(np.flatnonzero(slices.table["volume"] == "sub-004_T2star")[1]), 0, 3, 3] = value
    return slices


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["train", "val"])
def test_a_pixel_that_is_no_number_stops_the_run_by_name_on_either_side(tmp_path, value, side):
    slices = broken(value)
    config = next(c for s in range(40) if _side(c := replace(CONFIG, split_seed=s), slices, "sub-004") == side)
    with pytest.raises(RunError, match=r"TRAIN-NAN.*no numbers in sub-004_T2star") as found:
        fit(slices, config, tmp_path / "run", progress=False)
    assert ("the batch:" in str(found.value)) == (side == "train")
    if (tmp_path / "run" / "weights.safetensors").exists():   # an augmentation may have moved that pixel out at first
        assert all(torch.isfinite(x).all() for x in load_network(tmp_path / "run").model.state_dict().values())


def _side(config, slices, patient):
    from msfilm.data.split import split_patients

    return split_patients(slices.volumes, fractions=config.fractions, seed=config.split_seed)[patient]


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_a_run_that_blows_up_keeps_its_last_good_epoch(slices, alone, tmp_path, monkeypatch, what):
    """A loss that is infinite; or a finite one with an infinite slope, in the last step of an epoch."""
    dice, calls = loop.LOSSES["dice"], 0

    def explode(logits, targets):
        nonlocal calls
        calls += 1
        if calls != (20 if what == "loss" else 18):   # 6 steps an epoch: epoch 4, or the last step of epoch 3
            return dice(logits, targets)
        return dice(logits, targets) * float("inf") if what == "loss" else (logits * 0).sum().sqrt()

    with monkeypatch.context() as patch:
        patch.setitem(loop.LOSSES, "dice", explode)
        words = r"loss became inf in epoch 4, step 2 of 6" if what == "loss" else r"weights became no numbers"
        with pytest.raises(RunError, match=rf"TRAIN-NAN.*{words}.*the batch: sub-\d+.*lower lr"):
            fit(slices, QUICK, tmp_path / "run", progress=False)
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == (3 if what == "loss" else 2)
    assert all(torch.isfinite(x).all() for x in load_network(tmp_path / "run").model.state_dict().values())
    fit(slices, QUICK, tmp_path / "run", resume=True, progress=False)   # nothing of the explosion was kept
    assert result_of(tmp_path / "run") == result_of(alone)


def test_a_rate_that_cannot_work_is_refused_before_anything_is_trained():
    with pytest.raises(SettingError, match=r"lr=1e\+30.*from 1e-08 to 1"):
        replace(CONFIG, lr=1e30)


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 9 bytes"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9")])
@pytest.mark.parametrize("where", ["loss", "augmented_once", "volume_dice", "gather"])
def test_out_of_memory_anywhere_says_what_to_lower(slices, tmp_path, monkeypatch, error, where):
    def full(*_, **__):
        raise error

    if where == "loss":
        monkeypatch.setitem(loop.LOSSES, "dice", full)
    else:
        monkeypatch.setattr(loop, where, full)
    with pytest.raises(RunError, match=r"TRAIN-MEMORY.*batch_size \(now 8\), filters \(4\)") as found:
        fit(slices, replace(CONFIG, epochs=1, frozen_augmentation=True), tmp_path / "run", progress=False)
    assert ("GPU" in str(found.value)) == isinstance(error, torch.OutOfMemoryError)


def test_a_process_that_really_runs_out_of_memory_says_so(tmp_path):
    """Torch's own words on this machine: 4 TB that no address space limit grants."""
    code = ("import resource, torch\nfrom msfilm.train.loop import TrainConfig, _memory_named\n"
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))\n"
            "try:\n    with _memory_named(TrainConfig()): torch.empty(1 << 40)\n"
            "except Exception as error: print(error)\n")
    assert start(code).communicate(timeout=60)[0].startswith("[TRAIN-MEMORY] out of memory:")


def test_an_interrupted_run_says_how_to_go_on(slices, tmp_path):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as found:
        fit(slices, CONFIG, tmp_path / "a run", progress=False, on_epoch=stop)
    assert "a run goes on with" in found.value.__notes__[0] and "resume=True" in found.value.__notes__[0]


# ---- flipped bytes

def flips(content, count, seed=0, start=0, stop=None):
    """The bytes with one bit turned, at ``count`` places drawn from start .. stop."""
    draw = random.Random(seed)
    places = range(start, len(content) if stop is None else stop)
    for place in sorted(draw.sample(places, min(count, len(places)))):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << draw.randrange(8)
        yield place, bytes(spoilt)


def small_network():
    model = UNet(UNetConfig(depth=1, filters=2, n_codes=2, film_width=4))
    return Network(model, CategoryEncoder("contrast", ("T2star", "T2w")),
                   {"scores": {"val_dice": 0.8125}, "seed": 1, "must_not_be_used_for": "patients"})


def same_network(a, b):
    x, y = a.model.state_dict(), b.model.state_dict()
    return (a.model.config == b.model.config and a.encoder == b.encoder and a.card == b.card and x.keys() == y.keys()
            and all(torch.equal(x[name], y[name]) for name in x))


@pytest.mark.parametrize(("name", "count"), [("weights.safetensors", 700), ("network.json", 900)])
def test_a_flipped_bit_anywhere_in_a_network_is_refused_or_changes_nothing(tmp_path, name, count):
    net = small_network()
    file = save_network(tmp_path, net) / name
    content, harmless = file.read_bytes(), 0
    for place, spoilt in flips(content, count):
        file.write_bytes(spoilt)
        try:
            assert same_network(load_network(tmp_path), net), f"byte {place}: other numbers, silently"
            harmless += 1
        except InputError as error:
            assert error.code in ("WEIGHTS-CORRUPT", "WEIGHTS-FORMAT"), error
    # Not looked at: which msfilm wrote it, spaces, and the name of the card's hash, without which it is an older file.
    assert harmless == 0 if name == "weights.safetensors" else harmless < 0.15 * count


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    model = UNet(UNetConfig(depth=1, filters=1))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 1, 8, 8)).mean().backward()
    optimizer.step()
    history = [{"epoch": 1, "val_dice": 1 / 3}]
    save_state(tmp_path / "state.safetensors", model, optimizer, history)
    content = (tmp_path / "state.safetensors").read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    harmless = 0
    for place, spoilt in [*flips(content, 500, stop=data), *flips(content, 150, start=data)]:
        (tmp_path / "state.safetensors").write_bytes(spoilt)
        other = UNet(UNetConfig(depth=1, filters=1), seed=1)
        again = torch.optim.Adam(other.parameters())
        try:
            assert load_state(tmp_path / "state.safetensors", other, again) == history
            assert all(torch.equal(x, y) for x, y in
                       zip(model.state_dict().values(), other.state_dict().values(), strict=True)), place
            moments = [[optimizer.state[p] for p in model.parameters()], [again.state[p] for p in other.parameters()]]
            assert all(torch.equal(a[key], b[key]) for a, b in zip(*moments, strict=True) for key in a), place
            assert place < data, "the numbers themselves are never passed over"
            harmless += 1
        except InputError as error:
            assert error.code == "WEIGHTS-CORRUPT", error
    assert harmless < 10, "spaces at most"


def test_a_flipped_bit_anywhere_in_prepared_slices_is_refused_or_changes_nothing(tmp_path):
    slices = toy(patients=3, slices=2)
    folder = slices.save(tmp_path / "slices")
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for place, spoilt in flips(content, 250 if file.name == "slices.json" else 25):
            file.write_bytes(spoilt)
            try:
                back = SliceSet.load(folder)
                assert back.equals(slices) and back.meta == slices.meta, f"{file.name}, byte {place}"
                assert file.name == "slices.json", f"{file.name}, byte {place}: passed over"
            except InputError as error:
                assert error.code in ("SLICES-CORRUPT", "SLICES-VERSION", "SLICES-MISSING"), error
        file.write_bytes(content)
    assert SliceSet.load(folder).equals(slices)


def test_slices_and_networks_of_earlier_versions_are_still_read(tmp_path):
    """Their description and their card had no hash of their own."""
    index = toy(patients=2, slices=2).save(tmp_path / "slices") / "slices.json"
    content = json.loads(index.read_text())
    del content["index_sha256"]
    index.write_text(json.dumps(content))
    assert len(SliceSet.load(tmp_path / "slices")) == 8
    file = save_network(tmp_path / "net", small_network()) / "network.json"
    content = json.loads(file.read_text())
    del content["card_sha256"]
    file.write_text(json.dumps(content))
    assert load_network(tmp_path / "net").card["seed"] == 1


# ---- two writers

HOLD = """
import sys, time
from msfilm.locks import hold_folder
with hold_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""
TRAIN = """
import json, sys, time
import torch
from msfilm.data.slices import SliceSet
from msfilm.train.loop import TrainConfig, fit
torch.set_num_threads(1)
fit(SliceSet.load(sys.argv[1]), TrainConfig.from_dict(json.loads(sys.argv[2])), sys.argv[3], progress=False,
    on_epoch=lambda row: (print("epoch", flush=True), time.sleep(60)))
"""


def kill(process):
    os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()


def test_a_second_process_is_refused_and_one_that_was_killed_blocks_nobody(slices, stored, alone, tmp_path):
    run = tmp_path / "run"
    first = start(TRAIN, stored, json.dumps(QUICK.as_dict()), run)
    try:
        assert first.stdout.readline() == "epoch\n"
        before = {file.name: file.read_bytes() for file in run.iterdir()}
        for resume in (True, False):
            with pytest.raises(RunError, match=rf"RUN-BUSY.*process {first.pid} on .+ \(since \d{{4}}-\d\d-\d\dT"):
                fit(slices, QUICK, run, resume=resume, progress=False)
        done = subprocess.run([sys.executable, "-m", "msfilm", "train", stored, run, "--resume", "--quiet"],
                              capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and f"[RUN-BUSY] {run}: process {first.pid} on " in done.stderr, done.stderr
        assert {file.name: file.read_bytes() for file in run.iterdir()} == before, "the first one's files are untouched"
    finally:
        kill(first)
    assert (run / LOCK).exists(), "killed, it could not clear up; the lock ended all the same"
    fit(slices, QUICK, run, resume=True, progress=False)
    assert result_of(run) == result_of(alone) and not (run / LOCK).exists()


def test_a_sweep_and_a_cohort_have_one_writer_too(stored, tmp_path):
    from msfilm.phantom.dataset import write_cohort

    holder = start(HOLD, tmp_path / "out")
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"RUN-BUSY.*process {holder.pid} "):
            run_all({"a": CONFIG}, stored, tmp_path / "out", progress=False)
        with pytest.raises(RunError, match=rf"RUN-BUSY.*process {holder.pid} "):
            write_cohort(tmp_path / "out", patients=1, progress=False)
    finally:
        kill(holder)
    assert run_all({"a": replace(CONFIG, epochs=1)}, stored, tmp_path / "out", progress=False)["status"][0] == "done"


def test_two_threads_of_one_process_do_not_share_a_run(slices, tmp_path):
    """As in a notebook that trains in the background."""
    seen, errors = threading.Event(), []

    def second():
        seen.wait(30)
        try:
            fit(slices, CONFIG, tmp_path / "run", resume=True, progress=False)
        except RunError as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    fit(slices, CONFIG, tmp_path / "run", progress=False, on_epoch=lambda row: seen.set() or thread.join(30))
    assert [error.code for error in errors] == ["RUN-BUSY"] and f"process {os.getpid()} " in str(errors[0])


def test_the_lock_is_given_back_after_an_error_and_waits_a_moment_for_one_that_ends(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path / "a"):
        raise KeyError
    assert list((tmp_path / "a").iterdir()) == []
    holder = start(HOLD.replace("time.sleep(120)", "time.sleep(0.7)"), tmp_path / "a")
    assert holder.stdout.readline() == "held\n"
    with hold_folder(tmp_path / "a", wait_s=30):
        assert json.loads((tmp_path / "a" / LOCK).read_text())["pid"] == os.getpid()
    holder.communicate()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="RUN-WRITE.*cannot write into this folder"), hold_folder(tmp_path / "file"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows always has locks")
def test_without_locks_the_named_process_is_asked_for(tmp_path, monkeypatch):
    """As on some network drives: a living process of this machine blocks, a dead one or garbage does not."""
    import errno

    from msfilm import locks

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with hold_folder(tmp_path):
        who = json.loads((tmp_path / LOCK).read_text())
    for content, busy in ((json.dumps(who), True), (json.dumps(who | {"born": 1.0}), False), ("{", False),
                          (json.dumps(who | {"host": "elsewhere"}), False), ("[]", False), ("", False)):
        (tmp_path / LOCK).write_text(content)
        if busy:
            with pytest.raises(RunError, match=rf"RUN-BUSY.*process {os.getpid()} "), hold_folder(tmp_path, wait_s=0):
                pass
        else:
            with hold_folder(tmp_path, wait_s=0):
                pass


def test_folders_put_in_place_at_the_same_moment_are_whole(tmp_path):
    """Two writers of one set of slices: the last one's is there, whole, and nothing besides."""
    faults = []

    def write(name):
        try:
            for _ in range(40):
                with atomic_folder(tmp_path / "out") as folder:
                    for part in "abc":
                        (folder / part).write_text(name)
        except Exception as error:   # whatever it is, the test has to see it
            faults.append(error)

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
    assert len({(tmp_path / "out" / part).read_text() for part in "abc"}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- runs that were stopped while they were begun

@pytest.mark.parametrize("there", [[], [".lock"], [".tmp-7-config.json"], ["config.json"], ["config.json", LOCK]])
def test_a_run_stopped_while_it_was_begun_goes_on(slices, alone, tmp_path, there):
    run = tmp_path / "run"
    run.mkdir()
    for name in there:
        if name == "config.json":
            shutil.copy(alone / name, run / name)
        else:
            (run / name).write_text('{"pid": 1}')
    fit(slices, QUICK, run, resume=True, progress=False)
    assert result_of(run) == result_of(alone)
    assert (run / "split.csv").read_text() == (alone / "split.csv").read_text()
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in alone.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"config": 3}', '{"config": {}}', "\xff", "[" * 100_000])
def test_a_config_json_that_describes_no_run_is_refused(slices, stored, alone, tmp_path, content):
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(MsfilmError, match="RUN-CONFIG"):
        fit(slices, QUICK, tmp_path / "run", resume=True, progress=False)


# ---- misspelt names

def _yaml(read, text):
    def call(folder):
        (folder / "a.yml").write_text(text, encoding="utf-8")
        read(folder / "a.yml")
    return call


PLAN = ("question: q\nexpected: e\ncohorts: {a: {patients: 3, seed: 1}}\ntests: {t: {patients: 2, seed: 2}}\n"
        "arms: {x: {filters: 2}}\n")


def _msfilm(*words):
    def call(folder):
        done = subprocess.run([sys.executable, "-m", "msfilm", *words], cwd=folder, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert not list(folder.iterdir()), "a refused command leaves nothing behind"
        raise SettingError(*re.match(r"msfilm: \[([A-Z-]+)\] (.*)", done.stderr).groups())
    return call


@pytest.mark.parametrize(("call", "meant"), [
    (lambda _: nbcheck.check_parameters({"EPOCHS": 3, "EPOCSH": 4}, EPOCHS=int), "EPOCHS"),
    (lambda _: nbcheck.check_parameters({"PROFILE": "quik"}, PROFILE=("quick", "course")), "quick"),
    (_msfilm("trian", "slices", "run"), "train"),
    (_msfilm("train", "slices", "run", "--epocs", "3"), "--epochs"),
    (_msfilm("phantom", "folder", "--patient=3"), "--patients"),
    (_msfilm("--versoin"), "--version"),
    (_msfilm("train", "slices", "run", "--set", "film_fourm=sigmoid"), "film_form"),
    (_msfilm("train", "slices", "run", "--schedule", "cosin"), "cosine"),
    (lambda _: with_settings(CONFIG, ["augment.rotate=3"]), "rotate_deg"),
    (lambda _: loop.TrainConfig.from_dict({"epoch": 3}), "epochs"),
    (lambda _: UNetConfig(film_form="residul"), "residual"),
    (_yaml(read_grid, "gird: {depth: [1]}\n"), "grid"),
    (_yaml(read_grid, "grid: {dept: [1]}\n"), "depth"),
    (_yaml(read_grid, "base: {augment: {rotate: 3}}\ngrid: {depth: [1]}\n"), "augment.rotate_deg"),
    (_yaml(read_plan, PLAN + "mesure: [scores]\n"), "measure"),
    (_yaml(read_plan, PLAN + "measure: [score]\n"), "scores"),
    (_yaml(read_plan, PLAN.replace("filters", "filter")), "filters"),
    (_yaml(read_plan, PLAN.replace("filters: 2", "cohort: b, filters: 2")), "a"),
    (lambda folder: load_network(folder / "film-contrast-smal"), None),
    (lambda _: load_network("film-contrast-smal"), "film-contrast-small"),
])
def test_a_misspelt_name_is_refused_with_the_one_that_was_meant(tmp_path, call, meant):
    with pytest.raises(SettingError) as found:
        call(tmp_path)
    if meant:
        assert f"did you mean '{meant}'" in str(found.value) or f"use one of: {meant}" in str(found.value), found.value


def test_ctrl_c_at_the_command_line_says_how_to_go_on(stored, tmp_path):
    words = "--conditioning contrast --depth 1 --filters 2 --epochs 5000 --patience 0 --device cpu --precision fp32"
    command = [sys.executable, "-m", "msfilm", "train", stored, tmp_path / "run", "--quiet", *words.split()]
    # A shell's job in the background ignores Ctrl-C, and what it starts does too.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until = time.monotonic() + 60
    while not (tmp_path / "run" / "state.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and said.splitlines()[-1].startswith("msfilm: stopped"), said
    assert "--resume" in said and "Traceback" not in said
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("name", ["state.safetensors", "weights.safetensors", "network.json"])
def test_a_run_that_has_lost_a_file_is_not_started_anew_over_what_is_left(slices, alone, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / name).unlink()
    left = {path.name: sha256_file(path) for path in run.iterdir()}
    with pytest.raises(RunError, match=rf"RUN-STATE.*{name}.*missing.*put the file back"):
        fit(slices, QUICK, run, resume=True, progress=False)
    assert {path.name: sha256_file(path) for path in run.iterdir()} == left


def test_the_checkpoint_of_another_run_is_not_gone_on_from(slices, alone, tmp_path):
    """Two runs of one architecture: the shapes fit, the numbers are somebody else's."""
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(alone, run)
    fit(slices, replace(QUICK, seed=QUICK.seed + 1), other, progress=False)
    assert json.loads((run / "config.json").read_text())["threads"] == torch.get_num_threads()
    shutil.copy(other / "state.safetensors", run / "state.safetensors")
    left = {path.name: sha256_file(path) for path in run.iterdir()}
    with pytest.raises(RunError, match=r"RUN-STATE.*another run's"):
        fit(slices, QUICK, run, resume=True, progress=False)
    assert {path.name: sha256_file(path) for path in run.iterdir()} == left
    model = UNet(UNetConfig(depth=1, filters=1))
    adam = torch.optim.Adam(model.parameters())
    for key in ("", "mine"):   # a checkpoint of before there were keys, and one's own, are taken
        save_state(tmp_path / "state.safetensors", model, adam, [{"epoch": 1}], key)
        assert load_state(tmp_path / "state.safetensors", model, adam, "mine") == [{"epoch": 1}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_that_ends_within_the_lock_does_not_give_it_back(tmp_path):
    with hold_folder(tmp_path):
        child = start("import sys; from pathlib import Path; import os\nfrom msfilm.locks import hold_folder\n"
                      "with hold_folder(Path(sys.argv[1])):\n"
                      "    if os.fork() == 0: sys.exit(0)\n"
                      "    os.wait(); print((Path(sys.argv[1]) / '.lock').exists())\n", tmp_path / "other")
        assert child.communicate(timeout=60)[0].strip() == "True"


@pytest.mark.parametrize("setting", [
    {"dropout": "low"}, {"dropout": None}, {"film_form": []}, {"modulation": {}}, {"device": True},
    {"contrasts": None}, {"without_centres": None}, {"augment": {"noise": float("inf")}}, {"prior": "a"}])
def test_a_setting_of_a_wrong_kind_is_refused_by_name(setting):
    name = next(iter(setting.get("augment", setting)))
    with pytest.raises(SettingError, match=rf"(TRAIN|UNET|AUGMENT)-SETTING.*{name}="):
        TrainConfig.from_dict(setting)


@pytest.mark.parametrize(("name", "known", "meant"), [
    ("T2W", ("T2w", "T2star"), "T2w"), ("T1w", ("T2w", "T2star"), None), ("rater1", ("rater-1", "rater-2"), "rater-1"),
    ("rater-05", ("rater-01", "rater-04"), None), ("epoch", ("epochs", "lr"), "epochs"), ("xyz", (), None),
    ("overlap", ("any", "overlap10"), "overlap10"), ("centre-1", ("centre-01",), "centre-01")])
def test_what_differs_in_a_digit_is_another_thing_and_no_misspelling(name, known, meant):
    said = suggest(name, known)
    assert said.startswith(f"did you mean '{meant}'?" if meant else "use one of: ") and all(x in said for x in known)
