"""The small files round the scans: JSON sidecars with BIDS inheritance, and participants.tsv for the centres."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msfilm.errors import InputError, printable
from msfilm.files import read_json

__all__ = ["CENTRE_COLUMNS", "SIDECAR_COLUMNS", "acquisition", "find_sidecars", "merge_sidecars", "read_centres"]

# table column -> BIDS field, lowest and highest value that can be meant, unit that BIDS prescribes
_NUMBERS = {
    "echo_time_s": ("EchoTime", 1e-5, 1.0, "seconds"),
    "repetition_time_s": ("RepetitionTime", 1e-4, 60.0, "seconds"),
    "flip_angle_deg": ("FlipAngle", 0.01, 360.0, "degrees"),
    "field_T": ("MagneticFieldStrength", 0.01, 30.0, "tesla"),
}
SIDECAR_COLUMNS = (*_NUMBERS, "manufacturer")
CENTRE_COLUMNS = ("centre", "center", "institution_id", "site")


def find_sidecars(dataset: Path, folder: Path, stem: str, listing: dict[Path, list[Path]]) -> list[Path]:
    """JSON files that apply to ``stem`` (``sub-01_acq-a_T2w``), from the data set's root down to the scan's folder.

    BIDS inheritance: same suffix, and no entity that the scan lacks. ``listing`` keeps the JSON files of folders
    already looked into; start with an empty one.
    """
    *entities, suffix = stem.split("_")
    folders = [folder, *folder.parents]
    folders = folders[: folders.index(dataset) + 1][::-1]
    found = []
    for place in folders:
        if place not in listing:
            listing[place] = sorted(place.glob("*.json"))
        fitting = [
            path
            for path in listing[place]
            if path.name[:-5].split("_")[-1] == suffix and set(path.name[:-5].split("_")[:-1]) <= set(entities)
        ]
        found += sorted(fitting, key=lambda path: (path.name.count("_"), path.name))  # the most particular one last
    return found


def merge_sidecars(paths: list[Path]) -> tuple[dict[str, Any], list[InputError]]:
    """Fields of all sidecars together, nearer files before farther ones; broken files are named and passed over."""
    fields: dict[str, Any] = {}
    faults = []
    for path in paths:
        try:
            content = read_json(path, code="SIDECAR-BROKEN")
            if not isinstance(content, dict):
                raise InputError("SIDECAR-BROKEN", f"holds a {type(content).__name__}, not fields", where=path)
            fields |= content
        except InputError as fault:
            faults.append(fault)
        except OSError as error:
            faults.append(InputError("SIDECAR-BROKEN", error.strerror or str(error), where=path))
    return fields, faults


def acquisition(fields: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], list[InputError]]:
    """Acquisition parameters in the table's columns; NaN or None where unknown or not to be believed.

    A list of numbers (several echoes) is averaged. A value of another type, or one that only makes sense in another
    unit (an echo time of 85 is milliseconds), is named and left out.
    """
    values: dict[str, Any] = {}
    faults = []
    for column, (name, low, high, unit) in _NUMBERS.items():
        values[column] = math.nan
        if name not in fields:
            continue
        given = fields[name]
        numbers = given if isinstance(given, list) and given else [given]
        if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
            faults.append(
                InputError(
                    "SIDECAR-FIELD", f"{name} is {given!r}, not a number", where=where, mend=f"give it in {unit}"
                )
            )
            continue
        try:
            value = math.fsum(numbers) / len(numbers)
        except (OverflowError, ValueError):  # a whole number of 400 digits; infinity and its opposite
            value = math.inf
        if not low <= value <= high:
            faults.append(
                InputError(
                    "SIDECAR-UNIT",
                    f"{name} is {value:g}; in {unit} it should lie in {low:g}..{high:g}",
                    where=where,
                    mend=f"give it in {unit}",
                )
            )
            continue
        values[column] = float(value)
    maker = fields.get("Manufacturer")
    values["manufacturer"] = maker if isinstance(maker, str) and maker and printable(maker) == maker else None
    if maker is not None and values["manufacturer"] is None:
        faults.append(InputError("SIDECAR-FIELD", f"Manufacturer is {maker!r}, not a name", where=where))
    return values, faults


def read_centres(
    dataset: Path, names: tuple[str, ...] = CENTRE_COLUMNS
) -> tuple[dict[str, str], list[InputError]]:
    """Patient -> centre from participants.tsv (the first column of ``names``), and what is wrong with that file.

    "" where the centre is left empty; 'unknown' for n/a, and where a patient's lines name several.
    """
    path = dataset / "participants.tsv"
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
            columns = list(rows[0]) if rows else []
    except FileNotFoundError:
        return {}, [
            InputError(
                "PARTICIPANTS-MISSING",
                "no such file: every centre is 'unknown'",
                where=path,
                mend="write participants.tsv with the columns participant_id and centre",
            )
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return {}, [
            InputError("PARTICIPANTS-BROKEN", f"cannot be read ({error}): every centre is 'unknown'", where=path)
        ]
    column = next((name for name in names if name in columns), None)
    if "participant_id" not in columns or column is None:
        listing = ", ".join(map(str, columns)) or "none"
        return {}, [
            InputError(
                "PARTICIPANTS-BROKEN",
                f"columns are {listing}: every centre is 'unknown'",
                where=path,
                mend="it needs participant_id and one of " + ", ".join(names) + ", parted by tabs",
            )
        ]
    given: dict[str, list[str]] = {}
    for row in rows:
        patient, centre = str(row["participant_id"] or ""), str(row[column] or "").strip()
        given.setdefault(patient if patient.startswith("sub-") else f"sub-{patient}", []).append(centre)
    centres, notes = {}, []
    for patient, named in given.items():
        several = list(dict.fromkeys(named))
        if len(several) > 1:
            notes.append(
                InputError(
                    "PARTICIPANTS-TWICE",
                    f"{patient} has {len(named)} lines, with the centres {', '.join(map(repr, several))}: its centre "
                    "is 'unknown'",
                    where=path,
                    mend="keep the right line",
                )
            )
        centres[patient] = several[0] if len(several) == 1 and several[0] != "n/a" else "unknown"
        if several == [""]:
            centres[patient] = ""
    return centres, notes
