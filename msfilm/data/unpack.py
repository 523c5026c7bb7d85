"""Unpack a zip or tar archive into a folder: everything in it is judged before anything is written.

Own code, since what is at hand does not suffice on every Python that msfilm runs on: tarfile's data filter came with
3.12 (and late 3.11), lets links through, and nothing there caps the size.
"""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from msfilm.data.manifests import first_clash, unsafe_path
from msfilm.errors import FetchError
from msfilm.files import atomic_folder

__all__ = ["unpack"]

_CHUNK = 1 << 18
_HEADER = 1 << 20  # the most that tarfile may ask for at once: an extended header, never a file
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError, OSError,
           ValueError, RuntimeError, OverflowError, IndexError, KeyError)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    path: str
    bytes: int
    open: Callable[[], IO[bytes]]


def unpack(archive: str | Path, folder: str | Path, *, max_bytes: int, max_files: int) -> Path:
    """Unpack ``archive`` (zip, tar, tar.gz) so that ``folder`` holds its files, whole or not at all.

    Folders are made as needed; owners, times and permissions are not taken over. An older ``folder`` is replaced.

    Raises:
        FetchError: ``FETCH-UNSAFE`` (a member that is absolute, leaves the folder, is a link, a device or encrypted, or
            stands there twice), ``FETCH-SIZE`` (more bytes or files than allowed, by the headers or in fact),
            ``FETCH-ARCHIVE`` (broken, or of another kind), ``FETCH-DISK`` (cannot be written).
    """
    archive, folder = Path(archive), Path(folder)
    with _opened(archive, max_bytes, max_files) as members:
        listed = _judge(members, archive, max_bytes, max_files)
        left = max_bytes
        try:
            with atomic_folder(folder) as temporary:
                for member in listed:
                    target = temporary / member.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    left -= _write(member, target, archive, left)
        except OSError as error:
            reason = error.strerror or str(error)
            mend = "free some space, or name another folder"
            raise FetchError("FETCH-DISK", f"cannot be written: {reason}", where=folder, mend=mend) from error
    return folder


def _judge(members: Iterator[_Member], archive: Path, max_bytes: int, max_files: int) -> list[_Member]:
    """All members, once none of them is to be refused. Nothing has been written by then."""
    listed, total = [], 0
    with _reading(archive):
        for member in members:
            reason = unsafe_path(member.path)
            if reason:
                raise _unsafe(archive, member.path, reason)
            listed.append(member)
            total += member.bytes
            if total > max_bytes:
                raise _too_much(archive, f"more than {max_bytes} bytes")
            if len(listed) > max_files:
                raise _too_much(archive, f"more than {max_files} files")
    if clash := first_clash(member.path for member in listed):
        raise _unsafe(archive, clash, "stands there twice, or lies below a file")
    return listed


def _write(member: _Member, target: Path, archive: Path, left: int) -> int:
    """Write one member; give its size. The header's size may lie, so bytes are counted."""
    written = 0
    with _reading(archive):
        source = member.open()
    with source, open(target, "xb") as handle:
        while True:
            with _reading(archive):
                chunk = source.read(_CHUNK)
            if not chunk:
                break
            written += len(chunk)
            if written > min(left, member.bytes):
                raise _too_much(archive, f"more bytes of {member.path!r} than its header or the limit says")
            handle.write(chunk)
    if written != member.bytes:
        raise _broken(archive, f"{member.path!r} ends after {written} of {member.bytes} bytes")
    return written


@contextmanager
def _opened(archive: Path, max_bytes: int, max_files: int) -> Iterator[Iterator[_Member]]:
    with _reading(archive):
        with open(archive, "rb") as handle:
            start = handle.read(4)
        is_zip = start in (b"PK\x03\x04", b"PK\x05\x06")
        opened: Any
        if is_zip:
            opened = zipfile.ZipFile(archive)
        else:
            packed = gzip.open(archive) if start[:2] == b"\x1f\x8b" else open(archive, "rb")
            limit = max_bytes + max_files * 4096 + _HEADER  # headers and padding come on top of the files
            capped = _Capped(packed, archive, limit)
            try:
                opened = tarfile.open(fileobj=capped, mode="r:")
            except BaseException:
                packed.close()
                raise
    try:
        yield _zip_members(opened, archive) if is_zip else _tar_members(opened, archive)
    finally:
        opened.close()
        if not is_zip:
            packed.close()


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in opened.infolist():
        if "\0" in info.orig_filename:
            raise _unsafe(archive, info.orig_filename, "holds a control character")
        name = info.orig_filename  # as written: zipfile itself turns backslashes into slashes on Windows
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _unsafe(archive, name, "is a link or a device")
        if info.flag_bits & 1:
            raise _unsafe(archive, name, "is encrypted")
        if name.endswith("/"):
            _judge_folder(name.rstrip("/"), archive)
            continue
        yield _Member(name, info.file_size, lambda info=info: opened.open(info))


def _tar_members(opened: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in opened:
        name = info.name.removeprefix("./")
        if info.isdir():
            _judge_folder(name.rstrip("/"), archive)
        elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):  # links, devices, pipes, sparse files, what else
            raise _unsafe(archive, name, "is a link, a device or a sparse file")
        else:
            yield _Member(name, info.size, lambda info=info: opened.extractfile(info))


def _judge_folder(name: str, archive: Path) -> None:
    reason = None if name in ("", ".") else unsafe_path(name)
    if reason:
        raise _unsafe(archive, name, reason)


class _Capped:
    """A stream that gives so many bytes and no more, and never many at once: headers may claim any size."""

    def __init__(self, stream: Any, archive: Path, limit: int):
        self.stream, self.archive, self.limit = stream, archive, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise _too_much(self.archive, f"a header of {size} bytes")
        if self.stream.tell() + size > self.limit + _HEADER:
            raise _too_much(self.archive, f"more than {self.limit} bytes, headers counted")
        return self.stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        if position > self.limit + _HEADER:
            raise _too_much(self.archive, f"more than {self.limit} bytes, headers counted")
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Whatever a broken archive makes the standard library raise becomes FETCH-ARCHIVE."""
    try:
        yield
    except FetchError:
        raise
    except _BROKEN as error:
        raise _broken(archive, f"{type(error).__name__}: {error}") from error


def _unsafe(archive: Path, member: str, reason: str) -> FetchError:
    mend = "nothing was unpacked; do not use this archive, and tell whoever gave it to you"
    return FetchError("FETCH-UNSAFE", f"its member {member[:200]!a} {reason}", where=archive, mend=mend)


def _too_much(archive: Path, what: str) -> FetchError:
    return FetchError("FETCH-SIZE", f"unpacks to {what}", where=archive, mend="nothing was unpacked; check its source")


def _broken(archive: Path, what: str) -> FetchError:
    mend = "fetch it again; zip, tar and tar.gz can be unpacked"
    return FetchError("FETCH-ARCHIVE", f"cannot be unpacked ({what})", where=archive, mend=mend)
