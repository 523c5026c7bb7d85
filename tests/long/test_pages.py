"""The course's pages in a real browser: each picture is drawn and described, nothing spills over or is fetched."""

from __future__ import annotations

import re
import subprocess

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from msfilm.course import run_course

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]  # the whole course is run first

# Appended to a copy of the page: the browser writes down what it drew, and the test reads it from the dumped document.
PROBE = """<script>
addEventListener("load", () => {
  for (const image of document.images) image.dataset.drawn = `${image.naturalWidth}x${image.naturalHeight}`;
  document.body.dataset.spill = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.background = getComputedStyle(document.body).backgroundColor;
  const fetched = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:"));
  document.body.dataset.fetched = fetched.length;
});
</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The whole course, with the quick profile, in a folder with a space in its name."""
    out = tmp_path_factory.mktemp("the course é")
    results = run_course("quick", out=out)
    assert [result.name for result in results if result.status != "ok"] == []
    return out


def _browse(chromium, page, *words, width=1200):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
    flags += [f"--window-size={width},900", f"--user-data-dir={page.parent / 'browser'}"]
    command = [chromium, *flags, *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def _probed(chromium, page, *words, width=1200):
    copy = page.with_name(f"probe-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    return BeautifulSoup(_browse(chromium, copy, "--dump-dom", *words, width=width), "html.parser")


@pytest.mark.timeout(1800)
def test_every_picture_is_drawn_and_described(chromium, pages):
    pictures = 0
    for page in sorted(pages.glob("[0-9]*.html")):
        drawn = _probed(chromium, page)
        assert drawn.body["data-fetched"] == "0", f"{page.name} fetches something"
        for image in drawn.find_all("img"):
            width, height = map(int, image["data-drawn"].split("x"))
            assert width > 20 and height > 20, f"{page.name}: a picture is not drawn"
            alt = image.get("alt", "")
            assert len(alt) > 15 and "No description" not in alt, f"{page.name}: alt={alt!r}"
            pictures += 1
    assert pictures >= 6


def test_the_index_leads_to_every_page(chromium, pages):
    drawn = _probed(chromium, pages / "index.html")
    links = [link["href"] for link in drawn.table.find_all("a")]
    assert len(links) >= 6 and all((pages / link).is_file() for link in links)
    assert all(re.search(r"\d+ MB", row.get_text()) for row in drawn.tbody.find_all("tr"))


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_spills_over_the_side(chromium, pages, width):
    for page in sorted(pages.glob("[i0-9]*.html")):
        assert int(_probed(chromium, page, width=width).body["data-spill"]) <= 0, f"{page.name} at {width} pixels"


def test_pages_follow_a_dark_screen(chromium, pages):
    light = _probed(chromium, pages / "index.html").body["data-background"]
    dark = _probed(chromium, pages / "index.html", "--blink-settings=preferredColorScheme=0").body["data-background"]
    assert light == "rgb(255, 255, 255)" and max(map(int, re.findall(r"\d+", dark))) < 60


def test_a_page_is_not_blank(chromium, pages):
    for page in sorted(pages.glob("[i0-9]*.html")):
        shot = pages / f"{page.stem}.png"
        _browse(chromium, page, f"--screenshot={shot}")
        assert len(Image.open(shot).convert("RGB").getcolors(2**20)) > 20, page.name
