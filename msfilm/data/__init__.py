"""From files to tensors: ``nifti`` and ``bids`` read, ``crop`` samples round the cord, ``prepare`` makes a SliceSet.

Nothing is imported here, so that ``msfilm.data.slices`` can be used on a machine without nibabel.
"""

__all__: list[str] = []
