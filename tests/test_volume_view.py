"""volume_3d gives the scan and its masks to ipyniivue, and a still to whoever has no WebGL, kernel or ipyniivue."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import InputError, SettingError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.volume_view import volume_3d


@pytest.mark.parametrize("orientation", ["PSR", "LAS"])
def test_the_widget_gets_the_files_and_the_still_has_the_numbers(real_cords, orientation):
    scan, cord = real_cords[orientation]
    view = volume_3d(scan, {"cord": cord})
    image, mask = view.widget.volumes
    assert Path(image.path) == scan and Path(mask.path) == cord
    assert view.widget.opts.is_radiological_convention and view.widget.opts.sagittal_nose_left
    low, high = np.percentile(read_image(scan).data, (0.5, 99.5))
    assert image.cal_min == pytest.approx(low, rel=0.1, abs=1) and image.cal_max == pytest.approx(high, rel=0.1)
    colour = [int(OKABE_ITO["orange"][at: at + 2], 16) for at in (1, 3, 5)]
    assert list(mask.colormap_label.lut)[4:8] == [*colour, 255] and mask.colormap_label.lut[3] == 0
    inside = read_mask(cord)
    assert inside.data[view.planes.position]
    assert f"cord {inside.data.sum() * np.prod(inside.voxel_mm):.0f} mm3" in view.describe()
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    [alt] = re.findall(r'alt="([^"]*)"', bundle["text/html"])
    assert alt == view.describe() and len(bundle["text/html"]) < 150_000
    view.close()


def test_the_javascript_comes_with_the_package_and_asks_for_nothing(real_cords):
    import ipyniivue

    script = (Path(ipyniivue.__file__).parent / "static" / "widget.js").read_text(encoding="utf-8")
    assert not re.search(r'(?:\bfrom|\bimport)\s*\(?\s*["\']https?://', script)


def test_without_ipyniivue_it_says_so_and_shows_the_planes(real_cords, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    scan, cord = real_cords["LAS"]
    view = volume_3d(scan, {"cord": cord})
    assert view.widget is None and "pip install ipyniivue" in view.missing
    [words] = view.box.children
    assert "pip install ipyniivue" in words.value and "<img" in words.value
    assert "<img" in view._repr_mimebundle_()["text/html"]
    view.close()


def test_a_scan_alone_and_wrong_files(real_cords, tmp_path):
    scan, cord = real_cords["LAS"]
    view = volume_3d(scan)
    assert len(view.widget.volumes) == 1 and "nothing" in view.describe()
    view.close()
    with pytest.raises(InputError, match="NIFTI-MISSING"):
        volume_3d(tmp_path / "nowhere.nii.gz")
    with pytest.raises(InputError, match="MASK-GRID"):
        volume_3d(scan, {"cord": real_cords["PSR"][1]})
    with pytest.raises(SettingError) as refusal:
        volume_3d(scan, {str(i): cord for i in range(7)})
    assert refusal.value.code == "VOLUME-MASKS"
