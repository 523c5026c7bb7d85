"""One slice of a patient as maps, one for each tissue: their weighted sum is the slice at any setting, in a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from msfilm.phantom.anatomy import Patient
from msfilm.phantom.lesions import Lesion
from msfilm.phantom.scan import CleanScan, ScanPlan, render
from msfilm.phantom.tissue import susceptibility

__all__ = ["SliceMaps", "one_slice"]


def one_slice(plan: ScanPlan, z: int) -> ScanPlan:
    """The grid of slice ``z`` alone, each voxel where it was."""
    angle, up = np.deg2rad(plan.tilt_deg), (z - (plan.shape[0] - 1) / 2) * plan.voxel_mm[0]
    x, y, height = plan.centre_mm
    centre = (x, float(y - up * np.sin(angle)), float(height + up * np.cos(angle)))
    return replace(plan, shape=(1, *plan.shape[1:]), centre_mm=centre)


@dataclass(frozen=True)
class SliceMaps:
    """What ``render`` makes of each tissue alone, white matter, grey matter ... in turn at 1 and all others at 0.

    ``render`` is linear in the tissues' signals, so the sum of maps times signals is what it would give.

    Attributes:
        names: (T,) tissues, as in ``physics.signals``.
        maps: (T, H, W) float32, (row, column) to the front and to the right.
        flow: (H, W) what full flow takes from the map of CSF.
        decay: (H, W) how fast a gradient echo loses signal near air and bone, per ms of TE.
        scan: the slice as ``render`` gave it, with its masks; its ``signal`` is the sum of all maps.
        plan: where the slice lies.
    """

    names: tuple[str, ...]
    maps: np.ndarray
    flow: np.ndarray
    decay: np.ndarray
    scan: CleanScan
    plan: ScanPlan

    @classmethod
    def of(cls, patient: Patient, lesions: Sequence[Lesion], plan: ScanPlan, z: int, names: Sequence[str]) -> SliceMaps:
        """Maps of an axial scan's slice; a few tenths of a second.

        Args:
            patient, lesions, plan: as for ``render``.
            z: slice number.
            names: of all signals that ``render`` needs.
        """
        here = one_slice(plan, z)

        def alone(name: str, flow: float = 0.0) -> np.ndarray:
            signal = {other: float(other == name) for other in names}
            return render(patient, lesions, signal, here, flow=flow).signal[0].numpy()

        whole = render(patient, lesions, dict.fromkeys(names, 1.0), here, flow=0.0)
        near = {i for i, distance in enumerate(whole.distances) if distance.min() < 1}  # mm; others have no share here
        kept = tuple(name for name in names if not name.startswith("lesion-") or int(name.split("-")[1]) in near)
        maps = {name: alone(name) for name in kept}
        kept = tuple(name for name in kept if maps[name].any())
        y, s = here.rows()
        decay = susceptibility(patient, patient.points(here.columns(), y, s))[0].numpy()
        return cls(kept, np.stack([maps[name] for name in kept]), maps["csf"] - alone("csf", 1.0), decay, whole, here)

    def picture(self, signal: Mapping[str, float], *, te_ms: float = 0.0, flow: float = 0.16) -> np.ndarray:
        """The slice before the scanner.

        Args:
            signal: of each tissue (``physics.signals``).
            te_ms, flow: as for ``render``.

        Returns:
            (H, W) float32.
        """
        weights = np.array([signal[name] for name in self.names], np.float32)
        image = np.tensordot(weights, self.maps, axes=1) - np.float32(signal["csf"] * flow) * self.flow
        return image * np.exp(np.float32(-te_ms) * self.decay) if te_ms else image

    def cnr(self, picture: np.ndarray, snr: float) -> np.ndarray:
        """(L,) contrast-to-noise of each lesion against the healthy cord in a picture (H, W): ``CleanScan.cnr``."""
        return replace(self.scan, signal=torch.from_numpy(np.ascontiguousarray(picture))[None]).cnr(snr)

    def around_cord(self, side_mm: float) -> tuple[slice, slice]:
        """Rows and columns of a square round the cord's middle."""
        found = np.nonzero(self.scan.cord[0])
        rows, columns = (slice(int(i.mean() - side_mm / 2 / mm), int(i.mean() + side_mm / 2 / mm))
                         for i, mm in zip(found, self.plan.voxel_mm[1:], strict=True))
        return rows, columns
