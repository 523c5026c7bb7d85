"""Writing files so that a crash leaves the old one or the new one, never half of either; hashes; and what made a
file.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import numpy as np
import psutil

from msfilm import __version__
from msfilm.errors import InputError, RunError

__all__ = ["atomic_folder", "atomic_path", "check_aliases", "json_bytes", "made_by", "read_json", "ready_folder",
           "sha256_array", "sha256_file", "sha256_json", "shallow", "strangers", "write_json"]

_NOBODYS = (".DS_Store", "Thumbs.db", "desktop.ini")
_mine: set[Path] = set()   # temporary folders that this process fills
_guard = threading.Lock()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync it to disk and move it into place in one step.

    The temporary name ends like the final one (``.nii.gz`` stays ``.nii.gz``), since writers look at the ending.
    On an exception the temporary file is removed and an older ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` and put it in ``path``'s place on success; a link is followed.

    On Linux the older folder and the new one change places in one step. Elsewhere the older one is moved aside first
    and removed last, so there is always a complete one on disk: after a kill in between, the next start brings it back.

    Raises:
        OSError: also before anything is written, where ``path`` cannot be replaced (a mount point, a file).
    """
    path, fact = _real(path)
    if fact or path.is_file():
        raise OSError(errno.EBUSY, fact or "is a file, no folder", str(path))
    _settle(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _guard:
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-{_host()}-{os.getpid()}-", dir=path.parent))
        _mine.add(temporary)
    temporary.chmod(0o755)  # mkdtemp makes it private; the result is an ordinary folder
    old = temporary.with_name(temporary.name + "-old")
    try:
        yield temporary
        for left in reversed(range(10)):   # another process may put its folder there at this very moment
            try:
                if not _exchange(temporary, path):
                    if path.exists():
                        shutil.rmtree(old, ignore_errors=True)
                        os.replace(path, old)
                    os.replace(temporary, path)
                break
            except OSError:
                if not left or not temporary.exists():
                    raise
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        _mine.discard(temporary)


def ready_folder(path: str | Path, *, target: str, write: str) -> Path:
    """The folder that ``path`` stands for, links followed, where ``atomic_folder`` can replace it: to be asked before
    the work begins. What a killed process left is put right: an older folder that it had moved aside is back.

    Raises:
        InputError: ``target``, a folder that no program can replace. RunError: ``write``, the disk refuses.
    """
    try:
        real, fact = _real(path)
        if fact:
            raise InputError(target, f"{fact}, and cannot be replaced as a whole", where=path,
                             mend="name a folder within it" if real.is_dir() else "name another folder")
        above = next(place for place in real.parents if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            number = errno.EACCES if above.is_dir() else errno.ENOTDIR
            raise OSError(number, os.strerror(number), str(above))
        _settle(real)
        return real
    except OSError as error:
        raise RunError(write, f"cannot write: {error.strerror or error}", where=error.filename or path,
                       mend="check permissions, or name another folder; nothing was changed") from error


def _real(path: str | Path) -> tuple[Path, str]:
    """The path with its links followed, and why no folder can take its place ('' where one can)."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        return real, "is a link that leads to itself"
    if os.path.ismount(real):
        return real, "is a mount point"
    with suppress(FileNotFoundError, NotADirectoryError):   # nothing there, or no longer
        if os.path.samefile(real, os.curdir):
            return real, "is the folder in which this runs"
    return real, ""


def _settle(path: Path) -> None:
    """Put right what processes of this machine left that were killed while they replaced ``path``."""
    ours = re.compile(rf"(\.tmp-{re.escape(path.name)}-{_host()}-(\d+)-\w{{8}})(-old)?")
    with _guard:
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        for found in filter(None, map(ours.fullmatch, names)):
            pid = int(found[2])
            if path.with_name(found[1]) in _mine if pid == os.getpid() else psutil.pid_exists(pid):
                continue   # it is still at work
            if found[3] and not path.exists():
                os.replace(path.with_name(found[0]), path)
            else:
                shutil.rmtree(path.with_name(found[0]), ignore_errors=True)


def _host() -> str:
    return hashlib.sha256(platform.node().encode("utf-8", "surrogateescape")).hexdigest()[:4]


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    try:   # -100: AT_FDCWD, 2: RENAME_EXCHANGE
        return ctypes.CDLL(None).renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0
    except (AttributeError, OSError):   # another C library
        return False


def strangers(folder: str | Path, known: Collection[str]) -> list[str]:
    """Names in ``folder`` that are not ``known``; a file's own name where it is no folder. To be asked before a folder
    is replaced as a whole. Nobody's: what a killed process left half-written (``.tmp-*``), what file managers write.
    """
    folder = Path(folder)
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [folder.name]
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if name not in {*known, *_NOBODYS} and not name.startswith(".tmp-"))


def write_json(path: str | Path, content: Any) -> Path:
    """Write ``content`` as indented JSON, atomically. NaN is refused: it is not JSON."""
    text = json_bytes(content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(text)
    return Path(path)


def json_bytes(content: Any) -> bytes:
    """``content`` as indented JSON in UTF-8, with a line feed at the end. NaN is refused: it is not JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair, as JSON itself writes it


def sha256_json(content: Any) -> str:
    """SHA-256 of what JSON keeps of ``content``, whatever the order of its names and the spaces between."""
    kept = json.loads(json.dumps(content, allow_nan=False, default=_plain))
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def read_json(path: str | Path, *, code: str = "JSON-BROKEN") -> Any:
    """Read a JSON file; a missing or broken one raises InputError with ``code`` and the line at fault."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(code, "the file is missing", where=path) from None
    except OSError as error:
        raise InputError(code, f"cannot be read: {error.strerror or error}", where=path) from error
    except (ValueError, RecursionError) as error:   # not JSON, not UTF-8, a number of 5000 digits, too deep
        raise InputError(code, f"not valid JSON: {error}", where=path, mend="mend or remove the file") from error


def shallow(text: str, *, most: int = 200_000, deepest: int = 50) -> str:
    """A YAML text as it is, if it is no longer and no deeper than settings can be: PyYAML takes minutes for a deep one.

    Raises:
        ValueError: with the fact.
    """
    if len(text) > most:
        raise ValueError(f"{len(text)} letters are too many for settings (at most {most})")
    depth = 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}" and depth > 0)
        if depth > deepest:
            raise ValueError(f"brackets lie within each other more than {deepest} deep")
    return text


def check_aliases(root: Any, *, most: int = 100_000) -> None:
    """Refuse a composed YAML document that a few aliases (``*a``) blow up, or that holds itself.

    Args:
        root: what ``yaml.compose`` gives.
        most: parts that it may have once every alias is written out.

    Raises:
        ValueError: with the fact.
    """
    sizes: dict[int, int | None] = {}   # None: being counted

    def refuse(node: Any, fact: str) -> NoReturn:
        raise ValueError(f"line {node.start_mark.line + 1}: {fact}")

    def size(node: Any) -> int:
        if id(node) in sizes:
            if sizes[id(node)] is None:
                refuse(node, "an alias lies within what it stands for")
            return sizes[id(node)]
        sizes[id(node)] = None
        parts = node.value if isinstance(getattr(node, "value", None), list) else []
        count = 1 + sum(size(one) for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        if count > most:
            refuse(node, f"more than {most} parts, once its aliases are written out")
        sizes[id(node)] = count
        return count

    size(root)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """SHA-256 of an array's shape, type and values (not of its memory layout)."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape}{array.dtype.str}".encode())
    digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def made_by(command: str | None = None) -> dict[str, str]:
    """What made a result: command, date, commit (where the package lies in a git checkout), version, machine."""
    here = Path(__file__).resolve().parent
    commit = ""
    if (here.parent / ".git").exists():
        try:
            asked = subprocess.run(["git", "-C", str(here.parent), "rev-parse", "--short=12", "HEAD"],
                                   capture_output=True, text=True, timeout=10, check=False)
            commit = asked.stdout.strip()
        except OSError:
            pass  # no git on this machine: the commit stays empty
    return {
        "command": command or _command(sys.argv),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
    }


def _command(argv: list[str]) -> str:
    """What was typed, without the folders of this machine: a result is passed on, and they concern nobody else."""
    program = PurePath(argv[0])
    if program.stem == "ipykernel_launcher":
        return "a Jupyter notebook"  # the rest names a file of the kernel's connection
    name = program.parent.name if program.name == "__main__.py" else program.name
    return " ".join([name or "python", *map(_without_folder, argv[1:])])


def _without_folder(argument: str) -> str:
    """'/home/me/run' -> 'run' and '--out=/home/me/run' -> '--out=run'; a relative path stays."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute():
            value = kind(value).name
    return f"{option}{equals}{value}"
