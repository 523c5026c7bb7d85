"""Public scans by name: downloaded once, or read from a mirror, and in either case checked against data_manifests/."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from msfilm.errors import FetchError, suggest
from msfilm.files import atomic_path, sha256_file
from msfilm.places import shipped

__all__ = ["MIRROR", "Manifest", "PublicFile", "fetch", "fetch_file", "find_manifest", "read_manifests"]

MIRROR = "MSFILM_MIRROR"  # environment variable: a folder laid out <data set>/<path>, used instead of the network
_WITHOUT_NETWORK = f"set {MIRROR} to a folder laid out <data set>/<path>, or go on with a phantom: msfilm phantom DIR"


@dataclass(frozen=True)
class PublicFile:
    """One file of a public data set: where it is, and what it must be."""

    path: str
    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """One public data set at a fixed commit, with what its authors ask of a user."""

    name: str
    title: str
    repository: str
    commit: str
    licence: str
    citation: str
    files: tuple[PublicFile, ...]

    @property
    def attribution(self) -> str:
        """The lines to show whenever its files are used."""
        source = f"{self.repository} at commit {self.commit[:12]}"
        return f"{self.name}: {self.title}\n  from {source}, licence {self.licence}\n  cite: {self.citation}"


def read_manifests(folder: str | Path | None = None) -> dict[str, Manifest]:
    """Every manifest of ``folder`` (default: the ones that come with msfilm), by data set name."""
    found = {}
    for path in sorted(Path(folder or shipped("data_manifests")).glob("*.json")):
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["files"] = tuple(PublicFile(**entry) for entry in fields["files"])
        found[fields["name"]] = Manifest(**fields)
    return found


def find_manifest(name: str, folder: str | Path | None = None) -> Manifest:
    """The manifest of one data set. Raises FetchError ``FETCH-UNKNOWN`` with the name that was probably meant."""
    known = read_manifests(folder)
    if name not in known:
        raise FetchError("FETCH-UNKNOWN", f"no data set is called {name!r}", mend=suggest(name, known))
    return known[name]


def fetch(
    name: str,
    *,
    out: str | Path | None = None,
    files: Iterable[str] | None = None,
    progress: bool = True,
    manifests: str | Path | None = None,
) -> Path:
    """Have the files of one public data set on this machine; return the folder that holds them.

    With ``MSFILM_MIRROR`` set they are read there, in place. Otherwise each is downloaded into the user's cache folder,
    unless it is there already. SHA-256 is checked in both cases, and a file gets its final name only once it is right.

    Args:
        name: the data set, for example ``'sct_testing_data'``.
        out: a folder to have the files in, under ``out/name``, instead of the cache or the mirror.
        files: paths inside the data set; all of them by default.
        progress: show a bar for each download.
        manifests: another folder of manifests than msfilm's own.

    Raises:
        FetchError: ``FETCH-UNKNOWN`` (no such data set or file), ``FETCH-OFFLINE`` (no answer, or the connection
            broke), ``FETCH-HTTP`` (the server refused), ``FETCH-HASH`` (not the bytes that the manifest names),
            ``FETCH-DISK`` (cannot be written).
    """
    manifest = find_manifest(name, manifests)
    by_path = {entry.path: entry for entry in manifest.files}
    wanted = list(by_path) if files is None else [str(path) for path in files]
    for path in wanted:
        if path not in by_path:
            raise FetchError("FETCH-UNKNOWN", f"data set {name!r} has no file {path!r}", mend=suggest(path, by_path))
    print(manifest.attribution)
    mirror = os.environ.get(MIRROR)
    folder = Path(out) / name if out is not None else Path(mirror) / name if mirror else _cache() / name
    for path in wanted:
        if mirror:
            _from_mirror(by_path[path], Path(mirror) / name, folder)
        else:
            _download(by_path[path], folder, progress)
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


def _from_mirror(entry: PublicFile, mirror: Path, folder: Path) -> None:
    """Check one file of the mirror; copy it only if it is wanted in another folder."""
    source = mirror / entry.path
    if not source.is_file():
        raise FetchError(
            "FETCH-OFFLINE",
            f"the folder named by {MIRROR} lacks this file",
            where=source,
            mend=f"complete the mirror, or unset {MIRROR} to download the file",
        )
    _check(source, entry)
    target = folder / entry.path
    if target != source:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _check(path: Path, entry: PublicFile) -> None:
    found = sha256_file(path)
    if found != entry.sha256:
        what = f"{path.stat().st_size} bytes with SHA-256 {found[:12]}, but the manifest has {entry.bytes} bytes with"
        raise FetchError(
            "FETCH-HASH",
            f"{what} {entry.sha256[:12]}",
            where=path,
            mend="the copy is damaged or another version: fetch it again",
        )


def _download(entry: PublicFile, folder: Path, progress: bool) -> None:
    """Download one file unless the right one is there. pooch writes to a temporary name and moves it when checked."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    target = folder / entry.path
    try:
        pooch.retrieve(
            entry.url,
            known_hash=f"sha256:{entry.sha256}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(progressbar=progress, timeout=30),
        )
    except requests.HTTPError as error:
        raise FetchError(
            "FETCH-HTTP",
            f"the server answered {error.response.status_code} for {entry.url}",
            where=entry.path,
            mend=_WITHOUT_NETWORK,
        ) from error
    except requests.RequestException as error:
        reason = type(error).__name__
        raise FetchError(
            "FETCH-OFFLINE",
            f"no complete answer from {entry.url} ({reason})",
            where=entry.path,
            mend=f"check the network; or {_WITHOUT_NETWORK}",
        ) from error
    except OSError as error:
        raise FetchError(
            "FETCH-DISK",
            f"cannot be written: {error.strerror or error}",
            where=target,
            mend="free some space, or name another folder with out=",
        ) from error
    except ValueError as error:  # what pooch raises for other bytes than the manifest's
        raise FetchError(
            "FETCH-HASH",
            f"{entry.url} did not deliver the bytes that the manifest names",
            where=entry.path,
            mend=f"try again; if it stays so, the source has changed: {_WITHOUT_NETWORK}",
        ) from error
