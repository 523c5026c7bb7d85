"""Run the course: every notebook through papermill, each as a page, and an index with times, memory and failures."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msfilm.errors import SettingError, suggest
from msfilm.files import made_by, read_json, sha256_file, write_json
from msfilm.notebook import declared_parameters, execute, headline, source_cells
from msfilm.places import shipped
from msfilm.profiles import profile as profile_named

__all__ = ["NotebookResult", "run_course"]


@dataclass(frozen=True)
class NotebookResult:
    """What became of one notebook: ``status`` is 'ok', 'failed' or 'not run'; ``fresh`` says that it ran just now."""

    name: str
    title: str
    question: str
    status: str = "not run"
    error: str = ""
    profile: str = ""
    seconds: float = 0.0
    peak_mb: int = 0
    page: str = ""
    key: str = ""
    fresh: bool = False


def run_course(
    profile: str = "course",
    *,
    only: Iterable[str] = (),
    out: str | Path = "course",
    notebooks_dir: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: int = 1800,
    force: bool = False,
    progress: bool = True,
) -> list[NotebookResult]:
    """Run the notebooks in the order of their numbers; write a page for each and ``out/index.html``.

    A notebook that fails stops no other one. One whose cells, parameters, package and torch are as they were when it
    last went well is not run again. Data go to ``out/data``, trained networks to ``out/runs``.

    Args:
        profile: 'quick', 'course' or 'paper'.
        only: numbers ('06' or '6') or file names of the notebooks to run; all of them by default.
        out: folder of the pages.
        notebooks_dir: where the notebooks lie; by default those that come with msfilm.
        parameters: further values, for the notebooks that declare such a parameter.
        timeout_s: seconds that one cell may take.
        force: run also what is unchanged.
        progress: say on standard output what runs, and for how long.

    Returns:
        One result a notebook, in order, also for those that did not run this time.

    Raises:
        SettingError: ``PROFILE-UNKNOWN``, ``COURSE-ONLY`` (no such notebook), ``COURSE-EMPTY`` (no notebook at all),
            ``PARAM-UNKNOWN`` (a parameter that none of the notebooks to run declares).
    """
    name = profile_named(profile).name
    # Relative to the kernels' working folder (``out``), so that no page shows a path of this machine.
    given = {"PROFILE": name, "DATA_DIR": "data", "RUN_DIR": "runs", **(parameters or {})}
    out, folder = Path(out).resolve(), Path(notebooks_dir or shipped("notebooks")).resolve()
    sources = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise SettingError("COURSE-EMPTY", "no numbered notebook (NN_name.ipynb) here", where=folder)
    chosen = _chosen(sources, only)
    declared = {source: declared_parameters(source) for source in chosen}
    _refuse_unknown(parameters or {}, declared.values())

    out.mkdir(parents=True, exist_ok=True)
    record, package, started = out / "course.json", _package_key(), time.perf_counter()
    earlier = read_json(record)["notebooks"] if record.is_file() else {}
    results = {source: _known(source, earlier.get(source.stem, {})) for source in sources}
    for count, source in enumerate(chosen, start=1):
        wanted = {key: value for key, value in given.items() if key in (declared[source] or ())}
        mirror = os.environ.get("MSFILM_MIRROR")  # with it pages show public scans that may be missing without
        key = sha256(json.dumps([source_cells(source), wanted, package, mirror], default=str).encode()).hexdigest()
        before, said = results[source], f"[{count}/{len(chosen)}] {source.stem}"
        if not force and before.status == "ok" and before.key == key and (out / before.page).is_file():
            _say(progress, f"{said}: unchanged, not run again")
            continue
        _say(progress, f"{said} ...")
        run = execute(source, out / "notebooks" / source.name, wanted, cwd=out, timeout_s=timeout_s, progress=progress)
        error = run.error or ("no cell is tagged 'parameters'" if declared[source] is None else "")
        result = results[source] = replace(
            before,
            status="failed" if error else "ok",
            error=error,
            profile=name,
            seconds=run.seconds,
            peak_mb=run.peak_mb,
            page=f"{source.stem}.html",
            key=key,
            fresh=True,
        )
        _write_one_page(result, out, [other.stem for other in sources if results[other].page or other in chosen])
        _say(
            progress,
            f"{said}: {result.status}, {result.seconds:.0f} s, peak {result.peak_mb} MB {result.error}".rstrip(),
        )
        _write_results(record, list(results.values()))
    _write_results(record, list(results.values()))
    _summarise([results[source] for source in chosen], out, time.perf_counter() - started, progress)
    return list(results.values())


def _chosen(sources: Sequence[Path], only: Iterable[str]) -> list[Path]:
    wanted: set[Path] = set()
    for name in only:
        stem = name.removesuffix(".ipynb")
        matches = [
            source
            for source in sources
            if source.stem == stem or (stem.isdigit() and int(source.stem.split("_")[0]) == int(stem))
        ]
        if not matches:
            raise SettingError(
                "COURSE-ONLY",
                f"no notebook is called {name!r}",
                mend=suggest(name, [source.stem for source in sources]),
            )
        wanted.update(matches)
    return [source for source in sources if not wanted or source in wanted]


def _refuse_unknown(parameters: Mapping[str, Any], declared: Iterable[set[str] | None]) -> None:
    names = set().union(*(found or () for found in declared))
    for name in parameters:
        if name not in names:
            raise SettingError(
                "PARAM-UNKNOWN", f"no notebook to run has a parameter {name!r}", mend=suggest(name, names)
            )


def _known(source: Path, earlier: Mapping[str, Any]) -> NotebookResult:
    """The result of an earlier run, under the title that the notebook has now."""
    title, question = headline(source)
    kept = {field.name: earlier[field.name] for field in fields(NotebookResult) if field.name in earlier}
    about = {"name": source.stem, "title": title or source.stem, "question": question, "fresh": False}
    return NotebookResult(**{**kept, **about})


def _write_one_page(result: NotebookResult, out: Path, order: Sequence[str]) -> None:
    import nbformat

    from msfilm.pages import write_page

    executed, place = out / "notebooks" / f"{result.name}.ipynb", order.index(result.name)
    links = [(f"{name}.html", name.replace("_", " ")) for name in order]
    write_page(
        out / result.page,
        nbformat.read(executed, as_version=4) if executed.is_file() else None,
        title=result.title,
        error=result.error,
        made=_foot(),
        previous=links[place - 1] if place else None,
        following=links[place + 1] if place + 1 < len(links) else None,
    )


def _write_results(record: Path, results: Sequence[NotebookResult]) -> None:
    from msfilm.machine import machine
    from msfilm.pages import write_index

    kept = {result.name: asdict(result) for result in results if result.status != "not run"}
    write_json(record, {"made_by": made_by(), "machine": machine(), "notebooks": kept})
    total = sum(result.seconds for result in results)
    write_index(
        record.with_name("index.html"),
        [asdict(result) for result in results],
        made=_foot(),
        facts=[f"Machine: {machine()}", f"All notebooks together: {total / 60:.1f} minutes"],
    )


def _summarise(results: Sequence[NotebookResult], out: Path, seconds: float, progress: bool) -> None:
    failed = [result for result in results if result.status == "failed"]
    unchanged = sum(not result.fresh for result in results)
    _say(
        progress,
        f"{len(results) - len(failed)} of {len(results)} notebooks are well ({unchanged} of them unchanged), "
        f"{len(failed)} failed, {seconds:.0f} s in all; open {out / 'index.html'}",
    )
    for result in failed:
        print(f"failed: {result.name}: {result.error}", file=sys.stderr)


def _package_key() -> str:
    """Hash of what notebooks use besides their cells: msfilm's files, Python, torch, and whether scans are near."""
    digest = sha256(f"{platform.python_version()} {version('torch')} {bool(os.environ.get('MSFILM_MIRROR'))}".encode())
    package = Path(__file__).resolve().parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and not {"__pycache__", "_notebooks"} & set(path.parts):
            digest.update(f"{path.relative_to(package).as_posix()} {sha256_file(path)}".encode())
    return digest.hexdigest()


def _foot() -> str:
    made = made_by()
    return " ".join(f"Made by msfilm {made['version']} {made['commit']} on {made['date']}".split()) + "."


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, flush=True)
