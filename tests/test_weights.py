"""Networks on disk: what is saved comes back, and anything else is refused by name."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import torch

from msfilm.errors import InputError, MsfilmError, RunError, SettingError
from msfilm.files import sha256_file
from msfilm.model import weights
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, list_networks, load_network, save_network

CARD = {"data": "phantom, 4 patients", "seed": 3, "scores": {"dice": 0.5}, "must_not_be_used_for": "patients"}


def network(seed=0):
    model = UNet(UNetConfig(depth=2, filters=2, n_codes=2, film=("down1", "logits")), seed=seed)
    model = model.to(memory_format=torch.channels_last)
    return Network(model, CategoryEncoder("contrast", ("T2star", "T2w")), dict(CARD))


def answer(net):
    return net.model.eval()(torch.ones(2, 1, 9, 7), net.code(["T2w", "T2star"]))


def same(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_saved_network_comes_back(tmp_path):
    net = network()
    folder = save_network(tmp_path / "a folder é", net)
    back = load_network(folder)
    assert back.model.config == net.model.config and back.encoder == net.encoder and back.card == CARD
    assert not back.model.training
    torch.testing.assert_close(answer(back), answer(net))
    assert same(back, net)
    assert sorted(p.name for p in folder.iterdir()) == ["network.json", "weights.safetensors"]


def test_a_plain_network_has_no_encoder(tmp_path):
    save_network(tmp_path, Network(UNet(UNetConfig(depth=1, filters=2))))
    back = load_network(tmp_path)
    assert back.encoder is None and back.code(["anything"]) is None


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in "ab":
        save_network(tmp_path / name, network())
    for file in ("weights.safetensors", "network.json"):
        assert sha256_file(tmp_path / "a" / file) == sha256_file(tmp_path / "b" / file)


@pytest.mark.parametrize("place", [0.001, 0.1, 0.5, 0.99])
def test_a_flipped_bit_in_the_weights_is_seen(tmp_path, place):
    file = save_network(tmp_path, network()) / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)
    with pytest.raises(InputError, match="WEIGHTS-CORRUPT"):
        load_network(tmp_path)


@pytest.mark.parametrize("change", [
    lambda c: c["network"]["encoder"]["categories"].reverse(), lambda c: c["network"]["model"].update(depth=3),
    lambda c: c.pop("weights_sha256"), lambda c: c.pop("network"), lambda c: c.update(card=None),
])
def test_a_changed_description_is_seen(tmp_path, change):
    file = save_network(tmp_path, network()) / "network.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="WEIGHTS-CORRUPT"):
        load_network(tmp_path)


def test_truncated_and_missing_files_are_named(tmp_path):
    save_network(tmp_path / "a", network())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "weights.safetensors").write_bytes((tmp_path / "a" / "weights.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"WEIGHTS-CORRUPT.*weights\.safetensors"):
        load_network(tmp_path / "a")
    (tmp_path / "b" / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="WEIGHTS-MISSING"):
        load_network(tmp_path / "b")
    (tmp_path / "b" / "network.json").unlink()
    with pytest.raises(InputError, match=r"WEIGHTS-MISSING.*network\.json"):
        load_network(tmp_path / "b")
    (tmp_path / "b" / "network.json").write_text("{")
    with pytest.raises(InputError, match="WEIGHTS-CORRUPT"):
        load_network(tmp_path / "b")


def test_another_format_is_refused(tmp_path):
    file = save_network(tmp_path, network()) / "network.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match=r"WEIGHTS-FORMAT.*format 2"):
        load_network(tmp_path)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_crash_at_any_step_of_replacing_leaves_a_network_that_loads(tmp_path, monkeypatch, stop_at):
    """Three files are written when a network replaces another; a crash may come before each."""
    old, new = network(seed=1), network(seed=2)
    save_network(tmp_path, old)
    count = 0

    def crash_before(write):
        def wrapped(*args):
            nonlocal count
            count += 1
            if count == stop_at:
                raise KeyboardInterrupt
            return write(*args)
        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_bytes", crash_before(weights.write_bytes))
        with pytest.raises(KeyboardInterrupt):
            save_network(tmp_path, new)
    assert same(load_network(tmp_path), new if stop_at == 3 else old)
    save_network(tmp_path, new)
    assert "replaces_sha256" not in json.loads((tmp_path / "network.json").read_text())


def test_a_disk_that_refuses_is_named_and_the_old_network_stays(tmp_path, monkeypatch):
    save_network(tmp_path, network(seed=1))

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(RunError, match=r"WEIGHTS-WRITE.*No space left"):
            save_network(tmp_path, network(seed=2))
    assert same(load_network(tmp_path), network(seed=1))
    assert not list(tmp_path.glob(".tmp*"))


def test_an_unknown_name_gives_a_suggestion_and_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    save_network(tmp_path / "film-contrast-small", network())
    save_network(tmp_path / "unet-small", network())
    (tmp_path / "not-a-network").mkdir()
    assert list_networks() == ("film-contrast-small", "unet-small")
    assert load_network("unet-small").card == CARD
    with pytest.raises(SettingError, match=r"NETWORK-UNKNOWN.*did you mean 'film-contrast-small'.*unet-small"):
        load_network("film-contrast-smal")
    with pytest.raises(SettingError, match="NETWORK-UNKNOWN"):
        load_network(tmp_path / "no such folder")


def test_every_shipped_network_loads():
    for name in list_networks():
        assert load_network(name).card["must_not_be_used_for"]


def test_codes_come_from_a_table_or_a_list():
    net = network()
    expected = [[0, 1], [1, 0]]
    assert net.code(["T2w", "T2star"]).tolist() == expected
    assert net.code(pd.DataFrame({"contrast": ["T2w", "T2star"], "centre": ["a", "b"]})).tolist() == expected
    with pytest.raises(InputError, match=r"ENCODER-COLUMN.*'contrast'"):
        net.code(pd.DataFrame({"contrasts": ["T2w"]}))
    with pytest.raises(MsfilmError, match="CONTRAST-UNKNOWN"):
        net.code(["T1w"])
