"""The phantom's facts, kept as readable CSV files: levels of the spine, tissues, centres with their protocols."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

__all__ = ["centres", "levels", "tissues"]

FOLDER = Path(__file__).parent / "tables"


@cache
def _read(name: str, index: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv", comment="#").set_index(index)


def levels() -> pd.DataFrame:
    """Cord, grey matter and canal by vertebral level, C1 to T12 (mm, mm2), top to bottom."""
    return _read("levels", "level").copy()


def tissues() -> pd.DataFrame:
    """Proton density and relaxation times (ms) by tissue."""
    return _read("tissues", "tissue").copy()


def centres() -> pd.DataFrame:
    """The 13 centres: scanner, protocols, image quality, rater."""
    return _read("centres", "centre").copy()
