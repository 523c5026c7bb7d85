"""Score a run on patients: network and baselines, per contrast and reference, with intervals, written as one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.errors import RunError, SettingError, suggest
from msfilm.evaluate.baselines import ThresholdBaseline
from msfilm.evaluate.chosen import choose_side, told_contrasts
from msfilm.evaluate.figure import scores_figure
from msfilm.evaluate.metrics import EMPTY_RULES, LESION_RULES, pool_sizes
from msfilm.evaluate.predict import weights_sha256
from msfilm.evaluate.reliability import Reliability
from msfilm.evaluate.summary import (
    REGIONS,
    Tally,
    choose_references,
    compare,
    plain_rows,
    score_volumes,
    summarise,
)
from msfilm.files import atomic_folder, made_by, read_json, ready_folder, strangers, write_json
from msfilm.model.weights import load_network
from msfilm.train.targets import has_mask
from msfilm.train.tensors import slices_hash

__all__ = ["Report", "evaluate"]

_FILES = ("metrics.json", "scores.csv", "scores.png")
# z sqrt((n - 1) / n) against Student's t: the percentile interval of n = 8 normal values covers 89 %, of n = 15 92 %.
_FEW_PATIENTS = 15


@dataclass(frozen=True, eq=False)
class Report:
    """What :func:`evaluate` found.

    Attributes:
        folder: holds scores.csv, metrics.json and scores.png.
        split: 'train', 'val', 'test' or 'all'.
        scores: a row for each volume x method x reference.
        metrics: the content of metrics.json.
    """

    folder: Path
    split: str
    scores: pd.DataFrame
    metrics: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read a report back. Raises InputError REPORT-MISSING."""
        folder = Path(folder)
        metrics = read_json(folder / "metrics.json", code="REPORT-MISSING")
        scores = pd.read_csv(folder / "scores.csv", dtype={"patient": str, "volume": str}, keep_default_na=True)
        return cls(folder, metrics["split"], scores, metrics)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of metrics.json: name, contrast, reference, dice, low, high, patients, volumes and the rest."""
        return pd.DataFrame(self.metrics["rows"])

    def row(self, name: str = "network", contrast: str = "all", reference: str = "rater-1") -> pd.Series:
        """One row. Raises SettingError REPORT-ROW when there is none."""
        rows = self.rows
        found = rows[(rows["name"] == name) & (rows["contrast"] == contrast) & (rows["reference"] == reference)]
        if found.empty:
            known = [" ".join(key) for key in zip(rows["name"], rows["contrast"], rows["reference"], strict=True)]
            raise SettingError("REPORT-ROW", f"no row {name} {contrast} {reference}",
                               mend=suggest(f"{name} {contrast} {reference}", known))
        return found.iloc[0]

    def table(self) -> pd.DataFrame:
        """For reading: Dice with its interval, the other rules for empty masks, specificity, lesions; and surface
        scores and calibration where there are any."""
        rows = self.rows
        table = pd.DataFrame({
            "method": rows["name"],
            "contrast": rows["contrast"],
            "against": rows["reference"],
            "Dice": rows["dice"].astype(float).round(3),
            "95 %": [f"{low:.3f} to {high:.3f}" if low is not None and not np.isnan(low) else ""
                     for low, high in zip(rows["low"], rows["high"], strict=True)],
            "volumes": rows["volumes"],
            "patients": rows["patients"],
            "no lesion, left empty": [f"{empty} of {free}" for empty, free in
                                      zip(rows["both_empty"], rows["lesion_free"], strict=True)],
            "false mm\u00b3 there": rows["false_mm3"].astype(float).round(1),
            "Dice, both empty = 1": rows["dice_one"].astype(float).round(3),
            "Dice, lesion volumes only": rows["dice_lesion_only"].astype(float).round(3),
            "lesion sensitivity": rows["lesion_sensitivity"].astype(float).round(2),
            "lesion precision": rows["lesion_precision"].astype(float).round(2),
            "lesion F1": rows["lesion_f1"].astype(float).round(2),
            "marked mm\u00b3": rows["prediction_mm3"].astype(float).round(1),
        })
        if self.metrics.get("empty_rule", "exclude") != "exclude":
            table.insert(table.columns.get_loc("Dice, both empty = 1"), "Dice, both empty left out",
                         rows["dice_exclude"].astype(float).round(3))
        for heading, key, digits in (("surface Dice", "surface_dice", 3), ("HD95 mm", "hd95_mm", 1),
                                     ("ECE", "ece", 4), ("ECE in the cord", "ece_cord", 3)):
            if key in rows and rows[key].notna().any():
                table[heading] = rows[key].astype(float).round(digits)
        return table

    def calibration(self, contrast: str = "all", reference: str = "rater-1", region: str = "crop") -> Reliability:
        """The network's reliability, for ``reliability_figure``; region: a key of ``summary.REGIONS``.

        Raises:
            SettingError: REPORT-ROW when there is none.
        """
        parts = [entry for entry in self.metrics.get("calibration", []) if entry["reference"] == reference
                 and entry["region"] == region and contrast in (entry["contrast"], "all")]
        if not parts:
            raise SettingError("REPORT-ROW", f"no calibration {contrast} {reference} {region}",
                               mend="evaluate anew; regions are " + ", ".join(REGIONS))
        return Reliability.total(map(Reliability.from_dict, parts))

    def lesions_by_size(self, name: str = "network", reference: str = "rater-1", contrast: str = "all") -> pd.DataFrame:
        """Lesions of all volumes together by size, as ``lesion_scores_by_size`` has them, under the report's rule.

        Raises:
            SettingError: REPORT-ROW when there is none.
        """
        entries = [entry for entry in self.metrics.get("lesions_by_size", []) if contrast in (entry["contrast"], "all")
                   and (entry["name"], entry["reference"]) == (name, reference)]
        if not entries:
            raise SettingError("REPORT-ROW", f"no lesions by size of {name} {contrast} {reference}",
                               mend="see the rows of the report for what was scored")
        return pool_sizes([pd.DataFrame(entries).fillna({"high_mm3": np.inf})])

    def statements(self, contrast: str = "all") -> list[str]:
        """The paired comparisons of one contrast (or of all together), a sentence each."""
        return [entry["statement"] for entry in self.metrics["differences"] if entry["contrast"] == contrast]

    def _repr_html_(self) -> str:
        empty, lesion = self.metrics.get("empty_rule", "exclude"), self.metrics.get("lesion_rule", "any")
        rule = (f"Split {self.split}. Empty masks, rule '{empty}': {EMPTY_RULES[empty]}. "
                f"Lesions, rule '{lesion}': {LESION_RULES[lesion]}.")
        notes = "".join(f"<li>{_escape(note)}</li>" for note in [*self.statements(), *self.metrics["notes"]])
        table = self.table().to_html(index=False, na_rep="", border=0)
        return f"<div style='overflow-x:auto'>{table}</div><p>{_escape(rule)}</p><ul>{notes}</ul>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def evaluate(
    run: str | Path,
    slices: SliceSet | str | Path,
    *,
    split: str = "test",
    out: str | Path | None = None,
    validation: SliceSet | None = None,
    contrasts: Sequence[str] | None = None,
    threshold: float = 0.5,
    device: str = "auto",
    precision: str = "fp32",
    resamples: int = 2000,
    seed: int = 0,
    lesion_rule: str = "any",
    empty_rule: str = "exclude",
    surface: bool = False,
    references: Sequence[str] | None = None,
    progress: bool = False,
) -> Report:
    """Score a run's network and the baselines by the rules in :mod:`msfilm.evaluate.metrics`.

    Each volume is scored on the scan's own grid against its lesion masks. A volume without any is listed with the
    volume that the network marks (reference 'unmarked'). Where the truth is known, raters are scored too.

    Args:
        run: run folder with the network, config.json and split.csv.
        slices: SliceSet or its folder.
        split: side of the run's split ('test', 'val', 'train'), or 'all' for patients that the run never saw.
        out: folder to write, RUN/evaluate-<split> by default; replaced as a whole.
        validation: patients on which the threshold baseline is chosen when ``split='all'``; without it, the one chosen
            in an earlier evaluation of this run is taken.
        contrasts: only these; by default all, but for those that a network which is told the contrast has no code for.
        threshold: a voxel is marked when its probability is at least this.
        device, precision: as in ``predict_slices``.
        resamples, seed: of the bootstrap over patients.
        lesion_rule: when a lesion is found, a key of LESION_RULES.
        empty_rule: what an empty mask scores in Dice, its interval and the differences, a key of EMPTY_RULES.
        surface: surface Dice (within 1 mm) and HD95 too; needs MONAI, and takes about 5 ms for each pair of masks.
        references: the masks to score against, for example those of a panel ('rater-2' ...); by default rater-1, the
            truth, and the mask that the run learned from.
        progress: show a bar over the volumes.

    Raises:
        SettingError: SPLIT-NAME, SPLIT-UNKNOWN (a patient without a side), SPLIT-EMPTY, CONTRAST-UNKNOWN,
            SCORE-RULE, REFERENCE-UNKNOWN, SPLIT-LEAK ('all' on what the run was trained from), REPORT-TARGET (``out``
            holds something that no evaluation wrote).
        InputError: RUN-SPLIT (no usable split.csv), SPLIT-LEAK, WEIGHTS-*. RunError: REPORT-WRITE.
    """
    for name, rule, rules in (("lesion", lesion_rule, LESION_RULES), ("empty", empty_rule, EMPTY_RULES)):
        if rule not in rules:
            raise SettingError("SCORE-RULE", f"{name}_rule={rule!r}", mend=suggest(rule, rules))
    run = Path(run)
    folder = run / f"evaluate-{split}" if out is None else Path(out)
    if lost := strangers(ready_folder(folder, target="REPORT-TARGET", write="REPORT-WRITE"), _FILES):
        raise SettingError("REPORT-TARGET", f"{lost[0]} in it would be lost", where=folder, mend="name a new folder")
    network = load_network(run)
    slices = slices if isinstance(slices, SliceSet) else SliceSet.load(slices)
    config = read_json(run / "config.json", code="RUN-CONFIG") if (run / "config.json").exists() else {}
    mask, notes = str(config.get("config", {}).get("mask", "rater-1")), []
    if split == "all" and has_mask(slices, mask) and config.get("slices_sha256") == slices_hash(slices, mask):
        raise SettingError("SPLIT-LEAK", "split 'all' is for patients that the run never saw, but these are its own "
                           "slices", where=run, mend="use split 'test', or the slices of other patients")
    chosen, choosing = choose_side(run, slices, split, validation)
    if contrasts is not None:
        for contrast in contrasts:
            if contrast not in chosen.contrasts:
                raise SettingError("CONTRAST-UNKNOWN", f"no volume of contrast {contrast!r} in split {split!r}",
                                   mend=suggest(contrast, chosen.contrasts))
        chosen = chosen.select(chosen.table["contrast"].isin(list(contrasts)).to_numpy())
    chosen = told_contrasts(network, chosen, notes)

    thresholds = _thresholds(run, choosing, chosen.contrasts, mask, notes)
    if split == "val":
        notes.append("the threshold was chosen on these same patients, and so was the epoch of the network")
    patients = chosen.volumes["patient"].nunique()
    if patients < _FEW_PATIENTS:
        notes.append(f"{patients} patients: a percentile interval of so few is too narrow (one of 8 patients holds the "
                     "true mean in about 89 % of cases, not in 95 %)")
    against, tally = choose_references(chosen, references, mask, notes), Tally()
    scores = score_volumes(network, chosen, thresholds, threshold=threshold, lesion_rule=lesion_rule, surface=surface,
                           references=against, tally=tally, progress=progress, device=device, precision=precision)
    rows = summarise(scores, resamples=resamples, seed=seed, empty_rule=empty_rule, tally=tally)
    metrics = {
        "split": split,
        "run": run.resolve().name,
        "network": {"conditioning": network.conditioning,
                    "weights_sha256": weights_sha256(network), "trained_on_mask": mask},
        "unit": "volume, on the scan's own grid, against the untouched mask",
        "empty_rule": empty_rule,
        "empty_rules": EMPTY_RULES,
        "lesion_rule": lesion_rule,
        "lesion_rules": LESION_RULES,
        "references": list(against),
        "settings": {"threshold": threshold, "precision": precision, "resamples": resamples, "seed": seed},
        "thresholds": {contrast: baseline.as_dict() for contrast, baseline in thresholds.items()},
        "rows": rows,
        "differences": compare(scores, resamples=resamples, seed=seed, empty_rule=empty_rule),
        "lesions_by_size": [
            {"name": name, "reference": reference, "contrast": contrast, **entry}
            for (name, reference, contrast), tables in tally.sizes.items() for entry in plain_rows(pool_sizes(tables))
        ],
        "calibration_regions": REGIONS,
        "calibration": [{"reference": reference, "contrast": contrast, "region": region, **counts.as_dict()}
                        for (reference, contrast, region), counts in tally.calibration.items()],
        "notes": notes,
        "made_by": made_by(),
    }
    try:
        with atomic_folder(folder) as temporary:
            scores.to_csv(temporary / "scores.csv", index=False, float_format="%.7g")
            write_json(temporary / "metrics.json", metrics)
            scores_figure(rows, title=f"{run.resolve().name}, {split}").savefig(temporary / "scores.png", dpi=144)
    except OSError as error:
        raise RunError("REPORT-WRITE", f"cannot write: {error.strerror or error}", where=folder,
                       mend="check free space and permissions; an older report there is as it was") from error
    return Report(folder, split, scores, metrics)


def _thresholds(run: Path, choosing: SliceSet | None, contrasts: Sequence[str], mask: str,
                notes: list[str]) -> Mapping[str, ThresholdBaseline]:
    """The threshold of each contrast, chosen on validation patients or taken from an earlier report of this run."""
    found: dict[str, ThresholdBaseline] = {}
    if choosing is not None:
        for contrast in contrasts:
            scans = [choosing.scans[name] for name in choosing.volumes.index[choosing.volumes["contrast"] == contrast]]
            if any(mask in scan.indices for scan in scans):
                found[contrast] = ThresholdBaseline.fit(scans, contrast, reference=mask)
    else:
        for side in ("test", "val", "train"):
            path = run / f"evaluate-{side}" / "metrics.json"
            if path.exists():
                earlier = read_json(path, code="REPORT-MISSING")["thresholds"]
                found = {name: ThresholdBaseline(**entry) for name, entry in earlier.items() if name in contrasts}
                break
    if missing := [contrast for contrast in contrasts if contrast not in found]:
        notes.append(f"no threshold baseline for {', '.join(missing)}: no validation patients with mask {mask} at hand "
                     "(evaluate the run on its own test patients first, or give validation=)")
    return found
