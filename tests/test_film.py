"""FiLM: its formula and gradient, the identity at the start, the generator and its two forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msfilm.errors import SettingError
from msfilm.model.film import FiLMGenerator, film


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (2, 1, 4, 3), (1, 4, 1, 1)])
def test_the_gradient_of_film_is_that_of_the_formula(shape, layout):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    gamma, beta = (torch.randn(*shape[:2], 1, 1, generator=random, dtype=torch.float64, requires_grad=True)
                   for _ in range(2))
    assert torch.autograd.gradcheck(film, (x, gamma, beta))
    weight = torch.randn(shape, generator=random, dtype=torch.float64)
    expected = torch.autograd.grad((weight * (gamma * x + beta)).sum(), (x, gamma, beta))
    got = torch.autograd.grad((weight * film(x, gamma, beta)).sum(), (x, gamma, beta))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_in_bfloat16_maps_stay_bfloat16_and_gamma_gets_its_gradient_in_float32():
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    gamma, beta = torch.full((2, 4, 1, 1), 1.5, requires_grad=True), torch.zeros(2, 4, 1, 1, requires_grad=True)
    out = film(x, gamma, beta)
    out.float().sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16 and gamma.grad.dtype == beta.grad.dtype == torch.float32
    torch.testing.assert_close(gamma.grad, x.detach().float().sum((2, 3), keepdim=True), rtol=0.02, atol=0.1)
    assert (beta.grad == 30).all()


def test_the_sigmoid_form_is_the_mlp_of_the_papers_code_and_never_the_identity():
    generator = FiLMGenerator(2, [3, 1], form="sigmoid")
    z = torch.eye(2)
    with torch.no_grad():
        for (gamma, beta), head in zip(generator(z), generator.heads, strict=True):
            hidden = z.numpy()
            for layer in (head[0], head[2], head[4]):
                hidden = 1 / (1 + np.exp(-(hidden @ layer.weight.numpy().T + layer.bias.numpy())))
            np.testing.assert_allclose(torch.cat([gamma, beta], 1)[..., 0, 0].numpy(), hidden, rtol=1e-5, atol=1e-6)
            assert gamma.shape == beta.shape and 0 < gamma.min() and gamma.max() < 1   # gamma = 1 is out of reach
    assert [layer.out_features for layer in generator.heads[0][::2]] == [64, 16, 6]
    with pytest.raises(SettingError, match=r"FILM-FORM.*did you mean 'sigmoid'"):
        FiLMGenerator(2, [3], form="sigmoidal")
