"""A scan before the scanner: partial volume, one patient in every acquisition, and the window that equals the whole."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from msfilm.data.cropped import prepare_volume
from msfilm.data.nifti import Volume
from msfilm.phantom.anatomy import Patient
from msfilm.phantom.cohort import Scan, make_scan
from msfilm.phantom.facts import ACQUISITIONS, centres, protocol
from msfilm.phantom.physics import signals
from msfilm.phantom.roster import make_patient
from msfilm.phantom.scan import ScanPlan, render

PLACES = [
    (2, "T2w_ax", "upper"), (5, "T2w_ax", "lower"), (11, "T2w_ax", "chest"), (15, "T2w_ax", "upper"),
    (8, "T2star_ax", "upper"), (11, "T2star_ax", "lower"), (4, "T2star_ax", "chest"), (3, "T2star_ax", "upper"),
    (9, "MTon_ax", "upper"), (6, "MToff_ax", "upper"), (12, "PSIR_ax", "upper"),
    (5, "T2w_sag", "upper"), (7, "T1w_iso", "upper"), (10, "STIR_sag", "upper"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Scan, Scan]]:
    """(window, whole) of the same scans without noise."""
    return [tuple(make_scan(i, 0, name, station, crop_only=part, noise=False) for part in (True, False))
            for i, name, station in PLACES]  # fmt: skip


@pytest.fixture(scope="module")
def patient_with_lesions() -> tuple[int, Patient, list]:
    index = next(i for i in range(50) if len(make_patient(i, 0)[2]) >= 4)
    _, patient, lesions, _ = make_patient(index, 0)
    return index, patient, lesions


@pytest.fixture(scope="module")
def nine(patient_with_lesions) -> dict[str, Scan]:
    """All acquisitions of one patient with lesions; the window only."""
    return {name: make_scan(patient_with_lesions[0], 0, name, crop_only=True) for name in ACQUISITIONS}


def crops(scan: Scan):
    """What a SliceSet keeps of a scan."""
    volumes = {"cord": Volume(scan.cord.view(np.uint8), scan.affine, "RAS", None)}
    about = dict.fromkeys(("patient", "centre", "contrast", "rater"), "")
    return prepare_volume(scan.name, Volume(scan.image.astype(np.float32), scan.affine, "RAS", None), volumes, about)


# ---- window and whole -----------------------------------------------------------------------------------------------


def test_before_the_scanner_the_window_is_a_part_of_the_whole(pairs):
    assert len({w.protocol.centre for w, _ in pairs}) >= 5
    for window, whole in pairs:
        rows, columns = window.clean.window
        assert whole.clean.signal.shape == window.plan.shape
        if window.artefact != "motion":
            assert (rows.stop - rows.start) < window.plan.shape[1]
        part = whole.clean.signal[:, rows, columns]
        torch.testing.assert_close(window.clean.signal, part, atol=1e-4, rtol=0, msg=window.name)


def test_masks_do_not_depend_on_what_is_rendered(pairs):
    for window, whole in pairs:
        for name in ("cord", "grey", "truth", "canal", "rater", "affine"):
            np.testing.assert_array_equal(getattr(window, name), getattr(whole, name), err_msg=f"{window.name} {name}")
        assert window.lesions == whole.lesions


def test_after_the_scanner_the_crops_agree_within_1_percent_of_white_matter(pairs):
    """float16 holds 3 digits: what is 10 times as bright as the cord is rounded to .008."""
    for window, whole in pairs:
        part, full = crops(window), crops(whole)
        one, other = part.images.astype(np.float32), full.images.astype(np.float32)
        off = np.abs(one - other) - np.abs(other) * 2**-10
        assert off.max() < 0.01, (window.name, window.protocol.centre, off.max())
        cord = full.masks["cord"] > 0
        assert np.abs(one - other)[cord].mean() < 0.002
        assert np.sqrt(((one - other) ** 2).mean()) < 0.002


def test_outside_the_window_nothing_is_rendered(pairs):
    window, _ = pairs[0]
    rows, columns = window.clean.window
    outside = np.ones(window.plan.shape, bool)
    outside[:, rows, columns] = False
    assert not window.image.transpose(2, 1, 0)[outside].any()


# ---- all acquisitions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_every_acquisition_renders(nine, name):
    scan = nine[name]
    how = protocol(scan.protocol.centre, name)
    assert scan.contrast == ACQUISITIONS[name][0] and scan.plan.plane == how.plane
    assert torch.isfinite(scan.clean.signal).all() and scan.clean.signal.min() >= 0
    for array in (scan.image, scan.cord, scan.grey, scan.truth, scan.canal, *scan.masks.values()):
        assert array.shape == scan.plan.shape[::-1]
    assert scan.image.dtype == np.int16 and scan.image.max() > 0
    voxel = np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(voxel, (how.xy, how.xy, how.z) if how.plane == "axial" else (how.z, how.xy, how.xy))
    extent = voxel * scan.image.shape
    if how.plane == "axial":
        assert extent[0] >= 96 and extent[1] >= 96 and 40 < extent[2] < 110
    else:
        assert extent[2] >= 160 and extent[1] >= 160 and extent[0] > 25
    assert len(scan.levels) == scan.image.shape[2]
    assert scan.cord.any(axis=(0, 1)).mean() > 0.85
    assert not (scan.grey & ~scan.cord).any() and not (scan.cord & ~scan.canal).any()
    assert (scan.truth & ~scan.cord).sum() <= 0.1 * max(scan.truth.sum(), 1)


def test_every_protocol_has_a_field_of_view_like_a_real_scan():
    for centre in centres().index:
        for name in ACQUISITIONS:
            how = protocol(centre, name)
            assert how.fov >= (96 if how.plane == "axial" else 160), (centre, name)


def test_white_matter_is_near_1_before_the_scanner_and_in_its_units_after(nine):
    for name, scan in nine.items():
        white = (scan.cord & ~scan.grey & ~scan.truth).transpose(2, 1, 0)
        rows, columns = scan.clean.window
        clean = scan.clean.signal.numpy()[white[:, rows, columns]]
        thick = scan.protocol.plane == "sagittal" and scan.protocol.z > 1.5  # a voxel then holds cord and fluid
        assert np.median(clean) == pytest.approx(1, abs=0.12 if thick else 0.06), name
        # The receive field, slice gains and rims change it by some 10 %.
        assert np.median(scan.image.transpose(2, 1, 0)[white]) / scan.units == pytest.approx(1, abs=0.25), name


def cord_curve(scan: Scan) -> np.ndarray:
    """(n, 3) mm: centroid of the cord in every slice, cut as the grid lies."""
    found = []
    for k in range(scan.cord.shape[2]):
        voxels = np.argwhere(scan.cord[:, :, k])
        if len(voxels):
            found.append([*voxels.mean(axis=0), k, 1])
    return (np.array(found) @ scan.affine.T)[:, :3]


def test_one_cord_runs_through_all_acquisitions_in_scanner_mm(nine, patient_with_lesions):
    patient = patient_with_lesions[1]
    for name, scan in nine.items():
        curve = cord_curve(scan)
        inner = curve[2:-2]
        expected = patient.centre(-inner[:, 2])
        np.testing.assert_allclose(inner[:, 1], expected[:, 1], atol=0.45, err_msg=name)
        tolerance = max(0.3, 0.3 * scan.plan.voxel_mm[2])  # few sagittal slices go through a cord
        np.testing.assert_allclose(inner[:, 0], expected[:, 0], atol=tolerance, err_msg=name)


def test_lesions_lie_in_the_same_place_in_every_acquisition(nine, patient_with_lesions):
    """Centroid in mm of each lesion that two acquisitions hold as a whole."""
    _, patient, lesions = patient_with_lesions
    places = defaultdict(list)
    for scan in nine.values():
        rows, columns = scan.clean.box
        for i, (lesion, distance) in enumerate(zip(lesions, scan.clean.distances, strict=True)):
            inside = distance < 0
            if inside.sum() * np.prod(scan.plan.voxel_mm) < 30:
                continue
            z, y, x = np.argwhere(inside).mean(axis=0)
            mm = scan.affine @ [x + columns.start, y + rows.start, z, 1]
            ends = -(patient.tops_mm[0] + np.array([-0.5, 0.5]) * lesion.length_mm + lesion.s_mm)
            corners = scan.affine[2, 2] * np.array([0, scan.plan.shape[0] - 1]) + scan.affine[2, 3]
            margin = 12 if scan.plan.plane == "axial" else 0  # a tilted slice's ends lie elsewhere than its middle
            if corners.min() + margin > ends.min() or corners.max() - margin < ends.max():
                continue  # part of it lies outside this scan
            places[i].append(mm[:3])
    together = [np.array(found) for found in places.values() if len(found) >= 2]
    assert len(together) >= 2 and sum(map(len, together)) >= 8
    for found in together:
        assert np.abs(found[:, :2] - np.median(found[:, :2], axis=0)).max() < 1.0
        assert np.abs(found[:, 2] - np.median(found[:, 2])).max() < 3.0  # slices are 3 to 7 mm thick


def test_lesions_are_one_set_of_facts_in_all_of_a_patients_scans(nine):
    def who(scan):
        return [(x["site"], x["kind"], x["s_mm"], x["level"]) for x in scan.lesions]

    assert all(who(scan) == who(nine["T2w_ax"]) for scan in nine.values())
    volume = [x["mm3"] for x in nine["T1w_iso"].lesions if x["mm3"] > 150]
    other = [x["mm3"] for x, y in zip(nine["T2w_iso"].lesions, nine["T1w_iso"].lesions, strict=True) if y["mm3"] > 150]
    assert volume
    np.testing.assert_allclose(volume, other, rtol=0.12)


# ---- partial volume -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signal(patient_with_lesions):
    lesions = patient_with_lesions[2]
    return signals(protocol("centre-01", "T2w_ax").times(), [(x.kind, x.strength) for x in lesions])


def place(patient, lesions, tilt=0.0, thick=3.0, count=5, pixel=0.6, side=90) -> ScanPlan:
    depth = lesions[0].s_mm
    x, y = patient.centre(np.array([depth]))[0]
    return ScanPlan((count, side, side), (thick, pixel, pixel), (float(x), float(y), float(-depth)), tilt)


def inner(clean):
    """Signal (Z, ...) of the box that holds the cord."""
    (r0, c0), (r, c) = ((s.start for s in clean.window), clean.box)
    return clean.signal[:, r.start - r0 : r.stop - r0, c.start - c0 : c.stop - c0]


def test_a_thick_slice_is_the_mean_of_the_thin_ones_through_it(patient_with_lesions, signal):
    _, patient, lesions = patient_with_lesions
    for tilt in (0.0, 14.0):
        thick = place(patient, lesions, tilt)
        thin = replace(thick, shape=(15, *thick.shape[1:]), voxel_mm=(1.0, 0.6, 0.6))
        one, many = (render(patient, lesions, signal, plan) for plan in (thick, thin))
        boxes = zip(one.box, many.box, strict=True)
        rows, columns = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in boxes)
        # In the cord and the fluid; what lies round the canal is reckoned with the slice's thickness in its formulas.
        inside = one.canal[:, rows, columns] & many.canal.reshape(5, 3, *thick.shape[1:]).all(axis=1)[:, rows, columns]
        mean = many.signal.view(5, 3, *thick.shape[1:]).mean(dim=1)
        off = (one.signal - mean)[:, rows, columns][torch.as_tensor(inside)].abs()
        # Lesions are blended by the thin slice's own distance in both.
        assert len(off) > 1000 and off.max() < 2e-3
        near = [(a, b) for a, b in zip(one.distances, many.distances, strict=True) if (a < 0).any()]
        assert near
        whole, parts = (np.zeros((len(near), n, *thick.shape[1:])) for n in (5, 15))
        for i, (a, b) in enumerate(near):
            whole[i][:, one.box[0], one.box[1]], parts[i][:, many.box[0], many.box[1]] = a, b
        parts = parts.reshape(len(near), 5, 3, *thick.shape[1:]).mean(axis=2)
        np.testing.assert_allclose(whole[..., rows, columns], parts[..., rows, columns], atol=1e-4)


def test_a_coarse_scan_is_the_mean_of_a_fine_one(patient_with_lesions, signal):
    """In the plane, an edge is shared by a formula: nearly the mean of 3 x 3 pixels a third as wide."""
    _, patient, lesions = patient_with_lesions
    coarse = place(patient, lesions, tilt=6.0, pixel=0.75, side=60)
    fine = replace(coarse, shape=(5, 180, 180), voxel_mm=(3.0, 0.25, 0.25))
    one, many = (render(patient, lesions, signal, plan) for plan in (coarse, fine))
    mean = many.signal.view(5, 60, 3, 60, 3).mean(dim=(2, 4))
    off = (one.signal - mean)[:, one.box[0], one.box[1]]
    assert off.abs().mean() < 0.06 and off.mean().abs() < 0.02 and off.square().mean().sqrt() < 0.15
    within = torch.as_tensor(one.cord & many.cord.reshape(5, 60, 3, 60, 3).all(axis=(2, 4)))
    assert (one.signal - mean)[within].abs().mean() < 0.02
    area = one.cord.sum() * 0.75**2, many.cord.sum() * 0.25**2
    assert area[0] == pytest.approx(area[1], rel=0.02)


def test_a_voxel_between_cord_and_fluid_lies_between_them(patient_with_lesions):
    _, patient, _ = patient_with_lesions
    flat = signals(protocol("centre-01", "T2w_ax").times())
    flat |= dict.fromkeys(flat, 3.0) | {"wm": 1.0, "gm": 1.0}
    plan = replace(place(patient, patient_with_lesions[2]), voxel_mm=(1.0, 0.5, 0.5))
    clean = render(patient, [], flat, plan, flow=0.0)
    values = inner(clean)
    assert values.max() < 3.9 and values.min() > 0.7  # the cord's texture is 4.5 %, fat's 12 %
    mixed = ((values > 1.4) & (values < 2.6)).sum(dim=(1, 2)).float()
    # A border of about 32 mm is one pixel wide: some 2/3 of its pixels are 20 to 80 % of the one or the other.
    assert (mixed > 15).all() and (mixed < 90).all()


# ---- the grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", [0.0, 11.0, -7.5])
def test_the_affine_says_where_rows_and_columns_lie(tilt):
    plan = ScanPlan((7, 11, 13), (4.0, 0.6, 0.7), (3.0, -5.0, -80.0), tilt)
    y, s = plan.rows()
    affine = plan.affine()
    for z, row, column in ((0, 0, 0), (6, 10, 12), (3, 5, 6), (1, 9, 2)):
        x_mm, y_mm, z_mm, _ = affine @ [column, row, z, 1]
        assert x_mm == pytest.approx(plan.columns()[column])
        assert y_mm == pytest.approx(y[z, row]) and z_mm == pytest.approx(-s[z, row])
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (0.7, 0.6, 4.0))
    assert np.linalg.det(affine[:3, :3]) > 0  # a rotation, no mirror
    np.testing.assert_allclose((affine @ [6, 5, 3, 1])[:3], plan.centre_mm)
    above = plan.rows(1.5)
    normal = affine[:3, 2] / 4.0
    np.testing.assert_allclose(above[0] - y, 1.5 * normal[1], atol=1e-12)
    np.testing.assert_allclose(above[1] - s, -1.5 * normal[2], atol=1e-12)


def test_thin_slices_fill_a_thick_one():
    for plane, which in (("axial", 0), ("sagittal", 1)):
        voxel = (5.0, 0.6, 0.6) if plane == "axial" else (0.6, 0.6, 2.5)
        shifts = np.array(ScanPlan((3, 3, 3), voxel, (0.0, 0.0, 0.0), 0.0, plane).shifts())
        thick = max(voxel)
        assert len(shifts) == min(3, round(thick)) and not shifts[:, 1 - which].any()
        np.testing.assert_allclose(shifts[:, which].mean(), 0, atol=1e-12)
        edges = np.linspace(-thick / 2, thick / 2, len(shifts) + 1)
        np.testing.assert_allclose(shifts[:, which], (edges[1:] + edges[:-1]) / 2, atol=1e-12)
    assert ScanPlan((3, 3, 3), (0.8, 0.8, 0.8), (0.0, 0.0, 0.0), 0.0, "sagittal").shifts() == [(0.0, 0.0)]
