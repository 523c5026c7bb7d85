"""Make the README's picture: the public patient, segmented by the network that ships (needs the scan)."""

from pathlib import Path

from msfilm.data.fetch import fetch_file
from msfilm.evaluate import segment
from msfilm.places import shipped
from msfilm.view.plots import slice_montage

found = segment(
    fetch_file("sct_tutorial_data/single_subject/data/t2_ms/t2.nii.gz"),
    None,
    contrast="T2w",
    centreline=shipped("data_manifests") / "centrelines" / "t2_ms.csv",
)
shown = range(2, 12)  # ten slices of the neck, from below upwards
middle = slice(9, 39)
figure = slice_montage(
    found.crops[shown, middle, middle],
    {"network": found.crop_masks[shown, middle, middle]},
    [f"slice {found.grid.zs[i]}: {found.crop_masks[i].sum() * 0.75**2:.0f} mm²" for i in shown],
    spacing_mm=0.75,
    limits=(0, 3.2),
)
figure.savefig(Path(__file__).parent / "real_patient.png", dpi=110, facecolor="white", metadata={"Software": None})
print(f"{found.lesion_mm3:.0f} mm3 in all {len(found.grid)} slices")
