"""What all live views share: a figure whose artists follow controls, drawn quickly, its faults shown, and a still."""

from __future__ import annotations

import html
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets
import numpy as np
from ipympl.backend_nbagg import Canvas, FigureManager
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from msfilm.errors import MsfilmError
from msfilm.view.embed import image_tag
from msfilm.view.keys import VIEW_CLASS, ListKeys

__all__ = ["LiveCanvas", "LiveView", "slider"]

_PIXELS_PER_INCH = 96  # of CSS, so that 9 pt of matplotlib are 9 pt on the page


class LiveCanvas(Canvas):
    """ipympl's canvas, which keeps the picture of all that stands still and draws only what moves on top of it.

    matplotlib itself tells when the still part is out of date: a change of an artist that is not animated marks the
    figure as stale, a change of an animated one does not.
    """

    def __init__(self, figure: Figure):
        super().__init__(figure)
        self.moving: list[Artist] = []
        self._ground: tuple[Any, Any] | None = None
        with warnings.catch_warnings():  # of ipympl's own toolbar, which its manager brings and which is hidden here
            warnings.simplefilter("ignore", DeprecationWarning)
            FigureManager(self, 0)  # becomes self.manager
        for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable"):
            setattr(self, part, False)
        self.syncing_data_url = False  # a view has a still of its own: no second copy of each picture in the state
        self.watched = False  # whether a browser shows it

    def _handle_message(self, widget: object, content: dict, buffers: object) -> None:
        if content["type"] in ("initialized", "closing"):
            self.watched = content["type"] == "initialized"
        super()._handle_message(widget, content, buffers)

    def draw(self) -> None:
        """Draw the figure, or only what moves, and send what changed to the browser."""
        renderer = self.get_renderer()
        if self._ground is None or self._ground[0] is not renderer or self.figure.stale:
            FigureCanvasAgg.draw(self)
            self._ground = renderer, self.copy_from_bbox(self.figure.bbox)
        else:
            self.restore_region(self._ground[1])
        for artist in sorted(self.moving, key=lambda artist: artist.get_zorder()):
            artist.draw(renderer)
        self._png_is_old = True
        self.manager.refresh_all()


class LiveView(ABC):
    """A picture and its controls. Each view makes its artists once, and ``update`` moves them.

    In a notebook a view is the last line of a cell. Where there is no kernel, its still picture stands in its place.
    To write one: in ``__init__`` call ``super().__init__(width, height)``, draw, ``move`` what will change, ``add`` the
    controls, and end with ``finish``. ``update`` reads the controls and sets the artists; ``describe`` says in words
    what is seen, with its numbers. ``example`` makes one from shipped data, for tests and the benchmark. An error in
    any answer is shown below the picture, kept in ``errors``, and raised.

    Args:
        width, height: of the figure, in inches (96 pixels of the page each).

    Attributes:
        figure: the matplotlib figure.
        controls: name -> widget; set ``view.controls["z"].value`` to do what a reader does.
        errors: all that ``update`` or an answer to a click has raised.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH, facecolor="white", layout="constrained")
        self.canvas = LiveCanvas(self.figure)
        self.controls: dict[str, ipywidgets.Widget] = {}
        self.errors: list[Exception] = []
        self.words = ipywidgets.HTML()
        self.report = ipywidgets.Output()
        self.box = ipywidgets.VBox(layout={"padding": "0 4px"})
        self.box.add_class(VIEW_CLASS)
        self._keys = ListKeys(layout={"display": "none"})
        self._depth, self._wanted, self._finished = 0, False, False

    # ----- for those who write a view

    @abstractmethod
    def update(self) -> None:
        """Set the artists to what the controls say. Each view has its own."""

    @abstractmethod
    def describe(self) -> str:
        """What the picture shows now, in a sentence or two with its numbers: the line below it and its alt text."""

    @classmethod
    @abstractmethod
    def example(cls) -> LiveView:
        """One that works at once, from what ships with msfilm and a phantom of fixed seed; in seconds."""

    def move(self, *artists: Artist) -> None:
        """Artists that ``update`` changes. They lie above all that stands still, in the order of their zorder."""
        for artist in artists:
            artist.set_animated(True)
            self.canvas.moving.append(artist)

    def add(self, name: str, control: ipywidgets.Widget, then: Callable[[], None] | None = None) -> ipywidgets.Widget:
        """Register a control: when its value changes (or it is clicked), ``then`` runs and the picture follows.

        Args:
            name: its key in ``controls``.
            control: a widget with a value, or a button.
            then: what to do before ``update``, such as setting another control; the picture is drawn once at the end.
        """
        def follow(_change: object = None) -> None:
            with self.guard(), self.hold():
                if then is not None:
                    then()
                self._wanted = True

        self.controls[name] = control
        if isinstance(control, ipywidgets.Button):
            control.on_click(follow)
        else:
            control.observe(follow, names="value")
        return control

    def connect(self, event: str, answer: Callable[[Any], None]) -> None:
        """Answer matplotlib's mouse or key events on the picture, with errors shown as for a control."""
        def follow(happened: Any) -> None:
            with self.guard(), self.hold():
                answer(happened)

        self.canvas.mpl_connect(event, follow)

    def finish(self, *rows: ipywidgets.Widget, below: tuple[ipywidgets.Widget, ...] = ()) -> None:
        """Put rows of controls above the picture and ``below`` under it, draw for the first time, fix the layout."""
        self.box.children = [*rows, self.canvas, self.words, *below, self.report, self._keys]
        self._finished = True
        self.refresh()
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    # ----- for those who use one

    def refresh(self) -> None:
        """Let the picture follow the controls; inside ``hold`` once, at its end."""
        if self._depth or not self._finished:
            self._wanted = True
            return
        self._wanted = False
        with self.guard():
            self.update()
            self.words.value = _line(self.describe())
            self.canvas.draw_idle()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Set several controls, and draw once."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._wanted and not self._depth:
            self.refresh()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Show an error below the picture, keep it and raise it: a kernel would only log it where nobody looks."""
        before = len(self.errors)
        try:
            yield
        except Exception as error:
            if not any(error is known for known in self.errors):
                self.errors.append(error)
                self._tell(error)
            raise
        if not self._depth and len(self.errors) == before and self.report.outputs and self.canvas.watched:
            self.report.outputs = ()  # it is well again; without a reader the fault stays for those who look later

    def _tell(self, error: Exception) -> None:
        name = getattr(error, "code", None) if isinstance(error, MsfilmError) else None
        line = f"{name or type(error).__name__}: {error}"
        self.report.outputs = ({"output_type": "error", "ename": type(error).__name__, "evalue": str(error),
                                "traceback": [f"\x1b[31m{line}\x1b[0m"]},)
        self.words.value = _line("Not drawn: the picture is the one of before. What stopped it is said below.", "alert")

    def picture(self) -> np.ndarray:
        """Draw now, without waiting for a browser to ask, and give what is seen: (height, width, 4), uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.get_renderer().buffer_rgba()).copy()

    def still(self, *, dpi: int = 120):
        """The picture as it is now, as an HTML image that needs no kernel; its alt text is what ``describe`` says."""
        from IPython.display import HTML

        return HTML(image_tag(self.figure, self.describe(), dpi=dpi))

    def _repr_mimebundle_(self, **how: object) -> dict[str, Any]:
        """Controls where there is a kernel, and the still for every reader without one."""
        return dict(self.box._repr_mimebundle_(**how) or {}) | {"text/html": self.still().data}

    def close(self) -> None:
        """Free all widgets, and what the view holds; one that is not closed stays as long as its kernel."""
        waiting, found = [self.box, *self.controls.values()], []
        while waiting:
            widget = waiting.pop()
            if widget not in found:
                found.append(widget)
                parts = (getattr(widget, name, None) for name in ("layout", "style", "toolbar"))
                waiting += [*getattr(widget, "children", ()), *(part for part in parts if part is not None)]
                if widget is self.canvas:
                    waiting.append(self.canvas.manager.toolbar)
        for widget in found:
            widget.unobserve_all()
            if isinstance(widget, ipywidgets.Button):
                widget._click_handlers.callbacks.clear()
            widget.close()
        self.canvas.moving.clear()
        for number in [number for answers in self.canvas.callbacks.callbacks.values() for number in answers]:
            self.canvas.mpl_disconnect(number)


def _line(text: str, role: str = "status") -> str:
    return f'<p role="{role}" style="margin:.2em 0;line-height:1.4">{html.escape(text)}</p>'


def slider(description: str, value: float, low: float, high: float, step: float = 0, *, readout_format: str = "",
           width: str = "24em") -> ipywidgets.Widget:
    """A slider that answers while it moves; whole numbers where all are, else floats.

    Args:
        description: a word or two and the unit.
        value, low, high: where it stands and its ends.
        step: one press of an arrow key; 1 or a hundredth of the way by default.
        readout_format: such as '.2f'.
        width: in CSS.
    """
    whole = all(isinstance(number, int | np.integer) for number in (value, low, high, step))
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(value=value, min=low, max=high, step=step or (1 if whole else (high - low) / 100),
                description=description, continuous_update=True,
                readout_format=readout_format or ("d" if whole else ".2f"),
                style={"description_width": "initial"}, layout={"width": width})
