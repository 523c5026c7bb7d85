"""The realism report: real values beside the phantom's range and the range that is asked of it, a row a quantity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from msfilm.evaluate.realism_curves import HISTOGRAM_EDGES
from msfilm.evaluate.realism_measures import LEVEL_SD, Measured
from msfilm.evaluate.realism_scans import phantom_scans, real_scans

__all__ = ["REQUIRED_SHARE", "phantom_scans", "real_scans", "realism_report", "target_range"]

REQUIRED_SHARE = 0.95  # of the uncorrupted volumes, in every row with a target
RANGE = (2.5, 97.5)  # percentiles of the uncorrupted phantom volumes
GEOMETRY = ("cord_area", "cord_ap", "cord_rl", "canal_area", "canal_ap", "canal_rl", "area_z", "ap_z", "rl_z",
            "gm_fraction")  # fmt: skip
NAMES = {
    "gm_wm": "grey / white matter", "csf_wm": "CSF / white matter", "snr": "SNR in white matter",
    "lesion_wm_max": "strongest lesion / white matter", "lesion_wm_p90": "lesion, 90th percentile / white matter",
    "cord_area": "cord area (mm²)", "cord_ap": "cord AP (mm)", "cord_rl": "cord RL (mm)",
    "area_z": "cord area against its level (SD)", "ap_z": "cord AP against its level (SD)",
    "rl_z": "cord RL against its level (SD)", "gm_fraction": "grey matter / cord area",
    "canal_area": "canal area (mm²)", "canal_ap": "canal AP (mm)", "canal_rl": "canal RL (mm)",
    "lesion_count": "lesions", "lesion_mm3": "lesion volume (mm³)", "lesion_length_mm": "longest lesion (mm)",
    "lesion_share": "slices with lesion / slices", "spectrum_fine": "fine / coarse power of the crop",
    "crop_p05": "crop, 5th percentile / cord", "crop_p25": "crop, 25th percentile / cord",
    "crop_p50": "crop, median / cord", "crop_p75": "crop, 75th percentile / cord",
    "crop_p95": "crop, 95th percentile / cord",
}  # fmt: skip

# What is asked of the phantom. Ratios: what real scans measure. Geometry: the table of levels +- 2 SD, by level where
# levels are known, else from the smallest to the largest cervical level (C1-C7).
_TARGETS = {
    ("gm_wm", "T2star"): (1.12, 1.23), ("gm_wm", "T2w"): (1.0, 1.15),
    ("csf_wm", "T2w"): (2.1, 3.8), ("csf_wm", "T2star"): (1.35, 1.9),
    ("lesion_wm_max", "T2w"): (1.3, 1.9), ("snr", ""): (12.0, 50.0), ("gm_fraction", ""): (0.15, 0.22),
    ("area_z", ""): (-2.0, 2.0), ("ap_z", ""): (-2.0, 2.0), ("rl_z", ""): (-2.0, 2.0),
}  # fmt: skip
_CERVICAL = {"cord_area": (50.7, 72.7, "area"), "cord_ap": (6.2, 7.6, "ap"), "cord_rl": (10.5, 12.6, "rl")}


# The cohort of the paper is axial T2w and T2*w; other scans are measured and shown, and not judged.
JUDGED = ("T2w_ax", "T2star_ax", "any_ax")


def target_range(name: str, contrast: str, *, levels: bool = False) -> tuple[float, float] | None:
    """The range asked of a quantity in a contrast ("T2w_ax"), or None. With ``levels``, cords are judged by theirs."""
    if not contrast.startswith(JUDGED):
        return None
    base = contrast.split("_")[0]
    if name in _CERVICAL and not levels:
        low, high, key = _CERVICAL[name]
        return low * (1 - 2 * LEVEL_SD[key]), high * (1 + 2 * LEVEL_SD[key])
    return _TARGETS.get((name, base), _TARGETS.get((name, "")))


def realism_report(
    real: Iterable[Measured], phantom: Iterable[Measured], *, pairwise_rater_dice: Mapping | None = None
) -> dict:
    """Set real scans beside the phantom.

    Args:
        real: of ``real_scans``.
        phantom: of ``phantom_scans``.
        pairwise_rater_dice: mean, ci and patients, measured elsewhere; copied in.

    Returns:
        A dict that JSON can hold:

        * rows: name, label, contrast; real (median over the real scans, None without), real_scans (how many),
          real_values (by scan); phantom_volumes (uncorrupted ones that have it), low, high (their 2.5th and 97.5th
          percentile), quantiles (5, 25, 50, 75, 95 %); inside (whether ``real`` lies between low and high, None where
          one is missing); target_low, target_high, share_in_target, met (at least 95 %), exceptions (volumes outside).
          Geometry does not depend on contrast: its rows are called "any_ax", "any_iso", "any_sag".
        * share_inside: rows with both sides, those inside and outside; the share of volumes inside every target.
        * curves: histogram and spectrum by contrast, real scans one by one, the phantom's 2.5, 50 and 97.5 percentile.
        * scans: every scan's values and notes; pairwise_rater_dice.
    """
    real, phantom = list(real), list(phantom)
    sound = [scan for scan in phantom if not scan.corrupted]
    with_levels = any("area_z" in scan.values for scan in sound)
    found = {(key, _group(key, scan.contrast)) for scan in real + sound for key in scan.values}
    keys = list(NAMES)
    order = sorted(found, key=lambda k: (k[1].startswith("any"), k[1], keys.index(k[0]) if k[0] in keys else len(keys)))
    rows = [_row(name, contrast, real, sound, with_levels) for name, contrast in order]
    both = [row for row in rows if row["inside"] is not None]
    cohort = [scan for scan in sound if scan.contrast.startswith(JUDGED)]
    outside = sum(any(_outside(scan, name, with_levels) for name in scan.values) for scan in cohort)
    judged = [row for row in rows if row["target_low"] is not None and row["phantom_volumes"]]
    return {
        "rows": rows,
        "pairwise_rater_dice": dict(pairwise_rater_dice) if pairwise_rater_dice else None,
        "share_inside": {
            "rows_with_real": len(both),
            "rows_inside": sum(row["inside"] for row in both),
            "rows_outside": [f"{row['name']} {row['contrast']}" for row in both if not row["inside"]],
            "rows_with_target": len(judged),
            "rows_met": sum(row["met"] for row in judged),
            "rows_not_met": [f"{row['name']} {row['contrast']}" for row in judged if not row["met"]],
            "volumes_in_every_target": 1 - outside / len(cohort) if cohort else None,
            "required_share": REQUIRED_SHARE,
        },
        "curves": _curves(real, sound),
        "phantom": {"volumes": len(phantom), "corrupted": [scan.name for scan in phantom if scan.corrupted]},
        "scans": [
            {"name": s.name, "contrast": s.contrast, "source": s.source, "corrupted": s.corrupted,
             "values": {key: _short(value) for key, value in s.values.items()}, "notes": list(s.notes)}
            for s in real + phantom
        ],
    }  # fmt: skip


def _outside(scan: Measured, name: str, levels: bool) -> bool:
    target = target_range(name, scan.contrast, levels=levels)
    return target is not None and not target[0] <= scan.values[name] <= target[1]


def _group(name: str, contrast: str) -> str:
    return f"any_{contrast.split('_')[-1]}" if name in GEOMETRY else contrast


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _row(name: str, contrast: str, real: Sequence[Measured], phantom: Sequence[Measured], with_levels: bool) -> dict:
    ours, theirs = (
        [scan for scan in scans if name in scan.values and _group(name, scan.contrast) == contrast]
        for scans in (phantom, real)
    )
    numbers = np.array([scan.values[name] for scan in ours])
    low, high = np.percentile(numbers, RANGE) if len(numbers) else (None, None)
    value = float(np.median([scan.values[name] for scan in theirs])) if theirs else None
    target = target_range(name, contrast, levels=with_levels)
    wrong = [scan.name for scan in ours if _outside(scan, name, with_levels)]
    share = 1 - len(wrong) / len(ours) if target and ours else None
    return {
        "name": name,
        "label": NAMES.get(name, name),
        "contrast": contrast,
        "real": None if value is None else _short(value),
        "real_scans": len(theirs),
        "real_values": {scan.name: _short(scan.values[name]) for scan in theirs},
        "phantom_volumes": len(numbers),
        "low": None if low is None else _short(low),
        "high": None if high is None else _short(high),
        "quantiles": [_short(q) for q in np.percentile(numbers, (5, 25, 50, 75, 95))] if len(numbers) else None,
        "inside": None if value is None or low is None else bool(low <= value <= high),
        "target_low": _short(target[0]) if target else None,
        "target_high": _short(target[1]) if target else None,
        "share_in_target": None if share is None else _short(share),
        "met": None if share is None else share >= REQUIRED_SHARE,
        "exceptions": wrong,
    }


def _curves(real: Sequence[Measured], phantom: Sequence[Measured]) -> dict:
    """Histograms and spectra by contrast."""
    out = {}
    for contrast in sorted({scan.contrast for scan in [*real, *phantom] if scan.curves}):
        for kind in ("histogram", "spectrum"):
            theirs = {s.name: s.curves[kind] for s in real if s.contrast == contrast and kind in s.curves}
            ours = [s.curves[kind] for s in phantom if s.contrast == contrast and s.curves]
            frequency = next(s.curves["frequency"] for s in [*real, *phantom] if s.contrast == contrast and s.curves)
            edges = HISTOGRAM_EDGES
            bands = np.percentile(ours, (2.5, 50, 97.5), axis=0) if ours else None
            out.setdefault(contrast, {})[kind] = {
                "x": [_short(x) for x in ((edges[:-1] + edges[1:]) / 2 if kind == "histogram" else frequency)],
                "real": {key: [_short(y) for y in curve] for key, curve in theirs.items()},
                "phantom": None if bands is None else {
                    key: [_short(y) for y in band] for key, band in zip(("low", "median", "high"), bands, strict=True)
                },
            }  # fmt: skip
    return out
