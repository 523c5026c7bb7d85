"""The command that marks lesions: in one scan, or in a whole BIDS data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from msfilm.cli.app import Device, Quiet, app

__all__ = ["segment"]


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="A NIfTI scan, or the folder of a BIDS data set.")],
    out: Annotated[
        Path,
        typer.Argument(help="Mask to write, .nii.gz (a .json beside it says what made it); or a derivative's folder."),
    ],
    contrast: Annotated[
        str | None, typer.Option(help="What the scan is: T2w, T2star ...; by default what its BIDS name says.")
    ] = None,
    as_: Annotated[
        str | None, typer.Option("--as", help="What to take a contrast for that the network was not trained on.")
    ] = None,
    cord: Annotated[Path | None, typer.Option(help="A mask of the cord, on the scan's grid.")] = None,
    centreline: Annotated[
        Path | None, typer.Option(help="Or a CSV of points along it: x_mm,y_mm,z_mm (RAS), as CentrelinePicker saves.")
    ] = None,
    localise: Annotated[
        bool | None,
        typer.Option(help="Or let msfilm find the cord. In a data set it does so where a scan has neither of them."),
    ] = None,
    accept_unsure: Annotated[
        bool, typer.Option("--accept-unsure", help="Go on where it is unsure, with a warning.")
    ] = False,
    names: Annotated[
        Path | None, typer.Option(help="YAML file of how a data set names its files; else DATASET/code/msfilm.yml.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Folder of a run, or a network that ships.")] = "film-contrast-small",
    threshold: Annotated[float, typer.Option(help="Probability from which a voxel is lesion.")] = 0.5,
    probability: Annotated[bool, typer.Option("--probability", help="Write the probabilities too.")] = False,
    rater: Annotated[str | None, typer.Option(help="Whose style, for a network told the rater.")] = None,
    form: Annotated[str | None, typer.Option(help="sform or qform: which is right where they disagree.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Even a mask that msfilm did not write, or that was changed since.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a page too, .html: every slice, and how far the marks can be trusted.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Mark the lesions of a scan, or of every scan in a data set, in the scan's own space. Not for diagnosis.

    A data set becomes a BIDS derivative; run again it goes on. Exit code 1 if a scan was refused; the rest is done.
    """
    from msfilm.errors import SettingError

    settings = {"as_contrast": as_, "accept_unsure": accept_unsure, "network": weights, "threshold": threshold,
                "rater": rater, "form": form, "device": device}  # fmt: skip
    if image.is_dir():
        given = [name for name, value in (("--cord", cord), ("--centreline", centreline), ("--report", report))
                 if value is not None]  # fmt: skip
        given += ["--overwrite"] if overwrite else []
        if given:
            raise SettingError("CLI-ARGUMENT", f"{given[0]} is for one scan, and {image} is a folder",
                               mend="masks and centrelines are found in the data set; --names says how they are called")
        _dataset(image, out, quiet, settings | {"contrast": contrast, "names": names, "probability": probability,
                                                "localise": True if localise is None else localise})  # fmt: skip
        return
    if report is not None and report.suffix.lower() not in (".html", ".htm"):  # before the work, not after it
        raise SettingError("OUT-NAME", "the name of a page must end in .html", where=report)
    if names is not None:
        raise SettingError("CLI-ARGUMENT", f"--names is for a data set, and {image} is no folder", mend="leave it out")
    from msfilm.evaluate import segment as segment_scan

    ending = ".nii.gz" if out.name.endswith(".gz") else ".nii"
    chance = out.with_name(out.name.removesuffix(ending) + "_probseg" + ending) if probability else None
    found = segment_scan(image, out, contrast=contrast or _contrast(image), cord=cord, centreline=centreline,
                         localise=bool(localise), probability=chance, overwrite=overwrite, **settings)  # fmt: skip
    for warning in found.warnings:
        print(f"note: {warning}", file=sys.stderr)
    print(f"{found.lesion_mm3:.1f} mm3 of lesion in {out}")
    if report is not None:
        from msfilm.view.scan_report import scan_report

        print(f"page: {scan_report(found, report, points=centreline)} (not for diagnosis)")


def _contrast(image: Path) -> str:
    """What a scan's BIDS name says it is."""
    from msfilm.data.bids import contrast_of
    from msfilm.data.mask_files import stem_of
    from msfilm.errors import SettingError

    stem = stem_of(image)
    if not stem.startswith("sub-") or not stem.split("_")[-1][:1].isupper():
        raise SettingError("CONTRAST-MISSING", f"the name {image.name} does not tell what the scan is",
                           mend="say it: --contrast T2w")  # fmt: skip
    return contrast_of(stem)


def _dataset(dataset: Path, out: Path, quiet: bool, settings: dict) -> None:
    from msfilm.evaluate import segment_dataset

    found = segment_dataset(dataset, out, progress=not quiet, **settings)
    table = found.table
    shown = table[table["status"] != "refused"]
    if len(shown):
        columns = ["contrast", "status", "lesion_mm3", "lesions", "slices_with_lesion", "slices", "centred_on"]
        print(shown[columns].round({"lesion_mm3": 1}).to_string())
    for scan, said in shown["warnings"].items():
        if said:
            print(f"note: {scan}: {said}", file=sys.stderr)
    for error in found.refused:
        print(f"refused: {error}", file=sys.stderr)
    counts = table["status"].value_counts()
    print(f"{counts.get('made', 0)} made, {counts.get('kept', 0)} kept, {counts.get('refused', 0)} refused: "
          f"{out} (table: logs/lesions.tsv; not for diagnosis)")  # fmt: skip
    if found.refused:
        raise typer.Exit(1)
