"""Gamma and beta changed on purpose, and what slices then get: what FilmExplorer and its notebook compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msfilm.errors import SettingError, suggest
from msfilm.model.weights import Network
from msfilm.view.film_codes import Codes

__all__ = ["CHANGES", "Change", "Parameters", "Probe", "apart", "change_parameters", "film_forward"]

Parameters = Mapping[str, tuple[Tensor, Tensor]]  # layer -> gamma and beta, each (N, C): model.film_parameters(z)

CHANGES = {
    "nothing": "gamma and beta as the network makes them",
    "channel to identity": "gamma 1 and beta 0 in one channel of one layer",
    "layer to identity": "gamma 1 and beta 0 in one layer",
    "all to identity": "gamma 1 and beta 0 everywhere",
    "layer permuted": "the pairs of gamma and beta of one layer dealt to its channels anew",
    "all permuted": "the same in every layer, each on its own",
    "code's part permuted": "only what the code adds to gamma and beta of the mean code is dealt anew, in every layer",
}
_SMALL = 16  # filters up to which 17 codes of one slice take some 30 ms on one core


def change_parameters(parameters: Parameters, how: str, *, layer: str | None = None, channel: int = 0, seed: int = 0,
                      middle: Parameters | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Gamma and beta with one of CHANGES; those given stay as they are.

    A permutation keeps a layer's distribution of pairs (gamma, beta) and destroys which channel gets which.

    Args:
        parameters: layer -> (gamma, beta), each (N, C).
        how: a key of CHANGES.
        layer, channel: which, where one is changed.
        seed: of the permutations; each layer has one of its own, the same for all N rows, for gamma and for beta.
        middle: gamma and beta of the mean code, each (1, C), for "code's part permuted".

    Raises:
        SettingError: FILM-CHANGE for a change, layer or channel that does not exist, or without ``middle``.
    """
    if how not in CHANGES:
        raise SettingError("FILM-CHANGE", f"there is no change '{how}'", mend=suggest(how, CHANGES))
    out = {name: (gamma.clone(), beta.clone()) for name, (gamma, beta) in parameters.items()}
    if how.startswith(("layer", "channel")):
        if layer not in out:
            raise SettingError("FILM-CHANGE", f"there is no FiLM layer '{layer}'", mend=suggest(str(layer), out))
        if how.startswith("channel") and not 0 <= channel < out[layer][0].shape[1]:
            raise SettingError("FILM-CHANGE", f"layer '{layer}' has no channel {channel}",
                               mend=f"use 0 to {out[layer][0].shape[1] - 1}")
    if how == "code's part permuted" and middle is None:
        raise SettingError("FILM-CHANGE", "the code's part is what differs from the mean code",
                           mend="give gamma and beta of the mean code as middle")
    for place, name in enumerate(out):
        if how == "nothing" or (how.startswith(("layer", "channel")) and name != layer):
            continue
        gamma, beta = out[name]
        if how.endswith("identity"):
            at = [channel] if how.startswith("channel") else slice(None)
            gamma[:, at], beta[:, at] = 1.0, 0.0
            continue
        dealt = torch.from_numpy(np.random.default_rng([seed, place]).permutation(gamma.shape[1]))
        if how == "code's part permuted":
            out[name] = tuple(mean + (half - mean)[:, dealt] for half, mean in
                              zip((gamma, beta), middle[name], strict=True))
        else:
            out[name] = gamma[:, dealt], beta[:, dealt]
    return out


def film_forward(network: Network, images: np.ndarray, parameters: Parameters, *,
                 batch_size: int = 32) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Predict with given gamma and beta.

    Args:
        network: with FiLM; its model is put into evaluation mode.
        images: (N, 1, H, W), or (1, 1, H, W): one slice under N sets of parameters.
        parameters: layer -> (gamma, beta), each (N, C), or (1, C): one set for N slices.
        batch_size: slices at once.

    Returns:
        Probabilities (N, H, W) float32; and, layer by layer, the feature maps of the last slice before and after FiLM,
        (C, h, w) each.
    """
    model = network.model.eval()
    device = next(model.parameters()).device
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def watch(name: str, before: Tensor, after: Tensor) -> None:
        # Copies: a ReLU that follows works in place.
        seen[name] = before[-1].cpu().numpy().copy(), after[-1].cpu().numpy().copy()

    n = max(len(images), *(len(gamma) for gamma, _ in parameters.values()))
    out = np.empty((n, *images.shape[2:]), np.float32)
    batch = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    with torch.inference_mode():
        for start in range(0, n, batch_size):
            part = slice(start, min(start + batch_size, n))
            x = batch.expand(n, -1, -1, -1)[part].to(device).contiguous(memory_format=torch.channels_last)  # faster
            given = {name: tuple(half.expand(n, -1)[part].to(device) for half in pair)
                     for name, pair in parameters.items()}
            out[part] = torch.sigmoid(model(x, film_parameters=given, watch=watch).float())[:, 0].cpu().numpy()
    return out, seen


def apart(parameters: Parameters) -> dict[str, tuple[float, float]]:
    """Layer -> how far the first row's gamma, and beta, is from the last row's: root mean square over channels."""
    return {name: tuple(float((half[0] - half[-1]).square().mean().sqrt()) for half in pair)
            for name, pair in parameters.items()}


@dataclass(frozen=True)
class Change:
    """One of CHANGES with what it needs; two that do the same are equal."""

    how: str = "nothing"
    layer: str | None = None
    channel: int = 0
    seed: int = 0

    @classmethod
    def of(cls, how: str, layer: str, channel: int, seed: int) -> Change:
        """Without what this kind of change does not look at."""
        one = how.startswith(("layer", "channel"))
        return cls(how, layer if one else None, channel if how.startswith("channel") else 0,
                   seed if how.endswith("permuted") else 0)


class Probe:
    """What a network answers for one slice and any code, the last answers kept.

    Args:
        network: with FiLM.
        codes: how z is made.
    """

    def __init__(self, network: Network, codes: Codes):
        self.network, self.codes = network, codes
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    def keep(self, name: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made again only when ``key`` is another one."""
        if name not in self._kept or self._kept[name][0] != key:
            self._kept[name] = key, make()
        return self._kept[name][1]

    def parameters(self, z: Tensor, change: Change | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Gamma and beta of codes z (n, M), on the CPU, changed."""
        model = self.network.model
        change = change or Change()
        with torch.inference_mode():
            home = next(model.parameters()).device
            made, middle = ({name: tuple(half.cpu() for half in pair)
                             for name, pair in model.film_parameters(code.to(home)).items()}
                            for code in (z, self.codes.middle()))
            return change_parameters(made, change.how, layer=change.layer, channel=change.channel, seed=change.seed,
                                     middle=middle)

    def curve(self, images: np.ndarray, settings: Mapping[str, Any], key: str,
              change: Change) -> tuple[np.ndarray, np.ndarray]:
        """One slice (1, 1, H, W) along slider ``key``: its values (n,), and the probabilities there (n, H, W)."""
        filters = self.network.model.config.filters
        grid = self.codes.knobs[key].grid(17 if filters <= _SMALL else 9 if filters <= 2 * _SMALL else 5)
        z = self.codes.encode(settings, key, grid)
        return grid, film_forward(self.network, images, self.parameters(z, change))[0]
