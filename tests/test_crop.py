"""The crop grid: exact where it can be, SciPy's interpolation everywhere, the right way up, and back into the scan."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from conftest import millimetres, oriented_affine, write_plain
from nibabel.processing import resample_from_to
from scipy import ndimage

from msfilm.data import crop as crop_module
from msfilm.data.crop import (
    CropGrid,
    centres_from_mask,
    centres_from_points,
    coverage,
    crop,
    crop_mask,
    read_centreline,
    uncrop,
)
from msfilm.data.nifti import Volume, read_image, read_mask
from msfilm.errors import InputError, SettingError


def cord_grid(real_cords, name, size=48, spacing_mm=0.75):
    image = read_image(real_cords[name][0])
    cord = read_mask(real_cords[name][1], image)
    return image, cord, CropGrid(image.data.shape, image.affine, *centres_from_mask(cord.data), size, spacing_mm)


def aligned(size, shape=(61, 70, 5), voxel=0.75):
    """A grid whose pixels lie on voxel centres; odd sizes centre on a voxel, even ones between two."""
    half = 0.0 if size % 2 else 0.5
    return CropGrid(
        shape, np.diag([voxel, voxel, 4, 1]), [1, 3], [[30 + half, 35 + half], [28 + half, 31 + half]], size, voxel
    )


@pytest.mark.parametrize("size", [47, 48, 1, 2, 33])
def test_aligned_grid_is_an_exact_copy_turned_to_radiological_display(size):
    data = np.random.default_rng(0).normal(0, 1e3, (61, 70, 5)).astype(np.float32)
    grid = aligned(size)
    crops, padded = crop(data, grid)
    assert crops.dtype == np.float32 and not padded.any()
    for one, z, (x, y) in zip(crops, grid.zs, np.floor(grid.centres).astype(int), strict=True):
        x0, y0 = x - (size - 1) // 2, y - (size - 1) // 2
        copy = data[x0 : x0 + size, y0 : y0 + size, z]
        np.testing.assert_array_equal(one, copy.T[::-1, ::-1])  # rows from anterior down, columns from the right


@pytest.mark.parametrize("size", [47, 48])
def test_crop_then_uncrop_is_exact_on_an_aligned_grid_and_fill_outside(size):
    data = np.random.default_rng(1).normal(0, 1e3, (61, 70, 5)).astype(np.float32)
    grid = aligned(size)
    back = uncrop(crop(data, grid)[0], grid, fill=-7)
    inside = coverage(grid)
    assert inside.sum() == 2 * size * size
    np.testing.assert_array_equal(back[inside], data[inside])
    assert (back[~inside] == -7).all()


@pytest.mark.parametrize("size", [47, 48])
@pytest.mark.parametrize("voxel", [(0.5, 0.6), (0.75, 1.0), (1.3, 0.3)])
def test_linear_ramp_is_reproduced_inside_both_ways(size, voxel):
    shape = (90, 150, 3)
    affine = np.diag([*voxel, 3, 1])
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    ramp = (10 + 3 * x * voxel[0] - 2 * y * voxel[1])[:, :, None] * np.array([1.0, 2.0, -1.0])
    grid = CropGrid(shape, affine, [0, 2], [[44.3, 73.1], [45.9, 76.6]], size, 0.75)
    crops, padded = crop(ramp, grid)
    gx, gy = grid.voxel_coordinates()
    truth = np.stack([(10 + 3 * gx[i] * voxel[0] - 2 * gy[i, :, None] * voxel[1]) * (1, -1)[i] for i in range(2)])
    inside = (gx >= 0) & (gx <= shape[0] - 1)
    np.testing.assert_allclose(
        crops[inside[:, None].repeat(size, 1)], truth[inside[:, None].repeat(size, 1)], rtol=1e-6, atol=1e-4
    )
    assert (padded == 0).all() == inside.all()
    inner = CropGrid(shape, affine, grid.zs, grid.centres, size - 2, 0.75)  # where four pixels surround a voxel
    back, covered = uncrop(truth.astype(np.float32), grid, fill=np.nan), coverage(inner)
    np.testing.assert_allclose(back[covered], ramp[covered], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR"])
@pytest.mark.parametrize(("size", "spacing_mm"), [(48, 0.75), (31, 0.4)])
def test_real_scans_are_interpolated_as_scipy_interpolates_them(real_cords, name, size, spacing_mm):
    image, _, grid = cord_grid(real_cords, name, size, spacing_mm)
    crops, padded = crop(image.data, grid)
    x, y = grid.voxel_coordinates()
    points = np.broadcast_arrays(x[:, None, :], y[:, :, None], grid.zs[:, None, None])
    expected = ndimage.map_coordinates(image.data.astype(np.float64), points, order=1, mode="nearest")
    np.testing.assert_allclose(crops, expected, rtol=1e-6, atol=1e-4)
    outside = (
        (points[0] < -0.5) | (points[0] > grid.shape[0] - 0.5) | (points[1] < -0.5) | (points[1] > grid.shape[1] - 0.5)
    )
    np.testing.assert_allclose(padded, outside.mean(axis=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR"])
def test_real_scans_are_resampled_as_nibabel_resamples_them(real_cords, name):
    image, _, grid = cord_grid(real_cords, name, 41, 0.8)
    still = CropGrid(
        grid.shape, grid.affine, grid.zs, np.repeat(grid.centres.mean(axis=0, keepdims=True), len(grid), 0), 41, 0.8
    )
    x, y = still.voxel_coordinates()
    to_voxel = np.diag(
        [x[0, 1] - x[0, 0], y[0, 1] - y[0, 0], 1, 1]
    )  # (column, row, slice) of the crops -> voxel of the scan
    to_voxel[:3, 3] = x[0, 0], y[0, 0], still.zs[0]
    original = nib.load(real_cords[name][0])
    original = nib.Nifti1Image(
        original.get_fdata(), original.affine
    )  # the file's own axis order, but not rounded to int16
    there = resample_from_to(original, ((41, 41, len(still)), image.affine @ to_voxel), order=1, mode="nearest")
    np.testing.assert_allclose(crop(image.data, still)[0].transpose(2, 1, 0), there.get_fdata(), rtol=1e-4, atol=0.02)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSR", "LPI", "AIR"])
@pytest.mark.parametrize("degrees", [0, 14])
def test_row_0_is_anterior_and_column_0_the_patients_right(tmp_path, orientation, degrees):
    turn = nib.orientations.axcodes2ornt(orientation)
    world_mm, world_shape = np.array([0.6, 0.7, 3.0]), np.array([81, 75, 7])  # along right, anterior, superior
    shape, voxel = world_shape[turn[:, 0].astype(int)], world_mm[turn[:, 0].astype(int)]
    affine = oriented_affine(orientation, voxel, shape, degrees)
    upright = oriented_affine("RAS", world_mm, world_shape, degrees)[:3, :3] / world_mm  # directions of the tilted body
    centre = np.array([3.0, -5.0, 20.0])
    right, front = centre + 9 * upright[:, 0], centre + 6 * upright[:, 1]
    where = millimetres(affine, shape)
    data = sum(height * np.exp(-((where - point) ** 2).sum(-1) / 4) for point, height in ((right, 100), (front, 200)))
    image = read_image(write_plain(tmp_path / "a.nii.gz", data, affine, np.float32))
    inverse = np.linalg.inv(image.affine)
    voxel_centre = inverse[:3, :3] @ centre + inverse[:3, 3]
    grid = CropGrid(image.data.shape, image.affine, [round(voxel_centre[2])], voxel_centre[None, :2], 49, 0.5)
    one = crop(image.data, grid)[0][0]
    assert one.max() > 150 and np.unravel_index(one.argmax(), one.shape) == (
        24 - 12,
        24,
    )  # 6 mm to the front = 12 rows up
    one[:20] = 0
    assert np.unravel_index(one.argmax(), one.shape) == (24, 24 - 18)  # 9 mm to the right = 18 columns to the left


def test_crops_beyond_the_scan_repeat_its_edge_and_say_how_much():
    data = np.random.default_rng(2).normal(size=(10, 12, 2)).astype(np.float32)
    grid = CropGrid(data.shape, np.eye(4), [0, 1], [[0, 0], [100, 5.5]], 8, 1.0)
    crops, padded = crop(data, grid)
    x, y = grid.voxel_coordinates()
    np.testing.assert_allclose(padded, [1 - (5 / 8) ** 2, 1.0])  # a pixel at -.5 lies on the outermost voxel's rim
    assert (crops[0, :, x[0] < 0] == crops[0, :, x[0] < 0][0]).all()
    np.testing.assert_allclose(
        crops[1], np.repeat(np.interp(y[1], np.arange(12), data[9, :, 1])[:, None], 8, axis=1), rtol=1e-6
    )
    assert not uncrop(crops, grid)[:, :, 1].any()


def test_a_tall_scan_in_several_chunks_is_the_same(real_cords, monkeypatch):
    image, _, grid = cord_grid(real_cords, "PSR")
    whole, back = crop(image.data, grid)[0], uncrop(crop(image.data, grid)[0], grid)
    monkeypatch.setattr(crop_module, "_CHUNK_BYTES", 7 * 8 * 64 * 64)
    np.testing.assert_array_equal(crop(image.data, grid)[0], whole)
    np.testing.assert_array_equal(uncrop(whole, grid), back)


@pytest.mark.parametrize(
    ("name", "spacing_mm", "least"),
    [
        ("RAS", 0.75, 0.96),
        ("LAS", 0.75, 0.96),
        ("PSR", 0.75, 0.96),
        ("RAS", 0.5, 0.999),
        ("LAS", 0.5, 0.999),
        ("PSR", 0.5, 0.999),
    ],
)
def test_real_cord_masks_survive_the_way_there_and_back(real_cords, name, spacing_mm, least):
    _, cord, grid = cord_grid(real_cords, name, int(36 / spacing_mm), spacing_mm)
    there = crop_mask(cord.data, grid)
    back = uncrop(there, grid) >= 0.5
    dice = 2 * (back & (cord.data > 0)).sum() / (back.sum() + cord.data.sum())
    assert dice > least
    soft = uncrop(crop(cord.data, grid)[0], grid)
    assert soft.min() >= 0 and soft.max() <= 1


@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR"])
def test_the_cord_sits_in_the_middle_of_its_crop(real_cords, name):
    _, cord, grid = cord_grid(real_cords, name)
    for one in crop_mask(cord.data, grid):
        np.testing.assert_allclose(ndimage.center_of_mass(one), (23.5, 23.5), atol=0.6)


def test_mask_and_image_stay_in_step():
    data = np.zeros((40, 40, 3), np.float32)
    data[12:23, 15:21, 1] = 1
    grid = CropGrid(data.shape, np.diag([0.5, 0.9, 2, 1]), [1], [[17.3, 18.2]], 33, 0.6)
    np.testing.assert_array_equal(crop_mask(data.astype(np.uint8), grid), crop(data, grid)[0] >= 0.5)


def test_nearest_takes_values_that_are_there():
    data = np.random.default_rng(3).integers(0, 9, (30, 31, 2)).astype(np.int16) * 10
    assert set(
        np.unique(crop(data, CropGrid(data.shape, np.eye(4), [1], [[15.2, 14.9]], 15, 0.7), mode="nearest")[0])
    ) <= set(np.unique(data))


def test_no_slices_give_no_crops():
    grid = CropGrid((9, 9, 9), np.eye(4), [], np.zeros((0, 2)))
    assert crop(np.zeros((9, 9, 9)), grid)[0].shape == (0, 48, 48)
    assert not uncrop(np.zeros((0, 48, 48)), grid).any() and not coverage(grid).any()


@pytest.mark.parametrize(
    "change",
    [
        {"zs": [9]},
        {"zs": [1, 1], "centres": [[1, 1], [1, 1]]},
        {"size": 0},
        {"spacing_mm": 0},
        {"spacing_mm": float("nan")},
        {"centres": [[1, 1], [2, 2]]},
    ],
)
def test_impossible_grids_are_refused(change):
    with pytest.raises(SettingError, match="CROP-SETTING"):
        CropGrid(**{"shape": (5, 5, 5), "affine": np.eye(4), "zs": [1], "centres": [[2, 2]]} | change)


def test_arrays_that_do_not_fit_are_refused():
    grid = CropGrid((5, 5, 5), np.eye(4), [1], [[2, 2]])
    for call in (lambda: crop(np.zeros((5, 5, 4)), grid), lambda: uncrop(np.zeros((2, 48, 48)), grid)):
        with pytest.raises(SettingError, match="CROP-SHAPE"):
            call()
    with pytest.raises(SettingError, match="CROP-MODE"):
        crop(np.zeros((5, 5, 5)), grid, mode="cubic")


# --- centres ---------------------------------------------------------------------------------------------------------


def test_centres_are_scipys_centres_of_mass(real_cords):
    cord = read_mask(real_cords["PSR"][1]).data
    zs, centres = centres_from_mask(cord)
    np.testing.assert_array_equal(zs, [z for z in range(cord.shape[2]) if cord[:, :, z].any()])
    np.testing.assert_allclose(centres, [ndimage.center_of_mass(cord[:, :, z]) for z in zs])
    assert [part.shape for part in centres_from_mask(np.zeros((3, 4, 5)))] == [(0,), (0, 2)]


def test_points_along_a_real_cord_give_its_centres(real_cords):
    image, cord = read_image(real_cords["PSR"][0]), read_mask(real_cords["PSR"][1])
    zs, centres = centres_from_mask(cord.data)
    picked = np.linspace(0, len(zs) - 1, 6).round().astype(int)
    voxels = np.column_stack([centres, zs])[picked]
    points = voxels @ image.affine[:3, :3].T + image.affine[:3, 3]
    found_zs, found = centres_from_points(np.round(points[::-1], 2), image)
    np.testing.assert_array_equal(found_zs, zs)
    assert np.abs(found - centres).max() < 1.0  # mm, for voxels are 1 mm
    np.testing.assert_allclose(found[picked], centres[picked], atol=0.02)


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([[0, 0, 0]], "FEW"),
        (np.zeros((0, 3)), "FEW"),
        ([[0, 0], [1, 1]], "VALUES"),
        ([[0, 0, 0], [0, np.nan, 3]], "VALUES"),
        ([[0, 0, 0], [0, 0, 90]], "OUTSIDE"),
        ([[0, 0, 0], [1, 0, 0]], "TWICE"),
    ],
)
def test_impossible_centrelines_are_refused(points, code):
    volume = Volume(np.zeros((9, 9, 9), np.float32), np.eye(4))
    with pytest.raises(InputError) as caught:
        centres_from_points(np.array(points, float), volume)
    assert caught.value.code == f"CENTRELINE-{code}" and caught.value.mend


def test_centreline_file_is_read_with_its_comments(tmp_path):
    path = tmp_path / "cord line.csv"
    path.write_text("# placed by eye\nx_mm, y_mm,z_mm\n1,2,3\n\n# below C4\n-1.5, 2e1 ,-3\n", encoding="utf-8")
    np.testing.assert_array_equal(read_centreline(path), [[1, 2, 3], [-1.5, 20, -3]])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "MISSING"),
        ("", "VALUES"),
        ("x,y,z\n1,2,3\n", "VALUES"),
        ("x_mm,y_mm,z_mm\n1,2\n", "VALUES"),
        ("x_mm,y_mm,z_mm\n1,2,a\n", "VALUES"),
        ("x_mm,y_mm,z_mm\n1,2,nan\n", "VALUES"),
    ],
)
def test_broken_centreline_files_are_refused(tmp_path, text, code):
    if text is not None:
        (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_centreline(tmp_path / "a.csv")
    assert caught.value.code == f"CENTRELINE-{code}" and caught.value.where
