"""A codebook watched over an epoch: which of its codes are in use, and an alarm when hardly any is."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_synth.models.base import SynthModule
from mri_synth.networks.quantizer import codebook_usage

DEAD = 0.1
"""Share of codes in use below which a codebook counts as dead."""


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
            "model.lr, a smaller model.rate, a smaller model.codebook_size"
        )
    return everywhere
