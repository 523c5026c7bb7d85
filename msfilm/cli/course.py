"""The command that runs the course."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msfilm.cli.app import app

__all__ = ["course"]


@app.command()
def course(
    profile: Annotated[str, typer.Option(help="quick, course or paper.")] = "course",
    only: Annotated[list[str] | None, typer.Option(help="Only this notebook, as 06 (may be repeated).")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("course"),
    timeout: Annotated[int, typer.Option(help="Seconds that one cell may take.")] = 1800,
    force: Annotated[bool, typer.Option("--force", help="Run also what is unchanged.")] = False,
) -> None:
    """Run the notebooks and write them as pages with an index. Exit code 1 if one failed."""
    from msfilm.course import run_course

    results = run_course(profile, only=only or (), out=out, timeout_s=timeout, force=force)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)
