"""What becomes of each of the 25 bad inputs: made by ``msfilm.phantom.faults`` and fed to the commands, as a table.

    python benchmarks/faults_table.py      # writes results/faults-table.json, and the same to read as FAULTS.md

``tests/test_check.py`` runs the same rows with the same functions and holds that they come out as promised.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from msfilm.data.nifti import read_image, write_nifti
from msfilm.data.prepare import prepare
from msfilm.data.slices import SliceSet
from msfilm.data.split import check_split
from msfilm.errors import MsfilmError
from msfilm.files import made_by, write_json
from msfilm.phantom.faults import FAULTS, fault_files, make_fault

OUT = Path(__file__).resolve().parent / "results" / "faults-table.json"
ABOUT = """Each fault is made by `msfilm.phantom.faults` in a small data set of good scans, and fed to the commands
(`python benchmarks/faults_table.py` writes this page; `tests/test_check.py` holds that it stays so). Exit codes are
those of `msfilm check` and `msfilm prepare`; the good scans beside the broken one are prepared in every row."""
# Beside the default of each row: the other ways in which the same thing happens, and the code that each must give.
VARIANTS: dict[int, list[tuple[dict[str, Any], str, str]]] = {
    1: [({"keep": 0.1}, "NIFTI-TRUNCATED", "refused")],
    3: [({"kind": "raw"}, "NIFTI-UNREADABLE", "refused")],
    4: [({"value": "inf"}, "NIFTI-NAN", "refused")],
    5: [({"volumes": 1}, "NIFTI-AXES", "warned")],
    6: [({"value": value}, "NIFTI-PIXDIM", "refused") for value in (-0.75, math.nan, 1.5)],
    8: [({"mm": 0.2}, "NIFTI-FORMS-NEAR", "warned")],
    9: [({"kind": "same"}, "NIFTI-SINGULAR", "refused")],
    11: [({"kind": "flip"}, "MASK-APART", "refused"),
         ({"kind": "mirror", "axis": 0}, "MASK-TURNED", "warned")],
    12: [({"kind": "spacing"}, "MASK-GRID", "refused")],
    14: [({"value": 0.5}, "MASK-VALUES", "refused")],
    18: [({"kind": "complex"}, "NIFTI-DTYPE", "refused")],
    19: [({"kind": kind}, "NIFTI-SIZE", "refused") for kind in ("bomb", "tail")],
    20: [({"value": -3}, "NIFTI-DIMS", "refused")],
    21: [({"kind": kind}, f"SIDECAR-{kind.upper()}", "warned") for kind in ("missing", "field", "unit")],
    22: [({"resaved": True}, "IMAGE-TWICE", "refused")],
}


def command(*words: Any) -> tuple[int, str]:
    """Run ``msfilm WORDS`` in this process: exit code, and all that it printed."""
    from msfilm.cli import main

    said, before = io.StringIO(), sys.argv
    sys.argv = ["msfilm", *map(str, words)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_row(row: int, folder: Path, **vary: Any) -> dict[str, Any]:
    """Make the fault of a row in ``folder`` and put the data set through ``msfilm check`` and ``msfilm prepare``.

    Returns:
        What the check said of the volume with the fault (code, verdict, message), exit codes of both commands, which
        patients were prepared, codes in ``refused.json`` and in the notes of the prepared volumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset = make_fault(row, folder / "data", **vary)
    out, listing = folder / "slices", folder / "found.json"
    network = ["--network", "film-contrast-small"] if row == 23 else []
    checked, text = command("check", dataset, "--quiet", "--json", listing, *network)
    prepared, told = command("prepare", dataset, out, "--quiet")
    entries = json.loads(listing.read_text(encoding="utf-8"))
    slices = SliceSet.load(out)
    refused = json.loads((out / "refused.json").read_text(encoding="utf-8"))
    return {
        "row": row,
        "dataset": dataset,
        "entries": entries,
        "exit_check": checked,
        "exit_prepare": prepared,
        "patients": sorted(slices.volumes["patient"]),
        "refused": [entry["code"] for entry in refused],
        "notes": slices.volumes["notes"].to_dict(),
        "text": text + told,
    }


def other_ways(row: int, dataset: Path, folder: Path) -> list[tuple[str, str, str, int | None]]:
    """Where a fault is not in the files, or not only there: (what was done, code, message, exit code if a command)."""
    if row == 16:
        return [_said("write_nifti as int16", lambda: _write_int16(dataset, folder))]
    if row == 22:
        return [_said("a split with one of the two on each side", lambda: _split_twins(dataset))]
    if row == 23:
        scan = fault_files(23, dataset)[0]
        cord = next(dataset.rglob("sub-002_*_seg-manual.nii.gz"))
        words = ("segment", scan, folder / "mask.nii.gz", "--contrast", "FLAIR", "--cord", cord)
        return [_ran("msfilm segment --contrast FLAIR", words)]
    if row == 25:
        found = []
        with full_disk(20_000):
            found.append(_ran("msfilm prepare, full disk", ("prepare", dataset, folder / "full", "--quiet")))
            found.append(_said("write_nifti, full disk", lambda: _write_int16(dataset, folder)))
        (folder / "file").write_text("in the way")
        found.append(_ran("msfilm prepare below a file", ("prepare", dataset, folder / "file" / "out", "--quiet")))
        found.append(_ran("msfilm check --json below a file",
                          ("check", dataset, "--quiet", "--json", folder / "file" / "a.json")))  # fmt: skip
        return found
    return []


def _write_int16(dataset: Path, folder: Path) -> None:
    scan = read_image(next(dataset.glob("sub-002/anat/*.nii.gz"), None) or sorted(dataset.glob("sub-*/anat/*.gz"))[0])
    noise = np.random.default_rng(0).normal(0, 1, scan.data.shape)  # which packing cannot shrink below the limit
    write_nifti(folder / "again.nii.gz", np.rint(scan.data + noise), scan, dtype=np.int16)


def _split_twins(dataset: Path) -> None:
    """Twins that were prepared apart, so that nothing refused the second one, meet in one split."""
    import shutil

    parts = []
    for patient, other in (("sub-001", "sub-002"), ("sub-002", "sub-001")):
        alone = dataset.parent / f"only {patient}"
        shutil.copytree(dataset, alone, ignore=shutil.ignore_patterns(other, "sub-003"))
        parts.append(prepare(alone, progress=False)[0])
    slices = SliceSet.concat(parts)
    sides = slices.volumes.groupby("patient").size().astype(object)
    sides[:] = ["train", "test"]
    check_split(slices, sides.astype(str))


def _said(what: str, work) -> tuple[str, str, str, int | None]:
    try:
        work()
    except MsfilmError as fault:
        return what, fault.code, fault.what, None
    return what, "", "went through", None


def _ran(what: str, words: tuple) -> tuple[str, str, str, int | None]:
    code, text = command(*words)
    line = next((line for line in text.splitlines() if line.startswith("msfilm: [")), text[-200:])
    name, _, rest = line.removeprefix("msfilm: [").partition("] ")
    fact = rest.split(" -> ")[0]
    return what, name, fact.split(": ", 1)[1] if fact.startswith("/") else fact, code


def _fed(fault, vary: dict[str, Any]) -> str:
    return fault.title + (f" ({', '.join(f'{key}={value}' for key, value in vary.items())})" if vary else "")


def measure() -> list[dict[str, Any]]:
    """All rows with their variants, as lines of the table."""
    lines = []
    for row, fault in FAULTS.items():
        for vary, code, _ in [({}, fault.code, fault.verdict), *VARIANTS.get(row, [])]:
            with tempfile.TemporaryDirectory() as place:
                found = run_row(row, Path(place), **vary)
                mine = [entry for entry in found["entries"] if entry["code"] == code]
                if fault.at == "check" or row == 23:
                    lines.append(_line(row, _fed(fault, vary), "check, prepare", mine[0]["code"], mine[0]["verdict"],
                                       mine[0]["message"].split(" -> ")[0], found))  # fmt: skip
                else:
                    lines.append(_line(row, _fed(fault, vary), "check, prepare", "", "good", "nothing is wrong", found))
                for what, name, message, exit_code in other_ways(row, found["dataset"], Path(place)):
                    lines.append({"row": row, "fed": fault.title, "to": what, "code": name, "verdict": "refused",
                                  "message": message, "exit": exit_code})  # fmt: skip
    return lines


def _line(row, fed, to, code, verdict, message, found) -> dict[str, Any]:
    return {"row": row, "fed": fed, "to": to, "code": code, "verdict": verdict, "message": message,
            "exit": found["exit_check"], "exit_prepare": found["exit_prepare"],
            "prepared": found["patients"]}  # fmt: skip


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table for people."""
    text = ["| # | fed | to | came out | exit code |", "|---|---|---|---|---|"]
    for line in lines:
        exits = [line.get("exit"), line.get("exit_prepare")]
        shown = ", ".join(str(code) for code in exits if code is not None) or "-"
        out = f"{line['verdict']} `{line['code']}`: {line['message']}" if line["code"] else line["verdict"]
        text.append(f"| {line['row']} | {line['fed']} | {line['to']} | {out.replace('|', '/')} | {shown} |")
    return "\n".join(text)


if __name__ == "__main__":
    table = measure()
    write_json(OUT, {"made_by": made_by("python benchmarks/faults_table.py"), "rows": table})
    text = f"# What becomes of 25 bad inputs\n\n{ABOUT}\n\n{markdown(table)}\n"
    OUT.parent.with_name("FAULTS.md").write_text(text, encoding="utf-8")
    print(text)
