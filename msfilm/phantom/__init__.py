"""A cohort whose truth is known: anatomy, lesions, physics and raters, written as a BIDS data set.

Everything random comes from ``numpy.random.SeedSequence((seed, patient, ...))``: a patient is the same whatever the
size of the
cohort, the order of the work and the number of threads.
"""

__all__ = ["write_cohort"]


def __getattr__(name: str):
    if name == "write_cohort":  # nibabel is needed only to write files
        from msfilm.phantom.dataset import write_cohort

        return write_cohort
    raise AttributeError(name)
