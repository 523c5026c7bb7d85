"""The cord localiser: the same line however a scan is stored, near real cords, and unsure of what is no cord."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from typer.testing import CliRunner

from msfilm.cli import app
from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.errors import InputError, SettingError
from msfilm.evaluate.localise import localise
from msfilm.evaluate.localise_calibrate import cut_away, distances_mm, phantom_volume
from msfilm.evaluate.localise_maps import SPACING_MM, coarse_grid, coarse_slices, even_out, to_voxels
from msfilm.evaluate.localise_path import LOOSE_MM, PRICE, SKIP, SLOPE, STRETCH, _chain, best_path
from msfilm.evaluate.localise_train import draw_batch, phantom_slices, train_localiser
from msfilm.model.weights import SHIPPED, load_network
from msfilm.places import shipped
from msfilm.view.centreline_picker import CentrelinePicker

SEED = 8_100_000  # of phantoms that neither training nor benchmark has
MT = "sct_tutorial_data/multi_subject/data/sub-05/anat/sub-05_acq-"


# ----- the coarse grid


@pytest.mark.parametrize(("count", "voxel_mm"), [(49, 0.5), (320, 0.47), (41, 1.5), (13, 3.3), (1, 0.6)])
def test_the_coarse_grid_lies_symmetrically_in_the_scan(count, voxel_mm):
    grid = coarse_grid(count, voxel_mm)
    np.testing.assert_allclose(grid + grid[::-1], count - 1, atol=1e-9)
    np.testing.assert_allclose(np.diff(grid) * voxel_mm, SPACING_MM)
    assert len(grid) >= 8 and abs(len(grid) * SPACING_MM - max(count * voxel_mm, 12)) <= SPACING_MM


def test_large_voxels_are_interpolated_as_scipy_does():
    data = np.random.default_rng(0).normal(size=(23, 31, 3)).astype(np.float32)
    volume = Volume(data, np.diag([2.0, 1.7, 4.0, 1.0]))
    x, y = coarse_grid(23, 2.0), coarse_grid(31, 1.7)
    inside = np.ix_(range(3), (y >= 0) & (y <= 30), (x >= 0) & (x <= 22))
    places = np.meshgrid(np.arange(3), y, x, indexing="ij")
    wanted = map_coordinates(data.astype(float), [places[2], places[1], places[0]], order=1)
    np.testing.assert_allclose(coarse_slices(volume).numpy()[inside], wanted[inside], atol=1e-5)


@pytest.mark.parametrize("voxel_mm", [(0.4, 0.6, 5.0), (0.9, 0.9, 3.0), (2.5, 1.0, 1.0)])
def test_a_place_keeps_its_millimetres_on_the_way_through_the_coarse_grid(voxel_mm):
    shape, place = np.array([61, 75, 1]), np.array([33.3, 28.6])
    x, y = np.meshgrid(np.arange(61), np.arange(75), indexing="ij")
    blob = np.exp(-((x - place[0]) ** 2 * voxel_mm[0] ** 2 + (y - place[1]) ** 2 * voxel_mm[1] ** 2) / (2 * 3.0**2))
    volume = Volume(blob[..., None].astype(np.float32), np.diag([*voxel_mm, 1.0]))
    coarse = coarse_slices(volume)[0].double().numpy()
    row, column = np.mgrid[: coarse.shape[0], : coarse.shape[1]]
    middle = np.array([(coarse * column).sum(), (coarse * row).sum()]) / coarse.sum()
    assert volume.data.shape == tuple(shape)
    np.testing.assert_allclose((to_voxels(middle, volume) - place) * voxel_mm[:2], 0, atol=0.02)


def test_evening_out_forgets_the_units_and_a_slow_fall_off():
    rng = np.random.default_rng(1)
    picture = torch.from_numpy(gaussian_filter(rng.normal(size=(2, 70, 63)), (0, 2, 2)).astype(np.float32)) * 5 + 2
    even = even_out(picture)
    torch.testing.assert_close(even_out(picture * 1234), even, rtol=1e-3, atol=1e-4)
    assert even_out(torch.zeros(1, 9, 9)).abs().max() == 0
    slope = torch.exp(torch.linspace(-0.5, 0.5, 70))[None, :, None]
    both = torch.stack([even_out(picture * slope).flatten(), even.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.95


# ----- from heat to a line


def _blob(shape, column, row, height=0.95):
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    return height * torch.exp(-(((x - column) / 2.6) ** 2 + ((y - row) / 1.8) ** 2) ** 2 / 2)


def test_a_bad_slice_is_bridged_and_a_decoy_left_aside():
    columns = 20 + 4 * np.sin(np.arange(14) / 4)
    heat = torch.stack([_blob((41, 50), column, 18.3) for column in columns])
    heat[5] = 0
    heat[9] = _blob((41, 50), 44.0, 33.0)  # warm, and 35 mm away
    path = best_path(heat, 5.0, SPACING_MM)
    np.testing.assert_array_equal(path.zs, np.arange(14))
    apart = np.hypot(path.places[:, 0] - columns, path.places[:, 1] - 18.3) * SPACING_MM
    assert apart.max() < 1.5 and apart[[5, 9]].max() < 1.0, apart
    assert np.isnan(path.raw[[5, 9]]).all() and path.heat[5] == 0 and path.rival[9] > 0.8
    assert best_path(torch.zeros(6, 30, 30), 5.0, SPACING_MM) is None


@pytest.mark.parametrize("seed", range(6))
def test_the_chain_is_the_best_of_all_chains(seed):
    rng = np.random.default_rng(seed)
    found = [(rng.uniform(0, 20, (k, 2)), rng.uniform(0.08, 1, k)) for k in rng.integers(0, 4, 6)]
    step_mm = 6.0

    def worth(chain):
        total = sum(found[z][1][k] - PRICE for z, k in chain)
        for (a, i), (b, j) in pairwise(chain):
            d = np.linalg.norm(found[a][0][i] - found[b][0][j]) * SPACING_MM
            total -= STRETCH * (d / (LOOSE_MM + SLOPE * (b - a) * step_mm)) ** 2 + SKIP * (b - a - 1)
        return total

    every = product(*[[None, *range(len(values))] for _, values in found])
    chains = [[(z, k) for z, k in enumerate(one) if k is not None] for one in every]
    chains = [c for c in chains if all(b[0] - a[0] <= 1 + 25 // step_mm for a, b in pairwise(c))]
    assert worth(_chain(found, step_mm, SPACING_MM)) == pytest.approx(max(worth(c) for c in chains), abs=1e-9)


# ----- real scans


@pytest.mark.parametrize(("orientation", "least"), [("PSR", 50), ("LAS", 9), ("RAS", 60)])
def test_real_cords_are_found_within_three_millimetres(real_cords, orientation, least):
    scan, mask = real_cords[orientation]
    volume = read_image(scan)
    found = localise(volume)
    apart = distances_mm(found.zs, found.centres, read_mask(mask, volume).data, volume)
    print(f"{scan.name}: mean {apart.mean():.2f} mm, most {apart.max():.2f} mm; {found.verdict}")
    assert apart.mean() < 3 and len(found.zs) >= least and found.sure


def test_a_whole_neck_is_found(mirror):
    volume = read_image(mirror / "sct_testing_data/t2s/t2s_uncropped.nii.gz")
    grey = read_mask(mirror / "sct_testing_data/t2s/t2s_uncropped_gmseg_manual.nii.gz", volume).data
    found = localise(volume)
    assert distances_mm(found.zs, found.centres, grey, volume)[np.isin(found.zs, centres_from_mask(grey)[0])].mean() < 3


def test_the_real_patient_is_found_where_the_reader_put_the_points(mirror):
    volume = read_image(mirror / "sct_tutorial_data/single_subject/data/t2_ms/t2.nii.gz")
    found = localise(volume)
    points = read_centreline(shipped("data_manifests") / "centrelines" / "t2_ms.csv")
    zs, centres = centres_from_points(points, volume)
    both, here, there = np.intersect1d(found.zs, zs, return_indices=True)
    apart = np.linalg.norm((found.centres[here] - centres[there]) * volume.voxel_mm[:2], axis=1)
    assert len(both) >= 15 and apart.mean() < 3


def test_the_line_does_not_depend_on_how_the_scan_is_stored(real_cords, tmp_path):
    scan = nib.load(real_cords["LAS"][0])
    lines = []
    for orientation in ("RAS", "LAS", "PSR", "SPL"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(scan.affine),
                                               nib.orientations.axcodes2ornt(orientation))
        nib.save(scan.as_reoriented(turn), tmp_path / f"{orientation}.nii.gz")
        volume = read_image(tmp_path / f"{orientation}.nii.gz")
        assert volume.orientation == orientation
        lines.append(localise(volume))
    for line in lines[1:]:
        np.testing.assert_allclose(line.points_mm, lines[0].points_mm, atol=1e-3)
        np.testing.assert_array_equal(line.slice_confidence, lines[0].slice_confidence)


def test_the_line_moves_with_the_scan_and_is_the_same_twice(real_cords):
    volume = read_image(real_cords["LAS"][0])
    found, again = localise(volume), localise(volume)
    np.testing.assert_array_equal(found.points_mm, again.points_mm)
    assert found.verdict == again.verdict
    moved = volume.affine.copy()
    moved[:3, 3] += (11.0, -7.5, 100.0)
    shifted = localise(replace(volume, affine=moved))
    np.testing.assert_allclose(shifted.points_mm - found.points_mm, [[11.0, -7.5, 100.0]] * len(found.zs), atol=1e-9)
    louder = localise(replace(volume, data=volume.data * 37))
    np.testing.assert_allclose(louder.points_mm, found.points_mm, atol=0.05)


# ----- phantoms


@pytest.mark.parametrize("acquisition", ["T2w_ax", "T2star_ax", "T1w_iso", "MTon_ax", "PSIR_ax", "STIR_sag"])
def test_phantom_cords_are_found(acquisition):
    volume, cord = phantom_volume(2, SEED, acquisition)
    found = localise(volume)
    assert distances_mm(found.zs, found.centres, cord, volume).mean() < 3 and found.confidence > 0.5


def test_a_neck_without_its_cord_is_not_sure():
    volume, cord = phantom_volume(1, SEED, "T2w_ax")
    assert localise(volume).sure
    try:
        assert not localise(cut_away(volume, cord, np.random.default_rng(0))).sure
    except InputError as nothing:
        assert nothing.code == "CORD-NONE"


# ----- what is no cord


@pytest.mark.parametrize("name", ["T1", "T2"])
def test_a_brain_is_not_sure(mirror, name):
    file, = (mirror / "open_ms_data/cross_sectional/MNI/patient19").glob(f"{name}_*")
    brain = read_image(file)
    every_third = Volume(brain.data[:, :, 1::3], brain.affine @ np.diag([1.0, 1.0, 3.0, 1.0]))  # the benchmark: all
    try:
        found = localise(every_third)
        assert not found.sure and found.notes
    except InputError as nothing:
        assert nothing.code == "CORD-NONE"


@pytest.mark.parametrize("side", [40, 130])
def test_noise_is_not_sure(side):
    noise = np.random.default_rng(3).normal(100, 20, (side, side, 15)).astype(np.float32)
    try:
        assert not localise(Volume(noise, np.diag([0.8, 0.8, 4.0, 1.0]))).sure
    except InputError as nothing:
        assert nothing.code == "CORD-NONE"


@pytest.mark.parametrize("shape", [(64, 50, 12), (3, 2, 1)])
def test_one_grey_has_no_cord(shape):
    with pytest.raises(InputError) as caught:
        localise(Volume(np.full(shape, 7, np.float32), np.diag([1.0, 1.0, 3.0, 1.0])))
    assert caught.value.code == "CORD-NONE" and "CentrelinePicker" in str(caught.value)


@pytest.mark.parametrize(("shape", "voxel_mm"), [((3, 2, 1), (1, 1, 1)), ((9, 40, 2), (3, 0.4, 30)),
                                                 ((17, 13, 70), (0.9, 1.1, 0.3)), ((1, 1, 5), (4, 4, 4))])
def test_odd_scans_are_answered_or_refused_by_name(shape, voxel_mm):
    rng = np.random.default_rng(4)
    for scale in (1e-30, 1.0, 1e30):
        data = (gaussian_filter(rng.normal(size=shape), 1.5) * scale).astype(np.float32)
        try:
            found = localise(Volume(data, np.diag([*voxel_mm, 1.0])))
        except InputError as nothing:
            assert nothing.code == "CORD-NONE"
            continue
        assert np.isfinite(found.points_mm).all() and (np.diff(found.zs) == 1).all() and found.zs[-1] < shape[2]
        assert (found.centres >= 0).all() and (found.centres <= np.array(shape[:2]) - 1).all()
        assert ((found.slice_confidence >= 0) & (found.slice_confidence <= 1)).all() and found.sure == (not found.notes)


def test_a_network_for_lesions_finds_no_cords(real_cords):
    volume = read_image(real_cords["LAS"][0])
    with pytest.raises(InputError, match="CORD-NETWORK"):
        localise(volume, network="unet-small")
    with pytest.raises(SettingError, match="NETWORK-UNKNOWN"):
        localise(volume, network="cord-localizer")


# ----- files and commands


def test_the_command_writes_points_that_segment_reads(real_cords, tmp_path):
    scan, out = real_cords["LAS"][0], tmp_path / "é line.csv"
    done = CliRunner().invoke(app, ["localise", str(scan), str(out)])
    assert done.exit_code == 0 and "confidence" in done.output, done.output
    found = localise(read_image(scan))
    np.testing.assert_allclose(read_centreline(out), found.points_mm, atol=1e-4)
    assert f"confidence {found.confidence:.2f}" in out.read_text(encoding="utf-8")
    zs, centres = centres_from_points(read_centreline(out), read_image(scan))
    np.testing.assert_array_equal(zs, found.zs)
    np.testing.assert_allclose(centres, found.centres, atol=1e-3)
    thin = found.thinned()
    assert len(thin) == 6
    np.testing.assert_array_equal(thin[[0, -1]], found.points_mm[[0, -1]])


# ----- the network that ships


def test_the_network_is_small_and_its_confidence_worth_more_than_the_mean():
    card = load_network("cord-localiser").card
    assert (SHIPPED / "cord-localiser" / "weights.safetensors").stat().st_size < 1_000_000
    assert card["calibration"]["brier"] < 0.5 * card["calibration"]["brier_of_the_mean"]
    assert card["must_not_be_used_for"] and "localise_train" in card["command"]


def test_training_is_the_same_twice():
    images, cords = phantom_slices(1, SEED)
    assert images.shape == cords.shape and cords.float().amax(dim=(1, 2)).median() > 0.9
    for field in range(3):
        image, cord = draw_batch(images, cords, np.random.default_rng(0), field)
        assert image.shape == cord.shape and image.isfinite().all() and 0 <= cord.min() and cord.max() <= 1.001
        assert cord.sum() > 0
    one, two = (train_localiser(images, cords, seed=1, steps=2, filters=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


# ----- in the picker


def test_the_picker_begins_with_the_proposal(real_cords, tmp_path):
    scan, mask = real_cords["PSR"]
    view = CentrelinePicker(scan, tmp_path / "points.csv")
    view.pick(5, 5, 50)
    view.controls["propose"].click()
    found = localise(view.volume)
    np.testing.assert_allclose(view.points_mm, found.thinned(), atol=1e-4)
    assert found.verdict in view.describe() and not view.errors
    apart = distances_mm(*view.curve, read_mask(mask, view.volume).data, view.volume)
    assert len(view.curve[0]) == len(found.zs) and apart.mean() < 3
    view.close()


def test_the_picker_says_where_nothing_is_found(tmp_path):
    scan = tmp_path / "grey.nii.gz"
    nib.save(nib.Nifti1Image(np.full((30, 30, 6), 5, np.int16), np.diag([1.0, 1.0, 5.0, 1.0])), scan)
    view = CentrelinePicker(scan, tmp_path / "points.csv")
    view.pick(5, 5, 3)
    view.controls["propose"].click()
    assert "Nothing proposed" in view.describe() and "CORD-NONE" in view.describe()
    assert len(view.points_mm) == 1 and not view.errors
    view.close()
