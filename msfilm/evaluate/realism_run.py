"""The realism report from beginning to end: phantom patients made and measured, real scans, raters, one JSON file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from msfilm.errors import InputError
from msfilm.evaluate.calibration import agreement_of, scans_to_draw
from msfilm.evaluate.realism import phantom_scans, real_scans, realism_report
from msfilm.evaluate.realism_measures import Measured
from msfilm.files import made_by, write_json
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.parallel import in_order
from msfilm.phantom.raters import rater_config
from msfilm.phantom.roster import CohortPlan, cohort_size, scans_of

__all__ = ["measure_cohort", "rater_dice", "realism"]

# Sagittal and isotropic scans of this many patients are measured beside the axial ones of all.
OTHERS = ("T2w_iso", "T1w_iso", "MTon_ax", "MToff_ax", "T2w_sag", "STIR_sag", "PSIR_ax")
OTHERS_PATIENTS = 10


def _measure(index: int, plan: CohortPlan) -> list[Measured]:
    scans = (make_scan(index, plan.seed, *scan, raters=(), crop_only=True) for scan in scans_of(index, plan))
    return phantom_scans(scans)


def measure_cohort(
    patients: int, plan: CohortPlan, *, workers: int | None = None, progress: bool = True
) -> list[Measured]:
    """Measure every scan of a cohort."""
    jobs = [(index, plan) for index in range(patients)]
    parts = in_order(_measure, jobs, workers)
    bar = tqdm(parts, total=patients, desc="measure", unit="patient", disable=not progress)
    return [scan for part in bar for scan in part]


def rater_dice(patients: int, seed: int, *, workers: int | None = None, progress: bool = True) -> dict[str, Any]:
    """How far two raters agree on a cohort's scans, and with the truth and the others' consensus; both settings."""
    scans = scans_to_draw(patients, seed=seed, workers=workers, progress=progress)
    found: dict[str, Any] = {}
    for setting, raters in (("narrow", 4), ("wide", 7)):
        agreement = agreement_of(scans, rater_config(setting), raters, seed=seed)
        found[setting] = {}
        for comparison in ("pairwise", "truth", "consensus"):
            row = agreement.row(comparison)
            found[setting][comparison] = {
                "mean": float(row["dice"]),
                "ci": [float(row["low"]), float(row["high"])],
                "patients": int(row["patients"]),
            }
        by_contrast = agreement.scores[(agreement.scores["unit"] == "volume")].assign(
            contrast=lambda t: t["volume"].str.rsplit("_", n=1).str[-1]
        )
        pairs = by_contrast[by_contrast["comparison"] == "pairwise"]
        found[setting]["pairwise_by_contrast"] = pairs.groupby("contrast")["dice"].mean().to_dict()
    return {**found["narrow"]["pairwise"], **found}


def realism(
    patients: int = 100,
    *,
    mirror: str | Path | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure phantom patients of the test cohort and every real scan at hand with the same code.

    Args:
        patients: how many of the test cohort.
        mirror: folder with the public scans, laid out as data_manifests/ has them; default MSFILM_MIRROR.
        out: JSON file to write.
        workers: processes.
        progress: show bars.

    Returns:
        ``realism_report``'s dictionary with ``pairwise_rater_dice`` and ``made_by``.

    Raises:
        InputError: MIRROR-MISSING.
    """
    folder = Path(mirror or os.environ.get("MSFILM_MIRROR", ""))
    if not (mirror or os.environ.get("MSFILM_MIRROR")) or not folder.is_dir():
        raise InputError(
            "MIRROR-MISSING",
            "the real scans are not at hand",
            where=folder,
            mend="fetch them (msfilm fetch NAME --out FOLDER/NAME) and name FOLDER as --mirror or in MSFILM_MIRROR",
        )
    seed = cohort_size("test")[1]
    phantom = measure_cohort(patients, CohortPlan(seed), workers=workers, progress=progress)
    phantom += measure_cohort(
        min(OTHERS_PATIENTS, patients), CohortPlan(seed, OTHERS), workers=workers, progress=progress
    )
    raters = rater_dice(patients, seed, workers=workers, progress=progress)
    report = realism_report(real_scans(folder), phantom, pairwise_rater_dice=raters)
    report["cohort"] = {"patients": patients, "seed": seed, "raters": "nobody draws two patients"}
    report["made_by"] = made_by(f"msfilm realism OUT.json --patients {patients}")
    if out is not None:
        write_json(out, report)
    return report
