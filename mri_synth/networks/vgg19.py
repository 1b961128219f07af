"""VGG-19 without its classifier (Simonyan and Zisserman 2015, configuration E), as features of named layers.

Two layouts of its weights are read, each with the preprocessing it was made for:

- torchvision's (`features.N.weight`; vgg19-dcbb9e9d.pth): RGB in [0, 1] less ImageNet's mean, over its standard
  deviation; activations as they were trained.
- the archive normalised by Gatys et al. 2016 (`N.weight`, N from 0; `mri-synth weights get vgg19`): BGR in [0, 255]
  less Caffe's mean, which its first layer, a 1 x 1 convolution of RGB in [0, 1], does; each filter rescaled
  to a mean activation of 1 over images and positions, so that all layers' Gram matrices are of one scale.

MRI is grey: one channel is repeated to three.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from mri_synth.errors import UserError
from mri_synth.weights import resolve, sha256

Layer = Literal["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv3_4", "conv4_1",
                "conv4_2", "conv4_3", "conv4_4", "conv5_1", "conv5_2", "conv5_3", "conv5_4"]  # fmt: skip
"""A convolution, and the features after its rectifier."""
Pooling = Literal["average", "max"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
"""Channels by block; a block is at half the resolution of the one before."""

_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
_NORMALISED = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG19(nn.Module):
    """The convolutions up to the deepest layer that is asked for. Frozen, and always in evaluation mode.

    Args:
        deepest: the last layer it has.
        pooling: between blocks; averages give the smoother images (Gatys 2016, section 2), maxima are the original's.

    Attributes:
        colours: (3, 3) matrix from RGB in [0, 1] to the channels of the first convolution.
        shift: (3,) added to them.
    """

    colours: Tensor
    shift: Tensor

    def __init__(self, deepest: Layer, pooling: Pooling = "average") -> None:
        super().__init__()
        self.layers = LAYERS[: LAYERS.index(deepest) + 1]
        self.pool = functional.avg_pool2d if pooling == "average" else functional.max_pool2d
        before = 3
        self.convolutions = nn.ModuleDict()
        for name in self.layers:
            self.convolutions[name] = nn.Conv2d(before, WIDTHS[block(name)], 3, padding=1)
            before = WIDTHS[block(name)]
        self.register_buffer("colours", torch.diag(1 / torch.tensor(_STD)))
        self.register_buffer("shift", -torch.tensor(_MEAN) / torch.tensor(_STD))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VGG19:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Features after the rectifiers of some layers; what lies behind the deepest of them is not computed.

        Args:
            images: (B, 1 or 3, H, W) in [-1, 1], grey or RGB, at least `least(layer)` pixels each way.
            layers: names.

        Returns:
            Layer to (B, C, h, w), not negative, in the type of the weights.

        Raises:
            ValueError: the images are of another shape, or a layer is not here.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[-2:]) < max(map(least, layers)):
            raise ValueError(f"images must be (B, 1 or 3, H, W) of at least {max(map(least, layers))} pixels each way, "
                             f"got {tuple(images.shape)}")  # fmt: skip
        if unknown := [n for n in layers if n not in self.convolutions]:
            raise ValueError(f"{unknown[0]}: this network ends at {self.layers[-1]}")
        x = self.prepared(images).to(memory_format=torch.channels_last)
        features: dict[str, Tensor] = {}
        for name in self.layers[: max(self.layers.index(n) for n in layers) + 1]:
            if name.endswith("_1") and name != "conv1_1":
                x = self.pool(x, 2)
            x = functional.relu(self.convolutions[name](x), inplace=True)
            if name in layers:
                features[name] = x
        return features

    def prepared(self, images: Tensor) -> Tensor:
        """What the first convolution sees.

        Args:
            images: (B, 1 or 3, H, W) in [-1, 1].

        Returns:
            (B, 3, H, W) in the type of the weights.
        """
        unit, colours, shift = (images.float() + 1) / 2, self.colours.float(), self.shift.float()
        mixed = unit * colours.sum(1)[:, None, None] if images.shape[1] == 1 else torch.einsum(
            "cd,bdhw->bchw", colours, unit)  # fmt: skip
        weight: Tensor = self.convolutions["conv1_1"].weight  # type: ignore[assignment]
        return (mixed + shift[:, None, None]).to(weight.dtype)


def block(layer: str) -> int:
    """Number of a layer's block, from 1 on."""
    return int(layer[4])


def least(layer: str) -> int:
    """Side of the smallest image of which a layer has a feature."""
    return int(2 ** (block(layer) - 1))


def pretrained(deepest: Layer, pooling: Pooling = "average", path: Path | None = None) -> VGG19:
    """VGG-19 as trained on ImageNet.

    Args:
        deepest: the last layer that is needed; deeper ones are not loaded.
        pooling: between blocks.
        path: a file of one of the two layouts; None for the weights `vgg19`, wherever `weights.find` finds them.

    Returns:
        The network, in float32 on the CPU.

    Raises:
        UserError: the weights are not here, damaged, of another network, or end before the deepest layer.
    """
    place = resolve("vgg19") if path is None else path
    network = VGG19(deepest, pooling)
    values = _read(place)
    if "features.0.weight" in values:
        names = [f"features.{k}" for k in _TORCHVISION]
    elif getattr(values.get("0.weight"), "shape", None) == (3, 3, 1, 1):
        names = [str(k) for k in _NORMALISED]
        network.colours.copy_(values["0.weight"][:, :, 0, 0])
        network.shift.copy_(values["0.bias"])
    else:
        raise UserError(f"{place}: not VGG-19: it has neither torchvision's features.0.weight nor the 0.weight of the "
                        f"normalised archive, but {', '.join(list(values)[:3]) or 'nothing'}; {_WAY_OUT}")  # fmt: skip
    for name, key in zip(network.layers, names, strict=False):
        layer = network.convolutions[name]
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        for mine, part in ((layer.weight, "weight"), (layer.bias, "bias")):
            theirs = values.get(f"{key}.{part}")
            if not isinstance(theirs, Tensor) or theirs.shape != mine.shape:
                found = "nothing" if theirs is None else f"{tuple(getattr(theirs, 'shape', ()))}"
                raise UserError(f"{place}: {key}.{part} of {name} should be {tuple(mine.shape)}, there is {found}: "
                                f"not VGG-19, or a part of it; {_WAY_OUT}")  # fmt: skip
            mine.data.copy_(theirs)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


_WAY_OUT = "give torchvision's vgg19-dcbb9e9d.pth, or nothing, for what mri-synth weights get vgg19 fetches"


def _read(place: Path) -> Mapping[str, Any]:
    if not place.is_file():
        raise UserError(f"{place}: no such file; {_WAY_OUT}")
    said = re.search(r"-([0-9a-f]{8})\.pth$", place.name)  # torch.hub writes the hash's beginning into the name
    if said and not sha256(place).startswith(said[1]):
        raise UserError(f"{place}: its sha256 does not begin with {said[1]}, as its name says: damaged; fetch it again")
    try:
        values = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets
        raise UserError(f"{place}: damaged, or no weights of torch ({str(error).splitlines()[0][:100]}); "
                        f"{_WAY_OUT}") from error  # fmt: skip
    if not isinstance(values, dict):
        raise UserError(f"{place}: holds a {type(values).__name__} and no weights by name; {_WAY_OUT}")
    return {str(k).removeprefix("module."): v for k, v in values.items()}
