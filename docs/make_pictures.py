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
figure.savefig(Path(__file__).parent / "real_patient.png", dpi=110, facecolor="white", metadata={"Software": None})
print(f"{found.lesion_mm3:.0f} mm3 in all {len(found.grid)} slices")
