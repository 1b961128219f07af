"""The loss of an autoencoder with a codebook, from its parts."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mri_synth.losses.noise import noise_loss
from mri_synth.losses.reconstruction import l1, mse, ssim_loss

Reconstruction = Literal["l1", "mse"]


def image_losses(x_hat: Tensor, x: Tensor, reconstruction: Reconstruction, lambda_ssim: float) -> dict[str, Tensor]:
    """What a reconstruction is worth, pixel by pixel and in its structures.

    `L = L_1 + lambda_ssim L_SSIM`, or L_2 in place of L_1

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1].
        x: (B, C, H, W) image.
        reconstruction: "l1" or "mse".
        lambda_ssim: weight of 1 - SSIM; 0: it is not computed.

    Returns:
        Means over the batch: "loss", and its terms unweighted.
    """
    loss = (l1 if reconstruction == "l1" else mse)(x_hat, x).mean()
    terms: dict[str, Tensor] = {reconstruction: loss}
    if lambda_ssim:
        terms["ssim_loss"] = ssim_loss(x_hat, x).mean()
        loss = loss + lambda_ssim * terms["ssim_loss"]
    return {"loss": loss, **terms}


def code_losses(
    x_hat: Tensor, x: Tensor, commitment: Tensor, noise: tuple[Tensor, Tensor, Tensor] | None, beta: float
) -> dict[str, Tensor]:
    """What is learned beside the reconstruction, and without touching it: to commit to codes, and the noise of pixels.

    `L = beta L_commit + L_noise`, the second of the noise's layers alone

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1]; no gradient reaches it.
        x: (B, C, H, W) image.
        commitment: (B,) of the quantizer.
        noise: level, depth and spread of the noise that x_hat lacks, as `noise_loss` takes them; None: not learned.
        beta: weight of the commitment.

    Returns:
        Means over the batch: "loss", and its terms unweighted.
    """
    terms = {"commitment": commitment.mean()}
    loss = beta * terms["commitment"]
    if noise is not None:
        terms["noise_loss"] = noise_loss(x_hat, *noise, x).mean()
        loss = loss + terms["noise_loss"]
    return {"loss": loss, **terms}
