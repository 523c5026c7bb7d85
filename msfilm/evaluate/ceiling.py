"""How high a score can be at all: raters drawn anew on phantom scans, and the best that anything reaches against one.

Raters disagree, so nothing scores 1 against a rater. Over a network's score lie three ceilings: the truth; the mask of
highest expected Dice over all raters who might have drawn; and that mask when the rater's style is known. Such a mask
is made from a sample of raters and scored against the cohort's own rater, who is not in the sample: a ceiling found by
looking at the answer would be too high.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate.agreement import pairwise_dice
from msfilm.evaluate.plan import cohort_plan
from msfilm.evaluate.score_runs import RunToScore, score_runs
from msfilm.evaluate.stats import PairedDifference, bootstrap_ci, paired_difference
from msfilm.files import read_json, write_json
from msfilm.phantom.cohort import Scan, make_scan
from msfilm.phantom.hands import Hands
from msfilm.phantom.parallel import in_order
from msfilm.phantom.roster import CohortPlan, patient_name, raters_of, scans_of

if TYPE_CHECKING:
    from msfilm.evaluate.trained import TrainedRun

__all__ = ["KINDS", "best_mask", "ceiling_rows", "ceiling_scores", "measure_ceilings", "scan_ceilings", "worth_marking"]

KINDS = {
    "pairwise": "a rater against a rater",
    "truth": "the truth against a rater",
    "expected": "the mask of highest expected Dice against a rater",
    "style": "the same, the rater's style known",
}
SAMPLED = 200  # raters drawn for the mask of highest expected Dice; with 24 it comes out .01 too low
SIZES = 48  # of that mask, tried at once
MOST_PATIENTS = 200
_RATERS_ONLY = {"raters": "nested", "setting": "narrow", "spread": 1.0, "styles_mm": (), "panel_every": 1}


def best_mask(masks: np.ndarray) -> tuple[np.ndarray, float]:
    """The mask, not empty, whose mean Dice with a sample of masks is highest.

    Of all masks of n voxels the best holds those where the sum of 2 M / (size of M + n) over the sample is highest, for
    Dice is that sum over its voxels. So sizes are tried: a grid first, then those round the best (all of them where the
    masks touch no more than ``SIZES`` voxels).

    Args:
        masks: (R, ...) bool.

    Returns:
        The mask, and its mean Dice over the sample; an empty mask of the sample counts 0. Where all are empty, an empty
        mask and 0.

    Raises:
        SettingError: CEILING-SAMPLE without any mask.
    """
    masks = np.asarray(masks, bool)
    if not len(masks):
        raise SettingError("CEILING-SAMPLE", "there is no mask", mend="draw at least one")
    touched, own = masks.any(axis=0), masks.reshape(len(masks), -1).sum(axis=1)
    voxels = masks[:, touched].astype(np.float32)
    if not voxels.size:
        return touched, 0.0
    least, most, best = 1, voxels.shape[1], (-1.0, 0)
    while True:
        sizes = np.unique(np.linspace(least, most, SIZES).round().astype(int))
        gain = -np.sort(-_gain(voxels, own, sizes), axis=1)
        value = np.cumsum(gain, axis=1)[np.arange(len(sizes)), sizes - 1]
        at = int(value.argmax())
        best = max(best, (float(value[at]), int(sizes[at])))
        if len(sizes) == most - least + 1:
            break
        least, most = int(sizes[max(at - 1, 0)]), int(sizes[min(at + 1, len(sizes) - 1)])
    chosen = np.zeros(voxels.shape[1], bool)
    chosen[np.argsort(-_gain(voxels, own, np.array([best[1]]))[0], kind="stable")[: best[1]]] = True
    mask = np.zeros(touched.shape, bool)
    mask[touched] = chosen
    return mask, best[0]


def _gain(voxels: np.ndarray, own: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(S, V) what each voxel adds to the mean Dice of a mask of each size."""
    weights = (2 / (own[None, :] + sizes[:, None])).astype(np.float32)
    return weights @ voxels / np.float32(len(own))


def worth_marking(value: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """In which volumes to mark anything, so that the mean Dice over the scored volumes is highest.

    Two empty masks are left out of the mean, so an empty mask costs a score of 0 only where the rater marked something.
    Marking is then worth it where the expected Dice is above the cohort's mean times the chance of an empty mask; that
    mean is found by going round (Dinkelbach's method).

    Args:
        value: (V,) expected Dice of the best mask that is not empty.
        empty: (V,) chance that a rater marks nothing.

    Returns:
        (V,) bool.
    """
    value, empty, mean = np.asarray(value, float), np.asarray(empty, float), 0.0
    while True:
        mark = value > mean * empty
        scored = mark.sum() + (1 - empty)[~mark].sum()
        found = float(value[mark].sum() / scored) if scored else 0.0
        if found <= mean + 1e-12:
            return mark
        mean = found


def scan_ceilings(scan: Scan, key: tuple[int, str, str], plans: Sequence[CohortPlan],
                  sampled: int = SAMPLED) -> list[dict[str, Any]]:
    """One scan's rows: Dice of a cohort's raters with each other, of truth and best masks with the first of them.

    Args:
        scan: rendered without raters (``crop_only`` will do).
        key: patient's number, acquisition and station.
        plans: whose raters draw. They draw as in that cohort, stroke for stroke; sampled ones have hands of their own,
            and styles as its raters have them.
        sampled: raters drawn for the mask of highest expected Dice.

    Returns:
        For each plan: pairwise (mean over the pairs that are scored), pairs, truth, rater_empty, and for 'expected' and
        'style' dice_*, value_* and empty_* (``worth_marking``).
    """
    index, acquisition, station = key
    clean, cnrs, voxel_mm3 = scan.clean, scan.clean.cnr(scan.scanner.snr), float(np.prod(scan.plan.voxel_mm))
    truth = (clean.distances < 0).any(axis=0) if len(clean.distances) else np.zeros(clean.positions.shape, bool)

    def hands(*names: tuple[int, int]) -> Hands:
        place = [*acquisition.encode(), *station.encode()]
        generators = [np.random.default_rng([plans[0].seed, index, *name, *place]) for name in names]
        return Hands(clean, cnrs, voxel_mm3, generators, plans[0].rater_config())

    anyone, rows = hands(*((17, k) for k in range(sampled))), []
    for plan in plans:
        config, names = plan.rater_config(), raters_of(index, plan)
        own = [plan.style_mm(name) for name in names]
        actual = hands(*((2, int(name.rsplit("-", 1)[-1])) for name in names)).draw(own, config)
        agreement = pairwise_dice([*actual, truth]).to_numpy()
        pairs = agreement[np.triu_indices(len(actual), 1)]
        pairs = pairs[~np.isnan(pairs)]
        row = {"pairwise": float(pairs.mean()) if len(pairs) else np.nan, "pairs": len(pairs),
               "truth": float(agreement[0, -1]), "rater_empty": not actual[0].any()}
        for kind, styles in (("expected", _styles(plan, index, sampled)), ("style", np.full(sampled, own[0]))):
            masks = anyone.draw(styles, config)
            best, value = best_mask(masks)
            row |= {f"dice_{kind}": float(pairwise_dice([actual[0], best]).iloc[0, 1]), f"value_{kind}": value,
                    f"empty_{kind}": float((~masks.any(axis=(1, 2, 3))).mean())}
        rows.append(row)
    return rows


def _styles(plan: CohortPlan, index: int, count: int) -> np.ndarray:
    """Styles (mm) of raters at large: those that the plan names, or as many others of the same spread."""
    rng = np.random.default_rng([plan.seed, index, 19])
    if plan.styles_mm:
        return rng.choice(np.asarray(plan.styles_mm), count)
    return rng.normal(0, 1, count) * plan.rater_config().style_sd_mm


def _patient(index: int, plans: tuple[CohortPlan, ...], sampled: int) -> list[dict[str, Any]]:
    """Rows of one patient. Rendering takes longest, so all plans' raters draw upon the same scan."""
    rows = []
    for acquisition, station in scans_of(index, plans[0]):
        scan = make_scan(index, plans[0].seed, acquisition, station, raters=(), plan=plans[0], crop_only=True,
                         noise=False)
        rows += [{"plan": number, "volume": scan.name, "patient": patient_name(index), "contrast": scan.contrast, **row}
                 for number, row in enumerate(scan_ceilings(scan, (index, acquisition, station), plans, sampled))]
    return rows


def ceiling_scores(patients: int, plans: Sequence[CohortPlan], *, sampled: int = SAMPLED, first: int = 0,
                   workers: int | None = None, progress: bool = True) -> pd.DataFrame:
    """Every volume of a phantom cohort, drawn by the raters of each plan.

    Args:
        patients, first: how many, from which number on.
        plans: they differ in the raters only.
        sampled: raters drawn for the mask of highest expected Dice.
        workers: processes; default one a core.
        progress: show a bar.

    Returns:
        A row for each volume and plan (its number), with the columns of ``KINDS``: Dice, NaN where both are empty.

    Raises:
        SettingError: CEILING-PLANS for plans that differ in more than the raters.
    """
    plans = tuple(plans)
    if len({replace(plan, **_RATERS_ONLY) for plan in plans}) != 1:
        raise SettingError("CEILING-PLANS", f"{len(plans)} plans differ in more than the raters, or there is none",
                           mend="use one seed, the same acquisitions and stations")
    jobs = [(index, plans, sampled) for index in range(first, first + patients)]
    bar = tqdm(in_order(_patient, jobs, workers), total=patients, desc="ceilings", unit="patient", disable=not progress)
    return _decided(pd.DataFrame([row for rows in bar for row in rows]))


def _decided(table: pd.DataFrame) -> pd.DataFrame:
    """Where nothing should be marked, the best mask is the empty one."""
    table = table.copy()
    for kind in ("expected", "style"):
        for _, part in table.groupby("plan"):
            mark = worth_marking(part[f"value_{kind}"], part[f"empty_{kind}"])
            nothing = np.where(part["rater_empty"], np.nan, 0.0)
            table.loc[part.index, kind] = np.where(mark, part[f"dice_{kind}"], nothing)
    return table


def ceiling_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Means with 95 % intervals over patients, a row for each plan (its number) and each of ``KINDS``."""
    rows = []
    for number, part in table.groupby("plan"):
        for kind in KINDS:
            # A volume with more scored pairs weighs more, as everywhere where raters are compared.
            times = part["pairs"].to_numpy() if kind == "pairwise" else np.ones(len(part), int)
            found = bootstrap_ci(np.repeat(part[kind].to_numpy(), times), np.repeat(part["patient"].to_numpy(), times))
            rows.append({"plan": int(number), "kind": kind, "dice": _number(found.mean), "low": _number(found.low),
                         "high": _number(found.high), "patients": found.patients,
                         "volumes": int(part[kind].notna().sum())})
    return rows


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def measure_ceilings(runs: Sequence[TrainedRun], folder: Path, *, workers: int | None = None, progress: bool = True,
                     sampled: int = SAMPLED) -> dict[str, Any]:
    """The ceilings over each arm's test patients, and how far below them its networks stay.

    Args:
        runs: the networks; arms whose test patients differ in the raters only share the scans.
        folder: where parts are kept; the networks' scores are read from ``scores`` beside it, or made there.
        workers, progress: as everywhere.
        sampled: raters drawn for the mask of highest expected Dice.

    Returns:
        ceilings: a row for each arm and each of KINDS: arm, spread, raters, kind, dice, low, high, patients, volumes;
        gaps: paired differences on the same volumes (patients, and seeds where networks are in it, resampled): arm,
        spread, raters, a, b, mean, low90 ..; a and b are kinds, 'network' (against the rater) or 'network, truth'.
    """
    folder = Path(folder)
    arms = {run.arm: run for run in runs}
    groups: dict[tuple, list[str]] = {}
    for arm, run in arms.items():
        plan = replace(cohort_plan(run.plan), **_RATERS_ONLY)
        groups.setdefault((plan, min(int(run.plan["patients"]), MOST_PATIENTS)), []).append(arm)
    tables = {}
    for number, ((_, patients), names) in enumerate(groups.items()):
        plans = [cohort_plan(arms[name].plan) for name in names]
        parts = _kept(folder / f"scans-{number}.json", patients, plans, sampled, workers, progress)
        tables |= {name: parts[parts["plan"] == i] for i, name in enumerate(names)}
    ceilings, gaps = [], []
    for arm, table in tables.items():
        plan = cohort_plan(arms[arm].plan)
        about = {"arm": arm, "spread": plan.spread, "raters": plan.raters}
        ceilings += [about | {key: value for key, value in row.items() if key != "plan"} for row in ceiling_rows(table)]
        networks = _network_dice([run for run in runs if run.arm == arm], folder.parent / "scores", workers, progress)
        gaps += [about | gap for gap in _gaps(table, networks)]
    return {"ceilings": ceilings, "gaps": gaps, "sampled_raters": sampled}


def _kept(path: Path, patients: int, plans: Sequence[CohortPlan], sampled: int, workers: int | None,
          progress: bool) -> pd.DataFrame:
    """Scores of all scans; read where the file holds those of the same plans."""
    settings = {"patients": patients, "sampled": sampled, "plans": [repr(plan) for plan in plans]}
    if path.is_file() and (content := read_json(path, code="SCORES-BROKEN"))["settings"] == settings:
        return pd.DataFrame(content["volumes"]).astype(dict.fromkeys((*KINDS, "dice_expected", "dice_style"), float))
    table = ceiling_scores(patients, plans, sampled=sampled, workers=workers, progress=progress)
    volumes = table.astype(object).where(table.notna(), None).to_dict("records")
    write_json(path, {"settings": settings, "volumes": volumes})
    return table


def _network_dice(runs: Sequence[TrainedRun], folder: Path, workers: int | None, progress: bool) -> pd.DataFrame:
    """Dice of an arm's networks: volume, patient, seed, reference, dice."""
    test = runs[0].test
    known = SliceSet.load(test, verify=False).contrasts
    jobs = [RunToScore(run.arm, run.seed, run.run, run.config.contrasts or known) for run in runs]
    return score_runs(jobs, test, folder / test.name, workers=workers, healthy=False, progress=progress)[0]


def _gaps(table: pd.DataFrame, networks: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Differences on the same volumes: ceiling minus ceiling, ceiling minus network, truth minus rater."""
    ceiling = table.set_index("volume")
    parts = {name: networks[networks["reference"] == reference].set_index(["volume", "seed"])
             for name, reference in (("network", "rater-1"), ("network, truth", "truth"))}
    own, volumes = parts["network"], parts["network"].index.get_level_values("volume")
    seeds = own.index.get_level_values("seed")
    for a, b in (("truth", "network"), ("expected", "network"), ("style", "network"), ("network, truth", "network")):
        other = parts[a]["dice"].reindex(own.index) if a in parts else ceiling[a].reindex(volumes)
        yield _gap(a, b, paired_difference(other.to_numpy(), own["dice"].to_numpy(), own["patient"], seeds=seeds))
    for a, b in (("expected", "truth"), ("style", "expected")):
        yield _gap(a, b, paired_difference(ceiling[a], ceiling[b], ceiling["patient"]))


def _gap(a: str, b: str, found: PairedDifference) -> dict[str, Any]:
    values = {key: _number(value) if isinstance(value, float) else value for key, value in found.as_dict().items()}
    return {"a": a, "b": b, **values}
