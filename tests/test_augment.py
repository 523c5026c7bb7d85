"""Augmentation: image and masks stay together, sizes are what was asked, a config of zeros changes nothing."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from msfilm.errors import SettingError
from msfilm.train.augment import (
    NO_AUGMENT,
    PAPER_2020,
    AugmentConfig,
    affine_matrices,
    augment,
    bspline_basis,
    elastic_field,
    morph,
)

SIZES = [(48, 48), (47, 53)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine threads that wait for each other crawl."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n, h, w, seed=0):
    """Smooth blobs (N, 1, H, W) and the masks of where they exceed 0.5."""
    noise = np.random.default_rng(seed).normal(size=(n, h, w))
    smooth = np.stack([ndimage.gaussian_filter(a, 4.0, mode="nearest") for a in noise])
    smooth = 0.5 + smooth / smooth.std() / 4
    image = torch.from_numpy(smooth).float()[:, None]
    return image, (image > 0.5).to(torch.uint8)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_a_config_of_zeros_is_the_identity(h, w):
    image, mask = blobs(4, h, w)
    for config in (NO_AUGMENT, AugmentConfig(**{f.name: 0 for f in fields(AugmentConfig)})):
        out, out_mask = augment(image, mask, config, rng())
        assert torch.equal(out, image) and torch.equal(out_mask, mask)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_sampling_with_zero_amounts_is_the_identity_too(h, w):
    image, mask = blobs(4, h, w)
    config = AugmentConfig(affine_p=1, rotate_deg=0, scale=0, translate_mm=0, flip_lr_p=0, elastic_p=1, elastic_mm=1e-9,
                           intensity_p=1, brightness=0, contrast=0, gamma=0, bias=0, blur=0, noise=0)
    out, out_mask = augment(image, mask, config, rng())
    torch.testing.assert_close(out, image, atol=1e-5, rtol=0)
    assert torch.equal(out_mask, mask)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_image_and_masks_stay_together_under_geometry(h, w):
    """The mask is where the image exceeds 0.5: it has to be so afterwards, but for pixels at the very threshold."""
    image, mask = blobs(16, h, w)
    masks = torch.cat([mask, 1 - mask], dim=1)
    config = replace(AugmentConfig(), elastic_p=1.0, elastic_mm=1.0, intensity_p=0)
    out, out_masks = augment(image, masks, config, rng(1))
    assert out_masks.dtype == torch.uint8 and out_masks.shape == masks.shape
    assert set(out_masks.unique().tolist()) == {0, 1}
    assert (out - image).abs().mean() > 0.05                          # something did move
    wrong = (out_masks[:, :1].bool() != (out > 0.5)) & ((out - 0.5).abs() > 0.12)
    assert wrong.sum() == 0
    assert (out_masks[:, 0] != out_masks[:, 1]).float().mean() > 0.995  # mask and its opposite stay opposite


def test_a_flip_a_turn_and_a_shift_go_where_they_should():
    """Against NumPy and SciPy; pixels of 0.75 mm, so a shift by up to 1.5 mm is one by up to two pixels."""
    image, mask = blobs(1, 21, 21)

    def fixed(**kind):
        base = dict(affine_p=1, rotate_deg=0, scale=0, translate_mm=0, flip_lr_p=0, elastic_p=0, intensity_p=0)
        return AugmentConfig(**base | kind)

    flipped, flipped_mask = augment(image, mask, fixed(flip_lr_p=1), rng())
    torch.testing.assert_close(flipped, image.flip(-1), atol=1e-4, rtol=0)
    assert torch.equal(flipped_mask, mask.flip(-1))

    matrices = affine_matrices(1, 1.0, 90.0, 0.0, 0.0, 0.0, rng(3))
    angle = math.atan2(matrices[0, 1, 0].item(), matrices[0, 0, 0].item())
    turned, _ = augment(image, mask, fixed(rotate_deg=90), rng(3))
    expected = ndimage.rotate(image[0, 0].numpy(), math.degrees(angle), reshape=False, order=1, mode="nearest")
    assert abs(math.degrees(angle)) > 5
    np.testing.assert_allclose(turned[0, 0].numpy(), expected, atol=1e-4)

    shift = affine_matrices(1, 1.0, 0.0, 0.0, 2.0, 0.0, rng(4))[0, :, 2].numpy()   # x, y in pixels
    moved, _ = augment(image, mask, fixed(translate_mm=1.5), rng(4), spacing_mm=0.75)
    expected = ndimage.shift(image[0, 0].numpy(), (-shift[1], -shift[0]), order=1, mode="nearest")
    np.testing.assert_allclose(moved[0, 0].numpy(), expected, atol=1e-4)


def test_affine_ranges_are_those_asked_for():
    m = affine_matrices(4000, 1.0, 20.0, 0.1, 3.0, 0.5, rng())
    size = 1 / torch.linalg.det(m[:, :, :2]).abs().sqrt()
    assert size.min() > 0.9 and size.min() < 0.905 and size.max() < 1.1 and size.max() > 1.095
    angle = torch.rad2deg(torch.atan2(-m[:, 0, 1], m[:, 1, 1]))
    assert angle.abs().max() < 20.001 and angle.abs().max() > 19.8 and abs(angle.mean()) < 0.6
    assert 2.99 < m[:, :, 2].abs().max() <= 3
    assert (torch.linalg.det(m[:, :, :2]) < 0).float().mean() == pytest.approx(0.5, abs=0.03)
    some = affine_matrices(4000, 0.3, 20.0, 0.1, 3.0, 0.0, rng(1))
    still = (some == torch.tensor([[1.0, 0, 0], [0, 1, 0]])).all(2).all(1)
    assert still.float().mean() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("asked", [0.5, 1.15, 2.0])
def test_the_elastic_field_moves_as_far_as_asked(h, w, asked):
    """Earlier code moved by 0.11 pixels where 1.15 were meant, which nobody saw: here both averages are held."""
    field = elastic_field(400, h, w, asked, rng())
    assert field.shape == (400, h, w, 2)
    for axis in range(2):
        assert field[..., axis].square().mean().sqrt().item() == pytest.approx(asked, rel=0.03)
    distance = field.norm(dim=-1).mean().item()            # normal along both axes: the mean is rms * sqrt(pi / 2)
    assert distance == pytest.approx(asked * math.sqrt(math.pi / 2), rel=0.03)
    assert field.mean().abs() < 0.05 * asked
    steepest = (field[:, 1:, :, 1] - field[:, :-1, :, 1]).abs().max()
    assert steepest < 1 or asked > 1.5                      # no folding at the strengths in use


def test_the_elastic_field_differs_along_both_axes_and_between_slices():
    field = elastic_field(2, 48, 48, 1.0, rng())
    assert field.std(dim=1).min() > 0.05 and field.std(dim=2).min() > 0.05
    assert (field[0] - field[1]).abs().mean() > 0.3


def test_an_image_is_displaced_as_far_as_asked():
    """On an image whose value is x, what is read shows the displacement itself."""
    x = torch.arange(48.0).expand(64, 1, 48, 48) * 0.75                        # value = place in mm
    out, _ = augment(x, torch.zeros(64, 1, 48, 48, dtype=torch.uint8),
                     replace(NO_AUGMENT, elastic_p=1.0, elastic_mm=0.86), rng(), spacing_mm=0.75)
    inner = (out - x)[..., 8:-8]                                               # away from the padded border
    assert inner.square().mean().sqrt().item() == pytest.approx(0.86, rel=0.06)


@pytest.mark.parametrize(("size", "points"), [(48, 9), (47, 9), (5, 5), (2, 4)])
def test_bspline_basis_is_scipys(size, points):
    knots = np.arange(points + 4) - 2.0                       # control point j sits at u = j
    u = np.linspace(1, points - 2, size)
    u[-1] -= 1e-9                                             # scipy leaves out the right end
    expected = BSpline.design_matrix(u, knots, 3).toarray()
    np.testing.assert_allclose(bspline_basis(size, points).numpy(), expected, atol=1e-6)


def test_morphology_is_scipys():
    mask = (torch.rand(6, 2, 13, 17, generator=rng()) > 0.6).to(torch.uint8)
    cross = ndimage.generate_binary_structure(2, 1)
    kinds = set()
    for seed in range(4):
        out = morph(mask, 0.6, rng(seed))
        assert out.dtype == torch.uint8
        for before, after in zip(mask.numpy(), out.numpy(), strict=True):
            options = {"same": before, "grown": np.stack([ndimage.binary_dilation(m, cross) for m in before]),
                       "shrunk": np.stack([ndimage.binary_erosion(m, cross, border_value=1) for m in before])}
            found = [kind for kind, option in options.items() if np.array_equal(option, after)]
            assert len(found) == 1
            kinds |= set(found)
    assert kinds == {"same", "grown", "shrunk"}


def test_altered_ground_truth_leaves_the_image_alone():
    image, mask = blobs(64, 47, 53)
    for config in (replace(NO_AUGMENT, mask_morphology_p=0.5), replace(NO_AUGMENT, mask_move_p=0.5)):
        out, out_mask = augment(image, mask, config, rng())
        torch.testing.assert_close(out, image, atol=1e-5, rtol=0)
        changed = (out_mask != mask).flatten(1).any(1).float().mean().item()
        assert 0.3 < changed < 0.7
        assert (out_mask != mask).float().mean() < 0.1


def test_the_masks_own_shift_is_as_large_as_asked_and_follows_the_geometry():
    mask = torch.zeros(200, 1, 41, 41, dtype=torch.uint8)
    mask[:, :, 15:26, 15:26] = 1
    config = replace(NO_AUGMENT, flip_lr_p=1.0, mask_move_p=1.0, mask_shift_mm=3.0, mask_rotate_deg=0, mask_scale=0)
    _, out = augment(mask.float(), mask, config, rng(), spacing_mm=1.0)
    y, x = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    size = out.sum((1, 2, 3))
    off = torch.stack([(out[:, 0] * axis).sum((1, 2)) / size - 20 for axis in (x, y)])
    assert off.abs().max() < 3.5 and off.std().item() == pytest.approx(3 / math.sqrt(3), rel=0.1)


def test_intensity_changes_leave_geometry_and_masks_alone():
    image, mask = blobs(32, 47, 53)
    config = replace(AugmentConfig(), affine_p=0, flip_lr_p=0, elastic_p=0, intensity_p=1.0)
    out, out_mask = augment(image, mask, config, rng())
    assert torch.equal(out_mask, mask) and torch.isfinite(out).all()
    assert (out - image).abs().mean() > 0.03
    for before, after in zip(image, out, strict=True):
        assert np.corrcoef(before.flatten(), after.flatten())[0, 1] > 0.7


@pytest.mark.parametrize(("name", "amount"), [("brightness", 0.3), ("contrast", 0.4), ("gamma", 0.5), ("bias", 0.2),
                                              ("blur", 0.9), ("noise", 0.1)])
def test_each_intensity_change_does_what_its_name_says(name, amount):
    off = {key: 0.0 for key in ("brightness", "contrast", "gamma", "bias", "blur", "noise")}
    config = replace(NO_AUGMENT, intensity_p=1.0, **(off | {name: amount}))
    image = torch.rand(400, 1, 24, 25, generator=rng(7)) + 0.5
    image[:, :, 12, 12] = 1.0                                                   # the cord's level
    out, _ = augment(image, torch.zeros_like(image, dtype=torch.uint8), config, rng(8))
    change = out - image
    if name == "brightness":
        assert change.flatten(1).std(1).max() < 1e-5
        assert change.std().item() == pytest.approx(0.3 / math.sqrt(3), rel=0.1)
    elif name in ("contrast", "gamma"):
        torch.testing.assert_close(out[:, :, 12, 12], torch.ones(400, 1))       # stays
        slope = change.flatten(1).std(1) / image.flatten(1).std(1)
        assert 0.25 < slope.max() < 0.7
    elif name == "bias":
        assert torch.log(out / image).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.1)
        assert torch.log(out / image).diff(dim=-1).abs().max() < 0.15             # smooth
    elif name == "blur":
        assert (out.flatten(1).std(1) < image.flatten(1).std(1)).float().mean() > 0.95
    else:
        assert change.square().mean().item() == pytest.approx(0.1**2 / 3, rel=0.1)  # sd uniform from 0 to 0.1


@pytest.mark.parametrize("config", [AugmentConfig(mask_morphology_p=0.5, mask_move_p=0.5), PAPER_2020])
def test_the_same_generator_gives_the_same_batch_and_nothing_else_does(config):
    image, mask = blobs(8, 47, 53)
    before = torch.get_rng_state()
    a, b, c = (augment(image, mask, config, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])
    assert torch.equal(before, torch.get_rng_state())


def test_the_papers_settings():
    assert (PAPER_2020.rotate_deg, PAPER_2020.scale, PAPER_2020.elastic_p) == (4.6, 0.03, 0.1)
    assert PAPER_2020.translate_mm == pytest.approx(0.02 * 36)
    assert PAPER_2020.elastic_mm == pytest.approx(1.15 * 0.75, abs=0.01)
    assert PAPER_2020.intensity_p == PAPER_2020.mask_morphology_p == PAPER_2020.mask_move_p == 0


@pytest.mark.parametrize(("change", "words"), [
    ({"elastic_p": 1.2}, "elastic_p=1.2.*0 to 1"), ({"rotate_deg": -3}, "rotate_deg=-3.*0 or more"),
    ({"scale": 1.0}, "scale=1.0.*below 1"), ({"noise": float("nan")}, "noise=nan"), ({"blur": "much"}, "blur='much'"),
])
def test_wrong_settings_are_named(change, words):
    with pytest.raises(SettingError, match=words):
        AugmentConfig(**change)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 1, 4, 5\)"):
        augment(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5), NO_AUGMENT, rng())
