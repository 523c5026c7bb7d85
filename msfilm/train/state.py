"""What a run keeps on disk, checkpoint included (no pickle); and which device, precision and random numbers it uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from msfilm.errors import InputError, RunError, SettingError
from msfilm.files import atomic_path, read_json, write_json
from msfilm.locks import LOCK, hold_folder
from msfilm.model.unet import UNet
from msfilm.model.weights import read_tensors, tensor_bytes, write_bytes

__all__ = ["epoch_rng", "load_state", "open_run", "resolve_device", "resolve_precision", "run_key", "save_state",
           "write_history"]


def resolve_device(name: str) -> torch.device:
    """'auto' (a CUDA GPU where there is one), 'cpu', 'cuda' or 'cuda:1' -> the device.

    Raises:
        SettingError: TRAIN-SETTING for another name, TRAIN-DEVICE where this machine lacks it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise SettingError("TRAIN-SETTING", f"device={name!r}", mend="use one of: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number) if number else (torch.cuda.current_device() if count else 0)
    if index >= count:
        raise SettingError("TRAIN-DEVICE", f"device={name!r}, but torch sees {count} CUDA devices here",
                           mend="use device='cpu' or 'auto', or install a torch built for this GPU")
    return torch.device("cuda", index)


def resolve_precision(name: str, device: torch.device) -> str:
    """'auto' -> 'bf16' where the processor has it (GPUs from 2020 on, CPUs with AVX512-BF16 or AMX), else 'fp32'."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    asked = [getattr(torch.cpu, probe, None) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return "bf16" if any(probe is not None and probe() for probe in asked) else "fp32"


@contextmanager
def epoch_rng(seed: int, epoch: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator on ``device`` that depends on nothing but ``seed`` and ``epoch``.

    So a resumed run needs no generator's state to go on as if it had never stopped. Dropout can only draw from torch's
    global generators: they are seeded too, and given back as they were.
    """
    mine, dropout = (int(s) >> 1 for s in np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(dropout)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(dropout)
        yield torch.Generator(device).manual_seed(mine)


@contextmanager
def open_run(run: Path, settings: dict[str, Any], split: pd.Series, *, resume: bool) -> Iterator[None]:
    """Hold the run's folder while the block runs: no other process writes into it.

    It is made with config.json and split.csv, or seen to hold this very run.

    Args:
        run: the folder.
        settings: what goes into config.json; 'config', 'precision' and 'slices_sha256' have to be the same to resume.
        split: index patient (or slice), values a side.
        resume: go on where the run in the folder stopped (or start, where there is none yet).

    Raises:
        RunError: RUN-BUSY, another process trains in it; RUN-EXISTS, the folder has content and ``resume`` is off;
            RUN-CONFIG, it holds another run, or patients have changed sides or codes since; RUN-WRITE.
    """
    if run.exists() and not run.is_dir():
        raise RunError("RUN-EXISTS", "this is a file, not a folder", where=run, mend="choose another folder")
    with hold_folder(run):
        if resume:
            for leftover in run.glob(".tmp-*"):   # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
        if all(path.name == LOCK for path in run.iterdir()):
            with _writing(run / "config.json"):
                write_json(run / "config.json", settings)
        elif not resume:
            raise RunError("RUN-EXISTS", "there is something in this folder already", where=run,
                           mend="choose another folder, remove this one, or resume it (--resume)")
        else:
            _same_run(run, settings)
            _same_sides(run, settings, split)
        if not (run / "split.csv").exists():   # also where it was killed between the two
            with _writing(run / "split.csv"), atomic_path(run / "split.csv") as temporary:
                split.rename("side").rename_axis(split.index.name or "patient").to_csv(temporary)
        try:
            yield
        except KeyboardInterrupt as stop:
            stop.add_note(f"the run in {run} goes on with the same settings and resume=True (--resume)")
            raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError("RUN-WRITE", f"cannot write: {error.strerror or error}", where=path,
                       mend="make room on the disk, then resume (--resume): all epochs up to the last are kept"
                       ) from error


def _same_run(run: Path, settings: dict[str, Any]) -> None:
    old = _flat({key: _of(read_json(run / "config.json", code="RUN-CONFIG"), run).get(key) for key in _COMPARED})
    new = _flat(json.loads(json.dumps({key: settings[key] for key in _COMPARED})))
    differ = (name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    changed = [f"{name.removeprefix('config.')} ({old.get(name, 'none')!r}, now {new.get(name, 'none')!r})"
               for name in differ if name != "config.device"]
    if changed:
        raise RunError("RUN-CONFIG", f"the run in this folder had other settings: {'; '.join(changed)}", where=run,
                       mend="resume with the same settings, or choose another folder")


def _same_sides(run: Path, settings: dict[str, Any], split: pd.Series) -> None:
    """A patient that a network was trained on must not become one that it is tested on: a changed table does that."""
    mend = "restore participants.tsv and the sidecars as they were and prepare again, or choose another folder"
    if changed := changed_sides(run, split):
        raise RunError("RUN-CONFIG", f"{len(changed)} of {len(split)} have changed sides since the run began, for "
                       f"example {changed[0]} (split.csv says otherwise)", where=run, mend=mend)
    known = read_json(run / "config.json", code="RUN-CONFIG").get("sides_sha256")   # older runs have none
    if known is not None and known != settings.get("sides_sha256", known):
        raise RunError("RUN-CONFIG", "the run in this folder was told other things of the same slices: the patient, "
                       "contrast, centre, rater or acquisition of some has changed", where=run, mend=mend)


def check_kept(run: Path, history: list[dict[str, float]]) -> None:
    """See that what epochs before left is still there: without its checkpoint a run would start over its best network.

    Raises:
        RunError: RUN-STATE.
    """
    mend = "put the file back, or choose another folder to train anew"
    if not history and (run / "history.csv").is_file():   # written after the first checkpoint
        raise RunError("RUN-STATE", "epochs are done, but state.safetensors, to go on from, is missing", where=run,
                       mend=mend)
    for name in ("weights.safetensors", "network.json") if history else ():
        if not (run / name).is_file():
            raise RunError("RUN-STATE", f"{len(history)} epochs are done, but {name}, the best network, is missing",
                           where=run, mend=mend)


def changed_sides(run: Path, split: pd.Series) -> list[str]:
    """Patients (or slices) that a run's split.csv puts on another side than ``split``; none where it has no such file.

    Raises:
        InputError: RUN-SPLIT, it cannot be read.
    """
    if not (run / "split.csv").is_file():
        return []
    try:
        table = pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
        old = dict(zip(table.iloc[:, 0], table["side"], strict=True))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError("RUN-SPLIT", f"no usable table of patient and side: {error}", where=run / "split.csv",
                         mend="remove it if the run's data are as they were: it is written anew") from error
    new = {str(name): str(side) for name, side in split.items()}
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


_COMPARED = ("config", "precision", "slices_sha256")   # the device may change: a run may move to another machine


def _of(content: Any, run: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError("RUN-CONFIG", "config.json does not describe a run", where=run, mend="choose another folder")
    return content


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    out: dict[str, Any] = {}
    for key, value in content.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def write_history(run: Path, history: list[dict[str, float]]) -> None:
    """history.csv, one row an epoch. Raises RunError RUN-WRITE."""
    with _writing(run / "history.csv"), atomic_path(run / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def run_key(settings: dict[str, Any]) -> str:
    """SHA-256 of what a run must have in common with its checkpoint: all that ``open_run`` compares, but the device."""
    compared = _flat(json.loads(json.dumps({key: settings[key] for key in _COMPARED})))
    return hashlib.sha256(json.dumps(sorted((name, value) for name, value in compared.items()
                                            if name != "config.device")).encode()).hexdigest()


def save_state(path: Path, model: UNet, optimizer: torch.optim.Optimizer, history: list[dict[str, float]],
               key: str = "") -> None:
    """Checkpoint: weights, Adam's moments and the history, in one safetensors file that carries its own SHA-256 and,
    in ``key``, whose it is."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{moment}.{name}"] = value
    content = json.dumps(history, allow_nan=False)
    record = {"history": content, "sha256": _digest(tensors, content + key)} | ({"run": key} if key else {})
    write_bytes(path, tensor_bytes(tensors, {"msfilm": json.dumps(record)}))


def load_state(path: Path, model: UNet, optimizer: torch.optim.Optimizer, key: str = "") -> list[dict[str, float]]:
    """Put a checkpoint into ``model`` and ``optimizer`` and return the history; [] where there is none yet.

    Raises:
        InputError: WEIGHTS-CORRUPT.
        RunError: RUN-STATE, it is another run's (that its ``key`` is another; earlier checkpoints have none).
    """
    if not path.exists():
        return []
    tensors, _, metadata = read_tensors(path)
    try:
        record = json.loads(metadata["msfilm"])
        mine = record.get("run", "")
        if record["sha256"] != _digest(tensors, record["history"] + mine):
            raise ValueError("its content does not fit its SHA-256")
        if key and mine and mine != key:
            raise RunError("RUN-STATE", "this checkpoint is another run's: settings or slices differ", where=path,
                           mend="put this run's own file back, or choose another folder to train anew")
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()
                               if name.startswith("model.")})
        for name, parameter in model.named_parameters():
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"adam.{moment}.{name}")
                if value is None:
                    continue
                # The moments in the parameter's memory layout: another one may round differently. The counter stays
                # on the CPU.
                if moment != "step":
                    value = torch.empty_like(parameter, requires_grad=False).copy_(value)
                optimizer.state[parameter][moment] = value
        return json.loads(record["history"])
    except RunError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError("WEIGHTS-CORRUPT", f"the checkpoint cannot be used: {error}", where=path,
                         mend="remove the run's folder and train again") from error


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
