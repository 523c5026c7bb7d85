"""Bootstrap over patients against SciPy, simulation and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from msfilm.errors import SettingError
from msfilm.evaluate.stats import bootstrap_ci, paired_difference


def test_one_volume_a_patient_agrees_with_scipy():
    scores = np.random.default_rng(1).beta(4, 2, size=40)
    found = bootstrap_ci(scores, np.arange(40), n=20_000)
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert found.mean == pytest.approx(scores.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.002)
    assert found.high == pytest.approx(theirs.high, abs=0.002)
    mean, low, high = found
    assert (mean, low, high) == (found.mean, found.low, found.high)


def test_volumes_of_one_patient_are_resampled_together():
    # Ten copies of each patient's volume are no new evidence: the interval must stay as wide as with one.
    scores, patients = np.random.default_rng(0).random(15), np.arange(15)
    once = bootstrap_ci(scores, patients)
    copied = bootstrap_ci(np.repeat(scores, 10), np.repeat(patients, 10))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=1e-9)
    assert (copied.patients, copied.volumes) == (15, 150)
    taken_apart = bootstrap_ci(np.repeat(scores, 10), np.arange(150))
    assert taken_apart.high - taken_apart.low < 0.5 * (once.high - once.low)


def test_same_seed_same_interval_and_global_state_untouched():
    scores, patients = np.random.default_rng(3).random(9), list("aabbccdde")
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    assert bootstrap_ci(scores, patients, seed=4) == bootstrap_ci(scores, patients, seed=4)
    assert bootstrap_ci(scores, patients, seed=4) != bootstrap_ci(scores, patients, seed=5)
    assert (np.random.get_state()[1] == before).all()


def test_unscored_volumes_are_left_out():
    found = bootstrap_ci([0.5, np.nan, 0.7, np.nan], ["a", "a", "b", "c"])
    assert found.mean == pytest.approx(0.6)
    assert (found.patients, found.volumes) == (2, 2)
    nothing = bootstrap_ci([np.nan], ["a"])
    assert np.isnan(nothing.mean) and nothing.patients == 0


def test_unequal_numbers_of_volumes_weigh_by_volume():
    found = bootstrap_ci([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], n=4000)
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.0, 1.0)  # both draws of one patient happen in a quarter of the samples each


def test_seeds_are_resampled_with_patients():
    rng = np.random.default_rng(0)
    by_seed = rng.normal(0, 0.1, size=6)
    patients, seeds = np.tile(np.arange(30), 6), np.repeat(np.arange(6), 30)
    scores = 0.7 + by_seed[seeds] + rng.normal(0, 0.01, size=180)
    pooled = bootstrap_ci(scores, patients)
    both = bootstrap_ci(scores, patients, seeds=seeds)
    assert both.mean == pooled.mean
    assert both.high - both.low > 5 * (pooled.high - pooled.low)
    theirs = stats.bootstrap((scores.reshape(6, 30).mean(axis=1),), np.mean, method="percentile", n_resamples=5000,
                             rng=1).confidence_interval
    assert both.high - both.low == pytest.approx(theirs.high - theirs.low, rel=0.1)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(300):
        patient = rng.normal(0.6, 0.1, size=50)
        scores = np.repeat(patient, 2) + rng.normal(0, 0.05, size=100)
        _, low, high = bootstrap_ci(scores, np.repeat(np.arange(50), 2), n=400, seed=trial)
        hits += low < 0.6 < high
    assert 0.90 < hits / 300 < 0.985


def test_paired_difference_needs_pairs_and_uses_them():
    rng = np.random.default_rng(0)
    hard = rng.random(25)  # patients differ far more than methods
    a, b = hard + 0.03 + rng.normal(0, 0.005, 25), hard
    found = paired_difference(a, b, np.arange(25))
    assert found.mean == pytest.approx(np.mean(a - b))
    assert 0.02 < found.low95 < found.low90 < found.mean < found.high90 < found.high95 < 0.04
    assert not found.equivalent
    assert "network is better" in found.statement("network", "threshold")
    assert "equivalence not shown" in found.statement()
    back = paired_difference(b, a, np.arange(25))
    assert (back.low95, back.high95) == pytest.approx((-found.high95, -found.low95))


def test_equivalence_is_the_90_percent_interval_inside_the_margin():
    rng = np.random.default_rng(0)
    a = rng.random(200)
    b = a + rng.normal(0.001, 0.03, 200)
    found = paired_difference(a, b, np.arange(200))
    assert found.equivalent and "equivalent within +-0.02" in found.statement()
    just_too_small = max(abs(found.low90), abs(found.high90)) * 0.999
    assert not paired_difference(a, b, np.arange(200), margin=just_too_small).equivalent
    # No difference shown is not equivalence.
    few = paired_difference([0.5, 0.4, 0.7, 0.6], [0.6, 0.3, 0.6, 0.7], list("abcd"))
    assert not few.equivalent and "no difference shown, equivalence not shown" in few.statement()


def test_volumes_that_one_method_leaves_out_are_counted_not_paired():
    found = paired_difference([0.5, np.nan, 0.7, np.nan], [0.4, 0.0, 0.7, np.nan], list("abcd"))
    assert found.mean == pytest.approx(0.05)
    assert (found.volumes, found.patients, found.unpaired) == (2, 2, 1)
    assert "no volume that both score" in paired_difference([np.nan], [0.1], ["a"]).statement()


def test_one_patient_gives_no_interval():
    found = bootstrap_ci([0.5, 0.7], ["a", "a"])
    assert found.mean == pytest.approx(0.6) and np.isnan([found.low, found.high]).all()
    pair = paired_difference([0.5, 0.7], [0.1, 0.2], ["a", "a"])
    assert not pair.equivalent and "one patient: no interval" in pair.statement()


def test_wrong_lengths_are_refused():
    with pytest.raises(SettingError, match="BOOTSTRAP-SHAPE"):
        bootstrap_ci([0.1, 0.2], ["a"])
    with pytest.raises(SettingError, match="BOOTSTRAP-SHAPE"):
        paired_difference([0.1, 0.2], [0.1], ["a", "b"])
