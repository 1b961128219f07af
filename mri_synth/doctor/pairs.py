"""Whether two contrasts of one visit can be learnt from as a pair: grids, overlap, shift, mirror, turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from mri_synth.data.settings import Plane
from mri_synth.data.volume import AXES, Volume, resample_to, same_grid, to_slices
from mri_synth.doctor.findings import Finding, Severity
from mri_synth.doctor.registration import Offset, offset
from mri_synth.errors import UserError

OFF = 1.5
"""Pixels or slices from which on a pair counts as unregistered."""
GAIN = 1.02
"""A shift is believed where it raises NMI - 1 by this factor; 2 pixels do by 1.2 and more."""
MIRROR_GAIN = 1.05
"""Likewise a mirror; of true pairs, mirrored ones reach at most 0.85."""
LEAST_MM = 1.5
"""Of the point that a rigid registration moves furthest, from which on a pair counts as unregistered: of thick slices
the registration itself is good to about one millimetre."""
INFORMATION = 1.02
"""It is believed where it raises mutual information by this factor."""

How = Literal["look", "measure", "will be"]


def pair_findings(first: Volume, second: Volume, names: tuple[str, str], plane: Plane,
                  how: How = "look") -> Iterator[Finding]:  # fmt: skip
    """What is wrong with a pair.

    Args:
        first: gives the grid.
        second: is brought onto it by the affines, as a run would do, and compared.
        names: of their contrasts.
        plane: in which they are cut.
        how: "look" searches whole-pixel shifts and mirrors; "measure" also registers volumes whose grids differ, to say
            how far off they are, which takes some ten seconds; "will be": a run registers them, so that what
            registration mends is a note.

    Yields:
        Grids that differ, little overlap, a shift, a turn, a mirror.
    """
    a, b = names
    alike = same_grid(first, second)
    if not alike and (first.picture or second.picture):
        return  # refused when read
    cure = (f"data.register=rigid registers {b} to {a} while the slices are prepared; or register them yourself and "
            f"save {b} on {a}'s grid")  # fmt: skip
    if first.picture:
        cure = f"register {b} to {a} (SimpleITK, ANTs) and save it on {a}'s grid"
    mended = how == "will be"
    if not alike:
        far, told = _measured(first, second) if how == "measure" else (False, "")
        covered = _covered(first, second)
        beyond = f"; {100 * (1 - covered):.0f} % of what {a} shows lies outside of {b}" if covered < 0.95 else ""
        by = "a run registers it" if mended else "not registered, and brought together by the affines alone"
        severity: Severity = "note" if mended else "error" if far else "warning"
        yield Finding(severity, "registration" if far else "grid", second.name, f"{b} has {_grid(second)}, {a} "
                      f"{_grid(first)}: {by}{told}{beyond}", cure, (first.name,))  # fmt: skip
    try:
        cuts = [to_slices(v, plane) for v in (first, resample_to(second, first))]
    except UserError:
        return  # said of the file itself
    found = offset(cuts[0].images, cuts[1].images)
    if found.mirrored - 1 > MIRROR_GAIN * (found.best - 1):
        yield Finding("error", "mirrored", second.name, f"{b} fits {a} better mirrored {found.mirror}: mutual "
                      f"information {found.mirrored:.3f} against {found.best:.3f}", "find out which of the two is "
                      "true, and mend the other's affine or voxel order", (first.name,))  # fmt: skip
    elif found.best - 1 > GAIN * (found.as_is - 1) and any(found.shift):
        off = max(found.pixels, abs(found.shift[0])) >= OFF and not mended
        spacing = None if first.picture else (first.spacing_mm[AXES[plane]], *cuts[0].spacing_mm)
        yield Finding("error" if off else "note", "registration", second.name, f"{b} lies {_way(found, spacing)} of "
                      f"where {a} does: normalised mutual information {found.as_is:.3f} as it is, {found.best:.3f} "
                      "shifted back", cure, (first.name,))  # fmt: skip


def _measured(first: Volume, second: Volume) -> tuple[bool, str]:
    """Whether a rigid registration moves the second far, and what it says."""
    from mri_synth.data.register import rigid

    try:
        found = rigid(second, first)
    except UserError as error:
        return False, f" ({error})"
    believed = found.after > INFORMATION * found.before
    told = (f"; a registration turns it by {found.rotation_deg:.1f} degrees and moves points by up to "
            f"{found.furthest_mm:.1f} mm")  # fmt: skip
    told += "" if believed else ", which gains next to nothing"
    return believed and found.furthest_mm > max(LEAST_MM, OFF * min(first.spacing_mm)), told


def _way(found: Offset, spacing_mm: tuple[float, float, float] | None) -> str:
    ways = (("slice", "back", "on"), ("px", "up", "down"), ("px", "left", "right"))
    said = ", ".join(f"{abs(n)} {unit}{'s' * (unit == 'slice' and abs(n) > 1)} {after if n > 0 else before}"
                     for n, (unit, before, after) in zip(found.shift, ways, strict=True) if n)  # fmt: skip
    return said if spacing_mm is None else f"{said} ({np.linalg.norm(np.multiply(found.shift, spacing_mm)):.1f} mm)"


def _grid(volume: Volume) -> str:
    shape, spacing = "x".join(map(str, volume.array.shape)), "x".join(f"{s:.3g}" for s in volume.spacing_mm)
    return f"{shape} voxels of {spacing} mm"


def _covered(first: Volume, second: Volume) -> float:
    """Share of what the first shows that lies in the second's field of view."""
    every = max(1, max(first.array.shape) // 32)
    few = first.array[::every, ::every, ::every]
    low, high = np.percentile(few, [0.5, 99.5])
    at = np.argwhere(few > low + 0.1 * (high - low)) * every
    to_second = np.linalg.inv(second.affine) @ first.affine
    there = at @ to_second[:3, :3].T + to_second[:3, 3]
    return float(((there > -1) & (there < second.array.shape)).all(1).mean()) if len(at) else 1.0
