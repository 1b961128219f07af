"""A pool of generated images, so that a discriminator also sees what generators made before (Shrivastava et al. 2017).

"Learning from Simulated and Unsupervised Images through Adversarial Training" (arXiv:1612.07828), section 2.3; with
the rule of Zhu et al. 2017 (arXiv:1703.10593), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mri_synth.draws import uniform


class ReplayPool(nn.Module):
    """The first `size` images fill it and come out as they are; of each later one, with probability 1/2, an older one
    comes out in its place, and it is kept.

    Its state is in buffers, and all draws are by (seed, step, item): a resumed run goes on to the bit, and several
    processes have one pool of all their images, the same that one process with all the images has. Images of one batch
    go to different places, at most `size` of them: of a batch, over all processes, larger than the pool the rest comes
    out as it is. With accumulation the parts of a step are exchanged one after the other. No step waits for the device.

    Args:
        size: images kept; 0: what goes in comes out.
        channels: of the images.
        side: of the images, pixels.

    Attributes:
        images: (size, channels, side, side) float32.
        filled: int64, how many of them are there.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, size: int, channels: int, side: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, channels, side, side))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, fakes: Tensor, seed: int, step: int, items: Tensor) -> Tensor:
        """What the discriminator is to see in place of new images; to be called by all processes.

        Args:
            fakes: (B, C, H, W) new ones; as many in every process.
            seed: of the run.
            step: of the training.
            items: (B,) int64, numbers of the images, no two alike in all processes.

        Returns:
            (B, C, H, W) float32, of the same device.
        """
        size = len(self.images)
        if not size:
            return fakes
        everyone, numbers = gathered(fakes.float()), gathered(items)
        order = torch.argsort(numbers)  # the same whoever made which
        shown = torch.empty_like(everyone)
        shown[order] = self._exchange(everyone[order], *self._draws(seed, step, numbers[order]))
        here = 0 if len(everyone) == len(fakes) else torch.distributed.get_rank() * len(fakes)
        return shown[here : here + len(fakes)]

    def _draws(self, seed: int, step: int, items: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image is exchanged, (B,) bool, and places in random order, (size,)."""
        coins = uniform(seed, step, items, 1)[:, 0] < 0.5
        return coins, uniform(seed, step, items[:1], len(self.images) + 1)[0, 1:].argsort()

    def _exchange(self, fakes: Tensor, coins: Tensor, places: Tensor) -> Tensor:
        size, out = len(self.images), fakes.clone()
        new, number = fakes[:size], torch.arange(min(size, len(fakes)), device=fakes.device)
        full = self.filled >= size
        fills = self.filled + number < size
        swaps = full & coins[:size]
        place = torch.where(full, places[: len(new)], (self.filled + number) % size)  # all different
        old = self.images[place]
        out[:size] = torch.where(swaps[:, None, None, None], old, new)
        self.images[place] = torch.where((fills | swaps)[:, None, None, None], new, old)
        self.filled.copy_((self.filled + len(new)).clamp(max=size))
        return out


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes.

    Args:
        x: (B, ...) of this process; as many in every other.

    Returns:
        (processes * B, ...) in the order of their ranks; x itself without others.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
