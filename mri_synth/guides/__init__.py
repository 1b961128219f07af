"""Guides: what says how well an image fits a text. Each kind is one module, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from mri_synth.errors import UserError

Kind = Literal["mri_clip", "clip", "conse"]
"""mri_clip: trained here on captions of the data; clip: OpenAI's and its kin; conse: everyday words by ImageNet."""

_MODULES: dict[Kind, str] = {"mri_clip": "mri", "clip": "clip", "conse": "conse"}
WEIGHTS: dict[Kind, str] = {
    "mri_clip": "the best.ckpt of a run: train one with python -m mri_synth.run model=mri_clip",
    "clip": "a hub name such as openai/clip-vit-base-patch32, or the folder of a saved CLIPModel",
    "conse": "null: its weights come with its packages",
}
"""What each kind takes as weights, in words."""


class Guide(nn.Module):
    """Text and images as points of one unit sphere: the cosine says how well they fit. Frozen, in eval mode.

    Attributes:
        size: side of the square image that it looks at; `encode_image` resizes what it is given itself.
        dims: D, length of an embedding.
    """

    size: int
    dims: int

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts as points.

        Args:
            texts: at least one.

        Returns:
            (n, D) float32 of unit length.

        Raises:
            NotImplementedError: a guide must say it. Guides raise `UserError` for a text that is empty or too long.
        """
        raise NotImplementedError

    def encode_image(self, image: Tensor) -> Tensor:
        """Images as points; gradients reach the image.

        Args:
            image: (B, C, H, W) in [-1, 1], of 1 or 3 channels.

        Returns:
            (B, D) float32 of unit length.

        Raises:
            NotImplementedError: a guide must say it.
        """
        raise NotImplementedError

    def frozen(self) -> Guide:
        """Itself in eval mode, its parameters without gradients."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Guide:
        """Stays in eval mode, whatever the module that holds it does."""
        super().train(False)
        return self


def guide(kind: Kind, weights: str | None) -> Guide:
    """The guide of a kind.

    Args:
        kind: which.
        weights: of it; see `WEIGHTS`.

    Returns:
        The guide, frozen.

    Raises:
        UserError: no such kind, no such weights, or a package is not there.
    """
    if kind not in get_args(Kind):
        raise UserError(f"guide={kind}: there is none of this name; allowed: {', '.join(get_args(Kind))}")
    if kind == "conse" and weights is not None:
        raise UserError(f"guide=conse takes no weights (given: {weights}); they come with its packages")
    if kind != "conse" and not weights:
        raise UserError(f"guide={kind} needs its weights: {WEIGHTS[kind]}")
    module = importlib.import_module(f"mri_synth.guides.{_MODULES[kind]}")
    made: Guide = module.load(weights)
    return made.frozen()


def present(texts: Sequence[str]) -> list[str]:
    """The texts without the spaces around them.

    Args:
        texts: of a user.

    Returns:
        As many, none of them empty.

    Raises:
        UserError: there is none, or one is empty.
    """
    out = [text.strip() for text in texts]
    if not out or not all(out):
        raise UserError('an empty text says nothing; give words, such as "axial T2 slice"')
    return out


def looked_at(image: Tensor, size: int, channels: int) -> Tensor:
    """The image as a guide looks at it: square, of its size and channels; differentiable.

    Args:
        image: (B, C, H, W) in [-1, 1], of 1 or 3 channels.
        size: side of the result.
        channels: of the result; grey is the mean of three, three are grey three times.

    Returns:
        (B, channels, size, size) in [-1, 1], resized bilinearly, with antialiasing when made smaller.

    Raises:
        ValueError: the image has neither 1 nor 3 channels.
    """
    if image.dim() != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"image {tuple(image.shape)}: (B, 1, H, W) or (B, 3, H, W) is allowed")
    if image.shape[1] > channels:
        image = image.mean(1, keepdim=True)
    elif image.shape[1] < channels:
        image = image.expand(-1, channels, -1, -1)
    if image.shape[2:] != (size, size):
        image = F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return image
