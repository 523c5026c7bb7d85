"""One segmented scan as one HTML page that can be passed on: what was marked, and how far it can be trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from msfilm.data.centres import read_centreline
from msfilm.errors import InputError, MsfilmError, RunError, SettingError
from msfilm.evaluate.scan_facts import (
    BEND_MM,
    FAR_MM,
    MIN_VOXELS,
    intensities,
    lesion_table,
    recorded_network,
    sensitivity,
    slice_table,
    told_contrast,
)
from msfilm.evaluate.scan_warnings import scan_warnings
from msfilm.evaluate.segmentation import Segmentation
from msfilm.files import atomic_path, read_json
from msfilm.model.weights import SHIPPED, Network
from msfilm.view.embed import image_tag
from msfilm.view.scan_pictures import (
    chance_figure,
    grey_limits,
    intensity_figure,
    position_figure,
    sensitivity_figure,
    slice_figures,
    where_figure,
    window_mm,
)

__all__ = ["scan_report"]

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_SOURCES = {"cord": "a cord mask", "centreline": "points along the cord",
            "localiser": "the built-in localiser, which was trained on phantoms"}


def scan_report(
    segmentation: Segmentation,
    out: str | Path,
    *,
    title: str | None = None,
    points: np.ndarray | str | Path | None = None,
    notes: Mapping[int, str] | Sequence[str] | None = None,
    network: Network | None = None,
    probability: bool = True,
    dpi: int = 110,
) -> Path:
    """Write what ``segment`` found as one page: no other file, no script and no network is needed to read it.

    It names the scan by its file name alone, and shows every slice that the network saw. To see how far the answer can
    be trusted the network is run six times more (a second or two for twenty slices).

    Args:
        segmentation: what ``segment`` gave.
        out: the page, .html; it appears whole or not at all.
        title: its heading.
        points: (k, 3) RAS mm, or a CSV of them: points along the cord that were given, to be drawn. Those of the
            localiser are drawn without being given.
        notes: a reader's notes: a sequence of lines, or slice z -> line, which then stands below that slice.
        network: the one that made the mask, where it cannot be found by the name in the record.
        probability: show the network's probabilities beside the outlines.
        dpi: of the pictures.

    Raises:
        SettingError: OUT-NAME; InputError: CENTRELINE-*; RunError: REPORT-WRITE.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise SettingError("OUT-NAME", "the name of a page must end in .html", where=out)
    record = segmentation.record
    points = read_centreline(points) if isinstance(points, str | Path) else points
    if points is None and "localiser" in record:
        points = np.array(record["localiser"]["points_mm"], dtype=float).reshape(-1, 3)
    try:
        network = network or recorded_network(segmentation)
    except MsfilmError:  # sensitivity says why
        network = None
    lesions, labels = lesion_table(segmentation)
    slices = slice_table(segmentation)
    intensity, sensitive = intensities(segmentation, network), sensitivity(segmentation, network)
    text = _template().render(
        css=_css(),
        title=title or f"What a network marked in {record['Sources'][0]}",
        warnings=scan_warnings(segmentation, lesions, slices, intensity, sensitive),
        facts=_facts(segmentation, slices),
        made_with=_made_with(segmentation, network),
        outcome=_outcome(segmentation, lesions, slices, sensitive),
        marks=_marks(lesions, sensitive), sensitive=sensitive, moves=len(sensitive.moves), min_voxels=MIN_VOXELS,
        pictures=_slice_pictures(segmentation, labels, slices, notes, probability, dpi),
        probability=probability, window_mm=window_mm(segmentation), grey=grey_limits(segmentation),
        crop_mm=segmentation.grid.size * segmentation.grid.spacing_mm,
        notes=[] if notes is None or isinstance(notes, Mapping) else [str(note) for note in notes],
        where=image_tag(where_figure(segmentation, points), _where_alt(segmentation, slices), dpi=dpi),
        position=image_tag(position_figure(slices), _position_alt(slices), dpi=dpi),
        intensity=intensity,
        intensity_picture=image_tag(intensity_figure(intensity), _intensity_alt(intensity), dpi=dpi),
        chance=image_tag(chance_figure(segmentation), _chance_alt(segmentation), dpi=dpi),
        sure=_sureness(segmentation),
        sensitivity_picture=image_tag(sensitivity_figure(sensitive, record["settings"]["threshold"],
                                                         segmentation.lesion_mm3), _sensitive_alt(sensitive), dpi=dpi),
        padded=slices[slices["padded"] > 0.005].to_dict("records"), bend_mm=BEND_MM, far_mm=FAR_MM,
        use=_use(segmentation, network),
        made_by=record["made_by"], record=json.dumps(record, indent=2, ensure_ascii=False, default=str),
        mask_name=segmentation.path.name if segmentation.path else "",
    )
    try:
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError("REPORT-WRITE", f"cannot write the page: {error.strerror or error}", where=out,
                       mend="check free space and permissions; nothing was left half-written") from error
    return out


@cache
def _template() -> jinja2.Template:
    source = (_ASSETS / "scan_report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)


@cache
def _css() -> str:
    return "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in ("course.css", "scan_report.css"))


def _facts(found: Segmentation, slices: Any) -> list[tuple[str, str]]:
    record, settings = found.record, found.record["settings"]
    shape = " × ".join(map(str, found.image.data.shape))
    spacing = " × ".join(f"{side:.2f}" for side in found.image.voxel_mm)
    told = told_contrast(found)
    source = _SOURCES.get(settings["centred_on"], settings["centred_on"])
    if confidence := record.get("localiser", {}).get("confidence"):
        source += f" (confidence {confidence:.2f}{'' if record['localiser'].get('sure', True) else ', UNSURE'})"
    return [
        ("File", record["Sources"][0]), ("SHA-256 of the file", record["image_sha256"]),
        ("Contrast", settings["contrast"] + (f", taken for {told}" if told != settings["contrast"] else "")),
        ("Voxels", f"{shape} of {spacing} mm (right, front, up)"),
        ("Stored as", f"{record['orientation']} (turned to right, front, up here)"),
        ("Cord found by", source),
        ("Slices looked at", f"{len(slices)} of {found.image.data.shape[2]} (z = {slices['z'].min()} to "
                             f"{slices['z'].max()}; z grows upwards)"),
    ]


def _made_with(found: Segmentation, network: Network | None) -> list[tuple[str, str]]:
    said, settings = found.record["network"], found.record["settings"]
    rows = [("Network", said["name"]), ("SHA-256 of its weights", said["weights_sha256"]),
            ("Told", "nothing" if said["conditioning"] == "none" else said["conditioning"].replace("+", " and "))]
    if network is not None:
        card = network.card
        data = card.get("data", {})
        rows.append(("Trained on", str(data.get("source", "not recorded"))))
        rows.append(("Contrasts in training", ", ".join(data.get("contrasts", [])) or "not recorded"))
        voxels = data.get("voxel_mm", {})
        if voxels:
            rows.append(("Voxels in training", "; ".join(f"{name.replace('_', '-')} {low:g} to {high:g} mm"
                                                         for name, (low, high) in voxels.items())))
        if (dice := card.get("scores", {}).get("val_dice")) is not None:
            rows.append(("Dice in its validation", f"{dice:.2f} (volumes of that data, one rater's masks)"))
    rows.append(("Threshold", f"{settings['threshold']:g}: a voxel is marked from this probability on"))
    rows.append(("Crop", f"{settings['size']} × {settings['size']} pixels of {settings['spacing_mm']:g} mm round the "
                         "cord's centre, each axial slice by itself"))
    return rows


def _outcome(found: Segmentation, lesions: Any, slices: Any, sensitive: Any) -> dict[str, Any]:
    in_lesions = float(lesions["mm3"].sum())
    far = float(slices["far_mm2"].sum() * found.image.voxel_mm[2])
    moves = sensitive.moves["mm3"]
    at = sensitive.thresholds.set_index("threshold")["mm3"]
    values = [*(moves if len(moves) else []), float(at[0.3]), float(at[0.7])]
    return {"mm3": found.lesion_mm3, "lesions": len(lesions), "specks_mm3": max(0.0, found.lesion_mm3 - in_lesions),
            "slices": int(found.record["slices_with_lesion"]), "of": len(slices), "far_mm3": far,
            "least": min(values), "most": max(values)}


def _marks(lesions: Any, sensitive: Any) -> list[dict[str, Any]]:
    """A row a mark; one that a small change loses is doubtful for that."""
    rows, moves = lesions.to_dict("records"), len(sensitive.moves)
    for row in rows:
        if moves and (times := sensitive.again[row["lesion"]]) < moves:
            lost = f"lost in {moves - times} of {moves} small changes"
            row["doubts"] = "; ".join(filter(None, [row["doubts"], lost]))
    return rows


def _slice_pictures(found: Segmentation, labels: np.ndarray, slices: Any, notes: Any, probability: bool,
                    dpi: int) -> list[dict[str, Any]]:
    said = {int(z): str(line) for z, line in notes.items()} if isinstance(notes, Mapping) else {}
    facts = slices.set_index("z")
    pictures = []
    for z, figure, alt in slice_figures(found, labels, slices, probability=probability):
        row = facts.loc[z]
        doubts = [f"farther off, where no cord can be: {row['far_mm2']:.1f} mm²"] if row["far_mm2"] > 0 else []
        if row["bend_mm"] > BEND_MM:
            doubts.append(f"centre {row['bend_mm']:.1f} mm off its neighbours' line")
        if row["padded"] > 0.05:
            doubts.append(f"{row['padded']:.0%} of the crop lies beyond the scan")
        pictures.append({"z": z, "tag": image_tag(figure, alt, dpi=dpi), "right": row["right_mm2"], "note": said.get(z),
                         "left": row["left_mm2"], "far": row["far_mm2"], "probability": row["probability"],
                         "doubts": doubts})
    return pictures


def _sureness(found: Segmentation) -> dict[str, float]:
    marked = found.probability[found.mask]
    return {"mean": float(marked.mean()) if len(marked) else float("nan"),
            "doubtful": float((marked < 0.7).mean()) if len(marked) else 0.0,
            "missed": int(np.count_nonzero((found.probability >= 0.3) & ~found.mask))}


def _where_alt(found: Segmentation, slices: Any) -> str:
    side = found.grid.size * found.grid.spacing_mm
    return (f"Sagittal and coronal sections of the scan that follow the cord, with its centreline from slice "
            f"{slices['z'].min()} to {slices['z'].max()} and the band of {side:g} mm that the crops cover.")


def _position_alt(slices: Any) -> str:
    worst = slices.loc[slices["bend_mm"].idxmax()]
    return (f"The cord's centre in mm by slice, and how far each lies from the line between its neighbours: at most "
            f"{worst['bend_mm']:.2f} mm, in slice {int(worst['z'])}.")


def _intensity_alt(found: Any) -> str:
    own = found.percentiles
    training = "; the band of the training scans behind it" if found.mean is not None else ""
    return (f"Histogram of the cord's middle in units of the cord's median: 5 % below {own['low']:.2f}, half below "
            f"{own['middle']:.2f}, 5 % above {own['high']:.2f}{training}.")


def _chance_alt(found: Segmentation) -> str:
    return (f"Voxels by probability of lesion with the threshold {found.record['settings']['threshold']:g}, and the "
            f"highest probability in each slice; at most {found.probability.max():.2f}.")


def _sensitive_alt(found: Any) -> str:
    at = found.thresholds.set_index("threshold")["mm3"]
    text = f"Marked volume against the threshold: {at[0.3]:.0f} mm3 at 0.3, {at[0.5]:.0f} at 0.5, {at[0.7]:.0f} at 0.7"
    moved = ", ".join(f"{row.change} {row.mm3:.0f}" for row in found.moves.itertuples())
    return text + (f"; and as centre and scale change: {moved} mm3." if moved else ".")


def _use(found: Segmentation, network: Network | None) -> dict[str, Any]:
    """What is known of the network: what it must not be used for, and its scores where it comes with msfilm."""
    source = str(network.card.get("data", {}).get("source", "")) if network is not None else ""
    use: dict[str, Any] = {
        "not_for": found.record.get("must_not_be_used_for", "any decision about a patient"),
        "phantom": source.startswith("phantom"), "source": source or "data that its card does not name", "dice": None,
    }
    name = found.record["network"]["name"]
    try:
        folder = SHIPPED / name if "/" not in name else None
        stored = read_json(folder / "metrics.json") if folder else None
        digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest() if folder else ""
    except (InputError, OSError):
        return use
    if stored and digest == found.record["network"]["weights_sha256"]:
        for row in stored["rows"]:
            if (row["name"], row["reference"], row["contrast"]) == ("network", "rater-1", told_contrast(found)):
                use["dice"] = row
    return use
