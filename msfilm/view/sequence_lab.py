"""A scanner's settings as sliders: a slice of the phantom, its tissues' signals and the lesion's contrast follow."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from matplotlib.patches import Rectangle

from msfilm.errors import InputError, MsfilmError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.phantom.cohort import make_scan
from msfilm.phantom.facts import ACQUISITIONS, protocol
from msfilm.phantom.physics import signals
from msfilm.phantom.roster import make_patient, patient_name
from msfilm.phantom.scanner import Scanner, scan_image
from msfilm.phantom.slice_maps import SliceMaps
from msfilm.view.contrast import TISSUE_LOOKS, TISSUES, along, meeting_points, moved, ranges, round_ticks
from msfilm.view.live import LiveView, slider
from msfilm.view.panels import SlicePanel

__all__ = ["SequenceLab"]

AGAINST = ("white matter", "grey matter", "CSF")  # what a lesion may hide in
NAMES = {"tr": "TR (ms)", "te": "TE (ms)", "ti": "TI (ms)", "flip_deg": "flip angle (degrees)"}
POINTS, TOP, MOST, HARD = 161, 4.0, 40.0, 3.0  # of a curve; where bars end; CNR where they end; CNR that is hard to see
ZOOM_MM, SPIN_FLOW = 26.0, 0.16  # of the enlarged square; share of CSF's signal that flow takes
FLOW = {"GRE": 0.05, "GRE-MT": 0.05}  # gradient echoes hardly feel it


class SequenceLab(LiveView):
    """Turn TR, TE, TI, flip angle and field of nine scans, and see a neck, its tissues and its lesion follow.

    Above, one axial slice of a phantom patient and its cord enlarged: black is 0 and white 2.5 times white matter or
    more (or what 'window' says), so a grey means the same number everywhere. Beside them the tissues' brightness;
    below, their signals along one setting (the band is where it stands, the dotted line the protocol, a ring where the
    lesion is as bright as another tissue) and the lesion's contrast-to-noise (in the grey band it is hard to see).
    All scans are shown in the voxels of the axial T2w, so that only the signal differs. To use: choose a scan, move a
    slider; 'back to the protocol' undoes it.

    What the slice leaves out of ``make_scan``: that TR, flow and brightness vary a little from scan to scan, and,
    unless 'scanner' is on, noise, blur and receive field. Noise stays as strong as at the protocol, in the equation's
    unit: what makes white matter darker lowers the signal-to-noise. It does not follow the field.

    Args:
        patient: number of the phantom patient, from 0; by default the first from 19 on whose axial T2w shows a lesion.
        seed: of the phantom.
        centre: whose protocols, such as 'centre-01'; by default the patient's own.
        slices: how many slices with a lesion to choose from.

    Raises:
        InputError: LAB-LESION where no slice of the axial T2w holds a lesion.

    Attributes:
        signal: tissue -> signal in the equation's unit (all the signal of pure water is 1); empty when refused.
        brightness: the same with white matter 1.
        contrast: lesion / white matter - 1.
        snr: white matter over the noise.
        cnr: lesion against white matter, grey matter and CSF, and 'in the picture', against the healthy cord there.
        clean: (H, W) the slice without scanner, white matter 1; rows to the front, columns to the right.
        rings: (setting, tissue) of every ring.
        refused: why the settings cannot be played; '' when they can.
    """

    def __init__(self, patient: int | None = None, seed: int = 0, *, centre: str | None = None, slices: int = 4):
        super().__init__(9.9, 5.6)
        for index in range(19, 99) if patient is None else (patient,):
            scan = make_scan(index, seed, "T2w_ax", crop_only=True, noise=False, raters=())
            if scan.truth.any():
                break
        else:
            raise InputError("LAB-LESION", f"the axial T2w of {patient_name(index)} (seed {seed}) shows no lesion",
                             mend="choose another patient")  # fmt: skip
        own, body, lesions, _ = make_patient(index, seed)
        self.patient, self.seed, self.centre = index, seed, centre or own
        self._kinds, area = [(lesion.kind, lesion.strength) for lesion in lesions], scan.truth.sum((0, 1))
        names = list(signals(scan.protocol.times(), self._kinds))
        wide = np.flatnonzero(area >= 0.3 * area.max())
        found = np.unique([area.argmax(), *wide[np.linspace(0, len(wide) - 1, max(1, slices) - 1).round().astype(int)]])
        self.maps = {int(z): SliceMaps.of(body, lesions, scan.plan, int(z), names) for z in found}
        field = np.concatenate([scan.scanner.field[:3], [0, 0]])  # along z there is one slice only
        self._scanner, self._curves = Scanner(1, 1, field, np.ones(1)), None
        self.signal: dict[str, float] = {}
        self._add_controls({f"slice {z}, {scan.levels[z]}": int(z) for z in found}, int(area.argmax()))
        self._draw_first()
        self._start()
        rows = ("scan slice field_t reset", "tr te", "ti flip_deg", "over gain window scanner outline")
        self.finish(*(ipywidgets.HBox([self.controls[name] for name in names.split()], layout={"flex_flow": "row wrap"})
                      for names in rows))

    @classmethod
    def example(cls) -> SequenceLab:
        return cls()

    # ----- controls

    def _add_controls(self, slices: Mapping[str, int], first: int) -> None:
        def choice(name, description, width, options, then=None, **more) -> None:
            self.add(name, ipywidgets.Dropdown(options=options, description=description, layout={"width": width},
                                               style={"description_width": "initial"}, **more), then)

        choice("scan", "scan", "13em", list(ACQUISITIONS), self._start)
        choice("slice", "where", "15em", slices, value=first)
        choice("field_t", "field", "8.5em", [("1.5 T", 1.5), ("3 T", 3.0)])
        self.add("reset", ipywidgets.Button(description="back to the protocol", icon="undo", layout={"width": "auto"}),
                 self._reset)
        for name, text in NAMES.items():
            style = ".1f" if name == "te" else ".0f"
            self.add(name, slider(text, 1.0, 0.0, 1e4, 1.0, readout_format=style, width="34em"))
        choice("over", "curve over", "14em", [("TE", "te")])
        choice("gain", "1 is white matter", "18em", ["now", "at the protocol"])
        self.add("window", slider("window: 1 ±", 1.5, 0.1, 3.0, 0.05, width="17em"))
        for name, text, on in (("scanner", "scanner: noise, blur, coil", False), ("outline", "outline", True)):
            self.add(name, ipywidgets.Checkbox(value=on, description=text, indent=False, layout={"width": "auto"}))

    @property
    def protocol(self):
        """The centre's protocol of the chosen scan."""
        return protocol(self.centre, self.controls["scan"].value)

    @property
    def maps_here(self) -> SliceMaps:
        """Tissue maps of the chosen slice."""
        return self.maps[self.controls["slice"].value]

    @property
    def settings(self) -> dict:
        """What the equations get now."""
        base = self.protocol.times()
        now = moved(base, "te", self.controls["te"].value)
        return now | {name: self.controls[name].value for name in {*ranges(base), "field_t"}}

    def _start(self) -> None:
        """Another scan: every slider's range, and where it starts."""
        base = self.protocol.times()
        reach = ranges(base)
        for name in NAMES:
            control = self.controls[name]
            control.disabled = name not in reach
            if name in reach:
                low, high = reach[name]
                control.min, control.max = min(control.min, low), max(control.max, high)  # no order is refused
                control.value = base[name]
                control.min, control.max = low, high
                control.step = 0.1 if high <= 60 else 1
        over = self.controls["over"]
        over.options = [(NAMES[name].rsplit(" (", 1)[0], name) for name in NAMES if name in reach]
        over.value = "ti" if "ti" in reach else "te"
        self._reset()

    def _reset(self) -> None:
        base = self.protocol.times()
        for name in {*ranges(base), "field_t"}:
            self.controls[name].value = base[name]

    # ----- the picture

    def _draw_first(self) -> None:
        grid = self.figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.02), height_ratios=(1.5, 1))
        looks = {"lesion": ("vermillion", "-")}
        self.neck = SlicePanel(self, self.figure.add_subplot(grid[0, 0]))
        self.zoom = SlicePanel(self, self.figure.add_subplot(grid[0, 1]), looks=looks)
        self._square = self.neck.ax.add_patch(Rectangle((0, 0), 1, 1, fill=False, linewidth=1.5, zorder=5,
                                                        edgecolor=OKABE_ITO["orange"]))
        bars, curve, noise = (self.figure.add_subplot(grid[at]) for at in ((0, 2), (1, slice(0, 2)), (1, 2)))
        colours = [OKABE_ITO[TISSUE_LOOKS[name][0]] for name in TISSUES]
        self.bars = bars.barh(list(TISSUES), [0.0] * len(TISSUES), color=colours, height=0.6)
        bars.axvline(1, color="0.5", linewidth=1)
        bars.set(xlim=(0, 1.2 * TOP), xticks=range(int(TOP) + 1))
        self._unit = bars.set_title(" ", fontsize=10, loc="left")
        self.lines = {name: curve.plot([], [], color=OKABE_ITO[TISSUE_LOOKS[name][0]], label=name,
                                       linestyle=TISSUE_LOOKS[name][1], linewidth=2.6 if name == "lesion" else 1.8)[0]
                      for name in TISSUES}
        curve.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(TISSUES), frameon=False, fontsize=9,
                     handlelength=2.4, columnspacing=1.2, borderaxespad=0.1)
        curve.set(xlim=(0, 1), ylim=(0, 1))
        curve.set_xlabel(" ", fontsize=10)
        curve.set_ylabel("signal (pure water 1)", fontsize=10)
        curve.yaxis.set_label_coords(-0.095, 0.5)  # with room for the longest numbers, whichever come later
        self.curve, self._axis = curve, None
        self.mark = curve.axvline(0, color="0.6", linewidth=5, alpha=0.45, zorder=1)
        self._home = curve.axvline(0, color="0.3", linewidth=1, linestyle=":", zorder=1)
        self._rings, = curve.plot([], [], "o", markersize=10, markerfacecolor="none", markeredgecolor="black",
                                  markeredgewidth=1.6, zorder=5)
        self.cnr_bars = noise.barh([*AGAINST, "in the picture"], [0.0] * 4, color=[*colours[:3], "0.5"], height=0.6)
        noise.axvspan(-HARD, HARD, color="0.5", alpha=0.2, zorder=0)
        noise.axvline(0, color="0.5", linewidth=1)
        noise.set(xlim=(-MOST, 1.5 * MOST), xticks=np.linspace(-MOST, MOST, 5))
        noise.set_title("lesion's contrast-to-noise against", fontsize=10, loc="left")
        for ax in (bars, curve, noise):
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=9)
        at_end = {"fontsize": 9, "va": "center", "ha": "right"}
        self._numbers, self._noise_numbers = ([
            ax.text(1.0, i, "", transform=ax.get_yaxis_transform(), **at_end) for i in range(count)]
            for ax, count in ((bars, len(TISSUES)), (noise, 4)))  # fmt: skip
        bars.invert_yaxis()
        noise.invert_yaxis()
        self.move(self._square, *self.bars, *self._numbers, *self.lines.values(), self.mark, self._home, self._rings,
                  *self.cnr_bars, *self._noise_numbers)

    def update(self) -> None:
        settings, maps, name = self.settings, self.maps_here, self.controls["over"].value
        which = int((maps.scan.distances < 0).sum((1, 2, 3)).argmax())  # the slice's largest lesion
        try:
            full = signals(settings, self._kinds, relative=False)
            start = signals(self.protocol.times(), self._kinds, relative=False)["wm"]
            self.refused = ""
        except MsfilmError as error:  # settings that no scanner can play
            self._blank(error)
            return
        self.signal = {tissue: full[key.format(which)] for tissue, key in TISSUES.items()}
        white = full["wm"]
        self.brightness = {tissue: value / white for tissue, value in self.signal.items()}
        self.contrast = self.brightness["lesion"] - 1
        self.snr = max(self.protocol.snr * white / start, 1e-3)
        inflow = settings["sequence"] in FLOW
        self.clean = maps.picture({key: value / white for key, value in full.items()},
                                  te_ms=settings["te"] if inflow else 0.0,
                                  flow=FLOW.get(settings["sequence"], SPIN_FLOW))
        self.cnr = {tissue: (self.brightness["lesion"] - self.brightness[tissue]) * self.snr for tissue in AGAINST}
        self.cnr["in the picture"] = float(maps.cnr(self.clean, self.snr)[which])
        now = self.controls["gain"].value == "now"
        self._unit.set_text("brightness (white matter 1)" if now else "brightness (protocol's white matter 1)")
        self._show(maps, 1.0 if now else white / start)
        x, curves = self._over(name, settings, which)
        self._show_curves(name, settings, x, curves)

    def scanned(self) -> np.ndarray:
        """(H, W) the slice as the scanner gives it: receive field, end of k-space, noise; the same noise each time."""
        how, plan = self.protocol, self.maps_here.plan
        scanner = Scanner(self.snr, how.kmax, self._scanner.field, self._scanner.gain)
        rows = (np.arange(plan.shape[1]) - (plan.shape[1] - 1) / 2) * plan.voxel_mm[1]
        noise = np.random.default_rng([self.seed, self.patient, 3])
        columns = plan.columns() - plan.centre_mm[0]
        return scan_image(torch.from_numpy(self.clean)[None], scanner, columns, rows, noise=noise)[0].numpy()

    def _show(self, maps: SliceMaps, gain: float) -> None:
        picture = gain * (self.scanned() if self.controls["scanner"].value else self.clean)
        reach, step = self.controls["window"].value, maps.plan.voxel_mm[1:]
        limits = (max(0.0, 1 - reach), 1 + reach)
        here = f"{patient_name(self.patient)}, {self.controls['slice'].label}"
        self.neck.show(picture[::-1, ::-1], spacing_mm=step, limits=limits, title=here)
        rows, columns = maps.around_cord(ZOOM_MM)
        lesion = {"lesion": maps.scan.truth[0][rows, columns][::-1, ::-1]} if self.controls["outline"].value else {}
        self.zoom.show(picture[rows, columns][::-1, ::-1], lesion, spacing_mm=step, limits=limits,
                       title="the cord" + (", lesion outlined" if lesion else ""))
        height, width = picture.shape
        self._square.set_bounds(width - columns.stop - 0.5, height - rows.stop - 0.5, columns.stop - columns.start,
                                rows.stop - rows.start)
        for bar, number, value in zip(self.bars, self._numbers, self.brightness.values(), strict=True):
            bar.set_width(min(gain * value, TOP))
            number.set_text(_short(gain * value, ".2f", 100))
        for bar, number, value in zip(self.cnr_bars, self._noise_numbers, self.cnr.values(), strict=True):
            bar.set_width(float(np.clip(value, -MOST, MOST)))
            number.set_text(_short(value, "+.1f", 1000))

    def _over(self, name: str, settings: Mapping, which: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Signals along a whole slider; kept while nothing but this slider moves."""
        control, lesion = self.controls[name], self._kinds[which]
        rest = sorted((key, value) for key, value in settings.items() if key not in (name, "tes"))
        key = name, control.min, control.max, str(rest), lesion
        if self._curves is None or self._curves[0] != key:
            x = np.linspace(control.min, control.max, POINTS)
            self._curves = key, x, along(settings, name, x, lesion)
        return self._curves[1], self._curves[2]

    def _show_curves(self, name: str, settings: Mapping, x: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
        for tissue, y in curves.items():
            self.lines[tissue].set_data(x, y)
        self.mark.set_xdata([settings[name]] * 2)
        self._home.set_xdata([self.protocol.times()[name]] * 2)
        self.rings = [(float(at), tissue) for tissue in AGAINST
                      for at in meeting_points(x, curves["lesion"], curves[tissue])]
        at = [ring[0] for ring in self.rings]
        self._rings.set_data(at, np.interp(at, x, curves["lesion"]))
        top = float(np.nanmax(list(curves.values())))
        if self._axis != (name, x[0], x[-1]):  # another slider, or another scan
            self._axis = name, x[0], x[-1]
            self.curve.set(xlim=(x[0], x[-1]), xlabel=NAMES[name], xticks=round_ticks(x[0], x[-1], 8), ylim=(0, 1e-9))
        if not 0.4 < top / self.curve.get_ylim()[1] <= 1:
            self.curve.set(ylim=(0, 1.08 * top), yticks=round_ticks(0, top, 4))

    def _blank(self, error: MsfilmError) -> None:
        self.refused, self.signal, self.brightness, self.cnr, self.rings = error.what, {}, {}, {}, []
        self.contrast = self.snr = float("nan")
        self.clean = np.zeros(self.maps_here.plan.shape[1:], np.float32)
        for panel, part in ((self.neck, ...), (self.zoom, self.maps_here.around_cord(ZOOM_MM))):
            panel.show(self.clean[part], limits=(0, 1), spacing_mm=self.maps_here.plan.voxel_mm[1:],
                       title="this cannot be played")
        for bar in (*self.bars, *self.cnr_bars):
            bar.set_width(0)
        for number in (*self._numbers, *self._noise_numbers):
            number.set_text("")
        for line in (*self.lines.values(), self._rings):
            line.set_data([], [])

    def describe(self) -> str:
        scan, settings = self.controls["scan"].value, self.settings
        text = ", ".join(f"{NAMES[name].split(' (')[0]} {settings[name]:.4g}{'°' if name == 'flip_deg' else ' ms'}"
                         for name in ranges(settings))
        text = f"{scan} of {patient_name(self.patient)} at {settings['field_t']:g} T, {text}"
        if self.refused:
            return f"{text}: not played, {self.refused}."
        bright = ", ".join(f"{tissue} {_short(value, '.2f', 100)}" for tissue, value in self.brightness.items())
        side = "brighter" if self.contrast > 0 else "darker"
        meet = {tissue: [f"{at:.0f}" for at, other in self.rings if other == tissue] for tissue in AGAINST}
        rings = "; ".join(f"as bright as {tissue} at {', '.join(at)}" for tissue, at in meet.items() if at)
        return (f"{text}: {bright}. The lesion is {_short(abs(self.contrast), '.0%', 100)} {side} than white matter, "
                f"{self.cnr['white matter']:+.1f} times the noise (signal-to-noise {self.snr:.1f}); in the picture, "
                f"which mixes tissues in a voxel, {self.cnr['in the picture']:+.1f}."
                + (f" Rings along {NAMES[self.controls['over'].value]}: {rings}." if rings else ""))


def _short(value: float, style: str, most: float) -> str:
    """A number, or that it is beyond all bounds, as where white matter is nulled."""
    return f"{value:{style}}" if abs(value) < most else f"{'>' if value > 0 else '<-'}{most:g}"
