"""Three sizes of everything: a minute for tests, a laptop for the course, the paper's own numbers for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from msfilm.errors import SettingError, suggest

__all__ = ["PROFILES", "Profile", "profile"]


@dataclass(frozen=True)
class Profile:
    """How large the phantom cohort and the training are.

    Args:
        name: what the profile is called on a command line and in a notebook.
        patients: patients in the phantom cohort.
        epochs: epochs of training at most.
        depth: poolings of the U-Net (FiLM sits at 2 x depth + 2 places).
        filters: channels of the U-Net's first block.
        batch_size: slices in one training step.
        bootstrap: how often a confidence interval draws the patients anew.
    """

    name: str
    patients: int
    epochs: int
    depth: int
    filters: int
    batch_size: int
    bootstrap: int


# 642 patients and depth 3 with 64 filters are the paper's and its later code's; the others are what 2 CPU cores manage.
PROFILES: dict[str, Profile] = {
    "quick": Profile("quick", patients=8, epochs=3, depth=2, filters=8, batch_size=16, bootstrap=200),
    "course": Profile("course", patients=40, epochs=30, depth=3, filters=16, batch_size=16, bootstrap=2000),
    "paper": Profile("paper", patients=642, epochs=100, depth=3, filters=64, batch_size=128, bootstrap=2000),
}


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        SettingError: ``PROFILE-UNKNOWN``, with the name that was probably meant.
    """
    if name not in PROFILES:
        raise SettingError("PROFILE-UNKNOWN", f"no profile is called {name!r}", mend=suggest(name, PROFILES))
    return PROFILES[name]
