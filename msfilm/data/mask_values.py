"""Which stored values of a mask mean 'inside': 0 and 1, or what the user says (255 is 1; 0.5 and above is 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from msfilm.errors import InputError, SettingError

__all__ = ["BINARY_TOLERANCE", "MaskValues", "check_values", "parse_values", "to_binary"]

BINARY_TOLERANCE = 1e-4  # a mask saved as float through a uint8 scale reads 1.00000006
_ROUNDING = 2.0**-22  # relative: two float32 roundings, of a large label and of its scale
MaskValues = Mapping[float, int] | float | None  # stored value -> 0 or 1; or the level from which on it is 1


def parse_values(words: Sequence[str] | None) -> MaskValues:
    """What a command line says of a mask's values: ``["255=1", "2=0"]`` -> {255: 1, 2: 0}; ``[">=0.5"]`` -> 0.5.

    Raises:
        SettingError: MASK-MAP.
    """
    words = [part.strip() for word in words or [] for part in word.split(",")]
    if not words:
        return None
    try:
        if len(words) == 1 and words[0].startswith(">="):
            return check_values(float(words[0][2:]))
        values: dict[float, int] = {}
        for word in words:
            value, to = float(word.partition("=")[0]), int(word.partition("=")[2])
            if values.setdefault(value, to) != to:
                raise SettingError(
                    "MASK-MAP", f"mask value {_text(value)} is said to be {values[value]} and {to}", mend="say one"
                )
        return check_values(values)
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(
            "MASK-MAP", f"mask values {', '.join(words)!r}", mend="write 255=1 (may be repeated), or >=0.5"
        ) from None


def check_values(values: MaskValues) -> MaskValues:
    """The values, if they can be meant. Raises SettingError MASK-MAP."""
    if isinstance(values, Mapping):
        fine = all(math.isfinite(key) and to in (0, 1) for key, to in values.items())
    else:
        fine = values is None or math.isfinite(values)
    if not fine:
        raise SettingError("MASK-MAP", f"mask values {values}", mend="map each stored value to 0 or 1, or give a level")
    return values


def to_binary(
    stored: np.ndarray, slope: float, intercept: float, values: MaskValues, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stored values of a mask as bool, and notes.

    Args:
        stored: any shape, as in the file.
        slope, intercept: a value is stored * slope + intercept.
        values: None: 0 and 1 (within ``BINARY_TOLERANCE``) and nothing else. A mapping: besides 0 and 1 these stored
            values, as 0 or 1: whole numbers exactly, real ones within ``BINARY_TOLERANCE`` (and what float32 rounds),
            always below half the way to the next value. A number: values from it on are 1.
        path: for the messages.

    Raises:
        InputError: NIFTI-NAN, MASK-VALUES; SettingError: MASK-MAP.
    """
    check_values(values)
    whole = stored.dtype.kind in "iu" and (slope, intercept) == (1.0, 0.0)
    if whole and values is None:
        wrong = int(np.count_nonzero((stored < 0) | (stored > 1)))
        if wrong:
            raise _refusal(stored, wrong, path)
        return stored == 1, ()
    if not whole:
        with np.errstate(all="ignore"):  # a signalling NaN, or beyond any float: refused below
            stored = stored * np.float64(slope) + intercept
        bad = stored.size - int(np.count_nonzero(np.isfinite(stored)))
        if bad:
            raise InputError(
                "NIFTI-NAN",
                f"{bad} of {stored.size} voxels are NaN or infinite",
                where=path,
                mend="save the mask again",
            )
    if values is not None and not isinstance(values, Mapping):
        return stored >= values, (f"MASK-MAPPED: values from {values:g} on are taken as 1, as told",)
    inside, known, mapped = np.zeros(stored.shape, bool), np.zeros(stored.shape, bool), []
    meant = {0.0: 0, 1.0: 1} | dict(values or {})
    for value, to in meant.items():
        if whole:
            hit = stored == int(value) if float(value).is_integer() else np.zeros(stored.shape, bool)
        else:
            hit = np.abs(stored - np.float64(value)) <= _reach(value, meant)
        known |= hit
        inside[hit] = bool(to)
        if values and value in values and hit.any():
            mapped.append(f"MASK-MAPPED: {int(hit.sum())} voxels of {_text(value)} are taken as {to}, as told")
    if not known.all():
        raise _refusal(stored, stored.size - int(np.count_nonzero(known)), path)
    off = 0.0 if whole or values else float(np.abs(stored - inside).max(initial=0))
    if off > 0:
        mapped.append(f"MASK-FLOAT: values are up to {off:.2g} off 0 and 1 (a scaled type rounds); taken as 0 and 1")
    return inside, tuple(mapped)


def _reach(value: float, meant: Mapping[float, int]) -> float:
    """How far off a real number may be to be taken for ``value``: never as far as half-way to another one."""
    gap = min(abs(value - other) for other in meant if other != value)
    return min(max(BINARY_TOLERANCE, _ROUNDING * abs(value)), 0.49 * gap)


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


def _refusal(stored: np.ndarray, wrong: int, path: Path) -> InputError:
    values = np.unique(np.asarray(stored, np.float64))
    some = ", ".join(_text(value) for value in values[:6]) + (", ..." if len(values) > 6 else "")
    return InputError(
        "MASK-VALUES",
        f"{wrong} voxels are neither 0 nor 1 (values {some})",
        where=path,
        mend="save it with 0 and 1 only, or say what its values mean: --lesion-values 255=1, or '>=0.5' for a soft "
        "mask (--cord-values for a cord)",
    )
