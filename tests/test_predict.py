"""Predictions lie where the network put them, in every orientation; what is written is whole and says what made it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import millimetres, oriented_affine, write_plain
from evaluate_cohort import Brighter, Quadrant, cohort, known

from msfilm.data.centres import centres_from_mask, centres_from_points
from msfilm.data.nifti import read_image, read_mask
from msfilm.data.prepare import prepare
from msfilm.errors import InputError, RunError, SettingError
from msfilm.evaluate import predict_slices, predict_volumes, segment
from msfilm.evaluate.localise import CordLocation
from msfilm.evaluate.metrics import lesion_labels
from msfilm.evaluate.predict import weights_sha256
from msfilm.evaluate.segmentation import count_lesions
from msfilm.files import sha256_file
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, load_network, save_network

ORIENTATIONS = ["RAS", "LAS", "LPS", "PSR", "RSA", "ASL"]


def small_network(seed=0, **settings):
    """An untrained FiLMed U-Net whose FiLM does something."""
    encoder = CategoryEncoder("contrast", ("T2star", "T2w"))
    model = UNet(UNetConfig(depth=2, filters=4, n_codes=2, **settings), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for head in model.generator.heads:
        with torch.no_grad():
            head.weight.normal_(0, 0.1, generator=generator)
    return Network(model.eval(), encoder, {})


def scan_files(folder, orientation, *, degrees=0.0, spot_mm=(6.0, 3.0, 9.0)):
    """A scan with a bright ball at ``spot_mm`` from the cord's axis, which runs through the middle of the grid."""
    shape, voxel = np.array((56, 60, 9)), np.array((0.6, 0.7, 3.0))  # along R, A, S
    order = [int(axis) for axis, _ in nib.orientations.axcodes2ornt(orientation)]
    shape, voxel = shape[order], voxel[order]
    affine = oriented_affine(orientation, voxel, shape, degrees)
    mm = millimetres(affine, shape)
    middle = mm.reshape(-1, 3).mean(axis=0)
    up = affine[:3, order.index(2)] / voxel[order.index(2)]
    up = up * np.sign(up[2])
    along = (mm - middle) @ up
    radial = np.linalg.norm(mm - middle - along[..., None] * up, axis=-1)
    spot = middle + np.array(spot_mm)
    image = np.where(np.linalg.norm(mm - spot, axis=-1) < 3.5, 1200, 300 + 300 * (radial < 9))
    scan = write_plain(folder / f"{orientation} scan.nii.gz", image, affine, np.int16)
    cord = write_plain(folder / f"{orientation} cord.nii.gz", radial < 8, affine, np.uint8)
    return scan, cord, affine, mm, spot, middle, up


def test_probabilities_are_those_of_the_model_whatever_the_batch():
    slices, network = cohort(2), small_network()
    with torch.inference_mode():
        logits = network.model(torch.from_numpy(slices.images.astype(np.float32)), network.code(slices.table))
    expected = torch.sigmoid(logits).numpy()
    for batch in (1, 7, 256):
        found = predict_slices(network, slices, device="cpu", batch_size=batch)
        assert found.dtype == np.float32 and found.shape == slices.images.shape
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(np.diff(expected.reshape(len(slices), -1).mean(axis=1))).max() > 1e-4  # not one constant


def test_predicting_leaves_the_model_as_it_was_and_ignores_dropout():
    slices, network = cohort(1), small_network(dropout=0.5)
    network.model.train()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    first, second = (predict_slices(network, slices) for _ in range(2))
    assert network.model.training
    assert (first == second).all()
    assert all((tensor == before[name]).all() for name, tensor in network.model.state_dict().items())


def test_wrong_settings_are_refused():
    slices = cohort(1)
    for settings, code in (({"precision": "fp8"}, "PRECISION-UNKNOWN"), ({"batch_size": 0}, "BATCH-SIZE"),
                           ({"device": "abacus"}, "TRAIN-SETTING")):
        with pytest.raises(SettingError) as caught:
            predict_slices(known(Brighter()), slices, **settings)
        assert caught.value.code == code


def test_volumes_come_back_on_the_scans_own_grid():
    slices = cohort(3)
    seen = []
    for name, probability in predict_volumes(known(Brighter()), slices):
        scan = slices.scans[name]
        assert probability.shape == scan.shape and probability.dtype == np.float32
        assert ((probability >= 0.5) == scan.dense("truth")).all()
        seen.append(name)
    assert seen == list(slices.volumes.index)


@pytest.mark.parametrize("degrees", [0.0, 14.0])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_mask_lies_on_the_spot_in_the_scans_own_space(tmp_path, orientation, degrees):
    scan, cord, _, mm, spot, _, _ = scan_files(tmp_path, orientation, degrees=degrees)
    out = tmp_path / "out put" / "lesions.nii.gz"
    found = segment(scan, out, contrast="T2w", cord=cord, network=known(Brighter(1.5)))
    written, given = nib.load(out), nib.load(scan)
    assert written.shape == given.shape
    assert nib.aff2axcodes(written.affine) == tuple(orientation)
    np.testing.assert_allclose(written.affine, given.affine, atol=1e-5)
    assert written.get_data_dtype() == np.uint8
    for form in ("qform", "sform"):
        assert int(written.header[f"{form}_code"]) == int(given.header[f"{form}_code"])
    mask = np.asarray(written.dataobj)
    bright = np.asarray(given.dataobj) > 1000
    assert 2 * (mask & bright).sum() / (mask.sum() + bright.sum()) > 0.9
    np.testing.assert_allclose(mm[mask > 0].mean(axis=0), spot, atol=0.4)  # mm
    assert found.lesion_mm3 == pytest.approx(mask.sum() * 0.6 * 0.7 * 3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_first_row_is_anterior_and_first_column_is_right(tmp_path, orientation):
    scan, cord, _, mm, _, middle, _ = scan_files(tmp_path, orientation)
    found = segment(scan, tmp_path / "o.nii", contrast="T2w", cord=cord, network=known(Quadrant()))
    mask = np.asarray(nib.load(tmp_path / "o.nii").dataobj) > 0
    assert (mm[mask][:, 0] > middle[0] - 0.4).all()  # right
    assert (mm[mask][:, 1] > middle[1] - 0.4).all()  # anterior
    assert found.lesion_mm3 == pytest.approx(18 * 18 * 27, rel=0.12)  # a quarter of 36 x 36 mm, nine slices of 3 mm


def test_segment_gives_what_the_sliceset_gives(tree):
    root = tree(patients=1, contrasts=("T2w",))
    slices, _ = prepare(root, progress=False)
    network = small_network()
    (_, expected), = predict_volumes(network, slices)
    anat, labels = root / "sub-001/anat", root / "derivatives/labels/sub-001/anat"
    found = segment(anat / "sub-001_T2w.nii.gz", None, contrast="T2w", network=network,
                    cord=labels / "sub-001_space-T2w_label-SC_mask.nii.gz")
    assert (found.probability == expected).all()
    assert (found.crops == slices.images[:, 0].astype(np.float32)).all()
    assert found.path is None


def test_a_centreline_stands_in_for_the_cord(tmp_path):
    scan, cord, _, _, _, middle, up = scan_files(tmp_path, "LAS", degrees=8.0, spot_mm=(5.0, -4.0, 3.0))
    points = tmp_path / "points.csv"
    rows = [middle + up * s for s in (-11.9, 0.0, 11.9)]
    lines = [",".join(f"{value:.3f}" for value in row) for row in rows]
    points.write_text("\n".join(["# by hand", "x_mm,y_mm,z_mm", *lines]) + "\n")
    network = known(Brighter(1.5))
    by_line = segment(scan, tmp_path / "a.nii.gz", contrast="T2w", centreline=points, network=network)
    by_cord = segment(scan, tmp_path / "b.nii.gz", contrast="T2w", cord=cord, network=network)
    by_array = segment(scan, None, contrast="T2w", centreline=np.array(rows), network=network)
    both = (by_line.mask & by_cord.mask).sum()
    assert 2 * both / (by_line.mask.sum() + by_cord.mask.sum()) > 0.95
    assert (by_array.mask == by_line.mask).mean() > 0.999
    assert by_line.record["settings"]["centred_on"] == "centreline"
    assert by_line.record["cord_median"] == pytest.approx(600)


@pytest.mark.parametrize("orientation", ["LAS", "PSR"])
def test_crops_lie_on_the_centreline_itself(real_cords, orientation):
    scan, cord = real_cords[orientation]
    volume = read_image(scan)
    zs, centres = centres_from_mask(read_mask(cord, volume).data)
    ends = [0, len(zs) // 2, len(zs) - 1]
    voxels = np.column_stack([centres[ends], zs[ends]])
    points = nib.affines.apply_affine(volume.affine, voxels)
    found = segment(scan, None, contrast="T2w", centreline=points, network=known(Brighter(9.0)))
    at, curve = centres_from_points(points, volume)
    np.testing.assert_array_equal(found.grid.zs, at)
    np.testing.assert_array_equal(found.grid.centres, curve)


def test_the_localiser_is_the_third_source_and_says_when_it_is_unsure(tmp_path, monkeypatch):
    scan, _, _, _, _, middle, up = scan_files(tmp_path, "LAS")
    points = np.array([middle + up * s for s in (-11.9, 0.0, 11.9)])
    asked = []

    def use(sure=True, notes=()):
        def proposal(volume):
            asked.append(volume)
            zs, centres = centres_from_points(points, volume)
            return CordLocation(points, zs, centres, np.full(len(zs), 0.5), 0.5, sure, notes)

        monkeypatch.setattr("msfilm.evaluate.localise.localise", proposal)

    use()
    here = {"image": scan, "contrast": "T2w", "network": known(Brighter(1.5))}
    by_line = segment(out=None, centreline=points, **here)
    found = segment(out=tmp_path / "o.nii.gz", localise=True, **here)
    assert (found.mask == by_line.mask).all() and found.mask.any() and len(asked) == 1
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["settings"]["centred_on"] == "localiser"
    assert record["localiser"]["confidence"] == 0.5 and record["localiser"]["sure"] is True
    np.testing.assert_allclose(record["localiser"]["points_mm"], points, atol=1e-3)
    assert any("localiser's proposal (confidence 0.50)" in one for one in found.warnings)
    use(sure=False, notes=("half of the slices look like fat",))
    with pytest.raises(InputError, match="CORD-UNSURE.*0.50.*fat.*--accept-unsure"):
        segment(out=tmp_path / "u.nii.gz", localise=True, **here)
    assert not list(tmp_path.glob("u*"))
    taken = segment(out=None, localise=True, accept_unsure=True, **here)
    assert any("UNSURE" in one for one in taken.warnings) and any("fat" in one for one in taken.warnings)
    assert taken.record["localiser"]["sure"] is False


def places(path):
    """Scanner millimetres (RAS) of a mask's voxels, as nibabel and as SimpleITK have them."""
    image = nib.load(path)
    first = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0))
    other = sitk.ReadImage(str(path))
    index = np.argwhere(sitk.GetArrayFromImage(other) > 0)[:, ::-1]
    second = np.array([other.TransformContinuousIndexToPhysicalPoint([float(one) for one in row]) for row in index])
    return first, second * [-1, -1, 1]


def test_one_lesion_lies_in_one_place_whatever_the_scans_grid(tmp_path):
    """The same ball in scans of other axes and tilts: masks meet in the world, for two readers of NIfTI."""
    masks = {}
    for orientation, degrees in (("RAS", 0), ("LAS", 0), ("PSR", 0), ("RAS", 17), ("PSR", 11), ("LPI", -9)):
        folder = tmp_path / f"{orientation}{degrees}"
        scan, cord, _, mm, spot, _, _ = scan_files(folder, orientation, degrees=degrees)
        out = folder / "sub" / "lesions.nii.gz"
        segment(scan, out, contrast="T2w", cord=cord, network=known(Brighter(1.5)))
        given, made = nib.load(scan).header, nib.load(out).header
        for name in ("dim", "pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b",
                     "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):  # fmt: skip
            np.testing.assert_array_equal(made[name], given[name], err_msg=name)
        first, second = places(out)
        first, second = (one[np.lexsort(one.T.round(2))] for one in (first, second))
        np.testing.assert_allclose(first, second, atol=2e-3)
        off = nib.affines.apply_affine(np.linalg.inv(nib.load(scan).affine), [first.mean(axis=0), spot])
        assert np.abs(off[0] - off[1]).max() < 0.5, "half a voxel along each axis of the scan"
        masks[orientation, degrees] = out
        truth = np.linalg.norm(mm - spot, axis=-1) < 3.5
        marked = np.asarray(nib.load(out).dataobj) > 0
        assert 2 * (truth & marked).sum() / (truth.sum() + marked.sum()) > 0.93
    reference = sitk.ReadImage(str(masks["RAS", 0]))
    for key, path in masks.items():
        moved = sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(str(path)), reference, sitk.Transform(),
                                                     sitk.sitkNearestNeighbor)) > 0  # fmt: skip
        there = sitk.GetArrayFromImage(reference) > 0
        assert 2 * (moved & there).sum() / (moved.sum() + there.sum()) > (0.99 if key[1] == 0 else 0.75), key


def test_lesions_of_three_voxels_or_more_are_counted():
    mask = np.zeros((9, 8, 7), bool)
    assert count_lesions(mask) == 0
    mask[8, 7, 4:] = mask[0, 0, 0] = mask[1, 1, 1] = True
    assert count_lesions(mask) == lesion_labels(mask).max() == 1
    mask[2, 2, 2] = True  # touches by a corner
    assert count_lesions(mask) == lesion_labels(mask).max() == 2


def test_the_json_says_what_made_the_mask(tmp_path):
    scan, cord, *_ = scan_files(tmp_path, "LAS")
    run = save_network(tmp_path / "run", small_network())
    out, probability = tmp_path / "x.nii.gz", tmp_path / "p.nii.gz"
    found = segment(scan, out, contrast="T2w", cord=cord, network=run, probability=probability, threshold=0.3)
    record = json.loads((tmp_path / "x.json").read_text())
    assert record == json.loads(json.dumps(found.record))
    assert record["network"]["weights_sha256"] == sha256_file(run / "weights.safetensors")
    assert record["network"]["weights_sha256"] == weights_sha256(load_network(run))
    assert record["image_sha256"] == sha256_file(scan)
    assert record["settings"]["contrast"] == "T2w" and record["settings"]["threshold"] == 0.3
    assert record["slices"] == 9 and record["orientation"] == "LAS"
    assert {"version", "date", "machine"} <= set(record["made_by"])
    chance = nib.load(probability)
    np.testing.assert_allclose(chance.affine, nib.load(scan).affine, atol=1e-5)
    assert ((chance.get_fdata(dtype=np.float32) >= np.float32(0.3)) == (np.asarray(nib.load(out).dataobj) > 0)).all()


def test_same_scan_same_bytes(tmp_path):
    scan, cord, *_ = scan_files(tmp_path, "LPS")
    for name in ("a.nii.gz", "b.nii.gz"):
        segment(scan, tmp_path / name, contrast="T2w", cord=cord, network=small_network())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_doubts_are_said(tmp_path):
    scan, cord, *_ = scan_files(tmp_path, "RAS")
    card = {"size": 48, "spacing_mm": 0.75, "contrasts": ["T1w"], "voxel_mm": {"in_plane": [0.3, 0.5], "slice": [2, 5]}}
    network = known(Quadrant(), data=card | {"field_T": [1.5, 1.5]})
    with pytest.raises(SettingError, match="CONTRAST-UNKNOWN.*trained on T1w, not on T2w"):
        segment(scan, None, contrast="T2w", cord=cord, network=network)
    (tmp_path / "RAS scan.json").write_text('{"MagneticFieldStrength": 3}')
    found = segment(scan, None, contrast="T2w", as_contrast="T1w", cord=cord, network=network)
    said = " | ".join(found.warnings)
    assert "contrast T2w is outside the training (T1w): taken for T1w" in said
    assert found.record["settings"]["as_contrast"] == "T1w" and found.record["settings"]["contrast"] == "T2w"
    assert "field strength 3 T, in training 1.5 T" in said
    assert "in-plane voxel size 0.60 to 0.70 mm, in training 0.30 to 0.50 mm" in said
    assert "outside the cord mask" in said
    assert "slice voxel size" not in said
    assert "beyond the scan" in said  # 56 voxels of .6 mm are less than 36 mm
    ball = segment(scan, None, contrast="T2w", cord=cord, network=known(Brighter(9.0)))
    assert ball.warnings == (next(one for one in found.warnings if "beyond the scan" in one),)
    assert ball.lesion_mm3 == 0 and "outside" not in " ".join(ball.warnings)


def test_an_unknown_centre_gets_the_mean_code_and_that_is_said(tmp_path):
    scan, cord, *_ = scan_files(tmp_path, "RAS")
    network = small_network()
    network = Network(network.model, CategoryEncoder("centre", ("a", "b")), {})
    assert any("mean code" in w for w in segment(scan, None, contrast="T2w", cord=cord, network=network).warnings)
    known_centre = segment(scan, None, contrast="T2w", cord=cord, network=network, centre="b")
    assert not any("mean code" in w for w in known_centre.warnings)


def test_refusals(tmp_path):
    scan, cord, affine, *_ = scan_files(tmp_path, "RAS")
    empty = write_plain(tmp_path / "empty.nii.gz", np.zeros(nib.load(scan).shape), affine, np.uint8)
    here, network = {"image": scan, "out": tmp_path / "o.nii.gz", "contrast": "T2w", "cord": cord}, small_network()
    for change, error, code in [
        ({"contrast": "T2W"}, SettingError, "CONTRAST-UNKNOWN"),
        ({"cord": None}, SettingError, "CENTRE-SOURCE"),
        ({"centreline": "x.csv"}, SettingError, "CENTRE-SOURCE"),
        ({"cord": empty}, InputError, "MASK-EMPTY"),
        ({"localise": True}, SettingError, "CENTRE-SOURCE"),
        ({"threshold": 0.0}, SettingError, "THRESHOLD"),
        ({"contrast": "T1w", "as_contrast": "T2W"}, SettingError, "CONTRAST-UNKNOWN"),
        ({"out": tmp_path / "o.png"}, SettingError, "OUT-NAME"),
        ({"out": scan}, SettingError, "OUT-NAME"),
        ({"out": tmp_path / "RAS scan.nii"}, SettingError, "OUT-NAME"),  # its JSON would be the scan's own sidecar
        ({"out": tmp_path / "o.nii.gz", "probability": tmp_path / "o.nii.gz"}, SettingError, "OUT-NAME"),
        ({"image": tmp_path / "none.nii.gz"}, InputError, "NIFTI-MISSING"),
        ({"network": "film-contrast-smal"}, SettingError, "NETWORK-UNKNOWN"),
        ({"network": "cord-localiser"}, SettingError, "NETWORK-KIND"),
    ]:
        with pytest.raises(error) as caught:
            segment(**{"network": network} | here | change)
        assert caught.value.code == code, change
        if code == "CONTRAST-UNKNOWN":
            assert "did you mean 'T2w'" in str(caught.value) and "T2star" in str(caught.value)
    assert not list(tmp_path.glob("o*")) and not list(tmp_path.glob(".tmp*"))


def test_nothing_half_written_when_the_record_cannot_be_written(tmp_path, monkeypatch):
    scan, cord, *_ = scan_files(tmp_path, "RAS")

    def full(path, content):
        path.write_text("{")
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("msfilm.evaluate.segmentation_files.write_json", full)
    with pytest.raises(RunError, match="No space left"):
        segment(scan, tmp_path / "out/o.nii.gz", contrast="T2w", cord=cord, network=known(Brighter()),
                probability=tmp_path / "out/p.nii.gz")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("orientation", ["LAS", "PSR", "RAS"])
def test_real_scans_come_back_in_their_own_space(real_cords, tmp_path, orientation):
    scan, cord = real_cords[orientation]
    out = tmp_path / "lesions.nii.gz"
    segment(scan, out, contrast="T2w", cord=cord, network=small_network(), threshold=1e-6)
    written, given, mask = nib.load(out), nib.load(scan), np.asarray(nib.load(cord).dataobj) > 0
    assert written.shape == given.shape and nib.aff2axcodes(written.affine) == tuple(orientation)
    np.testing.assert_allclose(written.affine, given.affine, atol=1e-5)
    crop = np.asarray(written.dataobj) > 0  # at this threshold everything that a crop covers
    assert (crop & mask).sum() > 0.95 * mask.sum()
