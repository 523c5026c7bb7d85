"""How much memory preparing and checking take, over 10 volumes and over 100: it should not grow with their number.

    python benchmarks/prepare_memory.py [--keep FOLDER]       # writes results/prepare-memory.json

Each measurement is a process of its own; what is reported is its highest resident memory, less that of a process that
only imports the same modules. Linux only (/proc). glibc keeps freed blocks for later, in pieces that fit ever worse, so
each is measured twice: as it comes, and with blocks above 256 kB given back at once (MALLOC_MMAP_THRESHOLD_), which
shows what is held. What remains between 10 and 100 is that the largest of 100 volumes is larger than the largest of 10.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from msfilm.files import made_by, write_json

OUT = Path(__file__).resolve().parent / "results" / "prepare-memory.json"
VOLUMES = (10, 100)
ALLOCATORS = {"as it comes": {}, "given back": {"MALLOC_MMAP_THRESHOLD_": "262144"}}
_START = """
import json, sys
from pathlib import Path
import pandas, pyarrow.parquet
from msfilm.data.check import check
from msfilm.data.prepare import prepare
data, out = sys.argv[1:]
done = {}
"""
# VmHWM is this program's own; ru_maxrss would begin at that of the process which started it
_END = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps(done | {"peak_mb": int(status["VmHWM"].split()[0]) / 1024}))
"""
_WORK = {
    "import only": "",
    "prepare to disk": "slices, refused = prepare(data, out, progress=False)\ndone = {'volumes': len(slices.volumes)}",
    "prepare in memory": "slices, refused = prepare(data, progress=False)\ndone = {'volumes': len(slices.volumes)}",
    "check": "done = {'volumes': len(check(data, progress=False).volumes)}",
}


def peak(work: str, data: Path, out: Path, allocator: str) -> dict:
    """Highest resident memory of one process in MB, and the volumes it went through."""
    run = subprocess.run([sys.executable, "-c", _START + _WORK[work] + _END, str(data), str(out)],
                         env=os.environ | {"OMP_NUM_THREADS": "1"} | ALLOCATORS[allocator], capture_output=True,
                         text=True, check=True)  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def measure(folder: Path) -> list[dict]:
    """One row a kind of work, number of volumes and allocator."""
    from msfilm.phantom import CohortPlan, write_cohort

    plan = CohortPlan(0, ("T2w_ax",), stations=1)  # one scan a patient
    rows = []
    for volumes in VOLUMES:
        data = write_cohort(folder / f"{volumes}", patients=volumes, plan=plan, workers=1, progress=False)
        for allocator in ALLOCATORS:
            base = 0.0
            for work in _WORK:
                found = peak(work, data, folder / f"out-{volumes}-{work}", allocator)
                if work == "import only":
                    base = found["peak_mb"]
                elif found["volumes"] != volumes:
                    raise SystemExit(f"{work}: {found['volumes']} volumes in place of {volumes}")
                rows.append({"work": work, "volumes": volumes, "allocator": allocator,
                             "peak_mb": round(found["peak_mb"], 1),
                             "above_import_mb": round(found["peak_mb"] - base, 1)})  # fmt: skip
    return rows


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("--keep", type=Path, help="Folder for the phantoms, kept for another time.")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as place:
        table = measure(given.keep or Path(place))
    write_json(OUT, {"made_by": made_by("python benchmarks/prepare_memory.py"), "rows": table})
    for row in table:
        above = f"{row['above_import_mb']:6.1f} above the imports"
        print(f"{row['work']:18} {row['volumes']:4} volumes, {row['allocator']:11}  {row['peak_mb']:7.1f} MB, {above}")
