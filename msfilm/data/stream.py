"""A SliceSet written to disk volume by volume, so that memory does not grow with the number of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from msfilm.data.cast import checked_cast
from msfilm.data.cropped import PreparedVolume
from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.data.store import check_target, finish_folder, load_slices, scan_entry, write_refused
from msfilm.errors import InputError
from msfilm.files import atomic_folder, write_json

__all__ = ["stream_slices"]

_HEADER = 128  # bytes kept free for the .npy header, which needs the final number of rows


class _Growing:
    """A .npy file that rows are appended to."""

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...]):
        self.handle: BinaryIO = open(path, "wb")
        self.dtype, self.row, self.rows = np.dtype(dtype), row, 0
        self.handle.write(b" " * _HEADER)

    def append(self, array: np.ndarray) -> None:
        if array.dtype != self.dtype:
            array = checked_cast(array, self.dtype, code="IMAGE-RANGE", mend="check the scale of the intensities")
        array = np.ascontiguousarray(array).reshape(-1, *self.row)
        self.handle.write(array.tobytes())
        self.rows += len(array)

    def finish(self) -> None:
        shape = (self.rows, *self.row)
        text = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".encode("latin1")
        space = _HEADER - 10 - len(text) - 1
        self.handle.seek(0)  # the .npy format, version 1.0: magic, version, length of the header, header
        self.handle.write(b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text + b" " * space + b"\n")
        self.handle.flush()

    def close(self) -> None:
        try:
            self.handle.close()
        except OSError:
            self.handle.close()  # what could not be written was said before; the second call only lets go of the file


def stream_slices(
    parts: Iterable[tuple[str, PreparedVolume]],
    folder: str | Path,
    meta: dict[str, Any],
    masks: Sequence[str],
    *,
    extra: Callable[[], dict[str, Any]] | None = None,
) -> SliceSet:
    """Write volumes to ``folder`` as they come, all at once or not at all, and load the set memory-mapped.

    Args:
        parts: (name, volume), each name once.
        folder: where; an older set there is replaced.
        meta: of the set: size and spacing_mm among it.
        masks: names of all masks that may come, in their order; one that a volume lacks is 255 there, one that no
            volume has is left out.
        extra: asked once all volumes are written, for further JSON files by name.

    Raises:
        InputError: SLICES-TARGET, SLICES-EMPTY if there was no volume, IMAGE-RANGE; RunError: SLICES-WRITE.
    """
    folder = check_target(folder)
    size = int(meta["size"])
    tables, rows, scans = [], {}, {}
    drawn_once: set[str] = set()
    try:
        with atomic_folder(folder) as temporary:
            files = {"images": _Growing(temporary / "images.npy", np.float16, (1, size, size))}
            files |= {name: _Growing(temporary / f"mask-{name}.npy", np.uint8, (1, size, size)) for name in masks}
            lists: dict[str, _Growing] = {"values": _Growing(temporary / "scan-values.npy", np.float32, ())}
            try:
                for name, part in parts:
                    files["images"].append(part.images)
                    for mask in masks:
                        drawn = part.masks.get(mask)
                        files[mask].append(np.full(part.images.shape, UNDRAWN, np.uint8) if drawn is None else drawn)
                    for mask, voxels in part.scan.indices.items():
                        if mask not in lists:
                            lists[mask] = _Growing(temporary / f"scan-{mask}.npy", np.int32, ())
                        lists[mask].append(voxels)
                    drawn_once |= set(part.masks)
                    lists["values"].append(part.scan.cord_values)
                    tables.append(part.table)
                    rows[name], scans[name] = part.row, scan_entry(part.scan)
                for file in (*files.values(), *lists.values()):
                    file.finish()
            finally:
                for file in (*files.values(), *lists.values()):
                    file.close()
            if not rows:
                raise InputError("SLICES-EMPTY", "there is no volume to write", where=folder)
            for name in set(masks) - drawn_once:
                (temporary / f"mask-{name}.npy").unlink()
            masks = [name for name in masks if name in drawn_once]
            for name, content in (extra() if extra else {}).items():
                write_json(temporary / name, content)
            volumes = pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="volume"))
            finish_folder(temporary, pd.concat(tables, ignore_index=True), volumes, meta, list(masks), scans)
    except OSError as error:
        raise write_refused(folder, error) from error
    return load_slices(folder, verify=False)
