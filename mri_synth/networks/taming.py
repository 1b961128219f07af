"""Encoder, decoder and codebook of taming-transformers' VQGAN (Esser et al. 2021), as plain modules.

Modules are called as their parameters are in its checkpoints, so that these can be loaded; what else differs is in
`mri_synth.taming`. Images are (B, 3, H, W) in [-1, 1], and H and W multiples of 2 to the number of levels less one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a checkpoint's yaml says under `ddconfig`, and the codebook.

    Attributes:
        ch: channels at the full resolution.
        ch_mult: factors on them, one a level; each level but the last halves the image.
        num_res_blocks: of each level; the decoder has one more.
        attn_resolutions: sides, pixels, of the levels that have attention, for images of `resolution`.
        resolution: side of the images that it was trained on, pixels.
        in_channels: of images.
        out_ch: of their reconstructions.
        z_channels: of what the encoder ends with.
        embed_dim: of the codebook's vectors.
        n_embed: how many.
        gumbel: codes come from a convolution to `n_embed` channels, not from distances.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    in_channels: int
    out_ch: int
    z_channels: int
    embed_dim: int
    n_embed: int
    gumbel: bool = False

    @property
    def downsample(self) -> int:
        """Image side over code side."""
        return int(2 ** (len(self.ch_mult) - 1))

    def attends(self, level: int) -> bool:
        """Whether a level has attention, from 0 at the full resolution."""
        return self.resolution // 2**level in self.attn_resolutions


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, epsilon 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Twice norm, swish and convolution, added to the input, which is mapped where the channels change."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = group_norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        h = self.conv2(functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(x))))))
        out: Tensor = (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h
        return out


class Attention(nn.Module):
    """Of one head, over all positions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x)
        out: Tensor = x + self.proj_out(mixed)
        return out


class Downsample(nn.Module):
    """A convolution of stride 2; the image gets a row below and a column at the right of zeros, and none elsewhere."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Each pixel becomes four, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Blocks of one resolution, attention after each where there is some, and the step to the next resolution.

    Args:
        before: channels that come in.
        after: of all its blocks.
        blocks: how many.
        attends: with attention.
        step: "down", "up" or "".
    """

    def __init__(self, before: int, after: int, blocks: int, attends: bool, step: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(after if k else before, after) for k in range(blocks))
        self.attn = nn.ModuleList(Attention(after) for _ in range(blocks if attends else 0))
        self.downsample = Downsample(after) if step == "down" else None
        self.upsample = Upsample(after) if step == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H', W')."""
        for k, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[k](x)
        for step in (self.downsample, self.upsample):
            x = x if step is None else step(x)
        return x


class Middle(nn.Module):
    """Block, attention, block, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResBlock(channels, channels),
            Attention(channels),
            ResBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """Images to (B, z_channels, H / downsample, W / downsample)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths, last = [shape.ch * m for m in shape.ch_mult], len(shape.ch_mult) - 1
        self.conv_in = nn.Conv2d(shape.in_channels, shape.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[k - 1] if k else shape.ch, widths[k], shape.num_res_blocks, shape.attends(k),
                  "down" if k < last else "")
            for k in range(last + 1)
        )  # fmt: skip
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = group_norm(widths[-1]), nn.Conv2d(widths[-1], shape.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """(B, z_channels, h, w) to images (B, out_ch, downsample h, downsample w), which may leave [-1, 1] a little."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths, last = [shape.ch * m for m in shape.ch_mult], len(shape.ch_mult) - 1
        self.conv_in, self.mid = nn.Conv2d(shape.z_channels, widths[-1], 3, padding=1), Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(k + 1, last)], widths[k], shape.num_res_blocks + 1, shape.attends(k), "up" if k else "")
            for k in range(last + 1)
        )  # fmt: skip
        self.norm_out, self.conv_out = group_norm(widths[0]), nn.Conv2d(widths[0], shape.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """As the class says; the levels are numbered from the full resolution, and applied from the lowest."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class VQGAN(nn.Module):
    """The parts that make images of codes and codes of images; random weights.

    Args:
        shape: of it.

    Attributes:
        codebook: (n_embed, embed_dim).
        proj: of Gumbel models: latents to the logits of codes; None of others.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quant_conv = nn.Conv2d(shape.z_channels, shape.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(shape.embed_dim, shape.z_channels, 1)
        self.codebook = nn.Parameter(torch.empty(shape.n_embed, shape.embed_dim).uniform_(-1, 1) / shape.n_embed)
        self.proj = nn.Conv2d(shape.embed_dim, shape.n_embed, 1) if shape.gumbel else None

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, embed_dim, h, w), not quantised; of Gumbel models, whose codes are no nearest ones, quantised."""
        z: Tensor = self.quant_conv(self.encoder(images))
        return z if self.proj is None else self.lookup(self.proj(z).argmax(1))

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors (B, embed_dim, h, w) of codes (B, h, w) int64."""
        return functional.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    def nearest(self, z: Tensor) -> Tensor:
        """Codes (B, h, w) whose vectors are nearest to latents (B, embed_dim, h, w)."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            flat = z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            score = flat @ self.codebook.float().T - self.codebook.float().square().sum(1) / 2
            return score.argmax(1).view(len(z), *z.shape[2:])

    def quantize(self, z: Tensor) -> Tensor:
        """The nearest vectors, straight through: the gradient of a vector is its latent's."""
        return z + (self.lookup(self.nearest(z)) - z).detach()

    def decode(self, z_q: Tensor) -> Tensor:
        """Images of vectors (B, embed_dim, h, w)."""
        images: Tensor = self.decoder(self.post_quant_conv(z_q))
        return images
