"""FiLM: its formula, the identity at the start, the generator's gradients, and the encoding of z."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from msfilm.errors import InputError, SettingError
from msfilm.model.film import CategoryEncoder, FiLMGenerator, film, make_encoder


def test_film_is_gamma_x_plus_beta_by_hand():
    x = torch.tensor([[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]])        # (1, 2, 1, 3)
    gamma = torch.tensor([[2.0, -1.0]])[:, :, None, None]
    beta = torch.tensor([[0.5, 10.0]])[:, :, None, None]
    assert film(x, gamma, beta).tolist() == [[[[2.5, 4.5, 6.5]], [[6.0, 5.0, 4.0]]]]


def test_film_against_numpy_on_an_odd_size():
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.normal(size=(3, 5, 7, 9)), rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    expected = np.einsum("nc,nchw->nchw", gamma, x) + beta[..., None, None]
    got = film(*(torch.from_numpy(a) for a in (x, gamma[..., None, None], beta[..., None, None])))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_generator_is_the_mlp_it_says_it_is():
    generator = FiLMGenerator(3, [4, 2], width=5, depth=2)
    random = torch.Generator().manual_seed(1)
    for parameter in generator.parameters():   # all of them: what torch drew by itself was another network each time
        torch.nn.init.normal_(parameter, generator=random)
    z = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    w = {name: p.detach().numpy() for name, p in generator.named_parameters()}
    hidden = z.numpy()
    for layer in (0, 2):
        hidden = np.maximum(hidden @ w[f"trunk.{layer}.weight"].T + w[f"trunk.{layer}.bias"], 0)
    for i, (gamma, beta) in enumerate(generator(z)):
        out = hidden @ w[f"heads.{i}.weight"].T + w[f"heads.{i}.bias"]
        c = out.shape[1] // 2
        assert gamma.shape == beta.shape == (2, c, 1, 1)
        np.testing.assert_allclose(gamma.detach().numpy()[..., 0, 0], 1 + out[:, :c], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(beta.detach().numpy()[..., 0, 0], out[:, c:], rtol=1e-5, atol=1e-5)


def test_only_the_heads_start_at_zero_so_that_film_is_the_identity():
    generator = FiLMGenerator(2, [3, 8])
    for gamma, beta in generator(torch.eye(2)):
        assert torch.equal(gamma, torch.ones_like(gamma)) and torch.equal(beta, torch.zeros_like(beta))
    for name, parameter in generator.named_parameters():
        assert bool(parameter.any()) == name.startswith("trunk"), name


def test_gradient_reaches_the_heads_at_once_and_the_trunk_after_one_step():
    generator = FiLMGenerator(2, [3])
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        film(x, *generator(torch.eye(2))[0]).square().sum().backward()
        optimizer.step()
        reached.append({part: any(p.grad.any() for n, p in generator.named_parameters() if n.startswith(part))
                        for part in ("heads", "trunk")})
    assert reached == [{"heads": True, "trunk": False}, {"heads": True, "trunk": True}]


def test_generator_stays_in_float32_under_autocast():
    generator = FiLMGenerator(2, [3])
    with torch.no_grad():
        generator.heads[0].bias.fill_(1e-3)     # in bfloat16, 1 + 0.001 is 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gamma, _ = generator(torch.eye(2))[0]
    assert gamma.dtype == torch.float32
    torch.testing.assert_close(gamma, torch.full_like(gamma, 1.001))


@pytest.mark.parametrize("shape", [(2,), (4, 3), (1, 2, 1)])
def test_generator_names_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(N, 2\)"):
        FiLMGenerator(2, [3])(torch.zeros(shape))


TABLE = pd.DataFrame({"contrast": ["T2w", "T2star", "T2w"], "centre": ["b", "a", "c"], "rater": ["r1", None, np.nan]})


def test_codes_are_one_hot_in_the_order_of_the_sorted_categories():
    encoder = make_encoder("contrast", TABLE)
    assert encoder.categories == ("T2star", "T2w") and encoder.n_codes == 2
    assert encoder.encode(TABLE["contrast"]).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert encoder.encode("T2w").tolist() == [[0, 1]]
    assert CategoryEncoder.from_dict(encoder.to_dict()) == encoder


def test_an_unseen_contrast_is_refused_and_the_right_one_named():
    with pytest.raises(SettingError, match=r"CONTRAST-UNKNOWN.*'T2W'.*did you mean 'T2w'"):
        make_encoder("contrast", TABLE).encode(["T2w", "T2W"])


@pytest.mark.parametrize("column", ["centre", "rater"])
def test_an_unseen_centre_or_rater_gets_the_mean_code_aloud(column):
    encoder = CategoryEncoder(column, ("x", "y", "z", "w"))
    with pytest.warns(UserWarning, match=rf"{column} elsewhere.*mean code"):
        z = encoder.encode(["y", "elsewhere"])
    assert z.tolist() == [[0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]]


def test_missing_values_are_no_category():
    encoder = make_encoder("rater", TABLE)
    assert encoder.categories == ("r1",)
    with pytest.warns(UserWarning, match="mean code"):
        assert encoder.encode(TABLE["rater"]).tolist() == [[1], [1], [1]]
    with pytest.raises(InputError, match="ENCODER-COLUMN"):
        make_encoder("rater", TABLE.assign(rater=None))


def test_conditioning_none_needs_no_encoder_and_a_misspelt_one_is_named():
    assert make_encoder("none", TABLE) is None
    with pytest.raises(SettingError, match=r"CONDITIONING-UNKNOWN.*did you mean 'contrast'"):
        make_encoder("contrasts", TABLE)
