"""Inception-v3 features for FID, KID, precision and recall, by the protocol of the published figures."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mri_synth.weights import resolve
from mri_synth.weights.known import WEIGHTS

PROTOCOL = (
    "Inception-v3 of 2015-12-05 (TensorFlow's), pool3, 2048 features, float32; images in [-1, 1] rounded to 8 bits, "
    "grey repeated to three channels, resized to 299 x 299 as TensorFlow 1 does (bilinear without antialiasing, pixel "
    "i at i * size / 299), then (v - 128) / 128"
)
"""Said beside every figure that rests on these features."""

SIDE = 299


class Inception(nn.Module):
    """pool3 features of Inception-v3, 2048 per image. Frozen, in evaluation mode, without gradients.

    The file is TorchScript, which is code: it is run only because its sha256 is the one pinned in `weights.WEIGHTS`.
    The network itself takes RGB of 299 x 299 in [-1, 127/128]; everything before that is done here, as `PROTOCOL` says.
    May be given to torchmetrics as a feature extractor (`num_features`).

    Args:
        path: file of the weights `inception`; None to look where `weights.find` looks.
        batch_size: images that go through the network at a time, however many are given.
        bf16: compute in bfloat16: several times as fast on CPUs that multiply in it, and another feature space, whose
            figures stand a little off (`benchmarks.evaluate` measures by how much).

    Attributes:
        name: "inception".
        dim: features per image.
        num_features: the same, under torchmetrics' name.
        sha256: first 12 digits of the file's hash, to be said beside figures.

    Raises:
        UserError: the weights are not here.
    """

    def __init__(self, path: Path | None = None, batch_size: int = 32, bf16: bool = False) -> None:
        super().__init__()
        place = resolve("inception", path)
        self.name, self.dim, self.num_features = "inception", 2048, 2048
        self.sha256 = WEIGHTS["inception"].sha256[:12]
        self.batch_size, self.bf16 = batch_size, bf16
        with warnings.catch_warnings():  # torch would rather have torch.export, which cannot read such a file
            warnings.filterwarnings("ignore", ".*torch.jit.load.* is deprecated", DeprecationWarning)
            self.net = torch.jit.load(str(place), map_location="cpu")
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Inception:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of each image.

        Args:
            images: (B, 1 or 3, H, W) float in [-1, 1]; values outside are clipped. On the module's device.

        Returns:
            (B, 2048) float32, not negative.

        Raises:
            ValueError: the shape is another.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (B, 1 or 3, H, W), got {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            ready = [prepared(part) for part in images.float().split(self.batch_size)]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            parts = [self.net(part).float() for part in ready]
        return torch.cat(parts) if parts else images.new_zeros(0, self.dim, dtype=torch.float32)


def prepared(images: Tensor) -> Tensor:
    """What the network is given.

    `(resize(round(127.5 (x + 1))) - 128) / 128`, with the resize of TensorFlow 1

    Args:
        images: (B, 1 or 3, H, W) float32 in [-1, 1].

    Returns:
        (B, 3, 299, 299) in [-1, 127/128], channels last in memory (a fifth faster on a CPU).
    """
    levels = ((images + 1) * 127.5).round().clamp(0, 255)
    rows, columns = (_bilinear(side, images) for side in images.shape[-2:])
    resized = torch.einsum("ih,bchw,jw->bcij", rows, levels, columns)
    rgb = ((resized - 128) / 128).expand(-1, 3, -1, -1)
    return rgb.contiguous(memory_format=torch.channels_last)


def _bilinear(side: int, like: Tensor) -> Tensor:
    """(299, side) weights of a one-dimensional resize: output i is the input at i * side / 299, ends repeated."""
    at = torch.arange(SIDE, dtype=torch.float64) * side / SIDE
    low = at.floor().long().clamp(max=side - 1)
    high = (low + 1).clamp(max=side - 1)
    weights = torch.zeros(SIDE, side, dtype=torch.float64)
    weights.scatter_add_(1, low[:, None], (1 - (at - low))[:, None])
    weights.scatter_add_(1, high[:, None], (at - low)[:, None])
    return weights.to(like)
