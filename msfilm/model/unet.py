"""The U-Net, plain or FiLMed: one class, so that a comparison differs in the conditioning and in nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msfilm.errors import SettingError, suggest
from msfilm.model.film import FILM_FORMS, FiLMGenerator, film

__all__ = ["FILM_PLACES", "MODULATIONS", "ConvBlock", "UNet", "UNetConfig"]

MODULATIONS = {
    "film": "gamma and beta for every channel of every layer",
    "concat": "z as further input channels of the first convolution, each constant over the slice: the simple rival",
}
FILM_PLACES = ("after-relu", "before-relu")


@dataclass(frozen=True)
class UNetConfig:
    """Everything a U-Net is built from.

    Raises:
        SettingError: UNET-SETTING, a value out of range or a FiLM place that does not exist.
    """

    depth: int = 3                         # down blocks, and up blocks
    filters: int = 16                      # channels of the first block; doubled at each further down block
    in_channels: int = 1
    dropout: float = 0.0                   # share of channels dropped at the end of each block, in training
    n_codes: int = 0                       # M, the length of z; 0 is the plain U-Net
    film: tuple[str, ...] | None = None    # places where FiLM is on; None: all of film_names
    film_width: int = 64                   # hidden units of the FiLM generator
    film_form: str = "residual"            # residual (1 + dgamma) or sigmoid
    film_place: str = "after-relu"         # after or before a block's last ReLU
    modulation: str = "film"               # how z gets in: film, or concat
    prior: float = 0.5                     # probability of lesion that the network starts from

    def __post_init__(self):
        for name, allowed in (("film_form", FILM_FORMS), ("film_place", FILM_PLACES), ("modulation", MODULATIONS)):
            if getattr(self, name) not in tuple(allowed):   # a list, say, is in no mapping
                raise SettingError("UNET-SETTING", f"{name}={getattr(self, name)!r}",
                                   mend=suggest(getattr(self, name), allowed))
        for name, low, high in (("depth", 1, 6), ("filters", 1, 1024), ("in_channels", 1, 64), ("n_codes", 0, 10_000),
                                ("film_width", 1, 10_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise SettingError("UNET-SETTING", f"{name}={value!r}", mend=f"use a whole number, {low} to {high}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise SettingError("UNET-SETTING", f"dropout={self.dropout!r}", mend="use a number from 0 to below 1")
        if isinstance(self.prior, bool) or not isinstance(self.prior, (int, float)) or not 0 < self.prior < 1:
            raise SettingError("UNET-SETTING", f"prior={self.prior!r}", mend="use a probability between 0 and 1")
        if self.film is not None:
            object.__setattr__(self, "film", tuple(self.film))  # a list, as JSON has it, is welcome too
            for name in self.film:
                if name not in self.film_names:
                    raise SettingError("UNET-SETTING", f"film: a U-Net of depth {self.depth} has no place '{name}'",
                                       mend=suggest(name, self.film_names))

    @property
    def film_names(self) -> tuple[str, ...]:
        """The 2 * depth + 2 places for FiLM, in the order of the forward pass: down1.. bottleneck ..up1, logits."""
        levels = range(1, self.depth + 1)
        return (*(f"down{i}" for i in levels), "bottleneck", *(f"up{i}" for i in reversed(levels)), "logits")


class ConvBlock(nn.Sequential):
    """(3x3 convolution -> batch normalisation -> ReLU) twice, then dropout of whole channels. Keeps H and W."""

    def __init__(self, c_in: int, c_out: int, dropout: float):
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor, modulate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x (N, c_in, H, W) -> (N, c_out, H, W); ``modulate`` is applied right before the last ReLU."""
        for i, layer in enumerate(self):
            if i == 5 and modulate is not None:
                x = modulate(x)
            x = layer(x)
        return x


class UNet(nn.Module):
    """Slices (N, 1, H, W), and with FiLM their codes z (N, M), to logits (N, 1, H, W).

    FiLM comes after every block: each down block (before its skip and its pooling), the bottleneck, each up block, and
    the logits (the paper's 2 * depth + 2 places). The same ``seed`` gives a plain, a FiLMed and a concatenating U-Net
    the same start (the last but for what its further input channels add).

    Example:
        >>> model = UNet(UNetConfig(n_codes=2))
        >>> model(torch.zeros(5, 1, 47, 53), torch.eye(2)[[0, 0, 1, 1, 1]]).shape
        torch.Size([5, 1, 47, 53])
    """

    def __init__(self, config: UNetConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        self.film_names = config.film_names
        # torch draws initial weights from its global CPU generator: seed it, and give it back as it was.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self._build(config)

    def _build(self, config: UNetConfig) -> None:
        widths = [config.filters * 2**i for i in range(config.depth)]     # depth 3, 16 filters: 16, 32, 64
        channels = dict(zip(self.film_names, [*widths, widths[-1], *reversed(widths), 1], strict=True))
        self.blocks = nn.ModuleDict()
        c = config.in_channels
        for name in self.film_names[: config.depth + 1]:                  # down1 .. bottleneck
            self.blocks[name] = ConvBlock(c, channels[name], config.dropout)
            c = channels[name]
        for name in self.film_names[config.depth + 1 : -1]:               # up3 .. up1: what comes up, and the skip
            self.blocks[name] = ConvBlock(c + channels[name], channels[name], config.dropout)
            c = channels[name]
        self.blocks["logits"] = nn.Conv2d(c, 1, kernel_size=1)
        if config.prior != 0.5:
            nn.init.constant_(self.blocks["logits"].bias, math.log(config.prior / (1 - config.prior)))
        # What z needs comes last, so that its random numbers change none of the U-Net's above.
        self.film_on, self.generator = (), None
        if config.n_codes and config.modulation == "concat":
            image, wider = self.blocks["down1"][0], nn.Conv2d(config.in_channels + config.n_codes, config.filters, 3,
                                                              padding=1, bias=False)
            with torch.no_grad():
                wider.weight[:, : config.in_channels] = image.weight
            self.blocks["down1"][0] = wider
        elif config.n_codes:
            self.film_on = tuple(n for n in self.film_names if config.film is None or n in config.film)
            self.generator = FiLMGenerator(config.n_codes, [channels[n] for n in self.film_on], config.film_width,
                                           form=config.film_form)

    def forward(self, x: Tensor, z: Tensor | None = None, *,
                film_parameters: Mapping[str, tuple[Tensor, Tensor]] | None = None,
                watch: Callable[[str, Tensor, Tensor], None] | None = None) -> Tensor:
        """x (N, 1, H, W), z (N, M) or None -> logits (N, 1, H, W). H and W may be odd, from 2**depth on.

        Args:
            x, z: slices and their codes.
            film_parameters: gamma and beta of every place where FiLM is on, as the method of this name gives them,
                instead of those that z makes; z is then not looked at.
            watch: is told each such place's name and its feature maps before and after FiLM, (N, C, H', W') each; it
                copies what it keeps, since a ReLU that follows works in place.

        Raises:
            ValueError: x or z has the wrong shape, or a plain U-Net is given a z (or a FiLMed one none), or
                ``film_parameters`` are not those of this network.
        """
        depth = self.config.depth
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or min(x.shape[2:]) < 2**depth:
            raise ValueError(f"UNet: x has shape {tuple(x.shape)}, expected (N, {self.config.in_channels}, H, W) "
                             f"with H and W at least {2**depth}")
        block = self._modulated(z, film_parameters, watch or _nobody)
        if z is not None and self.generator is None:                      # concat: z as constant maps
            x = torch.cat([x, z.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)

        skips = []
        for i in range(1, depth + 1):
            x = block(f"down{i}", x)                                      # (N, filters * 2**(i-1), H / 2**(i-1), ..)
            skips.append(x)
            x = F.max_pool2d(x, 2)

        x = block("bottleneck", x)                                        # (N, filters * 2**(depth-1), H / 2**depth, .)

        for i in range(depth, 0, -1):
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)  # odd or even
            x = block(f"up{i}", torch.cat([x, skip], dim=1))

        return block("logits", x)                                         # (N, 1, H, W)

    def _maps(self, z: Tensor | None, given: Mapping[str, tuple[Tensor, Tensor]] | None) -> dict[str, tuple]:
        """Place -> (gamma, beta), each (N, C, 1, 1), from z or as given."""
        if given is not None:
            if self.generator is None or set(given) != set(self.film_on) or any(
                    half.shape[1:] != (c,) for name, c in zip(self.film_on, self.generator.channels, strict=True)
                    for half in given[name]):
                raise ValueError(f"UNet: film_parameters of {', '.join(given)}, expected gamma and beta (N, C) of "
                                 f"{', '.join(self.film_on) or 'no place'}")
            return {name: (gamma[:, :, None, None], beta[:, :, None, None]) for name, (gamma, beta) in given.items()}
        if (z is None) != (self.config.n_codes == 0):
            raise ValueError(f"UNet: this network has n_codes={self.config.n_codes}, but z is "
                             f"{'missing' if z is None else tuple(z.shape)}")
        if z is not None and (z.ndim != 2 or z.shape[1] != self.config.n_codes):
            raise ValueError(f"UNet: z has shape {tuple(z.shape)}, expected (N, {self.config.n_codes})")
        return {} if self.generator is None else dict(zip(self.film_on, self.generator(z), strict=True))

    def _modulated(self, z: Tensor | None, given: Mapping[str, tuple[Tensor, Tensor]] | None,
                   watch: Callable[[str, Tensor, Tensor], None]) -> Callable[[str, Tensor], Tensor]:
        """A function (name, x): the block of that name, and FiLM(. | z) on what comes out of it, where FiLM is on."""
        maps = self._maps(z, given)
        before = self.config.film_place == "before-relu"

        def run(name: str, x: Tensor) -> Tensor:
            def modulate(inner: Tensor) -> Tensor:
                out = film(inner, *maps[name])
                watch(name, inner, out)
                return out

            if name not in maps:
                return self.blocks[name](x)
            if before and name != "logits":                               # the logits have no ReLU
                return self.blocks[name](x, modulate)
            return modulate(self.blocks[name](x))

        return run

    def film_parameters(self, z: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """z (N, M) -> for each place where FiLM is on, its gamma and beta, each (N, C)."""
        if self.generator is None:
            return {}
        return {name: (gamma.flatten(1), beta.flatten(1))
                for name, (gamma, beta) in zip(self.film_on, self.generator(z), strict=True)}


def _nobody(_name: str, _before: Tensor, _after: Tensor) -> None:
    """Watches nothing."""
