"""The signal equations against references of another kind: pulses played one by one, limits, optima found blind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize_scalar

from msfilm.phantom.facts import ACQUISITIONS, centres, protocol
from msfilm.phantom.physics import (
    FAT_IN_TSE,
    gradient_echo,
    inversion_recovery,
    magnetisation_transfer,
    mixed_tissue,
    mprage,
    phase_sensitive,
    signals,
    tissue_table,
    turbo_spin_echo,
    turbo_spin_echo_restore,
)

T1S = (380.0, 876.0, 1250.0, 4300.0)


def recovered(m, time, t1):
    """Longitudinal magnetisation after a time, by integrating Bloch's equation dm/dt = (1 - m) / T1."""
    return solve_ivp(lambda _, y: (1 - y) / t1, (0, time), [m], rtol=1e-10, atol=1e-12).y[0, -1] if time > 0 else m


@pytest.mark.parametrize("t1", T1S)
def test_spoiled_gradient_echo_is_the_steady_state_of_its_pulses(t1):
    m, angle, tr = 1.0, np.deg2rad(28.0), 580.0
    for _ in range(120):
        transverse = m * np.sin(angle)
        m = recovered(m * np.cos(angle), tr, t1)  # what lies across is spoiled
    assert 0.8 * transverse * np.exp(-12.0 / 40) == pytest.approx(
        gradient_echo(0.8, t1, 40.0, tr=tr, tes=(12.0,), flip_deg=28.0), rel=1e-6
    )


@pytest.mark.parametrize(("t1", "tr"), [(876.0, 600.0), (4300.0, 35.0), (250.0, 700.0)])
def test_gradient_echo_is_strongest_at_the_ernst_angle(t1, tr):
    best = minimize_scalar(
        lambda flip: -gradient_echo(1.0, t1, 40.0, tr=tr, tes=(9.0,), flip_deg=flip),
        bounds=(0.1, 90),
        method="bounded",
        options={"xatol": 1e-7},
    )
    assert best.x == pytest.approx(np.rad2deg(np.arccos(np.exp(-tr / t1))), abs=1e-3)


def test_gradient_echo_at_90_degrees_is_saturation_recovery():
    assert gradient_echo(0.7, 876.0, 1e12, tr=600.0, tes=(9.0, 14.0), flip_deg=90.0) == pytest.approx(
        0.7 * (1 - np.exp(-600 / 876))
    )


@pytest.mark.parametrize(("t1", "t2"), [(876.0, 73.0), (1250.0, 110.0), (4300.0, 1500.0)])
def test_restore_is_the_steady_state_of_excite_train_tip_back_recover(t1, t2):
    m, tr, te, train = 1.0, 1500.0, 80.0, 290.0
    for _ in range(60):
        excited = m
        m = recovered(excited * np.exp(-train / t2), tr - train, t1)  # refocused: T2; then tipped back
    assert 0.9 * excited * np.exp(-te / t2) == pytest.approx(
        turbo_spin_echo_restore(0.9, t1, t2, tr=tr, te=te, train=train), rel=1e-6
    )


def test_restore_has_the_limits_of_no_memory_and_of_full_memory():
    plain = turbo_spin_echo(0.7, 876.0, 73.0, tr=1210.0, te=80.0)  # all decays in the train: only the rest recovers
    assert turbo_spin_echo_restore(0.7, 876.0, 73.0, tr=1210.0 + 4000.0, te=80.0, train=4000.0) == pytest.approx(plain)
    # Nothing decays: the magnetisation is never lost, whatever T1.
    assert turbo_spin_echo_restore(1.0, 4300.0, 1e12, tr=1500.0, te=80.0, train=290.0) == pytest.approx(1.0)
    # In between it lies above the plain equation, most of all for CSF.
    table = tissue_table(3.0).loc[["wm", "csf"]]
    gain = turbo_spin_echo_restore(table.pd, table.t1, table.t2, tr=1500, te=80, train=290) / turbo_spin_echo(
        table.pd, table.t1, table.t2, tr=1500, te=80
    )
    assert gain["csf"] > 1.5 > 1.05 > gain["wm"] > 0.8


def pulses_of_mprage(t1, *, tr, ti, flip_deg, spacing, pulses):
    """Steady state by playing the pulses until nothing changes; the magnetisation that the middle pulse meets."""
    cosine, half, m = np.cos(np.deg2rad(flip_deg)), pulses // 2, 1.0

    def grow(m, time):
        return 1 + (m - 1) * np.exp(-time / t1)

    for _ in range(200):
        m = grow(-m, ti - half * spacing)
        for pulse in range(pulses):
            if pulse == half:
                met = m
            m = grow(m * cosine, spacing)
        m = grow(m, tr - ti - (pulses - half) * spacing)
    return met


@pytest.mark.parametrize("t1", T1S)
@pytest.mark.parametrize(
    "times",
    [
        {"tr": 2000.0, "ti": 1000.0, "flip_deg": 9.0, "spacing": 7.0, "pulses": 128},
        {"tr": 1910.0, "ti": 700.0, "flip_deg": 15.0, "spacing": 5.0, "pulses": 101},
    ],
)
def test_mprage_is_the_steady_state_of_its_pulses(t1, times):
    met = pulses_of_mprage(t1, **times)
    expected = 0.7 * abs(met) * np.sin(np.deg2rad(times["flip_deg"])) * np.exp(-3.7 / 40)
    assert mprage(0.7, t1, 40.0, te=3.7, **times) == pytest.approx(expected, rel=1e-9)


def test_mprage_with_vanishing_flips_is_an_inversion_recovery():
    t1, tr, ti = 876.0, 2000.0, 1000.0
    # No pulse disturbs: M = 1 - (1 + M0) e^(-TI/T1) with M0 = (1 - e^(-TR/T1)) / (1 + e^(-TR/T1)) before the inversion.
    before = (1 - np.exp(-tr / t1)) / (1 + np.exp(-tr / t1))
    expected = 1 - (1 + before) * np.exp(-ti / t1)
    small = mprage(1.0, t1, 1e12, tr=tr, te=0.0, ti=ti, flip_deg=1e-3) / np.sin(np.deg2rad(1e-3))
    assert small == pytest.approx(abs(expected), rel=1e-6)


@pytest.mark.parametrize("t1", T1S)
def test_inversion_recovery_is_invert_recover_excite_recover(t1):
    m, tr, ti = 1.0, 3500.0, 220.0
    for _ in range(4):
        met = recovered(-m, ti, t1)
        m = recovered(0.0, tr - ti, t1)  # 90 degrees takes all
    assert 0.7 * met * np.exp(-50 / 73) == pytest.approx(
        inversion_recovery(0.7, t1, 73.0, tr=tr, te=50.0, ti=ti), rel=1e-6
    )


@pytest.mark.parametrize("t1", T1S)
def test_inversion_recovery_crosses_zero_at_the_closed_form(t1):
    found = brentq(lambda ti: inversion_recovery(1.0, t1, 100.0, tr=9000.0, te=30.0, ti=ti), 1.0, 8999.0)
    assert found == pytest.approx(t1 * np.log(2 / (1 + np.exp(-9000 / t1))))


def test_magnetisation_transfer_takes_its_share():
    assert magnetisation_transfer(2.0, 0.4) == pytest.approx(1.2)


def test_a_phase_sensitive_image_keeps_the_order_and_is_nowhere_negative():
    ti = np.linspace(1, 3000, 200)
    signed = inversion_recovery(1.0, 4300.0, 300.0, tr=4000.0, te=3.2, ti=ti)
    shown = phase_sensitive(signed)
    assert (shown >= 0).all() and (np.diff(shown) > 0).all() and (signed < 0).any()


# ---- the table and `signals`, which puts the equations on it ------------------------------------------------------


def by_hand(t: pd.Series, p: dict) -> float:
    """One tissue in one protocol, written out once more, in whatever units."""
    name, tr, te = p["sequence"], p["tr"], p["te"]
    if name == "TSE":
        return t.pd * (1 - np.exp(-tr / t.t1)) / np.exp(te / t.t2)
    if name == "TSE-restore":
        e = np.exp((p["train"] - tr) / t.t1)
        return t.pd * (1 - e) / (1 - e * np.exp(-p["train"] / t.t2)) / np.exp(te / t.t2)
    if name in ("GRE", "GRE-MT"):
        e, a = np.exp(-tr / t.t1), np.deg2rad(p["flip_deg"])
        rms = np.mean([np.exp(-2 * one / t.t2star) for one in p["tes"]]) ** 0.5
        return t.pd * np.sin(a) * (1 - e) / (1 - np.cos(a) * e) * rms * (1 - t.mtr if name == "GRE-MT" else 1)
    if name == "MPRAGE":
        met = pulses_of_mprage(t.t1, tr=tr, ti=p["ti"], flip_deg=p["flip_deg"], spacing=7.0, pulses=128)
        return t.pd * abs(met) * np.exp(-te / t.t2star)
    t2 = t.t2 if name == "STIR" else t.t2star
    signed = t.pd * (1 - 2 * np.exp(-p["ti"] / t.t1) + np.exp(-tr / t.t1)) * np.exp(-te / t2)
    return abs(signed) if name == "STIR" else 1 + signed


@pytest.mark.parametrize("name", ACQUISITIONS)
@pytest.mark.parametrize("centre", ["centre-01", "centre-06"])  # 3 T and 1.5 T
def test_signals_are_the_equations_on_the_table_in_units_of_white_matter(centre, name):
    times = protocol(centre, name).times()
    table, signal = tissue_table(times["field_t"]), signals(times, [("lesion", 0.6), ("lesion_mild", 1.0)])
    white = by_hand(table.loc["wm"], times)
    rows = {
        "gm": "gm_T2w" if times["sequence"] in ("TSE", "TSE-restore", "STIR", "MPRAGE") else "gm",
        "csf": "csf_inflow" if times["sequence"] in ("GRE", "GRE-MT") else "csf",
        "muscle": "muscle",
    }
    for tissue, row in rows.items():
        assert signal[tissue] == pytest.approx(by_hand(table.loc[row], times) / white, rel=1e-8), tissue
    part = mixed_tissue(table.loc["wm"], table.loc["lesion"], 0.6)
    assert part.t1 == pytest.approx(0.4 * table.t1["wm"] + 0.6 * table.t1["lesion"])
    assert signal["lesion-0-wm"] == pytest.approx(by_hand(part, times) / white, rel=1e-8)
    assert signal["lesion-1-gm"] == pytest.approx(by_hand(table.loc["lesion_mild"], times) / white, rel=1e-8)
    fat = by_hand(table.loc["fat"], times) / white * (FAT_IN_TSE if name.startswith("T2w") else 1)
    assert signal["fat"] == pytest.approx(fat, rel=1e-8)


def test_the_table_at_two_fields():
    low, high = tissue_table(1.5), tissue_table(3.0)
    assert (low.t1 <= high.t1).all() and (low.t1["wm"], high.t1["wm"]) == (750, 876)
    assert np.allclose(low.t2star, 1.4 * high.t2star) and low.t2.equals(high.t2) and low.pd.equals(high.pd)


def test_every_protocol_can_be_played():
    """No time is negative: the inversion before the echoes, the echo train before the next excitation."""
    for centre in centres().index:
        for name in ACQUISITIONS:
            p = protocol(centre, name)
            assert 0 < min(p.tes) <= max(p.tes) < p.tr
            if p.train is not None:
                assert p.te < p.train < p.tr
            if p.sequence == "MPRAGE":
                assert 64 * 7.0 <= p.ti <= p.tr - 64 * 7.0
            elif p.ti is not None:
                assert 0 < p.ti + p.te < p.tr
