"""What the tests share: the real scans, and small synthetic NIfTI files of any orientation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from msfilm.data.nifti import read_image
from msfilm.errors import InputError

CORDS = {  # real scans with a cord mask, by orientation of the file
    "RAS": ("sct_testing_data/t1/t1w.nii.gz", "sct_testing_data/t1/t1w_seg-manual.nii.gz"),
    "LAS": ("sct_testing_data/t2s/t2s.nii.gz", "sct_testing_data/t2s/t2s_seg.nii.gz"),
    "PSR": ("sct_testing_data/t2/t2.nii.gz", "sct_testing_data/t2/t2_seg-manual.nii.gz"),
}


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Every test starts from the same state of torch's global generator, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium, which is no Python package: a machine without it is told how to get it."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        message = "no Chromium here: install it (Debian: apt-get install chromium)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Folder with the public scans, laid out as data_manifests/ has them."""
    folder = os.environ.get("MSFILM_MIRROR", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    message = f"MSFILM_MIRROR={folder!r} is no folder: set it to where the public scans of data_manifests/ lie"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def real_cords(mirror) -> dict[str, tuple[Path, Path]]:
    """Orientation -> (scan, cord mask) of the real scans."""
    return {orientation: (mirror / scan, mirror / mask) for orientation, (scan, mask) in CORDS.items()}


def oriented_affine(
    orientation: str = "RAS", voxel_mm=(0.6, 0.7, 3.0), shape=(41, 37, 7), degrees: float = 0.0
) -> np.ndarray:
    """Voxel -> mm affine of a file stored as ``orientation``, whose grid centre lies at (3, -5, 20) mm.

    ``voxel_mm`` and ``shape`` are along the file's own axes; ``degrees`` tilts the stack about the patient's axes.
    """
    turn = nib.orientations.axcodes2ornt(orientation)
    axes = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(turn):
        axes[int(axis), column] = sign
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ axes * np.asarray(voxel_mm)
    affine[:3, 3] = np.array([3.0, -5.0, 20.0]) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def millimetres(affine: np.ndarray, shape) -> np.ndarray:
    """(*shape, 3) scanner coordinates of every voxel."""
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij"), axis=-1)
    return grid @ affine[:3, :3].T + affine[:3, 3]


def write_plain(path: Path, data: np.ndarray, affine: np.ndarray, dtype=None, codes=(1, 1)) -> Path:
    """Write with nibabel alone, so that what the package reads was not written by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine, code=codes[1])
    nib.save(image, path)
    return path


def refused(path, code, read=None, **more):
    """Assert that reading ``path`` (as an image, unless told) is refused under ``code``, and give the error."""
    with pytest.raises(InputError) as caught:
        (read or read_image)(path, **more)
    fault = caught.value
    assert fault.code == code, str(fault)
    assert fault.where == str(path) and fault.what and fault.mend, (
        "an error names the file, the fact and the way to mend it"
    )
    return fault


@pytest.fixture
def tree(tmp_path) -> Callable[..., Path]:
    """Write a small BIDS data set: ``tree(patients=3)`` -> its folder. Cords are cylinders, lesions small boxes."""

    def build(
        patients: int = 3, contrasts=("T2w", "T2starw"), centres: int = 2, name: str = "data set é", valid: bool = True
    ) -> Path:
        root = tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        (root / "dataset_description.json").write_text('{"Name": "tiny", "BIDSVersion": "1.9.0"}')
        (root / "T2w.json").write_text('{"EchoTime": 0.1, "RepetitionTime": 4.0, "MagneticFieldStrength": 3}')
        lines = ["participant_id\tage\tcentre"]
        shape = (61, 57, 5)
        for number in range(1, patients + 1):
            patient = f"sub-{number:03d}"
            lines.append(f"{patient}\t40\tcentre-{number % centres:02d}")
            for contrast in contrasts:
                rng = np.random.default_rng([number, len(contrast)])
                affine = oriented_affine("LAS" if contrast == "T2w" else "RAS", (0.7, 0.7, 4.0), shape)
                x, y, _ = np.moveaxis(millimetres(affine, shape), -1, 0)
                cord = np.hypot(x - 3, (y + 5) * 1.4) < 6
                lesion = cord & (abs(x - 5) < 1.2) & (np.arange(5) == 2)
                image = 400 + 200 * ~cord + 150 * lesion + rng.normal(0, 15, shape)
                write_plain(root / patient / "anat" / f"{patient}_{contrast}.nii.gz", np.rint(image), affine, np.int16)
                (root / patient / "anat" / f"{patient}_{contrast}.json").write_text(
                    '{"FlipAngle": 90, "Manufacturer": "Acme"}'
                )
                labels = root / "derivatives" / "labels" / patient / "anat"
                space = f"{patient}_space-{contrast}"
                names = (
                    f"{space}_label-SC_mask",
                    f"{space}_label-lesion_desc-rater1_mask",
                    f"{space}_label-lesion_desc-truth_mask",
                )
                if not valid:
                    names = (f"{patient}_{contrast}_seg-manual", f"{patient}_{contrast}_lesion-manual", None)
                for mask, file in zip((cord, lesion, lesion), names, strict=True):
                    if file:
                        write_plain(labels / f"{file}.nii.gz", mask, affine, np.uint8)
                (labels / f"{names[1]}.json").write_text(
                    f'{{"Type": "Lesion", "Rater": "rater-of-{number % centres}"}}'
                )
        (root / "participants.tsv").write_text("\n".join(lines) + "\n")
        return root

    return build
