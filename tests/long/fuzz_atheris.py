"""Fuzz the reader of scans with atheris (libFuzzer, which follows the branches that bytes take).

Run by test_fuzz.py, or by hand for as long as one likes: python tests/long/fuzz_atheris.py FOUND SEEDS -max_len=2000
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["msfilm.data.nifti", "msfilm.data.nifti_bytes", "msfilm.data.geometry",
                                         "msfilm.data.mask_values"]):
    import msfilm.data.nifti  # noqa: F401

import fuzz_targets

FOLDER = Path(tempfile.mkdtemp(prefix="msfilm-fuzz-"))


def one(content: bytes) -> None:
    """The first byte says whether the rest is packed."""
    if content[:1] == b"\x01":
        fuzz_targets.packed_nifti(content[1:], FOLDER)
    else:
        fuzz_targets.nifti(content, FOLDER)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
