"""What a growing GAN does when: stage, fade, minibatch and learning rate as pure functions of the images seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from mri_synth.networks.progan import FIRST

T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """Where the growth stands.

    Attributes:
        stage: 0 is 4x4.
        alpha: how far the stage is faded in, in [0, 1]; 1 once it is.
    """

    stage: int
    alpha: float = 1.0

    @property
    def resolution(self) -> int:
        """Image side of the stage."""
        return FIRST << self.stage

    @property
    def fading(self) -> bool:
        """Whether the stage is still being faded in."""
        return self.alpha < 1

    def __str__(self) -> str:
        fade = f", {self.alpha:.0%} faded in" if self.fading else ""
        return f"{self.resolution}x{self.resolution}{fade}"


@dataclass(frozen=True)
class Growth:
    """A schedule, one value of each kind per stage.

    Attributes:
        fade: images over which a stage is faded in; 0 at stage 0.
        steady: images for which it then stays; the last one stays for good.
        minibatch: images of one update.
        lr_factor: on the learning rates.
    """

    fade: tuple[int, ...]
    steady: tuple[int, ...]
    minibatch: tuple[int, ...]
    lr_factor: tuple[float, ...]

    @classmethod
    def of(cls, stages: int, fade_kimg: Sequence[float], steady_kimg: Sequence[float], minibatch: Sequence[int],
           lr_factor: Sequence[float]) -> Growth:  # fmt: skip
        """The schedule of so many stages, from lists whose last value holds for all stages that follow.

        Args:
            stages: how many.
            fade_kimg: thousands of images.
            steady_kimg: thousands of images.
            minibatch: images.
            lr_factor: factors.

        Returns:
            The schedule.
        """
        fade, steady = ([round(1000 * kimg) for kimg in each(v, stages)] for v in (fade_kimg, steady_kimg))
        return cls((0, *fade[1:]), tuple(steady), tuple(each(minibatch, stages)), tuple(each(lr_factor, stages)))

    @property
    def last(self) -> Phase:
        """Full size, faded in."""
        return Phase(len(self.steady) - 1)

    @property
    def whole(self) -> int:
        """Images that it takes to get there."""
        return sum(self.fade) + sum(self.steady[:-1])

    def phase(self, seen: int) -> Phase:
        """Stage and fade after so many images (Karras et al. 2018, appendix A.1, with lengths of each stage's own).

        `alpha = (seen - start) / fade` from the start of a stage's fade on, then 1 for its steady time

        Args:
            seen: training images seen.

        Returns:
            The phase of the minibatch that comes next.
        """
        for stage, (fade, steady) in enumerate(zip(self.fade, self.steady, strict=True)):
            if seen < fade:
                return Phase(stage, seen / fade)
            if seen < fade + steady:
                return Phase(stage)
            seen -= fade + steady
        return self.last


def each(values: Sequence[T], stages: int) -> list[T]:
    """One value per stage; the last one given holds for all that follow.

    Args:
        values: of the resolutions 4, 8, 16, ...; at least one.
        stages: how many are wanted.

    Returns:
        As many values.
    """
    return [values[min(stage, len(values) - 1)] for stage in range(stages)]


def shares(items: int, minibatch: int, world: int, group: int) -> list[slice]:
    """How one process's items of a loader batch are shared out among updates, neighbours together.

    Args:
        items: of this process.
        minibatch: images of one update, over all processes.
        world: number of processes.
        group: updates have a multiple of it where that can be; the last one takes what is left.

    Returns:
        One slice per update, about as long as each other and never empty; at most `group` - 1 items longer than this
        process's share of the minibatch.
    """
    count = max(-(-items // max(minibatch // world, 1)), 1)
    bounds = sorted({0, *(items * i // count // group * group for i in range(1, count)), items})
    return [slice(a, b) for a, b in pairwise(bounds)]
