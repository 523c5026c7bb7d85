"""The command line as a shell sees it: exit codes, one-line errors, and the whole way from phantom to mask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

LABELS = "derivatives/labels"


def run(*words, cwd, code=0, env=None):
    """Run ``msfilm`` and check its exit code; what it wrote comes back."""
    done = subprocess.run(
        [sys.executable, "-m", "msfilm", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert code == 0 or "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a space and a non-ASCII letter in its name, holding a cohort, its slices and a short run."""
    folder = tmp_path_factory.mktemp("my scans é")
    run("phantom", "a cohort", "--patients", 5, "--seed", 3, "--quiet", cwd=folder)
    run("prepare", "a cohort", "the slices", "--quiet", cwd=folder)
    small = ["--depth", 1, "--filters", 4, "--batch-size", 16, "--device", "cpu", "--precision", "fp32", "--lr", 0.01]
    run("train", "the slices", "a run", "--conditioning", "contrast", "--epochs", 3, *small, "--quiet", cwd=folder)
    return folder


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    started = time.perf_counter()
    said = run("--help", cwd=tmp_path).stdout
    assert time.perf_counter() - started < 5
    for command in ("phantom", "fetch", "prepare", "train", "evaluate", "segment", "course"):
        assert command in said
    code = "import sys, msfilm.cli; sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'nibabel')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_from_phantom_to_report(place):
    counts = json.loads((place / "a run" / "config.json").read_text())["counts"]
    assert counts["train_volumes"] + counts["val_volumes"] in (16, 17), "3 of 5 train, 1 chooses, 1 is for the test"
    done = run("evaluate", "a run", "the slices", cwd=place)
    assert {"network", "threshold", "all-cord"} <= {
        line.split()[0] for line in done.stdout.splitlines() if line.strip()
    }
    assert json.loads((place / "a run" / "evaluate-test" / "metrics.json").read_text())


def test_segment_writes_in_the_scans_own_space(place, mirror):
    phantom = place / "a cohort" / "sub-002" / "anat" / "sub-002_T2w.nii.gz"
    labels = place / "a cohort" / LABELS / "sub-002" / "anat"
    real = mirror / "sct_testing_data" / "t2s"
    for image, cord, contrast in [
        (phantom, labels / "sub-002_space-T2w_label-SC_mask.nii.gz", "T2w"),
        (real / "t2s.nii.gz", real / "t2s_seg.nii.gz", "T2star"),
    ]:
        out = place / "out here" / f"{contrast} é.nii.gz"
        done = run("segment", image, out, "--contrast", contrast, "--cord", cord, "--weights", "a run", cwd=place)
        assert "mm3 of lesion" in done.stdout
        made, scan = nib.load(out), nib.load(image)
        assert made.shape == scan.shape and np.allclose(made.affine, scan.affine)
        assert set(np.unique(made.get_fdata())) <= {0, 1}
        assert json.loads((place / "out here" / f"{contrast} é.json").read_text())


def test_a_run_is_not_overwritten_and_goes_on_as_it_was_set(place):
    done = run("train", "the slices", "a run", "--epochs", 3, cwd=place, code=1)
    assert done.stderr.startswith("msfilm: [RUN-EXISTS]") and len(done.stderr.splitlines()) == 1
    before = (place / "a run" / "weights.safetensors").read_bytes()
    run("train", "the slices", "a run", "--resume", "--quiet", cwd=place)
    assert (place / "a run" / "weights.safetensors").read_bytes() == before, "it was complete"
    assert "[RUN-CONFIG]" in run("train", "the slices", "a run", "--resume", "--lr", 0.5, cwd=place, code=1).stderr


def test_prepare_lists_what_it_refuses_and_keeps_the_rest(place, tmp_path):
    import shutil

    shutil.copytree(place / "a cohort", tmp_path / "damaged")
    scan = tmp_path / "damaged" / "sub-004" / "anat" / "sub-004_T2star.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])
    done = run("prepare", "damaged", "slices", "--quiet", cwd=tmp_path, code=1)
    assert "20 volumes" in done.stdout and "1 refused" in done.stdout
    assert "refused: [NIFTI-" in done.stderr and "sub-004_T2star.nii.gz" in done.stderr
    assert (tmp_path / "slices").is_dir()


def test_phantom_straight_to_slices_equals_the_way_through_files(place):
    run("phantom", "direct", "--slices", "--patients", 5, "--seed", 3, "--quiet", cwd=place)
    from msfilm.data.slices import SliceSet

    direct, files = SliceSet.load(place / "direct"), SliceSet.load(place / "the slices")
    assert list(direct.scans) == list(files.scans)
    assert all((direct.masks[name] == files.masks[name]).all() for name in files.masks)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["prepare", "nowhere", "out"], 1, "nowhere"),
        (["phantom", "cohort", "--profile", "cours"], 2, "did you mean 'course'"),
        (["phantom", "cohort", "--patients", "0"], 2, "patients=0"),
        (["fetch", "sct_testing"], 1, "did you mean 'sct_testing_data'"),
        (["fetch", "sct_tutorial_data", "--file", "t2.nii.gz"], 1, "single_subject/data/t2_ms/t2.nii.gz"),
        (["course", "--profile", "quik"], 2, "did you mean 'quick'"),
        (["course", "--only", "99"], 2, "99"),
        (["train", "nowhere", "run", "--conditioning", "contrasts"], 2, "did you mean 'contrast'"),
        (["train", "nowhere", "run"], 1, "nowhere"),
        (
            ["segment", "nowhere.nii.gz", "out.nii.gz", "--contrast", "T2w", "--cord", "c.nii.gz", "--weights", "x"],
            2,
            "'x'",
        ),
        (["trian"], 2, "did you mean 'train'"),
        (["train", "slices", "run", "--epocs", "3"], 2, "did you mean '--epochs'"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(tmp_path, words, code, said):
    done = run(*words, cwd=tmp_path, code=code)
    assert said in done.stderr
    assert done.stderr.startswith("msfilm: [") and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_fetch_lists_and_fetches(tmp_path, mirror):
    env = {"MSFILM_MIRROR": str(mirror)}
    assert "licence MIT" in run("fetch", cwd=tmp_path).stdout
    assert "single_subject/data/t2_ms/t2.nii.gz" in run("fetch", "sct_tutorial_data", "--list", cwd=tmp_path).stdout
    words = ["fetch", "sct_tutorial_data", "--file", "single_subject/data/t2_ms/t2.nii.gz"]
    assert run(*words, cwd=tmp_path, env=env).stdout.splitlines()[-1] == str(mirror / "sct_tutorial_data")
    run(*words, "--out", "here é", cwd=tmp_path, env=env)
    assert nib.load(tmp_path / "here é" / "sct_tutorial_data" / words[-1]).shape == (320, 256, 19)
