"""A BIDS folder -> one table with a row a volume: its image, its masks, its sidecar's values, what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from msfilm.data.labels import NamingRules, entities_of
from msfilm.data.mask_files import anat_files, find_masks, mask_order, parse_mask_name, stem_of, who_drew
from msfilm.data.sidecars import SIDECAR_COLUMNS, acquisition, find_sidecars, merge_sidecars, read_centres
from msfilm.errors import InputError, printable

__all__ = ["OTHER_FORMATS", "contrast_of", "find_volumes", "parse_mask_name"]

OTHER_FORMATS = (".nii.bz2", ".nii.zst", ".nii.xz", ".nii.zip", ".hdr", ".hdr.gz", ".img", ".img.gz", ".mgz", ".mgh",
                 ".mnc", ".mnc.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".par", ".rec", ".head", ".brik",
                 ".brik.gz")  # fmt: skip

_ENDING = re.compile(r"\.nii(\.gz)?$")
_SUFFIX = re.compile(r"^[A-Z][A-Za-z0-9]*$")  # T2w, T2starw, MTS: a scan's; masks end in small letters
_NO_ANATOMY = ("phase", "real", "imag")  # parts of a complex image that show no anatomy by themselves


def contrast_of(stem: str, rules: NamingRules | None = None) -> str:
    """A scan's contrast, from its BIDS name or suffix: the suffix, but for what BIDS has no suffix of its own for.

    The rules' contrasts go first. ``T2starw`` and the older ``T2star`` are both ``T2star``; ``mt-on`` or ``acq-MTon``
    with suffix MTS is ``MTon`` (and so for off); ``acq-stir`` and ``acq-psir`` are ``STIR`` and ``PSIR`` whatever the
    suffix; a contrast agent (``ce-``) makes T1w ``T1post``. The plane (``acq-sag``) is no contrast.
    """
    if rules and (ruled := rules.contrast_of(stem)):
        return ruled
    named = entities_of(stem)
    suffix, label = named.get("suffix", stem), named.get("acq", "").lower()
    if suffix == "MTS":
        state = named.get("mt", "").lower() or ("on" if "mton" in label else "off" if "mtoff" in label else "")
        return f"MT{state}" if state in ("on", "off") else suffix
    for contrast in ("STIR", "PSIR"):
        if contrast.lower() in label:
            return contrast
    if "ce" in named:
        return suffix.removesuffix("w") + "post"
    return {"T2starw": "T2star"}.get(suffix, suffix)


def find_volumes(dataset: str | Path, rules: NamingRules | str | Path | None = None) -> pd.DataFrame:
    """List the volumes of a BIDS data set without opening an image.

    Args:
        dataset: folder with ``sub-*`` folders; masks lie in ``derivatives/labels`` or beside their image, unless the
            rules say otherwise. A cord mask is used for its own image only, or for all echoes and parts of one run.
        rules: how its files are named, or the YAML file that says so; None takes the file in the data set
            (``code/msfilm.yml`` or ``msfilm.yml``), else the usual names.

    Returns:
        Index ``volume`` (the image's name without ending). Columns: patient ("sub-001"), session (or None), centre,
        contrast, rater (identity of rater-1, "unknown" where no sidecar says), raters (identities of rater-1, rater-2
        .. with commas between), image (path, or None where only a mask or sidecar is there), one path column a mask
        (``cord``, ``truth``, ``rater-1`` ...; None where absent), ``centreline`` (path of a CSV, or None), the
        columns ``SIDECAR_COLUMNS``, ``notes`` (list of InputError that do not stop the volume) and ``errors`` (list of
        InputError that do). ``attrs["notes"]`` holds what concerns the data set as a whole,
        ``attrs["places"]`` the file or folder of each of these.

    Raises:
        InputError: BIDS-MISSING, BIDS-EMPTY, NAMES-MISSING, NAMES-YAML; SettingError: NAMES-* of ``NamingRules``.
    """
    dataset = Path(dataset).absolute()
    if not dataset.is_dir():
        raise InputError("BIDS-MISSING", "no such folder", where=dataset, mend="check the path")
    rules = NamingRules.of(rules, dataset)
    centres, notes = read_centres(dataset, rules.centre)
    every, misnamed = _images(dataset)
    unnamed = _unnamed(dataset)
    images = {stem: path for stem, path in every.items() if _wanted(stem, rules)}
    masks, drawers, mask_notes, left = find_masks(dataset, every, rules)
    there = {stem_of(path) for path in anat_files(dataset, "sub-*.json") if _utf8(path, dataset)}
    expected = {stem for stem in there if _SUFFIX.match(_suffix(stem))}
    stems = sorted({stem for stem in {*every, *masks, *expected, *unnamed} if _wanted(stem, rules)})
    passed = sorted(set(every) - set(images))
    if not stems:
        raise InputError(
            "BIDS-EMPTY",
            f"none of {len(passed)} scans is among those to be taken"
            if passed
            else "no scan below sub-*/anat or sub-*/ses-*/anat",
            where=dataset,
            mend=f"look at take and leave in {rules.path}"
            if passed and rules.path
            else "name scans as BIDS does: sub-001/anat/sub-001_T2w.nii.gz",
        )
    notes += left + _other_formats(dataset, every)
    if passed:
        some = ", ".join(passed[:3]) + (", .." if len(passed) > 3 else "")
        notes.append(InputError("BIDS-PASSED", f"{len(passed)} scans are left out, as asked for or as phase images: "
                                f"{some}", where=rules.path or dataset))  # fmt: skip
    if not (dataset / "dataset_description.json").is_file():
        notes.append(InputError("BIDS-DESCRIPTION", "dataset_description.json is missing", where=dataset))
    listing: dict[Path, list[Path]] = {}
    rows = []
    for stem in stems:
        row = _row(dataset, stem, images.get(stem), masks.get(stem, {}), drawers.get(stem, {}), rules, listing)
        if stem in unnamed:
            row["notes"], row["errors"] = [], [unnamed[stem]]
        row["notes"] += mask_notes.get(stem, [])
        for fault in misnamed.get(stem, []):
            row["errors" if fault.code == "BIDS-TWICE" else "notes"].append(fault)
        row["centre"] = centres.get(row["patient"]) or "unknown"
        if centres and not centres.get(row["patient"]):
            lacks = "no centre in its line" if row["patient"] in centres else "no line"
            row["notes"].append(
                InputError(
                    "PARTICIPANTS-LACK",
                    f"{row['patient']} has {lacks}: its centre is 'unknown'",
                    where=dataset / "participants.tsv",
                )
            )
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(stems, name="volume"))
    for column in ("session", "manufacturer", "image"):  # None stays None: a column of texts would make it NaN
        table[column] = pd.Series([row[column] for row in rows], index=table.index, dtype=object)
    names = {name for stem in stems for name in masks.get(stem, {})} - {"centreline"} | {"cord"}
    names = sorted(names, key=mask_order)
    for name in (*names, "centreline"):
        table[name] = pd.Series([masks.get(stem, {}).get(name) for stem in stems], index=table.index, dtype=object)
    leading = ["patient", "session", "centre", "contrast", "rater", "raters", "image", *names, "centreline"]
    leading += SIDECAR_COLUMNS
    table = table[[*leading, "notes", "errors"]]
    table.attrs["notes"] = [f"{note.code}: {note.what}" for note in notes]
    table.attrs["places"] = [note.where or str(dataset) for note in notes]
    return table


def _row(
    dataset: Path,
    stem: str,
    image: Path | None,
    masks: dict[str, Path],
    drawers: dict[str, str],
    rules: NamingRules,
    listing: dict[Path, list[Path]],
) -> dict[str, Any]:
    named = entities_of(stem)
    patient, session = f"sub-{named['sub']}", f"ses-{named['ses']}" if "ses" in named else None
    folder = image.parent if image else dataset.joinpath(*[part for part in (patient, session, "anat") if part])
    sidecars = find_sidecars(dataset, folder, stem, listing)
    fields, notes = merge_sidecars(sidecars)
    errors: list[InputError] = []
    if not sidecars:
        notes.append(
            InputError(
                "SIDECAR-MISSING",
                "no JSON sidecar: echo time and the like are unknown",
                where=folder / f"{stem}.json",
                mend="needed only for conditioning on acquisition parameters",
            )
        )
    values, faults = acquisition(fields, sidecars[-1] if sidecars else folder / f"{stem}.json")
    notes += faults
    if image is None:
        having = ", ".join(sorted({path.name for path in masks.values()})) or f"{stem}.json"
        errors.append(
            InputError(
                "IMAGE-MISSING",
                f"the image is not there, only {having}",
                where=folder / f"{stem}.nii.gz",
                mend="fetch it, or take the leftover files away",
            )
        )
    if "cord" not in masks:
        errors.append(
            InputError(
                "MASK-MISSING",
                "no cord mask for this image (one of another contrast is not used)",
                where=image or folder / f"{stem}.nii.gz",
                mend=f"draw or compute one and save it as {_label_folder(rules)}/"
                f"{folder.relative_to(dataset).as_posix()}/{stem}_{rules.cord[0]}.nii.gz; to segment only, a "
                f"centreline will do: {stem}_{rules.centreline[0]}.csv beside the scan, or --centreline for one scan",
            )
        )
    drawn = sorted((name for name in masks if name.startswith("rater-")), key=mask_order)
    who = [who_drew(masks[name], drawers.get(name, "unknown")) for name in drawn]
    rater, faults = who[0] if drawn[:1] == ["rater-1"] else ("unknown", [])
    raters = [name for name, _ in who]
    return {
        "patient": patient,
        "session": session,
        "contrast": contrast_of(stem, rules),
        "rater": rater,
        "raters": ",".join(raters),
        "image": image,
        **values,
        "notes": notes + faults,
        "errors": errors,
    }


def _label_folder(rules: NamingRules) -> str:
    return next((name for name in rules.folders if not set(name) & set("{*.")), "derivatives/labels")


def _suffix(stem: str) -> str:
    return stem.split("_")[-1]


def _wanted(stem: str, rules: NamingRules) -> bool:
    return rules.takes(stem) and entities_of(stem).get("part") not in _NO_ANATOMY


def _images(dataset: Path) -> tuple[dict[str, Path], dict[str, list[InputError]]]:
    """Stem -> scan; and what is wrong with its name: BIDS-TWICE, BIDS-NAME (not that of its folders)."""
    found: dict[str, Path] = {}
    faults: dict[str, list[InputError]] = {}
    for path in anat_files(dataset, "sub-*.nii*"):
        stem = stem_of(path)
        if not (_ENDING.search(path.name) and _SUFFIX.match(_suffix(stem)) and _utf8(path, dataset)):
            continue
        above = [part for part in path.relative_to(dataset).parts[:-1] if part != "anat"]
        named = entities_of(stem)
        own = [f"{key}-{named[key]}" for key in ("sub", "ses") if key in named]
        mend = "give every scan its own name, that of its folders"
        if own != above:
            what = f"lies under {'/'.join(above)}"
            faults.setdefault(stem, []).append(InputError("BIDS-NAME", what, where=path, mend=mend))
        if (first := found.setdefault(stem, path)) != path:
            what = f"has the name of {first.relative_to(dataset).as_posix()}"
            faults.setdefault(stem, []).append(InputError("BIDS-TWICE", what, where=path, mend=mend))
    return found, faults


def _utf8(path: Path, dataset: Path) -> bool:
    """Whether a file's name, and those of its folders below the data set, are text."""
    inside = str(path.relative_to(dataset))
    return printable(inside) == inside


def _unnamed(dataset: Path) -> dict[str, InputError]:
    """Scans whose name no table can hold, as it is not UTF-8: the name written out -> BIDS-NAME."""
    found = {}
    for path in anat_files(dataset, "sub-*"):
        stem = stem_of(path)
        if path.name.endswith((".nii", ".nii.gz")) and _SUFFIX.match(_suffix(stem)) and not _utf8(path, dataset):
            found[printable(stem)] = InputError("BIDS-NAME", "the name is not UTF-8", where=path, mend="give it a name "
                                                "of plain letters, and the files beside it")  # fmt: skip
    return found


def _other_formats(dataset: Path, images: dict[str, Path]) -> list[InputError]:
    """NIFTI-UNREADABLE for each scan that is there in another format only."""
    found = {}
    for path in anat_files(dataset, "sub-*"):
        stem = path.name.split(".")[0]
        if path.name.lower().endswith(OTHER_FORMATS) and _SUFFIX.match(_suffix(stem)) and stem not in images:
            inside = path.relative_to(dataset).as_posix()
            found.setdefault(stem, InputError("NIFTI-UNREADABLE", f"{inside} is of a format that is not read: left out",
                                              where=path, mend="convert it to .nii.gz"))  # fmt: skip
    return list(found.values())
