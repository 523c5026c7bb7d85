"""How a network travels: a folder with weights.safetensors and network.json, hashes checked, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from msfilm import __version__
from msfilm.errors import InputError, RunError, SettingError, suggest
from msfilm.files import atomic_path, json_bytes, read_json, sha256_file, sha256_json
from msfilm.model.encode import Encoder, encoder_from_dict
from msfilm.model.unet import UNet, UNetConfig

__all__ = ["SHIPPED", "Network", "list_networks", "load_network", "read_tensors", "save_network", "tensor_bytes",
           "write_bytes"]

SHIPPED = Path(__file__).resolve().parents[1] / "weights"   # msfilm/weights/<name>/: the networks in the package
FORMAT = 1


@dataclass
class Network:
    """What travels: the model, how z is made for it, and its card.

    The card is free: data, settings, seed, scores, must_not_be_used_for, command.
    """

    model: UNet
    encoder: Encoder | None = None
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def conditioning(self) -> str:
        """What z is made of: 'none', 'contrast', 'contrast+rater' .."""
        return self.encoder.name if self.encoder else "none"

    def code(self, values: Any) -> Tensor | None:
        """z (N, M) for a table with the encoder's columns (``SliceSet.described`` has them all), or for a list of
        values where there is one column only; None for a plain network.

        Raises:
            SettingError: CONTRAST-UNKNOWN.
            InputError: ENCODER-COLUMN, the table lacks a column.
        """
        return None if self.encoder is None else self.encoder.encode(values)


def save_network(path: str | Path, network: Network) -> Path:
    """Write ``network`` into the folder ``path``; other files there stay. Returns the folder.

    Two files cannot change in one step. So network.json goes first and names the old weights' hash beside the new one,
    then the weights, then network.json without the old hash: a crash in between leaves a folder that loads.
    """
    path = Path(path)
    weights = tensor_bytes(network.model.state_dict())
    described = {"model": asdict(network.model.config), "encoder": network.encoder and network.encoder.to_dict()}
    content = {"format": FORMAT, "msfilm": __version__, "network": described, "network_sha256": sha256_json(described),
               "weights_sha256": hashlib.sha256(weights).hexdigest(), "card": network.card,
               "card_sha256": sha256_json(network.card)}
    file = path / "weights.safetensors"
    if file.exists():
        write_bytes(path / "network.json", json_bytes({**content, "replaces_sha256": sha256_file(file)}))
    write_bytes(file, weights)
    write_bytes(path / "network.json", json_bytes(content))
    return path


def load_network(path_or_name: str | Path) -> Network:
    """Read a network from a folder (a run, for instance), or by the name of one that comes with msfilm; in eval mode.

    Raises:
        SettingError: NETWORK-UNKNOWN, neither a folder nor a name in ``list_networks()``.
        InputError: WEIGHTS-MISSING, WEIGHTS-FORMAT (of another msfilm), WEIGHTS-CORRUPT (a hash does not fit).
    """
    path = Path(path_or_name)
    if not path.is_dir():
        path = SHIPPED / str(path_or_name)
        if str(path_or_name) not in list_networks():
            raise SettingError("NETWORK-UNKNOWN", f"'{path_or_name}' is neither a folder nor a network that comes with "
                               "msfilm", mend=suggest(path_or_name, list_networks()))
    if not (path / "network.json").exists():
        raise InputError("WEIGHTS-MISSING", "there is no network.json in this folder", where=path,
                         mend="a run has one as soon as its first epoch is over")
    content = read_json(path / "network.json", code="WEIGHTS-CORRUPT")
    again = "fetch or train the network again"
    try:
        if content["format"] != FORMAT:
            raise InputError("WEIGHTS-FORMAT", f"format {content['format']!r}; msfilm {__version__} reads {FORMAT}",
                             where=path / "network.json", mend="install the msfilm that wrote it")
        described, card = content["network"], dict(content["card"])
        for name, part in (("network", described), ("card", card)):   # a card's hash came later
            if sha256_json(part) != (content[f"{name}_sha256"] if name == "network" else
                                      content.get("card_sha256", sha256_json(part))):
                raise InputError("WEIGHTS-CORRUPT", f"the {'description' if name == 'network' else name} does not fit "
                                 "its SHA-256", where=path / "network.json", mend=again)
        config = UNetConfig(**described["model"])
        encoder = encoder_from_dict(described["encoder"]) if described["encoder"] else None
        hashes = {content["weights_sha256"], content.get("replaces_sha256", content["weights_sha256"])}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SettingError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("WEIGHTS-CORRUPT", f"not a description of a network: {error!r}", where=path / "network.json",
                         mend=again) from error
    tensors, _, _ = read_tensors(path / "weights.safetensors", hashes)
    there = sum(tensor.numel() for tensor in tensors.values())
    if _least_numbers(config) > there:   # seen before so large a network is made
        raise InputError("WEIGHTS-CORRUPT", f"{there} weights are too few for the network described", where=path,
                         mend=again)
    model = UNet(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError("WEIGHTS-CORRUPT", f"the weights do not fit the description: {error}", where=path,
                         mend=again) from error
    return Network(model.eval(), encoder, card)


def _least_numbers(config: UNetConfig) -> int:
    """Weights of the bottleneck, and of what z goes into first: the network has more."""
    widest, m, width = config.filters * 2 ** (config.depth - 1), config.n_codes, config.film_width
    trunk = m * width + width**2 if m and config.modulation == "film" and config.film_form == "residual" else m
    return 18 * widest**2 + trunk


def list_networks() -> tuple[str, ...]:
    """Names of the networks that come with msfilm."""
    return tuple(sorted(file.parent.name for file in SHIPPED.glob("*/network.json")))


def tensor_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Named tensors as safetensors bytes, whatever their device and memory layout; the same tensors, the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    return safetensors_save(plain, metadata)


def read_tensors(path: Path, hashes: Collection[str] | None = None) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """A safetensors file's tensors (on the CPU), SHA-256 and metadata.

    Args:
        path: the file.
        hashes: those that it may have; looked at before anything is made of the bytes.

    Raises:
        InputError: WEIGHTS-MISSING or WEIGHTS-CORRUPT.
    """
    again = "fetch or train the network again"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("WEIGHTS-MISSING", "the file is missing", where=path) from None
    except OSError as error:
        raise InputError("WEIGHTS-MISSING", f"cannot be read: {error.strerror or error}", where=path) from error
    digest = hashlib.sha256(content).hexdigest()
    if hashes is not None and digest not in hashes:
        raise InputError("WEIGHTS-CORRUPT", f"SHA-256 is {digest[:12]}.., network.json says "
                         f"{' or '.join(sorted(str(one)[:12] for one in hashes))}..", where=path, mend=again)
    try:
        tensors = safetensors_load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, digest, header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            RecursionError) as error:
        raise InputError("WEIGHTS-CORRUPT", f"not readable as safetensors: {error}", where=path, mend=again) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically.

    Raises:
        RunError: WEIGHTS-WRITE, a full or read-only disk; an older file stays as it was.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise RunError("WEIGHTS-WRITE", f"cannot write {len(content)} bytes: {error.strerror or error}", where=path,
                       mend="make room on the disk, or choose another folder") from error
