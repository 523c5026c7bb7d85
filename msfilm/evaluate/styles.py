"""Rater styles: a network told one rater after the other, scored against what each rater drew of the same scans.

The table of styles against raters is a confusion matrix. Its diagonal is highest where a style can be chosen at
inference; how much that is worth is the difference from the mean code, and from a plain network.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from msfilm.data.crop import uncrop
from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.predict import predict_images
from msfilm.evaluate.style_tables import (
    MEAN,
    PLAIN,
    against_plain,
    best_style,
    confusion,
    drawn_volumes,
    interval,
    read_off,
    style_differences,
    style_volumes,
)
from msfilm.files import atomic_path, read_json
from msfilm.model.weights import Network, load_network

if TYPE_CHECKING:
    from msfilm.evaluate.trained import TrainedRun

__all__ = ["MEAN", "PLAIN", "confusion", "measure_styles", "predict_style", "raters_agree", "score_styles",
           "style_differences", "styles_of"]


def styles_of(network: Network) -> tuple[str, ...]:
    """The raters that a network can be told; none for a network that is told none."""
    parts = getattr(network.encoder, "parts", (network.encoder,))
    return next((part.categories for part in parts if getattr(part, "column", "") == "rater"), ())


def predict_style(network: Network, slices: SliceSet, style: str, **settings: Any) -> np.ndarray:
    """Lesion probability of every slice as if ``style`` had drawn its scan, whoever did.

    Args:
        network: conditioned on the rater.
        slices: N of them.
        style: one of ``styles_of(network)``, or MEAN.
        settings: to ``predict_images``.

    Returns:
        (N, 1, H, W) float32.

    Raises:
        SettingError: STYLE-UNKNOWN.
    """
    known = styles_of(network)
    if style not in (*known, MEAN if known else PLAIN):
        raise SettingError("STYLE-UNKNOWN", f"this network knows no style '{style}'",
                           mend=suggest(style, (*known, MEAN if known else PLAIN)))
    table = slices.described()
    with warnings.catch_warnings():
        if style == MEAN:
            warnings.simplefilter("ignore")  # an unknown rater is what is wanted here
        z = network.code(table.assign(rater=style) if known else table)
    return predict_images(network, slices.images, z, **settings)


def score_styles(network: Network, slices: SliceSet, styles: Sequence[str] | None = None,
                 **settings: Any) -> pd.DataFrame:
    """Every style against every rater's mask, on each scan's own grid.

    Args:
        network: conditioned on the rater, or not: then there is one style, PLAIN.
        slices: volumes that several raters drew (``volumes['raters']`` says who).
        styles: which of them; by default all that the network knows, and MEAN.
        settings: to ``predict_images``.

    Returns:
        A row for each volume, style and rater (and 'truth'): volume, patient, contrast, own (whose mask is rater-1),
        style, rater, dice (NaN: both masks empty), prediction_mm3, reference_mm3.

    Raises:
        SettingError: STYLE-UNKNOWN, STYLE-RATERS.
    """
    known = styles_of(network)
    styles = tuple(styles) if styles is not None else (*known, MEAN) if known else (PLAIN,)
    references = {volume: masks for volume, _, masks in _drawn(slices)}
    names = slices.table["volume"].to_numpy()
    rows = []
    for style in styles:
        probability = predict_style(network, slices, style, **settings)[:, 0]
        for volume, masks in references.items():
            about, scan = slices.volumes.loc[volume], slices.scans[volume]
            marked = uncrop(probability[names == volume], slices.grid(volume)).reshape(-1) >= 0.5
            size = int(np.count_nonzero(marked))
            for rater, voxels in masks.items():
                rows.append((volume, about["patient"], about["contrast"], about["rater"], style, rater,
                             _dice(int(np.count_nonzero(marked[voxels])), size + len(voxels)),
                             size * scan.voxel_volume_mm3, len(voxels) * scan.voxel_volume_mm3))
    return pd.DataFrame(rows, columns=["volume", "patient", "contrast", "own", "style", "rater", "dice",
                                       "prediction_mm3", "reference_mm3"])


def raters_agree(slices: SliceSet, *, n: int = 2000) -> list[dict[str, Any]]:
    """Dice of every rater with every other, and with the truth: what the confusion matrix is to be read against."""
    rows = []
    for _, patient, masks in _drawn(slices):
        for first in masks:
            for second in masks:
                if first < second:
                    shared = len(np.intersect1d(masks[first], masks[second], assume_unique=True))
                    rows.append((first, second, patient, _dice(shared, len(masks[first]) + len(masks[second]))))
    table = pd.DataFrame(rows, columns=["first", "second", "patient", "dice"])
    return [{"first": first, "second": second, **interval(part, "dice", n=n)}
            for (first, second), part in table.groupby(["first", "second"])]


def measure_styles(runs: Sequence[TrainedRun], folder: Path, *, workers: int | None = None, progress: bool = True,
                   patients: int | None = None) -> dict[str, Any]:
    """Choose each rater's style at inference and score it against every rater, for all networks of an experiment.

    Args:
        runs: networks conditioned on the rater and plain ones; the test patients were drawn by several raters.
        folder: where the scores are kept, a file a network; what is there is read.
        workers: processes side by side; by default one a core, 1 on a GPU.
        progress: show a bar.
        patients: use no more than so many test patients; None: all.

    Returns:
        style_mm (rater -> bias), confusion, styles (paired differences), own_style_minus_plain, best_style (how often
        the matching style is the best), style_volumes (predicted minus true volume), rater_volumes (drawn minus true),
        read_off (whether a network that is told no rater knows the scan's own), raters_agree, style_patients.

    Raises:
        SettingError: STYLE-RATERS.
    """
    cores = os.cpu_count() or 1
    workers = min(len(runs), workers or (1 if torch.cuda.is_available() else cores))
    threads = torch.get_num_threads() if workers == 1 else max(1, cores // workers)
    tasks = [joblib.delayed(_kept)(run, Path(folder), patients, threads) for run in runs]
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(tasks)
    bar = tqdm(results, total=len(runs), disable=not progress, desc="styles", unit="network")
    scores = pd.concat([table.assign(arm=run.arm, seed=run.seed) for run, table in zip(runs, bar, strict=True)],
                       ignore_index=True)
    arms = {run.arm: run for run in runs}
    out: dict[str, Any] = {"style_mm": {}, "confusion": confusion(scores), "styles": [], "own_style_minus_plain": [],
                           "best_style": [], "style_volumes": [], "rater_volumes": [], "read_off": [],
                           "raters_agree": [],
                           "style_patients": int(scores["patient"].nunique())}
    for run in runs:
        biases = run.plan.get("styles_mm") or ()
        out["style_mm"] |= {f"rater-{k:02d}": float(mm) for k, mm in enumerate(biases, start=1)}
    for arm, part in scores.groupby("arm", sort=False):
        told = MEAN in set(part["style"])
        out["read_off"].append({"arm": arm, **read_off(part[part["style"] == (MEAN if told else PLAIN)])})
        out["style_volumes"] += [{"arm": arm, **row} for row in style_volumes(part)]
        if told:
            out["styles"] += [{"arm": arm, **row} for row in style_differences(part)]
            out["best_style"] += [{"arm": arm, **row} for row in best_style(part)]
            plain = [name for name, other in arms.items() if (other.slices, other.test) == (arms[arm].slices,
                     arms[arm].test) and PLAIN in set(scores.loc[scores["arm"] == name, "style"])]
            for name in plain:
                out["own_style_minus_plain"] += [{"arm": arm, "plain": name, **row}
                                                 for row in against_plain(part, scores[scores["arm"] == name], name)]
    for test in dict.fromkeys(run.test for run in runs):
        of = [run.arm for run in arms.values() if run.test == test]
        out["raters_agree"] += [{"arms": of, **row} for row in raters_agree(_some(test, patients))]
        out["rater_volumes"] += [{"arms": of, **row} for row in drawn_volumes(scores[scores["arm"] == of[0]])]
    return out


def _some(test: Path, patients: int | None) -> SliceSet:
    """The first patients of a test set."""
    slices = SliceSet.load(test, verify=False)
    if patients is None:
        return slices
    return slices.select(slices.table["patient"].isin(sorted(slices.volumes["patient"].unique())[:patients]).to_numpy())


def _kept(run: TrainedRun, folder: Path, patients: int | None, threads: int) -> pd.DataFrame:
    """The scores of one network, from its file where it has been scored. Other weights are another file."""
    torch.set_num_threads(threads)
    weights = read_json(run.run / "network.json")["weights_sha256"][:12]
    path = folder / f"{weights}-{run.test.name}-{patients or 'all'}.csv"
    if not path.is_file():
        network = load_network(run.run)
        table = score_styles(network, _some(run.test, patients))
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    return pd.read_csv(path, keep_default_na=False, na_values={"dice": [""]})


def _drawn(slices: SliceSet) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Volume, patient and voxels by rater's name (and 'truth') of the volumes that several raters drew."""
    found = False
    for volume, row in slices.volumes.iterrows():
        scan: ScanMasks = slices.scans[volume]
        raters = str(row.get("raters") or "").split(",")
        masks = {name: scan.indices[f"rater-{k}"] for k, name in enumerate(raters, start=1)
                 if f"rater-{k}" in scan.indices}
        if len(masks) > 1:
            found = True
            yield str(volume), row["patient"], {name: masks[name] for name in sorted(masks)} | (
                {"truth": scan.indices["truth"]} if "truth" in scan.indices else {})
    if not found:
        raise SettingError("STYLE-RATERS", f"none of {len(slices.volumes)} volumes was drawn by two raters",
                           mend="test on a cohort that raters drew side by side (panel_every: 1)")


def _dice(shared: int, both: int) -> float:
    return 2.0 * shared / both if both else float("nan")
