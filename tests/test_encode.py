"""How z is made: one-hot codes, standardised acquisition parameters, several joined; unknown and missing values."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from msfilm.errors import InputError, SettingError
from msfilm.model.encode import AcquisitionEncoder, CategoryEncoder, JoinedEncoder, encoder_from_dict, make_encoder

TABLE = pd.DataFrame({"contrast": ["T2w", "T2star", "T2w"], "centre": ["b", "a", "c"], "rater": ["r1", None, np.nan]})


def test_codes_are_one_hot_in_the_order_of_the_sorted_categories():
    encoder = make_encoder("contrast", TABLE)
    assert encoder.categories == ("T2star", "T2w") and encoder.n_codes == 2
    assert encoder.encode(TABLE["contrast"]).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert encoder.encode("T2w").tolist() == [[0, 1]]
    assert encoder_from_dict(encoder.to_dict()) == encoder
    assert encoder_from_dict({"column": "contrast", "categories": ["T2star", "T2w"]}) == encoder   # the first version's


def test_an_unseen_contrast_is_refused_and_the_right_one_named():
    with pytest.raises(SettingError, match=r"CONTRAST-UNKNOWN.*'T2W'.*did you mean 'T2w'"):
        make_encoder("contrast", TABLE).encode(["T2w", "T2W"])


@pytest.mark.parametrize("column", ["centre", "rater"])
def test_an_unseen_centre_or_rater_gets_the_mean_code_aloud(column):
    encoder = CategoryEncoder(column, ("x", "y", "z", "w"))
    with pytest.warns(UserWarning, match=rf"{column} elsewhere.*mean code"):
        z = encoder.encode(["y", "elsewhere"])
    assert z.tolist() == [[0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]]


def test_missing_values_are_no_category():
    encoder = make_encoder("rater", TABLE)
    assert encoder.categories == ("r1",)
    with pytest.warns(UserWarning, match="mean code"):
        assert encoder.encode(TABLE["rater"]).tolist() == [[1], [1], [1]]
    with pytest.raises(InputError, match="ENCODER-COLUMN"):
        make_encoder("rater", TABLE.assign(rater=None))


def test_conditioning_none_needs_no_encoder_and_a_misspelt_one_is_named():
    assert make_encoder("none", TABLE) is None
    with pytest.raises(SettingError, match=r"CONDITIONING-UNKNOWN.*did you mean 'contrast'"):
        make_encoder("contrasts", TABLE)


SCANS = pd.DataFrame({
    "contrast": ["T2w", "T2star", "T2w", "T2star"], "rater": ["a", "b", "b", "a"],
    "repetition_time_s": [3.0, 0.6, 4.5, np.nan], "echo_time_s": [0.09, 0.017, 0.1, 0.02],
    "flip_angle_deg": [150.0, 30.0, 150.0, 30.0], "field_T": [3.0, 3.0, 3.0, 3.0],
    "manufacturer": ["Siemens", "Philips", None, "Siemens"],
})  # fmt: skip


def test_acquisition_parameters_are_standardised_by_the_formula_with_the_logarithm_of_times():
    encoder = make_encoder("acquisition", SCANS)
    z = encoder.encode(SCANS.iloc[[0, 1, 3]]).numpy()
    assert z.shape == (3, encoder.n_codes) and len(encoder.labels) == encoder.n_codes == 10
    for i, (column, function) in enumerate([("repetition_time_s", np.log), ("echo_time_s", np.log),
                                            ("flip_angle_deg", float)]):
        known = SCANS[column].dropna().map(function)
        np.testing.assert_allclose(z[:2, i], (known - known.mean())[:2] / known.std(ddof=0), rtol=1e-5)
    assert (z[:, 3] == 0).all()                                       # a field that never varied says nothing
    assert z[2, 0] == 0 and z[:, 4:8].tolist() == [[0] * 4, [0] * 4, [1, 0, 0, 0]]   # TR missing: the mean, flagged
    assert z[:, 8:].tolist() == [[0, 1], [1, 0], [0, 1]]


def test_missing_acquisition_is_allowed_and_an_unseen_maker_gets_the_mean_code_aloud():
    encoder = make_encoder("acquisition", SCANS)
    with pytest.warns(UserWarning, match="manufacturer Canon.*mean code"):
        z = encoder.encode({"echo_time_s": 0.09, "manufacturer": "Canon"})
    assert z[0, 4:8].tolist() == [1, 0, 1, 1] and z[0, 8:].tolist() == [0.5, 0.5]
    with pytest.warns(UserWarning, match="echo_time_s far from all.*4 standard"):
        assert encoder.encode({"echo_time_s": 5.0, "manufacturer": "Siemens"})[0, 1] == 4
    bare = make_encoder("acquisition", SCANS.drop(columns=["manufacturer", "field_T"]))
    assert bare.n_codes == 8 and bare.encode(SCANS)[0, [3, 7]].tolist() == [0, 1]


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_a_number_that_cannot_be_is_refused(value):
    with pytest.raises(InputError, match="ENCODER-VALUE.*echo_time_s"):
        make_encoder("acquisition", SCANS).encode({"echo_time_s": value, "manufacturer": "Siemens"})


def test_nothing_known_of_the_acquisition_is_refused():
    with pytest.raises(InputError, match="ENCODER-COLUMN.*sidecars"):
        make_encoder("acquisition", pd.DataFrame({"contrast": ["T2w"], "echo_time_s": [np.nan]}))


def test_joined_codes_stand_one_behind_the_other():
    encoder = make_encoder("contrast+rater+acquisition", SCANS)
    assert isinstance(encoder, JoinedEncoder) and encoder.name == "contrast+rater+acquisition"
    with pytest.warns(UserWarning, match="manufacturer"):
        z = encoder.encode(SCANS)
        parts = [make_encoder(name, SCANS).encode(SCANS) for name in ("contrast", "rater", "acquisition")]
    assert torch.equal(z, torch.cat(parts, dim=1))
    assert encoder.labels[:4] == ("T2star", "T2w", "a", "b")
    assert make_encoder("contrast+rater", SCANS).encode({"contrast": "T2w", "rater": "b"}).tolist() == [[0, 1, 0, 1]]
    with pytest.raises(InputError, match="ENCODER-COLUMN.*table"):
        make_encoder("contrast+rater", SCANS).encode(["T2w"])
    with pytest.raises(SettingError, match="CONTRAST-UNKNOWN"):
        make_encoder("contrast+rater", SCANS).encode({"contrast": "T1w", "rater": "b"})


@pytest.mark.parametrize("conditioning", ["contrast", "acquisition", "rater+contrast", "contrast+acquisition"])
def test_encoders_survive_json(conditioning):
    encoder = make_encoder(conditioning, SCANS)
    assert encoder_from_dict(json.loads(json.dumps(encoder.to_dict()))) == encoder
    assert isinstance(make_encoder("acquisition", SCANS), AcquisitionEncoder)


@pytest.mark.parametrize("text", ["contrast+contrasts", "contrast+none", "rater+rater", ""])
def test_conditionings_that_cannot_be_are_refused(text):
    with pytest.raises(SettingError, match="CONDITIONING-UNKNOWN"):
        make_encoder(text, SCANS)
