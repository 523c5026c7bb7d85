"""A contrast left out of training: what codes, a fitted code and fine-tuning make of it, on patients nobody trained on.

For each contrast left out and each seed there are three networks: a FiLMed and a plain one trained without it, and a
FiLMed one trained on all. The labelled scans to adapt to are volumes of the training cohort's patients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from msfilm.data.crop import uncrop
from msfilm.data.slices import SliceSet
from msfilm.errors import RunError
from msfilm.evaluate.baselines import all_cord_baseline
from msfilm.evaluate.predict import predict_images
from msfilm.evaluate.stats import bootstrap_ci, paired_difference
from msfilm.evaluate.summary import REFERENCES
from msfilm.evaluate.trained import TrainedRun
from msfilm.files import read_json, write_json
from msfilm.model.weights import Network, load_network
from msfilm.train import adapt

__all__ = ["SCANS", "VARIANTS", "labelled_scans", "measure_new_contrast", "volume_dice"]

SCANS = (1, 2, 5)   # labelled scans to adapt to; those of a seed are nested: the one is among the two
VARIANTS = {
    "plain": "the plain network as it is",
    "zeros": "FiLM with an all-zero code, as earlier code silently did",
    "mean code": "FiLM with the same share of every contrast that it knows",
    "nearest code": "FiLM with the code of the seen contrast whose cord looks most like the new one's; no labels",
    **{f"code, {k} scan{'s' * (k > 1)}": f"FiLM with a code fitted to {k} labelled, all weights frozen" for k in SCANS},
    **{f"fine-tuned, {k} scan{'s' * (k > 1)}": f"FiLM, mean code, all weights tuned on the same {k}" for k in SCANS},
    "trained on all": "FiLM trained on this contrast too, with its own code",
}
_RESAMPLES = 2000
# (a, b) -> sign of a - b in Dice for a contrast left out, as benchmarks/experiments/new-contrast.yml said beforehand
_EXPECTED = {
    ("code, 1 scan", "fine-tuned, 1 scan"): {"T1w": "?", "MTon": "+", "STIR": "+"},
    ("code, 5 scans", "fine-tuned, 5 scans"): {"T1w": "-", "MTon": "-", "STIR": "-"},
    ("fine-tuned, 5 scans", "plain"): {"T1w": "+"},
}


@dataclass(frozen=True)
class _Job:
    """One contrast left out, one seed: the networks that are compared."""

    held_out: str
    seed: int
    film: TrainedRun
    plain: TrainedRun
    full: TrainedRun

    @property
    def made_from(self) -> dict[str, Any]:
        """What a kept result must agree with."""
        return {"held_out": self.held_out, "runs": [run.run.name for run in (self.film, self.plain, self.full)],
                "test": self.film.test.name, "variants": list(VARIANTS),
                "steps": [adapt.CODE_STEPS, adapt.CODE_LR, adapt.TUNE_STEPS, adapt.TUNE_LR]}


def measure_new_contrast(runs: Sequence[TrainedRun], folder: Path, *, workers: int | None = None,
                         progress: bool = True) -> dict[str, Any]:
    """Score every variant on each contrast that some networks were not trained on; Dice on the scan's own grid.

    Args:
        runs: FiLMed networks on all contrasts of their slices; FiLMed and plain ones that lack one; the same seeds.
        folder: where each contrast's and seed's scores are kept; those that are there are read.
        workers: processes side by side; by default one a core, 1 on a GPU.
        progress: show a bar.

    Returns:
        new_contrast: a row for each contrast left out, variant (``VARIANTS``) and reference: dice with its 95 %
            interval over patients and seeds (a seed is another training and other labelled scans), and how many of the
            lesion-free volumes were left empty.
        new_contrast_differences: paired differences in Dice: each variant minus 'plain', and fitted code minus
            fine-tuned on the same scans; 'headline' marks those that the question is about, with the sign expected.
        new_contrast_codes: the fitted codes, the scans they were fitted to, the nearest contrast and all distances.
        new_contrast_all_cord: Dice of the whole cord taken for lesion. What does not beat it has found nothing.

    Raises:
        RunError: NEW-CONTRAST-RUNS, networks are missing; NEW-CONTRAST-SCANS, there are too few scans with lesions.
    """
    folder, jobs = Path(folder), _jobs(runs)
    cores = os.cpu_count() or 1
    workers = min(len(jobs), workers or (1 if torch.cuda.is_available() else cores))
    threads = torch.get_num_threads() if workers == 1 else max(1, cores // workers)
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(
        joblib.delayed(_measured)(job, folder, threads) for job in jobs)
    parts = list(tqdm(results, total=len(jobs), disable=not progress, desc="new contrast", unit="network"))
    scores = pd.concat([_frame(job, part) for job, part in zip(jobs, parts, strict=True)], ignore_index=True)
    codes = [{"held_out": job.held_out, "seed": job.seed, **code}
             for job, part in zip(jobs, parts, strict=True) for code in part["codes"]]
    tests = {job.held_out: job.film.test for job in jobs}
    return {"new_contrast": list(_rows(scores)), "new_contrast_differences": list(_differences(scores)),
            "new_contrast_codes": codes, "new_contrast_all_cord": list(_all_cord(tests))}


def labelled_scans(slices: SliceSet, contrast: str, seed: int, count: int = SCANS[-1], mask: str = "rater-1",
                   ) -> list[str]:
    """Names of volumes of one contrast with a lesion in their crops, each of another patient, in an order by seed.

    Raises:
        RunError: NEW-CONTRAST-SCANS.
    """
    rows = slices.table[(slices.masks[mask] == 1).any(axis=(1, 2, 3)) & (slices.table["contrast"] == contrast)]
    found = rows.drop_duplicates("volume").sort_values("volume")
    order = np.random.default_rng([seed, *contrast.encode()]).permutation(len(found))
    names = found.iloc[order].drop_duplicates("patient")["volume"].tolist()[:count]
    if len(names) < count:
        raise RunError("NEW-CONTRAST-SCANS", f"{len(names)} patients have a {contrast} scan with a lesion of '{mask}'",
                       mend=f"use a cohort in which {count} have")
    return names


def volume_dice(network: Network, slices: SliceSet, z: torch.Tensor | None) -> pd.DataFrame:
    """Dice of every volume on its scan's own grid, with one code (M,) for all slices: a row a volume and reference.

    Columns volume, patient, reference, dice (NaN where reference and prediction are both empty), and the voxels
    'drawn' and 'marked'.
    """
    z = None if z is None else z.float().expand(len(slices), -1)
    probability = predict_images(network, slices.images, z)[:, 0]
    names, rows = slices.table["volume"].to_numpy(), []
    for volume, about in slices.volumes.iterrows():
        marked = np.flatnonzero(uncrop(probability[names == volume], slices.grid(volume)) >= 0.5)
        for reference in (one for one in REFERENCES if one in slices.scans[volume].indices):
            drawn = slices.scans[volume].indices[reference]
            rows.append({"volume": volume, "patient": about["patient"], "reference": reference,
                         "dice": _dice(drawn, marked), "drawn": len(drawn), "marked": len(marked)})
    return pd.DataFrame(rows)


def _jobs(runs: Sequence[TrainedRun]) -> list[_Job]:
    """Film, plain and full network of each contrast left out and seed."""
    contrasts = {folder: SliceSet.load(folder, verify=False).contrasts for folder in {run.slices for run in runs}}
    known: dict[tuple[str, int, bool], TrainedRun] = {}
    for run in runs:
        lacking = sorted(set(contrasts[run.slices]) - set(run.config.contrasts or contrasts[run.slices]))
        if len(lacking) > 1:
            raise RunError("NEW-CONTRAST-RUNS", f"'{run.arm}' lacks {', '.join(lacking)}",
                           mend="leave out one contrast at a time")
        known[(lacking or [""])[0], run.seed, run.config.conditioning != "none"] = run
    jobs = []
    for (held_out, seed, filmed), run in known.items():
        if held_out and filmed:
            partners = known.get((held_out, seed, False)), known.get(("", seed, True))
            if None in partners:
                which = f"plain one without {held_out}" if partners[0] is None else "FiLMed one on all contrasts"
                raise RunError("NEW-CONTRAST-RUNS", f"'{run.arm}', seed {seed}: there is no {which} to compare with",
                               mend="add an arm with it")
            jobs.append(_Job(held_out, seed, run, *partners))
    if not jobs:
        raise RunError("NEW-CONTRAST-RUNS", "no FiLMed network was trained without one of its contrasts",
                       mend="add arms whose 'contrasts' leave one out")
    return jobs


def _measured(job: _Job, folder: Path, threads: int) -> dict[str, Any]:
    """The scores of one contrast and seed, read or made."""
    torch.set_num_threads(threads)
    path = folder / f"new-contrast-{job.film.run.name}.json"
    if path.is_file():
        kept = read_json(path, code="SCORES-BROKEN")
        if kept["made_from"] == job.made_from:
            return kept
    slices, test = SliceSet.load(job.film.slices, verify=False), SliceSet.load(job.film.test, verify=False)
    test = test.select((test.table["contrast"] == job.held_out).to_numpy())
    if not len(test):
        raise RunError("NEW-CONTRAST-SCANS", f"no test scan is a {job.held_out}", where=job.film.test.name,
                       mend="add it to the test cohort's acquisitions")
    scores, codes = {}, []
    for variant, network, z in _variants(job, slices, codes):
        table = volume_dice(network, test, z)
        scores[variant] = {"marked": table["marked"].tolist(),
                           "dice": [None if np.isnan(dice) else round(dice, 6) for dice in table["dice"]]}
    about = {name: table[name].tolist() for name in ("volume", "patient", "reference", "drawn")}
    write_json(path, {"made_from": job.made_from, "about": about, "scores": scores, "codes": codes})
    return read_json(path, code="SCORES-BROKEN")


def _variants(job: _Job, slices: SliceSet,
              codes: list[dict[str, Any]]) -> Iterator[tuple[str, Network, torch.Tensor | None]]:
    """(variant, network, z) of each; ``codes`` is filled on the way."""
    film, mask = load_network(job.film.run), job.film.config.mask
    names = labelled_scans(slices, job.held_out, job.seed, mask=mask)
    mean = adapt.mean_code(film)
    of = slices.volumes["contrast"]
    nearest, distances = adapt.nearest_contrast(
        [slices.scans[name] for name in names],
        {one: [slices.scans[name] for name in of.index[of == one]] for one in film.encoder.categories})
    yield "plain", load_network(job.plain.run), None
    yield "zeros", film, torch.zeros_like(mean)
    yield "mean code", film, mean
    yield "nearest code", film, film.code([nearest])[0]
    for k in SCANS:
        few = slices.select(slices.table["volume"].isin(names[:k]).to_numpy())
        z = adapt.fit_code(film, few, mask=mask, steps=adapt.CODE_STEPS, lr=adapt.CODE_LR, seed=job.seed)
        codes.append({"scans": k, "volumes": few.volumes.index.tolist(), "labels": list(film.encoder.labels),
                      "z": z.tolist(), "nearest": nearest, "distances": distances})
        yield f"code, {k} scan{'s' * (k > 1)}", film, z
        tuned = adapt.fine_tune(film, few, mean, mask=mask, steps=adapt.TUNE_STEPS, lr=adapt.TUNE_LR, seed=job.seed)
        yield f"fine-tuned, {k} scan{'s' * (k > 1)}", tuned, mean
    full = load_network(job.full.run)
    yield "trained on all", full, full.code([job.held_out])[0]


def _frame(job: _Job, part: dict[str, Any]) -> pd.DataFrame:
    """A row for each volume, reference and variant."""
    tables = [pd.DataFrame({**part["about"], "marked": one["marked"], "dice": np.array(one["dice"], dtype=float),
                            "variant": variant}) for variant, one in part["scores"].items()]
    return pd.concat(tables).assign(held_out=job.held_out, seed=job.seed)


def _rows(scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    scores = scores.assign(variant=pd.Categorical(scores["variant"], list(VARIANTS)))
    for (held_out, reference, variant), part in scores.groupby(["held_out", "reference", "variant"], observed=True):
        interval = bootstrap_ci(part["dice"], part["patient"], n=_RESAMPLES, seeds=part["seed"])
        free = part[part["drawn"] == 0]
        yield _plain({"held_out": held_out, "variant": variant, "scans": _scans(variant), "reference": reference,
                      "dice": interval.mean, "low": interval.low, "high": interval.high,
                      "dice_by_seed": [round(float(x), 4) for x in part.groupby("seed")["dice"].mean()],
                      "seeds": int(part["seed"].nunique()), "patients": interval.patients,
                      "volumes": int(part["volume"].nunique()), "lesion_free": int(free["volume"].nunique()),
                      "left_empty": float((free["marked"] == 0).mean()) if len(free) else float("nan")})


def _differences(scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    pairs = [(variant, "plain") for variant in VARIANTS if variant != "plain"]
    pairs += [(variant, variant.replace("code", "fine-tuned")) for variant in VARIANTS if variant.startswith("code, ")]
    for (held_out, reference), part in scores.groupby(["held_out", "reference"]):
        wide = part.pivot(index=["patient", "volume", "seed"], columns="variant", values="dice").reset_index()
        for a, b in pairs:
            found = paired_difference(wide[a], wide[b], wide["patient"], n=_RESAMPLES, seeds=wide["seed"])
            expected = _EXPECTED.get((a, b), {}).get(held_out)
            yield _plain({"held_out": held_out, "a": a, "b": b, "scans": _scans(a), "reference": reference,
                          **found.as_dict(), "headline": expected is not None, "expected": expected or "?",
                          "statement": f"{held_out}, against {reference}: {found.statement(a, b)}"})


def _all_cord(tests: dict[str, Path]) -> Iterator[dict[str, Any]]:
    for held_out, folder in tests.items():
        test = SliceSet.load(folder, verify=False)
        about = test.volumes[test.volumes["contrast"] == held_out]
        for reference in (one for one in REFERENCES if all(one in test.scans[name].indices for name in about.index)):
            scans = [test.scans[name] for name in about.index]
            dice = [_dice(scan.indices[reference], all_cord_baseline(scan)) for scan in scans]
            interval = bootstrap_ci(dice, about["patient"], n=_RESAMPLES)
            yield {"held_out": held_out, "reference": reference, "dice": interval.mean, "low": interval.low,
                   "high": interval.high, "patients": interval.patients}


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks as flat indices, each once; NaN where both are empty."""
    return 2 * len(np.intersect1d(a, b, assume_unique=True)) / (len(a) + len(b)) if len(a) + len(b) else np.nan


def _scans(variant: str) -> int:
    """Labelled scans that a variant uses."""
    return next((int(word) for word in variant.split() if word.isdigit()), 0)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}
