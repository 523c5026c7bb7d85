"""How near the cord localiser comes: every real scan with a cord mask, the real patient, brains, and held-out phantoms.

    MSFILM_MIRROR=FOLDER python benchmarks/localiser.py [OVERLAYS.png]      writes benchmarks/results/localiser.json

The phantoms are patients of seed 8000000, that no network was trained or calibrated on: 20 an acquisition, and every
second again with the canal covered by what lies beside it. Of more than 40 axial slices, 40 in a row are taken.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.errors import InputError
from msfilm.evaluate.localise import SURE, CordLocation, localise
from msfilm.evaluate.localise_calibrate import NEAR_MM, cut_away, distances_mm, phantom_volume
from msfilm.files import made_by, sha256_file, write_json
from msfilm.machine import machine
from msfilm.model.weights import SHIPPED, load_network
from msfilm.phantom.facts import ACQUISITIONS

SEED, EACH, MOST = 8_000_000, 20, 40
ROOT = Path(__file__).resolve().parent.parent
SCT, TUTORIAL, BRAINS = "sct_testing_data/", "sct_tutorial_data/", "open_ms_data/cross_sectional/MNI"
PAIR = TUTORIAL + "multi_subject/data/sub-05/anat/sub-05_acq-"
# Name, scan, mask whose centroids are the reference, what to know of it.
REAL = (
    ("T2w", SCT + "t2/t2.nii.gz", SCT + "t2/t2_seg-manual.nii.gz", ""),
    ("T2w, pasted blob", SCT + "t2/t2_fake_lesion.nii.gz", SCT + "t2/t2_fake_lesion_sc_seg.nii.gz", ""),
    ("T2*w, cropped", SCT + "t2s/t2s.nii.gz", SCT + "t2s/t2s_seg.nii.gz", ""),
    ("T2*w, whole", SCT + "t2s/t2s_uncropped.nii.gz", SCT + "t2s/t2s_uncropped_gmseg_manual.nii.gz",
     "reference: centroid of the grey matter"),
    ("T1w", SCT + "t1/t1w.nii.gz", SCT + "t1/t1w_seg-manual.nii.gz", ""),
    ("MT off, cropped", SCT + "mt/mt0.nii.gz", SCT + "mt/mt1_seg.nii.gz", "mask drawn on the scan with MT pulse"),
    ("MT on, cropped", SCT + "mt/mt1.nii.gz", SCT + "mt/mt1_seg.nii.gz", ""),
    ("sub-05 MT off", PAIR + "MToff_MTS.nii.gz", PAIR + "MTon_MTS_seg.nii.gz",
     "mask drawn on the scan with MT pulse; its slice 20, which is broken, left out"),
    ("sub-05 MT on", PAIR + "MTon_MTS.nii.gz", PAIR + "MTon_MTS_seg.nii.gz", "slice 20 of the mask left out"),
)
PATIENT = TUTORIAL + "single_subject/data/t2_ms/t2.nii.gz"


def located(volume: Volume) -> tuple[CordLocation | None, dict]:
    """What the localiser says of a scan, and how long it took."""
    begin = time.perf_counter()
    try:
        found = localise(volume)
    except InputError as error:
        return None, {"verdict": error.code, "seconds": round(time.perf_counter() - begin, 2)}
    said = {"verdict": "sure" if found.sure else "unsure", "confidence": round(found.confidence, 3),
            "least_slice_confidence": round(float(found.slice_confidence.min()), 3), "slices": len(found.zs),
            "of": volume.data.shape[2], "notes": list(found.notes), "seconds": round(time.perf_counter() - begin, 2)}
    return found, said


def against(found: CordLocation, zs: np.ndarray, centres: np.ndarray, volume: Volume) -> dict:
    """Distances in mm to the reference's centroids, in the slices that both cover."""
    both, here, there = np.intersect1d(found.zs, zs, return_indices=True)
    apart = np.linalg.norm((found.centres[here] - centres[there]) * volume.voxel_mm[:2], axis=1)
    return {"mean_mm": round(float(apart.mean()), 2), "max_mm": round(float(apart.max()), 2),
            "covered": len(both), "of_reference": len(zs)}


def real(mirror: Path) -> tuple[dict, list]:
    rows, drawn = {}, []
    for name, scan, mask, note in REAL:
        volume = read_image(mirror / scan)
        truth = read_mask(mirror / mask, volume).data.copy()
        if name.startswith("sub-05"):
            truth[:, :, 20] = 0
        found, rows[name] = located(volume)
        if found:
            rows[name] = against(found, *centres_from_mask(truth), volume) | rows[name] | {"reference": note or "mask"}
            drawn.append((name, volume, found))
    volume = read_image(mirror / PATIENT)
    found, rows["patient with multiple sclerosis"] = located(volume)
    if found:
        points = read_centreline(ROOT / "data_manifests/centrelines/t2_ms.csv")
        rows["patient with multiple sclerosis"] |= {
            **against(found, *centres_from_points(points, volume), volume),
            "reference": "ten points placed by eye, and the curve between them"}
        drawn.append(("patient", volume, found))
    for scan in ("MToff", "MTon"):
        path = mirror / TUTORIAL / f"multi_subject/data/sub-03/anat/sub-03_acq-{scan}_MTS.nii.gz"
        volume = read_image(path)
        found, rows[f"sub-03 {scan}"] = located(volume)
        rows[f"sub-03 {scan}"]["reference"] = "none: no mask exists"
        if found:
            drawn.append((f"sub-03 {scan}", volume, found))
    return rows, drawn


def without_cord(mirror: Path) -> dict:
    """What is no cord: brains, noise, one grey."""
    rows = {}
    for path in sorted((mirror / BRAINS).glob("patient*/*regtoMNI.nii.gz")):
        if not path.name.startswith("GOLD"):
            rows[f"brain {path.parent.name} {path.name.split('_')[0]}"] = located(read_image(path))[1]
    rng, affine = np.random.default_rng(0), np.diag([1.0, 1.0, 3.0, 1.0])
    empty = {"noise": rng.normal(0, 1, (128, 128, 20)), "noise, small field": rng.normal(0, 1, (40, 40, 20)),
             "magnitude noise": np.abs(rng.normal(0, 1, (160, 160, 20))), "one grey": np.full((64, 64, 12), 7)}
    for name, data in empty.items():
        rows[name] = located(Volume(data.astype(np.float32), affine))[1]
    return rows


def phantoms() -> dict:
    rows = {}
    for acquisition in ACQUISITIONS:
        apart, scans, verdicts, wrong, seconds = [], [], [], [], []
        cut = {"sure": 0, "unsure": 0, "CORD-NONE": 0}
        for index in range(EACH):
            volume, cord = phantom_volume(index, SEED, acquisition, ("upper", "lower", "chest")[index % 3])
            first = int(np.random.default_rng([SEED, index, 1]).integers(0, max(1, cord.shape[2] - MOST)))
            volume = replace(volume, data=volume.data[:, :, first : first + MOST])
            cord = cord[:, :, first : first + MOST]
            found, said = located(volume)
            seconds.append(said["seconds"])
            verdicts.append(said["verdict"])
            if found:
                distance = distances_mm(found.zs, found.centres, cord, volume)
                apart.append(distance)
                scans.append(distance.mean())
                wrong.append((distance.mean() >= NEAR_MM, found.sure))
            if index % 2 == 0:
                cut[located(cut_away(volume, cord, np.random.default_rng([SEED, index])))[1]["verdict"]] += 1
        every = np.concatenate(apart)
        rows[acquisition] = {
            "scans": EACH, "mean_mm": round(float(every[np.isfinite(every)].mean()), 2),
            "worst_scan_mm": round(float(max(scans)), 2), "slices": len(every),
            "slices_beyond_3_mm": int((every >= NEAR_MM).sum()), "sure": verdicts.count("sure"),
            "unsure": verdicts.count("unsure"), "none": verdicts.count("CORD-NONE"),
            "sure_but_beyond_3_mm": sum(bad and sure for bad, sure in wrong),
            "cord_cut_away": cut, "seconds": round(float(np.mean(seconds)), 2),
        }
        print(acquisition, rows[acquisition], flush=True)
    return rows


def overlays(drawn: list, path: str) -> None:
    """The line on three slices and along each scan, to be looked at."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(drawn), 4, figsize=(10, 2.4 * len(drawn)), squeeze=False)
    for row, (name, volume, found) in zip(axes, drawn, strict=True):
        dx, dy, dz = volume.voxel_mm
        for ax, k in zip(row, (0, len(found.zs) // 2, len(found.zs) - 1), strict=False):
            plane = volume.data[:, :, found.zs[k]]
            ax.imshow(plane.T, cmap="gray", origin="lower", aspect=dy / dx, vmax=max(np.percentile(plane, 99), 1e-6))
            ax.plot(*found.centres[k], "+", color="#E69F00", markersize=10)
            ax.set_title(f"{name}, z = {found.zs[k]}: {found.slice_confidence[k]:.2f}", fontsize=9)
        plane = volume.data[round(float(np.median(found.centres[:, 0])))]
        row[3].imshow(plane.T, cmap="gray", origin="lower", aspect=dz / dy, vmax=np.percentile(plane, 99))
        row[3].plot(found.centres[:, 1], found.zs, color="#E69F00", linewidth=1)
        row[3].set_title(f"{'sure' if found.sure else 'unsure'}, {found.confidence:.2f}", fontsize=9)
        for ax in row:
            ax.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=60)


def main() -> None:
    torch.set_num_threads(1)
    mirror = Path(os.environ["MSFILM_MIRROR"])
    card = load_network("cord-localiser").card
    scans, drawn = real(mirror)
    for name, row in scans.items():
        print(name, row, flush=True)
    if len(sys.argv) > 1:
        overlays(drawn, sys.argv[1])
    others = without_cord(mirror)
    for name, row in others.items():
        print(name, row, flush=True)
    write_json(ROOT / "benchmarks/results/localiser.json", {
        "network": {"sha256": sha256_file(SHIPPED / "cord-localiser/weights.safetensors"), "command": card["command"],
                    "calibration": card["calibration"]},
        "bounds": SURE, "real": scans, "no_cord": others,
        "phantoms": {"seed": SEED, "acquisitions": phantoms()}, "designs_tried": DESIGNS,
        "not_for": "diagnosis", "machine": machine(), "made_by": made_by()})


# What was trained, in order, and whether the real scans were looked at with it.
DESIGNS = (
    {"network": "10 filters, 2000 steps; cord covered by a piece that could, wrapped round, show the cord again",
     "confidence": "from heat, the warmest rival and the heat near by; a rival made it higher, so it was dropped",
     "looked_at_real_scans": True},
    {"network": "10 filters, 1000 steps; what covers a cord never shows one",
     "confidence": "from heat, the heat near by and the chain's length: less than half the squared error on held-out "
     "phantoms", "looked_at_real_scans": True},
)

if __name__ == "__main__":
    main()
