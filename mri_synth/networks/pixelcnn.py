"""Gated PixelCNN over grids of codes: an exact likelihood, one code after the other in raster order.

Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders" (arXiv:1606.05328): vertical
and horizontal stack (section 2.2, no blind spot), gated units (eq. 2), class-conditional biases (eq. 4). Ours beside
it: residuals in the vertical stack too (as PixelCNN++, arXiv:1701.05517), a learned embedding of the position, all
gates' outputs joined in the head; and vectors in the place of classes, such as embeddings of texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_synth.losses.code import linear_nll
from mri_synth.networks.pixelcnn_ops import columns, gate

RANK = 8
"""Patterns of position that a vector mixes; classes have one each."""


class GatedLayer(nn.Module):
    """One gated layer of both stacks; the first of a network does not see the code that it predicts (mask A).

    Kernels are cut to what they may see, so that no product is wasted on masked weights: vertically whole rows, those
    above in the first layer and the own one (of a stack that lags a row behind) in the others; horizontally what lies
    to the left, in all but the first layer with the own position.

    Args:
        channels: of both stacks, before and after.
        kernel_size: k, odd; sees k // 2 positions upwards, to the left, and in the rows above to the right.
        first: mask A, and nothing of the input is carried on.
        last: no layer follows, so that nothing is added to the horizontal stack.
    """

    def __init__(self, channels: int, kernel_size: int, first: bool = False, last: bool = False) -> None:
        super().__init__()
        self.reach, self.first = kernel_size // 2, first
        self.taps = self.reach if first else self.reach + 1
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.taps, kernel_size))
        self.horizontal = nn.Linear((self.taps + 1) * channels, 2 * channels)  # of what lies left, and of v
        self.residual = None if last else nn.Linear(channels, channels)

    def forward(
        self, v: Tensor, h: Tensor, bias: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both stacks one layer on.

        Args:
            v: (B, rows, columns, channels) vertical stack, which knows the rows above.
            h: (B, rows, columns, channels) horizontal stack, which knows the row to the left, too.
            bias: (B, 4 * channels) of the condition, for the vertical and the horizontal gate.
            keep: (B, 2 * channels) factors of channel dropout on the gates' outputs.

        Returns:
            v, h, and the horizontal gate's output, all of h's shape.
        """
        biases = (None, None) if bias is None else bias[:, None, None].chunk(2, -1)
        keeps = (None, None) if keep is None else keep[:, None, None].chunk(2, -1)
        seen = gate(self.above(v), biases[0])
        if keeps[0] is not None:
            seen = seen * keeps[0].to(seen.dtype)
        v = seen if self.first else v + seen
        out = gate(self.horizontal(columns(v, h, self.reach, self.taps)), biases[1])
        if keeps[1] is not None:
            out = out * keeps[1].to(out.dtype)
        if self.residual is not None:
            h = self.residual(out) if self.first else h + self.residual(out)
        return v, h, out

    def above(self, v: Tensor) -> Tensor:
        """(B, rows, columns, 2 * channels): the vertical convolution of v (B, rows, columns, channels).

        Padded here: the gradient of a convolution that pads takes three times as long in bf16 on a CPU.
        """
        padded = F.pad(v, (0, 0, self.reach, self.reach, self.reach, self.taps - 1 - self.reach))
        out: Tensor = self.vertical(padded.permute(0, 3, 1, 2))
        return out.permute(0, 2, 3, 1)


class GatedPixelCNN(nn.Module):
    """Distribution of every code of a grid given those before it in raster order: p(c) = prod_i p(c_i | c_<i).

    Args:
        codebook_size: K, number of codes.
        channels: of both stacks.
        layers: gated layers, the first included.
        kernel_size: of all layers but the first, odd.
        first_kernel: of the first layer, odd.
        hidden: channels of the output head.
        conditions: number of classes that a grid may be conditioned on; 0 builds no such condition.
        vectors: length of the vectors that it may be conditioned on instead; all zero is unknown; 0: none.
        dropout: share of the gates' output channels that are dropped in training, whole channels of a grid.
        position: (rows, columns) of the only grid size that the network is for, which then has an embedding of the
            position, and one more for every class, added to it, or mixed by a vector; None serves any size and treats
            all positions alike.

    Raises:
        ValueError: an even kernel, a size too small, or dropout outside [0, 1).
    """

    def __init__(
        self,
        codebook_size: int,
        channels: int = 64,
        layers: int = 8,
        kernel_size: int = 3,
        first_kernel: int = 5,
        hidden: int = 128,
        conditions: int = 0,
        vectors: int = 0,
        dropout: float = 0.0,
        position: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if min(codebook_size, channels, layers, hidden) < 1 or conditions < 0:
            sizes = f"{codebook_size}, {channels}, {layers}, {hidden}; {conditions}"
            raise ValueError(f"codebook_size, channels, layers, hidden must be at least 1, conditions 0, got {sizes}")
        if any(k < 3 or k % 2 == 0 for k in (kernel_size, first_kernel)):
            raise ValueError(f"kernel_size and first_kernel must be odd, at least 3, got {kernel_size}, {first_kernel}")
        if vectors < 0 or (vectors and conditions):
            raise ValueError(f"vectors must be at least 0, and 0 beside conditions, got {vectors} and {conditions}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.codebook_size, self.channels, self.conditions, self.dropout = codebook_size, channels, conditions, dropout
        self.grid = tuple(position) if position else None
        self.embedding = nn.Embedding(codebook_size, channels)
        kernels = [first_kernel, *[kernel_size] * (layers - 1)]
        self.layers = nn.ModuleList(GatedLayer(channels, k, n == 0, n == layers - 1) for n, k in enumerate(kernels))
        self.mix = nn.Linear(layers * channels, hidden)
        self.logits = nn.Linear(hidden, codebook_size)
        self.condition: nn.Embedding | nn.Linear | None = None
        if conditions:
            self.condition = nn.Embedding(conditions + 1, layers * 4 * channels)  # last: unknown
        elif vectors:
            self.condition = nn.Linear(vectors, layers * 4 * channels)
            nn.init.zeros_(self.condition.bias)
        patterns = RANK if vectors else conditions
        self.mixture = nn.Linear(vectors, RANK, bias=False) if position and vectors else None
        self.position = nn.Parameter(torch.empty(*position, 2 * channels + hidden)) if position else None
        both = position and patterns
        self.places = nn.Parameter(torch.zeros(patterns, *self.position.shape)) if both else None  # type: ignore[union-attr]
        if self.condition is not None:
            nn.init.zeros_(self.condition.weight)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)

    @property
    def draws(self) -> int:
        """Uniform numbers that a grid's dropout takes in training; 0 without dropout."""
        return len(self.layers) * 2 * self.channels if self.dropout else 0

    def forward(self, codes: Tensor, condition: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Logits of every code given those before it.

        Args:
            codes: (B, h, w) int64 in [0, codebook_size).
            condition: (B,) int64 in [-1, conditions), -1 where unknown; or (B, vectors), 0 where unknown; None: all
                unknown.
            noise: (B, draws) uniform in [0, 1), the numbers that decide dropout in training; None draws them from
                the global generator. Without dropout or in evaluation it is not used.

        Returns:
            (B, codebook_size, h, w) float32, unnormalised; position (i, j) depends on codes before it alone. In
            memory the K numbers of a position lie together.

        Raises:
            ValueError: the grid is not of the size the network's position embedding is for, or the condition is not
                of the network's kind.
        """
        logits: Tensor = self.logits(self._features(codes, condition, noise))
        return logits.float().permute(0, 3, 1, 2)

    def nll(
        self, codes: Tensor, condition: Tensor | None = None, noise: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood: `losses.code.nll` of `forward`, in less time.

        Args:
            codes: as in `forward`, and so the next two.
            condition: the same.
            noise: the same.
            seen: (B, h, w) int64, what the network is shown in place of the codes before each; None: the codes.

        Returns:
            (B,) float32, nats per code.
        """
        features = self._features(codes if seen is None else seen, condition, noise)
        return linear_nll(features, self.logits.weight, self.logits.bias, codes)

    def _features(self, codes: Tensor, condition: Tensor | None, noise: Tensor | None) -> Tensor:
        """What the last linear layer is given, (B, h, w, hidden)."""
        self.check(codes.shape[1:], condition)
        biases, keep = self.biases(condition, len(codes)), self._keep(noise, codes)
        parts = [self.channels, self.channels, self.mix.out_features]
        place = self.place(condition)
        place = None if place is None else place.split(parts, -1)
        v = h = self.embedding(codes)
        outs = []
        for n, layer in enumerate(self.layers):
            v, h, out = layer(v, h, None if biases is None else biases[:, n], None if keep is None else keep[:, n])
            if n == 0 and place is not None:
                v, h = v + place[0].to(v.dtype), h + place[1].to(h.dtype)
            outs.append(out)
        mixed = self.mix(torch.cat(outs, -1))
        return F.relu(mixed if place is None else mixed + place[2].to(mixed.dtype))

    def gated(self) -> list[GatedLayer]:
        """The gated layers, from the first to the last."""
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    def biases(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """(B, layers, 4 * channels) of a condition, unknown where it is None; None without conditions."""
        if self.condition is None:
            return None
        if isinstance(self.condition, nn.Linear):
            weight, bias = self.condition.weight, self.condition.bias
            z = weight.new_zeros(batch, weight.shape[1]) if condition is None else condition
            return F.linear(z, weight.to(z.dtype), bias.to(z.dtype)).view(batch, len(self.layers), -1)
        if condition is None:
            condition = torch.full((batch,), -1, device=self.condition.weight.device)
        known = torch.where(condition < 0, self.conditions, condition)
        biases: Tensor = self.condition(known)
        return biases.view(batch, len(self.layers), -1)

    def place(self, condition: Tensor | None) -> Tensor | None:
        """Embedding of the position (1 or B, rows, columns, 2 * channels + hidden) under a condition or None."""
        if self.position is None or self.places is None or condition is None:
            return None if self.position is None else self.position[None]
        if self.mixture is not None:
            shares = F.linear(condition, self.mixture.weight.to(condition.dtype))
            mixed = shares @ self.places.flatten(1).to(shares.dtype)
            return self.position + mixed.view(-1, *self.position.shape)
        own = F.embedding(condition.clamp(min=0), self.places.flatten(1)).view(-1, *self.position.shape)
        return self.position + own * (condition >= 0).view(-1, 1, 1, 1)

    def _keep(self, noise: Tensor | None, codes: Tensor) -> Tensor | None:
        """(B, layers, 2 * channels) factors of channel dropout: 0, or 1 / (1 - dropout)."""
        if not self.training or not self.dropout:
            return None
        if noise is None:
            noise = torch.rand(len(codes), self.draws, device=codes.device)
        return ((noise >= self.dropout).float() / (1 - self.dropout)).view(len(codes), len(self.layers), -1)

    def check(self, shape: Sequence[int], condition: Tensor | None) -> None:
        """Raise a ValueError where a grid of this shape or a condition is not what the network was built for."""
        if self.grid is not None and tuple(shape) != self.grid:
            raise ValueError(f"grid of codes is {tuple(shape)}, but the network's position is for {self.grid}")
        if condition is not None and self.condition is None:
            raise ValueError("a condition was given to a network built with conditions=0 and vectors=0")
        vectors = self.condition.in_features if isinstance(self.condition, nn.Linear) else None
        if condition is not None and (vectors is not None) != condition.is_floating_point():
            wants = f"vectors of {vectors} numbers" if vectors else "whole numbers, of classes"
            raise ValueError(f"the network is conditioned on {wants}, got {condition.dtype} {tuple(condition.shape)}")


def exchanged(codes: Tensor, share: float, noise: Tensor) -> Tensor:
    """Grids in which a share of the codes is exchanged for codes from other places of the same grid.

    A network that is shown such grids in training goes on from a code that fits nowhere, which in samples there
    always is at last, as if it were not there, and not as if the image were another.

    Args:
        codes: (B, h, w) int64.
        share: of the places.
        noise: (B, 2 h w) uniform in [0, 1): which places, and what from where.

    Returns:
        (B, h, w) int64.
    """
    flat = codes.flatten(1)
    which, whence = noise.chunk(2, 1)
    others = flat.gather(1, (whence * flat.shape[1]).long())
    return torch.where(which < share, others, flat).view_as(codes)


def unknown(condition: Tensor) -> Tensor:
    """The condition of which nothing is known.

    Args:
        condition: (B,) int64 of classes, or (B, D) vectors.

    Returns:
        The same shape: -1, or 0.
    """
    return torch.zeros_like(condition) if condition.is_floating_point() else torch.full_like(condition, -1)
