"""What the fuzzers call: each reads bytes that somebody made up, and states what has to hold of whatever is accepted.

A target raises nothing but what breaks the law: any other error than msfilm's own, a warning of NumPy's, too much time
or memory. Time is the processor's, so that a busy machine does not matter; memory is what Python and NumPy asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import shutil
import time
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from msfilm.data.bids import find_volumes
from msfilm.data.centres import read_centreline
from msfilm.data.labels import NamingRules
from msfilm.data.manifests import read_manifests, read_requests
from msfilm.data.nifti import read_image, read_mask
from msfilm.data.nifti_bytes import read_nifti_bytes
from msfilm.data.sidecars import SIDECAR_COLUMNS, acquisition, merge_sidecars, read_centres
from msfilm.data.slices import SliceSet
from msfilm.data.unpack import unpack
from msfilm.errors import MsfilmError
from msfilm.evaluate.plan import is_plan, read_plan
from msfilm.files import sha256_json
from msfilm.model.encode import CategoryEncoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, load_network, save_network
from msfilm.train.grid import read_grid
from msfilm.train.state import load_state, save_state

SECONDS = 3.0
MEGABYTES = 100.0   # of a file of some kilobytes; packed ones may hold a thousand times as much


class LawBroken(AssertionError):
    """What a fuzzer looks for."""


@contextmanager
def lawful(megabytes: float | None = MEGABYTES, seconds: float = SECONDS):
    """Only msfilm's own errors come out, within time and memory; ``kept`` says whether the input was accepted."""
    kept = [True]
    started = time.process_time()
    if megabytes is not None:
        tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield kept
    except MsfilmError as error:
        kept[0] = False
        text = str(error)
        if not (error.code and error.what and text.startswith(f"[{error.code}]")):
            raise LawBroken(f"an error that does not say what is wrong: {text!r}") from error
        if len(text) > 20_000:
            raise LawBroken(f"an error of {len(text)} letters") from error
    finally:
        peak = tracemalloc.get_traced_memory()[1] / 1e6 if megabytes is not None else 0.0
        if megabytes is not None:
            tracemalloc.stop()
    took = time.process_time() - started
    if took > seconds:
        raise LawBroken(f"took {took:.1f} s")
    if megabytes is not None and peak > megabytes:
        raise LawBroken(f"took {peak:.0f} MB, more than {megabytes:.0f}")


def write(folder: Path, name: str, content: bytes) -> Path:
    """The file of this name below ``folder``, made anew."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def nifti(content: bytes, folder: Path) -> bool:
    """A scan and a mask: finite, within bounds, and nibabel reads the same values where it reads the file."""
    path = write(folder, "a.nii.gz" if content[:2] == b"\x1f\x8b" else "a.nii", content)
    with lawful(megabytes=12):   # a block of the reader, what zlib gives out at once, and the cap
        read_nifti_bytes(path, max_bytes=20_000)
    volume = None
    with lawful() as kept:
        volume = read_image(path)
    mask = None
    with lawful():
        mask = read_mask(path)
    if mask is not None and not set(np.unique(mask.data)) <= {0, 1}:
        raise LawBroken("a mask of other values than 0 and 1")
    if not kept[0]:
        return False
    if volume.data.dtype != np.float32 or not np.isfinite(volume.data).all() or not np.isfinite(volume.affine).all():
        raise LawBroken("accepted, and not finite")
    if min(volume.data.shape) < 1 or volume.data.ndim != 3 or not (volume.voxel_mm > 0).all():
        raise LawBroken(f"accepted, with shape {volume.data.shape} and voxels of {volume.voxel_mm}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = nib.load(path)
            theirs = np.asarray(other.dataobj, np.float64).reshape(other.shape[:3], order="F")
    except Exception:   # nibabel refuses: nothing to compare with
        return True
    data, affine = volume.to_file_order(volume.data)
    if "NIfTI does not know; some readers" in " ".join(volume.notes):   # nibabel leaves such a form out
        return True
    mm = {1: 1e3, 3: 1e-3}.get(int(other.header["xyzt_units"]) & 7, 1.0)   # nibabel keeps the file's own unit
    theirs_mm = other.affine * np.array([[mm], [mm], [mm], [1.0]])
    if data.shape != theirs.shape or not np.allclose(data, theirs, rtol=1e-5, atol=1e-30):
        raise LawBroken("nibabel reads other values")
    if not np.allclose(affine, theirs_mm, rtol=1e-4, atol=1e-3 * max(1.0, np.abs(affine).max())):
        raise LawBroken(f"nibabel has another affine: {theirs_mm.tolist()}, here {affine.tolist()}")
    return True


def packed_nifti(content: bytes, folder: Path) -> bool:
    """The same, packed whole."""
    return nifti(gzip.compress(content, 1, mtime=0), folder)


def sidecar(content: bytes, folder: Path) -> bool:
    """Values are numbers that can be meant, or unknown."""
    path = write(folder, "sub-01_T2w.json", content)
    with lawful() as kept:
        fields, faults = merge_sidecars([path])
        values, more = acquisition(fields, path)
        kept[0] = not faults and not more
        if set(values) != set(SIDECAR_COLUMNS):
            raise LawBroken(f"columns {sorted(values)}")
        for name, value in values.items():
            if name == "manufacturer":
                fine = value is None or (isinstance(value, str) and value)
            else:
                fine = isinstance(value, float) and (math.isnan(value) or 0 < value < 1000)
            if not fine:
                raise LawBroken(f"{name} = {value!r}")
        [str(fault) for fault in faults + more]
    return kept[0]


def participants(content: bytes, folder: Path) -> bool:
    """Centres are texts (empty where the table leaves them so), or the fault is named."""
    write(folder, "participants.tsv", content)
    with lawful() as kept:
        centres, faults = read_centres(folder)
        kept[0] = not faults
        if any(not who.startswith("sub-") or not isinstance(centre, str) for who, centre in centres.items()):
            raise LawBroken(f"centres {centres}")
    return kept[0]


def manifest(content: bytes, folder: Path) -> bool:
    """Every path stays below the folder, every size is a size."""
    write(folder, "manifests/a.json", content)
    write(folder, "manifests/on_request/b.json", content)
    found = {}
    with lawful() as kept:
        found = read_manifests(folder / "manifests")
    with lawful():
        read_requests(folder / "manifests")
    for one in found.values():
        for entry in one.files:
            if not (folder / entry.path).resolve().is_relative_to(folder.resolve()) or not 0 <= entry.bytes < 2**51:
                raise LawBroken(f"{entry}")
    return kept[0]


def centreline(content: bytes, folder: Path) -> bool:
    """Points are finite."""
    path, points = write(folder, "a.csv", content), np.zeros((0, 3))
    with lawful() as kept:
        points = read_centreline(path)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise LawBroken(f"points {points}")
    return kept[0]


def naming(content: bytes, folder: Path) -> bool:
    """Rules that are accepted can be asked about any name, quickly."""
    path = write(folder, "msfilm.yml", content)
    with lawful() as kept:
        rules = NamingRules.from_file(path)
        for text in ("seg-manual", "lesion-manual-rater2", "a" * 60 + "-" + "1" * 60, ""):
            rules.kind_of(text)
        for stem in ("sub-01_T2w", "sub-01_ses-02_acq-ax_run-1_T2starw", "sub-" + "x-" * 40 + "_T2w"):
            rules.takes(stem)
            rules.contrast_of(stem)
        rules.label_folders(folder)
    return kept[0]


def names(listed: list[str], folder: Path) -> bool:
    """A folder of files with any names at all."""
    root = folder / "data"
    shutil.rmtree(root, ignore_errors=True)
    (root / "sub-01" / "anat").mkdir(parents=True)
    for name in listed:
        try:
            write(root / "sub-01" / "anat", name, b"{}")
        except (OSError, ValueError):   # a name that this system does not take
            continue
    with lawful() as kept:
        table = find_volumes(root)
        if not table.index.is_unique or "cord" not in table:
            raise LawBroken(f"{table}")
    return kept[0]


def grid(content: bytes, folder: Path) -> bool:
    """A grid and a plan: all jobs can be made of what is accepted."""
    path = write(folder, "a.yml", content)
    with lawful() as kept:
        read_grid(path).jobs()
    with lawful() as planned:
        if is_plan(path):
            read_plan(path).as_dict()
    return kept[0] or planned[0]


def small_network() -> Network:
    """With a code and a card."""
    model = UNet(UNetConfig(depth=1, filters=1, n_codes=2, film_width=2))
    return Network(model, CategoryEncoder("contrast", ("T2star", "T2w")), {"seed": 1})


def network_json(content: bytes, folder: Path) -> bool:
    """Beside weights that are right; hashes are not trusted to be honest."""
    place = folder / "network"
    if not (place / "weights.safetensors").exists():
        save_network(place, small_network())
    write(place, "network.json", content)
    with lawful() as kept:
        load_network(place).model(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2))
    return kept[0]


def honest(content: object) -> bytes:
    """A network.json or slices.json whose hashes fit whatever it says."""
    if isinstance(content, dict):
        content = dict(content)
        content.pop("index_sha256", None)
        try:
            for name in ("network", "card"):
                if name in content:
                    content[f"{name}_sha256"] = sha256_json(content[name])
            if "scans" in content:
                content["index_sha256"] = sha256_json(content)
        except ValueError:   # no JSON: NaN, or half a letter
            pass
    try:
        return json.dumps(content).encode()
    except ValueError:   # a number of more digits than Python writes
        return b"{" + b"1" * 5000 + b"}"


def weights(content: bytes, folder: Path) -> bool:
    """The weights' file, with the hash that it has."""
    place = folder / "network"
    if not (place / "network.json").exists():
        save_network(place, small_network())
    described = json.loads((place / "network.json").read_bytes())
    write(place, "weights.safetensors", content)
    described["weights_sha256"] = hashlib.sha256(content).hexdigest()
    write(place, "network.json", json.dumps(described).encode())
    with lawful() as kept:
        load_network(place)
    return kept[0]


def checkpoint(content: bytes, folder: Path) -> bool:
    """state.safetensors."""
    model = UNet(UNetConfig(depth=1, filters=1))
    with lawful() as kept:
        history = load_state(write(folder, "state.safetensors", content), model, torch.optim.Adam(model.parameters()))
        if not isinstance(history, list):
            raise LawBroken(f"history {history!r}")
    return kept[0]


def checkpoint_bytes(folder: Path) -> bytes:
    model = UNet(UNetConfig(depth=1, filters=1))
    save_state(folder / "s.safetensors", model, torch.optim.Adam(model.parameters()), [{"epoch": 1, "val_dice": 0.5}])
    return (folder / "s.safetensors").read_bytes()


def slice_set(spoilt: dict[str, bytes], folder: Path) -> bool:
    """A folder of slices of which some files hold other bytes; ``verify=False`` is only for what was verified."""
    place = folder / "slices"
    for name, content in spoilt.items():
        write(place, name, content)
    with lawful() as kept:
        SliceSet.load(place).described()
    return kept[0]


def archive(content: bytes, folder: Path) -> bool:
    """Unpacked, nothing lies outside the folder."""
    name = "a.zip" if content[:2] == b"PK" else "a.tar.gz" if content[:2] == b"\x1f\x8b" else "a.tar"
    place = folder / "archive"
    shutil.rmtree(place, ignore_errors=True)
    path = write(place, name, content)
    with lawful() as kept:
        unpack(path, place / "in" / "here", max_bytes=100_000, max_files=20)
    if {one.name for one in place.iterdir()} - {name, "in"}:
        raise LawBroken(f"outside the folder: {sorted(place.iterdir())}")
    if sum(one.stat().st_size for one in (place / "in").rglob("*") if one.is_file()) > 100_000:
        raise LawBroken("more bytes than allowed")
    return kept[0]
