"""The two towers of a small CLIP: slices and sentences as points of one sphere.

No normalisation over the batch anywhere: what an item becomes does not depend on the others, nor on the number of
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mri_synth import captions
from mri_synth.networks.encoder import Block

GRID = 4
"""The last maps are averaged to GRID x GRID: where a thing is, such as left, must reach the embedding."""
RARE = 4.0
"""A place has no lesion by exp(RARE) to 1 before anything is learned."""


class ImageTower(nn.Module):
    """Residual stages, each of half the resolution of the one before; a map of the lesion; then one linear layer.

    A lesion is a few pixels of thousands, and a small network hears of it only through a word: it finds lesions much
    sooner when it is also told where they are. The map sees all stages, as in Lin et al. 2017 (arXiv:1612.03144).

    Args:
        in_channels: of the image.
        patch: pixels of a side that the first layer takes together: the resolution of the first stage, and of the map.
        width: channels of the first stage; doubled at each of the next three.
        dim: D, of the embedding.
    """

    def __init__(self, in_channels: int, patch: int, width: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        widths = [patch * patch * in_channels, width, 2 * width, 4 * width, 8 * width]
        self.halvings = nn.ModuleList(
            nn.Conv2d(above, below, 3, stride=1 if k == 0 else 2, padding=1)
            for k, (above, below) in enumerate(pairwise(widths))
        )
        self.blocks = nn.ModuleList(Block(channels) for channels in widths[1:])
        self.sides = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths[1:])
        self.where = nn.Conv2d(width, 1, 3, padding=1)
        self.norm = nn.LayerNorm(GRID * GRID * widths[-1])
        self.head = nn.Linear(GRID * GRID * (widths[-1] + 2), dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.where:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.mix.weight)
        nn.init.constant_(self.where.bias, -RARE)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and map of the lesion.

        Args:
            image: (B, C, H, W) in [-1, 1]; sides that are no multiple of `patch` are padded with black.

        Returns:
            (B, D) float32, and (B, 1, H / patch, W / patch) float32, log odds of a lesion in each place.
        """
        height, width = image.shape[2:]
        black_is_0 = F.pad(image + 1, (0, -width % self.patch, 0, -height % self.patch))
        x, seen = F.pixel_unshuffle(black_is_0, self.patch), []
        for k, (halve, block) in enumerate(zip(self.halvings, self.blocks, strict=True)):
            x = block(halve(F.relu(x) if k else x))
            seen.append(x)
        size = seen[0].shape[2:]
        merged = torch.stack([
            F.interpolate(side(F.relu(x)), size, mode="nearest") for side, x in zip(self.sides, seen, strict=True)
        ]).sum(0)  # fmt: skip
        where = self.where(F.relu(merged)).float()
        share = torch.sigmoid(where)
        pooled = [
            self.norm(F.adaptive_avg_pool2d(F.relu(seen[-1]), GRID).flatten(1)).float(),
            3 * F.adaptive_max_pool2d(share, GRID).flatten(1),
            10 * F.adaptive_avg_pool2d(share, GRID).flatten(1),
        ]
        out: Tensor = self.head(torch.cat(pooled, 1))
        return out.float(), where


class TextTower(nn.Module):
    """A transformer over words; the embedding is that of the mean of its outputs.

    Args:
        vocabulary: how many words.
        context: words of a text at most.
        width: channels.
        layers: of attention.
        dim: D, of the embedding.
    """

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary + 1, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(context, width))
        self.layers = nn.ModuleList(Attention(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, dim)
        nn.init.normal_(self.words.weight[1:], std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of texts (B, L) int64, 0 behind their last word."""
        there = tokens > 0
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, there)
        x = (self.norm(x) * there[:, :, None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        out: Tensor = self.head(x)
        return out.float()


class Attention(nn.Module):
    """Self-attention of heads of 32 channels and a layer of four times the width, each with a way around it.

    Args:
        width: channels, a multiple of 32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 32
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """(B, L, width) to the same; `there` (B, L) bool: which words are looked at."""
        # a softmax does not see the bias of keys: its gradient is nothing but rounding, and Adam would make steps of it
        of_q, of_k, of_v = self.qkv.bias.chunk(3)
        qkv = F.linear(self.norms[0](x), self.qkv.weight, torch.cat([of_q, of_k.detach(), of_v]))
        q, k, v = qkv.unflatten(2, (3, self.heads, 32)).permute(2, 0, 3, 1, 4)
        looked = there | ~there.any(1, keepdim=True)  # at an empty text everything, for the sake of finite numbers
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=looked[:, None, None, :])
        x = x + self.out(y.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return out


class Tokens:
    """Words as numbers from 1 on; 0 is behind the end of a text.

    Args:
        vocabulary: all words.
        context: words of a text at most.
    """

    def __init__(self, vocabulary: Sequence[str], context: int) -> None:
        self.numbers = {word: k for k, word in enumerate(vocabulary, 1)}
        self.context = context

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts as numbers; words that are unknown are left out, what is too long is cut off.

        Args:
            texts: any.

        Returns:
            (n, context) int64.
        """
        out = torch.zeros(len(texts), self.context, dtype=torch.int64)
        for row, text in zip(out, texts, strict=True):
            known = [self.numbers[w] for w in captions.words(text) if w in self.numbers][: self.context]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return out
