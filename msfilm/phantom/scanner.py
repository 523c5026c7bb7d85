"""From signal to scan: receive field, motion and the end of k-space, noise of both channels, magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Scanner", "draw_scanner", "response", "scan_image"]

ROLL_OFF = 0.2  # k-space fades out over this share of what is sampled, as scanners' raw-data filters make it
PAD = 8  # pixels repeated round a window before its k-space is cut: the filter has died away there


@dataclass(frozen=True)
class Scanner:
    """What one scan suffers. Lengths in mm."""

    snr: float  # white matter over the noise's standard deviation
    kmax: float  # share of k-space sampled per axis of the plane; the rest is zero-filled
    field: np.ndarray  # (5,) receive field: log change over 36 mm along y, x; curvature; along z; its square
    gain: np.ndarray  # one factor a slice: cross-talk, breathing
    motion_mm: float = 0.0  # amplitude of a periodic motion along the phase-encoding axis (anterior-posterior)
    motion_lines: float = 9.0  # its period in lines of k-space
    motion_phase: float = 0.0


def draw_scanner(
    rng: np.random.Generator, *, snr: float, bias: float, kmax: float, slices: int, motion: bool = False
) -> Scanner:
    """Draw what a scan suffers.

    Args:
        rng: source of all randomness here.
        snr, kmax: see ``Scanner``.
        bias: relative change of the receive field over 36 mm.
        slices: how many are acquired.
        motion: strong enough for visible ghosts.
    """
    tilt = rng.normal(0, 0.35, 2)
    field = np.array([bias * (tilt[1] - 0.8), bias * tilt[0], 0.25 * bias, rng.normal(0, 0.10), -0.10])
    gain = np.exp(rng.normal(0, 0.035, slices))
    amplitude, period, phase = rng.uniform(0.35, 0.8), rng.uniform(4, 14), rng.uniform(0, 2 * np.pi)
    return Scanner(snr, kmax, field, gain, float(amplitude) if motion else 0.0, float(period), float(phase))


def response(frequencies: Tensor, kmax: float) -> Tensor:
    """Share of each frequency (cycles per pixel) that the scan keeps: 1, then a raised cosine to 0 at ``kmax`` / 2.

    Gibbs ringing stays at sharp edges; the fade makes it die away within a few pixels, as on scanners.
    """
    stop = kmax / 2
    start = stop * (1 - ROLL_OFF)
    place = ((frequencies.abs() - start) / (stop - start)).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * place)


@torch.no_grad()
def scan_image(
    clean: Tensor,
    scanner: Scanner,
    x_mm: np.ndarray,
    y_mm: np.ndarray,
    *,
    plane: str = "axial",
    noise: np.random.Generator | None = None,
    pixel_mm: float = 0.5,
    which: slice = slice(None),
) -> Tensor:
    """What the scanner makes of a clean signal.

    Args:
        clean: (Z, H, W) signal, white matter = 1; the whole plane or a window of it.
        scanner: what the scan suffers.
        x_mm, y_mm: (W,) and (H,) position of columns and rows from the middle of the whole scan.
        plane: axial (slices along the first axis) or sagittal (along the last).
        noise: source of the noise; None for none.
        pixel_mm: size along the phase-encoding axis, for motion.
        which: the acquired slices that ``clean`` holds.

    Returns:
        (Z, H, W) magnitude, white matter near 1.
    """
    device = clean.device
    as_tensor = lambda values: torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)  # noqa: E731
    x, y = as_tensor(x_mm / 36)[None, None, :], as_tensor(y_mm / 36)[None, :, None]
    z = torch.linspace(-1, 1, clean.shape[0], device=device)[:, None, None]
    f = scanner.field.tolist()
    receive = torch.exp(f[0] * y + f[1] * x + f[2] * (x * x - y * y)) * torch.exp(f[3] * z + f[4] * z * z)
    image = clean * receive
    if plane == "sagittal":
        image = image.permute(2, 0, 1)  # (slices, z, y)
    image = image * as_tensor(scanner.gain[which])[:, None, None]
    # Edges repeated as far as the filter reaches; k-space then joins the two ends of a larger, smoother plane.
    height, width = image.shape[1] + 2 * PAD, image.shape[2] + 2 * PAD
    image = F.pad(image[:, None], (PAD, PAD, PAD, PAD), mode="replicate")[:, 0]
    rows, columns = torch.fft.fftfreq(height, device=device), torch.fft.fftfreq(width, device=device)
    keep_rows, keep_columns = response(rows, scanner.kmax), response(columns, scanner.kmax)
    if noise is not None:
        both = as_tensor(noise.standard_normal((2, *image.shape), dtype=np.float32))
        # What is left of white noise after the filter has a standard deviation of 1 / snr in each channel.
        left = float(((keep_rows**2).mean() * (keep_columns**2).mean()).sqrt())
        image = torch.complex(image + both[0] / (scanner.snr * left), both[1] / (scanner.snr * left))
    spectrum = torch.fft.fft2(image)
    keep = keep_rows[:, None] * keep_columns[None, :]
    if scanner.motion_mm:
        # Each line of k-space is read while the neck is elsewhere: a shift is a phase, periodic shifts give ghosts.
        axis = rows if plane == "axial" else columns
        line = torch.fft.fftshift(torch.arange(len(axis), device=device))
        moment = 2 * torch.pi * line / scanner.motion_lines + scanner.motion_phase
        moved = scanner.motion_mm / pixel_mm * torch.sin(moment)
        phase = torch.exp(-2j * torch.pi * axis * moved)
        keep = keep * (phase[:, None] if plane == "axial" else phase[None, :])
    picture = torch.fft.ifft2(spectrum * keep).abs()[:, PAD : height - PAD, PAD : width - PAD]
    return picture.permute(1, 2, 0) if plane == "sagittal" else picture
