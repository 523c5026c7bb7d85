"""The command ``msfilm``: each subcommand is thin over one function, which notebooks call too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from msfilm import __version__
from msfilm.errors import MsfilmError, SettingError

__all__ = ["app", "main"]

# Functions are imported inside the commands: `msfilm --help` should not wait for torch.
app = typer.Typer(
    help="How does a lesion-segmentation network generalise across MRI contrasts?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]


def main() -> None:
    """Run the command line. An msfilm error is one line and exit code 1, or 2 for a wrong setting."""
    try:
        app(prog_name="msfilm")
    except MsfilmError as error:
        print(f"msfilm: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SettingError) else 1) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(f"msfilm {__version__}")
        raise typer.Exit()


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Where the BIDS data set goes, or with --slices the SliceSet.")],
    patients: Annotated[int | None, typer.Option(help="How many patients; by default the profile's number.")] = None,
    profile: Annotated[str, typer.Option(help="quick, course, paper, or test (200 other patients).")] = "course",
    seed: Annotated[int | None, typer.Option(help="Another seed makes another cohort.")] = None,
    acquisition: Annotated[
        list[str] | None, typer.Option(help="Scans (may be repeated): T2w_ax, T2star_ax, T2w_sag ...; or all.")
    ] = None,
    raters: Annotated[str, typer.Option(help="nested in centres, as in the paper, or crossed with them.")] = "nested",
    setting: Annotated[str, typer.Option(help="How much raters differ: narrow or wide.")] = "narrow",
    slices: Annotated[bool, typer.Option("--slices", help="Straight to a SliceSet, without NIfTI.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    device: Annotated[str, typer.Option(help="Where --slices computes: cpu, cuda ...")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Write a phantom cohort, whose lesions are known, as a BIDS data set or as a SliceSet."""
    from msfilm.phantom.facts import ACQUISITIONS
    from msfilm.phantom.roster import AXIAL, CohortPlan, cohort_size

    count, own_seed = cohort_size(profile)
    chosen = tuple(ACQUISITIONS) if acquisition == ["all"] else tuple(acquisition or AXIAL)
    plan = CohortPlan(own_seed if seed is None else seed, chosen, raters, setting)
    count = count if patients is None else patients
    if slices:
        from msfilm.phantom.direct import make_slices

        print(make_slices(count, plan, folder, workers=workers, progress=not quiet, device=device))
        return
    from msfilm.phantom import write_cohort

    print(write_cohort(folder, patients=count, plan=plan, workers=workers, progress=not quiet))


@app.command()
def realism(
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    patients: Annotated[int, typer.Option(help="Phantom patients to measure, of the test cohort.")] = 100,
    mirror: Annotated[Path | None, typer.Option(help="Folder with the public scans; default MSFILM_MIRROR.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure phantom and real scans with the same code, and how far the phantom's raters agree."""
    from msfilm.evaluate.realism_run import realism as measure

    report = measure(patients, mirror=mirror, out=out, workers=workers, progress=not quiet)
    for row in report["rows"]:
        if row["target_low"] is not None:
            print(
                f"{row['label']:34} {row['contrast']:10} {row['low']:7.3f} to {row['high']:7.3f}, "
                f"{row['share_in_target']:6.1%} in {row['target_low']:g} to {row['target_high']:g}"
            )
    rater = report["pairwise_rater_dice"]
    low, high = rater["ci"]
    print(f"two raters: Dice {rater['mean']:.3f} ({low:.3f} to {high:.3f}), {rater['patients']} patients")
    print(out)


@app.command()
def calibrate(
    setting: Annotated[str, typer.Argument(help="narrow or wide.")] = "narrow",
    patients: Annotated[int, typer.Option(help="Phantom patients that are drawn on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of their cohort.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    quiet: Quiet = False,
) -> None:
    """Scale how much the phantom's raters differ until they agree at a Dice of .61, and print the row of raters.csv."""
    from msfilm.evaluate.calibration import calibrate_raters, settings_row, summary_table

    config, found, agreement = calibrate_raters(
        setting, patients=patients, seed=seed, workers=workers, progress=not quiet
    )
    print(found.tried.round(4).to_string(index=False))
    print(summary_table(agreement).to_string(index=False))
    row = settings_row(config)
    print(",".join(["setting", *row]))
    print(",".join([setting, *map(str, row.values())]))


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="The data set; without it, the list of them.")] = None,
    file: Annotated[list[str] | None, typer.Option(help="Only this file of it (may be repeated).")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the files, instead of the cache.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets, or the files of NAME.")] = False,
    quiet: Quiet = False,
) -> None:
    """Download public scans and check them; MSFILM_MIRROR names a folder to read them from instead."""
    from msfilm.data.fetch import fetch as fetch_files
    from msfilm.data.fetch import find_manifest, read_manifests

    if name is None:
        for manifest in read_manifests().values():
            size = sum(entry.bytes for entry in manifest.files) / 1e6
            print(f"{manifest.attribution}\n  {len(manifest.files)} files, {size:.1f} MB")
    elif list_:
        for entry in find_manifest(name).files:
            print(f"{entry.bytes:>9}  {entry.path}")
    else:
        print(fetch_files(name, files=file or None, out=out, progress=not quiet))


@app.command()
def prepare(
    dataset: Annotated[Path, typer.Argument(help="A BIDS data set with cord masks.")],
    out: Annotated[Path, typer.Argument(help="Folder for the SliceSet.")],
    spacing: Annotated[float, typer.Option(help="Pixel size in mm, in the axial plane.")] = 0.75,
    size: Annotated[int, typer.Option(help="Pixels along each side of a crop.")] = 48,
    contrast: Annotated[list[str] | None, typer.Option(help="Only this contrast (may be repeated).")] = None,
    quiet: Quiet = False,
) -> None:
    """Cut the slices round the cord out of every scan. Exit code 1 if a volume was refused; the others are saved."""
    from msfilm.data.prepare import prepare as prepare_dataset

    slices, refused = prepare_dataset(
        dataset, out, spacing_mm=spacing, size=size, contrasts=contrast or None, progress=not quiet
    )
    made = slices.table.groupby("contrast").agg(
        patients=("patient", "nunique"), volumes=("volume", "nunique"), slices=("z", "size")
    )
    print(made.to_string())
    print(f"{len(slices)} slices of {len(slices.volumes)} volumes in {out}; {len(refused)} refused")
    for error in refused:
        print(f"refused: {error}", file=sys.stderr)
    if refused:
        raise typer.Exit(1)


@app.command()
def train(
    slices: Annotated[Path, typer.Argument(help="Folder of a SliceSet.")],
    run: Annotated[Path, typer.Argument(help="Folder for the run.")],
    conditioning: Annotated[str | None, typer.Option(help="none (plain U-Net), contrast, centre or rater.")] = None,
    contrast: Annotated[list[str] | None, typer.Option(help="Only this contrast (may be repeated).")] = None,
    mask: Annotated[str | None, typer.Option(help="Which mask to learn from.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    depth: Annotated[int | None, typer.Option(help="Poolings of the U-Net.")] = None,
    filters: Annotated[int | None, typer.Option(help="Channels of its first block.")] = None,
    dropout: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(help="Slices in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine or plateau.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better score before it stops.")] = None,
    loss: Annotated[str | None, typer.Option(help="dice (as in the paper), bce, dice-bce or dice-per-slice.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and augmentation.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Of the division of patients.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, as it was set.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network; what is not given keeps the default that TrainConfig states."""
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("slices", "run", "contrast", "resume", "quiet") and value is not None
    }
    from msfilm.data.slices import SliceSet
    from msfilm.files import read_json
    from msfilm.train.loop import TrainConfig, fit

    # A run that goes on keeps its settings, so they need not be said again.
    kept = read_json(run / "config.json")["config"] if resume and (run / "config.json").is_file() else {}
    config = TrainConfig.from_dict(kept | given | ({"contrasts": tuple(contrast)} if contrast else {}))
    result = fit(SliceSet.load(slices), config, run, resume=resume, progress=not quiet)
    print(f"best validation Dice {result.best_val_dice:.3f} in epoch {result.best_epoch} of {result.epochs}: {run}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    slices: Annotated[Path, typer.Argument(help="Folder of the SliceSet it was trained on, or of another.")],
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for the report; by default inside RUN.")] = None,
    device: Device = "auto",
) -> None:
    """Score a run on held-out patients: volume Dice with intervals, beside the all-cord mask and the best threshold."""
    from msfilm.evaluate import evaluate as evaluate_run

    columns = ["method", "contrast", "against", "Dice", "95 %", "volumes", "patients"]
    report = evaluate_run(run, slices, split=split, out=out, device=device)
    print(report.table()[columns].to_string(index=False))
    for statement in report.statements():
        print(statement)
    print(report.folder)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="A NIfTI scan.")],
    out: Annotated[Path, typer.Argument(help="The mask to write, .nii.gz; a .json of what made it goes beside it.")],
    contrast: Annotated[str, typer.Option(help="What the scan is: T2w, T2star ...")],
    cord: Annotated[Path | None, typer.Option(help="A mask of the cord, on the scan's grid.")] = None,
    centreline: Annotated[Path | None, typer.Option(help="Or a CSV of points along it: x_mm,y_mm,z_mm (RAS).")] = None,
    weights: Annotated[str, typer.Option(help="Folder of a run, or a network that ships.")] = "film-contrast-small",
    threshold: Annotated[float, typer.Option(help="Probability from which a voxel is lesion.")] = 0.5,
    device: Device = "auto",
) -> None:
    """Segment the lesions of one scan and write the mask in the scan's own space."""
    from msfilm.evaluate import segment as segment_scan

    found = segment_scan(
        image,
        out,
        contrast=contrast,
        cord=cord,
        centreline=centreline,
        network=weights,
        threshold=threshold,
        device=device,
    )
    for warning in found.warnings:
        print(f"note: {warning}", file=sys.stderr)
    print(f"{found.lesion_mm3:.1f} mm3 of lesion in {out}")


@app.command()
def course(
    profile: Annotated[str, typer.Option(help="quick, course or paper.")] = "course",
    only: Annotated[list[str] | None, typer.Option(help="Only this notebook, as 06 (may be repeated).")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("course"),
    timeout: Annotated[int, typer.Option(help="Seconds that one cell may take.")] = 1800,
    force: Annotated[bool, typer.Option("--force", help="Run also what is unchanged.")] = False,
) -> None:
    """Run the notebooks and write them as pages with an index. Exit code 1 if one failed."""
    from msfilm.course import run_course

    results = run_course(profile, only=only or (), out=out, timeout_s=timeout, force=force)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)
