"""Scores of one volume against formulas, MONAI, SimpleITK, scikit-image and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, compute_dice, get_confusion_matrix
from scipy import ndimage

from msfilm.errors import SettingError
from msfilm.evaluate.metrics import (
    EMPTY_RULES,
    LESION_RULES,
    apply_empty_rule,
    dice,
    lesion_labels,
    lesion_scores,
    lesion_scores_by_size,
    pool_sizes,
    volume_scores,
)

NEIGHBOURS = {"any": 3, "iou": 3, "overlap10": 1, "ivadomed": 2}  # as scipy and scikit-image count: 26, 26, 6, 18


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


DEGENERATE = {
    "both empty": (np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)),
    "one empty": (np.ones((3, 4, 5), bool), np.zeros((3, 4, 5), bool)),
    "other empty": (np.zeros((1, 1, 1), bool), np.ones((1, 1, 1), bool)),
    "both full": (np.ones((5, 1, 3), bool), np.ones((5, 1, 3), bool)),
    "one voxel each": (np.eye(3, dtype=bool)[None] & (np.arange(3) == 0), np.eye(3, dtype=bool)[None]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_voxel_scores_of_degenerate_masks_agree_with_monai_and_simpleitk(name):
    import SimpleITK as sitk

    reference, prediction = DEGENERATE[name]
    found = volume_scores(reference, prediction, 1.0)
    a, b = (torch.from_numpy(np.ascontiguousarray(m))[None, None].float() for m in (reference, prediction))
    theirs = compute_dice(b, a, ignore_empty=False).item()  # MONAI leaves a volume without lesion out unless told
    assert (1.0 if np.isnan(found.dice) else found.dice) == pytest.approx(theirs)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    images = [sitk.GetImageFromArray(np.ascontiguousarray(m).astype(np.uint8)) for m in (prediction, reference)]
    if reference.any() and prediction.any():
        measures.Execute(*images)
        assert found.dice == pytest.approx(measures.GetDiceCoefficient())
        assert found.recall == pytest.approx(1 - measures.GetFalseNegativeError())
        assert found.precision == pytest.approx(1 - measures.GetFalseDiscoveryRate())


@pytest.mark.parametrize("rule", LESION_RULES)
@pytest.mark.parametrize("seed", range(3))
def test_lesions_of_every_rule_agree_with_a_loop_over_scikit_images_labels(seed, rule):
    measure = pytest.importorskip("skimage.measure")
    reference, prediction = masks(seed, (15, 11, 9), share=0.06)
    prediction |= ndimage.binary_dilation(reference & (np.arange(9) < 4), np.ones((2, 2, 1)))
    least = 3 if rule in ("any", "iou") else 1

    def objects(mask):
        labels = measure.label(mask, connectivity=NEIGHBOURS[rule])
        return [labels == i for i in range(1, labels.max() + 1)]

    def found(lesion, other, others, is_reference):
        shared = (lesion & other).sum()
        if rule == "iou":
            return any((lesion & o).sum() / (lesion | o).sum() > 0.1 for o in others)
        if rule == "overlap10" and is_reference:
            return shared / lesion.sum() >= 0.1
        return shared >= (3 if rule == "ivadomed" else 1)

    of_r, of_p = objects(reference), objects(prediction)
    hit_r = [found(o, prediction, of_p, True) for o in of_r if o.sum() >= least]
    hit_p = [found(o, reference, of_r, False) for o in of_p if o.sum() >= least]
    scores = lesion_scores(reference, prediction, rule=rule)
    assert (scores.reference_lesions, scores.found) == (len(hit_r), sum(hit_r))
    assert (scores.prediction_lesions, scores.true) == (len(hit_p), sum(hit_p))
    assert scores.sensitivity == pytest.approx(sum(hit_r) / len(hit_r))
    false, missed, tp = len(hit_p) - sum(hit_p), len(hit_r) - sum(hit_r), sum(hit_r)
    if rule in ("overlap10", "ivadomed"):  # as published: true positives are reference lesions
        assert scores.precision == pytest.approx(tp / (tp + false))
        assert scores.f1 == pytest.approx(2 * tp / (2 * tp + false + missed))
    else:
        assert scores.precision == pytest.approx(sum(hit_p) / len(hit_p))


def test_a_perfectly_found_two_voxel_lesion_under_each_rule():
    mask = np.zeros((7, 7, 3), bool)
    mask[3, 3:5, 1] = True
    assert np.isnan(lesion_scores(mask, mask, rule="any").f1)  # no lesion
    missed = lesion_scores(mask, mask, rule="ivadomed")
    assert (missed.reference_lesions, missed.found, missed.f1) == (1, 0, 0)  # the defect of the paper's own code
    assert missed.prediction_lesions - missed.true == 1  # and counted as false besides
    assert lesion_scores(mask, mask, rule="overlap10").f1 == 1
    mask[3, 5, 1] = True
    assert lesion_scores(mask, mask, rule="ivadomed").f1 == 1  # from 3 voxels on it counts


def test_one_prediction_has_other_scores_under_the_rules_of_prior_work():
    reference, prediction = np.zeros((2, 30, 9, 3), bool)
    reference[1:11, 1:3, 1] = True  # 20 voxels, of which 1 is marked: below a tenth
    prediction[1, 1, 1] = True
    reference[15:25, 1:3, 1] = True  # 20 voxels, of which 2 are marked, in two pieces: a tenth
    prediction[16, 1, 1] = prediction[22, 2, 1] = True
    assert (lesion_scores(reference, prediction, min_voxels=1).sensitivity,
            lesion_scores(reference, prediction, rule="overlap10").sensitivity,
            lesion_scores(reference, prediction, rule="ivadomed").sensitivity) == (1.0, 0.5, 0.0)
    assert lesion_scores(reference, prediction, rule="overlap10").precision == 1  # two pieces count as one lesion


def test_touching_corners_are_one_lesion_or_several():
    mask = np.zeros((5, 5, 5), bool)
    mask[0:2, 0, 0] = mask[2:4, 1, 1] = True  # touch by a corner
    edges = np.zeros((5, 5, 5), bool)
    edges[0:2, 0, 0] = edges[2:4, 1, 0] = True  # touch by an edge
    for rule, corners, by_edges in (("any", 1, 1), ("ivadomed", 2, 1), ("overlap10", 2, 2)):
        assert lesion_scores(mask, mask, rule=rule).reference_lesions == corners
        assert lesion_scores(edges, edges, rule=rule).reference_lesions == by_edges


@pytest.mark.parametrize("rule", LESION_RULES)
def test_every_rule_scores_empty_masks_alike(rule):
    empty, one = np.zeros((2, 6, 6, 6), bool)
    one[1:5, 1, 1] = True
    assert np.isnan(lesion_scores(empty, empty, rule=rule).f1)
    assert lesion_scores(one, empty, rule=rule).f1 == lesion_scores(empty, one, rule=rule).f1 == 0
    assert np.isnan(lesion_scores(one, empty, rule=rule).precision)
    assert lesion_scores(one, one, rule=rule).f1 == 1


def test_by_size_each_lesion_is_in_the_bin_of_its_own_volume():
    reference, prediction = np.zeros((2, 20, 20, 5), bool)
    reference[0:3, 0, 0] = prediction[0, 0, 0] = prediction[0:3, 1, 0] = True  # 6 mm3; the marked one 8 mm3
    reference[10:15, 10:15, 2] = prediction[10:15, 10:20, 2] = True  # 50 mm3: begins a bin; the marked one 100 mm3
    reference[0:6, 15:18, 4] = True  # 36 mm3, missed
    prediction[17:20, 0, 0] = True  # 6 mm3, false
    table = lesion_scores_by_size(reference, prediction, 2.0, edges_mm3=(0, 7, 50, 100))
    assert table["low_mm3"].tolist() == [0, 7, 50, 100] and table["high_mm3"].tolist() == [7, 50, 100, np.inf]
    assert table["reference_lesions"].tolist() == [1, 1, 1, 0] and table["found"].tolist() == [1, 0, 1, 0]
    assert table["prediction_lesions"].tolist() == [1, 1, 0, 1] and table["true"].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(table["sensitivity"], [1, 0, 1, np.nan])
    np.testing.assert_array_equal(table["precision"], [0, 1, np.nan, 1])
    with pytest.raises(SettingError, match="SCORE-BINS"):
        lesion_scores_by_size(reference, prediction, 2.0, edges_mm3=(10, 5))


@pytest.mark.parametrize("rule", LESION_RULES)
def test_bins_of_several_volumes_add_up_to_all_lesions(rule):
    pairs = [masks(seed, (13, 9, 7), share=0.05) for seed in range(4)]
    pooled = pool_sizes(lesion_scores_by_size(*pair, 2.0, edges_mm3=(0, 4, 8), rule=rule) for pair in pairs)
    whole = [lesion_scores(*pair, rule=rule) for pair in pairs]
    for name in ("reference_lesions", "prediction_lesions", "found", "true"):
        assert pooled[name].sum() == sum(getattr(scores, name) for scores in whole)
    filled = pooled["reference_lesions"] > 0
    np.testing.assert_allclose(pooled["sensitivity"][filled], (pooled["found"] / pooled["reference_lesions"])[filled])


def test_an_unknown_lesion_rule_is_named():
    with pytest.raises(SettingError, match=r"SCORE-RULE.*did you mean 'overlap10'"):
        lesion_scores(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), rule="overlap")


@pytest.mark.parametrize(("mask", "code"), [(np.full((4, 4, 4), 255), "SCORE-VALUES"),
                                            (np.full((4, 4, 4), 0.01), "SCORE-VALUES"),
                                            (np.ones((4, 4), bool), "SCORE-SHAPE")])
def test_only_a_mask_in_3d_has_lesions_to_number(mask, code):
    with pytest.raises(SettingError, match=code):
        lesion_labels(mask)
