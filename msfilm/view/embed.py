"""A figure as HTML with an alt text of its own, which survives into notebooks, pages and screen readers."""

from __future__ import annotations

import base64
import html
import io
import sys

from matplotlib.figure import Figure

from msfilm.errors import SettingError

__all__ = ["show"]

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

    if not str(alt).strip():
        raise SettingError("ALT-MISSING", "the picture has no alt text", mend="say in one sentence what it shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", transparent=False, metadata={"Software": None})
    if "matplotlib.pyplot" in sys.modules:  # close it only where pyplot is in use and may hold it
        sys.modules["matplotlib.pyplot"].close(figure)
    figure.clear()
    width = round(figure.get_figwidth() * _CSS_PIXELS_PER_INCH)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return HTML(f'<img alt="{html.escape(str(alt).strip(), quote=True)}" width="{width}" '
                f'style="max-width:100%;height:auto;background:#fff" src="data:image/png;base64,{data}">')
