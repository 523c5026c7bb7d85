"""Segment every scan of a BIDS data set into a BIDS derivative: masks, what made each, and a table of lesions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from msfilm import __version__
from msfilm.data.labels import NamingRules
from msfilm.data.mask_files import segmented
from msfilm.errors import InputError, MsfilmError, SettingError
from msfilm.evaluate.derivative_files import TABLE_COLUMNS, frame_files, mask_names, write_texts
from msfilm.evaluate.doubts import check_kind, contrast_told, known_contrasts
from msfilm.evaluate.predict import weights_sha256
from msfilm.evaluate.segmentation import check_threshold, segment
from msfilm.evaluate.segmentation_files import beside, record_of, write_together
from msfilm.files import sha256_file, sha256_json
from msfilm.locks import LOCK, hold_folder
from msfilm.model.weights import SHIPPED, Network, load_network
from msfilm.train.state import resolve_device

__all__ = ["Derivative", "segment_dataset"]

_QUIET = {"SIDECAR-MISSING": "acquisition", "PARTICIPANTS-LACK": "centre"}  # said where the network is told such


@dataclass(frozen=True, eq=False)
class Derivative:
    """What :func:`segment_dataset` wrote.

    Attributes:
        folder: of the derivative.
        table: as in logs/lesions.tsv, a row a scan, index the scan's name; status is made, kept or refused.
        refused: the errors of scans that could not be segmented.
    """

    folder: Path
    table: pd.DataFrame
    refused: list[MsfilmError]


@dataclass(frozen=True, eq=False)
class _Job:
    """What holds for all scans."""

    dataset: Path
    out: Path
    network: Network
    name: str
    contrast: str | None
    localise: bool
    probability: bool
    settings: dict[str, Any]


def segment_dataset(
    dataset: str | Path,
    out: str | Path,
    *,
    names: NamingRules | str | Path | None = None,
    network: str | Path | Network = "film-contrast-small",
    contrast: str | None = None,
    as_contrast: str | None = None,
    localise: bool = True,
    accept_unsure: bool = False,
    threshold: float = 0.5,
    probability: bool = False,
    rater: str | None = None,
    form: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = True,
) -> Derivative:
    """Segment all scans of a BIDS data set; one that cannot be used is refused by name and the rest goes on.

    A scan is cropped round its cord mask, else along its centreline file, else where the localiser takes the cord to
    be. Run again it goes on: a scan whose image, cord, weights and settings are as they were is kept as it is. A mask
    that somebody changed since is never written over.

    Args:
        dataset: BIDS folder, see ``msfilm.data.bids.find_volumes``.
        out: folder of the derivative, for example DATASET/derivatives/msfilm. Each mask is called as its scan,
            ``.._space-T2w_label-lesion_mask.nii.gz``, with a JSON of what made it beside it.
        names: how the data set names its files.
        network: as for :func:`segment`.
        contrast: of all scans; by default each one's own, by its name.
        as_contrast: what to take contrasts for that the network was not trained on; they are refused without it.
        localise: where a scan has neither cord mask nor centreline, ask the localiser; refused without it.
        accept_unsure: even where it is unsure.
        threshold, rater, form, device, precision: as for :func:`segment`.
        probability: write ``_probseg`` files too.
        progress: show a bar.

    Raises:
        InputError: BIDS-MISSING, BIDS-EMPTY, of the names' file; OUT-EXISTS, the folder holds something else.
        SettingError: OUT-NAME, ``out`` is where scans or raters' masks lie; CONTRAST-UNKNOWN for ``contrast`` or
            ``as_contrast``, and others of :func:`segment`.
        RunError: NIFTI-WRITE or PATH-WRITE, the disk refuses; what was done stays, and the same call goes on.
            RUN-BUSY, another process writes into ``out``.
    """
    from msfilm.data.bids import find_volumes

    rules = NamingRules.of(names, dataset)
    dataset, out = Path(dataset).absolute(), Path(out).absolute()
    check_threshold(threshold)
    resolve_device(device)
    name = "given in memory" if isinstance(network, Network) else Path(network).name
    network = check_kind(network if isinstance(network, Network) else load_network(network))
    if contrast is not None:
        contrast_told(network, contrast, as_contrast)
    elif as_contrast is not None and known_contrasts(network):
        contrast_told(network, as_contrast, None)
    found = find_volumes(dataset, rules)
    _check_out(out, dataset, rules)
    settings = {"as_contrast": as_contrast, "accept_unsure": accept_unsure, "threshold": threshold, "rater": rater,
                "form": form, "device": device, "precision": precision}  # fmt: skip
    job = _Job(dataset, out, network, name, contrast, localise, probability, settings)
    with hold_folder(out, wait_s=0, refused="PATH-WRITE"):
        _check_out(out, dataset, rules)  # somebody else may have been at work until now
        for left in out.rglob(".tmp-*"):  # of a run that was killed
            with suppress(OSError):
                left.unlink()
        return _segment_all(found, job, progress)


def _segment_all(found: pd.DataFrame, job: _Job, progress: bool) -> Derivative:
    """Segment one scan after the other, and write the table."""
    dataset, out = job.dataset, job.out
    write_texts(out, frame_files(dataset, out, job.name, job.settings["threshold"]))
    rows, refused = {}, []
    bar = tqdm(found.iterrows(), total=len(found), desc="segment", unit="scan", disable=not progress)
    for stem, row in bar:
        faults = _refusals(row, job)
        if not faults:
            try:
                rows[stem] = _one(stem, row, job)
                continue
            except SettingError as error:
                if error.code != "CONTRAST-UNKNOWN":
                    raise
                where = error.where or row["image"]
                faults = [SettingError(error.code, error.what, where=where, mend=error.mend)]
            except InputError as error:
                faults = [error]
        rows[stem] = _refused_row(stem, row, faults, job)
        refused += faults
    table = pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="scan"), columns=list(TABLE_COLUMNS))
    counts = ["lesions", "slices", "slices_with_lesion"]
    table[counts] = table[counts].astype("Int64")
    listed = [{"path": _relative(fault.where, dataset), "code": fault.code, "message": str(fault), "verdict": "refused"}
              for fault in refused]  # fmt: skip
    notes = list(found.attrs.get("notes", []))
    write_texts(out, {f"logs/{name}": content for name, content in
                      (("lesions.tsv", table), ("refused.json", listed), ("notes.json", notes))})
    return Derivative(out, table, refused)


def _refusals(row: pd.Series, job: _Job) -> list[MsfilmError]:
    """What is said against a scan before its file is opened; a cord mask is not needed where there is another way."""
    otherwise = row["centreline"] is not None or job.localise
    return [fault for fault in row["errors"] if not (fault.code == "MASK-MISSING" and otherwise)]


def _one(stem: str, row: pd.Series, job: _Job) -> dict[str, Any]:
    """Segment one scan, or keep what is there of it."""
    from msfilm.data.sidecars import SIDECAR_COLUMNS

    targets = _targets(stem, row, job)
    contrast = job.contrast or row["contrast"]
    told_of = job.network.conditioning.split("+")
    acquired = {column: row[column] for column in SIDECAR_COLUMNS}
    told, _ = contrast_told(job.network, contrast, job.settings["as_contrast"])
    sources = _sources(row, job)
    recipe = {
        "version": __version__, "weights": weights_sha256(job.network), "image": _hashed(row["image"]),
        "position": _hashed(sources[1]) if len(sources) > 1 else _localiser_sha256(),
        "contrast": contrast, "told": told,
        "centre": row["centre"] if "centre" in told_of else None,
        "acquisition": {key: str(value) for key, value in acquired.items()} if "acquisition" in told_of else None,
    } | {key: job.settings[key] for key in ("threshold", "rater", "form", "precision")}  # fmt: skip
    recipe_sha256 = sha256_json(recipe)
    record = record_of(targets["mask"], targets["record"])
    fine = job.settings["accept_unsure"] or record.get("localiser", {}).get("sure", True)
    if record.get("recipe_sha256") == recipe_sha256 and fine and all(path.is_file() for path in targets.values()):
        return _row(stem, row, record, "kept", targets, job)
    kind = "cord" if row["cord"] is not None else "centreline"
    where = {kind: sources[1]} if len(sources) > 1 else {"localise": True}
    found = segment(row["image"], None, contrast=contrast, network=job.network, acquisition=acquired,
                    centre=recipe["centre"], **where, **job.settings)  # fmt: skip
    said = [note for note in row["notes"] if _QUIET.get(note.code, told_of[0]) in told_of]
    uris = [f"bids:raw:{_relative(path, job.dataset)}" for path in sources]
    record = found.record | {
        "Description": "Lesions marked by a program, not checked by a person; not for diagnosis",
        "Sources": uris, "SpatialReference": uris[0],
        "network": found.record["network"] | {"name": job.name},
        "warnings": found.record["warnings"] + [f"{note.code}: {note.what}" for note in said],
        "recipe_sha256": recipe_sha256,
    }  # fmt: skip
    records = {"record": record}
    if "probability" in targets:
        targets |= {"probability_record": beside(targets["probability"])}
        records["probability_record"] = record
    record |= {"mask_sha256": write_together(targets, found.mask, found.probability, records, found.image)}
    return _row(stem, row, record, "made", targets, job)


def _targets(stem: str, row: pd.Series, job: _Job) -> dict[str, Path]:
    folder = job.out / row["patient"] / (row["session"] or "") / "anat"
    mask, chance = mask_names(stem)
    targets = {"mask": folder / f"{mask}.nii.gz", "record": folder / f"{mask}.json"}
    return targets | ({"probability": folder / f"{chance}.nii.gz"} if job.probability else {})


def _sources(row: pd.Series, job: _Job) -> list[Path]:
    """The scan, and what says where its cord is if that is a file."""
    return [row["image"], *[path for path in (row["cord"], row["centreline"]) if path is not None][:1]]


def _hashed(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError("NIFTI-UNREADABLE", f"cannot be read: {error.strerror or error}", where=path,
                         mend="check that it is a file, and its permissions") from error  # fmt: skip


def _localiser_sha256() -> str:
    weights = SHIPPED / "cord-localiser" / "weights.safetensors"
    return sha256_file(weights) if weights.is_file() else ""


def _row(
    stem: str, row: pd.Series, record: Mapping[str, Any], status: str, targets: dict[str, Path], job: _Job
) -> dict[str, Any]:
    return _about(stem, row, job) | {
        "status": status,
        **{key: record.get(key) for key in ("lesion_mm3", "lesions", "slices", "slices_with_lesion")},
        "centred_on": record["settings"]["centred_on"],
        "mask": targets["mask"].relative_to(job.out).as_posix(),
        "warnings": "; ".join(record["warnings"]),
    }


def _refused_row(stem: str, row: pd.Series, faults: list[MsfilmError], job: _Job) -> dict[str, Any]:
    older = _targets(stem, row, job)["mask"]
    said = [f"{fault.code}: {fault.what}" for fault in faults]
    if older.is_file() and faults[0].code != "MASK-CHANGED":
        said.append(f"the mask of an earlier run still lies there: {older.relative_to(job.out).as_posix()}")
    return _about(stem, row, job) | {"status": "refused", "lesion_mm3": np.nan, "warnings": "; ".join(said)}


def _about(stem: str, row: pd.Series, job: _Job) -> dict[str, Any]:
    return {"participant_id": row["patient"], "session_id": row["session"], "scan": stem,
            "contrast": job.contrast or row["contrast"]}  # fmt: skip


def _relative(path: str | Path | None, dataset: Path) -> str:
    if path is None:
        return ""
    try:
        return Path(path).relative_to(dataset).as_posix()
    except ValueError:
        return Path(os.path.relpath(path, dataset)).as_posix()


def _check_out(out: Path, dataset: Path, rules: NamingRules) -> None:
    """Refuse a folder of scans or raters' masks, and one that holds something else."""
    choose = "choose another folder, as DATASET/derivatives/msfilm"
    whose = {folder: "raters' masks" for folder in rules.folders if not set(folder) & set("{*")}
    for folder, what in (whose | {".": "scans"}).items():
        place = (dataset / folder).resolve()
        inside = out.resolve().relative_to(place).parts[:1] if out.resolve().is_relative_to(place) else None
        if inside is not None and (not inside or inside[0].startswith("sub-")):
            raise SettingError("OUT-NAME", f"the derivative would lie among the {what}", where=out, mend=choose)
    there = [one for one in out.iterdir() if one.name != LOCK] if out.is_dir() else []
    there = [one for one in there if not one.name.startswith(".tmp-")]
    if (out.exists() and not out.is_dir()) or (there and not segmented(out)):
        raise InputError("OUT-EXISTS", "this holds something else than masks that msfilm segment wrote", where=out,
                         mend="choose another folder")  # fmt: skip
