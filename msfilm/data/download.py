"""One file over HTTP: resumed where it was cut, never larger than promised, checked before it gets its name.

The part that has arrived lies beside the file as ``.NAME.part``, under a lock that dies with its process.
pooch.retrieve is not used: it downloads into a temporary file of its own that is gone after any failure, so that
nothing can be resumed.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from msfilm.data.manifests import PublicFile
from msfilm.errors import FetchError
from msfilm.files import sha256_file

try:
    import fcntl
except ImportError:  # Windows: there every process downloads into a part of its own
    fcntl = None

__all__ = ["CONNECT_S", "NO_NETWORK", "STALL_S", "NoAnswer", "download"]

CONNECT_S = 10.0  # without an answer for so long there is no server
STALL_S = 30.0  # a connection that brings less than _LEAST bytes in this time is given up
_LEAST = 1024
_TRIES = 3
_CHUNK = 1 << 16
NO_NETWORK = "set MSFILM_MIRROR to a folder laid out <data set>/<path>, or go on with a phantom: msfilm phantom DIR"


class NoAnswer(FetchError):
    """Nobody answered at all: other files of the same server need not be tried."""


class _Cut(Exception):
    """The connection ended or stalled before all bytes were there; what came is kept."""

    def __init__(self, reason: str, *, answered: bool = True, resumable: bool = True):
        super().__init__(reason)
        self.answered, self.resumable = answered, resumable


class _Restart(Exception):
    """What lies in the part is not the beginning of this file: begin anew."""


def download(
    entry: PublicFile,
    target: Path,
    *,
    advance: Callable[[int], Any] = lambda count: None,
    connect_s: float | None = None,
    stall_s: float | None = None,
) -> bool:
    """Have ``entry`` at ``target``; True if the network was needed, False if the right file was there already.

    Args:
        entry: address, size and hash.
        target: the file's final name; it gets it only once size and SHA-256 are right, over an older wrong file.
        advance: told how many bytes have come, or are there already; a restart takes back with a negative number.
        connect_s: seconds to wait for an answer (default ``CONNECT_S``).
        stall_s: seconds in which at least 1024 bytes have to come (default ``STALL_S``).

    Raises:
        FetchError: ``FETCH-OFFLINE`` (no answer: the subclass NoAnswer; or cut, or stalled), ``FETCH-HTTP``,
            ``FETCH-HASH``, ``FETCH-SIZE`` (the server sends more than the manifest promises), ``FETCH-DISK``.
    """
    limits = (CONNECT_S if connect_s is None else connect_s, STALL_S if stall_s is None else stall_s)
    try:
        if _is_right(target, entry):
            advance(entry.bytes)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(target) as (part, handle):
            if _is_right(target, entry):  # another process has brought it while this one waited for the part
                _unlink(part)
                advance(entry.bytes)
                return False
            keep = True
            try:
                _fill(entry, handle, advance, limits)
                os.fsync(handle.fileno())
                if fcntl is None:
                    handle.close()  # Windows moves no open file
                os.replace(part, target)
            except _Cut as cut:
                have = _size(handle)
                keep = cut.resumable and have > 0
                kind = FetchError if cut.answered else NoAnswer
                what = f"no complete answer from {entry.url} ({cut}; {have} of {entry.bytes} bytes came)"
                raise kind(
                    "FETCH-OFFLINE",
                    what,
                    where=entry.path,
                    mend=f"check the network and try again; or {NO_NETWORK}",
                ) from cut
            except (FetchError, OSError) as error:  # a wrong part is no use, and half a file does not help a full disk
                keep = isinstance(error, FetchError) and error.code == "FETCH-HTTP" and _size(handle) > 0
                raise
            finally:
                if not keep:
                    _unlink(part)
        return True
    except OSError as error:
        raise FetchError(
            "FETCH-DISK",
            f"cannot be written: {error.strerror or error}",
            where=target,
            mend="free some space, or name another folder with --out (in Python: out=)",
        ) from error


def _is_right(path: Path, entry: PublicFile) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256


def _size(handle: IO[bytes]) -> int:
    return 0 if handle.closed else os.fstat(handle.fileno()).st_size


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:  # Windows removes no open file; an empty part does no harm
        pass


@contextmanager
def _part_of(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The file's part, open to read and write, and no other process's until the end (waits while it is one's)."""
    part = target.with_name(f".{target.name}.part")
    while True:
        handle = open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        try:
            if not _lock(handle, target):  # a system without locks: a part of one's own
                handle.close()
                part = target.with_name(f".{target.name}.{os.getpid()}.part")
                handle = open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
                break
            if part.exists() and os.path.samestat(os.fstat(handle.fileno()), os.stat(part)):
                break
        except FileNotFoundError:
            pass  # removed between the two looks
        except BaseException:
            handle.close()
            raise
        handle.close()  # the other process has moved it to its final name, or removed it
    with handle:
        yield part, handle


def _lock(handle: IO[bytes], target: Path) -> bool:
    """Lock the part; False where that cannot be done. The system unlocks it when the process ends, however it ends."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that is fetching {target.name}", file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _fill(entry: PublicFile, handle: IO[bytes], advance: Callable[[int], Any], limits: tuple[float, float]) -> None:
    """Have all bytes of the file in ``handle``, and right; or raise, with in it what may be gone on from."""
    if _size(handle) > entry.bytes:
        handle.truncate(0)
    have = _size(handle)
    advance(have)
    clean = have == 0  # all that is there came from this call
    tries = _TRIES
    while True:
        try:
            if clean or have < entry.bytes:
                _receive(entry, handle, have, advance, limits)
            handle.seek(0)
            if hashlib.file_digest(handle, "sha256").hexdigest() == entry.sha256:
                return
            if clean:
                raise _wrong(entry, "did not deliver the bytes that the manifest names")
            raise _Restart
        except _Restart:
            advance(-_size(handle))
            handle.truncate(0)
            have, clean = 0, True
        except _Cut:
            tries -= 1
            if not tries or _size(handle) <= have:
                raise
            have = _size(handle)


def _receive(
    entry: PublicFile, handle: IO[bytes], have: int, advance: Callable[[int], Any], limits: tuple[float, float]
) -> None:
    """Ask for the file from byte ``have`` on, and write what comes."""
    import requests
    from urllib3.exceptions import HTTPError

    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = requests.get(entry.url, headers=headers, stream=True, timeout=limits)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Cut(type(error).__name__, answered=False) from error
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise _refused(entry, f"the address cannot be used ({type(error).__name__})") from error
    with response:
        resumable = True
        if have and response.status_code == 200:  # the server does not go on from the middle
            advance(-have)
            handle.truncate(0)
            have, resumable = 0, False
        elif have and (response.status_code == 416 or (response.status_code == 206 and not _fits(response, have))):
            raise _Restart
        elif response.status_code != (206 if have else 200):
            raise _refused(entry, f"the server answered {response.status_code} for {entry.url}")
        length = response.headers.get("Content-Length", "")
        promised = have + int(length) if length.isascii() and length.isdigit() else None
        if promised is not None and promised > entry.bytes:
            raise _too_much(entry, promised)
        read = getattr(response.raw, "read1", None) or response.raw.read  # read1 gives what is there, however little
        handle.seek(have)
        since, came = time.monotonic(), 0
        while True:
            try:
                chunk = read(_CHUNK, decode_content=False)
            except HTTPError as error:
                raise _Cut(type(error).__name__, resumable=resumable) from error
            if not chunk:
                break
            if have + len(chunk) > entry.bytes:
                raise _too_much(entry, have + len(chunk))
            _write_all(handle, chunk)
            have, came = have + len(chunk), came + len(chunk)
            advance(len(chunk))
            if time.monotonic() - since > limits[1]:
                if came < _LEAST and have < entry.bytes:
                    raise _Cut(f"stalled: {came} bytes in {limits[1]:g} s", resumable=resumable)
                since, came = time.monotonic(), 0
    if have < entry.bytes:
        if promised is None or have < promised:
            raise _Cut("the connection ended", resumable=resumable)
        raise _wrong(entry, f"has {have} bytes, but the manifest has {entry.bytes}")


def _fits(response: Any, have: int) -> bool:
    """Whether a partial answer begins where it was asked to."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return bool(found) and int(found[1]) == have


def _write_all(handle: IO[bytes], chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:  # a file without a buffer may take less than it is given
        view = view[handle.write(view) :]


def _wrong(entry: PublicFile, what: str) -> FetchError:
    mend = f"try again; if it stays so, the source has changed: {NO_NETWORK}"
    return FetchError("FETCH-HASH", f"{entry.url} {what}", where=entry.path, mend=mend)


def _refused(entry: PublicFile, what: str) -> FetchError:
    return FetchError("FETCH-HTTP", what, where=entry.path, mend=NO_NETWORK)


def _too_much(entry: PublicFile, found: int) -> FetchError:
    what = f"{entry.url} sends at least {found} bytes, but the manifest has {entry.bytes}: stopped"
    mend = f"the source has changed, or is not what it says: {NO_NETWORK}"
    return FetchError("FETCH-SIZE", what, where=entry.path, mend=mend)
