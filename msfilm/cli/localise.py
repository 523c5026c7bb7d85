"""The command ``msfilm localise``: propose where the cord lies in a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msfilm.cli.app import Device, app

__all__ = ["localise"]


@app.command()
def localise(
    image: Annotated[Path, typer.Argument(help="The scan (NIfTI).")],
    out: Annotated[Path, typer.Argument(help="The CSV file to write, for msfilm segment --centreline.")],
    network: Annotated[str, typer.Option(help="One that comes with msfilm, or a folder.")] = "cord-localiser",
    device: Device = "cpu",
) -> None:
    """Propose a centreline of the cord, with a confidence; says when it is unsure. Look at it (CentrelinePicker)."""
    from msfilm.data.nifti import read_image
    from msfilm.evaluate.localise import localise as find

    location = find(read_image(image), network=network, device=device)
    print(location.save(out, about=f"Points along the cord in {image.name}."))
    print(location.verdict)
