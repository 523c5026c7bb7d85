"""Training: it learns; same seed, same bytes; a resumed run is the run that never stopped; faults are named."""

from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.data.split import sides_of, split_patients
from msfilm.errors import InputError, MsfilmError, RunError, SettingError
from msfilm.files import made_by, sha256_array, sha256_file
from msfilm.model.unet import UNet
from msfilm.train import loop, runs, state
from msfilm.train.augment import NO_AUGMENT, AugmentConfig
from msfilm.train.config import named_config, with_settings
from msfilm.train.loop import TrainConfig, fit, learning_rate, load_run
from msfilm.train.runs import run_name
from msfilm.train.state import epoch_rng, load_state, resolve_device, resolve_precision, save_state
from msfilm.train.tensors import gather, volume_dice

SIZE = 17
CONFIG = TrainConfig(depth=2, filters=4, dropout=0.2, epochs=4, batch_size=8, lr=1e-2, precision="fp32", device="cpu",
                     conditioning="contrast", augment=AugmentConfig(mask_morphology_p=0.2), patience=0)


def toy(patients=10, slices=4, seed=0):
    """Bright squares on noise, in two contrasts: T2star shows them dark."""
    rng = np.random.default_rng(seed)
    images, masks, table, volumes, scans = [], [], [], [], {}
    for p in range(patients):
        for contrast in ("T2w", "T2star"):
            name = f"sub-{p:03d}_{contrast}"
            whose = {"volume": name, "patient": f"sub-{p:03d}", "centre": f"centre-{p % 3}", "contrast": contrast}
            for z in range(slices):
                mask = np.zeros((SIZE, SIZE), np.uint8)
                if z:   # the first slice of each volume has no lesion
                    y, x = rng.integers(3, SIZE - 7, 2)
                    mask[y : y + 4, x : x + 4] = 1
                image = 1 + 0.1 * rng.normal(size=mask.shape) + (0.8 if contrast == "T2w" else -0.8) * mask
                images.append(image.astype(np.float16))
                masks.append(mask)
                table.append(whose | {"z": z, "centre_x": 8.0, "centre_y": 8.0, "spacing_mm": 0.75, "padded": 0.0,
                                      "rater": f"r{p % 3}", "slice_hash": sha256_array(images[-1])[:32]})
            volumes.append(whose | {"image_hash": name})
            empty = np.zeros(0, np.int32)
            scans[name] = ScanMasks((2, 2, 2), np.eye(4), {"cord": empty}, empty.astype(np.float32))
    return SliceSet(np.stack(images)[:, None], {"rater-1": np.stack(masks)[:, None]}, pd.DataFrame(table),
                    pd.DataFrame(volumes).set_index("volume"), scans,
                    {"size": SIZE, "spacing_mm": 0.75, "source": "toy"})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small are not worth a second thread, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices():
    return toy()


def run_fit(slices, config, folder, **kind):
    return fit(slices, config, folder, progress=False, **kind)


def history_of(folder):
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def reference(slices, tmp_path_factory):
    """The run that never stopped."""
    return run_fit(slices, CONFIG, tmp_path_factory.mktemp("runs") / "reference")


def test_a_run_learns_and_its_folder_is_complete(slices, tmp_path):
    seen = []
    config = replace(CONFIG, epochs=12, augment=NO_AUGMENT, dropout=0.0)
    result = run_fit(slices, config, tmp_path / "a run", on_epoch=seen.append)
    assert result.best_val_dice > 0.8 and result.epochs == 12 and result.folder == tmp_path / "a run"
    names = {"config.json", "split.csv", "history.csv", "weights.safetensors", "network.json", "state.safetensors"}
    assert {p.name for p in result.folder.iterdir()} == names
    history = pd.read_csv(result.folder / "history.csv")
    assert list(history.columns) == ["epoch", "train_loss", "val_dice", "lr", "seconds"]
    assert [row["epoch"] for row in seen] == history["epoch"].tolist() == list(range(1, 13))
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert result.best_val_dice == history["val_dice"].max()
    assert result.best_epoch == history["val_dice"].idxmax() + 1
    assert result.seconds == pytest.approx(history["seconds"].sum())

    written = json.loads((result.folder / "config.json").read_text())
    assert TrainConfig.from_dict(written["config"]) == config
    assert (written["device"], written["precision"]) == ("cpu", "fp32")
    assert written["slices"]["source"] == "toy" and written["made_by"]["version"]
    split = pd.read_csv(result.folder / "split.csv")
    assert list(split.columns) == ["patient", "side"]
    assert split["side"].value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}


def test_the_saved_network_is_the_best_epochs(slices, tmp_path):
    """Its Dice on the val side is the one that history.csv gives for that epoch."""
    result = run_fit(slices, CONFIG, tmp_path / "run")
    network = load_run(result.folder)
    assert network.encoder.categories == ("T2star", "T2w") and network.card["epoch"] == result.best_epoch
    split = pd.read_csv(result.folder / "split.csv", index_col="patient")["side"]
    rows = slices.table["patient"].map(split).to_numpy() == "val"
    val = gather(slices, rows, "rater-1", network.encoder, torch.device("cpu"), "val")
    model = network.model.to(memory_format=torch.channels_last)
    score = volume_dice(model, val, torch.autocast("cpu", enabled=False))
    assert score == pytest.approx(result.best_val_dice, abs=1e-9)


def test_the_card_says_what_was_trained_on(slices, tmp_path):
    """Contrasts and voxel sizes of the train side, by which ``segment`` warns; those of other volumes do not count."""
    config = replace(CONFIG, epochs=1, contrasts=("T2w",), conditioning="none")
    split = split_patients(slices.volumes, fractions=config.fractions, seed=config.split_seed)
    scans = {}
    for i, (name, row) in enumerate(slices.volumes.iterrows()):
        counts = row["contrast"] == "T2w" and split[row["patient"]] == "train"
        voxel = (0.5 + 0.01 * i, 0.4, 3.0 + 0.1 * i) if counts else (9.0, 0.1, 9.0)
        scans[name] = replace(slices.scans[name], affine=np.diag([-voxel[0], voxel[1], voxel[2], 1.0]))
    where = [i for i, affine in enumerate(scan.affine for scan in scans.values()) if affine[0, 0] > -9]
    assert len(where) == 6
    result = run_fit(replace(slices, scans=scans), config, tmp_path / "run")
    data = load_run(result.folder).card["data"]
    assert data["contrasts"] == ["T2w"]
    assert data["voxel_mm"]["in_plane"] == pytest.approx([0.4, 0.5 + 0.01 * max(where)])
    assert data["voxel_mm"]["slice"] == pytest.approx([3 + 0.1 * min(where), 3 + 0.1 * max(where)])


@pytest.mark.parametrize(("argv", "words"), [
    (["/opt/some where/bin/msfilm", "train", "slices", "/home/me/my run", "--lr", "1e-3", "--out=/home/me/x", "a/b"],
     "msfilm train slices my run --lr 1e-3 --out=x a/b"),
    (["/home/me/msfilm/__main__.py", "train", "C:\\me\\run"], "msfilm train run"),
    (["/usr/lib/ipykernel_launcher.py", "-f", "/home/me/.local/kernel-1.json"], "a Jupyter notebook"), ([""], "python"),
])
def test_a_card_names_the_command_and_no_folder_of_this_machine(slices, tmp_path, monkeypatch, argv, words):
    monkeypatch.setattr(sys, "argv", argv)
    assert made_by()["command"] == words and made_by("by hand")["command"] == "by hand"
    result = run_fit(slices, replace(CONFIG, epochs=1), tmp_path / "run")
    assert load_run(result.folder).card["made_by"]["command"] == words
    assert "/home" not in (result.folder / "network.json").read_text()


def test_the_name_of_a_run_changes_with_what_changes_the_run(slices, monkeypatch):
    name = run_name(CONFIG, slices)
    assert name == run_name(TrainConfig.from_dict(json.loads(json.dumps(asdict(CONFIG)))), toy())
    assert name.startswith("contrast-") and len(name) == len("contrast-") + 8
    assert run_name(replace(CONFIG, device="auto"), slices) == name, "a run may move to another machine"
    others = [replace(CONFIG, **change) for change in (
        {"conditioning": "none"}, {"seed": 1}, {"epochs": 5}, {"precision": "bf16"}, {"contrasts": ("T2w",)},
        {"augment": replace(CONFIG.augment, noise=0.5)})]
    names = [name, *(run_name(other, slices) for other in others), run_name(CONFIG, toy(seed=1))]
    redrawn = toy()
    redrawn.masks["rater-1"][1, 0, 0, 0] ^= 1
    names.append(run_name(CONFIG, redrawn))
    monkeypatch.setattr(runs, "__version__", "of the future")
    names.append(run_name(CONFIG, slices))
    assert len(set(names)) == len(names)
    # 'auto' is whatever this machine has: the run of another precision is another run.
    auto = replace(CONFIG, precision="auto")
    by_precision = []
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(runs, "resolve_precision", lambda *_, precision=precision: precision)
        by_precision.append(run_name(auto, slices))
    assert by_precision[0] != by_precision[1]
    with pytest.raises(SettingError, match=r"MASK-UNKNOWN.*did you mean 'rater-1'"):
        run_name(replace(CONFIG, mask="rater1"), slices)


def test_the_named_folder_is_resumed_and_no_other_run_meets_it(slices, tmp_path):
    one = replace(CONFIG, epochs=1)
    settings, trained = [one, replace(one, seed=1), replace(one, precision="auto")], []
    for _ in range(2):   # the second time, every run is there and finished
        for config in settings:
            run_fit(slices, config, tmp_path / run_name(config, slices), resume=True, on_epoch=trained.append)
    assert len(trained) == len(list(tmp_path.iterdir())) == 3


def test_a_worse_epoch_does_not_replace_the_best_weights(slices, tmp_path, monkeypatch):
    scores = iter([0.1, 0.5, 0.3, 0.5])   # of equals, the first
    monkeypatch.setattr(loop, "volume_dice", lambda *args: next(scores))
    hashes = []
    result = run_fit(slices, CONFIG, tmp_path / "run",
                     on_epoch=lambda row: hashes.append(sha256_file(tmp_path / "run" / "weights.safetensors")))
    assert (result.best_epoch, load_run(result.folder).card["epoch"]) == (2, 2)
    assert hashes[0] != hashes[1] == hashes[2] == hashes[3]


def test_the_same_seed_gives_the_same_bytes_and_the_global_generators_stay(slices, reference, tmp_path):
    before = torch.get_rng_state()
    again = run_fit(slices, CONFIG, tmp_path / "again")
    assert torch.equal(before, torch.get_rng_state())
    assert sha256_file(again.folder / "weights.safetensors") == sha256_file(reference.folder / "weights.safetensors")
    assert history_of(again.folder).equals(history_of(reference.folder))
    other = run_fit(slices, replace(CONFIG, seed=1), tmp_path / "other")
    assert not history_of(other.folder).equals(history_of(reference.folder))


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_run_is_the_run_that_never_stopped(slices, reference, tmp_path, stop_after):
    def interrupt(row):
        torch.rand(3)   # a caller who draws random numbers must not change the run
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_fit(slices, CONFIG, folder, on_epoch=interrupt)
    assert len(history_of(folder)) == stop_after
    (folder / ".tmp-1-state.safetensors").write_bytes(b"of a process that was killed")
    result = run_fit(slices, CONFIG, folder, resume=True)
    assert sha256_file(folder / "weights.safetensors") == sha256_file(reference.folder / "weights.safetensors")
    assert history_of(folder).equals(history_of(reference.folder))
    assert (result.best_epoch, result.best_val_dice) == (reference.best_epoch, reference.best_val_dice)
    assert not list(folder.glob(".tmp*"))
    states = [state.read_tensors(r / "state.safetensors")[0] for r in (folder, reference.folder)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_killed_within_an_epoch_repeats_that_epoch(slices, reference, tmp_path, monkeypatch):
    """Killed after the best weights were written, before the checkpoint: the worst moment."""
    folder, save, count = tmp_path / "run", loop.save_state, 0

    def killed(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            run_fit(slices, CONFIG, folder)
    load_run(folder)
    run_fit(slices, CONFIG, folder, resume=True)
    assert sha256_file(folder / "weights.safetensors") == sha256_file(reference.folder / "weights.safetensors")
    assert history_of(folder).equals(history_of(reference.folder))


def test_resuming_a_finished_run_changes_nothing_and_a_new_one_starts(slices, reference, tmp_path):
    before = {p.name: sha256_file(p) for p in reference.folder.iterdir()}
    assert run_fit(slices, CONFIG, reference.folder, resume=True) == reference
    assert {p.name: sha256_file(p) for p in reference.folder.iterdir()} == before
    assert run_fit(slices, replace(CONFIG, epochs=1), tmp_path / "new", resume=True).epochs == 1


def test_an_existing_run_is_not_overwritten(slices, reference, tmp_path):
    with pytest.raises(RunError, match=r"RUN-EXISTS.*--resume"):
        run_fit(slices, CONFIG, reference.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="RUN-EXISTS"):
        run_fit(slices, CONFIG, tmp_path / "file")


def test_resuming_with_other_settings_names_them(slices, reference):
    other = replace(CONFIG, lr=1e-3, augment=replace(CONFIG.augment, noise=0.5), device="auto")
    names = r"augment\.noise \(0\.03, now 0\.5\); lr \(0\.01, now 0\.001\)"
    with pytest.raises(RunError, match=rf"RUN-CONFIG.*{names}") as found:
        run_fit(slices, other, reference.folder, resume=True)
    assert "device" not in str(found.value)
    with pytest.raises(RunError, match=r"RUN-CONFIG.*slices_sha256"):
        run_fit(toy(seed=1), CONFIG, reference.folder, resume=True)


@pytest.mark.parametrize("place", [0.01, 0.3, 0.9])
def test_a_flipped_bit_in_a_checkpoint_is_seen(tmp_path, place):
    model = UNet(CONFIG.unet(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 1, 8, 8), torch.eye(2)).mean().backward()
    optimizer.step()
    file = tmp_path / "state.safetensors"
    history = [{"epoch": 1, "val_dice": 1 / 3}]
    save_state(file, model, optimizer, history)
    assert load_state(file, model, optimizer) == history
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="WEIGHTS-CORRUPT"):
        load_state(file, model, optimizer)


def test_a_pixel_that_is_no_number_is_named_with_epoch_and_volumes(tmp_path):
    broken = toy()
    row = int(np.flatnonzero(broken.table["volume"] == "sub-004_T2star")[1])
    broken.images[row, 0, 3, 3] = np.nan
    config = next(c for s in range(20) if _trains_on(c := replace(CONFIG, split_seed=s), broken, "sub-004"))
    fact = r"epoch 1, step \d of 6; the batch:.*sub-004_T2star.*no numbers in sub-004_T2star"
    with pytest.raises(RunError, match=rf"TRAIN-NAN.*{fact}"):
        run_fit(broken, config, tmp_path / "run")


def _trains_on(config, slices, patient):
    return split_patients(slices.volumes, fractions=config.fractions, seed=config.split_seed)[patient] == "train"


def test_a_loss_that_blows_up_is_named_with_the_epoch(slices, tmp_path, monkeypatch):
    calls = 0

    def explode(logits, targets):
        nonlocal calls
        calls += 1
        return logits.mean() * (float("inf") if calls == 9 else 1.0)   # 48 training slices, batch 8: epoch 2, step 3

    monkeypatch.setitem(loop.LOSSES, "dice", explode)
    fact = r"epoch 2, step 3 of 6; the batch: sub-\d{3}.*all pixels are numbers.*lower lr"
    with pytest.raises(RunError, match=rf"TRAIN-NAN.*{fact}"):
        run_fit(slices, CONFIG, tmp_path / "run")
    assert len(history_of(tmp_path / "run")) == 1


def test_out_of_memory_says_what_to_lower(slices, tmp_path, monkeypatch):
    def full(logits, targets):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setitem(loop.LOSSES, "dice", full)
    with pytest.raises(RunError, match=r"TRAIN-MEMORY.*batch_size \(now 8\)"):
        run_fit(slices, CONFIG, tmp_path / "run")


def test_volumes_that_the_rater_did_not_draw_are_left_out(slices, tmp_path):
    """Their pixels could be anything: the run is the same, bit for bit."""
    weights = []
    for value in (0.0, 7.0):
        partly = toy()
        undrawn = partly.table["volume"].isin([f"sub-{p:03d}_T2star" for p in range(0, 10, 2)]).to_numpy()
        partly.masks["rater-1"][undrawn] = 255
        partly.images[undrawn] += np.float16(value)
        run_fit(partly, replace(CONFIG, epochs=1), tmp_path / str(value))
        weights.append(sha256_file(tmp_path / str(value) / "weights.safetensors"))
    assert weights[0] == weights[1]


def test_contrasts_restrict_training_and_keep_the_split(slices, reference, tmp_path):
    config = replace(CONFIG, contrasts=("T2w",), conditioning="none", epochs=1)
    result = run_fit(slices, config, tmp_path / "run")
    counts = json.loads((result.folder / "config.json").read_text())["counts"]
    assert counts == {"train_slices": 24, "val_slices": 8, "train_volumes": 6, "val_volumes": 2}
    assert (result.folder / "split.csv").read_text() == (reference.folder / "split.csv").read_text()
    assert load_run(result.folder).encoder is None


@pytest.mark.parametrize("change", [{"conditioning": "none"}, {"conditioning": "centre"}, {"loss": "bce"},
                                    {"film": ("up1",)}, {"film": ()}, {"schedule": "plateau"}, {"precision": "bf16"}])
def test_every_kind_of_run_runs(slices, tmp_path, change):
    result = run_fit(slices, replace(CONFIG, epochs=1, **change), tmp_path / "run")
    assert 0 <= result.best_val_dice <= 1 and load_run(result.folder).model.config.n_codes in (0, 2, 3)


def test_film_weight_decay_acts_on_the_generator_alone(slices, tmp_path):
    size = {}
    for decay in (0.0, 1.0):
        run_fit(slices, replace(CONFIG, film_weight_decay=decay, film_lr=1.0), tmp_path / str(decay))
        tensors, _, _ = state.read_tensors(tmp_path / str(decay) / "state.safetensors")
        size[decay] = {part: sum(t.square().sum().item() for name, t in tensors.items() if f"model.{part}" in name)
                       for part in ("blocks.bottleneck.0", "generator.trunk")}
    assert size[1.0]["generator.trunk"] < 0.8 * size[0.0]["generator.trunk"]
    assert size[1.0]["blocks.bottleneck.0"] > 0.8 * size[0.0]["blocks.bottleneck.0"]


def test_a_run_stops_when_validation_stands_still(slices, tmp_path):
    config = replace(CONFIG, lr=1e-8, schedule="constant", epochs=30, patience=2, conditioning="none")
    result = run_fit(slices, config, tmp_path / "run")
    assert result.epochs == result.best_epoch + 2 < 30
    assert run_fit(slices, config, tmp_path / "run", resume=True).epochs == result.epochs


def test_schedules():
    config = replace(CONFIG, epochs=10, lr=0.1)
    assert learning_rate(replace(config, schedule="constant"), [], 7.3) == 0.1
    cosine = [learning_rate(config, [], t) for t in (0, 2.5, 5, 10)]
    assert cosine == pytest.approx([0.1, 0.05 * (1 + math.cos(math.pi / 4)), 0.05, 0])
    plateau = replace(config, schedule="plateau", patience=6)     # waits 2 epochs
    scores = [0.1, 0.2, 0.1, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1]
    rates = [learning_rate(plateau, [{"val_dice": s} for s in scores[:n]], n) for n in range(10)]
    assert rates == pytest.approx([0.1] * 4 + [0.05] * 4 + [0.025] * 2)


def test_volume_dice_by_hand():
    """Three volumes: half right, one of two empty, both empty (left out)."""
    small = toy(patients=2, slices=2)
    mask = np.zeros_like(small.masks["rater-1"])
    mask[0, 0, :2, 0] = 1                                          # volume 0 (slices 0, 1): two pixels drawn
    mask[2, 0, 0, 0] = 1                                           # volume 1: one drawn, none found
    side = gather(replace(small, masks={"rater-1": mask}), np.array([True] * 6 + [False] * 2), "rater-1", None,
                  torch.device("cpu"), "val")

    class Answer(torch.nn.Module):
        def forward(self, x, z):
            out = torch.full(x.shape, -1.0)
            out[side.volume[: len(x)] == side.names.index("sub-000_T2w"), 0, 1:3, 0] = 1.0
            return out

    # volume 0: the answer has two pixels in each of its two slices, one of them right: 2 * 1 / (2 + 4)
    expected = np.mean([2 * 1 / (2 + 4), 0.0])
    assert volume_dice(Answer(), side, torch.autocast("cpu", enabled=False)) == pytest.approx(expected)


def test_every_epoch_has_random_numbers_of_its_own():
    draws = []
    for seed, epoch in ((0, 1), (0, 2), (1, 1), (0, 1)):
        with epoch_rng(seed, epoch, torch.device("cpu")) as generator:
            draws.append((torch.rand(1, generator=generator).item(), torch.rand(1).item()))
    assert draws[0] == draws[3] and len({x for pair in draws[:3] for x in pair}) == 6


@pytest.mark.parametrize(("change", "words"), [
    ({"conditioning": "contrasts"}, "conditioning 'contrasts'.*did you mean 'contrast'"),
    ({"schedule": "cosin"}, "schedule='cosin'.*did you mean 'cosine'"), ({"loss": "dise"}, "loss='dise'.*did you mean"),
    ({"precision": "fp16"}, "precision='fp16'.*bf16"), ({"epochs": 0}, "epochs=0.*1 or more"), ({"lr": -1}, "lr=-1"),
    ({"batch_size": "32"}, "batch_size='32'"), ({"depth": 9}, "depth=9"), ({"dropout": 2}, "dropout=2"),
    ({"augment": {}}, "AugmentConfig"), ({"patience": -1}, "patience=-1"),
    ({"film": ("dwon1",)}, "did you mean 'down1'"),
])
def test_wrong_settings_name_what_is_allowed(change, words):
    with pytest.raises(SettingError, match=words):
        replace(CONFIG, **change)


def test_misspelt_settings_are_named():
    with pytest.raises(SettingError, match=r"no setting 'epoch'.*did you mean 'epochs'"):
        TrainConfig.from_dict({"epoch": 3})
    with pytest.raises(SettingError, match=r"no setting 'rotate'.*did you mean 'rotate_deg'"):
        TrainConfig.from_dict({"augment": {"rotate": 3}})


@pytest.mark.parametrize(("change", "words"), [
    ({"mask": "rater1"}, r"MASK-UNKNOWN.*did you mean 'rater-1'"),
    ({"contrasts": ("T2W",)}, r"CONTRAST-UNKNOWN.*'T2w'"),
    ({"fractions": (0.8, 0.0, 0.2)}, "TRAIN-EMPTY.*val side"),
    ({"fractions": (0.0, 0.8, 0.2), "conditioning": "contrast"}, "TRAIN-EMPTY.*train side"),
])
def test_data_that_do_not_fit_the_settings_are_named_and_nothing_is_written(slices, tmp_path, change, words):
    with pytest.raises(MsfilmError, match=words):
        run_fit(slices, replace(CONFIG, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_side_without_lesion_is_named(slices, tmp_path):
    healthy = replace(slices, masks={"rater-1": np.zeros_like(slices.masks["rater-1"])})
    with pytest.raises(RunError, match="TRAIN-NO-LESION"):
        run_fit(healthy, CONFIG, tmp_path / "run")


def test_the_patients_of_a_side_that_nobody_drew_on_are_named(slices, tmp_path):
    _, side = sides_of(slices, fractions=CONFIG.fractions, seed=CONFIG.split_seed)
    val = sorted(slices.table["patient"][side == "val"].unique())
    masks = np.where((side == "val")[:, None, None, None], np.uint8(255), slices.masks["rater-1"])   # 255: not drawn
    with pytest.raises(RunError, match=f"TRAIN-EMPTY.*val side of the split, on which are {', '.join(val[:5])}"):
        run_fit(replace(slices, masks={"rater-1": masks}), CONFIG, tmp_path / "run")


def test_devices_and_precisions():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SettingError, match="device='gpu'.*auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(SettingError, match="TRAIN-DEVICE"):
        resolve_device("cuda:99")
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"


def test_one_progress_bar_over_the_epochs_or_none(slices, tmp_path, capsys):
    run_fit(slices, replace(CONFIG, epochs=1), tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    fit(slices, replace(CONFIG, epochs=2), tmp_path / "loud")
    assert "2/2" in (shown := capsys.readouterr().err) and "val_dice" in shown


def test_the_cyclic_schedule_is_torchs_triangle():
    config = replace(CONFIG, schedule="cyclic", cycle_epochs=4.0, lr=1e-3)
    steps = 10                                             # an epoch; up in 20 steps, down in 20
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    theirs = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=1e-4, max_lr=1e-3, step_size_up=2 * steps)
    for step in range(90):
        assert loop.learning_rate(config, [], step / steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_frozen_augmentation_shows_the_same_slices_in_every_epoch(slices, tmp_path, monkeypatch):
    seen = {True: [], False: []}
    for frozen in seen:
        def spy(logits, targets, into=seen[frozen]):
            into.append(targets.float().sum().item())
            return loop.LOSSES["bce"](logits, targets)

        monkeypatch.setitem(loop.LOSSES, "dice", spy)
        config = replace(CONFIG, epochs=3, batch_size=48, frozen_augmentation=frozen, precision="fp32")   # one step
        run_fit(slices, config, tmp_path / str(frozen))
    assert len(set(seen[True])) == 1 and len(set(seen[False])) > 1


def test_frozen_augmentation_resumes_to_the_same_bytes(slices, tmp_path):
    config = replace(CONFIG, frozen_augmentation=True, epochs=2)
    run_fit(slices, config, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(row):
        raise Stop

    with pytest.raises(Stop):
        run_fit(slices, config, tmp_path / "parts", on_epoch=stop)
    run_fit(slices, config, tmp_path / "parts", resume=True)
    assert sha256_file(tmp_path / "whole" / "weights.safetensors") == sha256_file(
        tmp_path / "parts" / "weights.safetensors")


def test_the_generator_learns_at_its_share_of_the_rate(slices, tmp_path):
    """One step of Adam moves every weight by the rate: the heads, which start at zero, by film_lr times it."""
    for share in (1.0, 0.1):
        config = replace(CONFIG, epochs=1, batch_size=48, film_lr=share, conditioning="contrast", schedule="constant")
        folder = run_fit(slices, config, tmp_path / str(share)).folder
        heads = load_run(folder).model.generator.heads
        assert max(head.bias.abs().max().item() for head in heads) == pytest.approx(share * config.lr, rel=1e-3)


@pytest.mark.parametrize("change", [
    {"conditioning": "contrast+centre"}, {"conditioning": "contrast", "film_form": "sigmoid"},
    {"conditioning": "contrast", "film_place": "before-relu"}, {"conditioning": "contrast", "modulation": "concat"},
    {"loss": "dice-focal"}, {"schedule": "cyclic"},
])
def test_every_form_trains_and_its_network_travels(slices, tmp_path, change):
    config = replace(CONFIG, epochs=1, **change)
    folder = run_fit(slices, config, tmp_path / "run").folder
    network = load_run(folder)
    assert network.conditioning == config.conditioning
    z = network.code(slices.described())
    assert (z is None) == (config.conditioning == "none")
    with torch.no_grad():
        assert network.model(torch.zeros(len(slices), 1, 24, 24), z).shape == (len(slices), 1, 24, 24)


def test_the_papers_settings_by_name_and_settings_in_words():
    paper = named_config("paper2020")
    assert (paper.depth, paper.dropout, paper.batch_size, paper.film_form, paper.schedule, paper.loss) == (
        2, 0.3, 32, "sigmoid", "cyclic", "dice")
    assert loop.learning_rate(paper, [], 0) == pytest.approx(1e-4) and loop.learning_rate(paper, [], 3) == 1e-3
    with pytest.raises(SettingError, match=r"CONFIG-UNKNOWN.*paper2020"):
        named_config("paper2021")
    changed = with_settings(paper, ["lr=1e-4", "augment.noise=0.05", "film=[down1, up1]", "film_form=residual"])
    assert (changed.lr, changed.augment.noise, changed.film, changed.film_form) == (
        1e-4, 0.05, ("down1", "up1"), "residual")
    for word, fact in (("lr", "no setting"), ("rl=1", "did you mean 'lr'"), ("augment.nose=1", "did you mean 'noise'")):
        with pytest.raises(SettingError, match=fact):
            with_settings(paper, [word])


def test_a_run_that_never_found_a_lesion_says_that_its_network_is_untrained(tmp_path):
    with pytest.warns(UserWarning, match="Dice stayed 0 in 2 of 2 epochs of still.*train longer"):
        fit(toy(), replace(CONFIG, epochs=2, lr=1e-8, prior=0.001), tmp_path / "still", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(toy(), replace(CONFIG, epochs=6, lr=0.03), tmp_path / "moving", progress=False)


@pytest.mark.parametrize(("name", "value"), [
    ("contrasts", False), ("contrasts", ["T2w", 2]), ("film", 3), ("film", "down1"), ("without_centres", {"a": 1}),
    ("fractions", 0.6), ("fractions", [0.6, 0.2, 0.2, True]), ("fractions", ["a", "b", "c"])])
def test_a_setting_that_is_no_list_is_refused_by_name(name, value):
    with pytest.raises(SettingError, match=rf"TRAIN-SETTING.*{name}=.*a list of (names|numbers)"):
        TrainConfig.from_dict({name: value})


def _with_column(slices, column, change):
    """The same slices with another column of patients' facts."""
    table, volumes = slices.table.copy(), slices.volumes.copy()
    table[column], volumes[column] = change(table), change(volumes)
    return SliceSet(slices.images, slices.masks, table, volumes, slices.scans, slices.meta)


def test_a_run_is_not_gone_on_with_when_its_patients_have_changed_sides_or_codes(tmp_path):
    slices = toy()
    config = replace(CONFIG, epochs=2, conditioning="centre")
    fit(slices, config, tmp_path / "run", progress=False)
    fit(slices, config, tmp_path / "run", resume=True, progress=False)   # nothing has changed
    other = {"sub-000": "sub-009", "sub-009": "sub-000", "sub-001": "sub-008", "sub-008": "sub-001"}
    dealt = _with_column(slices, "patient", lambda table: table["patient"].replace(other))
    with pytest.raises(RunError, match="RUN-CONFIG"):
        fit(dealt, config, tmp_path / "run", resume=True, progress=False)
    elsewhere = {"centre-0": "centre-1", "centre-1": "centre-0"}
    moved = _with_column(slices, "centre", lambda table: table["centre"].replace(elsewhere))
    with pytest.raises(RunError, match="RUN-CONFIG.*(changed sides|centre)"):
        fit(moved, config, tmp_path / "run", resume=True, progress=False)
    split = tmp_path / "run" / "split.csv"
    text = split.read_text()
    split.write_text(text.replace(",test", ",TRAIN").replace(",train", ",test", 1).replace(",TRAIN", ",train"))
    with pytest.raises(RunError, match="RUN-CONFIG.*changed sides.*for example sub-"):
        fit(slices, config, tmp_path / "run", resume=True, progress=False)
    split.write_text("nonsense")
    with pytest.raises(InputError, match="RUN-SPLIT"):
        fit(slices, config, tmp_path / "run", resume=True, progress=False)
    split.write_text(text)
    old = json.loads((tmp_path / "run" / "config.json").read_text())
    del old["sides_sha256"]                                              # a run of before this was written down
    (tmp_path / "run" / "config.json").write_text(json.dumps(old))
    fit(slices, config, tmp_path / "run", resume=True, progress=False)
