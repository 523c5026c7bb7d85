"""Figures for notebooks and reports, shown with alt text; and live views, whose pictures follow controls and clicks."""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "crop_figure": "slices", "error_overlay": "slices", "slice_montage": "slices",
    "dice_points": "charts", "film_heatmap": "charts", "scores_figure": "charts", "training_curves": "charts",
    "realism_chart": "realism", "realism_curves": "realism", "side_by_side": "realism",
    "disagreement_figure": "error_charts", "error_groups": "error_charts",
    "show": "embed",
    # live views
    "AugmentExplorer": "augment_explorer", "CentrelinePicker": "centreline_picker",
    "CohortBrowser": "cohort_browser", "CropExplorer": "crop_explorer", "ErrorBrowser": "error_browser",
    "FilmExplorer": "film_explorer", "RaterExplorer": "rater_explorer", "SequenceLab": "sequence_lab",
    "VolumeView": "volume_view", "volume_3d": "volume_view",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Loaded when first asked for, so that `import msfilm.view` costs nothing.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
