"""VGG-16 and AlexNet without their classifiers, as plain modules: features of five depths, for LPIPS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mri_synth.errors import UserError
from mri_synth.weights import resolve
from mri_synth.weights.unpickle import Arrays, read_arrays


class Backbone(nn.Module):
    """Convolutions in stages; the output of each stage is a feature map. Frozen, and always in evaluation mode.

    Args:
        stages: applied one after the other.
        least: smallest height and width that leave every stage at least one pixel.
        widths: channels of each stage's output.
    """

    def __init__(self, stages: Sequence[nn.Module], least: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.least, self.widths = least, widths
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of all stages.

        Args:
            images: (B, 3, H, W), standardised as the weights expect.

        Returns:
            (B, widths[k], H_k, W_k) of each stage k, not negative.

        Raises:
            ValueError: the images are too small or not RGB.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < self.least:
            raise ValueError(f"images must be (B, 3, H, W) of at least {self.least} x {self.least}, "
                             f"got {tuple(images.shape)}")  # fmt: skip
        features, x = [], images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def convolutions(self) -> Iterator[nn.Conv2d]:
        """All convolutions in order."""
        return (m for m in self.modules() if isinstance(m, nn.Conv2d))


def vgg16() -> Backbone:
    """VGG-16 (Simonyan and Zisserman 2015, configuration D) up to relu5_3, one stage per resolution; random weights."""
    stages, channels = [], 3
    for k, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if k else []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        stages.append(nn.Sequential(*layers))
    return Backbone(stages, 16, (64, 128, 256, 512, 512))


def alexnet() -> Backbone:
    """AlexNet in one column (Krizhevsky 2014) up to relu5, one stage per convolution; random weights."""
    stages = [
        nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return Backbone(stages, 31, (64, 192, 384, 256, 256))


_KINDS = {"vgg16": (vgg16, "VGG16_0"), "alexnet": (alexnet, "AlexNet_0")}


def pretrained(net: str, path: Path | None = None) -> Backbone:
    """A backbone with the weights `lpips_<net>` (torchvision's, trained on ImageNet).

    Args:
        net: "vgg16" or "alexnet".
        path: their file; None to look where `weights.find` looks.

    Returns:
        It takes (B, 3, H, W) standardised with ImageNet's mean and standard deviation.

    Raises:
        UserError: the weights are not here, or are not those of this network.
    """
    build, key = _KINDS[net]
    place = resolve(f"lpips_{net}", path)
    backbone, arrays = build(), read_arrays(place).get(key)
    if not isinstance(arrays, dict):
        raise UserError(f"{place}: has no {key}; it is not the weights lpips_{net}")
    with torch.no_grad():
        for k, layer in enumerate(backbone.convolutions()):
            kernel, bias = _pair(arrays, k, place)
            layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))  # JAX: height, width, in, out
            assert layer.bias is not None
            layer.bias.copy_(torch.from_numpy(bias.copy()))
    return backbone


def _pair(arrays: Arrays, k: int, place: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    layer = arrays.get(f"Conv_{k}")
    kernel, bias = (layer.get("kernel"), layer.get("bias")) if isinstance(layer, dict) else (None, None)
    if not isinstance(kernel, np.ndarray) or not isinstance(bias, np.ndarray):
        raise UserError(f"{place}: has no kernel and bias of convolution {k}")
    return kernel, bias
