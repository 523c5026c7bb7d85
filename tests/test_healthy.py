"""False lesion on healthy real cords: what a network marks there, in mm3, on the scan's own grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from msfilm.errors import FetchError
from msfilm.evaluate.healthy import HEALTHY_SCANS, false_on_healthy
from msfilm.evaluate.segmentation import segment
from msfilm.model.weights import Network


class Constant(nn.Module):
    """The same logit everywhere, whatever the image."""

    def __init__(self, logit: float):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, x, z=None):
        return self.logit.expand(x.shape)


def test_a_network_that_marks_nothing_has_no_false_lesion(mirror):
    assert false_on_healthy(Network(Constant(-9.0).eval())) == {"T2w": 0.0, "T2star": 0.0}


def test_all_that_is_marked_is_false_and_counted_in_mm3(mirror):
    network = Network(Constant(9.0).eval())
    found = false_on_healthy(network, ["T2star"])
    assert list(found) == ["T2star"] and false_on_healthy(network, ["T1w"]) == {}
    scan, cord = (mirror / "sct_testing_data" / file for file in HEALTHY_SCANS["T2star"])
    marked = segment(scan, None, contrast="T2star", cord=cord, network=network).mask
    voxel_mm3 = np.prod(nib.load(scan).header.get_zooms()[:3])
    assert found["T2star"] == pytest.approx(marked.sum() * voxel_mm3) and marked.sum() > 1000


def test_without_the_scans_it_says_so(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MSFILM_MIRROR", str(tmp_path / "empty"))
    with pytest.raises(FetchError):
        false_on_healthy(Network(Constant(9.0).eval()))
