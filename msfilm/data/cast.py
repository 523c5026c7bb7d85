"""Changing an array's type without wrapping round: every cast to a narrower type is range-checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from msfilm.errors import InputError

__all__ = ["checked_cast"]


def checked_cast(
    data: np.ndarray,
    dtype: np.dtype | type | str,
    where: str | Path | None = None,
    *,
    code: str = "NIFTI-RANGE",
    mend: str = "choose a wider type",
) -> np.ndarray:
    """``data`` as ``dtype``, where that type can hold every value.

    Whole numbers stay whole numbers: a fraction does not go into an integer type. Floating-point types may round.

    Args:
        data: any shape; numbers or truth values.
        dtype: the type wanted, byte order included.
        where: the file or table meant, for the message.
        code, mend: of the error.

    Raises:
        InputError: NIFTI-RANGE (or ``code``) for values that would wrap round, be cut off or become infinite, for NaN,
            and for fractions that an integer type would lose.
    """
    dtype = np.dtype(dtype)
    if data.dtype.kind == "b" or data.size == 0 or data.dtype == dtype:
        if data.dtype.kind != "f" or np.isfinite(data).all():
            return data.astype(dtype, copy=False)
    low, high = data.min(), data.max()
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    # Python's whole numbers are exact, so that 2**63 is not taken for int64's largest value
    low, high = (int(v) if data.dtype.kind in "iu" else float(v) for v in (low, high))
    smallest, largest = (int(v) if dtype.kind in "iu" else float(v) for v in (limits.min, limits.max))
    if not (smallest <= low <= high <= largest):  # also catches NaN
        raise InputError(
            code,
            f"values {low:g} to {high:g} do not fit {dtype.name} ({smallest:g} to {largest:g})",
            where=where,
            mend=mend,
        )
    if dtype.kind in "iu" and data.dtype.kind == "f" and not np.array_equal(data, np.rint(data)):
        raise InputError(
            code,
            f"values are not whole numbers, so {dtype.name} would lose them",
            where=where,
            mend="round them, or choose float32",
        )
    return data.astype(dtype)
