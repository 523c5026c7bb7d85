"""Each scan of a patient: its protocol and place, the picture the scanner makes, masks, truth and sidecar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch

from msfilm.phantom.anatomy import Patient
from msfilm.phantom.facts import Protocol, centres, protocol
from msfilm.phantom.lesions import draw_lesions
from msfilm.phantom.physics import signals
from msfilm.phantom.raters import draw_mask
from msfilm.phantom.roster import CohortPlan, make_patient, patient_name, raters_of, scan_name, scans_of
from msfilm.phantom.scan import CleanScan, ScanPlan, render
from msfilm.phantom.scanner import Scanner, draw_scanner, scan_image

__all__ = ["STATIONS", "CohortPlan", "Scan", "make_patient", "make_scan", "patient_name", "scan_name", "scans_of"]

COVERAGE_MM = 67.0  # of one axial scan: 15.2 slices a volume on average over the centres' slice thicknesses
CORRUPTED_SHARE = 0.05
STATIONS = {"upper": (10.0, 30.0), "lower": (72.0, 95.0), "chest": (205.0, 265.0)}  # depth (mm) of a scan's top


@dataclass(frozen=True)
class Scan:
    """One volume as it goes to disk. Arrays are canonical (X, Y, Z): right, front, up."""

    name: str  # sub-001_T2w, sub-001_acq-lower_T2star ...
    contrast: str
    protocol: Protocol
    image: np.ndarray  # int16; 0 outside the rendered window
    cord: np.ndarray  # bool
    grey: np.ndarray  # bool, grey matter
    truth: np.ndarray  # bool
    levels: tuple[str, ...]  # vertebral level of each slice
    masks: dict[str, np.ndarray]  # rater-1 .. rater-4 -> bool
    rater_names: tuple[str, ...]  # who they are, in that order
    clean: CleanScan
    plan: ScanPlan
    affine: np.ndarray  # canonical voxel -> mm
    scanner: Scanner
    artefact: str  # none, motion, flow, dropout or noise
    units: float  # what white matter is in the scanner's arbitrary units
    sidecar: dict
    lesions: list[dict]

    @property
    def rater(self) -> np.ndarray:
        """The first rater's mask."""
        return self.masks["rater-1"]

    @property
    def canal(self) -> np.ndarray:
        """(X, Y, Z) bool: cord and the fluid round it."""
        return _canonical(self.clean.canal)

    @property
    def corrupted(self) -> bool:
        """Whether something went wrong in this scan."""
        return self.artefact != "none"


def make_scan(
    index: int,
    seed: int = 0,
    acquisition_name: str = "T2w_ax",
    station: str = "upper",
    *,
    raters: Sequence[str] | None = None,
    plan: CohortPlan | None = None,
    crop_only: bool = False,
    noise: bool = True,
    device=None,
) -> Scan:
    """Scan one patient and have raters draw the lesions.

    Args:
        index: of the patient, from 0.
        seed: of the cohort.
        acquisition_name: a key of ``msfilm.phantom.facts.ACQUISITIONS``.
        station: upper, lower or chest (axial scans).
        raters: who draws ('rater-01' ..); default the centre's rater, or the panel of a panel patient.
        plan: how much raters differ, whether there are decoys, whose protocol it is; by default as in ``CohortPlan``.
            Its seed is not looked at.
        crop_only: render only what the crop round the cord reaches (a scan with motion is rendered whole all the same:
            its ghosts come from far away).
        noise: False leaves the noise out.
        device: where to compute; masks and image come back as NumPy arrays.

    Raises:
        SettingError: ACQUISITION-UNKNOWN for one that the phantom does not have.
    """
    options = replace(plan or CohortPlan(), seed=seed)
    centre, patient, lesions, _ = make_patient(index, seed)
    key = [*acquisition_name.encode(), *station.encode()]
    site, how = centres().loc[centre], _protocol(centre, acquisition_name, options, [seed, index, 5, *key])
    decoys = draw_lesions(np.random.default_rng([seed, index, 6]), patient) if options.decoys else []
    rng = np.random.default_rng([seed, index, 1, *key])
    tr = how.tr * np.exp(rng.normal(0, 0.03))  # repetition time follows the number of slices
    place = _plan(patient, site, how, station, rng)
    painted = [*decoys, *lesions]  # a lesion lies over a decoy
    signal = _vary(signals(how.times() | {"tr": tr}, [(x.kind, x.strength) for x in painted]), rng)
    dark = how.contrast == "dark"
    _mirror(signal, range(0 if not dark else len(decoys), len(decoys) if not dark else len(painted)))
    artefact = _artefact(how, rng)
    snr = float(np.clip(how.snr * np.exp(rng.normal(0, 0.15)), 7, 50)) * (0.5 if artefact == "noise" else 1.0)
    flow = rng.uniform(0.10, 0.30) * (2.2 if artefact == "flow" else 1.0)
    dropout = rng.uniform(0.6, 1.4) * (5.0 if artefact == "dropout" else 1.0)
    scanner = draw_scanner(
        rng,
        snr=snr,
        bias=site.bias * np.exp(rng.normal(0, 0.2)),
        kmax=how.kmax,
        slices=place.shape[0 if how.plane == "axial" else 2],
        motion=artefact == "motion",
    )
    units = rng.uniform(150, 600)
    inflow = how.sequence in ("GRE", "GRE-MT")
    clean = render(
        patient,
        painted,
        signal,
        place,
        crop_only=crop_only and artefact != "motion",
        te_ms=how.te * dropout if inflow else 0.0,
        flow=0.3 * flow if inflow else flow,
        device=device,
    )
    clean = replace(clean, distances=clean.distances[len(decoys) :])
    rows, columns = clean.window
    picture = scan_image(
        clean.signal,
        scanner,
        place.columns()[columns] - place.centre_mm[0],
        ((np.arange(place.shape[1]) - (place.shape[1] - 1) / 2) * place.voxel_mm[1])[rows],
        plane=how.plane,
        noise=np.random.default_rng([seed, index, 3, *key]) if noise else None,
        pixel_mm=place.voxel_mm[1],
        which=columns if how.plane == "sagittal" else slice(None),
    )
    image = np.zeros(place.shape, np.int16)
    image[:, rows, columns] = (picture * units).round_().clamp_(0, 32767).to(dtype=torch.int16).cpu().numpy()
    cnrs = clean.cnr(snr)
    voxel_mm3 = float(np.prod(place.voxel_mm))
    names = tuple(raters) if raters is not None else raters_of(index, options)
    masks, config = {}, options.rater_config()
    for number, name in enumerate(names):
        hand = np.random.default_rng([seed, index, 2, int(name.rsplit("-", 1)[-1]), *key])
        drawn = np.zeros(place.shape, bool)
        drawn[:, clean.box[0], clean.box[1]] = draw_mask(
            clean.distances, cnrs, clean.positions, voxel_mm3, options.style_mm(name), hand, config
        )
        masks[f"rater-{number + 1}"] = _canonical(drawn)
    sidecar = _sidecar(site, how, tr, place) | {
        "PhantomSNR": round(snr, 2),
        "PhantomArtefact": artefact,
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
        scan_name(index, acquisition_name, station),
        how.contrast,
        how,
        _canonical(image),
        _canonical(clean.cord),
        _canonical(clean.grey),
        _canonical(clean.truth),
        tuple(patient.level(s) for s in clean.levels_mm),
        masks,
        names,
        clean,
        place,
        place.affine(),
        scanner,
        artefact,
        float(units),
        sidecar,
        facts,
    )


def _canonical(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 1, 0))  # (Z, H, W) -> (X, Y, Z)


def _protocol(centre: str, name: str, options: CohortPlan, key: list[int]) -> Protocol:
    """How the centre scans, how all centres do, or another protocol for every scan."""
    how = protocol(centre if options.protocols != "one" else str(centres().index[0]), name)
    if options.protocols != "wide":
        return replace(how, centre=centre)
    tr, te, flip = np.exp(np.random.default_rng(key).normal(0, [0.2, 0.35, 0.25]))
    return replace(how, tr=how.tr * tr, tes=tuple(one * te for one in how.tes), flip_deg=how.flip_deg * flip)


def _mirror(signal: dict[str, float], which: Iterable[int]) -> None:
    """Turn the polarity of some lesions: as far below the tissue round them, as a ratio, as they were above it."""
    for i in which:
        for base in ("wm", "gm"):
            signal[f"lesion-{i}-{base}"] = signal[base] ** 2 / signal[f"lesion-{i}-{base}"]


def _artefact(how: Protocol, rng: np.random.Generator) -> str:
    """About one scan in twenty goes wrong: motion, strong flow, signal lost near air and bone (GRE), noise."""
    wrong, which = rng.uniform() < CORRUPTED_SHARE, rng.uniform()
    kinds = ("motion", "dropout" if how.sequence in ("GRE", "GRE-MT") else "flow", "noise")
    return kinds[int(which * 3)] if wrong else "none"


def _vary(signal: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    """What the equations leave out round the cord (fat suppression, flow, magnetisation transfer in muscle) varies from
    scan to scan.
    """
    spread = {"csf": 0.05, "muscle": 0.25, "fat": 0.2, "marrow": 0.2, "disc": 0.25, "blood": 0.3, "veins": 0.3}
    varied = {tissue: value * np.exp(rng.normal(0, 1) * spread.get(tissue, 0.0)) for tissue, value in signal.items()}
    return varied | {"ligament": signal["ligament"] + abs(rng.normal(0, 0.15))}


def _plan(patient: Patient, site: pd.Series, how: Protocol, station: str, rng: np.random.Generator) -> ScanPlan:
    if how.plane == "sagittal":
        middle = -(how.fov / 2 - rng.uniform(8, 20))
        columns = int(np.ceil((38 if how.z > 1.5 else 58) / how.z))
        side = 2 * int(np.ceil(how.fov / how.xy / 2))
        x, y = patient.centre(np.linspace(0, how.fov - 20, 9)).mean(axis=0) + rng.normal(0, [1.0, 5.0])
        voxel = (how.xy, how.xy, how.z)
        return ScanPlan((side, side, columns), voxel, (float(x), float(y), float(middle)), 0.0, "sagittal")
    count = int(np.clip(round(rng.normal(COVERAGE_MM, 7) / how.z), 8, 30))
    top = rng.uniform(*STATIONS[station])
    depth = top + how.z * (count - 1) / 2
    slope = float(patient.profile(np.array([depth]))["slope"][0])
    # Slices lie across the cord, nearly.
    tilt = 0.8 * np.rad2deg(np.arctan(slope)) + site.tilt_deg * 0.5 + rng.normal(0, 1.5)
    x, y = patient.centre(np.array([depth]))[0] + rng.normal(0, [2.5, 3.5])
    side = 2 * int(np.ceil(how.fov / how.xy / 2))
    centre = (float(x), float(y) - 2.0, float(-depth))
    return ScanPlan((count, side, side), (how.z, how.xy, how.xy), centre, float(tilt))


def _sidecar(site: pd.Series, how: Protocol, tr: float, plan: ScanPlan) -> dict:
    spin_echo = how.sequence in ("TSE", "TSE-restore", "STIR")
    prepared = {"MPRAGE": ["GR", "IR"], "PSIR": ["GR", "IR"], "STIR": ["SE", "IR"]}
    sidecar = {
        "Modality": "MR",
        "MagneticFieldStrength": how.field_t,
        "Manufacturer": site.manufacturer,
        "ManufacturersModelName": site.model,
        "InstitutionName": how.centre,
        "MRAcquisitionType": "3D" if how.z == how.xy else "2D",
        "ScanningSequence": prepared.get(how.sequence, "SE" if spin_echo else "GR"),
        "SequenceVariant": "SK" if spin_echo else "SP",
        "EchoTime": round(how.te / 1000, 5),
        "EchoTrainLength": 15 if spin_echo else len(how.tes),
        "RepetitionTime": round(tr / 1000, 4),
        "FlipAngle": how.flip_deg,
        "SliceThickness": how.z,
        "SpacingBetweenSlices": how.z,
    }
    if how.ti:
        sidecar["InversionTime"] = round(how.ti / 1000, 4)
    if how.contrast.startswith("MT"):
        sidecar |= {"MTState": how.contrast == "MTon", "RepetitionTimeExcitation": sidecar["RepetitionTime"]}
    return sidecar
