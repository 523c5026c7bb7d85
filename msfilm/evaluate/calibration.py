"""Raters tuned until they agree as asked: one factor on how much they differ, found on scans of phantom patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from msfilm.errors import SettingError, suggest
from msfilm.evaluate.agreement import Agreement, Calibration, calibrate, rater_agreement
from msfilm.phantom.anatomy import Points
from msfilm.phantom.cohort import CohortPlan, make_scan, scans_of
from msfilm.phantom.parallel import in_order
from msfilm.phantom.raters import RaterConfig, draw_mask, rater_config, rater_style_mm

__all__ = ["TARGETS", "DrawnScan", "agreement_of", "calibrate_raters", "scans_to_draw", "settings_row", "summary_table"]

# setting -> (what is .61, raters a volume): two raters (narrow), or a rater and the others' consensus (wide)
TARGETS = {"narrow": ("pairwise", 4), "wide": ("consensus", 7)}
TARGET_DICE = 0.61
COLUMNS = ("style_sd_mm", "lesion_sd_mm", "hand_sd_mm", "end_slice_p", "detect_intercept", "false_per_volume")


@dataclass(frozen=True)
class DrawnScan:
    """What raters need of a scan: everything that is drawn upon, in the box round the cord."""

    patient: int
    name: str
    contrast: str
    distances: np.ndarray  # (L, Z, h, w) mm
    cnrs: np.ndarray  # (L,)
    positions: Points
    voxel_mm3: float

    @property
    def truth(self) -> np.ndarray:
        """(Z, h, w) bool."""
        return (self.distances < 0).any(axis=0) if len(self.distances) else np.zeros(self.positions.shape, bool)


def _of_patient(index: int, plan: CohortPlan) -> list[DrawnScan]:
    found = []
    for acquisition, station in scans_of(index, plan):
        scan = make_scan(index, plan.seed, acquisition, station, raters=(), crop_only=True, noise=False)
        cnrs = scan.clean.cnr(scan.scanner.snr)
        voxel_mm3 = float(np.prod(scan.plan.voxel_mm))
        found.append(
            DrawnScan(index, scan.name, scan.contrast, scan.clean.distances, cnrs, scan.clean.positions, voxel_mm3)
        )
    return found


def scans_to_draw(
    patients: int, *, seed: int = 0, workers: int | None = None, progress: bool = True
) -> list[DrawnScan]:
    """All scans of a phantom cohort, ready to be drawn on (about 1 MB a patient)."""
    plan = CohortPlan(seed)
    jobs = [(index, plan) for index in range(patients)]
    bar = tqdm(in_order(_of_patient, jobs, workers), total=patients, desc="scans", unit="patient", disable=not progress)
    return [scan for scans in bar for scan in scans]


def _volumes(
    scans: Sequence[DrawnScan], config: RaterConfig, raters: int, seed: int
) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray]]:
    for number, scan in enumerate(scans):
        masks = {}
        for k in range(raters):
            # A patient's raters are nobody else's: agreement of raters at large, not of the 13 that one cohort happens
            # to have.
            name = f"rater-{1000 + scan.patient * raters + k}"
            hand = np.random.default_rng([seed, 5, number, k])
            style = rater_style_mm(name, seed, config)
            masks[name] = draw_mask(scan.distances, scan.cnrs, scan.positions, scan.voxel_mm3, style, hand, config)
        yield f"sub-{scan.patient + 1:03d}", masks, scan.truth


def agreement_of(
    scans: Sequence[DrawnScan], config: RaterConfig, raters: int = 4, *, seed: int = 0, n: int = 2000
) -> Agreement:
    """Let ``raters`` raters draw on every scan and say how far they agree (rules of ``rater_agreement``)."""
    return rater_agreement(_volumes(scans, config, raters, seed), names=[scan.name for scan in scans], n=n, seed=seed)


def calibrate_raters(
    setting: str,
    *,
    patients: int = 100,
    seed: int = 0,
    start: RaterConfig | None = None,
    tolerance: float = 0.002,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[RaterConfig, Calibration, Agreement]:
    """Scale one of the settings until its agreement is .61.

    Args:
        setting: 'narrow' (two raters agree at .61) or 'wide' (a rater with the consensus of the others).
        patients, seed: of the cohort that is drawn on.
        start: what is scaled; default the setting as it stands.
        tolerance: how near to .61 is near enough.
        workers: processes for the scans.
        progress: show bars.

    Returns:
        The scaled setting, the factors tried, and how far its raters agree.

    Raises:
        SettingError: RATERS-UNKNOWN, CALIBRATE-BRACKET.
    """
    if setting not in TARGETS:
        raise SettingError("RATERS-UNKNOWN", f"no rater setting {setting!r}", mend=suggest(setting, TARGETS))
    comparison, raters = TARGETS[setting]
    start = start or rater_config(setting)
    scans = scans_to_draw(patients, seed=seed, workers=workers, progress=progress)

    def agreement(factor: float) -> float:
        found = agreement_of(scans, start.scaled(factor), raters, seed=seed, n=2)
        return float(found.row(comparison)["dice"])

    found = calibrate(agreement, TARGET_DICE, tolerance, 0.3, 2.0)
    config = start.scaled(found.scale)
    return config, found, agreement_of(scans, config, raters, seed=seed)


def settings_row(config: RaterConfig) -> dict[str, float]:
    """A setting as a row of ``tables/raters.csv``."""
    values = asdict(config)
    return {name: round(values[name], 4) for name in COLUMNS}


def summary_table(agreement: Agreement) -> pd.DataFrame:
    """The volume-wise rows under the rule used everywhere, for printing."""
    rows = agreement.summary
    return rows[(rows["unit"] == "volume") & (rows["rule"] == "exclude")].round(3)
