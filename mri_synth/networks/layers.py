"""What generators that translate images are made of: norms, dropout by given numbers, the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, instance_norm

Norm = Literal["instance", "batch", "none"]
SLOPE = 0.2
"""Of the leaky ReLUs (Isola et al. 2017, appendix 6.1)."""


class InstanceNorm(nn.Module):
    """Mean 0 and variance 1 of each channel of each image, then a factor and an offset of the channel.

    `y = gamma (x - mean(x)) / sqrt(var(x) + 1e-5) + beta`, over the pixels (Ulyanov et al. 2016, arXiv:1607.08022)

    Args:
        channels: of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same, in the memory layout it came in; one pixel has no variance, H W > 1.

        torch's instance norm wants NCHW. On CPUs a copy there and back, forwards and backwards, costs more than the
        convolution before it, and its group norm of one channel each is slower still; so images in channels_last go one
        by one through batch norm, which of one image is the same.
        """
        if _one_by_one(x):
            return torch.cat([batch_norm(image, None, None, self.weight, self.bias, True) for image in x.split(1)])
        y = instance_norm(x.contiguous(), weight=self.weight, bias=self.bias)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return y.contiguous(memory_format=torch.channels_last) if channels_last else y


def _one_by_one(x: Tensor) -> bool:
    """Whether the faster way serves: never in a graph, which would then be of one batch size."""
    eager = not torch.compiler.is_compiling()
    return eager and x.device.type == "cpu" and len(x) > 0 and x.is_contiguous(memory_format=torch.channels_last)


def normed(convolution: nn.Module, norm: Norm, channels: int, side: int, activation: nn.Module) -> nn.Sequential:
    """A convolution, its norm, and its activation.

    Args:
        convolution: has a bias where `biased` says so.
        norm: of its output.
        channels: of its output.
        side: of its output, pixels; at 1 there is no norm, as instance norm would leave only zeros.
        activation: after the norm.

    Returns:
        The layers in order.
    """
    layers = [convolution]
    if not biased(norm, side):
        layers.append(InstanceNorm(channels) if norm == "instance" else nn.BatchNorm2d(channels))
    return nn.Sequential(*layers, activation)


def biased(norm: Norm, side: int) -> bool:
    """Whether a convolution has a bias: where no norm follows, which would take it off again and has its own.

    Args:
        norm: asked for.
        side: of the convolution's output, pixels.

    Returns:
        True where there is no norm.
    """
    return norm == "none" or side == 1


class ChannelDropout(nn.Module):
    """Whole channels of an image are dropped in training (Tompson et al. 2015, arXiv:1411.4280), by given numbers.

    So an image loses the same channels whatever batch or process it is in; at the small maps where generators have
    dropout, neighbouring pixels say the same.

    Args:
        channels: of the images.
        rate: share that is dropped; 0: none.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.rate, self.draws = rate, channels if rate else 0

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """x with channels that are 0 and the others enlarged by 1 / (1 - rate); in evaluation x.

        Args:
            x: (B, channels, H, W).
            noise: (B, channels) uniform in [0, 1); None: drawn here from the global generator.

        Returns:
            (B, channels, H, W).
        """
        if not self.training or not self.rate:
            return x
        drawn = torch.rand(x.shape[:2], device=x.device) if noise is None else noise
        return x * ((drawn >= self.rate).to(x.dtype) / (1 - self.rate))[:, :, None, None]


class Head(nn.Module):
    """The last layer, in fp32 whatever the precision of the others: bf16 has 8 bits, and the images more.

    Args:
        convolution: to the channels of the image.
    """

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, onto: Tensor | float = 0.0) -> Tensor:
        """Images float32 in [-1, 1]; what is `onto` is added before the tanh."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.tanh(self.convolution(x.float()) + onto)


class Translator(nn.Module):
    """What generators have in common: dropout by the numbers of one tensor, and how their weights start.

    Attributes:
        draws: uniform numbers that one image's dropout takes in training; 0 without dropout.
    """

    def start(self, norm: Norm) -> None:
        """Weights as published, N(0, 0.02), which needs norms; without them such that the variance stays (He 2015).

        To be called at the end of a constructor.

        Args:
            norm: of the network.
        """
        self._counts = [m.draws for m in self.modules() if isinstance(m, ChannelDropout)]
        self.draws = sum(self._counts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                if norm == "none":
                    nn.init.kaiming_normal_(module.weight, a=SLOPE)
                else:
                    nn.init.normal_(module.weight, 0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def split(self, noise: Tensor | None) -> Sequence[Tensor | None]:
        """The numbers of each dropout, from those of all.

        Args:
            noise: (B, draws).

        Returns:
            (B, channels) of each, in the order in which they stand; None for each of None.
        """
        return [None] * len(self._counts) if noise is None else noise.split(self._counts, 1)
