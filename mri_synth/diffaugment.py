"""Differentiable augmentation of all that a discriminator sees, so that few images last longer: reals and fakes alike.

Sources: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv:2006.10738), for the
policies and that reals and fakes are augmented in both updates; Karras et al. 2020, "Training Generative Adversarial
Networks with Limited Data" (arXiv:2006.06676), for a strength that follows the discriminator. What is changed for MRI:
beyond a shifted frame and in a cut is air (-1) and not grey, and intensities are multiplied and not raised, since
nothing may light up the air around a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mri_synth.draws import uniform
from mri_synth.errors import UserError

Policy = Literal["translation", "cutout", "intensity"]
SHIFT, CUT, INTENSITY = 1 / 8, 1 / 2, 1 / 2
"""At strength 1: largest shift and side of the cut as shares of the image's (Zhao's), largest change of intensity."""
P_MOST = 0.8
"""Karras 2020, section 2.2: below it what augmentation does is unlikely to leak into samples."""

_AIR = -1.0
_DRAWS = 9
_STREAMS = 44
"""Bit of the seed at which our streams begin, away from those of latents and of the data's augmentation."""


class DiffAugment(nn.Module):
    """Augments a batch for the discriminator; gradients flow through to the images.

    As in Zhao's, reals, fakes of the discriminator's update and fakes of the generator's are drawn independently; an
    item's draws depend on (seed, step, item, use) alone, and those of one policy not on which others there are.
    """

    def __init__(
        self, policy: Sequence[Policy] = get_args(Policy), strength: float = 1.0, adaptive: bool = False,
        target: float = 0.6, kimg: float = 500.0,
    ) -> None:  # fmt: skip
        """Choose what is done.

        Args:
            policy: what is done, in this order; nothing leaves images as they are.
            strength: factor of all magnitudes, in [0, 1]; 0 changes nothing.
            adaptive: each policy is applied to an item with the probability of an `AdaptiveStrength`, else always.
            target: of the adaptive strength.
            kimg: of the adaptive strength.

        Raises:
            UserError: an unknown policy, one given twice, or a strength outside [0, 1].
        """
        super().__init__()
        unknown = [name for name in policy if name not in get_args(Policy)]
        if unknown or len(set(policy)) < len(policy) or not 0 <= strength <= 1:
            raise UserError(f"differentiable augmentation of policy={list(policy)} and strength={strength}: known are "
                            f"{', '.join(get_args(Policy))}, each once, with a strength from 0 to 1")  # fmt: skip
        self.policy, self.strength = tuple(policy), strength
        self.adaptive = AdaptiveStrength(target, kimg) if adaptive and policy and strength else None

    def forward(self, images: Tensor, seed: int, step: int, items: Tensor, use: int) -> Tensor:
        """Augmented images.

        Args:
            images: (B, C, H, W), air at -1; a condition beside an image is further channels of it.
            seed: of the run.
            step: number of the step.
            items: (B,) int64 item numbers.
            use: 0 for reals, 1 for fakes that the discriminator learns from, 2 for fakes that the generator learns
                from. Any other number has draws of its own too.

        Returns:
            (B, C, H, W) float32; intensities may exceed 1.
        """
        if not self.policy or not self.strength:
            return images
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            u = uniform(seed + ((use + 1) << _STREAMS), step, items.to(images.device), _DRAWS)
            for name in self.policy:
                changed, decision = self._change(name, images, u)
                if self.adaptive is not None:
                    changed = torch.where((decision < self.adaptive.p)[:, None, None, None], changed, images)
                images = changed
            return images

    def _change(self, name: Policy, images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Images after one policy, and (B,) the number that decides whether it is applied."""
        height, width = images.shape[2:]
        if name == "translation":
            most = [int(side * SHIFT * self.strength + 0.5) for side in (height, width)]
            shift = [(u[:, i] * (2 * most[i] + 1)).long() - most[i] for i in range(2)]
            return translate(images, torch.stack(shift, 1)), u[:, 6]
        if name == "cutout":
            h, w = (int(side * CUT * self.strength + 0.5) for side in (height, width))
            centre = [(u[:, 2] * (height + 1 - h % 2)).long(), (u[:, 3] * (width + 1 - w % 2)).long()]
            return cut_out(images, torch.stack(centre, 1), (h, w)), u[:, 7]
        signed = INTENSITY * self.strength * (2 * u[:, 4:6] - 1)
        return change_intensity(images, 1 + signed[:, 0], signed[:, 1]), u[:, 8]


class AdaptiveStrength(nn.Module):
    """Karras 2020: the probability p of augmenting follows how sure the discriminator is of what it has seen.

    `r = E[sign D(real)]; p += sign(r - target) n / (1000 kimg)`, every 4 steps, over the n reals since the last.

    With r = 1 it knows every training image by heart, with r = 0 it cannot tell. All state is in buffers, equal on
    all ranks after every step.

    Attributes:
        p: () float32 in [0, 0.8], at first 0.
        r: () float32 in [-1, 1], of the last change of p.
        seen: (2,) float32, sum of signs and number of reals since then.
    """

    p: Tensor
    r: Tensor
    seen: Tensor

    def __init__(self, target: float = 0.6, kimg: float = 500.0, every: int = 4) -> None:
        """Start without augmentation.

        Args:
            target: of r (Karras 2020: 0.6).
            kimg: thousands of reals in which p can go from 0 to 1 (Karras 2020: 500).
            every: steps between changes (Karras 2020: 4).
        """
        super().__init__()
        self.target, self.kimg, self.every = target, kimg, every
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("r", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2))
        self._fresh: list[Tensor] = []

    @torch.no_grad()
    def observe(self, logits: Tensor, decision: float = 0.0) -> None:
        """Note what the discriminator says of augmented reals; once for each part of a step.

        Args:
            logits: (B, ...), of patches or not.
            decision: the logit between real and fake: 0, or 0.5 for LSGAN's targets 0 and 1.
        """
        signs = torch.sign(logits.float() - decision).reshape(len(logits), -1).mean(1)
        self._fresh.append(torch.stack([signs.sum(), signs.new_full((), len(signs))]))

    @torch.no_grad()
    def adjust(self, step: int) -> None:
        """End a step: add up what all ranks have seen, and change p on every 4th. All ranks must call it.

        Args:
            step: its number, from 0.
        """
        fresh = torch.stack(self._fresh).sum(0) if self._fresh else torch.zeros_like(self.seen)
        self._fresh.clear()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(fresh)  # every step: a wrapper that hands out rank 0's buffers then hands out everyone's
        self.seen += fresh
        if (step + 1) % self.every == 0:
            signs, number = self.seen
            self.r.copy_(signs / number.clamp(min=1))
            self.p.add_(torch.sign(self.r - self.target) * number / (1000 * self.kimg)).clamp_(0, P_MOST)
            self.seen.zero_()


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """Images moved by whole pixels, air coming in.

    `y_ij = x_(i-a)(j-b)`, -1 beyond the frame.

    Args:
        images: (B, C, H, W), air at -1.
        shift: (B, 2) int64 pixels down and to the right.

    Returns:
        (B, C, H, W) in the dtype of the images.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - shift[:, :1]
    columns = torch.arange(width, device=images.device) - shift[:, 1:]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    moved = images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view(images.shape)
    return moved.masked_fill(~_inside(rows, height, columns, width), _AIR)


def cut_out(images: Tensor, centre: Tensor, side: tuple[int, int]) -> Tensor:
    """Images with a rectangle of air, cut off at the border.

    `y_ij = -1 for a - h // 2 <= i < a - h // 2 + h, and j alike; else x_ij`

    Args:
        images: (B, C, H, W), air at -1.
        centre: (B, 2) int64, a and b.
        side: height h and width of the rectangle in pixels.

    Returns:
        (B, C, H, W) in the dtype of the images.
    """
    rows, columns = (
        torch.arange(images.shape[2 + i], device=images.device) - centre[:, i : i + 1] + side[i] // 2 for i in range(2)
    )
    return images.masked_fill(_inside(rows, side[0], columns, side[1]), _AIR)


def change_intensity(images: Tensor, gain: Tensor, contrast: Tensor) -> Tensor:
    """Brightness and contrast of MRI: air stays air, and contrast leaves each channel's mean as it is.

    `v = g u (1 + c (u - m)), u = (x + 1) / 2, m = sum u^2 / sum u`

    The mean of v is g times that of u, since `sum u (u - m) = 0`. v rises with u on [0, 1] for c in [-1/2, 1], so no
    two intensities change places. Nothing is cut off, which would stop gradients.

    Args:
        images: (B, C, H, W), air at -1.
        gain: (B,) g, positive.
        contrast: (B,) c, in [-1/2, 1].

    Returns:
        (B, C, H, W); x itself, to the bit, for g = 1 and c = 0.
    """
    g, c = gain[:, None, None, None], contrast[:, None, None, None]
    u = (images + 1) / 2
    m = u.square().sum((2, 3), keepdim=True) / u.sum((2, 3), keepdim=True).clamp(min=1e-6)
    m = m.clamp(max=1)  # of images in [-1, 1] it is; a generator without tanh may begin elsewhere
    return images + 2 * u * (g * (1 + c * (u - m)) - 1)


def _inside(rows: Tensor, height: int, columns: Tensor, width: int) -> Tensor:
    """(B, 1, H, W): where 0 <= row < height and 0 <= column < width, of (B, H) rows and (B, W) columns."""
    down, across = ((x >= 0) & (x < most) for x, most in ((rows, height), (columns, width)))
    return down[:, None, :, None] & across[:, None, None, :]
