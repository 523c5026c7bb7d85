"""The errors msfilm raises: each says what is wrong, where, and how to mend it, under a code that stays the same."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["FetchError", "InputError", "MsfilmError", "RunError", "SettingError", "printable", "suggest"]


class MsfilmError(ValueError):
    """Base of all msfilm errors.

    Args:
        code: stable name of the fault, for example ``NIFTI-NAN``.
        what: the fact found, with numbers.
        where: the file, folder, column or setting concerned.
        mend: what the user can do about it.
    """

    def __init__(self, code: str, what: str, *, where: str | Path | None = None, mend: str | None = None):
        self.code, self.what = code, printable(what)
        self.mend, self.where = (None if text is None else printable(text) for text in (mend, where))
        super().__init__(code, self.what, self.where, self.mend)

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


def printable(text: object) -> str:
    """``text`` with what no encoding takes written out: a file's name that is not UTF-8 may hold such."""

    def written_out(found: re.Match) -> str:
        number = ord(found.group())
        return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"

    return re.sub("[\ud800-\udfff]", written_out, str(text))


def _renumbered(one: str, other: str) -> bool:
    mine, yours = re.findall("[0-9]", one), re.findall("[0-9]", other)
    return len(mine) == len(yours) and mine != yours


def suggest(name: object, allowed: Iterable[object]) -> str:
    """Name what was meant: ``'T2W'`` against ``('T2w', 'T2star')`` gives "did you mean 'T2w'? (T2star, T2w)".

    Another digit in its place is another thing, not a misspelling: nobody who has a T1w means T2w.
    """
    choices = sorted(str(choice) for choice in allowed)
    lowered = {choice.lower(): choice for choice in choices}
    close = [match for match in difflib.get_close_matches(str(name).lower(), lowered, n=9, cutoff=0.5)
             if not _renumbered(match, str(name))]
    listing = ", ".join(choices) or "none"
    return f"did you mean '{lowered[close[0]]}'? (known: {listing})" if close else f"use one of: {listing}"
