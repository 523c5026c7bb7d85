"""A contrast that a network was not trained on: its code fitted to a few labelled scans, or all weights tuned on them.

``CategoryEncoder`` refuses such a contrast. Whoever goes on all the same says which code is meant: ``mean_code``, the
code of the seen contrast that ``nearest_contrast`` names, or one of ``fit_code``; ``predict_images`` takes it as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from msfilm.data.slices import UNDRAWN, ScanMasks, SliceSet
from msfilm.errors import RunError, SettingError, suggest
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet
from msfilm.model.weights import Network
from msfilm.train.augment import AugmentConfig, augment
from msfilm.train.loss import LOSSES
from msfilm.train.state import epoch_rng, resolve_device

__all__ = ["CODE_LR", "CODE_STEPS", "TUNE_LR", "TUNE_STEPS", "fine_tune", "fit_code", "mean_code", "nearest_contrast"]

# How long an adaptation goes on is fixed beforehand: one labelled scan leaves nothing to stop by. Settled with the
# network that comes with msfilm on 24 phantom patients of seed 5, which no experiment uses: after 40 steps a code
# hardly moved; larger rates for all weights, and batch normalisation that follows so few slices, cost Dice there.
CODE_STEPS, CODE_LR = 50, 0.1
TUNE_STEPS, TUNE_LR = 100, 1e-4


def mean_code(network: Network) -> Tensor:
    """The same share of every category, (M,): the fallback for a contrast that was not in training.

    Raises:
        SettingError: ADAPT-CODE, the network is plain or its code is not made of one category.
    """
    if not isinstance(network.encoder, CategoryEncoder):
        raise SettingError("ADAPT-CODE", f"a network conditioned on '{network.conditioning}' has no mean code",
                           mend="use one conditioned on contrast, or give the code to start from")
    return torch.full((network.encoder.n_codes,), 1.0 / network.encoder.n_codes)


def nearest_contrast(new: Sequence[ScanMasks], seen: Mapping[str, Sequence[ScanMasks]]) -> tuple[str, dict[str, float]]:
    """The seen contrast that looks most like the new one within the cord; no lesion mask is looked at.

    Alike: least Wasserstein distance between the intensities of all cord voxels, each over its scan's cord median.

    Args:
        new: scans of the new contrast.
        seen: contrast -> scans of it.

    Returns:
        Its name (the first of equals), and the distance to each, in units of the cord's median.

    Raises:
        SettingError: ADAPT-SCANS, nothing to compare.
    """
    from scipy.stats import wasserstein_distance

    if not new or not seen or not all(seen.values()):
        raise SettingError("ADAPT-SCANS", f"{len(new)} new scans, and seen ones of {', '.join(seen) or 'no contrast'}",
                           mend="give at least one scan of each")
    values = np.concatenate([scan.cord_values for scan in new])
    distances = {contrast: float(wasserstein_distance(values, np.concatenate([scan.cord_values for scan in scans])))
                 for contrast, scans in seen.items()}
    return min(distances, key=distances.__getitem__), distances


def fit_code(network: Network, slices: SliceSet, *, mask: str = "rater-1", start: Tensor | None = None,
             steps: int = CODE_STEPS, lr: float = CODE_LR, batch_size: int = 16, loss: str = "dice-bce", seed: int = 0,
             device: str = "auto") -> Tensor:
    """Fit z by gradient to labelled slices; the network stays as it is, batch normalisation's statistics too.

    Adam on M numbers, which may leave the range of the codes that training knew. Up to ``batch_size`` slices all count
    in every step; more of them are taken in a shuffled order.

    Args:
        network: with a code.
        slices: those to fit to, of the new contrast; volumes without ``mask`` are left out.
        mask: what is to be found.
        start: (M,) code to start from; default ``mean_code``.
        steps, lr: of Adam.
        batch_size: slices a step.
        loss: a key of LOSSES.
        seed: of the order.
        device: where to compute.

    Returns:
        z (M,) float32 on the CPU.

    Raises:
        SettingError: ADAPT-CODE, ADAPT-SETTING, MASK-UNKNOWN. RunError: ADAPT-EMPTY, no lesion in the slices.
    """
    _check(steps, batch_size, loss)
    home = resolve_device(device)
    code = _code(network, mean_code(network) if start is None else start).clone().to(home).requires_grad_()
    images, targets = _labelled(slices, mask, home)
    model = _copy(network, home).eval().requires_grad_(False)
    optimizer = torch.optim.Adam([code], lr=lr)
    generator = torch.Generator(home).manual_seed(seed)
    for rows in _batches(len(images), batch_size, steps, generator):
        value = LOSSES[loss](model(images[rows], code.expand(len(rows), -1)), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return code.detach().cpu()


def fine_tune(network: Network, slices: SliceSet, code: Tensor | None, *, mask: str = "rater-1",
              steps: int = TUNE_STEPS, lr: float = TUNE_LR, batch_size: int = 16, loss: str = "dice-bce",
              augmentation: AugmentConfig | None = None, seed: int = 0, device: str = "auto") -> Network:
    """Train all weights on a few labelled slices, with the code held fixed; the network given stays as it was.

    Batch normalisation keeps its statistics, which a few slices are too few for; dropout is on where the network has
    it. Up to ``batch_size`` slices all count in every step, augmented anew; more of them are taken in a shuffled order.

    Args:
        network: plain, or with a code.
        slices: those to train on; volumes without ``mask`` are left out.
        code: (M,), the same for all slices; None for a plain network.
        mask, steps, lr, batch_size, loss, device: as in ``fit_code``.
        augmentation: how strongly; default as in training.
        seed: of order, augmentation and dropout.

    Returns:
        A new network in evaluation mode, with the same encoder; its card says what was done.

    Raises:
        SettingError: ADAPT-CODE, ADAPT-SETTING, MASK-UNKNOWN. RunError: ADAPT-EMPTY, no lesion in the slices.
    """
    _check(steps, batch_size, loss)
    home, spacing = resolve_device(device), float(slices.meta.get("spacing_mm", 0.75))
    z = None if code is None and network.encoder is None else _code(network, code).to(home)
    images, targets = _labelled(slices, mask, home)
    model = _copy(network, home).requires_grad_(True)
    for layer in model.modules():
        layer.training = isinstance(layer, torch.nn.Dropout2d)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with epoch_rng(seed, 0, home) as generator:
        for rows in _batches(len(images), batch_size, steps, generator):
            some, drawn = augment(images[rows], targets[rows], augmentation or AugmentConfig(), generator,
                                  spacing_mm=spacing)
            value = LOSSES[loss](model(some, None if z is None else z.expand(len(rows), -1)), drawn)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
    about = {"contrasts": list(slices.contrasts), "volumes": sorted(slices.table["volume"].unique()), "mask": mask,
             "steps": steps, "lr": lr, "seed": seed, "code": None if code is None else [float(x) for x in code]}
    return Network(model.cpu().eval(), network.encoder, {**network.card, "fine_tuned": about})


def _check(steps: int, batch_size: int, loss: str) -> None:
    if steps < 0 or batch_size < 1:
        raise SettingError("ADAPT-SETTING", f"steps={steps}, batch_size={batch_size}",
                           mend="use 0 or more steps, and 1 or more slices")
    if loss not in LOSSES:
        raise SettingError("ADAPT-SETTING", f"loss={loss!r}", mend=suggest(loss, LOSSES))


def _code(network: Network, code: Tensor | None) -> Tensor:
    """``code`` as float32, if it is one of this network's."""
    shape, wanted = None if code is None else tuple(code.shape), (network.model.config.n_codes,)
    if network.encoder is None or shape != wanted:
        raise SettingError("ADAPT-CODE", f"a code of shape {shape} for a network conditioned on "
                           f"'{network.conditioning}' with n_codes={wanted[0]}",
                           mend="give M numbers, or None for a plain network")
    return code.detach().float()


def _copy(network: Network, device: torch.device) -> UNet:
    return copy.deepcopy(network.model).to(device=device, memory_format=torch.channels_last)   # as ``fit`` has it


def _labelled(slices: SliceSet, mask: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (n, 1, H, W) float32 and masks (n, 1, H, W) uint8 of the slices that have this mask drawn."""
    if mask not in slices.masks:
        raise SettingError("MASK-UNKNOWN", f"these slices have no mask '{mask}'", mend=suggest(mask, slices.masks))
    index = np.flatnonzero(slices.masks[mask].max(axis=(1, 2, 3), initial=0) < UNDRAWN)
    drawn = np.ascontiguousarray(slices.masks[mask][index])
    if not drawn.any():
        raise RunError("ADAPT-EMPTY", f"no lesion of mask '{mask}' in {len(index)} slices",
                       mend="adapt to scans with lesions")
    images = torch.from_numpy(np.ascontiguousarray(slices.images[index], dtype=np.float32))
    return images.to(device), torch.from_numpy(drawn).to(device)


def _batches(n: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``steps`` sets of rows: all n in their order where they fit, else the next of a shuffled order, again and again;
    what is left over at its end is dropped.
    """
    everything = torch.arange(n, device=generator.device)
    waiting: list[Tensor] = []
    for _ in range(steps):
        if n <= batch_size:
            yield everything
            continue
        if not waiting:
            order = torch.randperm(n, generator=generator, device=generator.device)
            waiting = [part for part in order.split(batch_size) if len(part) == batch_size]
        yield waiting.pop()
