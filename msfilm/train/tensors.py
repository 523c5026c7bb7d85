"""The slices that a run trains on and is chosen by, as tensors on the device; and the Dice that chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from msfilm.data.slices import SliceSet
from msfilm.errors import RunError, SettingError, suggest
from msfilm.files import sha256_array
from msfilm.train.augment import augment
from msfilm.train.state import epoch_rng
from msfilm.train.targets import MEAN, RANDOM, check_mask, drawn_rows, one_of, rater_masks, targets_of

if TYPE_CHECKING:
    from msfilm.model.encode import Encoder
    from msfilm.train.config import TrainConfig

__all__ = ["SideTensors", "augmented_once", "gather", "slices_hash", "trained_on", "usable_rows", "volume_dice"]


@dataclass(frozen=True)
class SideTensors:
    """One side of the split on the device; a batch is an index into it, so there is no loader.

    Attributes:
        images: (N, 1, H, W) float16.
        targets: (N, 1, H, W) uint8, 0 or 1, or soft as a float; or (N, R, H, W) with the masks of R raters, of which a
            batch gets one, at random (``one_of``).
        codes: z (N, M) float32, or None for a plain network.
        volume: (N,) which of ``names`` each slice belongs to.
        names: the volumes.
    """

    images: Tensor
    targets: Tensor
    codes: Tensor | None
    volume: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """rows (n,) -> images (n, 1, H, W) float32, targets (n, 1, H, W) as they are kept, codes (n, M) or None."""
        targets = self.targets[rows]
        if targets.shape[1] > 1:
            targets = one_of(targets, generator)
        return self.images[rows].float(), targets, None if self.codes is None else self.codes[rows]

    def names_of(self, rows: Tensor) -> list[str]:
        """The volumes that some slices belong to."""
        return [self.names[i] for i in sorted(set(self.volume[rows].tolist()))]


def usable_rows(slices: SliceSet, mask: str, contrasts: tuple[str, ...],
                without_centres: tuple[str, ...] = ()) -> np.ndarray:
    """(N,) bool: slices of these contrasts (all, if none is named) whose volume has this mask, but for some centres'.

    Raises:
        SettingError: MASK-UNKNOWN, CONTRAST-UNKNOWN or CENTRE-UNKNOWN.
    """
    check_mask(slices, mask)
    for contrast in contrasts:
        if contrast not in slices.contrasts:
            raise SettingError("CONTRAST-UNKNOWN", f"these slices have no contrast '{contrast}'",
                               mend=suggest(contrast, slices.contrasts))
    centres = sorted(slices.table["centre"].astype(str).unique()) if without_centres else ()
    for centre in without_centres:
        if centre not in centres:
            raise SettingError("CENTRE-UNKNOWN", f"these slices have no centre '{centre}'",
                               mend=suggest(centre, centres))
    keep = drawn_rows(slices, mask)
    if contrasts:
        keep &= slices.table["contrast"].isin(contrasts).to_numpy()
    if without_centres:
        keep &= ~slices.table["centre"].astype(str).isin(without_centres).to_numpy()
    return keep


def refuse_empty(rows: np.ndarray, mask: str, side: str, patients: Iterable[str] = ()) -> None:
    """Raise RunError TRAIN-EMPTY where none of ``rows`` (N,) is true; ``patients`` are those of that side."""
    if not np.any(rows):
        some = sorted({str(patient) for patient in patients})
        whose = f", on which are {', '.join(some[:5])}{' ..' * (len(some) > 5)}" if some else ""
        raise RunError("TRAIN-EMPTY", f"no slice with mask '{mask}' on the {side} side of the split{whose}",
                       mend="use more patients, other fractions, another split_seed, or another mask")


def gather(slices: SliceSet, rows: np.ndarray, mask: str, encoder: Encoder | None, device: torch.device,
           side: str) -> SideTensors:
    """Copy the slices where ``rows`` (N,) is true to the device.

    Raises:
        RunError: TRAIN-EMPTY, no slice; TRAIN-NO-LESION, no lesion in any of them, so that nothing can be learnt.
    """
    refuse_empty(rows, mask, side)
    index = np.flatnonzero(rows)
    targets = targets_of(slices, index, mask)
    table = slices.table.iloc[index]
    if not ((targets > 0) & (targets <= 1)).any():   # 255: a rater who did not draw it
        raise RunError("TRAIN-NO-LESION", f"mask '{mask}' is empty in all {table['volume'].nunique()} volumes on the "
                       f"{side} side of the split", mend="use more patients, or another split_seed")
    names = tuple(sorted(table["volume"].unique()))
    place = {name: i for i, name in enumerate(names)}
    codes = None if encoder is None else encoder.encode(slices.described().iloc[index]).to(device)
    return SideTensors(torch.from_numpy(np.ascontiguousarray(slices.images[index])).to(device),
                       torch.from_numpy(targets).to(device), codes,
                       torch.tensor([place[name] for name in table["volume"]], device=device), names)


def augmented_once(side: SideTensors, config: TrainConfig, spacing_mm: float) -> SideTensors:
    """Every slice augmented once, with random numbers from the seed alone: what earlier code trained on, with FiLM on.

    Images stay float16; targets are float32 where they are soft. One rater of several is drawn once, too.
    """
    images, targets = [], []
    with epoch_rng(config.seed, 0, side.images.device) as generator:   # epochs count from 1
        for rows in torch.arange(len(side), device=side.images.device).split(1024):
            image, target, _ = side.batch(rows, generator)
            image, target = augment(image, target, config.augment, generator, spacing_mm=spacing_mm)
            images.append(image.half())
            targets.append(target)
    return replace(side, images=torch.cat(images), targets=torch.cat(targets))


def slices_hash(slices: SliceSet, mask: str) -> str:
    """SHA-256 of what training sees: each slice's content hash and place, and the mask."""
    table = slices.table
    lines = "\n".join(f"{v} {z} {h} {c}" for v, z, h, c in
                      zip(table["volume"], table["z"], table["slice_hash"], table["contrast"], strict=True))
    names = rater_masks(slices) if mask in (RANDOM, MEAN) else [mask]
    masks = " ".join(sha256_array(np.asarray(slices.masks[name])) for name in names)
    return hashlib.sha256(f"{lines}\n{masks}".encode()).hexdigest()


def sides_hash(*sides: SideTensors) -> str:
    """SHA-256 of which volumes' slices lie on which side, and of the codes z that they get."""
    digest = hashlib.sha256()
    for side in sides:
        digest.update(" ".join(side.names).encode("utf-8", "backslashreplace"))
        digest.update(side.volume.cpu().numpy().tobytes())
        digest.update(b"" if side.codes is None else side.codes.cpu().numpy().tobytes())
    return digest.hexdigest()


def trained_on(slices: SliceSet, rows: np.ndarray) -> dict[str, Any]:
    """What a network's card says of the volumes whose slices ``rows`` (N,) picks: contrasts, voxel sizes in mm, field.

    ``segment`` warns by it of a scan unlike these.
    """
    table = slices.table[rows]
    names = table["volume"].unique()
    voxel = np.array([slices.scans[name].voxel_mm for name in names])   # (volumes, 3): x, y, z
    field_T = slices.volumes.loc[names, "field_T"].dropna() if "field_T" in slices.volumes else []
    ranges = {"in_plane": voxel[:, :2], "slice": voxel[:, 2]}
    return {"contrasts": sorted(table["contrast"].unique()),
            "voxel_mm": {name: [round(float(sides.min()), 4), round(float(sides.max()), 4)]
                         for name, sides in ranges.items()}} | (
        {"field_T": [float(min(field_T)), float(max(field_T))]} if len(field_T) else {})


def volume_dice(model: nn.Module, side: SideTensors, autocast: Any, batch_size: int = 256) -> float:
    """Mean over volumes of the Dice of their crops at threshold 0.5: to choose the best epoch by, not to report.

    A volume whose reference and prediction are both empty is left out; with one of them empty its Dice is 0. A soft
    reference is cut at 0.5.
    """
    model.eval()
    counts = torch.zeros(3, len(side.names), device=side.images.device)   # overlap, reference, prediction (pixels)
    with torch.no_grad():
        for rows in torch.arange(len(side), device=side.images.device).split(batch_size):
            images, targets, codes = side.batch(rows)
            with autocast:
                logits = model(images, codes)
            predicted, drawn = logits.float() > 0, targets >= 0.5        # sigmoid(0) = 0.5
            for row, pixels in enumerate((predicted & drawn, drawn, predicted)):
                counts[row].index_add_(0, side.volume[rows], pixels.sum((1, 2, 3)).float())
    overlap, reference, prediction = counts.cpu().double()
    total = reference + prediction
    return float((2 * overlap[total > 0] / total[total > 0]).mean())
