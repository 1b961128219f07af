"""Whether two contrasts of one head lie on each other: a search over shifts and mirrors by mutual information."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

REACH = 8
"""Shifts are tried this far, in pixels, each way."""
LEVELS = 24
SLICES = 8
MOST_POINTS = 30_000
MIRRORS = {"left-right": 2, "up-down": 1, "first slice for last": 0}
"""Axis of (N, H, W) that each turns round."""


@dataclass(frozen=True)
class Offset:
    """How the second image lies on the first.

    Attributes:
        shift: by how many voxels (slice, row, column) what it shows lies further on.
        mirror: of MIRRORS.
        as_is: normalised mutual information as the images are; 1 is none.
        best: after the shift, without a mirror.
        mirrored: of the best mirror.
    """

    shift: tuple[int, int, int]
    mirror: str
    as_is: float
    best: float
    mirrored: float

    @property
    def pixels(self) -> float:
        """Length of the shift within the slice."""
        return float(np.hypot(*self.shift[1:]))


def offset(first: Array, second: Array, reach: int = REACH) -> Offset:
    """The shift, and the mirror, under which two stacks of slices tell most of each other.

    `NMI = (H(a) + H(b)) / H(a, b)` of the grey levels at the same places (Studholme et al. 1999), over whole-voxel
    shifts, so that nothing is interpolated: interpolation itself would pull the maximum towards no shift.

    Args:
        first: (N, H, W), any intensities.
        second: the same shape.
        reach: rows and columns tried each way.

    Returns:
        What was found.
    """
    a, b = levels(first), levels(second)
    points = _points(a, reach)
    margin = (6 if len(a) > 1 else 0, reach + 4, reach + 4)
    here = _Search(a, b, points, margin)
    as_is = here.score((0, 0, 0))
    shift, best = here.climb((0, 0, 0), reach)
    mirror, mirrored = "", 0.0
    for name, axis in MIRRORS.items():
        if a.shape[axis] < 5:
            continue
        flipped = np.flip(b, axis)
        k, i, j = (_centre(flipped) - _centre(a)).tolist()
        there = _Search(a, flipped, points, (abs(k) + margin[0], abs(i) + margin[1], abs(j) + margin[2]))
        found = there.climb((k, i, j), reach)[1]
        if found > mirrored:
            mirror, mirrored = name, found
    return Offset(shift, mirror, as_is, best, mirrored)


def levels(stack: Array) -> NDArray[np.uint8]:
    """Grey levels: 0 for what is dark (air), the others each for an equal share of what is not."""
    few = stack[:: max(1, len(stack) // 16), ::2, ::2]
    low, high = np.percentile(few, [0.5, 99.5])
    floor = low + 0.1 * (high - low)
    inside = few[few > floor]
    if not len(inside):
        return np.zeros(stack.shape, np.uint8)
    fine = np.linspace(floor, high, 2000)  # by a table: a search for each voxel takes five times as long
    ends = np.quantile(inside, np.linspace(0, 1, LEVELS)[1:-1])
    table = np.concatenate([[0], np.searchsorted(ends, fine) + 1]).astype(np.uint8)
    step = np.clip((stack - floor) * (len(fine) / (high - floor)) + 1, 0, len(fine)).astype(np.int16)
    out: NDArray[np.uint8] = table[step]
    return out


def _points(a: NDArray[np.uint8], reach: int) -> tuple[NDArray[np.intp], ...]:
    """Where the images are compared: in slices that show something, so far from the border that shifts stay inside."""
    filled = np.flatnonzero((a > 0).mean((1, 2)) > 0.02)
    filled = filled if len(filled) else np.arange(len(a))
    middle = filled[len(filled) // 6 : len(filled) - len(filled) // 6]
    chosen = middle[np.unique(np.linspace(0, len(middle) - 1, min(SLICES, len(middle))).astype(int))]
    rows, columns = (np.arange(min(reach, n // 4), n - min(reach, n // 4)) for n in a.shape[1:])
    every = max(1, int(np.ceil(len(chosen) * len(rows) * len(columns) / MOST_POINTS)))
    k, i, j = np.meshgrid(chosen, rows, columns, indexing="ij")
    pick = slice(None, None, every + (every > 1 and every % 2 == 0))
    return k.reshape(-1)[pick], i.reshape(-1)[pick], j.reshape(-1)[pick]


def _centre(a: NDArray[np.uint8]) -> NDArray[np.intp]:
    shown = a > 0
    middles = [np.average(np.arange(n), weights=shown.sum(tuple({0, 1, 2} - {axis})) + 1e-9)
               for axis, n in enumerate(a.shape)]  # fmt: skip
    return np.rint(middles).astype(np.intp)


class _Search:
    """Scores of shifts, each reckoned once."""

    def __init__(self, a: NDArray[np.uint8], b: NDArray[np.uint8], points: tuple[NDArray[np.intp], ...],
                 most: tuple[int, int, int]) -> None:  # fmt: skip
        """Shifts up to `most` can be asked for; beyond the image its border is repeated."""
        self.most = most
        padded = np.pad(b, [(m, m) for m in most], mode="edge")
        self.steps = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
        self.b = padded.reshape(-1)
        self.places = sum((p + m) * step for p, m, step in zip(points, most, self.steps, strict=True))
        self.at_a = a[points].astype(np.intp) * (LEVELS + 1)
        self.deep = b.shape[0] > 1
        self.known: dict[tuple[int, int, int], float] = {}

    def score(self, shift: tuple[int, int, int]) -> float:
        if any(abs(s) > m for s, m in zip(shift, self.most, strict=True)):
            return 0.0
        if shift not in self.known:
            there = self.b.take(self.places + int(np.dot(shift, self.steps)))
            joint = np.bincount(self.at_a + there, minlength=(LEVELS + 1) ** 2)
            p = joint.reshape(LEVELS + 1, LEVELS + 1) / len(self.at_a)
            self.known[shift] = (_entropy(p.sum(0)) + _entropy(p.sum(1))) / max(_entropy(p), 1e-12)
        return self.known[shift]

    def climb(self, start: tuple[int, int, int], reach: int) -> tuple[tuple[int, int, int], float]:
        """Best shift about a start: rows and columns coarsely, slices, then step by step uphill."""
        k, i, j = start
        coarse = range(-reach, reach + 1, 2)
        at = max(((k, i + di, j + dj) for di, dj in product(coarse, coarse)), key=self.score)
        if self.deep:
            at = max(((at[0] + dk, at[1], at[2]) for dk in range(-3, 4)), key=self.score)
        steps = [s for s in product((-1, 0, 1), repeat=3) if self.deep or s[0] == 0]
        while True:
            best = max(((at[0] + dk, at[1] + di, at[2] + dj) for dk, di, dj in steps), key=self.score)
            if self.score(best) <= self.score(at):
                return at, self.score(at)
            at = best


def _entropy(p: Array) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
