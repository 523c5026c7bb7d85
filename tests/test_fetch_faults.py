"""Downloads that are cut, stalled, too long or wrong; archives and manifests made to harm; all on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from msfilm.data.download import download
from msfilm.data.fetch import MIRROR, fetch
from msfilm.data.lay_out import lay_out_bids
from msfilm.data.manifests import PublicFile, describe, find_manifest, read_manifests, read_requests
from msfilm.data.unpack import unpack
from msfilm.errors import FetchError

BODY = bytes(range(256)) * 800  # 204 800 bytes
ZERO = "0" * 64


class _Server(BaseHTTPRequestHandler):
    """Behaves as the address says: /cut/.. ends after 50 000 bytes of every answer, and so on."""

    def do_GET(self):
        kind, asked = self.path.split("/")[1], self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and kind != "norange" else 0
        body = BODY[start:] + (b"more" * 1000 if kind == "more" else b"")
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/fine/x")
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        if start:
            shift = 7 if kind == "shifted" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(BODY) - 1}/{len(BODY)}")
        if kind != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "wrong":
            body = bytes(len(body))
        if kind in ("cut", "norange", "shifted"):
            body = body[:50000]
        if kind == "endless":
            body = body + BODY
        if kind in ("stall", "drip"):
            self.wfile.write(body[:1000])
            until = time.monotonic() + 3
            while time.monotonic() < until and not self.server.over.is_set():
                time.sleep(0.05)
                if kind == "drip":
                    self.wfile.write(b"x")
            return
        if kind == "slow":
            time.sleep(0.3)
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a client that hangs up is part of the game


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    with _Quiet(("127.0.0.1", 0), _Server) as running:
        running.asked, running.over = [], threading.Event()
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        running.address = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def _entry(server, kind, size=None):
    return PublicFile("x", f"{server.address}/{kind}/x", hashlib.sha256(BODY).hexdigest(), size or len(BODY))


def _refused(code, call, *args, **more):
    with pytest.raises(FetchError) as caught:
        call(*args, **more)
    assert caught.value.code == code, str(caught.value)
    return caught.value


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path):
    target, told = tmp_path / "x", []
    error = _refused("FETCH-OFFLINE", download, _entry(server, "cut"), target, advance=told.append)
    assert "150000 of 204800" in str(error) and not target.exists()
    assert (tmp_path / ".x.part").read_bytes() == BODY[:150000] and sum(told) == 150000
    told.clear()
    assert download(_entry(server, "cut"), target, advance=told.append)
    assert target.read_bytes() == BODY and [p.name for p in tmp_path.iterdir()] == ["x"] and sum(told) == len(BODY)
    ranges = [asked for _, asked in server.asked]
    assert ranges == [None, "bytes=50000-", "bytes=100000-", "bytes=150000-", "bytes=200000-"]
    assert not download(_entry(server, "cut"), target) and len(server.asked) == 5


@pytest.mark.parametrize("kind", ["fine", "moved", "norange", "shifted"])
def test_a_part_that_is_no_beginning_is_thrown_away(server, tmp_path, kind):
    told = []
    (tmp_path / ".x.part").write_bytes(b"something else" * 100)
    if kind in ("norange", "shifted"):  # these also cut what they send
        error = _refused("FETCH-OFFLINE", download, _entry(server, kind), tmp_path / "x", advance=told.append)
        assert "50000 of" in str(error) or kind == "shifted"
        assert b"something" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    else:
        assert download(_entry(server, kind), tmp_path / "x", advance=told.append)
        assert (tmp_path / "x").read_bytes() == BODY and sum(told) == len(BODY)


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 100])
def test_a_part_as_long_as_the_file_is_judged_not_trusted(server, tmp_path, size):
    (tmp_path / ".x.part").write_bytes(BODY if size == len(BODY) else b"?" * size)
    download(_entry(server, "fine"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY and len(server.asked) == (size != len(BODY))


@pytest.mark.parametrize(
    ("kind", "code"),
    [("wrong", "FETCH-HASH"), ("more", "FETCH-SIZE"), ("endless", "FETCH-SIZE"), ("missing", "FETCH-HTTP")],
)
def test_wrong_bytes_leave_nothing(server, tmp_path, kind, code):
    error = _refused(code, download, _entry(server, kind), tmp_path / "x")
    assert MIRROR in str(error) and "phantom" in str(error) and list(tmp_path.iterdir()) == []


def test_a_file_shorter_than_promised_is_another_file(server, tmp_path):
    error = _refused("FETCH-HASH", download, _entry(server, "fine", len(BODY) + 1), tmp_path / "x")
    assert "has 204800 bytes, but the manifest has 204801" in str(error) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_a_stalled_connection_is_given_up(server, tmp_path, kind):
    began = time.monotonic()
    _refused("FETCH-OFFLINE", download, _entry(server, kind), tmp_path / "x", stall_s=0.25)
    assert time.monotonic() - began < 2.5


def test_a_full_disk_leaves_nothing(server, tmp_path):
    """A small RLIMIT_FSIZE stands in for a full disk."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "from pathlib import Path\nfrom msfilm.errors import FetchError\n"
        "from msfilm.data.download import download, PublicFile\n"
        f"try: download(PublicFile('x', {server.address!r} + '/fine/x', '{ZERO}', {len(BODY)}), Path('x'))\n"
        "except FetchError as error: print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "[FETCH-DISK]" in run.stdout and "File too large" in run.stdout, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_want_one_file_both_end_well(server, tmp_path):
    code = (
        "from pathlib import Path\nfrom msfilm.data.download import download, PublicFile\n"
        f"entry = PublicFile('x', {server.address!r} + '/slow/x', '{hashlib.sha256(BODY).hexdigest()}', {len(BODY)})\n"
        "print(download(entry, Path('x')))\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(3)]
    said = sorted(run.communicate(timeout=60)[0].strip() for run in runs)
    assert said == [b"False", b"False", b"True"] and len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == BODY


# ---- a whole set ----------------------------------------------------------------------------------------------------


def _set(folder, address, kinds, **more):
    digest = hashlib.sha256(BODY).hexdigest()
    files = [{"path": f"{k}.bin", "url": f"{address}/{k}/x", "sha256": digest, "bytes": len(BODY)} for k in kinds]
    text = dict.fromkeys(("title", "repository", "commit", "licence", "citation"), "t")
    folder.mkdir(exist_ok=True)
    (folder / "set.json").write_text(json.dumps({"name": "set", **text, "files": files, **more}))
    return folder


def test_one_bad_file_does_not_stop_the_others_and_all_bad_ones_are_listed(server, tmp_path, capsys):
    manifests = _set(tmp_path / "m", server.address, ["missing", "fine", "wrong", "moved"])
    error = _refused("FETCH-INCOMPLETE", fetch, "set", out=tmp_path, manifests=manifests)
    assert "2 of 4 files are here" in str(error) and "FETCH-HTTP" in str(error) and "FETCH-HASH" in str(error)
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["fine.bin", "moved.bin"]
    said = capsys.readouterr()
    assert said.out.count("cite:") == 1 and "410k/819k" in said.err, "one bar, in bytes, of what is right"


def test_without_an_answer_the_rest_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    manifests = _set(tmp_path / "m", "http://127.0.0.1:9", ["a", "b", "c"])
    error = _refused("FETCH-INCOMPLETE", fetch, "set", out=tmp_path, manifests=manifests, progress=False)
    assert str(error).count("not tried") == 2 and MIRROR in str(error) and "msfilm phantom" in str(error)


def test_an_archive_is_unpacked_once(server, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    (mirror / "set").mkdir(parents=True)
    with tarfile.open(mirror / "set/a.tar.gz", "w:gz") as packed:
        _add(packed, "./deep/one.txt", b"one")
    entry = {**describe(mirror / "set", "https://x.org")[0], "unpack": {"into": "a", "bytes": 3, "files": 1}}
    manifests = _set(tmp_path / "m", "https://x.org", [], files=[entry])
    monkeypatch.setenv(MIRROR, str(mirror))
    for _ in range(2):
        folder = fetch("set", out=tmp_path / "out", manifests=manifests, progress=False)
        assert (folder / "a/deep/one.txt").read_bytes() == b"one"
    stamp = (folder / "a").stat().st_ino
    fetch("set", out=tmp_path / "out", manifests=manifests, progress=False)
    assert (folder / "a").stat().st_ino == stamp and not (mirror / "set/a").exists()


# ---- archives -------------------------------------------------------------------------------------------------------


def _add(packed, name, data=b"x", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    packed.addfile(info, io.BytesIO(data))


BAD_NAMES = ["../out", "a/../../out", "/tmp/out", "a\\..\\out", "C:out", "a//b", "a\x01b"]
TRICKS = {
    "link": (tarfile.SYMTYPE, "/etc"),
    "hard": (tarfile.LNKTYPE, "../x"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("name", [*BAD_NAMES, *TRICKS, "good"])  # "good" again: twice the same member
def test_a_hostile_tar_writes_nothing(tmp_path, name):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as packed:
        _add(packed, "good")
        kind, link = TRICKS.get(name, (tarfile.REGTYPE, ""))
        _add(packed, name, kind=kind, link=link)
    _refused("FETCH-UNSAFE", unpack, tmp_path / "a.tgz", tmp_path / "to", max_bytes=100, max_files=9)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "link", "good"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_zip_writes_nothing(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("good", "x")
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        packed.writestr(info, "/etc")
    _refused("FETCH-UNSAFE", unpack, tmp_path / "a.zip", tmp_path / "to", max_bytes=100, max_files=9)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("make", ["tar", "zip"])
def test_bombs_are_stopped_and_good_archives_are_not(tmp_path, make):
    path = tmp_path / "a"
    if make == "tar":
        with tarfile.open(path, "w:gz") as packed:
            for i in range(3):
                _add(packed, f"é/{i} b", bytes(1000))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for i in range(3):
                packed.writestr(f"é/{i} b", bytes(1000))
    for limits in ({"max_bytes": 2999, "max_files": 3}, {"max_bytes": 3000, "max_files": 2}):
        _refused("FETCH-SIZE", unpack, path, tmp_path / "to", **limits)
        assert not (tmp_path / "to").exists()
    unpack(path, tmp_path / "to", max_bytes=3000, max_files=3)
    assert sorted(p.name for p in (tmp_path / "to/é").iterdir()) == ["0 b", "1 b", "2 b"]
    content = path.read_bytes()
    for cut in (1, 3, 30, len(content) // 2):
        path.write_bytes(content[:cut])
        _refused("FETCH-ARCHIVE", unpack, path, tmp_path / "to", max_bytes=3000, max_files=3)
    assert len(list((tmp_path / "to/é").iterdir())) == 3, "the older folder stays"


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(10240))
    _refused("FETCH-SIZE", unpack, tmp_path / "a.tar", tmp_path / "to", max_bytes=100, max_files=9)


# ---- manifests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": -1}, {"bytes": 1.5}, {"bytes": True}, {"bytes": "1"}, {"sha256": "x" * 64}, {"sha256": 1},
        {"url": "x"},
        {"url": "file:///etc/passwd"}, {"url": "http://[1"}, {"url": "http://a:b"}, {"path": "../x"}, {"path": "/x"},
        {"path": "a\\b"}, {"path": "a\x00"}, {"path": "\ud800"}, {"path": ""}, {"path": 3}, {"bids": 3},
        {"bids": ["../x"]}, {"bids": ["x", "X"]}, {"bids": ["x", "x/y"]}, {"more": 1}, {"unpack": {}}, {"unpack": "x"},
        {"unpack": {"into": "..", "bytes": 1, "files": 1}},
    ],
    ids=repr,
)  # fmt: skip
def test_a_bad_entry_is_refused(tmp_path, change):
    entry = {"path": "a", "url": "https://x.org/a", "sha256": ZERO, "bytes": 1}
    manifests = _set(tmp_path, "", [], files=[entry])
    assert read_manifests(manifests)["set"].files[0].path == "a"
    manifests = _set(tmp_path, "", [], files=[{**entry, **change}])
    error = _refused("FETCH-MANIFEST", read_manifests, manifests)
    assert error.where == str(tmp_path / "set.json")
    str(error).encode()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b"[]", b"3", b"[" * 100000, b'{"a": ' + b"9" * 5000 + b"}", b"NaN", b'{"a": 1, "a": 2}'],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "on_request").mkdir()
    for read, place in ((read_manifests, tmp_path), (read_requests, tmp_path / "on_request")):
        (place / "x.json").write_bytes(text)
        _refused("FETCH-MANIFEST", read, tmp_path)


def test_what_must_be_asked_for_says_how():
    for name, request in read_requests().items():
        error = _refused("FETCH-ASK", find_manifest, name)
        assert request.where in str(error) and request.terms in str(error) and request.layout in str(error)


# ---- BIDS -----------------------------------------------------------------------------------------------------------

UNKNOWN = {"FlipAngle", "RepetitionTimeExcitation"}  # BIDS wants them for MTS; nobody has published them


@pytest.mark.parametrize("name", ["sct_testing_data", "sct_tutorial_data", "open_ms_data"])
def test_a_set_is_laid_out_as_valid_bids(mirror, tmp_path, name):
    folder = lay_out_bids(name, tmp_path / "a set é", progress=False)
    manifest = find_manifest(name)
    for entry in manifest.files:
        for place in entry.bids:
            assert (folder / place).read_bytes() == (mirror / name / entry.path).read_bytes()
    assert manifest.attribution in (folder / "README").read_text(encoding="utf-8")
    program = Path(sys.executable).parent / "bids-validator-deno"
    asked = [program, "--recursive", "--format", "json", folder]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=99)

    def errors(part):
        found = [issue for issue in part["issues"]["issues"] if issue.get("severity") == "error"]
        return found + [one for sub in (part.get("derivativesSummary") or {}).values() for one in errors(sub)]

    found = errors(json.loads(run.stdout))
    assert {issue.get("subCode") for issue in found} <= UNKNOWN, found
    _refused("FETCH-BIDS", lay_out_bids, name, folder, progress=False)


def test_a_folder_that_cannot_be_written_is_named(mirror, tmp_path):
    (tmp_path / "file").write_text("")
    _refused("FETCH-DISK", lay_out_bids, "sct_testing_data", tmp_path / "file" / "x", progress=False)
    _refused("FETCH-BIDS", lay_out_bids, "sct_testing_data", tmp_path / "file", progress=False)
    assert os.listdir(tmp_path) == ["file"]
