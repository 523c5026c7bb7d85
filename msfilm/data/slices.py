"""SliceSet: all crops of a data set as arrays, with their table; and ScanMasks, the scans' own masks for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.data.crop import CropGrid
from msfilm.errors import InputError, SettingError, suggest
from msfilm.files import sha256_array

__all__ = ["TABLE_COLUMNS", "UNDRAWN", "ScanMasks", "SliceSet", "hash_slice"]

UNDRAWN = 255  # mask value of a slice whose volume this rater did not draw
TABLE_COLUMNS = (
    "volume",
    "patient",
    "centre",
    "contrast",
    "rater",
    "z",
    "centre_x",
    "centre_y",
    "spacing_mm",
    "padded",
    "slice_hash",
)


def hash_slice(image: np.ndarray) -> str:
    """Content hash of one crop as stored (32 hexadecimal digits); empty for a constant crop, which names nobody."""
    if image.size == 0 or image.min() == image.max():
        return ""
    return sha256_array(image.reshape(image.shape[-2:]))[:32]  # (H, W) and (1, H, W) are the same slice


@dataclass(frozen=True, eq=False)
class ScanMasks:
    """One volume's masks on its own canonical grid, as voxel lists, so that scoring needs no files.

    Attributes:
        shape: (X, Y, Z).
        affine: (4, 4) canonical voxel -> RAS mm.
        indices: mask name -> flat C-order numbers of its voxels, rising, int32. No entry: nobody drew that mask.
        cord_values: image / cord median at ``indices['cord']``, float32.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    indices: dict[str, np.ndarray]
    cord_values: np.ndarray

    @classmethod
    def from_dense(
        cls, affine: np.ndarray, masks: dict[str, np.ndarray], image: np.ndarray, cord_median: float = 1.0
    ) -> ScanMasks:
        """From (X, Y, Z) masks by name (``cord`` among them), and the image with its median over the cord.

        Raises:
            InputError: NIFTI-SIZE, for more voxels than int32 can number.
        """
        if image.size > np.iinfo(np.int32).max:
            raise InputError("NIFTI-SIZE", f"{image.size} voxels are more than int32 can number", mend="crop the scan")
        # NumPy finds the true values of a bool array several times faster than the non-zero ones of a uint8 array.
        indices = {name: np.flatnonzero(np.asarray(mask) != 0).astype(np.int32) for name, mask in masks.items()}
        values = image.reshape(-1)[indices["cord"]].astype(np.float32) / np.float32(cord_median)
        return cls(tuple(int(side) for side in image.shape), np.asarray(affine, np.float64), indices, values)

    def dense(self, name: str) -> np.ndarray:
        """(X, Y, Z) bool mask. Raises SettingError MASK-UNKNOWN for a mask that was not drawn."""
        if name not in self.indices:
            raise SettingError("MASK-UNKNOWN", f"no mask '{name}'", mend=suggest(name, self.indices))
        out = np.zeros(int(np.prod(self.shape)), bool)
        out[self.indices[name]] = True
        return out.reshape(self.shape)

    @property
    def voxel_mm(self) -> np.ndarray:
        """(3,) voxel size in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, eq=False)
class SliceSet:
    """Crops of many scans: images, masks and tables that stay in step.

    Attributes:
        images: (N, 1, H, W) float16, intensity / median of |intensity| over that volume's cord.
        masks: name -> (N, 1, H, W) uint8, 0 or 1, or 255 where that mask was not drawn for the volume.
        table: one row a slice, columns ``TABLE_COLUMNS``, index 0..N-1.
        volumes: one row a volume, index ``volume``.
        scans: volume -> its masks on the scan's own grid.
        meta: size, spacing_mm, source, version.
    """

    images: np.ndarray
    masks: dict[str, np.ndarray]
    table: pd.DataFrame
    volumes: pd.DataFrame
    scans: dict[str, ScanMasks]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        n = len(self.images)
        wrong = [f"mask {name} {mask.shape}" for name, mask in self.masks.items() if mask.shape != self.images.shape]
        if len(self.table) != n:
            wrong.append(f"table of {len(self.table)} rows")
        missing = [column for column in TABLE_COLUMNS if column not in self.table.columns]
        if missing:
            wrong.append(f"table without {', '.join(missing)}")
        elif lost := sorted(set(self.table["volume"]) - (set(self.volumes.index) & set(self.scans))):
            wrong.append(f"no volume row or scan for {', '.join(map(str, lost[:3]))}")
        if self.images.ndim != 4 or wrong:
            raise InputError(
                "SLICES-SHAPE", f"images {self.images.shape} do not go with " + ("; ".join(wrong) or "N C H W")
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.images.shape[-2:]
        return (
            f"SliceSet({len(self)} slices of {height} x {width} at {self.meta.get('spacing_mm', '?')} mm, "
            f"{len(self.volumes)} volumes, {self.volumes['patient'].nunique()} patients, "
            f"contrasts {', '.join(self.contrasts) or 'none'}, masks {', '.join(self.masks) or 'none'})"
        )

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The contrasts present, sorted."""
        return tuple(sorted(self.table["contrast"].unique()))

    def select(self, index: Sequence[int] | np.ndarray | pd.Series) -> SliceSet:
        """Some slices, by position or by a truth value a slice; volumes and scans follow."""
        index = np.asarray(index)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise SettingError("SLICES-INDEX", f"{index.shape} truth values for {len(self)} slices")
            index = np.flatnonzero(index)
        index = index.astype(np.int64, casting="same_kind") if index.size else np.zeros(0, np.int64)
        table = self.table.iloc[index].reset_index(drop=True)
        volumes = self.volumes.loc[self.volumes.index.isin(set(table["volume"]))].copy()
        return SliceSet(
            self.images[index],
            {name: mask[index] for name, mask in self.masks.items()},
            table,
            volumes,
            {name: self.scans[name] for name in volumes.index},
            dict(self.meta),
        )

    def described(self) -> pd.DataFrame:
        """The table, with what ``volumes`` knows besides: echo time, repetition time, flip angle, field and so on."""
        return self.table.join(self.volumes[[c for c in self.volumes if c not in self.table]], on="volume")

    def grid(self, volume: str) -> CropGrid:
        """The crop grid of one volume's slices, in the order in which they stand here."""
        rows = self.table[self.table["volume"] == volume]
        if rows.empty:
            raise SettingError("VOLUME-UNKNOWN", f"no volume '{volume}'", mend=suggest(volume, self.volumes.index))
        scan = self.scans[volume]
        return CropGrid(
            scan.shape,
            scan.affine,
            rows["z"].to_numpy(),
            rows[["centre_x", "centre_y"]].to_numpy(),
            int(self.images.shape[-1]),
            float(rows["spacing_mm"].iloc[0]),
        )

    @classmethod
    def concat(cls, sets: Sequence[SliceSet]) -> SliceSet:
        """Join sets of the same crop size and spacing; a mask that one of them lacks is 255 there.

        Raises:
            InputError: SLICES-MISMATCH for other sizes or spacings, SLICES-TWICE for a volume in two sets.
        """
        sets = list(sets)
        if not sets:
            raise InputError("SLICES-EMPTY", "nothing to join")
        kinds = {(part.images.shape[1:], part.meta.get("spacing_mm")) for part in sets}
        if len(kinds) > 1:
            raise InputError(
                "SLICES-MISMATCH",
                f"crops of {' and '.join(map(str, sorted(kinds, key=str)))}",
                mend="prepare them with the same size and spacing",
            )
        index = pd.Index(np.concatenate([part.volumes.index.to_numpy() for part in sets]), name="volume")
        if index.has_duplicates:
            raise InputError("SLICES-TWICE", f"volume '{index[index.duplicated()][0]}' is in two of the sets")
        names = list(dict.fromkeys(name for part in sets for name in part.masks))
        masks = {
            name: np.concatenate([part.masks.get(name, np.full(part.images.shape, UNDRAWN, np.uint8)) for part in sets])
            for name in names
        }
        volumes = pd.concat([part.volumes for part in sets])
        volumes.index = index
        meta = dict(sets[0].meta)
        meta["source"] = "; ".join(dict.fromkeys(str(part.meta.get("source", "")) for part in sets))
        return cls(
            np.concatenate([part.images for part in sets]),
            masks,
            pd.concat([part.table for part in sets], ignore_index=True),
            volumes,
            {name: scan for part in sets for name, scan in part.scans.items()},
            meta,
        )

    def equals(self, other: SliceSet) -> bool:
        """Whether two sets hold the same values throughout (meta aside); unknown table values equal each other."""
        if set(self.masks) != set(other.masks) or list(self.scans) != list(other.scans):
            return False
        pairs = [(self.images, other.images), *((self.masks[name], other.masks[name]) for name in self.masks)]
        for name, scan in self.scans.items():
            twin = other.scans[name]
            if scan.shape != twin.shape or set(scan.indices) != set(twin.indices):
                return False
            pairs += [(scan.affine, twin.affine), (scan.cord_values, twin.cord_values)]
            pairs += [(scan.indices[mask], twin.indices[mask]) for mask in scan.indices]
        return (
            all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)
            and _same_table(self.table, other.table)
            and _same_table(self.volumes, other.volumes)
        )

    def save(self, folder: str | Path) -> Path:
        """Write the set as a folder of .npy, Parquet and JSON files, all at once or not at all."""
        from msfilm.data.store import save_slices

        return save_slices(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> SliceSet:
        """Read a set written by ``save``; arrays are memory-mapped, read-only.

        Args:
            folder: the folder.
            verify: compare every file's SHA-256 with the one written down (about half a second for 500 MB).

        Raises:
            InputError: SLICES-MISSING, SLICES-CORRUPT or SLICES-VERSION.
        """
        from msfilm.data.store import load_slices

        return load_slices(folder, verify=verify)


def _same_table(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    if list(a.columns) != list(b.columns) or list(a.index) != list(b.index):
        return False
    return all(
        bool((((x := a[c].to_numpy(object)) == (y := b[c].to_numpy(object))) | (pd.isna(x) & pd.isna(y))).all())
        for c in a
    )
