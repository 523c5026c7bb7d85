"""Make the README's pictures (the first two need the public scans): a real patient, real beside phantom, the
table, what experiments found, a code that moves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from msfilm.data.centres import centres_from_mask, centres_from_points, read_centreline
from msfilm.data.crop import CropGrid, crop
from msfilm.data.fetch import fetch_file
from msfilm.data.nifti import read_image, read_mask
from msfilm.evaluate import segment
from msfilm.evaluate.answers import answers
from msfilm.evaluate.figure_table1 import table1_figure
from msfilm.files import read_json
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.direct import make_slices
from msfilm.phantom.roster import CohortPlan
from msfilm.places import shipped
from msfilm.view import FilmExplorer
from msfilm.view.ceiling import ceiling_figure
from msfilm.view.forest import forest
from msfilm.view.plots import slice_montage

DOCS = Path(__file__).parent
PATIENT = "sct_tutorial_data/single_subject/data/t2_ms/t2.nii.gz"
CENTRELINE = shipped("data_manifests") / "centrelines" / "t2_ms.csv"
SIDE_MM, PIXEL_MM, COLUMNS = 42, 0.5, 6


def real_patient() -> None:
    """The public patient, segmented by the network that ships."""
    found = segment(fetch_file(PATIENT), None, contrast="T2w", centreline=CENTRELINE)
    voxel_mm2 = found.image.voxel_mm[:2].prod()
    shown = range(2, 12)  # ten slices of the neck, from below upwards
    middle = slice(9, 39)
    figure = slice_montage(
        found.crops[shown, middle, middle],
        {"network": found.crop_masks[shown, middle, middle]},
        [f"slice {z}: {found.mask[:, :, z].sum() * voxel_mm2:.0f} mm²" for z in found.grid.zs[shown]],
        spacing_mm=0.75,
        limits=(0, 3.2),
        title="Not for diagnosis",
    )
    figure.savefig(DOCS / "real_patient.png", dpi=110, facecolor="white", metadata={"Software": None})
    print(f"{found.lesion_mm3:.0f} mm3 in all {len(found.grid)} slices")


def _windowed(image, affine, zs, centres, at) -> np.ndarray:
    """Crops of chosen slices, each from 0 (its darkest) to 1."""
    size = round(SIDE_MM / PIXEL_MM)
    grid = CropGrid(image.shape, affine, zs[at], centres[at], size=size, spacing_mm=PIXEL_MM)
    crops = crop(image, grid)[0]
    low, high = np.percentile(crops, (0.5, 99.5), axis=(1, 2), keepdims=True)
    return ((crops - low) / (high - low)).clip(0, 1)


def _real(contrast: str) -> np.ndarray:
    """Slices spread over the one public scan of this contrast that is large enough."""
    if contrast == "T2w":
        image = read_image(fetch_file(PATIENT))
        zs, centres = centres_from_points(read_centreline(CENTRELINE), image)
    else:
        image = read_image(fetch_file("sct_testing_data/t2s/t2s_uncropped.nii.gz"))
        grey = read_mask(fetch_file("sct_testing_data/t2s/t2s_uncropped_gmseg_manual.nii.gz"), image)
        zs, centres = centres_from_mask(grey.data)
    return _windowed(image.data, image.affine, zs, centres, np.linspace(1, len(zs) - 2, COLUMNS).round().astype(int))


def _phantom(acquisition: str) -> np.ndarray:
    """One slice each of six patients, at heights spread as in the real scan."""
    pictures = []
    for index in range(COLUMNS):
        scan = make_scan(index, 0, acquisition)
        zs, centres = centres_from_mask(scan.cord)
        at = np.array([round((len(zs) - 1) * (index + 0.5) / COLUMNS)])
        pictures.append(_windowed(scan.image.astype(np.float32), scan.affine, zs, centres, at))
    return np.concatenate(pictures)


def real_and_phantom() -> None:
    """Rows of real and phantom slices round the cord, in both contrasts."""
    rows = {
        "real T2w": _real("T2w"),
        "phantom T2w": _phantom("T2w_ax"),
        "real T2*w": _real("T2star"),
        "phantom T2*w": _phantom("T2star_ax"),
    }
    figure = slice_montage(
        np.concatenate(list(rows.values())),
        titles=[name if k == 0 else "" for name in rows for k in range(COLUMNS)],
        spacing_mm=PIXEL_MM,
        columns=COLUMNS,
        panel_inches=1.5,
        limits=(0, 1),
    )
    figure.savefig(DOCS / "real_and_phantom.png", dpi=96, facecolor="white", metadata={"Software": None})


def paper_table() -> None:
    """The larger of the two tables that are kept."""
    content = read_json(shipped("results") / "table1-large.json")
    table1_figure(content).savefig(DOCS / "table1.png", dpi=110, facecolor="white", metadata={"Software": None})


def what_was_found() -> None:
    """The answers of the nine experiments, and the ceilings over a network's score."""
    results, plain = shipped("results"), {"facecolor": "white", "metadata": {"Software": None}}
    forest(answers(results)).savefig(DOCS / "answers.png", dpi=100, **plain)
    ceilings = [read_json(results / f"ceiling-{raters}.json") for raters in ("nested", "crossed")]
    ceiling_figure(*ceilings).savefig(DOCS / "ceiling.png", dpi=100, **plain)


def moving_code() -> None:
    """What FilmExplorer shows while its slider goes from one contrast to the other and back."""
    plan = CohortPlan(1000, stations=1, acquisitions=("bright_ax", "dark_ax"), decoys=True)
    view = FilmExplorer("film-polarity-small", make_slices(8, plan, workers=1, progress=False))
    # A slice with a lesion (dark) and a decoy (bright).
    for name, value in (("patient", "sub-008"), ("scan", "sub-008_acq-dark_T2w"), ("slice", 6)):
        view.controls[name].value = value
    # The channel of the first layer whose gamma the code moves most.
    with torch.no_grad():
        gamma, _ = view.network.model.film_parameters(torch.eye(2))["down1"]
    view.controls["layer"].value = "down1"
    view.controls["channel"].value = int((gamma[0] - gamma[1]).abs().argmax())
    frames = []
    for z in (1 + np.cos(np.linspace(0, 2 * np.pi, 37)[:-1])) / 2:
        view.controls["z"].value = round(float(z), 2)
        frames.append(Image.fromarray(view.picture()).convert("RGB"))
        print(f"z {z:.2f}: Dice {view.dice:.3f}")
    palette = frames[18].quantize(160, kmeans=4, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.sum(axis=1).argmax()] = 255  # a mean of nearly white pixels: let the page be white
    palette.putpalette(colours.ravel().tolist())
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    waits = [1200 if i % 18 == 0 else 110 for i in range(len(frames))]
    frames[0].save(DOCS / "moving_code.gif", save_all=True, append_images=frames[1:], duration=waits, loop=0,
                   optimize=True)


if __name__ == "__main__":
    real_patient()
    real_and_phantom()
    paper_table()
    what_was_found()
    moving_code()
