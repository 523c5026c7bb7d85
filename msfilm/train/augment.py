"""Augmentation of a whole batch at once, on its device: image and masks of a slice go through one sampling grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from msfilm.errors import SettingError, suggest
from msfilm.train.alter import MASK_OPERATIONS, morph, soft_rims

__all__ = ["ALTERED_TRUTH", "NO_AUGMENT", "PAPER_2020", "AugmentConfig", "affine_matrices", "augment", "bspline_basis",
           "elastic_field", "morph", "with_altered_truth"]

CONTROL_POINTS = 9   # a side, for the elastic field: on a 48-pixel crop one every 8 pixels
BIAS_POINTS = 5      # a side, for the bias field, which is smoother


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly to augment. ``_p``: probability for each slice; ranges are drawn uniformly from -value to +value.

    The defaults are stronger than the paper's (``PAPER_2020``): training on simulated scans has to reach real ones.
    Intensities are in units of the cord's median, which a SliceSet scales to 1.

    Raises:
        SettingError: AUGMENT-SETTING, a probability outside 0 to 1, a value out of range, an unknown operation.
    """

    # Geometry: image and masks together
    affine_p: float = 0.9
    rotate_deg: float = 15.0
    scale: float = 0.15             # share of the size, 0.15: from 85 to 115 %
    translate_mm: float = 2.0       # along each axis
    flip_lr_p: float = 0.5
    elastic_p: float = 0.3
    elastic_mm: float = 0.5         # root mean square displacement along each axis
    # Intensity of the image: each of these is drawn by itself with intensity_p
    intensity_p: float = 0.3
    brightness: float = 0.05        # added
    contrast: float = 0.2          # share by which differences from the cord's level grow or shrink
    gamma: float = 0.15             # exponent from exp(-gamma) to exp(gamma); the cord's level, 1, stays
    bias: float = 0.05              # root mean square of the log of a smooth field that multiplies the image
    blur: float = 0.7               # share of the image replaced by itself smoothed over 3x3 pixels, up to this
    noise: float = 0.03             # standard deviation of Gaussian noise, up to this
    # Altered ground truth: the masks alone, image untouched (what a network learns from raters who differ)
    mask_morphology_p: float = 0.0  # one of the operations below, by one pixel
    mask_operations: tuple[str, ...] = ("dilate", "erode", "open", "close")   # equally often
    mask_soft_p: float = 0.0        # the edge a ramp, the mask a float in 0 to 1; above 0 all masks come back as floats
    mask_soft_mm: float = 0.75      # width of that ramp; 0: only what interpolation leaves
    mask_move_p: float = 0.0        # moved, turned and scaled by itself
    mask_shift_mm: float = 0.5
    mask_rotate_deg: float = 3.0
    mask_scale: float = 0.05

    def __post_init__(self):
        self._check_operations()
        for field in fields(self):
            if field.name == "mask_operations":
                continue
            value = getattr(self, field.name)
            limit = 1.0 if field.name.endswith("_p") or "scale" in field.name or field.name == "blur" else math.inf
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value != math.inf
            if not number or not 0 <= value <= limit:
                raise SettingError("AUGMENT-SETTING", f"{field.name}={value!r}",
                                   mend="use a number from 0 to 1" if limit == 1 else "use a number, 0 or more")
        for name in ("scale", "mask_scale"):
            if getattr(self, name) >= 1:
                raise SettingError("AUGMENT-SETTING", f"{name}={getattr(self, name)!r}", mend="use a number below 1")

    def _check_operations(self) -> None:
        """JSON has lists: they become a tuple, a single name too."""
        names = (self.mask_operations,) if isinstance(self.mask_operations, str) else self.mask_operations
        if not isinstance(names, (tuple, list)) or not names or len({*map(str, names)}) < len(names):
            raise SettingError("AUGMENT-SETTING", f"mask_operations={names!r}",
                               mend=f"use one or more of {', '.join(MASK_OPERATIONS)}, each once")
        for name in names:
            if not isinstance(name, str) or name not in MASK_OPERATIONS:
                raise SettingError("AUGMENT-SETTING", f"mask_operations={names!r}", mend=suggest(name, MASK_OPERATIONS))
        object.__setattr__(self, "mask_operations", tuple(names))


NO_AUGMENT = AugmentConfig(affine_p=0, flip_lr_p=0, elastic_p=0, intensity_p=0)

# The paper's time: turns of 4.6 degrees, 3 % of scale, +-2 % of 36 mm; an elastic field in one slice of ten, which was
# meant to move by 1.15 pixels of 0.75 mm. Nothing else was altered.
PAPER_2020 = AugmentConfig(affine_p=1.0, rotate_deg=4.6, scale=0.03, translate_mm=0.72, flip_lr_p=0, elastic_p=0.1,
                           elastic_mm=0.86, intensity_p=0)


def with_altered_truth(config: AugmentConfig, strength: float = 1.0) -> AugmentConfig:
    """The config with its ground truth altered as much as raters differ; geometry and intensities stay as they are.

    The raters of the phantom put an outline .32 mm (narrow setting) to .40 mm (wide) from the truth, standard deviation
    of style, lesion and hand together: about half a pixel, so that two of them differ by .6 to .75 of one. Here one
    slice in five is grown or shrunk by a pixel of .75 mm (.34 mm over all slices), half are shifted by up to .5 mm
    along each axis (.20 mm), and half get a rim of one pixel's width (.15 mm): together .42 mm. One slice in five loses
    its smallest lesions; of lesions of 10 mm3 at the median contrast the phantom's raters miss two in five (narrow).
    Over many draws the mean inside a lesion stays above one half, but for one of a single pixel (.48), and its volume
    within 10 % (9 % less where it is two pixels thin, 9 % more for a single pixel, 2 % from three by three on).

    Args:
        config: what to add it to.
        strength: multiplies the three probabilities (at most to 1); 0 turns all of it off.

    Raises:
        SettingError: AUGMENT-SETTING, a strength below 0 or not a number.
    """
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
        raise SettingError("AUGMENT-SETTING", f"strength={strength!r}", mend="use a number, 0 or more")
    return replace(config, mask_morphology_p=min(1.0, 0.4 * strength), mask_operations=tuple(MASK_OPERATIONS),
                   mask_soft_p=min(1.0, 0.5 * strength), mask_soft_mm=0.75, mask_move_p=min(1.0, 0.5 * strength),
                   mask_shift_mm=0.5, mask_rotate_deg=3.0, mask_scale=0.05)


ALTERED_TRUTH = with_altered_truth(AugmentConfig())


def augment(images: Tensor, masks: Tensor, config: AugmentConfig, generator: torch.Generator, *,
            spacing_mm: float = 0.75) -> tuple[Tensor, Tensor]:
    """Augment every slice differently; image and masks of a slice stay together.

    Args:
        images: (N, 1, H, W) float32.
        masks: (N, K, H, W) uint8 of 0 and 1, or float32 in 0 to 1, which stay soft; leave out slices whose mask is
            unknown (255) before.
        config: how strongly.
        generator: where all random numbers come from, on the device of ``images``.
        spacing_mm: pixel size.

    Returns:
        images (N, 1, H, W) and masks (N, K, H, W) of the types given; with ``mask_soft_p`` above 0 the masks are of the
        images' type, 0 to 1. A config of zeros returns both unchanged.
    """
    if images.ndim != 4 or masks.ndim != 4 or images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[2:]:
        raise ValueError(f"augment: images {tuple(images.shape)} and masks {tuple(masks.shape)} do not fit")
    if config.mask_morphology_p:
        masks = morph(masks, config.mask_morphology_p, generator, config.mask_operations)
    images, moved = _move(images, masks, config, generator, spacing_mm)
    masks = moved if masks.is_floating_point() else masks if moved is masks else (moved > 0.5).to(masks.dtype)
    if config.mask_soft_p:
        # What interpolation gave, before the threshold: it holds the part of a pixel by which an edge has moved.
        soft = soft_rims(moved.to(images.dtype), config.mask_soft_mm / spacing_mm)
        on = _uniform(images.shape[0], generator, 0, 1)[:, None, None, None] < config.mask_soft_p
        masks = torch.where(on, soft, masks.to(images.dtype))
    if config.intensity_p:
        images = _intensity(images, config, generator)
    return images, masks


def _move(images: Tensor, masks: Tensor, config: AugmentConfig, generator: torch.Generator,
          spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Geometry: per-slice affine matrices and a coarse elastic field, summed into ONE grid, sampled ONCE.

    Returns images and masks, these as interpolated, a float in 0 to 1; or both as given if nothing is to move.
    """
    n, _, h, w = images.shape
    affine, elastic = bool(config.affine_p or config.flip_lr_p), bool(config.elastic_p and config.elastic_mm)
    if not (affine or elastic or config.mask_move_p):
        return images, masks
    base = _pixel_grid(h, w, images.device)                                        # (H*W, 3): x, y, 1 from the centre
    pixels = base[:, :2].expand(n, -1, -1)                                         # (N, H*W, 2): where to read from
    if affine:
        matrices = affine_matrices(n, config.affine_p, config.rotate_deg, config.scale,
                                   config.translate_mm / spacing_mm, config.flip_lr_p, generator)
        pixels = base @ matrices.transpose(1, 2)                                   # (H*W, 3) @ (N, 3, 2)
    if elastic:
        on = _uniform(n, generator, 0, 1) < config.elastic_p
        field = elastic_field(n, h, w, config.elastic_mm / spacing_mm, generator)  # (N, H, W, 2) pixels
        pixels = pixels + (field * on[:, None, None, None]).reshape(n, h * w, 2)
    masks = masks.to(images.dtype)
    if config.mask_move_p:
        # The masks' own small move comes before the common one: a grid for the images and one for the masks.
        moves = affine_matrices(n, config.mask_move_p, config.mask_rotate_deg, config.mask_scale,
                                config.mask_shift_mm / spacing_mm, 0.0, generator)
        moved = F.pad(pixels, (0, 1), value=1.0) @ moves.transpose(1, 2)           # (N, H*W, 2)
        return _sample(images, pixels), _sample(masks, moved)
    both = _sample(torch.cat([images, masks], dim=1), pixels)                      # (N, 1 + K, H, W)
    return both[:, :1], both[:, 1:]


def _sample(values: Tensor, pixels: Tensor) -> Tensor:
    """Read values (N, C, H, W) at pixels (N, H*W, 2) measured from the centre."""
    h, w = values.shape[-2:]
    grid = (pixels * _pixels_to_unit(h, w, values.device)).view(-1, h, w, 2)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)


def affine_matrices(n: int, p: float, rotate_deg: float, scale: float, shift_px: float, flip_p: float,
                    generator: torch.Generator) -> Tensor:
    """(N, 2, 3): from a pixel of the result (x, y, 1; centre 0, 0) to the place in the slice that it is read from."""
    on = (_uniform(n, generator, 0, 1) < p).float()
    angle = _uniform(n, generator, -1, 1) * on * math.radians(rotate_deg)
    size = 1 + _uniform(n, generator, -1, 1) * on * scale                          # above 1: things get larger
    shift = (torch.rand(n, 2, 1, generator=generator, device=generator.device) * 2 - 1) * on[:, None, None] * shift_px
    mirror = 1 - 2 * (_uniform(n, generator, 0, 1) < flip_p).float()               # -1 or 1, on x: left-right
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    turn = torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)  # (N, 2, 2)
    return torch.cat([turn, shift], dim=2)


def elastic_field(n: int, h: int, w: int, rms_px: float, generator: torch.Generator) -> Tensor:
    """(N, H, W, 2): smooth random displacements in pixels, x then y, with root mean square ``rms_px`` along each axis.

    Normal numbers on a coarse grid of control points, spread by a cubic B-spline: two small matrix products.
    """
    return _smooth_noise(n, 2, h, w, CONTROL_POINTS, generator).permute(0, 2, 3, 1) * rms_px


def _smooth_noise(n: int, c: int, h: int, w: int, points: int, generator: torch.Generator) -> Tensor:
    """(N, C, H, W) with mean 0 and mean square 1 (expected), smooth on the scale of the control points."""
    coarse = torch.randn(n, c, points, points, generator=generator, device=generator.device)
    rows, columns = bspline_basis(h, points, generator.device), bspline_basis(w, points, generator.device)
    # Each value is a weighted sum of independent normal numbers, so its variance is the sum of the squared weights.
    variance = rows.square().sum(1).mean() * columns.square().sum(1).mean()
    return rows @ coarse @ columns.T / variance.sqrt()                             # (H,P) @ (N,C,P,P) @ (P,W)


@lru_cache(maxsize=64)
def bspline_basis(size: int, points: int, device: torch.device | str = "cpu") -> Tensor:
    """(size, points): weight of each control point of a uniform cubic B-spline at each of ``size`` pixels.

    The first pixel lies on control point 1 and the last on control point ``points - 2``; each row sums to 1.
    """
    u = torch.linspace(1, points - 2, size, device=device, dtype=torch.float64)[:, None]
    t = (u - torch.arange(points, device=device, dtype=torch.float64)).abs()       # distance in control points
    near, far = 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6             # the cubic B-spline's two pieces
    return torch.where(t < 1, near, far).float()


def _intensity(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Gamma, contrast, brightness, a smooth bias field, blur and noise, in the order a scanner would add them."""
    n, _, h, w = x.shape

    def amount(limit: float, low: float = -1.0) -> Tensor:
        """(N, 1, 1, 1): uniform from low * limit to limit where drawn, else 0."""
        on = _uniform(n, generator, 0, 1) < config.intensity_p
        return (_uniform(n, generator, low, 1) * on * limit)[:, None, None, None]

    if config.gamma:
        x = x.clamp(min=0) ** torch.exp(amount(config.gamma))
    if config.contrast or config.brightness:
        x = 1 + (x - 1) * (1 + amount(config.contrast)) + amount(config.brightness)
    if config.bias:
        x = x * torch.exp(_smooth_noise(n, 1, h, w, BIAS_POINTS, generator) * amount(config.bias, 1.0))
    if config.blur:
        smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = torch.lerp(x, smooth, amount(config.blur, 0.0))
    if config.noise:
        x = x + torch.randn(x.shape, generator=generator, device=x.device) * amount(config.noise, 0.0)
    return x


def _uniform(n: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    """(N,) uniform numbers on the generator's device."""
    return low + (high - low) * torch.rand(n, generator=generator, device=generator.device)


@lru_cache(maxsize=16)
def _pixel_grid(h: int, w: int, device: torch.device) -> Tensor:
    """(H*W, 3): x, y and 1 of each pixel, measured from the centre of the slice."""
    y, x = torch.meshgrid(torch.arange(h, device=device) - (h - 1) / 2, torch.arange(w, device=device) - (w - 1) / 2,
                          indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.ones(h * w, device=device)], dim=1)


@lru_cache(maxsize=16)
def _pixels_to_unit(h: int, w: int, device: torch.device) -> Tensor:
    """(2,): from pixels to grid_sample's units, in which the first and last pixel lie at -1 and 1. Kept on the device:
    making it anew would make a GPU wait at each step."""
    return torch.tensor((2 / (w - 1), 2 / (h - 1)), device=device)
