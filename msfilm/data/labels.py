"""How a data set names its files: masks, raters, contrasts, centres; read from a small YAML file, or as msfilm expects.

A file ``code/msfilm.yml`` (or ``msfilm.yml``) in the data set travels with it and is found without being named::

    folders: [derivatives/labels, derivatives/experts-{rater}, .]   # the dot: beside the scan
    cord: [seg-manual, label-SC_mask]          # what follows the scan's name; the first found is used
    lesion: [lesion-manual, "lesion-manual-{rater}"]
    contrasts:
      T1post: {suffix: T1w, ce: "*"}           # the first that fits; else the suffix, as contrast_of says
      FLAIR: {suffix: FLAIR}
    take: {ses: ["01", "02"], acq: [ax, ""]}   # "" stands for scans without that entity
    leave: {part: phase}
    centre: hospital                           # column of participants.tsv
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from msfilm.data.sidecars import CENTRE_COLUMNS
from msfilm.errors import InputError, SettingError, printable, suggest
from msfilm.files import check_aliases, shallow

__all__ = ["NAMES_FILES", "NamingRules", "entities_of"]

NAMES_FILES = ("code/msfilm.yml", "msfilm.yml")  # the validator does not look into code/
_ENTITIES = ("sub", "ses", "sample", "task", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo", "flip",
             "inv", "mt", "part", "proc", "hemi", "space", "split", "res", "chunk", "suffix")  # fmt: skip
_HOLES = {"rater": r"(?:rater-?)?(?P<rater>[A-Za-z0-9]+)", "n": r"(?:rater-?)?(?P<rater>[0-9]+)"}
_SUFFIX = re.compile(r"^[A-Z][A-Za-z0-9]*$")  # T2w, T2starw, MTS: a scan's; masks end in small letters
_KINDS = ("cord", "truth", "lesion", "centreline")


def entities_of(stem: str) -> dict[str, str]:
    """``sub-01_ses-02_acq-ax_T2w`` -> {'sub': '01', 'ses': '02', 'acq': 'ax', 'suffix': 'T2w'}."""
    *parts, last = stem.split("_")
    named = dict(part.split("-", 1) for part in parts if "-" in part)
    return named | ({"suffix": last} if "-" not in last else dict([last.split("-", 1)]))


@dataclass(frozen=True, kw_only=True)
class NamingRules:
    """How files are named in one data set. In a pattern ``{rater}`` is who drew it, ``{n}`` a rater's number, and
    ``*`` anything but an underscore.

    Attributes:
        folders: where masks lie, the best first: below the data set, laid out as it is; "." is beside the scan.
            ``{rater}`` in it tells who drew what lies there.
        cord: patterns of what follows the scan's name in a cord mask's; drawn by hand before made by a program.
        truth: of a mask that is known to be right, as a phantom's.
        lesion: of lesion masks; or {rater: pattern or patterns}.
        centreline: of a CSV of points along the cord.
        raters: who is rater-1, rater-2 .. of a volume that several drew; others follow by name.
        contrasts: contrast -> what its scans are called: entity or 'suffix' -> one of these patterns.
        take: only scans with these: entity or 'suffix' -> patterns.
        leave: not scans with these.
        centre: column of participants.tsv, the first that is there.
        path: the file this was read from, or None.

    Raises:
        SettingError: NAMES-KEY, NAMES-VALUE, NAMES-PATTERN or NAMES-TWICE.
    """

    folders: tuple[str, ...] = ("derivatives/labels", ".")
    cord: tuple[str, ...] = ("seg-manual", "label-SC_mask", "label-SC_seg", "label-cord_mask", "seg")
    truth: tuple[str, ...] = ("label-lesion_desc-truth_mask", "lesion-truth")
    lesion: tuple[str, ...] | Mapping[str, Any] = (
        "label-lesion_desc-{n}_mask", "lesion-manual", "lesion-manual{n}", "lesion-manual-{n}", "lesion-{n}",
        "label-lesion_mask", "lesion",
    )  # fmt: skip
    centreline: tuple[str, ...] = ("centreline", "desc-centreline")
    raters: tuple[str, ...] = ()
    contrasts: Mapping[str, Any] = field(default_factory=dict)
    take: Mapping[str, Any] = field(default_factory=dict)
    leave: Mapping[str, Any] = field(default_factory=dict)
    centre: tuple[str, ...] = CENTRE_COLUMNS
    path: Path | None = None

    def __post_init__(self):
        for name in ("folders", "cord", "truth", "centreline", "raters", "centre"):
            object.__setattr__(self, name, self._texts(name, getattr(self, name)))
        for name in ("folders", "cord", "centreline"):
            if not getattr(self, name):
                self._refuse("NAMES-VALUE", f"{name}: an empty list", "leave the line out for the usual names")
        for name in ("take", "leave"):
            object.__setattr__(self, name, self._fits(name, getattr(self, name)))
        contrasts = self._mapping("contrasts", self.contrasts)
        contrasts = {name: self._fits(f"contrasts, {name}", rule) for name, rule in contrasts.items()}
        object.__setattr__(self, "contrasts", contrasts)
        for name, rule in contrasts.items():
            if not rule:
                self._refuse("NAMES-VALUE", f"contrasts, {name}: nothing says which scans", "as {suffix: T1w, ce: '*'}")
        by_rater = self.lesion if isinstance(self.lesion, Mapping) else {None: self.lesion}
        drawn = {rater: self._texts("lesion", given) for rater, given in by_rater.items()}
        rules, seen = [], {}
        given = {"cord": {None: self.cord}, "truth": {None: self.truth}, "lesion": drawn,
                 "centreline": {None: self.centreline}}  # fmt: skip
        for kind in _KINDS:
            for rater, patterns in given[kind].items():
                for order, pattern in enumerate(patterns):
                    if seen.setdefault(pattern, (kind, rater)) != (kind, rater):
                        self._refuse("NAMES-TWICE", f"'{pattern}' stands under {seen[pattern][0]} and under {kind}",
                                     "leave it out of one of them")  # fmt: skip
                    rules.append((kind, order, rater, self._compiled(kind, pattern)))
        object.__setattr__(self, "_rules", tuple(rules))
        folders = []
        for folder in self.folders:
            if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
                self._refuse("NAMES-VALUE", f"folders: '{folder}' lies outside the data set", "name one inside it")
            folders.append((folder, self._compiled("folders", folder)))
        object.__setattr__(self, "_folders", tuple(folders))

    # ----- reading

    @classmethod
    def from_file(cls, path: str | Path) -> NamingRules:
        """Read rules from YAML; every value is taken as text, so that ``01`` stays ``01``.

        Raises:
            InputError: NAMES-MISSING, NAMES-YAML; SettingError: as the class.
        """
        import yaml

        path = Path(path)
        mend = "lines 'key: value'; msfilm.data.labels shows a whole file"
        try:
            text = shallow(path.read_text(encoding="utf-8-sig"))
            check_aliases(root := yaml.compose(text, yaml.BaseLoader))
            _no_key_twice(root, path)
            content = yaml.load(text, yaml.BaseLoader)  # makes texts, lists and mappings only
        except OSError as error:
            raise InputError("NAMES-MISSING", f"cannot be read: {error.strerror or error}", where=path,
                             mend="name a YAML file") from error  # fmt: skip
        except yaml.MarkedYAMLError as error:
            line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise InputError("NAMES-YAML", f"{line}{error.problem or error.context}", where=path, mend=mend) from error
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise InputError("NAMES-YAML", " ".join(str(error).split()), where=path, mend=mend) from error
        if not isinstance(content, dict):
            raise InputError("NAMES-YAML", "no 'key: value' lines", where=path, mend=mend)
        return cls.from_dict(content, path)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], path: Path | None = None) -> NamingRules:
        """Rules from keys and values; a key that means nothing here is refused with the nearest that does."""
        known = [one.name for one in fields(cls) if one.name != "path"]
        for key in content:
            if key not in known:
                raise SettingError("NAMES-KEY", f"there is no key '{key}'", where=path, mend=suggest(key, known))
        return cls(**{key: value for key, value in content.items() if value not in ("", None)}, path=path)

    @classmethod
    def of(cls, names: NamingRules | str | Path | None, dataset: str | Path) -> NamingRules:
        """Rules as given, of a file, or for None those that lie in the data set (``NAMES_FILES``), else the usual."""
        if isinstance(names, NamingRules):
            return names
        if names is not None:
            return cls.from_file(names)
        found = [Path(dataset) / name for name in NAMES_FILES if (Path(dataset) / name).is_file()]
        if len(found) > 1:
            raise SettingError("NAMES-TWICE", f"there is {found[1].name} and {'/'.join(found[0].parts[-2:])}",
                               where=dataset, mend="keep one of them")  # fmt: skip
        return cls.from_file(found[0]) if found else cls()

    # ----- using

    def kind_of(self, text: str) -> tuple[str, int, str | None] | None:
        """What follows a scan's name -> kind ('cord', 'truth', 'lesion', 'centreline'), its place in the order of
        preference, and the rater in it; None for a file that is none of them.
        """
        for kind, order, rater, pattern in self._rules:
            if found := pattern.match(text):
                return kind, order, rater or found.groupdict().get("rater")
        return None

    def label_folders(self, dataset: Path) -> list[tuple[Path, str | None]]:
        """The folders that are there, the best first, and who drew what lies in them."""
        found = []
        for folder, pattern in self._folders:
            glob = re.sub(r"\{\w+\}|\*+", "*", folder).strip("/")
            places = [dataset] if folder == "." else sorted(dataset.glob(glob))
            for place in places:
                match = pattern.match("." if place == dataset else place.relative_to(dataset).as_posix())
                if match and place.is_dir() and place not in [one for one, _ in found]:
                    found.append((place, match.groupdict().get("rater")))
        return found

    def contrast_of(self, stem: str) -> str | None:
        """The contrast that one of the rules gives a scan, or None."""
        named = entities_of(stem)
        return next((name for name, rule in self.contrasts.items() if _all_fit(named, rule)), None)

    def takes(self, stem: str) -> bool:
        """Whether a scan is among those to be used."""
        named = entities_of(stem)
        return _all_fit(named, self.take) and not any(_fits(named, *one) for one in self.leave.items())

    # ----- checking

    def _refuse(self, code: str, what: str, mend: str) -> None:
        raise SettingError(code, what, where=self.path, mend=mend)

    def _texts(self, name: str, given: Any) -> tuple[str, ...]:
        values = [given] if isinstance(given, str | int) else given
        if not isinstance(values, list | tuple) or not all(isinstance(one, str | int) for one in values):
            self._refuse("NAMES-VALUE", f"{name}: {_shown(given)}", f"write a text or a list of them: '{name}: [a, b]'")
        if odd := [one for one in values if printable(one) != str(one)]:
            self._refuse("NAMES-VALUE", f"{name}: {odd[0]!r} is no text", "write letters, not their codes")
        return tuple(str(one) for one in values)

    def _mapping(self, name: str, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            self._refuse("NAMES-VALUE", f"{name}: {_shown(given)}", "write 'name: value' pairs, as {acq: ax}")
        self._texts(name, [str(key) for key in given])
        return {str(key): value for key, value in given.items()}

    def _fits(self, name: str, given: Any) -> dict[str, tuple[str, ...]]:
        given = self._mapping(name, given)
        for entity in given:
            if entity not in _ENTITIES:
                self._refuse("NAMES-KEY", f"{name}: there is no entity '{entity}'", suggest(entity, _ENTITIES))
        return {entity: self._texts(f"{name}, {entity}", patterns) for entity, patterns in given.items()}

    def _compiled(self, name: str, pattern: str) -> re.Pattern:
        text = re.sub(r"^_|(\.nii(\.gz)?|\.csv)$", "", pattern) if name != "folders" else pattern.strip("/")
        if not text or (name != "folders" and "/" in text):
            self._refuse("NAMES-PATTERN", f"{name}: '{pattern}'", "write what follows the scan's name: lesion-manual")
        parts = re.split(r"\{(\w*)\}|(\*+)", text)
        regex, holes = "", 0
        for place, part in enumerate(parts):
            if place % 3 == 0:
                if "{" in part or "}" in part:
                    self._refuse("NAMES-PATTERN", f"{name}: '{pattern}' has a lone brace", "write {rater} or {n}")
                regex += re.escape(part)
            elif place % 3 == 1 and part is not None:
                if part not in _HOLES:
                    self._refuse("NAMES-PATTERN", f"{name}: '{pattern}' has {{{part}}}", suggest(part, _HOLES))
                regex, holes = regex + _HOLES[part], holes + 1
            elif part:
                regex += "[^_/]*"
        if holes > 1 or (holes and name in ("cord", "truth", "centreline")):
            self._refuse("NAMES-PATTERN", f"{name}: '{pattern}' has {holes} of {{rater}} and {{n}}",
                         "one in a lesion's name or a folder's")  # fmt: skip
        if len(parts) > 10:  # each * or hole more is another power of the name's length in time
            self._refuse("NAMES-PATTERN", f"{name}: '{pattern[:60]}' has {len(parts) // 3} of *, {{rater}} and {{n}}",
                         "three at most")  # fmt: skip
        return re.compile(f"^{regex}$")


def _all_fit(named: Mapping[str, str], rule: Mapping[str, tuple[str, ...]]) -> bool:
    return all(_fits(named, entity, patterns) for entity, patterns in rule.items())


def _fits(named: Mapping[str, str], entity: str, patterns: tuple[str, ...]) -> bool:
    """Whether a scan's entity fits one of the patterns; only "" fits one that it lacks."""
    value = named.get(entity, "").lower()
    return any(fnmatchcase(value, one.lower()) if one and value else not (one or value) for one in patterns)


def _shown(given: Any) -> str:
    """A value for a message; of a nested one only the kind, which may be large."""
    return repr(given)[:60] if isinstance(given, str | int | float | None) else f"a {type(given).__name__}"


def _no_key_twice(root: Any, path: Path) -> None:
    """Refuse a YAML mapping that holds one key twice: the parser would keep the last without a word."""
    waiting, seen = [root], set()  # a node may stand in many places, or within itself
    while waiting:
        node = waiting.pop()
        if node is None or isinstance(node.value, str) or id(node) in seen:
            continue
        seen.add(id(node))
        pairs = [one for one in node.value if isinstance(one, tuple)]
        keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
        if again := {key for key in keys if keys.count(key) > 1}:
            line = node.start_mark.line + 1
            raise InputError("NAMES-YAML", f"line {line}: '{min(again)}' stands there twice", where=path,
                             mend="keep one")  # fmt: skip
        waiting += [part for pair in pairs for part in pair] or node.value
