"""LPIPS: how different two images look to a network, with weights that were fitted to human judgements."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torchmetrics
from torch import Tensor, nn

from mri_synth.networks.backbones import pretrained

Net = Literal["vgg16", "alexnet"]

PROTOCOL = (
    "LPIPS of Zhang 2018, version 0.1 with the fitted linear heads, on images in [-1, 1], grey repeated to three "
    "channels, at their own size; AlexNet unless VGG-16 is said"
)
"""Said beside every LPIPS."""

_HEADS = {"vgg16": "vgg", "alexnet": "alex"}


class LPIPS(nn.Module):
    """The network and linear heads of LPIPS. Frozen, and always in evaluation mode.

    The backbone's weights are `lpips_vgg16` or `lpips_alexnet`; the heads are in torchmetrics.

    Args:
        net: "alexnet" is what the authors recommend for measuring, "vgg16" for losses.
        path: file of the backbone's weights; None to look where `weights.find` looks.

    Raises:
        UserError: the weights are not here.
    """

    shift: Tensor
    scale: Tensor
    heads: nn.ParameterList

    def __init__(self, net: Net = "alexnet", path: Path | None = None) -> None:
        super().__init__()
        self.backbone = pretrained(net, path)
        folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
        heads = torch.load(folder / f"{_HEADS[net]}.pth", map_location="cpu", weights_only=True)
        self.heads = nn.ParameterList(heads[f"lin{k}.model.1.weight"] for k in range(len(self.backbone.widths)))
        # ImageNet's mean and standard deviation, for images in [-1, 1] and not [0, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of five depths, each pixel's vector of unit length.

        Args:
            images: (B, 1 or 3, H, W) float in [-1, 1].

        Returns:
            (B, C_k, H_k, W_k) of each depth k, in [0, 1].
        """
        x = (images.float().expand(-1, 3, -1, -1) - self.shift) / self.scale
        # epsilon inside the root: where all features are zero the gradient of the root alone would be infinite
        return [f / (f.square().sum(1, keepdim=True) + 1e-8).sqrt() for f in self.backbone(x)]

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """As `lpips`."""
        return lpips(x_hat, x, self)


def lpips(x_hat: Tensor, x: Tensor, net: LPIPS) -> Tensor:
    """Learned perceptual distance of each image to its original: 0 is equality, about 0.7 is unlike.

    `LPIPS = sum_k mean_hw sum_c w_kc (f_kc(x_hat) - f_kc(x))^2`, f_k the feature maps of depth k with vectors of unit
    length, w_k the fitted heads (Zhang et al. 2018, "The unreasonable effectiveness of deep features", eq. 1).
    Differentiable in both images.

    Args:
        x_hat: (B, C, H, W) float in [-1, 1], C 1 or 3; at least 31 x 31 for AlexNet, 16 x 16 for VGG-16.
        x: the same of the originals.
        net: backbone and heads, on the images' device.

    Returns:
        (B,) float32, not negative.

    Raises:
        ValueError: the shapes differ, or the images are too small.
    """
    if x_hat.shape != x.shape or x.ndim != 4 or x.shape[1] not in (1, 3):
        shapes = f"{tuple(x_hat.shape)} and {tuple(x.shape)}"
        raise ValueError(f"images must be (B, C, H, W) of one shape with 1 or 3 channels, got {shapes}")
    with torch.autocast(x.device.type, enabled=False):
        total = x.new_zeros(len(x), dtype=torch.float32)
        for f_hat, f, head in zip(net.features(x_hat), net.features(x), net.heads, strict=True):
            total = total + ((f_hat - f).square() * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total
