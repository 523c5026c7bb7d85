"""What ``make notebooks`` does to a notebook after running it: widgets out, stills in (a preprocessor of nbconvert)."""

from __future__ import annotations

from typing import Any

from nbconvert.preprocessors import Preprocessor

from msfilm.notebook import keep_stills

__all__ = ["KeepStills"]


class KeepStills(Preprocessor):
    """A stored notebook shows a view's still picture until its kernel runs, not 'model not found'."""

    enabled = True

    def preprocess(self, notebook: Any, resources: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Called by nbconvert with each notebook."""
        return keep_stills(notebook), resources
