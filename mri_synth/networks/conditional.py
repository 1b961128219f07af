"""Class conditions of a generator and a discriminator; a label of -1 is unknown.

Sources: Mirza and Osindero 2014, "Conditional Generative Adversarial Nets" (arXiv:1411.1784), whose generator takes
the label beside the noise; Miyato and Koyama 2018, "cGANs with Projection Discriminator" (arXiv:1802.05637).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mri_synth.draws import normal

_TYPICAL, _DRAWN = 1 << 37, 512
"""Seed of the latents whose mean features are the typical image's, away from that of samples, and their number."""


class LatentWithLabel(nn.Module):
    """A generator's input: the latent with the label's embedding after it, and without classes the latent alone.

    An unknown label has the mean of all embeddings.

    Attributes:
        features: numbers per item that come out, D.
    """

    def __init__(self, latent_dim: int, classes: int, embedding_dim: int = 32) -> None:
        """Embeddings of standard normal numbers, as the latent is.

        Args:
            latent_dim: numbers of a latent.
            classes: how many; 0 for an unconditional generator.
            embedding_dim: numbers of a label.
        """
        super().__init__()
        self.embedding = nn.Embedding(classes, embedding_dim) if classes else None
        self.features = latent_dim + (embedding_dim if classes else 0)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """What the generator begins with.

        Args:
            z: (B, latent_dim).
            label: (B,) int64, -1 where unknown; None when all are.

        Returns:
            (B, D).
        """
        if self.embedding is None:
            return z
        mean = self.embedding.weight.mean(0, keepdim=True).expand(len(z), -1)
        if label is not None:
            mean = torch.where((label >= 0)[:, None], self.embedding(label.clamp(min=0)), mean)
        return torch.cat([z, mean.to(z.dtype)], 1)


def truncated(
    x: Tensor, begin: Callable[[Tensor, Tensor | None], Tensor], latent_dim: int, label: Tensor | None, share: float
) -> Tensor:
    """The truncation trick in a generator's first features: nearer to the mean of all, images are nearer to typical.

    `x' = m + share (x - m)`, `m = E[x] |x| / |E[x]|` over latents (Karras et al. 2019, arXiv:1812.04948, appendix B,
    whose w they stand for; at the length that features have, since norms follow). A factor on z would do nothing before
    a norm, which takes it out again.

    Args:
        x: (B, ...) first features.
        begin: latents (N, latent_dim) and labels to such features.
        latent_dim: numbers of a latent.
        label: (B,) int64, -1 where unknown; None without classes.
        share: 1 leaves x as it is, at 0 all images of a label are one.

    Returns:
        Of the shape of x.
    """
    if share == 1:
        return x
    z = normal(_TYPICAL, 0, torch.arange(_DRAWN, device=x.device), latent_dim)
    known, which = (None, None) if label is None else label.unique(return_inverse=True)
    means = []
    for y in [None] if known is None else known:
        drawn = begin(z, None if y is None else y.expand(_DRAWN))
        mean = drawn.mean(0)
        means.append(mean * (drawn.square().mean() / mean.square().mean()).sqrt())
    mean = torch.stack(means)[which] if which is not None else means[0]
    return mean + share * (x - mean)


class ProjectionHead(nn.Module):
    """A discriminator's last layer: how real the features are, and how well they go with the label.

    `D(x, y) = w . h + b + e_y . h`, Miyato and Koyama 2018, eq. 3; e_y = 0 for an unknown label, so that such an item
    is judged by the first part alone. The logit is float32.
    """

    def __init__(self, features: int, classes: int) -> None:
        """One linear layer, and one vector per class.

        Args:
            features: F of h.
            classes: how many; 0 for an unconditional discriminator.
        """
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.embedding = nn.Embedding(classes, features) if classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=features**-0.5)  # both parts start at about the same size

    def forward(self, h: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            h: (B, F) features, pooled or flat.
            label: (B,) int64, -1 where unknown; None when all are.

        Returns:
            (B,) float32, positive for real.
        """
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            logit = self.linear(h)[:, 0]
            if self.embedding is not None and label is not None:
                fit = (self.embedding(label.clamp(min=0)) * h).sum(1)
                logit = logit + torch.where(label >= 0, fit, 0.0)
            out: Tensor = logit
            return out


def some_label(label: Tensor | None, number: Tensor, classes: int) -> Tensor:
    """Labels of samples: where none is asked for, a class chosen by a random number, each as often as the others.

    `y = floor(classes Phi(number))`, Phi the normal distribution function

    Between the classes, where the mean embedding lies, a generator has learned nothing unless it saw unlabelled images.

    Args:
        label: (n,) int64, -1 where any will do; None where any will do for all.
        number: (n,) standard normal.
        classes: how many.

    Returns:
        (n,) int64 in [0, classes).
    """
    drawn = (torch.special.ndtr(number) * classes).long().clamp(max=classes - 1)
    return drawn if label is None else torch.where(label >= 0, label, drawn)
