"""The nested settings of every data module: what a YAML under `conf/data` may say, with ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from mri_synth.data import split_presets

Plane = Literal["axial", "coronal", "sagittal"]
Fit = Literal["contain", "crop", "stretch"]
Source = Literal["contrasts", "mask", "derived"]
Register = Literal["none", "rigid"]
Share = Annotated[float, Ge(0), Le(1)]


@dataclass(kw_only=True)
class SliceSettings:
    """Which slices of a volume are used.

    Attributes:
        unit: what `start` and `stop` count: "index" (slice numbers from the inferior, posterior or left end),
            "mm" (world coordinate of the slice, RAS), "share" (share of the extent of the foreground along the
            axis: 0 is its first slice, 1 its last).
        start: first slice, None for the beginning.
        stop: last slice (inclusive), None for the end.
        step: every step-th slice.
        min_foreground: slices with a smaller share of foreground pixels are left out (and counted).
    """

    unit: Literal["index", "mm", "share"] = "share"
    start: float | None = None
    stop: float | None = None
    step: Annotated[int, Ge(1)] = 1
    min_foreground: Share = 0.0

    @staticmethod
    def problems(arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: a start behind the stop."""
        start, stop = arguments.get("start"), arguments.get("stop")
        if start is None or stop is None or start <= stop:
            return []
        return [f"data.slices.start={start}: lies behind data.slices.stop={stop}, so that no slice is left"]


@dataclass(kw_only=True)
class IntensitySettings:
    """How source intensities become [-1, 1], per volume; recorded and invertible.

    Attributes:
        method: "percentile" (`percentiles` of the volume become -1 and 1, clipped beyond), "minmax", or
            "fixed" (`range` becomes -1 and 1, as for 8-bit pictures: [0, 255]).
        percentiles: low and high, in percent of all voxels.
        range: low and high in source units, for "fixed".
    """

    method: Literal["percentile", "minmax", "fixed"] = "percentile"
    percentiles: list[float] = field(default_factory=lambda: [0.1, 99.9])
    range: list[float] | None = None

    @staticmethod
    def problems(arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: ends that do not increase, or the ones that `method` needs missing."""
        found = []
        percentiles, ends = arguments.get("percentiles", [0.1, 99.9]), arguments.get("range")
        if not _increase(percentiles) or percentiles[0] < 0 or percentiles[1] > 100:
            found.append(f"data.intensity.percentiles={percentiles}: allowed: two increasing numbers from 0 to 100")
        if ends is not None and not _increase(ends):
            found.append(f"data.intensity.range={ends}: allowed: two increasing numbers, such as [0,255], or null")
        if arguments.get("method") == "fixed" and ends is None:
            found.append("data.intensity.method=fixed: data.intensity.range is missing: say which source units become "
                         "-1 and 1, such as data.intensity.range=[0,255]")  # fmt: skip
        return found


@dataclass(kw_only=True)
class SplitSettings:
    """How subjects are parted into train, val and test.

    Attributes:
        by: "subject"; "block" (files without subjects: `block_size` neighbours in natural order stay together);
            "given" (the data set's own split, or the manifest in `file`).
        fractions: of subjects (or blocks) in train, val, test; sums to 1.
        seed: of the shuffle; independent of the experiment's seed so that runs share their split.
        block_size: files per block.
        file: for by=given: a manifest CSV with columns subject and split (such as split.csv of an earlier run), or
            "preset:NAME" for a split of the literature (`mri_synth.data.split_presets`).
        on_leak: a subject or an identical image in two splits is an "error", or "drop"-ped from the earlier
            of train, val, test, and listed.
    """

    by: Literal["subject", "block", "given"] = "subject"
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    seed: Annotated[int, Ge(0)] = 0
    block_size: Annotated[int, Ge(1)] = 20
    file: str | None = None
    on_leak: Literal["error", "drop"] = "error"

    @staticmethod
    def problems(arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: fractions that are no shares of a whole, a file that is not asked."""
        found = []
        shares = arguments.get("fractions", [0.8, 0.1, 0.1])
        if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            found.append(f"data.split.fractions={shares}: allowed: three shares (train, val, test) from 0 to 1 that "
                         "sum to 1, such as [0.8,0.1,0.1]")  # fmt: skip
        file, by = arguments.get("file"), arguments.get("by", "subject")
        if file is not None and by != "given":
            found.append(f"data.split.file={file} needs data.split.by=given; it is data.split.by={by}")
        if file is not None and file.startswith(split_presets.PREFIX) and not split_presets.known(file):
            found.append(split_presets.unknown(file))
        return found


@dataclass(kw_only=True)
class AugmentSettings:
    """Random changes of training images, drawn per item and epoch, on the training device; all off by default.

    Attributes:
        flip: probability of a left-right flip (leave 0 wherever sides are labelled).
        rotate_deg: rotation, uniform in [-x, x] degrees.
        translate: shift, uniform in [-x, x] as a share of the image side.
        scale: zoom factor exp(uniform in [-log(1 + x), log(1 + x)]).
        gain: intensity factor on [0, 1] intensities, uniform in [1 - x, 1 + x], clipped.
        gamma: exponent exp(uniform in [-log(1 + x), log(1 + x)]) on [0, 1] intensities.
    """

    flip: Share = 0.0
    rotate_deg: Annotated[float, Ge(0), Le(180)] = 0.0
    translate: Annotated[float, Ge(0), Le(0.5)] = 0.0
    scale: Annotated[float, Ge(0), Le(1)] = 0.0
    gain: Annotated[float, Ge(0), Le(1)] = 0.0
    gamma: Annotated[float, Ge(0), Le(2)] = 0.0

    def __bool__(self) -> bool:
        return any((self.flip, self.rotate_deg, self.translate, self.scale, self.gain, self.gamma))


def _increase(ends: Sequence[float]) -> bool:
    return len(ends) == 2 and ends[0] < ends[1]


Positive = Annotated[int, Gt(0)]
