"""U-Nets from images to images: down to a pixel (Isola et al. 2017), or with gates on the skips (Oktay et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mri_synth.networks.layers import SLOPE, ChannelDropout, Head, Norm, Translator, biased, normed

DROPPED = 3
"""Blocks of the way up that have dropout, at most; no more than half of them (Isola et al. 2017, appendix 6.1.1)."""


def halvings(size: int) -> int:
    """How often an image side can be halved.

    Args:
        size: pixels.

    Returns:
        8 of 256, 4 of 240, 0 of an odd number.
    """
    return (size & -size).bit_length() - 1


class TranslatingUNet(Translator):
    """Convolutions 4x4 of stride 2 down, transposed ones up, and skips between equal sides.

    C64-C128-C256-C512-C512-C512-C512-C512 down to 1x1 of 256 pixels (arXiv:1611.07004, appendix 6.1.1), and so the
    generator of TensorFlow's pix2pix and CycleGAN examples. Sides that are no power of 2 are halved as often as they
    can be. At one pixel there is no norm.

    Args:
        sources: channels of the input.
        channels: of the output.
        size: image side, pixels.
        width: channels at half the side; doubled with each halving, up to 8 times.
        norm: of all layers but the first and the last.
        dropout: share of channels dropped in the first blocks of the way up.
        depth: halvings; None: as many as there are.
        gates: on the skips; then a convolution of stride 1 stands between the way down and the way up.
    """

    def __init__(
        self, sources: int, channels: int, size: int, width: int = 64, norm: Norm = "instance", dropout: float = 0.0,
        depth: int | None = None, gates: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        depth = halvings(size) if depth is None else depth
        if depth < 2 or size % 2**depth:
            raise ValueError(f"size must be a multiple of {2 ** max(depth, 2)}, got {size}")
        widths = [width * min(2**k, 8) for k in range(depth)]
        sides = [size // 2 ** (k + 1) for k in range(depth)]
        self.down, self.up, self.drop = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = sources
        for k, (out, side) in enumerate(zip(widths, sides, strict=True)):
            kind: Norm = norm if k else "none"
            down = nn.Conv2d(before, out, 4, 2, 1, bias=biased(kind, side))
            self.down.append(normed(down, kind, out, side, nn.LeakyReLU(SLOPE)))
            before = out
        self.middle: nn.Module = nn.Identity()
        if gates:
            middle = nn.Conv2d(before, before, 3, 1, 1, bias=biased(norm, sides[-1]))
            self.middle = normed(middle, norm, before, sides[-1], nn.LeakyReLU(SLOPE))
        self.gates = nn.ModuleList()
        for k, (out, side) in enumerate(zip(widths[-2::-1], sides[-2::-1], strict=True)):
            if gates:
                self.gates.append(AttentionGate(out, before))
            up = nn.ConvTranspose2d(before, out, 4, 2, 1, bias=biased(norm, side))
            self.up.append(normed(up, norm, out, side, nn.ReLU()))
            self.drop.append(ChannelDropout(out, dropout if k < min(DROPPED, (depth - 1) // 2) else 0.0))
            before = 2 * out
        self.head = Head(nn.ConvTranspose2d(before, channels, 4, 2, 1))
        self.start(norm)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images of images.

        Args:
            x: (B, sources, size, size) in [-1, 1].
            noise: (B, draws) uniform in [0, 1), the numbers that decide dropout in training; None: drawn here.

        Returns:
            (B, channels, size, size) float32 in [-1, 1].
        """
        numbers, skips = self.split(noise), []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.middle(x)
        for k, (up, drop, skip) in enumerate(zip(self.up, self.drop, skips[-2::-1], strict=True)):
            passed = self.gates[k](skip, x) if len(self.gates) else skip
            x = torch.cat([drop(up(x), numbers[k]), passed], 1)
        out: Tensor = self.head(x)
        return out


class AttentionGate(nn.Module):
    """What of a skip is let through, place by place, as the coarser features behind it say.

    `alpha = sigmoid(psi(relu(W_x x + W_g g))), out = alpha x`: additive attention (Oktay et al. 2018, arXiv:1804.03999,
    equations 1 and 2); W_x has stride 2, and alpha is enlarged again.

    Args:
        channels: of the skip.
        gating: channels of the features at half its side.
    """

    def __init__(self, channels: int, gating: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.skip = nn.Conv2d(channels, inner, 2, 2, bias=False)
        self.gating = nn.Conv2d(gating, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """(B, channels, H, W) of the skip x and (B, gating, H/2, W/2) of g to (B, channels, H, W)."""
        alpha = torch.sigmoid(self.psi(torch.relu(self.skip(x) + self.gating(g))))
        return x * interpolate(alpha, scale_factor=2, mode="bilinear")
