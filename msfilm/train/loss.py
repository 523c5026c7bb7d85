"""Losses: soft Dice over the whole batch (the paper's), Dice a slice, binary cross-entropy, and both together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "bce_loss", "dice_bce_loss", "dice_loss"]


def dice_loss(logits: Tensor, targets: Tensor, *, smooth: float = 1.0, per_slice: bool = False) -> Tensor:
    """Soft Dice loss, 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), with p = sigmoid(logits).

    The sums run over the whole batch flattened, as the paper's code had them (a slice without lesion then counts with
    the others), or with ``per_slice`` over each slice, and the slices' losses are averaged. In a batch without any
    lesion the loss falls to 0 as p does. It is computed in float32, under autocast too.

    Args:
        logits: (N, 1, H, W).
        targets: (N, 1, H, W), 0 to 1.
        smooth: smoothing; above 0, so that the empty batch is defined.
        per_slice: one Dice a slice.

    Returns:
        A scalar.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"dice_loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    p, t = logits.float().sigmoid(), targets.float()
    dims = (1, 2, 3) if per_slice else (0, 1, 2, 3)
    overlap = (p * t).sum(dims)                                 # () or (N,)
    total = p.sum(dims) + t.sum(dims)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over all pixels, in float32."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def dice_bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice over the batch plus binary cross-entropy."""
    return dice_loss(logits, targets) + bce_loss(logits, targets)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice": dice_loss,
    "dice-per-slice": partial(dice_loss, per_slice=True),
    "bce": bce_loss,
    "dice-bce": dice_bce_loss,
}
