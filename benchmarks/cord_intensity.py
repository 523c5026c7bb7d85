"""What the middle of the cord looks like to the networks that ship: intensities and centrelines of their training.

    python benchmarks/cord_intensity.py [--patients 60]      writes benchmarks/results/cord-intensity.json

The first patients of the cohort on which film-contrast-small and unet-small were trained (seed 1; a phantom patient
depends on seed and number alone). A report on a scan lays the scan's own values over these (msfilm segment --report).
20 s on 2 cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from msfilm.evaluate.scan_facts import bend_mm, centre_values
from msfilm.files import made_by, write_json
from msfilm.phantom import CohortPlan, make_slices

SEED = 1  # of the shipped networks' training
KEYS = ("shares", "low", "middle", "high", "bend")
EDGES = np.round(np.arange(0, 3.01, 0.05), 2)  # of the histogram, in units of the cord's median


def measure(patients: int) -> dict:
    """Per contrast: the histogram of the cord's middle (mean and band over scans), its percentiles, and bends."""
    slices = make_slices(patients, CohortPlan(SEED), progress=True)
    contrasts: dict[str, dict[str, list]] = {}
    for name, row in slices.volumes.iterrows():
        own = (slices.table["volume"] == name).to_numpy()
        grid = slices.grid(name)
        found = contrasts.setdefault(str(row["contrast"]), {key: [] for key in KEYS})
        values = centre_values(slices.images[own, 0].astype(np.float32), grid.spacing_mm)
        counts, _ = np.histogram(np.clip(values, EDGES[0], EDGES[-1] - 1e-6), EDGES)
        found["shares"].append(counts / counts.sum())
        for key, percent in (("low", 5), ("middle", 50), ("high", 95)):
            found[key].append(float(np.percentile(values, percent)))
        found["bend"].append(float(np.max(bend_mm(grid), initial=0.0)))
    return {contrast: _summary(found) for contrast, found in sorted(contrasts.items())}


def _summary(found: dict[str, list]) -> dict:
    shares = np.array(found["shares"])
    ranges = {key: [round(float(end), 3) for end in np.percentile(found[key], (1, 99))]
              for key in ("low", "middle", "high", "bend")}
    low, high = np.percentile(shares, (5, 95), axis=0)
    return {"scans": len(shares), "mean": shares.mean(0).round(5).tolist(), "band": [low.round(5).tolist(),
            high.round(5).tolist()], "ranges": ranges}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=60)
    patients = parser.parse_args().patients
    contrasts = measure(patients)
    for contrast, found in contrasts.items():
        print(contrast, found["scans"], "scans", found["ranges"])
    out = Path(__file__).parent / "results" / "cord-intensity.json"
    write_json(out, {"source": f"phantom, the first {patients} patients of seed {SEED}", "seed": SEED,
                     "radius_mm": 3.0, "edges": EDGES.tolist(), "contrasts": contrasts, "made_by": made_by()})
    print(out)


if __name__ == "__main__":
    main()
