"""A discriminator of patches: a map of verdicts, each on what one neuron sees.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks" (arXiv:1611.07004), section 3.2.2
and appendix 6.1.2; `vqgan` takes it as Esser et al. 2021 (arXiv:2012.09841) do.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mri_synth.networks.layers import InstanceNorm

Norm = Literal["none", "group", "instance"]
SLOPE = 0.2
"""Of the leaky ReLUs."""


class PatchDiscriminator(nn.Module):
    """Convolutions 4x4: `n_layers` of stride 2, two of stride 1; C64-C128-C256-C512 and a verdict for n_layers=3.

    No batch norm, which the paper has: its statistics are those of the images of one process and of one forward pass,
    so that two processes would not be one with twice the batch, and real images, fakes and a penalty's images, passed
    apart or together, would be judged differently. Group and instance norm look at one image alone; the default is
    none, with which a neuron sees its patch and nothing else.

    Args:
        in_channels: of the images; of a conditional discriminator, those of source and target together.
        width: channels of the first layer, doubled with each of the next, up to 8 times.
        n_layers: of stride 2. A neuron sees 70 x 70 pixels with 3, 34 x 34 with 2, 16 x 16 with 1.
        norm: of all layers but the first and the last; "group" has groups of 16 channels, "instance" of 1.

    Attributes:
        field: side of the patch that a neuron sees, pixels.

    Raises:
        ValueError: a count is too small.
    """

    def __init__(self, in_channels: int, width: int = 64, n_layers: int = 3, norm: Norm = "none") -> None:
        super().__init__()
        if min(in_channels, width, n_layers) < 1:
            raise ValueError(
                f"in_channels, width and n_layers must be at least 1, got {in_channels}, {width} and {n_layers}"
            )
        self.n_layers, self.field = n_layers, receptive_field(n_layers)
        layers: list[nn.Module] = []
        channels = in_channels
        for k in range(n_layers + 1):
            out = width * min(2**k, 8)
            bias = k == 0 or norm != "instance"  # which would take it off: Adam would make steps of rounding errors
            layers.append(nn.Conv2d(channels, out, 4, 2 if k < n_layers else 1, padding=1, bias=bias))
            if k and norm != "none":
                layers.append(_norm(norm, out))
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
            channels = out
        # no bias: within a hinge's margins its gradient is zero, and Adam would make steps of the rounding errors
        layers.append(nn.Conv2d(channels, 1, 4, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # without a norm the paper's N(0, 0.02) lets the signal fade
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)  # type: ignore[operator] # verdicts start undecided, inside the hinge

    def forward(self, x: Tensor) -> Tensor:
        """Verdicts (B, 1, h, w) float32, logits, of images x (B, in_channels, H, W); h = H / 2^n_layers - 2."""
        logits: Tensor = self.layers(x)
        return logits.float()


def receptive_field(n_layers: int) -> int:
    """Side of the patch that one verdict depends on.

    `r_(k-1) = s_k (r_k - 1) + 4`, from r = 1 behind the last layer backwards; strides s_k = 2 for n_layers, then 1, 1

    Args:
        n_layers: of stride 2.

    Returns:
        Pixels: 16, 34, 70, 142, ...
    """
    field = 1
    for stride in (1, 1, *(2,) * n_layers):
        field = stride * (field - 1) + 4
    return field


def least_size(n_layers: int) -> int:
    """The smallest image side that leaves one verdict.

    Args:
        n_layers: of stride 2.

    Returns:
        Pixels: 6, 12, 24, ...: the map loses a neuron at each of the last two layers.
    """
    return 3 << n_layers


def _norm(norm: Norm, channels: int) -> nn.Module:
    return InstanceNorm(channels) if norm == "instance" else nn.GroupNorm(max(channels // 16, 1), channels)
