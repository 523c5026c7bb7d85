"""SliceSet: parts stay in step through select, concat, save and load; broken files are named; no nibabel is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from msfilm.data.slices import UNDRAWN, ScanMasks, SliceSet, hash_slice
from msfilm.errors import InputError, RunError, SettingError


def small_set(
    volumes=("sub-01_T2w", "sub-01_T2star", "sub-02_T2w"), n=4, size=9, seed=0, masks=("cord", "rater-1")
) -> SliceSet:
    rng = np.random.default_rng(seed)
    tables, rows, scans = [], [], {}
    for volume in volumes:
        patient, contrast = volume.split("_")
        shape, affine = (11, 13, n + 2), np.diag([0.5, 0.6, 3.0, 1.0])
        dense = {name: rng.random(shape) < 0.2 for name in masks}
        scans[volume] = ScanMasks.from_dense(affine, dense, rng.normal(1, 0.1, shape).astype(np.float32))
        tables.append(pd.DataFrame({
            "volume": volume, "patient": patient, "centre": "a", "contrast": contrast, "rater": "r",
            "z": np.arange(n) + 1, "centre_x": rng.random(n) + 5, "centre_y": rng.random(n) + 6,
            "spacing_mm": 0.75, "padded": rng.random(n),
        }))  # fmt: skip
        rows.append(
            {
                "patient": patient,
                "session": None,
                "centre": "a",
                "contrast": contrast,
                "rater": "r",
                "image_hash": f"hash of {volume}",
                "echo_time_s": np.nan,
                "manufacturer": None if contrast == "T2w" else "Acme",
            }
        )
    total = n * len(volumes)
    images = rng.normal(1, 0.2, (total, 1, size, size)).astype(np.float16)
    table = pd.concat(tables, ignore_index=True)
    table["slice_hash"] = [hash_slice(image) for image in images]
    return SliceSet(images, {name: rng.integers(0, 2, images.shape).astype(np.uint8) for name in masks}, table,
                    pd.DataFrame(rows, index=pd.Index(list(volumes), name="volume")), scans,
                    {"size": size, "spacing_mm": 0.75, "source": "made here", "version": "0"})  # fmt: skip


def test_dense_masks_are_what_they_were_made_of():
    rng = np.random.default_rng(0)
    cord, image = rng.random((5, 6, 7)) < 0.3, rng.normal(100, 9, (5, 6, 7)).astype(np.float32)
    scan = ScanMasks.from_dense(np.diag([-0.5, 0.6, 3, 1]), {"cord": cord, "rater-1": np.zeros_like(cord)}, image, 50.0)
    np.testing.assert_array_equal(scan.dense("cord"), cord)
    assert not scan.dense("rater-1").any() and scan.indices["cord"].dtype == np.int32
    np.testing.assert_allclose(scan.cord_values, image.reshape(-1)[scan.indices["cord"]] / 50)
    np.testing.assert_allclose(scan.voxel_mm, [0.5, 0.6, 3])
    assert scan.voxel_volume_mm3 == pytest.approx(0.9)
    with pytest.raises(SettingError, match="did you mean 'rater-1'"):
        scan.dense("rater1")


@pytest.mark.parametrize("index", [[5, 0, 7], np.array([2]), [], np.arange(12)[::-1]])
def test_select_takes_slices_and_only_their_volumes(index):
    whole = small_set()
    part = whole.select(index)
    index = np.asarray(index, int)
    np.testing.assert_array_equal(part.images, whole.images[index])
    np.testing.assert_array_equal(part.masks["rater-1"], whole.masks["rater-1"][index])
    assert part.table["slice_hash"].tolist() == whole.table["slice_hash"].iloc[index].tolist()
    assert list(part.table.index) == list(range(len(index)))
    assert set(part.volumes.index) == set(part.scans) == set(part.table["volume"])
    assert len(part) == len(index)


def test_select_by_truth_values_or_a_tables_column():
    whole = small_set()
    part = whole.select(whole.table["contrast"] == "T2w")
    assert part.contrasts == ("T2w",) and len(part) == 8 and list(part.volumes.index) == ["sub-01_T2w", "sub-02_T2w"]
    assert part.equals(whole.select([0, 1, 2, 3, 8, 9, 10, 11])) and not part.equals(whole)
    with pytest.raises(SettingError, match="SLICES-INDEX"):
        whole.select([True, False])
    with pytest.raises(TypeError):
        whole.select([0.5])


def test_grid_is_that_of_the_table():
    whole = small_set()
    grid = whole.grid("sub-01_T2star")
    rows = whole.table[whole.table.volume == "sub-01_T2star"]
    assert grid.shape == (11, 13, 6) and grid.size == 9 and grid.spacing_mm == 0.75
    np.testing.assert_array_equal(grid.zs, rows.z)
    np.testing.assert_array_equal(grid.centres, rows[["centre_x", "centre_y"]])
    with pytest.raises(SettingError, match="did you mean 'sub-01_T2star'"):
        whole.grid("sub-01_T2Star")


def test_concat_of_the_parts_is_the_whole():
    whole = small_set()
    parts = [whole.select(whole.table.volume == name) for name in whole.volumes.index]
    assert SliceSet.concat(parts).equals(whole) and SliceSet.concat([whole]).equals(whole)


def test_concat_marks_a_mask_that_one_part_lacks_as_undrawn():
    a, b = small_set(("sub-01_T2w",)), small_set(("sub-02_T2w",), seed=1, masks=("cord", "truth"))
    both = SliceSet.concat([a, b])
    assert list(both.masks) == ["cord", "rater-1", "truth"]
    assert (both.masks["truth"][:4] == UNDRAWN).all() and (both.masks["rater-1"][4:] == UNDRAWN).all()
    np.testing.assert_array_equal(both.masks["truth"][4:], b.masks["truth"])


def test_concat_refuses_what_does_not_go_together():
    a = small_set(("sub-01_T2w",))
    for others, code in (
        ([a], "SLICES-TWICE"),
        ([small_set(("sub-02_T2w",), size=8)], "SLICES-MISMATCH"),
        ([replace(small_set(("sub-02_T2w",)), meta={"spacing_mm": 1.0})], "SLICES-MISMATCH"),
    ):
        with pytest.raises(InputError, match=code):
            SliceSet.concat([a, *others])
    with pytest.raises(InputError, match="SLICES-EMPTY"):
        SliceSet.concat([])


@pytest.mark.parametrize("change", ["mask", "table", "column", "scan", "volume"])
def test_parts_out_of_step_are_refused(change):
    whole = small_set()
    parts = {
        "mask": {"masks": {"cord": whole.masks["cord"][:-1]}},
        "table": {"table": whole.table.iloc[:-1]},
        "column": {"table": whole.table.drop(columns="padded")},
        "scan": {"scans": {}},
        "volume": {"volumes": whole.volumes.iloc[:-1]},
    }
    with pytest.raises(InputError, match="SLICES-SHAPE"):
        replace(whole, **parts[change])


def test_equals_sees_every_part():
    whole = small_set()
    other = small_set()
    assert whole.equals(other)
    for touch in (
        lambda s: s.images.__setitem__((0, 0, 0, 0), 9),
        lambda s: s.masks["cord"].__setitem__((0, 0, 0, 0), 7),
        lambda s: s.table.__setitem__("z", 0),
        lambda s: s.volumes.__setitem__("centre", "b"),
        lambda s: s.scans["sub-01_T2w"].cord_values.__setitem__(0, 5),
        lambda s: s.scans["sub-01_T2w"].affine.__setitem__((0, 3), 5),
    ):
        changed = small_set()
        touch(changed)
        assert not whole.equals(changed)


def test_constant_slices_have_no_hash_and_others_differ():
    image = np.ones((1, 5, 5), np.float16)
    assert hash_slice(image) == "" and hash_slice(np.zeros((1, 0, 0), np.float16)) == ""
    image[0, 0, 0] = 2
    assert (
        len(hash_slice(image)) == 32
        and hash_slice(image) != hash_slice(image[:, ::-1])
        and hash_slice(image) == hash_slice(image.copy())
    )


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_set_memory_mapped(tmp_path):
    whole = small_set()
    whole.save(tmp_path / "sl ices é")
    again = SliceSet.load(tmp_path / "sl ices é")
    assert again.equals(whole) and again.meta == whole.meta
    assert (
        isinstance(again.images, np.memmap)
        and isinstance(again.masks["cord"], np.memmap)
        and not again.images.flags.writeable
    )
    assert pd.isna(again.volumes.echo_time_s).all() and pd.isna(again.volumes.manufacturer.iloc[0])
    assert again.select([3, 1]).equals(whole.select([3, 1]))
    assert not [path for path in (tmp_path / "sl ices é").iterdir() if path.suffix in (".pkl", ".pt", ".npz")]
    again.save(tmp_path / "sl ices é")  # over itself
    assert SliceSet.load(tmp_path / "sl ices é", verify=False).equals(whole)


def test_sets_with_a_mask_that_some_volumes_lack_or_without_slices_come_back(tmp_path):
    mixed = SliceSet.concat([small_set(("sub-01_T2w",)), small_set(("sub-02_T2w",), seed=1, masks=("cord",))])
    mixed.save(tmp_path / "a")
    assert SliceSet.load(tmp_path / "a").equals(mixed)
    assert list(SliceSet.load(tmp_path / "a").scans["sub-02_T2w"].indices) == ["cord"]
    none = small_set().select([])
    none.save(tmp_path / "b")
    assert SliceSet.load(tmp_path / "b").equals(none)


def files_of_a_set():
    return ["images.npy", "mask-cord.npy", "table.parquet", "volumes.parquet", "scan-cord.npy", "scan-values.npy"]


@pytest.mark.parametrize("name", files_of_a_set())
@pytest.mark.parametrize("fault", ["gone", "shortened", "flipped", "empty"])
def test_every_broken_file_is_refused_by_name(tmp_path, name, fault):
    small_set().save(tmp_path / "a")
    path = tmp_path / "a" / name
    raw = bytearray(path.read_bytes())
    if fault == "gone":
        path.unlink()
    else:
        raw[len(raw) // 2] ^= 4
        path.write_bytes({"shortened": raw[:-9], "flipped": raw, "empty": b""}[fault])
    with pytest.raises(InputError) as caught:
        SliceSet.load(tmp_path / "a")
    assert caught.value.code == ("SLICES-MISSING" if fault == "gone" else "SLICES-CORRUPT")
    assert caught.value.where == str(path) and caught.value.mend
    if fault in ("shortened", "empty"):  # what does not need the checksum to be seen
        with pytest.raises(InputError, match="SLICES-CORRUPT"):
            SliceSet.load(tmp_path / "a", verify=False)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "SLICES-CORRUPT"),
        ("[]", "SLICES-VERSION"),
        ('{"format": 99}', "SLICES-VERSION"),
        ('{"format": 1}', "SLICES-CORRUPT"),
        (None, "SLICES-MISSING"),
    ],
)
def test_broken_index_is_refused(tmp_path, content, code):
    small_set().save(tmp_path / "a")
    (tmp_path / "a" / "slices.json").unlink()
    if content is not None:
        (tmp_path / "a" / "slices.json").write_text(content)
    with pytest.raises(InputError, match=code):
        SliceSet.load(tmp_path / "a")


def test_no_folder_and_another_folder_are_refused(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=r"SLICES-MISSING.*msfilm prepare"):
            SliceSet.load(folder)
    (tmp_path / "my thesis").mkdir()
    (tmp_path / "my thesis" / "chapter 1").write_text("dear")
    with pytest.raises(InputError, match="SLICES-TARGET"):
        small_set().save(tmp_path / "my thesis")
    assert (tmp_path / "my thesis" / "chapter 1").read_text() == "dear"


def test_what_lies_in_a_set_and_is_not_its_own_is_not_lost(tmp_path):
    folder = small_set().save(tmp_path / "slices")
    (folder / "run").mkdir()
    (folder / "run" / "weights.safetensors").write_bytes(b"hours of work")
    with pytest.raises(InputError, match=r"SLICES-TARGET.*holds run, which .* would be lost"):
        small_set().save(folder)
    assert (folder / "run" / "weights.safetensors").read_bytes() == b"hours of work"
    (folder / "run").rename(tmp_path / "run")
    small_set().save(folder)
    (folder / "slices.json").write_text("{")   # a broken set is still one
    small_set().save(folder)


def test_full_disk_leaves_the_older_set(tmp_path, monkeypatch):
    small_set().save(tmp_path / "a")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match=r"SLICES-WRITE.*No space left"):
        small_set(seed=1).save(tmp_path / "a")
    assert SliceSet.load(tmp_path / "a").equals(small_set()) and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_index_holds_sha256_of_every_file(tmp_path):
    small_set().save(tmp_path / "a")
    listed = json.loads((tmp_path / "a" / "slices.json").read_text())["sha256"]
    assert set(listed) == {path.name for path in (tmp_path / "a").iterdir()} - {"slices.json"}


def test_slices_crop_and_store_import_without_nibabel():
    code = (
        "import sys; sys.modules['nibabel'] = None\n"
        "import msfilm.data.slices, msfilm.data.crop, msfilm.data.store, msfilm.data.split, msfilm.data.cropped"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
