"""Error analysis: its counts are those of the other scores, and its own rules are what they say, on masks by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluate_cohort import VOXEL_MM, Brighter, Quadrant, cohort, known
from scipy import ndimage

from msfilm.errors import InputError, SettingError
from msfilm.evaluate.agreement import consensus
from msfilm.evaluate.error_collect import collect_errors
from msfilm.evaluate.error_voxels import POSITIONS
from msfilm.evaluate.errors_by import boundary_shares, classes, disagreement, errors_by, phantom_levels, size_class
from msfilm.evaluate.metrics import lesion_labels, lesion_scores, lesion_scores_by_size, pool_sizes
from msfilm.evaluate.predict import predict_volumes
from msfilm.evaluate.reliability import reliability
from msfilm.evaluate.stats import bootstrap_ci, ratio_ci
from msfilm.evaluate.summary import score_pair
from msfilm.model.weights import load_network
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.direct import make_slices
from msfilm.phantom.roster import CohortPlan, scan_name, scans_of

SEED = 1000


@pytest.fixture(scope="module")
def panel():
    return make_slices(3, CohortPlan(SEED, panel_every=1), workers=1, progress=False)


@pytest.fixture(scope="module")
def network():
    return load_network("film-contrast-small")


@pytest.fixture(scope="module")
def probability(panel, network):
    return dict(predict_volumes(network, panel, device="cpu"))


@pytest.fixture(scope="module")
def errors(panel, network):
    return collect_errors(network, panel, levels=phantom_levels(panel, SEED), device="cpu")


@pytest.mark.parametrize("reference", ["rater-1", "truth"])
@pytest.mark.parametrize("threshold", [0.5, 0.15])
def test_volumes_score_as_they_do_everywhere(panel, probability, errors, reference, threshold):
    table = errors.volumes(reference, threshold)
    assert list(table.index) == list(panel.volumes.index)
    for name, row in table.iterrows():
        scan, marked = panel.scans[name], np.flatnonzero(probability[name] >= threshold)
        scores = score_pair(scan, scan.indices[reference], marked)
        for key in ("dice", "reference_mm3", "prediction_mm3", "false_mm3", "missed_mm3"):
            assert row[key] == pytest.approx(scores[key], nan_ok=True), (name, key)
        lesions = lesion_scores(scan.dense(reference), probability[name] >= threshold)
        assert (row["lesions"], row["found_lesions"]) == (lesions.reference_lesions, lesions.found)
        assert row["missed_lesions"] == lesions.reference_lesions - lesions.found
        assert (row["marked_lesions"], row["false_lesions"]) == (lesions.prediction_lesions,
                                                                 lesions.prediction_lesions - lesions.true)
    quick = errors.volumes(reference, threshold, marked_lesions=False)
    pd.testing.assert_frame_equal(quick, table[quick.columns])


def test_slices_add_up_to_their_volume(errors):
    slices, volumes = errors.slices("truth"), errors.volumes("truth")
    for kind in ("reference", "found", "false", "missed"):
        summed = (slices[f"{kind}_mm2"] * slices["slice_mm"]).groupby(slices["volume"]).sum()
        np.testing.assert_allclose(summed.loc[volumes.index], volumes[f"{kind}_mm3"], rtol=1e-4)


def test_lesions_by_size_are_those_of_the_report(panel, probability, errors):
    lesions = errors.lesions("rater-1")
    lesions["size"] = size_class(lesions["mm3"])
    wanted = pool_sizes(lesion_scores_by_size(scan.dense("rater-1"), probability[name] >= 0.5, scan.voxel_volume_mm3)
                        for name, scan in panel.scans.items())
    drawn = lesions[lesions["kind"].isin(["found", "missed"])]
    marked = lesions[lesions["kind"].isin(["true", "false"])]
    assert len(drawn) and len(marked)
    for part, total, hits in ((drawn, "reference_lesions", "found"), (marked, "prediction_lesions", "true")):
        groups = part.groupby("size", observed=False)["hit"]
        assert groups.size().tolist() == wanted[total].tolist()
        assert groups.sum().tolist() == wanted[hits].tolist()
    assert set(drawn["kind"][drawn["hit"].astype(bool)]) == {"found"}
    assert ((drawn["covered"] > 0) == drawn["hit"]).all() and drawn["covered"].between(0, 1).all()


def test_a_lesion_knows_where_it_lies():
    slices = cohort(1)  # a box on slices 2 and 3 of 6, drawn by the rater as it is
    errors = collect_errors(known(Brighter()), slices, levels={("sub-001_T2w", 2): "C3", ("sub-001_T2w", 3): "C3"})
    [lesion] = errors.lesions("truth", marked=False)[lambda table: table["volume"] == "sub-001_T2w"].itertuples()
    assert (lesion.first_z, lesion.last_z, lesion.slices, lesion.level, lesion.cut) == (2, 3, 2, "C3", False)
    assert lesion.voxels == 4 * 4 * 2 and lesion.mm3 == pytest.approx(32 * np.prod(VOXEL_MM))
    assert lesion.stack_position == pytest.approx(0.5) and lesion.kind == "found" and lesion.covered == 1
    assert errors.volumes("truth")["dice"].eq(1).all()


def _collected(drawn, marked, cord=None):
    """Errors of one volume (X, Y, Z), whatever crops would do: voxels put in their places. Without a cord, all is."""
    slices = cohort(1).select(np.arange(6))
    name = slices.volumes.index[0]
    scan = slices.scans[name]
    masks = {"cord": np.ones(drawn.shape, bool) if cord is None else cord, "truth": drawn, "rater-1": marked | drawn}
    made = type(scan).from_dense(scan.affine, masks, np.ones(drawn.shape, np.float32))
    slices = replace(slices, scans={name: made})
    errors = collect_errors(np.zeros(slices.images.shape, np.float32), slices, references=["truth", "rater-1"])
    said = marked[tuple(errors.voxels.T)].astype(np.float32)  # all that is drawn or marked is among its voxels
    return replace(errors, probability=said)


@pytest.mark.parametrize("seed", range(3))
def test_the_outline_by_counting_neighbours_one_by_one(seed):
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=(2, 40, 44, 6)), (0, 2, 2, 0.5))
    drawn, marked = blobs > [[[[0.03]]], [[[0.05]]]]
    drawn[:, :, 4] = False                 # a slice on which nothing is drawn
    drawn[0, 5:9, 1] = True                # at the border of the scan, outside which nothing is drawn
    cord = np.zeros(drawn.shape, bool)
    cord[5:30, 3:41] = True                # what is marked beside it could have been marked elsewhere, too
    row = _collected(drawn, marked, cord).boundary("truth").iloc[0]
    assert (marked & ~drawn & ~cord).any()
    near = np.zeros(drawn.shape, bool)
    for x, y, z in np.ndindex(drawn.shape):
        for u, v in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)):
            other = drawn[u, v, z] if 0 <= u < 40 and 0 <= v < 44 else False
            near[x, y, z] |= other != drawn[x, y, z]
    missed, false = drawn & ~marked, marked & ~drawn
    wanted = {"missed": missed, "false": false, "inside": drawn, "outside": (cord | marked) & ~drawn}
    for key, mask in wanted.items():
        assert (row[key], row[f"{key}_near"]) == (mask.sum(), (mask & near).sum()), key
    assert not (near & ~drawn)[:, :, 4].any() and false[:, :, 4].any()


def test_positions_of_slices_by_hand():
    drawn = np.zeros((40, 44, 6), bool)
    drawn[10:13, 10:13, 0:3] = True        # cut by the end of the scan below: 0 is no end, 2 is
    drawn[30, 30, 2] = True                # a speck, no lesion, on one slice: an end by itself
    got = _collected(drawn, drawn).slices("truth")
    assert got["position"].tolist() == ["middle", "middle", "end", "beside", "away", "away"]
    assert list(got["position"].cat.categories) == list(POSITIONS)
    drawn = np.zeros((40, 44, 6), bool)
    drawn[10:13, 10:13, 1:5] = True
    drawn[20:23, 20:23, 2:4] = True        # one piece goes on where the other ends: an end
    assert _collected(drawn, drawn).slices("truth")["position"].tolist() == ["beside", *["end"] * 4, "beside"]
    drawn[20:23, 20:23] = False
    assert _collected(drawn, drawn).slices("truth")["position"].tolist() == [
        "beside", "end", "middle", "middle", "end", "beside"]
    drawn[10:13, 10:13, :5] = False        # on the outermost slice only: it ends towards the scan, on that very slice
    drawn[10:13, 10:13, 5] = True
    assert _collected(drawn, drawn).slices("truth")["position"].tolist() == [*["away"] * 4, "beside", "end"]
    drawn[10:13, 10:13] = True             # through the whole scan: no end at all
    assert set(_collected(drawn, drawn).slices("truth")["position"]) == {"middle"}


def test_chance_is_each_volumes_own():
    table = pd.DataFrame({"patient": ["a", "b", "b"], "missed": [10, 0, 30], "missed_near": [5, 0, 30],
                          "false": [0, 4, 0], "false_near": [0, 1, 0], "inside": [20, 1000, 60],
                          "inside_near": [10, 0, 45], "outside": [100, 100, 0], "outside_near": [9, 25, 0]})
    shares = boundary_shares(table, n=50)
    assert shares.loc["missed", "share"] == 35 / 40
    assert shares.loc["missed", "chance"] == pytest.approx((10 * 0.5 + 30 * 0.75) / 40)
    assert shares.loc["false", ["voxels", "near", "share", "chance"]].tolist() == [4, 1, 0.25, 0.25]
    assert shares.loc["all", "chance"] == pytest.approx((5 + 22.5 + 1) / 44)
    assert shares.loc["all", "near"] == shares.loc[["missed", "false"], "near"].sum()


def test_a_ratio_is_the_mean_over_all_its_voxels():
    rng = np.random.default_rng(4)
    whole = rng.integers(0, 9, 30)
    part = rng.binomial(whole, 0.4)
    patients = rng.integers(0, 7, 30).astype(str)
    each = np.concatenate([np.r_[np.ones(a), np.zeros(b - a)] for a, b in zip(part, whole, strict=True)])
    expected = bootstrap_ci(each, np.repeat(patients, whole), n=400, seed=3)
    found = ratio_ci(part, whole, patients, n=400, seed=3)
    np.testing.assert_allclose(tuple(found), tuple(expected))
    assert (found.patients, found.volumes) == (len(set(patients[whole > 0])), (whole > 0).sum())
    assert np.isnan(tuple(ratio_ci([0.0], [0.0], ["a"]))).all()
    lone = ratio_ci([1, 1], [2, 4], ["a", "a"])
    assert lone.mean == pytest.approx(1 / 3) and np.isnan(lone.low)
    with pytest.raises(SettingError, match="BOOTSTRAP-SHAPE"):
        ratio_ci([1, 2], [1], ["a", "b"])


def test_groups_have_their_own_means_and_keep_their_order(errors):
    volumes = errors.volumes("rater-1")
    found = errors_by(volumes, "contrast", "dice", n=100)
    np.testing.assert_allclose(found["value"], volumes.groupby("contrast")["dice"].mean())
    assert found["rows"].tolist() == volumes.groupby("contrast")["dice"].count().tolist()
    slices = errors.slices("rater-1")
    by_level = errors_by(slices, "level", ("missed_mm2", "reference_mm2"), n=100)
    sums = slices.groupby("level", observed=True)[["missed_mm2", "reference_mm2"]].sum()
    np.testing.assert_allclose(by_level["value"], sums["missed_mm2"] / sums["reference_mm2"].replace(0, np.nan))
    assert by_level.index.tolist() == [x for x in slices["level"].cat.categories if x in set(slices["level"])]
    two = errors_by(volumes, ["contrast", "station"], "dice", n=50)
    assert two.index.names == ["contrast", "station"] and set(two.index.get_level_values(1)) <= {"", "lower", "chest"}
    with pytest.raises(SettingError, match="ERRORS-COLUMN"):
        errors_by(volumes, "contarst", "dice")


def test_classes_say_their_bounds():
    got = classes([0, 49.9, 50, 200, 1e6, np.nan], (0, 50, 200), "mm3")
    names = ["under 50 mm3", "50 to 200 mm3", "200 mm3 and more"]
    assert list(got.categories) == names and got.ordered
    assert list(got[:5]) == [names[0], names[0], names[1], names[2], names[2]] and pd.isna(got[5])
    assert pd.isna(classes([1.0], (2, 3))).all() and list(classes([4], (2, 3)).categories) == ["2 to 3", "3 and more"]
    with pytest.raises(SettingError, match="SCORE-BINS"):
        classes([1], (3, 2))


def test_disagreement_by_hand_and_in_full(panel, probability, errors):
    table = disagreement(errors)
    raters = ["rater-1", "rater-2", "rater-3", "rater-4"]
    assert len(table) == len(panel.volumes) * 4 * 2
    for name, scan in list(panel.scans.items())[:4]:
        masks = {rater: scan.dense(rater) for rater in raters}
        marked, cord = probability[name] >= 0.5, scan.dense("cord")
        region = cord | marked | np.any(list(masks.values()), axis=0)
        for left_out in raters:
            others = {rater: mask for rater, mask in masks.items() if rater != left_out}
            right, votes = consensus(masks, left_out), np.sum(list(others.values()), axis=0)
            disputed = (votes == 1) | (votes == 2)
            for who, mask in (("network", marked), ("rater", masks[left_out])):
                wrong = mask ^ right
                row = table[(table["volume"] == name) & (table["left_out"] == left_out) & (table["who"] == who)].iloc[0]
                assert row[["error", "error_disputed", "disputed", "region"]].tolist() == [
                    wrong.sum(), (wrong & disputed).sum(), disputed.sum(), region.sum()]
    with pytest.raises(SettingError, match="AGREEMENT-FEW"):
        disagreement(collect_errors(known(Brighter()), cohort(1)))


def test_a_rater_in_the_networks_place(panel, errors):
    second = replace(errors, probability=errors.masks["rater-2"].astype(np.float32)).volumes("rater-1")
    for name, scan in panel.scans.items():
        scores = score_pair(scan, scan.indices["rater-1"], scan.indices["rater-2"])
        assert second.loc[name, "dice"] == pytest.approx(scores["dice"], nan_ok=True)


def test_calibration_is_of_the_cord(panel, probability, errors):
    for contrast in panel.contrasts:
        mine = [name for name in panel.volumes.index if panel.volumes.loc[name, "contrast"] == contrast]
        counts = [reliability(np.clip(probability[name], 0, 1), panel.scans[name].dense("truth"),
                              where=panel.scans[name].dense("cord")) for name in mine]
        total = sum(counts[1:], counts[0])
        np.testing.assert_array_equal(errors.calibration["truth", contrast].count, total.count)
        assert errors.calibration["truth", contrast].ece == pytest.approx(total.ece)


def test_levels_are_those_of_the_phantom(panel):
    found, off = phantom_levels(panel, SEED), 0
    for index in range(3):
        for acquisition, station in scans_of(index):
            scan = make_scan(index, SEED, acquisition, station, crop_only=True, noise=False)
            mine = found[scan_name(index, acquisition, station)]
            off += sum(scan.levels[z] != level for z, level in mine.items())
    assert off <= 0.01 * len(found)  # a slice on the very border of two vertebrae
    assert found.cat.ordered and found.cat.categories[0] == "C1"
    with pytest.raises(SettingError, match="LEVELS-PHANTOM"):
        phantom_levels(panel, SEED + 1)


def test_labels_are_the_lesions_that_are_scored():
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(31, 27, 5)), (1, 1, 0.4)) > 0.25
    for rule in ("any", "overlap10", "ivadomed"):
        labels = lesion_labels(mask, rule=rule)
        assert labels.max() == lesion_scores(mask, mask, rule=rule).reference_lesions > 2
        assert set(np.unique(labels)) == set(range(labels.max() + 1)) and not labels[~mask].any()
    assert lesion_labels(np.zeros((3, 3, 3))).max() == 0
    with pytest.raises(SettingError, match="SCORE-RULE"):
        lesion_labels(mask, rule="anny")


def test_what_is_missing_is_missing_and_not_zero():
    slices = cohort(2, free=(2,), rater=False)  # nobody drew anything
    with pytest.raises(SettingError, match="REFERENCE-UNKNOWN"):
        collect_errors(known(Quadrant()), slices, references=["rater-1"])
    mixed = cohort(2, free=(2,))
    name = mixed.volumes.index[0]
    scan = mixed.scans[name]
    scans = mixed.scans | {name: replace(scan, indices={k: v for k, v in scan.indices.items() if k != "rater-1"})}
    errors = collect_errors(known(Brighter()), replace(mixed, scans=scans))
    for table in (errors.volumes("rater-1").reset_index(), errors.slices("rater-1"), errors.lesions("rater-1")):
        assert name not in set(table["volume"]) and len(table)
    assert name not in errors.boundary("rater-1").index and name in errors.boundary("truth").index
    free = errors.volumes("truth")[errors.volumes("truth")["reference_mm3"] == 0]
    assert len(free) == 2 and free["dice"].isna().all() and (free["false_mm3"] == 0).all()


@pytest.mark.parametrize("threshold", [0.04, 1.5])
def test_a_threshold_below_the_floor_is_refused(errors, threshold):
    with pytest.raises(SettingError, match="THRESHOLD"):
        errors.volumes("truth", threshold)


def test_wrong_settings_are_refused(panel, errors):
    with pytest.raises(SettingError, match="THRESHOLD"):
        collect_errors(np.zeros(panel.images.shape, np.float32), panel, floor=0)
    with pytest.raises(SettingError, match="SCORE-SHAPE"):
        collect_errors(np.zeros((2, 1, 48, 48), np.float32), panel)
    for table in (errors.volumes, errors.slices, errors.lesions, errors.boundary):
        with pytest.raises(SettingError, match=r"REFERENCE-UNKNOWN.*truth"):
            table("trutj")


def test_nothing_to_look_at_and_an_unknown_reference_are_refused(errors, panel):
    with pytest.raises(InputError, match="SLICES-EMPTY"):
        collect_errors(np.zeros((0, *panel.images.shape[1:]), np.float32), panel.select([]))
    with pytest.raises(SettingError, match="REFERENCE-UNKNOWN"):
        errors.counts("nobody")
