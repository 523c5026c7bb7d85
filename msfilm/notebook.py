"""One notebook: what its file says, and running it through papermill with nothing left unseen."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msfilm.files import sha256_file

__all__ = ["Execution", "declared_parameters", "execute", "headline", "hidden_errors", "keep_stills", "source_cells"]

_WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_UNREADABLE = (OSError, ValueError, AttributeError, KeyError, TypeError)  # what a file that is no notebook raises


@dataclass(frozen=True)
class Execution:
    """How running a notebook went: ``error`` is empty where it went well."""

    error: str
    seconds: float
    peak_mb: int


def headline(source: Path) -> tuple[str, str]:
    """Title (first heading) and question (the paragraph after it), as Markdown text; '' for what is not there."""
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    except _UNREADABLE:
        return "", ""
    for text in texts:
        blocks = [block.strip() for block in text.split("\n\n") if block.strip()]
        heading, _, rest = blocks[0].partition("\n") if blocks else ("", "", "")
        if heading.startswith("# "):
            question = rest.strip() or (blocks[1] if len(blocks) > 1 else "")
            return heading[2:].strip(), "" if question.startswith("#") else question
    return "", ""


def declared_parameters(source: Path) -> set[str] | None:
    """Names in the cell tagged 'parameters'; None without such a cell, or where the file cannot be read."""
    import papermill

    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        if any("parameters" in cell["metadata"].get("tags", ()) for cell in cells):
            return set(papermill.inspect_notebook(str(source)))
    except _UNREADABLE:
        pass  # running it says what is wrong with it
    return None


def source_cells(source: Path) -> list[Any]:
    """What a notebook does: its cells without their outputs; the hash of a file that does not parse."""
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        return [[cell["cell_type"], cell["source"], cell["metadata"].get("tags")] for cell in content["cells"]]
    except _UNREADABLE:
        return [sha256_file(source)]


def hidden_errors(notebook: Mapping[str, Any]) -> list[str]:
    """Errors that an Output widget swallowed: such a cell ends as if all were well, and only its state tells."""
    models = notebook.get("metadata", {}).get("widgets", {}).get(_WIDGET_STATE, {}).get("state", {})
    outputs = (output for model in models.values() for output in model.get("state", {}).get("outputs", ()))
    return [f"{output['ename']}: {output['evalue']}" for output in outputs if output.get("output_type") == "error"]


def keep_stills(notebook: Any) -> Any:
    """Take out widgets, which need their kernel; the still picture that stands beside each takes its place.

    Args:
        notebook: a notebook's node, changed in place.
    """
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "text/html" in output.get("data", {}):
            output.data.pop(_WIDGET_VIEW, None)
    return notebook


def execute(
    source: Path, executed: Path, parameters: Mapping[str, Any], *, cwd: Path, timeout_s: int, progress: bool = True
) -> Execution:
    """Run a notebook into ``executed``, as far as it comes, and say how it went; it raises nothing.

    Args:
        source: the notebook.
        executed: where it goes with its outputs, without widget state.
        parameters: values for its parameters cell.
        cwd: working folder of the kernel.
        timeout_s: seconds that one cell may take.
        progress: a bar over the cells, on a terminal.
    """
    import nbformat
    import papermill

    from msfilm.machine import PeakMemory

    executed.parent.mkdir(parents=True, exist_ok=True)
    executed.unlink(missing_ok=True)
    error, started = "", time.perf_counter()
    with _environment(), PeakMemory() as memory:
        try:
            papermill.execute_notebook(
                source,
                executed,
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=cwd,
                execution_timeout=timeout_s,
                progress_bar=progress and sys.stderr.isatty(),
                config=_kernel_config(),
            )
        except papermill.PapermillExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}"
        except Exception as failure:  # unreadable, timed out, kernel died: the caller goes on with the next notebook
            error = f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - started
    if executed.is_file():
        notebook = nbformat.read(executed, as_version=4)
        error = error or "".join(f"inside a widget: {found}" for found in hidden_errors(notebook)[:1])
        nbformat.write(keep_stills(notebook), executed)
    line = next((line.strip() for line in error.splitlines() if line.strip()), "")
    return Execution(line[:500], round(seconds, 1), memory.peak_mb)


def _kernel_config() -> Any:
    """Unix sockets, which no other user of the machine can reach, where their path fits into the 100 bytes allowed."""
    from jupyter_core.paths import jupyter_runtime_dir
    from traitlets.config import Config

    fits = os.name == "posix" and len(os.fsencode(jupyter_runtime_dir())) < 45
    return Config({"KernelManager": {"transport": "ipc"}}) if fits else Config()


@contextmanager
def _environment() -> Iterator[None]:
    """What kernels inherit: this interpreter's own kernel first, a core left free, the mirror's path made absolute."""
    wanted = {"JUPYTER_PREFER_ENV_PATH": "1"}
    if "OMP_NUM_THREADS" not in os.environ:
        # One core is left for everything else: threads that share out each small convolution wait for the slowest one,
        # and on a busy machine as many threads as cores were ten times slower than one fewer.
        wanted["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) - 1))
    if os.environ.get("MSFILM_MIRROR"):
        wanted["MSFILM_MIRROR"] = str(Path(os.environ["MSFILM_MIRROR"]).resolve())
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
