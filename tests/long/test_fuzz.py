"""Fuzzing whatever is read from disk: only msfilm's own errors come out, within time and memory (see fuzz_targets)."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import fuzz_targets as targets
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from msfilm.model.weights import save_network

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MANY = int(os.environ.get("MSFILM_FUZZ", "1"))   # a longer hunt: MSFILM_FUZZ=20


def hunt(examples):
    """Time and memory are measured by the targets themselves. What is found is small: shrinking it would take hours."""
    return settings(max_examples=examples * MANY, deadline=None, database=None, derandomize=MANY == 1,
                    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module", autouse=True)
def bounded():
    """What a law of a target might miss meets the operating system: 3 GB more than there is now."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on memory")
    torch.set_num_threads(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3_000_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- what is made up

words = st.sampled_from(["", " ", "sub-01", "participant_id", "centre", "EchoTime", "x_mm", "n/a", "../..", "a\nb",
                         "NaN", "T2w", "{rater}", "*", "\x00", "é", "\ud800", "1e400", "[", "&a [*a]", "a" * 300])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-2, 5), st.floats(), st.text(max_size=12),
                    words, st.sampled_from([10**400, -(10**30), 1e308, 5e-324, 2**31, 2**63]))


def jsons(keys=words, values=scalars):
    return st.recursive(values, lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(keys, st.text(max_size=8)), inner, max_size=5)),
        max_leaves=12)


def as_json(content):
    try:
        return json.dumps(content).encode()
    except (ValueError, UnicodeEncodeError):   # a whole number of more digits than Python writes
        return b"{" + b"1" * 5000 + b"}"


@st.composite
def spoilt(draw, content, most=6):
    """Right bytes with a few of them changed, taken out, put in or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["bit", "byte", "cut", "in", "out", "twice"]))
        if kind == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place:]
        elif kind == "in":
            content[place:place] = draw(st.binary(max_size=20))
        elif kind == "out":
            del content[place : place + draw(st.integers(1, 20))]
        else:
            content[place:place] = content[place : place + 40]
    return bytes(content)


@st.composite
def changed(draw, content, values=scalars):
    """JSON that is right but for some values, keys or whole parts."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 4))):
        at = content
        while isinstance(at, (dict, list)) and at:
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            if not isinstance(at[key], (dict, list)) or not at[key] or draw(st.integers(0, 3)) == 0:
                kind = draw(st.sampled_from(["set", "set", "set", "drop", "more"]))
                if kind == "set":
                    at[key] = draw(jsons(values=values))
                elif kind == "drop":
                    del at[key]
                elif isinstance(at, dict):
                    at[draw(words)] = draw(values)
                else:
                    at.append(draw(values))
                break
            at = at[key]
    return content


FLOATS = st.one_of(st.floats(width=32), st.sampled_from([
    0.0, -0.0, 1.0, -1.0, 352.0, 351.5, 348.0, 1e9, 3e38, 1e-38, 1e-45, float("nan"), float("inf"), -float("inf")]))
SHORTS = st.one_of(st.integers(-(2**15), 2**15 - 1), st.sampled_from([-1, 0, 1, 2, 3, 4, 7, 8, 512, 32767, -32768]))
KINDS = st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, -1, 255])
# NIfTI-1: what stands where. dim, datatype, bitpix, pixdim, vox_offset, scale, codes, quaternion, srow, magic
FIELDS = ([(40 + 2 * i, "h", SHORTS) for i in range(8)] + [(70, "h", KINDS), (72, "h", SHORTS)]
          + [(76 + 4 * i, "f", FLOATS) for i in range(8)] + [(108, "f", FLOATS), (112, "f", FLOATS), (116, "f", FLOATS)]
          + [(252, "h", SHORTS), (254, "h", SHORTS), (0, "i", st.sampled_from([348, 540, 0, -1, 1 << 30]))]
          + [(256 + 4 * i, "f", FLOATS) for i in range(6)] + [(280 + 4 * i, "f", FLOATS) for i in range(12)]
          + [(123, "B", st.integers(0, 255)), (344, "I", st.integers(0, 2**32 - 1)),
             (348, "I", st.integers(0, 2**32 - 1))])


@st.composite
def scans(draw):
    """A small scan as nibabel writes it, of any type, byte order, version and orientation."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=3, max_size=3)))
    shape += draw(st.sampled_from([(), (), (1,), (2,), (1, 1)]))
    dtype = np.dtype(draw(st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])))
    data = rng.integers(0, draw(st.sampled_from([2, 100])), shape).astype(dtype)
    if dtype.kind == "f" and draw(st.booleans()):
        data.flat[0] = draw(st.sampled_from([np.nan, np.inf, 1e30, 0.5]))
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3) * draw(st.sampled_from([1.0, 0.5, 3.0, 0.02]))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, draw(st.sampled_from([0.0, -50.0, 1e5]))
    image = (nib.Nifti2Image if draw(st.integers(0, 4)) == 0 else nib.Nifti1Image)(data, affine, dtype=dtype)
    image.set_qform(affine, draw(st.sampled_from([0, 1, 2])))
    image.set_sform(affine, draw(st.sampled_from([0, 1, 4])))
    if draw(st.integers(0, 3)) == 0:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment" * draw(st.integers(0, 9))))
    if draw(st.integers(0, 5)) == 0:
        image.header["vox_offset"] = int(image.header["sizeof_hdr"]) + 4
        header = image.header.as_byteswapped()
        return header.binaryblock + bytes(4) + data.astype(data.dtype.newbyteorder()).tobytes(order="F")
    return image.to_bytes()


@st.composite
def nearly_scans(draw):
    """A scan with some fields of its header overwritten."""
    content = bytearray(draw(scans()))
    order = "<" if content[0] in (92, 28) else ">"
    for place, kind, values in draw(st.lists(st.sampled_from(FIELDS), min_size=0, max_size=4)):
        content[place : place + struct.calcsize(kind)] = struct.pack(order + kind, draw(values))
    return bytes(content)


# ---- scans

@hunt(150)
@given(content=st.one_of(st.binary(max_size=400), st.builds(lambda a, b: a + b, st.sampled_from(
    [b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x5c\x01\0\0", b"\0\0\x01\x5c"]), st.binary(max_size=700))))
def test_any_bytes_as_a_scan(content, folder):
    targets.nifti(content, folder)


@hunt(3000)
@given(content=nearly_scans(), packed=st.booleans())
def test_a_scan_with_a_header_that_lies(content, packed, folder):
    (targets.packed_nifti if packed else targets.nifti)(content, folder)


@hunt(800)
@given(data=st.data(), content=nearly_scans(), packed=st.sampled_from([0, 1, 2]))
def test_a_scan_with_damaged_bytes(data, content, packed, folder):
    """Damaged before it was packed, after, or not packed at all; or packed in two parts."""
    if packed == 1:
        content = gzip.compress(content[:200], mtime=0) + gzip.compress(content[200:], mtime=0)
    content = data.draw(spoilt(content))
    (targets.packed_nifti if packed == 2 else targets.nifti)(content, folder)


def test_what_is_right_is_read(folder):
    """The fuzzer's own scans: were they all refused, it would prove nothing."""
    read = []

    @hunt(100)
    @given(content=scans(), packed=st.booleans())
    def count(content, packed):
        read.append((targets.packed_nifti if packed else targets.nifti)(content, folder))

    count()
    assert sum(read) > 0.4 * len(read), f"{sum(read)} of {len(read)}"


@pytest.mark.parametrize("zeros", [10**6, 10**8, 3 * 10**9])
def test_a_small_file_that_unpacks_to_a_big_one(zeros, folder):
    """3 GB of zeros in 3 MB, behind a header that promises them or one that does not."""
    if zeros > 10**9:
        block = gzip.compress(bytes(10**8), 9, mtime=0)
        content = gzip.compress(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes(), mtime=0)
        content += block * (zeros // 10**8)
    else:
        header = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).header
        header.set_data_shape((32767, 32767, 1000))
        content = gzip.compress(header.binaryblock + bytes(4) + bytes(zeros), 9, mtime=0)
    assert not targets.nifti(content, folder)


# ---- tables and texts

@hunt(400)
@given(content=st.one_of(
    st.binary(max_size=200), jsons().map(as_json),
    st.dictionaries(st.sampled_from(["EchoTime", "RepetitionTime", "FlipAngle", "Manufacturer"]),
                    st.one_of(scalars, st.lists(scalars, max_size=3)), min_size=1).map(as_json)))
@example(content=b'{"EchoTime": ' + b"9" * 5000 + b"}")
@example(content=b'{"EchoTime": ' + b"9" * 400 + b"}")
@example(content=b'{"EchoTime": [' + b"9" * 400 + b", 1.5]}")
def test_a_sidecar(content, folder):
    targets.sidecar(content, folder)


@hunt(250)
@given(content=st.one_of(
    st.binary(max_size=200),
    st.lists(st.lists(st.one_of(words, st.text(max_size=8)), max_size=5).map("\t".join), max_size=6).map(
        lambda lines: "\n".join(["participant_id\tcentre", *lines]).encode("utf-8", "surrogatepass")),
    st.lists(st.lists(words, max_size=4).map("\t".join), max_size=5).map(
        lambda lines: "\r".join(lines).encode("utf-8", "replace"))))
def test_a_participants_table(content, folder):
    targets.participants(content, folder)


MANIFEST = json.loads((Path(__file__).parents[2] / "data_manifests" / "sct_testing_data.json").read_text())
MANIFEST["files"] = MANIFEST["files"][:2]


@hunt(400)
@given(content=st.one_of(st.binary(max_size=100), jsons().map(as_json), changed(MANIFEST).map(as_json),
                         spoilt(json.dumps(MANIFEST).encode())))
def test_a_manifest(content, folder):
    targets.manifest(content, folder)


@hunt(250)
@given(content=st.one_of(
    st.binary(max_size=200), spoilt(b"# a scan\nx_mm,y_mm,z_mm\n1,2,3\n4,5.5,-6e1\n"),
    st.lists(st.lists(st.one_of(words, st.floats().map(str), st.integers().map(str)), max_size=4).map(",".join),
             max_size=5).map(lambda lines: "\n".join(["x_mm,y_mm,z_mm", *lines]).encode("utf-8", "surrogatepass"))))
def test_a_centreline(content, folder):
    targets.centreline(content, folder)


RULES = {"folders": ["derivatives/labels", "derivatives/experts-{rater}", "."], "cord": ["seg-manual", "label-SC_mask"],
         "lesion": ["lesion-manual", "lesion-manual-{rater}"], "centre": "hospital", "raters": ["anna", "bert"],
         "contrasts": {"T1post": {"suffix": "T1w", "ce": "*"}, "FLAIR": {"suffix": "FLAIR"}},
         "take": {"ses": ["01", ""], "acq": ["ax", "*"]}, "leave": {"part": "phase"}}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
texts = st.one_of(words, st.sampled_from(["*" * 30, "{rater}" * 3, "(" * 50, "[" * 20, "a{n}b{n}", "{", "}{", "?" * 20,
                                          "{rater}*{rater}*", "../x", "/etc", "C:\\x", "." * 9]), st.text(max_size=10))


def as_yaml(content):
    try:
        return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return b"- ["


@hunt(400)
@given(content=st.one_of(st.binary(max_size=100), changed(RULES, st.one_of(scalars, texts)).map(as_yaml),
                         jsons(st.sampled_from(sorted(RULES)), texts).map(as_yaml), spoilt(as_yaml(RULES))))
@example(content=BOMB.encode())
@example(content=BOMB.replace("a: ", "cord: ").replace("i: ", "lesion: ").encode())
def test_naming_rules(content, folder):
    targets.naming(content, folder)


@hunt(150)
@given(listed=st.lists(st.one_of(
    st.builds("".join, st.lists(st.sampled_from(
        ["sub-01", "sub-", "_", "ses-1", "acq-ax", "T2w", "run-", "-", "label-lesion", "desc-rater1", "mask", "seg",
         "manual", "é", " ", "rater", "space-", "T2starw", "MTS", "mt-on", "lesion"]), max_size=9)).map(
             lambda name: "sub-01_" + name), st.text(max_size=12)).flatmap(
                 lambda name: st.sampled_from([name + end for end in (".nii.gz", ".nii", ".json", ".csv", "")])),
    max_size=6))
def test_file_names(listed, folder):
    targets.names(listed, folder)


GRID = {"question": "q", "expected": "e", "base": {"epochs": 2, "augment": {"noise": 0.1}}, "seeds": [0, 1],
        "arms": {"on": {"film": ["down1"]}, "off": None}, "grid": {"depth": [1, 2], "contrasts": ["T2w", ["T2w"]],
                                                                 "fractions": [[0.6, 0.2, 0.2]], "lr": [0.001]}}
PLAN = {"question": "q", "expected": "e", "budget": "b", "cohorts": {"a": {"patients": 3, "seed": 1, "staple": True}},
        "tests": {"t": {"patients": 2, "seed": 2, "labelled": {"T2w": 0.5}}}, "base": {"epochs": 2}, "seeds": [0],
        "arms": {"x": {"filters": 2}, "y": {"cohort": "a", "test": "t", "conditioning": "contrast"}},
        "compare": [["y", "x"]], "measure": ["scores"], "healthy": False}
values = st.one_of(scalars, st.sampled_from(["contrast", "dice", "cosine", "augment.noise", "seed", "film"]))
keys = st.sampled_from([*GRID, *PLAN, "depth", "filters", "augment", "lr", "film", "contrasts", "fractions", "dropout"])


@hunt(700)
@given(content=st.one_of(st.binary(max_size=80), changed(GRID, values).map(as_yaml), changed(PLAN, values).map(as_yaml),
                         jsons(keys, values).map(as_yaml), spoilt(as_yaml(GRID))))
@example(content=BOMB.replace("i: ", "grid: ").encode())
@example(content=BOMB.replace("a: ", "base: ").replace("i: ", "arms: ").encode())
def test_a_grid_and_a_plan(content, folder):
    targets.grid(content, folder)


@pytest.mark.parametrize(("target", "before", "middle", "times", "after"), [
    (targets.sidecar, b"", b"[", 100_000, b""), (targets.manifest, b"", b"[", 100_000, b""),
    (targets.participants, b"participant_id\tcentre\n", b"x", 300_000, b""),
    (targets.participants, b'participant_id\tcentre\n"', b"x\t", 80_000, b""),
    (targets.centreline, b"x_mm,y_mm,z_mm\n", b"1,", 100_000, b"1"),
    *[(target, b"cord: ", middle, times, b"") for target in (targets.naming, targets.grid)
      for middle, times in ((b"[", 5000), (b"{", 5000), (b"[{a: ", 3000), (b"- ", 20_000), (b"a: ", 5000))],
    (targets.naming, b"", b"- \n ", 3000, b""), (targets.naming, b"cord: [", b"x,", 4_000, b"y]"),
    (targets.naming, b"cord: '", b"*a", 60, b"'"), (targets.naming, b"lesion: '", b"{n}a", 9, b"'"),
    (targets.grid, b"grid: {depth: [", b"1,", 5_000, b"2]}"), (targets.grid, b"seeds: [", b"1,", 5_000, b"2]"),
    (targets.grid, b"seeds: [", b"1,", 300_000, b"2]"), (targets.naming, b"cord: [", b"x,", 300_000, b"y]"),
    (targets.grid, b"base: {", b"a: 1, ", 3000, b"}"),
], ids=lambda part: getattr(part, "__name__", None) or repr(part)[:14])
def test_long_and_deep_texts(target, before, middle, times, after, folder):
    target(before + middle * times + after, folder)


# ---- networks and slices

@pytest.fixture(scope="module")
def network(folder):
    save_network(folder / "right", targets.small_network())
    return {name: (folder / "right" / name).read_bytes() for name in ("network.json", "weights.safetensors")}


def test_a_description_of_a_network(network, folder):
    content = json.loads(network["network.json"])

    @hunt(500)
    @given(spoilt_one=st.one_of(spoilt(network["network.json"]), jsons(st.sampled_from(sorted(content))).map(as_json),
                                changed(content).map(targets.honest)))
    def fuzz(spoilt_one):
        targets.write(folder, "network/weights.safetensors", network["weights.safetensors"])
        targets.network_json(spoilt_one, folder)

    fuzz()
    assert targets.network_json(network["network.json"], folder)


@pytest.mark.parametrize("change", [{"filters": 1024, "depth": 6}, {"film_width": 10_000}, {"n_codes": 10_000},
                                    {"in_channels": 64, "filters": 1024}])
def test_a_network_described_too_large_is_not_built(network, folder, change):
    content = json.loads(network["network.json"])
    content["network"]["model"] |= change
    targets.write(folder, "network/weights.safetensors", network["weights.safetensors"])
    assert not targets.network_json(targets.honest(content), folder)


@pytest.mark.parametrize("target", [targets.weights, targets.checkpoint], ids=lambda target: target.__name__)
def test_tensors(target, network, folder):
    targets.write(folder, "network/network.json", network["network.json"])
    content = network["weights.safetensors"] if target is targets.weights else targets.checkpoint_bytes(folder)
    size = int.from_bytes(content[:8], "little")

    def with_header(described):
        text = as_json(described)
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    @hunt(250)
    @given(spoilt_one=st.one_of(
        spoilt(content), changed(json.loads(content[8 : 8 + size])).map(with_header), jsons().map(with_header),
        st.binary(max_size=200), st.binary(max_size=9)))
    def fuzz(spoilt_one):
        target(spoilt_one, folder)

    fuzz()
    assert target(content, folder)


def test_a_folder_of_slices(folder):
    from test_loop import toy

    place = toy(patients=2, slices=2).save(folder / "slices")
    right = {path.name: path.read_bytes() for path in sorted(place.iterdir())}
    index = json.loads(right["slices.json"])

    @hunt(250)
    @given(name=st.sampled_from(sorted(right)), data=st.data(), honest=st.booleans())
    def fuzz(name, data, honest):
        """One file spoilt; ``honest``: its hash is the one it has now, so that its content is looked at."""
        if name == "slices.json":
            found = {name: data.draw(st.one_of(changed(index).map(targets.honest), spoilt(right[name])))}
        else:
            found = {name: data.draw(spoilt(right[name]))}
            if honest:
                content = json.loads(json.dumps(index))
                content["sha256"][name] = targets.hashlib.sha256(found[name]).hexdigest()
                found["slices.json"] = targets.honest(content)
        targets.slice_set(right | found, folder)

    fuzz()
    assert targets.slice_set(right, folder)


def _archives():
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        for name in ("a/b.txt", "c.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            made.addfile(member, io.BytesIO(b"hello"))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/b.txt", b"hello" * 50)
        made.writestr("c.txt", b"")
    return [tar.getvalue()[:3000], gzip.compress(tar.getvalue(), mtime=0), packed.getvalue()]


@hunt(300)
@given(data=st.data(), content=st.sampled_from(_archives()))
def test_an_archive(data, content, folder):
    targets.archive(data.draw(spoilt(content)), folder)


# ---- a fuzzer that follows the branches taken

@pytest.mark.skipif(find_spec("atheris") is None,
                    reason="needs atheris, which has wheels for few systems: pip install atheris where there is one")
def test_atheris_finds_nothing_in_the_reader(folder):
    """libFuzzer on the reader of scans, from a few small ones; ten seconds of processor, more with MSFILM_FUZZ."""
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, dtype in enumerate((np.uint8, np.int16, np.float32)):
        content = nib.Nifti1Image(np.arange(8).reshape(2, 2, 2).astype(dtype), np.eye(4)).to_bytes()
        (seeds / f"{number}.nii").write_bytes(content)
    command = [sys.executable, Path(__file__).with_name("fuzz_atheris.py"), folder / "found", seeds,
               f"-max_total_time={15 * MANY}", "-max_len=2000", "-timeout=20", "-rss_limit_mb=3000", "-seed=1"]
    (folder / "found").mkdir()
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    runs = [line for line in done.stderr.splitlines() if "DONE" in line or "Done" in line]
    assert done.returncode == 0 and runs, done.stderr[-3000:]
    print(runs[-1])
