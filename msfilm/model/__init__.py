"""The networks: FiLM and its generator (film), the U-Net it modulates (unet), and how they travel (weights)."""

from __future__ import annotations

__all__: list[str] = []
