"""The files of a segmentation: where they go, that nothing of somebody else's is there, and writing them together.

Several files cannot change in one step. So a JSON goes first that says of which mask the new one takes the place
(``replaces_sha256``), then the probabilities, then the mask, then the JSON without that field: whoever is killed in
between leaves a mask that is known to be msfilm's, and a JSON that tells that it is to be made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msfilm.data.mask_files import is_segmentation
from msfilm.errors import InputError, RunError, SettingError
from msfilm.files import atomic_path, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["beside", "check_free", "record_of", "targets_of", "write_together"]


def beside(path: Path) -> Path:
    """x.nii.gz -> x.json"""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def targets_of(out: str | Path | None, probability: str | Path | None, sources: Iterable[Any]) -> dict[str, Path]:
    """Where mask, probability and record go.

    Raises:
        SettingError: OUT-NAME, a name that is no NIfTI's, or of a file that would be overwritten.
    """
    targets = {}
    if out is not None:
        targets["mask"] = Path(out)
    if probability is not None:
        targets["probability"] = Path(probability)
    for path in targets.values():
        if not path.name.endswith((".nii", ".nii.gz")):
            raise SettingError("OUT-NAME", "the name must end in .nii.gz or .nii", where=path)
    if "mask" in targets:
        targets["record"] = beside(targets["mask"])
    kept = [Path(source) for source in sources if isinstance(source, str | Path)]
    kept += [beside(source) for source in kept]
    taken = [path.resolve() for path in [*kept, *targets.values()]]
    for path in targets.values():
        if taken.count(path.resolve()) > 1:
            raise SettingError("OUT-NAME", "this file is an input, an input's own JSON, or asked for twice", where=path,
                               mend="choose another name")  # fmt: skip
    return targets


def record_of(mask: Path, record: Path) -> dict[str, Any]:
    """What an earlier run says of its mask; {} where there is no mask, or one that a killed run left half done.

    Raises:
        InputError: MASK-CHANGED, the mask is not the one that was written.
    """
    if not mask.exists():
        return {}
    try:
        said = read_json(record)
    except InputError:
        said = None
    here = sha256_file(mask) if mask.is_file() else ""
    if not isinstance(said, dict) or here not in (said.get("mask_sha256"), said.get("replaces_sha256")):
        raise InputError("MASK-CHANGED", "this mask is not as msfilm wrote it, so it is not written over", where=mask,
                         mend="keep it under another name or in another folder, or remove it")  # fmt: skip
    return {} if "replaces_sha256" in said else said


def check_free(targets: dict[str, Path]) -> None:
    """Refuse to write over a mask, or the files beside it, that ``segment`` did not write or somebody has changed.

    Raises:
        InputError: OUT-EXISTS or MASK-CHANGED.
    """
    if "mask" not in targets:
        return
    try:
        said = read_json(targets["record"])
    except InputError:
        said = {}
    ours = is_segmentation(said)
    there = [path for path in targets.values() if path.exists()]
    if there and not ours:
        raise InputError("OUT-EXISTS", "this file is not one that msfilm segment wrote, so it is not written over",
                         where=there[0], mend="choose another name, or --overwrite (overwrite=True)")  # fmt: skip
    if ours and not {"mask_sha256", "replaces_sha256"} & said.keys():
        return  # records of single masks once had no hash of the mask
    try:
        record_of(targets["mask"], targets["record"])
    except InputError as error:
        raise InputError(error.code, error.what, where=error.where,
                         mend="choose another name, or --overwrite (overwrite=True)") from None  # fmt: skip


def write_together(
    targets: dict[str, Path], mask: np.ndarray, chance: np.ndarray, records: dict[str, dict], volume: Volume
) -> str:
    """Write what ``targets`` names: each file is complete on disk before the first takes its place.

    Args:
        targets: of 'mask', 'probability', and names of ``records``.
        mask: (X, Y, Z) bool, canonical.
        chance: (X, Y, Z) float32, canonical.
        records: contents of JSON files, by the target's name; 'mask_sha256' is added to each.
        volume: the scan that they belong to.

    Returns:
        SHA-256 of the mask's file, '' where none is written.

    Raises:
        RunError: NIFTI-WRITE.
    """
    from msfilm.data.nifti import write_nifti

    mask_sha256 = ""
    try:
        older = targets["mask"] if "mask" in targets and targets["mask"].is_file() else None
        unfinished = {"replaces_sha256": sha256_file(older)} if older else {}
        with ExitStack() as stack:  # the last one entered takes its place first
            order = sorted(targets, key=lambda key: (key in records, key == "probability"))
            staged = {key: stack.enter_context(atomic_path(targets[key])) for key in order}
            if "mask" in staged:
                write_nifti(staged["mask"], mask.astype(np.uint8), volume, dtype=np.uint8)
                mask_sha256 = sha256_file(staged["mask"])
            if "probability" in staged:
                write_nifti(staged["probability"], chance, volume, dtype=np.float32)
            for name in records.keys() & staged.keys():
                write_json(staged[name], records[name] | {"mask_sha256": mask_sha256} | unfinished)
        if unfinished:
            for name in sorted(records.keys() & targets.keys(), key=lambda name: name == "record"):
                write_json(targets[name], records[name] | {"mask_sha256": mask_sha256})
    except (OSError, RunError) as error:
        reason = error.what if isinstance(error, RunError) else f"cannot write: {error.strerror or error}"
        raise RunError("NIFTI-WRITE", reason, where=next(iter(targets.values())),
                       mend="check free space and permissions; nothing was left half-written") from error  # fmt: skip
    return mask_sha256
