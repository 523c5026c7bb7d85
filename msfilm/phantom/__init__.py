"""A cohort whose truth is known: anatomy, lesions, physics and raters, as a BIDS data set or straight as a SliceSet.

Everything random comes from ``numpy.random.default_rng((seed, patient, ...))``: a patient is the same whatever the size
of the cohort, the order of the work and the number of processes.
"""

from importlib import import_module

_HOMES = {"CohortPlan": "roster", "make_scan": "cohort", "make_slices": "direct", "write_cohort": "dataset"}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Loaded when first asked for: nibabel is needed only to write files.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
