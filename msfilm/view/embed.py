"""A figure as HTML with an alt text of its own, which survives into notebooks, pages and screen readers."""

from __future__ import annotations

import base64
import html
import io
import sys

from matplotlib.figure import Figure
from PIL import Image

from msfilm.errors import SettingError

__all__ = ["image_tag", "show"]

_CSS_PIXELS_PER_INCH = 96


def show(figure: Figure, alt: str, *, dpi: int = 144):
    """Turn a figure into an ``IPython.display.HTML`` image on white, and close the figure.

    At 100 % zoom the picture has its size in inches (1.5 pixels of the file for one of the page at 144 dpi), so that
    9 pt text is read as 9 pt; a narrow page shrinks it.

    Args:
        figure: any matplotlib figure, from pyplot or not.
        alt: what the picture shows, for those who do not see it.
        dpi: of the PNG.

    Raises:
        SettingError: ALT-MISSING when ``alt`` says nothing.
    """
    from IPython.display import HTML

    tag = image_tag(figure, alt, dpi=dpi)
    if "matplotlib.pyplot" in sys.modules:  # close it only where pyplot is in use and may hold it
        sys.modules["matplotlib.pyplot"].close(figure)
    figure.clear()
    return HTML(tag)


def image_tag(figure: Figure, alt: str, *, dpi: int = 144) -> str:
    """A figure, which stays as it is, as an ``<img>``; arguments and errors as for ``show``."""
    if not str(alt).strip():
        raise SettingError("ALT-MISSING", "the picture has no alt text", mend="say in one sentence what it shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", transparent=False, metadata={"Software": None})
    buffer = _fewer_colours(buffer)
    width = round(figure.get_figwidth() * _CSS_PIXELS_PER_INCH)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (f'<img alt="{html.escape(str(alt).strip(), quote=True)}" width="{width}" '
            f'style="max-width:100%;height:auto;background:#fff" src="data:image/png;base64,{data}">')


def _fewer_colours(png: io.BytesIO) -> io.BytesIO:
    """The same picture with a palette of 256 colours, which halves it: notebooks and pages carry their pictures.

    Grey scans keep every grey that they have; of coloured figures about 1 in 1000 pixels (smoothed rims of lines)
    moves by more than 16 of 255.
    """
    picture = Image.open(png).convert("RGB").quantize(256, kmeans=8, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, format="png", optimize=True)
    return small
