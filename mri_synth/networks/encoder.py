"""A small residual network that turns an image into one vector, and on the way into maps for perceptual losses.

After He et al. 2016 (arXiv:1512.03385), made for speed on a CPU in bf16: the first halving is a space-to-depth
rearrangement, every other one a strided convolution. There is no normalisation inside (batch norm would let the other
images of a batch, and the number of processes, change a feature); the residual branches start at zero instead, so that
the signal keeps its size (Zhang et al. 2019, arXiv:1901.09321).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECAY = 0.95
"""Of the moving mean and variance of the features."""
EPSILON = 1e-4
"""Least variance of a feature that is scaled up to 1."""


class Block(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))); the identity before training.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        out: Tensor = x + self.mix(F.relu(self.spatial(F.relu(x))))
        return out


class FeatureNetwork(nn.Module):
    """Five stages, each of half the resolution of the one before; the mean of the last is the feature vector.

    Args:
        in_channels: of the image.
        width: channels at half the image's resolution; doubled at each of the next three.
        dim: D, channels of the last stage and length of the vector.

    Attributes:
        mean: (D,) moving mean of the pooled activations over training images.
        variance: (D,) their moving variance.
        seen: batches that mean and variance have followed.

    Raises:
        ValueError: a count is too small.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, in_channels: int, width: int = 24, dim: int = 256) -> None:
        super().__init__()
        if min(in_channels, width) < 1 or dim < 2:
            raise ValueError(f"in_channels and width must be at least 1, dim 2; got {in_channels}, {width}, {dim}")
        widths = [4 * in_channels, width, 2 * width, 4 * width, 8 * width, dim]
        self.halvings = nn.ModuleList(
            nn.Conv2d(above, below, 3, stride=1 if k == 0 else 2, padding=1)
            for k, (above, below) in enumerate(pairwise(widths))
        )
        # none at half the image's resolution, where it would cost as much as all others together
        self.blocks = nn.ModuleList(Block(channels) if k else nn.Identity() for k, channels in enumerate(widths[1:]))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("seen", torch.zeros(()))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for block in self.blocks:
            if isinstance(block, Block):
                nn.init.zeros_(block.mix.weight)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The output of every stage.

        Args:
            image: (B, C, H, W) in [-1, 1]; an odd side is padded with black.

        Returns:
            Five maps (B, width * 2^k, H / 2^(k+1), W / 2^(k+1)), sides rounded up, the last one with `dim` channels;
            before their activation, in the precision of the computation.
        """
        height, width = image.shape[2:]
        x = F.pixel_unshuffle(F.pad(image + 1, (0, width % 2, 0, height % 2)), 2)  # black is 0, as is all padding
        out = []
        for k, (halve, block) in enumerate(zip(self.halvings, self.blocks, strict=True)):
            x = block(halve(F.relu(x) if k else x))
            out.append(x)
        return out

    def pooled(self, image: Tensor) -> Tensor:
        """(B, D) float32, the mean of the last stage's activations over the image, of variance 1 over D."""
        pooled = F.relu(self.maps(image)[-1]).float().mean(dim=(2, 3))
        with torch.autocast(image.device.type, enabled=False):
            return F.layer_norm(pooled, pooled.shape[1:])

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D) float32 of images (B, C, H, W) in [-1, 1].

        Every one of the D numbers has about mean 0 and variance 1 over the training images: what all of them have in
        common is taken out. So x.y / D has the range that the cubic kernel of KID (Binkowski 2018) is made for.
        """
        out: Tensor = (self.pooled(image) - self.mean) * torch.rsqrt(self.variance + EPSILON)
        return out

    @torch.no_grad()
    def follow(self, pooled: Tensor) -> None:
        """Let mean and variance of the features follow a training batch: their plain mean at first, then a moving one.

        Args:
            pooled: (B, D) of all views of the batch, of all processes.
        """
        self.seen += 1
        weight = torch.clamp(1 / self.seen, min=1 - DECAY)
        variance, mean = torch.var_mean(pooled.detach(), 0)
        self.mean.lerp_(mean, weight)
        self.variance.lerp_(variance, weight)
