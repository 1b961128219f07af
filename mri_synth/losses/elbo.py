"""Terms of the evidence lower bound (Kingma & Welling 2014, arXiv:1312.6114); per-sample tensors, float32, in nats.

Likelihoods are of images on 256 levels, as probabilities of whole levels, so that the bound is one of a real code
length in bits per dimension. Densities of real-valued pixels have no such meaning: they grow without limit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = 256
"""Level k of 0, ..., 255 is the intensity 2 k / 255 - 1; its bin reaches 1 / 255 to either side."""
_FLAT = 1e-10
"""Least variance in any direction, over the mean one."""
_BEYOND = -1e4
"""In units of the scale: so far out that no probability is left there."""


def kl_gaussian(mu: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of each latent number's posterior from the standard normal prior, in nats.

    `KL_j = (mu_j^2 + sigma_j^2 - log sigma_j^2 - 1) / 2` (Kingma & Welling 2014, appendix B)

    Args:
        mu: (B, n) means of the posterior.
        logvar: (B, n) logarithms of its variances.

    Returns:
        (B, n) float32, at least 0; the sum over n is the divergence of an image's whole posterior.
    """
    with torch.autocast(mu.device.type, enabled=False):
        mu, logvar = mu.float(), logvar.float()
        return 0.5 * (mu.square() + logvar.expm1() - logvar)


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """Divergence that training pays for: below a minimum a latent number costs no less, so that none is given up.

    `KL_free = sum_j max(minimum, KL_j)`, after Kingma et al. 2016 (arXiv:1606.04934, eq. 15), where the maximum is of
    the mean over a batch; here of each image by itself, so that an image's loss does not depend on its batch.

    Args:
        kl: (B, n) divergences in nats.
        minimum: nats per latent number; 0 changes nothing.

    Returns:
        (B,) float32 nats.
    """
    return kl.float().clamp(min=minimum).sum(dim=1)


def elbo(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """Evidence lower bound of an image, from one sample z of its posterior, in nats.

    `ELBO = log p(x | z) - sum_j KL_j <= log p(x)` in the mean over z (Kingma & Welling 2014, eq. 3 and 7)

    Args:
        log_likelihood: (B,) nats.
        kl: (B, n) nats, without free bits.

    Returns:
        (B,) float32 nats.
    """
    return log_likelihood.float() - kl.float().sum(dim=1)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """Logarithm of the probability that a normal variable falls into the bin of the pixel's level, in nats.

    `log p(x) = sum_CHW log (Phi((x + 1/255 - mean) / sigma) - Phi((x - 1/255 - mean) / sigma))`, x the nearest of 256
    levels on [-1, 1]; the first and the last level take the tails, so that the 256 probabilities add up to 1

    Args:
        mean: (B, C, H, W), any real numbers.
        x: (B, C, H, W) in [-1, 1].
        log_scale: logarithm of sigma, a scalar.

    Returns:
        (B,) float32, at most 0.
    """
    with torch.autocast(x.device.type, enabled=False):
        upper, lower = _bin(mean.float(), x.float(), log_scale.float())
        return _log_difference(torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)).sum(dim=(1, 2, 3))


def laplace_log_likelihood(mean: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """Logarithm of the probability that a Laplace variable falls into the bin of the pixel's level, in nats.

    `log p(x) = sum_CHW log (F((x + 1/255 - mean) / b) - F((x - 1/255 - mean) / b))`, F the distribution function of
    the Laplace distribution and x the nearest of 256 levels on [-1, 1]; the first and the last level take the tails

    Args:
        mean: (B, C, H, W), any real numbers.
        x: (B, C, H, W) in [-1, 1].
        log_scale: logarithm of b, the mean absolute deviation, a scalar.

    Returns:
        (B,) float32, at most 0.
    """
    with torch.autocast(x.device.type, enabled=False):
        upper, lower = _bin(mean.float(), x.float(), log_scale.float())
        return _log_difference(_log_laplace(upper), _log_laplace(lower)).sum(dim=(1, 2, 3))


def bits_per_dim(elbo: Tensor, dimensions: int) -> Tensor:
    """Upper bound on the code length of a pixel on 256 levels; 8 is a uniform guess.

    `bits = -ELBO / (D log 2)`, D = C H W

    Args:
        elbo: (B,) lower bounds on log p(x) in nats, of a discrete likelihood on 256 levels.
        dimensions: D, pixels times channels.

    Returns:
        (B,) float32 bits.
    """
    return -elbo.float() / (dimensions * math.log(2))


def aggregate_normal(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Normal distribution nearest to the latent numbers of all images together, their aggregate posterior.

    `m = mean_i mu_i; C = mean_i (mu_i - m)(mu_i - m)^T + diag(mean_i sigma_i^2) = L L^T`: the first two moments of the
    mixture of all posteriors, which is the ex-post density of Ghosh et al. 2020 (arXiv:1903.12436, section 4)

    Args:
        mu: (N, n) means of the images' posteriors, finite.
        logvar: (N, n) logarithms of their variances, finite.

    Returns:
        m, (n,), and L, (n, n), lower triangular with a positive diagonal; float32, computed in double precision.
    """
    means = mu.double()
    mean = means.mean(0)
    covariance = torch.cov(means.T, correction=0).view(len(mean), -1) + logvar.double().exp().mean(0).diag()
    variances = covariance.diagonal()
    variances += _FLAT * variances.mean()  # few images with posteriors like points span no volume
    return mean.float(), torch.linalg.cholesky(covariance).float()


def active_units(variance: Tensor, least: float = 0.01) -> Tensor:
    """Latent numbers that say something of the image: those whose posterior mean differs from image to image.

    `AU = #{j: Var_x(mu_j(x)) > 0.01}` (Burda et al. 2016, arXiv:1509.00519, section 5.2)

    Args:
        variance: (n,) variance of each posterior mean over the images of a split.
        least: what counts as different.

    Returns:
        Their number, float32.
    """
    return (variance > least).sum().float()


def _bin(mean: Tensor, x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower end of each pixel's bin in units of the scale, mirrored into the lower half.

    Both distributions are symmetric, and only in the lower tail are logarithms of a distribution function exact.
    """
    half = (LEVELS - 1) / 2
    level = ((x + 1) * half).round()
    rate = torch.exp(-log_scale)
    distance = (level / half - 1 - mean) * rate
    first, last = level <= 0, level >= LEVELS - 1
    side = torch.where(first, distance, torch.where(last, -distance, -distance.abs()))
    width = rate / (LEVELS - 1)
    return side + width, torch.where(first | last, _BEYOND, side - width)


def _log_laplace(x: Tensor) -> Tensor:
    """Logarithm of the Laplace distribution function."""
    return torch.where(x <= 0, x - math.log(2), torch.log1p(-0.5 * torch.exp(-x.clamp(min=0))))


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a - exp b) for a > b."""
    return a + torch.log(-torch.expm1((b - a).clamp(max=-1e-6)))
