"""Every live view, and the moves that a reader can make with its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

import ipywidgets
from matplotlib.text import Text

# View -> its module; each has example(), which needs neither network nor files of the reader's own.
VIEWS = {
    "FilmExplorer": "film_explorer",
    "SequenceLab": "sequence_lab",
    "CohortBrowser": "cohort_browser",
    "CropExplorer": "crop_explorer",
    "AugmentExplorer": "augment_explorer",
    "RaterExplorer": "rater_explorer",
    "ErrorBrowser": "error_browser",
    "CentrelinePicker": "centreline_picker",
}


def view_class(name: str) -> type:
    """The class of that name."""
    return getattr(import_module(f"msfilm.view.{VIEWS[name]}"), name)


def moves(control: ipywidgets.Widget, n: int = 1) -> Iterator[Callable[[], None]]:
    """``n`` things that a reader can do with a control; none where it is disabled or has one value.

    A slider is moved by a step at a time away from its nearer end and a tenth of the way at least, a list goes on to
    its next entry, a box is ticked or not, a button is pressed.
    """
    for i in range(n):
        if getattr(control, "disabled", False):
            return
        if isinstance(control, ipywidgets.Button):
            yield control.click
        elif isinstance(control, ipywidgets.Checkbox | ipywidgets.ToggleButton):
            yield lambda: setattr(control, "value", not control.value)
        elif isinstance(control, ipywidgets.SelectMultiple):
            options = [value for _, value in control._options_full]
            if len(options) > 1:
                at = (i + 1) % len(options)
                chosen = (options[at],) if control.value != (options[at],) else (options[at - 1],)
                yield lambda chosen=chosen: setattr(control, "value", chosen)
        elif hasattr(control, "_options_full"):
            if len(control._options_full) > 1:
                yield lambda: setattr(control, "index", ((control.index or 0) + 1) % len(control._options_full))
        elif isinstance(control, ipywidgets.SelectionRangeSlider | ipywidgets.FloatRangeSlider |
                        ipywidgets.IntRangeSlider):
            low, high = control.value
            shift = max(control.step, (control.max - control.min) / 10)
            narrower = (low, type(high)(max(low, high - shift)))
            yield lambda narrower=narrower: setattr(control, "value", narrower)
        elif hasattr(control, "min") and hasattr(control, "max"):
            if control.max > control.min:
                shift = max(control.step, (control.max - control.min) / 10) * (1 + i % 3) / 2
                up = control.value + shift <= control.max
                value = control.value + shift if up else control.min + (i % 5) * control.step
                yield lambda value=value: setattr(control, "value", type(control.value)(value))
        else:
            raise AssertionError(f"no move is known for {type(control).__name__}")


def texts(view) -> list[Text]:
    """All visible text of a picture."""
    return [text for text in view.figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and (text.axes is None or text.axes.get_visible())]
