"""Losses: by hand, against MONAI and torch, on empty batches and under autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from msfilm.train.loss import LOSSES, bce_loss, dice_bce_loss, dice_loss


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


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        dice_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
