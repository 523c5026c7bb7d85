"""Training: the loop itself, flat and whole."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from msfilm.data.slices import SliceSet
from msfilm.data.split import LEAKY, sides_of
from msfilm.errors import RunError
from msfilm.files import made_by
from msfilm.model.encode import make_encoder
from msfilm.model.unet import UNet
from msfilm.model.weights import Network, load_network, save_network
from msfilm.train.augment import augment
from msfilm.train.config import PRECISIONS, SCHEDULES, TrainConfig, learning_rate
from msfilm.train.loss import LOSSES
from msfilm.train.state import (
    check_kept,
    epoch_rng,
    load_state,
    open_run,
    resolve_device,
    resolve_precision,
    run_key,
    save_state,
    write_history,
)
from msfilm.train.targets import validation_mask
from msfilm.train.tensors import (
    SideTensors,
    augmented_once,
    gather,
    refuse_empty,
    sides_hash,
    slices_hash,
    trained_on,
    usable_rows,
    volume_dice,
)

__all__ = ["PRECISIONS", "SCHEDULES", "RunResult", "TrainConfig", "fit", "learning_rate", "load_run"]

@dataclass(frozen=True)
class RunResult:
    """What a run came to; the rest is in its folder."""

    folder: Path
    best_epoch: int
    best_val_dice: float
    epochs: int        # trained, with those before a resume
    seconds: float


def fit(slices: SliceSet, config: TrainConfig, run: str | Path, *, resume: bool = False, progress: bool = True,
        on_epoch: Callable[[dict[str, float]], None] | None = None) -> RunResult:
    """Train a network on the train side of a split by patient, keep the weights of the best epoch by its val side.

    Everything lies on the device, augmentation runs there, and nothing in a step waits for it. The run's folder gets
    config.json, split.csv, history.csv, the best weights (weights.safetensors, network.json) and, each epoch, a
    checkpoint. Resumed on a CPU in fp32 with as many threads, a run ends with the same bytes as
    one that never stopped.

    Args:
        slices: the data.
        config: the settings.
        run: a new folder.
        resume: go on with the run in the folder.
        progress: show a bar over the epochs.
        on_epoch: called after each epoch with its row of history.csv.

    Warns:
        UserWarning: validation Dice stayed 0.

    Raises:
        RunError: RUN-BUSY, RUN-EXISTS, RUN-CONFIG, RUN-STATE, RUN-WRITE, TRAIN-EMPTY, TRAIN-NO-LESION, TRAIN-NAN,
            TRAIN-MEMORY, WEIGHTS-WRITE. Whatever it is, the folder keeps the last good epoch, and ``resume`` goes on
            from there.
        SettingError: MASK-UNKNOWN, CONTRAST-UNKNOWN, CENTRE-UNKNOWN, TRAIN-DEVICE.
        InputError: SPLIT-LEAK, SPLIT-FEW, WEIGHTS-CORRUPT.
    """
    run, device = Path(run), resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    # Patients are split before anything is left out, so that runs on one contrast or both have the same test patients.
    usable = usable_rows(slices, config.mask, config.contrasts, config.without_centres)
    split, side = sides_of(slices, unit=config.split_unit, fractions=config.fractions, seed=config.split_seed)
    for name in ("train", "val"):
        refuse_empty(usable & (side == name), config.mask, name, slices.table["patient"][side == name])
    encoder = make_encoder(config.conditioning, slices.described()[usable & (side == "train")])
    with _memory_named(config):
        train = gather(slices, usable & (side == "train"), config.mask, encoder, device, "train")
        val = gather(slices, usable & (side == "val"), validation_mask(config.mask), encoder, device, "val")
        _refuse_dark(val)
        model = UNet(config.unet(encoder.n_codes if encoder else 0), seed=config.seed)
        model = model.to(device=device, memory_format=torch.channels_last)
    film = list(model.generator.parameters()) if model.generator else []
    optimizer = torch.optim.Adam([{"params": list(model.blocks.parameters())},
                                  {"params": film, "weight_decay": config.film_weight_decay}], lr=config.lr)
    shares = (1.0, config.film_lr)
    loss_function = LOSSES[config.loss]

    leaky = {"split": LEAKY} if config.split_unit == "slice" else {}
    settings = {"config": config.as_dict(), "precision": precision, "device": str(device), "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "slices": dict(slices.meta), "slices_sha256": slices_hash(slices, config.mask),
                "sides_sha256": sides_hash(train, val),
                "counts": {"train_slices": len(train), "val_slices": len(val), "train_volumes": len(train.names),
                           "val_volumes": len(val.names)}, "made_by": made_by()} | leaky
    key = run_key(settings)
    steps = max(1, len(train) // config.batch_size)   # the order changes each epoch, so every slice gets its turn
    spacing = float(slices.meta.get("spacing_mm", 0.75))
    with open_run(run, settings, split, resume=resume), _memory_named(config), tqdm(
            total=config.epochs, disable=not progress, desc=run.name, unit="epoch") as bar:
        history = load_state(run / "state.safetensors", model, optimizer, key)
        check_kept(run, history)
        bar.initial = bar.n = len(history)
        if config.frozen_augmentation:
            train = augmented_once(train, config, spacing)
        for epoch in range(len(history) + 1, config.epochs + 1):
            if _stands_still(history, config.patience):
                break
            started = time.perf_counter()
            model.train()
            losses = torch.zeros(steps, device=device)
            with epoch_rng(config.seed, epoch, device) as generator:
                order = torch.randperm(len(train), generator=generator, device=device)
                for step in range(steps):
                    rows = order[step * config.batch_size : (step + 1) * config.batch_size]  # (N,)
                    images, targets, codes = train.batch(rows, generator)                    # (N,1,H,W) twice, (N,M)
                    if not config.frozen_augmentation:
                        images, targets = augment(images, targets, config.augment, generator, spacing_mm=spacing)
                    with autocast:
                        logits = model(images, codes)                                        # (N,1,H,W)
                    loss = loss_function(logits, targets)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    for group, share in zip(optimizer.param_groups, shares, strict=True):
                        group["lr"] = share * learning_rate(config, history, epoch - 1 + step / steps)
                    optimizer.step()
                    losses[step] = loss.detach()     # stays on the device: looked at once an epoch
                _refuse_nan(losses, model, order, train, epoch, config)
                score = volume_dice(model, val, autocast)

            row = {"epoch": epoch, "train_loss": float(losses.mean()), "val_dice": score,
                   "lr": learning_rate(config, history, epoch - 1), "seconds": time.perf_counter() - started}
            history.append(row)
            if _best(history) is row:
                card = {"data": settings["slices"] | trained_on(slices, usable & (side == "train"))
                        | settings["counts"] | {"sha256": settings["slices_sha256"]},
                        "settings": settings["config"], "seed": config.seed, "precision": precision, "epoch": epoch,
                        "scores": {"val_dice": score}, "must_not_be_used_for": "any decision about a patient",
                        "made_by": settings["made_by"]} | leaky
                save_network(run, Network(model, encoder, card))
            save_state(run / "state.safetensors", model, optimizer, history, key)   # after it, resuming skips it
            write_history(run, history)
            bar.update()
            bar.set_postfix(val_dice=f"{score:.3f}", best=f"{_best(history)['val_dice']:.3f}")
            if on_epoch is not None:
                on_epoch(row)

        write_history(run, history)   # a run killed between its checkpoint and its history gets the row here
    best = _best(history)
    if best["val_dice"] <= 0:
        count = len(history)
        warnings.warn(f"validation Dice stayed 0 in {count} of {count} epochs of {run.name}, so its network is that of "
                      "epoch 1, which marks no lesion or none rightly: train longer, or with another loss or lr",
                      stacklevel=2)
    return RunResult(run, int(best["epoch"]), best["val_dice"], len(history), sum(row["seconds"] for row in history))


def load_run(folder: str | Path) -> Network:
    """The network of a run's best epoch."""
    return load_network(folder)


def _best(history: list[dict[str, float]]) -> dict[str, float]:
    return max(history, key=lambda row: row["val_dice"])   # the first of equals


def _stands_still(history: list[dict[str, float]], patience: int) -> bool:
    return bool(patience and history and len(history) - _best(history)["epoch"] >= patience)


def _refuse_dark(side: SideTensors) -> None:
    """Validation that met a pixel that is no number would count it as 'no lesion', and nobody would hear of it."""
    dark = (~torch.isfinite(side.images).flatten(1).all(1)).nonzero().flatten()
    if len(dark):
        raise RunError("TRAIN-NAN", f"pixels that are no numbers in {', '.join(side.names_of(dark))}, of the val side",
                       mend="look at those volumes")


def _refuse_nan(losses: torch.Tensor, model: UNet, order: torch.Tensor, train: SideTensors, epoch: int,
                config: TrainConfig) -> None:
    """One look at the whole epoch's losses, and at the weights after it; if one is not finite, name its batch."""
    wrong = (~torch.isfinite(losses)).nonzero()
    spoilt = [name for name, x in model.state_dict().items() if x.is_floating_point() and not torch.isfinite(x).all()]
    if not len(wrong) and not spoilt:
        return
    step = int(wrong[0]) if len(wrong) else len(losses) - 1   # a loss after a spoilt step would not be finite
    what = f"the loss became {float(losses[step])}" if len(wrong) else f"weights became no numbers ({spoilt[0]})"
    rows = order[step * config.batch_size : (step + 1) * config.batch_size]
    dark = rows[~torch.isfinite(train.images[rows]).flatten(1).all(1)]
    fact = f"pixels that are no numbers in {', '.join(train.names_of(dark))}" if len(dark) else "all pixels are numbers"
    raise RunError("TRAIN-NAN", f"{what} in epoch {epoch}, step {step + 1} of {len(losses)}; the batch: "
                   f"{', '.join(train.names_of(rows))}; {fact}; the epochs before are kept",
                   mend="look at those volumes" if len(dark) else "lower lr, or use precision 'fp32'")


class _memory_named:
    """Out of memory: say which setting to lower."""

    def __init__(self, config: TrainConfig):
        self.config = config

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        # torch has no type of its own for a CPU that is out of memory
        on_cpu = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
            words in str(error) for words in ("not enough memory", "can't allocate memory", "annot allocate memory")))
        if on_gpu or on_cpu:
            raise RunError("TRAIN-MEMORY", f"out of {'GPU ' if on_gpu else ''}memory: {error or type(error).__name__}",
                           mend=f"lower batch_size (now {self.config.batch_size}), filters ({self.config.filters}) or "
                           "depth, or train on fewer slices; then start anew, or resume with more memory") from error
