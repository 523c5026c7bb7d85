"""The errors msfilm raises: each says what is wrong, where, and how to mend it, under a code that stays the same."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["FetchError", "InputError", "MsfilmError", "RunError", "SettingError", "suggest"]


class MsfilmError(ValueError):
    """Base of all msfilm errors.

    Args:
        code: stable name of the fault, for example ``NIFTI-NAN``.
        what: the fact found, with numbers.
        where: the file, folder, column or setting concerned.
        mend: what the user can do about it.
    """

    def __init__(self, code: str, what: str, *, where: str | Path | None = None, mend: str | None = None):
        self.code, self.what, self.mend = code, what, mend
        self.where = None if where is None else str(where)
        super().__init__(code, what, self.where, mend)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"[{self.code}] {place}{self.what}" + (f" -> {self.mend}" if self.mend else "")

    def __reduce__(self):
        # Keyword-only arguments do not survive the default pickling that process pools use.
        return (_rebuild, (type(self), self.code, self.what, self.where, self.mend))


def _rebuild(cls, code, what, where, mend):
    return cls(code, what, where=where, mend=mend)


class InputError(MsfilmError):
    """A file or a data set cannot be used as it is."""


class SettingError(MsfilmError):
    """An argument, parameter or configuration value is wrong."""


class FetchError(MsfilmError):
    """Public data could not be had, or is not what its manifest says."""


class RunError(MsfilmError):
    """A training run cannot start, resume or go on."""


def suggest(name: object, allowed: Iterable[object]) -> str:
    """Name what was meant: ``'T2W'`` against ``('T2w', 'T2star')`` gives "did you mean 'T2w'? (T2star, T2w)"."""
    choices = sorted(str(choice) for choice in allowed)
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.5)
    listing = ", ".join(choices) or "none"
    return f"did you mean '{lowered[close[0]]}'? (known: {listing})" if close else f"use one of: {listing}"
