"""EfficientNet-Lite 0 and 2 (EfficientNet of Tan and Le 2019 without squeeze-and-excitation, ReLU6 for swish).

They classify photographs into the 1,000 classes of ImageNet. Convolutions pad as TensorFlow's "SAME" does, which for
stride 2 is one pixel more at the right and below.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mri_synth.errors import UserError
from mri_synth.weights import resolve

Kind = Literal["lite0", "lite2"]
SIDES: dict[Kind, int] = {"lite0": 224, "lite2": 260}
"""Side of the images that each was trained on, pixels."""
_WIDER: dict[Kind, tuple[float, float]] = {"lite0": (1.0, 1.0), "lite2": (1.1, 1.2)}
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
"""Repeats, kernel, stride, expansion and channels of each stage of lite0."""


class Same(nn.Conv2d):
    """A convolution without bias whose output has the input's size over the stride, rounded up."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            tall, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
            x = functional.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        return super().forward(x)


class Block(nn.Module):
    """Inverted residual: widen, convolve each channel, narrow (Sandler et al. 2018)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = before * expansion
        self.expand_conv = Same(before, inside, 1) if expansion > 1 else None
        self.bn0 = nn.BatchNorm2d(inside, eps=1e-3) if expansion > 1 else None
        self.depthwise_conv, self.bn1 = Same(inside, inside, kernel, stride, inside), nn.BatchNorm2d(inside, eps=1e-3)
        self.project_conv, self.bn2 = Same(inside, after, 1), nn.BatchNorm2d(after, eps=1e-3)
        self.skips = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        y = x
        if self.expand_conv is not None and self.bn0 is not None:
            y = functional.relu6(self.bn0(self.expand_conv(y)))
        y = functional.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        out: Tensor = x + y if self.skips else y
        return out


class EfficientNetLite(nn.Module):
    """Images to logits of ImageNet's classes. Frozen, and always in evaluation mode; random weights.

    Args:
        kind: "lite0" or "lite2".

    Attributes:
        side: of the images that it was trained on, pixels.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        wider, deeper = _WIDER[kind]
        self.side, before = SIDES[kind], 32
        self.conv_stem, self.bn0 = Same(3, before, 3, 2), nn.BatchNorm2d(before, eps=1e-3)
        self.blocks = nn.ModuleList()
        for k, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            ends = k in (0, len(_STAGES) - 1)  # the lite ones do not repeat these more often
            after = rounded(channels * wider)
            for repeat in range(repeats if ends else math.ceil(repeats * deeper)):
                self.blocks.append(Block(before, after, kernel, 1 if repeat else stride, expansion))
                before = after
        self.conv_head, self.bn1 = Same(before, 1280, 1), nn.BatchNorm2d(1280, eps=1e-3)
        self.fc = nn.Linear(1280, 1000)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1000) of RGB images (B, 3, side, side) in [-1, 1]."""
        x = standardised(images).contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self.bn0(self.conv_stem(x)))
        for block in self.blocks:
            x = block(x)
        x = functional.relu6(self.bn1(self.conv_head(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def standardised(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the networks were trained on them: (byte - 127) / 128 (TensorFlow's efficientnet_lite)."""
    return ((images + 1) * 127.5 - 127) / 128


def rounded(channels: float) -> int:
    """To a multiple of 8, never by more than a tenth down."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def pretrained(kind: Kind, path: Path | None = None) -> EfficientNetLite:
    """As trained on ImageNet.

    Args:
        kind: "lite0" or "lite2".
        path: file of the weights `efficientnet_<kind>`; None to look where `weights.find` looks.

    Returns:
        The network, in float32 on the CPU.

    Raises:
        UserError: the weights are not here, or are not those of this network.
    """
    place = resolve(f"efficientnet_{kind}", path)
    values = torch.load(place, map_location="cpu", weights_only=True)
    network = EfficientNetLite(kind)
    try:
        network.load_state_dict({re.sub(r"(^|\.)_", r"\1", name): value for name, value in values.items()})
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{place}: not the weights efficientnet_{kind}: {error}") from None
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
