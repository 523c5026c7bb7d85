"""The tissues of a neck or chest as layers painted back to front: what surrounds the canal, then the canal."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from msfilm.phantom.anatomy import Patient, Points, cord_distance, grey_matter_distance
from msfilm.phantom.fields import capsule, coverage, radial

__all__ = ["canal", "canal_outline", "surroundings", "susceptibility"]


def _turned(patient: Patient, points: Points) -> tuple[Tensor, Tensor]:
    """x, y (n, h, w) in the frame of a neck that is rotated about its long axis."""
    angle = float(patient.curve[5])
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * points.x - sine * points.y, sine * points.x + cosine * points.y


# Bellies of neck muscle, mirrored: centre from the canal's back (side, -y), half-widths, turn in degrees.
BELLIES = (
    (9.0, -8.0, 8.5, 6.0, -20.0),  # multifidus and semispinalis cervicis
    (12.0, -20.5, 12.0, 5.5, -25.0),  # semispinalis capitis
    (21.0, -29.0, 17.0, 4.5, -32.0),  # splenius
    (24.0, -40.0, 25.0, 4.0, -14.0),  # trapezius
    (24.0, -7.0, 6.5, 9.0, 25.0),  # longissimus
    (34.0, -14.0, 7.0, 10.0, 20.0),  # levator scapulae
    (26.0, 6.0, 6.0, 6.5, 0.0),  # scalenus medius
    (24.0, 19.0, 5.5, 6.5, 0.0),  # scalenus anterior
    (14.5, 17.0, 4.5, 6.5, 0.0),  # longus capitis, beside the body
    (17.0, -13.0, 5.5, 4.5, 20.0),  # longissimus cervicis
    (4.0, -27.0, 3.5, 7.0, 5.0),  # beside the nuchal ligament
    (36.0, 4.0, 5.0, 8.0, 0.0),  # scalenus posterior
    (44.0, 16.0, 6.5, 14.0, 10.0),  # sternocleidomastoid
)


MUSCLE_REACH_MM = 5.0  # beyond this a belly matters to nobody


def _muscles(side: Tensor, y_back: Tensor, wave: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """How far (mm) a point is from the middle of a fat plane between two bellies, and from the nearest belly; both at
    most MUSCLE_REACH_MM. ``low`` and ``high`` bound ``y_back``; bellies out of reach are passed over.
    """
    x, y = side + wave, y_back - wave
    first = torch.full_like(x, MUSCLE_REACH_MM)
    second = first
    for cx, cy, a, b, turn in BELLIES:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        beyond = max(cy - high, low - cy, 0.0) - math.hypot(a * s, b * c) - 6.0  # 6: the most that ``wave`` moves
        if beyond * math.sqrt(a * b) / max(a, b) > MUSCLE_REACH_MM:
            continue
        size = math.sqrt(a * b)
        u = x * (c * size / a) + (y * (s * size / a) - (cx * c + cy * s) * size / a)
        v = y * (c * size / b) - (x * (s * size / b) + (cy * c - cx * s) * size / b)
        distance = torch.hypot(u, v).sub_(size)
        second = torch.minimum(second, torch.maximum(first, distance))
        first = torch.minimum(first, distance)
    return (second - first).mul_(0.5), first


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y).sub_(radius)


def _within(values: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return values.clamp_(low, high)


def surroundings(
    patient: Patient, points: Points, pixel_mm: float, thick_mm: float = 1.0
) -> Iterator[tuple[str, Tensor]]:
    """Paint what lies round the spinal canal, back to front.

    Args:
        patient: whose spine.
        points: (n, h, w) positions. What lies far from all of them is passed over, so a plane is painted fastest in
            bands of rows.
        pixel_mm: width over which an edge is shared between tissues.
        thick_mm: thickness of the slices, over which what changes along the spine (vertebra and disc, arch and gap) is
            shared.

    Yields:
        (tissue, share): each share (n, h, w) or broadcastable, 0..1, covers what was painted before. The first covers
        everything.
    """
    p = points.profile
    x, y = _turned(patient, points)
    yc = y + p["offset"]  # from the canal's centre
    half_ap, half_rl, chest, phase = p["canal_ap"] / 2, p["canal_rl"] / 2, p["thorax"], p["phase"]
    neck = 1 - chest
    low, high, wide = float(yc.amin()) - 1, float(yc.amax()) + 1, float(x.abs().amax()) + 4
    ap = float(half_ap.amin()), float(half_ap.amax())
    body_ap = float(p["body_ap"].amax())
    in_neck, in_chest = bool(neck.amax() > 0), bool(chest.amax() > 0)
    soft = thick_mm / 18  # in units of the phase: half a vertebra with its disc is about 9 mm
    # Whether any row lies before, behind or beside the canal. Nothing may be passed over that would be seen: a window
    # of a scan and the whole scan must agree.
    ahead, behind_it, beside = high > ap[0] - 1, low < 5, high > -20 and low < ap[1] + 6

    def paint(distance: Tensor, width: float = pixel_mm) -> Tensor:
        return coverage(distance, width)

    yield "muscle", torch.ones(1, device=x.device)
    lumps, wave = points.field(patient.muscle_field), points.field(patient.septa_field)
    x = x + wave * _within((torch.hypot(x, yc) - half_rl) * 0.13)  # nobody's left is quite their right
    side = x.abs()
    plane, outside = _muscles(side, yc + half_ap, 1.3 * wave, low + ap[0], high + ap[1])
    mixed = 0.25 * lumps + 0.2 * points.field(patient.fat_field)
    fat = 0.35 + 0.6 * patient.infiltration
    yield "fat", _within(fat - plane * _within(0.9 - 0.3 * lumps, 0.3, 1.5), 0, 0.9)
    yield "fascia", _within(0.6 - plane * 1.3, 0, 0.5)
    within = mixed + (0.5 * patient.infiltration - 0.45)
    if behind_it:
        deep = _within(1 - (yc + half_ap + 6).abs() * (1 / 12)) * _within(1 - side * (1 / 22))
        within = within + (patient.infiltration + 0.15) * deep
    # Fat between bellies that do not touch, and within them, most in the deep ones behind the arches.
    yield "fat", _within(torch.maximum(0.12 * outside - 0.1 + mixed, within), 0, 0.5)
    if behind_it:
        behind = _within((-yc - half_ap - 2) * 0.1)
        midline = _within(1 - side * (1 / 12)) * behind
        yield "fat", _within(1.5 * mixed + (patient.infiltration - 0.85) + 0.9 * midline, 0, 0.65) * behind
        yield "fascia", _within(0.55 - (x + 0.6 * lumps).abs() * 0.5, 0, 0.5) * behind  # nuchal ligament
    front = half_ap + 2 * p["body_ap"]
    if wide > 40 or high > 40 or low < -45:
        # Skin, and fat under it, thick behind.
        skin = radial(x, y + 4, 60.0 + 60 * chest, 58.0 + 60 * chest)
        rim = patient.fat_mm * (0.35 + 0.65 * _within((-y) * (1 / 40)))
        yield "fat", paint(skin.abs() - rim) * (skin < 0)
        yield "fascia", paint(skin.abs() - 0.8)
        yield "air", paint(-skin)
    if in_chest and wide > 22:
        yield "air", paint(radial(side - 60, yc - 22, 36.0, 44.0)) * chest
    if high > ap[0] + 9:
        if in_neck:
            yield "muscle", paint(radial(x, yc - front - 4.5, 15.0, 5.0)) * neck  # the muscles before the spine
            yield "fascia", paint(radial(x, yc - front - 11.5, 10.0, 1.2)) * neck
        if in_chest:
            aorta = _disc(x + 16, yc - front - 4, 11.0)
            yield "fascia", paint(aorta) * chest
            yield "blood", paint(aorta + 1.2) * chest
    if high > ap[0] + 9:
        if in_neck:
            yield "disc", paint(radial(x, yc - front - 20, 12.0, 9.5)) * neck  # larynx and its mucosa
        yield "veins", paint(radial(x, yc - front - 19, 9.6, 7.2))
        yield "air", paint(radial(x, yc - front - 19, 8.4, 6.0))
        if in_neck and wide > 14:
            vein = capsule(side, y, 29.0, front + 4, 27.0, front + 8, 4.5)
            yield "fascia", paint(vein - 0.7) * neck
            yield "veins", paint(vein) * neck
            artery = _disc(side - 20.7, y - front - 8.3, 3.5)
            yield "fascia", paint(artery - 0.8) * neck
            yield "blood", paint(artery) * neck
    if beside:  # fat and veins fill what bone leaves round the canal
        filling = _within(0.35 + 0.2 * lumps, 0, 0.8)
        yield "veins", paint(radial(side, yc - 1.5, half_rl + 5.5, half_ap + 1.5)) * filling
    # Vertebra: body or disc, joint masses, arch and spinous process, each marrow in a shell of cortical bone.
    grain = points.field(patient.marrow_field)
    is_disc = _within((phase - 0.82) / (0.16 + soft) + 0.5)
    if ahead and low < ap[1] + 2 * body_ap + 2:
        bx, by = x / p["body_rl"], (yc - half_ap - p["body_ap"] - 0.4) / p["body_ap"]
        bx, by = bx * bx, by * by
        # Half-way between an ellipse and a rounded rectangle.
        body = (0.5 * torch.hypot(bx, by).sqrt_() + 0.5 * (bx + by).sqrt() - 1) * p["body_ap"]
        yield "ligament", paint(body - 0.8, 2.0) * 0.7
        yield "marrow", paint(body - 0.3) * 0.8
        yield "bone", paint(body) * 0.55
        yield "marrow", paint(body + 0.7, 1.5) * (1 - is_disc) * _within(0.92 + 0.15 * grain, 0.5, 1)
        nucleus = _within(1.0 - (bx + by) * 1.2) * (1 - patient.disc_dryness)
        ring = 1 - 0.5 * patient.disc_dryness
        yield "disc", torch.maximum(paint(body + 0.5, 1.5) * ring, nucleus) * is_disc
    if beside:
        lateral = radial(side - half_rl - 6.5, yc + 3.0 + 2.5 * chest, 6.8, 5.6)
        process = capsule(side, yc, half_rl + 5.0, -3.5, half_rl + 9.0 + 10 * chest, -7.0 - 6 * chest, 3.4)
        joint = torch.minimum(lateral, process)
        yield "marrow", paint(joint) * 0.6
        yield "bone", paint(joint) * 0.6
        yield "marrow", paint(joint + 0.9, 1.5) * _within(0.8 + 0.15 * grain, 0.4, 1)
        facet = (yc + 3.0 + 0.5 * (side - half_rl - 6.5)).abs()
        fluid = _within((phase - 0.85) / (0.1 + soft) + 0.5) * 0.5
        yield "csf", paint(facet - 0.3) * paint(lateral + 1.2) * fluid
    if behind_it:
        arch = _within(0.5 - (phase - 0.6) / (0.3 + soft))  # between two laminae lies ligament
        if high > -ap[1] - 9:
            lamina = capsule(side, yc, half_rl + 3.4, -half_ap * 0.5, 0.0, -half_ap - 4.6, 1.7 + 0.13 * side)
            yield "ligament", paint(lamina) * _within(0.75 + 0.15 * grain, 0.3, 0.9)
            yield "bone", paint(lamina) * (arch * 0.6)
            yield "marrow", paint(lamina + 0.8, 1.5) * arch * _within(0.8 + 0.15 * grain, 0.4, 1)
        if high > -ap[1] - 22:
            spinous = capsule(side, yc, 0.0, -half_ap - 5.5, 1.2, -half_ap - 17.0, 2.3)
            shown = arch * _within((phase.square() - 0.5).abs() * 2, 0.3, 1)
            yield "bone", paint(spinous, 1.5) * (shown * 0.6)
            yield "marrow", paint(spinous + 0.8, 1.5) * shown * _within(0.75 + 0.15 * grain, 0.3, 0.95)
    if beside:
        # Foramen: fat and veins round the ganglion; the vertebral artery runs through the neck beside it.
        foramen = is_disc * 0.75 + 0.25
        lateral = side - half_rl
        yield "fat", paint(radial(lateral - 3.4, yc - 2.0, 4.4, 2.8)) * foramen * _within(0.6 + 0.2 * lumps, 0.2, 1)
        ganglion = radial(lateral - 5.2, yc - 2.4, 3.0, 2.2)
        yield "veins", paint(ganglion - 0.8) * (is_disc * 0.9)
        yield "root", paint(ganglion) * is_disc
        if in_neck:
            vertebral = _disc(lateral - 7.2, yc - 5.4, 2.3)
            yield "veins", paint(vertebral - 0.8) * (neck * 0.6)
            yield "blood", paint(vertebral) * neck


def canal_outline(patient: Patient, points: Points) -> Tensor:
    """Signed distance (mm) to the outer face of the canal's lining; inside it ``canal`` covers everything."""
    p = points.profile
    x, y = _turned(patient, points)
    return radial(x, y + p["offset"], p["canal_rl"] / 2, p["canal_ap"] / 2, p["triangle"]) - 0.8


def canal(
    patient: Patient, points: Points, pixel_mm: float, outer: Tensor | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Paint the canal, back to front: ligament and dura, epidural fat and veins, fluid, rootlets, cord with its
    butterfly, vessels.

    Arguments and what is yielded are those of ``surroundings``; the first layer covers the canal of ``canal_outline``,
    which may be given as ``outer``.
    """
    p = points.profile
    x, y = _turned(patient, points)
    side, yc = x.abs(), y + p["offset"]
    half_ap, half_rl = p["canal_ap"] / 2, p["canal_rl"] / 2

    def paint(distance: Tensor, width: float = pixel_mm) -> Tensor:
        return coverage(distance, width)

    outer = canal_outline(patient, points) if outer is None else outer
    fat = points.field(patient.fat_field)
    yield "fat", paint(outer) * 1.0
    yield "ligament", paint(outer) * (0.6 - 0.35 * fat).clamp_(0.05, 0.95)  # unequal round the sac
    yield "fat", paint(outer + 0.9) * (0.6 + 0.25 * fat).clamp_(0.1, 1)
    plexus = (0.35 + 0.5 * fat).clamp_(0, 1) * ((yc + 2) * 0.5).clamp_(0, 1)  # veins before and beside the sac
    yield "veins", paint(outer + 0.9) * plexus
    sac = radial(x, yc - 0.25, half_rl - 0.6, half_ap - 0.7, p["triangle"])
    cord = cord_distance(x, y, p)
    yield "ligament", paint(torch.minimum(sac, cord - 0.7)) * 0.5  # dura
    fluid = torch.minimum(sac + 0.25, cord - 0.45)  # a film of it all round, where the sac is narrow
    yield "csf", paint(fluid)
    sleeve = capsule(side, yc, half_rl * 0.72, 0.5, half_rl + 0.6, 2.0, 1.2)  # of the roots, at a disc's height
    yield "csf", paint(sleeve) * paint(outer) * (((p["phase"] - 0.6) / 0.3).clamp(0, 1) * 0.7)
    # Rootlets leave in bundles that come and go along the cord, and sweep down to the foramen.
    bundle = (0.5 + 0.5 * torch.cos((points.s - patient.roots_mm) * (2 * math.pi / 17))) * 0.45 + 0.25
    sweep = torch.sin(points.s * 0.35)
    inside = paint(fluid + 0.4) * bundle
    for along, (x0, y0) in ((0.9, (0.42, -0.34)), (0.75, (0.40, 0.36))):  # dorsal and ventral
        x1 = p["cord_rl"] * x0 + (half_rl - 1.4 - p["cord_rl"] * x0) * along
        rootlet = capsule(
            side, y, p["cord_rl"] * x0, p["cord_ap"] * y0, x1, p["cord_ap"] * y0 * (0.8 + 0.3 * sweep) + 0.3, 0.32
        )
        yield "root", paint(rootlet) * inside
    cord_share = paint(cord)
    yield "wm", cord_share
    yield "gm", paint(grey_matter_distance(x, y, p["gm_rl"], p["gm_ap"], p["gm_t"])) * cord_share
    fissure = capsule(x, y, 0.0, p["cord_ap"] * 0.52, 0.0, p["cord_ap"] * 0.27, 0.16)
    yield "csf", paint(fissure) * 0.8
    for angle, radius in patient.vessel.tolist():  # arteries and veins on the cord's surface
        away = 0.25 * torch.sin(points.s * 0.2 + angle)
        at_x, at_y = p["cord_rl"] / 2 * math.cos(angle) + away, p["cord_ap"] / 2 * math.sin(angle)
        yield "blood", paint(torch.hypot(x - at_x, y - at_y * 1.06) - radius)


def susceptibility(patient: Patient, points: Points) -> Tensor:
    """How fast the field's unevenness near air and bone takes signal from a gradient echo: (n, h, w) per ms of TE.

    About .002 per ms in the cord beside a disc, ten times that beside the airway.
    """
    p = points.profile
    x, y = _turned(patient, points)
    front = p["canal_ap"] / 2 + 2 * p["body_ap"] + 16
    airway = torch.hypot(x, y + p["offset"] - front)
    disc = ((p["phase"] - 0.6) / 0.3).clamp(0, 1)
    body = torch.hypot(x, y + p["offset"] - p["canal_ap"] / 2 - 4)
    return 0.03 * torch.exp(-(airway - 8).clamp_min(0) / 7) + 0.0035 * disc * torch.exp(-body / 9)
