"""Evaluation: predictions put back on the scan's own grid, scores with one rule each, baselines, intervals, reports."""

from __future__ import annotations

from importlib import import_module

# Not here: functions with the name of a module (reliability, staple, realism), which hides them once it is loaded.
_HOMES = {
    "predict_slices": "predict", "predict_volumes": "predict", "segment": "segmentation",
    "Segmentation": "segmentation", "segment_dataset": "derivative", "Derivative": "derivative",
    "EMPTY_RULES": "metrics", "apply_empty_rule": "metrics", "dice": "metrics", "lesion_scores": "metrics",
    "volume_scores": "metrics", "LESION_RULES": "metrics", "lesion_scores_by_size": "metrics", "pool_sizes": "metrics",
    "surface_scores": "surface", "SurfaceScores": "surface",
    "Reliability": "reliability",
    "ensemble": "uncertainty", "ensemble_probability": "uncertainty", "mc_dropout": "uncertainty",
    "Uncertainty": "uncertainty", "panel_staple": "staple", "Staple": "staple",
    "reliability_figure": "figure", "scores_figure": "figure",
    "bootstrap_ci": "stats", "paired_difference": "stats", "Interval": "stats", "PairedDifference": "stats",
    "ThresholdBaseline": "baselines", "all_cord_baseline": "baselines", "lesion_volume_mm3": "baselines",
    "pairwise_dice": "agreement", "consensus": "agreement", "rater_agreement": "agreement",
    "panel_agreement": "agreement", "calibrate_raters": "calibration",
    "measure_scan": "realism_measures", "phantom_scans": "realism_scans", "real_scans": "realism_scans",
    "realism_report": "realism",
    "collect_errors": "error_collect", "ErrorVoxels": "error_voxels", "boundary_shares": "errors_by",
    "disagreement": "errors_by", "phantom_levels": "errors_by", "size_class": "errors_by", "ratio_ci": "stats",
    "lesion_labels": "metrics",
    "Report": "report", "evaluate": "report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Loaded when first asked for, so that `import msfilm.evaluate` costs nothing.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
