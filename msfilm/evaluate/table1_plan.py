"""What the paper's table is made from here: cohorts, settings, the grid that every row is searched over, the seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from msfilm.errors import SettingError, suggest
from msfilm.train.augment import AugmentConfig, with_altered_truth
from msfilm.train.config import TrainConfig

__all__ = ["PAPER_DICE", "PAPER_RATERS", "PLANS", "Row", "Table1Plan", "table1_plan", "table_rows"]

PAPER_DICE = {"U-Net, T2w": 0.72, "U-Net, T2star": 0.73, "U-Net, both": 0.72, "FiLMed U-Net, both": 0.72}  # its Table 1
PAPER_RATERS = 0.61   # Dice between raters, same paper


@dataclass(frozen=True)
class Row:
    """A row of the table: a network by what it is trained on and whether it is told the contrast."""

    name: str
    contrasts: tuple[str, ...]      # trained on, and tested on
    conditioning: str = "none"


def table_rows(contrasts: Sequence[str], conditioning: str = "contrast") -> tuple[Row, ...]:
    """A U-Net for each contrast, one for all, and a FiLMed one for all.

    Raises:
        SettingError: TABLE1-CONTRASTS for fewer than two.
    """
    contrasts = tuple(sorted(set(contrasts), key=lambda name: (name != "T2w", name)))   # T2w first, as in the paper
    if len(contrasts) < 2:
        raise SettingError("TABLE1-CONTRASTS", f"the data have {', '.join(contrasts) or 'no contrast'} only",
                           mend="the table compares networks over two contrasts or more")
    every = "both" if len(contrasts) == 2 else "all"
    single = tuple(Row(f"U-Net, {contrast}", (contrast,)) for contrast in contrasts)
    return (*single, Row(f"U-Net, {every}", contrasts), Row(f"FiLMed U-Net, {every}", contrasts, conditioning))


@dataclass(frozen=True)
class Table1Plan:
    """Everything that decides the table; nothing in it may be chosen by a test patient.

    Attributes:
        patients: of the phantom cohort that is trained on, chosen by and (its own test side) not used.
        test_patients: of the independent test cohort.
        base: settings that all rows share.
        grid: setting -> values: every row is searched over all combinations, by validation Dice.
        search_epochs: epochs of each run of the search.
        seeds: trainings of each row with the settings that its own search chose.
        cohort_seed: of the phantom cohort.
        chosen: row -> settings that an earlier search chose for it, for instance on fewer patients; then nothing is
            searched here.
        expected: what is expected of FiLMed minus plain, written down before any training.
    """

    patients: int
    test_patients: int
    base: TrainConfig
    grid: dict[str, tuple[Any, ...]]
    search_epochs: int
    seeds: int = 3
    cohort_seed: int = 0
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    expected: str = ("within +-.02: the contrast can be read off an image of these two, so being told it should add "
                     "nothing; the paper found a tie")

    def __post_init__(self):
        for name, low in (("patients", 3), ("test_patients", 2), ("search_epochs", 1), ("seeds", 1),
                          ("cohort_seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingError("TABLE1-SETTING", f"{name}={value!r}", mend=f"use a whole number, {low} or more")
        self.candidates()   # refuses a setting that does not exist
        for point in self.chosen.values():
            TrainConfig.from_dict(asdict(self.base) | point)

    def candidates(self) -> dict[str, dict[str, Any]]:
        """Name -> settings of each point of the grid, in order."""
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        for point in points:
            TrainConfig.from_dict(asdict(self.base) | point)
        return {", ".join(f"{key}={value}" for key, value in point.items()) or "as it is": point for point in points}

    def search_jobs(self, row: Row) -> dict[str, TrainConfig]:
        """Candidate -> settings of its run in the search, with seed 0; none where all is chosen already."""
        return {} if self.chosen else {name: replace(self._of(row), **point, epochs=self.search_epochs, seed=0)
                for name, point in self.candidates().items()}

    def final_jobs(self, row: Row, chosen: dict[str, Any]) -> dict[int, TrainConfig]:
        """Seed -> settings of the row's runs, once its search has chosen."""
        return {seed: replace(self._of(row), **chosen, seed=seed) for seed in range(self.seeds)}

    def _of(self, row: Row) -> TrainConfig:
        return replace(self.base, contrasts=row.contrasts, conditioning=row.conditioning)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"base": self.base.as_dict()}


# Altered ground truth, as in the paper. Its loss was Dice alone; on small phantom cohorts that ends at empty masks in
# some trainings, so the default adds cross-entropy.
_BASE = TrainConfig(epochs=30, patience=0, loss="dice-bce", augment=with_altered_truth(AugmentConfig()))
# The paper's own grid: learning-rate schedule, batch size and depth, each at two values.
_GRID = {"schedule": ("cosine", "cyclic"), "batch_size": (16, 32), "depth": (2, 3)}

PLANS: dict[str, Table1Plan] = {
    "quick": Table1Plan(8, 6, replace(_BASE, filters=4, depth=2, epochs=2),
                        {"schedule": ("cosine", "cyclic")}, search_epochs=1, seeds=2),
    "course": Table1Plan(40, 200, _BASE, _GRID,
                         search_epochs=6),
    "paper": Table1Plan(642, 200, replace(_BASE, filters=64, epochs=100),
                        {"schedule": ("cosine", "cyclic"), "batch_size": (32, 128), "depth": (2, 3)},
                        search_epochs=20),
}


def table1_plan(profile: str = "course", *, patients: int | None = None, epochs: int | None = None,
                seeds: int | None = None, filters: int | None = None, loss: str | None = None,
                cohort_seed: int | None = None, device: str | None = None,
                chosen: dict[str, dict[str, Any]] | None = None) -> Table1Plan:
    """The plan of a profile, with some of its numbers changed; the search's epochs follow the epochs.

    ``chosen``: what an earlier table's search chose (its table1.json, key ``chosen``), instead of a search.

    Raises:
        SettingError: PROFILE-UNKNOWN, TABLE1-SETTING, TRAIN-SETTING.
    """
    if profile not in PLANS:
        raise SettingError("PROFILE-UNKNOWN", f"no profile is called {profile!r}", mend=suggest(profile, PLANS))
    plan = PLANS[profile]
    base = {"epochs": epochs, "filters": filters, "loss": loss, "device": device}
    changed = {name: value for name, value in base.items() if value is not None}
    whole = {"patients": patients, "seeds": seeds, "cohort_seed": cohort_seed, "chosen": chosen}
    if epochs is not None:
        whole["search_epochs"] = max(1, round(epochs * plan.search_epochs / plan.base.epochs))
    return replace(plan, base=replace(plan.base, **changed),
                   **{name: value for name, value in whole.items() if value is not None})
