"""Where a run goes: a folder name that is the same for the same settings and slices, and another for any other."""

from __future__ import annotations

import hashlib
import json

from msfilm import __version__
from msfilm.data.slices import SliceSet
from msfilm.train.loop import TrainConfig
from msfilm.train.state import resolve_device, resolve_precision
from msfilm.train.tensors import slices_hash, usable_rows

__all__ = ["run_name"]


def run_name(config: TrainConfig, slices: SliceSet) -> str:
    """A name such as 'contrast-1a2b3c4d' for a run's folder: what it is conditioned on, and a hash.

    The hash is over every setting but the device, over the precision that 'auto' means here, the slices and masks that
    training sees, and msfilm's version. So ``fit(slices, config, folder / run_name(config, slices), resume=True)``
    finds a run that is there, goes on with one that was interrupted, and never meets another's folder.

    Raises:
        SettingError: MASK-UNKNOWN, CONTRAST-UNKNOWN, CENTRE-UNKNOWN, TRAIN-SETTING or TRAIN-DEVICE.
    """
    usable_rows(slices, config.mask, config.contrasts, config.without_centres)   # refuses a misspelt one by name
    settings = {name: value for name, value in config.as_dict().items() if name != "device"}
    content = {"config": settings, "precision": resolve_precision(config.precision, resolve_device(config.device)),
               "slices_sha256": slices_hash(slices, config.mask), "msfilm": __version__}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{config.conditioning}-{digest[:8]}"
