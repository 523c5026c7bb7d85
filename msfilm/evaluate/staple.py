"""STAPLE: the probable truth behind several raters' masks, and how sensitive and specific each rater is against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import RunError, SettingError
from msfilm.evaluate.agreement import Masks, _named, panel_masks
from msfilm.evaluate.metrics import dice

__all__ = ["Staple", "panel_staple", "staple"]


@dataclass(frozen=True, eq=False)
class Staple:
    """What :func:`staple` found.

    Attributes:
        probability: of lesion, float32, the masks' shape; 0 outside the box.
        sensitivity, specificity: by rater, within the box; NaN where nothing was marked by anyone (sensitivity).
        box: the part of the masks that was looked at, a slice an axis (cut at the array's border, where the box itself
            goes on); None where nothing was marked.
        prior: share of lesion that was assumed in the box: the raters' mean.
        iterations: of the algorithm.
    """

    probability: np.ndarray
    sensitivity: dict[str, float]
    specificity: dict[str, float]
    box: tuple[slice, ...] | None
    prior: float
    iterations: int

    @property
    def mask(self) -> np.ndarray:
        """Where lesion is at least as probable as not."""
        return self.probability >= 0.5


def staple(masks: Masks, *, margin: int = 2, max_iterations: int = 1000) -> Staple:
    """Estimate the truth and the raters together (expectation-maximisation), by SimpleITK.

    The prior, and with it every result, depends on how much empty space is looked at. So only a box is: the smallest
    one that holds all the masks, with ``margin`` voxels round it, which go on as background beyond the array's border.

    Nothing marked by anyone: probability 0, specificity 1, sensitivity NaN, as there is nothing to detect. Two raters
    alone do not settle who is right: for two masks the result depends on where the algorithm starts (both nearly
    perfect), and of a mask beside an empty one it is one half.

    Args:
        masks: by rater's name, or in a row (then rater-1, rater-2 ...); of one shape, 2-D or 3-D, bool or 0 and 1.
        margin: voxels round the union, 1 or more.
        max_iterations: of the algorithm, which ends by itself before.

    Raises:
        SettingError: AGREEMENT-FEW with fewer than two masks, SCORE-SHAPE, SCORE-VALUES, STAPLE-SETTING.
        RunError: NEEDS-SIMPLEITK where SimpleITK is not installed.

    Source: Warfield, Zou and Wells, IEEE Trans Med Imaging 2004; ``itk::STAPLEImageFilter``.
    """
    names, stack = _named(masks)
    for name, value in (("margin", margin), ("max_iterations", max_iterations)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingError("STAPLE-SETTING", f"{name}={value!r}", mend="use a whole number, 1 or more")
    if len(names) < 2:
        raise SettingError("AGREEMENT-FEW", f"{names[0]} alone agrees with nobody", mend="give two raters or more")
    if stack.ndim not in (3, 4):
        raise SettingError("SCORE-SHAPE", f"masks are 2-D or 3-D, not {stack.shape[1:]}")
    union = np.argwhere(stack.any(axis=0))
    if not len(union):
        return Staple(np.zeros(stack.shape[1:], np.float32), dict.fromkeys(names, float("nan")),
                      dict.fromkeys(names, 1.0), None, 0.0, 0)
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise RunError("NEEDS-SIMPLEITK", f"STAPLE needs SimpleITK, which cannot be imported: {error}",
                       mend="pip install SimpleITK") from error

    tight = tuple(slice(int(low), int(high) + 1) for low, high in zip(union.min(0), union.max(0), strict=True))
    boxed = np.pad(stack[(slice(None), *tight)], [(0, 0), *[(margin, margin)] * len(tight)])
    algorithm = sitk.STAPLEImageFilter()
    algorithm.SetForegroundValue(1)
    algorithm.SetMaximumIterations(max_iterations)
    found = sitk.GetArrayFromImage(algorithm.Execute([sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in boxed]))

    # The box, margin included, cut at the array's border.
    box = tuple(slice(max(at.start - margin, 0), min(at.stop + margin, side))
                for at, side in zip(tight, stack.shape[1:], strict=True))
    inside = tuple(slice(part.start - at.start + margin, part.stop - at.start + margin)
                   for part, at in zip(box, tight, strict=True))
    probability = np.zeros(stack.shape[1:], np.float32)
    probability[box] = found[inside]
    return Staple(probability, dict(zip(names, map(float, algorithm.GetSensitivity()), strict=True)),
                  dict(zip(names, map(float, algorithm.GetSpecificity()), strict=True)), box, float(boxed.mean()),
                  int(algorithm.GetElapsedIterations()))


def panel_staple(scans: SliceSet | Mapping[str, ScanMasks], *, patients: Mapping[str, str] | None = None,
                 **settings: int) -> pd.DataFrame:
    """STAPLE on the volumes of a data set that two or more raters drew; others are passed over.

    Args:
        scans: a SliceSet, or its ``scans``.
        patients: volume -> patient, as for ``panel_agreement``.
        **settings: of :func:`staple`.

    Returns:
        A row for each volume and rater: patient, volume, rater, sensitivity and specificity (of all raters' STAPLE, he
        among them), dice (with the STAPLE mask of the others, he left out; NaN: both empty, or one other only, whom
        the algorithm cannot judge).

    Raises:
        SettingError: AGREEMENT-FEW where no volume has two raters.
    """
    rows = []
    for volume, patient, masks, _ in panel_masks(scans, patients):
        together = staple(masks, **settings)
        for name, mask in masks.items():
            others = [other for rater, other in masks.items() if rater != name]
            score = dice(staple(others, **settings).mask, mask) if len(others) > 1 else float("nan")
            rows.append({"patient": patient, "volume": volume, "rater": name,
                         "sensitivity": together.sensitivity[name], "specificity": together.specificity[name],
                         "dice": score})
    return pd.DataFrame(rows)
