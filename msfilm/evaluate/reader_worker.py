"""One file through one reader, in a process of its own whose memory is capped: asked and answered in lines of JSON."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["READERS", "main"]


@dataclass
class _Read:
    """What a reader gave: values in the file's own axis order, voxel -> RAS mm, and what it noted."""

    data: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...] = ()
    under_mask: np.ndarray | None = None  # image values under the mask, as this tool lays one over the other
    mask: _Read | None = None


def _nibabel(path: str, mask: str | None) -> _Read:
    import nibabel as nib

    image = nib.load(path)
    read = _Read(np.asanyarray(image.dataobj), np.asarray(image.affine, np.float64))
    if mask is not None:
        read.mask = _nibabel(mask, None)
        read.under_mask = read.data[read.mask.data > 0.5]
    return read


def _simpleitk(path: str, mask: str | None) -> _Read:
    import SimpleITK as sitk

    image = sitk.ReadImage(path)
    read = _from_itk(sitk, image)
    if mask is not None:
        drawn = sitk.ReadImage(mask)
        read.mask = _from_itk(sitk, drawn)
        inside = sitk.Mask(sitk.Cast(image, sitk.sitkFloat64), drawn > 0.5, -1e30)  # refuses other spaces
        values = sitk.GetArrayViewFromImage(inside)
        read.under_mask = values[values > -1e30]
    return read


def _from_itk(sitk: Any, image: Any) -> _Read:
    dims = image.GetDimension()
    array = sitk.GetArrayFromImage(image)
    axes = [*range(dims - 1, -1, -1), *range(dims, array.ndim)]  # colours stay last
    affine = np.eye(4)
    along = min(dims, 3)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:along, :along]
    affine[:along, :along] = direction * np.array(image.GetSpacing())[:along]
    affine[:along, 3] = np.array(image.GetOrigin())[:along]
    return _Read(array.transpose(axes), np.diag([-1.0, -1, 1, 1]) @ affine)  # its millimetres run left and back


def _monai(path: str, mask: str | None) -> _Read:
    from monai.transforms import ConcatItemsd, LoadImage, LoadImaged

    image = LoadImage(image_only=True)(path)
    read = _Read(np.asarray(image.numpy()), np.asarray(image.affine.numpy(), np.float64))
    if mask is not None:
        both = LoadImaged(["image", "mask"], ensure_channel_first=True)({"image": path, "mask": mask})
        drawn = both["mask"]
        read.mask = _Read(np.asarray(drawn[0].numpy()), np.asarray(drawn.affine.numpy(), np.float64))
        joined = ConcatItemsd(["image", "mask"], "both")(both)["both"].numpy()
        read.under_mask = joined[0][joined[-1] > 0.5]
    return read


def _msfilm(path: str, mask: str | None) -> _Read:
    from msfilm.data.nifti import read_image, read_mask

    image = read_image(path)
    read = _Read(*image.to_file_order(image.data), notes=image.notes)
    if mask is not None:
        drawn = read_mask(mask, image, allow_empty=False)
        read.mask = _Read(*drawn.to_file_order(drawn.data))
        read.notes += drawn.notes
        read.under_mask = image.data[drawn.data > 0]
    return read


READERS: dict[str, Callable[[str, str | None], _Read]] = {
    "nibabel": _nibabel, "SimpleITK": _simpleitk, "MONAI": _monai, "msfilm": _msfilm,
}  # fmt: skip


def _warm(reader: str) -> dict[str, Any]:
    """Import what a reader needs, before its memory and time are counted."""
    try:
        for module in {"nibabel": ["nibabel"], "SimpleITK": ["SimpleITK"], "MONAI": ["monai.transforms"],
                       "msfilm": ["nibabel", "msfilm.data.nifti"]}[reader]:  # fmt: skip
            importlib.import_module(module)
    except ImportError as error:
        return {"verdict": "error", "error": "ImportError", "message": str(error), "warnings": []}
    return {}


def _answer(ask: dict[str, Any]) -> dict[str, Any]:
    good = {name: _good(ask.get(name)) for name in ("original", "original_mask")}
    started = time.monotonic()
    with _capped(ask["memory_mb"]), _heard() as heard:
        try:
            report = _report(READERS[ask["reader"]](ask["path"], ask.get("mask")), good)
        except BaseException as error:  # whatever a reader raises is what we came to see
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            report = {"verdict": "error", "error": type(error).__name__, "message": str(error).strip()}
    report["warnings"] = [*report.get("notes", []), *heard]
    report["seconds"] = time.monotonic() - started
    return report


def _good(path: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    import nibabel as nib

    if path is None:
        return None
    image = nib.load(path)
    return np.asanyarray(image.dataobj), image.affine


def _report(read: _Read, good: dict[str, Any]) -> dict[str, Any]:
    data = read.data
    plain = data.dtype.kind in "biuf"  # one real number a voxel
    finite = data[np.isfinite(data)] if plain else np.zeros(0)
    last = int(max([-1, *np.flatnonzero(data.reshape(-1, order="F"))[-1:]])) if plain else data.size - 1
    report = {
        "verdict": "read", "shape": list(data.shape), "plain": plain, "notes": list(read.notes),
        "dtype": f"{len(data.dtype.names)} numbers" if data.dtype.names else data.dtype.name,
        "affine": read.affine.tolist(),
        "low": float(finite.min()) if finite.size else None, "high": float(finite.max()) if finite.size else None,
        "not_finite": int(data.size - finite.size) if plain else 0,
        "zeros_at_end": float(1 - (last + 1) / data.size) if data.size else 0.0,
    }  # fmt: skip
    report |= _compare(read, good["original"])
    if read.mask is not None:
        report["mask"] = _compare(read.mask, good["original_mask"]) | {
            "shape": list(read.mask.data.shape), "voxels": int(np.count_nonzero(read.mask.data > 0.5)),
            "low": float(read.mask.data.min()), "high": float(read.mask.data.max()),
            "mean_under": float(read.under_mask.mean()) if read.under_mask.size else None,
        }  # fmt: skip
    return report


def _compare(read: _Read, good: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    """Share of voxels that are not the original's, and how far a corner has moved (mm; None for no such number)."""
    if good is None:
        return {}
    values, affine = good
    if read.data.shape != values.shape or read.data.dtype.names:
        return {"other_shape": list(values.shape)}
    same = np.isclose(read.data, values, rtol=1e-5, atol=1e-5)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*values.shape, 1]
    moved = np.linalg.norm((corners @ (read.affine - affine).T)[:, :3], axis=1).max()
    return {"changed": float(1 - same.mean()), "moved_mm": float(moved) if np.isfinite(moved) else None}


@contextlib.contextmanager
def _capped(memory_mb: float) -> Iterator[None]:
    """Let the process take this much more address space than it has; where the system cannot, no cap."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):
        yield
        return
    cap = int(now + memory_mb * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (cap if before[1] < 0 else min(cap, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect Python's warnings and whatever a library says on its standard error, C++ included."""
    said: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read(100_000).decode("utf-8", "replace")
            said += [line.strip() for line in text.splitlines() if line.strip()]
            said += [f"{one.category.__name__}: {one.message}" for one in caught
                     if not issubclass(one.category, DeprecationWarning | FutureWarning)]  # fmt: skip


def main() -> None:
    """Answer requests until the input ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print must not come between the answers
        for line in sys.stdin:
            ask = json.loads(line)
            reply = _warm(ask["reader"]) if ask.get("warm") else _answer(ask)
            answers.write(json.dumps(reply) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
