"""What `vqvae` and `vqgan` share: encoder, codebook and decoder at work, as functions of whatever holds the three."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mri_synth.draws import normal
from mri_synth.losses.noise import noise_draws, rician_draw
from mri_synth.networks.autoencoder import Decoder, Encoder
from mri_synth.networks.quantizer import Quantized, VectorQuantizer


class Parts(Protocol):
    """A module with the three parts."""

    encoder: Encoder
    quantizer: VectorQuantizer
    decoder: Decoder


class VQAutoencoder(nn.Module):
    """The three parts as one network.

    Args:
        encoder: images to latents.
        quantizer: latents to codes.
        decoder: codebook vectors to images.
    """

    def __init__(self, encoder: Encoder, quantizer: VectorQuantizer, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    def forward(self, image: Tensor) -> Autoencoded:
        """As `autoencode`."""
        return autoencode(self, image)


@dataclass(frozen=True, kw_only=True)
class Autoencoded:
    """An image through the three parts.

    Attributes:
        x_hat: (B, C, H, W) reconstruction in (-1, 1), float32; behind it images of further codes, if given.
        quantized: codes, their vectors, and the commitment loss.
        noise: level, depth and spread of the noise that x_hat lacks, as `Decoder.noisy` gives them; None where the
            decoder was built without.
    """

    x_hat: Tensor
    quantized: Quantized
    noise: tuple[Tensor, Tensor, Tensor] | None


def autoencode(parts: Parts, image: Tensor, further: Tensor | None = None) -> Autoencoded:
    """Encode, quantise, decode, with gradients; in training mode the codebook follows.

    Args:
        parts: encoder, quantizer, decoder.
        image: (B, C, H, W) in [-1, 1].
        further: (M, h, w) int64, codes that are decoded in the same pass.

    Returns:
        Reconstruction, codes and noise.
    """
    quantized = parts.quantizer(parts.encoder(image))
    z = quantized.z_q if further is None else torch.cat([quantized.z_q, parts.quantizer.lookup(further)])
    if parts.decoder.noise is None:
        return Autoencoded(x_hat=parts.decoder(z), quantized=quantized, noise=None)
    x_hat, noise = parts.decoder.noisy(z)
    return Autoencoded(x_hat=x_hat, quantized=quantized, noise=noise)


def encode(parts: Parts, image: Tensor) -> Tensor:
    """Codes (B, H / downsample, W / downsample) int64 in [0, codebook_size) of images (B, C, H, W) in [-1, 1]."""
    return parts.quantizer.encode(parts.encoder(image))


def decode(parts: Parts, codes: Tensor) -> Tensor:
    """Images (B, C, H, W) float32 in [-1, 1] of codes (B, h, w) int64."""
    x_hat: Tensor = parts.decoder(parts.quantizer.lookup(codes))
    return x_hat.float().clamp(-1, 1)


def draw(parts: Parts, codes: Tensor, seeds: Tensor) -> Tensor:
    """Images of codes with the pixel noise that was learned; where none was, the same as `decode`.

    Args:
        parts: encoder, quantizer, decoder.
        codes: (B, h, w) int64.
        seeds: (B,) int64 of the noise.

    Returns:
        (B, C, H, W) float32 in [-1, 1].
    """
    if parts.decoder.noise is None:
        return decode(parts, codes)
    x_hat, noise = parts.decoder.noisy(parts.quantizer.lookup(codes))
    e = normal(0, 1, seeds.to(x_hat.device), noise_draws(x_hat.shape[1], x_hat[0, 0].numel()))
    return rician_draw(x_hat, *noise, e)


def too_odd(downsample: int, size: int) -> str:
    """Why images of a size cannot be encoded.

    Args:
        downsample: image side over code side.
        size: image side, pixels.

    Returns:
        The reason with the way out; "" when they can.
    """
    if size % downsample == 0:
        return ""
    near = max(round(size / downsample), 1) * downsample
    return f"halves images down to 1/{downsample}, and data.size={size} is no multiple of that; try data.size={near}"
