"""Simulated MRI of a drawn anatomy: tissue, signal equations, lesions, bias field, Rician noise.

Every step draws from its own random stream, so that a twin without lesions has the same anatomy and the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from mri_synth.data.anatomy import Anatomy, draw_anatomy, smoothstep
from mri_synth.data.physics import LESION, SEQUENCES, TISSUE, Kind, Tissue, bias_field, draw_tissue, rician, signal
from mri_synth.data.template import Array, Grid, at_part, smooth_field, stream
from mri_synth.errors import UserError

VERSION = "1"  # of the images: another one whenever a voxel of any subject changes
UNITS = 4000.0  # signal of 1 (unit proton density, no relaxation) in the units of the image: 12 bits, as scanners have


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What decides a set of simulated subjects, apart from contrast and size.

    Attributes:
        seed: of the whole set.
        subjects: in train, val, test; numbered through in this order.
        slices: per subject, axial, from z = -10 mm to 44 mm (MNI).
        snr: mean signal of white matter over the standard deviation of the noise in each channel, in each contrast.
        deform_sd_mm: of the random deformation along each axis.
        bias_percent: the whole range of the bias field: 20 is a factor from 0.9 to 1.1.
        lesion_radius_mm: least and largest semi-axis.
    """

    seed: int = 152
    subjects: tuple[int, int, int] = (200, 20, 40)
    slices: int = 10
    snr: float = 30.0
    deform_sd_mm: float = 3.0
    bias_percent: float = 20.0
    lesion_radius_mm: tuple[float, float] = (5.0, 14.0)


BENCH_V1 = Preset()
"""Frozen: every published figure on phantoms is on these subjects. Change nothing here; make a bench-v2."""
TEXTURE = ((3.0, 0.020), (18.0, 0.025))
"""Within a subject: (correlation length in mm, standard deviation of the logarithm of T1 and of T2)."""


@dataclass(frozen=True)
class Lesion:
    """One lesion: an ellipsoid with an uneven surface.

    Attributes:
        centre_mm: x, y, z in MNI space.
        radii_mm: semi-axes; the lesion lies inside this ellipsoid.
        angle: of the first semi-axis from +x in the axial plane, radians.
        kind: "long" or "short" relaxation.
        tissue: what it is made of.
    """

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    angle: float
    kind: Kind
    tissue: Tissue

    @property
    def side(self) -> Literal["left", "right"]:
        """The subject's own side: x grows to the right."""
        return "left" if self.centre_mm[0] < 0 else "right"


def draw_lesions(
    rng: np.random.Generator, anatomy: Anatomy, grid: Grid, radius_mm: tuple[float, float]
) -> list[Lesion]:
    """One to three lesions with their centres in white matter.

    Args:
        rng: the lesion stream.
        anatomy: where white matter is.
        grid: of the anatomy.
        radius_mm: least and largest semi-axis.

    Returns:
        The lesions.
    """
    axes, low, high = grid.axes(fine=True), *radius_mm
    lesions = []
    for _ in range(int(rng.integers(1, 4))):
        tries = rng.random((64, 3))
        shape, kind_draw, severity = rng.random(4), rng.random(), rng.uniform(0.7, 1.0)
        at = np.floor(tries * anatomy.wm_fine.shape).astype(np.intp)
        white = anatomy.wm_fine[at[:, 0], at[:, 1], at[:, 2]]
        best = at[np.argmax(white >= 230)] if (white >= 230).any() else at[np.argmax(white)]
        centre = (float(axes[0][best[0]]), float(axes[1][best[1]]), float(axes[2][best[2]]))
        radius = low + (high - low) * shape[0]
        radii = np.maximum(radius * (0.75 + 0.25 * np.array([1.0, shape[1], shape[2]])), low)
        kind: Kind = "long" if kind_draw < 0.5 else "short"
        a, b = TISSUE["wm"], LESION[kind]
        tissue = Tissue(*(x ** (1 - severity) * y**severity for x, y in zip(_values(a), _values(b), strict=True)))
        semi = (float(radii[0]), float(radii[1]), float(radii[2]))
        lesions.append(Lesion(centre, semi, float(np.pi * shape[3]), kind, tissue))
    return lesions


def _values(tissue: Tissue) -> tuple[float, float, float]:
    return tissue.pd, tissue.t1_ms, tissue.t2_ms


def lesion_share(rng: np.random.Generator, lesion: Lesion, grid: Grid) -> Array:
    """Share of each voxel that the lesion takes, before it is kept to brain tissue; 0 outside its ellipsoid.

    Args:
        rng: the lesion stream, for the unevenness of its surface.
        lesion: which.
        grid: the voxels.

    Returns:
        (X, Y, Z) in [0, 1]: a soft edge of 2 mm; shares under 0.1 are 0.
    """
    reach = max(lesion.radii_mm)
    voxels, points = grid.part(lesion.centre_mm, (reach, reach, reach))
    axes = at_part(grid.axes(fine=True), points)
    uneven = np.clip(1 + smooth_field(rng, axes, 8.0, 1.0), 0, 3)
    x, y, z = (a - c for a, c in zip(axes, lesion.centre_mm, strict=True))
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    u = cos * x[:, None, None] + sin * y[None, :, None]
    v = -sin * x[:, None, None] + cos * y[None, :, None]
    a, b, c = lesion.radii_mm
    rho = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (z[None, None, :] / c) ** 2) * (1 + 0.12 * uneven)
    share = np.zeros((grid.size, grid.size, grid.slices))
    share[voxels] = grid.average(smoothstep((1 - rho) * min(a, b, c) / 2.0))
    return np.where(share < 0.1, 0.0, share)


@dataclass(frozen=True)
class Simulated:
    """One simulated scan.

    Attributes:
        array: (X, Y, Z) float64, RAS, at least 0; about 0 to 3000.
        affine: (4, 4) voxel index -> mm.
        mask: (X, Y, Z) uint8, 1 in lesions; outside it the scan equals its healthy twin exactly.
        fractions: (3, X, Y, Z) white matter, grey matter, CSF of the healthy anatomy.
        sigma: of the noise in each channel, in the units of `array`; 0 without noise.
        lesions: what the mask is made of.
    """

    array: Array
    affine: Array
    mask: npt.NDArray[np.uint8]
    fractions: Array
    sigma: float
    lesions: tuple[Lesion, ...]


@lru_cache(maxsize=8)
def _anatomy(seed: int, subject: int, grid: Grid, deform_sd_mm: float) -> Anatomy:
    return draw_anatomy(seed, subject, grid, deform_sd_mm)


@lru_cache(maxsize=8)
def _lesions(
    seed: int, subject: int, grid: Grid, sd_mm: float, radius_mm: tuple[float, float]
) -> list[tuple[Lesion, Array]]:
    """Lesions and their share of each voxel, kept to brain tissue."""
    rng, anatomy = stream(seed, subject, "lesion"), _anatomy(seed, subject, grid, sd_mm)
    free = anatomy.fractions[0] + anatomy.fractions[1]
    found = []
    for lesion in draw_lesions(rng, anatomy, grid, radius_mm):
        share = np.minimum(lesion_share(rng, lesion, grid), free)
        share[share < 0.1] = 0
        free = free - share
        found.append((lesion, share))
    return found


def lesion_mask(subject: int, *, grid: Grid, preset: Preset = BENCH_V1) -> npt.NDArray[np.uint8]:
    """Where `simulate(..., lesion=True)` has lesions, without making the scan.

    Args:
        subject: number of the subject, from 0.
        grid: the voxels.
        preset: all else.

    Returns:
        (X, Y, Z), 1 in lesions and 0 elsewhere.
    """
    found = _lesions(preset.seed, subject, grid, preset.deform_sd_mm, preset.lesion_radius_mm)
    mask: npt.NDArray[np.uint8] = np.any([share > 0 for _, share in found], axis=0).astype(np.uint8)
    return mask


def simulate(subject: int, contrast: str, *, lesion: bool, noise: bool = True, grid: Grid | None = None,
             preset: Preset = BENCH_V1) -> Simulated:  # fmt: skip
    """One scan of one subject; the same numbers on every machine, as far as float64 goes.

    Args:
        subject: number of the subject, from 0.
        contrast: "T1", "T2", "PD" or "FLAIR".
        lesion: with lesions; without, it is the healthy twin: same anatomy, same noise.
        noise: False leaves out the noise and nothing else.
        grid: the voxels; None for 128 x 128 and the preset's slices.
        preset: all else.

    Returns:
        The scan.

    Raises:
        UserError: the contrast cannot be simulated.
    """
    if contrast not in SEQUENCES:
        raise UserError(f"data.contrasts: {contrast!r} cannot be simulated; data=phantom has {', '.join(SEQUENCES)}")
    grid = grid or Grid(slices=preset.slices)
    axes, key = grid.axes(), (preset.seed, subject)
    anatomy = _anatomy(*key, grid, preset.deform_sd_mm)
    rng = stream(*key, "tissue")
    tissue = draw_tissue(rng)
    long, short = (np.exp(sum(smooth_field(rng, axes, mm, sd) for mm, sd in TEXTURE)) for _ in range(2))
    found = _lesions(*key, grid, preset.deform_sd_mm, preset.lesion_radius_mm) if lesion else []

    brain = anatomy.fractions.sum(0) > 0
    parts = anatomy.fractions[:, brain]
    shares = np.array([share[brain] for _, share in found]).reshape(len(found), int(brain.sum()))
    healthy = parts[0] + parts[1]
    parts[:2] *= 1 - np.divide(shares.sum(0), healthy, out=np.zeros_like(healthy), where=healthy > 0)
    total = np.zeros(healthy.shape)
    for t, part in zip([*tissue, *(x.tissue for x, _ in found)], [*parts, *shares], strict=True):
        total += part * signal(SEQUENCES[contrast], t.pd, t.t1_ms * long[brain], t.t2_ms * short[brain])
    clean = np.zeros(brain.shape)
    clean[brain] = UNITS * np.abs(total)
    clean *= bias_field(stream(*key, "bias"), axes, preset.bias_percent)

    white = tissue[0]
    sigma = UNITS * float(signal(SEQUENCES[contrast], white.pd, white.t1_ms, white.t2_ms)) / preset.snr
    rng = stream(*key, "noise", list(SEQUENCES).index(contrast))
    return Simulated(
        array=rician(rng, clean, sigma) if noise else clean,
        affine=grid.affine,
        mask=lesion_mask(subject, grid=grid, preset=preset) if lesion else np.zeros(brain.shape, np.uint8),
        fractions=anatomy.fractions,
        sigma=sigma if noise else 0.0,
        lesions=tuple(x for x, _ in found),
    )
