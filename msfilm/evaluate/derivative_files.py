"""Names and small files of a BIDS derivative of lesion masks: description, table and what its columns mean, README."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from msfilm import __version__
from msfilm.data.labels import entities_of
from msfilm.errors import InputError, RunError, printable
from msfilm.files import atomic_path, read_json, write_json

__all__ = ["BIDS_VERSION", "TABLE_COLUMNS", "frame_files", "mask_names", "write_texts"]

BIDS_VERSION = "1.10.0"
_NOT_IN_MASKS = ("flip", "mt", "inv", "mod", "trc", "stain", "sample", "dir", "proc", "hemi", "split", "suffix")
TABLE_COLUMNS = {  # of logs/lesions.tsv: BIDS keeps logs/ free, a file of another name beside the patients it does not
    "participant_id": {"Description": "Patient"},
    "session_id": {"Description": "Session"},
    "scan": {"Description": "The scan's name"},
    "contrast": {"Description": "What the scan was taken to be"},
    "status": {
        "Description": "Whether the mask was made, kept from an earlier run, or the scan refused",
        "Levels": {"made": "segmented", "kept": "as an earlier run left it", "refused": "see warnings"},
    },
    "lesion_mm3": {"Description": "Volume of all that was marked", "Units": "mm^3"},
    "lesions": {"Description": "Number of lesions: three touching voxels or more"},
    "slices": {"Description": "Number of slices segmented"},
    "slices_with_lesion": {"Description": "Number of slices with a marked voxel"},
    "centred_on": {"Description": "What said where the cord is", "Levels": {
        "cord": "a cord mask", "centreline": "points along it", "localiser": "msfilm's own proposal"}},
    "mask": {"Description": "File of the mask"},
    "warnings": {"Description": "What to know before trusting the mask; of a refused scan, why"},
}  # fmt: skip


def mask_names(stem: str) -> tuple[str, str]:
    """A scan's name -> those of its mask and probabilities, without ending.

    BIDS allows a mask neither flip- nor mt-: these go into desc-, so that no two scans share a name.
    """
    named = entities_of(stem)
    kept = "_".join(part for part in stem.split("_")[:-1] if part.split("-")[0] not in _NOT_IN_MASKS)
    more = "".join(f"{key}{value}" for key, value in named.items() if key in _NOT_IN_MASKS and key != "suffix")
    more = f"_desc-{re.sub('[^A-Za-z0-9]', '', more)}" if more else ""
    start = f"{kept}_space-{named['suffix']}_label-lesion{more}"
    return f"{start}_mask", f"{start}_probseg"


def frame_files(dataset: Path, out: Path, network: str, threshold: float) -> dict[str, Any]:
    """The files of the derivative itself: name -> content."""
    try:
        name = read_json(dataset / "dataset_description.json").get("Name") or dataset.name
    except (InputError, AttributeError):
        name = dataset.name
    name = printable(name)
    try:
        link = printable(Path(os.path.relpath(dataset, out)).as_posix())
    except ValueError:  # another drive
        link = dataset.as_uri()
    made = f"lesions marked by the network {network} where its probability is at least {threshold:g}"
    readme = (
        f"# Lesion masks of {name}\n\nMade by a program (msfilm {__version__}): {made}. Not for diagnosis, nor for any "
        "decision about a person.\n\nEach mask lies on its scan's own grid; the JSON beside it says what made it and "
        "what to doubt. logs/lesions.tsv has a row a scan, logs/refused.json says which could not be used and why, "
        "logs/notes.json what is odd about the data set as a whole.\n"
    )
    return {
        "dataset_description.json": {
            "Name": f"Lesion masks of {name}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "msfilm", "Version": __version__, "Description": f"msfilm segment: {made}"}],
            "SourceDatasets": [{"URL": link}],
            "DatasetLinks": {"raw": link},
        },
        "README.md": readme,
        "logs/lesions.json": TABLE_COLUMNS,
    }


def write_texts(out: Path, contents: dict[str, Any]) -> None:
    """Write small files, each whole or not at all: a table as TSV, a text as it is, all else as JSON.

    Raises:
        RunError: PATH-WRITE, the disk refuses.
    """
    for name, content in contents.items():
        path = out / name
        try:
            if isinstance(content, pd.DataFrame):
                content = content.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n", float_format="%.3f")
            if not isinstance(content, str):
                write_json(path, content)
                continue
            with atomic_path(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
        except OSError as error:
            raise RunError("PATH-WRITE", f"cannot write: {error.strerror or error}", where=path,
                           mend="check free space and permissions; the same command goes on") from error  # fmt: skip
