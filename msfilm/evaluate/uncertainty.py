"""How sure a prediction is: several trainings' networks together, or one network with its dropout left on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate.predict import dropout_layers, predict_slices
from msfilm.model.weights import Network
from msfilm.train.state import resolve_device

__all__ = ["Uncertainty", "ensemble", "ensemble_probability", "mc_dropout"]


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Of every pixel, over several predictions; each (N, 1, H, W) float32.

    Attributes:
        mean: probability of lesion.
        std: standard deviation of the probabilities (divided by their number).
        entropy: of the mean, in nats: all doubt, 0 where it is certain and .693 at a probability of one half.
        disagreement: that entropy less the mean entropy of the single predictions, in nats: the doubt that comes from
            their contradicting each other (mutual information), 0 where each says the same.
        samples: how many predictions.
    """

    mean: np.ndarray
    std: np.ndarray
    entropy: np.ndarray
    disagreement: np.ndarray
    samples: int


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats of probabilities; 0 at 0 and 1."""
    q = 1 - p
    return -(p * np.log(p, out=np.zeros_like(p), where=p > 0) + q * np.log(q, out=np.zeros_like(q), where=q > 0))


def _gather(predictions: Iterable[np.ndarray]) -> Uncertainty:
    """Mean, spread and entropies; the predictions are read one at a time and not kept."""
    mean, n = np.zeros(()), 0
    spread = single = mean
    for n, prediction in enumerate(predictions, start=1):
        p = prediction.astype(np.float64)
        off = p - mean
        mean = mean + off / n
        spread = spread + off * (p - mean)  # Welford's: no difference of large sums
        single = single + (_entropy(p) - single) / n
    entropy = _entropy(mean)
    arrays = (mean, np.sqrt(spread / n), entropy, np.maximum(entropy - single, 0))
    return Uncertainty(*(array.astype(np.float32) for array in arrays), samples=n)


def ensemble(networks: Sequence[Network], slices: SliceSet, **settings: Any) -> Uncertainty:
    """What several networks, for example of several training seeds, say together; each counts the same.

    Args:
        networks: one or more; each makes its own codes from ``slices.table``.
        slices: N of them.
        **settings: of ``predict_slices``.

    Raises:
        SettingError: ENSEMBLE-EMPTY, and those of ``predict_slices``.
    """
    networks = list(networks)
    if not networks:
        raise SettingError("ENSEMBLE-EMPTY", "there is no network", mend="give at least one, for example "
                           "[load_network(run) for run in runs]")
    return _gather(predict_slices(network, slices, **settings) for network in networks)


def ensemble_probability(networks: Sequence[Network], slices: SliceSet, **settings: Any) -> np.ndarray:
    """Mean probability (N, 1, H, W) float32 of several networks; of one network it is ``predict_slices``.

    Arguments and errors: :func:`ensemble`.
    """
    return ensemble(networks, slices, **settings).mean


def mc_dropout(network: Network, slices: SliceSet, samples: int = 20, seed: int = 0, *, device: str = "auto",
               **settings: Any) -> Uncertainty:
    """Predict several times with dropout left on; batch normalisation stays in its evaluation mode, and unchanged.

    The same seed gives the same bytes, as long as device and batch size stay the same. torch's own random numbers and
    the model's modes are left as they were.

    Args:
        network: trained with dropout.
        slices: N of them.
        samples: predictions, 1 or more.
        seed: of what is dropped.
        device: as for ``predict_slices``.
        **settings: of ``predict_slices``.

    Raises:
        SettingError: DROPOUT-NONE for a network without dropout, of which all predictions are the same;
            DROPOUT-SAMPLES; those of ``predict_slices``.

    Source: Gal and Ghahramani, ICML 2016.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise SettingError("DROPOUT-SAMPLES", f"samples={samples!r}", mend="use a whole number, 1 or more")
    if not dropout_layers(network.model):
        raise SettingError("DROPOUT-NONE", "the network has no dropout, so every prediction would be the same",
                           mend="train with dropout above 0, or use an ensemble of several seeds")
    there = resolve_device(device)

    def predictions():
        for sample in range(samples):
            state = int(np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)[0] >> 1)
            # Dropout can only draw from torch's global generators: seeded here, and given back as they were.
            with torch.random.fork_rng(devices=[there] if there.type == "cuda" else []):
                torch.default_generator.manual_seed(state)
                if there.type == "cuda":
                    torch.cuda.default_generators[there.index].manual_seed(state)
                yield predict_slices(network, slices, device=str(there), dropout=True, **settings)

    return _gather(predictions())
