"""Augmentation: image and masks stay together, sizes are what was asked, a config of zeros changes nothing."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from msfilm.errors import SettingError
from msfilm.train.alter import MASK_OPERATIONS, ramp_matrix, soft_rims
from msfilm.train.augment import (
    ALTERED_TRUTH,
    NO_AUGMENT,
    PAPER_2020,
    AugmentConfig,
    affine_matrices,
    augment,
    bspline_basis,
    elastic_field,
    morph,
    with_altered_truth,
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
    for config in (NO_AUGMENT, AugmentConfig(**{f.name: 0 for f in fields(AugmentConfig)
                                                if f.name != "mask_operations"})):
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


@pytest.mark.parametrize(("h", "w"), [(48, 48), (13, 17), (2, 3), (1, 1)])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.8, 1.0, 0.0])
def test_each_operation_is_scipys_also_at_the_border(h, w, share):
    """Beyond the slice nothing counts: that is SciPy on a slice whose edge pixels are repeated outwards."""
    mask = torch.rand(5, 2, h, w, generator=rng()) < share
    cross = ndimage.generate_binary_structure(2, 1)

    def grow(m):
        return ndimage.binary_dilation(m, cross, border_value=0)

    def shrink(m):
        return ndimage.binary_erosion(m, cross, border_value=1)

    theirs = {"dilate": grow, "erode": shrink, "open": lambda m: grow(shrink(m)), "close": lambda m: shrink(grow(m))}
    assert set(theirs) == set(MASK_OPERATIONS)
    for name, operation in MASK_OPERATIONS.items():
        expected = np.stack([np.stack([theirs[name](m) for m in masks]) for masks in mask.numpy()])
        np.testing.assert_array_equal(operation(mask).numpy(), expected, err_msg=name)
    if min(h, w) > 6:   # away from the border SciPy's own opening and closing
        for name, whole in (("open", ndimage.binary_opening), ("close", ndimage.binary_closing)):
            expected = whole(mask[0, 0].numpy(), cross)[3:-3, 3:-3]
            np.testing.assert_array_equal(MASK_OPERATIONS[name](mask)[0, 0, 3:-3, 3:-3].numpy(), expected)


def test_laws_of_morphology():
    mask = torch.rand(8, 1, 31, 29, generator=rng()) > 0.5
    dilate, erode, opened, closed = (MASK_OPERATIONS[name] for name in ("dilate", "erode", "open", "close"))
    assert torch.equal(dilate(mask), ~erode(~mask)) and torch.equal(opened(mask), ~closed(~mask))
    for small, large in ((erode(mask), opened(mask)), (opened(mask), mask), (mask, closed(mask)),
                         (closed(mask), dilate(mask))):
        assert (small <= large).all() and (small != large).any()
    assert torch.equal(opened(opened(mask)), opened(mask)) and torch.equal(closed(closed(mask)), closed(mask))


def test_the_operations_named_are_drawn_equally_often():
    mask = torch.zeros(4000, 2, 15, 15, dtype=torch.uint8)
    mask[:, :, 4:9, 4:9] = 1
    mask[:, :, 6, 6] = 0                                     # a hole, that closing fills
    mask[:, 1] = 1 - mask[:, 1]
    for names in (("dilate", "erode", "open", "close"), ("close", "dilate"), ("erode",)):
        out = morph(mask, 0.6, rng(), names)
        left = torch.ones(len(mask), dtype=torch.bool)
        for name in names:
            done = (out.bool() == MASK_OPERATIONS[name](mask[:1].bool())).flatten(1).all(1)   # both masks the same one
            assert done.float().mean().item() == pytest.approx(0.6 / len(names), abs=0.03)
            left &= ~done
        assert (out[left] == mask[left]).all() and left.float().mean().item() == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(("lesion", "survives"), [((1, 1), False), ((2, 2), False), ((2, 9), False), ((3, 3), True)])
def test_eroding_and_opening_take_away_what_is_two_pixels_thin(lesion, survives):
    """Raters miss small lesions too. In the setting recommended the likelier answer stays: the lesion is there."""
    mask = torch.zeros(4000, 1, 21, 21, dtype=torch.uint8)
    mask[:, :, 10:10 + lesion[0], 10:10 + lesion[1]] = 1
    for name in ("erode", "open"):
        assert MASK_OPERATIONS[name](mask[:1].bool()).any() == survives
    out = morph(mask, ALTERED_TRUTH.mask_morphology_p, rng(), ALTERED_TRUTH.mask_operations)
    gone = 1 - out.flatten(1).any(1).float().mean().item()
    assert gone == (0 if survives else pytest.approx(0.2, abs=0.02))
    everything = with_altered_truth(NO_AUGMENT)
    _, soft = augment(mask.float(), mask, everything, rng())
    mean = soft[:, :, 10:10 + lesion[0], 10:10 + lesion[1]].mean().item()
    assert (mean > 0.5) == (lesion != (1, 1)) and mean > 0.45       # what BCE would learn: a lone pixel falls to .48
    assert soft.sum().item() == pytest.approx(mask.sum().item(), rel=0.12)


@pytest.mark.parametrize("width", [0.4, 1.0, 1.5, 2.0, 3.7])
def test_a_soft_rim_is_a_linear_ramp_as_wide_as_asked(width):
    """Against the ramp's mean over each pixel, by fine sampling; edge between columns 9 and 10."""
    mask = torch.zeros(1, 2, 19, 21)
    mask[:, :, :, :10] = 1
    mask[:, 1] = 1 - mask[:, 1]
    fine = (np.arange(21 * 1000) + 0.5) / 1000                               # place along x, in pixels
    expected = np.clip(0.5 - (fine - 10) / width, 0, 1).reshape(21, 1000).mean(1)
    out = soft_rims(mask, width)
    np.testing.assert_allclose(out[0, 0].numpy(), np.tile(expected, (19, 1)), atol=1e-5)
    torch.testing.assert_close(out[:, 0] + out[:, 1], torch.ones(1, 19, 21))  # a mask and its opposite stay so


@pytest.mark.parametrize(("h", "w"), [(48, 48), (13, 17), (2, 3), (1, 1)])
@pytest.mark.parametrize("width", [0.0, 1.0, 2.3, 9.0])
def test_soft_rims_keep_sums_constants_and_range(h, w, width):
    mask = (torch.rand(5, 2, h, w, generator=rng()) > 0.7).float()
    out = soft_rims(mask, width)
    torch.testing.assert_close(out.sum((2, 3)), mask.sum((2, 3)), rtol=1e-5, atol=1e-4)
    assert 0 <= out.min() and out.max() <= 1
    for constant in (torch.zeros(1, 1, h, w), torch.ones(1, 1, h, w)):
        torch.testing.assert_close(soft_rims(constant, width), constant)
    matrix = ramp_matrix(h, width)
    assert torch.equal(matrix, matrix.T) and matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(1), torch.ones(h))
    assert width or torch.equal(out, mask)


def test_soft_rims_go_to_the_share_of_slices_asked_for_and_leave_the_rest():
    image, mask = blobs(400, 25, 23)
    masks = torch.cat([mask, 1 - mask], 1)
    config = replace(NO_AUGMENT, mask_soft_p=0.3, mask_soft_mm=2.0)
    out_image, out = augment(image, masks, config, rng(), spacing_mm=0.8)
    assert torch.equal(out_image, image) and out.dtype == torch.float32 and out.shape == masks.shape
    soft = ((out > 0) & (out < 1)).flatten(1).any(1)
    assert soft.float().mean().item() == pytest.approx(0.3, abs=0.07)
    assert torch.equal(out[~soft], masks[~soft].float())
    torch.testing.assert_close(out[soft], soft_rims(masks[soft].float(), 2.5))
    none = augment(image, masks, replace(config, mask_soft_p=0.0), rng())[1]
    assert none.dtype == torch.uint8 and torch.equal(none, masks)


def test_a_soft_rim_keeps_the_part_of_a_pixel_that_a_threshold_loses():
    """A lesion of one pixel moved by half of one: hard masks lose it or double it, soft ones keep its volume."""
    mask = torch.zeros(3000, 1, 15, 15, dtype=torch.uint8)
    mask[:, :, 7, 7] = 1
    move = replace(NO_AUGMENT, mask_move_p=1.0, mask_shift_mm=1.0, mask_rotate_deg=0, mask_scale=0)
    hard = augment(mask.float(), mask, move, rng(), spacing_mm=1.0)[1].sum((1, 2, 3))
    for width_mm in (0.0, 1.0, 2.0):
        config = replace(move, mask_soft_p=1.0, mask_soft_mm=width_mm)
        soft = augment(mask.float(), mask, config, rng(), spacing_mm=1.0)[1].sum((1, 2, 3))
        torch.testing.assert_close(soft, torch.ones(3000), atol=1e-4, rtol=0)
    assert (hard == 0).float().mean() > 0.2


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_altered_truth_keeps_the_mean_volume_and_hardens_back_to_the_mask(h, w):
    image, mask = blobs(300, h, w)
    out_image, out = augment(image, mask, with_altered_truth(NO_AUGMENT), rng())
    assert torch.allclose(out_image, image, atol=1e-5) and 0 <= out.min() and out.max() <= 1
    assert out.sum().item() == pytest.approx(mask.sum().item(), rel=0.01)
    assert ((out > 0.5) != mask.bool()).float().mean() < 0.08
    # All that differs lies within two pixels of the rim or so
    far = torch.from_numpy(np.stack([ndimage.distance_transform_edt(m) + ndimage.distance_transform_edt(1 - m)
                                     for m in mask[:, 0].numpy()])) > 5
    assert ((out[:, 0] - mask[:, 0])[far].abs() > 0.01).float().mean() < 0.001


def test_the_recommended_alteration_moves_outlines_as_far_as_raters_do():
    """A straight edge's place, from its volume: standard deviation near the phantom's .32 (narrow) to .40 mm (wide)."""
    mask = torch.zeros(2000, 1, 49, 49, dtype=torch.uint8)
    mask[:, :, :, :25] = 1
    _, out = augment(mask.float(), mask, replace(with_altered_truth(NO_AUGMENT), mask_rotate_deg=0), rng())
    place = out[:, 0, 24].sum(1) * 0.75
    assert place.mean().item() == pytest.approx(25 * 0.75, abs=0.05)
    assert 0.32 < place.std().item() < 0.45


def test_strength_scales_the_alteration_and_zero_turns_it_off():
    base = replace(PAPER_2020, elastic_p=0.7, mask_move_p=0.9)
    off, full, beyond = (with_altered_truth(base, strength) for strength in (0, 1.0, 9))
    names = ("mask_morphology_p", "mask_soft_p", "mask_move_p")
    assert [getattr(off, name) for name in names] == [0, 0, 0]
    assert [getattr(full, name) for name in names] == [0.4, 0.5, 0.5]
    assert [getattr(beyond, name) for name in names] == [1, 1, 1]
    assert [getattr(with_altered_truth(base, 0.5), name) for name in names] == [0.2, 0.25, 0.25]
    for config in (off, full, beyond):
        assert all(getattr(config, f.name) == getattr(base, f.name) for f in fields(base) if "mask" not in f.name)
    assert with_altered_truth(AugmentConfig()) == ALTERED_TRUTH
    for strength in (-0.1, float("nan"), float("inf"), "much", True):
        with pytest.raises(SettingError, match="strength="):
            with_altered_truth(base, strength)


@pytest.mark.parametrize("config", [AugmentConfig(), ALTERED_TRUTH, AugmentConfig(mask_operations=["close"])])
def test_a_config_goes_through_json(config):
    again = AugmentConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config and isinstance(again.mask_operations, tuple) and hash(again) == hash(config)
    assert AugmentConfig(mask_operations="open").mask_operations == ("open",)


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


@pytest.mark.parametrize("config", [AugmentConfig(mask_morphology_p=0.5, mask_move_p=0.5), PAPER_2020, ALTERED_TRUTH])
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
    ({"mask_operations": ["dilate", "errode"]}, "did you mean 'erode'"), ({"mask_soft_p": 2}, "mask_soft_p=2.*0 to 1"),
    ({"mask_operations": []}, "one or more of dilate, erode, open, close"), ({"mask_operations": [3]}, "use one of"),
    ({"mask_operations": ("open", "open")}, "each once"), ({"mask_operations": None}, "mask_operations=None"),
])
def test_wrong_settings_are_named(change, words):
    with pytest.raises(SettingError, match=words):
        AugmentConfig(**change)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 1, 4, 5\)"):
        augment(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5), NO_AUGMENT, rng())
