"""The anatomy of a simulated subject: the template's tissue under a pose, a random deformation and its own folding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mri_synth.data.template import CENTRE_MM, FLUID_T1, Array, Axes, Grid, at_part, load_template, smooth_field, stream

SULCUS_T1, GM_T1, WM_T1 = 158.0, 165.0, 222.0  # template's T1 intensity: edges of the cortex, white matter
REACH_MM = (90.0, 108.0, 200.0)  # no brain farther from the centre of the frame
VENTRICLES_MM = (0.0, -14.0, 16.0)


@dataclass(frozen=True)
class Person:
    """Who the simulated subject is.

    Attributes:
        age: years, 20 to 85.
        sex: "F" or "M".
    """

    age: float
    sex: Literal["F", "M"]


def person(seed: int, subject: int) -> Person:
    """Age (uniform) and sex (even) of a subject."""
    rng = stream(seed, subject, "demographics")
    age, male = rng.uniform(20, 85), rng.random() < 0.5
    return Person(round(float(age), 1), "M" if male else "F")


@dataclass(frozen=True)
class Anatomy:
    """Tissue of one subject in the voxels of a grid; shared by all contrasts, with lesions or without.

    Attributes:
        fractions: (3, X, Y, Z) white matter, grey matter, CSF; their sum is the brain's share of the voxel.
        wm_fine: (X * fold, Y * fold, Z) white matter, 0 to 255, at the fine points.
    """

    fractions: Array
    wm_fine: npt.NDArray[np.uint8]


def displacement(rng: np.random.Generator, axes: Axes, sd_mm: float) -> Array:
    """Random displacement: slow (60 mm) for the shape of head and lobes, fast (10 mm) for the course of gyri.

    Args:
        rng: the anatomy stream.
        axes: coordinates in mm.
        sd_mm: standard deviation along each axis; the slow part has 15/16 of the variance.

    Returns:
        (3, X, Y, Z) mm.
    """
    slow, fast = sd_mm * (15 / 16) ** 0.5, sd_mm * (1 / 16) ** 0.5
    parts = [smooth_field(rng, axes, 60.0, slow) + smooth_field(rng, axes, 10.0, fast) for _ in range(3)]
    return np.stack(parts)


def head_pose(rng: np.random.Generator, sex: str) -> Array:
    """(3, 3) matrix from subject to template, about the brain's centre.

    Rotation by sd 1.5 degrees about each axis; each axis longer by uniform -1.5 to 1.5 %, and men's by 1, women's by
    -1 %, so that the brain still fills 75 to 80 % of the frame.
    """
    a, b, c = np.deg2rad(1.5) * rng.standard_normal(3)
    scale = 1 + rng.uniform(-0.015, 0.015, 3) + (0.01 if sex == "M" else -0.01)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    pose: Array = about_x @ about_y @ about_z @ np.diag(1 / scale)
    return pose


def smoothstep(x: Array) -> Array:
    """0 below 0, 1 above 1, 3x² - 2x³ between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def tissue_fractions(wm: Array, gm: Array, brain: Array, t1: Array, atrophy: float) -> tuple[Array, Array, Array]:
    """One head's tissue from the template's: the averaged maps sharpened by the T1 intensity at the same point.

    Args:
        wm: the template's white matter fraction.
        gm: its grey matter fraction.
        brain: 1 inside the brain.
        t1: its sharpened T1 intensity, plus the subject's own variation.
        atrophy: widens the sulci; 0 is middle age.

    Returns:
        White matter, grey matter, CSF; they sum to `brain`.
    """
    white = 0.5 * np.clip((t1 - GM_T1) / (WM_T1 - GM_T1), -0.5, 1.5) + 0.5 * wm
    fluid = 0.5 * np.clip((SULCUS_T1 - t1) / (SULCUS_T1 - FLUID_T1), -0.5, 1.5) + 0.5 * (brain - wm - gm)
    csf = smoothstep(0.5 + 1.2 * (fluid + atrophy - 0.42)) * brain
    white = smoothstep(0.5 + 1.2 * (white - 0.54)) * (brain - csf)
    return white, brain - csf - white, csf


def draw_anatomy(seed: int, subject: int, grid: Grid, deform_sd_mm: float) -> Anatomy:
    """The anatomy of a subject: pose, age, a random deformation and a random course of the cortex.

    Args:
        seed: of the whole set of subjects.
        subject: number of the subject.
        grid: the voxels; the same subject on another grid is the same head.
        deform_sd_mm: of the random deformation along each axis.

    Returns:
        Its tissue.
    """
    template, who = load_template(), person(seed, subject)
    rng = stream(seed, subject, "anatomy")
    voxels, points = grid.part(CENTRE_MM, REACH_MM)
    axes = at_part(grid.axes(fine=True), points)
    decades = (who.age - 50) / 10
    swelling = 0.10 + 0.05 * decades + 0.05 * rng.standard_normal()  # of the ventricles, grows with age
    atrophy = 0.03 * decades + 0.03 * rng.standard_normal()
    pose = head_pose(rng, who.sex)
    shift = displacement(rng, axes, deform_sd_mm)
    folding = smooth_field(rng, axes, 5.0, 12.0)  # in T1 intensity, of which grey to white is 57

    x = np.stack(np.meshgrid(*(a - c for a, c in zip(axes, CENTRE_MM, strict=True)), indexing="ij"))
    q = np.einsum("ij,jxyz->ixyz", pose, x) + shift
    q += (np.array(CENTRE_MM) - np.array(VENTRICLES_MM))[:, None, None, None]
    reach = sum((q[k] / r) ** 2 for k, r in enumerate((26.0, 36.0, 20.0)))
    q *= 1 - np.clip(swelling, -0.15, 0.45) * np.exp(-reach / 2)
    q += (np.array(VENTRICLES_MM) - np.array(template.origin_mm))[:, None, None, None]  # now template voxels

    limits = np.array(template.near.shape)[:, None, None, None] - 1
    i, j, k = np.clip(np.rint(q).astype(np.intp), 0, limits)
    inside = template.near[i, j, k]
    at = q[:, inside]
    wm, gm, brain, t1 = (
        ndimage.map_coordinates(m, at, output=np.float64, order=1) / scale
        for m, scale in ((template.wm, 255), (template.gm, 255), (template.brain, 255), (template.t1, 1))
    )
    parts = tissue_fractions(wm, gm, brain, t1 + folding[inside], atrophy)
    fractions = np.zeros((3, grid.size, grid.size, grid.slices))
    fine = np.zeros((3, *inside.shape))
    for whole, own, values in zip(fractions, fine, parts, strict=True):
        own[inside] = values
        whole[voxels] = grid.average(own)
    wm_fine = np.zeros([len(x) for x in grid.axes(fine=True)], np.uint8)
    wm_fine[points] = np.rint(fine[0] * 255)
    return Anatomy(fractions, wm_fine)
