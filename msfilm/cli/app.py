"""The application that the commands hang on, and what they share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from msfilm import __version__
from msfilm.errors import MsfilmError, SettingError

__all__ = ["app", "main"]

# Functions are imported inside the commands: `msfilm --help` should not wait for torch.
app = typer.Typer(
    help="How does a lesion-segmentation network generalise across MRI contrasts?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]


def main() -> None:
    """Run the command line. An msfilm error is one line and exit code 1, or 2 for a wrong setting."""
    try:
        app(prog_name="msfilm")
    except MsfilmError as error:
        print(f"msfilm: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SettingError) else 1) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(f"msfilm {__version__}")
        raise typer.Exit()


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


