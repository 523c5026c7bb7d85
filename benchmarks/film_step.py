"""What FiLM costs in a training step: the same U-Net without it, with it, and with it in the plain two passes.

    python benchmarks/film_step.py              writes benchmarks/results/film-step.json

Forward, backward and Adam on 32 slices of 48 x 48 at depth 3. The three take turns, step by step in one process, so
that whatever else the machine does meets all of them; ratios are medians over the turns. Nothing else should run.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from unittest import mock

import psutil
import torch

from msfilm.files import made_by, write_json
from msfilm.model import unet
from msfilm.model.unet import UNet, UNetConfig
from msfilm.train.loss import dice_loss

BATCH, SIZE, WARM_UP = 32, 48, 4


def two_passes(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """FiLM as it is usually written."""
    return gamma.to(x.dtype) * x + beta.to(x.dtype)


def case(filters: int, precision: str, turns: int) -> dict:
    """Median seconds of a step of each network, and the median ratios to the plain one."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 1, SIZE, SIZE, generator=random)
    targets = (torch.rand(BATCH, 1, SIZE, SIZE, generator=random) > 0.97).float()
    codes = torch.eye(2)[torch.arange(BATCH) % 2]
    networks = {}
    for name, n_codes in (("plain", 0), ("film", 2), ("film, two passes", 2)):
        model = UNet(UNetConfig(filters=filters, n_codes=n_codes)).to(memory_format=torch.channels_last).train()
        networks[name] = model, torch.optim.Adam(model.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(WARM_UP + turns):
        for name, (model, optimizer) in networks.items():
            with mock.patch.object(unet, "film", two_passes if name.endswith("passes") else unet.film):
                started = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                    logits = model(images, codes if name != "plain" else None)
                loss = dice_loss(logits, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                seconds[name].append(time.perf_counter() - started)
    kept = {name: times[WARM_UP:] for name, times in seconds.items()}
    found = {"filters": filters, "precision": precision, "turns": turns,
             "slices_per_second": {name: round(BATCH / statistics.median(times), 1) for name, times in kept.items()}}
    for name in ("film", "film, two passes"):
        ratios = [a / b for a, b in zip(kept[name], kept["plain"], strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        found[name] = {"overhead": round(statistics.median(ratios) - 1, 4),
                       "quartiles": [round(quarters[0] - 1, 4), round(quarters[2] - 1, 4)]}
    return found


def main() -> None:
    """Run the cases and write what they gave."""
    rows = []
    for filters, precision, turns in ((16, "bf16", 80), (16, "fp32", 60), (64, "bf16", 20), (64, "fp32", 15)):
        rows.append(case(filters, precision, turns))
        print(rows[-1])
    write_json(Path(__file__).parent / "results" / "film-step.json",
               {"rows": rows, "threads": torch.get_num_threads(), "load_before": round(psutil.getloadavg()[0], 2),
                "made_by": made_by("python benchmarks/film_step.py")})


if __name__ == "__main__":
    main()
