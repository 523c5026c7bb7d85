"""The realism report: its rules find what synthetic cords were given and what real scans are known for."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import oriented_affine, write_plain
from scipy import ndimage

from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import SettingError
from msfilm.evaluate.realism import phantom_scans, real_scans, realism_report, target_range
from msfilm.evaluate.realism_curves import radial_spectrum
from msfilm.evaluate.realism_measures import Measured, ellipse, measure_scan

AP, RL, VOXEL = 7.3, 12.1, (0.5, 0.5, 5.0)
RATIOS = {"gm_wm": 1.2, "csf_wm": 1.7, "lesion_wm_max": 1.5}


def cylinder(snr=1e6, seed=0, size=(91, 83, 7), voxel=VOXEL, csf=RATIOS["csf_wm"], blur=0.0):
    """A straight elliptical cord: white matter 1, grey matter, CSF, a lesion in three slices; dark surroundings."""
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * v for n, v in zip(size[:2], voxel[:2], strict=True)),
                       indexing="ij")  # fmt: skip

    def oval(rl, ap, cx=0.0, cy=0.0):
        return np.hypot((x - cx) / (rl / 2), (y - cy) / (ap / 2)) <= 1

    cord, sac = oval(RL, AP), oval(20, 15)
    grey = oval(5.0, 3.0)
    image = np.where(cord, np.where(grey, RATIOS["gm_wm"], 1.0), np.where(sac, csf, 0.3))
    image = np.repeat(image[:, :, None], size[2], axis=2)
    lesion = np.zeros(size, bool)
    lesion[:, :, 2:5] = oval(2.0, 2.4, 4.0)[:, :, None]
    image[lesion] = RATIOS["lesion_wm_max"]
    image = image + np.random.default_rng(seed).normal(0, 1 / snr, size)
    if blur:
        image = ndimage.gaussian_filter(image, (blur, blur, 0))
    masks = {key: np.repeat(mask[:, :, None], size[2], axis=2) for key, mask in {"cord": cord, "grey": grey}.items()}
    return image, {**masks, "lesion": lesion}, oriented_affine("RAS", voxel, size)


def measured(image, masks, affine, contrast="T2star", **more):
    more = {"grey": masks["grey"], "lesion": masks["lesion"]} | more
    return measure_scan("made", contrast, image, masks["cord"], affine, **more)


def test_known_ratios_come_back():
    values = measured(*cylinder(snr=200)).values
    for key, ratio in RATIOS.items():
        assert values[key] == pytest.approx(ratio, rel=0.01), key
    assert values["lesion_wm_p90"] == pytest.approx(1.5, rel=0.02)


def test_a_lesion_does_not_move_white_matter():
    image, masks, affine = cylinder()
    masks["lesion"][:] = masks["cord"] & (np.arange(91) > 40)[:, None, None]  # most of the cord
    image[masks["lesion"]] = 1.5
    assert measured(image, masks, affine).values["lesion_wm_max"] == pytest.approx(1.5, rel=1e-3)


def test_dark_csf_is_found_where_it_is_dark():
    assert measured(*cylinder(csf=0.34), contrast="T1w").values["csf_wm"] == pytest.approx(0.34, rel=0.02)


@pytest.mark.parametrize("snr", [12, 22, 50])
def test_snr_of_known_noise(snr):
    image, masks, affine = cylinder(snr=snr, seed=snr, size=(91, 83, 15))
    image[masks["grey"] | masks["lesion"]] -= 0.2 * masks["grey"][masks["grey"] | masks["lesion"]]  # flat, noise kept
    assert measured(image, masks, affine).values["snr"] == pytest.approx(snr, rel=0.1)
    ramp = image * (1 + 0.01 * np.arange(91))[:, None, None] / 1.45  # a receive field: as bright at the cord
    assert measured(ramp, masks, affine).values["snr"] == pytest.approx(snr, rel=0.15)


def test_correlated_noise_reads_higher():
    assert measured(*cylinder(22, blur=0.8)).values["snr"] > 3 * measured(*cylinder(22)).values["snr"]


@pytest.mark.parametrize("voxel", [(0.5, 0.5, 5.0), (0.45, 0.8, 3.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("turn", [0, 8])
def test_ellipse_gives_its_own_diameters(voxel, turn):
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2 + 0.2) * v for n, v in zip((61, 57), voxel, strict=False)),
                       indexing="ij")  # fmt: skip
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    area, ap, rl = ellipse(np.hypot((c * x + s * y) / (RL / 2), (c * y - s * x) / (AP / 2)) <= 1, voxel)
    assert (ap, rl) == (pytest.approx(AP, rel=0.04), pytest.approx(RL, rel=0.04))
    assert area == pytest.approx(np.pi / 4 * AP * RL, rel=0.06)


@pytest.mark.parametrize(("columns", "rows"), [(7, 3), (3, 7)])
def test_the_moments_of_a_bar_are_exact(columns, rows):
    mask = np.zeros((12, 11), bool)
    mask[2 : 2 + columns, 3 : 3 + rows] = True
    width, height = 0.5 * columns, 0.8 * rows  # a bar's second moment is its side squared / 12
    assert ellipse(mask, (0.5, 0.8)) == pytest.approx((width * height, 4 * height / 12**0.5, 4 * width / 12**0.5))


def test_geometry_and_lesions_in_mm():
    image, masks, affine = cylinder()
    canal = ndimage.binary_dilation(masks["cord"], np.ones((9, 9, 1)))
    values = measured(image, masks, affine, canal=canal, levels=["C3"] * 6 + ["T2"]).values
    assert values["cord_ap"] == pytest.approx(AP, rel=0.02) and values["cord_rl"] == pytest.approx(RL, rel=0.02)
    assert values["gm_fraction"] == pytest.approx(5 * 3 / (AP * RL), rel=0.06)
    assert values["canal_ap"] == pytest.approx(AP + 4, rel=0.08)
    assert values["ap_z"] == pytest.approx((values["cord_ap"] - 7.2) / (0.045 * 7.2), rel=1e-6)  # table: 7.2 mm at C3
    assert values["lesion_count"] == 1 and values["lesion_length_mm"] == 15
    assert values["lesion_share"] == pytest.approx(3 / 7)
    assert values["lesion_mm3"] == pytest.approx(masks["lesion"].sum() * 1.25)
    empty = measured(image, masks, affine, lesion=np.zeros_like(masks["cord"])).values
    assert empty["lesion_count"] == empty["lesion_mm3"] == 0 and "lesion_wm_max" not in empty


@pytest.mark.parametrize("cycles", [3, 9, 17])
def test_a_cosine_peaks_at_its_frequency(cycles):
    size, spacing = 48, 0.75
    wave = np.cos(2 * np.pi * cycles * np.arange(size) / size + 0.4)
    for picture in (np.broadcast_to(wave, (size, size)), np.broadcast_to(wave[:, None], (size, size))):
        frequency, power = radial_spectrum(5 + 3 * picture[None], spacing)
        assert frequency[np.argmax(power)] == pytest.approx(cycles / (size * spacing))


def test_the_spectrum_of_white_noise_is_flat():
    _, power = radial_spectrum(np.random.default_rng(0).normal(size=(300, 48, 48)))
    assert power[3:].max() / power[3:].min() < 1.15


@pytest.mark.parametrize("contrast", ["T2star", "T1w"])
def test_the_unit_of_intensity_does_not_count(contrast):
    image, masks, affine = cylinder(30)
    once, again = measured(image, masks, affine, contrast), measured(image * 731.0, masks, affine, contrast)
    assert once.values == pytest.approx(again.values, rel=1e-6)
    assert once.curves["spectrum"] == pytest.approx(again.curves["spectrum"], rel=1e-4)


@pytest.mark.parametrize("orientation", ["LAS", "PSR", "IRA"])
def test_the_files_orientation_does_not_count(orientation, tmp_path):
    image, masks, affine = cylinder(30)
    reference = measured(image.astype(np.float32), masks, affine)
    nib = pytest.importorskip("nibabel")
    read = {}
    for name, array in {"image": image.astype(np.float32), **masks}.items():
        turned = nib.Nifti1Image(array.astype(np.float32 if name == "image" else np.uint8), affine)
        turned = turned.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation))
        )
        path = write_plain(tmp_path / f"{name}.nii.gz", np.asanyarray(turned.dataobj), turned.affine)
        read[name] = read_image(path) if name == "image" else read_mask(path)
    got = measured(read["image"].data, {key: read[key].data for key in masks}, read["image"].affine)
    assert got.contrast == reference.contrast == "T2star_ax"
    assert got.values == pytest.approx(reference.values, rel=1e-3)


def test_the_plane_follows_from_the_voxel():
    image, masks, affine = cylinder(size=(61, 53, 5), voxel=(0.9, 0.8, 0.8))
    assert measured(image, masks, affine, "T1w").contrast == "T1w_iso"
    image, masks, affine = cylinder(size=(31, 53, 5), voxel=(2.5, 0.7, 0.7))
    assert measured(image, masks, affine, "T2w").contrast == "T2w_sag"


def test_masks_of_another_shape_are_refused():
    image, masks, affine = cylinder(size=(41, 39, 3))
    with pytest.raises(SettingError, match="REALISM-SHAPE"):
        measure_scan("made", "T2w", image[1:], masks["cord"], affine)


def phantoms(n, odd=()):
    image, masks, affine = cylinder(25)
    scans = [SimpleNamespace(name=f"sub-{i:03d}", contrast="T2star", image=image, cord=masks["cord"],
                             grey=masks["grey"], truth=masks["lesion"], affine=affine, corrupted=i in odd)
             for i in range(n)]  # fmt: skip
    return scans


def test_a_report_names_what_is_outside():
    scans = phantoms(3, odd=[2])
    scans[2].image = scans[2].image * 0 + 1.0  # ruined, but marked as corrupted: it must not count
    ours = phantom_scans(scans)
    ours += [Measured(f"bad-{i}", "T2star_ax", "phantom", {"csf_wm": 2.5, "snr": 20.0}) for i in range(2)]
    real = [Measured("a", "T2star_ax", "real", {"csf_wm": 1.67}), Measured("b", "T2star_ax", "real", {"csf_wm": 1.6}),
            Measured("c", "T2w_ax", "real", {"csf_wm": 3.0})]  # fmt: skip
    agreement = {"mean": 0.61, "ci": [0.6, 0.62], "patients": 100}
    report = json.loads(json.dumps(realism_report(real, ours, pairwise_rater_dice=agreement)))
    rows = {(row["name"], row["contrast"]): row for row in report["rows"]}
    csf = rows["csf_wm", "T2star_ax"]
    assert csf["real"] == pytest.approx(1.635) and csf["real_scans"] == 2 and csf["phantom_volumes"] == 4
    assert (csf["target_low"], csf["target_high"]) == (1.35, 1.9)
    assert csf["share_in_target"] == 0.5 and csf["met"] is False and csf["exceptions"] == ["bad-0", "bad-1"]
    assert csf["low"] == pytest.approx(1.7, rel=0.04) and csf["inside"] is False
    assert rows["csf_wm", "T2w_ax"]["inside"] is None and rows["csf_wm", "T2w_ax"]["low"] is None
    assert rows["cord_ap", "any_ax"]["met"] is True
    told = report["share_inside"]
    assert told["rows_not_met"] == ["csf_wm T2star_ax"] and told["volumes_in_every_target"] == 0.5
    assert report["pairwise_rater_dice"] == agreement
    assert report["phantom"] == {"volumes": 5, "corrupted": ["sub-002"]}
    band = report["curves"]["T2star_ax"]["histogram"]
    assert band["real"] == {} and len(band["phantom"]["median"]) == len(band["x"])


def test_targets_are_those_agreed():
    assert target_range("gm_wm", "T2star_ax") == (1.12, 1.23) and target_range("gm_wm", "T2w_ax") == (1.0, 1.15)
    assert target_range("csf_wm", "T2w_ax") == (2.1, 3.8) and target_range("csf_wm", "T1w_iso") is None
    assert target_range("snr", "T2w_ax") == (12, 50) and target_range("lesion_wm_max", "T2star_ax") is None
    assert target_range("cord_ap", "any_ax") == pytest.approx((6.2 * 0.91, 7.6 * 1.09))
    assert target_range("cord_ap", "any_ax", levels=True) is None and target_range("ap_z", "any_ax") == (-2, 2)
    # Only what the cohort consists of is judged.
    assert all(target_range("snr", other) is None for other in ("T2w_iso", "T2w_sag", "MTon_ax", "any_iso"))



def test_real_scans_measure_as_they_are_known_to(mirror):
    scans = {scan.name: scan for scan in real_scans(mirror)}
    assert all(scan.source == "real" and (scan.values or scan.notes) for scan in scans.values())
    assert not any("fake" in name for name in scans)
    value = {name: scan.values for name, scan in scans.items()}
    assert value["t2s"]["gm_wm"] == pytest.approx(1.195, abs=0.03)
    assert value["t2s"]["csf_wm"] == pytest.approx(1.67, abs=0.09)
    assert value["t2s"]["snr"] == pytest.approx(22, rel=0.1)
    assert value["t2s"]["gm_fraction"] == pytest.approx(0.179, abs=0.014)
    assert 1.11 <= value["t2s_uncropped"]["gm_wm"] <= 1.19 and 1.34 <= value["t2s_uncropped"]["csf_wm"] <= 2.2
    assert 2.1 <= value["t2_ms"]["csf_wm"] <= 3.8 and value["t2_ms"]["snr"] == pytest.approx(21, rel=0.1)
    assert value["t2"]["csf_wm"] == pytest.approx(3.4, abs=0.1) and value["t2"]["snr"] == pytest.approx(7, rel=0.1)
    assert value["t1w"]["csf_wm"] == pytest.approx(0.33, abs=0.03)
    assert 1.5 <= value["mt1"]["csf_wm"] <= 2.35 and 1.5 <= value["sub-05 MTon"]["csf_wm"] <= 2.35
    assert value["sub-05 MTon"]["cord_area"] == pytest.approx(75.9, abs=0.3)  # 75.1 with the broken slice
    assert "slice 20" in " ".join(scans["sub-05 MTon"].notes)
    assert not value["sub-03 MTon"] and scans["sub-03 MTon"].notes
    # Ten people: mean +- SD of area 67.2 +- 6.3 mm2, AP 7.1 +- 0.3, RL 12.2 +- 0.9, canal 222 +- 31 mm2.
    people = [values for name, values in value.items() if name.startswith("sub-") and "canal_area" in values]
    assert len(people) == 10
    for key, mean, sd in (("cord_area", 67.2, 6.3), ("cord_ap", 7.1, 0.3), ("cord_rl", 12.2, 0.9)):
        numbers = [values[key] for values in people]
        assert np.mean(numbers) == pytest.approx(mean, rel=0.02) and np.std(numbers) == pytest.approx(sd, rel=0.2)
    assert {scan.contrast for scan in scans.values()} == {
        "T2star_ax", "T2w_ax", "T2w_iso", "T1w_iso", "MTon_ax", "MToff_ax"
    }  # fmt: skip


def test_what_is_missing_is_noted(tmp_path):
    scans = real_scans(tmp_path)
    drafts = [scan for scan in scans if scan.values]
    assert [scan.name for scan in drafts] == ["t2_ms (draft)"]
    assert all(scan.notes for scan in scans)
    assert any("NIFTI-MISSING" in note for scan in scans for note in scan.notes)


def test_figures_are_drawn(tmp_path):
    from msfilm.view.realism import realism_chart, realism_curves, side_by_side

    ours = phantom_scans(phantoms(3))
    real = [Measured("a", "T2star_ax", "real", ours[0].values, ours[0].curves)]
    report = json.loads(json.dumps(realism_report(real, ours)))
    chart, curves = realism_chart(report, title="t"), realism_curves(report)
    for figure in (chart, curves):
        figure.savefig(tmp_path / "figure.png", dpi=40)
        assert min(text.get_fontsize() for text in figure.findobj(lambda a: hasattr(a, "get_fontsize"))) >= 9
    [lines] = chart.axes
    chart.draw_without_rendering()
    left, right = lines.get_window_extent().x0, lines.get_window_extent().x1
    boxes = [text.get_window_extent() for text in lines.texts]
    assert all(box.x0 >= 0 and box.x1 <= chart.bbox.x1 for box in boxes), "words leave the picture"
    words = [text.get_text() for text in lines.texts]
    assert all(not left < box.x1 <= right for word, box in zip(words, boxes, strict=True) if "..." not in word)
    assert curves.axes[1].get_yscale() == "log" and curves.axes[1].get_ylim()[0] < 1e-4
    figure, key = side_by_side(np.zeros((3, 9, 9)), np.ones((4, 9, 9)), seed=1, columns=7, panel_inches=1.2)
    assert figure.get_figwidth() == pytest.approx(7 * 1.2 + 0.1)
    shown = ["real" if ax.images[0].get_array().max() == 0 else "phantom" for ax in figure.axes if ax.images]
    assert shown == key and sorted(key) == ["phantom"] * 4 + ["real"] * 3
    with pytest.raises(SettingError, match="PLOT-SHAPE"):
        side_by_side(np.zeros((3, 9, 9)), np.ones((4, 8, 9)))
