"""Splits: by patient, by centre, by seed, in any row order; and leaks are found by content."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_slices import small_set

from msfilm.data.split import SIDES, check_split, split_patients
from msfilm.errors import InputError, SettingError


def cohort(sizes, volumes_each=2):
    rows = [
        {"patient": f"sub-{c:02d}{n:03d}", "centre": f"centre-{c:02d}"}
        for c, size in enumerate(sizes)
        for n in range(size)
    ]
    return pd.DataFrame(rows * volumes_each)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=13), seed=st.integers(0, 99), order=st.integers(0, 99))
def test_any_cohort_is_split_by_patient_near_the_fractions_in_any_row_order(sizes, seed, order):
    if sum(sizes) < 3:
        return
    volumes = cohort(sizes)
    split = split_patients(volumes, seed=seed)
    pd.testing.assert_series_equal(split, split_patients(volumes.sample(frac=1, random_state=order), seed=seed))
    assert set(split.index) == set(volumes["patient"]) and split.index.is_unique and split.index.name == "patient"
    counts = split.value_counts().reindex(SIDES, fill_value=0)
    assert (counts >= 1).all()
    for side, share in zip(SIDES, (0.6, 0.2, 0.2), strict=True):
        assert abs(counts[side] - share * len(split)) <= 1.5
    per_centre = pd.crosstab(split.index.str[4:6], split)
    for side, share in zip(SIDES, (0.6, 0.2, 0.2), strict=True):  # within a patient or two of the share in every centre
        assert (per_centre[side] - share * per_centre.sum(axis=1)).abs().max() <= 2


def test_seed_changes_the_split_and_nothing_else_does():
    volumes = cohort([10] * 4)
    again = split_patients(volumes, seed=3)
    assert again.equals(split_patients(volumes, seed=3)) and not again.equals(split_patients(volumes, seed=4))


def test_every_centre_of_ten_is_split_six_two_two():
    split = split_patients(cohort([10] * 13), seed=5)
    assert (pd.crosstab(split.index.str[4:6], split)[list(SIDES)].to_numpy() == [6, 2, 2]).all()


def test_fractions_are_a_setting_and_a_side_may_stay_empty():
    volumes = cohort([9, 9])
    assert split_patients(volumes, fractions=(0.5, 0.5, 0)).value_counts().to_dict() == {"train": 9, "val": 9}
    assert split_patients(volumes, fractions=(0, 0, 1)).unique().tolist() == ["test"]
    for wrong in ((0.6, 0.2, 0.1), (1.2, -0.1, -0.1), (0.6, 0.4), (float("nan"), 0.5, 0.5)):
        with pytest.raises(SettingError, match="SPLIT-FRACTIONS"):
            split_patients(volumes, fractions=wrong)


def test_three_patients_give_one_each_and_two_are_too_few():
    assert sorted(split_patients(cohort([3]))) == ["test", "train", "val"]
    with pytest.raises(InputError, match="SPLIT-FEW"):
        split_patients(cohort([2]))


def test_patient_of_two_centres_gets_one_side():
    volumes = pd.concat([cohort([4, 4]), pd.DataFrame([{"patient": "sub-00000", "centre": "centre-01"}])])
    assert len(split_patients(volumes)) == 8


def test_clean_split_passes_and_a_patient_without_a_side_is_named():
    slices = small_set()
    check_split(slices, pd.Series({"sub-01": "train", "sub-02": "val", "sub-99": "test"}))
    for split in (pd.Series({"sub-01": "train"}), pd.Series({"sub-01": "train", "sub-02": None})):
        with pytest.raises(InputError, match=r"SPLIT-UNKNOWN.*sub-02"):
            check_split(slices, split)
    with pytest.raises(InputError, match=r"SPLIT-UNKNOWN.*sub-01 is listed twice"):
        check_split(slices, pd.Series(["train", "test", "val"], index=["sub-01", "sub-01", "sub-02"]))


def test_the_same_image_on_two_sides_is_found_by_its_content_and_both_are_named():
    slices = small_set()
    slices.volumes.loc["sub-02_T2w", "image_hash"] = slices.volumes.loc["sub-01_T2w", "image_hash"]
    with pytest.raises(InputError, match=r"SPLIT-LEAK.*sub-01_T2w of sub-01 in train and sub-02_T2w of sub-02 in test"):
        check_split(slices, pd.Series({"sub-01": "train", "sub-02": "test"}))
    check_split(slices, pd.Series({"sub-01": "train", "sub-02": "train"}))  # on one side it is no leak


def test_the_same_slice_on_two_sides_is_found_and_constant_slices_are_no_leak():
    slices = small_set()
    slices.table.loc[[0, 9], "slice_hash"] = ""
    split = pd.Series({"sub-01": "train", "sub-02": "test"})
    check_split(slices, split)
    slices.table.loc[10, "slice_hash"] = slices.table.loc[2, "slice_hash"]
    with pytest.raises(
        InputError, match=r"SPLIT-LEAK.*sub-01_T2w z=3 of sub-01 in train and sub-02_T2w z=3 of sub-02 in test"
    ):
        check_split(slices, split)
