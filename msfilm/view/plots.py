"""All figures under one name: ``from msfilm.view.plots import slice_montage, show``."""

from __future__ import annotations

from msfilm.view.charts import dice_points, film_heatmap, scores_figure, training_curves
from msfilm.view.embed import show
from msfilm.view.slices import crop_figure, error_overlay, slice_montage

__all__ = [
    "crop_figure",
    "dice_points",
    "error_overlay",
    "film_heatmap",
    "scores_figure",
    "show",
    "slice_montage",
    "training_curves",
]
