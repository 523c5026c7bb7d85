"""Many runs, one after the other or side by side, resumable, with one row each in a table."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import psutil
import torch
from tqdm import tqdm

from msfilm.data.slices import SliceSet
from msfilm.data.split import sides_of
from msfilm.errors import InputError, MsfilmError, RunError, SettingError
from msfilm.files import atomic_path, read_json, sha256_file, write_json
from msfilm.locks import hold_folder
from msfilm.train.loop import TrainConfig, fit
from msfilm.train.runs import run_name
from msfilm.train.state import changed_sides, resolve_device

__all__ = ["run_all", "write_refused"]

_COLUMNS = ("name", "run", "status", "val_dice", "best_epoch", "epochs", "seconds", "error")


def run_all(jobs: Mapping[str, TrainConfig], slices: SliceSet | str | Path, out: str | Path, *,
            workers: int | None = None, progress: bool = True) -> pd.DataFrame:
    """Train every job; called again, go on where it stopped.

    A job's folder is ``out/runs/`` + ``run_name(config, slices)``, so jobs with equal settings share a run. A job that
    fails fills its row and the others go on; it is tried again at the next call.

    Args:
        jobs: name -> settings.
        slices: the data, or their folder. Several workers read a folder (memory-mapped): a set in memory is then kept
            as ``out/slices``.
        out: folder for the runs and for runs.csv, which is written anew after every job.
        workers: processes side by side. Default: one a core, each with one thread; 1 on a GPU, in this process. The
            cores are divided among several workers; a single one keeps torch's number of threads.
        progress: show a bar over the jobs (with one worker also over the epochs).

    Returns:
        A row a job, in the jobs' order: name, run, status ('done' or 'failed'), val_dice (of the best epoch),
        best_epoch, epochs, seconds, error, and a column for every setting that is not the same in all jobs.

    Raises:
        SettingError: SWEEP-WORKERS.
        RunError: SWEEP-WORKER, a process was killed; RUN-BUSY, another process works in ``out``; SWEEP-WRITE.
        InputError: what SliceSet.load refuses.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise SettingError("SWEEP-WORKERS", f"workers={workers!r}", mend="use a whole number, 1 or more")
    out = Path(out)
    folder = None if isinstance(slices, SliceSet) else Path(slices)
    data = slices if folder is None else SliceSet.load(folder)

    settings, rows = _differing(jobs), {}
    names: dict[str, list[str]] = {}     # run -> the jobs that it is
    for name, config in jobs.items():
        try:
            names.setdefault(run_name(config, data), []).append(name)
        except Exception as error:       # a mask, contrast or device that is not there
            rows[name] = {"run": "", **_failed(error)}

    def note(run: str, row: dict[str, Any]) -> None:
        rows.update({name: {"run": run, **row} for name in names[run]})

    with hold_folder(out, refused="SWEEP-WRITE"):
        done = {run: row for run in names if (row := _finished(out / "runs" / run))
                and _same_split(out / "runs" / run, jobs[names[run][0]], data)}
        for run, row in done.items():
            note(run, row)
        for leftover in out.glob(".tmp-*"):   # of a process that was killed while it wrote
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        _write(out, _table(jobs, rows, settings))
        waiting = {run: jobs[names[run][0]] for run in names if run not in done}
        workers = min(workers or _default_workers(jobs), max(len(names), 1))
        threads = torch.get_num_threads() if workers == 1 else max(1, _cores() // workers)
        with tqdm(total=len(names), initial=len(done), disable=not progress, desc=out.name, unit="run") as bar:
            # Threads go by all jobs, not by those left: sums in another order would make a resumed table another one.
            if min(workers, len(waiting)) <= 1:
                results = _here(waiting, data, out, threads, progress and workers == 1)
            else:
                results = _side_by_side(waiting, _kept(data, out) if folder is None else folder, out, threads, workers)
            for run, row in results:
                note(run, row)
                _write(out, _table(jobs, rows, settings))
                bar.update()
    return _table(jobs, rows, settings)


def _differing(jobs: Mapping[str, TrainConfig]) -> dict[str, dict[str, Any]]:
    """Job -> those of its settings that are not the same in all jobs."""
    flat = {name: _flat(asdict(config)) for name, config in jobs.items()}
    columns = list(dict.fromkeys(column for one in flat.values() for column in one))
    vary = [column for column in columns if len({repr(one.get(column)) for one in flat.values()}) > 1]
    return {name: {column: one.get(column) for column in vary} for name, one in flat.items()}


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return out


def _table(jobs: Mapping[str, TrainConfig], rows: dict[str, dict[str, Any]],
           settings: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The jobs that have a row, in their order."""
    varying = list(next(iter(settings.values()), {}))
    lines = [[name, *(rows[name].get(column) for column in _COLUMNS[1:]), *settings[name].values()]
             for name in jobs if name in rows]
    # A setting may be called like a column ('epochs'): the setting is then 'set_epochs'.
    columns = [*_COLUMNS, *(f"set_{column}" if column in _COLUMNS else column for column in varying)]
    kinds = {"val_dice": "float64", "best_epoch": "Int64", "epochs": "Int64", "seconds": "float64"}
    return pd.DataFrame(lines, columns=columns).astype(kinds)


def _write(out: Path, table: pd.DataFrame) -> None:
    try:
        with atomic_path(out / "runs.csv") as temporary:
            table.to_csv(temporary, index=False)
    except OSError as error:
        raise write_refused(out / "runs.csv", error) from error


def write_refused(path: Path, error: OSError) -> RunError:
    """SWEEP-WRITE, for a disk that refuses."""
    return RunError("SWEEP-WRITE", f"cannot write: {error.strerror or error}", where=path,
                    mend="check free space and permissions, then call again: finished runs are kept")


def _finished(run: Path) -> dict[str, Any] | None:
    """The row of a run that ended, or None: it is to be trained, or to be gone on with."""
    if not ((run / "result.json").is_file() and (run / "weights.safetensors").is_file()):
        return None
    try:
        content = read_json(run / "result.json")
        return {"status": "done", "val_dice": float(content["val_dice"]), "best_epoch": int(content["best_epoch"]),
                "epochs": int(content["epochs"]), "seconds": float(content["seconds"]), "error": ""}
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _same_split(run: Path, config: TrainConfig, slices: SliceSet) -> bool:
    """Whether a finished run's patients are where they were; if not, going on with it says what has changed."""
    try:
        sides, _ = sides_of(slices, unit=config.split_unit, fractions=config.fractions, seed=config.split_seed)
        return not changed_sides(run, sides)
    except MsfilmError:
        return False


def _failed(error: Exception) -> dict[str, Any]:
    text = str(error) if isinstance(error, MsfilmError) else f"{type(error).__name__}: {error}"
    return {"status": "failed", "error": " ".join(text.split())[:1000]}


def _train(config: TrainConfig, slices: SliceSet, run: Path, progress: bool) -> dict[str, Any]:
    """One job, its row."""
    try:
        result = fit(slices, config, run, resume=True, progress=progress)
        write_json(run / "result.json", {"val_dice": result.best_val_dice, "best_epoch": result.best_epoch,
                                         "epochs": result.epochs, "seconds": round(result.seconds, 3)})
    except Exception as error:   # whatever it is, it is this job's, and the others go on
        return _failed(error)
    row = _finished(run)
    return row or _failed(RunError("SWEEP-WRITE", "the run's result is not on disk", where=run))


def _here(waiting: dict[str, TrainConfig], data: SliceSet, out: Path, threads: int,
          progress: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for run, config in waiting.items():
            yield run, _train(config, data, out / "runs" / run, progress)
    finally:
        torch.set_num_threads(before)


def _side_by_side(waiting: dict[str, TrainConfig], folder: Path, out: Path, threads: int,
                  workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """In joblib's processes, as they end."""
    stamp = sha256_file(folder / "slices.json")
    parallel = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1,
                               pre_dispatch="n_jobs")
    try:
        yield from parallel(joblib.delayed(_in_worker)(run, config, folder.resolve(), stamp, (out / "runs").resolve(),
                                                       threads, os.getpid()) for run, config in waiting.items())
    except BrokenProcessPool as error:
        raise RunError("SWEEP-WORKER", f"a process was killed: {' '.join(str(error).split())[:300]}", where=out,
                       mend="most often memory ran out: call again with fewer workers; finished runs stay") from error


def _in_worker(run: str, config: TrainConfig, folder: Path, stamp: str, runs: Path, threads: int,
               parent: int) -> tuple[str, dict[str, Any]]:
    _end_with(parent)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run, _train(config, _slices(folder, stamp), runs / run, False)
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _slices(folder: Path, stamp: str) -> SliceSet:
    """Memory-mapped, once a process; ``stamp`` is another one where the folder's content is."""
    return SliceSet.load(folder, verify=False)   # the parent has verified it


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """End this process soon after its parent: one that trains on would write into runs that somebody resumes."""
    born_of = os.getppid()

    def watch() -> None:
        while os.getppid() == born_of and psutil.pid_exists(parent):   # Windows never changes the first
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kept(data: SliceSet, out: Path) -> Path:
    """Save a set that lies in memory for the workers, unless it is there."""
    folder = out / "slices"
    try:
        if SliceSet.load(folder).equals(data):
            return folder
    except InputError:
        pass   # not there, or not whole
    return data.save(folder)


def _cores() -> int:
    return joblib.cpu_count() or 1


def _default_workers(jobs: Mapping[str, TrainConfig]) -> int:
    """One a core; on a GPU one, since a second would only share it."""
    for name in {config.device for config in jobs.values()}:
        try:
            if resolve_device(name).type == "cuda":
                return 1
        except SettingError:
            continue   # that job's row will say so
    return _cores()
