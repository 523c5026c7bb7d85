"""Which mask file belongs to which scan: by its name, else by what its sidecar says it was drawn on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msfilm.data.labels import NamingRules, entities_of
from msfilm.data.sidecars import merge_sidecars
from msfilm.errors import InputError, printable
from msfilm.files import read_json

__all__ = ["anat_files", "find_masks", "is_segmentation", "mask_order", "parse_mask_name", "segmented", "stem_of",
           "who_drew"]

_ENDING = re.compile(r"(\.nii(\.gz)?|\.json|\.csv)$")
_SUFFIX = re.compile(r"^[A-Z][A-Za-z0-9]*$")
_ENTITY = re.compile(r"^[a-z]+-[^_]+$")
_SHARED = {"echo", "part"}  # images of one acquisition, on one grid at one time: a mask without these is for them all
_OPTIONAL = {"flip", "mt", "inv", "run", "rec", "chunk"}  # a mask without these is for the one image there is
_RENAME = "give it a name of plain letters, and the files beside it"
_EVERYWHERE = ("orig", "scanner", "individual", "subject")


def stem_of(path: Path) -> str:
    """A file's name without .nii, .nii.gz, .json or .csv."""
    return _ENDING.sub("", path.name)


def anat_files(root: Path, pattern: str) -> list[Path]:
    """Files in ``sub-*/anat`` and ``sub-*/ses-*/anat`` below ``root``, sorted."""
    return sorted([*root.glob(f"sub-*/anat/{pattern}"), *root.glob(f"sub-*/ses-*/anat/{pattern}")])


def segmented(folder: Path) -> bool:
    """Whether a folder is the derivative that ``segment`` makes of a data set."""
    try:
        content = read_json(folder / "dataset_description.json")
    except InputError:
        return False
    makers = content.get("GeneratedBy") if isinstance(content, dict) else None
    makers = [one for one in makers if isinstance(one, dict)] if isinstance(makers, list) else []
    return any(one.get("Name") == "msfilm" and str(one.get("Description")).startswith("msfilm segment:")
               for one in makers)  # fmt: skip


def is_segmentation(fields: Any) -> bool:
    """Whether a mask's JSON is what ``segment`` writes beside its mask."""
    network = fields.get("network") if isinstance(fields, Mapping) else None
    return isinstance(network, Mapping) and "weights_sha256" in network and {"image_sha256", "settings"} <= set(fields)


def parse_mask_name(stem: str, rules: NamingRules | None = None) -> tuple[str, str, str] | None:
    """Which image a mask file belongs to, and what it shows.

    Args:
        stem: file name without ending, valid BIDS (``sub-01_space-T2w_label-SC_mask``, ``sub-01_label-lesion_mask``)
            or as this field's data sets are named (``sub-01_T2w_seg-manual``, ``sub-01_T2w_lesion-manual-rater2``).
        rules: how the data set names them.

    Returns:
        (image stem, mask name, kind as written), or None for a file that is no mask or centreline. The image stem
        has no suffix where the name does not tell it. Mask names: cord, truth, centreline, rater-1, rater-anna.
    """
    parts = stem.split("_")
    rules = rules or NamingRules()
    for cut in range(1, len(parts)):
        head, kind = parts[:cut], "_".join(parts[cut:])
        if not head[0].startswith("sub-") or not all(map(_ENTITY.match, head[:-1])):
            return None
        if not (_ENTITY.match(head[-1]) or _SUFFIX.match(head[-1])):
            return None
        if found := rules.kind_of(kind):
            name, _, rater = found
            return _image_stem(head), f"rater-{_plain(rater)}" if name == "lesion" else name, kind
    return None


def _plain(rater: str | None) -> str:
    """'02' -> '2'; a lesion mask that names nobody is the first rater's."""
    return str(int(rater)) if rater and rater.isdigit() else rater or "1"


def _image_stem(head: list[str]) -> str:
    """The scan's name in front of a mask's: ``space-T2w`` says its suffix, as BIDS has masks named."""
    space = next((part[6:] for part in head if part.startswith("space-")), "")
    kept = [part for part in head if not part.startswith("space-")]
    if space and not _SUFFIX.match(kept[-1]) and space not in _EVERYWHERE and _SUFFIX.match(space):
        kept.append(space)
    return "_".join(kept)


def find_masks(
    dataset: Path, images: Mapping[str, Path], rules: NamingRules
) -> tuple[dict[str, dict[str, Path]], dict[str, dict[str, str]], dict[str, list[InputError]], list[InputError]]:
    """Every mask and centreline of a data set.

    Returns:
        image stem -> mask name (cord, truth, centreline, rater-1 ..) -> path; image stem -> mask name -> rater in the
        file's name; notes by image stem; and notes on files of which nothing says what they belong to. A file whose
        image is not there stands under the image's stem. A lesion mask that msfilm itself made is no rater's: it is
        passed over (MASK-PROGRAM, once for a whole derivative).
    """
    candidates: dict[tuple[str, str, str], list[tuple[int, int, Path]]] = {}
    notes: dict[str, list[InputError]] = {}
    left: list[InputError] = []
    for place, (root, drawer) in enumerate(rules.label_folders(dataset)):
        derivative, passed = root != dataset and segmented(root), []
        for path in anat_files(root, "sub-*"):
            if not path.name.endswith((".nii", ".nii.gz", ".csv")):
                continue
            parsed = parse_mask_name(stem_of(path), rules)
            if parsed is None or (parsed[1] == "centreline") != path.name.endswith(".csv"):
                continue
            stem, _, kind = parsed
            name, order, rater = rules.kind_of(kind)
            if printable(path.relative_to(dataset)) != str(path.relative_to(dataset)):
                left.append(InputError("BIDS-NAME", f"{path.name} is not UTF-8: not used", where=path, mend=_RENAME))
                continue
            if derivative and name in ("lesion", "truth"):
                passed.append(path)
                continue
            owners = _owners(stem, path, images)
            if len(owners) != 1 and not _share(owners):
                fault = InputError("MASK-WHOSE", f"it may belong to {', '.join(sorted(owners))}: used for none",
                                   where=path, mend="name it as its scan is named, or give its sidecar the field "
                                   "SpatialReference")  # fmt: skip
                for owner in owners:
                    notes.setdefault(owner, []).append(fault)
                if not owners:
                    left.append(InputError("MASK-WHOSE", "nothing says which scan it belongs to: not used", where=path,
                                           mend=fault.mend))  # fmt: skip
                continue
            if name in ("lesion", "truth") and _by_program(path):
                for owner in owners:
                    notes.setdefault(owner, []).append(
                        InputError("MASK-PROGRAM", f"{path.name} was made by msfilm segment, so it is no rater's: not "
                                   "used", where=path, mend="take it elsewhere; if a person has corrected it, say who "
                                   'in its JSON: "Rater"'))  # fmt: skip
                continue
            drawn_by = _plain(rater or drawer) if name == "lesion" else ""
            order = order if name in ("cord", "centreline") else 0
            for owner in owners:
                candidates.setdefault((owner, name, drawn_by), []).append((order, place, path))
        if passed:
            left.append(InputError("MASK-PROGRAM", f"{len(passed)} lesion masks in {root.relative_to(dataset)} were "
                                   "made by msfilm segment, so they are no rater's: not used", where=root,
                                   mend="nothing; or name the raters' folders alone under folders:"))  # fmt: skip
    masks: dict[str, dict[str, Path]] = {}
    drawers: dict[str, dict[str, str]] = {}
    numbers = _numbers([(owner, drawn_by) for owner, name, drawn_by in candidates if name == "lesion"], rules)
    for (owner, name, drawn_by), found in candidates.items():
        name = f"rater-{numbers[owner, drawn_by]}" if name == "lesion" else name
        found.sort()
        masks.setdefault(owner, {})[name] = found[0][2]
        if drawn_by and (rules.raters or not drawn_by.isdigit()):
            drawers.setdefault(owner, {})[name] = drawn_by
        if len(found) > 1:
            others = ", ".join(path.name for _, _, path in found[1:])
            notes.setdefault(owner, []).append(
                InputError("MASK-TWICE", f"used for {name}; passed over: {others}", where=found[0][2])
            )
    return masks, drawers, notes, left


def _numbers(pairs: Iterable[tuple[str, str]], rules: NamingRules) -> dict[tuple[str, str], int]:
    """Which rater-N each drawer of a volume is: the number in the name; others by the rules' order, then by name."""
    by_owner: dict[str, list[str]] = {}
    for owner, drawn_by in pairs:
        by_owner.setdefault(owner, []).append(drawn_by)
    numbers = {}
    for owner, drawers in by_owner.items():
        taken = set() if rules.raters else {int(one) for one in drawers if one.isdigit()}
        free = iter(number for number in range(1, len(drawers) + len(taken) + 1) if number not in taken)
        ranked = {one: place for place, one in enumerate(rules.raters)}
        for one in sorted(drawers, key=lambda one: (ranked.get(one, len(ranked)), one)):
            numbers[owner, one] = int(one) if one.isdigit() and not rules.raters else next(free)
    return numbers


def _owners(stem: str, path: Path, images: Mapping[str, Path]) -> set[str]:
    """The images that a mask may belong to; its own stem where it names one that is not there."""
    if stem in images:
        return {stem}
    wanted = entities_of(stem)
    suffix = wanted.pop("suffix", None)
    if said := _said(path, images):
        return said
    fitting: dict[int, set[str]] = {}
    for image in images:
        there = entities_of(image)
        own = there.pop("suffix", None)
        if suffix and own != suffix and {own, suffix} != {"T2star", "T2starw"}:  # both spellings are about
            continue
        more = there.keys() - wanted.keys()
        if wanted.items() <= there.items() and more <= _SHARED | _OPTIONAL:
            fitting.setdefault(len(more - _SHARED), set()).add(image)
    if fitting:
        return fitting[min(fitting)]
    return {stem} if suffix else set()


def _share(owners: set[str]) -> bool:
    """Whether images differ in echo and part alone."""
    kept = [{key: value for key, value in entities_of(owner).items() if key not in _SHARED} for owner in owners]
    return bool(kept) and all(one == kept[0] for one in kept)


def _said(path: Path, images: Mapping[str, Path]) -> set[str]:
    """The image that a mask's sidecar names in SpatialReference or Sources, if it is one of ``images``."""
    sidecar = path.with_name(stem_of(path) + ".json")
    fields, _ = merge_sidecars([sidecar] if sidecar.is_file() else [])
    for key in ("SpatialReference", "Sources", "RawSources"):
        given = fields.get(key)
        texts = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
        named = {_ENDING.sub("", text.rsplit("/", 1)[-1]) for text in texts} & images.keys()
        named = {one for one in named if _person(one) == _person(stem_of(path))}
        if len(named) == 1:
            return named
    return set()


def _by_program(mask: Path) -> bool:
    """Whether msfilm made a mask, and nobody says that it is a person's by now (field Rater)."""
    sidecar = mask.with_name(stem_of(mask) + ".json")
    fields, _ = merge_sidecars([sidecar] if sidecar.is_file() else [])
    return is_segmentation(fields) and "Rater" not in fields


def _person(stem: str) -> tuple[str | None, str | None]:
    named = entities_of(stem)
    return named.get("sub"), named.get("ses")


def who_drew(mask: Path | None, otherwise: str = "unknown") -> tuple[str, list[InputError]]:
    """Who drew a mask: field Rater of its sidecar, else what its name says."""
    sidecar = mask.with_name(stem_of(mask) + ".json") if mask else None
    if sidecar is None or not sidecar.is_file():
        return otherwise, []
    fields, faults = merge_sidecars([sidecar])
    who: Any = fields.get("Rater", otherwise)
    if not isinstance(who, str | int) or isinstance(who, bool) or printable(who) != str(who):
        faults.append(InputError("SIDECAR-FIELD", f"Rater is {who!r}, not a name", where=sidecar))
        who = otherwise
    return str(who), faults


def mask_order(name: str) -> tuple[int, int]:
    """Sorts cord, truth, rater-1, rater-2, .., rater-10."""
    if name in ("cord", "truth"):
        return ("cord", "truth").index(name), 0
    return 2, int(name.split("-")[1])
