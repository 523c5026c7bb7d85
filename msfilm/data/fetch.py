"""Public scans by name: downloaded once, or read from a mirror, and in either case checked against data_manifests/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from msfilm.data.download import NO_NETWORK, NoAnswer, download
from msfilm.data.manifests import Manifest, PublicFile, find_manifest, read_manifests
from msfilm.data.unpack import unpack
from msfilm.errors import FetchError, suggest
from msfilm.files import atomic_path, sha256_file

__all__ = ["MIRROR", "Manifest", "PublicFile", "fetch", "fetch_file", "find_manifest", "read_manifests"]

MIRROR = "MSFILM_MIRROR"  # environment variable: a folder laid out <data set>/<path>, used instead of the network
_UNPACKED = ".msfilm-unpacked"  # in an unpacked folder: the archive's hash
_SHOWN: set[tuple[str, Path]] = set()  # attributions are printed once a process and folder


def fetch(
    name: str,
    *,
    out: str | Path | None = None,
    files: Iterable[str] | None = None,
    progress: bool = True,
    manifests: str | Path | None = None,
    stall_s: float | None = None,
) -> Path:
    """Have the files of one public data set on this machine; return the folder that holds them.

    With ``MSFILM_MIRROR`` set they are read there, in place. Otherwise each is downloaded into the user's cache folder,
    unless it is there already; a download that was cut goes on where it stopped. SHA-256 is checked in both cases, and
    a file gets its final name only once it is right. If one file fails the others are still fetched, unless nobody
    answers or the disk is full; what failed is said at the end.

    Args:
        name: the data set, for example ``'sct_testing_data'``.
        out: a folder to have the files in, under ``out/name``, instead of the cache or the mirror.
        files: paths inside the data set; all of them by default.
        progress: show one bar, in bytes, over all files.
        manifests: another folder of manifests than msfilm's own.
        stall_s: give up a connection that brings nothing for so many seconds (default 30).

    Raises:
        FetchError: ``FETCH-UNKNOWN`` (no such data set or file), ``FETCH-ASK`` (a set that has to be asked for),
            ``FETCH-OFFLINE`` (no answer, or the connection broke), ``FETCH-HTTP`` (the server refused), ``FETCH-HASH``
            (not the bytes that the manifest names), ``FETCH-SIZE`` (more bytes than promised), ``FETCH-DISK`` (cannot
            be written), ``FETCH-UNSAFE`` and ``FETCH-ARCHIVE`` (see ``unpack``); ``FETCH-INCOMPLETE`` where several
            files failed, with each one's own error.
    """
    manifest = find_manifest(name, manifests)
    by_path = {entry.path: entry for entry in manifest.files}
    wanted = list(by_path) if files is None else list(dict.fromkeys(str(path) for path in files))
    for path in wanted:
        if path not in by_path:
            raise FetchError("FETCH-UNKNOWN", f"data set {name!r} has no file {path!r}", mend=suggest(path, by_path))
    entries = [by_path[path] for path in wanted]
    mirror = os.environ.get(MIRROR)
    in_place = mirror and not any(entry.unpack for entry in entries)  # a mirror is never written to
    folder = (Path(out) if out is not None else Path(mirror) if in_place else _cache()) / name
    if (manifest.attribution, folder) not in _SHOWN:
        _SHOWN.add((manifest.attribution, folder))
        print(manifest.attribution)
    failed = _all(entries, folder, Path(mirror) / name if mirror else None, progress, stall_s)
    if len(failed) == 1 and len(entries) == 1:
        raise failed[0]
    if failed:
        listed = "".join(f"\n  {error}" for error in failed)
        what = f"{len(entries) - len(failed)} of {len(entries)} files are here, {len(failed)} failed:{listed}\n "
        mend = f"run it again to fetch only these; or {NO_NETWORK}"
        raise FetchError("FETCH-INCOMPLETE", what, where=folder, mend=mend)
    return folder


def fetch_file(
    address: str, *, out: str | Path | None = None, progress: bool = True, manifests: str | Path | None = None
) -> Path:
    """One file by '<data set>/<path>', for example ``'sct_tutorial_data/single_subject/data/t2_ms/t2.nii.gz'``.

    Raises:
        FetchError: as ``fetch``.
    """
    name, _, path = address.partition("/")
    return fetch(name, out=out, files=[path], progress=progress, manifests=manifests) / path


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("msfilm"))


def _all(
    entries: list[PublicFile], folder: Path, mirror: Path | None, progress: bool, stall_s: float | None
) -> list[FetchError]:
    """Have every entry in ``folder``; give the errors of those that failed."""
    from tqdm import tqdm

    failed: list[FetchError] = []
    total = sum(entry.bytes for entry in entries)
    with tqdm(total=total, unit="B", unit_scale=True, desc=folder.name, disable=not progress) as bar:
        for i, entry in enumerate(entries):
            before = bar.n
            try:
                _one(entry, folder, mirror, bar.update, stall_s)
            except FetchError as error:
                bar.update(before - bar.n)
                failed.append(error)
                if isinstance(error, NoAnswer) or error.code == "FETCH-DISK":
                    rest = [other for other in entries[i + 1 :] if not (folder / other.path).is_file()]
                    failed += [_not_tried(other, error) for other in rest]
                    break
    return failed


def _not_tried(entry: PublicFile, error: FetchError) -> FetchError:
    return FetchError(error.code, "not tried after this", where=entry.path)


def _one(
    entry: PublicFile, folder: Path, mirror: Path | None, advance: Callable[[int], Any], stall_s: float | None
) -> None:
    target = folder / entry.path
    if mirror:
        _from_mirror(entry, mirror / entry.path, target)
        advance(entry.bytes)
    else:
        download(entry, target, advance=advance, stall_s=stall_s)
    if entry.unpack:
        _unpack(entry, target, folder / entry.unpack.into)


def _unpack(entry: PublicFile, archive: Path, folder: Path) -> None:
    """Unpack an archive that is known to be right, unless that has been done."""
    mark = folder.parent / f"{_UNPACKED}-{folder.name}"
    try:
        if folder.is_dir() and mark.is_file() and mark.read_text(encoding="ascii", errors="replace") == entry.sha256:
            return
        unpack(archive, folder, max_bytes=entry.unpack.bytes, max_files=entry.unpack.files)
        with atomic_path(mark) as temporary:
            temporary.write_text(entry.sha256, encoding="ascii")
    except OSError as error:
        raise _disk(folder, error) from error


def _from_mirror(entry: PublicFile, source: Path, target: Path) -> None:
    """Check one file of the mirror; copy it only if it is wanted in another folder."""
    if not source.is_file():
        raise FetchError(
            "FETCH-OFFLINE",
            f"the folder named by {MIRROR} lacks this file",
            where=source,
            mend=f"complete the mirror, or unset {MIRROR} to download the file",
        )
    try:
        found, size = sha256_file(source), source.stat().st_size
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise FetchError("FETCH-OFFLINE", reason, where=source, mend=f"mend the mirror, or unset {MIRROR}") from error
    if found != entry.sha256:
        what = f"{size} bytes with SHA-256 {found[:12]}, but the manifest has {entry.bytes} bytes with"
        raise FetchError(
            "FETCH-HASH",
            f"{what} {entry.sha256[:12]}",
            where=source,
            mend=f"the copy is damaged or another version: complete the mirror again, or unset {MIRROR}",
        )
    try:
        if target != source:
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise _disk(target, error) from error


def _disk(where: Path, error: OSError) -> FetchError:
    return FetchError(
        "FETCH-DISK",
        f"cannot be written: {error.strerror or error}",
        where=where,
        mend="free some space, or name another folder with --out (in Python: out=)",
    )
