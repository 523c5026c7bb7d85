"""A tiny good BIDS data set, made with nibabel and NumPy alone: necks of a few ellipses, to be broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from msfilm.phantom.fault_bytes import gzip_bytes

__all__ = ["LABELS", "write_good_set"]

SHAPE = (72, 64, 6)
VOXEL_MM = (0.75, 0.75, 4.0)
LABELS = "derivatives/labels"
_ECHO_S = {"T2w": 0.1, "T2starw": 0.015}


def write_good_set(
    folder: str | Path, patients: Sequence[str] = ("001", "002", "003"), contrasts: Sequence[str] = ("T2w",)
) -> Path:
    """Write a small data set in which nothing is wrong; each scan is about 40 kB, each patient another one.

    Each scan (72 x 64 x 6 voxels of .75 x .75 x 4 mm, int16, stored LAS, both forms set) has its own sidecar, a cord
    mask, the lesions of one rater and their truth. The same arguments give the same bytes.

    Args:
        folder: where to write it; made if missing.
        patients: labels after ``sub-``.
        contrasts: BIDS suffixes.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _text(folder / "dataset_description.json", {"Name": "tiny necks", "BIDSVersion": "1.9.0"})
    lines = ["participant_id\tage\tcentre"]
    for number, label in enumerate(patients):
        lines.append(f"sub-{label}\t{35 + 4 * number}\tcentre-{number % 2 + 1:02d}")
        for place, contrast in enumerate(contrasts):
            image, cord, lesion, affine = _neck(np.random.default_rng([number, place]), number)
            stem = f"sub-{label}_{contrast}"
            anat, labels = folder / f"sub-{label}" / "anat", folder / LABELS / f"sub-{label}" / "anat"
            _nifti(anat / f"{stem}.nii.gz", image, affine)
            _text(anat / f"{stem}.json", {
                "EchoTime": _ECHO_S.get(contrast, 0.1), "RepetitionTime": 4.0, "FlipAngle": 90,
                "MagneticFieldStrength": 3, "Manufacturer": "Acme",
            })  # fmt: skip
            for kind, mask in (("seg-manual", cord), ("lesion-manual-rater1", lesion), ("lesion-truth", lesion)):
                _nifti(labels / f"{stem}_{kind}.nii.gz", mask, affine)
            _text(labels / f"{stem}_lesion-manual-rater1.json", {"Type": "Lesion", "Rater": f"rater-{number % 2}"})
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _neck(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image int16, cord and lesion mask uint8 (72, 64, 6), and affine. The cord's grey matter, CSF and the left-sided
    lesion make a flip visible.
    """
    affine = np.diag([-VOXEL_MM[0], VOXEL_MM[1], VOXEL_MM[2], 1.0])  # LAS: the first axis runs to the patient's left
    affine[:3, 3] = 3 + 26.6, -5 - 23.6, 20.0 + 2 * number
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    x = affine[0, 0] * i + affine[0, 3] - 3 - 0.25 * k  # mm from the cord's middle; it leans a little
    y = affine[1, 1] * j + affine[1, 3] + 5 - 0.4 * k
    cord = np.hypot(x / (6.5 + 0.3 * number), y / 4.5) < 1
    csf = np.hypot(x / 9.5, y / 7) < 1
    grey = cord & ((np.abs(np.abs(x) - 2.2) < 0.8) & (np.abs(y) < 2.6) | (np.abs(x) < 2.2) & (np.abs(y) < 0.7))
    lesion = cord & (np.hypot((x + 4) / 2.0, (y + 0.8) / 1.7) < 1) & (np.abs(k - 2 - number % 2) < 2)
    neck = np.hypot(x / 25, (y + 3) / 21) < 1
    bone = (np.hypot(x / 11, (y - 14) / 6.5) < 1) | (np.hypot(x / 2.5, (y + 13) / 5) < 1)
    image = 60 + 240 * neck + 260 * bone
    for inside, value in ((csf, 900), (cord, 420), (grey, 520), (lesion, 700)):
        image[inside] = value
    shade = 1 + 0.1 * np.sin(x / 15 + number) * np.cos(y / 12)
    noisy = np.hypot(image * shade + rng.normal(0, 14, SHAPE), rng.normal(0, 14, SHAPE))
    return np.rint(noisy).astype(np.int16), cord.astype(np.uint8), lesion.astype(np.uint8), affine


def _nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip_bytes(image.to_bytes()))


def _text(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
