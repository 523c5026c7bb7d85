"""Laws of adapting to a contrast that was not in training: what may change, and what is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_cohort import cohort, one_volume
from scipy.stats import wasserstein_distance

from msfilm.data.slices import SliceSet
from msfilm.errors import RunError, SettingError
from msfilm.evaluate.predict import predict_images
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network
from msfilm.train import adapt
from msfilm.train.augment import NO_AUGMENT
from msfilm.train.loss import dice_bce_loss


def _network(n_codes=2, **settings):
    """A network whose FiLM does something, and whose batch normalisation has seen images."""
    model = UNet(UNetConfig(depth=1, filters=4, n_codes=n_codes, prior=0.1, **settings), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for head in model.generator.heads if model.generator else ():
            head.weight.add_(0.3 * torch.randn(head.weight.shape, generator=generator))
        images = 1 + 0.5 * torch.randn(8, 1, 32, 32, generator=generator)
        model.train()(images, torch.eye(2)[[0, 1] * 4] if n_codes else None)
    encoder = CategoryEncoder("contrast", ("T2star", "T2w")) if n_codes else None
    return Network(model.eval(), encoder, {"settings": {}})


@pytest.fixture(scope="module")
def few():
    return SliceSet.concat([one_volume(patient, "MTon") for patient in (1, 2)])   # 12 slices


def _state(network):
    return {name: value.clone() for name, value in network.model.state_dict().items()}


def _same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fit_code_is_adam_on_the_code_alone(few):
    network = _network()
    images = torch.from_numpy(np.asarray(few.images, np.float32))
    targets = torch.from_numpy(few.masks["rater-1"])
    before, z = _state(network), torch.full((2,), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(12):   # by hand
        loss = dice_bce_loss(network.model(images, z.expand(len(images), -1)), targets)
        (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
    found = adapt.fit_code(network, few, steps=12, batch_size=len(few), device="cpu")
    torch.testing.assert_close(found, z.detach(), rtol=1e-3, atol=1e-4)
    assert not found.requires_grad and (found - 0.5).abs().max() > 0.05
    orders = [adapt.fit_code(network, few, steps=6, batch_size=5, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert _same(before, _state(network)) and not network.model.training
    assert all(parameter.requires_grad for parameter in network.model.parameters())


def test_fit_code_does_as_well_as_the_code_that_drew_the_masks(few):
    network, wanted = _network(), torch.tensor([1.7, -0.8])
    probability = predict_images(network, few.images, wanted.expand(len(few), -1))
    middle = np.quantile(probability, 0.95)   # answers moved so that a twentieth is lesion
    with torch.no_grad():
        network.model.generator.heads[-1].bias[1] -= float(np.log(middle / (1 - middle)))   # beta of the logits
    own = (predict_images(network, few.images, wanted.expand(len(few), -1)) >= 0.5).astype(np.uint8)
    few = SliceSet(few.images, few.masks | {"own": own}, few.table, few.volumes, few.scans, few.meta)

    def loss(z):
        with torch.no_grad():
            logits = network.model(torch.from_numpy(few.images).float(), z.expand(len(few), -1))
            return float(dice_bce_loss(logits, torch.from_numpy(own)))

    fitted = adapt.fit_code(network, few, mask="own", steps=80, batch_size=64)
    assert loss(fitted) <= loss(wanted) + 0.01 < loss(adapt.mean_code(network))


@pytest.mark.parametrize("n_codes", [0, 2])
def test_fine_tune_changes_a_copy_and_no_statistics(few, n_codes):
    network = _network(n_codes)
    code = torch.tensor([0.2, 0.9]) if n_codes else None
    before = _state(network)
    tuned = adapt.fine_tune(network, few, code, steps=4, lr=1e-3, seed=1)
    assert _same(before, _state(network))
    after, again = _state(tuned), _state(adapt.fine_tune(network, few, code, steps=4, lr=1e-3, seed=1))
    running = [name for name in before if "running" in name or "num_batches" in name]
    assert running and all(torch.equal(before[name], after[name]) for name in running)
    assert not torch.equal(before["blocks.logits.weight"], after["blocks.logits.weight"])
    assert _same(after, again) and not _same(after, _state(adapt.fine_tune(network, few, code, steps=4, lr=1e-3)))
    assert not tuned.model.training and tuned.card["fine_tuned"]["contrasts"] == ["MTon"]
    assert "fine_tuned" not in network.card


def test_fine_tune_without_a_step_is_the_same_network_and_with_many_it_learns(few):
    network, code = _network(), adapt.mean_code(_network())
    z = code.expand(len(few), -1)
    still = adapt.fine_tune(network, few, code, steps=0)
    assert np.array_equal(predict_images(network, few.images, z), predict_images(still, few.images, z))
    learnt = adapt.fine_tune(network, few, code, steps=40, lr=1e-2, augmentation=NO_AUGMENT)
    images, targets = torch.from_numpy(few.images).float(), torch.from_numpy(few.masks["rater-1"])
    losses = [float(dice_bce_loss(one.model(images, z), targets).detach()) for one in (network, learnt)]
    assert losses[1] < 0.95 * losses[0]


def test_dropout_is_on_while_tuning_and_off_afterwards(few):
    network = _network(dropout=0.5)
    settings = {"steps": 3, "augmentation": NO_AUGMENT, "batch_size": 64}   # dropout is all that is random
    states = [_state(adapt.fine_tune(network, few, adapt.mean_code(network), seed=seed, **settings)) for seed in (0, 1)]
    assert not _same(*states)


def test_every_slice_gets_its_turn_in_batches_of_one_size():
    batches = list(adapt._batches(7, 3, 400, torch.Generator().manual_seed(0)))
    assert {len(rows) for rows in batches} == {3} and set(torch.cat(batches).tolist()) == set(range(7))
    assert all(len(set(torch.cat(batches[i : i + 2]).tolist())) == 6 for i in range(0, 400, 2))
    assert all(torch.equal(rows, torch.arange(3)) for rows in adapt._batches(3, 3, 5, torch.Generator()))


def test_the_nearest_contrast_is_that_with_the_least_wasserstein_distance():
    slices = cohort(4)
    scans = {name: [slices.scans[volume] for volume in slices.volumes.index if volume.endswith(name)]
             for name in ("T2w", "T2star")}
    new = [slices.scans["sub-001_T2w"]]
    name, distances = adapt.nearest_contrast(new, {key: scans[key] for key in ("T2star", "T2w")})
    assert name == "T2w"   # its lesions are as bright
    for key, one in distances.items():
        other = np.concatenate([scan.cord_values for scan in scans[key]])
        assert one == pytest.approx(wasserstein_distance(new[0].cord_values, other))
    assert adapt.nearest_contrast(new, {"same": new})[1] == {"same": 0.0}
    with pytest.raises(SettingError, match="ADAPT-SCANS"):
        adapt.nearest_contrast(new, {"T2w": []})


def test_what_cannot_be_adapted_is_refused(few):
    network, empty = _network(), one_volume(1, "MTon", lesion=False)
    with pytest.raises(SettingError, match="CONTRAST-UNKNOWN"):
        network.code(few.described())   # adapting does not weaken the encoder
    for code, plain in ((None, network), (torch.zeros(3), network), (torch.zeros(2), _network(0))):
        with pytest.raises(SettingError, match="ADAPT-CODE"):
            adapt.fine_tune(plain, few, code, steps=1)
    with pytest.raises(SettingError, match="ADAPT-CODE"):
        adapt.fit_code(_network(0), few)
    with pytest.raises(RunError, match="ADAPT-EMPTY"):
        adapt.fit_code(network, empty, steps=1)
    with pytest.raises(SettingError, match="MASK-UNKNOWN"):
        adapt.fit_code(network, few, mask="rater-9")
    for wrong in ({"steps": -1}, {"batch_size": 0}, {"loss": "dise"}):
        with pytest.raises(SettingError, match="ADAPT-SETTING"):
            adapt.fit_code(network, few, **wrong)
