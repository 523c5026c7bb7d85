"""What public data there is: each set's files with address, size and hash, and whom to ask for sets that cannot be
downloaded.

A manifest is one JSON file. Nothing in it is trusted: types, hashes, addresses and every path are checked as it is
read, so that no later step can write outside its folder.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msfilm.errors import FetchError, suggest
from msfilm.files import sha256_file
from msfilm.places import shipped

__all__ = ["Manifest", "OnRequest", "PublicFile", "Unpack", "describe", "find_manifest", "first_clash",
           "read_manifests", "read_requests", "unsafe_path"]  # fmt: skip

_MOST_BYTES = 16 * 2**20  # of a manifest itself
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PATIENT = re.compile(r"sub-[A-Za-z0-9]+")


@dataclass(frozen=True)
class Unpack:
    """How an archive is unpacked: into which folder of the set, and what it may hold at most."""

    into: str
    bytes: int
    files: int


@dataclass(frozen=True)
class PublicFile:
    """One file of a public data set: where it is, what it must be, and what it is called in a BIDS data set."""

    path: str
    url: str
    sha256: str
    bytes: int
    bids: tuple[str, ...] = ()
    unpack: Unpack | None = None


@dataclass(frozen=True)
class Manifest:
    """One public data set at a fixed commit, with what its authors ask of a user.

    ``participants`` holds what is known of each patient of its BIDS layout: 'sub-07' -> {'group': 'ms', ...}.
    """

    name: str
    title: str
    repository: str
    commit: str
    licence: str
    citation: str
    files: tuple[PublicFile, ...]
    participants: dict[str, dict[str, str]] | None = None
    note: str = ""

    @property
    def attribution(self) -> str:
        """The lines to show whenever its files are used."""
        source = f"{self.repository} at commit {self.commit[:12]}"
        lines = [f"{self.name}: {self.title}", f"  from {source}, licence {self.licence}", f"  cite: {self.citation}"]
        return "\n".join([*lines, f"  note: {self.note}"] if self.note else lines)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)


@dataclass(frozen=True)
class OnRequest:
    """A data set that msfilm does not download: where it is, who may have it, and how to lay it out afterwards."""

    name: str
    title: str
    where: str
    who: str
    terms: str
    how: str
    layout: str
    citation: str
    source: str

    @property
    def instructions(self) -> str:
        """All of it, to be read."""
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)[2:]]
        return f"{self.name}: {self.title}\n" + "\n".join(f"  {name + ':':<10}{text}" for name, text in rows)


def read_manifests(folder: str | Path | None = None) -> dict[str, Manifest]:
    """Every manifest of ``folder`` (default: the ones that come with msfilm), by data set name.

    Raises:
        FetchError: ``FETCH-MANIFEST``: not JSON, a key missing, unknown or of the wrong type, no SHA-256, an address
            that is no web address, a path that leaves the folder or stands there twice, two sets of one name.
    """
    found: dict[str, Manifest] = {}
    for path in sorted(Path(folder or shipped("data_manifests")).glob("*.json")):
        manifest = _manifest(_read(path), path)
        if manifest.name in found:
            raise _fault(path, f"a second manifest of {manifest.name!r}")
        found[manifest.name] = manifest
    return found


def read_requests(folder: str | Path | None = None) -> dict[str, OnRequest]:
    """Data sets that have to be asked for, by name: one JSON file each in ``folder/on_request``.

    Raises:
        FetchError: ``FETCH-MANIFEST``, as ``read_manifests``.
    """
    found: dict[str, OnRequest] = {}
    for path in sorted((Path(folder or shipped("data_manifests")) / "on_request").glob("*.json")):
        content = _keys(_read(path), OnRequest, path, "")
        for key, text in content.items():
            _text(text, path, key)
        _name(content["name"], path)
        if content["name"] in found:
            raise _fault(path, f"a second entry for {content['name']!r}")
        found[content["name"]] = OnRequest(**content)
    return found


def find_manifest(name: str, folder: str | Path | None = None) -> Manifest:
    """The manifest of one data set.

    Raises:
        FetchError: ``FETCH-UNKNOWN`` with the name that was probably meant; ``FETCH-ASK`` for a set that has to be
            asked for, with the way to get it; ``FETCH-MANIFEST``.
    """
    known, asked = read_manifests(folder), read_requests(folder)
    if name in known:
        return known[name]
    if name in asked:
        what = f"this set is not downloaded by msfilm:\n{asked[name].instructions}\n"
        raise FetchError("FETCH-ASK", what, where=name, mend="get it as written above")
    raise FetchError("FETCH-UNKNOWN", f"no data set is called {name!r}", mend=suggest(name, {**known, **asked}))


def describe(folder: str | Path, address: str) -> list[dict[str, Any]]:
    """The ``files`` of a manifest for what lies in ``folder``: path, url (``address``/path), sha256 and bytes."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return [
        {
            "path": (name := path.relative_to(folder).as_posix()),
            "url": f"{address}/{name}",
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        for path in paths
    ]


def unsafe_path(path: str) -> str | None:
    """Why ``path``, from a manifest or an archive, may not be written below a folder; None if it may.

    What counts is every system's rules, not this one's: a backslash or a drive letter leaves the folder on Windows.
    """
    if not path or path.startswith("/"):
        return "is absolute" if path else "is empty"
    if "\\" in path or ":" in path:
        return "holds a backslash or a colon"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        return "holds a control character"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder or has an empty part"
    if any(len(part.encode()) > 200 for part in parts) or len(path.encode()) > 1000:
        return "is too long"
    return None


def first_clash(paths: Iterable[str]) -> str | None:
    """The first of ``paths`` that is there already, but for case, or lies below one that is a file."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        plain = unicodedata.normalize("NFC", path).casefold()
        parents = {plain[:i] for i, letter in enumerate(plain) if letter == "/"}
        if plain in seen or plain in folders or parents & seen:
            return path
        seen.add(plain)
        folders |= parents
    return None


def _fault(path: Path, what: str) -> FetchError:
    return FetchError("FETCH-MANIFEST", what, where=path, mend="mend the manifest, or install msfilm again")


def _read(path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) != len(dict(pairs)):
            raise ValueError(f"a key stands there twice among {', '.join(sorted(key for key, _ in pairs))[:200]!a}")
        return dict(pairs)

    try:
        with open(path, "rb") as handle:
            content = handle.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise _fault(path, f"is larger than {_MOST_BYTES} bytes")
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except FetchError:
        raise
    except RecursionError:
        raise _fault(path, "not valid JSON: too deeply nested") from None
    except (ValueError, OSError) as error:  # JSON and text errors are ValueErrors
        raise _fault(path, f"not valid JSON, or cannot be read: {error}") from error


def _keys(content: Any, kind: type, path: Path, where: str) -> dict[str, Any]:
    """``content`` if it has the keys of dataclass ``kind``, and no others."""
    if not isinstance(content, dict):
        raise _fault(path, f"{where or 'the file'} holds a {type(content).__name__}, not keys and values")
    known = {field.name for field in fields(kind)}
    needed = {name for name in known if not hasattr(kind, name)}  # a default is a class attribute
    for key in content:
        if key not in known:
            raise _fault(path, f"{where or 'the file'} has an unknown key {key[:80]!a}: {suggest(ascii(key), known)}")
    if needed - content.keys():
        raise _fault(path, f"{where or 'the file'} lacks {', '.join(sorted(needed - content.keys()))}")
    return content


def _text(value: Any, path: Path, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or any(unicodedata.category(one) == "Cs" for one in value):
        raise _fault(path, f"{where} is {repr(value)[:80]!a}, not a text")
    return value


def _number(value: Any, path: Path, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**50:
        raise _fault(path, f"{where} is {repr(value)[:80]!a}, not a number from 0 to 2^50")
    return value


def _name(value: str, path: Path) -> None:
    if not _NAME.fullmatch(value):
        raise _fault(path, f"name {value[:80]!a}: letters, digits, dots, dashes and underscores only")


def _path(value: Any, path: Path, where: str) -> str:
    reason = unsafe_path(_text(value, path, where))
    if reason:
        raise _fault(path, f"{where} {value[:80]!a} {reason}")
    return value


def _manifest(content: Any, path: Path) -> Manifest:
    content = dict(_keys(content, Manifest, path, ""))
    for key in ("name", "title", "repository", "commit", "licence", "citation", "note"):
        if key in content:
            _text(content[key], path, key)
    _name(content["name"], path)
    if not isinstance(content["files"], list) or not content["files"]:
        raise _fault(path, "files is no list of files")
    files = tuple(_file(entry, path, f"files[{i}]") for i, entry in enumerate(content["files"]))
    taken = [entry.path for entry in files] + [entry.unpack.into for entry in files if entry.unpack]
    if clash := first_clash(taken):
        raise _fault(path, f"path {clash!a} stands there twice, or lies below another file")
    if clash := first_clash(target for entry in files for target in entry.bids):
        raise _fault(path, f"bids path {clash!a} stands there twice, or lies below another file")
    people = content.get("participants")
    if people is not None:
        good = isinstance(people, dict) and all(
            _PATIENT.fullmatch(who) and isinstance(row, dict) and row for who, row in people.items()
        )
        if not good:
            raise _fault(path, "participants is not 'sub-..' -> columns")
        for who, row in people.items():
            for column, value in row.items():
                both = _text(column, path, who) + _text(value, path, who)
                if any(letter in both for letter in "\t\r\n"):
                    raise _fault(path, f"participants: {who} holds a tab or a new line")
    return Manifest(**{**content, "files": files})


def _file(entry: Any, path: Path, where: str) -> PublicFile:
    entry = dict(_keys(entry, PublicFile, path, where))
    _path(entry["path"], path, f"{where}: path")
    _number(entry["bytes"], path, f"{where}: bytes")
    if not re.fullmatch("[0-9a-f]{64}", _text(entry["sha256"], path, f"{where}: sha256")):
        raise _fault(path, f"{where}: sha256 is {entry['sha256'][:80]!a}, not 64 hexadecimal digits")
    url = _text(entry["url"], path, f"{where}: url")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and parts.hostname and (parts.port or True) and url.isprintable()
    except ValueError:
        good = False
    if not good or " " in url:
        raise _fault(path, f"{where}: url {url[:80]!a} is no https or http address")
    targets = entry.get("bids", [])
    if not isinstance(targets, str | list):
        raise _fault(path, f"{where}: bids is neither a path nor a list of paths")
    targets = [targets] if isinstance(targets, str) else targets
    entry["bids"] = tuple(_path(target, path, f"{where}: bids") for target in targets)
    if entry.get("unpack") is not None:
        unpack = _keys(entry["unpack"], Unpack, path, f"{where}: unpack")
        _path(unpack["into"], path, f"{where}: unpack.into")
        for key in ("bytes", "files"):
            _number(unpack[key], path, f"{where}: unpack.{key}")
        entry["unpack"] = Unpack(**unpack)
    return PublicFile(**entry)
