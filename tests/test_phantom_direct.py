"""Straight to a SliceSet: the same as through files, streamed to disk or held in memory, and of the paper's size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from msfilm.data.prepare import prepare
from msfilm.data.slices import SliceSet
from msfilm.data.stream import stream_slices
from msfilm.errors import InputError, SettingError
from msfilm.phantom import cohort, write_cohort
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.direct import make_slices, prepared_volumes
from msfilm.phantom.roster import CohortPlan, patient_name, raters_of, scans_of

PLAN = CohortPlan(3, setting="wide")
PATIENTS = 4


@pytest.fixture(scope="module")
def direct():
    return make_slices(PATIENTS, PLAN, workers=1, progress=False)


@pytest.fixture(scope="module")
def through_files(tmp_path_factory):
    folder = write_cohort(
        tmp_path_factory.mktemp("direct") / "ds", patients=PATIENTS, plan=PLAN, workers=1, progress=False
    )
    slices, refused = prepare(folder, progress=False)
    assert refused == []
    return slices


def test_masks_are_those_of_the_route_through_files(direct, through_files):
    assert list(direct.masks) == list(through_files.masks) == ["cord", "truth", *(f"rater-{k}" for k in range(1, 5))]
    assert direct.images.shape == through_files.images.shape and direct.images.dtype == through_files.images.dtype
    for name, mask in direct.masks.items():
        np.testing.assert_array_equal(mask, through_files.masks[name], err_msg=name)
        assert mask.dtype == np.uint8
    assert (direct.masks["truth"] == 1).sum() > 50 and (direct.masks["rater-1"] == 1).sum() > 50


def test_tables_are_those_of_the_route_through_files(direct, through_files):
    mine, other = (s.table.drop(columns="slice_hash") for s in (direct, through_files))
    pd.testing.assert_frame_equal(mine, other, check_exact=False, atol=1e-5)
    noisy = ["image_hash", "cord_median", "notes"]
    mine, other = (s.volumes.drop(columns=noisy) for s in (direct, through_files))
    pd.testing.assert_frame_equal(mine, other, check_exact=False, rtol=1e-5, check_dtype=False)
    np.testing.assert_allclose(direct.volumes.cord_median, through_files.volumes.cord_median, rtol=0.02)
    assert direct.contrasts == through_files.contrasts == ("T2star", "T2w")


def test_scans_are_those_of_the_route_through_files(direct, through_files):
    assert list(direct.scans) == list(through_files.scans)
    for name, scan in direct.scans.items():
        other = through_files.scans[name]
        assert scan.shape == other.shape and list(scan.indices) == list(other.indices)
        np.testing.assert_allclose(scan.affine, other.affine, atol=1e-4)
        for mask, voxels in scan.indices.items():
            np.testing.assert_array_equal(voxels, other.indices[mask], err_msg=f"{name} {mask}")
        assert scan.cord_values.dtype == other.cord_values.dtype
        np.testing.assert_allclose(scan.cord_values.std(), other.cord_values.std(), rtol=0.1)


def test_images_differ_from_the_route_through_files_by_noise_alone(direct, through_files):
    one, other = direct.images.astype(np.float32), through_files.images.astype(np.float32)
    cord = through_files.masks["cord"] > 0
    outer = ~cord
    assert abs((one - other)[cord].mean()) < 0.005 and abs((one - other)[outer].mean()) < 0.01
    assert one[cord].std() == pytest.approx(other[cord].std(), rel=0.03)
    assert one[outer].std() == pytest.approx(other[outer].std(), rel=0.02)
    for volume, rows in direct.table.groupby("volume").groups.items():
        snr = make_scan(int(volume[4:7]) - 1, PLAN.seed, *place(volume), crop_only=True, raters=()).scanner.snr
        off = (one - other)[rows][cord[rows]]
        # Two independent noises, made smaller by the mean over neighbours that resampling takes.
        assert 0.5 < off.std() * snr / np.sqrt(2) < 1.15, volume


def place(volume: str):
    for name, station in scans_of(int(volume[4:7]) - 1, PLAN):
        if cohort.scan_name(int(volume[4:7]) - 1, name, station) == volume:
            return name, station
    raise AssertionError(volume)


def test_the_result_does_not_depend_on_the_number_of_processes(direct):
    assert make_slices(PATIENTS, PLAN, workers=2, progress=False).equals(direct)


def test_a_set_streamed_to_disk_is_the_set_held_in_memory(direct, tmp_path):
    streamed = make_slices(PATIENTS, PLAN, tmp_path / "a set", workers=1, progress=False)
    assert isinstance(streamed.images, np.memmap)
    assert streamed.equals(direct) and streamed.meta == direct.meta
    again = SliceSet.load(tmp_path / "a set", verify=True)
    assert again.equals(direct)
    direct.save(tmp_path / "saved")
    kept = SliceSet.load(tmp_path / "saved")
    assert kept.equals(streamed)
    two = [json.loads((tmp_path / name / "slices.json").read_text()) for name in ("a set", "saved")]
    assert two[0]["scans"] == two[1]["scans"] and two[0]["masks"] == two[1]["masks"]
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("a set", "saved")]
    assert names[0] == names[1]


def test_streamed_bytes_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        make_slices(1, PLAN, tmp_path / name, progress=False)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "images.npy" in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_first_begins_at_a_later_patient(direct):
    part = make_slices(2, PLAN, first=2, workers=1, progress=False)
    assert list(part.volumes.patient.unique()) == [patient_name(2), patient_name(3)]
    expected = direct.select(direct.table.patient.isin([patient_name(2), patient_name(3)]).to_numpy())
    np.testing.assert_array_equal(part.images, expected.images)
    for name in part.masks:
        np.testing.assert_array_equal(part.masks[name], expected.masks[name])
    assert list(part.masks) == ["cord", "truth", "rater-1"], "nobody in the panel"
    assert (direct.masks["rater-2"][direct.table.patient != patient_name(0)] == 255).all()
    assert (direct.masks["rater-2"][direct.table.patient == patient_name(0)] != 255).all()


def test_the_cohorts_raters_and_setting_are_used(direct):
    row = direct.volumes.set_index("patient").loc[patient_name(1)].iloc[0]
    assert row["rater"] == raters_of(1, PLAN)[0]
    other = make_slices(1, replace(PLAN, setting="narrow"), progress=False)
    mine = direct.select((direct.table.patient == patient_name(0)).to_numpy())
    np.testing.assert_array_equal(other.images, mine.images)
    np.testing.assert_array_equal(other.masks["truth"], mine.masks["truth"])
    assert any((other.masks[f"rater-{k}"] != mine.masks[f"rater-{k}"]).any() for k in range(1, 5))


def test_size_and_spacing_are_those_asked_for():
    small = make_slices(1, CohortPlan(3, ("T2w_ax",)), size=33, spacing_mm=0.9, progress=False)
    assert small.images.shape[1:] == (1, 33, 33) and (small.table.spacing_mm == 0.9).all()
    assert small.meta["size"] == 33 and small.contrasts == ("T2w",)
    centre = small.masks["cord"][:, 0, 12:21, 12:21].mean(axis=(0, 1, 2)), small.masks["cord"][:, 0, :4].mean()
    assert centre[0] > 0.6 and centre[1] == 0


def test_sagittal_acquisitions_give_axial_slices_too():
    found = make_slices(1, CohortPlan(3, ("T2w_sag",)), progress=False)
    assert len(found) >= 200 and (found.volumes.orientation == "PSR").all()
    assert (found.masks["cord"] == 1).sum(axis=(1, 2, 3)).min() >= 10


@pytest.mark.parametrize("patients", [0, -1, 2.0, True, None])
def test_wrong_counts_are_refused(patients):
    with pytest.raises(SettingError, match="PHANTOM-PATIENTS"):
        make_slices(patients, progress=False)


def test_volumes_come_one_by_one():
    """Only what is asked for is made: memory does not grow with the cohort."""
    parts = prepared_volumes(642, CohortPlan(0), workers=1, progress=False)
    name, part = next(parts)
    assert name == "sub-001_T2star" or name.startswith("sub-001")
    assert part.images.shape[1:] == (48, 48)
    parts.close()


# ---- a stream that breaks off ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    return list(prepared_volumes(2, CohortPlan(3), workers=1, progress=False))


META = {"size": 48, "spacing_mm": 0.75, "min_cord_pixels": 10, "source": "test", "version": "0", "notes": []}
NAMES = ["cord", "truth", "rater-1", "rater-2", "rater-3", "rater-4"]


def broken(parts, error):
    yield parts[0]
    yield parts[1]
    raise error


@pytest.mark.parametrize("error", [RuntimeError("the rest is lost"), KeyboardInterrupt()])
def test_an_interrupted_stream_leaves_nothing_half_written(parts, tmp_path, error):
    with pytest.raises(type(error)):
        stream_slices(broken(parts, error), tmp_path / "set", META, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_stream_leaves_an_older_set_as_it_was(parts, tmp_path):
    old = stream_slices(parts[:1], tmp_path / "set", META, NAMES)
    with pytest.raises(RuntimeError):
        stream_slices(broken(parts, RuntimeError()), tmp_path / "set", META, NAMES)
    assert SliceSet.load(tmp_path / "set").equals(old)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(stream_slices(parts, tmp_path / "set", META, NAMES)) > len(old)


def test_streamed_arrays_are_ordinary_npy_files(parts, tmp_path):
    stream_slices(parts, tmp_path / "set", META, NAMES)
    rows = sum(len(part.images) for _, part in parts)
    expected = {"images": (np.float16, (rows, 1, 48, 48))} | {
        f"mask-{name}": (np.uint8, (rows, 1, 48, 48)) for name in NAMES
    }
    for path in sorted((tmp_path / "set").glob("*.npy")):
        with open(path, "rb") as handle:
            assert np.lib.format.read_magic(handle) == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
            assert handle.tell() % 64 == 0 and not fortran
        plain, mapped = np.load(path, allow_pickle=False), np.load(path, mmap_mode="r", allow_pickle=False)
        np.testing.assert_array_equal(plain, mapped)
        assert plain.shape == shape and plain.dtype == dtype
        if path.stem in expected:
            assert (dtype, shape) == expected[path.stem]
    images = np.load(tmp_path / "set" / "images.npy")
    np.testing.assert_array_equal(images[:, 0], np.concatenate([part.images for _, part in parts]))


def test_a_mask_that_a_volume_lacks_is_255_there(parts, tmp_path):
    (first, one), (second, two) = parts[0], parts[-1]
    assert "rater-4" in one.masks and "rater-4" not in two.masks
    found = stream_slices([(first, one), (second, two)], tmp_path / "set", META, NAMES)
    n = len(one.images)
    np.testing.assert_array_equal(found.masks["rater-4"][:n, 0], one.masks["rater-4"])
    assert (found.masks["rater-4"][n:] == 255).all() and (found.masks["rater-1"] != 255).all()
    assert "rater-4" not in found.scans[second].indices
    np.testing.assert_array_equal(found.scans[second].indices["truth"], two.scan.indices["truth"])
    np.testing.assert_array_equal(found.scans[second].cord_values, two.scan.cord_values)


def test_a_stream_without_volumes_and_a_folder_with_something_else_are_refused(parts, tmp_path):
    with pytest.raises(InputError, match="SLICES-EMPTY"):
        stream_slices([], tmp_path / "set", META, NAMES)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="SLICES-TARGET"):
        make_slices(1, PLAN, tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


# ---- the paper's size -----------------------------------------------------------------------------------------------


class Planned(Exception):
    """Raised in the place of rendering."""


def test_an_axial_volume_has_15_slices_on_average(monkeypatch):
    """The paper: 38 855 slices in 2549 volumes, 15.2 each. Only the plans of the scans are drawn here."""

    def render(patient, lesions, signal, plan, **_):
        raise Planned(plan)

    monkeypatch.setattr(cohort, "render", render)
    counts = []
    for index in range(120):
        for name, station in scans_of(index):
            with pytest.raises(Planned) as caught:
                make_scan(index, 0, name, station, raters=())
            counts.append(caught.value.args[0].shape[0])
    assert np.mean(counts) == pytest.approx(15.2, abs=0.5)
    assert min(counts) >= 8 and max(counts) <= 30


def test_nearly_every_slice_that_is_scanned_is_kept(direct):
    """So the plans' mean is the set's."""
    depth = pd.Series({name: scan.shape[2] for name, scan in direct.scans.items()})
    assert len(direct) / depth.sum() > 0.98
