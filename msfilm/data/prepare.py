"""A BIDS folder -> SliceSet: read each volume safely, crop round its cord, go on past those that must be refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from msfilm import __version__
from msfilm.data.bids import find_volumes
from msfilm.data.crop import check_crop
from msfilm.data.cropped import PreparedVolume, join_volumes, prepare_volume
from msfilm.data.examine import Examined, Reading, SeenImages, examine, mask_columns, read_ahead
from msfilm.data.mask_values import MaskValues
from msfilm.data.slices import SliceSet
from msfilm.data.stream import stream_slices
from msfilm.errors import InputError, MsfilmError, SettingError, printable, suggest

__all__ = ["prepare", "prepare_volume"]


def prepare(
    dataset: str | Path,
    out: str | Path | None = None,
    *,
    spacing_mm: float = 0.75,
    size: int = 48,
    min_cord_pixels: int = 10,
    contrasts: Sequence[str] | None = None,
    form: str | None = None,
    lesion_values: MaskValues = None,
    cord_values: MaskValues = None,
    names: Any = None,
    progress: bool = True,
) -> tuple[SliceSet, list[MsfilmError]]:
    """Make a SliceSet of a BIDS data set; a volume that cannot be used is refused by name and the rest goes on.

    Args:
        dataset: BIDS folder, see ``msfilm.data.bids.find_volumes``.
        out: where to save it (all at once or not at all), with ``refused.json`` listing path, code, message and verdict
            of each refused volume. Volumes go to disk as they come, so memory does not grow with their number, and the
            set that comes back is memory-mapped. Without it the set is held in memory.
        spacing_mm: pixel size of the crops.
        size: H = W in pixels.
        min_cord_pixels: slices with fewer cord pixels are left out.
        contrasts: only these; default all.
        form: 'sform' or 'qform': the one to believe in files whose two disagree by more than half a voxel, which are
            refused otherwise.
        lesion_values, cord_values: what masks' values mean where they are not 0 and 1, for example {255: 1}, or 0.5 as
            the level of a soft mask; see ``msfilm.data.nifti.read_mask``.
        names: how files are named: the rules of ``find_volumes``, or their YAML file.
        progress: show a bar.

    Returns:
        The set, and the errors of the refused volumes in the order of their names. What did not stop a volume stands in
        ``volumes["notes"]``, what concerns the whole data set in ``meta["notes"]``. An image whose content an earlier
        volume of another patient has already is refused (IMAGE-TWICE).

    Raises:
        InputError: BIDS-MISSING, BIDS-EMPTY, or PREPARE-NOTHING if no volume can be used; SLICES-TARGET.
        SettingError: CONTRAST-UNKNOWN, CROP-SETTING, FORM-UNKNOWN, MASK-MAP.
        RunError: SLICES-WRITE.
    """
    dataset = Path(dataset).absolute()
    check_crop(size, spacing_mm)
    found = find_volumes(dataset, names)
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
    how = Reading(form, lesion_values, cord_values, spacing_mm, size, min_cord_pixels)
    refused: list[MsfilmError] = []
    meta = {
        "size": size,
        "spacing_mm": float(spacing_mm),
        "min_cord_pixels": min_cord_pixels,
        "source": printable(dataset.name),
        "version": __version__,
        "notes": list(found.attrs.get("notes", [])),
    }
    outcomes = read_ahead(lambda name: examine(dataset, name, found.loc[name], how), found.index)
    bar = tqdm(outcomes, total=len(found), desc="prepare", unit="volume", disable=not progress)
    parts = _usable(bar, found, refused)
    if out is None:
        held = dict(parts)
        if not held:
            raise _nothing(dataset, found, refused)
        return join_volumes(held, meta), refused
    try:
        # refused.json is part of what is written, so it goes in beside the arrays before the folder takes its place
        slices = stream_slices(
            parts, out, meta, _mask_names(found), extra=lambda: {"refused.json": [_entry(fault) for fault in refused]}
        )
    except InputError as error:
        raise (_nothing(dataset, found, refused) if error.code == "SLICES-EMPTY" else error) from None
    return slices, refused


def _usable(
    outcomes: Iterator[Examined], found: pd.DataFrame, refused: list[MsfilmError]
) -> Iterator[tuple[str, PreparedVolume]]:
    """The volumes that can be used; what is said against the others goes to ``refused``."""
    seen = SeenImages()
    for outcome in outcomes:
        refused += outcome.refused
        if outcome.prepared is None:
            continue
        row = found.loc[outcome.name]
        twin = seen.twin(outcome.image_hash, outcome.name, row["patient"], row["image"])
        if twin is not None:
            fault = seen.fault(row["image"], row["patient"], twin)
            if twin[1] != row["patient"]:
                refused.append(fault)
                continue
            about = outcome.prepared.row
            about["notes"] = " | ".join(filter(None, [about["notes"], f"{fault.code}: {fault.what}"]))
        yield outcome.name, outcome.prepared


def _mask_names(found: pd.DataFrame) -> list[str]:
    """Masks that some volume has, in the order in which a set keeps them."""
    names = [name for name in mask_columns(found.iloc[0]) if found[name].notna().any()]
    return sorted(names, key=lambda mask: (mask.startswith("rater"), mask))


def _nothing(dataset: Path, found: pd.DataFrame, refused: list[MsfilmError]) -> InputError:
    return InputError(
        "PREPARE-NOTHING",
        f"none of {len(found)} volumes can be used",
        where=dataset,
        mend=f"the first fault is {refused[0]}" if refused else "check the folder",
    )


def _entry(fault: MsfilmError) -> dict[str, Any]:
    return {"path": fault.where, "code": fault.code, "message": str(fault), "verdict": "refused"}
