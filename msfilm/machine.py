"""The machine a run had: what it is, and how much memory a piece of work took on it."""

from __future__ import annotations

import subprocess
import threading
from importlib.metadata import version

import psutil

from msfilm.files import made_by

__all__ = ["PeakMemory", "machine"]


def machine() -> str:
    """System, cores, memory, Python, torch and graphics card, in one line.

    torch is not imported for it: its memory would blur what ``PeakMemory`` says of the processes that use it.
    """
    memory = psutil.virtual_memory().total / 2**30
    return f"{made_by()['machine']}, {memory:.0f} GB of memory, torch {version('torch')}{_gpu()}"


def _gpu() -> str:
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f", {asked.stdout.splitlines()[0]}" if asked.returncode == 0 and asked.stdout.strip() else ""


class PeakMemory:
    """Largest memory of the processes started inside the ``with`` block, their children included.

    Sampled five times a second; proportional set size where the system gives it (Linux), so that pages shared by
    forked workers count once, and resident size elsewhere.

    Attributes:
        peak_mb: the largest sum seen, in MB (2**20 bytes).
    """

    def __init__(self, interval_s: float = 0.2):
        self.peak_mb = 0
        self._interval_s, self._done, self._me = interval_s, threading.Event(), psutil.Process()

    def __enter__(self) -> PeakMemory:
        self._before = {child.pid for child in self._me.children(recursive=True)}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            total = 0
            for child in self._me.children(recursive=True):
                if child.pid not in self._before:
                    try:
                        memory = child.memory_full_info()
                    except psutil.Error:
                        continue  # it ended meanwhile, or belongs to someone else
                    total += getattr(memory, "pss", 0) or memory.rss
            self.peak_mb = max(self.peak_mb, round(total / 2**20))
