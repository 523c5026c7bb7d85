"""What a RaterExplorer knows of one volume: who drew what, their masks combined, and a network in every style."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from msfilm.data.crop import coverage, uncrop
from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.metrics import dice
from msfilm.evaluate.predict import predict_images
from msfilm.evaluate.staple import staple
from msfilm.evaluate.style_tables import MEAN
from msfilm.evaluate.styles import styles_of
from msfilm.model.weights import Network

__all__ = ["COMBINED", "RaterVolume", "StyleAxis", "several_raters", "style_weights"]

COMBINED = ("share of raters", "STAPLE")
_SLACK = 1e-6   # float32 shares and the decimals of a slider meet within this


def several_raters(slices: SliceSet) -> list[str]:
    """The volumes that two raters or more drew.

    Raises:
        SettingError: AGREEMENT-FEW where there is none.
    """
    found = [str(volume) for volume in slices.volumes.index
             if sum(name.startswith("rater-") for name in slices.scans[volume].indices) > 1]
    if not found:
        raise SettingError("AGREEMENT-FEW", f"none of {len(slices.volumes)} volumes was drawn by two raters",
                           mend="make the cohort with panel_every: 1, so that four raters draw every patient")
    return found


class RaterVolume:
    """One volume's crops and masks, with each rater's name.

    Scores are on the scan's own grid, cut to what crops and masks reach; pictures show the crops.

    Attributes:
        images: (n, H, W). raters: their names, sorted. crops: name (and 'truth', where known) -> (n, H, W) bool.
        own: the same on the scan's own grid, (X, Y, Z) of the box. voxel_mm3: of one voxel.
    """

    def __init__(self, slices: SliceSet, name: str):
        self.name, self.scan, self.grid = name, slices.scans[name], slices.grid(name)
        at = np.flatnonzero(slices.table["volume"].to_numpy() == name)
        self.part = slices.select(at)
        self.images = np.asarray(self.part.images[:, 0], np.float32)
        self.voxel_mm3, self.spacing_mm = self.scan.voxel_volume_mm3, self.grid.spacing_mm
        said = slices.volumes.loc[name].get("raters")
        said = [one for one in said.split(",") if one] if isinstance(said, str) else []   # unknown: None or NaN
        drawn = sorted((key for key in self.scan.indices if key.startswith("rater-")), key=lambda key: int(key[6:]))
        named = {key: said[int(key[6:]) - 1] if int(key[6:]) <= len(said) else key for key in drawn}
        keys = dict(sorted((who, key) for key, who in named.items()))
        self.raters = tuple(keys)
        if "truth" in self.scan.indices:
            keys["truth"] = "truth"
        self.crops = {who: self._crop(key) for who, key in keys.items()}
        dense = {who: self.scan.dense(key) for who, key in keys.items()}
        reached = np.any([coverage(self.grid), *dense.values()], axis=0)
        self.box = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(reached))
        self.own = {who: np.ascontiguousarray(mask[self.box]) for who, mask in dense.items()}
        self._combined: dict[tuple[str, str | None], tuple[np.ndarray, np.ndarray]] = {}

    def _crop(self, key: str) -> np.ndarray:
        if key not in self.part.masks:
            return np.zeros(self.images.shape, bool)
        mask = np.asarray(self.part.masks[key][:, 0])
        return (mask == 1) & (mask != UNDRAWN)

    @cached_property
    def busiest(self) -> int:
        """The slice in which most is marked, by all together."""
        return int(sum(mask.sum(axis=(1, 2)) for mask in self.crops.values()).argmax())

    @cached_property
    def marked_mm3(self) -> float:
        """What anybody marked."""
        return float(np.count_nonzero(np.any([*self.own.values()], axis=0)) * self.voxel_mm3)

    def combined(self, kind: str, without: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Raters together: probability on the crops (n, H, W) and on the scan's own grid (X, Y, Z) of the box.

        Args:
            kind: one of COMBINED: the share of raters who marked a voxel, or STAPLE's probability; kept once computed.
            without: a rater to leave out.
        """
        if (kind, without) not in self._combined:
            others = [who for who in self.raters if who != without]
            both = []
            for masks in (self.crops, self.own):
                some = [masks[who] for who in others]
                both.append(staple(some).probability if kind == COMBINED[1] else
                            np.mean(some, axis=0, dtype=np.float32))
            self._combined[kind, without] = both[0], both[1]
        return self._combined[kind, without]

    def marked(self, kind: str, threshold: float, without: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Where that is at least ``threshold``: crops and own grid. At one half: consensus(), and Staple.mask."""
        crops, own = self.combined(kind, without)
        return crops >= threshold - _SLACK, own >= threshold - _SLACK

    def scored(self, kind: str, threshold: float, leave_out: bool) -> dict[str, float]:
        """Dice of each rater with all combined, or with the others; NaN: both empty, or STAPLE of one other alone."""
        out = {}
        for who in self.raters:
            if leave_out and kind == COMBINED[1] and len(self.raters) < 3:
                out[who] = float("nan")
                continue
            out[who] = dice(self.own[who], self.marked(kind, threshold, who if leave_out else None)[1])
        return out


def style_weights(style: float, styles: Sequence[float]) -> np.ndarray:
    """How much of each rater's code makes up a style between them: (R,), summing to 1.

    Between two raters it goes straight from the code of the one to that of the other; beyond the first and the last it
    goes on as it came, so that one weight passes 1 and its neighbour's falls below 0.

    Args:
        style: where to be, in the unit of ``styles``.
        styles: (R,) of the raters, rising.
    """
    styles = np.asarray(styles, float)
    at = int(np.clip(np.searchsorted(styles, style, side="right") - 1, 0, len(styles) - 2))
    along = (style - styles[at]) / (styles[at + 1] - styles[at])
    weights = np.zeros(len(styles))
    weights[at : at + 2] = 1 - along, along
    return weights


class StyleAxis:
    """A rater-conditioned network along its raters' styles.

    Args:
        network: told the rater (and perhaps more).
        style_mm: rater -> bias in mm; without it the raters stand at 1, 2, 3 .. in the encoder's order.

    Attributes:
        raters: in the order of style. styles: (R,) rising. unit: ' mm', or '' where only the order is known.

    Raises:
        SettingError: STYLE-UNKNOWN.
    """

    def __init__(self, network: Network, style_mm: Mapping[str, float] | None = None, **settings: Any):
        known = styles_of(network)
        if len(known) < 2:
            raise SettingError("STYLE-UNKNOWN", f"this network is told {network.conditioning}: it has no rater styles",
                               mend="give one that is told the rater, such as 'film-rater-small'")
        style_mm = dict(style_mm) if style_mm is not None else dict(zip(known, range(1, len(known) + 1), strict=True))
        self.unit = " mm" if any(isinstance(one, float) for one in style_mm.values()) else ""
        if lost := [who for who in known if who not in style_mm]:
            raise SettingError("STYLE-UNKNOWN", f"no style_mm for {', '.join(lost)}", mend=suggest(lost[0], style_mm))
        self.raters = tuple(sorted(known, key=lambda who: style_mm[who]))
        self.styles = np.array([float(style_mm[who]) for who in self.raters])
        if (np.diff(self.styles) <= 0).any():
            raise SettingError("STYLE-UNKNOWN", f"two raters of one style: {self.styles.tolist()}",
                               mend="a slider along the styles needs each at its own place")
        self.network, self._settings = network, settings
        self._kept: dict[tuple[str, float | None], tuple[np.ndarray, np.ndarray, float]] = {}

    def nearest(self, style: float) -> str:
        """The rater whose style is nearest; exactly between two, the smaller."""
        return self.raters[int(np.abs(self.styles - style).round(6).argmin())]

    def weights(self, style: float | None) -> np.ndarray:
        """(R,) in the order of ``raters``; of the mean code (None) all the same."""
        if style is None:
            return np.full(len(self.raters), 1 / len(self.raters))
        return style_weights(style, self.styles)

    def code(self, slices: SliceSet, style: float | None) -> torch.Tensor:
        """z (N, M) of these slices: the raters' codes, weighted."""
        table = slices.described()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")   # of the other parts of a joined code, known to whoever made the slices
            if style is None:
                return self.network.code(table.assign(rater=MEAN))
            codes = torch.stack([self.network.code(table.assign(rater=who)) for who in self.raters])   # (R, N, M)
        return torch.einsum("r,rnm->nm", torch.from_numpy(self.weights(style)).float(), codes)

    def predict(self, volume: RaterVolume, style: float | None) -> tuple[np.ndarray, np.ndarray, float]:
        """Probability on the crops (n, H, W), marked on the own grid's box, and mm3; the last 48 answers are kept."""
        key = volume.name, None if style is None else round(float(style), 6)
        if key not in self._kept:
            probability = predict_images(self.network, volume.part.images, self.code(volume.part, style),
                                         **self._settings)[:, 0]
            marked = uncrop(probability, volume.grid)[volume.box] >= 0.5
            while len(self._kept) >= 48:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = probability, marked, float(np.count_nonzero(marked) * volume.voxel_mm3)
        return self._kept[key]
