"""Work spread over processes, its results in order: threads would wait for Python's lock between small operations."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import joblib
import torch

__all__ = ["in_order"]

FEW = 3  # so little work is done at once: starting processes takes seconds


def _alone(function: Callable, job: tuple) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums then run in the same order, and give the same bytes, however many work side by side
    try:
        return function(*job)
    finally:
        torch.set_num_threads(threads)


def in_order(function: Callable, jobs: Sequence[tuple], workers: int | None = None) -> Iterator[Any]:
    """Yield ``function(*job)`` for each job, in order; only a few results are held at once.

    joblib's processes need no ``if __name__ == "__main__"`` in the script that calls, and work from a notebook.

    Args:
        function: importable; each call depends on its arguments alone.
        jobs: arguments of each call.
        workers: processes; default one a core (as many as the machine lets this process use).
    """
    workers = min(workers or joblib.cpu_count() or os.cpu_count() or 1, max(len(jobs), 1))
    if workers == 1 or len(jobs) <= FEW:
        yield from (_alone(function, job) for job in jobs)
        return
    # A worker whose memory has grown is replaced between two jobs, and joblib warns of it; nothing is lost by it.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", pre_dispatch="2*n_jobs", batch_size=1)
    yield from parallel(joblib.delayed(_alone)(function, job) for job in jobs)
