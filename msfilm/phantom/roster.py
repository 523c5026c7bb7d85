"""Who is in a cohort: patients, their centre, which scans they have, and who draws their lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from msfilm.errors import SettingError, suggest
from msfilm.phantom.anatomy import Patient, draw_patient
from msfilm.phantom.facts import acquisition, centres
from msfilm.phantom.lesions import Lesion, draw_lesions
from msfilm.phantom.raters import RaterConfig, rater_config, rater_style_mm

__all__ = [
    "AXIAL",
    "COHORTS",
    "PANEL_EVERY",
    "PANEL_RATERS",
    "PROTOCOLS",
    "CohortPlan",
    "cohort_size",
    "make_patient",
    "patient_name",
    "raters_of",
    "scan_name",
    "scans_of",
]

AXIAL = ("T2w_ax", "T2star_ax")
PROTOCOLS = ("table", "one", "wide")
# name -> (patients, seed): the course's sizes, and 200 patients of another seed, of whom no network has seen one
COHORTS = {"quick": (8, 0), "course": (40, 0), "paper": (642, 0), "test": (200, 1000)}
PANEL_EVERY, PANEL_RATERS = 5, 4  # every fifth patient is drawn by four raters


@dataclass(frozen=True)
class CohortPlan:
    """What a cohort holds beside its patients.

    Attributes:
        seed: another seed is another cohort.
        acquisitions: keys of ``msfilm.phantom.facts.ACQUISITIONS``; axial T2w and T2*w as in the paper by default.
        raters: 'nested' (each centre has one rater, the paper's case) or 'crossed' (any rater for any patient).
        setting: how much raters differ: 'narrow' or 'wide' (``tables/raters.csv``).
        spread: factor on all of it (``RaterConfig.scaled``); 0: every rater draws the truth.
        styles_mm: given, there are only so many raters, rater-01 .., with these biases; centres are dealt to them in
            turn. By default each centre has a rater of its own, whose style is drawn.
        panel_every: every so many patients are drawn by four raters (or all, where there are fewer).
        stations: at most so many axial scans of a contrast; 0: all of them.
        decoys: each patient has as many blobs again that are no lesions, of the opposite polarity: dark where lesions
            are bright. They lie as lesions do.
        protocols: 'table' (each centre its own), 'one' (all centres scan as the first does) or 'wide' (TR, TE and flip
            angle differ from scan to scan, by a spread of 20, 35 and 25 % on the logarithm).
    """

    seed: int = 0
    acquisitions: tuple[str, ...] = AXIAL
    raters: str = "nested"
    setting: str = "narrow"
    spread: float = 1.0
    styles_mm: tuple[float, ...] = ()
    panel_every: int = PANEL_EVERY
    stations: int = 0
    decoys: bool = False
    protocols: str = "table"

    def __post_init__(self):
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise SettingError("PHANTOM-SEED", f"seed={self.seed!r}", mend="use a whole number of at least 0")
        for name in self.acquisitions:
            acquisition(name)
        if not self.acquisitions or len(set(self.acquisitions)) < len(self.acquisitions):
            raise SettingError("PHANTOM-ACQUISITIONS", f"{self.acquisitions}", mend="name each wanted one once")
        if self.raters not in ("nested", "crossed"):
            raise SettingError("PHANTOM-RATERS", f"raters={self.raters!r}", mend="use 'nested' or 'crossed'")
        if self.protocols not in PROTOCOLS:
            raise SettingError("PHANTOM-PROTOCOLS", f"protocols={self.protocols!r}",
                               mend=suggest(self.protocols, PROTOCOLS))  # fmt: skip
        for name, low in (("panel_every", 1), ("stations", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingError("PHANTOM-PLAN", f"{name}={value!r}", mend=f"use a whole number, {low} or more")
        for name, values in (("spread", (self.spread,)), ("styles_mm", self.styles_mm)):
            for value in values:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 10:
                    raise SettingError("PHANTOM-PLAN", f"{name}: {value!r}", mend="use a number between -10 and 10")
        if self.spread < 0 or not isinstance(self.decoys, bool):
            raise SettingError("PHANTOM-PLAN", f"spread={self.spread!r}, decoys={self.decoys!r}",
                               mend="use 0 or more, and true or false")  # fmt: skip
        object.__setattr__(self, "styles_mm", tuple(float(style) for style in self.styles_mm))

    def with_settings(self, settings: Mapping[str, Any]) -> CohortPlan:
        """Fields changed by name; texts, as a command line gives them, are read as YAML.

        Raises:
            SettingError: PHANTOM-PLAN for a name that does not exist; and those of the plan.
        """
        import yaml

        known = [one.name for one in fields(self)]
        for name in settings:
            if name not in known:
                raise SettingError("PHANTOM-PLAN", f"there is no setting {name!r}", mend=suggest(name, known))
        given = {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in settings.items()}
        return replace(self, **{key: tuple(one) if isinstance(one, list) else one for key, one in given.items()})

    def rater_config(self) -> RaterConfig:
        """How much this cohort's raters differ."""
        config = rater_config(self.setting)
        return config if self.spread == 1 else config.scaled(self.spread)

    def style_mm(self, rater: str) -> float:
        """A rater's bias in mm (positive draws large)."""
        if self.styles_mm:
            return self.styles_mm[int(rater.rsplit("-", 1)[-1]) - 1]
        return rater_style_mm(rater, self.seed, self.rater_config())

    def rater_names(self) -> dict[str, str]:
        """Centre -> its rater."""
        own = centres().rater
        if not self.styles_mm:
            return dict(own)
        return {centre: f"rater-{1 + i % len(self.styles_mm):02d}" for i, centre in enumerate(own.index)}


def cohort_size(name: str) -> tuple[int, int]:
    """Patients and seed of a cohort of ``COHORTS``.

    Raises:
        SettingError: PROFILE-UNKNOWN.
    """
    if name not in COHORTS:
        raise SettingError("PROFILE-UNKNOWN", f"no cohort is called {name!r}", mend=suggest(name, COHORTS))
    return COHORTS[name]


def patient_name(index: int) -> str:
    """BIDS name of the patient with this number: 0 is 'sub-001'."""
    return f"sub-{index + 1:03d}"


def scan_name(index: int, acquisition_name: str, station: str = "upper") -> str:
    """BIDS name of a scan, without ending."""
    _, suffix, entities = acquisition(acquisition_name)
    station = "" if station == "upper" or acquisition_name not in AXIAL else f"acq-{station}"
    return "_".join(part for part in (patient_name(index), station, entities, suffix) if part)


def scans_of(index: int, plan: CohortPlan | None = None) -> list[tuple[str, str]]:
    """(acquisition, station) of a patient's scans.

    Axial T2w and T2*w come in two stations each, and to some patients a third is added or one lacks: 3.97 volumes a
    patient, 2549 in 642 patients, as in the paper. Other acquisitions come once.
    """
    plan = plan or CohortPlan()
    chosen = []
    for name in plan.acquisitions:
        stations = ["upper", "lower"] if name in AXIAL else ["upper"]
        if name == "T2w_ax" and index % 10 == 3:
            stations.append("chest")
        if name == "T2star_ax" and (index % 10 == 7 or index % 33 == 32):
            stations.remove("lower")
        if name == "T2w_ax" and index % 10 == 7 and index % 33 == 32:
            stations.remove("lower")
        chosen += [(name, station) for station in stations[: plan.stations or None]]
    return chosen


@lru_cache(maxsize=256)
def make_patient(index: int, seed: int) -> tuple[str, Patient, list[Lesion], dict]:
    """Centre, anatomy, lesions and participant row of patient ``index``; the same whatever else the cohort holds."""
    table = centres()
    rng = np.random.default_rng([seed, index, 0])
    centre = str(rng.choice(table.index, p=table.weight / table.weight.sum()))
    patient = draw_patient(rng)
    lesions = draw_lesions(rng, patient)
    row = {
        "participant_id": patient_name(index),
        "centre": centre,
        "age": int(np.clip(rng.normal(42, 11), 18, 75)),
        "sex": "F" if rng.uniform() < 0.7 else "M",
        "lesions": len(lesions),
        "panel": index % PANEL_EVERY == 0,
    }
    return centre, patient, lesions, row


@lru_cache(maxsize=256)
def raters_of(index: int, plan: CohortPlan) -> tuple[str, ...]:
    """Who draws this patient's lesions: one rater, or four in the panel; the first is the centre's where raters are
    nested.
    """
    names = plan.rater_names()
    everyone = np.array(list(dict.fromkeys(names.values())), dtype=object)
    others = np.random.default_rng([plan.seed, index, 4]).permutation(everyone)
    own = names[make_patient(index, plan.seed)[0]]
    if plan.raters == "nested":
        others = np.concatenate([[own], others[others != own]])
    return tuple(str(name) for name in others[: PANEL_RATERS if index % plan.panel_every == 0 else 1])
