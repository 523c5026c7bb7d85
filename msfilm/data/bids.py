"""A BIDS folder -> one table with a row a volume: its image, its masks, its sidecar's values, what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from msfilm.data.sidecars import SIDECAR_COLUMNS, acquisition, find_sidecars, merge_sidecars, read_centres
from msfilm.errors import InputError

__all__ = ["contrast_of", "find_volumes", "parse_mask_name"]

_ENDING = re.compile(r"\.nii(\.gz)?$")
_SUFFIX = re.compile(r"^[A-Z][A-Za-z0-9]*$")  # T2w, T2starw, MTS: a scan's; masks end in small letters
# First match wins where one volume has several: drawn or corrected by hand before made by a program.
_KINDS = (
    ("cord", re.compile(r"^(seg-manual|label-SC_mask|label-SC_seg|label-cord_mask|seg)$")),
    ("truth", re.compile(r"^(label-lesion_desc-truth_mask|lesion-truth)$")),
    (
        "rater",
        re.compile(
            r"^(label-lesion_desc-rater-?(?P<a>\d+)_mask|lesion-manual-?(rater-?)?(?P<b>\d+)?"
            r"|lesion-rater-?(?P<c>\d+)|label-lesion_mask|lesion)$"
        ),
    ),
)
_ACQUIRED = re.compile(r"_(flip|mt|inv|echo|part)-[A-Za-z0-9]+")
_CORD_ORDER = ("seg-manual", "label-SC_mask", "label-SC_seg", "label-cord_mask", "seg")
_VALID_NAME = re.compile(
    r"^(?P<entities>sub-[^_]+(?:_[a-z]+-[^_]+)*?)_space-(?P<suffix>[A-Z][A-Za-z0-9]*)_(?P<kind>label-.+)$"
)
_FIELD_NAME = re.compile(r"^(?P<stem>sub-[^_]+(?:_[a-z]+-[^_]+)*?_[A-Z][A-Za-z0-9]*)_(?P<kind>.+)$")


def contrast_of(stem: str) -> str:
    """A scan's contrast, from its BIDS name or suffix: the suffix, but for what BIDS has no suffix of its own for.

    ``T2starw`` and the older ``T2star`` are both ``T2star``; ``mt-on`` or ``acq-MTon`` with suffix MTS is ``MTon`` (and
    so for off); ``acq-stir`` and ``acq-psir`` are ``STIR`` and ``PSIR`` whatever the suffix.
    """
    *entities, suffix = stem.split("_")
    named = dict(part.lower().split("-", 1) for part in entities if "-" in part)
    label = named.get("acq", "")
    if suffix == "MTS":
        state = named.get("mt") or ("on" if "mton" in label else "off" if "mtoff" in label else "")
        return f"MT{state}" if state in ("on", "off") else suffix
    for contrast in ("STIR", "PSIR"):
        if contrast.lower() in label:
            return contrast
    return {"T2starw": "T2star"}.get(suffix, suffix)


def parse_mask_name(stem: str) -> tuple[str, str, str] | None:
    """Which image a mask file belongs to, and what it shows.

    Args:
        stem: file name without ending, valid BIDS (``sub-01_space-T2w_label-SC_mask``) or as this field's data
            sets are named (``sub-01_T2w_seg-manual``, ``sub-01_T2w_lesion-manual-rater2``).

    Returns:
        (image stem, mask name, kind as written), or None for a file that is no cord or lesion mask.
    """
    if found := _VALID_NAME.match(stem):
        image, kind = f"{found['entities']}_{found['suffix']}", found["kind"]
    elif found := _FIELD_NAME.match(stem):
        image, kind = found["stem"], found["kind"]
    else:
        return None
    for name, pattern in _KINDS:
        if match := pattern.match(kind):
            if name == "rater":
                number = next((group for group in match.group("a", "b", "c") if group), "1")
                name = f"rater-{int(number)}"
            return image, name, kind
    return None


def find_volumes(dataset: str | Path) -> pd.DataFrame:
    """List the volumes of a BIDS data set without opening an image.

    Args:
        dataset: folder with ``sub-*`` folders; masks lie in ``derivatives/labels`` or beside their image. A cord mask
            is used for its own image only.

    Returns:
        Index ``volume`` (the image's name without ending). Columns: patient ("sub-001"), session (or None), centre,
        contrast, rater (identity of rater-1, "unknown" where no sidecar says), raters (identities of rater-1, rater-2
        .. with commas between), image (path, or None where only a mask or sidecar is there), one path column a mask
        (``cord``, ``truth``, ``rater-1`` ...; None where absent), the
        columns ``SIDECAR_COLUMNS``, ``notes`` (list of InputError that do not stop the volume) and ``errors`` (list of
        InputError that do). ``attrs["notes"]`` holds what concerns the data set as a whole.

    Raises:
        InputError: BIDS-MISSING, BIDS-EMPTY.
    """
    dataset = Path(dataset).absolute()
    if not dataset.is_dir():
        raise InputError("BIDS-MISSING", "no such folder", where=dataset, mend="check the path")
    centres, notes = read_centres(dataset)
    images = _images(dataset)
    masks, mask_notes = _masks(dataset, images)
    expected = {_stem(path) for path in _anat(dataset, "*.json") if _SUFFIX.match(_stem(path).split("_")[-1])}
    stems = sorted(set(images) | set(masks) | expected)
    if not stems:
        raise InputError(
            "BIDS-EMPTY",
            "no scan below sub-*/anat or sub-*/ses-*/anat",
            where=dataset,
            mend="name scans as BIDS does: sub-001/anat/sub-001_T2w.nii.gz",
        )
    if not (dataset / "dataset_description.json").is_file():
        notes.append(InputError("BIDS-DESCRIPTION", "dataset_description.json is missing", where=dataset))
    listing: dict[Path, list[Path]] = {}
    rows = []
    for stem in stems:
        row = _row(dataset, stem, images.get(stem), masks.get(stem, {}), listing)
        row["notes"] += mask_notes.get(stem, [])
        row["centre"] = centres.get(row["patient"], "unknown")
        if centres and row["patient"] not in centres:
            row["notes"].append(
                InputError(
                    "PARTICIPANTS-LACK",
                    f"{row['patient']} has no line: its centre is 'unknown'",
                    where=dataset / "participants.tsv",
                )
            )
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(stems, name="volume"))
    names = sorted({name for found in masks.values() for name in found} | {"cord"}, key=_mask_order)
    for name in names:
        table[name] = pd.Series([masks.get(stem, {}).get(name) for stem in stems], index=table.index, dtype=object)
    leading = ["patient", "session", "centre", "contrast", "rater", "raters", "image", *names, *SIDECAR_COLUMNS]
    table = table[[*leading, "notes", "errors"]]
    table.attrs["notes"] = [f"{note.code}: {note.what}" for note in notes]
    return table


def _row(
    dataset: Path, stem: str, image: Path | None, masks: dict[str, Path], listing: dict[Path, list[Path]]
) -> dict[str, Any]:
    *entities, _ = stem.split("_")
    named = dict(part.split("-", 1) for part in entities if "-" in part)
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
        having = ", ".join(sorted(path.name for path in masks.values())) or f"{stem}.json"
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
                mend=f"draw or compute one and save it as derivatives/labels/{folder.relative_to(dataset).as_posix()}/"
                f"{stem}_seg-manual.nii.gz, or segment the scan alone with --centreline",
            )
        )
    rater, faults = _rater(masks.get("rater-1"))
    drawn = sorted((name for name in masks if name.startswith("rater-")), key=_mask_order)
    raters = [_rater(masks[name])[0] for name in drawn]
    return {
        "patient": patient,
        "session": session,
        "contrast": contrast_of(stem),
        "rater": rater,
        "raters": ",".join(raters),
        "image": image,
        **values,
        "notes": notes + faults,
        "errors": errors,
    }


def _rater(mask: Path | None) -> tuple[str, list[InputError]]:
    """Who drew a mask: field Rater of its sidecar."""
    sidecar = mask.with_name(_stem(mask) + ".json") if mask else None
    if sidecar is None or not sidecar.is_file():
        return "unknown", []
    fields, faults = merge_sidecars([sidecar])
    who = fields.get("Rater", "unknown")
    if not isinstance(who, str | int) or isinstance(who, bool):
        faults.append(InputError("SIDECAR-FIELD", f"Rater is {who!r}, not a name", where=sidecar))
        who = "unknown"
    return str(who), faults


def _stem(path: Path) -> str:
    return path.name[:-5] if path.name.endswith(".json") else _ENDING.sub("", path.name)


def _anat(root: Path, pattern: str) -> list[Path]:
    return sorted([*root.glob(f"sub-*/anat/{pattern}"), *root.glob(f"sub-*/ses-*/anat/{pattern}")])


def _images(dataset: Path) -> dict[str, Path]:
    found = {}
    for path in _anat(dataset, "sub-*.nii*"):
        stem = _stem(path)
        if _ENDING.search(path.name) and _SUFFIX.match(stem.split("_")[-1]):
            found.setdefault(stem, path)
    return found


def _masks(dataset: Path, images: dict[str, Path]) -> tuple[dict[str, dict[str, Path]], dict[str, list[InputError]]]:
    """image stem -> mask name -> path, and notes where one mask is there twice."""
    candidates: dict[tuple[str, str], list[tuple[int, int, Path]]] = {}
    shorter = {_ACQUIRED.sub("", stem): stem for stem in images}  # a mask's name may not hold these entities
    for place, root in enumerate(
        (dataset / "derivatives" / "labels", dataset)
    ):  # corrected masks before those beside the image
        for path in _anat(root, "sub-*.nii*"):
            parsed = parse_mask_name(_stem(path)) if _ENDING.search(path.name) else None
            if parsed is None:
                continue
            image, name, kind = parsed
            if image not in images and image.endswith(("_T2star", "_T2starw")):  # both spellings are about
                other = image[:-1] if image.endswith("w") else image + "w"
                image = other if other in images else image
            if image not in images:
                image = shorter.get(image, image)
            order = _CORD_ORDER.index(kind) if name == "cord" else 0
            candidates.setdefault((image, name), []).append((order, place, path))
    masks: dict[str, dict[str, Path]] = {}
    notes: dict[str, list[InputError]] = {}
    for (image, name), found in candidates.items():
        found.sort()
        masks.setdefault(image, {})[name] = found[0][2]
        if len(found) > 1:
            others = ", ".join(path.name for _, _, path in found[1:])
            notes.setdefault(image, []).append(
                InputError("MASK-TWICE", f"used for {name}; passed over: {others}", where=found[0][2])
            )
    return masks, notes


def _mask_order(name: str) -> tuple[int, int]:
    return ("cord", "truth").index(name) if name in ("cord", "truth") else 2, int(
        name.split("-")[1]
    ) if "-" in name else 0
