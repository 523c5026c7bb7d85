"""The phantom straight to a SliceSet: only what the crop reaches is rendered and no file is written on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from msfilm import __version__
from msfilm.data.cropped import PreparedVolume, join_volumes, prepare_volume
from msfilm.data.sidecars import acquisition
from msfilm.data.slices import SliceSet
from msfilm.data.stream import stream_slices
from msfilm.errors import SettingError
from msfilm.phantom.cohort import Scan, make_scan
from msfilm.phantom.facts import centres
from msfilm.phantom.parallel import in_order
from msfilm.phantom.roster import (
    PANEL_RATERS,
    CohortPlan,
    patient_name,
    raters_of,
    scan_name,
    scans_of,
)

__all__ = ["file_order", "make_slices", "prepared_volumes"]


@dataclass(frozen=True)
class _Array:
    """An array in the place of a file: what ``prepare_volume`` asks of a volume."""

    data: np.ndarray
    affine: np.ndarray
    orientation: str
    path: Path | None = None

    @property
    def voxel_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def file_order(scan: Scan) -> str:
    """Axis codes in which a scan's file is stored: the centre's for axial scans, PSR for sagittal ones."""
    return "PSR" if scan.protocol.plane == "sagittal" else str(centres().loc[scan.protocol.centre, "order"])


def _patient(index: int, plan: CohortPlan, settings: dict, device) -> list[tuple[str, PreparedVolume]]:
    scans = sorted(scans_of(index, plan), key=lambda scan: scan_name(index, *scan))  # as files are listed
    return [_prepare(index, plan, *scan, settings, device) for scan in scans]


def _prepare(
    index: int, plan: CohortPlan, name: str, station: str, settings: dict, device
) -> tuple[str, PreparedVolume]:
    scan = make_scan(
        index,
        plan.seed,
        name,
        station,
        raters=raters_of(index, plan),
        plan=plan,
        crop_only=True,
        device=device,
    )
    order = file_order(scan)
    affine = scan.affine.astype(np.float32).astype(np.float64)  # as a NIfTI header holds it
    path = Path(patient_name(index), "anat", f"{scan.name}.nii.gz")
    masks = {"cord": scan.cord, "truth": scan.truth, **scan.masks}
    volumes = {key: _Array(mask.view(np.uint8), affine, order, path) for key, mask in masks.items()}
    about = {
        "patient": patient_name(index),
        "session": None,
        "centre": scan.protocol.centre,
        "contrast": scan.contrast,
        "rater": scan.rater_names[0],
        "raters": ",".join(scan.rater_names),
        **acquisition(scan.sidecar, path)[0],
        "image": path.as_posix(),
        "notes": "",
    }
    image = _Array(scan.image.astype(np.float32), affine, order, path)
    return scan.name, prepare_volume(scan.name, image, volumes, about, **settings)


def prepared_volumes(
    patients: int,
    plan: CohortPlan | None = None,
    *,
    first: int = 0,
    spacing_mm: float = 0.75,
    size: int = 48,
    min_cord_pixels: int = 10,
    workers: int | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Iterator[tuple[str, PreparedVolume]]:
    """Yield (name, crops round the cord) of every scan of a cohort, in order; few are held at once.

    Arguments are those of ``make_slices``.
    """
    plan = plan or CohortPlan()
    settings = {"spacing_mm": spacing_mm, "size": size, "min_cord_pixels": min_cord_pixels}
    jobs = [(index, plan, settings, device) for index in range(first, first + patients)]
    total = sum(len(scans_of(job[0], plan)) for job in jobs)
    if device is not None and torch.device(device).type != "cpu":
        workers = 1  # one process feeds the GPU
    with tqdm(total=total, desc="phantom scans", unit="scan", disable=not progress) as bar:
        for parts in in_order(_patient, jobs, workers):
            for part in parts:
                yield part
                bar.update()


def make_slices(
    patients: int,
    plan: CohortPlan | None = None,
    out: str | Path | None = None,
    *,
    first: int = 0,
    spacing_mm: float = 0.75,
    size: int = 48,
    min_cord_pixels: int = 10,
    workers: int | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> SliceSet:
    """Make a phantom cohort as a SliceSet, without NIfTI.

    Against the route through files (``write_cohort``, then ``prepare``) the masks are the same, and so is the image but
    for what the scanner adds: its noise is drawn on a smaller plane.

    Args:
        patients: how many.
        plan: seed, acquisitions and raters.
        out: folder to write to volume by volume, so that memory does not grow with the cohort; the set that comes back
            is memory-mapped. Without it the set is held in memory.
        first: number of the first patient, from 0.
        spacing_mm, size, min_cord_pixels: of the crops, as in ``msfilm.data.prepare.prepare``.
        workers: processes; default one a core. The result does not depend on it.
        progress: show a bar.
        device: where the scans are computed ('cuda' ..); default the CPU.

    Raises:
        SettingError: PHANTOM-PATIENTS.
    """
    plan = plan or CohortPlan()
    if not isinstance(patients, int) or isinstance(patients, bool) or patients < 1:
        raise SettingError("PHANTOM-PATIENTS", f"patients={patients!r}", mend="use a whole number of at least 1")
    settings = {"spacing_mm": spacing_mm, "size": size, "min_cord_pixels": min_cord_pixels}
    parts = prepared_volumes(
        patients, plan, first=first, **settings, workers=workers, progress=progress, device=device
    )
    meta = {
        "size": size,
        "spacing_mm": float(spacing_mm),
        "min_cord_pixels": min_cord_pixels,
        "source": f"phantom, {patients} patients of seed {plan.seed}",
        "version": __version__,
        "notes": [],
    }
    if out is None:
        return join_volumes(dict(parts), meta)
    panel = any(index % plan.panel_every == 0 for index in range(first, first + patients))
    most = min(PANEL_RATERS, len(plan.styles_mm) or PANEL_RATERS)
    raters = [f"rater-{k + 1}" for k in range(most if panel else 1)]
    return stream_slices(parts, out, meta, ["cord", "truth", *raters])
