"""The residual generator of Johnson et al. 2016 (arXiv:1603.08155), as CycleGAN has it (Zhu et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from mri_synth.networks.layers import ChannelDropout, Head, Norm, Translator, biased, normed


class ResNetGenerator(Translator):
    """c7s1-64, d128, d256, nine residual blocks, u128, u64, c7s1 (arXiv:1703.10593, appendix 7.2), reflection padded.

    Args:
        sources: channels of the input.
        channels: of the output.
        size: image side, pixels; a multiple of 2^halvings from 8 on.
        width: channels at the full side; 2^halvings times as many in the residual blocks.
        norm: of all layers but the last.
        dropout: share of channels dropped between the two convolutions of a residual block.
        blocks: residual ones; 6 were published for 128 pixels and 9 from 256 on.
        halvings: of the side, before the residual blocks; 2 were published. Without any, an output depends on the
            pixels about it alone, and the first source is added before the tanh: what is made begins as what is there.
    """

    def __init__(
        self, sources: int, channels: int, size: int, width: int = 64, norm: Norm = "instance", dropout: float = 0.0,
        blocks: int = 9, halvings: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if size % (1 << halvings) or size < 8:
            raise ValueError(f"size must be a multiple of {1 << halvings} from 8 on, got {size}")
        bias = biased(norm, size)
        first = nn.Conv2d(sources, width, 7, 1, 3, padding_mode="reflect", bias=bias)
        layers = [normed(first, norm, width, size, nn.ReLU())]
        for k in range(1, halvings + 1):
            down = nn.Conv2d(width << k - 1, width << k, 3, 2, 1, bias=bias)
            layers.append(normed(down, norm, width << k, size >> k, nn.ReLU()))
        self.down = nn.Sequential(*layers)
        deepest = width << halvings, size >> halvings
        self.blocks = nn.ModuleList(ResidualBlock(*deepest, norm, dropout) for _ in range(blocks))
        layers = []
        for k in range(halvings, 0, -1):
            up = nn.ConvTranspose2d(width << k, width << k - 1, 3, 2, 1, 1, bias=bias)
            layers.append(normed(up, norm, width << k - 1, size >> k - 1, nn.ReLU()))
        self.up = nn.Sequential(*layers)
        self.halvings, self.channels = halvings, channels
        self.head = Head(nn.Conv2d(width, channels, 7, 1, 3, padding_mode="reflect"))
        self.start(norm)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images of images.

        Args:
            x: (B, sources, H, W) in [-1, 1]; sides of multiples of 4.
            noise: (B, draws) uniform in [0, 1), the numbers that decide dropout in training; None: drawn here.

        Returns:
            (B, channels, H, W) float32 in [-1, 1].
        """
        image, x = x, self.down(x)
        for block, numbers in zip(self.blocks, self.split(noise), strict=True):
            x = block(x, numbers)
        out: Tensor = self.head(self.up(x), 0.0 if self.halvings else 2 * image[:, : self.channels])
        return out


class ResidualBlock(nn.Module):
    """The image and what two convolutions 3x3 make of it; no activation behind the sum.

    Args:
        channels: in and out.
        side: of the image, pixels.
        norm: behind both convolutions.
        dropout: share of channels dropped between them.
    """

    def __init__(self, channels: int, side: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        one, two = (
            nn.Conv2d(channels, channels, 3, 1, 1, padding_mode="reflect", bias=biased(norm, side)) for _ in range(2)
        )
        self.one, self.two = (
            normed(one, norm, channels, side, nn.ReLU()),
            normed(two, norm, channels, side, nn.Identity()),
        )
        self.drop = ChannelDropout(channels, dropout)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """(B, channels, H, W) to the same; noise (B, channels) of its dropout."""
        out: Tensor = x + self.two(self.drop(self.one(x), noise))
        return out
