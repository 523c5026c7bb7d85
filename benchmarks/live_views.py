"""How long each control of each live view takes to answer: from the new value to the picture ready to be sent.

Counted are the view's own work, the drawing, and the PNG of what changed; not the browser, which shows it a moment
later. Each control is moved 20 times from where the view's example starts. Law: a median of 150 ms over all of them,
300 ms at most for any control's median.

    python benchmarks/live_views.py [VIEW ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ipywidgets
import numpy as np

from msfilm.files import made_by, write_json
from msfilm.machine import machine

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from live_views import VIEWS, moves, view_class  # noqa: E402

MOVES = 20


def measure(name: str) -> list[dict]:
    """A row for each control of a view: median and longest answer in ms."""
    started = time.perf_counter()
    view = view_class(name).example()
    view.picture()
    made_s = time.perf_counter() - started
    rows = []
    for key, control in view.controls.items():
        if isinstance(control, ipywidgets.Button):
            continue
        times = []
        for move in moves(control, MOVES):
            started = time.perf_counter()
            move()
            view.canvas.draw()
            times.append(1000 * (time.perf_counter() - started))
        if times:
            rows.append({"view": name, "control": key, "kind": type(control).__name__, "moves": len(times),
                         "median_ms": round(float(np.median(times)), 1), "longest_ms": round(max(times), 1),
                         "example_s": round(made_s, 1)})
    view.close()
    return rows


def main(names: list[str]) -> None:
    """Measure, print, and keep the result where all views were measured."""
    rows = []
    for name in names or VIEWS:
        rows += measure(name)
        for row in rows:
            if row["view"] == name:
                print(f"{row['view']:18} {row['control']:22} {row['kind']:16} median {row['median_ms']:6.1f} ms   "
                      f"longest {row['longest_ms']:6.1f} ms", flush=True)
    medians = [row["median_ms"] for row in rows]
    print(f"{len(rows)} controls: median {np.median(medians):.0f} ms, slowest control {max(medians):.0f} ms")
    if not names:
        write_json(HERE / "results" / "live-views.json", {
            "median_ms": round(float(np.median(medians)), 1), "slowest_control_ms": max(medians),
            "longest_ms": max(row["longest_ms"] for row in rows), "moves": MOVES, "rows": rows,
            "machine": machine(), "made_by": made_by("python benchmarks/live_views.py")})


if __name__ == "__main__":
    main(sys.argv[1:])
