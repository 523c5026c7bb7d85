"""Find the cord in a scan without a mask: a centreline, how sure it is, and when to pick it by hand instead.

A small U-Net, trained on phantoms alone, colours each axial slice by where it takes the cord to be; dynamic programming
joins the slices, so that one bad slice is bridged. Prior art with the same two steps: PropSeg (De Leener et al. 2014,
doi 10.1016/j.neuroimage.2014.04.051) and OptiC (Gros et al. 2018, doi 10.1016/j.media.2017.12.001: a detector's map and
one global curve); no code of theirs is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from msfilm.data.centres import write_centreline
from msfilm.data.nifti import Volume
from msfilm.errors import InputError
from msfilm.evaluate.localise_maps import SPACING_MM, coarse_slices, even_out, to_voxels
from msfilm.evaluate.localise_path import Chain, best_path
from msfilm.model.weights import Network, load_network
from msfilm.train.state import resolve_device

__all__ = ["SURE", "CordLocation", "cord_heat", "localise"]

# Set before any scan was tried, and left as they were: none was tuned, on phantoms or on real scans.
SURE = {
    "confidence": 0.8,  # mean over the slices, at least
    "weak_share": 0.25,  # of the slices below 0.5, at most
    "covered_share": 0.5,  # of the slices that show anything, at least
    "length_mm": 15.0,  # at least
    "lean": 1.2,  # mm sideways for a mm along, at most
    "area_mm2": (15.0, 200.0),  # median of what is taken for cord; a cord has 35 to 110
}
END = 0.5  # slices at either end below this confidence are left out
PIXELS = 300_000  # at a time through the network


@dataclass(frozen=True)
class CordLocation:
    """Where the cord is taken to be.

    Attributes:
        points_mm: (k, 3) scanner coordinates (RAS, mm), one for each slice that the line covers, from the lowest up.
        zs: (k,) canonical slices, without a gap.
        centres: (k, 2) canonical voxel coordinates x, y, as ``centres_from_mask`` gives them.
        slice_confidence: (k,) chance that the place is within 3 mm of the cord's centre, as calibrated on phantoms.
        confidence: mean of them.
        sure: whether the line may be used unseen; False says why in ``notes``.
        notes: what speaks against it, one sentence each.
    """

    points_mm: np.ndarray
    zs: np.ndarray
    centres: np.ndarray
    slice_confidence: np.ndarray
    confidence: float
    sure: bool
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """How many slices, how confident, and sure or what speaks against it: a sentence."""
        word = "sure" if self.sure else "UNSURE, look at it before use: " + "; ".join(self.notes)
        return f"{len(self.zs)} slices, confidence {self.confidence:.2f} of 1, {word}."

    def thinned(self, count: int = 6) -> np.ndarray:
        """(k, 3) at most ``count`` of the points, the ends among them, evenly far apart: to be moved by hand."""
        return self.points_mm[np.unique(np.rint(np.linspace(0, len(self.zs) - 1, count)).astype(int))]

    def save(self, path: str | Path, *, about: str = "") -> Path:
        """Write the points as ``msfilm segment --centreline`` reads them, the confidence in a comment.

        Raises:
            InputError: CENTRELINE-FEW where it covers one slice only; RunError: CENTRELINE-WRITE.
        """
        lines = [about, f"Proposed by msfilm's cord localiser: {self.verdict}",
                 "Slice confidence from the lowest up: " + " ".join(f"{c:.2f}" for c in self.slice_confidence)]
        return write_centreline(path, self.points_mm, about="\n".join(line for line in lines if line))


def localise(volume: Volume, *, network: str | Path = "cord-localiser", device: str = "cpu") -> CordLocation:
    """Propose a centreline of the cord in a scan of any contrast, orientation and field of view.

    Args:
        volume: the scan, as ``read_image`` gives it; its canonical slices should lie across the cord, nearly.
        network: a folder, or the name of one that comes with msfilm.
        device: auto, cpu, cuda ...

    Raises:
        SettingError: NETWORK-UNKNOWN or DEVICE-*.
        InputError: CORD-NETWORK, the network is of another kind;
            CORD-NONE, no slice shows anything like a cord.
    """
    loaded = load_network(network)
    if "calibration" not in loaded.card:
        raise InputError("CORD-NETWORK", f"the network '{network}' was not trained to find cords",
                         mend="use 'cord-localiser', or one that msfilm.evaluate.localise_train made")
    heat = cord_heat(volume, loaded, device)
    chain = best_path(heat, float(volume.voxel_mm[2]), SPACING_MM)
    if chain is None:
        raise InputError("CORD-NONE", f"nothing like a cord in any of {volume.data.shape[2]} axial slices",
                         where=volume.path, mend="give a cord mask, or pick a few points with the CentrelinePicker")
    chain = _trimmed(chain, loaded)
    centres = to_voxels(chain.places, volume).clip(0, np.array(volume.data.shape[:2]) - 1)
    voxels = np.column_stack([centres, chain.zs])
    points = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    confidence = _confidence(chain, loaded)
    notes = _doubts(chain, confidence, volume)
    return CordLocation(points, chain.zs, centres, confidence, float(confidence.mean()), not notes, notes)


@torch.no_grad()
def cord_heat(volume: Volume, network: Network, device: str = "cpu") -> torch.Tensor:
    """(Z, H, W) share of cord in each pixel of the coarse grid, 0..1; 0 in slices that show nothing."""
    slices, where = coarse_slices(volume), resolve_device(device)
    model = network.model.to(where).eval()
    shown = torch.from_numpy(np.flatnonzero(_shows(volume)))
    heat = torch.zeros_like(slices)
    for part in shown.split(max(1, PIXELS // slices[0].numel())) if len(shown) else ():
        heat[part] = torch.sigmoid(model(even_out(slices[part])[:, None].to(where)))[:, 0].cpu()
    return heat


def _shows(volume: Volume) -> np.ndarray:
    """(Z,) bool: slices that are not one grey all over."""
    return np.ptp(volume.data, axis=(0, 1)) > 0


def _confidence(chain: Chain, network: Network) -> np.ndarray:
    """(n,) by the logistic curve that the card holds."""
    return 1 / (1 + np.exp(-chain.features() @ np.asarray(network.card["calibration"]["weights"])))


def _trimmed(chain: Chain, network: Network) -> Chain:
    """Without the slices at either end that are more likely wrong than right; at least the best one stays."""
    good = np.flatnonzero(_confidence(chain, network) >= END)
    if not len(good):
        good = np.array([chain.heat.argmax()])
    return chain.part(int(good[0]), int(good[-1]) + 1)


def _doubts(chain: Chain, confidence: np.ndarray, volume: Volume) -> tuple[str, ...]:
    """What speaks against the line."""
    notes, voxel_mm, shown = [], volume.voxel_mm, int(_shows(volume).sum())
    if confidence.mean() < SURE["confidence"]:
        notes.append(f"mean confidence {confidence.mean():.2f} is below {SURE['confidence']:g}")
    weak = int((confidence < 0.5).sum())
    if weak > SURE["weak_share"] * len(confidence):
        notes.append(f"{weak} of {len(confidence)} slices are more likely wrong than right")
    if len(confidence) < SURE["covered_share"] * shown:
        notes.append(f"only {len(confidence)} of {shown} slices seem to show a cord")
    length = len(confidence) * voxel_mm[2]
    if length < SURE["length_mm"] or len(confidence) < 2:
        notes.append(f"the line is {length:.0f} mm long, {len(confidence)} slices")
    steps = np.linalg.norm(np.diff(chain.places, axis=0), axis=1) * SPACING_MM - 2.0
    if len(steps) and steps.max() > SURE["lean"] * voxel_mm[2]:
        notes.append(f"it jumps by {steps.max() + 2:.0f} mm between slices {voxel_mm[2]:g} mm apart")
    low, high = SURE["area_mm2"]
    if not low <= np.median(chain.area_mm2) <= high:
        notes.append(f"what is taken for cord measures {np.median(chain.area_mm2):.0f} mm2, not {low:g} to {high:g}")
    return tuple(notes)
