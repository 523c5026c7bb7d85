"""AugmentExplorer: a slice and its mask before and after augmentation, with a control for each strength."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import contourpy
import ipywidgets
import numpy as np
import torch
from matplotlib.collections import LineCollection

from msfilm.data.slices import UNDRAWN, SliceSet
from msfilm.errors import SettingError, suggest
from msfilm.evaluate.metrics import dice
from msfilm.train.alter import MASK_OPERATIONS
from msfilm.train.augment import ALTERED_TRUTH, NO_AUGMENT, PAPER_2020, AugmentConfig, augment, with_altered_truth
from msfilm.view.live import LiveView, slider
from msfilm.view.panels import SlicePanel
from msfilm.view.slices import _as_stack, _key, _limits

__all__ = ["PRESETS", "AugmentExplorer"]

PRESETS = {"none": NO_AUGMENT, "course default": AugmentConfig(), "like the paper": PAPER_2020,
           "altered truth": ALTERED_TRUTH, "altered truth alone": with_altered_truth(NO_AUGMENT)}
_OWN = "own settings"
_AMOUNTS = {  # field: (words, highest, the probability that it hangs on)
    "rotate_deg": ("turn, degrees", 45.0, "affine_p"), "scale": ("scale, share", 0.5, "affine_p"),
    "translate_mm": ("shift, mm", 8.0, "affine_p"), "elastic_mm": ("elastic, rms mm", 2.0, "elastic_p"),
    "brightness": ("brightness", 0.5, "intensity_p"), "contrast": ("contrast", 0.9, "intensity_p"),
    "gamma": ("gamma", 0.9, "intensity_p"), "bias": ("bias field", 0.5, "intensity_p"),
    "blur": ("blur, share", 1.0, "intensity_p"), "noise": ("noise", 0.3, "intensity_p"),
}
_GEOMETRY = ("rotate_deg", "scale", "translate_mm", "elastic_mm")
_MASK = {"strength": ("altered truth, strength", 2.5), "mask_shift_mm": ("mask's own shift, mm", 2.0),
         "mask_soft_mm": ("soft rim, mm", 3.0)}
_CHANCES = ("mask_morphology_p", "mask_move_p", "mask_soft_p")
_ASLEEP = 1e-12  # too little to do anything, but its random numbers are drawn: other sliders change nobody's draw
_LOOKS = {"before": ("sky", (0, (1, 1))), "moved with the image": ("orange", "-"),
          "altered": ("green", (0, (4, 1.5)))}
_READ, _CARRIED = "where the result reads", "carried along with the image"
_STEP = 4     # pixels between grid lines
_CLOSE = 24   # pixels, side of the close view


class AugmentExplorer(LiveView):
    """What ``msfilm.train.augment`` does to one slice: before, after, and how far the altered mask is from the moved.

    In one line: ``AugmentExplorer(slices)``, ``AugmentExplorer(images, masks)``, or ``AugmentExplorer()`` for a
    phantom's slices. A slider is the largest amount of one operation; each draw takes its own share of it, between
    minus and plus, and 'draw' is the seed: another number, another draw. Whatever has a slider above 0 is applied for
    certain (p = 1), so that its effect is always seen; tick 'as often as in training' for the preset's probabilities.
    Only 'altered truth, strength' keeps the chances of ``with_altered_truth``, which it multiplies.

    The grid lines of the two pictures belong together: the straight ones of the one are the bent ones of the other.
    Where the result reads from outside the slice, its edge is repeated, and no line is drawn.

    Args:
        images: a SliceSet, or (H, W), (n, H, W) or (n, 1, H, W) in units of the cord's median.
        masks: of the same shape, 0 and 1 (255: unknown, left out); of a SliceSet the name of one of its masks, 'truth'
            or the first rater's by default.
        spacing_mm: pixel size; a SliceSet knows its own.
        preset: key of PRESETS to start from.
        seed: of the first draw, 0 to 200.

    Attributes:
        config: the ``AugmentConfig`` in use: ``augment`` with it and a generator of this seed gives what is shown.
        before, after: (H, W) images. mask, moved: (H, W) bool. altered: (H, W) float32 in 0 to 1.
        reading: (H, W, 2) column and row that each pixel of ``after`` reads.
        area_mm2: of 'before', 'moved' and 'altered' (cut at one half). dice: altered against moved; NaN: both empty.
        largest_mm: farthest that a pixel reads from its own place, a left-right flip undone. flipped: whether.

    Raises:
        SettingError: PLOT-SHAPE, MASK-UNKNOWN, AUGMENT-PRESET, AUGMENT-SEED.
    """

    def __init__(self, images: Any = None, masks: Any = None, *, spacing_mm: float = 0.75,
                 preset: str = "altered truth", seed: int = 3):
        super().__init__(9.9, 4.0)
        if preset not in PRESETS:
            raise SettingError("AUGMENT-PRESET", f"preset={preset!r}", mend=suggest(preset, PRESETS))
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 200:
            raise SettingError("AUGMENT-SEED", f"seed={seed!r}", mend="use a whole number from 0 to 200")
        self._take(_phantom() if images is None else images, masks, spacing_mm)
        self._draw()
        self._adopting = False
        rows = self._controls(preset, seed)
        self._adopt(preset)
        self.finish(*rows)

    @classmethod
    def example(cls) -> AugmentExplorer:
        return cls()

    def _take(self, images: Any, masks: Any, spacing_mm: float) -> None:
        """Slices with a known mask, and what each is called."""
        if isinstance(images, SliceSet):
            known = [name for name in ("truth", *images.masks) if name in images.masks and name != "cord"]
            name = masks if masks is not None else known[0] if known else "truth"
            if not isinstance(name, str) or name not in images.masks:
                raise SettingError("MASK-UNKNOWN", f"no mask {name!r}", mend=suggest(name, images.masks))
            table = images.table
            self.names = [f"{volume}, slice {z}" for volume, z in zip(table["volume"], table["z"], strict=True)]
            images, masks, spacing_mm = images.images, images.masks[name], float(table["spacing_mm"].iloc[0])
        elif masks is None:
            raise SettingError("PLOT-SHAPE", "images without masks", mend="give both, or a SliceSet")
        else:
            self.names = [f"slice {i}" for i in range(len(_as_stack(images)))]
        stack, marks = _as_stack(images), _as_stack(masks)
        if stack.shape != marks.shape or min(stack.shape[1:]) < 4:
            raise SettingError("PLOT-SHAPE", f"images {stack.shape} and masks {marks.shape} (N, H, W)",
                               mend="give as many masks as images, of one size, 4 pixels a side or more")
        kept = np.flatnonzero((marks != UNDRAWN).all(axis=(1, 2)))
        if not len(kept):
            raise SettingError("PLOT-SHAPE", "no slice has a mask", mend="choose the mask of a rater who drew some")
        if not np.isin(marks[kept], (0, 1)).all():
            raise SettingError("SCORE-VALUES", "the masks hold values other than 0 and 1", mend="threshold them first")
        self._images, self._marks, self.spacing_mm = stack[kept], marks[kept], float(spacing_mm)
        self.names = [self.names[i] for i in kept]
        height, width = stack.shape[1:]
        rows, columns = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
        self._places = torch.stack([columns, rows])[None]                             # (1, 2, H, W)

    def _draw(self) -> None:
        left, middle, right = self.figure.subplots(1, 3, width_ratios=(1, 1, 1.02))
        before, moved, altered = _LOOKS
        self.panels = (SlicePanel(self, left, looks={before: _LOOKS[before]}), SlicePanel(self, middle, looks=_LOOKS),
                       SlicePanel(self, right, looks={name: _LOOKS[name] for name in (moved, altered)}, letters="",
                                  cmap="cividis"))
        self._grids = []
        for panel in self.panels[:2]:
            lines = LineCollection([], colors="white", linewidths=0.8, alpha=0.55, zorder=2.5)
            self._grids.append(panel.ax.add_collection(lines, autolim=False))
        self.move(*self._grids)
        self.panels[2].image.set_clim(-1, 1)
        bar = self.figure.colorbar(self.panels[2].image, ax=right, fraction=0.05, pad=0.02, ticks=[-1, 0, 1])
        bar.ax.set_yticklabels(["taken\naway", "as\nmoved", "added"])
        bar.ax.tick_params(labelsize=9)
        _key(self.figure, _LOOKS)

    def _controls(self, preset: str, seed: int) -> list[ipywidgets.Widget]:
        def own() -> None:
            if not self._adopting:
                self.controls["preset"].value = _OWN

        def part(name: str) -> ipywidgets.Widget:
            words, high = (_AMOUNTS | _MASK)[name][:2]
            return self.add(name, slider(words, 0.0, 0.0, high, width="23em"), own)

        def tick(name: str, words: str, then=None) -> ipywidgets.Widget:
            return self.add(name, ipywidgets.Checkbox(description=words, indent=False,
                                                      layout={"width": "auto", "margin": "0 1em 0 0"}), then)

        def column(title: str, *widgets: ipywidgets.Widget) -> ipywidgets.Widget:
            return ipywidgets.VBox([ipywidgets.HTML(f"<b>{title}</b>"), *widgets])

        def choice(name: str, words: str, options: Any, then=None) -> ipywidgets.Widget:
            return self.add(name, ipywidgets.Dropdown(
                options=options, description=words, layout={"width": "21em", "margin": "2px 1em 2px 2px"},
                style={"description_width": "initial"}), then)

        wrap, side = (ipywidgets.Layout(flex_flow="row wrap", align_items=place) for place in ("center", "flex-start"))
        start = int(self._marks.sum(axis=(1, 2), dtype=np.int64).argmax())
        top = [choice("preset", "preset", [*PRESETS, _OWN], lambda: self._adopt(self.controls["preset"].value)),
               self.add("draw", slider("draw (seed)", seed, 0, 200, width="21em")),
               self.add("slice", slider("slice", start, 0, len(self.names) - 1, width="19em"))]
        intensity = [name for name in _AMOUNTS if name not in _GEOMETRY]
        columns = [column("image and mask together", *map(part, _GEOMETRY), tick("flip", "flip left-right", own)),
                   column("the image alone", *map(part, intensity)),
                   column("the mask alone", part("strength"),
                          choice("operation", "one pixel, for certain", ["none", *MASK_OPERATIONS], own),
                          part("mask_shift_mm"), part("mask_soft_mm"))]
        last = [choice("grid", "grid lines", [_READ, _CARRIED, "none"]),
                tick("chances", "as often as in training")]
        columns[2].children += (last[0],)
        return [ipywidgets.HBox([*top, last[1]], layout=wrap), ipywidgets.HBox(columns, layout=side)]

    def _adopt(self, preset: str) -> None:
        """Set the controls to a preset's amounts; what has probability 0 there is at 0."""
        if preset == _OWN or self._adopting:
            return
        config, self._adopting = PRESETS[preset], True
        with self.hold():
            try:
                for name, (_, _, chance) in _AMOUNTS.items():
                    self.controls[name].value = getattr(config, name) if getattr(config, chance) else 0.0
                self.controls["flip"].value = config.flip_lr_p > 0
                self.controls["operation"].value = "none"
                for name in ("mask_shift_mm", "mask_soft_mm"):
                    self.controls[name].value = 0.0
                self.controls["strength"].value = 1.0 if config.mask_morphology_p else 0.0
                self.controls["preset"].value = preset
            finally:
                self._adopting = False

    def _config(self) -> AugmentConfig:
        """What the controls ask for; NO_AUGMENT itself where they ask for nothing."""
        value = {name: control.value for name, control in self.controls.items()}
        amounts = {name: max(value[name], _ASLEEP) for name in _AMOUNTS}
        if not (value["flip"] or value["operation"] != "none" or any(value[name] for name in (*_AMOUNTS, *_MASK))):
            return NO_AUGMENT
        usual, chances = AugmentConfig(), dict.fromkeys(("affine_p", "elastic_p", "intensity_p", "flip_lr_p"), 1.0)
        if value["chances"]:
            preset = PRESETS.get(value["preset"], usual)
            chances = {name: getattr(preset, name) or getattr(usual, name) for name in chances}
        chances["flip_lr_p"] *= value["flip"]
        config = with_altered_truth(replace(NO_AUGMENT, **amounts, **chances), value["strength"])
        if value["operation"] != "none":
            config = replace(config, mask_morphology_p=1.0, mask_operations=(value["operation"],))
        if value["mask_shift_mm"]:
            turned = {} if value["strength"] else {"mask_rotate_deg": 0.0, "mask_scale": 0.0}
            config = replace(config, mask_move_p=1.0, mask_shift_mm=value["mask_shift_mm"], **turned)
        if value["mask_soft_mm"]:
            config = replace(config, mask_soft_p=1.0, mask_soft_mm=value["mask_soft_mm"])
        return replace(config, **{name: max(getattr(config, name), _ASLEEP) for name in _CHANCES})

    def update(self) -> None:
        at, seed = self.controls["slice"].value, self.controls["draw"].value
        image = torch.from_numpy(np.array(self._images[at], np.float32))[None, None]
        mask = torch.from_numpy(np.array(self._marks[at], np.uint8))[None, None]
        self.config = self._config()
        after, altered = augment(image, mask, self.config, torch.Generator().manual_seed(seed),
                                 spacing_mm=self.spacing_mm)
        # The same draw with the mask's own changes asleep; each pixel's place, moved like a mask, is where it reads.
        quiet = replace(self.config, **{name: min(getattr(self.config, name), _ASLEEP) for name in _CHANCES})
        together = augment(image, torch.cat([mask.float(), self._places], dim=1), quiet,
                           torch.Generator().manual_seed(seed), spacing_mm=self.spacing_mm)[1][0]
        self.before, self.after, self.mask = image[0, 0].numpy(), after[0, 0].numpy(), mask[0, 0].numpy() == 1
        self.moved, self.altered = together[0].numpy() > 0.5, altered[0, 0].numpy().astype(np.float32)
        self.reading = together[1:].permute(1, 2, 0).numpy()
        self._measure()
        self._show()

    def _measure(self) -> None:
        height, width = self.mask.shape
        pixel = self.spacing_mm**2
        cut = self.altered > 0.5
        self.area_mm2 = {"before": self.mask.sum() * pixel, "moved": self.moved.sum() * pixel,
                         "altered": cut.sum() * pixel}
        self.dice = dice(self.moved, cut)
        self.flipped = bool(np.diff(self.reading[..., 0], axis=1).mean() < 0)
        read = self.reading.copy()
        self._known = ((read > 1e-3) & (read < np.array([width, height]) - 1 - 1e-3)).all(axis=-1)  # not the edge's
        own = self._places[0].permute(1, 2, 0).numpy()
        if self.flipped:
            own = own[:, ::-1]
        far = np.hypot(*np.moveaxis(read - own, -1, 0))[self._known]
        self.largest_mm = float(far.max() * self.spacing_mm) if far.size else float("nan")

    def _show(self) -> None:
        left, middle, right = self.panels
        before, moved, altered = _LOOKS
        limits, cut = _limits(self.before), self.altered > 0.5
        left.show(self.before, {before: self.mask}, spacing_mm=self.spacing_mm, limits=limits,
                  title=f"before: lesion {self.area_mm2['before']:.1f} mm²")
        middle.show(self.after, {before: self.mask, moved: self.moved, altered: cut}, spacing_mm=self.spacing_mm,
                    limits=limits, title=f"after: {self.area_mm2['moved']:.1f} mm² moved, "
                                         f"{self.area_mm2['altered']:.1f} altered")
        for letter, text in zip(middle.letters[:2], "LR" if self.flipped else "RL", strict=True):
            letter.set_text(text)
        part = self._close()
        score = "both empty" if np.isnan(self.dice) else f"Dice {self.dice:.2f}"
        right.show((self.altered - self.moved)[part], {moved: self.moved[part], altered: cut[part]}, limits=(-1, 1),
                   spacing_mm=self.spacing_mm, title=f"close: altered minus moved, {score}")
        lines = {_READ: (self._bent(), self._straight()), _CARRIED: (self._straight(), self._carried())}
        for grid, some in zip(self._grids, lines.get(self.controls["grid"].value, ([], [])), strict=True):
            grid.set_segments(some)

    def _close(self) -> tuple[slice, slice]:
        """A square round the moved mask, or the middle."""
        marked = self.moved if self.moved.any() else self.altered > 0.5
        centre = np.argwhere(marked).mean(axis=0) if marked.any() else np.array(marked.shape) / 2
        starts = [int(np.clip(round(at - _CLOSE / 2), 0, max(0, side - _CLOSE)))
                  for at, side in zip(centre, marked.shape, strict=True)]
        return slice(starts[0], starts[0] + _CLOSE), slice(starts[1], starts[1] + _CLOSE)

    def _straight(self) -> list[np.ndarray]:
        height, width = self.mask.shape
        return ([np.array([[0, row], [width - 1, row]]) for row in range(_STEP, height - 1, _STEP)]
                + [np.array([[column, 0], [column, height - 1]]) for column in range(_STEP, width - 1, _STEP)])

    def _bent(self) -> list[np.ndarray]:
        """Where the lines of the result lie in the slice as it was."""
        read = np.where(self._known[..., None], self.reading, np.nan)
        return [*read[_STEP:-1:_STEP], *np.moveaxis(read, 1, 0)[_STEP:-1:_STEP]]

    def _carried(self) -> list[np.ndarray]:
        """Where the lines of the slice as it was lie in the result: where the place read is theirs."""
        lines = []
        for axis, side in ((0, self.mask.shape[1]), (1, self.mask.shape[0])):
            levels = contourpy.contour_generator(z=np.ma.masked_array(self.reading[..., axis], ~self._known))
            lines += [line for level in range(_STEP, side - 1, _STEP) for line in levels.lines(level)]
        return lines

    def describe(self) -> str:
        area = self.area_mm2
        moves = ("nothing moves" if self.largest_mm < 0.005 else
                 f"pixels read from up to {self.largest_mm:.2f} mm away") + (", mirrored" if self.flipped else "")
        score = "both are empty" if np.isnan(self.dice) else f"Dice of the two {self.dice:.2f}"
        return (f"{self.names[self.controls['slice'].value]}, draw {self.controls['draw'].value}: {moves}. Lesion "
                f"{area['before']:.1f} mm² before, {area['moved']:.1f} mm² moved with the image, "
                f"{area['altered']:.1f} mm² in the altered mask: {score}.")


def _phantom() -> SliceSet:
    """The T2w slices of one phantom patient of fixed seed, with lesions."""
    from msfilm.phantom.direct import make_slices
    from msfilm.phantom.roster import CohortPlan

    plan = CohortPlan(1000, acquisitions=("T2w_ax",), stations=1)
    return make_slices(1, plan, workers=1, progress=False)
