"""Split by patient, so that nobody sits on both sides: stratified by centre, seeded, and proved by content hashes.

Or by slice, wrongly, to show what that does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.errors import InputError, SettingError

__all__ = ["LEAKY", "SIDES", "UNITS", "check_split", "sides_of", "split_patients", "split_slices"]

SIDES = ("train", "val", "test")
UNITS = ("patient", "slice")
LEAKY = "leaky split: by slice, so that each patient is on all sides; scores of its own sides show nothing"


def split_patients(volumes: pd.DataFrame, *, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> pd.Series:
    """Give every patient a side; the same patients, fractions and seed give the same answer in any row order.

    Patients are lined up centre by centre (centres and patients within them shuffled), and each in turn goes to the
    side that is furthest behind its share. So every centre is divided nearly by the fractions, and so is the whole.

    Args:
        volumes: columns patient and centre, any number of rows a patient. A patient of several centres counts for the
            alphabetically first.
        fractions: of train, val and test; sum 1. A side with fraction 0 stays empty.
        seed: of the shuffling.

    Returns:
        Series named ``side``, index ``patient`` (sorted), values "train", "val" or "test".

    Raises:
        SettingError: SPLIT-FRACTIONS; InputError: SPLIT-FEW for fewer patients than sides.
    """
    shares = _shares(fractions)
    centre_of = volumes.assign(centre=volumes["centre"].astype(str)).groupby("patient")["centre"].min().sort_index()
    if len(centre_of) < np.count_nonzero(shares):
        raise InputError(
            "SPLIT-FEW",
            f"{len(centre_of)} patients for {np.count_nonzero(shares)} sides",
            mend="add patients, or set the share of a side to 0",
        )
    rng = np.random.default_rng(seed)
    line = [
        patient
        for centre in rng.permutation(sorted(centre_of.unique()))
        for patient in rng.permutation(centre_of.index[centre_of == centre].to_numpy(dtype=object))
    ]
    counts = np.zeros(3, dtype=np.int64)
    side = {}
    for position, patient in enumerate(line, start=1):
        chosen = int(np.argmax(shares * position - counts - 1e9 * (shares == 0)))
        counts[chosen] += 1
        side[patient] = chosen
    for empty in np.flatnonzero((counts == 0) & (shares > 0)):  # few patients: take one from the fullest side
        giver = int(np.argmax(counts))
        moved = next(patient for patient in reversed(line) if side[patient] == giver)
        side[moved] = int(empty)
        counts[[giver, empty]] += [-1, 1]
    return pd.Series(
        [SIDES[side[patient]] for patient in centre_of.index],
        index=centre_of.index.rename("patient"),
        name="side",
        dtype=object,
    )


def split_slices(n: int, *, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> pd.Series:
    """Give every slice a side at random, whoever it is of. This leaks: never split so, but to show what it does.

    Args:
        n: slices.
        fractions: of train, val and test; sum 1; kept to the slice.
        seed: of the shuffling.

    Returns:
        Series named ``side``, index ``slice`` (0 to n - 1), values "train", "val" or "test".

    Raises:
        SettingError: SPLIT-FRACTIONS.
    """
    ends = np.rint(np.cumsum(_shares(fractions)) * n).astype(np.int64)
    place = np.random.default_rng(seed).permutation(n)
    sides = np.array(SIDES, dtype=object)[np.searchsorted(ends, place, side="right")]
    return pd.Series(sides, index=pd.RangeIndex(n, name="slice"), name="side", dtype=object)


def sides_of(
    slices: SliceSet, *, unit: str = "patient", fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[pd.Series, np.ndarray]:
    """The split, and the side of every slice (N,).

    Args:
        slices: the data.
        unit: 'patient', proved free of leaks; or 'slice', which leaks (``split_slices``).
        fractions, seed: of the split.

    Raises:
        SettingError: SPLIT-FRACTIONS; InputError: SPLIT-FEW, SPLIT-LEAK.
    """
    if unit == "slice":
        split = split_slices(len(slices), fractions=fractions, seed=seed)
        return split, split.to_numpy()
    split = split_patients(slices.volumes, fractions=fractions, seed=seed)
    check_split(slices, split)
    return split, slices.table["patient"].map(split).to_numpy()


def _shares(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise SettingError(
            "SPLIT-FRACTIONS",
            f"fractions={tuple(fractions)}",
            mend="give three shares for train, val and test, none negative, sum 1",
        )
    return shares


def check_split(slices: SliceSet, split: pd.Series) -> None:
    """Prove that no patient, image or slice sits on two sides.

    Args:
        slices: the data, whose tables carry content hashes.
        split: index patient, values a side, as ``split_patients`` gives.

    Raises:
        InputError: SPLIT-UNKNOWN for a patient without a side or with two, SPLIT-LEAK for content on two sides.
    """
    twice = split.index[split.index.duplicated()]
    unknown = sorted(set(slices.volumes["patient"]) - set(split.dropna().index))
    if len(twice) or unknown:
        fact = f"patient {twice[0]} is listed twice" if len(twice) else f"no side for patient {', '.join(unknown[:3])}"
        raise InputError(
            "SPLIT-UNKNOWN",
            fact + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""),
            mend="make the split from these volumes with split_patients",
        )
    volumes = slices.volumes.reset_index()
    _check_content("image", volumes["image_hash"], volumes["volume"], volumes["patient"], split)
    table = slices.table
    names = table["volume"].astype(str) + " z=" + table["z"].astype(str)
    _check_content("slice", table["slice_hash"], names, table["patient"], split)


def _check_content(what: str, hashes: pd.Series, names: pd.Series, patients: pd.Series, split: pd.Series) -> None:
    frame = pd.DataFrame(
        {"hash": hashes.to_numpy(object), "name": names.to_numpy(object), "patient": patients.to_numpy(object)}
    )
    frame["side"] = frame["patient"].map(split).to_numpy(object)
    frame = frame[frame["hash"].notna() & (frame["hash"] != "")]  # an empty hash: constant content, which shows nothing
    sides = frame.groupby("hash")["side"].nunique()
    leaks = sides.index[sides > 1]
    if len(leaks):
        rows = frame[frame["hash"] == leaks[0]].drop_duplicates("side")
        places = " and ".join(f"{row['name']} of {row.patient} in {row.side}" for _, row in rows.iterrows())
        raise InputError(
            "SPLIT-LEAK",
            f"the same {what} content sits on two sides: {places} ({len(leaks)} such {what}s)",
            mend="give both patients the same side, or leave one copy out",
        )
