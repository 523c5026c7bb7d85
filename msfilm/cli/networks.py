"""Commands for networks: train, search, score, compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from msfilm.cli.app import Device, Quiet, app

__all__ = ["evaluate", "sweep", "table1", "train"]


@app.command()
def train(
    slices: Annotated[Path, typer.Argument(help="Folder of a SliceSet.")],
    run: Annotated[Path, typer.Argument(help="Folder for the run.")],
    config: Annotated[str | None, typer.Option(help="Named settings to start from: paper2020.")] = None,
    conditioning: Annotated[
        str | None, typer.Option(help="none (plain U-Net), contrast, acquisition, rater, centre, or contrast+rater ...")
    ] = None,
    contrast: Annotated[list[str] | None, typer.Option(help="Only this contrast (may be repeated).")] = None,
    mask: Annotated[str | None, typer.Option(help="Which mask to learn from.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    depth: Annotated[int | None, typer.Option(help="Poolings of the U-Net.")] = None,
    filters: Annotated[int | None, typer.Option(help="Channels of its first block.")] = None,
    dropout: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(help="Slices in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine, cyclic or plateau.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better score before it stops.")] = None,
    loss: Annotated[str | None, typer.Option(help="dice (as in the paper), dice-bce, bce, focal ...")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and augmentation.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Of the division of patients.")] = None,
    altered_truth: Annotated[float | None, typer.Option(help="Alter the masks: 1 as recommended, 0 not.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as film_form=sigmoid or augment.noise=0.05.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, as it was set.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network; what is not given keeps the default that TrainConfig states."""
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("slices", "run", "contrast", "config", "altered_truth", "setting", "resume", "quiet")
        and value is not None
    }
    from dataclasses import asdict

    from msfilm.data.slices import SliceSet
    from msfilm.files import read_json
    from msfilm.train.augment import AugmentConfig, with_altered_truth
    from msfilm.train.config import TrainConfig, named_config, with_settings
    from msfilm.train.loop import fit

    # A run that goes on keeps its settings, so they need not be said again.
    there = read_json(run / "config.json", code="RUN-CONFIG") if resume and (run / "config.json").is_file() else {}
    kept = there.get("config", {}) if isinstance(there, dict) else {}  # what is no description of a run, fit refuses
    kept = kept if isinstance(kept, dict) else {}
    if config is not None:
        kept = asdict(named_config(config)) | kept
    if altered_truth is not None:
        before = AugmentConfig(**kept["augment"]) if "augment" in kept else AugmentConfig()
        given["augment"] = asdict(with_altered_truth(before, altered_truth))
    wanted = TrainConfig.from_dict(kept | given | ({"contrasts": tuple(contrast)} if contrast else {}))
    wanted = with_settings(wanted, setting or [])
    result = fit(SliceSet.load(slices), wanted, run, resume=resume, progress=not quiet)
    print(f"best validation Dice {result.best_val_dice:.3f} in epoch {result.best_epoch} of {result.epochs}: {run}")


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML file: question, expected, base, arms, grid, seeds.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and their table; a sweep there goes on.")],
    slices: Annotated[Path | None, typer.Option(help="Folder of a SliceSet; by default the file's own.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="A SliceSet of other patients: score every point on it, choose nothing.")
    ] = None,
    cohorts: Annotated[
        Path | None, typer.Option(help="Where a file's own phantom cohorts are kept, for several experiments.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Of an experiment: copy experiment.json to this file too.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core, and 1 on a GPU.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train every combination in a grid of settings and choose by validation. Exit code 1 if a job failed.

    With --test it is an experiment: every point is scored on other patients and compared with the first one. So it is
    where the file describes its phantom cohorts: then it needs neither --slices nor --test.
    """
    from msfilm.evaluate.plan import is_plan

    if is_plan(grid):
        from msfilm.evaluate.experiment import run_plan

        _tell(run_plan(grid, out, cohorts=cohorts, workers=workers, progress=not quiet), out, keep)
        return
    if test is not None:
        _experiment(grid, out, slices, test, keep, workers, quiet)
        return
    from msfilm.train.sweep import sweep as run_sweep

    result = run_sweep(grid, out, slices=slices, workers=workers, progress=not quiet)
    table = result.table.sort_values("val_dice", ascending=False, kind="stable")
    columns = ["name", "val_dice", "best_epoch", "epochs", "seconds", "status"]
    print(table[columns].round({"val_dice": 4, "seconds": 1}).to_string(index=False))
    print(f"best by mean validation Dice, {result.val_dice:.4f}: {result.name}")
    print(result.run)
    failed = table[table["status"] == "failed"]
    for name, error in zip(failed["name"], failed["error"], strict=True):
        print(f"failed: {name}: {error}", file=sys.stderr)
    if len(failed):
        raise typer.Exit(1)


def _experiment(
    grid: Path, out: Path, slices: Path | None, test: Path, keep: Path | None, workers: int | None, quiet: bool
) -> None:
    from msfilm.errors import SettingError
    from msfilm.evaluate.experiment import experiment
    from msfilm.train.grid import read_grid

    plan = read_grid(grid)
    slices = plan.slices if slices is None else slices
    if slices is None:
        raise SettingError("SWEEP-SLICES", "no slices to train on", where=grid, mend="name their folder (--slices)")
    found = experiment(plan, out, slices=slices, test=test, workers=workers, progress=not quiet)
    _tell(found, out, keep)


def _tell(found: Any, out: Path, keep: Path | None) -> None:
    """Print what a comparison found, and copy its content to a file."""
    from msfilm.files import write_json

    print(found.summary().to_string(index=False))
    for statement in found.statements():
        print(statement)
    if keep is not None:
        write_json(keep, found.content)
    print(out)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    slices: Annotated[Path, typer.Argument(help="Folder of the SliceSet it was trained on, or of another.")],
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for the report; by default inside RUN.")] = None,
    lesion_rule: Annotated[str, typer.Option(help="When a lesion is found: any, iou, overlap10, ivadomed.")] = "any",
    empty_rule: Annotated[str, typer.Option(help="What empty masks score: exclude, one, lesion-only.")] = "exclude",
    surface: Annotated[bool, typer.Option("--surface", help="Surface Dice and HD95 too.")] = False,
    reference: Annotated[
        list[str] | None, typer.Option(help="Mask to score against (may be repeated); rater-1 and truth by default.")
    ] = None,
    contrast: Annotated[list[str] | None, typer.Option(help="Only this contrast (may be repeated).")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Score a run on held-out patients: volume Dice with intervals, beside the all-cord mask and the best threshold."""
    from msfilm.evaluate import evaluate as evaluate_run

    columns = ["method", "contrast", "against", "Dice", "95 %", "volumes", "patients", "lesion F1"]
    report = evaluate_run(
        run,
        slices,
        split=split,
        out=out,
        device=device,
        lesion_rule=lesion_rule,
        empty_rule=empty_rule,
        surface=surface,
        references=reference or None,
        contrasts=contrast or None,
        progress=not quiet,
    )
    columns += ["surface Dice", "HD95 mm"] if surface else []
    table = report.table()
    print(table[[column for column in columns if column in table]].to_string(index=False, na_rep=""))
    for statement in report.statements():
        print(statement)
    for note in report.metrics["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(report.folder)


@app.command()
def table1(
    out: Annotated[Path, typer.Argument(help="Folder for everything; run the same command again to go on.")],
    profile: Annotated[str, typer.Option(help="quick, course or paper.")] = "course",
    patients: Annotated[int | None, typer.Option(help="Of the phantom cohort to train on.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each training; the search's follow.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each row.")] = None,
    filters: Annotated[int | None, typer.Option(help="Channels of the U-Nets' first block.")] = None,
    loss: Annotated[str | None, typer.Option(help="dice (as in the paper), dice-bce ...")] = None,
    cohort_seed: Annotated[int | None, typer.Option(help="Another seed makes another cohort.")] = None,
    settings_from: Annotated[
        Path | None, typer.Option(help="An earlier table1.json: keep what its search chose, and search nothing.")
    ] = None,
    slices: Annotated[Path | None, typer.Option(help="Your own SliceSet instead of a phantom cohort.")] = None,
    test: Annotated[Path | None, typer.Option(help="Your own test SliceSet, of other patients.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core, one on a GPU.")] = None,
    healthy: Annotated[bool, typer.Option(help="Count false lesion on healthy real scans.")] = True,
    keep: Annotated[Path | None, typer.Option(help="Copy table1.json to this file too.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda ...")] = None,
    quiet: Quiet = False,
) -> None:
    """The paper's table: U-Nets on each contrast and on both, a FiLMed one on both, searched and tested alike."""
    from msfilm.evaluate.table1 import table1 as make_table1
    from msfilm.evaluate.table1_plan import table1_plan
    from msfilm.files import read_json

    plan = table1_plan(
        profile, patients=patients, epochs=epochs, seeds=seeds, filters=filters, loss=loss, cohort_seed=cohort_seed,
        device=device, chosen=read_json(settings_from)["chosen"] if settings_from else None,
    )
    found = make_table1(out, plan, slices=slices, test=test, workers=workers, healthy=healthy, progress=not quiet)
    _tell(found, out, keep)
