"""Public files: the mirror, the download, and every way in which either can go wrong. No test leaves this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from msfilm.data.fetch import MIRROR, fetch, fetch_file, read_manifests
from msfilm.errors import FetchError

GOOD = b"a scan, as its authors published it" * 100
PATHS = ("anat/good.nii.gz", "anat/wrong.nii.gz", "anat/missing.nii.gz", "anat/cut.nii.gz", "anat/broken.nii.gz")


class _Server(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.endswith("missing.nii.gz"):
            self.send_error(404)
            return
        if self.path.endswith("broken.nii.gz"):
            self.send_error(503)
            return
        body = GOOD[:-1] + b"?" if self.path.endswith("wrong.nii.gz") else GOOD
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if self.path.endswith("cut.nii.gz") else body)
        self.server.asked.append(self.path)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _manifests(folder, address):
    entries = [
        {"path": path, "url": f"{address}/{path}", "sha256": hashlib.sha256(GOOD).hexdigest(), "bytes": len(GOOD)}
        for path in PATHS
    ]
    manifest = {
        "name": "small",
        "title": "A small set",
        "repository": "someone/small",
        "commit": "0123456789abcdef",
        "licence": "MIT",
        "citation": "Someone (2020)",
        "files": entries,
    }
    folder.mkdir()
    (folder / "small.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def manifests(tmp_path, server, monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    return _manifests(tmp_path / "manifests", f"http://127.0.0.1:{server.server_address[1]}")


def _left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_download_is_verified_and_kept(manifests, server, tmp_path, capsys):
    out = tmp_path / "a place é"
    folder = fetch("small", files=[PATHS[0]], out=out, manifests=manifests, progress=False)
    assert folder == out / "small"
    assert (folder / PATHS[0]).read_bytes() == GOOD
    said = capsys.readouterr().out
    assert "licence MIT" in said and "cite: Someone (2020)" in said
    assert fetch_file(f"small/{PATHS[0]}", out=out, manifests=manifests, progress=False).read_bytes() == GOOD
    assert len(server.asked) == 1, "what is there and right is not downloaded again"


def test_the_cache_folder_is_the_default(manifests, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = fetch_file(f"small/{PATHS[0]}", manifests=manifests, progress=False)
    import pooch

    assert found.is_relative_to(pooch.os_cache("msfilm")) and found.read_bytes() == GOOD


def test_a_damaged_copy_is_downloaded_again(manifests, tmp_path):
    copy = tmp_path / "small" / PATHS[0]
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"half")
    fetch("small", files=[PATHS[0]], out=tmp_path, manifests=manifests, progress=False)
    assert copy.read_bytes() == GOOD


@pytest.mark.parametrize(
    ("path", "code"),
    [(PATHS[1], "FETCH-HASH"), (PATHS[2], "FETCH-HTTP"), (PATHS[3], "FETCH-OFFLINE"), (PATHS[4], "FETCH-HTTP")],
)
def test_a_bad_answer_leaves_nothing_and_says_what_to_do(manifests, tmp_path, path, code):
    with pytest.raises(FetchError) as caught:
        fetch("small", files=[path], out=tmp_path / "out", manifests=manifests, progress=False)
    assert caught.value.code == code
    assert MIRROR in str(caught.value) and "phantom" in str(caught.value)
    assert _left(tmp_path / "out") == []


def test_without_a_network_the_message_offers_mirror_and_phantom(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    nobody = _manifests(tmp_path / "manifests", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(FetchError, match=f"FETCH-OFFLINE.*{MIRROR}.*phantom"):
        fetch("small", files=[PATHS[0]], out=tmp_path / "out", manifests=nobody, progress=False)
    assert _left(tmp_path / "out") == []


def test_a_folder_that_cannot_be_made_is_named(manifests, tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(FetchError, match="FETCH-DISK"):
        fetch("small", files=[PATHS[0]], out=tmp_path / "out", manifests=manifests, progress=False)


@pytest.mark.parametrize(
    ("address", "meant"), [("smal/anat/good.nii.gz", "small"), ("small/anat/god.nii.gz", "anat/good.nii.gz")]
)
def test_an_unknown_name_gets_the_one_meant(manifests, address, meant):
    with pytest.raises(FetchError, match=f"FETCH-UNKNOWN.*did you mean '{meant}'"):
        fetch_file(address, manifests=manifests, progress=False)


def test_a_mirror_is_read_in_place_and_checked(manifests, server, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    monkeypatch.setenv(MIRROR, str(mirror))
    copy = mirror / "small" / PATHS[0]
    with pytest.raises(FetchError, match=f"FETCH-OFFLINE.*unset {MIRROR}"):
        fetch_file(f"small/{PATHS[0]}", manifests=manifests)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(GOOD)
    assert fetch_file(f"small/{PATHS[0]}", manifests=manifests) == copy
    other = fetch_file(f"small/{PATHS[0]}", out=tmp_path / "out", manifests=manifests)
    assert other == tmp_path / "out" / "small" / PATHS[0] and other.read_bytes() == GOOD
    copy.write_bytes(GOOD[:-1])
    with pytest.raises(FetchError, match="FETCH-HASH"):
        fetch_file(f"small/{PATHS[0]}", manifests=manifests)
    assert server.asked == []


def test_our_manifests_are_complete():
    found = read_manifests()
    assert {"sct_testing_data", "sct_tutorial_data"} <= set(found)
    for manifest in found.values():
        assert manifest.licence and manifest.citation and len(manifest.commit) == 40
        assert len({entry.path for entry in manifest.files}) == len(manifest.files) > 0
        for entry in manifest.files:
            assert manifest.commit in entry.url and entry.url.endswith(entry.path)
            assert len(entry.sha256) == 64 and entry.bytes > 0
            assert not entry.path.startswith("/") and ".." not in entry.path.split("/")


def test_the_mirror_here_is_what_the_manifests_say(mirror):
    for name, manifest in read_manifests().items():
        assert fetch(name, progress=False) == mirror / name
        assert all((mirror / name / entry.path).stat().st_size == entry.bytes for entry in manifest.files)
