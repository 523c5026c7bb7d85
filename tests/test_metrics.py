"""Scores of one volume against formulas, other libraries and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, get_confusion_matrix
from scipy import ndimage

from msfilm.errors import SettingError
from msfilm.evaluate.metrics import EMPTY_RULES, apply_empty_rule, dice, lesion_scores, volume_scores


def masks(seed=0, shape=(13, 17, 7), share=0.2):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < share, rng.random(shape) < share


@pytest.mark.parametrize("seed", range(4))
def test_voxel_scores_agree_with_monai(seed):
    reference, prediction = masks(seed, share=0.05 + 0.2 * seed)
    a, b = (torch.from_numpy(m)[None, None].float() for m in (reference, prediction))
    tp, fp, _, fn = get_confusion_matrix(b, a)[0, 0].tolist()
    found = volume_scores(reference, prediction, voxel_volume_mm3=0.5)
    assert found.dice == pytest.approx(float(DiceMetric()(b, a)))
    assert found.dice == dice(reference, prediction)
    assert found.precision == pytest.approx(tp / (tp + fp))
    assert found.recall == pytest.approx(tp / (tp + fn))
    assert found.false_mm3 == 0.5 * fp
    assert found.missed_mm3 == 0.5 * fn
    assert found.difference_mm3 == pytest.approx(found.prediction_mm3 - found.reference_mm3)
    assert found.reference_mm3 == 0.5 * reference.sum()


def test_empty_masks():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert np.isnan(dice(empty, empty))
    assert dice(full, empty) == dice(empty, full) == 0
    assert np.isnan(volume_scores(empty, full, 1).recall)
    assert volume_scores(empty, full, 2).false_mm3 == 54


def test_the_three_rules_for_empty_masks():
    # volumes: both empty; reference empty, prediction not; prediction empty, reference not; an ordinary one
    scores, reference_mm3 = np.array([np.nan, 0, 0, 0.6]), np.array([0, 0, 40, 50])
    assert tuple(EMPTY_RULES) == ("exclude", "one", "lesion-only")
    assert np.nanmean(apply_empty_rule(scores, reference_mm3)) == pytest.approx(0.2)
    assert np.nanmean(apply_empty_rule(scores, reference_mm3, "one")) == pytest.approx(0.4)
    assert np.nanmean(apply_empty_rule(scores, reference_mm3, "lesion-only")) == pytest.approx(0.3)
    with pytest.raises(SettingError, match="did you mean 'exclude'"):
        apply_empty_rule(scores, reference_mm3, "excluded")


def test_lesions_by_hand():
    reference, prediction = np.zeros((2, 20, 20, 5), bool)
    reference[2:5, 2:5, 1] = True  # found by a single voxel
    prediction[4, 4, 1] = prediction[5, 5, 1] = prediction[6, 6, 2] = True  # one lesion: corners touch
    reference[10:14, 10, 2] = True  # missed
    prediction[16:19, 16, 3] = True  # false
    reference[0, 10:12, 0] = True  # 2 voxels: no lesion
    prediction[0, 18, 0] = True  # 1 voxel: no lesion
    found = lesion_scores(reference, prediction)
    assert (found.reference_lesions, found.prediction_lesions, found.found, found.true) == (2, 2, 1, 1)
    assert (found.sensitivity, found.precision, found.f1) == (0.5, 0.5, 0.5)
    strict = lesion_scores(reference, prediction, rule="iou")  # overlap 1 of 11 voxels, below .1
    assert (strict.found, strict.true, strict.f1) == (0, 0, 0)


def test_a_predicted_lesion_on_a_tiny_reference_spot_is_not_false():
    reference, prediction = np.zeros((2, 9, 9, 3), bool)
    reference[4, 4, 1] = True
    prediction[3:6, 4, 1] = True
    found = lesion_scores(reference, prediction)
    assert (found.reference_lesions, found.true, found.precision) == (0, 1, 1.0)
    assert np.isnan(found.sensitivity)


@pytest.mark.parametrize("seed", range(3))
def test_lesion_scores_agree_with_a_loop_over_lesions(seed):
    reference, prediction = masks(seed, (15, 11, 9), share=0.04)
    reference, prediction = (ndimage.binary_dilation(m, np.ones((2, 2, 1))) for m in (reference, prediction))

    def loop(a, b):
        labels, n = ndimage.label(a, np.ones((3, 3, 3)))
        sizes = [(labels == i).sum() for i in range(1, n + 1)]
        hits = [(b & (labels == i)).any() for i in range(1, n + 1)]
        return sum(s >= 3 for s in sizes), sum(h and s >= 3 for h, s in zip(hits, sizes, strict=True))

    found = lesion_scores(reference, prediction)
    assert (found.reference_lesions, found.found) == loop(reference, prediction)
    assert (found.prediction_lesions, found.true) == loop(prediction, reference)


def test_lesion_scores_of_empty_masks():
    empty, one = np.zeros((2, 6, 6, 6), bool)
    one[1:4, 1, 1] = True
    assert np.isnan(lesion_scores(empty, empty).f1)
    assert lesion_scores(one, empty).f1 == lesion_scores(empty, one).f1 == 0
    assert np.isnan(lesion_scores(one, empty).precision)


@pytest.mark.parametrize(("a", "b", "code"), [
    (np.zeros((3, 3, 3)), np.zeros((3, 3, 4)), "SCORE-SHAPE"),
    (np.zeros((3, 3, 3)), np.full((3, 3, 3), 0.3), "SCORE-VALUES"),
    (np.full((3, 3, 3), 255, np.uint8), np.zeros((3, 3, 3)), "SCORE-VALUES"),
])
def test_what_is_no_pair_of_masks_is_refused(a, b, code):
    for score in (dice, lesion_scores, lambda r, p: volume_scores(r, p, 1.0)):
        with pytest.raises(SettingError) as caught:
            score(a, b)
        assert caught.value.code == code
