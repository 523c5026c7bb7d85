"""Agreement of raters: laws on synthetic masks, consensus counted by hand, MONAI's Dice, and the bisection."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from msfilm.data.slices import ScanMasks, SliceSet
from msfilm.errors import SettingError
from msfilm.evaluate.agreement import calibrate, consensus, pairwise_dice, panel_agreement, panel_masks, rater_agreement
from msfilm.evaluate.metrics import dice
from msfilm.evaluate.stats import bootstrap_ci

SHAPE = (13, 11, 5)
EMPTY = np.zeros(SHAPE, bool)


def some(seed, share=0.2):
    return np.random.default_rng(seed).random(SHAPE) < share


def box(*, x=slice(2, 6), z=slice(1, 4)):
    mask = EMPTY.copy()
    mask[x, 3:8, z] = True
    return mask


def test_pairwise_dice_is_the_formula_and_monais():
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    masks = {name: some(i, share) for i, (name, share) in enumerate({"a": 0.05, "b": 0.4, "c": 0.2}.items())}
    found = pairwise_dice(masks)
    assert list(found.index) == list(found.columns) == ["a", "b", "c"]
    for first, second in combinations(masks, 2):
        assert found.loc[first, second] == found.loc[second, first] == dice(masks[first], masks[second])
        theirs = monai.compute_dice(*(torch.from_numpy(masks[name])[None, None].float() for name in (first, second)))
        assert found.loc[first, second] == pytest.approx(theirs.item(), abs=1e-6)
    assert np.array_equal(np.diag(found), np.ones(3))


def test_identical_disjoint_and_empty_masks():
    left, right = box(x=slice(0, 4)), box(x=slice(6, 9))
    found = pairwise_dice([left, left.astype(np.uint8), right, EMPTY, EMPTY])
    assert list(found.index) == [f"rater-{i}" for i in range(1, 6)]
    assert found.iloc[0, 1] == 1 and found.iloc[0, 2] == 0
    assert found.iloc[0, 3] == 0 and np.isnan(found.iloc[3, 4]) and np.isnan(found.iloc[3, 3])


def test_consensus_by_hand():
    votes = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)  # a row a rater
    assert consensus(list(votes)).tolist() == [True, True, True, False, False]  # 2 of 4 is a tie: marked
    assert consensus(list(votes), 0).tolist() == [True, True, False, False, False]  # 2 of the other 3
    assert consensus(list(votes), 3).tolist() == [True, True, True, False, False]
    assert consensus(list(votes[:2])).tolist() == [True, True, True, True, False]  # of two: the union
    named = dict(zip("abcd", votes, strict=True))
    assert np.array_equal(consensus(named, "a"), consensus(list(votes), 0))
    assert np.array_equal(consensus(votes[:2], 0), votes[1])  # of one: what he marked


def test_a_volume_by_hand():
    masks, truth = {"a": some(1), "b": some(2), "c": some(3)}, some(4)
    found = rater_agreement([("p", masks, truth)])
    row = found.table.loc[0]
    assert row["patient"] == "p" and row["raters"] == 3
    assert row["pairwise"] == pytest.approx(np.mean([dice(masks[i], masks[j]) for i, j in combinations("abc", 2)]))
    assert row["truth"] == pytest.approx(np.mean([dice(truth, mask) for mask in masks.values()]))
    assert row["consensus"] == pytest.approx(np.mean([dice(consensus(masks, i), masks[i]) for i in "abc"]))
    by_slice = [dice(masks[i][..., z], masks[j][..., z]) for i, j in combinations("abc", 2) for z in range(SHAPE[2])]
    assert row["pairwise_slicewise"] == pytest.approx(np.mean(by_slice))
    assert found.row("pairwise", unit="slice")["scored"] == 3 * SHAPE[2]
    assert np.isnan(found.row()["low"])  # one patient: no interval


def test_the_rater_scored_is_not_in_his_consensus():
    """A rater who marks what nobody else does gains nothing from his own vote."""
    lonely = {"a": box(x=slice(0, 3)), "b": box(x=slice(6, 9)), "c": box(x=slice(6, 9))}
    scores = rater_agreement([("p", lonely, None)]).scores.query("unit == 'volume' and comparison == 'consensus'")
    # Against a: b and c agree. Against b: a and c tie, so both count.
    assert scores["first"].tolist() == ["a", "b", "c"]
    assert scores["dice"].tolist() == pytest.approx([0, 2 / 3, 2 / 3])


def test_two_empty_masks_under_the_three_rules():
    lesion, free = box(), EMPTY
    volumes = [
        ("p", {"a": lesion, "b": lesion}, lesion),  # 1
        ("p", {"a": lesion, "b": free}, lesion),  # one empty: 0
        ("q", {"a": free, "b": free}, free),  # both empty
        ("r", {"a": free, "b": lesion}, free),  # a false lesion: 0, and no lesion patient
        ("r", {"a": free, "b": free}, lesion),  # both missed it
    ]
    found = rater_agreement(volumes)
    assert found.table["pairwise"].fillna(-1).tolist() == [1, 0, -1, 0, -1]
    rows = {rule: found.row(rule=rule) for rule in ("exclude", "one", "lesion-only")}
    assert rows["exclude"]["dice"] == pytest.approx(1 / 3)
    assert (rows["exclude"]["scored"], rows["exclude"]["volumes"]) == (3, 3)
    assert rows["one"]["dice"] == pytest.approx(3 / 5) and rows["one"]["patients"] == 3
    assert rows["lesion-only"]["dice"] == pytest.approx(1 / 2) and rows["lesion-only"]["patients"] == 1
    assert {row["both_empty"] for row in rows.values()} == {2}
    # Slices of a volume with a lesion may be empty in both masks too.
    assert found.row(unit="slice", rule="exclude")["both_empty"] == 2 * SHAPE[2] + 3 * (SHAPE[2] - 3)
    # A rater is compared with the other one's mask: volumes in which that is empty are left out.
    others = found.scores.query("unit == 'volume' and comparison == 'consensus' and reference_voxels > 0")
    assert sorted(zip(others["volume"], others["first"], strict=True)) == [(0, "a"), (0, "b"), (1, "b"), (3, "a")]
    assert found.row("consensus", rule="lesion-only")["scored"] == 4
    # Without the truth the lesion patients are those of the raters' consensus (here: of two, the union).
    unknown = rater_agreement([(patient, masks, None) for patient, masks, _ in volumes])
    assert unknown.row(rule="lesion-only")["scored"] == 3 and "truth" not in unknown.table


def test_the_summary_is_the_patient_bootstrap_of_the_scores():
    volumes = [(f"p{i // 2}", {name: some(9 * i + k) for k, name in enumerate("abcd")}, some(i)) for i in range(8)]
    found = rater_agreement(iter(volumes), names=[f"scan{i}" for i in range(8)], n=300, seed=5)
    for comparison in ("pairwise", "truth", "consensus"):
        part = found.scores.query("unit == 'volume' and comparison == @comparison")
        expected = bootstrap_ci(part["dice"], part["patient"], n=300, seed=5)
        row = found.row(comparison)
        assert (row["dice"], row["low"], row["high"]) == pytest.approx(tuple(expected))
        assert row["dice"] == pytest.approx(found.table[comparison].mean())  # nobody's mask is empty here
        assert (row["patients"], row["volumes"]) == (4, 8)
    assert found.row()["scored"] == 8 * 6
    assert list(found.table.index) == [f"scan{i}" for i in range(8)]
    pd.testing.assert_frame_equal(found.summary, rater_agreement(volumes, n=300, seed=5).summary)


def test_every_pair_counts_once():
    everybody = {name: box() for name in "abcd"}
    one_imagines = {"a": box(), **dict.fromkeys("bcd", EMPTY)}
    found = rater_agreement([("p", everybody, box()), ("q", one_imagines, EMPTY)])
    assert found.row()["dice"] == pytest.approx(6 / 9)  # six pairs of 1, three of 0, three left out; not 1/2
    assert found.row("truth")["dice"] == pytest.approx(4 / 5)
    assert found.table["pairwise"].tolist() == [1, 0]


def test_every_slice_counts_once():
    whole, short = box(z=slice(0, 5)), box(z=slice(2, 3))
    found = rater_agreement([("p", {"a": whole, "b": whole}, None), ("q", {"a": short, "b": box(z=slice(4, 5))}, None)])
    row = found.row(unit="slice")
    assert row["dice"] == pytest.approx(5 / 7)  # five slices of 1 and two of 0, not the mean of two volumes
    assert (row["volumes"], row["scored"]) == (2, 7)
    assert found.row()["dice"] == 0.5


def test_a_panel_of_a_slice_set_is_its_volumes_with_two_raters():
    affine, image, cord = np.diag([0.5, 0.5, 3.0, 1.0]), np.ones(SHAPE, np.float32), np.ones(SHAPE, bool)
    drawn = {
        "sub-001_T2w": {"truth": some(0), "rater-1": some(1), "rater-2": some(2)},
        "sub-001_T2star": {"truth": some(3), "rater-1": some(4)},  # one rater: passed over
        "sub-002_T2w": {"rater-1": some(5), "rater-2": some(6), "rater-3": some(7)},  # no truth
    }
    scans = {name: ScanMasks.from_dense(affine, {"cord": cord, **masks}, image) for name, masks in drawn.items()}
    found = panel_agreement(scans)
    assert found.table["patient"].to_dict() == {"sub-001_T2w": "sub-001", "sub-002_T2w": "sub-002"}
    assert found.table["raters"].tolist() == [2, 3]
    assert found.table.loc["sub-001_T2w", "truth"] == pytest.approx(
        np.mean([dice(some(0), some(1)), dice(some(0), some(2))])
    )
    assert np.isnan(found.table.loc["sub-002_T2w", "truth"])
    assert found.row()["scored"] == 1 + 3

    names = list(drawn)
    columns = ["centre", "contrast", "rater", "z", "centre_x", "centre_y", "spacing_mm", "padded", "slice_hash"]
    table = pd.DataFrame({"volume": names, "patient": ["x", "x", "y"], **dict.fromkeys(columns, 0)})
    blank = np.zeros((3, 1, 4, 4), np.uint8)
    slices = SliceSet(blank.astype(np.float16), {"cord": blank}, table, table.set_index("volume"), scans)
    assert panel_agreement(slices).table["patient"].tolist() == ["x", "y"]
    pd.testing.assert_frame_equal(panel_agreement(slices).summary, found.summary)
    read = {volume: (patient, list(masks), truth is not None) for volume, patient, masks, truth in panel_masks(slices)}
    assert read == {"sub-001_T2w": ("x", ["rater-1", "rater-2"], True),
                    "sub-002_T2w": ("y", ["rater-1", "rater-2", "rater-3"], False)}
    with pytest.raises(SettingError, match="AGREEMENT-FEW"):
        panel_agreement({"sub-001_T2star": scans["sub-001_T2star"]})


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: pairwise_dice([]), "AGREEMENT-FEW"),
        (lambda: pairwise_dice([EMPTY, EMPTY[1:]]), "SCORE-SHAPE"),
        (lambda: pairwise_dice([EMPTY, np.full(SHAPE, 255, np.uint8)]), "SCORE-VALUES"),
        (lambda: consensus([EMPTY], 0), "AGREEMENT-FEW"),
        (lambda: consensus({"rater-1": EMPTY, "rater-2": EMPTY}, "rater-3"), "RATER-UNKNOWN"),
        (lambda: rater_agreement([]), "AGREEMENT-FEW"),
        (lambda: rater_agreement([("p", [EMPTY], None)]), "AGREEMENT-FEW"),
        (lambda: rater_agreement([("p", [EMPTY, EMPTY], EMPTY[:, 1:])]), "SCORE-SHAPE"),
        (lambda: rater_agreement([("p", [EMPTY[0], EMPTY[0]], None)]), "SCORE-SHAPE"),
        (lambda: rater_agreement([("p", [EMPTY, EMPTY], None)]).row("truth"), "AGREEMENT-ROW"),
        (lambda: calibrate(lambda s: s, 2.0, 0.01, 0.0, 1.0), "CALIBRATE-BRACKET"),
        (lambda: calibrate(lambda s: float("nan"), 0.5, 0.01, 0.0, 1.0), "CALIBRATE-NAN"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, code):
    with pytest.raises(SettingError, match=code):
        call()


@pytest.mark.parametrize("function", [lambda s: np.exp(-s), lambda s: 1 - np.exp(-s)])
def test_calibrate_finds_the_scale_and_keeps_what_it_tried(function):
    asked = []

    def evaluate(scale):
        asked.append(scale)
        return function(scale)

    found = calibrate(evaluate, 0.61, 0.001, 0.0, 4.0)
    assert found.reached and found.agreement == pytest.approx(0.61, abs=0.001) == function(found.scale)
    assert found.tried["scale"].tolist() == asked and asked[:2] == [0.0, 4.0]
    assert np.allclose(found.tried["agreement"], [function(scale) for scale in asked])


def test_calibrate_stops_when_its_steps_are_used_up():
    found = calibrate(lambda s: float(s > 0.3), 0.5, 0.01, 0.0, 1.0, steps=6)
    assert not found.reached and len(found.tried) == 6 and found.agreement in (0.0, 1.0)
    at_once = calibrate(lambda s: s, 0.005, 0.01, 0.0, 1.0)  # an end may do
    assert at_once.reached and len(at_once.tried) == 2 and at_once.scale == 0
