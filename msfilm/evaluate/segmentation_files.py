"""The files of a segmentation: where they go, and all of them written together or none."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msfilm.errors import RunError, SettingError
from msfilm.files import atomic_path, sha256_file, write_json

if TYPE_CHECKING:
    from msfilm.data.nifti import Volume

__all__ = ["beside", "targets_of", "write_together"]


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
        with ExitStack() as stack:
            staged = {key: stack.enter_context(atomic_path(path)) for key, path in targets.items()}
            if "mask" in staged:
                write_nifti(staged["mask"], mask.astype(np.uint8), volume, dtype=np.uint8)
                mask_sha256 = sha256_file(staged["mask"])
            if "probability" in staged:
                write_nifti(staged["probability"], chance, volume, dtype=np.float32)
            for name in records.keys() & staged.keys():
                write_json(staged[name], records[name] | {"mask_sha256": mask_sha256})
    except (OSError, RunError) as error:
        reason = error.what if isinstance(error, RunError) else f"cannot write: {error.strerror or error}"
        raise RunError("NIFTI-WRITE", reason, where=next(iter(targets.values())),
                       mend="check free space and permissions; nothing was left half-written") from error  # fmt: skip
    return mask_sha256
