"""How FilmExplorer makes z: sliders through the codes of a column, or one for each number of the acquisition."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from msfilm.model.encode import AcquisitionEncoder, CategoryEncoder
from msfilm.model.weights import Network

__all__ = ["Codes", "Knob"]

_NUMBERS = {  # column -> what its slider says, and how many of the slider's units make one of the table's
    "repetition_time_s": ("TR, ms", 1000.0), "echo_time_s": ("TE, ms", 1000.0), "flip_angle_deg": ("flip, deg", 1.0),
    "field_T": ("field, T", 1.0),
}
_REACH = 2.0  # standard deviations of the training scans to either end of a number's slider


@dataclass(frozen=True)
class Knob:
    """One slider of z: a way through the codes of a column, or one number of the acquisition.

    Attributes:
        label: with its unit.
        low, high, step: of the slider.
        ends: the two values that are compared.
        stops: value -> the name of the code that is exactly there.
    """

    label: str
    low: float
    high: float
    step: float
    ends: tuple[float, float]
    stops: Mapping[float, str]

    def grid(self, n: int) -> np.ndarray:
        """About ``n`` values over the slider, the stops among them."""
        values = np.linspace(self.low, self.high, n).round(6)  # so that a stop is there once
        return np.unique(np.concatenate([values, np.asarray([*self.stops], float)]))

    def said(self, value: float) -> str:
        """A value's name."""
        return self.stops.get(value) or f"{self.label.split(',')[0]} {value:.{0 if value >= 100 else 1}f}"


class _Categories:
    """One-hot codes on a way: value 0 is the first code, 1 the second ..; between two and beyond either end linear."""

    def __init__(self, encoder: CategoryEncoder):
        self.encoder, self.key = encoder, encoder.column
        # The course's order of contrasts is T2w, T2star; everything else by name.
        self.names = sorted(encoder.categories, key=lambda name: (encoder.column == "contrast" and name != "T2w", name))
        self.keys = (self.key,)
        pairs = [tuple(pair) for pair in combinations(self.names, 2)]
        self.ways = [tuple(self.names), *(pairs if len(pairs) > 1 else [])]
        self.way = self.ways[0]

    def knobs(self) -> dict[str, Knob]:
        last = max(len(self.way) - 1, 1)
        return {self.key: Knob(self.key, -0.5, last + 0.5, 0.05, (0.0, float(last)),
                               {float(i): name for i, name in enumerate(self.way)})}

    def encode(self, settings: Mapping[str, Sequence[Any]]) -> Tensor:
        value = torch.as_tensor(np.asarray(settings[self.key], dtype=np.float32))[:, None]
        codes = self.encoder.encode(list(self.way))
        if len(codes) == 1:
            codes = torch.cat([codes, torch.zeros_like(codes)])  # a single code can only be left out
        first = value[:, 0].floor().long().clamp(0, len(codes) - 2)
        share = value - first[:, None]
        return (1 - share) * codes[first] + share * codes[first + 1]

    def middle(self) -> Tensor:
        return torch.full((1, self.encoder.n_codes), 1 / self.encoder.n_codes)

    def settings(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {self.key: float(self.way.index(row[self.key]))} if row[self.key] in self.way else {}

    def wrong(self, row: Mapping[str, Any], _table: pd.DataFrame) -> dict[str, Any]:
        at = self.names.index(row[self.key]) if row[self.key] in self.names else -1
        return {self.key: self.names[(at + 1) % len(self.names)]}


class _Acquisition:
    """The numbers of an acquisition, one slider each, and the manufacturer by name."""

    ways: Sequence[tuple[str, ...]] = ()

    def __init__(self, encoder: AcquisitionEncoder):
        self.encoder = encoder
        self.units, self._knobs, self.vendors = {}, {}, encoder.vendors
        for (column, (label, unit)), mean, deviation in zip(_NUMBERS.items(), encoder.means, encoder.deviations,
                                                            strict=True):
            if not deviation:
                continue  # training never knew it
            ends = [mean - _REACH * deviation, mean + _REACH * deviation]
            low, high = (math.exp(end) if column.endswith("_s") else max(end, 0.1) for end in ends)
            low, high = (float(f"{value * unit:.3g}") for value in (low, high))
            self.units[column] = unit
            self._knobs[column] = Knob(label, low, high, float(f"{(high - low) / 100:.0e}"), (low, high), {})
        self.keys = (*self._knobs, *(["manufacturer"] if self.vendors else []))

    def knobs(self) -> dict[str, Knob]:
        return self._knobs

    def encode(self, settings: Mapping[str, Sequence[Any]]) -> Tensor:
        columns = {key: [value / self.units.get(key, 1) if key in self.units else value for value in settings[key]]
                   for key in self.keys}
        return _quietly(self.encoder.encode, columns)

    def middle(self) -> Tensor:
        z = torch.zeros(1, self.encoder.n_codes)
        z[:, 2 * len(_NUMBERS):] = 1 / max(len(self.vendors), 1)
        return z

    def settings(self, row: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for column, knob in self._knobs.items():
            value = row.get(column)
            if value is not None and value == value:
                out[column] = min(max(float(value) * self.units[column], knob.low), knob.high)
        if row.get("manufacturer") in self.vendors:
            out["manufacturer"] = row["manufacturer"]
        return out

    def wrong(self, row: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
        """The acquisition of these slices that is farthest from this one."""
        columns = [column for column in self.encoder.columns if column in table]
        others = table[columns].drop_duplicates().reset_index(drop=True)
        own = _quietly(self.encoder.encode, {column: [row[column]] for column in columns})
        far = (_quietly(self.encoder.encode, others) - own).square().sum(1).argmax()
        return others.iloc[int(far)].to_dict()


class Codes:
    """How z is made for a view: knobs with their values, the right code of a slice, and a wrong one.

    Attributes:
        parts: what z is joined of.
    """

    def __init__(self, network: Network, table: pd.DataFrame):
        encoder = network.encoder
        self.network, self.table = network, table
        self.parts = [_Acquisition(part) if isinstance(part, AcquisitionEncoder) else _Categories(part)
                      for part in getattr(encoder, "parts", (encoder,))]
        self.own = _quietly(network.code, table)  # (N, M)

    @property
    def knobs(self) -> dict[str, Knob]:
        """Key -> its slider."""
        return {key: knob for part in self.parts for key, knob in part.knobs().items()}

    def encode(self, settings: Mapping[str, Any], key: str | None = None,
               values: Sequence[float] | np.ndarray = ()) -> Tensor:
        """z (n, M): knob ``key`` at each of n ``values``, all else as in ``settings``; or (1, M) for settings alone."""
        n = len(values) if key else 1
        columns = {name: [value] * n for name, value in settings.items()} | ({key: values} if key else {})
        return torch.cat([part.encode(columns) for part in self.parts], dim=1)

    def middle(self) -> Tensor:
        """The mean code, z (1, M): no category more than another, every number average."""
        return torch.cat([part.middle() for part in self.parts], dim=1)

    def right(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The code of slice ``index``, z (1, M), and where the knobs then stand (without those that cannot)."""
        row = self.table.iloc[index].to_dict()
        return self.own[index: index + 1], self._settings(row)

    def wrong(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """As ``right``, with the next category of each column, and the most different acquisition of these slices."""
        row = self.table.iloc[index].to_dict()
        for part in self.parts:
            row |= part.wrong(row, self.table)
        return _quietly(self.network.code, pd.DataFrame([row])), self._settings(row)

    def _settings(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for part in self.parts for key, value in part.settings(row).items()}


def _quietly(encode: Any, values: Any) -> Tensor:
    """Encode without the warnings: an unseen rater has the mean code, and the view says which z is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encode(values)
