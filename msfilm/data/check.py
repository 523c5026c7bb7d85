"""Look a data set through without writing anything: every image, mask and sidecar, each fault by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from msfilm.data.bids import OTHER_FORMATS, find_volumes
from msfilm.data.check_contrast import contrast_told, known_contrasts, unknown_contrast, untold_contrast
from msfilm.data.crop import check_crop
from msfilm.data.examine import Examined, Reading, SeenImages, as_faults, examine, mask_columns, read_ahead
from msfilm.data.mask_values import MaskValues
from msfilm.data.nifti import read_image
from msfilm.errors import InputError, MsfilmError, RunError, printable
from msfilm.files import read_json, write_json

__all__ = ["CheckReport", "check", "known_contrasts"]

NIFTI = (".nii", ".nii.gz")
_LEFT_ALONE = ("sourcedata",)  # BIDS: what a scanner gave, before conversion
_ORDER = {"refused": 0, "warned": 1, "good": 2}


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What :func:`check` found.

    Attributes:
        dataset: the folder or file.
        table: one row a fault: path (relative to the folder, "." for the whole), code, verdict ('refused' or 'warned'),
            message (the fact, and how to mend it), and that in two parts, fact and mend.
        volumes: one row a volume, or a file where the folder is no BIDS data set: verdict ('good', 'warned' or
            'refused'), contrast, patient, path, codes (with commas between).
        others: NIfTI files that no volume uses; those that cannot be read stand in ``table`` as warned.
    """

    dataset: Path
    table: pd.DataFrame
    volumes: pd.DataFrame
    others: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Volumes by verdict."""
        return {verdict: int((self.volumes["verdict"] == verdict).sum()) for verdict in ("good", "warned", "refused")}

    @property
    def refused(self) -> bool:
        """Whether anything at all is refused."""
        return bool((self.table["verdict"] == "refused").any())

    def entries(self) -> list[dict[str, str]]:
        """The faults as {path, code, message, verdict}."""
        return self.table[["path", "code", "message", "verdict"]].to_dict("records")

    def save(self, path: str | Path) -> Path:
        """Write ``entries`` as JSON, all at once or not at all.

        Raises:
            RunError: PATH-WRITE where the disk refuses; OUT-EXISTS where anything but such a list lies there.
        """
        refuse_other(path)
        try:
            return write_json(path, self.entries())
        except OSError as error:
            raise RunError(
                "PATH-WRITE",
                f"cannot write: {error.strerror or error}",
                where=path,
                mend="check free space and permissions; nothing was left half-written",
            ) from error

    def summary(self) -> str:
        """One line: how many volumes are good, warned of, refused."""
        some, by = self.counts, self.volumes.groupby("contrast").size()
        what = "volumes" if len(by) else "files"
        line = f"{len(self.volumes)} {what}: {some['good']} good, {some['warned']} warned, {some['refused']} refused"
        if len(by):
            line += "; contrasts " + ", ".join(f"{name} ({count})" for name, count in by.items())
        if self.others:  # masks under names that nothing here expects lie below derivatives, as a rule
            some = ", ".join(sorted(self.others, key=lambda path: not path.startswith("derivatives/"))[:2])
            line += f"; {len(self.others)} other NIfTI files, not used (as {some}; code/msfilm.yml can name masks)"
        return line

    def text(self) -> str:
        """The table for a terminal: faults of one kind together, the refused ones first."""
        lines = []
        for (_, verdict, code), group in self.table.assign(order=self.table["verdict"].map(_ORDER)).groupby(
            ["order", "verdict", "code"], sort=True
        ):
            lines.append(f"{verdict:8} {code} ({len(group)})")
            lines += [f"    {row.path}: {row.fact}" for row in group.itertuples()]
            mends = [mend for mend in group["mend"].unique() if mend]
            lines += [f"    -> {mend}" + (" (and so on)" if len(mends) > 1 else "") for mend in mends[:1]]
        return "\n".join([*lines, self.summary()])


def refuse_other(path: str | Path) -> None:
    """Raise RunError OUT-EXISTS where a file lies that is no list of faults: a scan, say, or somebody's sidecar."""
    if not Path(path).exists():
        return
    try:
        rows = read_json(path)
        known = isinstance(rows, list) and all(set(row) == {"path", "code", "message", "verdict"} for row in rows)
    except (InputError, TypeError):
        known = False
    if not known:
        raise RunError(
            "OUT-EXISTS",
            "there is something else here already, not a list that check wrote",
            where=path,
            mend="name a file that does not exist yet, or remove this one",
        )


def check(
    dataset: str | Path,
    *,
    network: Any = None,
    names: Any = None,
    form: str | None = None,
    lesion_values: MaskValues = None,
    cord_values: MaskValues = None,
    spacing_mm: float = 0.75,
    size: int = 48,
    min_cord_pixels: int = 10,
    progress: bool = True,
) -> CheckReport:
    """Look through every image, mask and sidecar of a data set; only a few scans are held in memory at once.

    The same reading and cropping as in ``msfilm.data.prepare.prepare``, but a volume that is refused is read to its end
    so that all its faults are named. NIfTI files that no volume uses are read too. A folder that is no BIDS data set,
    or a single file, is read file by file.

    Args:
        dataset: BIDS folder, other folder, or file.
        network: a ``Network`` (or the contrasts themselves): volumes of a contrast that it was not trained on are
            refused (CONTRAST-UNKNOWN). Where files are read by themselves and a name does not tell, CONTRAST-MISSING.
        names: how masks are named: the rules of ``find_volumes``.
        form, lesion_values, cord_values, spacing_mm, size, min_cord_pixels: as in ``prepare``.
        progress: show a bar.

    Raises:
        InputError: BIDS-MISSING (no such folder), BIDS-EMPTY (no scan in it).
        SettingError: CROP-SETTING, FORM-UNKNOWN, MASK-MAP, NETWORK-CARD (it does not say what it was trained on).
    """
    check_crop(size, spacing_mm)
    dataset, known = Path(dataset).absolute(), None if network is None else known_contrasts(network)
    how = Reading(form, lesion_values, cord_values, spacing_mm, size, min_cord_pixels, every_file=True, keep=False)
    if dataset.is_file():
        return _check_files(dataset, [dataset], how, (), progress, known)
    try:
        found = find_volumes(dataset, names)
    except InputError as fault:
        if fault.code != "BIDS-EMPTY" or not (files := _files(dataset, NIFTI + OTHER_FORMATS)):
            raise
        return _check_files(dataset, files, how, (fault,), progress, known)
    faults = [("warned", fault) for fault in _about_the_set(dataset, found)]
    verdicts, seen, twins = {}, SeenImages(), {}

    def note(name: str, verdict: str, fault: MsfilmError) -> None:
        faults.append((verdict, fault))
        verdicts.setdefault(name, []).append((verdict, fault.code))

    outcomes = read_ahead(lambda name: examine(dataset, name, found.loc[name], how), found.index)
    for outcome in tqdm(outcomes, total=len(found), desc="check", unit="volume", disable=not progress):
        row = found.loc[outcome.name]
        for verdict, some in (("refused", outcome.refused), ("warned", outcome.warned)):
            for fault in some:
                note(outcome.name, verdict, fault)
        if known is not None and row["contrast"] not in known:
            note(outcome.name, "refused", unknown_contrast(row["contrast"], known, row["image"]))
        if outcome.refused:  # as in prepare: a volume that is refused anyway is nobody's twin
            continue
        if twin := seen.twin(outcome.image_hash, outcome.name, row["patient"], row["image"]):
            twins[outcome.name] = twin
    for name, other in twins.items():  # both of a pair are named: nobody here knows which one is right
        row = found.loc[name]
        verdict = "warned" if other[1] == row["patient"] else "refused"
        note(name, verdict, seen.fault(row["image"], row["patient"], other))
        note(other[0], verdict, seen.fault(other[2], other[1], (name, row["patient"], row["image"])))
    used = {Path(row[key]) for _, row in found.iterrows() for key in ("image", *mask_columns(row)) if row[key]}
    others = [path for path in _files(dataset, NIFTI) if path not in used]
    bar = tqdm(read_ahead(_alone(how), others), total=len(others), desc="other files", unit="file",
               disable=not progress or not others)  # fmt: skip
    for outcome in bar:
        faults += [("warned", _unused(fault)) for fault in outcome.refused]
    volumes = pd.DataFrame(
        {
            "verdict": [_worst(verdicts.get(name, [])) for name in found.index],
            "contrast": found["contrast"],
            "patient": found["patient"],
            "path": [_place(dataset, path) if path else "" for path in found["image"]],
            "codes": [",".join(dict.fromkeys(code for _, code in verdicts.get(name, []))) for name in found.index],
        },
        index=found.index,
    )
    return CheckReport(dataset, _table(dataset, faults), volumes, tuple(_place(dataset, path) for path in others))


def _about_the_set(dataset: Path, found: pd.DataFrame) -> list[InputError]:
    """What concerns no single volume."""
    faults = []
    for text, place in zip(found.attrs["notes"], found.attrs["places"], strict=True):
        code, _, what = text.partition(": ")
        faults.append(InputError(code, what, where=place))
    description = dataset / "dataset_description.json"
    if description.is_file():
        try:
            content = read_json(description, code="BIDS-DESCRIPTION")
            lack = [key for key in ("Name", "BIDSVersion") if not isinstance(content, dict) or key not in content]
            if lack:
                faults.append(InputError("BIDS-DESCRIPTION", f"{' and '.join(lack)} missing", where=description))
        except InputError as fault:
            faults.append(fault)
    return faults


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """All files with such endings below ``folder``, sorted; hidden folders and sourcedata are left alone."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _LEFT_ALONE]
        found += [Path(place, name) for name in names if name.lower().endswith(endings) and name[0] != "."]
    return sorted(found)


def _alone(how: Reading) -> Callable[[Path], Examined]:
    """A function that reads one file by itself."""

    def read(path: Path) -> Examined:
        try:
            return Examined(str(path), None, (), tuple(as_faults(read_image(path, form=how.form))))
        except MsfilmError as fault:
            return Examined(str(path), None, (fault,), ())

    return read


def _unused(fault: MsfilmError) -> InputError:
    return InputError(fault.code, f"{fault.what} (no volume uses this file)", where=fault.where, mend=fault.mend)


def _check_files(
    dataset: Path, files: list[Path], how: Reading, faults: Sequence[InputError], progress: bool,
    known: Sequence[str] | None,
) -> CheckReport:  # fmt: skip
    """Each file by itself: no masks, no patients; held against a network where its name tells the contrast."""
    root = dataset if dataset.is_dir() else dataset.parent
    table = [
        ("warned", InputError(fault.code, f"{fault.what}; each file is read by itself", where=root, mend=fault.mend))
        for fault in faults
    ]
    rows, untold = [], []
    for outcome in tqdm(read_ahead(_alone(how), files), total=len(files), desc="check", unit="file",
                        disable=not progress):  # fmt: skip
        mine = [("refused", fault) for fault in outcome.refused] + [("warned", fault) for fault in outcome.warned]
        contrast = contrast_told(outcome.name) if known is not None else None
        if contrast and contrast not in known:
            mine.append(("refused", unknown_contrast(contrast, known, outcome.name)))
        elif known is not None and not contrast:
            untold.append(outcome.name)
        table += mine
        rows.append(
            {
                "verdict": _worst([(verdict, fault.code) for verdict, fault in mine]),
                "contrast": None,
                "patient": None,
                "path": _place(root, outcome.name),
                "codes": ",".join(fault.code for _, fault in mine),
            }
        )
    if untold:
        table.append(("warned", untold_contrast(root, untold, len(files))))
    volumes = pd.DataFrame(rows).set_index("path", drop=False).rename_axis("volume")
    return CheckReport(dataset, _table(root, table), volumes)


def _worst(found: list[tuple[str, str]]) -> str:
    return min((verdict for verdict, _ in found), key=_ORDER.__getitem__, default="good")


def _place(dataset: Path, path: str | Path | None) -> str:
    """A path relative to the data set, with forward slashes; one elsewhere as it is."""
    path = dataset if path is None else Path(path)
    return printable(path.relative_to(dataset).as_posix() if path.is_relative_to(dataset) else path.as_posix())


def _table(dataset: Path, faults: list[tuple[str, MsfilmError]]) -> pd.DataFrame:
    """One row a fault; what several volumes share (a sidecar at the top) is said once."""
    rows = [
        {
            "path": _place(dataset, fault.where),
            "code": fault.code,
            "verdict": verdict,
            "message": fault.what + (f" -> {fault.mend}" if fault.mend else ""),
            "fact": fault.what,
            "mend": fault.mend or "",
        }
        for verdict, fault in faults
    ]
    columns = ["path", "code", "verdict", "message", "fact", "mend"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)
