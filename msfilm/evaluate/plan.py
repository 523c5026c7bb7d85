"""An experiment as it is written down before it is run: cohorts to make, arms to train, what to compare and measure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.phantom.direct import make_slices
from msfilm.phantom.roster import CohortPlan
from msfilm.train.grid import Grid, load_yaml

__all__ = ["Arm", "ExperimentPlan", "is_plan", "make_cohort", "read_plan"]

_KEYS = ("question", "expected", "budget", "cohorts", "tests", "base", "arms", "compare", "measure", "healthy", "seeds")
MEASURES = ("scores", "ceilings", "styles", "new-contrast", "leakage")
_COHORT = ("patients", "seed", "labelled", "staple")


@dataclass(frozen=True)
class Arm:
    """One row of an experiment: settings on top of the base, the patients it learns from, those it is tested on."""

    cohort: str
    test: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExperimentPlan:
    """What is asked and expected, and everything that answers it.

    Attributes:
        question, expected, budget: for the reader.
        cohorts, tests: name -> patients, seed and fields of ``CohortPlan``; besides ``labelled`` (contrast -> share of
            the patients whose masks are kept) and ``staple`` (adds that mask).
        base: settings of all arms.
        arms: name -> Arm.
        compare: pairs of arms (a, b), for a - b on the same patients.
        measures: of MEASURES.
        healthy: whether false lesion on healthy real scans is counted.
        seeds: each arm is trained with each.

    Raises:
        SettingError: PLAN-KEY, PLAN-ARM, PLAN-COHORT; and those of Grid and CohortPlan.
    """

    question: str
    expected: str
    cohorts: dict[str, dict[str, Any]]
    tests: dict[str, dict[str, Any]]
    arms: dict[str, Arm]
    base: dict[str, Any] = field(default_factory=dict)
    compare: list[tuple[str, str]] = field(default_factory=list)
    measures: tuple[str, ...] = ("scores",)
    healthy: bool = False
    budget: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    path: Path | None = None

    def __post_init__(self):
        for name, one in (*self.cohorts.items(), *self.tests.items()):
            try:
                cohort_plan(one)
                int(one["patients"])
            except (TypeError, KeyError, ValueError) as error:
                self._refuse("PLAN-COHORT", f"cohort '{name}': {error}", "name patients, seed and fields of CohortPlan")
        for name, arm in self.arms.items():
            for kind, wanted, known in (("cohort", arm.cohort, self.cohorts), ("test", arm.test, self.tests)):
                if wanted not in known:
                    self._refuse("PLAN-ARM", f"arm '{name}': no {kind} {wanted!r}", suggest(str(wanted), known))
        for name in (one for pair in self.compare for one in pair):
            if name not in self.arms:
                self._refuse("PLAN-ARM", f"compare: no arm {name!r}", suggest(name, self.arms))
        for name in self.measures:
            if name not in MEASURES:
                self._refuse("PLAN-KEY", f"measure: {name!r}", suggest(name, MEASURES))
        for cohort in self.cohorts:
            self.grid(cohort)

    def _refuse(self, code: str, what: str, mend: str) -> None:
        raise SettingError(code, what, where=self.path, mend=mend)

    def grid(self, cohort: str) -> Grid | None:
        """The arms that learn from one cohort, as a grid; None if there is none."""
        arms = {name: dict(arm.settings) for name, arm in self.arms.items() if arm.cohort == cohort}
        if not arms:
            return None
        return Grid(base=self.base, arms=arms, seeds=self.seeds, question=self.question, expected=self.expected,
                    path=self.path)

    def as_dict(self) -> dict[str, Any]:
        """For the result's file."""
        return {"question": self.question, "expected": self.expected, "budget": self.budget, "cohorts": self.cohorts,
                "tests": self.tests, "base": self.base, "seeds": list(self.seeds),
                "arms": {name: {"cohort": arm.cohort, "test": arm.test, **arm.settings}
                         for name, arm in self.arms.items()}}


def is_plan(path: str | Path) -> bool:
    """Whether a YAML file describes cohorts too, and not a grid alone."""
    return "cohorts" in load_yaml(Path(path))


def read_plan(path: str | Path) -> ExperimentPlan:
    """Read an experiment from a YAML file.

    An arm names its ``cohort`` and ``test`` where there are several. Without ``compare`` every arm is compared with the
    first of the same test patients.

    Raises:
        InputError: GRID-MISSING, GRID-YAML; SettingError: those of ExperimentPlan.
    """
    path = Path(path)
    content = load_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise SettingError("PLAN-KEY", f"there is no key '{key}'", where=path, mend=suggest(key, _KEYS))
    for key in ("question", "expected", "cohorts", "tests", "arms"):
        if not content.get(key):
            raise SettingError("PLAN-KEY", f"'{key}' is missing", where=path, mend="write it down before the run")
    _check_kinds(content, path)
    cohorts, tests, arms = content["cohorts"], content["tests"], {}
    for name, given in content["arms"].items():
        settings = dict(given or {})
        arms[str(name)] = Arm(settings.pop("cohort", next(iter(cohorts))), settings.pop("test", next(iter(tests))),
                              settings)
    pairs = content.get("compare")
    if pairs is None:
        first = {}
        for name, arm in arms.items():
            first.setdefault(arm.test, name)
        pairs = [(name, first[arm.test]) for name, arm in arms.items() if first[arm.test] != name]
    rest = {key: content[key] for key in ("base", "healthy", "budget") if content.get(key) is not None}
    return ExperimentPlan(question=content["question"], expected=content["expected"], cohorts=cohorts, tests=tests,
                          arms=arms, compare=[(str(a), str(b)) for a, b in pairs], path=path,
                          measures=tuple(content.get("measure") or ("scores",)),
                          seeds=tuple(content.get("seeds") or (0, 1, 2)), **rest)


def _check_kinds(content: dict[str, Any], path: Path) -> None:
    """Mappings where mappings belong, lists where lists do."""
    def refuse(key: str, wanted: str) -> None:
        raise SettingError("PLAN-VALUE", f"'{key}' is no {wanted}", where=path,
                           mend="benchmarks/experiments/ has examples")

    for key in ("cohorts", "tests", "arms"):
        if not isinstance(content[key], dict) or not all(isinstance(one, dict) for one in content[key].values()
                                                         if one is not None or key != "arms"):
            refuse(key, "mapping of names to settings")
    for name, arm in content["arms"].items():
        if any(isinstance((arm or {}).get(key), (dict, list)) for key in ("cohort", "test")):
            refuse(f"arms, {name}", "mapping with the names of a cohort and of a test")
    for key in ("measure", "seeds", "compare"):
        if content.get(key) is not None and not isinstance(content[key], list):
            refuse(key, "list")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in content.get("compare") or []):
        refuse("compare", "list of pairs [a, b]")
    if any(not isinstance(one, str) for one in content.get("measure") or []):
        refuse("measure", "list of names")


def cohort_plan(settings: Mapping[str, Any]) -> CohortPlan:
    """The phantom's plan of a cohort in an experiment's file."""
    fields = {name: value for name, value in settings.items() if name not in _COHORT}
    return CohortPlan(int(settings["seed"])).with_settings(fields)


def make_cohort(settings: Mapping[str, Any], folder: Path, *, workers: int | None = None,
                progress: bool = True) -> Path:
    """The slices of a cohort, made unless they are there; cohorts of the same settings share a folder.

    Args:
        settings: patients, seed, labelled, staple and fields of CohortPlan.
        folder: where cohorts are kept; each in a folder of its own, named by its settings.
    """
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"{settings['patients']}-of-seed-{settings['seed']}-{name}"
    if (place / "slices.json").is_file():
        return place
    plan, labelled, consensus = cohort_plan(settings), settings.get("labelled"), settings.get("staple")
    patients = int(settings["patients"])
    if not labelled and not consensus:
        make_slices(patients, plan, place, workers=workers, progress=progress)
        return place
    slices = make_slices(patients, plan, workers=workers, progress=progress)
    if labelled:
        slices = _unlabel(slices, labelled, plan.seed)
    if consensus:
        from msfilm.evaluate.consensus_masks import add_staple

        slices = add_staple(slices)
    return slices.save(place)


def _unlabel(slices: SliceSet, labelled: Mapping[str, float], seed: int) -> SliceSet:
    """Take the raters' masks from some patients' scans of a contrast: a share of the patients keeps them."""
    patients = np.array(sorted(slices.volumes["patient"].unique()), dtype=object)
    gone = np.zeros(len(slices), bool)
    for contrast, share in labelled.items():
        order = np.random.default_rng([seed, 11, *contrast.encode()]).permutation(patients)
        lost = set(order[round(share * len(patients)):])
        gone |= ((slices.table["contrast"] == contrast) & slices.table["patient"].isin(lost)).to_numpy()
    masks = {}
    for name, mask in slices.masks.items():
        masks[name] = np.where(gone[:, None, None, None], UNDRAWN, mask).astype(np.uint8) if "rater" in name else mask
    scans = dict(slices.scans)
    for name in slices.table["volume"][gone].unique():
        indices = {mask: voxels for mask, voxels in scans[name].indices.items() if "rater" not in mask}
        scans[name] = type(scans[name])(scans[name].shape, scans[name].affine, indices, scans[name].cord_values)
    return SliceSet(slices.images, masks, slices.table, slices.volumes, scans, slices.meta)
