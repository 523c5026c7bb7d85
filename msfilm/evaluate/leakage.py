"""Leakage: what a run's own test side reports, against patients it cannot know; and what an unseen centre costs.

All scores here are of one kind, so that they can be subtracted: Dice of a volume's crops, or of those of its crops that
lie on a side, against the mask that was learnt; left out where both are empty. They choose between splits and are not
those of a report, which scores the scan's own grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from msfilm.data.slices import SliceSet
from msfilm.data.split import sides_of, split_slices
from msfilm.errors import RunError
from msfilm.evaluate.predict import predict_slices
from msfilm.evaluate.stats import bootstrap_ci, paired_difference
from msfilm.evaluate.trained import TrainedRun
from msfilm.files import atomic_path
from msfilm.model.weights import load_network
from msfilm.train.targets import targets_of, validation_mask
from msfilm.train.tensors import usable_rows

__all__ = ["crop_dice", "difference_of_means", "measure_leakage", "slice_counts"]

_RESAMPLES = 2000


def slice_counts(run: Path, slices: SliceSet, mask: str, contrasts: tuple[str, ...] = ()) -> np.ndarray:
    """(N, 3) int32: pixels in which a network and a mask overlap, the mask's and the network's; -1 where not usable."""
    out = np.full((len(slices), 3), -1, np.int32)
    rows = np.flatnonzero(usable_rows(slices, mask, contrasts))
    predicted = predict_slices(load_network(run), slices.select(rows)) >= 0.5                # (n, 1, H, W)
    drawn = targets_of(slices, rows, validation_mask(mask)) >= 0.5
    for column, pixels in enumerate((predicted & drawn, drawn, predicted)):
        out[rows, column] = pixels.sum((1, 2, 3))
    return out


def crop_dice(counts: np.ndarray, table: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Dice of each volume over those of its slices where ``rows`` (N,) is true; NaN where both masks are empty there.

    Args:
        counts: (N, 3), as :func:`slice_counts` gives; slices that are not usable are passed over.
        table: of the slices.
        rows: which slices count.

    Returns:
        Index volume; columns patient, centre, dice.
    """
    rows = rows & (counts[:, 0] >= 0)
    about = table.loc[rows, ["volume", "patient", "centre"]].astype(str)
    sums = about.assign(overlap=counts[rows, 0], total=counts[rows, 1:].sum(1)).groupby("volume").agg(
        patient=("patient", "first"), centre=("centre", "first"), overlap=("overlap", "sum"), total=("total", "sum"))
    return sums[["patient", "centre"]].assign(dice=2 * sums["overlap"] / sums["total"].where(sums["total"] > 0))


def difference_of_means(a: pd.DataFrame, b: pd.DataFrame, *, n: int = _RESAMPLES,
                        seed: int = 0) -> tuple[float, float, float]:
    """Mean of a minus mean of b with a 95 % interval, for scores of different patients by the same networks.

    Each of the n samples draws the seeds once for both, since the networks are the same, and the patients of either.

    Args:
        a, b: columns patient, seed and dice; NaN is left out.
    """
    seeds = sorted({*a["seed"], *b["seed"]})
    generator = np.random.default_rng(seed)
    weight = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=n)            # (n, S)
    means, samples = [], []
    for frame in (a.dropna(subset="dice"), b.dropna(subset="dice")):
        patients = sorted(frame["patient"].unique())
        if len(patients) < 2:
            return float(a["dice"].mean() - b["dice"].mean()), float("nan"), float("nan")
        cells = frame.groupby(["seed", "patient"])["dice"].agg(["sum", "size"])
        drawn = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=n)   # (n, P)
        total, size = (((weight @ cells[part].unstack().reindex(seeds)[patients].fillna(0).to_numpy(float)) * drawn)
                       .sum(1) for part in ("sum", "size"))
        means.append(frame["dice"].mean())
        samples.append(np.divide(total, size, out=np.full(n, np.nan), where=size > 0))
    low, high = np.nanquantile(samples[0] - samples[1], [0.025, 0.975])
    return float(means[0] - means[1]), float(low), float(high)


def measure_leakage(runs: Sequence[TrainedRun], folder: Path, *, workers: int | None = None,
                    progress: bool = True) -> dict[str, Any]:
    """How far own test sides report too much, and what networks lose on a centre that they were not trained on.

    Args:
        runs: networks split by patient, by slice (``split_unit``) or without some centres (``without_centres``).
        folder: where each network's counts are kept, two .npy files; those that are there are read.
        workers: processes side by side; by default one a core, 1 on a GPU.
        progress: show a bar.

    Returns:
        leakage: a row an arm: what its own test side reports ('internal'; without a centre: that centre's patients in
            the training cohort), what the test cohort does ('independent'), and 'optimism', internal minus independent.
            By slice a test side holds some slices of each volume, and Dice over fewer slices is another number: so the
            subtracted one, 'independent_alike', is over as many slices of each volume of the test cohort, at random.
            Where several centres were left out in turn, a last row has all of them.
        paired: for each arm by slice, on the same slices: Dice of the network that saw other slices of the patient
            minus that of the network that did not ('seen'); the same difference in the test cohort, where neither did
            ('unseen'); and 'leak', seen minus unseen.
        centres: for each centre left out, on its patients in the test cohort: Dice of the network trained with it,
            without it, and 'difference', without minus with; the same difference on all other patients ('elsewhere'),
            which shows what having fewer training patients costs. Again a last row has all.

    Raises:
        RunError: LEAKAGE-RUNS, no run, or no network that was trained with all centres to compare with.
    """
    if not runs:
        raise RunError("LEAKAGE-RUNS", "there is no network to measure", mend="train the experiment's arms first")
    folder = Path(folder)
    workers = min(len(runs), workers or (1 if torch.cuda.is_available() else os.cpu_count() or 1))
    threads = torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    counted = joblib.Parallel(n_jobs=workers, return_as="generator")(
        joblib.delayed(_counts)(run, folder, threads) for run in runs)
    networks = [_Network(run, *counts) for run, counts in zip(
        runs, tqdm(counted, total=len(runs), disable=not progress, desc="leakage", unit="network"), strict=True)]
    arms: dict[str, list[_Network]] = {}
    for network in networks:
        arms.setdefault(network.run.arm, []).append(network)

    leakage, paired, centres = [], [], []
    pooled: dict[str, list[tuple[pd.DataFrame, ...]]] = {"leakage": [], "centres": []}
    for arm, group in arms.items():
        config = group[0].run.config
        parts = tuple(pd.concat([getattr(one, name)() for one in group])
                      for name in ("internal", "independent", "alike"))
        leakage.append(_leakage_row(arm, group[0].split, *parts))
        if config.without_centres:
            both = _with_and_without(group, networks)
            centres.append(_centre_row("+".join(config.without_centres), *both))
            pooled["leakage"].append(parts)
            pooled["centres"].append(both)
        elif group[0].split == "slice" and (others := [_partner(one, networks) for one in group]) and all(others):
            paired.append(_paired_row(list(zip(group, others, strict=True))))
    if len(centres) > 1:
        together = "+".join(row["centre"] for row in centres)
        leakage.append(_leakage_row("each centre left out", "centre",
                                    *map(pd.concat, zip(*pooled["leakage"], strict=True))))
        centres.append(_centre_row(together, *map(pd.concat, zip(*pooled["centres"], strict=True))))
    return {"leakage": leakage, "paired": paired, "centres": centres}


def _counts(run: TrainedRun, folder: Path, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts on the slices of the training cohort and of the test cohort, read or made."""
    torch.set_num_threads(threads)
    made = []
    for place in (run.slices, run.test):
        path = folder / f"{run.run.name}-{Path(place).name}.npy"
        if not path.is_file():
            counts = slice_counts(run.run, SliceSet.load(place, verify=False), run.config.mask, run.config.contrasts)
            with atomic_path(path) as temporary:
                np.save(temporary, counts, allow_pickle=False)
        made.append(np.load(path, allow_pickle=False))
    return made[0], made[1]


class _Network:
    """A network's counts, and which slices were whose."""

    def __init__(self, run: TrainedRun, own: np.ndarray, test: np.ndarray):
        self.run, self.own, self.test = run, own, test
        config, slices = run.config, SliceSet.load(run.slices, verify=False)
        self.own_table, self.test_table = slices.table, SliceSet.load(run.test, verify=False).table
        self.split = "centre" if config.without_centres else config.split_unit
        _, side = sides_of(slices, unit=config.split_unit, fractions=config.fractions, seed=config.split_seed)
        self.held_out = side == "test"                                        # (N,) of its own cohort
        if config.without_centres:
            self.held_out = slices.table["centre"].astype(str).isin(config.without_centres).to_numpy()
        self.everywhere = np.ones(len(self.test), bool)
        self.like_held_out = self.everywhere                                  # (N,) of the test cohort
        if self.split == "slice":
            share = split_slices(len(self.test), fractions=config.fractions, seed=config.split_seed)
            self.like_held_out = share.to_numpy() == "test"

    def internal(self) -> pd.DataFrame:
        return self.on_own(self.held_out)

    def independent(self) -> pd.DataFrame:
        return self.on_test(self.everywhere)

    def alike(self) -> pd.DataFrame:
        return self.on_test(self.like_held_out)

    def on_own(self, rows: np.ndarray) -> pd.DataFrame:
        return crop_dice(self.own, self.own_table, rows).assign(seed=self.run.seed)

    def on_test(self, rows: np.ndarray) -> pd.DataFrame:
        return crop_dice(self.test, self.test_table, rows).assign(seed=self.run.seed)


def _partner(network: _Network, networks: Sequence[_Network]) -> _Network | None:
    """The network of the same seed and patients that was split by patient and trained with all centres."""
    run = network.run
    return next((one for one in networks if one.split == "patient" and one.run.seed == run.seed
                 and (one.run.slices, one.run.test) == (run.slices, run.test)), None)


def _leakage_row(arm: str, split: str, internal: pd.DataFrame, independent: pd.DataFrame,
                 alike: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "split": split}
    for name, frame in (("internal", internal), ("independent", independent), ("independent_alike", alike)):
        found = bootstrap_ci(frame["dice"], frame["patient"], seeds=frame["seed"], n=_RESAMPLES)
        row |= _triple(name, *found) | {f"{name}_patients": found.patients}
    return row | _triple("optimism", *difference_of_means(internal, alike))


def _paired_row(pairs: Sequence[tuple[_Network, _Network]]) -> dict[str, Any]:
    seen, unseen = [], []
    for leaky, clean in pairs:
        both = leaky.held_out & clean.held_out        # slices that neither was shown, of patients whom one had met
        seen.append(_minus(leaky.on_own(both), clean.on_own(both)))
        unseen.append(_minus(leaky.alike(), clean.on_test(leaky.like_held_out)))
    row: dict[str, Any] = {"a": pairs[0][0].run.arm, "b": pairs[0][1].run.arm}
    frames = pd.concat(seen), pd.concat(unseen)
    for name, frame in zip(("seen", "unseen"), frames, strict=True):
        found = bootstrap_ci(frame["dice"], frame["patient"], seeds=frame["seed"], n=_RESAMPLES)
        row |= _triple(name, *found) | {f"{name}_patients": found.patients}
    return row | _triple("leak", *difference_of_means(*frames))


def _minus(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    return a.assign(dice=a["dice"] - b["dice"])   # the same volumes, by their names


def _with_and_without(group: Sequence[_Network], networks: Sequence[_Network]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores in the test cohort of networks trained without and with a centre: on its patients, and on all others."""
    frames = []
    for network in group:
        other = _partner(network, networks)
        if other is None:
            raise RunError("LEAKAGE-RUNS", f"no network of seed {network.run.seed} was trained with all centres",
                           mend="add an arm that is split by patient and leaves no centre out")
        frames.append(network.independent().assign(full=other.independent()["dice"]))
    whole = pd.concat(frames)
    theirs = whole["centre"].isin(group[0].run.config.without_centres)
    return whole[theirs], whole[~theirs]


def _centre_row(centre: str, theirs: pd.DataFrame, others: pd.DataFrame) -> dict[str, Any]:
    scored = theirs.dropna(subset=["dice", "full"])
    row: dict[str, Any] = {"centre": centre, "with": _number(scored["full"].mean()),
                           "without": _number(scored["dice"].mean())}
    for name, frame in (("difference", theirs), ("elsewhere", others)):
        found = paired_difference(frame["dice"], frame["full"], frame["patient"], seeds=frame["seed"], n=_RESAMPLES)
        ends = ("low", "high") if name == "difference" else (f"{name}_low", f"{name}_high")
        row |= {name: _number(found.mean), ends[0]: _number(found.low95), ends[1]: _number(found.high95)}
        row |= {"patients" if name == "difference" else f"{name}_patients": found.patients}
    return row


def _triple(name: str, mean: float, low: float, high: float) -> dict[str, float | None]:
    return {name: _number(mean), f"{name}_low": _number(low), f"{name}_high": _number(high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
