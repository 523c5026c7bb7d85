"""Training: augmentation (augment), losses (loss), the loop (loop) and its checkpoints (state)."""

from __future__ import annotations

__all__: list[str] = []
