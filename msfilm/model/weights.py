"""How a network travels: a folder with weights.safetensors and network.json, hashes checked, no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from msfilm import __version__
from msfilm.errors import InputError, RunError, SettingError, suggest
from msfilm.files import atomic_path, read_json, sha256_file, write_json
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
    content = {"format": FORMAT, "msfilm": __version__, "network": described, "network_sha256": _sha256_json(described),
               "weights_sha256": hashlib.sha256(weights).hexdigest(), "card": network.card}
    file = path / "weights.safetensors"
    if file.exists():
        write_json(path / "network.json", {**content, "replaces_sha256": sha256_file(file)})
    write_bytes(file, weights)
    write_json(path / "network.json", content)
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
    try:
        if content["format"] != FORMAT:
            raise InputError("WEIGHTS-FORMAT", f"format {content['format']!r}; msfilm {__version__} reads {FORMAT}",
                             where=path / "network.json", mend="install the msfilm that wrote it")
        described = content["network"]
        if _sha256_json(described) != content["network_sha256"]:
            raise InputError("WEIGHTS-CORRUPT", "the description does not fit its SHA-256", where=path / "network.json",
                             mend="fetch or train the network again")
        model = UNet(UNetConfig(**described["model"]))
        encoder = encoder_from_dict(described["encoder"]) if described["encoder"] else None
        hashes = {content["weights_sha256"], content.get("replaces_sha256", content["weights_sha256"])}
        card = dict(content["card"])
    except (KeyError, TypeError, ValueError, AttributeError, SettingError) as error:
        raise InputError("WEIGHTS-CORRUPT", f"not a description of a network: {error!r}", where=path / "network.json",
                         mend="fetch or train the network again") from error
    tensors, digest, _ = read_tensors(path / "weights.safetensors")
    if digest not in hashes:
        raise InputError("WEIGHTS-CORRUPT", f"SHA-256 is {digest[:12]}.., network.json says "
                         f"{content['weights_sha256'][:12]}..", where=path / "weights.safetensors",
                         mend="fetch or train the network again")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError("WEIGHTS-CORRUPT", f"the weights do not fit the description: {error}", where=path,
                         mend="fetch or train the network again") from error
    return Network(model.eval(), encoder, card)


def list_networks() -> tuple[str, ...]:
    """Names of the networks that come with msfilm."""
    return tuple(sorted(file.parent.name for file in SHIPPED.glob("*/network.json")))


def tensor_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Named tensors as safetensors bytes, whatever their device and memory layout; the same tensors, the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    return safetensors_save(plain, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """A safetensors file's tensors (on the CPU), SHA-256 and metadata.

    Raises:
        InputError: WEIGHTS-MISSING or WEIGHTS-CORRUPT.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("WEIGHTS-MISSING", "the file is missing", where=path) from None
    try:
        tensors = safetensors_load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError("WEIGHTS-CORRUPT", f"not readable as safetensors: {error}", where=path,
                         mend="fetch or train the network again") from error
    return tensors, hashlib.sha256(content).hexdigest(), header.get("__metadata__", {})


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


def _sha256_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
