"""Patients x centres x contrasts: who they are, and each of their scans with masks and the truth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from msfilm.phantom.anatomy import Patient, draw_patient
from msfilm.phantom.facts import centres
from msfilm.phantom.lesions import Lesion, draw_lesions
from msfilm.phantom.physics import scan_image, signals
from msfilm.phantom.raters import NARROW, RaterConfig, draw_mask, rater_style_mm
from msfilm.phantom.scan import CleanScan, ScanPlan, render

__all__ = ["Scan", "make_patient", "make_scan", "patient_name"]

COVERAGE_MM = 67.0  # axial scans of the neck: 15.2 slices a volume on average over the centres' slice thicknesses
CORRUPTED_SHARE = 0.05


@dataclass(frozen=True)
class Scan:
    """One volume as it goes to disk. Arrays are canonical (X, Y, Z): right, front, up."""

    contrast: str
    image: np.ndarray  # int16
    cord: np.ndarray  # bool
    truth: np.ndarray  # bool
    rater: np.ndarray  # bool
    clean: CleanScan
    affine: np.ndarray  # canonical voxel -> mm
    sidecar: dict
    lesions: list[dict]


def patient_name(index: int) -> str:
    """BIDS name of the patient with this number: 0 is 'sub-001'."""
    return f"sub-{index + 1:03d}"


@lru_cache(maxsize=256)
def make_patient(index: int, seed: int) -> tuple[str, Patient, list[Lesion], dict]:
    """Centre, anatomy, lesions and participant row of patient ``index``; the same whatever else the cohort holds."""
    table = centres()
    rng = np.random.default_rng([seed, index, 0])
    centre = str(rng.choice(table.index, p=table.weight / table.weight.sum()))
    patient = draw_patient(rng)
    lesions = draw_lesions(rng, patient)
    row = {
        "participant_id": patient_name(index),
        "centre": centre,
        "age": int(np.clip(rng.normal(42, 11), 18, 75)),
        "sex": "F" if rng.uniform() < 0.7 else "M",
        "lesions": len(lesions),
    }
    return centre, patient, lesions, row


def make_scan(index: int, seed: int, contrast: str, raters: RaterConfig = NARROW) -> Scan:
    """Scan patient ``index`` with one contrast and have the centre's rater draw the lesions.

    Raises:
        SettingError: CONTRAST-UNKNOWN for a contrast the phantom does not have.
    """
    centre, patient, lesions, _ = make_patient(index, seed)
    site = centres().loc[centre]
    rng = np.random.default_rng([seed, index, 1, *contrast.encode()])
    protocol = _protocol(contrast, site, rng)
    plan = _plan(patient, site, protocol, rng)
    signal = signals(contrast, protocol, [(x.kind, x.strength) for x in lesions])
    clean = render(patient, lesions, _vary(signal, rng), plan)
    corrupted = bool(rng.uniform() < CORRUPTED_SHARE)
    snr = float(np.clip(protocol["snr"] * np.exp(rng.normal(0, 0.15)), 10, 50))
    bias = site.bias * np.exp(rng.normal(0, 0.2))
    picture = scan_image(
        clean.signal, rng, voxel_mm=plan.voxel_mm, snr=snr, bias=bias, kmax=site.kmax, corrupted=corrupted
    )
    cnrs = clean.cnr(snr)
    voxel_mm3 = plan.voxel_mm**2 * plan.thickness_mm
    style = rater_style_mm(site.rater, seed, raters)
    hand = np.random.default_rng([seed, index, 2, *contrast.encode()])
    drawn = np.zeros_like(clean.cord)
    drawn[:, clean.box[0], clean.box[1]] = draw_mask(
        clean.distances, cnrs, clean.positions, voxel_mm3, style, hand, raters
    )
    units = rng.uniform(150, 600)  # white matter in the scanner's arbitrary units
    sidecar = _sidecar(contrast, site, protocol, plan, centre) | {
        "PhantomSNR": round(snr, 2),
        "PhantomCorrupted": corrupted,
        "PhantomSeed": seed,
    }
    facts = [
        {
            **{k: v for k, v in asdict(lesion).items() if k in ("site", "kind", "strength", "length_mm", "s_mm")},
            "level": patient.level(lesion.s_mm),
            "mm3": float((d < 0).sum() * voxel_mm3),
            "cnr": round(float(c), 2),
        }
        for lesion, d, c in zip(lesions, clean.distances, cnrs, strict=True)
    ]
    return Scan(
        contrast,
        _canonical(np.clip(np.rint(picture * units), 0, 32767).astype(np.int16)),
        _canonical(clean.cord),
        _canonical(clean.truth),
        _canonical(drawn),
        clean,
        _affine(plan, site.tilt_deg),
        sidecar,
        facts,
    )


def _canonical(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 1, 0))  # (Z, H, W) -> (X, Y, Z)


def _protocol(contrast: str, site: pd.Series, rng: np.random.Generator) -> dict:
    wobble = np.exp(rng.normal(0, 0.03))  # repetition time follows the number of slices
    if contrast == "T2w":
        return {
            "tr": site.t2w_tr * wobble,
            "te": site.t2w_te,
            "flip_deg": site.t2w_fa,
            "field_t": site.field,
            "xy": site.t2w_xy,
            "z": site.t2w_z,
            "snr": site.t2w_snr,
        }
    return {
        "tr": site.t2s_tr * wobble,
        "tes": tuple(site.t2s_te1 + i * site.t2s_dte for i in range(3)),
        "flip_deg": site.t2s_fa,
        "field_t": site.field,
        "xy": site.t2s_xy,
        "z": site.t2s_z,
        "snr": site.t2s_snr,
    }


def _vary(signal: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    """What the equations leave out round the cord (fat suppression, flow, magnetisation transfer in muscle) varies from
    scan to scan.
    """
    spread = {"csf": 0.10, "muscle": 0.35, "fat": 0.25, "marrow": 0.25, "disc": 0.25, "blood": 0.3}
    varied = {tissue: value * np.exp(rng.normal(0, 1) * spread.get(tissue, 0.0)) for tissue, value in signal.items()}
    return varied | {"ligament": signal["ligament"] + abs(rng.normal(0, 0.15))}


def _plan(patient: Patient, site: pd.Series, protocol: dict, rng: np.random.Generator) -> ScanPlan:
    count = int(np.clip(round(rng.normal(COVERAGE_MM, 7) / protocol["z"]), 8, 30))
    top = rng.uniform(10, 30)
    s = (top + protocol["z"] * np.arange(count))[::-1]
    middle = patient.centre(s).mean(axis=0) + rng.normal(0, [2.5, 3.5])
    side = 2 * int(np.ceil(site.fov / protocol["xy"] / 2))
    return ScanPlan(
        s, float(protocol["z"]), float(protocol["xy"]), side, side, (float(middle[0]), float(middle[1]) - 2.0)
    )


def _affine(plan: ScanPlan, tilt_deg: float) -> np.ndarray:
    """Canonical voxel -> mm. The slices are tilted about the left-right axis, as on a neck that is not straight in the
    scanner.
    """
    x, y = plan.axes()
    affine = np.diag([plan.voxel_mm, plan.voxel_mm, plan.thickness_mm, 1.0])
    affine[:3, 3] = x[0], y[0], -plan.s_mm[0]
    angle = np.deg2rad(tilt_deg)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def _sidecar(contrast: str, site: pd.Series, protocol: dict, plan: ScanPlan, centre: str) -> dict:
    te = protocol.get("te") or float(np.mean(protocol["tes"]))
    return {
        "Modality": "MR",
        "MagneticFieldStrength": float(site.field),
        "Manufacturer": site.manufacturer,
        "ManufacturersModelName": site.model,
        "InstitutionName": centre,
        "MRAcquisitionType": "2D",
        "ScanningSequence": "SE" if contrast == "T2w" else "GR",
        "SequenceVariant": "SK" if contrast == "T2w" else "SP",
        "EchoTime": round(te / 1000, 5),
        "EchoTrainLength": 15 if contrast == "T2w" else 3,
        "RepetitionTime": round(protocol["tr"] / 1000, 4),
        "FlipAngle": float(protocol["flip_deg"]),
        "SliceThickness": plan.thickness_mm,
        "SpacingBetweenSlices": plan.thickness_mm,
    }
