"""The phantom's facts, kept as readable CSV files: levels of the spine, tissues, centres, their protocols, raters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from msfilm.errors import SettingError, suggest

__all__ = [
    "ACQUISITIONS",
    "EXPERIMENTAL",
    "Protocol",
    "acquisition",
    "centres",
    "levels",
    "protocol",
    "protocols",
    "rater_settings",
    "tissues",
]

FOLDER = Path(__file__).parent / "tables"

# What one kind of scan is called: contrast, then BIDS suffix and entities (STIR and PSIR are no BIDS suffixes).
ACQUISITIONS = {
    "T2w_ax": ("T2w", "T2w", ""),
    "T2star_ax": ("T2star", "T2star", ""),
    "T2w_sag": ("T2w", "T2w", "acq-sag"),
    "T2w_iso": ("T2w", "T2w", "acq-iso"),
    "T1w_iso": ("T1w", "T1w", ""),
    "MTon_ax": ("MTon", "MTS", "acq-MTon_flip-1_mt-on"),
    "MToff_ax": ("MToff", "MTS", "acq-MToff_flip-1_mt-off"),
    "STIR_sag": ("STIR", "T2w", "acq-stir"),
    "PSIR_ax": ("PSIR", "T1w", "acq-psir"),
}
# For experiments, straight to slices only (``make_slices``): name -> (contrast, suffix, entities), whose signal, whose
# geometry. 'bright' and 'dark' are one scan of which the lesions are mirrored in the second.
EXPERIMENTAL = {
    "bright_ax": (("bright", "T2w", "acq-bright"), "T2w_ax", "T2w_ax"),
    "dark_ax": (("dark", "T2w", "acq-dark"), "T2w_ax", "T2w_ax"),
    "T1w_ax": (("T1w", "T1w", "acq-ax"), "T1w_iso", "T2w_ax"),
    "STIR_ax": (("STIR", "T2w", "acq-axstir"), "STIR_sag", "T2w_ax"),
}


@cache
def _read(name: str, index: str | tuple[str, ...]) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv", comment="#").set_index(list(index) if type(index) is tuple else index)


def levels() -> pd.DataFrame:
    """Cord, grey matter and canal by vertebral level, C1 to T12 (mm, mm2), top to bottom."""
    return _read("levels", "level").copy()


def tissues() -> pd.DataFrame:
    """Proton density, relaxation times (ms) and magnetisation-transfer ratio by tissue."""
    return _read("tissues", "tissue").copy()


def centres() -> pd.DataFrame:
    """The 13 centres: scanner, weight, receive field, file order, tilt, rater."""
    return _read("centres", "centre").copy()


def protocols() -> pd.DataFrame:
    """What each centre scans, index (centre, acquisition): sequence, times (ms), flip (degrees), voxel and field of
    view (mm), SNR.
    """
    return _read("protocols", ("centre", "acquisition")).copy()


def rater_settings() -> pd.DataFrame:
    """How much raters differ, by setting."""
    return _read("raters", "setting").copy()


@dataclass(frozen=True)
class Protocol:
    """How one centre makes one kind of scan. Times in ms, lengths in mm."""

    centre: str
    acquisition: str  # a key of ACQUISITIONS
    contrast: str
    sequence: str
    plane: str  # axial or sagittal
    field_t: float
    tr: float
    tes: tuple[float, ...]
    ti: float | None
    flip_deg: float
    train: float | None
    xy: float
    z: float
    fov: float
    snr: float
    kmax: float

    @property
    def te(self) -> float:
        """Echo time, or the mean of several."""
        return sum(self.tes) / len(self.tes)

    def times(self) -> dict:
        """What the signal equations take."""
        return {
            "sequence": self.sequence,
            "field_t": self.field_t,
            "tr": self.tr,
            "te": self.te,
            "tes": self.tes,
            "ti": self.ti,
            "train": self.train,
            "flip_deg": self.flip_deg,
        }


def acquisition(name: str) -> tuple[str, str, str]:
    """Contrast, BIDS suffix and entities of an acquisition.

    Raises:
        SettingError: ACQUISITION-UNKNOWN.
    """
    if name in EXPERIMENTAL:
        return EXPERIMENTAL[name][0]
    if name not in ACQUISITIONS:
        raise SettingError(
            "ACQUISITION-UNKNOWN", f"the phantom has no acquisition {name!r}", mend=suggest(name, ACQUISITIONS)
        )
    return ACQUISITIONS[name]


@cache
def protocol(centre: str, name: str) -> Protocol:
    """One centre's protocol for one acquisition.

    Raises:
        SettingError: CENTRE-UNKNOWN, ACQUISITION-UNKNOWN.
    """
    contrast = acquisition(name)[0]
    sites = centres()
    if centre not in sites.index:
        raise SettingError("CENTRE-UNKNOWN", f"no centre {centre!r}", mend=suggest(centre, sites.index))
    if name in EXPERIMENTAL:
        signal, geometry = (protocol(centre, one) for one in EXPERIMENTAL[name][1:])
        places = {key: getattr(geometry, key) for key in ("plane", "xy", "z", "fov", "snr", "kmax")}
        return replace(signal, acquisition=name, contrast=contrast, **places)
    row = protocols().loc[(centre, name)]

    def number(value) -> float | None:
        return None if pd.isna(value) else float(value)

    return Protocol(
        centre,
        name,
        contrast,
        row.sequence,
        row.plane,
        float(sites.loc[centre, "field"]),
        float(row.tr),
        tuple(float(te) for te in str(row.te).split()),
        number(row.ti),
        float(row.flip),
        number(row.train),
        float(row.xy),
        float(row.z),
        float(row.fov),
        float(row.snr),
        float(row.kmax),
    )
