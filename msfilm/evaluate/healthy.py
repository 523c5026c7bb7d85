"""False lesion on real healthy cords: the one figure about a network that needs neither a rater nor a phantom."""

from __future__ import annotations

from collections.abc import Sequence

from msfilm.data.fetch import fetch
from msfilm.evaluate.segmentation import segment
from msfilm.model.weights import Network

__all__ = ["HEALTHY_SCANS", "false_on_healthy"]

# Contrast -> (scan, cord mask) in the data set sct_testing_data: healthy volunteers of the Spinal Cord Toolbox.
HEALTHY_SCANS = {
    "T2w": ("t2/t2.nii.gz", "t2/t2_seg-manual.nii.gz"),
    "T2star": ("t2s/t2s.nii.gz", "t2s/t2s_seg.nii.gz"),
}


def false_on_healthy(network: Network, contrasts: Sequence[str] | None = None, *, device: str = "auto",
                     threshold: float = 0.5) -> dict[str, float]:
    """Volume in mm3 that the network marks on each healthy scan: all of it is false.

    Args:
        network: any network; a conditioned one gets the scan's contrast.
        contrasts: only scans of these; None: of all that there is a scan of.
        device, threshold: as for ``segment``.

    Raises:
        FetchError: the scans are neither on a mirror nor to be had from the network.
        SettingError: CONTRAST-UNKNOWN, the network does not know a contrast.
    """
    chosen = {name: files for name, files in HEALTHY_SCANS.items() if contrasts is None or name in contrasts}
    if not chosen:
        return {}
    folder = fetch("sct_testing_data", files=[file for pair in chosen.values() for file in pair], progress=False)
    return {name: float(segment(folder / scan, None, contrast=name, cord=folder / cord, network=network, device=device,
                                threshold=threshold).lesion_mm3) for name, (scan, cord) in chosen.items()}
