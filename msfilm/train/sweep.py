"""Grid search: every job of a grid, resumable, one row each in a table; the best is chosen by validation alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from msfilm.data.slices import SliceSet
from msfilm.errors import RunError, SettingError
from msfilm.files import made_by, write_json
from msfilm.train.grid import Grid, read_grid, write_grid
from msfilm.train.jobs import run_all, write_refused
from msfilm.train.loop import TrainConfig

__all__ = ["Grid", "SweepResult", "read_grid", "run_all", "sweep"]


@dataclass(frozen=True)
class SweepResult:
    """What a grid search came to.

    Attributes:
        table: a row a job, as ``run_all`` gives it.
        best: the settings with the highest mean validation Dice over seeds; its seed is that of ``run``.
        name: what varies, for ``best``: 'batch_size=16,depth=2'.
        val_dice: that mean.
        run: folder of the run with these settings whose own validation Dice is highest.
        folder: where runs.csv, best.json and grid.yml are.
    """

    table: pd.DataFrame
    best: TrainConfig
    name: str
    val_dice: float
    run: Path
    folder: Path


def sweep(grid: Grid | str | Path, out: str | Path, *, slices: SliceSet | str | Path | None = None,
          workers: int | None = None, progress: bool = True) -> SweepResult:
    """Train every job of a grid and choose the best settings by mean validation Dice over seeds; test is never seen.

    Settings of which a seed failed are chosen only where none finished with all its seeds. ``out`` gets grid.yml (the
    grid, so that another one is not mixed into the same folder), runs.csv, best.json and the runs.

    Args:
        grid: the grid, or its YAML file.
        out: folder; a sweep in it that was interrupted goes on.
        slices: the data, instead of the grid's own.
        workers: as in ``run_all``.
        progress: show bars.

    Raises:
        RunError: SWEEP-CONFIG, another grid was run in ``out``; SWEEP-NONE, no job finished; and those of run_all.
        SettingError: SWEEP-SLICES, no slices named; and those of ``read_grid``.
        InputError: those of ``read_grid`` and SliceSet.load.
    """
    grid, out = grid if isinstance(grid, Grid) else read_grid(grid), Path(out)
    slices = grid.slices if slices is None else slices
    if slices is None:
        raise SettingError("SWEEP-SLICES", "no slices to train on", where=grid.path,
                           mend="name their folder (--slices FOLDER), or write it in the file as 'slices: FOLDER'")
    if not isinstance(slices, SliceSet):
        slices = Path(slices)
        if not (slices / "slices.json").is_file():
            SliceSet.load(slices)   # says what is wrong before anything is written
    _same_grid(grid, out)
    jobs = grid.jobs()
    table = run_all(jobs, slices, out, workers=workers, progress=progress)

    table["_point"] = [name.rpartition(",seed=")[0] for name in table["name"]]
    good = table[table["status"] == "done"]
    if good.empty:
        raise RunError("SWEEP-NONE", f"none of {len(table)} jobs finished; the first: {table['error'].iloc[0]}",
                       where=out / "runs.csv", mend="mend what the column 'error' says, and call again")
    points = good.groupby("_point", sort=False)["val_dice"].agg(["mean", "size"])
    whole = points[points["size"] == len(grid.seeds)]
    name = (points if whole.empty else whole)["mean"].idxmax()   # the first of equals
    chosen = good[good["_point"] == name]
    top = chosen.loc[chosen["val_dice"].idxmax()]
    result = SweepResult(table.drop(columns="_point"), jobs[top["name"]], name, float(points["mean"][name]),
                         out / "runs" / top["run"], out)
    seeds = dict(zip((row.rpartition("=")[2] for row in chosen["name"]), chosen["val_dice"], strict=True))
    best = {
        "question": grid.question, "expected": grid.expected, "name": name, "chosen_by": "mean validation Dice",
        "val_dice": result.val_dice, "val_dice_by_seed": seeds, "run": top["run"], "config": asdict(result.best),
        "jobs": len(table), "failed": len(table) - len(good), "tried": points["mean"].to_dict(), "made_by": made_by()}
    try:
        write_json(out / "best.json", best)
    except OSError as error:
        raise write_refused(out / "best.json", error) from error
    return result


def _same_grid(grid: Grid, out: Path) -> None:
    """Keep the grid in ``out``, or see that the one there is this one."""
    kept = out / "grid.yml"
    if not kept.exists():
        try:
            write_grid(grid, kept)
        except OSError as error:
            raise write_refused(kept, error) from error
        return
    old = read_grid(kept)
    changed = [f"{part}.{name} ({_of(old, part, name)!r}, now {_of(grid, part, name)!r})"
               for part in ("base", "arms", "grid")
               for name in sorted(getattr(old, part).keys() | getattr(grid, part).keys())
               if _of(old, part, name) != _of(grid, part, name)]
    changed += [f"{name} ({getattr(old, name)!r}, now {getattr(grid, name)!r})"
                for name in ("seeds", "question", "expected") if getattr(old, name) != getattr(grid, name)]
    if changed:
        raise RunError("SWEEP-CONFIG", f"another grid was run in this folder: {'; '.join(changed)}", where=out,
                       mend="choose another folder, or go on with the grid in its grid.yml")


def _of(grid: Grid, part: str, name: str) -> Any:
    return getattr(grid, part).get(name)
