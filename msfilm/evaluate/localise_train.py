"""Train the cord localiser on phantoms alone: ``python -m msfilm.evaluate.localise_train OUT --seed 0``.

Three scans in four are of the phantom's nine acquisitions; the fourth is the same anatomy with tissue signals drawn at
random (Billot et al. 2023, SynthSeg: a network that has seen any contrast is not surprised by a real one). Fields of
view from 24 to 160 mm are cut from them, coil fields, noise, gamma and turned grey scales are laid over, and some have
no cord.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msfilm.data.nifti import Volume
from msfilm.evaluate.localise import cord_heat
from msfilm.evaluate.localise_calibrate import fit_confidence
from msfilm.evaluate.localise_maps import SPACING_MM, coarse_slices, even_out
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, save_network
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.facts import ACQUISITIONS, centres, protocol
from msfilm.phantom.physics import signals
from msfilm.phantom.roster import make_patient
from msfilm.phantom.scan import ScanPlan, render
from msfilm.phantom.scanner import draw_scanner, scan_image

__all__ = ["draw_batch", "phantom_slices", "random_contrast_scan", "train_localiser"]

CANVAS = 136  # pixels a side: 204 mm
SLICES_EACH = 10  # of a scan
LR = 4e-3
COHORT = 7_000_000  # seeds from here on are the localiser's own; no other cohort of the course is so far up
# pixels a side from .. to, slices in a batch, share of the batches, how far off the middle the cord may lie in pixels
FIELDS = ((16, 32, 96, 0.25, 5.0), (34, 64, 32, 0.45, 16.0), (70, 106, 10, 0.30, 30.0))


def random_contrast_scan(index: int, seed: int) -> tuple[Volume, np.ndarray]:
    """A phantom neck or chest, 160 mm wide, whose tissues shine as chance has it; the scan and its cord (X, Y, Z)."""
    rng = np.random.default_rng([seed, index, 77])
    _, patient, lesions, _ = make_patient(index, seed)
    names = list(ACQUISITIONS)
    how = protocol(str(rng.choice(centres().index)), str(rng.choice(names)))
    signal = signals(how.times(), [(x.kind, x.strength) for x in lesions])
    signal = {name: float(value * np.exp(rng.normal(0, 0.5))) for name, value in signal.items()}
    signal["gm"] = signal["wm"] * float(np.exp(rng.normal(0, 0.12)))
    signal["csf"] = signal["wm"] * float(np.exp(rng.choice([-1, 1, 1]) * rng.uniform(0.25, 1.5)))
    signal["air"] = signal["air"] * float(rng.uniform(0, 1))
    for i in range(len(lesions)):  # near the cord's own
        for base in ("wm", "gm"):
            signal[f"lesion-{i}-{base}"] = signal[base] * float(np.exp(rng.normal(0, 0.25)))
    thick, depth = rng.uniform(2, 8), rng.uniform(0, 260)
    x, y = patient.centre(np.array([depth]))[0] + rng.normal(0, 4, 2)
    plan = ScanPlan((SLICES_EACH, 128, 128), (thick, 1.25, 1.25), (float(x), float(y), -float(depth)),
                    float(rng.normal(0, 8)))
    clean = render(patient, lesions, signal, plan, te_ms=float(rng.choice([0.0, 15.0])), flow=0.2)
    scanner = draw_scanner(rng, snr=float(np.exp(rng.uniform(2, 3.5))), bias=0.5, kmax=float(rng.uniform(0.6, 1)),
                           slices=SLICES_EACH, motion=bool(rng.uniform() < 0.1))
    mm = (np.arange(128) - 63.5) * 1.25
    picture = scan_image(clean.signal, scanner, mm, mm, noise=rng, pixel_mm=1.25)
    image = np.ascontiguousarray(picture.numpy().transpose(2, 1, 0))
    return Volume(image, plan.affine()), clean.cord.transpose(2, 1, 0)


def phantom_slices(patients: int, seed: int) -> tuple[Tensor, Tensor]:
    """Slices and cords on the coarse grid, each on a canvas of 204 mm: (N, 136, 136) float16 twice.

    Every patient has three of the nine acquisitions in turn and one scan of random contrast.
    """
    images, cords = [], []
    for index in range(patients):
        names = list(ACQUISITIONS)
        for k in range(4):
            if k < 3:
                stations = ("upper", "lower", "chest")
                scan = make_scan(index, seed, names[(3 * index + k) % len(names)], stations[(index // 3 + k) % 3],
                                 raters=())
                volume, cord = Volume(scan.image.astype(np.float32), scan.affine), scan.cord
            else:
                volume, cord = random_contrast_scan(index, seed)
            chosen = np.random.default_rng([seed, index, k, 78]).permutation(cord.shape[2])[:SLICES_EACH]
            picked = Volume(volume.data[:, :, chosen], volume.affine)
            images.append(_on_canvas(coarse_slices(picked)))
            cords.append(_on_canvas(coarse_slices(Volume(cord[:, :, chosen].astype(np.float32), volume.affine))))
    images = torch.cat(images)
    top = torch.quantile(images.flatten(1), 0.99, dim=1).clamp_min(1e-6)[:, None, None]
    return (images / top).clamp(-1, 8).half(), torch.cat(cords).half()


def _on_canvas(slices: Tensor) -> Tensor:
    height, width = slices.shape[1:]
    out = slices.new_zeros(len(slices), CANVAS, CANVAS)
    y, x = (CANVAS - height) // 2, (CANVAS - width) // 2
    ys, xs = max(-y, 0), max(-x, 0)
    inner = slices[:, ys : ys + CANVAS, xs : xs + CANVAS]
    y, x = max(y, 0), max(x, 0)
    out[:, y : y + inner.shape[1], x : x + inner.shape[2]] = inner
    return out


def draw_batch(images: Tensor, cords: Tensor, rng: np.random.Generator, field: int | None = None):
    """What a step learns from: slices (n, 1, h, w), evened out, and their cords (n, 1, h, w) from 0 to 1."""
    low, high, count, _, far = FIELDS[rng.choice(len(FIELDS), p=[f[3] for f in FIELDS]) if field is None else field]
    h, w = rng.integers(low, high + 1, 2)
    which = rng.integers(0, len(images), count)
    image, cord = images[which].float(), cords[which].float()
    place = torch.arange(CANVAS, dtype=torch.float32)
    mass = cord.sum(dim=(1, 2)).clamp_min(1e-6)
    centre = torch.stack([(cord.sum(1) @ place) / mass, (cord.sum(2) @ place) / mass], dim=1).numpy()  # x, y
    centre[cord.sum(dim=(1, 2)).numpy() < 1] = CANVAS / 2
    anywhere = rng.uniform(size=count) < (0.0 if far < 6 else 0.12)
    middle = centre + rng.uniform(-1, 1, (count, 2)) * np.where(anywhere, 45.0, min(far, 0.42 * min(h, w)))[:, None]
    angle, scale = np.deg2rad(rng.normal(0, 9, count)), np.exp(rng.normal(0, 0.15, count))
    squeeze, turn = np.exp(rng.normal(0, 0.07, count)), rng.choice([-1.0, 1.0], count)
    # One grid: output pixel (u, v) from the middle of the field -> canvas.
    theta = np.zeros((count, 2, 3), np.float32)
    c, s = np.cos(angle), np.sin(angle)
    for row, (a, b) in enumerate(((c, -s), (s, c))):
        theta[:, row, 0] = a * scale * squeeze * turn * w / CANVAS
        theta[:, row, 1] = b * scale / squeeze * h / CANVAS
        theta[:, row, 2] = (2 * middle[:, row] + 1) / CANVAS - 1
    grid = F.affine_grid(torch.from_numpy(theta), [count, 1, int(h), int(w)], align_corners=False)
    both = F.grid_sample(torch.stack([image, cord], 1), grid, align_corners=False)
    image, cord = both[:, 0], both[:, 1]
    if far > 6:
        image, cord = _without_cord(image, cord, rng)
    image = _alter(image, rng)
    return even_out(image)[:, None], cord[:, None]


def _fields(shape: tuple[int, int, int], sigma: float, rng: np.random.Generator) -> Tensor:
    """(n, h, w) smooth noise with spread 1 a slice."""
    n, h, w = shape
    noise = torch.from_numpy(rng.standard_normal((n, h + 8, w + 8), dtype=np.float32))
    radius = int(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    noise = F.pad(noise[:, None], (radius,) * 4, mode="replicate")
    noise = F.conv2d(F.conv2d(noise, kernel[..., None]), kernel[..., None, :])[:, 0, 4 : 4 + h, 4 : 4 + w]
    return noise / noise.flatten(1).std(dim=1).clamp_min(1e-6)[:, None, None]


def _without_cord(image: Tensor, cord: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Some slices lose their cord: covered by a piece from elsewhere, or the whole slice becomes another picture."""
    n, h, w = image.shape
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32), indexing="ij")
    for i in np.flatnonzero(rng.uniform(size=n) < 0.16):
        kind = rng.uniform()
        if kind < 0.5:
            mass = cord[i].sum()
            if mass < 1:
                continue
            cx, cy = float((cord[i] * x).sum() / mass), float((cord[i] * y).sum() / mass)
            radius = rng.uniform(9, 15) / SPACING_MM
            cover = (radius + 1 - torch.hypot(x - cx, y - cy)).clamp(0, 1)
            away = rng.uniform(2.2, 4, 2) * radius * rng.choice([-1, 1], 2) * [1, rng.choice([0, 1])]
            move = tuple(np.rint(away[::-1]).astype(int).tolist())
            other = torch.roll(image[i], move, (0, 1))
            if (torch.roll(cord[i], move, (0, 1)) * cover).sum() > 0.1:
                continue  # it came round: the cover would show the cord
            image[i] = image[i] * (1 - cover) + other * cover
        elif kind < 0.9:  # patches of a few greys in an outline, like an organ or a brain
            levels = _fields((1, h, w), rng.uniform(1.2, 6), rng)[0]
            edges = np.sort(rng.normal(0, 0.8, rng.integers(1, 5)))
            greys = torch.from_numpy(rng.uniform(0, 1.3, len(edges) + 1).astype(np.float32))
            picture = greys[torch.bucketize(levels, torch.from_numpy(edges.astype(np.float32)))]
            picture = picture + 0.05 * _fields((1, h, w), 1.0, rng)[0]
            cx, cy = rng.uniform(0.3, 0.7, 2) * [w, h]
            a, b = rng.uniform(0.3, 0.9, 2) * [w, h]
            image[i] = picture * (torch.hypot((x - cx) / a, (y - cy) / b) < rng.uniform(0.6, 3))
        else:
            image[i] = torch.from_numpy(np.abs(rng.normal(rng.choice([0.0, 1.0]), 0.4, (h, w))).astype(np.float32))
        cord[i] = 0
    return image, cord


def _alter(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Gamma, turned grey scale, coil fields, blur, noise, saturation; each by chance."""
    n, h, w = image.shape

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, 1, 1)).astype(np.float32))

    image = image.clamp(0, 8)
    image = (image + 1e-4) ** torch.exp(draw(-0.6, 0.6))
    turned = (draw(0, 1) < 0.12).float()
    image = turned * (1.6 - image).clamp_min(0) + (1 - turned) * image
    y = (torch.arange(h, dtype=torch.float32) - h / 2)[None, :, None] * SPACING_MM / 60
    x = (torch.arange(w, dtype=torch.float32) - w / 2)[None, None, :] * SPACING_MM / 60
    strong = draw(0, 1.0)
    image = image * torch.exp(strong * (draw(-1.5, 0.7) * y + draw(-0.8, 0.8) * x + draw(-0.6, 0.6) * (x * x + y * y)))
    soft = _fields((n, h, w), 3.0, rng) * draw(0, 0.12)
    image = image * torch.exp(soft)
    image = torch.where(draw(0, 1) < 0.1, torch.minimum(image, draw(0.5, 1.2)), image)
    blur = (draw(0, 1) < 0.3).float() * draw(0, 0.8)
    smooth = F.avg_pool2d(F.pad(image[:, None], (1,) * 4, mode="replicate"), 3, 1)[:, 0]
    image = image + blur * (smooth - image)
    noise = torch.from_numpy(rng.standard_normal((n, h, w), dtype=np.float32))
    return image + noise * draw(0, 0.1) * draw(0, 1)


def train_localiser(images: Tensor, cords: Tensor, *, seed: int, steps: int, filters: int, lr: float = LR) -> UNet:
    """Binary cross-entropy and Dice, Adam, one cosine; the same seed gives the same network on a CPU."""
    rng = np.random.default_rng([seed, 79])
    model = UNet(UNetConfig(depth=3, filters=filters, prior=0.03), seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    model.train()
    begin, recent = time.time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
        image, cord = draw_batch(images, cords, rng)
        logits = model(image)
        share = torch.sigmoid(logits)
        dice = 1 - (2 * (share * cord).sum() + 1) / (share.sum() + cord.sum() + 1)
        loss = F.binary_cross_entropy_with_logits(logits, cord) * 4 + dice
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {np.mean(recent[-100:]):.4f}, {time.time() - begin:.0f} s",
                  flush=True)
    return model.eval()


def main() -> None:
    """Phantoms, training, calibration, weights and card into one folder."""
    parser = argparse.ArgumentParser(description="Train msfilm's cord localiser on phantoms.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--filters", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=24, help="other patients, for the confidence")
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order: the same bytes on every machine of a kind
    begin = time.time()
    images, cords = phantom_slices(given.patients, COHORT + 2 * given.seed)
    print(f"{len(images)} slices in {time.time() - begin:.0f} s", flush=True)
    model = train_localiser(images, cords, seed=given.seed, steps=given.steps, filters=given.filters)
    network = Network(model)
    calibration = fit_confidence(lambda volume: cord_heat(volume, network), given.held_out, COHORT + 2 * given.seed + 1)
    print(calibration, flush=True)
    network.card = {
        "what": "colours axial slices, 1.5 mm a pixel, by share of spinal cord; msfilm.evaluate.localise joins them",
        "data": {"source": f"phantom, {given.patients} patients of seed {COHORT + 2 * given.seed}: nine acquisitions "
                 "and random contrasts", "slices": len(images), "spacing_mm": SPACING_MM},
        "settings": {"steps": given.steps, "lr": LR, "loss": "4 x binary cross-entropy + Dice", "seed": given.seed},
        "calibration": calibration,
        "command": f"python -m msfilm.evaluate.localise_train OUT --seed {given.seed} --patients {given.patients} "
                   f"--steps {given.steps} --filters {given.filters} --held-out {given.held_out}",
        "must_not_be_used_for": "diagnosis; brains; scans whose axial slices do not cross the cord; any scan unseen "
                                "where it says that it is unsure",
    }
    print(save_network(given.out, network), f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
