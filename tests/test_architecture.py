"""Imports point one way: data, model <- phantom, train <- evaluate <- view <- course, cli; and some need no nibabel."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "msfilm"

# Room or module -> what it may import of msfilm, itself always included. What stands on no line belongs to no room.
GROUND = {"msfilm", "errors", "files", "locks", "places"}  # under everything
MAY_IMPORT = {
    "errors": set(),
    "files": {"msfilm", "errors"},
    "locks": {"errors"},
    "places": {"errors"},
    "profiles": {"errors"},
    "machine": {"files"},
    "nbcheck": {"errors"},
    "data": GROUND,
    "model": GROUND,
    "phantom": GROUND | {"data"},
    "train": GROUND | {"data", "model"},
    "evaluate": GROUND | {"data", "model", "phantom", "train"},  # the phantom is evaluated too
    "view": GROUND | {"data", "model", "phantom", "train", "evaluate"},
    "pages": {"files"},
    "notebook": {"files", "machine"},
    "stills": {"notebook"},
    "course": GROUND | {"profiles", "machine", "notebook", "pages"},
    "cli": GROUND | {"profiles", "data", "model", "phantom", "train", "evaluate", "view", "course"},
    "__main__": {"cli"},
    "__init__": set(),
}


def _imports(path):
    """Names right under msfilm that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "msfilm" else [node.module]
            )
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "msfilm":
                known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
                yield parts[1] if known else "msfilm"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in MAY_IMPORT, f"{room}: say in this test what it may import"
    for name in _imports(path):
        assert name == room or name in MAY_IMPORT[room], f"msfilm.{room} must not import msfilm.{name}"


WITHOUT_NIBABEL = (
    "model.unet",
    "model.weights",
    "train.loop",
    "data.slices",
    "data.split",
    "data.stream",
    "phantom",
    "phantom.direct",
)


@pytest.mark.parametrize("module", WITHOUT_NIBABEL)
def test_a_machine_that_only_trains_needs_no_nibabel(module):
    code = (
        "import sys, importlib\n"
        "sys.modules['nibabel'] = None  # from now on importing it raises ImportError\n"
        f"importlib.import_module('msfilm.{module}')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_the_package_is_light():
    code = "import sys, msfilm, msfilm.data, msfilm.model, msfilm.phantom, msfilm.train, msfilm.evaluate, msfilm.view\n"
    code += "heavy = {'torch', 'pandas', 'nibabel', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy) if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
