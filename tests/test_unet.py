"""The U-Net: the same start plain and FiLMed, every FiLM place and its switch, odd sizes, bf16 and memory layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from msfilm.errors import SettingError
from msfilm.model.unet import ConvBlock, UNet, UNetConfig

SMALL = UNetConfig(depth=2, filters=4, dropout=0.0)
NAMES = ("down1", "down2", "bottleneck", "up2", "up1", "logits")


def slices(n=3, h=13, w=17, seed=0):
    return torch.randn(n, 1, h, w, generator=torch.Generator().manual_seed(seed))


def shuffled(model, seed=0):
    """Give the generator's heads values away from zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in model.generator.heads:
            head.weight.normal_(std=0.3, generator=g)
            head.bias.normal_(std=0.3, generator=g)
    return model


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_there_are_2_depth_plus_2_places(depth):
    config = UNetConfig(depth=depth, filters=2, n_codes=2)
    assert len(config.film_names) == 2 * depth + 2
    assert UNet(config).film_on == config.film_names
    assert UNetConfig(depth=2).film_names == NAMES


def test_size_of_the_paper_times_network():
    n = sum(p.numel() for p in UNet(UNetConfig(depth=3, filters=64)).parameters())
    assert n == pytest.approx(4.84e6, rel=0.005)


@pytest.mark.parametrize("training", [True, False])
def test_filmed_and_plain_unet_start_equal_bit_for_bit(training):
    plain, filmed = UNet(SMALL, seed=5), UNet(replace(SMALL, n_codes=2), seed=5)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, filmed.state_dict()[name]), name
    x = slices()
    plain.train(training), filmed.train(training)
    assert torch.equal(plain(x), filmed(x, torch.eye(2)[[0, 1, 0]]))


def test_seeds_differ_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = (UNet(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["blocks.down1.0.weight"], c["blocks.down1.0.weight"])


@pytest.mark.parametrize(("h", "w"), [(48, 48), (47, 53), (8, 9), (31, 64)])
def test_odd_sizes_come_back_as_they_went_in(h, w):
    model = UNet(UNetConfig(depth=3, filters=2, n_codes=2))
    assert model(slices(2, h, w), torch.eye(2)).shape == (2, 1, h, w)


def test_each_block_is_conv_norm_relu_twice_against_the_formula():
    block = ConvBlock(2, 3, dropout=0.0).eval()
    block[1].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    block[4].running_var.copy_(torch.tensor([0.5, 2.0, 1.5]))
    x = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(3))
    expected = x
    for conv, norm in ((block[0], block[1]), (block[3], block[4])):
        y = F.conv2d(expected, conv.weight, padding=1)
        y = (y - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var[:, None, None] + 1e-5)
        expected = torch.relu(y)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_each_place_can_be_switched_by_itself_and_comes_after_its_block(name):
    model = shuffled(UNet(replace(SMALL, n_codes=2, film=(name,)), seed=1)).eval()
    assert model.film_on == (name,) and len(model.generator.heads) == 1
    plain = UNet(SMALL, seed=1).eval()
    x, z = slices(2), torch.eye(2)
    assert not torch.allclose(model(x, z), plain(x))
    # The same, by a hook on the plain network's block: gamma * (after the ReLU) + beta.
    gamma, beta = (p[:, :, None, None] for p in model.film_parameters(z)[name])
    hook = plain.blocks[name].register_forward_hook(lambda m, i, out: gamma * out + beta)
    torch.testing.assert_close(model(x, z), plain(x))
    hook.remove()


def test_film_on_the_logits_scales_and_shifts_them():
    model = UNet(replace(SMALL, n_codes=2, film=("logits",))).eval()
    x = slices(2)
    before = model(x, torch.eye(2))
    with torch.no_grad():
        model.generator.heads[0].bias.copy_(torch.tensor([1.0, 0.25]))   # dgamma 1, beta 0.25
    torch.testing.assert_close(model(x, torch.eye(2)), 2 * before + 0.25)


def test_each_slice_is_modulated_by_its_own_code():
    model = shuffled(UNet(replace(SMALL, n_codes=2))).eval()
    x = slices(1).expand(2, -1, -1, -1)
    both = model(x, torch.eye(2))
    assert not torch.allclose(both[0], both[1])
    torch.testing.assert_close(both[1:], model(x[1:], torch.eye(2)[1:]))


def test_film_parameters_have_the_channels_of_their_blocks():
    parameters = UNet(replace(SMALL, n_codes=3)).film_parameters(torch.eye(3))
    shapes = {name: gamma.shape for name, (gamma, beta) in parameters.items() if gamma.shape == beta.shape}
    assert shapes == dict(zip(NAMES, [(3, 4), (3, 8), (3, 8), (3, 8), (3, 4), (3, 1)], strict=True))
    assert UNet(SMALL).film_parameters(torch.eye(3)) == {}


def test_gradient_reaches_every_parameter_after_one_step():
    model = UNet(replace(SMALL, n_codes=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(slices(4), torch.eye(2)[[0, 1, 0, 1]]).square().mean().backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_channels_last_gives_the_same_answer():
    model = shuffled(UNet(replace(SMALL, n_codes=2))).eval()
    x, z = slices(2, 15, 11), torch.eye(2)
    expected = model(x, z)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x, z), expected, rtol=1e-4, atol=1e-5)


def test_bf16_autocast_is_close_to_float32():
    model = shuffled(UNet(replace(SMALL, n_codes=2))).eval()
    x, z = slices(2, 15, 11), torch.eye(2)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = model(x, z)
    high = model(x, z).detach()
    assert low.dtype == torch.bfloat16 and low.shape == high.shape
    assert np.corrcoef(low.float().flatten(), high.flatten())[0, 1] > 0.999


@pytest.mark.parametrize(("x", "z"), [
    (torch.zeros(2, 1, 3, 8), torch.eye(2)),        # lower than 2 ** depth
    (torch.zeros(2, 2, 8, 8), torch.eye(2)),        # two channels
    (torch.zeros(2, 1, 8, 8), None),                # no code
    (torch.zeros(2, 1, 8, 8), torch.eye(3)[:2]),    # a code of the wrong length
])
def test_wrong_shapes_are_named(x, z):
    with pytest.raises(ValueError, match=r"has shape|z is missing"):
        UNet(replace(SMALL, n_codes=2))(x, z)


def test_a_plain_unet_refuses_a_code():
    with pytest.raises(ValueError, match="n_codes=0"):
        UNet(SMALL)(slices(2), torch.eye(2))


@pytest.mark.parametrize(("change", "words"), [
    ({"depth": 0}, "depth=0.*whole number, 1 to 6"), ({"filters": 2.5}, "filters=2.5"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"film": ("down9",)}, "no place 'down9'.*down1, down2"),
])
def test_wrong_settings_are_named(change, words):
    with pytest.raises(SettingError, match=words):
        replace(SMALL, **change)


@pytest.mark.parametrize("name", NAMES)
def test_film_before_the_relu_comes_between_norm_and_relu(name):
    model = shuffled(UNet(replace(SMALL, n_codes=2, film=(name,), film_place="before-relu"), seed=1)).eval()
    plain = UNet(SMALL, seed=1).eval()
    x, z = slices(2), torch.eye(2)
    gamma, beta = (p[:, :, None, None] for p in model.film_parameters(z)[name])
    inner = plain.blocks[name] if name == "logits" else plain.blocks[name][4]   # the block's second normalisation
    hook = inner.register_forward_hook(lambda m, i, out: gamma * out + beta)
    torch.testing.assert_close(model(x, z), plain(x))
    hook.remove()


def test_concatenation_adds_constant_channels_and_starts_like_the_plain_network():
    model, plain = (UNet(replace(SMALL, n_codes=n, modulation="concat"), seed=3).eval() for n in (2, 0))
    x, z = slices(2), torch.eye(2)
    assert model.generator is None and model.film_on == () and model.film_parameters(z) == {}
    assert model.blocks["down1"][0].weight.shape[1] == 3
    maps = torch.cat([x, z[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
    first = F.conv2d(maps, model.blocks["down1"][0].weight, padding=1)
    hook = plain.blocks["down1"][0].register_forward_hook(lambda m, i, out: first)
    torch.testing.assert_close(model(x, z), plain(x))
    hook.remove()
    with torch.no_grad():
        model.blocks["down1"][0].weight[:, 1:] = 0
    torch.testing.assert_close(model(x, z), plain(x))   # all but what the codes add is the same start
    for wrong in (None, torch.eye(3)[:2]):
        with pytest.raises(ValueError, match="z"):
            model(x, wrong)


def test_the_sigmoid_form_trains_every_parameter_in_both_places():
    for place in ("after-relu", "before-relu"):
        model = UNet(replace(SMALL, n_codes=2, film_form="sigmoid", film_place=place))
        model(slices(4), torch.eye(2)[[0, 1, 0, 1]]).square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("wrong", [{"film_form": "tanh"}, {"film_place": "inside"}, {"modulation": "add"}])
def test_forms_and_places_that_do_not_exist_are_refused(wrong):
    with pytest.raises(SettingError, match="UNET-SETTING"):
        UNetConfig(**wrong)


def test_the_prior_is_where_the_network_starts_from_and_changes_nothing_else():
    plain, sparse = UNet(SMALL, seed=2).state_dict(), UNet(replace(SMALL, prior=0.01), seed=2).state_dict()
    assert [name for name in plain if not torch.equal(plain[name], sparse[name])] == ["blocks.logits.bias"]
    assert torch.sigmoid(sparse["blocks.logits.bias"]).item() == pytest.approx(0.01)
    with pytest.raises(SettingError, match="prior=0"):
        UNetConfig(prior=0.0)


@pytest.mark.parametrize("place", ["after-relu", "before-relu"])
def test_gamma_and_beta_may_be_given_and_maps_watched(place):
    model = shuffled(UNet(replace(SMALL, n_codes=2, film=("down2", "up1", "logits"), film_place=place), seed=1)).eval()
    x, z, seen = slices(2), torch.eye(2), {}
    made = model.film_parameters(z)
    copy = lambda name, before, after: seen.update({name: (before.clone(), after.clone())})  # noqa: E731
    with torch.no_grad():
        logits = model(x, z)
        assert torch.equal(model(x, film_parameters=made, watch=copy), logits)
        assert list(seen) == list(made) and torch.equal(seen["logits"][1], logits)
        for name, (gamma, beta) in made.items():
            before, after = seen[name]
            torch.testing.assert_close(after, gamma[:, :, None, None] * before + beta[:, :, None, None])
        # one set of gamma and beta for all slices; and it is used, not z's
        one = {name: tuple(half[:1] for half in pair) for name, pair in made.items()}
        assert torch.equal(model(x, z, film_parameters={n: tuple(h.expand(2, -1) for h in p) for n, p in one.items()}),
                           model(x, z[[0, 0]]))
    short = {name: tuple(half[:, :1] for half in pair) for name, pair in made.items()}
    for wrong in ({}, {"up1": made["up1"]}, short):
        with pytest.raises(ValueError, match="film_parameters of .*down2, up1, logits"):
            model(x, film_parameters=wrong)
    with pytest.raises(ValueError, match="expected gamma and beta"):
        UNet(SMALL)(x, film_parameters=made)
