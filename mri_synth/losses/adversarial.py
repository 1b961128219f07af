"""Adversarial losses on logits, and penalties on the discriminator's gradient; per-sample tensors, float32.

Logits may be one per image, (B,) or (B, 1), or a map of them (B, 1, h, w), as of a patch discriminator: the loss of an
image is then the mean over its map. bfloat16 logits are taken to float32 first: softplus and means lose digits in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

GANLoss = Literal["logistic", "bce", "hinge", "lsgan", "wgan"]
"""Names of the losses; "bce" is another name of "logistic"."""


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of the discriminator: real images have the label 1, generated ones 0.

    `L_D = softplus(-D(x)) + softplus(D(G(z))) = -log s(D(x)) - log(1 - s(D(G(z))))`, s the sigmoid (Goodfellow et al.
    2014, arXiv:1406.2661, eq. 1)

    Args:
        real: (B, ...) logits of real images.
        fake: (B, ...) logits of generated images.

    Returns:
        (B,) float32, at least 0; 2 log 2 where the discriminator knows nothing.
    """
    return _each(softplus(-real.float())) + _each(softplus(fake.float()))


def logistic_generator(fake: Tensor) -> Tensor:
    """Cross-entropy of generated images with the label 1, which does not saturate where the discriminator wins.

    `L_G = softplus(-D(G(z))) = -log s(D(G(z)))`, s the sigmoid (Goodfellow et al. 2014, arXiv:1406.2661, section 3)

    Args:
        fake: (B, ...) logits of generated images.

    Returns:
        (B,) float32, at least 0.
    """
    return _each(softplus(-fake.float()))


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Margins of the discriminator: nothing is left to learn from a logit on the right side of 1 or -1.

    `L_D = max(0, 1 - D(x)) + max(0, 1 + D(G(z)))` (Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018,
    arXiv:1802.05957, eq. 16)

    Args:
        real: (B, ...) logits of real images.
        fake: (B, ...) logits of generated images.

    Returns:
        (B,) float32, at least 0.
    """
    return _each(relu(1 - real.float())) + _each(relu(1 + fake.float()))


def wgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Negative estimate of the Wasserstein distance; needs a gradient penalty.

    `L_D = D(G(z)) - D(x)` (Arjovsky et al. 2017, arXiv:1701.07875)

    Args:
        real: (B, ...) values of real images.
        fake: (B, ...) values of generated images.

    Returns:
        (B,) float32, any real number.
    """
    return _each(fake.float()) - _each(real.float())


def wgan_generator(fake: Tensor) -> Tensor:
    """Negative value of generated images; the generator's part of the hinge loss too.

    `L_G = -D(G(z))` (Arjovsky et al. 2017, arXiv:1701.07875; Miyato et al. 2018, arXiv:1802.05957, eq. 17)

    Args:
        fake: (B, ...) values of generated images.

    Returns:
        (B,) float32, any real number.
    """
    return -_each(fake.float())


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Squared distance to 1 of real images and to 0 of generated ones.

    `L_D = (D(x) - 1)^2 / 2 + D(G(z))^2 / 2` (Mao et al. 2017, arXiv:1611.04076, eq. 9)

    Args:
        real: (B, ...) values of real images.
        fake: (B, ...) values of generated images.

    Returns:
        (B,) float32, at least 0.
    """
    return 0.5 * (_each((real.float() - 1).square()) + _each(fake.float().square()))


def lsgan_generator(fake: Tensor) -> Tensor:
    """Squared distance of generated images to 1.

    `L_G = (D(G(z)) - 1)^2 / 2` (Mao et al. 2017, arXiv:1611.04076, eq. 9)

    Args:
        fake: (B, ...) values of generated images.

    Returns:
        (B,) float32, at least 0.
    """
    return 0.5 * _each((fake.float() - 1).square())


DISCRIMINATOR: dict[GANLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "logistic": logistic_discriminator, "bce": logistic_discriminator, "hinge": hinge_discriminator,
    "lsgan": lsgan_discriminator, "wgan": wgan_discriminator,
}  # fmt: skip
"""The discriminator's loss by name."""
GENERATOR: dict[GANLoss, Callable[[Tensor], Tensor]] = {
    "logistic": logistic_generator, "bce": logistic_generator, "hinge": wgan_generator,
    "lsgan": lsgan_generator, "wgan": wgan_generator,
}  # fmt: skip
"""The generator's loss by name."""


def r1(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Squared gradient of the discriminator at real images, in float32 whatever the precision of the run.

    `R1 = |grad_x D(x)|^2 / 2` (Mescheder et al. 2018, arXiv:1801.04406, eq. 9), to be weighted by gamma

    Args:
        critic: the discriminator, without batch norm, which would mix images; give `discriminator.forward` where it
            may be compiled, which allows one derivative only. A sum over the logits of a map is taken. One that also
            augments is penalised at augmented images, by the gradient at the images before (Karras et al. 2020).
        real: (B, C, H, W).

    Returns:
        (B,) float32, at least 0, with a graph to the discriminator's parameters.
    """
    return 0.5 * _gradient(critic, real).square().sum(1)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Squared distance of the gradient's norm from 1, between real and generated images.

    `GP = (|grad D(u x + (1 - u) G(z))| - 1)^2` (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3), to be weighted by
    lambda

    Args:
        critic: the discriminator, as in `r1`.
        real: (B, C, H, W) x.
        fake: (B, C, H, W) G(z); no gradient goes there.
        share: (B,) u in [0, 1), uniform.

    Returns:
        (B,) float32, at least 0, with a graph to the discriminator's parameters.
    """
    between = torch.lerp(fake.detach().float(), real.float(), share.view(-1, 1, 1, 1))
    length: Tensor = torch.linalg.vector_norm(_gradient(critic, between), dim=1)
    return (length - 1).square()


def drift(real: Tensor) -> Tensor:
    """Squared value of real images, which keeps the values of WGAN-GP from drifting away.

    `drift = D(x)^2`, to be weighted by eps_drift = 0.001 (Karras et al. 2018, arXiv:1710.10196, appendix A.1)

    Args:
        real: (B,) values of real images.

    Returns:
        (B,) float32, at least 0.
    """
    return real.float().square()


def _gradient(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, C * H * W) gradient of each image's logit."""
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        x = x.detach().float().requires_grad_()
        gradient: Tensor = torch.autograd.grad(critic(x).float().sum(), x, create_graph=True)[0]
        return gradient.flatten(1)


def _each(values: Tensor) -> Tensor:
    """(B,) mean over all but the first dimension."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
