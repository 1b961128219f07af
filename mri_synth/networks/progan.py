"""Generator and discriminator that grow (Karras et al. 2018, arXiv:1710.10196, tables 2 and 3).

Stage 0 makes 4x4 images, every later one twice as large. Which stage is asked for, and how far it is faded in, is said
with every call: the networks know no time. Doubling and halving are part of a convolution, as in the paper's code
(`fused_scale`): the same numbers as enlarging first, or as pooling before the activation, at less than half the work.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mri_synth.networks.conditional import LatentWithLabel, truncated

FIRST = 4
"""Side of the images of stage 0."""
_RELU = math.sqrt(2)
_EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Each pixel's vector of channels brought to unit mean square, so that no signal can escalate.

    `b = a / sqrt(mean_c a_c^2 + 1e-8)` (Karras et al. 2018, section 4.2)

    Args:
        x: (B, C, H, W) or (B, C).

    Returns:
        The same shape and type; the mean is taken in float32.
    """
    with torch.autocast(x.device.type, enabled=False):  # torch's kernel of the formula is three times faster than ours
        return F.rms_norm(x.movedim(1, -1), (x.shape[1],), eps=_EPS).movedim(-1, 1)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """One more channel: how much the images of a group differ, which shows a discriminator that all fakes are alike.

    `s = mean_cij sqrt(var_n x_ncij + 1e-8)` over the n of a group (Karras et al. 2018, section 3, and its code)

    With M groups, group m holds the images m, m + M, m + 2M, ... of the batch. Of a batch that is shared out among
    processes, each of which takes every world-th image, a process then holds whole groups: two processes with b images
    have the groups of one with 2b, where b is a multiple of `group`.

    Args:
        x: (B, C, H, W).
        group: images of a group; of a batch that it does not divide the largest number below that does.

    Returns:
        (B, C + 1, H, W), of the type of x; the statistic is made in float32.
    """
    size = max(g for g in range(1, min(group, len(x)) + 1) if len(x) % g == 0)
    with torch.autocast(x.device.type, enabled=False):
        y = x.float().unflatten(0, (size, -1))
        s = (y.var(0, correction=0) + _EPS).sqrt().mean((1, 2, 3))
        channel = s.repeat(size).to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return torch.cat([x, channel], 1)


def halved(x: Tensor) -> Tensor:
    """Images at half the side, by the mean of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def enlarged(x: Tensor, factor: int = 2) -> Tensor:
    """Images with every pixel repeated `factor` times along both sides."""
    return F.interpolate(x, scale_factor=float(factor), mode="nearest") if factor > 1 else x


class EqualizedConv2d(nn.Module):
    """Convolution whose weights are drawn from N(0, 1) and scaled when used: `w^ = w gain / sqrt(fan_in)`.

    Adam's steps are as large for all weights, and so, by the scale, is the speed with which all layers learn
    (section 4.1).

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the kernel, odd; 3 where the sides change.
        resize: "none", "up" to double the sides first, "down" to halve them afterwards.
        gain: He et al. 2015: sqrt(2) before a rectifier, 1 before none.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, resize: str = "none", gain: float = _RELU) -> None:
        super().__init__()
        if resize != "none" and kernel != 3:
            raise ValueError(f"a kernel of 3 can double or halve, got {kernel}")
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.resize, self.padding = gain / math.sqrt(inputs * kernel**2), resize, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), (..., 2H, 2W) or (..., H / 2, W / 2)."""
        if self.resize == "up":  # [w] on pixels that are repeated is [w + w shifted by one] on those between zeros
            kernel = _spread(self.weight * self.scale).flip(2, 3).transpose(0, 1)
            return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)
        if self.resize == "down":
            return F.conv2d(x, _spread(self.weight * (self.scale / 4)), self.bias, stride=2, padding=1)
        if self.weight.shape[1:] == (1, 1, 1):  # a convolution of one channel forgets channels_last, and all after it
            return F.linear(x.movedim(1, -1), self.weight.flatten(1) * self.scale, self.bias).movedim(-1, 1)
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def _spread(weight: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 4, 4): the sum of the four ways to lay the one into the other."""
    x = F.pad(weight, (1, 1, 1, 1))
    x = x[..., 1:] + x[..., :-1]
    return x[..., 1:, :] + x[..., :-1, :]


class EqualizedLinear(nn.Module):
    """Matrix product with the weights of `EqualizedConv2d`.

    Args:
        inputs: numbers.
        outputs: numbers.
        gain: as there.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = _RELU) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return F.linear(x, self.weight * self.scale, self.bias)


def stages(size: int) -> int:
    """How many stages lead to images of a size: 4 has one, 8 two.

    Args:
        size: image side, a power of 2 of at least 4.

    Returns:
        The number.

    Raises:
        ValueError: another size.
    """
    if size < FIRST or size & (size - 1):
        raise ValueError(f"size must be a power of 2 of at least {FIRST}, got {size}")
    return size.bit_length() - FIRST.bit_length() + 1


def widths(size: int, base: int, most: int) -> list[int]:
    """Channels at every stage: `base` over the image side, twice that at half the side, and never more than `most`.

    Args:
        size: image side of the last stage.
        base: the paper's fmap_base, 8192.
        most: the paper's fmap_max, 512.

    Returns:
        One number per stage, at least 1.
    """
    return [max(min(2 * base // (FIRST << stage), most), 1) for stage in range(stages(size))]


class ProGenerator(nn.Module):
    """Latent numbers to images of any stage.

    Args:
        latent_dim: numbers of z.
        channels: of the image.
        size: image side of the last stage.
        base: channels times image side, halved; see `widths`.
        most: most channels of a layer.
        classes: labels that an image can be asked for; 0: none.
    """

    def __init__(self, latent_dim: int, channels: int, size: int, base: int, most: int, classes: int = 0) -> None:
        super().__init__()
        width = widths(size, base, most)
        self.latent_dim = latent_dim
        self.input = LatentWithLabel(latent_dim, classes)
        self.dense = EqualizedLinear(self.input.features, width[0] * FIRST**2, gain=_RELU / 4)
        self.first = EqualizedConv2d(width[0], width[0])
        self.up = nn.ModuleList(EqualizedConv2d(a, b, resize="up") for a, b in pairwise(width))
        self.conv = nn.ModuleList(EqualizedConv2d(b, b) for b in width[1:])
        self.to_image = nn.ModuleList(EqualizedConv2d(w, channels, kernel=1, gain=1.0) for w in width)

    def begin(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The first features (B, C, 4, 4) of latents (B, latent_dim)."""
        return _normed(self.dense(pixel_norm(self.input(z, label))).unflatten(1, (-1, FIRST, FIRST)))

    def forward(
        self, z: Tensor, stage: int, alpha: float = 1.0, label: Tensor | None = None, truncation: float = 1.0
    ) -> Tensor:
        """Images of a stage.

        Args:
            z: (B, latent_dim), from N(0, 1).
            stage: 0 is 4x4.
            alpha: how far the stage is faded in; at 0 the image is the enlarged one of the stage below.
            label: (B,) int64, -1 where unknown.
            truncation: below 1, images are nearer to the typical one.

        Returns:
            (B, channels, side, side) float32, about [-1, 1].
        """
        x = truncated(self.begin(z, label), self.begin, self.latent_dim, label, truncation)
        x = below = _normed(self.first(x))
        for up, conv in zip(self.up[:stage], self.conv[:stage], strict=True):
            below = x
            x = _normed(conv(_normed(up(x))))
        image: Tensor = self.to_image[stage](x).float()
        if stage and alpha < 1:
            image = torch.lerp(enlarged(self.to_image[stage - 1](below).float()), image, alpha)
        return image


def _normed(x: Tensor) -> Tensor:
    return pixel_norm(F.leaky_relu(x, 0.2))


class ProDiscriminator(nn.Module):
    """Images of any stage to one number each. Labels enter by projection (Miyato & Koyama 2018, arXiv:1802.05637).

    Args:
        channels: of the image.
        size: image side of the last stage.
        base: channels times image side, halved; see `widths`.
        most: most channels of a layer.
        group: images whose standard deviation the last convolution sees; 1: it sees none.
        classes: labels; 0: none.
    """

    def __init__(self, channels: int, size: int, base: int, most: int, group: int = 4, classes: int = 0) -> None:
        super().__init__()
        width = widths(size, base, most)
        self.group, self.classes = group, classes
        self.from_image = nn.ModuleList(EqualizedConv2d(channels, w, kernel=1) for w in width)
        self.conv = nn.ModuleList(EqualizedConv2d(w, w) for w in width[1:])
        self.down = nn.ModuleList(EqualizedConv2d(b, a, resize="down") for a, b in pairwise(width))
        self.last = EqualizedConv2d(width[0] + (group > 1), width[0])
        self.dense = EqualizedLinear(width[0] * FIRST**2, width[0])
        self.out = EqualizedLinear(width[0], 1 + classes, gain=1.0)

    def forward(self, image: Tensor, stage: int, alpha: float = 1.0, label: Tensor | None = None) -> Tensor:
        """Logits; high for what looks real.

        Args:
            image: (B, channels, side, side) of the stage.
            stage: 0 is 4x4.
            alpha: how far the stage is faded in; at 0 only the halved image is looked at.
            label: (B,) int64, -1 where unknown.

        Returns:
            (B,) float32.
        """
        x = F.leaky_relu(self.from_image[stage](image), 0.2)
        for at in range(stage, 0, -1):
            x = F.leaky_relu(self.down[at - 1](F.leaky_relu(self.conv[at - 1](x), 0.2)), 0.2)
            if at == stage and alpha < 1:
                x = torch.lerp(F.leaky_relu(self.from_image[at - 1](halved(image)), 0.2), x, alpha)
        if self.group > 1:
            x = minibatch_stddev(x, self.group)
        x = F.leaky_relu(self.last(x), 0.2)
        logits = self.out(F.leaky_relu(self.dense(x.flatten(1)), 0.2)).float()
        plain: Tensor = logits[:, 0]
        if not self.classes or label is None:
            return plain
        of_label: Tensor = logits.gather(1, 1 + label.clamp(min=0)[:, None])[:, 0]
        return plain + of_label * (label >= 0)
