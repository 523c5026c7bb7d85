"""A scan and its masks in full 3-D (ipyniivue, WebGL), and beside it three planes for whoever cannot see that."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from msfilm.data.nifti import read_image, read_mask
from msfilm.errors import SettingError
from msfilm.evaluate.figure import OKABE_ITO
from msfilm.view.embed import image_tag
from msfilm.view.planes import PLANES, GreyScale, PlanePanel, field_box
from msfilm.view.slices import OUTLINE_LOOKS, _key

__all__ = ["VolumeView", "volume_3d"]


def volume_3d(image: str | Path, masks: Mapping[str, str | Path] | None = None, *, height: int = 420) -> VolumeView:
    """A scan with masks laid over it, to turn and to cut: ``volume_3d("scan.nii.gz", {"cord": "cord.nii.gz"})``.

    Drag in a plane to move the crosshair, drag the solid to turn it, scroll to go through the slices. By keyboard, once
    it is clicked: H, J, K, L move the crosshair or turn the solid, V goes from planes to solid, C cuts it. It needs a
    browser with WebGL 2, and no network: the JavaScript comes with ipyniivue. Under it stand the three planes through
    the first mask's middle as a still picture, which is all that a reader without kernel or without ipyniivue sees.

    Args:
        image: NIfTI of any orientation.
        masks: name -> 0/1 NIfTI on the image's grid, at most six.
        height: of the widget, in pixels.

    Raises:
        InputError: of the files (NIFTI-*, MASK-*); SettingError: VOLUME-MASKS for more masks than there are colours.
    """
    return VolumeView(image, masks or {}, height)


class VolumeView:
    """What ``volume_3d`` gives.

    Attributes:
        widget: the NiiVue widget, or None where ipyniivue is not installed.
        missing: why there is none; '' otherwise.
        planes: what the still is made of: ``figure``, ``volume``, ``masks``, ``position`` of the crosshair.
        box: all together, as a notebook shows it.
    """

    def __init__(self, image: str | Path, masks: Mapping[str, str | Path], height: int):
        if len(masks) > len(OUTLINE_LOOKS):
            raise SettingError("VOLUME-MASKS", f"{len(masks)} masks, and {len(OUTLINE_LOOKS)} colours",
                               mend="show the others in a second view")
        self.image, self.mask_files = Path(image), {name: Path(path) for name, path in masks.items()}
        self.looks = {name: OUTLINE_LOOKS[i] for i, name in enumerate(masks)}
        self.planes = _Planes(self.image, self.mask_files, self.looks)  # reads all files: a broken one is refused here
        self.widget, self.missing = None, ""
        try:
            self.widget = self._niivue(height)
        except ImportError as error:
            self.missing = (f"ipyniivue is not installed ({error}), so there is no view in 3-D: "
                            "pip install ipyniivue. The three planes need nothing.")
        self.box = ipywidgets.VBox(self._parts())

    def _niivue(self, height: int) -> ipywidgets.Widget:
        from ipyniivue import MultiplanarType, NiiVue, ShowRender, SliceType, Volume

        low, high = self.planes.limits
        files = [Volume(path=self.image, colormap="gray", cal_min=low, cal_max=high, colorbar_visible=False)]
        for name, path in self.mask_files.items():
            mask = Volume(path=path, colorbar_visible=False, opacity=0.6, cal_min=0.5, cal_max=1.0)
            red, green, blue = (int(OKABE_ITO[self.looks[name][0]][at: at + 2], 16) for at in (1, 3, 5))
            mask.set_colormap_label({"R": [0, red], "G": [0, green], "B": [0, blue], "A": [0, 255], "I": [0, 1],
                                     "labels": ["", name]})
            files.append(mask)
        view = NiiVue(height=height, is_radiological_convention=True, sagittal_nose_left=True, is_colorbar=False,
                      multiplanar_layout=MultiplanarType.GRID, multiplanar_show_render=ShowRender.ALWAYS,
                      slice_type=SliceType.MULTIPLANAR, back_color=(0, 0, 0, 1),
                      crosshair_width=0.5, crosshair_width_unit="mm", crosshair_color=(0.94, 0.89, 0.26, 1))
        view.load_volumes(files)
        return view

    def _parts(self) -> list[ipywidgets.Widget]:
        still = self.still().data
        if self.widget is None:
            return [ipywidgets.HTML(f'<p role="status">{html.escape(self.missing)}</p>{still}')]
        words = ("Drag in a plane to move, drag the solid to turn it; keys H, J, K, L do the same. An empty "
                 "frame means that this browser has no WebGL 2: then open the planes below.")
        return [self.widget, ipywidgets.HTML(
            f'<p style="margin:.2em 0">{words}</p><details><summary>Three planes, without WebGL</summary>{still}'
            "</details>")]

    def describe(self) -> str:
        """What the planes show: the alt text of the still."""
        return self.planes.describe()

    def still(self, *, dpi: int = 100):
        """The three planes as an HTML image that needs neither kernel nor WebGL."""
        from IPython.display import HTML

        return HTML(image_tag(self.planes.figure, self.describe(), dpi=dpi))

    def _repr_mimebundle_(self, **how: object) -> dict[str, Any]:
        """The widget where there is a kernel, and the still for every reader without one."""
        return dict(self.box._repr_mimebundle_(**how) or {}) | {
            "text/plain": self.describe(), "text/html": self.still().data}

    def close(self) -> None:
        """Free the widgets and the copies of the files that they hold."""
        if self.widget is not None:
            for volume in self.widget.volumes:
                volume.close()
            self.widget.close()
        self.box.close()


class _Planes:
    """Three planes through the middle of what the first mask marks, or of the scan: a figure that does not move."""

    def __init__(self, image: Path, masks: Mapping[str, Path], looks: Mapping[str, tuple[str, Any]]):
        self.volume = read_image(image)
        self.masks = {name: read_mask(path, self.volume).data for name, path in masks.items()}
        shape, voxel_mm = self.volume.data.shape, self.volume.voxel_mm
        marked = [np.argwhere(mask).mean(axis=0) for mask in self.masks.values() if mask.any()]
        self.position = tuple(int(at) for at in np.rint(marked[0] if marked else (np.array(shape) - 1) / 2))
        self.limits = GreyScale(self.volume.data).limits((0.5, 99.5))
        self.figure = Figure(figsize=(9.0, 3.7), facecolor="white", layout="constrained")
        box = field_box(shape, voxel_mm, self.position)
        for ax, name in zip(self.figure.subplots(1, 3), PLANES, strict=True):
            panel = PlanePanel(self, ax, name, looks)
            panel.show(self.volume.data, self.masks, self.position, box=box, voxel_mm=voxel_mm, limits=self.limits)
        if looks:
            _key(self.figure, looks)

    def move(self, *artists: Artist) -> None:
        """What a live view is asked; here nothing moves."""

    def describe(self) -> str:
        """Which scan, which planes, how large each mask is."""
        voxel_mm3 = float(np.prod(self.volume.voxel_mm))
        sizes = [f"{name} {np.count_nonzero(mask) * voxel_mm3:.0f} mm3" for name, mask in self.masks.items()]
        shape = " x ".join(map(str, self.volume.data.shape))
        return (f"{self.volume.path.name}, {shape} voxels: axial, sagittal and coronal plane through voxel "
                f"{', '.join(map(str, self.position))}; outlined: {', '.join(sizes) or 'nothing'}.")
