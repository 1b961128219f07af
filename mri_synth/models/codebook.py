"""What methods share whose latents are codes: images to codes and back, and a watch on which codes are in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mri_synth.models.base import SynthModule
from mri_synth.models.latent_space import Codes
from mri_synth.models.schedule import rates
from mri_synth.networks import vq
from mri_synth.networks.quantizer import codebook_usage

DEAD = 0.1
"""Share of codes in use below which a codebook counts as dead."""


class WithCodes(SynthModule):
    """Codes of a method that has an encoder, a codebook and a decoder. A method names it beside its base.

    A method registers the buffer `code_counts` (codebook_size,) int64, and counts in evaluation.

    Attributes:
        code_counts: how often each code was used in this epoch, by this process.
        codebook_histogram: the same of the last evaluation, by all.
    """

    code_counts: Tensor
    codebook_histogram: Tensor

    @property
    def parts(self) -> vq.Parts:
        """What has the three; by default the method itself."""
        own: Any = self
        parts: vq.Parts = own
        return parts

    def encode(self, image: Tensor) -> Tensor:
        """Codes of images.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            (B, H / downsample, W / downsample) int64 in [0, codebook_size).
        """
        return vq.encode(self.parts, image)

    def decode(self, codes: Tensor) -> Tensor:
        """Images of codes.

        Args:
            codes: (B, h, w) int64.

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        return vq.decode(self.parts, codes)

    def draw(self, codes: Tensor, seeds: Tensor) -> Tensor:
        """Images of codes with the pixel noise that was learned; without, the same as `decode`.

        Args:
            codes: (B, h, w) int64.
            seeds: (B,) int64 of the noise.

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        return vq.draw(self.parts, codes, seeds)

    def latent_space(self) -> Codes:
        """The encoder's latents, quantised anew whenever they are decoded."""
        return Codes(self.parts, self.spec.channels, self.spec.size, self.hparams["downsample"])

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode, quantise, decode."""
        return self.decode(self.encode(image))

    def on_validation_epoch_end(self) -> None:
        """Scores, usage and perplexity of the codebook over all validation codes, and the alarm of a dead codebook."""
        super().on_validation_epoch_end()
        self.codebook_histogram = report(self, self.code_counts, "val")

    def on_test_epoch_end(self) -> None:
        """The same over all test codes."""
        super().on_test_epoch_end()
        self.codebook_histogram = report(self, self.code_counts, "test")


def count(counts: Tensor, codes: Tensor) -> None:
    """Add codes to their counts.

    Args:
        counts: (K,) int64, changed in place.
        codes: int64 of any shape.
    """
    codes = codes.flatten()
    counts.scatter_add_(0, codes, torch.ones_like(codes))


def report(model: SynthModule, counts: Tensor, split: str) -> Tensor:
    """Log usage and perplexity of the codes of a split, over all processes, and warn of a dead codebook in validation.

    Args:
        model: that logs.
        counts: (K,) int64 of this process; 0 again afterwards.
        split: "val" or "test".

    Returns:
        (K,) counts of all processes.
    """
    everywhere = model.trainer.strategy.reduce(counts.clone(), reduce_op="sum")
    assert isinstance(everywhere, Tensor)
    counts.zero_()
    usage, perplexity = codebook_usage(everywhere)
    model.log_dict({f"{split}/codebook_usage": usage, f"{split}/perplexity": perplexity})
    if split == "val" and model.global_step >= model.total_steps // 3 and usage < DEAD:
        model.alarm(
            f"dead codebook: {usage:.1%} of the {len(counts)} codes are in use (perplexity {perplexity:.1f}) at step "
            f"{model.global_step}. Remedies, in this order: model.kmeans_init=true, model.revive_below=1.0, a lower "
            f"{rates(model.hparams)}, a smaller model.rate, a smaller model.codebook_size"
        )
    return everywhere
