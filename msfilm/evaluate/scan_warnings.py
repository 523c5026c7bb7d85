"""What is doubtful about one segmented scan, in plain words, the gravest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from msfilm.evaluate.scan_facts import BEND_MM, FAR_MM, Intensities, Sensitivity
from msfilm.evaluate.segmentation import Segmentation

__all__ = ["Warned", "scan_warnings"]

# Words in a note of ``segment`` -> (grave, what it means for the reader). The first that fits is taken.
_MEANING = (
    ("localiser is unsure", True, "The crops may miss the cord altogether. Look at every slice below before anything "
     "else; better, give a cord mask or click a centreline."),
    ("localiser", False, "No person placed the centre. Check in every slice below that the cross lies in the cord."),
    ("outside the training", True, "The network has never seen such a contrast; what it marks means little."),
    ("outside the cord mask", True, "Lesions of the cord lie in the cord: what lies outside is false, or the cord mask "
     "is too small."),
    ("voxel size", False, "The network has never seen voxels of this size. Nothing here has measured how well it does "
     "with them."),
    ("field strength", False, "The network has never seen this field strength."),
    ("crop reaches beyond", False, "Part of what the network saw there is made up of repeated edge voxels."),
    ("NIFTI-FORMS", False, "The file gives two positions for itself. Positions in mm below follow the one named."),
    ("qform and sform", False, "The file gives two positions for itself. Positions in mm below follow the one named."),
    ("hardly any cord", False, "In those slices nothing was looked for."),
    ("mean code", False, "The network was not told which hand to draw with, so it takes the average one."),
)


@dataclass(frozen=True)
class Warned:
    """One doubt: the fact, what it means, and whether it alone can make the result worthless."""

    fact: str
    meaning: str
    grave: bool


def scan_warnings(found: Segmentation, lesions: pd.DataFrame, slices: pd.DataFrame, intensity: Intensities,
                  sensitive: Sensitivity) -> list[Warned]:
    """Notes of ``segment`` with their meaning, and what the checks of this scan found; the grave ones first.

    Args:
        found: what was segmented.
        lesions, slices: of ``lesion_table`` and ``slice_table``.
        intensity, sensitive: of ``intensities`` and ``sensitivity``.
    """
    warned = [_explained(note) for note in found.warnings]
    warned += _places(found, slices)
    warned += _amounts(found, lesions, sensitive)
    for fact in intensity.outside:
        warned.append(Warned(_sentence(fact), "The scan is brighter or darker there than what the network learnt from; "
                             "or the centre lies beside the cord.", False))
    return sorted(warned, key=lambda one: not one.grave)


def _explained(note: str) -> Warned:
    for words, grave, meaning in _MEANING:
        if words.lower() in note.lower():
            return Warned(_sentence(note), meaning, grave)
    return Warned(_sentence(note), "", False)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _places(found: Segmentation, slices: pd.DataFrame) -> list[Warned]:
    warned = []
    jumps = slices.loc[slices["bend_mm"] > BEND_MM, "z"].tolist()
    if jumps:
        warned.append(Warned(
            f"The cord's centre jumps: in slice {_listed(jumps)} it lies more than {BEND_MM:g} mm off the line between "
            "its neighbours", "A cord bends slowly. Either the centre was placed on something else there, or the "
            "patient moved between slices.", True))
    unseen = found.image.data.shape[2] - len(slices)
    if unseen:
        warned.append(Warned(f"{unseen} of {found.image.data.shape[2]} slices were not looked at",
                             "There the cord's place was not given, or hardly any cord is in the slice. A lesion in "
                             "them cannot be found.", False))
    far = slices.loc[slices["far_mm2"] > 0]
    if len(far):
        mm3 = float(far["far_mm2"].sum() * found.image.voxel_mm[2])
        warned.append(Warned(f"{mm3:.0f} mm³ are marked more than {FAR_MM:g} mm from the cord's centre, in slice "
                             f"{_listed(far['z'].tolist())}", "No cord reaches so far: these marks are certainly "
                             "false, or the centre is not in the cord. They are counted in the volume all the same.",
                             True))
    if found.record["settings"]["centred_on"] != "cord":
        warned.append(Warned("There is no cord mask", "The intensity scale comes from a disc of 3 mm radius in the "
                             "cord's middle instead of the whole cord as in training.", False))
    return warned


def _amounts(found: Segmentation, lesions: pd.DataFrame, sensitive: Sensitivity) -> list[Warned]:
    warned = []
    at = sensitive.thresholds.set_index("threshold")["mm3"]
    low, high, own = float(at[0.7]), float(at[0.3]), found.lesion_mm3
    if high > 1.5 * low and high - low > 25:
        warned.append(Warned(f"The volume depends on the threshold: {high:.0f} mm³ at 0.3, {low:.0f} mm³ at 0.7",
                             "The threshold is a convention, so take the volume as this range at best.", False))
    if len(sensitive.moves):
        least, most = sensitive.moves["mm3"].min(), sensitive.moves["mm3"].max()
        if most - least > max(0.5 * own, 25):
            warned.append(Warned(f"The volume depends on where the crop lies and how it is scaled: {least:.0f} to "
                                 f"{most:.0f} mm³ for 2 mm or a tenth (as it is: {own:.0f} mm³)",
                                 "Nobody knows the centre or the scale that well, so the volume is not known better.",
                                 True))
    elif sensitive.missing:
        warned.append(Warned("How the answer changes with centre and scale could not be tried",
                             f"{_sentence(sensitive.missing)}.", False))
    frail = [number for number, times in sensitive.again.items() if times < len(sensitive.moves)]
    if frail:
        who = f"Mark {frail[0]} is" if len(frail) == 1 else f"Marks {_listed(frail)} are"
        warned.append(Warned(f"{who} not found again every time that centre or scale change a little",
                             "Take such a mark as a place to look at and no more.", False))
    if found.mask.any() and not len(lesions):
        warned.append(Warned("All that is marked are specks of one or two voxels",
                             "Specks so small are not counted as marks.", False))
    return warned


def _listed(values: list[int], most: int = 8) -> str:
    values = [int(value) for value in np.unique(values)]
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")
