"""The phantom cohort as a BIDS data set: images, sidecars, cord masks, raters' masks and the truth."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from msfilm import __version__
from msfilm.errors import InputError, SettingError
from msfilm.files import atomic_path, read_json, write_json
from msfilm.locks import LOCK, hold_folder
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.direct import file_order
from msfilm.phantom.facts import EXPERIMENTAL
from msfilm.phantom.parallel import in_order
from msfilm.phantom.roster import CohortPlan, make_patient, patient_name, raters_of, scan_name, scans_of

__all__ = ["write_cohort"]

LABELS = Path("derivatives/labels")


def write_cohort(
    out: str | Path,
    *,
    patients: int,
    seed: int | None = None,
    plan: CohortPlan | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a phantom cohort as a BIDS data set: each patient's scans, with masks under derivatives/labels.

    A cohort that was interrupted is completed; what is there already is left alone, and the bytes do not depend on
    ``workers``.

    Args:
        out: folder; made if missing.
        patients: how many.
        seed: another seed is another cohort; short for a plan that differs in nothing else.
        plan: seed, acquisitions and raters; by default axial T2w and T2*w, one rater a centre.
        workers: processes; default one a core.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        SettingError: PHANTOM-PATIENTS, PHANTOM-SEED .. for values that make no cohort.
        InputError: PHANTOM-EXISTS if the folder holds something else.
        RunError: RUN-BUSY, another process writes into it; RUN-WRITE.
    """
    out = Path(out)
    if not isinstance(patients, int) or isinstance(patients, bool) or patients < 1:
        raise SettingError("PHANTOM-PATIENTS", f"patients={patients!r}", mend="use a whole number of at least 1")
    plan = plan or CohortPlan()
    if seed is not None:
        plan = replace(plan, seed=seed)
    if only := sorted(set(plan.acquisitions) & set(EXPERIMENTAL)):
        raise SettingError("PHANTOM-SLICES-ONLY", f"{', '.join(only)}: BIDS has no name for such a contrast",
                           mend="make slices straight away (msfilm phantom --slices)")  # fmt: skip
    with hold_folder(out):
        _write_frame(out, patients, plan)
        todo = [i for i in range(patients) if not all((out / name).exists() for name in _patient_files(i, plan))]
        jobs = [(out, index, plan) for index in todo]
        with tqdm(total=len(todo), desc="phantom patients", unit="patient", disable=not progress or not todo) as bar:
            for _ in in_order(_write_patient, jobs, workers):
                bar.update()
    return out


def _mask_stem(scan: str, label: str) -> str:
    """sub-001_acq-sag_T2w -> sub-001_acq-sag_space-T2w_label-SC_mask; BIDS allows a mask neither flip- nor mt-."""
    *entities, suffix = scan.split("_")
    kept = [entity for entity in entities if not entity.startswith(("flip-", "mt-"))]
    return "_".join([*kept, f"space-{suffix}", label])


def _labels(raters: int) -> list[str]:
    return [
        "label-SC_mask",
        *(f"label-lesion_desc-rater{k + 1}_mask" for k in range(raters)),
        "label-lesion_desc-truth_mask",
    ]


def _patient_files(index: int, plan: CohortPlan) -> list[Path]:
    name, files = patient_name(index), []
    for acquisition, station in scans_of(index, plan):
        scan = scan_name(index, acquisition, station)
        masks = [LABELS / name / "anat" / _mask_stem(scan, label) for label in _labels(len(raters_of(index, plan)))]
        stems = [Path(name, "anat", scan), *masks]
        files += [stem.with_name(stem.name + end) for stem in stems for end in (".json", ".nii.gz")]
    return files


def _write_patient(out: Path, index: int, plan: CohortPlan) -> None:
    name, raters = patient_name(index), raters_of(index, plan)
    for acquisition, station in scans_of(index, plan):
        scan = make_scan(index, plan.seed, acquisition, station, raters=raters, plan=plan)
        order = file_order(scan)
        image = out / name / "anat" / f"{scan.name}.nii.gz"
        _save(image, scan.image, scan.affine, order, scan.sidecar)
        source = {"SpatialReference": f"bids::{name}/anat/{image.name}", "Sources": [f"bids::{name}/anat/{image.name}"]}
        masks = [scan.cord, *scan.masks.values(), scan.truth]
        notes = [
            {"Type": "ROI"},
            *({"Type": "Lesion", "Rater": rater} for rater in raters),
            {"Type": "Lesion", "Rater": "truth", "Lesions": scan.lesions},
        ]
        for mask, label, extra in zip(masks, _labels(len(raters)), notes, strict=True):
            _save(
                out / LABELS / name / "anat" / f"{_mask_stem(scan.name, label)}.nii.gz",
                mask.view(np.uint8),
                scan.affine,
                order,
                source | extra,
            )


def _save(path: Path, data: np.ndarray, affine: np.ndarray, order: str, sidecar: dict) -> None:
    """Write array and sidecar in the centre's file order; the same array gives the same bytes (no time stamp in the
    gzip).
    """
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(order))
    )
    image = nib.Nifti1Image(
        nib.orientations.apply_orientation(data, turn), affine @ nib.orientations.inv_ornt_aff(turn, data.shape)
    )
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
    write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)


def _settings(plan: CohortPlan) -> str:
    """The command that makes a cohort of this plan; two plans differ in it."""
    plain, words = CohortPlan(), [f"msfilm phantom --seed {plan.seed}"]
    if plan.acquisitions != plain.acquisitions:
        words += [f"--acquisition {name}" for name in plan.acquisitions]
    if plan.raters != plain.raters:
        words.append(f"--raters {plan.raters}")
    if plan.setting != plain.setting:
        words.append(f"--setting {plan.setting}")
    for name in ("spread", "styles_mm", "panel_every", "stations", "decoys", "protocols"):
        if (value := getattr(plan, name)) != getattr(plain, name):
            words.append(f"--set {name}={list(value) if isinstance(value, tuple) else value}")
    return " ".join(words)


def _write_frame(out: Path, patients: int, plan: CohortPlan) -> None:
    """The files of the data set itself."""
    description = out / "dataset_description.json"
    settings = _settings(plan)
    if any(path.name != LOCK for path in out.iterdir()):
        if not description.exists():
            raise InputError(
                "PHANTOM-EXISTS",
                "the folder is not empty and holds no data set",
                where=out,
                mend="choose another folder",
            )
        found = (read_json(description).get("GeneratedBy") or [{}])[0]
        if found.get("Description") != settings or found.get("Version") != __version__:
            raise InputError(
                "PHANTOM-EXISTS",
                f"the folder holds '{found.get('Description')}' of version {found.get('Version')}, "
                f"not '{settings}' of {__version__}",
                where=out,
                mend="choose another folder or remove this one",
            )
        for left in out.rglob(".tmp-*"):
            left.unlink()
    # First, so that a folder that was begun is known again.
    write_json(
        description,
        {
            "Name": "msfilm phantom cohort",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "License": "CC0",
            "Authors": ["msfilm", "nobody"],
            "GeneratedBy": [{"Name": "msfilm", "Version": __version__, "Description": settings}],
        },
    )
    there = [int(folder.name[4:]) for folder in out.glob("sub-*") if folder.name[4:].isdigit()]
    rows = pd.DataFrame([make_patient(i, plan.seed)[3] | {"panel": i % plan.panel_every == 0}
                         for i in range(max([patients, *there]))])  # none is forgotten  # fmt: skip
    labels = {
        "Name": "msfilm phantom: masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "msfilm", "Version": __version__, "Description": settings}],
    }
    write_json(out / LABELS / "dataset_description.json", labels)
    readme = (
        "# Phantom cohort\n\nSynthetic scans of the spinal cord with multiple-sclerosis lesions, made by a computer. "
        "No person was scanned.\n"
        "derivatives/labels holds the cord (label-SC), the lesion masks of one rater (desc-rater1) or, in "
        "the panel's patients, of four, and the true lesions (desc-truth). Made by: " + settings + "\n"
    )
    columns = {
        "centre": {"Description": "Invented centre: scanner, protocol and rater"},
        "age": {"Description": "Age", "Units": "year"},
        "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
        "lesions": {"Description": "True number of lesions in the patient's cord"},
        "panel": {"Description": "Whether four raters drew this patient's lesions, and not one"},
    }
    for path, text in (
        (out / "README.md", readme),
        (out / "participants.tsv", rows.to_csv(sep="\t", index=False)),
        (out / "participants.json", json.dumps(columns, indent=2) + "\n"),
    ):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
