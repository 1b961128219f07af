"""Generator and discriminator of DCGAN (Radford et al. 2016, arXiv:1511.06434), for 32 to 256 pixels.

What differs is there for speed, as in `autoencoder.py`: the generator's last doubling is a depth-to-space
rearrangement and the discriminator's first halving a space-to-depth one, so that no convolution runs at full
resolution; and the other doublings are nearest neighbours and a convolution, not a transposed one, which is slow in
bf16 on a CPU and draws checkerboards (Odena et al. 2016, doi:10.23915/distill.00003).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from torch.nn.utils.parametrizations import spectral_norm

from mri_synth.networks.conditional import LatentWithLabel, ProjectionHead, truncated

Norm = Literal["batch", "group", "none"]
_NOISE, _DEPTH = 0.08, 1.3
"""At the start: standard deviation of the pixel noise, of a range of 2, and how many of them air lies below black."""


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return (
        nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels) if norm == "group" else nn.Identity()
    )


def widths(size: int, channels: int, most: int) -> list[int]:
    """Channels at each resolution from size / 2 down to 4: twice as many at each halving.

    Args:
        size: image side, a power of 2 of at least 8.
        channels: at size / 2.
        most: no more than these.

    Returns:
        One number per resolution, the highest resolution first.

    Raises:
        ValueError: size is no power of 2 or too small.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(f"size must be a power of 2 of at least 8, got {size}")
    return [min(channels * 2**k, most) for k in range(size.bit_length() - 3)]


class Generator(nn.Module):
    """Latent numbers to images: dense to 4 x 4, then doublings with a convolution, norm and activation each.

    Args:
        out_channels: of the image.
        size: image side, a power of 2.
        latent_dim: length of z.
        channels: at half the image's resolution.
        most: channels at most, anywhere.
        norm: after each convolution but the last.
        classes: that an image can be asked for; 0: none.
        pixel_noise: a number per pixel beside z, for a `Scanner` after the tanh: the noise of scans has no structure,
            and no convolution of z can make it.
        leak: slope of the activations below 0; 0 is ReLU.

    Attributes:
        draws: standard normal numbers that an image is made of.
    """

    def __init__(
        self, out_channels: int, size: int, latent_dim: int, channels: int, most: int, norm: Norm = "batch",
        classes: int = 0, pixel_noise: bool = False, leak: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = widths(size, channels, most)[::-1]
        self.latent_dim = latent_dim
        self.draws = latent_dim + (out_channels * size**2 if pixel_noise else 0)
        self.latent = LatentWithLabel(latent_dim, classes)
        self.dense = nn.Linear(self.latent.features, wide[0] * 16)
        layers: list[nn.Module] = [_norm(norm, wide[0]), nn.LeakyReLU(leak)]
        for low, high in pairwise(wide):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(low, high, 3, padding=1, bias=norm == "none")]
            layers += [_norm(norm, high), nn.LeakyReLU(leak)]
        self.layers = nn.Sequential(*layers)
        self.image = nn.Conv2d(wide[-1], 4 * out_channels, 3, padding=1)
        self.scanner = Scanner(out_channels) if pixel_noise else None
        _initialise(self)
        with torch.no_grad():  # each pixel starts as its three neighbours do: no checkerboard (Aitken et al. 2017)
            self.image.weight.copy_(self.image.weight[::4].repeat_interleave(4, 0))

    def begin(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The first features (B, C, 4, 4) of latents (B, latent_dim)."""
        x = self.dense(self.latent(z, label)).view(len(z), 4, 4, -1).permute(0, 3, 1, 2)  # channels_last as it is
        first: Tensor = self.layers[:2](x)
        return first

    def forward(self, z: Tensor, label: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Images (B, out_channels, size, size) float32 in [-1, 1] of z (B, draws) and labels (B,), -1 where unknown."""
        x = self.begin(z[:, : self.latent_dim], label)
        x = self.layers[2:](truncated(x, self.begin, self.latent_dim, label, truncation))
        x = pixel_shuffle(self.image(x), 2).float().tanh()
        return x if self.scanner is None else self.scanner(x, z[:, self.latent_dim :].view(x.shape))


class Scanner(nn.Module):
    """The noise of a scanner on clean images, seen in a window.

    `x = min(max((1 + k s) t + s e, -1), 1)`, t the image, e standard normal, s the noise's deviation

    The darkest places lie k deviations below black: of their noise only the peaks are seen, as of the air in scans. A
    tanh alone lets noise fade out there, and a cut alone lets pixels end so far below black that no gradient finds them
    again. s and k get no gradient through images: they learn by `grain_loss` and `black_loss`.

    Args:
        channels: C of the images.

    Attributes:
        log_level: (C,) log s.
        depth: (C,) k is 4 sigmoid(depth).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_level = nn.Parameter(torch.full((channels,), math.log(_NOISE)))
        self.depth = nn.Parameter(torch.full((channels,), math.log(_DEPTH / (4 - _DEPTH))))

    @property
    def level(self) -> Tensor:
        """(C,) s, without gradient."""
        return self.log_level.detach().exp()

    @property
    def deviations(self) -> Tensor:
        """(C,) k in (0, 4), without gradient."""
        return 4 * self.depth.detach().sigmoid()

    def forward(self, t: Tensor, e: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of t in (-1, 1) and e, both of that shape."""
        s, k = (v[:, None, None] for v in (self.level, self.deviations))
        return ((1 + k * s) * t + s * e).clamp(-1, 1)


class Discriminator(nn.Module):
    """Images to one logit: space-to-depth, then strided convolutions with norm and LeakyReLU down to 4 x 4.

    Args:
        in_channels: of the image.
        size: image side, a power of 2.
        channels: at half the image's resolution.
        most: channels at most, anywhere.
        norm: after each strided convolution.
        spectral: spectral norm of every layer (Miyato et al. 2018, arXiv:1802.05957).
        classes: of the projection (Miyato & Koyama 2018, arXiv:1802.05637); 0: none.
    """

    def __init__(
        self, in_channels: int, size: int, channels: int, most: int, norm: Norm = "none", spectral: bool = False,
        classes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = widths(size, channels, most)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, wide[0], 3, padding=1)]
        for high, low in pairwise(wide):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(high, low, 4, stride=2, padding=1, bias=norm == "none")]
            layers += [_norm(norm, low)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2))
        self.head = ProjectionHead(wide[-1] * 16, classes)
        _initialise(self)
        if spectral:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    spectral_norm(module)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits (B,) float32 of images x (B, in_channels, size, size) and labels (B,), -1 where unknown."""
        out: Tensor = self.head(self.layers(x).flatten(1), label)
        return out


def _initialise(network: nn.Module) -> None:
    """Normal weights of deviation 0.02, as in section 4 of the paper."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
