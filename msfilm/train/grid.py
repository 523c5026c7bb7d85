"""A grid of settings, written down in YAML before anything is trained: what is asked, what is expected, what varies."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from msfilm.errors import InputError, SettingError, suggest
from msfilm.files import check_aliases, shallow
from msfilm.train.loop import TrainConfig

__all__ = ["MAX_JOBS", "Grid", "load_yaml", "read_grid", "write_grid"]

MAX_JOBS = 10_000
_KEYS = ("question", "expected", "slices", "base", "arms", "grid", "seeds")
_SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the lists in ``grid``, each with every seed, on top of what all have in common.

    Names are TrainConfig's; those inside one of its parts are dotted ('augment.rotate_deg'), or nested in ``base``.

    Attributes:
        grid: setting -> the values to try.
        base: setting -> its value in all jobs; what is not named keeps TrainConfig's default.
        arms: name -> settings that change together, on top of ``base``; every combination is tried with every arm.
        seeds: each combination is trained with each of them.
        question: what is asked.
        expected: the answer expected, written down before the jobs are run.
        slices: folder of the SliceSet to train on, or None.
        path: the file this was read from, or None.

    Raises:
        SettingError: GRID-SETTING, GRID-LIST, GRID-TWICE, GRID-VALUE or GRID-SIZE; or a setting's own code, for a value
            that TrainConfig refuses.
    """

    grid: dict[str, list] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    question: str = ""
    expected: str = ""
    slices: Path | None = None
    path: Path | None = None

    def __post_init__(self):
        for name in ("question", "expected"):
            if not isinstance(getattr(self, name), str):
                self._refuse("GRID-VALUE", f"{name}: {getattr(self, name)!r} is no text", "put it in quotes")
        for name in ("base", "grid", "arms"):
            if not isinstance(getattr(self, name), dict):
                self._refuse("GRID-VALUE", f"{name}: {getattr(self, name)!r}", "write a line 'name: value' a setting")
        lists = {name: self._list(name, values) for name, values in self.grid.items()}
        object.__setattr__(self, "seeds", tuple(self._list("seeds", self.seeds)))
        object.__setattr__(self, "grid", lists)
        object.__setattr__(self, "base", self._flat("base", self.base))
        object.__setattr__(self, "arms", {str(arm): self._flat(f"arms, {arm}", settings or {})
                                          for arm, settings in self.arms.items()})
        if not lists and not self.arms:
            self._refuse("GRID-LIST", "grid: no setting varies", "give at least one, as 'depth: [2, 3]'")
        for name in (*lists, *self.base, *(name for arm in self.arms.values() for name in arm)):
            self._known(name)
        for name in {name for arm in self.arms.values() for name in arm} & lists.keys():
            self._refuse("GRID-TWICE", f"'{name}' is in an arm and in grid", "leave it out of one of them")
        for name in lists.keys() & self.base.keys():
            self._refuse("GRID-TWICE", f"'{name}' is in base and in grid", "leave it out of one of them")
        size = math.prod(len(values) for values in lists.values()) * len(self.seeds) * max(1, len(self.arms))
        if size > MAX_JOBS:
            self._refuse("GRID-SIZE", f"{size} jobs; at most {MAX_JOBS}", "try fewer values, or fewer settings at once")
        self.jobs()   # a value that is not allowed is refused here, before hours of training

    def jobs(self) -> dict[str, TrainConfig]:
        """Name -> settings, for example 'arm=off,depth=2,seed=0'; the arm comes first, the seed last."""
        names, jobs = sorted(self.grid), {}
        arms = self.arms or {"": {}}
        for arm, *values in itertools.product(arms, *(self.grid[name] for name in names)):
            point = dict(zip(names, values, strict=True))
            for seed in self.seeds:
                job = ",".join(f"{name}={_text(value)}" for name, value in
                               [*([("arm", arm)] if arm else []), *point.items(), ("seed", seed)])
                try:
                    config = TrainConfig.from_dict(self._nested(self.base | arms[arm] | point | {"seed": seed}))
                except SettingError as error:
                    where = f"{self.path or 'grid'}, {job}"
                    raise SettingError(error.code, error.what, where=where, mend=error.mend) from error
                if job in jobs:   # 'T2w' and ['T2w']
                    self._refuse("GRID-TWICE", f"{job} stands there twice", "leave one out")
                jobs[job] = config
        return jobs

    def _refuse(self, code: str, what: str, mend: str) -> None:
        raise SettingError(code, what, where=self.path, mend=mend)

    def _list(self, name: str, values: Any) -> list:
        if not isinstance(values, (list, tuple)) or not values:
            fact = "an empty list" if isinstance(values, (list, tuple)) else f"{values!r} is no list"
            self._refuse("GRID-LIST", f"{name}: {fact}", f"write the values to try, as '{name}: [a, b]'")
        if len(values) > MAX_JOBS:
            self._refuse("GRID-SIZE", f"{name}: {len(values)} values; at most {MAX_JOBS} jobs", "try fewer values")
        values, seen = [self._value(name, value) for value in values], set()
        for value in values:
            known = tuple(value) if isinstance(value, list) else value
            if known in seen:
                self._refuse("GRID-TWICE", f"{name}: {value!r} stands there twice", "leave one out")
            seen.add(known)
        return values

    def _value(self, name: str, value: Any) -> Any:
        """A scalar, or a flat list of them."""
        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, (list, tuple)) and all(isinstance(part, _SCALARS) for part in value):
            return list(value)
        if isinstance(value, dict):
            self._refuse("GRID-VALUE", f"{name}: a mapping cannot be a value",
                         f"name its settings one by one, as '{name}.NAME: VALUE'")
        self._refuse("GRID-VALUE", f"{name}: a {type(value).__name__} cannot be a value",
                     "use numbers, texts, or flat lists of them; put a text in quotes")

    def _flat(self, place: str, settings: Any) -> dict[str, Any]:
        """{'augment': {'rotate_deg': 5}} -> {'augment.rotate_deg': 5}"""
        if not isinstance(settings, dict):
            self._refuse("GRID-VALUE", f"{place}: {settings!r}", "write a line 'name: value' a setting")
        flat: dict[str, Any] = {}
        for name, value in settings.items():
            nested = isinstance(value, dict) and name in _parts()
            for key, part in ({f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}).items():
                if key in flat:
                    self._refuse("GRID-TWICE", f"'{key}' is in {place} twice", "leave one out")
                flat[key] = self._value(key, part)
        return flat

    def _known(self, name: Any) -> None:
        top, parts = [f.name for f in fields(TrainConfig)], _parts()
        if name == "seed":
            self._refuse("GRID-SETTING", "'seed' is not a setting of a grid", "list them under 'seeds: [0, 1, 2]'")
        head, dot, tail = str(name).partition(".")
        if name in top or (dot and tail in parts.get(head, ())):
            return
        meant = [f"{part}.{inside}" for part, insides in parts.items() for inside in insides]
        known = ([one for one in meant if one.startswith(f"{head}.")] if dot and head in parts
                 else top + [one for one in meant if one.endswith(f".{name}")])
        self._refuse("GRID-SETTING", f"there is no setting '{name}'", suggest(name, known))

    def _nested(self, flat: dict[str, Any]) -> dict[str, Any]:
        """{'augment.rotate_deg': 5} -> {'augment': {'rotate_deg': 5}}"""
        out: dict[str, Any] = {name: value for name, value in flat.items() if "." not in name}
        for name, value in flat.items():
            head, dot, tail = name.partition(".")
            if dot and not isinstance(out.setdefault(head, {}), dict):
                self._refuse("GRID-TWICE", f"'{name}' and '{head}' are both set", "leave one out")
            if dot:
                out[head][tail] = value
        return out


def read_grid(path: str | Path) -> Grid:
    """Read a grid from a YAML file with the keys question, expected, slices, base, arms, grid and seeds; grid or arms.

    ``slices`` is looked for beside the file. 1e-3 is a number here, which YAML 1.1 takes for a text.

    Raises:
        InputError: GRID-MISSING; GRID-YAML, with the line.
        SettingError: GRID-KEY, a key that means nothing here; and those of Grid.
    """
    path = Path(path)
    content = load_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise SettingError("GRID-KEY", f"there is no key '{key}'", where=path, mend=suggest(key, _KEYS))
    given = {key: value for key, value in content.items() if value is not None}   # 'base:' with nothing after it
    if not isinstance(given.get("slices", ""), str):
        raise SettingError("GRID-VALUE", f"slices: {given['slices']!r} is no folder", where=path, mend="name a folder")
    if "slices" in given:
        given["slices"] = path.parent / given["slices"]
    return Grid(**{"grid": {}} | given, path=path)


def write_grid(grid: Grid, path: str | Path) -> Path:
    """Write a grid as YAML that ``read_grid`` reads as the same jobs; the place of its slices is left out."""
    import yaml

    from msfilm.files import atomic_path

    content = {"question": grid.question, "expected": grid.expected, "base": grid.base, "arms": grid.arms,
               "grid": grid.grid, "seeds": list(grid.seeds)}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _parts() -> dict[str, tuple[str, ...]]:
    """Settings of TrainConfig that have settings inside, and their names."""
    default = TrainConfig()
    return {f.name: tuple(inside.name for inside in fields(getattr(default, f.name)))
            for f in fields(TrainConfig) if is_dataclass(getattr(default, f.name))}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value)) or "[]"
    return value if isinstance(value, str) else json.dumps(value)


def load_yaml(path: Path) -> dict[Any, Any]:
    """A YAML file's 'key: value' lines; 1e-3 is a number. Raises InputError GRID-MISSING or GRID-YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        """safe_load, with 1e-3 as a number, and a key that stands twice refused."""

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands there twice",
                                                                key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                                 list("-+0123456789"))
    again = "mend the YAML; benchmarks/experiments/grid-search.yml is an example"
    try:
        text = shallow(path.read_text(encoding="utf-8-sig"))
        check_aliases(yaml.compose(text, Loader=Loader))
        content = yaml.load(text, Loader=Loader)   # a SafeLoader
    except OSError as error:
        raise InputError("GRID-MISSING", f"cannot be read: {error.strerror or error}", where=path,
                         mend="name a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError("GRID-YAML", f"{line}{error.problem or error.context}", where=path, mend=again) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:   # characters, dates and depths that cannot be
        raise InputError("GRID-YAML", " ".join(str(error).split()), where=path, mend=again) from error
    if not isinstance(content, dict):
        raise InputError("GRID-YAML", "line 1: no 'key: value' lines", where=path, mend=again)
    return content
