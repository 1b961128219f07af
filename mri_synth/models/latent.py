"""What GANs share whose images begin as a latent vector: samples of seeds, labels that were not asked for, sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mri_synth.draws import normal
from mri_synth.errors import UserError
from mri_synth.models.gan import GANModule
from mri_synth.networks.conditional import some_label

_LABELS = 1 << 39
"""Seed of the number that chooses a label, away from that of the latents."""


class FromLatent(GANModule):
    """Samples of a GAN by way of their latent vectors. A method names it beside `GANModule`, and says `images`.

    A vector holds the standard normal numbers of the generator and, of conditional methods, one more: it chooses the
    class where none is asked for. So an image is a function of its vector, whatever was asked for.

    Attributes:
        draws: standard normal numbers that the generator makes an image of.
    """

    draws: int

    def images(self, network: Any, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """What a generator makes of latent numbers, at the image's full size.

        Args:
            network: the generator, or its average.
            z: (n, draws).
            label: (n,) int64, -1 where unknown; None for unconditional methods.
            truncation: as in `sample`.

        Returns:
            (n, C, H, W) float32.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    @staticmethod
    def refuses(size: int) -> str:  # type: ignore[override]
        """Why images of a size cannot be made by doublings."""
        if size >= 8 and size & (size - 1) == 0:
            return ""
        near = min((2**n for n in range(3, 12)), key=lambda s: abs(s - size))
        return f"doubles from 4 pixels on, and data.size={size} is no power of 2 from 8 on; try data.size={near}"

    def sample(self, seeds: Tensor, label: Tensor | None = None, *, truncation: float = 1.0) -> Tensor:
        """Images of draws from the prior, by the averaged generator.

        Args:
            seeds: (n,) int64; one seed gives one image.
            label: (n,) int64, index into `conditions()`; -1 or None: any, each class as often as the others.
            truncation: of `mri_synth.networks.conditional.truncated`; below 1 images are more alike and nearer the
                typical one of their label. A noise of pixels is left as it is.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: labels for a model without conditions.
        """
        return self.from_latent(self.latent(seeds), label, truncation=truncation)

    def latent(self, seeds: Tensor) -> Tensor:
        """The vectors (n, draws) of seeds, (n, draws + 1) of conditional methods."""
        seeds = seeds.to(self.device)
        z = normal(0, 0, seeds, self.draws)
        return torch.cat([z, normal(_LABELS, 0, seeds, 1)], 1) if self.conditions() else z

    def from_latent(self, z: Tensor, label: Tensor | None = None, *, truncation: float = 1.0) -> Tensor:
        """Images of such vectors; label, truncation and errors as in `sample`."""
        return self.images(self.averaged(), *self.opened(z, label), truncation).clamp(-1, 1)

    def opened(self, z: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What a generator is given for latent vectors: (n, draws) numbers, and (n,) labels of conditional methods."""
        classes = len(self.conditions())
        if label is not None and not classes:
            raise UserError(f"this {type(self).__name__} was trained without labels (model.condition=none): ask for "
                            "none")  # fmt: skip
        if classes:
            label = some_label(None if label is None else label.to(z.device), z[:, self.draws], classes)
        return z[:, : self.draws], label
