"""What the scanner makes of tissue: relaxation at 3 T, signal equations, bias field, Rician noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mri_synth.data.template import Array, Axes, smooth_field

Kind = Literal["long", "short"]


@dataclass(frozen=True)
class Tissue:
    """What a tissue is to the scanner: proton density relative to water, T1 and T2 in ms."""

    pd: float
    t1_ms: float
    t2_ms: float


TISSUE: dict[str, Tissue] = {
    "wm": Tissue(0.77, 832.0, 79.6),
    "gm": Tissue(0.86, 1331.0, 110.0),
    "csf": Tissue(1.00, 4300.0, 2000.0),
}
"""At 3 T. T1 and T2 of white and grey matter: Wansapura et al., JMRI 9:531-538, 1999. CSF: T1 of about 4.3 s, see Lu et
al., JMRI 22:13-22, 2005; T2 of about 2 s, see Spijkerman et al., MAGMA 31:415-424, 2018. Proton density: BrainWeb
(Collins et al., IEEE TMI 17:463-468, 1998)."""

LESION: dict[Kind, Tissue] = {"long": Tissue(0.92, 1800.0, 200.0), "short": Tissue(0.72, 450.0, 42.0)}
"""Ours, for contrast of both signs. "long" is like oedema or gliosis: dark on T1, bright on T2, PD, FLAIR. "short" is
like methaemoglobin inside cells or a protein-rich cyst: bright on T1, dark on T2, PD, FLAIR."""

SPREAD = {"wm": (0.01, 0.03, 0.03), "gm": (0.01, 0.03, 0.03), "csf": (0.0, 0.02, 0.05)}
"""Standard deviation between subjects of the logarithm of PD, T1, T2."""


@dataclass(frozen=True)
class Sequence:
    """Timing in ms; an inversion time makes it inversion recovery."""

    te_ms: float
    tr_ms: float
    ti_ms: float | None = None


SEQUENCES: dict[str, Sequence] = {
    "T1": Sequence(te_ms=10.0, tr_ms=500.0),
    "T2": Sequence(te_ms=100.0, tr_ms=4000.0),
    "PD": Sequence(te_ms=20.0, tr_ms=4000.0),
    "FLAIR": Sequence(te_ms=100.0, tr_ms=9000.0, ti_ms=2480.0),
}
"""Ours, of the order used in clinical work at 3 T (see Lu et al., JMRI 22:13-22, 2005). FLAIR's TI nulls CSF: the root
of 1 - 2 exp(-TI/T1) + exp(-TR/T1) at T1 = 4300 ms, TR = 9000 ms is 2480 ms."""


def signal(sequence: Sequence, pd: Array | float, t1_ms: Array | float, t2_ms: Array | float) -> Array:
    """Signed signal of spin echo and of inversion recovery spin echo (TE much shorter than TR, perfect pulses).

    S = PD (1 - exp(-TR/T1)) exp(-TE/T2), and S = PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2) with inversion
    (Haacke et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design, 1999, chapter 8).

    Args:
        sequence: timing.
        pd: proton density.
        t1_ms: longitudinal relaxation time.
        t2_ms: transverse relaxation time.

    Returns:
        Signal in units of `pd`; below 0 where inversion recovery has not reached its null.
    """
    recovered = 1 - np.exp(-sequence.tr_ms / np.asarray(t1_ms))
    if sequence.ti_ms is not None:
        recovered = 1 - 2 * np.exp(-sequence.ti_ms / np.asarray(t1_ms)) + np.exp(-sequence.tr_ms / np.asarray(t1_ms))
    out: Array = pd * recovered * np.exp(-sequence.te_ms / np.asarray(t2_ms))
    return out


def draw_tissue(rng: np.random.Generator) -> list[Tissue]:
    """A subject's own white matter, grey matter, CSF."""
    out = []
    for name, t in TISSUE.items():
        a, b, c = np.exp(np.array(SPREAD[name]) * rng.standard_normal(3))
        out.append(Tissue(t.pd * a, t.t1_ms * b, t.t2_ms * c))
    return out


def bias_field(rng: np.random.Generator, axes: Axes, percent: float) -> Array:
    """Smooth multiplicative field of the receive coil, the same for all contrasts of a subject.

    Args:
        rng: the bias stream.
        axes: coordinates in mm.
        percent: its whole range over the brain: 20 is 0.9 to 1.1 at most.

    Returns:
        (X, Y, Z) factors.
    """
    state = rng.bit_generator.state
    brain = (np.linspace(-72, 72, 9), np.linspace(-107, 73, 9), np.linspace(-10, 44, 5))
    largest = np.abs(smooth_field(rng, brain, 90.0, 1.0)).max()
    rng.bit_generator.state = state  # the same field again, where it is asked for
    field = smooth_field(rng, axes, 90.0, 1.0) / largest
    factors: Array = 1 + percent / 200 * np.clip(field, -1, 1)
    return factors


def rician(rng: np.random.Generator, clean: Array, sigma: float) -> Array:
    """Magnitude of `clean` with Gaussian noise in both channels (Gudbjartsson and Patz, MRM 34:910-914, 1995)."""
    return np.hypot(clean + sigma * rng.standard_normal(clean.shape), sigma * rng.standard_normal(clean.shape))
