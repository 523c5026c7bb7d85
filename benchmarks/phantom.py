"""How fast the phantom is made: a cohort as files, and straight to slices; with the memory that it takes.

    python benchmarks/phantom.py [--paper]      writes benchmarks/results/phantom.json

Each case runs in a process of its own. With --paper the slices of all 642 patients besides those of the test cohort's
200. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from msfilm.files import made_by, write_json

CASE = """
import json, sys, time, resource
from pathlib import Path
from msfilm.phantom import CohortPlan, make_slices, write_cohort
from msfilm.phantom.roster import cohort_size
what, name, patients, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
seed = cohort_size(name)[1]
started = time.perf_counter()
if what == "files":
    write_cohort(out, patients=patients, seed=seed, progress=False)
    found = {"volumes": len(list(Path(out).glob("sub-*/anat/*.nii.gz"))),
             "bytes": sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())}
else:
    slices = make_slices(patients, CohortPlan(seed), out, progress=False)
    found = {"volumes": len(slices.volumes), "slices": len(slices)}
    axial = slices.table.groupby("volume").size()
    found["slices_a_volume"] = round(float(axial.mean()), 2)
seconds = time.perf_counter() - started
found |= {"patients": patients, "seconds": round(seconds, 1),
          "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
          "peak_of_largest_worker_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)}
if "slices" in found:
    found["slices_per_second"] = round(found["slices"] / seconds, 1)
print(json.dumps(found))
"""


def run(what: str, name: str, patients: int) -> dict:
    """One case in a fresh process; times include starting the worker processes."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CASE, what, name, str(patients), str(Path(folder) / "out")],
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the cases and write what they gave."""
    cases = [("files", "course", 40), ("slices", "test", 50), ("slices", "test", 200)]
    if "--paper" in sys.argv:
        cases.append(("slices", "paper", 642))
    results = {"cores": psutil.cpu_count(), "load_before": round(psutil.getloadavg()[0], 2), "cases": {}}
    for what, name, patients in cases:
        started = time.perf_counter()
        results["cases"][f"{what} {name} {patients}"] = run(what, name, patients)
        took = time.perf_counter() - started
        print(f"{what} {name} {patients}: {took:.1f} s", results["cases"][f"{what} {name} {patients}"])
    results["made_by"] = made_by("python benchmarks/phantom.py " + " ".join(sys.argv[1:]))
    write_json(Path(__file__).parent / "results" / "phantom.json", results)


if __name__ == "__main__":
    main()
