"""The phantom's anatomy: sizes as in the tables, tissues where they belong, shapes with true distances."""

import numpy as np
import pytest
import torch

from msfilm.phantom.anatomy import cord_distance, draw_patient, grey_matter_distance, layers
from msfilm.phantom.facts import levels
from msfilm.phantom.fields import RandomField, capsule, coverage, radial
from msfilm.phantom.lesions import REACH_MM, draw_lesions, lesion_distance
from msfilm.phantom.scan import ScanPlan, render

STEP = 0.1


def grid(half=12.0, step=STEP):
    axis = torch.arange(-half + step / 2, half, step)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]


@pytest.fixture(scope="module")
def patient():
    return draw_patient(np.random.default_rng(3))


@pytest.mark.parametrize(("a", "b"), [(3.0, 3.0), (6.0, 3.5)])
def test_covered_area_of_an_ellipse_is_pi_a_b(a, b):
    x, y = grid()
    area = coverage(radial(x, y, a, b), STEP).sum().item() * STEP**2
    assert area == pytest.approx(np.pi * a * b, rel=2e-3)


def test_distance_to_a_circle_and_a_capsule_is_euclidean():
    x, y = grid(half=6)
    torch.testing.assert_close(radial(x, y, 2.0, 2.0), (x**2 + y**2).sqrt() - 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        capsule(x, y, 1.0, 2.0, 1.0, 2.0, 0.5), ((x - 1) ** 2 + (y - 2) ** 2).sqrt() - 0.5, atol=1e-3, rtol=0
    )


def test_cord_has_the_diameters_of_its_level(patient):
    x, y = grid()
    s = patient.middles_mm[[2, 4, 6]]  # C3, C5, C7
    profile = patient.profile(s)
    inside = cord_distance(x.expand(3, -1, -1), y.expand(3, -1, -1), profile) < 0
    area = inside.sum(dim=(1, 2)).numpy() * STEP**2
    expected = np.pi / 4 * (profile["cord_ap"] * profile["cord_rl"]).flatten().numpy()
    np.testing.assert_allclose(area, expected, rtol=0.02)
    width = inside.any(dim=1).sum(dim=1).numpy() * STEP
    np.testing.assert_allclose(width, profile["cord_rl"].flatten().numpy(), rtol=0.05)


def test_cohort_mean_cord_area_follows_the_table():
    facts = levels()
    areas = [
        float((p["cord_ap"] * p["cord_rl"]).mean()) * np.pi / 4
        for p in (q.profile(q.middles_mm[1:6]) for q in (draw_patient(np.random.default_rng(i)) for i in range(40)))
    ]
    table = (facts.cord_ap * facts.cord_rl)[1:6].mean() * np.pi / 4
    assert np.mean(areas) == pytest.approx(1.03 * table, rel=0.05)
    assert 0.05 < np.std(areas) / np.mean(areas) < 0.14  # ten real subjects: 6.3 / 67.2 = .094


def test_grey_matter_has_its_share_of_the_cord(patient):
    x, y = grid()
    s = patient.middles_mm[[1, 3, 5]]
    p = patient.profile(s)
    grey = coverage(grey_matter_distance(x, y, p["gm_rl"], p["gm_ap"], p["gm_t"]), STEP).sum(dim=(1, 2))
    cord = coverage(cord_distance(x, y, p), STEP).sum(dim=(1, 2))
    np.testing.assert_allclose((grey / cord).numpy(), p["gm_fraction"].flatten().numpy(), atol=0.012)


def test_painted_shares_lie_between_0_and_1_and_the_cord_is_on_top(patient):
    x, y = grid(half=20, step=0.5)
    s = patient.middles_mm[[2, 5]]
    top = torch.zeros(2, *x.shape[1:])
    for tissue, share in layers(patient, s, x.expand(2, -1, -1), y.expand(2, -1, -1), 0.5):
        assert share.min() >= 0 and share.max() <= 1, tissue
        top = top * (1 - share) + share * (tissue in ("wm", "gm"))
    assert top[:, 40, 40].min() > 0.99  # the middle is cord
    assert top[:, 2, 2].max() < 0.01  # 27 mm away nothing is


def test_a_random_field_has_mean_0_and_variance_1():
    rng = np.random.default_rng(0)
    x, y = (torch.as_tensor(rng.uniform(-200, 200, (1, 300, 300)), dtype=torch.float32) for _ in range(2))
    field = RandomField.draw(rng, 3.0, terms=12)(x, y, torch.zeros(1, 1, 1))
    assert abs(field.mean()) < 0.05
    assert field.var().item() == pytest.approx(1, abs=0.1)


def test_lesions_stay_in_the_cord_and_within_their_length(patient):
    rng = np.random.default_rng(5)
    lesions = [lesion for _ in range(6) for lesion in draw_lesions(rng, patient, free_share=0)]
    assert len(lesions) >= 6
    x, y = grid(half=10, step=0.25)
    s = np.arange(0, 160, 2.0)
    gx, gy = x.expand(len(s), -1, -1), y.expand(len(s), -1, -1)
    turn = float(patient.curve[5])
    outside = (
        cord_distance(np.cos(turn) * gx - np.sin(turn) * gy, np.sin(turn) * gx + np.cos(turn) * gy, patient.profile(s))
        > 0
    )
    for lesion in lesions:
        inside = lesion_distance(lesion, patient, s, gx, gy) < 0
        assert not (inside & outside).any()
        slices = s[inside.any(dim=(1, 2)).numpy()]
        assert len(slices)
        assert np.abs(slices - lesion.s_mm).max() <= lesion.length_mm / 2


def test_lesion_statistics_are_those_of_the_series():
    rng = np.random.default_rng(0)
    patient = draw_patient(rng)
    drawn = [draw_lesions(rng, patient) for _ in range(3000)]
    counts = np.array([len(d) for d in drawn])
    assert np.mean(counts == 0) == pytest.approx(0.2, abs=0.02)
    assert counts[counts > 0].mean() == pytest.approx(3.2, abs=0.15)
    sites = [lesion.site for d in drawn for lesion in d]
    for site, share in (("lateral", 0.59), ("posterior", 0.35), ("anterior", 0.06)):
        assert sites.count(site) / len(sites) == pytest.approx(share, abs=0.02)


def test_a_thick_slice_is_the_mean_of_its_thin_ones(patient):
    lesions = draw_lesions(np.random.default_rng(8), patient, free_share=0)
    signal = dict.fromkeys(
        ("wm", "gm", "csf", "muscle", "fat", "marrow", "disc", "ligament", "bone", "air", "blood"), 1.0
    )
    signal |= {"csf": 3.0, "fat": 2.0, "muscle": 0.3} | {
        f"lesion-{i}-{b}": 1.6 for i in range(len(lesions)) for b in ("wm", "gm")
    }
    centre = tuple(patient.centre(np.array([60.0]))[0])
    thick = render(patient, lesions, signal, ScanPlan(np.array([60.0]), 6.0, 0.6, 91, 95, centre), sub_slices=4)
    thin = render(
        patient,
        lesions,
        signal,
        ScanPlan(np.array([57.75, 59.25, 60.75, 62.25]), 1.5, 0.6, 91, 95, centre),
        sub_slices=1,
    )
    middle = slice(30, 60)  # well inside both boxes
    np.testing.assert_allclose(thick.signal[0, middle, middle], thin.signal[:, middle, middle].mean(axis=0), atol=1e-4)


def test_a_lesion_free_slice_is_far_from_every_lesion(patient):
    lesion = draw_lesions(np.random.default_rng(8), patient, free_share=0)[0]
    x, y = grid(half=4, step=0.5)
    far = lesion_distance(lesion, patient, np.array([lesion.s_mm + lesion.length_mm]), x, y)
    assert (far == REACH_MM).all()
