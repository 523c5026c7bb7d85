"""A SliceSet on disk: .npy files that can be memory-mapped, Parquet tables, and a JSON that says what goes together."""

from __future__ import annotations

import re
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pandas as pd

from msfilm import __version__
from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import InputError, RunError
from msfilm.files import atomic_folder, read_json, ready_folder, sha256_file, sha256_json, strangers, write_json

__all__ = ["check_target", "finish_folder", "load_slices", "save_slices", "scan_entry", "write_refused"]

_FORMAT = 1
_INDEX = "slices.json"
_OWN = re.compile(r"(images|(mask|scan)-.+)\.npy|(table|volumes)\.parquet|refused\.json")
_NPY_HEADER = 10_000  # bytes; that of a crop array has about a hundred


def save_slices(slices: SliceSet, folder: str | Path, *, extra: dict[str, Any] | None = None) -> Path:
    """Write ``slices`` to ``folder`` atomically; an older set there is replaced.

    ``extra`` holds further JSON files by name. The scans' voxel lists are laid end to end, one file a mask; their
    lengths are in slices.json.

    Raises:
        RunError: SLICES-WRITE where the disk refuses; InputError: SLICES-TARGET where ``folder`` is something else.
    """
    folder = check_target(folder)
    arrays: dict[str, np.ndarray] = {"images": slices.images}
    arrays |= {f"mask-{name}": mask for name, mask in slices.masks.items()}
    scans = {volume: scan_entry(scan) for volume, scan in slices.scans.items()}
    for name in dict.fromkeys(name for scan in slices.scans.values() for name in scan.indices):
        arrays[f"scan-{name}"] = np.concatenate(
            [scan.indices[name] for scan in slices.scans.values() if name in scan.indices]
        )
    if slices.scans:
        arrays["scan-values"] = np.concatenate([scan.cord_values for scan in slices.scans.values()])
    try:
        with atomic_folder(folder) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
            for name, content in (extra or {}).items():
                write_json(temporary / name, content)
            finish_folder(temporary, slices.table, slices.volumes, slices.meta, list(slices.masks), scans)
    except OSError as error:
        raise write_refused(folder, error) from error
    return folder


def check_target(folder: str | Path) -> Path:
    """The folder as a path, before the work begins.

    Raises:
        InputError: SLICES-TARGET where it holds anything else than a set of slices, or cannot be replaced (a mount).
        RunError: SLICES-WRITE where nothing can be written beside it.
    """
    folder = Path(folder)
    ready_folder(folder, target="SLICES-TARGET", write="SLICES-WRITE")
    try:
        index = folder / _INDEX
        own = {_INDEX, *_files_of(index)} if index.is_file() else set()
        others = strangers(folder, own)
    except OSError as error:
        raise write_refused(folder, error) from error
    if others:
        raise InputError(
            "SLICES-TARGET",
            f"holds {others[0]}, which belongs to no set of slices, and would be lost"
            if own
            else "exists and is not a prepared set of slices",
            where=folder,
            mend="take that elsewhere, or name another folder" if own else "name another folder",
        )
    return folder


def _files_of(index: Path) -> set[str]:
    """Names of the files that a set says are its own; of a broken one, those that sets have."""
    try:
        return set(read_json(index)["sha256"])
    except (InputError, KeyError, TypeError):
        return {path.name for path in index.parent.iterdir() if _OWN.fullmatch(path.name)}


def write_refused(folder: Path, error: OSError) -> RunError:
    """SLICES-WRITE, for a disk that refuses."""
    return RunError(
        "SLICES-WRITE",
        f"cannot write: {error.strerror or error}",
        where=folder,
        mend="check free space and permissions; nothing was left half-written",
    )


def scan_entry(scan: ScanMasks) -> dict[str, Any]:
    """What slices.json says of one scan."""
    return {"shape": scan.shape, "affine": scan.affine, "lengths": {k: len(v) for k, v in scan.indices.items()}}


def finish_folder(
    folder: Path,
    table: pd.DataFrame,
    volumes: pd.DataFrame,
    meta: dict[str, Any],
    masks: list[str],
    scans: dict[str, dict[str, Any]],
) -> None:
    """Write tables and index beside the arrays that are there already."""
    table.to_parquet(folder / "table.parquet", index=False)
    volumes.to_parquet(folder / "volumes.parquet", index=True)
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    index = {"format": _FORMAT, "version": __version__, "meta": meta, "masks": masks, "scans": scans, "sha256": files}
    write_json(folder / _INDEX, index | {"index_sha256": sha256_json(index)})


def load_slices(folder: str | Path, *, verify: bool = True) -> SliceSet:
    """Read what ``save_slices`` wrote; see ``SliceSet.load``."""
    folder = Path(folder)
    if not (folder / _INDEX).is_file():
        raise InputError(
            "SLICES-MISSING",
            "not a prepared set of slices" if folder.is_dir() else "no such folder",
            where=folder,
            mend="make one with: msfilm prepare DATASET OUT",
        )
    index = read_json(folder / _INDEX, code="SLICES-CORRUPT")
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise InputError(
            "SLICES-VERSION",
            f"format {found}; this version reads {_FORMAT}",
            where=folder / _INDEX,
            mend="prepare the data set again",
        )
    again = "prepare the data set again"
    try:
        written = index.pop("index_sha256", None)  # sets of earlier versions have none
        if written is not None and sha256_json(index) != written:
            raise InputError(
                "SLICES-CORRUPT", "its content is not what was written", where=folder / _INDEX, mend=again
            )
        for name, digest in index["sha256"].items():
            if not (folder / name).is_file():
                raise InputError("SLICES-MISSING", "the file is missing", where=folder / name, mend=again)
            if verify and sha256_file(folder / name) != digest:
                raise InputError(
                    "SLICES-CORRUPT",
                    "its content is not what was written (SHA-256 differs)",
                    where=folder / name,
                    mend=again,
                )
        table, volumes = pd.read_parquet(folder / "table.parquet"), pd.read_parquet(folder / "volumes.parquet")
        masks = {name: _array(folder, f"mask-{name}") for name in index["masks"]}
        return SliceSet(_array(folder, "images"), masks, table, volumes, _scans(folder, index["scans"]), index["meta"])
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # what NumPy, pyarrow and dict raise on garbage
        raise InputError("SLICES-CORRUPT", f"cannot be read: {error}", where=folder, mend=again) from error


def _array(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.npy"
    again = "prepare the data set again"
    try:
        with open(path, "rb") as handle:
            start = handle.read(12)
        length = int.from_bytes(start[8:12] if start[6:7] != b"\x01" else start[8:10], "little")
        if length > _NPY_HEADER:  # NumPy would ask for as much memory before it looks
            raise ValueError(f"a header of {length} bytes")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, TokenError, RecursionError) as error:
        if isinstance(error, ValueError) and "mmap" in str(error) and path.stat().st_size > 0:
            try:
                return np.load(path, allow_pickle=False)  # an array without elements cannot be mapped
            except (OSError, ValueError, EOFError, MemoryError) as second:
                error = second
        raise InputError("SLICES-CORRUPT", f"cannot be read: {error}", where=path, mend=again) from error


def _scans(folder: Path, entries: dict[str, Any]) -> dict[str, ScanMasks]:
    names = dict.fromkeys(name for entry in entries.values() for name in entry["lengths"])
    flat = {name: _array(folder, f"scan-{name}") for name in names}
    values = _array(folder, "scan-values") if entries else np.zeros(0, np.float32)
    start = dict.fromkeys(names, 0)
    scans = {}
    for volume, entry in entries.items():
        indices = {}
        cord = slice(start["cord"], start["cord"] + entry["lengths"]["cord"])
        for name, length in entry["lengths"].items():
            indices[name] = flat[name][start[name] : start[name] + length]
            if len(indices[name]) != length:
                raise InputError(
                    "SLICES-CORRUPT",
                    f"fewer voxels than {volume} needs",
                    where=folder / f"scan-{name}.npy",
                    mend="prepare the data set again",
                )
            start[name] += length
        scans[volume] = ScanMasks(tuple(entry["shape"]), np.array(entry["affine"], np.float64), indices, values[cord])
    return scans
