"""Losses: by hand, against MONAI and torch, on empty batches and under autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceFocalLoss, DiceLoss, FocalLoss

from msfilm.train.loss import LOSSES, bce_loss, dice_bce_loss, dice_focal_loss, dice_loss, focal_loss


def batch(n=5, h=7, w=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, 1, h, w, generator=g) > 0.8).to(torch.uint8)
    targets[0] = 0    # a slice without lesion
    return torch.randn(n, 1, h, w, generator=g), targets


def test_dice_by_hand():
    logits = torch.full((2, 1, 1, 2), -100.0)
    logits[0, 0, 0, 0] = 100.0                     # p = [[1, 0], [0, 0]]
    targets = torch.tensor([[[[1, 1]]], [[[0, 0]]]])
    assert dice_loss(logits, targets).item() == pytest.approx(1 - (2 * 1 + 1) / (1 + 2 + 1))
    assert dice_loss(logits, targets, smooth=0.5).item() == pytest.approx(1 - 2.5 / 3.5)
    # Each slice by itself: 1 - 3/4 and 1 - 1/1
    assert dice_loss(logits, targets, per_slice=True).item() == pytest.approx((0.25 + 0.0) / 2)


@pytest.mark.parametrize("smooth", [1.0, 0.01])
@pytest.mark.parametrize("per_slice", [False, True])
def test_dice_equals_monai(smooth, per_slice):
    """MONAI adds smooth_nr above and smooth_dr below the same sums; both are our ``smooth``."""
    logits, targets = batch()
    logits.requires_grad_()
    theirs = DiceLoss(sigmoid=True, batch=not per_slice, smooth_nr=smooth, smooth_dr=smooth)(logits, targets.float())
    (gradient,) = torch.autograd.grad(theirs, logits)
    ours = dice_loss(logits, targets, smooth=smooth, per_slice=per_slice)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], gradient)


def test_dice_against_numpy_in_double():
    logits, targets = batch(seed=4)
    p, t = 1 / (1 + np.exp(-logits.double().numpy())), targets.numpy().astype(float)
    expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert dice_loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("per_slice", [False, True])
def test_a_batch_without_lesion_is_defined_and_pushes_the_answer_down(per_slice):
    logits = torch.zeros(3, 1, 5, 5, requires_grad=True)
    targets = torch.zeros(3, 1, 5, 5)
    loss = dice_loss(logits, targets, per_slice=per_slice)
    loss.backward()
    assert 0 < loss.item() < 1 and (logits.grad > 0).all()
    assert dice_loss(torch.full_like(targets, -100), targets, per_slice=per_slice).item() == 0.0


def test_bce_equals_torch_and_dice_bce_is_their_sum():
    logits, targets = batch()
    torch.testing.assert_close(bce_loss(logits, targets), torch.nn.BCEWithLogitsLoss()(logits, targets.float()))
    torch.testing.assert_close(dice_bce_loss(logits, targets), dice_loss(logits, targets) + bce_loss(logits, targets))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_computed_in_float32_under_autocast(name):
    logits, targets = batch(n=32, h=48, w=48)
    low = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](low, targets)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert torch.equal(loss, LOSSES[name](low.float(), targets))


def test_the_names_of_the_losses():
    assert list(LOSSES) == ["dice", "dice-per-slice", "bce", "focal", "dice-bce", "dice-focal"]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
def test_focal_equals_monai_and_the_formula(gamma, alpha):
    logits, targets = batch(h=13, w=17)
    logits = (3 * logits).requires_grad_()
    theirs = FocalLoss(gamma=gamma, alpha=alpha)(logits, targets.float())
    (gradient,) = torch.autograd.grad(theirs, logits)
    ours = focal_loss(logits, targets, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], gradient, atol=1e-7, rtol=1e-4)
    p, t = 1 / (1 + np.exp(-logits.detach().double().numpy())), targets.numpy()
    right, weight = np.where(t == 1, p, 1 - p), 1.0 if alpha is None else np.where(t == 1, alpha, 1 - alpha)
    assert ours.item() == pytest.approx((weight * -((1 - right) ** gamma) * np.log(right)).mean(), rel=1e-5)


def test_focal_on_soft_targets_is_the_formula_and_gamma_0_is_cross_entropy():
    logits, _ = batch(h=7, w=5)
    t = torch.rand(logits.shape, generator=torch.Generator().manual_seed(9))
    p, soft = 1 / (1 + np.exp(-logits.double().numpy())), t.double().numpy()
    entropy = -soft * np.log(p) - (1 - soft) * np.log(1 - p)
    assert focal_loss(logits, t).item() == pytest.approx(((soft - p) ** 2 * entropy).mean(), rel=1e-5)
    torch.testing.assert_close(focal_loss(logits, t, gamma=0), bce_loss(logits, t))


def test_dice_focal_equals_monai_and_is_the_sum():
    logits, targets = batch()
    theirs = DiceFocalLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0, gamma=2.0, alpha=0.3)
    torch.testing.assert_close(dice_focal_loss(logits, targets, alpha=0.3), theirs(logits, targets.float()))
    torch.testing.assert_close(LOSSES["dice-focal"](logits, targets), dice_loss(logits, targets)
                               + focal_loss(logits, targets))


def test_dice_on_soft_targets_equals_monai():
    logits, _ = batch(h=7, w=5)
    t = torch.rand(logits.shape, generator=torch.Generator().manual_seed(9))
    for per_slice in (False, True):
        theirs = DiceLoss(sigmoid=True, batch=not per_slice, smooth_nr=1.0, smooth_dr=1.0)(logits, t)
        torch.testing.assert_close(dice_loss(logits, t, per_slice=per_slice), theirs)


def test_which_answer_to_a_soft_target_is_best():
    """Cross-entropy and focal loss ask for the target itself, Dice for 0 or 1."""
    t = torch.full((1, 1, 9, 11), 0.6)
    answers = torch.linspace(0.01, 0.99, 99)

    def best(loss):
        return answers[torch.stack([loss(torch.full_like(t, torch.logit(p).item()), t) for p in answers]).argmin()]

    for name in ("bce", "focal"):
        assert best(LOSSES[name]).item() == pytest.approx(0.6, abs=1e-4)
    for name in ("dice", "dice-per-slice"):
        assert best(LOSSES[name]).item() == pytest.approx(0.99, abs=1e-4)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("kind", ["hard", "soft", "empty", "full"])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_loss_and_gradient_are_finite_for_extreme_logits(name, kind, size):
    logits, targets = batch(n=3, h=13, w=17)
    t = {"hard": targets.float(), "soft": torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)),
         "empty": torch.zeros(targets.shape), "full": torch.ones(targets.shape)}[kind]
    for sign in (1, -1):
        x = (logits.sign() * size * sign).requires_grad_()
        loss = LOSSES[name](x, t)
        loss.backward()
        assert torch.isfinite(loss) and loss >= 0 and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_perfect_answer_costs_nothing_and_a_better_one_less(name):
    _, targets = batch(h=13, w=17)
    right = (targets.float() * 2 - 1) * 60
    assert LOSSES[name](right, targets).item() == pytest.approx(0, abs=1e-6)
    costs = [LOSSES[name](right / 60 * x, targets).item() for x in (-4, -1, 0, 1, 4)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 5


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_are_those_of_finite_differences_of_the_loss(name):
    logits, _ = batch(n=2, h=2, w=3)
    t = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2))
    x = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](x, t), x)
    for place in np.ndindex(*logits.shape):
        step = torch.zeros_like(logits)
        step[place] = 0.02
        slope = (LOSSES[name](logits + step, t) - LOSSES[name](logits - step, t)) / 0.04
        assert slope.item() == pytest.approx(gradient[place].item(), abs=1e-4)


@pytest.mark.parametrize("loss", [dice_loss, bce_loss, focal_loss])
def test_shapes_that_differ_or_hold_nothing_are_named(loss):
    with pytest.raises(ValueError, match=loss.__name__ + r".*\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=loss.__name__ + r".*\(0, 1, 4, 4\)"):
        loss(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4))


@pytest.mark.parametrize("setting", [{"gamma": 0.5}, {"gamma": -1}, {"alpha": 1.5}])
def test_settings_of_the_focal_loss_that_make_no_sense_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        focal_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), **setting)
