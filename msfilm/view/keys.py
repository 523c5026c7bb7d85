"""Arrow keys for the drop-down lists of live views: JupyterLab would take them, and go to the next cell."""

from __future__ import annotations

import anywidget

__all__ = ["VIEW_CLASS", "ListKeys"]

VIEW_CLASS = "msfilm-live"  # of the box round every live view

# A list that gets the focus is marked as a place where JupyterLab's shortcuts do not hold (the mark is Lumino's own).
_SCRIPT = """
function keep(event) {
  if (event.target.matches?.(".msfilm-live select")) event.target.dataset.lmSuppressShortcuts = "true";
}
export default {
  render() {
    document.addEventListener("focusin", keep);
    return () => document.removeEventListener("focusin", keep);
  }
};
"""


class ListKeys(anywidget.AnyWidget):
    """Nothing to see: where it stands, arrow keys choose in a list instead of leaving the cell."""

    _esm = _SCRIPT
