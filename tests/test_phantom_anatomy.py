"""The phantom's anatomy: sizes as in the tables, tissues where they belong, shapes with true distances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from msfilm.phantom.anatomy import COLUMNS, cord_distance, draw_patient, grey_matter_distance
from msfilm.phantom.facts import levels
from msfilm.phantom.fields import RandomField, capsule, coverage, radial
from msfilm.phantom.lesions import REACH_MM, draw_lesions, lesion_distance
from msfilm.phantom.tissue import canal, canal_outline, surroundings

STEP = 0.1
LEVELS = levels()


def axis(half, step=STEP):
    return np.arange(-half + step / 2, half, step)


def grid(half=12.0, step=STEP, n=1):
    """x, y (n, h, w)."""
    y, x = torch.meshgrid(*[torch.as_tensor(axis(half, step), dtype=torch.float32)] * 2, indexing="ij")
    return x.expand(n, -1, -1), y.expand(n, -1, -1)


def around_cord(patient, s, half=12.0, step=STEP):
    """Points of horizontal slices at depths ``s``, centred on the cord."""
    s = np.asarray(s, dtype=float)
    centre = patient.centre(s)
    y = centre[:, 1:] + axis(half, step)
    found = patient.points(axis(half, step), y, np.broadcast_to(s[:, None], y.shape))
    return replace(found, shift=torch.zeros_like(found.shift))  # columns relative to the cord, whatever its sway


def profile_at(patient, s):
    """Sizes (n, 1, 1) at depths ``s``."""
    profile = patient.profile(np.asarray(s))
    return {name: torch.as_tensor(v, dtype=torch.float32)[:, None, None] for name, v in profile.items()}


@pytest.fixture(scope="module")
def patient():
    return draw_patient(np.random.default_rng(3))


@pytest.fixture(scope="module")
def people():
    return [draw_patient(np.random.default_rng(i)) for i in range(60)]


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "triangle"), [(3.0, 3.0, 0.0), (6.0, 3.5, 0.0), (6.0, 3.5, 0.025)])
def test_covered_area_of_an_ellipse_is_pi_a_b(a, b, triangle):
    """A third harmonic of amplitude t leaves the area of a circle but for t^2 / 2."""
    x, y = grid()
    area = coverage(radial(x, y, a, b, triangle), STEP).sum().item() * STEP**2
    assert area == pytest.approx(np.pi * a * b, rel=3e-3)


def test_distance_to_a_circle_and_a_capsule_is_euclidean():
    x, y = grid(half=6)
    torch.testing.assert_close(radial(x, y, 2.0, 2.0), (x**2 + y**2).sqrt() - 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        capsule(x, y, 1.0, 2.0, 1.0, 2.0, 0.5), ((x - 1) ** 2 + (y - 2) ** 2).sqrt() - 0.5, atol=1e-3, rtol=0
    )
    ends, t = np.array([[-2.0, 1.0], [3.0, -1.5]]), np.linspace(0, 1, 4001)[:, None]
    line = ends[0] * (1 - t) + ends[1] * t  # the segment as a dense row of points
    for at in np.random.default_rng(0).uniform(-6, 6, (20, 2)):
        here = capsule(*(torch.tensor([v], dtype=torch.float32) for v in at), *ends[0], *ends[1], 0.7)
        assert here.item() == pytest.approx(np.hypot(*(line - at).T).min() - 0.7, abs=2e-3)


@pytest.mark.parametrize("width", [0.4, torch.tensor(0.4)])
def test_coverage_is_the_mean_of_a_straight_edge_over_the_pixel(width):
    """For every position of the edge: the share of 1000 points across the pixel that lie inside."""
    distance = torch.linspace(-0.5, 0.5, 41)
    points = (torch.arange(1000) + 0.5) / 1000 * 0.4 - 0.2
    share = ((distance[:, None] + points) < 0).float().mean(dim=1)
    torch.testing.assert_close(coverage(distance, width), share, atol=2e-3, rtol=0)


# ---- sizes by level -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(patient):
    """A person with exactly the table's sizes."""
    return replace(patient, table=np.column_stack([LEVELS[list(COLUMNS)].to_numpy(float), np.ones(len(LEVELS))]))


def test_the_rasterised_cord_has_the_area_and_diameters_of_the_table(template):
    x, y = grid(half=9, n=len(LEVELS))
    share = coverage(cord_distance(x, y, profile_at(template, template.middles_mm)), STEP)
    area = share.sum(dim=(1, 2)).numpy() * STEP**2
    np.testing.assert_allclose(area, LEVELS.cord_area, rtol=0.035)  # the area of AP and RL as an ellipse, +- rounding
    inside = share > 0.5
    np.testing.assert_allclose(inside.any(dim=1).sum(dim=1) * STEP, LEVELS.cord_rl, rtol=0.04)
    np.testing.assert_allclose(inside.any(dim=2).sum(dim=1) * STEP, LEVELS.cord_ap, rtol=0.04)


def test_people_scatter_round_the_table_as_ten_real_subjects_do(people):
    """Area 67.2 +- 6.3 mm2 where the template's C2-C6 has 67.5; every level follows the table."""
    ap, rl, canal_ap, canal_rl = (
        np.array([q.profile(q.middles_mm)[name] for q in people])
        for name in ("cord_ap", "cord_rl", "canal_ap", "canal_rl")
    )
    area = np.pi / 4 * ap * rl
    np.testing.assert_allclose(area.mean(axis=0), np.pi / 4 * LEVELS.cord_ap * LEVELS.cord_rl, rtol=0.05)
    neck = area[:, 1:6].mean(axis=1)
    assert 0.05 < neck.std() / neck.mean() < 0.13
    assert (ap.mean(axis=0) / rl.mean(axis=0) == pytest.approx((LEVELS.cord_ap / LEVELS.cord_rl).to_numpy(), rel=0.04))
    real = (np.pi / 4 * canal_ap * canal_rl)[:, 1:6].mean(axis=1)
    assert 190 < real.mean() < 250  # ten subjects: 222 +- 31 mm2


def test_grey_matter_has_the_share_it_is_asked_for_at_every_level(people):
    x, y = grid(half=7, n=len(LEVELS))
    for person in people[:6]:
        p = profile_at(person, person.middles_mm)
        grey = coverage(grey_matter_distance(x, y, p["gm_rl"], p["gm_ap"], p["gm_t"]), STEP)
        cord = coverage(cord_distance(x, y, p), STEP)
        share = (grey * cord).sum(dim=(1, 2)) / cord.sum(dim=(1, 2))
        np.testing.assert_allclose(share.numpy(), p["gm_fraction"].flatten().numpy(), atol=0.006)
    asked = np.array([q.profile(q.middles_mm)["gm_fraction"] for q in people])
    np.testing.assert_allclose(asked.mean(axis=0), LEVELS.gm_fraction, atol=0.015)


def test_grey_matter_reaches_as_far_as_the_table_says(people):
    x, y = grid(half=7, n=len(LEVELS))
    for person in people[:6]:
        p = profile_at(person, person.middles_mm)
        inside = grey_matter_distance(x, y, p["gm_rl"], p["gm_ap"], p["gm_t"]) < 0
        for extent, name in ((inside.any(dim=1), "gm_rl"), (inside.any(dim=2), "gm_ap")):
            np.testing.assert_allclose(extent.sum(dim=1) * STEP, p[name].flatten(), rtol=0.14)
        cord = cord_distance(x, y, p)
        assert not (inside & (cord > -0.3)).any(), "white matter lies between grey matter and the pia"


def test_grey_matter_is_a_butterfly_and_no_ellipse(patient):
    """A row through the horns cuts it twice, one through the commissure once; it leaves most of its ellipse free."""
    x, y = grid(half=7, step=0.05, n=len(LEVELS))
    p = profile_at(patient, patient.middles_mm)
    inside = grey_matter_distance(x, y, p["gm_rl"], p["gm_ap"], p["gm_t"]) < 0
    assert torch.equal(inside, inside.flip(2)), "left and right alike"
    rows = inside.any(dim=2).nonzero()
    for level, mask in enumerate(inside):
        rows = mask.any(dim=1).nonzero().flatten()
        low, high = int(rows[0]), int(rows[-1])

        def pieces(row, mask=mask):
            return int((mask[row].int().diff() == 1).sum())

        assert pieces(low + (high - low) // 6) == 2, f"dorsal horns at {LEVELS.index[level]}"
        assert pieces(high - (high - low) // 6) == 2, f"ventral horns at {LEVELS.index[level]}"
        assert any(pieces(row) == 1 for row in range(low, high)), "one commissure joins the sides"
        top, bottom = mask[high - (high - low) // 4].sum(), mask[low + (high - low) // 4].sum()
        assert top > 1.3 * bottom, "ventral horns are the broad ones"
    ellipse = radial(x, y - 0.15, p["gm_rl"] / 2, p["gm_ap"] / 2) < 0
    overlap = (inside & ellipse).sum(dim=(1, 2)) / (inside | ellipse).sum(dim=(1, 2))
    assert overlap[: list(LEVELS.index).index("T9")].max() < 0.75


def test_the_canal_holds_the_cord_with_fluid_round_it_at_all_levels(people):
    for person in people[:25]:
        p = around_cord(person, person.middles_mm, half=12, step=0.3)
        shares = {}
        for tissue, share in canal(person, p, 0.3):
            shares.setdefault(tissue, share)
        cord = shares["wm"] > 0.5
        assert (cord.sum(dim=(1, 2)) > 100).all()
        assert (canal_outline(person, p)[cord] < -0.6).all(), "no cord in the bone"
        wet = (cord & (shares["csf"] > 0.5)).sum(dim=(1, 2)) / cord.sum(dim=(1, 2))
        assert (wet > 0.9).all(), "but for its corners the cord lies in the fluid's sac"


def test_painted_shares_lie_between_0_and_1_and_the_cord_is_on_top(patient):
    p = around_cord(patient, patient.middles_mm[[2, 5, 12]], half=27, step=0.5)
    top = torch.zeros(p.shape)
    for paint in (surroundings(patient, p, 0.5), canal(patient, p, 0.5)):
        for tissue, share in paint:
            assert share.min() >= 0 and share.max() <= 1, tissue
            top = top * (1 - share) + share * (tissue in ("wm", "gm"))
    assert top[:, 54, 54].min() > 0.99  # the middle is cord
    assert top[:, 2, 2].max() < 0.01  # 38 mm away nothing is


# ---- along the spine ------------------------------------------------------------------------------------------------


def test_a_random_field_is_the_sum_of_its_cosines():
    rng = np.random.default_rng(4)
    field = RandomField.draw(rng, 3.0, length_s_mm=9.0, terms=11)
    columns = rng.uniform(-30, 30, 17)
    shift, y, s = rng.uniform(-20, 20, (3, 5, 13, 1))
    x = columns - shift
    direct = np.zeros(x.shape)
    for (kx, ky, ks), phase in zip(field.waves, field.phases, strict=True):
        direct += np.cos(kx * x + ky * y + ks * s + phase)
    direct *= np.sqrt(2 / len(field.phases))
    found = field(*(torch.as_tensor(v, dtype=torch.float32) for v in (columns, shift, y, s)))
    np.testing.assert_allclose(found.numpy(), direct, atol=2e-4)


def test_a_random_field_has_mean_0_and_variance_1():
    rng = np.random.default_rng(0)
    columns = torch.as_tensor(rng.uniform(-200, 200, 300), dtype=torch.float32)
    shift, y, s = (torch.as_tensor(rng.uniform(-200, 200, (1, 300, 1)), dtype=torch.float32) for _ in range(3))
    values = [RandomField.draw(rng, 3.0, terms=12)(columns, shift, y, s) for _ in range(6)]
    assert abs(np.mean([v.mean() for v in values])) < 0.03
    assert np.mean([v.var() for v in values]) == pytest.approx(1, abs=0.05)


def test_sizes_and_centre_change_smoothly_along_the_spine(people):
    for person in people[:10]:
        s = np.arange(-20, person.bottom_mm + 20, 0.05)
        for name, values in person.profile(s).items():
            if name != "phase":  # rises and falls within each vertebra
                assert np.abs(np.diff(values)).max() < 0.05, name
        assert np.abs(np.diff(person.profile(s)["phase"])).max() < 0.02
        centre = person.centre(s)
        assert np.abs(np.diff(centre, axis=0)).max() < 0.05 * 0.6
        slope = np.gradient(centre[:, 1], s)
        np.testing.assert_allclose(person.profile(s)["slope"], slope, atol=6e-3)


def test_the_phase_is_0_in_the_middle_of_a_vertebra_and_1_at_a_disc(patient):
    np.testing.assert_allclose(patient.profile(patient.middles_mm)["phase"], 0, atol=0.06)
    np.testing.assert_allclose(patient.profile(patient.tops_mm[1:])["phase"], 1, atol=0.06)
    assert [patient.level(s) for s in patient.middles_mm] == list(LEVELS.index)
    np.testing.assert_allclose(np.diff(patient.tops_mm) / LEVELS.height_mm[:-1], patient.tops_mm[1] / 23)


def test_in_a_tilted_slice_depth_belongs_to_the_row(patient):
    """Every row has the sizes and the centre of its own depth, as if it were alone."""
    columns, v = axis(20, 1.0), axis(20, 1.0)
    angle = np.deg2rad([0.0, 12.0, -15.0])[:, None]
    y, s = 3.0 + v * np.cos(angle), 90.0 - v * np.sin(angle)
    whole = patient.points(columns, y, s)
    assert whole.shape == (3, 40, 40) and whole.x.shape == whole.shape
    own = patient.profile(s)
    np.testing.assert_allclose(whole.s[..., 0], s, rtol=1e-6)
    for name in ("cord_ap", "cord_rl", "gm_t", "offset", "slope"):
        np.testing.assert_allclose(whole.profile[name][..., 0], own[name], atol=1e-5)
    centre = patient.centre(s)
    np.testing.assert_allclose(whole.x.numpy(), columns - centre[..., :1], atol=1e-4)
    steep = np.sqrt(1 + own["slope"] ** 2)
    np.testing.assert_allclose(whole.y[..., 0], (y - centre[..., 1]) / steep, atol=1e-4)
    for row in (0, 17, 39):
        alone = patient.points(columns, y[1:2, row : row + 1], s[1:2, row : row + 1])
        torch.testing.assert_close(alone.field(patient.cord_field)[0], whole.field(patient.cord_field)[1, row][None])


def test_a_slice_at_an_angle_to_the_cord_shows_it_longer_by_the_cosine(patient):
    straight = replace(patient, curve=np.array([0.0, 0.0, 0.3, 0.0, 0.0, 0.0]))  # a straight cord that leans forward
    assert straight.centre(np.array([40.0]))[0, 1] - straight.centre(np.array([39.0]))[0, 1] == pytest.approx(0.3)
    lean = np.arctan(0.3)
    v, s0 = axis(9, 0.02), float(straight.middles_mm[3])
    y0, expected = straight.centre(np.array([s0]))[0, 1], float(straight.profile(np.array([s0]))["cord_ap"][0])
    for angle in (0.0, lean, 0.5):
        p = straight.points(np.array([0.0]), (y0 + v * np.cos(angle))[None], (s0 - v * np.sin(angle))[None])
        inside = cord_distance(p.x, p.y, p.profile) < 0
        assert inside.sum().item() * 0.02 == pytest.approx(expected / np.cos(angle - lean), rel=0.025)


# ---- lesions --------------------------------------------------------------------------------------------------------


def test_lesions_stay_in_the_cord_and_within_their_length(patient):
    rng = np.random.default_rng(5)
    lesions = [lesion for _ in range(6) for lesion in draw_lesions(rng, patient, free_share=0)]
    assert len(lesions) >= 6
    s = np.arange(0, patient.bottom_mm, 2.0)
    p = around_cord(patient, s, half=9, step=0.3)
    turn = float(patient.curve[5])
    u, v = np.cos(turn) * p.x - np.sin(turn) * p.y, np.sin(turn) * p.x + np.cos(turn) * p.y
    outside = cord_distance(u, v, p.profile) > 0
    for lesion in lesions:
        distance = lesion_distance(lesion, patient, p)
        inside = distance < 0
        assert distance.abs().max() <= REACH_MM
        assert not (inside & outside).any()
        slices = s[inside.any(dim=(1, 2)).numpy()]
        assert len(slices)
        assert np.abs(slices - lesion.s_mm).max() <= lesion.length_mm / 2
        far = torch.as_tensor(np.abs(s - lesion.s_mm) > lesion.length_mm / 2 + 1e-6)
        assert (distance[far] == REACH_MM).all()


def test_lesions_lie_on_the_side_they_are_named_after(people):
    rng = np.random.default_rng(9)
    for person in people[:12]:
        for lesion in draw_lesions(rng, person, free_share=0)[:3]:
            p = around_cord(person, [lesion.s_mm], half=8, step=0.2)
            inside = lesion_distance(lesion, person, p) < 0
            x, y = p.x.expand(p.shape)[inside].mean().item(), p.y.expand(p.shape)[inside].mean().item()
            side = np.arctan2(y, x)
            off = np.angle(np.exp(1j * (side - lesion.angle - float(person.curve[5]))))
            assert lesion.radial_mm > 3 or abs(off) < 0.9, (lesion, off)  # a large one covers the middle too


def test_lesion_statistics_are_those_of_the_series():
    rng = np.random.default_rng(0)
    patient = draw_patient(rng)
    drawn = [draw_lesions(rng, patient) for _ in range(3000)]
    neck = np.array([sum(lesion.s_mm < patient.tops_mm[9] for lesion in d) for d in drawn])
    assert np.mean([not d for d in drawn]) == pytest.approx(0.2, abs=0.02)
    assert neck[neck > 0].mean() == pytest.approx(3.2, abs=0.15)
    lesions = [lesion for d in drawn for lesion in d]
    for site, share in (("lateral", 0.59), ("posterior", 0.35), ("anterior", 0.06)):
        assert np.mean([lesion.site == site for lesion in lesions]) == pytest.approx(share, abs=0.02)
    assert np.mean([lesion.kind == "lesion_mild" for lesion in lesions]) == pytest.approx(0.10, abs=0.015)
    levels_of = [patient.level(lesion.s_mm) for lesion in lesions if lesion.s_mm < patient.tops_mm[9]]
    assert np.mean(np.isin(levels_of, ["C3", "C4", "C5"])) == pytest.approx(0.6, abs=0.03)
    assert all(5 <= lesion.length_mm <= 60 and 0.4 <= lesion.strength <= 1 for lesion in lesions)
    lengths = [np.mean([x.length_mm for x in lesions if x.site == site]) for site in ("lateral", "posterior")]
    assert lengths[0] == pytest.approx(17.6, rel=0.12) and lengths[1] == pytest.approx(24.8, rel=0.12)
