"""The application that the commands hang on, and what they share."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

from msfilm import __version__
from msfilm.errors import MsfilmError, SettingError, suggest

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


# What the command line raises for wrong words; typer brings its own click from some version on.
_UsageError, _ClickError = typer.BadParameter.__mro__[1:3]
_STOPPED = 130  # what a shell says of a command that Ctrl-C ended


def main() -> None:
    """Run the command line.

    An msfilm error is one line and exit code 1, or 2 for a wrong setting, command or option; stopped by Ctrl-C: 130.
    """
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a letter that this terminal lacks stops nothing
    try:
        code = app(prog_name="msfilm", standalone_mode=False)
    except MsfilmError as error:
        _end(error, 2 if isinstance(error, SettingError) else 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.ctx.get_help())
            raise SystemExit(2) from None
        _end(_wrong_words(error), 2)
    if code == _STOPPED:
        more = ", with --resume," if sys.argv[1:2] == ["train"] else ""
        _end(f"stopped; no file is half-written. The same command{more} goes on", _STOPPED)
    raise SystemExit(code if isinstance(code, int) else 0)


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    """One line, without the line of code: who reads it typed a command."""
    kind = "warning" if category is UserWarning else category.__name__
    print(f"msfilm: {kind}: {message}", file=sys.stderr)


def _end(said: object, code: int) -> NoReturn:
    print(f"msfilm: {said}", file=sys.stderr)
    raise SystemExit(code) from None


def _wrong_words(error: Any) -> SettingError:
    """What is wrong with the words after ``msfilm``, with the one that was probably meant."""
    context, option = getattr(error, "ctx", None), getattr(error, "option_name", None)
    if context is None:
        return SettingError("CLI-ARGUMENT", error.format_message(), mend="see msfilm --help")
    commands, where = getattr(context.command, "commands", None), context.command_path
    if type(error).__name__ == "NoSuchOption" and option:
        known = [name for one in context.command.params for name in (*one.opts, *one.secondary_opts)]
        known = [name for name in (*known, "--help") if name.startswith("-")]
        return SettingError("CLI-OPTION", f"{where} has no option {option}", mend=suggest(option, known))
    typed = [word for word in sys.argv[1:] if not word.startswith("-")]
    if commands and typed and typed[0] not in commands:
        return SettingError("CLI-COMMAND", f"there is no command '{typed[0]}'", mend=suggest(typed[0], commands))
    said = " ".join(error.format_message().split()).rstrip(".")
    return SettingError("CLI-ARGUMENT", f"{where}: {said}", mend=f"see {where} --help")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"msfilm {__version__}")
        raise typer.Exit()


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


