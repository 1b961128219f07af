"""Generators from images to images, by name."""

from __future__ import annotations

from typing import Literal

from mri_synth.networks.layers import Norm, Translator
from mri_synth.networks.resnet import ResNetGenerator
from mri_synth.networks.unet_translate import TranslatingUNet

Kind = Literal["unet", "attention_unet", "resnet9", "local"]
_DIVISOR = {"unet": 8, "attention_unet": 16, "resnet9": 4, "local": 1}
_LEAST = {"unet": 8, "attention_unet": 16, "resnet9": 8, "local": 8}
_ENCODER_BLOCKS = 4
"""Of the attention U-Net, by the seed of this method ("4 encoding units of convolution, leaky ReLU and norm")."""

_LOCAL_BLOCKS = 4
"""Of `local`, which sees 7 + 4 * 4 + 6 = 29 pixels across."""


def generator(
    kind: Kind, sources: int, channels: int, size: int, width: int = 64, norm: Norm = "instance", dropout: float = 0.0
) -> Translator:
    """A network from images to images, with tanh at its end and its last layer in fp32.

    Args:
        kind: "unet" (Isola et al. 2017) down to one pixel where the side is a power of 2; "attention_unet" (Oktay et
            al. 2018) of four halvings; "resnet9" (Johnson et al. 2016, Zhu et al. 2017) of nine residual blocks;
            "local", our own, of four residual blocks at the full side: it changes what is there, and cannot move it or
            draw what it remembers of other heads, as the others do where no pairs hold them to their source.
        sources: channels of the input.
        channels: of the output.
        size: image side, pixels.
        width: channels of the first layer.
        norm: "batch" looks at all images of a batch, "instance" at one.
        dropout: share of the channels dropped in training where the published networks have dropout.

    Returns:
        (B, sources, size, size) in [-1, 1] to (B, channels, size, size) float32 in [-1, 1].

    Raises:
        ValueError: the network cannot take images of this size.
    """
    if reason(kind, size):
        raise ValueError(reason(kind, size))
    if kind == "resnet9":
        return ResNetGenerator(sources, channels, size, width, norm, dropout)
    if kind == "local":
        return ResNetGenerator(sources, channels, size, width, norm, dropout, _LOCAL_BLOCKS, 0)
    gates = kind == "attention_unet"
    return TranslatingUNet(sources, channels, size, width, norm, dropout, _ENCODER_BLOCKS if gates else None, gates)


def least_size(kind: Kind) -> int:
    """The smallest image side that a generator takes.

    Args:
        kind: of generator.

    Returns:
        Pixels.
    """
    return _LEAST[kind]


def reason(kind: Kind, size: int) -> str:
    """Why a generator cannot take images of a size, as a method's `refuses` says it.

    Args:
        kind: of generator.
        size: image side, pixels.

    Returns:
        The reason with the way out; "" when it can.
    """
    divisor = _DIVISOR[kind]
    if size % divisor == 0 and size >= _LEAST[kind]:
        return ""
    near = max(round(size / divisor) * divisor, _LEAST[kind])
    return (
        f"model.generator={kind} takes images whose side is a multiple of {divisor} from {_LEAST[kind]} on, "
        f"not data.size={size}; try data.size={near}"
    )
