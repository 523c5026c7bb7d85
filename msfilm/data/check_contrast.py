"""Which contrasts a network knows, held against what a scan is by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msfilm.data.bids import contrast_of
from msfilm.data.mask_files import stem_of
from msfilm.errors import InputError, SettingError

__all__ = ["contrast_told", "known_contrasts", "unknown_contrast", "untold_contrast"]

# What BIDS calls anatomical scans, and what contrast_of makes of them: a file elsewhere may bear such a name too.
_SUFFIXES = ("T1w", "T2w", "T2star", "T2starw", "FLAIR", "PD", "PDw", "PDT2", "T1rho", "inplaneT1", "inplaneT2",
             "UNIT1", "MTS", "MTR", "STIR", "PSIR", "MP2RAGE", "angio")  # fmt: skip


def known_contrasts(network: Any) -> tuple[str, ...]:
    """The contrasts that a ``Network`` was trained on, by its card; a sequence of names is handed back.

    Raises:
        SettingError: NETWORK-CARD where it does not say, or for a name in place of a network.
    """
    if isinstance(network, list | tuple | set | frozenset):
        return tuple(sorted(map(str, network)))
    named = getattr(network, "card", {}).get("data", {}).get("contrasts") or ()
    if not named:
        raise SettingError(
            "NETWORK-CARD",
            f"{network!r:.60} does not say on which contrasts it was trained",
            mend="give a network from load_network(), or the contrasts as a list",
        )
    return tuple(named)


def contrast_told(path: str | Path) -> str | None:
    """What a file's name says it is: ``sub-1_acq-x_T2starw.nii.gz`` and ``T2star.nii`` are T2star; else None."""
    stem = stem_of(Path(path))
    return contrast_of(stem) if stem.split("_")[-1] in _SUFFIXES else None


def unknown_contrast(contrast: str, known: Sequence[str], where: str | Path | None) -> InputError:
    """CONTRAST-UNKNOWN, said of a scan."""
    return InputError(
        "CONTRAST-UNKNOWN",
        f"contrast {contrast}, the network was trained on {', '.join(known)}",
        where=where,
        mend="take a network that knows this contrast, leave the scan out, or name the contrast to treat it as "
        "(segment --contrast)",
    )


def untold_contrast(root: Path, paths: Sequence[str], count: int) -> InputError:
    """CONTRAST-MISSING, said once of all files whose name does not tell it."""
    some = ", ".join(Path(path).name for path in paths[:3]) + (", .." if len(paths) > 3 else "")
    return InputError(
        "CONTRAST-MISSING",
        f"the name of {len(paths)} of {count} files does not tell the contrast, so it was not held against the "
        f"network's: {some}",
        where=Path(paths[0]) if count == 1 else root,
        mend="name scans as BIDS does, sub-001_T2w.nii.gz; segment takes the contrast from --contrast",
    )
