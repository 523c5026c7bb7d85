"""A BIDS folder -> SliceSet: read each volume safely, crop round its cord, go on past those that must be refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from msfilm import __version__
from msfilm.data.bids import find_volumes
from msfilm.data.cropped import PreparedVolume, join_volumes, prepare_volume
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.data.sidecars import SIDECAR_COLUMNS
from msfilm.data.slices import SliceSet
from msfilm.data.store import save_slices
from msfilm.errors import InputError, MsfilmError, SettingError, suggest

__all__ = ["prepare"]

_WORKERS = 2  # unpacking gzip leaves Python's lock, so a second thread helps; more only holds more scans in memory


def prepare(
    dataset: str | Path,
    out: str | Path | None = None,
    *,
    spacing_mm: float = 0.75,
    size: int = 48,
    min_cord_pixels: int = 10,
    contrasts: Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[SliceSet, list[MsfilmError]]:
    """Make a SliceSet of a BIDS data set; a volume that cannot be used is refused by name and the rest goes on.

    Args:
        dataset: BIDS folder, see ``msfilm.data.bids.find_volumes``.
        out: where to save it (atomically), with ``refused.json`` listing path, code and message of each refused volume.
        spacing_mm: pixel size of the crops.
        size: H = W in pixels.
        min_cord_pixels: slices with fewer cord pixels are left out.
        contrasts: only these; default all.
        progress: show a bar.

    Returns:
        The set, and the errors of the refused volumes in the order of their names. What did not stop a volume stands in
        ``volumes["notes"]``, what concerns the whole data set in ``meta["notes"]``.

    Raises:
        InputError: BIDS-MISSING, BIDS-EMPTY, or PREPARE-NOTHING if no volume can be used.
        SettingError: CONTRAST-UNKNOWN, CROP-SETTING.
    """
    dataset = Path(dataset).absolute()
    if size < 1 or not spacing_mm > 0:
        raise SettingError("CROP-SETTING", f"size={size} and spacing_mm={spacing_mm} must be positive")
    found = find_volumes(dataset)
    for contrast in contrasts or ():
        if contrast not in set(found["contrast"]):
            raise SettingError(
                "CONTRAST-UNKNOWN",
                f"no volume of contrast '{contrast}' in {dataset}",
                mend=suggest(contrast, found["contrast"].unique()),
            )
    if contrasts:
        kept = found[found["contrast"].isin(list(contrasts))]
        kept.attrs = found.attrs
        found = kept
    settings = {"spacing_mm": spacing_mm, "size": size, "min_cord_pixels": min_cord_pixels}
    parts: dict[str, PreparedVolume] = {}
    refused: list[MsfilmError] = []
    for name, outcome in tqdm(
        _outcomes(dataset, found, settings), total=len(found), desc="prepare", unit="volume", disable=not progress
    ):
        if isinstance(outcome, PreparedVolume):
            parts[name] = outcome
        else:
            refused += outcome
    if not parts:
        raise InputError(
            "PREPARE-NOTHING",
            f"none of {len(found)} volumes can be used",
            where=dataset,
            mend=f"the first fault is {refused[0]}" if refused else "check the folder",
        )
    slices = join_volumes(
        parts,
        {
            "size": size,
            "spacing_mm": float(spacing_mm),
            "min_cord_pixels": min_cord_pixels,
            "source": dataset.name,
            "version": __version__,
            "notes": list(found.attrs.get("notes", [])),
        },
    )
    if out is not None:
        # refused.json is part of what is written, so it goes in beside the arrays before the folder takes its place
        save_slices(
            slices,
            out,
            extra={
                "refused.json": [{"path": fault.where, "code": fault.code, "message": str(fault)} for fault in refused]
            },
        )
    return slices, refused


def _outcomes(
    dataset: Path, found: pd.DataFrame, settings: dict[str, Any]
) -> Iterator[tuple[str, PreparedVolume | list[MsfilmError]]]:
    """Volumes in order; a few are read ahead in threads, so that only as many scans are held at once."""
    names: Iterable[str] = list(found.index)
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: list[tuple[str, Future]] = []
        for name in names:
            waiting.append((name, pool.submit(_one, dataset, name, found.loc[name], settings)))
            if len(waiting) > 2 * _WORKERS:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _one(dataset: Path, name: str, row: pd.Series, settings: dict[str, Any]) -> PreparedVolume | list[MsfilmError]:
    """Read and crop one volume, or list every reason why not."""
    errors: list[MsfilmError] = list(row["errors"])
    if errors:
        return errors
    masks: dict[str, Volume] = {}
    try:
        image = read_image(row["image"])
    except MsfilmError as fault:
        return [fault]
    for mask in [key for key in row.index if key in ("cord", "truth") or key.startswith("rater-")]:
        if row[mask] is None:
            continue
        try:
            masks[mask] = read_mask(row[mask], image, allow_empty=mask != "cord")
        except MsfilmError as fault:
            errors.append(fault)
    if errors:
        return errors
    about = {key: row[key] for key in ("patient", "session", "centre", "contrast", "rater", "raters", *SIDECAR_COLUMNS)}
    about["image"] = Path(row["image"]).relative_to(dataset).as_posix()
    about["notes"] = " | ".join([*image.notes, *[f"{note.code}: {note.what}" for note in row["notes"]]])
    try:
        return prepare_volume(name, image, masks, about, **settings)
    except MsfilmError as fault:
        return [fault]
