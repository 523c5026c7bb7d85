"""FiLM: one gamma and one beta a channel, made from the code z (which contrast, centre or rater); and how z is made."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msfilm.errors import InputError, SettingError, suggest

__all__ = ["CONDITIONINGS", "CategoryEncoder", "FiLMGenerator", "film", "make_encoder"]

CONDITIONINGS = ("none", "contrast", "centre", "rater")


def film(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Feature-wise linear modulation, FiLM(x | z) = gamma(z) * x + beta(z) (Perez et al. 2018, equation 2).

    Args:
        x: feature maps (N, C, H, W).
        gamma: scale (N, C, 1, 1); broadcast over H and W, never repeated to full maps.
        beta: shift (N, C, 1, 1).

    Returns:
        (N, C, H, W), in the type of ``x``.
    """
    return gamma.to(x.dtype) * x + beta.to(x.dtype)


class FiLMGenerator(nn.Module):
    """The MLP that makes every layer's gamma and beta from z: one trunk for all layers, one linear head a layer.

    gamma = 1 + dgamma, and the heads (nothing else) start at zero: at the start FiLM is exactly the identity, yet the
    heads get a gradient at the first step and the trunk from the second on.

    Args:
        n_codes: M, the length of z.
        channels: C of each modulated layer, in order.
        width: hidden units of the trunk.
        depth: hidden layers of the trunk.
    """

    def __init__(self, n_codes: int, channels: Sequence[int], width: int = 64, depth: int = 2):
        super().__init__()
        self.n_codes = n_codes
        sizes = [n_codes] + [width] * depth
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(sizes[-1], 2 * c) for c in channels)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """z (N, M) -> for each layer (gamma, beta), each (N, C, 1, 1) in float32.

        Raises:
            ValueError: z is not (N, M).
        """
        if z.ndim != 2 or z.shape[1] != self.n_codes:
            raise ValueError(f"FiLM: z has shape {tuple(z.shape)}, expected (N, {self.n_codes})")
        # In bfloat16 1 + dgamma would drop every dgamma below 1/256, so this small MLP stays in float32 under autocast.
        with torch.autocast(z.device.type, enabled=False):
            hidden = self.trunk(z.float())                               # (N, width)
            maps = []
            for head in self.heads:
                dgamma, beta = head(hidden)[:, :, None, None].chunk(2, dim=1)  # (N, C, 1, 1) each
                maps.append((1 + dgamma, beta))
        return maps


@dataclass(frozen=True)
class CategoryEncoder:
    """One-hot code of one column of the table: 'contrast', 'centre' or 'rater'.

    A contrast that the network was not trained on is refused. An unseen (or missing) centre or rater gets the mean
    code, the same share of every category, with a warning.
    """

    column: str
    categories: tuple[str, ...]

    @classmethod
    def fit(cls, table: Any, column: str) -> CategoryEncoder:
        """The sorted categories of ``table[column]`` (a pandas DataFrame); missing values are no category."""
        if column not in table:
            raise InputError("ENCODER-COLUMN", f"the table has no column '{column}'",
                             mend=suggest(column, table.columns))
        categories = tuple(sorted({str(value) for value in table[column].dropna()}))
        if not categories:
            raise InputError("ENCODER-COLUMN", f"column '{column}' holds no value, so nothing can be conditioned on it",
                             mend="choose another conditioning")
        return cls(column, categories)

    @property
    def n_codes(self) -> int:
        """M, the length of z."""
        return len(self.categories)

    def encode(self, values: str | Iterable[object]) -> Tensor:
        """Values (N of them, or one string) -> z (N, M) float32.

        Raises:
            SettingError: CONTRAST-UNKNOWN, a contrast that is not among the categories.
        """
        values = [values] if isinstance(values, str) else list(values)
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
        """For JSON; ``from_dict`` is its inverse."""
        return {"column": self.column, "categories": list(self.categories)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CategoryEncoder:
        return cls(str(content["column"]), tuple(str(category) for category in content["categories"]))


def make_encoder(conditioning: str, table: Any) -> CategoryEncoder | None:
    """The encoder for ``conditioning`` ('none', 'contrast', 'centre' or 'rater'), its categories taken from ``table``.

    Raises:
        SettingError: CONDITIONING-UNKNOWN.
    """
    if conditioning not in CONDITIONINGS:
        raise SettingError("CONDITIONING-UNKNOWN", f"there is no conditioning '{conditioning}'",
                           mend=suggest(conditioning, CONDITIONINGS))
    return None if conditioning == "none" else CategoryEncoder.fit(table, conditioning)
