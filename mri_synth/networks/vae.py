"""Encoder and decoder of a VAE: convolutions between an image and one row of latent numbers per image.

Three architectures around one budget of latent numbers. `plain`: strided convolutions and a dense layer. `residual`:
the same with residual blocks (van den Oord et al. 2017) at every resolution. `spatial`: those blocks, but the latent
stays a map (c, h, w), as in the autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), without its
attention, and without its group norm unless asked for. Rearrangements replace convolutions at full resolution, as in
`networks/autoencoder.py`, for speed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from mri_synth.networks.autoencoder import Norm, ResBlock

Architecture = Literal["plain", "residual", "spatial"]
_BEYOND = 1.25
_FIRST = 0.2
"""Size of what z does to the decoder's constant before training, over that of the constant itself."""


def latent_channels(latent_dim: int, size: int, downsample: int) -> int:
    """Channels of a spatial latent of so many numbers.

    Args:
        latent_dim: c * h * w.
        size: image side, pixels.
        downsample: image side over h and w.

    Returns:
        c.

    Raises:
        ValueError: latent_dim is no multiple of h * w.
    """
    places = (size // downsample) ** 2
    if latent_dim % places:
        raise ValueError(f"latent_dim={latent_dim} is no multiple of the {places} places of the latent map")
    return latent_dim // places


class VAEEncoder(nn.Module):
    """Images to mean and log variance of their latent numbers.

    Args:
        architecture: plain, residual or spatial.
        in_channels: of the image.
        size: image side, pixels; a multiple of `downsample`.
        hidden: channels at the lowest resolution; half as many one level up, never fewer than a quarter.
        latent_dim: latent numbers per image.
        downsample: image side over that of the last feature map, a power of 2 of at least 2.
        res_blocks: residual blocks at every resolution; none in `plain`.
        norm: normalisation in the residual blocks.
    """

    def __init__(self, architecture: Architecture, in_channels: int, size: int, hidden: int, latent_dim: int,
                 downsample: int, res_blocks: int, norm: Norm) -> None:  # fmt: skip
        super().__init__()
        widths = _widths(hidden, downsample)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, widths[0], 3, padding=1)]
        for above, below in pairwise(widths):
            layers += [nn.ReLU(), nn.Conv2d(above, below, 3, stride=2, padding=1)]
            layers += _blocks(architecture, below, res_blocks, norm)
        layers += [nn.ReLU()]
        if architecture == "spatial":
            layers += [nn.Conv2d(hidden, 2 * latent_channels(latent_dim, size, downsample), 1), nn.Flatten()]
        else:
            layers += [nn.Flatten(), nn.Linear(hidden * (size // downsample) ** 2, 2 * latent_dim)]
        self.layers = nn.Sequential(*layers)
        _start(self, 0.1)  # every posterior near the prior: numbers that are drawn on by and by stay within it

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (B, latent_dim) float32 each, of images (B, in_channels, size, size).

        The log variance is kept within [-12, 8], so that no exponential of it overflows.
        """
        mu, logvar = self.layers(x).float().chunk(2, dim=1)
        return mu, logvar.clamp(-12, 8)


class VAEDecoder(nn.Module):
    """Latent numbers back to images; the encoder's mirror image.

    The latent numbers change a learned constant map (as the one of Karras et al. 2019, arXiv:1812.04948, from which an
    image is grown), so that what all images share is no latent number's business and every z decodes to something like
    the mean image from the first steps on. It also tells the convolutions of `spatial` where they are.

    Args:
        architecture: plain, residual or spatial.
        out_channels: of the image.
        size: image side, pixels; a multiple of `downsample`.
        hidden: channels at the lowest resolution.
        latent_dim: latent numbers per image.
        downsample: image side over that of the first feature map, a power of 2 of at least 2.
        res_blocks: residual blocks at every resolution; none in `plain`.
        norm: normalisation in the residual blocks.
    """

    def __init__(self, architecture: Architecture, out_channels: int, size: int, hidden: int, latent_dim: int,
                 downsample: int, res_blocks: int, norm: Norm) -> None:  # fmt: skip
        super().__init__()
        widths, side = _widths(hidden, downsample)[::-1], size // downsample
        first: list[nn.Module]
        if architecture == "spatial":
            channels = latent_channels(latent_dim, size, downsample)
            first = [nn.Unflatten(1, (channels, side, side)), nn.Conv2d(channels, hidden, 3, padding=1, bias=False)]
        else:
            first = [nn.Linear(latent_dim, hidden * side**2, bias=False), nn.Unflatten(1, (hidden, side, side))]
        layers: list[nn.Module] = []
        for below, above in pairwise(widths):
            layers += _blocks(architecture, below, res_blocks, norm)
            layers += [nn.ReLU(), nn.Conv2d(below, 4 * above, 1), nn.PixelShuffle(2)]
            layers += [nn.ReLU(), nn.Conv2d(above, above, 3, padding=1)]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 4 * out_channels, 3, padding=1), nn.PixelShuffle(2)]
        self.first, self.layers = nn.Sequential(*first), nn.Sequential(*layers)
        _start(self, 0.1)
        with torch.no_grad():
            for module in self.first:
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.mul_(_FIRST)
        self.constant = nn.Parameter(torch.randn(hidden, side, side))

    def forward(self, z: Tensor) -> Tensor:
        """Images (B, out_channels, size, size) float32 in (-1.25, 1.25) of latent numbers (B, latent_dim).

        A little beyond [-1, 1]: for black pixels, most of every image, the likelihood's location lies below -1, where
        nearly all its probability falls on the first level. Not further, or every edge would be a leap from far below.
        """
        x_hat: Tensor = self.layers(self.constant + self.first(z))
        return _BEYOND * x_hat.float().tanh()


def _widths(hidden: int, downsample: int) -> list[int]:
    """Channels at every resolution from half the image's down to the lowest."""
    if downsample < 2 or downsample & (downsample - 1):
        raise ValueError(f"downsample must be a power of 2 of at least 2, got {downsample}")
    if hidden < 4 or hidden % 4:
        raise ValueError(f"hidden must be a multiple of 4, got {hidden}")
    levels = downsample.bit_length() - 1
    return [max(hidden >> (levels - 1 - level), hidden // 4) for level in range(levels)]


def _blocks(architecture: Architecture, channels: int, count: int, norm: Norm) -> list[nn.Module]:
    return [] if architecture == "plain" else [ResBlock(channels, channels // 2, norm) for _ in range(count)]


def _start(network: nn.Module, last: float) -> None:
    """Weights of He et al. 2015 (arXiv:1502.01852): without norms, torch's own let the signal fade layer by layer.

    The last layer of every residual block starts small (Zhang et al. 2019, arXiv:1901.09321); `last` is the factor on
    the network's own.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    factors = {id(m.body[-1]): 0.1 for m in network.modules() if isinstance(m, ResBlock)} | {id(layers[-1]): last}
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            layer.weight.mul_(factors.get(id(layer), 1.0))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
