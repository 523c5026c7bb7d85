"""From a BIDS folder to a SliceSet: everything in step, scans refused one by one, lesions outside recorded."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import oriented_affine, write_plain

from msfilm.data.crop import crop, crop_mask, uncrop
from msfilm.data.nifti import read_image, read_mask
from msfilm.data.prepare import prepare
from msfilm.data.slices import TABLE_COLUMNS, UNDRAWN, SliceSet
from msfilm.errors import InputError, SettingError


def labels(root, patient="sub-001"):
    return root / "derivatives" / "labels" / patient / "anat"


def test_slices_masks_tables_and_scans_are_in_step(tree, tmp_path):
    root = tree(patients=3)
    slices, refused = prepare(root, tmp_path / "out put", progress=False)
    assert not refused and len(slices) == 3 * 2 * 5 and slices.contrasts == ("T2star", "T2w")
    assert slices.images.shape == (30, 1, 48, 48) and slices.images.dtype == np.float16
    assert tuple(slices.table.columns) == TABLE_COLUMNS and list(slices.masks) == ["cord", "truth", "rater-1"]
    assert set(slices.table.rater) == {"rater-of-0", "rater-of-1"} and set(slices.table.centre) == {
        "centre-00",
        "centre-01",
    }
    for name, row in slices.volumes.iterrows():
        image, grid, mine = read_image(root / row.image), slices.grid(name), (slices.table.volume == name).to_numpy()
        space = name.replace("_T2", "_space-T2")
        cord = read_mask(labels(root, row.patient) / f"{space}_label-SC_mask.nii.gz", image)
        lesion = read_mask(labels(root, row.patient) / f"{space}_label-lesion_desc-rater1_mask.nii.gz", image)
        assert row.cord_median == np.median(np.abs(image.data[cord.data > 0]))
        np.testing.assert_array_equal(
            slices.images[mine, 0], (crop(image.data, grid)[0] / np.float32(row.cord_median)).astype("f2")
        )
        np.testing.assert_array_equal(slices.masks["rater-1"][mine, 0], crop_mask(lesion.data, grid))
        np.testing.assert_array_equal(slices.masks["cord"][mine, 0], crop_mask(cord.data, grid))
        scan = slices.scans[name]
        np.testing.assert_array_equal(scan.dense("cord"), cord.data)
        np.testing.assert_array_equal(scan.dense("rater-1"), lesion.data)
        np.testing.assert_allclose(scan.cord_values, image.data[cord.data > 0] / row.cord_median, rtol=1e-6)
        assert np.median(np.abs(scan.cord_values)) == pytest.approx(1, abs=1e-6)
        assert scan.voxel_volume_mm3 == pytest.approx(0.7 * 0.7 * 4, rel=1e-5) and row.masks == "cord,truth,rater-1"
        assert row.lesion_mm3 == pytest.approx(scan.voxel_volume_mm3 * lesion.data.sum())
        assert row.lesion_outside_cord_mm3 == row.lesion_outside_crop_mm3 == 0 and row.orientation in ("LAS", "RAS")
    assert SliceSet.load(tmp_path / "out put").equals(slices)
    assert json.loads((tmp_path / "out put" / "refused.json").read_text()) == []


def test_same_scans_give_the_same_slices_whatever_the_stored_orientation(tree, tmp_path):
    root = tree(patients=1, contrasts=("T2w",))
    before, _ = prepare(root, progress=False)
    for path in [*root.rglob("*.nii.gz")]:
        image = nib.load(path)
        turned = nib.Nifti1Image(np.asarray(image.dataobj), image.affine).as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LAS"), nib.orientations.axcodes2ornt("PSR"))
        )
        nib.save(turned, path)
    after, refused = prepare(root, progress=False)
    assert (
        not refused and after.volumes.orientation.tolist() == ["PSR"] and before.volumes.orientation.tolist() == ["LAS"]
    )
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.masks["rater-1"], before.masks["rater-1"])
    assert after.table.slice_hash.tolist() == before.table.slice_hash.tolist()
    assert after.volumes.image_hash.tolist() == before.volumes.image_hash.tolist()


def test_refused_volumes_are_listed_and_the_rest_goes_on(tree, tmp_path):
    root = tree(patients=6, contrasts=("T2w",))

    def scan(n):
        return root / f"sub-{n:03d}/anat/sub-{n:03d}_T2w.nii.gz"

    def mask(n, kind):
        return labels(root, f"sub-{n:03d}") / f"sub-{n:03d}_space-T2w_label-{kind}_mask.nii.gz"

    scan(1).write_bytes(scan(1).read_bytes()[:-50])
    shifted = oriented_affine("LAS", (0.7, 0.7, 4.0), (61, 57, 5))
    shifted[0, 3] += 30
    write_plain(mask(2, "SC"), np.ones((61, 57, 5)), shifted, np.uint8)
    write_plain(mask(3, "SC"), np.zeros((61, 57, 5)), oriented_affine("LAS", (0.7, 0.7, 4.0), (61, 57, 5)), np.uint8)
    mask(4, "SC").unlink()
    write_plain(
        mask(5, "lesion_desc-rater1"),
        np.full((61, 57, 5), 7),
        oriented_affine("LAS", (0.7, 0.7, 4.0), (61, 57, 5)),
        np.uint8,
    )
    slices, refused = prepare(root, tmp_path / "out", progress=False)
    assert [fault.code for fault in refused] == [
        "NIFTI-TRUNCATED",
        "MASK-APART",
        "MASK-EMPTY",
        "MASK-MISSING",
        "MASK-VALUES",
    ]
    assert list(slices.volumes.index) == ["sub-006_T2w"]
    listed = json.loads((tmp_path / "out" / "refused.json").read_text())
    assert [sorted(entry) for entry in listed] == [["code", "message", "path", "verdict"]] * 5
    assert [entry["code"] for entry in listed] == [fault.code for fault in refused] and listed[0]["path"] == str(
        scan(1)
    )
    scan(6).unlink()
    with pytest.raises(InputError, match="PREPARE-NOTHING.*NIFTI-TRUNCATED"):
        prepare(root, progress=False)


def test_volume_without_a_lesion_mask_is_unknown_and_one_with_an_empty_mask_is_healthy(tree):
    root = tree(patients=3, contrasts=("T2w",))
    name = "sub-001_space-T2w_label-lesion_desc-{}_mask.nii.gz"
    (labels(root) / name.format("rater1")).unlink()
    affine = oriented_affine("LAS", (0.7, 0.7, 4.0), (61, 57, 5))
    write_plain(
        labels(root, "sub-002") / name.format("rater1").replace("001", "002"), np.zeros((61, 57, 5)), affine, np.uint8
    )
    slices, refused = prepare(root, progress=False)
    by = {
        patient: slices.masks["rater-1"][(slices.table.patient == patient).to_numpy()]
        for patient in slices.table.patient.unique()
    }
    assert not refused and (by["sub-001"] == UNDRAWN).all() and (by["sub-002"] == 0).all() and by["sub-003"].max() == 1
    assert (
        "rater-1" not in slices.scans["sub-001_T2w"].indices and not slices.scans["sub-002_T2w"].dense("rater-1").any()
    )
    assert np.isnan(slices.volumes.lesion_mm3["sub-001_T2w"]) and slices.volumes.lesion_mm3["sub-002_T2w"] == 0


def test_lesion_outside_the_cord_and_outside_the_crop_is_measured(tree):
    root = tree(patients=1, contrasts=("T2w",))
    path = labels(root) / "sub-001_space-T2w_label-lesion_desc-rater1_mask.nii.gz"
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[0:2, 0:3, 1] = 1  # far corner: about 20 mm from the cord, beyond a crop of 24 mm
    mask[30, 45, 1] = 1  # outside the cord, inside the crop
    nib.save(nib.Nifti1Image(mask, image.affine), path)
    slices, _ = prepare(root, size=32, progress=False)
    row, voxel = slices.volumes.iloc[0], slices.scans["sub-001_T2w"].voxel_volume_mm3
    assert row.lesion_outside_crop_mm3 == pytest.approx(6 * voxel) and row.lesion_outside_cord_mm3 == pytest.approx(
        7 * voxel
    )


def test_settings_reach_the_grid_and_small_cord_slices_are_left_out(tree):
    root = tree(patients=1, contrasts=("T2w",))
    path = labels(root) / "sub-001_space-T2w_label-SC_mask.nii.gz"
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[:, :, 0] = 0
    mask[30:33, 28:31, 0] = 1  # 2.1 mm square: fewer than 10 pixels
    nib.save(nib.Nifti1Image(mask, image.affine), path)
    slices, _ = prepare(root, size=33, spacing_mm=1.0, progress=False)
    assert (
        slices.images.shape == (4, 1, 33, 33)
        and slices.table.z.tolist() == [1, 2, 3, 4]
        and set(slices.table.spacing_mm) == {1.0}
    )
    assert len(prepare(root, size=33, spacing_mm=1.0, min_cord_pixels=1, progress=False)[0]) == 5
    with pytest.raises(InputError, match="MASK-SMALL"):
        prepare(root, min_cord_pixels=10_000, progress=False)


def test_only_the_contrasts_asked_for(tree):
    root = tree(patients=2)
    assert prepare(root, contrasts=["T2star"], progress=False)[0].contrasts == ("T2star",)
    with pytest.raises(SettingError, match="did you mean 'T2star'"):
        prepare(root, contrasts=["T2Star"], progress=False)
    with pytest.raises(SettingError, match="CROP-SETTING"):
        prepare(root, spacing_mm=-1, progress=False)


def test_blank_image_and_intensity_beyond_float16_are_refused(tree):
    root = tree(patients=3, contrasts=("T2w",))
    affine = oriented_affine("LAS", (0.7, 0.7, 4.0), (61, 57, 5))
    write_plain(root / "sub-001/anat/sub-001_T2w.nii.gz", np.zeros((61, 57, 5)), affine, np.int16)
    bright = np.ones((61, 57, 5))
    bright[30, 28, 2] = 1e6
    write_plain(root / "sub-002/anat/sub-002_T2w.nii.gz", bright, affine, np.float32)
    slices, refused = prepare(root, progress=False)
    assert [fault.code for fault in refused] == ["IMAGE-BLANK", "IMAGE-RANGE"] and len(slices.volumes) == 1


def test_notes_of_a_volume_stand_in_its_row_and_those_of_the_data_set_in_meta(tree):
    root = tree(patients=1, contrasts=("T2w",))
    (root / "sub-001/anat/sub-001_T2w.json").write_text("{")
    (root / "participants.tsv").unlink()
    slices, refused = prepare(root, progress=False)
    assert not refused and slices.volumes.notes.iloc[0].startswith("SIDECAR-BROKEN")
    assert slices.meta["notes"][0].startswith("PARTICIPANTS-MISSING") and slices.meta["source"] == root.name


def test_real_scans_of_three_orientations_become_axial_slices_and_go_back(real_cords, tmp_path):
    root = tmp_path / "real"
    for number, (scan, cord) in enumerate(real_cords.values()):
        for folder, source, ending in (("", scan, ""), ("derivatives/labels/", cord, "_seg-manual")):
            target = root / f"{folder}sub-{number}/anat/sub-{number}_T2w{ending}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    slices, refused = prepare(root, progress=False)
    assert not refused and slices.volumes.orientation.tolist() == ["RAS", "LAS", "PSR"]
    assert slices.table.groupby("volume").size().tolist() == [77, 9, 55]
    centred = slices.images[:, 0, 20:28, 20:28].astype(np.float32).mean(axis=(1, 2))
    assert 0.8 < np.median(centred) < 1.2  # the middle of a crop is cord, whose median is 1
    for name in slices.volumes.index:
        mine = (slices.table.volume == name).to_numpy()
        truth = slices.scans[name].dense("cord")
        back = uncrop(slices.masks["cord"][mine, 0].astype(np.float32), slices.grid(name)) >= 0.5
        assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.96
