"""Which items make which batch: a pure function of seed, epoch, rank and batch number, so that a run can resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[int]]):
    """Batches of one rank. A global batch has `batch_size * world` items, of which rank r takes every world-th.

    Lightning calls `set_epoch` on `batch_sampler.sampler`, hence the attribute `sampler`.
    """

    def __init__(self, items: int, batch_size: int, *, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
                 rank: int = 0, world: int = 1) -> None:  # fmt: skip
        """Batches over `items` items.

        Args:
            items: how many there are.
            batch_size: per rank.
            seed: of the order.
            shuffle: a new order every epoch, else in order.
            drop_last: leave out an incomplete last batch, unless it is the only one.
            rank: of this process.
            world: number of processes.
        """
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.shuffle, self.rank, self.world = shuffle, rank, world
        self.drop_last = drop_last and items >= batch_size * world
        self.epoch = 0
        self.resume_at = (0, 0)
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole = self.batch_size * self.world
        return self.items // whole if self.drop_last else -(-self.items // whole)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch, 2])
        order = rng.permutation(self.items) if self.shuffle else np.arange(self.items)
        whole = self.batch_size * self.world
        start = self.resume_at[1] if self.epoch == self.resume_at[0] else 0
        for batch in range(start, len(self)):
            yield order[batch * whole : (batch + 1) * whole][self.rank :: self.world].tolist()
