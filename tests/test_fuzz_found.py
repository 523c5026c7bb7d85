"""What fuzzing found (tests/long/test_fuzz.py), kept small: each once crashed, hung or took too much memory."""

from __future__ import annotations

import hashlib
import json
import time
import warnings

import nibabel as nib
import numpy as np
import pytest
from test_loop import toy

from msfilm.data.centres import read_centreline
from msfilm.data.labels import NamingRules
from msfilm.data.nifti import read_image, read_mask
from msfilm.data.sidecars import acquisition, merge_sidecars
from msfilm.data.slices import SliceSet
from msfilm.errors import InputError, MsfilmError, SettingError
from msfilm.evaluate.plan import read_plan
from msfilm.files import read_json, sha256_json
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, load_network, save_network
from msfilm.train.grid import read_grid

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def quickly(seconds=5.0):
    """A deadline in processor time."""
    started = time.process_time()
    return lambda: time.process_time() - started < seconds


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe", b""])
def test_json_that_python_does_not_take(tmp_path, content):
    """Too deep (RecursionError), a number of 5000 digits (a plain ValueError), not UTF-8."""
    with pytest.raises(InputError, match="JSON-BROKEN"):
        read_json(written(tmp_path, "a.json", content))
    with pytest.raises(InputError, match="JSON-BROKEN"):
        read_json(tmp_path)   # a folder


@pytest.mark.parametrize("value", ["9" * 400, f"[{'9' * 400}, 1.5]", "[Infinity, -Infinity]", "NaN"])
def test_a_sidecars_number_that_no_float_holds(tmp_path, value):
    path = written(tmp_path, "sub-01_T2w.json", f'{{"EchoTime": {value}}}')
    fields, faults = merge_sidecars([path])
    values, more = acquisition(fields, path)
    assert not faults and [fault.code for fault in more] == ["SIDECAR-UNIT"]
    assert values["echo_time_s"] != values["echo_time_s"], "unknown"


@pytest.mark.parametrize("read", [read_grid, read_plan, NamingRules.from_file], ids=["grid", "plan", "names"])
@pytest.mark.parametrize("content", [
    "cord: " + "[" * 5000, "cord: " + "{" * 5000, "cord: " + "[{a: " * 3000, BOMB, BOMB.replace("i: ", "arms: "),
    BOMB.replace("i: ", "grid: "), "a: &a [*a]\n", "cord: [" + "x," * 300_000 + "y]"])
def test_yaml_that_takes_minutes(tmp_path, read, content):
    """Deep brackets (quadratic in PyYAML), aliases of aliases (the message wrote them out), a list within itself."""
    fine = quickly()
    with pytest.raises(MsfilmError, match=r"YAML|KEY") as found:
        read(written(tmp_path, "a.yml", content))
    assert fine() and len(str(found.value)) < 2000


@pytest.mark.parametrize("far", [1e300, 1e160, 1e10])
def test_a_nifti2_header_whose_squares_overflow(tmp_path, far):
    """A RuntimeWarning of NumPy's, and then an affine of infinite voxels."""
    for row, column in ((0, 0), (2, 3)):
        affine = np.eye(4)
        affine[row, column] = far
        image = nib.Nifti2Image(np.zeros((2, 3, 4), np.uint8), None)
        image.header.set_sform(affine, 1)
        nib.save(image, tmp_path / "a.nii")
        with warnings.catch_warnings(), pytest.raises(InputError, match="NIFTI-(AFFINE|PIXDIM)"):
            warnings.simplefilter("error")
            read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("size", [1e-310, 1e-160, 1e-6, 1e6, 1e300, np.inf, np.nan])
@pytest.mark.parametrize("code", [0, 1])
def test_a_voxel_size_that_nothing_has(tmp_path, size, code):
    """Without a form: voxels of 0 mm that were accepted, or nibabel's OrientationError."""
    image = nib.Nifti2Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    image.header.set_sform(np.eye(4), code)
    image.header.set_qform(np.eye(4), 0)
    content = bytearray(image.to_bytes())
    content[112:120] = np.float64(size).tobytes()   # NIfTI-2: pixdim[1]
    with warnings.catch_warnings(), pytest.raises(InputError, match="NIFTI-PIXDIM"):
        warnings.simplefilter("error")
        read_image(written(tmp_path, "a.nii", bytes(content)))


def test_a_pattern_that_matches_for_ever_is_refused(tmp_path):
    fine = quickly()
    with pytest.raises(SettingError, match=r"NAMES-PATTERN.*three at most"):
        NamingRules(cord=("*a" * 60,))
    rules = NamingRules(lesion=("*a*a-{rater}",), cord=("seg***",))
    assert rules.kind_of("a" * 255 + "_") is None and rules.kind_of("xaxa-2")[2] == "2"
    assert rules.kind_of("seg-manual")[0] == "cord"
    assert fine()


def test_a_long_list_of_values_is_refused_at_once(tmp_path):
    fine = quickly()
    for text, code in (("grid: {depth: [" + "1," * 20_000 + "2]}", "GRID-SIZE"),
                       ("grid: {lr: [" + ",".join(f"{n}e-6" for n in range(1, 9000)) + ", 1.0e-6]}", "GRID-TWICE")):
        with pytest.raises(SettingError, match=code):
            read_grid(written(tmp_path, "a.yml", text))
    assert fine()


@pytest.mark.parametrize("change", [
    "cohorts: [1]", "tests: {t: 3}", "arms: 3", "arms: {x: [1]}", "arms: {x: {cohort: {}}}", "arms: {x: {test: [t]}}",
    "compare: 0", "compare: [1]", "compare: [[x]]", "measure: 3", "measure: [{}]", "seeds: 3"])
def test_a_plan_of_the_wrong_kinds_is_refused(tmp_path, change):
    plan = {"question": "q", "expected": "e", "cohorts": "{a: {patients: 3, seed: 1}}", "arms": "{x: {filters: 2}}",
            "tests": "{t: {patients: 2, seed: 2}}"}
    key, _, value = change.partition(": ")
    with pytest.raises(SettingError, match=r"PLAN-VALUE.*is no (mapping|list)"):
        read_plan(written(tmp_path, "a.yml", "".join(f"{k}: {v}\n" for k, v in (plan | {key: value}).items())))


def test_an_error_does_not_repeat_a_whole_line(tmp_path):
    for content in ("x_mm,y_mm,z_mm\n" + "1," * 100_000 + "1", "y" * 100_000, "x_mm,y_mm,z_mm\n" + "z" * 100_000):
        with pytest.raises(InputError, match="CENTRELINE-VALUES") as found:
            read_centreline(written(tmp_path, "a.csv", content))
        assert len(str(found.value)) < 1000


def _spoil(folder, name, content):
    """One file of a set changed by somebody who changed the hashes too."""
    (folder / name).write_bytes(content)
    index = json.loads((folder / "slices.json").read_bytes())
    index["sha256"][name] = hashlib.sha256(content).hexdigest()
    index.pop("index_sha256")
    (folder / "slices.json").write_text(json.dumps(index | {"index_sha256": sha256_json(index)}))


@pytest.mark.parametrize("place", ["version", "nul", "brace", "paren", "empty"])
def test_an_array_file_that_numpy_chokes_on(tmp_path, place):
    """SyntaxError, TokenError, and a header of 662 MB that NumPy makes room for before it looks."""
    folder = toy(patients=2, slices=2).save(tmp_path / "slices")
    content = bytearray((folder / "images.npy").read_bytes())
    spoilt = {"version": content[:6] + b"\x02\0" + b"\x76\x00\x27\x7b" + content[12:], "empty": b"",
              "nul": content[:20] + b"\0" + content[21:], "brace": content.replace(b"}", b"(", 1),
              "paren": content.replace(b"(", b"'", 1)}[place]
    _spoil(folder, "images.npy", bytes(spoilt))
    with pytest.raises(InputError, match=r"SLICES-CORRUPT.*images\.npy"):
        SliceSet.load(folder)


@pytest.mark.parametrize("change", [{"filters": 1024, "depth": 6}, {"film_width": 10_000}])
def test_a_network_larger_than_its_weights_is_not_built(tmp_path, change):
    """512 MB and more for a file of a few kilobytes."""
    model = UNet(UNetConfig(depth=1, filters=1, n_codes=2, film_width=2))
    file = save_network(tmp_path, Network(model, CategoryEncoder("contrast", ("T2star", "T2w")))) / "network.json"
    content = json.loads(file.read_text())
    content["network"]["model"] |= change
    content["network_sha256"] = sha256_json(content["network"])
    file.write_text(json.dumps(content))
    fine = quickly(2.0)
    with pytest.raises(InputError, match=r"WEIGHTS-CORRUPT.*too few for the network described"):
        load_network(tmp_path)
    assert fine()


@pytest.mark.parametrize("bits", [0x7FA00001, 0xFF800001])
def test_a_signalling_nan_in_a_mask_is_refused_without_a_word_of_numpys(tmp_path, bits):
    content = nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)).to_bytes()
    path = written(tmp_path, "a.nii", content[:-4] + bits.to_bytes(4, "little"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(InputError, match="NIFTI-NAN"):
            read_mask(path)


@pytest.mark.parametrize("folders", ["*" * 30, "derivatives/**", "**"])
def test_stars_in_a_folders_name(tmp_path, folders):
    """pathlib takes two only as a whole name, and walks everything below for them."""
    (tmp_path / "derivatives" / "labels" / "deep").mkdir(parents=True)
    found = NamingRules(folders=(folders,)).label_folders(tmp_path)
    names = {place.relative_to(tmp_path).as_posix() for place, _ in found}
    assert names == ({"derivatives/labels"} if "/" in folders else {"derivatives"})
