"""What a mask's stored values mean: whole numbers exactly, real ones nearly, and nothing that could be two things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msfilm.data.mask_values import check_values, parse_values, to_binary
from msfilm.errors import InputError, SettingError

PATH = Path("mask.nii")


def binary(stored, values=None, slope=1.0, intercept=0.0, dtype=np.int32):
    return to_binary(np.array(stored, dtype), slope, intercept, values, PATH)[0].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_whole_numbers_are_taken_exactly_up_to_the_largest_of_their_type(dtype):
    for value in {255, 11100, 1234567, 2**40} | {np.iinfo(dtype).max}:
        if not 2 < value <= min(np.iinfo(dtype).max, 2**52):
            continue
        assert binary([0, 1, value], {value: 1}, dtype=dtype) == [False, True, True]
        for other in (value - 1, value + 1):
            if other <= np.iinfo(dtype).max:
                with pytest.raises(InputError, match=f"MASK-VALUES.*1 voxels.*{other}"):
                    binary([0, value, other], {value: 1}, dtype=dtype)


def test_neighbouring_labels_are_told_apart_whatever_their_order():
    labels = [0, 20000, 20001, 20000]
    for values in (["20000=1", "20001=0"], ["20001=0", "20000=1"]):
        for dtype in (np.int32, np.float32, np.float64):
            assert binary(labels, parse_values(values), dtype=dtype) == [False, True, False, True]


@pytest.mark.parametrize("value", [255.0, 11100.0, 200000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_real_number_is_a_label_only_where_rounding_explains_it(value, dtype):
    assert binary([0, np.nextafter(dtype(value), dtype(0))], {value: 1}, dtype=dtype) == [False, True]
    with pytest.raises(InputError, match="MASK-VALUES"):
        binary([0, value + 0.5], {value: 1}, dtype=dtype)
    with pytest.raises(InputError, match="MASK-VALUES"):
        binary([0, value - 1], {value: 1}, dtype=dtype)


@pytest.mark.parametrize("off", [-1, 1])
def test_the_tolerance_of_0_and_1_ends_where_it_says(off):
    for value in (0, 1):
        near, far = value + off * 0.99e-4, value + off * 1.01e-4
        assert binary([near, 1 - value], dtype=np.float64) == [bool(value), not value]
        with pytest.raises(InputError, match="MASK-VALUES"):
            binary([far, 1 - value], dtype=np.float64)


def test_two_real_values_closer_than_the_tolerance_never_both_fit():
    gap = 5e-5  # half of the tolerance
    for values in ({0.5: 1, 0.5 + gap: 0}, {0.5 + gap: 0, 0.5: 1}):
        assert binary([0.5, 0.5 + gap], values, dtype=np.float64) == [True, False]
        with pytest.raises(InputError, match="MASK-VALUES"):
            binary([0.5 + gap / 2], values, dtype=np.float64)


def test_slope_and_intercept_count_for_whole_numbers_too():
    assert binary([0, -1], intercept=1.0, dtype=np.int16) == [True, False]
    assert binary([0, 2], slope=0.5, dtype=np.int16) == [False, True]
    assert binary([0, 1], slope=-1.0, intercept=1.0, dtype=np.int16) == [True, False]
    with pytest.raises(InputError, match="MASK-VALUES.*values 1, 2"):
        binary([0, 1], intercept=1.0, dtype=np.uint8)
    assert binary([9, 10], 15.0, intercept=5.0, dtype=np.uint8) == [False, True]
    assert binary([0, 10], {11: 1}, intercept=1.0, dtype=np.uint8) == [True, True]


def test_a_fraction_never_fits_a_whole_number():
    with pytest.raises(InputError, match="MASK-VALUES"):
        binary([0, 3], {2.99999: 1})


def test_notes_and_refusals_spell_large_labels_out():
    stored = np.array([0, 1234567], np.int32)
    assert "1 voxels of 1234567 are taken as 1" in to_binary(stored, 1.0, 0.0, {1234567: 1}, PATH)[1][0]
    with pytest.raises(InputError, match="values 0, 1234567"):
        to_binary(stored, 1.0, 0.0, {1234568: 1}, PATH)


@pytest.mark.parametrize("words", [["255=1", "255=0"], ["255=0,255=1"], ["255=1", "2=0", "255.0=0"], ["1=0", "1=1"]])
def test_a_value_that_is_said_to_be_both_is_refused_by_name(words):
    with pytest.raises(SettingError, match=r"MASK-MAP.*mask value (255|1) is said to be"):
        parse_values(words)


def test_the_same_said_twice_is_said_once():
    assert parse_values(["255=1", "255.0=1,2=0"]) == {255: 1, 2: 0}


@pytest.mark.parametrize("values", [{255: 2}, {255: -1}, {255: 0.5}, {float("nan"): 1}, {float("inf"): 1},
                                    float("nan"), float("inf")])  # fmt: skip
def test_values_are_finite_and_mean_0_or_1(values):
    with pytest.raises(SettingError, match="MASK-MAP"):
        check_values(values)
