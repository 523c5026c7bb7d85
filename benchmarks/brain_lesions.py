"""Real lesions with ground truth: does FiLM help where lesions are bright in two contrasts and dark in two?

    python benchmarks/brain_lesions.py OUT --keep benchmarks/results/brain-lesions.json

Two brains of the 3D MR image database of Lesjak et al. 2017 (CC-BY, doi 10.1007/s12021-017-9348-7), from
``msfilm fetch open_ms_data`` or MSFILM_MIRROR. The package's own rooms do all of it, with the mask of the brain where
they speak of a cord, and a larger crop. One run after another in one thread; stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from msfilm.data.crop import uncrop
from msfilm.data.cropped import join_volumes, prepare_volume
from msfilm.data.fetch import fetch
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.data.split import split_patients
from msfilm.errors import SettingError
from msfilm.evaluate.baselines import ThresholdBaseline, all_cord_baseline
from msfilm.evaluate.metrics import dice, volume_scores
from msfilm.evaluate.predict import predict_images
from msfilm.files import made_by, read_json, sha256_array, write_json
from msfilm.model.weights import Network, load_network
from msfilm.train.config import TrainConfig
from msfilm.train.loop import fit

QUESTION = ("Lesions of the brain are bright in T2 and FLAIR and dark in T1 with and without contrast agent. One "
            "network for all four contrasts: does it help to tell it the contrast through FiLM?")
EXPECTED = {
    "FiLM - plain": "within +-.02 in the mean of four contrasts: a T1 and a T2 of a brain look so different that a "
    "plain network can see which it has, as in the phantom's 'polarity in the image' (nothing shown), not 'polarity "
    "unknowable' (+.12)",
    "wrong code": "with the generator at the full rate a code of the other polarity costs more than .1 Dice, at a "
    "tenth of the rate less: a few hundred steps hardly move it",
    "order": "FLAIR best and T1 worst of the contrasts, in every arm",
    "one network for four - one for each": "within +-.05 for each contrast",
    "folds": "trained on patient 07 (1.3 ml of lesion) and tested on 19 worse than .4; the other way round .3 to .6, "
    "since lesions of patient 07 are small and Dice of small lesions is low",
    "threshold": "the best single threshold on FLAIR, chosen on the training patient: .4 on 19 and .1 on 07",
}
PILOT = ("Six trainings of about a minute went before, after the expectations were written. They showed that a network "
         "trained on the lower half of a brain marks little of use in its upper half, so training slabs now lie all "
         "over the brain; and that a network for four contrasts needs more steps than one for FLAIR alone. The "
         "learning rate was chosen among two by validation slabs of patient 19, the epochs by what the budget allows. "
         "When four networks of the series were done and time ran short, networks for one contrast were cut from twice "
         "as many passes to as many, and the fold of patient 07 was put last, since its first network had learned "
         "nothing. That first series, of 10 epochs, is kept (brain-lesions-10-epochs.json; 27 of 42 networks were "
         "trained in the time there was). It had hardly begun to learn, so the whole series was repeated with 60 "
         "epochs and nothing else changed: with the first result known, the expectations left as they stood.")
CITE = ("Lesjak, Galimzianova, Koren, Lukin, Pernus, Likar, Spiclin: A Novel Public MR Image Dataset of Multiple "
        "Sclerosis Patients With Lesion Segmentations Based on Multi-rater Consensus. Neuroinformatics (2017), "
        "doi 10.1007/s12021-017-9348-7. CC-BY.")
PATIENTS = ("patient07", "patient19")
CONTRASTS = {"T1": "T1_N4", "T1post": "T1POST_N4", "T2": "T2_N4", "FLAIR": "FLAIR_N4"}   # how the files' names begin
BRIGHT = ("T2", "FLAIR")                       # lesions brighter than what is round them; in the others darker
CROP = {"size": 96, "spacing_mm": 1.75}        # 168 mm: all of either brain in every slice
# Slabs across the brain, [low, high) in mm above the volume's floor; 3 mm that nobody uses lie between any two.
SLABS = {
    "train": ((20, 38), (50, 68), (80, 98), (110, 128)),
    "val": ((41, 47), (101, 107)),    # the epoch is chosen here
    "own": ((71, 77), (131, 137)),    # tested on too: the patient who was trained on, so optimistic
}
TEST_STEP = 2                                  # of the other patient every second slice is scored
FOLDS = {"train 19, test 07": ("patient19", "patient07"), "train 07, test 19": ("patient07", "patient19")}
ARMS = {
    "plain": {},
    "FiLM, a tenth": {"conditioning": "contrast", "film_lr": 0.1},
    "FiLM, full rate": {"conditioning": "contrast", "film_lr": 1.0},
    **{f"{name} alone": {"contrasts": (name,)} for name in CONTRASTS},
}
BASE = TrainConfig(depth=3, filters=16, batch_size=8, lr=1e-3, schedule="cosine", patience=0, loss="dice-bce",
                   epochs=60, precision="auto", device="cpu")
SEEDS = (0, 1, 2)


def brain_mask(image: Volume) -> Volume:
    """A skull-stripped scan -> its brain: what is not 0, holes filled, the largest piece."""
    filled = ndimage.binary_fill_holes(image.data != 0)
    labels, _ = ndimage.label(filled)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return replace(image, data=(labels == sizes.argmax()).astype(np.uint8))


def brains(folder: str | Path, *, patients: Sequence[str] = PATIENTS, **crop: Any) -> SliceSet:
    """All scans below ``folder`` (that holds a folder a patient) as one SliceSet: mask 'cord' is the brain, 'rater-1'
    the mask that several raters agreed on; intensities are in units of the median over the brain."""
    parts = {}
    for patient in patients:
        for contrast, begins in CONTRASTS.items():
            image = read_image(_only(Path(folder) / patient, f"{begins}_*.nii*"))
            lesions = read_mask(_only(Path(folder) / patient, "GOLD_STANDARD_*.nii*"), like=image)
            about = {"patient": patient, "centre": "Ljubljana", "contrast": contrast, "rater": "agreed"}
            name = f"{patient}_{contrast}"
            parts[name] = prepare_volume(name, image, {"cord": brain_mask(image), "rater-1": lesions}, about,
                                         **(CROP | crop))
    return join_volumes(parts, {**CROP, **crop, "source": "open_ms_data, cross_sectional/MNI"})


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SettingError("BRAIN-FILES", f"{len(found)} files {pattern}", where=folder, mend="fetch open_ms_data anew")
    return found[0]


def slab(slices: SliceSet, patient: str, zs: Sequence[int], name: str) -> SliceSet:
    """Slices ``zs`` of one patient as if they were another one called ``name``.

    Splits are by patient, so slabs become one. Its masks hold nothing outside of them, and the volume's hash is that of
    its own slices: the hash of the whole scan would say, rightly, that one scan is on two sides.
    """
    part = slices.select(((slices.table["patient"] == patient) & slices.table["z"].isin(zs)).to_numpy())
    new = {old: f"{name}_{part.volumes.loc[old, 'contrast']}" for old in part.volumes.index}
    owner = part.table["volume"].to_numpy()
    hashes = [sha256_array(np.asarray(part.images[owner == old]))[:32] for old in new]
    volumes = part.volumes.rename(index=new).assign(patient=name, image_hash=hashes)
    return SliceSet(part.images, part.masks, part.table.assign(volume=part.table["volume"].map(new), patient=name),
                    volumes, {new[old]: _cut(part.scans[old], zs) for old in new}, dict(part.meta))


def _cut(scan: ScanMasks, zs: Sequence[int]) -> ScanMasks:
    """Masks without what lies in other slices than ``zs``; the grid stays."""
    inside = {key: np.isin(flat % scan.shape[2], zs) for key, flat in scan.indices.items()}   # z varies fastest
    return ScanMasks(scan.shape, scan.affine, {key: flat[inside[key]] for key, flat in scan.indices.items()},
                     scan.cord_values[inside["cord"]])


def fold_slices(slices: SliceSet, fold: str) -> tuple[SliceSet, TrainConfig]:
    """One patient's slabs to train on, to choose by and to test on, and the other patient to test on; and the settings
    (fractions and split_seed) with which the package's own split by patient says the same."""
    trained, tested = FOLDS[fold]
    parts = [slab(slices, trained, [z for low, high in ranges for z in range(low, high)], f"{trained}-{side}")
             for side, ranges in SLABS.items()]
    parts.append(slab(slices, tested, range(0, 1000, TEST_STEP), tested))
    joined = SliceSet.concat(parts)
    sides = {f"{trained}-{side}": side.replace("own", "test") for side in SLABS} | {tested: "test"}
    shares = (0.25, 0.25, 0.5)
    seed = next(seed for seed in itertools.count() if
                split_patients(joined.volumes, fractions=shares, seed=seed).to_dict() == sides)
    return joined, replace(BASE, fractions=shares, split_seed=seed)


def marked(network: Network, part: SliceSet, z: torch.Tensor | None, precision: str) -> np.ndarray:
    """One volume's slices and a code (M,) -> lesion mask (X, Y, Z) on the scan's own grid."""
    codes = None if z is None else z.expand(len(part), -1)
    probability = predict_images(network, part.images, codes, device="cpu", precision=precision)[:, 0]
    return uncrop(probability, part.grid(part.table["volume"].iloc[0])) >= 0.5


def test_rows(network: Network, test: SliceSet, precision: str) -> list[dict[str, Any]]:
    """Scores of the test patient's volumes; a FiLMed network is also given each wrong code."""
    rows = []
    for name, about in test.volumes.iterrows():
        if network.card["settings"]["contrasts"] not in ([], (), [about["contrast"]], (about["contrast"],)):
            continue
        part = test.select((test.table["volume"] == name).to_numpy())
        scan = part.scans[name]
        for code in network.encoder.categories if network.encoder else (None,):
            mask = marked(network, part, None if code is None else network.code([code])[0], precision)
            scores = volume_scores(scan.dense("rater-1"), mask, scan.voxel_volume_mm3)
            rows.append({"patient": about["patient"], "contrast": about["contrast"], "code": code} | {
                key: round(value, 4) if np.isfinite(value) else None for key, value in scores.as_dict().items()
                if key in ("dice", "precision", "recall", "prediction_mm3")})
    return rows


def run_one(slices: SliceSet, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train, unless that is done, and score on the test side."""
    if (folder / "scores.json").is_file():
        return read_json(folder / "scores.json")
    began = time.perf_counter()
    result = fit(slices, config, folder, resume=(folder / "config.json").is_file(), progress=False)
    sides = pd.read_csv(folder / "split.csv").set_index("patient")["side"]
    test = slices.select((slices.table["patient"].map(sides) == "test").to_numpy())
    about = read_json(folder / "config.json")
    rows = test_rows(load_network(folder), test, about["precision"])
    steps = result.epochs * (about["counts"]["train_slices"] // config.batch_size)
    found = {"best_epoch": result.best_epoch, "epochs": result.epochs, "steps": steps, "precision": about["precision"],
             "val_dice": round(result.best_val_dice, 4), "counts": about["counts"],
             "seconds": round(time.perf_counter() - began, 1), "test": rows}
    write_json(folder / "scores.json", found)
    return found


def facts(slices: SliceSet) -> list[dict[str, Any]]:
    """Of each scan: its lesion, how bright that is beside tissue 2 to 3 mm away, and the best Dice the crop allows."""
    rows = []
    for name, about in slices.volumes.iterrows():
        scan, grid = slices.scans[name], slices.grid(name)
        lesion, brain = scan.dense("rater-1"), scan.dense("cord")
        image = np.zeros(lesion.shape, np.float32)
        image.reshape(-1)[scan.indices["cord"]] = scan.cord_values
        ring = ndimage.binary_dilation(lesion, iterations=3) & ~ndimage.binary_dilation(lesion) & brain
        own = slices.masks["rater-1"][(slices.table["volume"] == name).to_numpy(), 0].astype(np.float32)
        rows.append({"patient": about["patient"], "contrast": about["contrast"], "brain_ml": brain.sum() / 1000,
                     "lesion_mm3": about["lesion_mm3"], "outside_crop_mm3": about["lesion_outside_crop_mm3"],
                     "lesion": image[lesion].mean(), "around": image[ring].mean(), "around_sd": image[ring].std(),
                     "dice_of_the_crop": dice(lesion, uncrop(own, grid) >= 0.5)})
    return [{key: round(float(v), 4) if not isinstance(v, str) else v for key, v in row.items()} for row in rows]


def baselines(slices: SliceSet, fold: str) -> list[dict[str, Any]]:
    """What needs no network, on what is tested: the best threshold of the training slabs, and the whole brain."""
    joined, _ = fold_slices(slices, fold)
    trained, tested = FOLDS[fold]
    rows = []
    for contrast in CONTRASTS:
        chosen = ThresholdBaseline.fit([joined.scans[f"{trained}-train_{contrast}"]], contrast)
        about = {"direction": chosen.direction, "threshold": round(chosen.threshold, 3)}
        for side, patient in (("own", f"{trained}-own"), ("other", tested)):
            scan = joined.scans[f"{patient}_{contrast}"]
            truth = scan.dense("rater-1").reshape(-1)
            for name, flat in (("threshold", chosen.predict(scan)), ("whole brain", all_cord_baseline(scan))):
                mask = np.zeros_like(truth)
                mask[flat] = True
                rows.append({"fold": fold, "tested": side, "name": name, "contrast": contrast,
                             "dice": round(dice(truth, mask), 4)} | (about if name == "threshold" else {}))
    return rows


def summary(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Tables of the runs, for each fold and tested side ('own': slabs of the patient who was trained on; 'other'): Dice
    of each arm and contrast ('mean': of the four); paired differences by seed; and what wrong codes cost, by whether
    lesions have the other polarity in the contrast that the code names."""
    rows = pd.DataFrame([{"fold": run["fold"], "arm": run["arm"], "seed": run["seed"]} | row
                         for run in runs for row in run["test"]])
    rows["tested"] = np.where(rows["patient"].str.endswith("-own"), "own", "other")
    alone = rows["arm"].str.endswith(" alone")
    rows["arm"] = rows["arm"].where(~alone, "each alone")
    right = rows[rows["code"].isna() | (rows["code"] == rows["contrast"])]
    table = right.pivot(index=["fold", "tested", "arm", "seed"], columns="contrast", values="dice")[list(CONTRASTS)]
    table["mean"] = table.mean(axis=1, skipna=False)
    out: dict[str, list] = {"dice": [], "differences": [], "wrong_codes": []}
    for (fold, tested, arm), part in table.groupby(level=["fold", "tested", "arm"]):
        key = {"fold": fold, "tested": tested, "arm": arm}
        out["dice"] += [key | {"contrast": name} | _spread(part[name]) for name in part]
    for fold, tested in table.index.droplevel(["arm", "seed"]).unique():
        arms = table.loc[(fold, tested)]
        for a, b in (("FiLM, a tenth", "plain"), ("FiLM, full rate", "plain"), ("plain", "each alone"),
                     ("FiLM, full rate", "each alone")):
            if {a, b} <= set(arms.index.get_level_values("arm")):
                gap, key = arms.loc[a] - arms.loc[b], {"fold": fold, "tested": tested, "a": a, "b": b}
                out["differences"] += [key | {"contrast": name} | _spread(gap[name]) for name in gap]
    film = rows[rows["code"].notna()].copy()
    film["kind"] = np.where(film["code"] == film["contrast"], "right", np.where(
        film["code"].isin(BRIGHT) == film["contrast"].isin(BRIGHT), "same polarity", "other polarity"))
    film = film.groupby(["fold", "tested", "arm", "kind", "seed"])["dice"].mean()
    for (fold, tested, arm, kind), part in film.groupby(level=["fold", "tested", "arm", "kind"]):
        out["wrong_codes"].append({"fold": fold, "tested": tested, "arm": arm, "code": kind} | _spread(part))
    return out


def _spread(values: pd.Series) -> dict[str, Any]:
    known = [round(float(value), 4) for value in values.dropna()]
    return {"mean": round(float(np.mean(known)), 4) if known else None, "seeds": known}


def plan() -> list[tuple[str, str, int]]:
    """Every fold, arm and seed; first what matters most, so that a series that runs out of time is of use."""
    much, little = FOLDS
    alone = [arm for arm in ARMS if arm.endswith(" alone")]
    parts = [(much, ["plain", "FiLM, a tenth", "FiLM, full rate"]), (much, alone),
             (little, ["plain", "FiLM, full rate"]), (little, ["FiLM, a tenth"]), (little, alone)]
    return [(fold, arm, seed) for fold, arms in parts for seed in SEEDS for arm in arms]


def main() -> None:
    """Train and score what is not there yet, in the order of ``plan``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--keep", type=Path, help="JSON file of the result")
    parser.add_argument("--data", type=Path, help="folder open_ms_data; by default msfilm fetches it")
    parser.add_argument("--minutes", type=float, default=240, help="begin no training after this many")
    parser.add_argument("--epochs", type=int, default=BASE.epochs, help="passes over the training slices (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    data = arguments.data or fetch("open_ms_data", progress=False)
    slices = brains(data / "cross_sectional" / "MNI")
    runs = []
    prepared = {fold: fold_slices(slices, fold) for fold in FOLDS}
    for fold, arm, seed in plan():
        joined, config = prepared[fold]
        folder = arguments.out / f"{fold}, {arm}, seed {seed}".replace(", ", "_").replace(" ", "-")
        done = (folder / "scores.json").is_file()
        if not done and time.perf_counter() - began > 60 * arguments.minutes:
            continue
        config = replace(config, seed=seed, epochs=arguments.epochs, **ARMS[arm])
        runs.append({"fold": fold, "arm": arm, "seed": seed} | run_one(joined, config, folder))
        if not done:
            print(f"{time.perf_counter() - began:5.0f} s  {fold}  {arm}, seed {seed}: "
                  f"val {runs[-1]['val_dice']:.3f}", " ".join(
                      f"{row['patient']} {row['contrast']} {row['dice']:.3f}" for row in runs[-1]["test"]
                      if row["code"] in (None, row["contrast"])), flush=True)
    result = {"question": QUESTION, "expected": EXPECTED, "pilot": PILOT, "cite": CITE, "folds": FOLDS, "crop": CROP,
              "slabs": SLABS, "test_step": TEST_STEP, "settings": replace(BASE, epochs=arguments.epochs).as_dict(),
              "arms": ARMS, "seeds": SEEDS, "facts": facts(slices),
              "baselines": [row for fold in FOLDS for row in baselines(slices, fold)],
              "runs": runs, **summary(runs), "not_done": len(FOLDS) * len(SEEDS) * len(ARMS) - len(runs),
              "seconds": round(sum(run["seconds"] for run in runs)), "threads": 1,
              "made_by": made_by("python benchmarks/brain_lesions.py OUT --keep benchmarks/results/brain-lesions.json" +
                                 (f" --epochs {arguments.epochs}" if arguments.epochs != BASE.epochs else ""))}
    write_json(arguments.keep or arguments.out / "brain-lesions.json", result)


if __name__ == "__main__":
    main()
