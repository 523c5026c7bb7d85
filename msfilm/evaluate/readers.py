"""What nibabel, SimpleITK, MONAI and this package do with one file, a broken one too, seen from a safe distance."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.evaluate.reader_worker import READERS

__all__ = ["Readers", "what_readers_do"]

COLUMNS = ("verdict", "outcome", "silent", "happened", "warnings", "shape", "voxel_mm", "orientation", "low", "high",
           "not_finite", "zeros_at_end", "changed", "moved_mm", "affine", "seconds")  # fmt: skip
_MOVED_MM = 0.01
_ITK_NOISE = re.compile(
    r"^Exception thrown in SimpleITK .*?ERROR: |^Exception thrown in SimpleITK .*?xx:\d+: "
    r"|^WARNING: In .*\.cxx, line \d+$|\w+ ?\(0x[0-9a-f]+\): | InputImage (Origin|Spacing|Direction): .*$"
)
_WARM_S = 300.0  # importing MONAI and torch on a busy machine


class Readers:
    """A process that reads files for us, with a cap on its memory; one that hangs or dies is started again.

    Starting takes a few seconds (MONAI brings torch), so keep one for several files::

        with Readers() as readers:
            table = what_readers_do("broken.nii.gz", readers=readers)

    Args:
        timeout_s: a reader that takes longer than this for a file is stopped.
        memory_mb: what a reader may take beyond what its libraries need (Linux; elsewhere there is no cap).
    """

    def __init__(self, timeout_s: float = 20.0, memory_mb: float = 600.0):
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the process. Asking again starts another."""
        self._end()

    def ask(self, reader: str, path: str | Path, **more: str | Path | None) -> dict[str, Any]:
        """One reader's report on one file; see ``reader_worker``. Never raises for what the file does to the reader."""
        ready = self._talk({"reader": reader, "warm": True}, _WARM_S)
        if ready.get("error") == "crash":  # it died of something after its last answer: start another
            ready = self._talk({"reader": reader, "warm": True}, _WARM_S)
        if "error" in ready:
            return ready
        paths = {name: str(Path(value).absolute()) for name, value in more.items() if value is not None}
        request = {"reader": reader, "path": str(Path(path).absolute()), "memory_mb": self.memory_mb} | paths
        return self._talk(request, self.timeout_s)

    def _talk(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self._process is None:
            self._process = _start()
        answer: queue.Queue[str] = queue.Queue()
        process = self._process
        threading.Thread(target=lambda: answer.put(process.stdout.readline()), daemon=True).start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = answer.get(timeout=timeout_s)
        except queue.Empty:
            self._end(patience_s=0)
            return _failed("timeout", f"no answer after {timeout_s:g} s: stopped")
        except OSError:
            line = ""
        if line:
            return json.loads(line)
        return _failed("crash", f"its process died (return code {self._end()})")

    def _end(self, patience_s: float = 0.5) -> int | None:
        """Stop the process, if there is one; its return code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(OSError):
            process.stdin.close()  # it ends by itself when there is nothing more to answer
        try:
            code = process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


def what_readers_do(
    path: str | Path,
    mask: str | Path | None = None,
    *,
    original: str | Path | None = None,
    original_mask: str | Path | None = None,
    timeout_s: float = 20.0,
    memory_mb: float = 600.0,
    readers: Readers | None = None,
) -> pd.DataFrame:
    """Give one file to nibabel, SimpleITK, MONAI (LoadImage) and msfilm, and tell what each makes of it.

    A reader runs in another process with a time limit and a cap on its memory, since a header may claim terabytes.
    With a mask, the mask is laid over the image as each tool does it: by index (nibabel, and MONAI's ConcatItems), with
    its check of space (SimpleITK's Mask), or after our own checks.

    Args:
        path: the image, broken or not.
        mask: a mask for it, broken or not.
        original: the good file of the same image, with which values and geometry are compared voxel by voxel.
        original_mask: the same for the mask.
        timeout_s, memory_mb: as for ``Readers``.
        readers: one that is running already; its own limits count then.

    Returns:
        Index ``reader``. Columns: verdict ('read' or 'error'); outcome ('error', 'silent', 'warned' for read with a
        warning, or 'read'); silent (read without error or warning although it is not the original's content: other
        values, another shape, or more than .01 mm elsewhere); happened (one sentence); warnings (what it said, in one
        string); shape; voxel_mm; orientation (such as 'LAS', '' where the affine says none); low, high (of the finite
        values); not_finite (voxels); zeros_at_end (share of the file's last voxels that are all 0); changed (share of
        voxels unlike the original's); moved_mm (of the corner that moved most); affine ((4, 4), voxel -> RAS mm, or
        None); seconds.
    """
    own = readers or Readers(timeout_s, memory_mb)
    try:
        reports = {name: own.ask(name, path, mask=mask, original=original, original_mask=original_mask)
                   for name in READERS}  # fmt: skip
    finally:
        if readers is None:
            own.close()
    rows = [_row(report) for report in reports.values()]
    return pd.DataFrame(rows, index=pd.Index(list(reports), name="reader"), columns=list(COLUMNS))


def _start() -> subprocess.Popen:
    package = Path(__file__).resolve().parent.parent.parent
    known = os.environ.get("PYTHONPATH")
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    environment = os.environ | threads | {"PYTHONPATH": os.pathsep.join(filter(None, [str(package), known]))}
    return subprocess.Popen(
        [sys.executable, "-m", "msfilm.evaluate.reader_worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        env=environment,
    )  # fmt: skip


def _failed(error: str, message: str) -> dict[str, Any]:
    return {"verdict": "error", "error": error, "message": message, "warnings": []}


def _row(report: dict[str, Any]) -> dict[str, Any]:
    said = "; ".join(list(dict.fromkeys(filter(None, map(_short, report["warnings"]))))[:3])
    row: dict[str, Any] = {"verdict": report["verdict"], "warnings": said, "seconds": report.get("seconds", math.nan)}
    if report["verdict"] == "error":
        kind = "" if report["message"].startswith("[") else f"{report['error']}: "
        said = _short(report["message"] or "(no word more)", 300)
        return row | {"outcome": "error", "silent": False, "happened": kind + said}
    affine = np.array(report["affine"])
    row |= {name: report[name] for name in ("low", "high", "not_finite", "zeros_at_end")}
    row["shape"] = " x ".join(map(str, report["shape"]))
    row["voxel_mm"] = " x ".join(f"{side:.4g}" for side in np.linalg.norm(affine[:3, :3], axis=0))
    row["orientation"] = _orientation(affine)
    row["changed"], row["moved_mm"] = report.get("changed", math.nan), _number(report.get("moved_mm", math.nan))
    other = _unlike(report) or _unlike(report.get("mask", {}))
    row["silent"] = bool(other) and not said
    row["outcome"] = "silent" if row["silent"] else "warned" if said else "read"
    row["affine"], row["happened"] = affine, _sentence(row, report)
    return row


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _unlike(report: dict[str, Any]) -> bool:
    """Whether what was read is not the original: values, shape or place."""
    moved = _number(report.get("moved_mm", 0.0))
    return "other_shape" in report or report.get("changed", 0.0) > 0 or moved > _MOVED_MM


def _sentence(row: dict[str, Any], report: dict[str, Any]) -> str:
    said = [f"{row['shape']} voxels of {row['voxel_mm']} mm"]
    if row["orientation"]:
        said[0] += f", {row['orientation']}"
    if row["low"] is not None:
        said.append(f"values {row['low']:.6g} to {row['high']:.6g}")
    else:
        said.append("no finite value" if report["plain"] else f"each voxel is {report['dtype']}")
    if row["not_finite"]:
        said.append(f"{row['not_finite']} NaN or infinite")
    if row["zeros_at_end"] > 0.01:
        said.append(f"the last {row['zeros_at_end']:.0%} all 0")
    said += _against(report, "")
    if mask := report.get("mask"):
        mean = "" if mask["mean_under"] is None else f", image mean under it {mask['mean_under']:.0f}"
        said.append(f"mask of {mask['voxels']} voxels, values {mask['low']:g} to {mask['high']:.9g}{mean}")
        said += _against(mask, "mask: ")
    return "; ".join(said)


def _against(report: dict[str, Any], prefix: str) -> list[str]:
    said = []
    if "other_shape" in report:
        said.append(f"{prefix}the original is {' x '.join(map(str, report['other_shape']))}")
    if report.get("changed", 0.0) > 0:
        said.append(f"{prefix}{_share(report['changed'])} of the voxels are not the original's")
    moved = _number(report.get("moved_mm", 0.0))
    if moved > _MOVED_MM:
        said.append(f"{prefix}a corner lies {moved:.3g} mm off" if math.isfinite(moved) else f"{prefix}lies nowhere")
    return said


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.2%}"


def _orientation(affine: np.ndarray) -> str:
    """Where the axes run to, as nibabel writes it; empty where they run nowhere."""
    import nibabel as nib

    if not np.isfinite(affine).all():
        return ""
    try:
        letters = nib.aff2axcodes(affine)
    except (ValueError, np.linalg.LinAlgError):
        return ""
    return "" if None in letters else "".join(letters)


def _short(text: str, limit: int = 200) -> str:
    """One line, without the folders of this machine, addresses in memory, and where in ITK's sources it was said."""
    words = " ".join(text.split())
    words = _ITK_NOISE.sub("", _ITK_NOISE.sub("", words))
    for word in words.split(" "):
        bare = word.strip("\"'():,;[]")
        if "/" in bare and len(Path(bare).parts) > 2:
            words = words.replace(bare, Path(bare).name)
    return words if len(words) <= limit else words[: limit - 3] + "..."
