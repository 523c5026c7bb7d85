"""The phantom cohort as a BIDS data set: images, sidecars, cord masks, raters' masks and the truth."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from msfilm import __version__
from msfilm.errors import InputError, SettingError
from msfilm.files import atomic_path, read_json, write_json
from msfilm.phantom.cohort import make_patient, make_scan, patient_name
from msfilm.phantom.facts import centres
from msfilm.phantom.physics import CONTRASTS

__all__ = ["write_cohort"]

LABELS = Path("derivatives/labels")


def write_cohort(
    out: str | Path, *, patients: int, seed: int = 0, workers: int | None = None, progress: bool = True
) -> Path:
    """Write a phantom cohort as a BIDS data set: T2w and T2star of each patient, with masks under derivatives/labels.

    A cohort that was interrupted is completed; what is there already is left alone, and the bytes do not depend on
    ``workers``.

    Args:
        out: folder; made if missing.
        patients: how many.
        seed: another seed is another cohort.
        workers: threads; default one a core.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        SettingError: PHANTOM-PATIENTS, PHANTOM-SEED for values that make no cohort.
        InputError: PHANTOM-EXISTS if the folder holds something else.
    """
    out = Path(out)
    if not isinstance(patients, int) or patients < 1:
        raise SettingError("PHANTOM-PATIENTS", f"patients={patients!r}", mend="use a whole number of at least 1")
    if not isinstance(seed, int) or seed < 0:
        raise SettingError("PHANTOM-SEED", f"seed={seed!r}", mend="use a whole number of at least 0")
    _write_frame(out, patients, seed)
    todo = [i for i in range(patients) if not all((out / name).exists() for name in _patient_files(i))]
    threads, workers = torch.get_num_threads(), min(workers or os.cpu_count() or 1, max(len(todo), 1))

    def one(index: int) -> None:
        torch.set_num_threads(1)  # one thread a patient: the same bytes however many work side by side
        _write_patient(out, index, seed)

    try:
        with ThreadPoolExecutor(workers) as pool:
            jobs = pool.map(one, todo)
            for _ in tqdm(
                jobs, total=len(todo), desc="phantom patients", unit="patient", disable=not progress or not todo
            ):
                pass
    finally:
        torch.set_num_threads(threads)
    return out


def _patient_files(index: int) -> list[Path]:
    name = patient_name(index)
    files = []
    for contrast in CONTRASTS:
        masks = ("label-SC_mask", "label-lesion_desc-rater1_mask", "label-lesion_desc-truth_mask")
        stems = [
            Path(name, "anat", f"{name}_{contrast}"),
            *(LABELS / name / "anat" / f"{name}_space-{contrast}_{mask}" for mask in masks),
        ]
        files += [stem.with_name(stem.name + end) for stem in stems for end in (".json", ".nii.gz")]
    return files


def _write_patient(out: Path, index: int, seed: int) -> None:
    name = patient_name(index)
    site = centres().loc[make_patient(index, seed)[0]]
    for contrast in CONTRASTS:
        scan = make_scan(index, seed, contrast)
        image = out / name / "anat" / f"{name}_{contrast}.nii.gz"
        _save(image, scan.image, scan.affine, site.order, scan.sidecar)
        source = {"SpatialReference": f"bids::{name}/anat/{image.name}", "Sources": [f"bids::{name}/anat/{image.name}"]}
        folder = out / LABELS / name / "anat"
        for mask, label, extra in (
            (scan.cord, "label-SC_mask", {"Type": "ROI"}),
            (scan.rater, "label-lesion_desc-rater1_mask", {"Type": "Lesion", "Rater": site.rater}),
            (scan.truth, "label-lesion_desc-truth_mask", {"Type": "Lesion", "Rater": "truth", "Lesions": scan.lesions}),
        ):
            _save(
                folder / f"{name}_space-{contrast}_{label}.nii.gz",
                mask.astype(np.uint8),
                scan.affine,
                site.order,
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


def _write_frame(out: Path, patients: int, seed: int) -> None:
    """The files of the data set itself."""
    description = out / "dataset_description.json"
    settings = f"msfilm phantom --seed {seed}"
    if out.is_dir() and any(out.iterdir()):
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
    rows = pd.DataFrame([make_patient(i, seed)[3] for i in range(patients)])
    labels = {
        "Name": "msfilm phantom: masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "msfilm", "Version": __version__, "Description": settings}],
    }
    write_json(out / LABELS / "dataset_description.json", labels)
    readme = (
        "# Phantom cohort\n\nSynthetic axial T2w and T2*w scans of the neck with multiple-sclerosis lesions, made by a "
        "computer. No person was scanned.\nderivatives/labels holds the cord (label-SC), one rater's lesion mask "
        "(desc-rater1) and the true lesions (desc-truth).\n"
    )
    columns = {
        "centre": {"Description": "Invented centre: scanner, protocol and rater"},
        "age": {"Description": "Age", "Units": "year"},
        "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
        "lesions": {"Description": "True number of lesions in the patient's cord"},
    }
    for path, text in (
        (out / "README.md", readme),
        (out / "participants.tsv", rows.to_csv(sep="\t", index=False)),
        (out / "participants.json", json.dumps(columns, indent=2) + "\n"),
    ):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
