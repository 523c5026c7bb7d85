"""Altered ground truth: a slice's masks changed by themselves, by one pixel (morphology) or at their edge (soft rims).

Outside the slice nothing is known, so nothing comes in over its edge and nothing is eaten from there: a lesion that the
crop cuts goes on beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MASK_OPERATIONS", "close", "dilate", "erode", "morph", "open_", "ramp_matrix", "soft_rims"]


def dilate(mask: Tensor) -> Tensor:
    """A bool mask (..., H, W) with each pixel added that has a marked one above, below, left or right of it.

    Of a soft mask, a float in 0 to 1, each pixel becomes the highest of the five: so all levels are dilated as masks.
    """
    p = F.pad(mask, (1, 1, 1, 1))   # shifts of a bool tensor: on a CPU several times as fast as max pooling
    near = p[..., :-2, 1:-1], p[..., 2:, 1:-1], p[..., 1:-1, :-2], p[..., 1:-1, 2:]
    return reduce(torch.maximum if mask.is_floating_point() else torch.bitwise_or, near, mask)


def erode(mask: Tensor) -> Tensor:
    """Without the pixels that have an unmarked one above, below, left or right. What is two pixels thin is gone."""
    return 1 - dilate(1 - mask) if mask.is_floating_point() else ~dilate(~mask)


def open_(mask: Tensor) -> Tensor:
    """Eroded, then dilated: spurs, corners and whatever holds no cross of five pixels are gone; the rest stays."""
    return dilate(erode(mask))


def close(mask: Tensor) -> Tensor:
    """Dilated, then eroded: holes and gaps of a pixel are filled; the rest stays."""
    return erode(dilate(mask))


MASK_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {"dilate": dilate, "erode": erode, "open": open_,
                                                          "close": close}


def morph(masks: Tensor, p: float, generator: torch.Generator,
          operations: Sequence[str] = ("dilate", "erode")) -> Tensor:
    """With probability ``p`` apply one of the operations to a slice's masks, all K the same; each has an equal share.

    All are of one pixel with 4 neighbours, the smallest step there is. Eroding and opening take away lesions up to two
    pixels across, which raters miss as well: with four operations and p at .4 such a lesion is gone in one slice of
    five. While that stays below one in two, the likelier answer is still that it is there.

    Args:
        masks: (N, K, H, W) of 0 and 1, or soft, as floats in 0 to 1.
        p: probability for each slice.
        generator: where the one random number a slice comes from.
        operations: names in MASK_OPERATIONS.

    Returns:
        (N, K, H, W) of the type given.
    """
    marked = masks if masks.is_floating_point() else masks > 0
    drawn = torch.rand(masks.shape[0], generator=generator, device=generator.device)[:, None, None, None]
    out = marked
    for k, name in reversed(list(enumerate(operations, start=1))):
        out = torch.where(drawn < p * (k / len(operations)), MASK_OPERATIONS[name](marked), out)
    return out.to(masks.dtype)


def soft_rims(values: Tensor, width_px: float) -> Tensor:
    """Masks (N, K, H, W) in 0 to 1 with each edge spread to a linear ramp of ``width_px`` about where it was.

    A ramp is the mean over raters who put the edge anywhere within it. Each pixel holds the ramp's mean over its area;
    the sum over the slice stays. A diagonal edge gets a ramp of the same standard deviation, width / sqrt(12).
    """
    h, w = values.shape[-2:]
    rows, columns = ramp_matrix(h, width_px, values.device), ramp_matrix(w, width_px, values.device)
    return (rows @ values @ columns).clamp(0, 1)   # (H, H) @ (N, K, H, W) @ (W, W); rounding may pass 1


@lru_cache(maxsize=64)
def ramp_matrix(size: int, width_px: float, device: torch.device | str = "cpu") -> Tensor:
    """(size, size): smooths one axis by a box of ``width_px``, averaged over pixels; mirrored at the slice's ends.

    Symmetric and each row sums to 1, so that constants and sums both stay.
    """
    if not width_px:
        return torch.eye(size, device=device)
    reach = math.ceil(width_px / 2) + 1
    offsets = torch.arange(-reach - 1, reach + 2, dtype=torch.float64)
    half = width_px / 2
    # Integral of a box's integral: a parabola within the box, 0 before it and x after it. Its second difference is the
    # mean over one pixel of the box's overlap with another.
    parabola = (offsets + half).clamp(0, width_px) ** 2 / (2 * width_px) + (offsets - half).clamp(min=0)
    weights = parabola[2:] - 2 * parabola[1:-1] + parabola[:-2]                     # (2 * reach + 1,), sums to 1
    places = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)          # where each row reads from
    places = places % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)              # ... mirrored back into the slice
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, places, weights.expand(size, -1))
    return matrix.float().to(device)
