"""A phantom scan with three points, for the picker to show what it does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

__all__ = ["example_picker"]


def example_picker(picker: Any) -> Any:
    """``picker(scan, out, points=())`` for a phantom's T2w scan in a temporary folder that goes with the view."""
    from msfilm.data.bids import find_volumes
    from msfilm.data.centres import centres_from_mask
    from msfilm.data.nifti import read_mask
    from msfilm.phantom import write_cohort

    folder = tempfile.TemporaryDirectory(prefix="msfilm-")
    cohort = write_cohort(Path(folder.name) / "phantom", patients=1, seed=0, workers=1, progress=False)
    row = find_volumes(cohort).query("contrast == 'T2w'").iloc[0]
    zs, centres = centres_from_mask(read_mask(row["cord"]).data)
    view = picker(row["image"], Path(folder.name) / "centreline.csv", points=())
    with view.hold():
        for k in (0, len(zs) // 2, len(zs) - 1):
            view.pick(*centres[k], zs[k])
    view._folder = folder
    return view
