"""What is measured on a scan of the cord, real or phantom alike: ratios, noise, geometry, lesions, histogram, spectrum.

Every rule works slice by slice on the scan's own grid, distances in mm in the plane, and a volume's value is the median
over its slices unless said. Arrays are canonical (X, Y, Z): right, anterior, superior. The names of the values:

==================  =====  ============================================================================================
wm                  -      the slice's white matter: median of the cord between 0.75 and 2 mm below its surface, without
                           lesions and 1 voxel round them. No grey matter label is needed, so it is the same everywhere
gm_wm               ratio  median of the grey matter label / median of the cord deeper than 0.75 mm and 0.5 mm from it
csf_wm              ratio  90th percentile (T1w, PSIR: 25th, since bone and dura are darker than CSF) of what lies
                           1 to 3 mm outside the cord / wm. Bone, dura and roots share that ring, hence no median
snr                 ratio  wm / noise SD by the 3 x 3 Laplacian difference of Immerkaer (CVIU 1996), whose zero response
                           to edges along the axes and to gradients leaves noise: 1.4826 median |L| / 6 over the voxels
                           whose neighbours are all cord. Right for white noise; where a scanner interpolated (zero
                           filling), noise is correlated and this reads too high, alike on real and phantom scans
cord_area           mm2    voxels x their area; not corrected for the angle between cord and slice
cord_ap, cord_rl    mm     ellipse-equivalent diameters: 4 x the root of the mask's second moments (plus voxel^2 / 12)
                           along its own main axes, the one nearer to the front being AP
canal_area, _ap, _rl       the same of cord and CSF label together
area_z, ap_z, rl_z  SD     (value - the level's table value) / (9, 4.5, 7 % of it), where each slice's level is known
gm_fraction         ratio  grey matter / cord area, over C1-C7 where levels are known
lesion_wm_max       ratio  largest of the lesions' mean voxel / its slice's wm, lesions of at least 3 voxels and 5 mm3
lesion_wm_p90       ratio  90th percentile of voxel / its slice's wm over all lesion voxels of the volume
lesion_mm3, _count, _length_mm (longest), _share (of the slices with cord that have some): lesions are connected in 3-D,
                           26 neighbours, at least 3 voxels; length = number of slices x their distance
crop_p05 ... p95    ratio  quantiles of the 36 mm crop / the cord's median
spectrum_fine       ratio  power between 0.3 and 0.6 cycles/mm / power between 0.05 and 0.3, see ``realism_curves``
==================  =====  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

import msfilm
from msfilm.errors import SettingError
from msfilm.evaluate.realism_curves import crop_values

__all__ = ["LEVEL_SD", "Measured", "ellipse", "measure_scan", "plane_of"]

LEVEL_SD = {"area": 0.09, "ap": 0.045, "rl": 0.07}  # between people, share of the mean: ten spine-generic subjects
DARK_CSF = ("T1w", "PSIR")
MAX_SLICES = 40  # measured per volume, evenly spread; lesions are measured on all
MIN_VOXELS = 8  # of cord, white matter or ring, for a slice to count
_LAPLACIAN = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Measured:
    """What one scan measures. A value that cannot be measured on it is absent, and ``notes`` may say why.

    Attributes:
        name: of the scan.
        contrast: with the plane of its slices, such as "T2w_ax", "T1w_iso".
        source: "real" or "phantom".
        values: name (see the module) -> number.
        curves: "histogram" (density over HISTOGRAM_EDGES), "spectrum" (per radius), "frequency" (cycles/mm).
        notes: what is odd about it.
        corrupted: a phantom volume with a strong artefact; left out of every range.
    """

    name: str
    contrast: str
    source: str
    values: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    corrupted: bool = False


def plane_of(voxel_mm: Sequence[float]) -> str:
    """'ax' where slices are thick along Z, 'sag' along X, 'cor' along Y; 'iso' where no axis is 1.5 x another."""
    voxel_mm = np.asarray(voxel_mm, dtype=float)
    return "iso" if voxel_mm.max() < 1.5 * voxel_mm.min() else ("sag", "cor", "ax")[int(np.argmax(voxel_mm))]


def ellipse(mask: np.ndarray, voxel_mm: Sequence[float]) -> tuple[float, float, float]:
    """Area (mm2) and ellipse-equivalent AP and RL diameters (mm) of an (X, Y) mask."""
    pixel = np.asarray(voxel_mm[:2], dtype=float)
    points = np.argwhere(mask) * pixel
    spread = np.cov(points.T, bias=True) + np.diag(pixel**2 / 12)  # a pixel is a square, not a point
    sizes, axes = np.linalg.eigh(spread)
    ap = int(np.argmax(np.abs(axes[1])))
    return float(len(points) * pixel.prod()), 4 * float(np.sqrt(sizes[ap])), 4 * float(np.sqrt(sizes[1 - ap]))


def measure_scan(
    name: str,
    contrast: str,
    image: np.ndarray | None,
    cord: np.ndarray,
    affine: np.ndarray,
    *,
    grey: np.ndarray | None = None,
    lesion: np.ndarray | None = None,
    canal: np.ndarray | None = None,
    levels: Sequence[str] | None = None,
    outline: bool = True,
    source: str = "phantom",
    corrupted: bool = False,
    notes: Sequence[str] = (),
) -> Measured:
    """Measure one scan by the rules in this module's first lines.

    Args:
        name: of the scan.
        contrast: such as "T2w"; the plane is added from the voxel's shape.
        image: (X, Y, Z) canonical, any unit; None where only masks are at hand.
        cord: (X, Y, Z) mask.
        affine: (4, 4) voxel -> mm.
        grey, lesion, canal: (X, Y, Z) masks where known; an empty lesion mask says that there is none.
        levels: vertebral level ("C4") of each of the Z slices, where known.
        outline: False where ``cord`` is an assumed shape: then neither its size nor its shares are measured.
        source: "real" or "phantom".
        corrupted: see ``Measured``.
        notes: see ``Measured``.

    Raises:
        SettingError: REALISM-SHAPE where masks and image differ in shape.
    """
    masks = {"cord": cord, "grey": grey, "lesion": lesion, "canal": canal}
    masks = {key: np.asarray(mask) == 1 for key, mask in masks.items() if mask is not None}
    shape = masks["cord"].shape
    for key, array in {**masks, "image": image}.items():
        if array is not None and array.shape != shape:
            raise SettingError("REALISM-SHAPE", f"{name}: {key} {array.shape}, but cord {shape}")
    voxel_mm = np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)
    base = contrast.split("_")[0]
    zs = np.flatnonzero(masks["cord"].sum(axis=(0, 1)) >= MIN_VOXELS)
    chosen = zs[np.unique(np.linspace(0, len(zs) - 1, min(len(zs), MAX_SLICES)).round().astype(int))] if len(zs) else zs
    rows = [_measure_slice(image, masks, z, voxel_mm, base in DARK_CSF, levels, outline) for z in chosen]
    table = pd.DataFrame(rows)
    values = {key: float(table[key].median()) for key in table if table[key].notna().any()}
    curves: dict[str, list[float]] = {}
    if image is not None and len(zs):
        more, curves = crop_values(image, masks["cord"], affine, chosen)
        values |= more
    if "lesion" in masks and len(zs):
        values |= _lesion_values(image, masks, zs, voxel_mm)
    return Measured(name, f"{base}_{plane_of(voxel_mm)}", source, values, curves, tuple(notes), corrupted)


@cache
def _level_table() -> pd.DataFrame:
    path = Path(msfilm.__file__).parent / "phantom" / "tables" / "levels.csv"  # read as a file: no room is imported
    return pd.read_csv(path, comment="#").set_index("level")[["cord_area", "cord_ap", "cord_rl"]]


def _measure_slice(image, masks, z: int, voxel_mm, dark_csf: bool, levels, outline: bool) -> dict[str, float]:
    margin = np.ceil(4.0 / voxel_mm[:2]).astype(int) + 1
    where = np.argwhere(masks["cord"][:, :, z])
    low, high = np.maximum(where.min(axis=0) - margin, 0), where.max(axis=0) + margin + 1
    box = (slice(low[0], high[0]), slice(low[1], high[1]), z)
    part = {key: mask[box] for key, mask in masks.items()}
    cord = part["cord"]
    out: dict[str, float] = {}
    if outline:
        out["cord_area"], out["cord_ap"], out["cord_rl"] = ellipse(cord, voxel_mm)
        level = levels[z] if levels is not None else None
        if level in _level_table().index:
            for key, mean in zip(LEVEL_SD, _level_table().loc[level], strict=True):
                out[f"{key}_z"] = (out[f"cord_{key}"] - mean) / (LEVEL_SD[key] * mean)
        if "grey" in part and part["grey"].any() and (level is None or str(level).startswith("C")):
            out["gm_fraction"] = float(part["grey"].sum() / cord.sum())
        if "canal" in part:
            canal = masks["canal"][:, :, z] | masks["cord"][:, :, z]
            out["canal_area"], out["canal_ap"], out["canal_rl"] = ellipse(canal, voxel_mm)
    if image is None:
        return out
    picture = np.asarray(image[box], dtype=np.float64)
    white = _white(part, voxel_mm)
    wm = float(np.median(picture[white])) if white.sum() >= MIN_VOXELS else np.nan
    wm = wm if wm > 0 else np.nan  # a ratio to nothing, or to a signed image's negative, says nothing
    depth, outside = _depth(cord, voxel_mm), _depth(~cord, voxel_mm)
    ring = (outside >= 1.0) & (outside <= 3.0)
    if ring.sum() >= MIN_VOXELS:
        out["csf_wm"] = float(np.percentile(picture[ring], 25 if dark_csf else 90)) / wm
    if "grey" in part and part["grey"].sum() >= MIN_VOXELS:
        far = cord & (depth >= 0.75) & (_depth(~part["grey"], voxel_mm) >= 0.5) & ~_near_lesion(part)
        grey = part["grey"] & ~_near_lesion(part)
        if min(far.sum(), grey.sum()) >= MIN_VOXELS:
            out["gm_wm"] = float(np.median(picture[grey]) / np.median(picture[far])) if wm > 0 else np.nan
    inner = ndimage.binary_erosion(cord, np.ones((3, 3), dtype=bool))
    if inner.sum() >= MIN_VOXELS:
        noise = 1.4826 * np.median(np.abs(ndimage.correlate(picture, _LAPLACIAN)[inner])) / 6
        out["snr"] = wm / noise if noise > 0 else np.nan
    return out


def _depth(mask: np.ndarray, voxel_mm) -> np.ndarray:
    """Distance in mm from the mask's edge inwards: that of voxel centres, less half a voxel."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return ndimage.distance_transform_edt(mask, sampling=voxel_mm[:2]) - np.mean(voxel_mm[:2]) / 2


def _near_lesion(part) -> np.ndarray:
    if "lesion" not in part:
        return np.zeros(part["cord"].shape, dtype=bool)
    return ndimage.binary_dilation(part["lesion"], np.ones((3, 3), dtype=bool))


def _white(part, voxel_mm) -> np.ndarray:
    depth = _depth(part["cord"], voxel_mm)
    band = part["cord"] & (depth >= 0.75) & (depth <= 2.0) & ~_near_lesion(part)
    return band if band.sum() >= MIN_VOXELS else part["cord"] & (depth >= 0.75) & ~_near_lesion(part)


def _lesion_values(image, masks: Mapping[str, np.ndarray], zs, voxel_mm) -> dict[str, float]:
    """Lesions of the whole volume, and their brightness where there is an image."""
    labels, count = ndimage.label(masks["lesion"], structure=_NEIGHBOURS_26)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [label for label in range(1, count + 1) if sizes[label] >= 3]
    present = np.isin(labels, kept)
    out = {
        "lesion_count": float(len(kept)),
        "lesion_mm3": float(present.sum() * voxel_mm.prod()),
        "lesion_share": float(present[:, :, zs].any(axis=(0, 1)).mean()),
    }
    if not kept:
        return out
    boxes = ndimage.find_objects(labels)
    out["lesion_length_mm"] = float(max(boxes[k - 1][2].stop - boxes[k - 1][2].start for k in kept) * voxel_mm[2])
    if image is None:
        return out
    xs, ys, where = np.nonzero(present)
    wm = np.full(present.shape[2], np.nan)
    for z in np.unique(where):
        part = {key: masks[key][:, :, z] for key in ("cord", "lesion")}
        white = _white(part, voxel_mm)
        if white.sum() >= MIN_VOXELS:
            wm[z] = np.median(image[:, :, z][white])
    wm[wm <= 0] = np.nan
    if np.isfinite(wm).any():
        wm[np.isnan(wm)] = np.nanmedian(wm)  # a slice that is lesion all over: the other slices' white matter
    ratio = np.asarray(image[xs, ys, where], dtype=np.float64) / wm[where]
    means = pd.Series(ratio).groupby(labels[xs, ys, where]).agg(["mean", "size"])
    means = means[means["size"] * voxel_mm.prod() >= 5.0]["mean"]
    if np.isfinite(ratio).all():
        out["lesion_wm_p90"] = float(np.percentile(ratio, 90))
        if len(means):
            out["lesion_wm_max"] = float(means.max())
    return out
