"""A scan's page: whole, by itself, with every slice, the Segmentation's own numbers, and its doubts first."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import oriented_affine, write_plain
from evaluate_cohort import Brighter, known
from notebook_files import ROOT, code_cells, numbered, printed, read
from scipy import ndimage

from msfilm.data.bids import find_volumes
from msfilm.errors import RunError, SettingError
from msfilm.evaluate import dice, segment
from msfilm.evaluate.scan_facts import (
    MOVES,
    _code,
    answer_moved,
    bend_mm,
    intensities,
    lesion_table,
    recorded_network,
    sensitivity,
    slice_table,
)
from msfilm.notebook import execute
from msfilm.phantom import write_cohort
from msfilm.view.scan_report import scan_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Tags(HTMLParser):
    """All tags with their attributes; every one that opens must close, in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parsed(page: Path) -> Tags:
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert not tags.open, tags.open
    return tags


def scan_at(folder: Path, name: str = "scan.nii.gz", *, shape=(45, 51, 7), jump: bool = False):
    """A scan of odd sizes with a cord, two bright balls in it, and one outside where no cord can be."""
    affine = oriented_affine("RAS", (0.75, 0.75, 4.0), shape)
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    # Between two voxels, as a crop's middle is between two pixels: crops then hit the centres of voxels.
    centre = np.array([22.5 + 5.0 * (jump and k == 3) for k in range(shape[2])])
    away = np.stack([(x - centre[z]) * 0.75, (y - 25.5) * 0.75])
    cord = np.hypot(*away) < 5
    image = 300 + 300.0 * cord
    image[(np.hypot(away[0] - 2, away[1]) < 2) & (z >= 2) & (z <= 3)] = 1000
    image[(np.hypot(away[0] + 3, away[1] - 1) < 1.2) & (z == 5)] = 1000
    image[(np.hypot(away[0], away[1] + 11) < 1.2) & (z == 1)] = 1000
    image[24:26, 24, 0] = 1000  # a speck: too few voxels for a lesion
    cord = write_plain(folder / "cord.nii.gz", cord, affine, np.uint8)
    return write_plain(folder / name, image, affine, np.int16), cord


@pytest.fixture(scope="module")
def network():
    return known(Brighter(1.5))


@pytest.fixture(scope="module")
def found(tmp_path_factory, network):
    scan, cord = scan_at(tmp_path_factory.mktemp("scan é"))
    return segment(scan, None, contrast="T2w", cord=cord, network=network)


@pytest.fixture(scope="module")
def page(found, network, tmp_path_factory):
    return scan_report(found, tmp_path_factory.mktemp("page é") / "a page.html", network=network)


def test_the_page_is_whole_and_needs_nothing_else(page):
    tags = parsed(page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and [tag for tag, _ in tags.seen].count("h1") == 1
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "iframe", "object"}
    for tag, attributes in tags.seen:
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith(("data:image/png;base64,", "data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?://", text)
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_every_slice_is_there_with_what_is_in_it(page, found):
    tags = parsed(page)
    alts = [attributes["alt"] for tag, attributes in tags.seen if tag == "img"]
    assert all(len(alt) > 15 for alt in alts)
    assert len(alts) == len(found.grid) + 5
    for z in found.grid.zs:
        [alt] = [alt for alt in alts if alt.startswith(f"Slice z = {z}:")]
        assert ("nothing is marked" in alt) == (not found.mask[:, :, z].any())
        assert ("certainly" in alt or "no cord can be" in alt) == (z == 1)


def test_it_says_what_it_must_not_be_used_for(page):
    words = parsed(page).text.lower()
    assert words.index("not for diagnosis") < words.index("mm³")
    assert words.count("not for diagnosis") >= 7
    assert "any decision about a patient" in words and "must not be used" in words


def test_numbers_are_those_of_the_mask_counted_independently(page, found):
    labels, count = ndimage.label(found.mask, np.ones((3, 3, 3)))
    sizes = sorted((size for size in np.bincount(labels.ravel())[1:].tolist() if size >= 3), reverse=True)
    table, numbered_labels = lesion_table(found)
    assert count == 4 and len(sizes) == 3 and table["voxels"].tolist() == sizes
    assert (numbered_labels > 0).sum() == found.mask.sum() - 2
    voxel_mm3 = 0.75 * 0.75 * 4
    np.testing.assert_allclose(table["mm3"], np.array(sizes) * voxel_mm3)
    words = parsed(page).text
    assert f"{found.lesion_mm3:.0f} mm³ marked in all" in words and "3 connected marks of 3 voxels" in words
    assert "4.5 mm³ are specks of fewer than 3 voxels" in words
    for size in sizes:
        assert f"{size * voxel_mm3:.1f}" in words
    slices = slice_table(found).set_index("z")
    for z in found.grid.zs:
        x = np.nonzero(found.mask[:, :, z])[0]
        area = 0.75 * 0.75
        assert slices.loc[z, ["right_mm2", "left_mm2", "far_mm2"]].sum() == pytest.approx(len(x) * area)
    assert found.record["image_sha256"] in words and found.record["network"]["weights_sha256"] in words


def test_a_lesions_place_is_where_it_was_put(found):
    table, _ = lesion_table(found)
    big, far, small = (table.loc[table["z"].isin(zs)].iloc[0] for zs in ((2, 3), (1,), (5,)))
    assert (big["side"], small["side"], far["side"]) == ("right", "left", "middle")
    assert (big["first_z"], big["last_z"], big["length_mm"]) == (2, 3, 8.0)
    middle = found.image.affine @ [22.5, 25.5, 2.5, 1]
    place = big[["right_mm", "front_mm", "up_mm"]].astype(float)
    np.testing.assert_allclose(place, middle[:3] + np.array([2, 0, 0]), atol=0.2)
    assert far["from_centre_mm"] > 8 and "false, if the centre is right" in far["doubts"]
    assert "false" not in big["doubts"]


def test_doubts_come_first_and_the_grave_ones_before_the_others(page, found):
    words = parsed(page).text
    assert words.index("Read this first") < words.index("What was marked")
    assert re.search(r"Grave: \d+ mm³ are marked more than 8 mm from the cord's centre, in slice 1", words)
    entries = re.findall(r'<li( class="grave")?>', page.read_text(encoding="utf-8"))
    graves = [bool(one) for one in entries]
    assert graves[0] and graves[: sum(graves)] == [True] * sum(graves)
    loud = dataclasses.replace(found, record=found.record | {"warnings": ["a <new> doubt & more"]})
    text = scan_report(loud, page.with_name("loud.html")).read_text(encoding="utf-8")
    assert "A &lt;new&gt; doubt &amp; more" in text
    assert "could not be tried" in text, "the network is known to nobody, and the page says so"


def test_what_lies_far_off_is_not_called_nothing(page):
    words = parsed(page).text
    assert "z = 1 : nothing marked within 8 mm of the centre;" in words
    assert "farther off, where no cord can be:" in words
    assert "z = 6 : nothing marked; highest" in words
    assert "are false, if that centre is in the cord" in words and "lesion" not in words.split("Every slice")[0]


@pytest.mark.parametrize(("again", "who"), [({1: 6, 2: 5, 3: 0}, "Marks 2, 3 are"), ({1: 6, 2: 6, 3: 4}, "Mark 3 is")])
def test_a_mark_that_a_small_change_loses_is_doubtful_in_both_places(found, network, tmp_path, monkeypatch, again, who):
    changed = dataclasses.replace(sensitivity(found, network), again=again)
    monkeypatch.setattr("msfilm.view.scan_report.sensitivity", lambda *_: changed)
    words = parsed(scan_report(found, tmp_path / "p.html", network=network)).text
    assert f"{who} not found again every time" in words
    assert re.findall(r"lost in (\d) of 6 small changes", words) == [str(6 - n) for n in again.values() if n < 6]


def test_a_jump_of_the_centre_is_said(tmp_path, network):
    scan, cord = scan_at(tmp_path, jump=True)
    found = segment(scan, None, contrast="T2w", cord=cord, network=network)
    assert bend_mm(found.grid)[3] == pytest.approx(3.75)
    assert bend_mm(found.grid)[[0, 6]].tolist() == [0, 0]
    words = parsed(scan_report(found, tmp_path / "p.html", network=network)).text
    assert "centre jumps: in slice 2, 3, 4" in words and "3.8 mm off its neighbours' line" in words


def test_changes_are_what_they_say(found, network):
    same = answer_moved(found, network, _code(found, network), 0, 0, 1)
    assert np.array_equal(same, found.probability)
    changed = sensitivity(found, network)
    assert changed.moves["change"].tolist() == list(MOVES) and not changed.missing
    for row in changed.thresholds.itertuples():
        assert row.mm3 == pytest.approx((found.probability >= np.float32(row.threshold)).sum() * 0.75 * 0.75 * 4)
    # A crop 1.5 mm to the right is two pixels further: on voxels of the crop's own size the answer is the same there.
    moved = answer_moved(found, network, None, 1.5, 0, 1)
    assert np.array_equal(moved[10:40] >= 0.5, found.mask[10:40])
    brighter = answer_moved(found, network, None, 0, 0, 1.1) >= 0.5
    assert brighter.sum() >= found.mask.sum() and dice(found.mask, brighter) > 0.5
    nobody = sensitivity(found)
    assert len(nobody.moves) == 0 and "given in memory" in nobody.missing


def test_intensities_are_those_within_3_mm(found):
    scale = intensities(found)
    rows, columns = np.indices((48, 48)) - 23.5
    values = found.crops[:, np.hypot(rows, columns) * 0.75 <= 3]
    assert scale.percentiles["middle"] == pytest.approx(np.median(values))
    assert scale.shares.sum() == pytest.approx(1)
    assert set(scale.ranges) == {"low", "middle", "high"} and "seed 1" in scale.source
    record = found.record | {"settings": found.record["settings"] | {"contrast": "X"}}
    unknown = dataclasses.replace(found, record=record)
    assert intensities(unknown).ranges == {} and "not known for X" in intensities(unknown).source


@pytest.mark.parametrize("shape", [(45, 51, 7), (33, 60, 2), (40, 33, 1)])
def test_a_scan_without_a_mark_and_of_few_slices(tmp_path, shape):
    network = known(Brighter(9.0))
    scan, cord = scan_at(tmp_path, shape=shape)
    found = segment(scan, None, contrast="T2star", cord=cord, network=network)
    page = scan_report(found, tmp_path / "empty.html", network=network, notes=["nothing seen"], probability=False)
    words = parsed(page).text
    assert "There is no mark of 3 voxels or more." in words and "nothing seen" in words
    assert "0 mm³ marked in all" in words
    assert len(re.findall("<figure id=", page.read_text(encoding="utf-8"))) == shape[2]


def test_names_and_notes_are_escaped(tmp_path, network):
    name = 'a <b>&"c".nii.gz'
    scan, cord = scan_at(tmp_path, name)
    found = segment(scan, None, contrast="T2w", cord=cord, network=network)
    evil = '<script>alert("x")</script>'
    page = scan_report(found, tmp_path / "p.htm", title=evil, notes={2: evil}, network=network)
    tags, text = parsed(page), page.read_text(encoding="utf-8")
    assert not any(tag in ("script", "b") and "x" in str(attributes) for tag, attributes in tags.seen)
    assert "<script" not in text and text.count(escape(evil).replace("&quot;", "&#34;")) >= 3
    assert name in tags.text and evil in unescape(tags.text)
    assert str(tmp_path) not in text, "the page goes to others: no folder of this machine"


def test_a_page_appears_whole_or_not_at_all(tmp_path, found, network, monkeypatch):
    page = tmp_path / "p.html"
    page.write_text("older")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RunError, match="REPORT-WRITE.*No space left") as caught:
            scan_report(found, page, network=network)
    assert caught.value.where == str(page) and caught.value.mend
    assert page.read_text() == "older" and [path.name for path in tmp_path.iterdir()] == ["p.html"]
    with pytest.raises(RunError, match="REPORT-WRITE"):
        scan_report(found, page / "below" / "p.html", network=network)
    with pytest.raises(SettingError, match="OUT-NAME"):
        scan_report(found, tmp_path / "p.pdf")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A phantom's T2w scan on disk, with its cord mask."""
    folder = tmp_path_factory.mktemp("phantom é")
    row = find_volumes(write_cohort(folder, patients=1, seed=7, progress=False)).query("contrast == 'T2w'").iloc[0]
    return row["image"], row["cord"], row["truth"]


def test_the_command_writes_the_page(phantom, tmp_path):
    image, cord, _ = phantom
    arguments = ["segment", image, tmp_path / "m.nii.gz", "--contrast", "T2w", "--cord", cord, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
    page = tmp_path / "p.html"
    done = subprocess.run([sys.executable, "-m", "msfilm", *map(str, arguments), "--report", str(page)], **told)
    assert done.returncode == 0, done.stderr
    words = parsed(page).text
    assert f"{float(re.search('([0-9.]+) mm3', done.stdout)[1]):.0f} mm³ marked in all" in words
    assert "m.nii.gz" in words and "6 of 6" in words and "learnt from phantoms alone" in words
    assert "Trained on phantom, 240 patients of seed 1" in words
    assert re.search(r"lesion by lesion, it finds 89 % of the lesions, and 8 % of its marks are none; on lesion", words)
    found = segment(image, None, contrast="T2w", cord=cord, device="cpu")
    shipped = recorded_network(found)
    assert shipped.conditioning == "contrast"
    again = answer_moved(found, shipped, _code(found, shipped), 0, 0, 1)
    assert np.array_equal(again, found.probability), "moved by nothing: the same to the last bit"


def test_from_file_to_mask_to_page_in_the_notebook(phantom, tmp_path, monkeypatch):
    image, _, truth = phantom
    monkeypatch.setenv("MSFILM_MIRROR", str(tmp_path))  # holds nothing: the public scans are missing
    out = tmp_path / "out é"
    given = {"PROFILE": "quick", "IMAGE": str(image), "OUT": str(out), "DATA_DIR": str(tmp_path / "data")}
    executed = tmp_path / "executed.ipynb"
    how = execute(numbered("13"), executed, given, cwd=tmp_path, timeout_s=300, progress=False)
    assert not how.error
    assert not any(output.output_type == "error" for cell in code_cells(read(executed)) for output in cell.outputs)
    text = "".join(printed(cell) for cell in code_cells(nbformat.read(executed, as_version=4)))
    assert "ITS PROPOSAL IS USED" in text and "your scan: " in text and "same grid as the scan: True" in text
    assert "there is no table" in text and "loads anything from elsewhere: False" in text
    [mask], [page] = out.glob("*_mask.nii.gz"), out.glob("*_report.html")
    words = parsed(page).text
    assert "the built-in localiser" in words and "Not for diagnosis" in words
    from msfilm.data.nifti import read_mask

    assert dice(read_mask(truth).data, read_mask(mask).data) > 0.3
