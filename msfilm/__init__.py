"""msfilm: how does a lesion-segmentation network generalise across MRI contrasts?"""

__version__ = "0.1.0"
__all__ = ["__version__"]
