"""What a gated PixelCNN keeps of the codes so far, so that the next one costs nothing that was computed before.

The vertical stack knows the rows above alone, so it is computed once a row, for all columns at once; the horizontal
stack advances code by code on what it has kept of its left neighbours. Each advance is a matrix product into a buffer
that stands, read through views that are made once. Source of caching: Ramachandran et al. 2017, "Fast Generation for
Convolutional Autoregressive Models" (arXiv:1704.06001).

A gate takes one sigmoid: with tanh(f) = 2 sigmoid(2f) - 1, the weights of f doubled and s = sigmoid(x),
`s_g - 2 s_f s_g = -tanh(f) sigmoid(g)`, and the weights that follow take the sign back.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from mri_synth.networks.pixelcnn import GatedLayer, GatedPixelCNN


class Cache:
    """A batch of grids on their way; call `start_row`, then `logits` and `append` column by column.

    Args:
        network: whose weights are packed here, once.
        batch: B, number of grids.
        width: columns of a grid.
        condition: (B,) int64 or (B, D) vectors, or None.
        dtype: of all arithmetic.
    """

    def __init__(
        self, network: GatedPixelCNN, batch: int, width: int, condition: Tensor | None, dtype: torch.dtype
    ) -> None:
        c, hidden, depth = network.channels, network.mix.out_features, len(network.layers)
        self.embedding = network.embedding.weight.to(dtype)
        make = self.embedding.new_zeros
        if condition is not None and condition.is_floating_point():
            condition = condition.to(dtype)
        place = network.place(condition)
        place = make(1, 1, width, 2 * c + hidden) if place is None else place.to(dtype)
        self.position = place.movedim(0, 2)  # rows, columns, 1 or B, channels
        biases = network.biases(condition, batch)
        biases = make(batch, depth, 4 * c) if biases is None else biases.to(dtype)
        outs = make(batch, depth, c + 1)  # of the gates, negated; the 1 at the end meets the bias of what follows
        outs[..., c] = 1
        self.layers = [_LayerCache(layer, biases[:, n], outs[:, n], width) for n, layer in enumerate(network.gated())]

        mix = make(depth, c + 1, hidden)
        mix[:, :c] = -network.mix.weight.to(dtype).t().unflatten(0, (depth, c))
        mix[0, c] = network.mix.bias
        self.outs, self.mix = outs.flatten(1), mix.flatten(0, 1)
        self.head = network.logits.weight.to(dtype).t().contiguous()
        self.head_bias = network.logits.bias.to(dtype)
        self.hidden, self.out = make(batch, hidden), make(batch, network.codebook_size)
        self.places, self.mix_places = make(width, batch, c), make(width, batch, hidden)

        carried = [list(self.places), *(layer.here for layer in self.layers[1:])]
        self.steps = [
            [layer.step(j, carried[n][j], after.here[j]) for n, (layer, after) in enumerate(pairwise(self.layers))]
            for j in range(width)
        ]
        self.last = [self.layers[-1].step(j, carried[-1][j], self.layers[-1].here[j]) for j in range(width)]

    def start_row(self, i: int, above: Tensor) -> None:
        """Take the vertical stack down to row i, under the codes (B, width) of row i - 1 (of any, where i is 0)."""
        place = self.position[i if len(self.position) > 1 else 0]
        c = self.places.shape[2]
        self.places.copy_(place[..., c : 2 * c])
        self.mix_places.copy_(place[..., 2 * c :])
        if i:
            self.layers[0].push(F.embedding(above, self.embedding))
        v = -self.layers[0].vertical()
        self.layers[0].link(v)
        v += place[..., :c].movedim(0, 1)
        for layer in self.layers[1:]:
            layer.push(v)
            v = v - layer.vertical()
            layer.link(v)

    def logits(self, j: int) -> Tensor:
        """(B, K) of column j, whose left neighbours were appended; overwritten by the next call."""
        for row, window, weight, x, f, g, out, carried, ones, residual, after in self.steps[j]:
            torch.addmm(row, window, weight, out=x).sigmoid_()
            torch.addcmul(g, f, g, value=-2, out=out)
            torch.addmm(carried, ones, residual, out=after)
        row, window, weight, x, f, g, out = self.last[j][:7]
        torch.addmm(row, window, weight, out=x).sigmoid_()
        torch.addcmul(g, f, g, value=-2, out=out)
        torch.addmm(self.mix_places[j], self.outs, self.mix, out=self.hidden).relu_()
        return torch.addmm(self.head_bias, self.hidden, self.head, out=self.out)

    def append(self, j: int, codes: Tensor) -> None:
        """Take the codes (B,) that were chosen for column j."""
        self.layers[0].here[j].copy_(F.embedding(codes, self.embedding))


class _LayerCache:
    """One gated layer: its packed weights, the last rows of its vertical input, the row of its horizontal input."""

    def __init__(self, layer: GatedLayer, bias: Tensor, out: Tensor, width: int) -> None:
        batch, c, dtype = len(out), out.shape[1] - 1, out.dtype
        make = out.new_zeros
        double = torch.cat([make(c) + 2, make(c) + 1])
        above, beside = layer.vertical.weight.to(dtype), layer.horizontal.weight.to(dtype)
        link, left = beside.split([c, layer.taps * c], 1)
        self.above = (above * double[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        self.beside = (link * double[:, None])[:, :, None, None].contiguous(memory_format=torch.channels_last)
        self.left = (left.t() * double).contiguous()
        biases = [layer.vertical.get_parameter("bias"), layer.horizontal.bias]
        self.biases = [((own + b) * double)[:, None] for own, b in zip(biases, bias.chunk(2, 1), strict=True)]
        self.rows = make(batch, layer.taps, width, c)
        self.row = make(batch, width, 2 * c)
        self.kept = make(batch, layer.reach + width, c)
        self.reach, self.taps = layer.reach, layer.taps
        self.here = list(self.kept[:, layer.reach :].unbind(1))
        self.now, self.out = make(batch, 2 * c), out
        self.residual = make(c + 1, c)
        if layer.residual is not None:
            self.residual[:c] = -layer.residual.weight.t()
            self.residual[c] = layer.residual.bias

    def push(self, v: Tensor) -> None:
        """A further row (B, width, C) of the vertical input; the oldest is forgotten."""
        self.rows = torch.cat([self.rows[:, 1:], v[:, None]], 1)

    def vertical(self) -> Tensor:
        """The vertical gate of the row, negated, (B, width, C)."""
        x = F.conv2d(self.rows.permute(0, 3, 1, 2), self.above, padding=(0, self.reach))
        f, g = x.permute(0, 2, 3, 1)[:, 0].add_(self.biases[0]).sigmoid_().chunk(2, 2)
        return torch.addcmul(g, f, g, value=-2)

    def link(self, v: Tensor) -> None:
        """What the vertical stack (B, width, C) adds to the horizontal gates of the row."""
        x = F.conv2d(v[:, None].permute(0, 3, 1, 2), self.beside)
        torch.add(x.permute(0, 2, 3, 1)[:, 0], self.biases[1], out=self.row)

    def step(self, j: int, carried: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        """The views and weights by which column j goes through the layer, in the order of `Cache.logits`."""
        c = self.kept.shape[2]
        window = self.kept.flatten(1)[:, j * c : (j + self.taps) * c]
        f, g = self.now.chunk(2, 1)
        return (
            self.row[:, j],
            window,
            self.left,
            self.now,
            f,
            g,
            self.out[:, :c],
            carried,
            self.out,
            self.residual,
            after,
        )
