"""Surface Dice and HD95 against all distances worked out, and scikit-image; anisotropic voxels, odd and empty masks."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from msfilm.errors import RunError, SettingError
from msfilm.evaluate.surface import surface_scores

VOXEL = np.array([0.7, 0.5, 5.0])


def blobs(seed, shape=(17, 13, 7), share=0.5):
    rng = np.random.default_rng(seed)
    return [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.25 * (1 - share) for _ in range(2)]


def surface_mm(mask, voxel):
    """Coordinates in mm of the voxels with a face towards the outside."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(mask.ndim):
        for step in (1, -1):
            inner &= np.roll(padded, step, axis)
    return np.argwhere(padded & ~inner) * voxel


def by_hand(reference, prediction, voxel, tolerance):
    distances = cdist(surface_mm(reference, voxel), surface_mm(prediction, voxel))
    there, back = distances.min(axis=1), distances.min(axis=0)
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return near / (len(there) + len(back)), max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shape", "voxel"), [((17, 13, 7), VOXEL), ((9, 9, 9), np.ones(3)), ((21, 5), VOXEL[:2])])
def test_scores_are_those_of_all_distances(seed, shape, voxel):
    reference, prediction = blobs(seed, shape)
    for tolerance in (0.0, 0.6, 1.0, 5.0):
        found = surface_scores(reference, prediction, voxel, tolerance)
        expected = by_hand(reference, prediction, voxel, tolerance)
        assert (found.surface_dice, found.hd95_mm) == pytest.approx(expected, abs=1e-5)


def test_hd95_of_single_voxels_is_scikit_images_hausdorff_distance():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = np.zeros((2, 9, 7, 5), bool)
    a[1, 1, 1] = b[6, 4, 3] = True
    assert surface_scores(a, b, np.ones(3)).hd95_mm == pytest.approx(metrics.hausdorff_distance(a, b))
    assert surface_scores(a, b, VOXEL).hd95_mm == pytest.approx(np.linalg.norm(VOXEL * [5, 3, 2]), rel=1e-6)


def test_identical_masks_and_symmetry():
    a, b = blobs(7)
    assert surface_scores(a, a, VOXEL).as_dict() == {"surface_dice": 1.0, "hd95_mm": 0.0}
    assert surface_scores(a, b, VOXEL) == surface_scores(b, a, VOXEL)


def test_the_border_of_the_array_is_a_surface():
    full = np.ones((7, 7, 7), bool)
    hollow = full.copy()
    hollow[1:-1, 1:-1, 1:-1] = False
    # Without the border as surface the full mask would have none. The hollow one has an inner surface besides.
    assert surface_scores(full, full, np.ones(3)).surface_dice == 1
    assert surface_scores(full, hollow, np.ones(3)).surface_dice == 1
    within = np.pad(full, 3)
    assert surface_scores(within, within, np.ones(3)) == surface_scores(full, full, np.ones(3))


def test_the_empty_space_around_does_not_matter():
    a, b = blobs(3)
    wide = [np.pad(mask, ((2, 30), (5, 0), (0, 9))) for mask in (a, b)]
    assert surface_scores(*wide, VOXEL) == surface_scores(a, b, VOXEL)


def test_empty_masks():
    empty, one = np.zeros((2, 5, 5, 5), bool)
    one[2, 2, 2] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = surface_scores(empty, empty, VOXEL)
        assert np.isnan(both.surface_dice) and np.isnan(both.hd95_mm)
        for pair in ((one, empty), (empty, one)):
            found = surface_scores(*pair, VOXEL)
            assert found.surface_dice == 0 and found.hd95_mm == float("inf")
        assert surface_scores(one, one, VOXEL).surface_dice == 1


def test_wrong_settings_are_refused():
    mask = np.ones((3, 3, 3), bool)
    for arguments, code in [
        ((mask, mask[:2], VOXEL), "SCORE-SHAPE"), ((mask, 0.5 * mask, VOXEL), "SCORE-VALUES"),
        ((mask, mask, VOXEL[:2]), "SCORE-VOXEL"), ((mask, mask, -VOXEL), "SCORE-VOXEL"),
        ((mask, mask, VOXEL, -1.0), "SCORE-VOXEL"), ((mask, mask, VOXEL, float("nan")), "SCORE-VOXEL"),
        ((mask[None], mask[None], np.ones(4)), "SCORE-SHAPE"),
    ]:
        with pytest.raises(SettingError) as caught:
            surface_scores(*arguments)
        assert caught.value.code == code


def test_without_monai_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.metrics", None)
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(RunError, match=r"NEEDS-MONAI.*pip install monai"):
        surface_scores(mask, mask, VOXEL)
