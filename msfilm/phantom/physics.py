"""From tissue to signal: the equations of seven sequences, evaluated on one table of tissues at 1.5 or 3 T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd

from msfilm.errors import SettingError, suggest
from msfilm.phantom.facts import tissues

__all__ = [
    "SEQUENCES",
    "gradient_echo",
    "inversion_recovery",
    "magnetisation_transfer",
    "mixed_tissue",
    "mprage",
    "phase_sensitive",
    "signals",
    "tissue_table",
    "turbo_spin_echo",
    "turbo_spin_echo_restore",
]


FAT_IN_TSE = 1.75  # an echo train brightens fat (J-coupling): real axial T2w shows about 3.7 of white matter


def turbo_spin_echo(pd_, t1, t2, *, tr, te):
    """2D turbo spin echo (T2w): PD (1 - exp(-TR/T1)) exp(-TE/T2). Times in ms, TE is the effective echo time."""
    return pd_ * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def turbo_spin_echo_restore(pd_, t1, t2, *, tr, te, train):
    """3D turbo spin echo with a restore pulse (T2w): what is left after the echo train of ``train`` ms is tipped back.

    PD (1 - E) / (1 - E exp(-train/T2)) exp(-TE/T2) with E = exp(-(TR - train)/T1). Times in ms; TE is the effective
    echo time, about 80 where the scanner says 120.
    """
    e = np.exp(-(tr - train) / t1)
    return pd_ * (1 - e) / (1 - e * np.exp(-train / t2)) * np.exp(-te / t2)


def gradient_echo(pd_, t1, t2star, *, tr, tes, flip_deg):
    """Spoiled multi-echo gradient echo (T2*w): Ernst equation times the root mean square of exp(-TE/T2*) over the
    echoes. Times in ms.
    """
    e1, angle = np.exp(-tr / t1), np.deg2rad(flip_deg)
    steady = pd_ * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
    echoes = np.stack([np.exp(-te / t2star) for te in tes])
    return steady * np.sqrt((echoes**2).mean(axis=0))


def magnetisation_transfer(signal, mtr):
    """The same scan with a magnetisation-transfer pulse before each excitation: signal (1 - MTR)."""
    return signal * (1 - mtr)


def mprage(pd_, t1, t2star, *, tr, te, ti, flip_deg, spacing=7.0, pulses=128):
    """MPRAGE (T1w): steady state of inversion, recovery, ``pulses`` small flips ``spacing`` ms apart, recovery.

    Each stage maps the longitudinal magnetisation m to a m + b; the composed map's fixed point is the steady state.
    TI is the time from the inversion to the middle of the train, where k-space's centre is read. Times in ms.

    Raises:
        SettingError: MPRAGE-TIMES if the train does not fit between inversion and repetition.
    """
    if np.min(ti) < pulses // 2 * spacing or np.min(tr - np.asarray(ti)) < (pulses - pulses // 2) * spacing:
        raise SettingError(
            "MPRAGE-TIMES",
            f"{pulses} pulses {spacing} ms apart do not fit round TI {ti} within TR {tr}",
            mend="choose a longer TI or TR, or fewer pulses",
        )
    cosine = np.cos(np.deg2rad(flip_deg))

    def recover(time):  # m -> 1 + (m - 1) e
        e = np.exp(-time / t1)
        return e, 1 - e

    def then(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    def flips(count):  # ``count`` times: flip, then recover for one spacing
        e = np.exp(-spacing / t1)
        a = cosine * e
        return a**count, (1 - e) * (1 - a**count) / (1 - a)

    half = pulses // 2
    wait = recover(ti - half * spacing)
    rest = recover(tr - ti - (pulses - half) * spacing)
    inversion = (-1.0, 0.0)
    to_centre = then(then(inversion, wait), flips(half))
    cycle = then(then(to_centre, flips(pulses - half)), rest)
    start = cycle[1] / (1 - cycle[0])  # magnetisation just before the inversion, the same in every repetition
    centre = to_centre[0] * start + to_centre[1]
    return pd_ * np.abs(centre) * np.sin(np.deg2rad(flip_deg)) * np.exp(-te / t2star)


def inversion_recovery(pd_, t1, t2, *, tr, te, ti):
    """Signed inversion recovery: PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2). Times in ms; STIR shows its
    magnitude.
    """
    return pd_ * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def phase_sensitive(signed):
    """PSIR as it is stored: the signed signal on top of an offset of one unit of water, so that none is negative."""
    return 1.0 + signed


def tissue_table(field_t: float) -> pd.DataFrame:
    """Tissue table at a field: columns pd, t1, t2, t2star (ms), mtr. Below 2 T the 1.5 T values."""
    table = tissues().astype(float)
    low = field_t < 2
    return pd.DataFrame(
        {
            "pd": table.pd,
            "t1": table.t1_15t if low else table.t1_3t,
            "t2": table.t2,
            "t2star": table.t2star_3t * (1.4 if low else 1.0),
            "mtr": table.mtr,
        }
    )


def mixed_tissue(base, other, share: float):
    """Tissue part-way from ``base`` to ``other``: PD and times mixed in proportion."""
    return (1 - share) * base + share * other


class _Tissues:
    """Columns of a tissue table as arrays: what a data frame gives, in a tenth of the time."""

    def __init__(self, rows: Mapping[str, np.ndarray]):
        self.pd, self.t1, self.t2, self.t2star, self.mtr = np.stack(list(rows.values())).T
        self.fat = list(rows).index("fat")


@cache
def _fixed_rows(low_field: bool) -> dict[str, np.ndarray]:
    table = tissue_table(1.5 if low_field else 3.0)
    return dict(zip(table.index, table.to_numpy(), strict=True))


def _rows(field_t: float) -> dict[str, np.ndarray]:
    """Tissue -> (pd, t1, t2, t2star, mtr); a new dictionary each time."""
    return dict(_fixed_rows(field_t < 2))


def _tse(t, p):
    signal = turbo_spin_echo(t.pd, t.t1, t.t2, tr=p["tr"], te=p["te"])
    signal[t.fat] *= FAT_IN_TSE
    return signal


def _restore(t, p):
    signal = turbo_spin_echo_restore(t.pd, t.t1, t.t2, tr=p["tr"], te=p["te"], train=p["train"])
    signal[t.fat] *= FAT_IN_TSE
    return signal


def _gre(t, p):
    return gradient_echo(t.pd, t.t1, t.t2star, tr=p["tr"], tes=p.get("tes") or (p["te"],), flip_deg=p["flip_deg"])


def _mprage(t, p):
    return mprage(t.pd, t.t1, t.t2star, tr=p["tr"], te=p["te"], ti=p["ti"], flip_deg=p["flip_deg"])


# sequence -> (equation on a tissue table and a protocol, what flow does: spins leave a spin echo, fresh ones come in)
SEQUENCES = {
    "TSE": (_tse, "void"),
    "TSE-restore": (_restore, "void"),
    "GRE": (_gre, "inflow"),
    "GRE-MT": (lambda t, p: magnetisation_transfer(_gre(t, p), t.mtr), "inflow"),
    "MPRAGE": (_mprage, None),
    "STIR": (lambda t, p: np.abs(inversion_recovery(t.pd, t.t1, t.t2, tr=p["tr"], te=p["te"], ti=p["ti"])), "void"),
    "PSIR": (
        lambda t, p: phase_sensitive(inversion_recovery(t.pd, t.t1, t.t2star, tr=p["tr"], te=p["te"], ti=p["ti"])),
        None,
    ),
}


def signals(
    protocol: Mapping, lesions: Sequence[tuple[str, float]] = (), *, relative: bool = True
) -> dict[str, float]:
    """Signal of every tissue, white matter = 1.

    Args:
        protocol: sequence (a key of ``SEQUENCES``), field_t (tesla), and what its equation needs of tr, te, tes, ti,
            train (ms) and flip_deg.
        lesions: (kind, strength) of each lesion; its signals are named ``lesion-0-wm`` (in white matter),
            ``lesion-0-gm`` and so on.
        relative: False for the equation's own unit, in which all the signal of pure water is 1.

    Raises:
        SettingError: SEQUENCE-UNKNOWN.
    """
    name = protocol["sequence"]
    if name not in SEQUENCES:
        raise SettingError("SEQUENCE-UNKNOWN", f"no sequence is called {name!r}", mend=suggest(name, SEQUENCES))
    equation, flow = SEQUENCES[name]
    table = _rows(protocol["field_t"])
    if name in ("TSE", "TSE-restore", "STIR", "MPRAGE"):
        table["gm"] = table["gm_T2w"]
    if flow == "void":
        table["blood"] = np.array([0.06, *table["blood"][1:]])
    elif flow == "inflow":
        table["csf"], table["blood"] = table["csf_inflow"], table["blood_inflow"]
    for i, (kind, strength) in enumerate(lesions):
        for base in ("wm", "gm"):
            table[f"lesion-{i}-{base}"] = mixed_tissue(table[base], table[kind], strength)
    signal = equation(_Tissues(table), protocol)
    unit = signal[list(table).index("wm")] if relative else 1.0
    return dict(zip(table, (signal / unit).tolist(), strict=True))
