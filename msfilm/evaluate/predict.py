"""Prediction: slices to probabilities, and probabilities back on the scan's own grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from msfilm.data.crop import uncrop
from msfilm.data.slices import SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.model.weights import Network, tensor_bytes
from msfilm.train.state import resolve_device

__all__ = ["dropout_layers", "predict_images", "predict_slices", "predict_volumes", "weights_sha256"]

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def dropout_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that drop something in training (those set to 0 aside)."""
    return [layer for layer in model.modules() if isinstance(layer, _DROPOUT) and layer.p > 0]


@contextmanager
def _predicting(model: nn.Module, device: torch.device, dropout: bool) -> Iterator[None]:
    """The model on ``device`` in evaluation mode, dropout layers aside where asked; then as it was, part by part."""
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.to(device=device, memory_format=torch.channels_last).eval()
        for layer in dropout_layers(model) if dropout else ():
            layer.training = True
        yield
    finally:
        model.to(home)
        for part, training in modes:
            part.training = training


def predict_images(network: Network, images: np.ndarray, z: torch.Tensor | None, *, device: str | torch.device = "auto",
                   batch_size: int | None = None, precision: str = "fp32", dropout: bool = False) -> np.ndarray:
    """Images (N, 1, H, W) and codes (N, M) -> (N, 1, H, W) float32 probabilities; the model is left as it was.

    As :func:`predict_slices`, for images without a table.
    """
    if precision not in _PRECISIONS:
        raise SettingError("PRECISION-UNKNOWN", f"precision={precision!r}", mend=suggest(precision, _PRECISIONS))
    device, model = resolve_device(str(device)), network.model
    if batch_size is None:   # what fits a processor's cache is 2.6 times as fast there
        batch_size = 32 if device.type == "cpu" else 256
    if batch_size < 1:
        raise SettingError("BATCH-SIZE", f"batch_size={batch_size}", mend="use 1 or more")
    out = np.empty(images.shape, dtype=np.float32)
    # TF32 would cut fp32 convolutions to 10 bits on a GPU, and CPU and GPU would no longer agree.
    with (_predicting(model, device, dropout), torch.inference_mode(),
          torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
          torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            batch = torch.from_numpy(np.ascontiguousarray(images[part], dtype=np.float32)).to(device)
            logits = model(batch, None if z is None else z[part].to(device))
            out[part] = torch.sigmoid(logits.float()).cpu().numpy()
    return out


def predict_slices(network: Network, slices: SliceSet, *, device: str | torch.device = "auto",
                   batch_size: int | None = None, precision: str = "fp32", dropout: bool = False) -> np.ndarray:
    """Lesion probability of every pixel of every slice.

    Args:
        network: with its encoder, which makes z from ``slices.described()``.
        slices: N of them.
        device: 'auto' takes a GPU where there is one.
        batch_size: slices at once; by default 32 on a CPU and 256 on a GPU.
        precision: 'fp32', or 'bf16' where the device has it.
        dropout: leave dropout on, which draws from torch's global generator; ``uncertainty.mc_dropout`` seeds it.

    Returns:
        (N, 1, H, W) float32.

    Raises:
        SettingError: CONTRAST-UNKNOWN (from the encoder), TRAIN-DEVICE, PRECISION-UNKNOWN, BATCH-SIZE.
    """
    return predict_images(network, slices.images, network.code(slices.described()), device=device,
                          batch_size=batch_size, precision=precision, dropout=dropout)


def predict_volumes(network: Network, slices: SliceSet, **settings: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each volume's name and probabilities (X, Y, Z) float32 on the scan's own canonical grid, one at a time.

    Voxels that no crop covers are 0. ``settings`` go to :func:`predict_slices`.
    """
    probabilities = predict_slices(network, slices, **settings)[:, 0]
    names = slices.table["volume"].to_numpy()
    for volume in slices.volumes.index:
        yield volume, uncrop(probabilities[names == volume], slices.grid(volume))


def weights_sha256(network: Network) -> str:
    """SHA-256 of the weights as a run's weights.safetensors holds them."""
    return hashlib.sha256(tensor_bytes(network.model.state_dict())).hexdigest()
