"""FiLM: one gamma and one beta a channel, made from the code z (which contrast, centre or rater)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msfilm.errors import SettingError, suggest

__all__ = ["FILM_FORMS", "FiLMGenerator", "film"]

FILM_FORMS = {
    "residual": "gamma = 1 + dgamma and beta, any value; starts as the identity; one trunk for all layers",
    "sigmoid": "gamma and beta between 0 and 1, an MLP of its own a layer, as in the paper's code; never the identity",
}
_SIGMOID_WIDTHS = (64, 16)   # hidden units of the paper's code


def film(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Feature-wise linear modulation, FiLM(x | z) = gamma(z) * x + beta(z) (Perez et al. 2018, equation 2).

    Args:
        x: feature maps (N, C, H, W).
        gamma: scale (N, C, 1, 1); broadcast over H and W, never repeated to full maps.
        beta: shift (N, C, 1, 1).

    Returns:
        (N, C, H, W), in the type of ``x``.
    """
    return _FiLM.apply(x, gamma, beta)


class _FiLM(torch.autograd.Function):
    """gamma * x + beta in one pass over x, instead of one for the product and one for the sum.

    torch's broadcast of (N, C, 1, 1) over channels-last maps works in short pieces of C values. One row (N, C, 1, W)
    of gamma and beta gives it long ones, at 1/H of the memory of full maps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        scale = _row(gamma, x)
        ctx.save_for_backward(x, scale)
        ctx.types = gamma.dtype, beta.dtype
        return torch.addcmul(_row(beta, x), x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        need_x, need_gamma, need_beta = ctx.needs_input_grad
        return (d * scale if need_x else None,
                (d * x).sum((2, 3), keepdim=True).to(ctx.types[0]) if need_gamma else None,
                d.sum((2, 3), keepdim=True).to(ctx.types[1]) if need_beta else None)


def _row(values: Tensor, x: Tensor) -> Tensor:
    """(N, C, 1, 1) -> (N, C, 1, W), of the type and in the memory layout of ``x``."""
    n, c, _, w = x.shape
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return values.to(x.dtype).expand(n, c, 1, w).contiguous(memory_format=layout)


class FiLMGenerator(nn.Module):
    """The MLP that makes every layer's gamma and beta from z.

    Form ``residual``: one trunk for all layers and one linear head a layer; gamma = 1 + dgamma, and the heads (nothing
    else) start at zero: at the start FiLM is exactly the identity, yet the heads get a gradient at the first step and
    the trunk from the second on. Form ``sigmoid``, as the paper's code had it: for each layer an MLP M -> 64 -> 16 ->
    2C with a sigmoid after every linear layer, the last included, in torch's usual start.

    Args:
        n_codes: M, the length of z.
        channels: C of each modulated layer, in order.
        width: hidden units of the trunk (form ``residual``).
        depth: hidden layers of the trunk (form ``residual``).
        form: a key of ``FILM_FORMS``.

    Raises:
        SettingError: FILM-FORM.
    """

    def __init__(self, n_codes: int, channels: Sequence[int], width: int = 64, depth: int = 2, form: str = "residual"):
        super().__init__()
        if form not in FILM_FORMS:
            raise SettingError("FILM-FORM", f"there is no form '{form}' of FiLM", mend=suggest(form, FILM_FORMS))
        self.n_codes, self.form, self.channels = n_codes, form, tuple(channels)
        if form == "sigmoid":
            sizes = (n_codes, *_SIGMOID_WIDTHS)
            self.heads = nn.ModuleList(
                nn.Sequential(*_layers(sizes, nn.Sigmoid), nn.Linear(sizes[-1], 2 * c), nn.Sigmoid()) for c in channels)
            return
        self.trunk = nn.Sequential(*_layers([n_codes] + [width] * depth, nn.ReLU))
        self.heads = nn.ModuleList(nn.Linear(width if depth else n_codes, 2 * c) for c in channels)
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
            hidden = z.float() if self.form == "sigmoid" else self.trunk(z.float())          # (N, width)
            maps = [head(hidden)[:, :, None, None].chunk(2, dim=1) for head in self.heads]    # (N, C, 1, 1) each
        return [(gamma, beta) if self.form == "sigmoid" else (1 + gamma, beta) for gamma, beta in maps]


def _layers(sizes: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    return [part for n_in, n_out in itertools.pairwise(sizes) for part in (nn.Linear(n_in, n_out), activation())]
