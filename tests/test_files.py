"""A folder is replaced whole: through links, after kills at any step, beside others at work, or refused beforehand."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from msfilm import files
from msfilm.errors import InputError, RunError
from msfilm.files import atomic_folder, ready_folder, strangers

CODES = {"target": "SOME-TARGET", "write": "SOME-WRITE"}


def put(folder, text):
    with atomic_folder(folder) as temporary:
        (temporary / "text").write_text(text)


@pytest.fixture(params=["in one step", "in two steps"])
def steps(request, monkeypatch):
    """With the system's exchange of two folders, and as on systems without."""
    if request.param == "in two steps":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("only Linux can")
    return request.param


def test_a_folder_is_replaced_whole_or_stays(tmp_path, steps):
    put(tmp_path / "a b" / "out", "one")
    (tmp_path / "a b" / "out" / "more").write_text("of the first")
    put(tmp_path / "a b" / "out", "two")
    assert {path.name for path in (tmp_path / "a b" / "out").iterdir()} == {"text"}
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a b" / "out") as temporary:
        (temporary / "text").write_text("three")
        raise KeyboardInterrupt
    assert (tmp_path / "a b" / "out" / "text").read_text() == "two"
    assert os.listdir(tmp_path / "a b") == ["out"] and not files._mine


def test_a_link_is_followed(tmp_path, steps):
    put(tmp_path / "there" / "out", "one")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "out")
    (tmp_path / "early").symlink_to(tmp_path / "there" / "new")   # what it leads to does not exist yet
    put(tmp_path / "link", "two")
    put(tmp_path / "early", "first")
    assert (tmp_path / "there" / "out" / "text").read_text() == "two"
    assert (tmp_path / "there" / "new" / "text").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["early", "link", "there"]
    assert (tmp_path / "link").is_symlink() and (tmp_path / "early").is_symlink()
    assert sorted(os.listdir(tmp_path / "there")) == ["new", "out"]


def test_what_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(os.path, "ismount", lambda path: os.fspath(path).endswith("mount"))
    monkeypatch.chdir(tmp_path / "here")
    for name, said in (("mount", "mount point"), ("here", "in which this runs"), ("loop", "leads to itself")):
        with pytest.raises(InputError, match=rf"SOME-TARGET.*{name}.*{said}"):
            ready_folder(tmp_path / name, **CODES)
        with pytest.raises(OSError, match=said), atomic_folder(tmp_path / name):
            pytest.fail("too late")
    with pytest.raises(OSError, match="a file"), atomic_folder(tmp_path / "file"):
        pytest.fail("too late")
    with pytest.raises(RunError, match=r"SOME-WRITE.*file: cannot write: Not a directory"):
        ready_folder(tmp_path / "file" / "out", **CODES)
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(RunError, match=rf"SOME-WRITE.*cannot write: {os.strerror(errno.EACCES)}"):
        ready_folder(tmp_path / "none" / "out", **CODES)
    assert sorted(os.listdir(tmp_path)) == ["file", "here", "loop", "mount"]


KILLED = """
import os, sys, signal
from msfilm import files
moment, exchange = sys.argv[2:]
if exchange == "no":
    files._exchange = lambda one, other: False
real, calls = os.replace, []
def replace(one, other):
    calls.append(one)
    if moment == f"before replace {len(calls)}":
        os.kill(os.getpid(), signal.SIGKILL)
    real(one, other)
def rmtree(path, **more):
    if calls or exchange == "yes":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
if moment == "before the old one goes":
    files.shutil.rmtree = rmtree
with files.atomic_folder(sys.argv[1]) as temporary:
    (temporary / "text").write_text("new")
    if moment == "at work":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
@pytest.mark.parametrize(("moment", "exchange", "kept"), [
    ("at work", "no", "old"), ("before replace 1", "no", "old"), ("before replace 2", "no", "old"),
    ("before the old one goes", "no", "new"),
    pytest.param("before the old one goes", "yes", "new",
                 marks=pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can")),
])  # fmt: skip
def test_after_a_kill_at_any_step_there_is_a_whole_folder_and_nothing_else(tmp_path, moment, exchange, kept):
    out = tmp_path / "out (1)"
    put(out, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), moment, exchange], timeout=60, check=False)
    assert done.returncode == -9 and len(os.listdir(tmp_path)) > 1 - (moment == "before replace 2")
    assert ready_folder(out, **CODES) == out
    assert os.listdir(tmp_path) == [out.name] and (out / "text").read_text() == kept
    put(out, "next")
    assert os.listdir(tmp_path) == [out.name] and (out / "text").read_text() == "next"


def test_only_what_the_dead_of_this_machine_left_goes(tmp_path):
    host, dead = files._host(), subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                                               capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    gone = [f".tmp-out-{host}-{dead}-abcdefgh", f".tmp-out-{host}-{dead}-abcdefgh-old",
            f".tmp-out-{host}-{os.getpid()}-abcdefgh"]   # of an earlier process that had this one's number
    kept = [f".tmp-out-{host}-{os.getppid()}-abcdefgh", f".tmp-out-zzzz-{dead}-abcdefgh", ".tmp-out-mine",
            f".tmp-out.2-{host}-{dead}-abcdefgh", f"out-{host}-{dead}-abcdefgh"]  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).mkdir()
    put(tmp_path / "out", "one")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "out"])


def test_many_at_once_leave_a_whole_folder(tmp_path, steps):
    put(tmp_path / "out", "0")
    faults = []

    def write(number):
        try:
            for _ in range(15):
                put(tmp_path / "out", number)
        except OSError as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and (tmp_path / "out" / "text").read_text() in "012" and os.listdir(tmp_path) == ["out"]


def test_strangers_are_what_would_be_lost(tmp_path):
    for name in ("known", "b", "a", ".tmp-x", ".DS_Store", "Thumbs.db", ".hidden"):
        (tmp_path / name).write_text("")
    assert strangers(tmp_path, ["known"]) == [".hidden", "a", "b"]
    assert strangers(tmp_path / "a", ["known"]) == ["a"] and strangers(tmp_path / "none", []) == []
