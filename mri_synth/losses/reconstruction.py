"""Reconstruction losses. Images are (B, C, H, W); every function gives one value per sample, (B,) float32."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_synth.metrics.ssim import ssim


def l1(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean absolute difference of pixel intensities.

    `L_1 = mean_CHW |x_hat - x|`

    Args:
        x_hat: (B, C, H, W) reconstruction.
        x: (B, C, H, W) image.

    Returns:
        (B,) float32.
    """
    return (x_hat.float() - x.float()).abs().mean(dim=(1, 2, 3))


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared difference of pixel intensities.

    `L_2 = mean_CHW (x_hat - x)^2`

    Args:
        x_hat: (B, C, H, W) reconstruction.
        x: (B, C, H, W) image.

    Returns:
        (B,) float32.
    """
    return (x_hat.float() - x.float()).square().mean(dim=(1, 2, 3))


def ssim_loss(x_hat: Tensor, x: Tensor) -> Tensor:
    """One minus the structural similarity (Wang 2004) of image and reconstruction.

    `L_SSIM = 1 - mean_CHW SSIM((x_hat + 1)/2, (x + 1)/2)`, Gaussian window 11, sigma 1.5, data range 1

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1]; not clamped, so that its gradient never vanishes.
        x: (B, C, H, W) image in [-1, 1].

    Returns:
        (B,) float32 in [0, 2].
    """
    with torch.autocast(x.device.type, enabled=False):
        return 1 - ssim((x_hat.float() + 1) / 2, (x.float() + 1) / 2)
