"""The notebooks as files, for the tests: which there are, their cells by tag, and what a cell printed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
every_notebook = pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda source: source.stem)


def numbered(number: str) -> Path:
    """The notebook with this number."""
    [source] = [source for source in NOTEBOOKS if source.stem.startswith(f"{number}_")]
    return source


def read(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(source, as_version=4)


def code_cells(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, start: str) -> dict[str, nbformat.NotebookNode]:
    """Tag -> cell, for every tag that begins so; each stands once."""
    found = [(tag, cell) for cell in notebook.cells for tag in cell.metadata.get("tags", ()) if tag.startswith(start)]
    assert len(dict(found)) == len(found), f"a tag {start}.. stands twice"
    return dict(found)


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")
