"""Which volumes an evaluation scores: the patients of a side, in the contrasts that the network can be told."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.data.split import SIDES, check_split
from msfilm.errors import InputError, SettingError, suggest
from msfilm.model.weights import Network

__all__ = ["choose_side", "told_contrasts"]


def told_contrasts(network: Network, slices: SliceSet, notes: list[str]) -> SliceSet:
    """Without the volumes of contrasts that a network conditioned on the contrast has no code for; ``notes`` says so.

    Others are scored on every contrast: how a plain network does on one that it never saw is a question of the paper.

    Raises:
        SettingError: CONTRAST-UNKNOWN, nothing is left.
    """
    known = network.card.get("data", {}).get("contrasts") or ()   # networks of earlier versions do not say
    if not known or "contrast" not in network.conditioning.split("+"):
        return slices
    if not (others := [name for name in slices.contrasts if name not in known]):
        return slices
    if len(others) == len(slices.contrasts):
        raise SettingError("CONTRAST-UNKNOWN", f"the network was told of {', '.join(known)}, and these slices are "
                           f"{', '.join(others)}", mend="evaluate slices of a contrast that it knows")
    out = slices.volumes["contrast"].isin(others).sum()
    notes.append(f"{out} volumes of {', '.join(others)} left out: this network is told the contrast, and has no code "
                 "for that")
    return slices.select(slices.table["contrast"].isin(known).to_numpy())


def choose_side(run: Path, slices: SliceSet, split: str,
                validation: SliceSet | None) -> tuple[SliceSet, SliceSet | None]:
    """The slices to score, and those on which the threshold baseline is chosen (None: not at hand)."""
    if split == "all":
        return slices, validation
    if split not in SIDES:
        raise SettingError("SPLIT-NAME", f"split={split!r}", mend=suggest(split, [*SIDES, "all"]))
    sides = _read_split(run)
    unknown = sorted(set(slices.table["patient"].astype(str)) - set(sides.index))
    if unknown:
        raise SettingError("SPLIT-UNKNOWN", f"{len(unknown)} patients have no side in the run's split, for example "
                           f"{unknown[0]}", where=run / "split.csv",
                           mend="evaluate the slices that the run was split from, or use split 'all' for new patients")
    check_split(slices, sides)
    side = slices.table["patient"].astype(str).map(sides).to_numpy()
    if not (side == split).any():
        raise SettingError("SPLIT-EMPTY", f"no patient of these slices is in split {split!r}", where=run / "split.csv",
                           mend=f"sides that have patients: {', '.join(sorted(set(side)))}")
    return slices.select(side == split), validation or slices.select(side == "val")


def _read_split(run: Path) -> pd.Series:
    path = run / "split.csv"
    try:
        table = pd.read_csv(path, dtype=str)
        return table.set_index("patient")["side"]
    except (FileNotFoundError, KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError("RUN-SPLIT", f"no usable table of patient and side: {error}", where=path,
                         mend="train the run anew, or use split 'all' for patients that it never saw") from error
