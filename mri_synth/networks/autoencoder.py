"""Convolutional encoder and decoder around a spatial latent; `vqvae` and `vqgan` share them.

After van den Oord et al. 2017 (arXiv:1711.00937), section 4.1: strided stages, then residual blocks at the latent's
resolution. What differs is there for speed. The first halving is a space-to-depth rearrangement, and every doubling a
depth-to-space one (Shi et al. 2016, arXiv:1609.05158), so that no convolution is transposed or runs at full resolution:
those are what is slow, above all in bf16 on a CPU. No normalisation unless asked for, as in the original: group norm
costs as much as a convolution there.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["none", "group"]


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    return nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels)


class ResBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), the block of van den Oord et al. 2017.

    Args:
        channels: of input and output.
        inner: channels between the two convolutions.
        norm: before each activation.
    """

    def __init__(self, channels: int, inner: int, norm: Norm = "none") -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(norm, channels),
            nn.ReLU(),
            nn.Conv2d(channels, inner, 3, padding=1),
            _norm(norm, inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class Encoder(nn.Module):
    """Images to a latent map `downsample` times smaller.

    Args:
        in_channels: of the image.
        hidden: channels at the latent's resolution; a quarter of it above, and inside the residual blocks.
        latent: D, channels of the latent map.
        downsample: factor between image and latent, a power of 2 of at least 2.
        n_res_blocks: residual blocks at the latent's resolution.
        norm: normalisation in the residual blocks.

    Raises:
        ValueError: downsample is no power of 2, or a count is too small.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        latent: int,
        downsample: int = 4,
        n_res_blocks: int = 2,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        widths = _widths(hidden, downsample, n_res_blocks)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, widths[0], 3, padding=1)]
        for above, below in pairwise(widths):
            layers += [nn.ReLU(), nn.Conv2d(above, below, 3, stride=2, padding=1)]
        layers += [ResBlock(hidden, hidden // 4, norm) for _ in range(n_res_blocks)]
        layers += [nn.ReLU(), nn.Conv2d(hidden, latent, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Latent (B, latent, H / downsample, W / downsample) float32 of images x (B, in_channels, H, W), H and W even.

        Every latent vector has a root mean square of 1: a codebook cannot follow vectors whose length runs away, which
        it does on images of whole heads, and it keeps few codes in use.
        """
        z = self.layers(x).float()
        out: Tensor = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-6)
        return out


class Decoder(nn.Module):
    """A latent map back to images, `downsample` times larger; the encoder's mirror image.

    Args:
        out_channels: of the image.
        hidden: channels at the latent's resolution; a quarter of it above, and inside the residual blocks.
        latent: D, channels of the latent map.
        downsample: factor between image and latent, a power of 2 of at least 2.
        n_res_blocks: residual blocks at the latent's resolution.
        norm: normalisation in the residual blocks.
        noise: build `noisy`, too.

    Raises:
        ValueError: downsample is no power of 2, or a count is too small.
    """

    def __init__(
        self,
        out_channels: int,
        hidden: int,
        latent: int,
        downsample: int = 4,
        n_res_blocks: int = 2,
        norm: Norm = "none",
        noise: bool = False,
    ) -> None:
        super().__init__()
        widths = _widths(hidden, downsample, n_res_blocks)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(latent, hidden, 3, padding=1)]
        layers += [ResBlock(hidden, hidden // 4, norm) for _ in range(n_res_blocks)]
        for below, above in pairwise(widths):
            layers += [nn.ReLU(), nn.Conv2d(below, 4 * above, 1), nn.PixelShuffle(2)]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 4 * out_channels, 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)
        self.noise = _NoiseHead(widths[-1], out_channels) if noise else None

    def noisy(self, z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Images as by `forward`, and the noise that they lack, which learns without touching them.

        Args:
            z: (B, latent, H, W).

        Returns:
            x_hat as by `forward`; logarithm of the noise's level (B, out_channels), depth of black
            (B, out_channels), and logarithm of its spread (out_channels,), as `losses.noise` has them.

        Raises:
            ValueError: built without.
        """
        if self.noise is None:
            raise ValueError("the decoder was built without noise")
        features = self.layers[:-2](z)
        x_hat = self.layers[-2:](features).float().tanh()
        return x_hat, self.noise(features.detach())

    def forward(self, z: Tensor) -> Tensor:
        """Images (B, out_channels, H * downsample, W * downsample) float32 in (-1, 1) of latents z (B, latent, H, W).

        The tanh is for the black around the head: SSIM punishes any glow there, and a saturated output does not
        flicker with every step as a linear one does. It learns SSIM in a fraction of the steps.
        """
        x_hat: Tensor = self.layers(z)
        return x_hat.float().tanh()


class _NoiseHead(nn.Module):
    """Level and depth of each image's noise in each channel, from the means of its features; and the depth's spread."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * channels)
        self.log_spread = nn.Parameter(torch.full((channels,), -2.3))  # first 0.1
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):  # in bf16 levels would come in steps of 1 %
            level, depth = self.linear(features.float().mean((2, 3))).chunk(2, 1)
        log_level = 3.5 * torch.tanh(level / 3.5 + 0.294) - 3.5  # (-7, 0), first -2.5
        return log_level, 2 + depth, self.log_spread


def _widths(hidden: int, downsample: int, n_res_blocks: int) -> list[int]:
    """Channels at every resolution from half the image's down to the latent's."""
    if downsample < 2 or downsample & (downsample - 1):
        raise ValueError(f"downsample must be a power of 2 of at least 2, got {downsample}")
    if hidden < 4 or n_res_blocks < 0:
        raise ValueError(f"hidden must be at least 4 and n_res_blocks not negative, got {hidden} and {n_res_blocks}")
    levels = downsample.bit_length() - 1
    return [hidden // 4] * (levels - 1) + [hidden]
