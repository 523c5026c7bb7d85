"""How z is made: one-hot codes of contrast, rater or centre, standardised acquisition parameters, or several joined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from msfilm.errors import InputError, SettingError, suggest

__all__ = ["CONDITIONINGS", "AcquisitionEncoder", "CategoryEncoder", "Encoder", "JoinedEncoder", "encoder_from_dict",
           "make_encoder", "parse_conditioning"]

CONDITIONINGS = ("none", "contrast", "acquisition", "rater", "centre")   # joined by +, as in contrast+rater
# Column, and whether its logarithm is taken: times span two orders of magnitude.
_NUMBERS = (("repetition_time_s", True), ("echo_time_s", True), ("flip_angle_deg", False), ("field_T", False))
_FAR = 4.0   # standard deviations: values beyond are taken as this far, aloud


@dataclass(frozen=True)
class CategoryEncoder:
    """One-hot code of one column of the table: 'contrast', 'centre', 'rater' or 'manufacturer'.

    A contrast that the network was not trained on is refused. Any other unseen (or missing) value gets the mean code,
    the same share of every category, with a warning.
    """

    column: str
    categories: tuple[str, ...]

    @classmethod
    def fit(cls, table: Any, column: str) -> CategoryEncoder:
        """The sorted categories of ``table[column]`` (a pandas DataFrame); missing values are no category."""
        _need(table, [column])
        categories = tuple(sorted({str(value) for value in table[column].dropna()}))
        if not categories:
            raise InputError("ENCODER-COLUMN", f"column '{column}' holds no value, so nothing can be conditioned on it",
                             mend="choose another conditioning")
        return cls(column, categories)

    @property
    def name(self) -> str:
        return self.column

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that ``encode`` reads."""
        return (self.column,)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each of the M numbers of z stands for."""
        return self.categories

    @property
    def n_codes(self) -> int:
        """M, the length of z."""
        return len(self.categories)

    def encode(self, values: Any) -> Tensor:
        """A table (N rows) with the column, or the N values, or one string -> z (N, M) float32.

        Raises:
            SettingError: CONTRAST-UNKNOWN, a contrast that is not among the categories.
            InputError: ENCODER-COLUMN, the table lacks the column.
        """
        if hasattr(values, "columns") or isinstance(values, Mapping):
            _need(values, self.columns)
            values = values[self.column]
        values = _as_list(values)
        place = {category: i for i, category in enumerate(self.categories)}
        unseen = sorted({str(value) for value in values if str(value) not in place})
        if unseen and self.column == "contrast":
            raise SettingError("CONTRAST-UNKNOWN", f"this network does not know contrast '{unseen[0]}'",
                               mend=suggest(unseen[0], self.categories))
        if unseen:
            warnings.warn(f"{self.column} {', '.join(unseen)} was not in training: the mean code is used instead",
                          stacklevel=2)
        z = torch.full((len(values), self.n_codes), 1.0 / self.n_codes)  # (N, M), the mean code
        for row, value in enumerate(values):
            if str(value) in place:
                z[row] = 0.0
                z[row, place[str(value)]] = 1.0
        return z

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``encoder_from_dict`` is its inverse."""
        return {"kind": "category", "column": self.column, "categories": list(self.categories)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CategoryEncoder:
        return cls(str(content["column"]), tuple(str(category) for category in content["categories"]))


@dataclass(frozen=True)
class AcquisitionEncoder:
    """TR, TE, flip angle and field, standardised on the training rows, and the manufacturer one-hot.

    The logarithm of times is taken. A missing value counts as the training mean and sets a flag of its own, so a
    network can tell 'unknown' from 'average'. A value more than 4 standard deviations away is taken as 4, with a
    warning; one that is no positive number is refused.

    Attributes:
        means, deviations: of each number, in training (deviation 1 where it never varied, 0 where training lacked it:
            then it counts as missing).
        vendors: known manufacturers; empty where training named none.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    vendors: tuple[str, ...]
    name: ClassVar[str] = "acquisition"

    @classmethod
    def fit(cls, table: Any) -> AcquisitionEncoder:
        """From a pandas DataFrame with the columns that it has of repetition_time_s, echo_time_s, flip_angle_deg,
        field_T and manufacturer. Raises InputError ENCODER-COLUMN where no row holds any of them."""
        means, deviations = [], []
        for column, logarithm in _NUMBERS:
            known = [x for x in _numbers(table, column, logarithm) if x is not None]
            mean = math.fsum(known) / len(known) if known else 0.0
            spread = math.sqrt(math.fsum((x - mean) ** 2 for x in known) / len(known)) if known else 0.0
            means.append(mean)
            deviations.append(0.0 if not known else spread if spread > 1e-9 else 1.0)
        vendors = sorted({str(v) for v in table["manufacturer"].dropna()} - {""}) if "manufacturer" in table else []
        if not vendors and not any(x is not None for column, log in _NUMBERS for x in _numbers(table, column, log)):
            raise InputError("ENCODER-COLUMN", "no training scan has a repetition time, echo time, flip angle, field "
                             "strength or manufacturer, so nothing can be conditioned on them",
                             mend="add sidecars with these fields, or choose another conditioning")
        return cls(tuple(means), tuple(deviations), tuple(vendors))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(column for column, _ in _NUMBERS), "manufacturer")

    @property
    def labels(self) -> tuple[str, ...]:
        names = [column for column, _ in _NUMBERS]
        return (*names, *(f"no {name}" for name in names), *self.vendors)

    @property
    def n_codes(self) -> int:
        return 2 * len(_NUMBERS) + len(self.vendors)

    def encode(self, values: Any) -> Tensor:
        """A table (N rows), or a mapping from column to value or values -> z (N, M) float32; columns may be missing.

        Raises:
            InputError: ENCODER-VALUE, a number that is not positive.
        """
        values = _columns_of(values)
        n = max((len(column) for column in values.values()), default=0)
        z = torch.zeros(n, self.n_codes)
        far = []
        for i, (column, logarithm) in enumerate(_NUMBERS):
            for row, x in enumerate(_numbers(values, column, logarithm) or [None] * n):
                if x is None or not self.deviations[i]:
                    z[row, len(_NUMBERS) + i] = 1.0
                    continue
                standard = (x - self.means[i]) / self.deviations[i]
                if abs(standard) > _FAR:
                    far.append(column)
                z[row, i] = min(max(standard, -_FAR), _FAR)
        if far:
            warnings.warn(f"{', '.join(sorted(set(far)))} far from all that training had: taken as {_FAR:g} standard "
                          "deviations away", stacklevel=2)
        if self.vendors:
            given = values.get("manufacturer", [None] * n)
            z[:, 2 * len(_NUMBERS):] = CategoryEncoder("manufacturer", self.vendors).encode(
                ["unknown" if _missing(value) else str(value) for value in given])
        return z

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "acquisition", **{key: list(value) for key, value in asdict(self).items()}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> AcquisitionEncoder:
        encoder = cls(*(tuple(map(float, content[key])) for key in ("means", "deviations")),
                      tuple(map(str, content["vendors"])))
        if len(encoder.means) != len(_NUMBERS) or len(encoder.deviations) != len(_NUMBERS):
            raise ValueError(f"an acquisition encoder has {len(_NUMBERS)} means and deviations")
        return encoder


@dataclass(frozen=True)
class JoinedEncoder:
    """Several codes one behind the other, as contrast+rater."""

    parts: tuple[CategoryEncoder | AcquisitionEncoder, ...]

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for part in self.parts for column in part.columns)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for part in self.parts for label in part.labels)

    @property
    def n_codes(self) -> int:
        return sum(part.n_codes for part in self.parts)

    def encode(self, values: Any) -> Tensor:
        """A table (N rows), or a mapping from column to value or values -> z (N, M) float32."""
        if not (hasattr(values, "columns") or isinstance(values, Mapping)):
            raise InputError("ENCODER-COLUMN", f"z is made of {self.name}, so a table is needed",
                             mend=f"give a table or mapping with {', '.join(self.columns)}")
        return torch.cat([part.encode(_columns_of(values)) for part in self.parts], dim=1)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "joined", "parts": [part.to_dict() for part in self.parts]}


Encoder = CategoryEncoder | AcquisitionEncoder | JoinedEncoder


def parse_conditioning(text: str) -> tuple[str, ...]:
    """'contrast+rater' -> ('contrast', 'rater'); 'none' -> ().

    Raises:
        SettingError: CONDITIONING-UNKNOWN.
    """
    parts = tuple(str(text).split("+"))
    for part in parts:
        if part not in CONDITIONINGS or (part == "none" and len(parts) > 1):
            raise SettingError("CONDITIONING-UNKNOWN", f"there is no conditioning '{part}'" if part != "none" else
                               f"'{text}' joins 'none' to others", mend=suggest(part, CONDITIONINGS)
                               if part != "none" else "leave 'none' out")
    if len(set(parts)) < len(parts):
        raise SettingError("CONDITIONING-UNKNOWN", f"'{text}' names one of its parts twice", mend="name each once")
    return () if parts == ("none",) else parts


def make_encoder(conditioning: str, table: Any) -> Encoder | None:
    """The encoder for 'none', 'contrast', 'acquisition', 'rater', 'centre' or several joined by +.

    Args:
        conditioning: what z is made of.
        table: the training rows (a pandas DataFrame; ``SliceSet.described`` has the acquisition's columns too).

    Raises:
        SettingError: CONDITIONING-UNKNOWN; InputError: ENCODER-COLUMN.
    """
    parts = tuple(AcquisitionEncoder.fit(table) if part == "acquisition" else CategoryEncoder.fit(table, part)
                  for part in parse_conditioning(conditioning))
    return JoinedEncoder(parts) if len(parts) > 1 else parts[0] if parts else None


def encoder_from_dict(content: dict[str, Any]) -> Encoder:
    """The encoder that ``to_dict`` described. Raises KeyError, TypeError or ValueError for anything else."""
    kind = content.get("kind", "category")   # networks of the first version did not say
    if kind == "joined":
        return JoinedEncoder(tuple(encoder_from_dict(part) for part in content["parts"]))
    return {"category": CategoryEncoder, "acquisition": AcquisitionEncoder}[kind].from_dict(content)


def _need(table: Any, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in table:
            raise InputError("ENCODER-COLUMN", f"z is made of '{column}', a column that the table lacks",
                             mend=suggest(column, list(table)))


def _missing(value: Any) -> bool:
    return value is None or value == "" or value != value   # NaN is unlike itself


def _columns_of(values: Any) -> dict[str, list[Any]]:
    """A table, or a mapping from column to one value or several, as columns of equal length."""
    return {name: _as_list(values[name]) for name in values}


def _as_list(values: Any) -> list[Any]:
    return [values] if isinstance(values, (str, int, float, type(None))) else list(values)


def _numbers(table: Any, column: str, logarithm: bool) -> list[float | None]:
    """A column's values, None where unknown; empty where the table lacks it."""
    if column not in table:
        return []
    out: list[float | None] = []
    for value in table[column]:
        if _missing(value):
            out.append(None)
            continue
        number = float(value)
        if not (math.isfinite(number) and number > 0):
            raise InputError("ENCODER-VALUE", f"{column} is {value!r}", mend="use a positive number, or leave it out")
        out.append(math.log(number) if logarithm else number)
    return out
