"""What prompt sets ask for, step by step, as tables that a batch of jobs is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mri_synth.prompts import Prompt, Stage

_NEVER = 1 << 40


@dataclass(frozen=True)
class Targets:
    """Embedded prompts of all sets.

    Attributes:
        embedded: (P, S, K, D) of K prompts in S stages of P sets.
        weights: (P, S, K), 0 where there are fewer.
        begins: (P, S) steps at which the stages begin.
    """

    embedded: Tensor
    weights: Tensor
    begins: Tensor

    @classmethod
    def of(cls, sets: Sequence[Sequence[Stage]], embed: Callable[[Prompt], Tensor]) -> Targets:
        """The targets of prompt sets.

        Args:
            sets: the stages of each.
            embed: (D,) of a prompt; asked once for each that is different.

        Returns:
            Theirs, on the CPU.
        """
        every = {p: embed(p).cpu() for stages in sets for stage in stages for p in stage.prompts}
        most = max(map(len, sets)), max(len(s.prompts) for stages in sets for s in stages)
        embedded = torch.zeros(len(sets), *most, len(next(iter(every.values()))))
        weights, begins = torch.zeros(len(sets), *most), torch.full((len(sets), most[0]), _NEVER)
        for i, stages in enumerate(sets):
            for j, stage in enumerate(stages):
                begins[i, j] = stage.start
                for k, p in enumerate(stage.prompts):
                    embedded[i, j, k], weights[i, j, k] = every[p], p.weight
        return cls(embedded, weights, begins)

    def to(self, device: Any) -> Targets:
        """The same on a device."""
        return Targets(self.embedded.to(device), self.weights.to(device), self.begins.to(device))

    def now(self, numbers: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """What jobs are asked for.

        Args:
            numbers: (B,) of their prompt sets.
            taken: (B,) steps that each has gone.

        Returns:
            Embeddings (B, K, D) and weights (B, K) of the stage that each is in.
        """
        stage = (self.begins[numbers] <= taken[:, None]).sum(1) - 1
        return self.embedded[numbers, stage], self.weights[numbers, stage]
