"""Where the folders that travel with msfilm lie: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path

from msfilm.errors import InputError

__all__ = ["shipped"]

_IN_CHECKOUT = {"results": "benchmarks/results"}  # where a folder lies there, if not at the root under its own name


def shipped(name: str) -> Path:
    """The folder ``name`` of this msfilm: 'data_manifests', 'notebooks', or 'results' (measured once, kept as JSON).

    A wheel carries it inside the package with an underscore before its name; a checkout has it beside the package.

    Raises:
        InputError: ``INSTALL-INCOMPLETE`` where neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / f"_{name}", package.parent / _IN_CHECKOUT.get(name, name)):
        if folder.is_dir():
            return folder
    raise InputError(
        "INSTALL-INCOMPLETE",
        f"this msfilm has no folder '{name}'",
        where=package,
        mend="install it again, or run from a complete checkout",
    )
