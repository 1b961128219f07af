"""Spaces in which images are optimised: what stands between a latent and its picture, of any generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.networks import vq

if TYPE_CHECKING:
    from typing import Self

    from mri_synth.models.base import SynthModule


class LatentSpace(nn.Module):
    """A frozen generator by its latents. A generator says the four methods; it never leaves evaluation mode.

    Args:
        channels: C of its images.
        size: side of the images that it was trained on, pixels.
        multiple: sides of images that it can make are multiples of this; None: `size` alone.

    Attributes:
        scale: standard deviation of its latents, in units of which learning rates are.
    """

    scale = 1.0

    def __init__(self, channels: int, size: int, multiple: int | None = None) -> None:
        super().__init__()
        self.channels, self.size, self.multiple = channels, size, multiple

    def start(self, seeds: Tensor, size: int) -> Tensor:
        """Latents of nothing in particular.

        Args:
            seeds: (n,) int64; one seed gives one latent, whatever else is in the batch.
            size: side of their images, as `allows`.

        Returns:
            (n, ...) float32, on the seeds' device.

        Raises:
            NotImplementedError: a generator must say it.
        """
        raise NotImplementedError

    def encode(self, image: Tensor) -> Tensor:
        """Latents of images.

        Args:
            image: (B, C, H, W) in [-1, 1], of a side that it allows.

        Returns:
            (B, ...) float32.

        Raises:
            UserError: it has no encoder.
        """
        raise UserError("has no encoder, so that no image can be its start; leave the initial image out")

    def decode(self, latent: Tensor) -> Tensor:
        """Images of latents, with gradients; straight through where latents are quantised.

        Args:
            latent: (B, ...).

        Returns:
            (B, C, H, W) float32 in [-1, 1].

        Raises:
            NotImplementedError: a generator must say it.
        """
        raise NotImplementedError

    def keep(self, latent: Tensor) -> Tensor:
        """Latents brought back to where the generator knows them; after every step.

        Args:
            latent: (B, ...).

        Returns:
            The same shape; by default what was given.
        """
        return latent

    def allows(self, size: int) -> bool:
        """Whether images of a side can be made."""
        return size == self.size if self.multiple is None else size > 0 and size % self.multiple == 0

    def train(self, mode: bool = True) -> Self:
        """It stays in evaluation mode, whatever the trainer does to what holds it."""
        return super().train(False)


class Codes(LatentSpace):
    """Latents of encoder, codebook and decoder: (B, D, h, w), which each decoding quantises anew.

    Args:
        parts: the three.
        channels: of images.
        size: of images, pixels.
        downsample: image side over code side.
    """

    def __init__(self, parts: vq.Parts, channels: int, size: int, downsample: int) -> None:
        super().__init__(channels, size, downsample)
        self.encoder, self.quantizer, self.decoder = parts.encoder, parts.quantizer, parts.decoder
        self.scale = float(self.quantizer.embedding.std())
        self.requires_grad_(False).eval()

    def start(self, seeds: Tensor, size: int) -> Tensor:
        """Codes drawn at random, all alike often (as Crowson 2021)."""
        side = size // (self.multiple or 1)
        codes = uniform(0, 0, seeds, side * side).mul(self.quantizer.codebook_size).long()
        return self.quantizer.lookup(codes.view(-1, side, side))

    def encode(self, image: Tensor) -> Tensor:
        """What the encoder says, before it is quantised."""
        z: Tensor = self.encoder(image)
        return z.float()

    def decode(self, latent: Tensor) -> Tensor:
        """Of the nearest codes; the gradient of a code's vector goes to the latent."""
        image: Tensor = self.decoder(self.quantizer(latent).z_q)
        return image.float().clamp(-1, 1)

    def keep(self, latent: Tensor) -> Tensor:
        """Within the codebook's range, dimension by dimension (as Crowson 2021): beyond it no code is nearer."""
        low, high = (e[:, None, None] for e in torch.aminmax(self.quantizer.embedding, dim=0))
        return latent.clamp(low, high)


class Vectors(LatentSpace):
    """Latent vectors of a method that has `latent` and `from_latent`.

    Args:
        model: the method.
    """

    def __init__(self, model: SynthModule) -> None:
        super().__init__(model.spec.channels, model.spec.size)
        self.model = model.requires_grad_(False).eval()

    def start(self, seeds: Tensor, size: int) -> Tensor:
        """Draws from the prior."""
        return self.model.latent(seeds).to(seeds.device)

    def decode(self, latent: Tensor) -> Tensor:
        """What the method makes of them, without labels."""
        return self.model.from_latent(latent).float()


class Encoded(Vectors):
    """The same of a method that also encodes images.

    Args:
        model: has `encode(image)` that gives mean and log variance, and `whitened(mean)`, of which `from_latent`
            decodes that mean.
    """

    def encode(self, image: Tensor) -> Tensor:
        """The posterior's mean."""
        z: Tensor = self.model.whitened(self.model.encode(image)[0])  # type: ignore[operator]
        return z.float()
