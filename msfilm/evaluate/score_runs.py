"""Many trained networks scored on the same patients, side by side, each kept as a file: the stuff of comparisons."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from msfilm.data.slices import SliceSet
from msfilm.errors import FetchError
from msfilm.evaluate.healthy import HEALTHY_SCANS, false_on_healthy
from msfilm.evaluate.predict import predict_volumes
from msfilm.evaluate.reliability import Reliability, reliability
from msfilm.evaluate.summary import REFERENCES, score_pair
from msfilm.files import atomic_path, read_json, write_json
from msfilm.model.weights import load_network

__all__ = ["RunToScore", "score_runs"]

Calibration = dict[tuple[str, str], list[Reliability]]
Healthy = dict[str, list[dict[str, float] | None]]


@dataclass(frozen=True)
class RunToScore:
    """A trained network, which method and seed it is, and the contrasts that it is tested on."""

    method: str
    seed: int
    run: Path
    contrasts: tuple[str, ...]


def score_runs(jobs: Sequence[RunToScore], test: str | Path, folder: str | Path, *, workers: int | None = None,
               healthy: bool = True, progress: bool = True) -> tuple[pd.DataFrame, Calibration, Healthy]:
    """Score every network on the volumes of a SliceSet; what the folder holds already is read, not made again.

    Args:
        jobs: the networks.
        test: folder of the SliceSet, the same patients for all.
        folder: where the scores are kept, a .csv and a .json for each run; of one test set only.
        workers: processes side by side; by default one a core, 1 on a GPU.
        healthy: false lesion on healthy real scans too, where they are at hand.
        progress: show a bar.

    Returns:
        scores (a row a volume, method, seed and reference), calibration within the cord ((method, reference) -> one a
        seed), and mm3 on each healthy scan (method -> one mapping a seed, or None without scans).
    """
    cores = os.cpu_count() or 1
    workers = min(len(jobs), workers or (1 if torch.cuda.is_available() else cores))
    threads = torch.get_num_threads() if workers == 1 else max(1, cores // workers)
    tasks = [joblib.delayed(_score)(job, Path(test), Path(folder) / job.run.name, healthy, threads) for job in jobs]
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(tasks)
    tables: list[pd.DataFrame] = []
    calibration: Calibration = {}
    false: Healthy = {}
    for job, (scores, counts, marked) in zip(
            jobs, tqdm(results, total=len(jobs), disable=not progress, desc="test", unit="network"), strict=True):
        tables.append(scores.assign(method=job.method, seed=job.seed))
        for reference, one in counts.items():
            calibration.setdefault((job.method, reference), []).append(one)
        false.setdefault(job.method, []).append(marked)
    return pd.concat(tables, ignore_index=True), calibration, false


def _score(job: RunToScore, test: Path, place: Path, healthy: bool,
           threads: int) -> tuple[pd.DataFrame, dict[str, Reliability], dict[str, float] | None]:
    torch.set_num_threads(threads)
    path, beside = place.with_suffix(".csv"), place.with_suffix(".json")
    if not beside.is_file():
        network, slices = load_network(job.run), SliceSet.load(test, verify=False)
        slices = slices.select(slices.table["contrast"].isin(job.contrasts).to_numpy())
        rows, counts = [], {}
        for name, probability in predict_volumes(network, slices):
            scan, about = slices.scans[name], slices.volumes.loc[name]
            marked, cord = np.flatnonzero(probability >= 0.5), scan.indices["cord"]
            for reference in (one for one in REFERENCES if one in scan.indices):
                rows.append({"volume": name, "patient": about["patient"], "contrast": about["contrast"],
                             "reference": reference, **score_pair(scan, scan.indices[reference], marked)})
                part = reliability(np.clip(probability.reshape(-1)[cord], 0, 1),
                                   np.isin(cord, scan.indices[reference], assume_unique=True))
                counts[reference] = counts[reference] + part if reference in counts else part
        false = None
        if healthy:
            try:
                false = false_on_healthy(network, [name for name in HEALTHY_SCANS if name in job.contrasts])
            except FetchError:
                false = None   # neither mirror nor network: the table says so
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
        write_json(beside, {"calibration": {name: one.as_dict() for name, one in counts.items()}, "healthy": false})
    content = read_json(beside, code="SCORES-BROKEN")
    return (pd.read_csv(path, dtype={"volume": str, "patient": str}),
            {name: Reliability.from_dict(one) for name, one in content["calibration"].items()}, content["healthy"])
