"""What can be checked of one segmented scan without a ground truth: lesions, slices, intensities, and what a small
change of threshold, centre or intensity scale does to the answer.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from msfilm.data.crop import CropGrid, crop, uncrop
from msfilm.data.sidecars import SIDECAR_COLUMNS
from msfilm.errors import InputError, MsfilmError, SettingError
from msfilm.evaluate.metrics import dice, lesion_labels
from msfilm.evaluate.predict import predict_images, weights_sha256
from msfilm.evaluate.segmentation import Segmentation
from msfilm.files import read_json
from msfilm.model.weights import Network, load_network
from msfilm.places import shipped

__all__ = ["BEND_MM", "FAR_MM", "MOVES", "Intensities", "Sensitivity", "bend_mm", "centre_values", "intensities",
           "lesion_table", "recorded_network", "sensitivity", "slice_table", "told_contrast"]

CENTRE_MM = 3.0  # radius of the disc that lies in any cervical cord: 12 x 7 mm
FAR_MM = 8.0  # from the cord's centre there is no cord: the widest cervical cords are 15 mm
MIDLINE_MM = 1.0  # a lesion's centre as near to the cord's is called middle
BEND_MM = 1.0  # of a centre from the line between its neighbours: phantoms bend by .25 mm, three real scans by .53
MIN_VOXELS = 3  # of a lesion that counts, as in all scores
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
# name -> (mm to the right, mm to the front, factor on the intensities)
MOVES = {"2 mm to the right": (2, 0, 1), "2 mm to the left": (-2, 0, 1), "2 mm to the front": (0, 2, 1),
         "2 mm to the back": (0, -2, 1), "10 % brighter": (0, 0, 1.1), "10 % darker": (0, 0, 0.9)}


def centre_values(crops: np.ndarray, spacing_mm: float, radius_mm: float = CENTRE_MM) -> np.ndarray:
    """(n, H, W) crops -> the values within ``radius_mm`` of their middles, which all lie in the cord: (k,)."""
    rows, columns = ((np.arange(side) - (side - 1) / 2) * spacing_mm for side in crops.shape[1:])
    return crops[:, np.hypot(rows[:, None], columns[None]) <= radius_mm].ravel()


def bend_mm(grid: CropGrid) -> np.ndarray:
    """(n,) how far each centre lies from the straight line between the next one below and above, in mm; 0 at the ends.

    A cord curves slowly; a slice whose centre was placed on something else stands out.
    """
    order = np.argsort(grid.zs)
    zs, mm = grid.zs[order].astype(float), grid.centres[order] * grid.voxel_mm[:2]
    out = np.zeros(len(zs))
    if len(zs) > 2:
        share = ((zs[1:-1] - zs[:-2]) / (zs[2:] - zs[:-2]))[:, None]
        out[1:-1] = np.linalg.norm(mm[1:-1] - (mm[:-2] + share * (mm[2:] - mm[:-2])), axis=1)
    return out[np.argsort(order)]


def lesion_table(found: Segmentation) -> tuple[pd.DataFrame, np.ndarray]:
    """The marks (26-connected, 3 voxels or more), the largest first, and a volume of their numbers.

    Returns:
        A row a mark: lesion (its number: 1, 2 ..), mm3, voxels, first_z, last_z, z (where it is largest), length_mm,
        side (right, left, middle: of its centre from the cord's), right_mm, front_mm, up_mm (of its centre: scanner
        mm, RAS), from_centre_mm (median distance of its voxels from the cord's centre, in the slice), probability
        (mean), doubts (words, '' for none); and labels (X, Y, Z).
    """
    labels = lesion_labels(found.mask, min_voxels=MIN_VOXELS)
    sizes = np.bincount(labels.ravel(), minlength=1)[1:]
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable") + 1
    labels = np.append(0, rank)[labels]
    voxel, affine = found.image.voxel_mm, found.image.affine
    centre_of = {int(z): centre for z, centre in zip(found.grid.zs, found.grid.centres, strict=True)}
    rows = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        places = np.argwhere(labels[box] == number) + [part.start for part in box]
        here = places[:, 2]
        away = (places[:, :2] - np.array([centre_of[z] for z in here])) * voxel[:2]
        middle = affine[:3, :3] @ places.mean(0) + affine[:3, 3]
        across = float(away[:, 0].mean())
        row = {
            "lesion": number, "mm3": len(places) * float(voxel.prod()), "voxels": len(places),
            "first_z": int(here.min()), "last_z": int(here.max()), "z": int(np.bincount(here).argmax()),
            "length_mm": float(np.ptp(here) + 1) * float(voxel[2]),
            "side": "middle" if abs(across) < MIDLINE_MM else "right" if across > 0 else "left",
            "right_mm": middle[0], "front_mm": middle[1], "up_mm": middle[2],
            "from_centre_mm": float(np.median(np.hypot(*away.T))),
            "probability": float(found.probability[tuple(places.T)].mean()),
        }
        rows.append(row | {"doubts": _doubts(row, found.grid)})
    columns = ["lesion", "mm3", "voxels", "first_z", "last_z", "z", "length_mm", "side", "right_mm", "front_mm",
               "up_mm", "from_centre_mm", "probability", "doubts"]
    return pd.DataFrame(rows, columns=columns), labels


def _doubts(row: dict[str, Any], grid: CropGrid) -> str:
    words = []
    if row["from_centre_mm"] > FAR_MM:
        words.append("false, if the centre is right: no cord lies so far from it")
    if row["probability"] < 0.65:
        words.append("near the threshold")
    if row["voxels"] < 10:
        words.append(f"only {row['voxels']} voxels")
    if {row["first_z"], row["last_z"]} & {int(grid.zs.min()), int(grid.zs.max())}:
        words.append("reaches the last slice looked at")
    return "; ".join(words)


def slice_table(found: Segmentation) -> pd.DataFrame:
    """A row for each slice that the network saw.

    Returns:
        z; right_mm2, left_mm2, far_mm2 (marked on either side of the cord's centre, or more than 8 mm from it:
        false, if the centre lies in the cord); centre_right_mm, centre_front_mm (scanner mm, RAS); bend_mm; padded
        (share of the crop beyond the scan); probability (the highest).
    """
    voxel, affine, grid = found.image.voxel_mm, found.image.affine, found.grid
    _, padded = crop(found.image.data, grid)
    rows = []
    for (cx, cy), z, share, bend in zip(grid.centres, grid.zs, padded, bend_mm(grid), strict=True):
        x, y = np.nonzero(found.mask[:, :, z])
        far = np.hypot((x - cx) * voxel[0], (y - cy) * voxel[1]) > FAR_MM
        mm = affine[:3, :3] @ [cx, cy, z] + affine[:3, 3]
        area = float(voxel[0] * voxel[1])
        rows.append({"z": int(z), "right_mm2": area * np.count_nonzero((x > cx) & ~far),
                     "left_mm2": area * np.count_nonzero((x <= cx) & ~far), "far_mm2": area * np.count_nonzero(far),
                     "centre_right_mm": mm[0], "centre_front_mm": mm[1], "bend_mm": float(bend), "padded": float(share),
                     "probability": float(found.probability[:, :, z].max())})
    return pd.DataFrame(rows).sort_values("z", ignore_index=True)


@dataclass(frozen=True)
class Intensities:
    """The cord's middle in this scan beside what was measured in training, in units of the cord's median.

    Attributes:
        edges: (k + 1,) of the histogram.
        shares: (k,) of this scan.
        mean, band: (k,) and (2, k) of the training scans of this contrast, 5th to 95th percentile; None if unknown.
        percentiles: 5th, 50th and 95th of this scan.
        ranges: the same of the training scans, 1st to 99th percentile over scans; {} if unknown.
        source: what was measured, or why there is nothing.
        outside: sentences on what lies outside.
    """

    edges: np.ndarray
    shares: np.ndarray
    mean: np.ndarray | None
    band: np.ndarray | None
    percentiles: dict[str, float]
    ranges: dict[str, list[float]]
    source: str
    outside: tuple[str, ...]


def intensities(found: Segmentation, network: Network | None = None) -> Intensities:
    """Compare the values within 3 mm of the cord's centre with those of the training (``cord-intensity.json``)."""
    contrast = told_contrast(found)
    edges, known, source = np.round(np.arange(0, 3.01, 0.05), 2), None, ""
    try:
        table = read_json(shipped("results") / "cord-intensity.json")
        edges, known, source = np.array(table["edges"]), table["contrasts"].get(contrast), table["source"]
    except InputError:  # nothing measured is in this installation
        pass
    trained_on = str(network.card.get("data", {}).get("source", "")) if network is not None else ""
    if known is None:
        source = f"the training's intensities are not known for {contrast}"
    elif not trained_on.endswith("of seed 1"):
        source += " (not the data that this network was trained on)"
    values = centre_values(found.crops, found.grid.spacing_mm)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1] - 1e-6), edges)
    own = {key: float(np.percentile(values, at)) for key, at in (("low", 5), ("middle", 50), ("high", 95))}
    ranges = {} if known is None else {key: known["ranges"][key] for key in own}
    said = {"low": "the darkest twentieth of the cord's middle lies below {:.2f}",
            "middle": "half of the cord's middle lies above {:.2f}",
            "high": "the brightest twentieth of the cord's middle lies above {:.2f}"}
    outside = tuple(f"{said[key].format(own[key])} times the cord's median; in training {low:.2f} to {high:.2f}"
                    for key, (low, high) in ranges.items() if not low <= own[key] <= high)
    return Intensities(edges, counts / max(1, counts.sum()), known and np.array(known["mean"]),
                       known and np.array(known["band"]), own, ranges, source, outside)


@dataclass(frozen=True)
class Sensitivity:
    """How much the answer depends on what nobody knows exactly.

    Attributes:
        thresholds: threshold and mm3.
        moves: change, mm3, dice (with the mask as it is), lesions (marks of ``lesion_table`` found again: a voxel of
            each is marked); empty where the network is not at hand.
        again: number of a mark -> in how many of the changes it was found again.
        missing: why ``moves`` is empty, or ''.
    """

    thresholds: pd.DataFrame
    moves: pd.DataFrame
    again: dict[int, int]
    missing: str


def sensitivity(found: Segmentation, network: Network | None = None, *, device: str = "cpu") -> Sensitivity:
    """Segment again with another threshold, with the centre 2 mm off, and with intensities scaled by a tenth.

    The intensity scale stays while the centre moves, so each row changes one thing.

    Args:
        found: what ``segment`` gave.
        network: the one that made it; by default the one that the record names, if its hash is the same.
        device: to run it on.
    """
    voxel_mm3 = float(found.image.voxel_mm.prod())
    chance = np.sort(found.probability[found.probability >= THRESHOLDS[0]])
    thresholds = pd.DataFrame({"threshold": THRESHOLDS, "mm3": [
        voxel_mm3 * (len(chance) - np.searchsorted(chance, np.float32(threshold))) for threshold in THRESHOLDS]})
    table, labels = lesion_table(found)
    rows, again = [], dict.fromkeys(table["lesion"].tolist(), 0)
    try:
        network = network or recorded_network(found)
        z = _code(found, network)
    except MsfilmError as fault:
        columns = ["change", "mm3", "dice", "lesions"]
        return Sensitivity(thresholds, pd.DataFrame(columns=columns), {}, fault.what)
    for name, (right, front, factor) in MOVES.items():
        mask = answer_moved(found, network, z, right, front, factor, device) >= found.record["settings"]["threshold"]
        met = np.setdiff1d(np.unique(labels[mask]), [0])
        for number in met:
            again[int(number)] += 1
        rows.append({"change": name, "mm3": voxel_mm3 * np.count_nonzero(mask), "dice": dice(found.mask, mask),
                     "lesions": len(met)})
    return Sensitivity(thresholds, pd.DataFrame(rows), again, "")


def answer_moved(found: Segmentation, network: Network, z: Any, right_mm: float, front_mm: float, factor: float,
                 device: str = "cpu") -> np.ndarray:
    """(X, Y, Z) probabilities with every crop moved and the intensities scaled; by 0, 0 and 1 those of ``found``."""
    away = np.array([right_mm, front_mm]) / found.grid.voxel_mm[:2]
    grid = replace(found.grid, centres=found.grid.centres + away)
    images, _ = crop(found.image.data, grid)
    images = (images / np.float32(found.record["cord_median"])).astype(np.float16).astype(np.float32)
    chance = predict_images(network, images[:, None] * np.float32(factor), z, device=device,
                            precision=found.record["settings"]["precision"])
    return uncrop(chance[:, 0], grid)


def recorded_network(found: Segmentation) -> Network:
    """The network that the record names, if it is still the same.

    Raises:
        SettingError: NETWORK-UNKNOWN, NETWORK-CHANGED; InputError: of its files (WEIGHTS-*).
    """
    said = found.record["network"]
    network = load_network(said["name"])
    if weights_sha256(network) != said["weights_sha256"]:
        raise SettingError("NETWORK-CHANGED", f"the network '{said['name']}' has other weights now",
                           mend="give the network that made the mask")
    return network


def told_contrast(found: Segmentation) -> str:
    """The contrast that the network was told, which is not always the scan's own."""
    settings = found.record["settings"]
    return str(settings.get("as_contrast", settings["contrast"]))


def _code(found: Segmentation, network: Network) -> Any:
    """z of every slice, as ``segment`` made it."""
    settings = found.record["settings"]
    given = settings.get("acquisition") or {}
    if "acquisition" in network.conditioning and not given:
        raise SettingError("ACQUISITION-NAME", "the acquisition parameters that the network was told are not recorded")
    values = dict.fromkeys(SIDECAR_COLUMNS) | dict(given)
    values |= {"contrast": told_contrast(found), "centre": settings.get("centre"), "rater": settings.get("rater")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said already, when the mask was made
        return network.code(pd.DataFrame([values] * len(found.grid)))
