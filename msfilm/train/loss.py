"""Losses: soft Dice over the whole batch (the paper's) or a slice, cross-entropy, focal, and Dice with either.

All take targets between 0 and 1 (soft rims, several raters' mean) and compute in float32, under autocast too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "bce_loss", "dice_bce_loss", "dice_focal_loss", "dice_loss", "focal_loss"]


def dice_loss(logits: Tensor, targets: Tensor, *, smooth: float = 1.0, per_slice: bool = False) -> Tensor:
    """Soft Dice loss, 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), with p = sigmoid(logits).

    The sums run over the whole batch flattened, as the paper's code had them (a slice without lesion then counts with
    the others), or with ``per_slice`` over each slice, and the slices' losses are averaged. In a batch without any
    lesion the loss falls to 0 as p does. Its least value is at answers of 0 or 1, for soft targets as well: where
    t = .6 everywhere, p = 1 scores better than p = .6. Dice alone does not teach calibrated probabilities.

    Args:
        logits: (N, 1, H, W), N at least 1.
        targets: (N, 1, H, W), 0 to 1.
        smooth: smoothing; above 0, so that the empty batch is defined.
        per_slice: one Dice a slice.

    Returns:
        A scalar.
    """
    logits, targets = _float32("dice_loss", logits, targets)
    p, t = logits.sigmoid(), targets
    dims = (1, 2, 3) if per_slice else (0, 1, 2, 3)
    overlap = (p * t).sum(dims)                                 # () or (N,)
    total = p.sum(dims) + t.sum(dims)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over all pixels; least at p = t."""
    return F.binary_cross_entropy_with_logits(*_float32("bce_loss", logits, targets))


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Focal loss, the mean over all pixels of |t - p|^gamma times the cross-entropy: what is already right counts less.

    For targets of 0 and 1 it is that of Lin et al. (2017). For those between it is the one of Li et al. (2020, "quality
    focal loss"), least at p = t; MONAI's differs there.

    Args:
        logits: (N, 1, H, W), N at least 1.
        targets: (N, 1, H, W), 0 to 1.
        gamma: 0 (cross-entropy), or 1 or more; between them the gradient at p = t is not finite.
        alpha: weight of lesion, 1 - alpha of the rest; None: both 1.

    Returns:
        A scalar.
    """
    if not (gamma == 0 or gamma >= 1) or (alpha is not None and not 0 <= alpha <= 1):
        raise ValueError(f"focal_loss: gamma={gamma!r} (0, or 1 or more) or alpha={alpha!r} (0 to 1, or None)")
    logits, targets = _float32("focal_loss", logits, targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")      # (N, 1, H, W)
    loss = loss * (targets - logits.sigmoid()).abs() ** gamma
    if alpha is not None:
        loss = loss * (targets * alpha + (1 - targets) * (1 - alpha))
    return loss.mean()


def dice_bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice over the batch plus binary cross-entropy."""
    return dice_loss(logits, targets) + bce_loss(logits, targets)


def dice_focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Soft Dice over the batch plus focal loss."""
    return dice_loss(logits, targets) + focal_loss(logits, targets, gamma=gamma, alpha=alpha)


def _float32(name: str, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != targets.shape:
        raise ValueError(f"{name}: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    if not logits.numel():
        raise ValueError(f"{name}: logits {tuple(logits.shape)} hold no pixel")
    return logits.float(), targets.float()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice": dice_loss,
    "dice-per-slice": partial(dice_loss, per_slice=True),
    "bce": bce_loss,
    "focal": focal_loss,
    "dice-bce": dice_bce_loss,
    "dice-focal": dice_focal_loss,
}
