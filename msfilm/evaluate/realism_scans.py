"""Which scans the realism report measures: every real scan at hand, and the phantom's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.errors import InputError
from msfilm.evaluate.realism_measures import Measured, measure_scan
from msfilm.places import shipped

__all__ = ["MS_DRAFT", "assumed_cord", "phantom_scans", "real_scans"]

CORD_AP_MM, CORD_RL_MM = 7.1, 12.2  # cervical mean of ten spine-generic subjects

# No lesion mask of the real patient exists. These are one reader's draft, by a threshold, not blind.
MS_DRAFT = {
    "lesion_count": 5.0,
    "lesion_mm3": 1000.0,
    "lesion_length_mm": 45.0,
    "lesion_share": 10 / 19,
    "lesion_wm_max": 1.62,
    "lesion_wm_p90": 1.7,
}


def assumed_cord(volume: Volume, zs: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: an ellipse of 12.2 x 7.1 mm (mean cervical cord) about each centre, where no mask was drawn.

    The rules keep 0.75 mm inside and 1 mm outside the cord's edge, so that they bear its being off by about that much.
    """
    mask = np.zeros(volume.data.shape, dtype=bool)
    x, y = np.meshgrid(*(np.arange(side) for side in volume.data.shape[:2]), indexing="ij")
    dx, dy, _ = volume.voxel_mm
    for z, (cx, cy) in zip(zs, centres, strict=True):
        mask[:, :, z] = np.hypot((x - cx) * dx / (CORD_RL_MM / 2), (y - cy) * dy / (CORD_AP_MM / 2)) <= 1
    return mask


def phantom_scans(scans: Iterable) -> list[Measured]:
    """Measure phantom scans: objects with contrast, image, cord, truth and affine.

    Used where they have them: name, grey, levels (one a slice), canal and corrupted.
    """
    measured = []
    for number, scan in enumerate(scans):
        measured.append(
            measure_scan(
                str(getattr(scan, "name", "") or f"phantom-{number:03d}"),
                scan.contrast,
                scan.image,
                scan.cord,
                scan.affine,
                grey=getattr(scan, "grey", None),
                lesion=scan.truth,
                canal=getattr(scan, "canal", None),
                levels=getattr(scan, "levels", None),
                corrupted=bool(getattr(scan, "corrupted", False)),
            )
        )
    return measured


def real_scans(mirror: str | Path) -> list[Measured]:
    """Measure every real scan under ``mirror`` (laid out as data_manifests/ has it) that shows a cord.

    A scan that is missing or refused comes back without values and with a note that says so. Left out: the brain of
    open_ms_data, and t2_fake_lesion, whose lesion is pasted in.
    """
    mirror = Path(mirror)
    sct, tutorial = mirror / "sct_testing_data", mirror / "sct_tutorial_data"
    pair = tutorial / "multi_subject" / "data" / "sub-05" / "anat"
    pair_mask, mt_mask = pair / "sub-05_acq-MTon_MTS_seg.nii.gz", sct / "mt" / "mt1_seg.nii.gz"
    borrowed = "cord drawn on the scan with MT pulse, same head position"
    broken = "slice 20 left out: the cord mask is broken there"
    plain = [
        ("t2s", "T2star", sct / "t2s/t2s.nii.gz", sct / "t2s/t2s_seg.nii.gz", sct / "t2s/t2s_gmseg_manual.nii.gz", ()),
        ("t2", "T2w", sct / "t2/t2.nii.gz", sct / "t2/t2_seg-manual.nii.gz", None, ()),
        ("t1w", "T1w", sct / "t1/t1w.nii.gz", sct / "t1/t1w_seg-manual.nii.gz", None, ()),
        ("mt0", "MToff", sct / "mt/mt0.nii.gz", mt_mask, None, (borrowed,)),
        ("mt1", "MTon", sct / "mt/mt1.nii.gz", mt_mask, None, ()),
        ("sub-05 MToff", "MToff", pair / "sub-05_acq-MToff_MTS.nii.gz", pair_mask, None, (borrowed, broken)),
        ("sub-05 MTon", "MTon", pair / "sub-05_acq-MTon_MTS.nii.gz", pair_mask, None, (broken,)),
    ]
    measured = [
        _or_note(name, contrast, lambda row=row: _with_mask(*row))
        for row in plain
        for name, contrast in [row[:2]]
    ]
    measured.append(_or_note("t2s_uncropped", "T2star", lambda: _uncropped(sct / "t2s")))
    measured.append(_or_note("t2_ms", "T2w", lambda: _ms_patient(tutorial / "single_subject/data/t2_ms/t2.nii.gz")))
    for on in ("MToff", "MTon"):
        note = "neither cord mask nor centreline exists: not measured"
        measured.append(Measured(f"sub-03 {on}", f"{on}_ax", "real", {}, notes=(note,)))
    note = "one reader's draft by threshold, not blind; there is no lesion mask"
    measured.append(Measured("t2_ms (draft)", "T2w_ax", "real", dict(MS_DRAFT), notes=(note,)))
    labels = mirror / "data_example_spinegeneric" / "derivatives" / "labels"
    folders = sorted(labels.glob("sub-*"))
    if not folders:
        measured.append(Measured("spine-generic", "T2w_ax", "real", {}, notes=("missing: data_example_spinegeneric",)))
    return measured + [_or_note(f.name, "T2w", lambda f=f: _masks_only(f.name, f / "anat")) for f in folders]


def _or_note(name: str, contrast: str, measure: Callable[[], Measured]) -> Measured:
    try:
        return measure()
    except InputError as error:
        return Measured(name, contrast, "real", {}, notes=(f"not measured: {error.code}, {error.what}",))


def _with_mask(name: str, contrast: str, image: Path, cord: Path, grey: Path | None, notes) -> Measured:
    volume = read_image(image)
    mask = read_mask(cord, volume).data
    if name.startswith("sub-05"):
        mask[:, :, 20] = 0
    label = read_mask(grey, volume).data if grey else None
    return measure_scan(
        name, contrast, volume.data, mask, volume.affine, grey=label, source="real", notes=(*notes, *volume.notes)
    )


def _uncropped(folder: Path) -> Measured:
    volume = read_image(folder / "t2s_uncropped.nii.gz")
    grey = read_mask(folder / "t2s_uncropped_gmseg_manual.nii.gz", volume).data
    cord = assumed_cord(volume, *centres_from_mask(grey))
    note = f"cord: an assumed ellipse of {CORD_RL_MM} x {CORD_AP_MM} mm about the grey matter's centre"
    return measure_scan(
        "t2s_uncropped", "T2star", volume.data, cord, volume.affine, grey=grey, outline=False, source="real",
        notes=(note, *volume.notes),
    )


def _ms_patient(path: Path) -> Measured:
    volume = read_image(path)
    points = read_centreline(shipped("data_manifests") / "centrelines" / "t2_ms.csv")
    cord = assumed_cord(volume, *centres_from_points(points, volume))
    note = f"cord: an assumed ellipse of {CORD_RL_MM} x {CORD_AP_MM} mm about a centreline; lesions left in"
    return measure_scan(
        "t2_ms", "T2w", volume.data, cord, volume.affine, outline=False, source="real", notes=(note, *volume.notes)
    )


def _masks_only(name: str, folder: Path) -> Measured:
    cord = read_mask(folder / f"{name}_T2w_seg-manual.nii.gz")
    csf = read_mask(folder / f"{name}_T2w_csfseg-manual.nii.gz", cord)
    return measure_scan(
        name, "T2w", None, cord.data, cord.affine, canal=csf.data | cord.data, source="real",
        notes=("masks only (spine-generic), 0.5 x 0.5 x 5 mm", *cord.notes),
    )
