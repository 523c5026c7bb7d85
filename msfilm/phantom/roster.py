"""Who is in a cohort: patients, their centre, which scans they have, and who draws their lesions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from msfilm.errors import SettingError, suggest
from msfilm.phantom.anatomy import Patient, draw_patient
from msfilm.phantom.facts import acquisition, centres
from msfilm.phantom.lesions import Lesion, draw_lesions

__all__ = [
    "AXIAL",
    "COHORTS",
    "PANEL_EVERY",
    "PANEL_RATERS",
    "CohortPlan",
    "cohort_size",
    "make_patient",
    "patient_name",
    "raters_of",
    "scan_name",
    "scans_of",
]

AXIAL = ("T2w_ax", "T2star_ax")
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
    """

    seed: int = 0
    acquisitions: tuple[str, ...] = AXIAL
    raters: str = "nested"
    setting: str = "narrow"

    def __post_init__(self):
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise SettingError("PHANTOM-SEED", f"seed={self.seed!r}", mend="use a whole number of at least 0")
        for name in self.acquisitions:
            acquisition(name)
        if not self.acquisitions or len(set(self.acquisitions)) < len(self.acquisitions):
            raise SettingError("PHANTOM-ACQUISITIONS", f"{self.acquisitions}", mend="name each wanted one once")
        if self.raters not in ("nested", "crossed"):
            raise SettingError("PHANTOM-RATERS", f"raters={self.raters!r}", mend="use 'nested' or 'crossed'")


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
        chosen += [(name, station) for station in stations]
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
    table = centres()
    others = np.random.default_rng([plan.seed, index, 4]).permutation(table.rater.to_numpy())
    own = table.loc[make_patient(index, plan.seed)[0], "rater"]
    if plan.raters == "nested":
        others = np.concatenate([[own], others[others != own]])
    return tuple(str(name) for name in others[: PANEL_RATERS if index % PANEL_EVERY == 0 else 1])
