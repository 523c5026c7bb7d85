"""One writer a folder: a second process (or thread) that would write into the same folder is refused.

The lock is the operating system's, on the file ``.lock`` in the folder, so it ends with the process that holds it, also
one that was killed: nobody has to remove anything. What is written in the file only says who holds it.

Over a network (NFS from Linux 2.6.12 on, SMB) the server keeps the lock for all machines. Where a file system has no
locks at all, the process named in the file is asked for instead: that sees others of this machine only. Windows locks
through msvcrt, a byte far behind the file's end, so that the text stays readable.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil

from msfilm.errors import RunError

try:
    import fcntl
except ImportError:   # Windows
    fcntl = None
    import msvcrt

__all__ = ["LOCK", "hold_folder"]

LOCK = ".lock"
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_FAR = 1 << 30
_held: set[str] = set()   # by this process: a lock over NFS is the process's, and would let a second thread in
_guard = threading.Lock()


@contextmanager
def hold_folder(folder: str | Path, *, wait_s: float = 1.0, refused: str = "RUN-WRITE") -> Iterator[Path]:
    """Be the only one who writes into ``folder`` (made if it is missing) while the block runs.

    Args:
        folder: whose.
        wait_s: how long to try, in seconds: a worker ends some tenths of a second after the parent that was killed.
        refused: code of the error where the folder cannot be made or written.

    Raises:
        RunError: RUN-BUSY, another process holds it, with its number, machine and since when; or ``refused``.
    """
    folder = Path(folder)
    name = str(folder.resolve())
    until = time.monotonic() + wait_s
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = _take(folder / LOCK, name)
        except OSError as error:
            raise RunError(refused, f"cannot write into this folder: {error.strerror or error}", where=folder,
                           mend="check permissions and free space, or choose another folder") from error
        if held is not None:
            break
        if time.monotonic() >= until:
            raise RunError("RUN-BUSY", f"{_holder(folder / LOCK)} writes into this folder", where=folder,
                           mend="wait until it is done, stop it, or choose another folder")
        time.sleep(0.05)
    mine = os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == mine:   # a forked child that ends within the block has nothing to give back
            _give_back(folder / LOCK, held, name)


def _take(path: Path, name: str) -> int | None:
    """The open lock file, or None where somebody else has it."""
    with _guard:
        if name in _held:
            return None
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)   # not inherited by programs that this one starts
        try:
            if not _lock(handle, path) or not _still(handle, path):
                os.close(handle)
                return None
            text = json.dumps({"pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid()),
                               "since": datetime.now().astimezone().isoformat(timespec="seconds")})
            os.ftruncate(handle, 0)
            os.write(handle, text.encode())
        except OSError:
            os.close(handle)
            raise
        _held.add(name)
        return handle


def _lock(handle: int, path: Path) -> bool:
    """Lock it. Where the file system has no locks: whether nobody who lives is named in it."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        return True
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            raise
    who = _read(path)
    return not (who.get("host") == platform.node() and who.get("born") is not None
                and _born(who.get("pid")) == who["born"])


def _still(handle: int, path: Path) -> bool:
    """Whether the file that was locked is still the one in the folder: its last holder takes it away."""
    try:
        return fcntl is None or os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _give_back(path: Path, handle: int, name: str) -> None:
    """Remove the file while it is locked, so that nobody else's is removed; Windows only lets a closed one go."""
    with _guard:
        try:
            if fcntl is not None:
                path.unlink(missing_ok=True)
            os.close(handle)
            if fcntl is None:
                path.unlink(missing_ok=True)
        except OSError:
            pass   # the folder is gone, or somebody has it already: the lock itself ended with the handle
        _held.discard(name)


def _holder(path: Path) -> str:
    """'process 71 on machine since 2026-01-02T03:04:05+01:00'"""
    who = _read(path)
    if not who:
        return "another process"
    return f"process {who.get('pid')} on {who.get('host')} (since {who.get('since')})"


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _born(pid: object) -> float | None:
    """When a process of this machine began, by which it is told from a later one of the same number."""
    try:
        return round(psutil.Process(pid).create_time(), 1) if isinstance(pid, int) else None
    except (psutil.Error, ValueError, OverflowError):
        return None
