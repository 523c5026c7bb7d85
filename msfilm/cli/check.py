"""Commands that open scans: check a data set, and prepare its slices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from msfilm.cli.app import Quiet, app

__all__ = ["check", "prepare"]

Form = Annotated[str | None, typer.Option(help="sform or qform: which one is right where a file's two disagree.")]
LesionValues = Annotated[
    list[str] | None,
    typer.Option(help="What lesion masks' values mean: 255=1 (may be repeated), or '>=0.5' for soft masks."),
]
CordValues = Annotated[list[str] | None, typer.Option(help="The same for cord masks.")]
Names = Annotated[Path | None, typer.Option(help="YAML file of how files are named; else DATASET/code/msfilm.yml.")]


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(help="A BIDS data set, any folder of NIfTI files, or one file.")],
    network: Annotated[
        str | None, typer.Option(help="A run or a network: refuse contrasts that it was not trained on.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the list of {path, code, message, verdict} here.")] = None,
    form: Form = None,
    lesion_values: LesionValues = None,
    cord_values: CordValues = None,
    names: Names = None,
    quiet: Quiet = False,
) -> None:
    """Look every scan, mask and sidecar through and name each fault. Exit code 1 if anything is refused."""
    from msfilm.data.check import check as check_dataset
    from msfilm.data.check import refuse_other
    from msfilm.data.mask_values import parse_values

    if json is not None:
        refuse_other(json)  # before the minutes that reading may take
    if network is not None:
        from msfilm.model.weights import load_network

        network = load_network(network)
    report = check_dataset(
        dataset,
        network=network,
        names=names,
        form=form,
        lesion_values=parse_values(lesion_values),
        cord_values=parse_values(cord_values),
        progress=not quiet,
    )
    print(report.text())
    if json is not None:
        report.save(json)
    if report.refused:
        raise typer.Exit(1)


@app.command()
def prepare(
    dataset: Annotated[Path, typer.Argument(help="A BIDS data set with cord masks.")],
    out: Annotated[Path, typer.Argument(help="Folder for the SliceSet.")],
    spacing: Annotated[float, typer.Option(help="Pixel size in mm, in the axial plane.")] = 0.75,
    size: Annotated[int, typer.Option(help="Pixels along each side of a crop.")] = 48,
    contrast: Annotated[list[str] | None, typer.Option(help="Only this contrast (may be repeated).")] = None,
    form: Form = None,
    lesion_values: LesionValues = None,
    cord_values: CordValues = None,
    names: Names = None,
    quiet: Quiet = False,
) -> None:
    """Cut the slices round the cord out of every scan. Exit code 1 if a volume was refused; the others are saved."""
    from msfilm.data.mask_values import parse_values
    from msfilm.data.prepare import prepare as prepare_dataset

    slices, refused = prepare_dataset(
        dataset,
        out,
        spacing_mm=spacing,
        size=size,
        contrasts=contrast or None,
        form=form,
        lesion_values=parse_values(lesion_values),
        cord_values=parse_values(cord_values),
        names=names,
        progress=not quiet,
    )
    made = slices.table.groupby("contrast").agg(
        patients=("patient", "nunique"), volumes=("volume", "nunique"), slices=("z", "size")
    )
    print(made.to_string())
    warned = int((slices.volumes["notes"] != "").sum())
    more = f", {warned} of them with warnings (msfilm check lists them)" if warned else ""
    print(f"{len(slices)} slices of {len(slices.volumes)} volumes in {out}{more}; {len(refused)} refused")
    for error in refused:
        print(f"refused: {error}", file=sys.stderr)
    if refused:
        raise typer.Exit(1)
