"""Which items make which batch: a pure function of seed, epoch, rank and batch number, so that a run can resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from mri_synth.errors import UserError


class EpochBatches(Sampler[list[int]]):
    """Batches of one rank. A global batch has `batch_size * world` items, of which rank r takes every world-th.

    No rank ever gets an empty batch: a last global batch of fewer than `world` items joins the one before.

    Lightning calls `set_epoch` on `batch_sampler.sampler`, hence the attribute `sampler`.
    """

    def __init__(self, items: int, batch_size: int, *, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
                 rank: int = 0, world: int = 1, tell_epoch: bool = False, rounds: int = 1) -> None:  # fmt: skip
        """Batches over `items` items.

        Args:
            items: how many there are.
            batch_size: per rank.
            seed: of the order.
            shuffle: a new order every epoch, else in order.
            drop_last: leave out an incomplete last batch; when it is the only one, only what would make the ranks'
                shares uneven.
            rank: of this process.
            world: number of processes.
            tell_epoch: give epoch * items + item in place of the item, to views that draw anew every epoch.
            rounds: times that an epoch goes through the items, in the same order.

        Raises:
            UserError: there are fewer items than processes.
        """
        if items < world:
            raise UserError(f"a split of {items} for {world} processes: each needs one item at least; use "
                            f"trainer.devices={max(items, 1)} or change data.split")  # fmt: skip
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.shuffle, self.rank, self.world, self.tell_epoch = shuffle, rank, world, tell_epoch
        whole = batch_size * world
        self.drop_last = drop_last and items >= whole
        if drop_last:
            items -= items % (whole if self.drop_last else world)
        joined = items > whole and 0 < items % whole < world
        self._ends, self.rounds = [*range(whole, items, whole), items], rounds
        if joined:
            del self._ends[-2]
        self.epoch = 0
        self.resume_at = (0, 0)
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._ends) * self.rounds

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch, 2])
        order = rng.permutation(self.items) if self.shuffle else np.arange(self.items)
        order = order + self.epoch * self.items if self.tell_epoch else order
        bounds = list(zip([0, *self._ends], self._ends, strict=False)) * self.rounds
        for first, end in bounds[self.resume_at[1] if self.epoch == self.resume_at[0] else 0 :]:
            yield order[first:end][self.rank :: self.world].tolist()
