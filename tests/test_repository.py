"""The files round the package: environments that agree, versions that are pinned, words that must not be there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from msfilm.errors import InputError
from msfilm.places import shipped

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
TESTS = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
TEXT = {".py", ".toml", ".txt", ".md", ".yml", ".cff", ".json", ".ipynb", ".csv", ".css", ""}


def _constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9._]*", pin) for pin in pins), (
        "one exact public version a line"
    )
    return {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in pins}


def _files():
    """Every file that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_every_dependency_is_pinned_within_its_range():
    pins = _constraints()
    assert pins["torch"] == "2.13.0"
    for requirement in RUNTIME + TESTS:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
        assert any(part.operator == ">=" for part in requirement.specifier), f"{requirement}: a range with a lower end"


def test_the_installed_versions_are_the_pinned_ones():
    """No distribution comes in unpinned: what is installed here for msfilm[test] is in constraints.txt."""
    from importlib.metadata import PackageNotFoundError, distribution

    pins, seen, waiting = _constraints(), set(), [*RUNTIME, *TESTS]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        try:
            inside = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # another system's
        if not name.startswith(("nvidia-", "cuda-", "triton")):  # what a CUDA build of torch brings pins itself
            assert name in pins, f"{name} is installed and not pinned"
        waiting += [Requirement(line) for line in inside]


def test_torch_is_installed_first_and_exactly():
    commands = [
        line.strip() for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "pip install" in line
    ]
    assert commands[0].endswith("pip install torch==2.13.0")
    assert all("-c constraints.txt" in command for command in commands[1:])


def test_both_environment_files_are_equal_and_complete():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert text == (ROOT / "binder" / "environment.yml").read_text(encoding="utf-8")
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"]
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    lines += [line for part in environment["dependencies"] if isinstance(part, dict) for line in part["pip"]]
    listed = {re.split(r"[ =<>]", line)[0]: line for line in lines}
    spelt = {"torch": "pytorch-cpu", "jupyter-server": "jupyter_server", "SimpleITK": "simpleitk"}
    for requirement in [*RUNTIME, Requirement("nbval >= 0.11")]:
        line = listed[spelt.get(requirement.name, requirement.name)]
        assert str(requirement.specifier) in line.replace(" ", ""), f"{requirement} is {line!r} in environment.yml"
    for needed in ("jupyterlab", "ipywidgets", "matplotlib", "seaborn", "papermill", "nbval", "nibabel", "pytorch-cpu"):
        assert needed in listed


def test_binder_accepts_the_folder():
    tool = Path(sys.executable).with_name("jupyter-repo2docker")
    done = subprocess.run(
        [tool, "--debug", "--no-build", "."], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert (
        "binder/environment.yml" in said and "binder/postBuild" in said and "conda environment for python=3.11" in said
    )
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK) and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_wheel_carries_everything(tmp_path):
    """Installed from a wheel, outside the checkout, msfilm finds manifests, notebooks, results, style and tables."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    quiet = {"capture_output": True, "text": True, "check": True, "timeout": 300}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], **quiet)
    [wheel] = tmp_path.glob("msfilm-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], **quiet)
    code = (
        "import msfilm; from msfilm.places import shipped; from msfilm.data.fetch import read_manifests\n"
        "from msfilm.pages import _css; assert _css()\n"
        "print(msfilm.__file__, shipped('notebooks'), *read_manifests())\n"
        "print(shipped('results').name, *sorted(path.name for path in shipped('results').iterdir()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, **quiet).stdout
    assert str(site) in said and "_notebooks" in said and "sct_tutorial_data" in said
    kept = sorted(path.name for path in (ROOT / "benchmarks" / "results").iterdir())
    assert " ".join(["_results", *kept]) in said and "phantom.json" in kept
    inside = {path.relative_to(ROOT).as_posix() for path in _files() if path.is_relative_to(ROOT / "msfilm")}
    assert inside <= {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}


def test_a_checkout_finds_the_same_folders_and_a_source_archive_holds_them():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    for folder, inside in build["wheel"]["force-include"].items():
        assert shipped(inside.removeprefix("msfilm/_")) == ROOT / folder
        assert any(entry.split("/*")[0] == folder for entry in build["sdist"]["include"]), folder
    with pytest.raises(InputError, match="INSTALL-INCOMPLETE"):
        shipped("no-such-folder")


def test_nothing_unfinished_or_unsafe_or_from_one_machine():
    # Put together from halves, so that this file does not hold them.
    words = [
        a + b
        for a, b in [("TO", "DO"), ("FIX", "ME"), ("NotImplemented", "Error"), ("torch.lo", "ad("), ("pickle", ".lo")]
    ]
    words += [
        a + b
        for a, b in [("index", "-url"), ("py", "pi.org"), ("files.python", "hosted"), ("/wo", "rk/"), ("/tm", "p/w/")]
    ]
    words += [a + b for a, b in [("except", ":"), ("import pick", "le")]]
    for path in _files():
        if path.suffix in TEXT and path.name != "constraints.txt":
            text = path.read_text(encoding="utf-8")
            for word in words:
                assert word not in text, f"{path.relative_to(ROOT)} holds {word!r}"


def test_modules_are_small_and_say_what_they_are_for():
    for path in [path for path in _files() if path.suffix == ".py" and path.is_relative_to(ROOT / "msfilm")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 320, f"{path.relative_to(ROOT)} has {len(lines)} lines: does it hold two ideas?"
        assert lines[0].startswith('"""'), f"{path.relative_to(ROOT)}: its first line says what it is for"
        assert any(line.startswith("__all__") for line in lines), f"{path.relative_to(ROOT)} has no __all__"


@pytest.mark.parametrize("target", ["help", "-n course", "-n test", "-n test-long", "-n lab", "-n pretrained"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", *target.split()], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("course", "lab", "test", "test-long", "lint", "clean", "pretrained", "notebooks"):
        assert target != "help" or re.search(rf"^{name} ", done.stdout, re.MULTILINE)


def test_make_says_so_when_python_is_too_old(tmp_path):
    """With a 'python' that is older, or is not there, nothing is made and the message names the way out."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for python, said in [(old, "Python 3.9.1"), ("no-such-python", "no-such-python")]:
        done = subprocess.run(
            ["make", "course", f"PYTHON={python}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0 and said in done.stderr and "3.11 or newer" in done.stderr
        assert not (tmp_path / ".venv").exists()
