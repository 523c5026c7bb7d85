"""A network that an experiment trained, with the patients it learned from and those it is tested on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msfilm.train.config import TrainConfig

__all__ = ["TrainedRun"]


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What a measure of an experiment gets, one for each arm and seed.

    Attributes:
        arm, seed: which one it is.
        run: its folder.
        slices: folder of the SliceSet that it was trained on.
        test: folder of the SliceSet of other patients.
        config: its settings.
        training, plan: the cohort's description in the experiment's file, of training and of test patients.
    """

    arm: str
    seed: int
    run: Path
    slices: Path
    test: Path
    config: TrainConfig
    plan: Mapping[str, Any]
    training: Mapping[str, Any]
