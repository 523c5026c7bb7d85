"""Commands for data: phantoms, public scans; and how real the phantoms are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msfilm.cli.app import Quiet, app
from msfilm.errors import SettingError

__all__ = ["calibrate", "fetch", "phantom", "realism"]


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
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field of CohortPlan, as spread=0.5 or stations=1.")
    ] = None,
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
    plan = plan.with_settings(dict(word.partition("=")[::2] for word in settings or []))
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
    bids: Annotated[Path | None, typer.Option(help="Lay the whole set out here as a BIDS data set.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets, or the files of NAME.")] = False,
    quiet: Quiet = False,
) -> None:
    """Download public scans and check them; MSFILM_MIRROR names a folder to read them from instead.

    A download that was cut goes on where it stopped. Exit code 1 if a file failed; the others are there.
    """
    from msfilm.data.fetch import fetch as fetch_files
    from msfilm.data.fetch import find_manifest, read_manifests
    from msfilm.data.lay_out import lay_out_bids
    from msfilm.data.manifests import read_requests

    if bids is not None and (name is None or file or out is not None or list_):
        what = "--bids lays out a whole set: it goes with NAME alone"
        raise SettingError("FETCH-OPTIONS", what, where="--bids", mend="msfilm fetch NAME --bids DIR")
    if name is None:
        for manifest in read_manifests().values():
            print(f"{manifest.attribution}\n  {len(manifest.files)} files, {manifest.bytes / 1e6:.1f} MB")
        print("\nNot downloaded, but to be asked for or cloned (msfilm fetch NAME says how):")
        for request in read_requests().values():
            print(f"{request.name}: {request.title}")
    elif name in read_requests():
        print(read_requests()[name].instructions)
        raise typer.Exit(1)  # nothing was fetched
    elif list_:
        for entry in find_manifest(name).files:
            print(f"{entry.bytes:>9}  {entry.path}")
    elif bids is not None:
        print(lay_out_bids(name, bids, progress=not quiet))
    else:
        print(fetch_files(name, files=file or None, out=out, progress=not quiet))
