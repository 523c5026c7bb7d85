"""For the tests of the evaluate room: small cohorts in memory, and networks whose answer is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from msfilm.data.nifti import Volume
from msfilm.data.prepare import prepare_volume
from msfilm.data.sidecars import SIDECAR_COLUMNS
from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.model.weights import Network

# Voxels of the crop's own size, and cords whose centre lies between two voxels, as a crop's centre lies between two
# pixels: crops then hit voxel centres exactly, and a perfect network scores exactly 1.
VOXEL_MM, SHAPE = (0.75, 0.75, 5.0), (40, 44, 6)


def one_volume(patient: int, contrast: str, *, lesion: bool = True, rater: bool = True, shift: int = 0) -> SliceSet:
    """Cord 1, lesion 2 (T2w) or 1.5 (T2star), surroundings .5; the rater draws the lesion, ``shift`` voxels off."""
    cord, truth = np.zeros((2, *SHAPE), np.uint8)
    cord[14:26, 16:26, :] = 1
    if lesion:
        truth[16 + patient % 4 : 20 + patient % 4, 18:22, 2:4] = 1
    noise = np.random.default_rng([patient, len(contrast)]).normal(0, 0.02, SHAPE)
    image = 0.5 + 0.5 * cord + (1.0 if contrast == "T2w" else 0.5) * truth + noise
    affine = np.diag([*VOXEL_MM, 1.0])
    masks = {"cord": cord, "truth": truth} | ({"rater-1": np.roll(truth, shift, axis=0)} if rater else {})
    about = {"patient": f"sub-{patient:03d}", "session": "", "centre": f"centre-{patient % 2}", "contrast": contrast,
             "rater": "anna", "image": "", "notes": ""} | dict.fromkeys(SIDECAR_COLUMNS)
    if not rater:
        masks.pop("truth")
    name = f"sub-{patient:03d}_{contrast}"
    part = prepare_volume(name, Volume((700 * image).astype(np.float32), affine),
                          {key: Volume(mask, affine) for key, mask in masks.items()}, about)
    crops = {key: part.masks.get(key, np.full_like(part.masks["cord"], UNDRAWN))[:, None]
             for key in ("cord", "truth", "rater-1")}
    volumes = part_row(name, part.row)
    return SliceSet(part.images[:, None], crops, part.table, volumes, {name: part.scan},
                    {"size": 48, "spacing_mm": 0.75, "source": "test"})


def part_row(name, row):
    import pandas as pd

    return pd.DataFrame([row], index=pd.Index([name], name="volume"))


def cohort(patients: int = 6, *, free: tuple[int, ...] = (), **settings) -> SliceSet:
    """Patients x (T2w, T2star); those in ``free`` have no lesion."""
    return SliceSet.concat([one_volume(patient, contrast, lesion=patient not in free, **settings)
                            for patient in range(1, patients + 1) for contrast in ("T2w", "T2star")])


class Brighter(nn.Module):
    """Marks pixels brighter than a level: a network whose answer is known beforehand."""

    def __init__(self, level: float = 1.25):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x, z=None):
        return 1000 * (x - self.level)


class Quadrant(nn.Module):
    """Marks the anterior right quarter of every crop, whatever the image."""

    def forward(self, x, z=None):
        marked = torch.full_like(x, -20.0)
        marked[..., : x.shape[-2] // 2, : x.shape[-1] // 2] = 20.0
        return marked


def known(model: nn.Module, **card) -> Network:
    return Network(model, None, card)
