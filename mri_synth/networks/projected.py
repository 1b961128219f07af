"""A discriminator that looks through a frozen network: it learns in minutes what one on pixels takes hours to see.

Sauer et al. 2021, "Projected GANs Converge Faster" (arXiv:2111.01007), without their random mixing of features;
the features are AlexNet's, as LPIPS standardises them, of images twice as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mri_synth import weights
from mri_synth.errors import UserError
from mri_synth.metrics.lpips import LPIPS

SLOPE = 0.2
"""Of the leaky ReLUs."""
WIDTHS = (64, 192, 384, 256, 256)
"""Channels of AlexNet's five convolutions."""
LEAST = 16
"""Smallest image side; twice as large, AlexNet takes it."""
_ENLARGED = 2
"""AlexNet's first layer has a stride of 4, which is too coarse for grain and edges of the images as they are."""


def problems(arguments: Mapping[str, Any]) -> list[str]:
    """Why a method cannot have the discriminator that it asks for.

    Args:
        arguments: of the method; `discriminator` is one of them.

    Returns:
        One message, where AlexNet's weights are wanted and not here.
    """
    if arguments.get("discriminator") != "projected":
        return []
    try:
        weights.resolve("lpips_alexnet")
    except UserError as error:
        return [f"model.discriminator=projected: {error}"]
    return []


def too_small(size: int) -> str:
    """Why images of a size cannot be judged.

    Args:
        size: image side, pixels.

    Returns:
        The reason with the way out; "" when they can.
    """
    if size >= LEAST:
        return ""
    return (
        f"with model.discriminator=projected judges images of at least {LEAST} pixels, and data.size={size}; try "
        "model.discriminator=patch"
    )


class ProjectedDiscriminator(nn.Module):
    """Small heads on the feature maps of five depths of AlexNet, which is frozen; each gives a map of verdicts.

    AlexNet (`lpips_alexnet` of `mri-synth weights`) is loaded when images are first judged, and is in no checkpoint.

    Args:
        width: channels of the heads.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.LeakyReLU(SLOPE, inplace=True),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(SLOPE, inplace=True),
                nn.Conv2d(width, 1, 1, bias=False),  # as of `PatchDiscriminator`
            )
            for channels in WIDTHS
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.normal_(module.bias, 0, 0.02)
        with torch.no_grad():
            for head in self.heads:
                head[-1].weight.mul_(0.1)  # type: ignore[index] # verdicts start undecided, inside the hinge
        self._frozen: list[LPIPS] = []  # a list, so that it is no part of this module

    def forward(self, x: Tensor) -> Tensor:
        """Verdicts of images.

        Args:
            x: (B, 1 or 3, H, W) in [-1, 1]; at least 16 pixels.

        Returns:
            (B, 5, h, w) float32, logits, h and w of the finest map; the coarser ones are repeated, so that each
            depth has an equal say in the mean.

        Raises:
            UserError: the weights of AlexNet are not here.
        """
        eyes = self.eyes(x.device)
        enlarged = functional.interpolate(x, scale_factor=_ENLARGED, mode="bilinear", align_corners=False)
        maps: list[Any] = [
            head(f * f.shape[1] ** 0.5).float()  # vectors of unit length to numbers of about 1
            for head, f in zip(self.heads, eyes.features(enlarged), strict=True)
        ]
        finest = maps[0].shape[-2:]
        return torch.cat([m if m.shape[-2:] == finest else functional.interpolate(m, finest) for m in maps], 1)

    def eyes(self, device: torch.device) -> LPIPS:
        """AlexNet on a device, loaded where it was not yet."""
        if not self._frozen:
            network = LPIPS("alexnet")
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._frozen.append(network)
        (network,) = self._frozen
        if network.shift.device != device:
            network.to(device)
        return network
