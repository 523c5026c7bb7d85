"""What makes a scan unlike those that a network was trained on: refused where it must be, said where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msfilm.errors import SettingError, suggest
from msfilm.model.encode import CategoryEncoder, JoinedEncoder
from msfilm.model.weights import Network

__all__ = ["check_kind", "contrast_told", "doubts", "known_contrasts"]

_SLACK = 0.05  # share by which a voxel may lie beyond the training's range before it is said
_NAMES = {"in_plane": "in-plane voxel size", "slice": "slice voxel size", "field_T": "field strength"}


def known_contrasts(network: Network) -> tuple[str, ...]:
    """The contrasts that a network can be told or, for one that is told none, was trained on; () where unknown."""
    parts = network.encoder.parts if isinstance(network.encoder, JoinedEncoder) else (network.encoder,)
    told = [part.categories for part in parts if isinstance(part, CategoryEncoder) and part.column == "contrast"]
    return tuple(told[0]) if told else tuple(network.card.get("data", {}).get("contrasts", ()))


def check_kind(network: Network) -> Network:
    """The network, unless it was made to find cords: then SettingError NETWORK-KIND."""
    if "calibration" in network.card:
        raise SettingError("NETWORK-KIND", "this network finds the cord, it marks no lesions",
                           mend="name one that does, such as film-contrast-small; --localise finds the cord")
    return network


def contrast_told(network: Network, contrast: str, as_contrast: str | None) -> tuple[str, list[str]]:
    """What a network is told a scan's contrast is, and the warning if that is not what the scan is.

    Raises:
        SettingError: CONTRAST-UNKNOWN, not trained on it and no contrast named to take it for.
    """
    known = known_contrasts(network)
    for one in [contrast] if as_contrast is None or contrast in known else [as_contrast]:
        if known and one not in known:
            raise SettingError(
                "CONTRAST-UNKNOWN", f"the network was trained on {', '.join(known)}, not on {one}",
                mend=f"{suggest(one, known)}; or name one of them to take it for (--as {known[-1]}), at your own risk",
            )  # fmt: skip
    if not known or contrast in known:
        return contrast, []
    return as_contrast, [f"contrast {contrast} is outside the training ({', '.join(known)}): taken for {as_contrast}, "
                         "as asked for"]  # fmt: skip


def doubts(
    trained_on: Mapping[str, Any], voxel_mm: np.ndarray, padded: np.ndarray, acquisition: Mapping[str, Any]
) -> list[str]:
    """What to say of a scan's voxels (3,) mm along canonical x, y, z, its crops and its field strength.

    Args:
        trained_on: the part 'data' of the network's card.
        voxel_mm: (3,).
        padded: (n,) share of each crop that lies beyond the scan.
        acquisition: of the scan; NaN where unknown.
    """
    notes = []
    ranges = {name: limits for name, limits in trained_on.get("voxel_mm", {}).items() if name in _NAMES}
    sides = {"in_plane": sorted(voxel_mm[:2]), "slice": [voxel_mm[2]] * 2}
    for name, (low, high) in ranges.items():
        if sides[name][0] < (1 - _SLACK) * low or sides[name][1] > (1 + _SLACK) * high:
            notes.append(f"{_NAMES[name]} {_range(*sides[name])} mm, in training {_range(low, high)} mm")
    field_T = acquisition.get("field_T")
    if "field_T" in trained_on and field_T is not None and np.isfinite(field_T):
        low, high = trained_on["field_T"]
        if not 0.9 * low <= field_T <= 1.1 * high:
            notes.append(f"{_NAMES['field_T']} {field_T:g} T, in training {_range(low, high, 'g')} T")
    if np.any(padded > 0.05):
        notes.append(f"the crop reaches beyond the scan in {np.count_nonzero(padded > 0.05)} slices "
                     f"(by up to {np.max(padded):.0%}); there the nearest voxels are repeated")  # fmt: skip
    return notes


def _range(low: float, high: float, form: str = ".2f") -> str:
    """'0.60 to 0.70', or one number where both read the same."""
    low_text, high_text = format(low, form), format(high, form)
    return low_text if low_text == high_text else f"{low_text} to {high_text}"
