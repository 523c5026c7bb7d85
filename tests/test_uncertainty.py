"""Ensembles and dropout at prediction: means, spreads and entropies by formula; modes and random numbers left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_cohort import Brighter, cohort, known
from torch import nn

from msfilm.errors import SettingError
from msfilm.evaluate.predict import predict_slices
from msfilm.evaluate.uncertainty import ensemble, ensemble_probability, mc_dropout
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network


def network(seed=0, dropout=0.3):
    """An untrained U-Net whose logits are not all near 0."""
    model = UNet(UNetConfig(depth=2, filters=4, dropout=dropout), seed=seed)
    with torch.no_grad():
        model.blocks["logits"].weight.mul_(4)
    return Network(model.eval(), None, {})


def entropy(p):
    p = np.clip(p.astype(float), 1e-300, 1 - 1e-16)
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def test_the_mean_of_one_network_is_its_prediction():
    slices, one = cohort(1), network()
    alone = ensemble([one], slices)
    np.testing.assert_array_equal(alone.mean, predict_slices(one, slices))
    np.testing.assert_array_equal(ensemble_probability([one], slices), alone.mean)
    assert alone.mean.shape == slices.images.shape and alone.mean.dtype == np.float32
    assert not alone.std.any() and alone.disagreement.max() < 1e-6 and alone.samples == 1


def test_an_ensemble_is_the_formula_over_its_networks():
    slices, several = cohort(1), [network(seed) for seed in range(3)]
    single = np.stack([predict_slices(one, slices) for one in several]).astype(float)
    found = ensemble(several, slices, batch_size=7)
    np.testing.assert_allclose(found.mean, single.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.std, single.std(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.entropy, entropy(single.mean(axis=0)), atol=1e-5)
    np.testing.assert_allclose(found.disagreement, entropy(single.mean(axis=0)) - entropy(single).mean(axis=0),
                               atol=1e-5)
    assert found.std.max() > 0.01 and (found.disagreement >= 0).all()


def test_networks_that_are_sure_but_contradict_each_other():
    slices = cohort(1)
    found = ensemble([known(Brighter(0.0)), known(Brighter(100.0))], slices)  # everything, and nothing
    bright = slices.images.astype(np.float32) > 0.1
    assert bright.any()
    np.testing.assert_allclose(found.entropy[bright], np.log(2), atol=1e-6)
    np.testing.assert_allclose(found.disagreement[bright], np.log(2), atol=1e-6)
    np.testing.assert_allclose(found.std[bright], 0.5, atol=1e-6)


def test_same_seed_same_bytes_and_other_seed_others():
    slices, one = cohort(1), network()
    first, second, other = (mc_dropout(one, slices, samples=3, seed=seed) for seed in (1, 1, 2))
    for name in ("mean", "std", "entropy", "disagreement"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert (first.mean != other.mean).any()
    assert first.std.max() > 0.01 and (mc_dropout(one, slices, samples=1).std == 0).all()


def test_only_dropout_is_switched_on_and_everything_is_left_as_it_was():
    slices, one = cohort(1), network()
    one.model.blocks["down1"].train()  # a mixed state comes back as it was, part by part
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    modes = [part.training for part in one.model.modules()]
    seen = []
    for part in one.model.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda part, *_: seen.append((type(part), part.training)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    mc_dropout(one, slices, samples=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert {kind for kind, training in seen if training} == {nn.Dropout2d}
    assert all(training for kind, training in seen if kind is nn.Dropout2d)
    assert [part.training for part in one.model.modules()] == modes
    after = one.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())  # running statistics among them
    assert any("running_mean" in name for name in before)


def test_many_samples_of_one_dropout_layer_have_its_mean_and_spread():
    class OneDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.drop = nn.Parameter(torch.tensor(1.0)), nn.Dropout(0.5)

        def forward(self, x, z=None):
            return self.drop(torch.full_like(x, 1.0)) * self.weight  # a logit of 0 or 2, half of the time each

    slices = cohort(1)
    found = mc_dropout(known(OneDropout()), slices, samples=40)
    values = np.array([0.5, torch.sigmoid(torch.tensor(2.0)).item()])
    assert found.mean.mean() == pytest.approx(values.mean(), abs=2e-3)
    assert np.sqrt((found.std ** 2).mean() * 40 / 39) == pytest.approx(values.std(), rel=0.01)


def test_refusals():
    slices = cohort(1)
    with pytest.raises(SettingError, match=r"DROPOUT-NONE.*ensemble of several seeds"):
        mc_dropout(network(dropout=0.0), slices)
    for samples in (0, 1.5, True):
        with pytest.raises(SettingError, match="DROPOUT-SAMPLES"):
            mc_dropout(network(), slices, samples=samples)
    with pytest.raises(SettingError, match="ENSEMBLE-EMPTY"):
        ensemble_probability([], slices)
    one = network()
    with pytest.raises(SettingError, match="PRECISION-UNKNOWN"):
        mc_dropout(one, slices, precision="fp8")
    assert not any(part.training for part in one.model.modules())
