"""Small classifiers of slices: one that sees the image, and one that sees its border and its histogram alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = 32
"""Of the histogram over [-1, 1]."""
SIDE = 16
"""Blocks along each side of the image, of whose outermost the border's means are taken."""


class Classifier(nn.Module):
    """Four halvings with batch norm, then mean and maximum over what is left: a small lesion is not averaged away.

    Group norm in its place learned nothing of lesions in as many steps.

    Args:
        channels: of the image.
        classes: C.
        width: channels after the first halving; twice as many after the second, four times after the others.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, factor in enumerate((1, 2, 4, 4)):
            out, kernel = factor * width, 3 if k else 5
            layers += [nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False),
                       nn.BatchNorm2d(out), nn.ReLU()]  # fmt: skip
            channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] to logits (B, C) float32."""
        features = self.body(image).float()
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        with torch.autocast(image.device.type, enabled=False):
            logits: Tensor = self.head(pooled)
            return logits


class BorderAndHistogram(nn.Module):
    """A linear classifier of what is not anatomy: how bright the frame's border is, and which greys occur.

    What it can tell apart, files differ in (crop, window, format), and no other accuracy proves more than that.

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(4 * (SIDE - 1) + BINS, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] to logits (B, C) float32."""
        with torch.autocast(image.device.type, enabled=False):
            logits: Tensor = self.head(border_and_histogram(image.float()))
            return logits


def border_and_histogram(image: Tensor) -> Tensor:
    """Means of the outermost of 16 x 16 blocks, and shares of 32 grey levels.

    Args:
        image: (B, channels, H, W) in [-1, 1]; channels are averaged.

    Returns:
        (B, 60 + 32): means in [-1, 1] around the border, then shares times the number of levels, 1 where all are alike.
    """
    grey = image.mean(1, keepdim=True)
    blocks = F.adaptive_avg_pool2d(grey, SIDE)[:, 0]
    border = torch.cat([blocks[:, 0], blocks[:, -1], blocks[:, 1:-1, 0], blocks[:, 1:-1, -1]], 1)
    level = ((grey.flatten(1) + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(image), BINS, device=image.device).scatter_add_(1, level, torch.ones_like(grey).flatten(1))
    return torch.cat([border, counts * BINS / level.shape[1]], 1)
