"""Coarse noise: on the head only, as strong as asked, smooth, and each item's own."""

from __future__ import annotations

import torch

from mri_synth.corruption import CELLS, coarse_noise


def heads(count: int = 64, size: int = 64) -> torch.Tensor:
    image = torch.full((count, 1, size, size), -1.0)
    image[:, :, 8:56, 8:56] = 0
    return image


def test_nothing_changes_without_strength_or_head():
    image, index = heads(2), torch.arange(2)
    assert coarse_noise(image, 0.0, 0, 0, index) is image
    noisy = coarse_noise(image, 0.3, 0, 0, index)
    assert torch.equal(noisy == image, image == -1)


def test_strength_and_smoothness():
    """Item's amounts are uniform up to 1.5 strength: rms sqrt(0.75) strength at the nodes, less between; both signs."""
    for step in range(len(CELLS)):
        noise = coarse_noise(heads(), 0.1, 3, step, torch.arange(64))[:, 0, 8:56, 8:56]
        assert 0.055 < noise.square().mean().sqrt() < 0.09
        assert abs(noise.mean()) < 0.02
        assert noise.diff(dim=-1).abs().mean() < 0.6 * noise.abs().mean()
    assert coarse_noise(heads(), 9.0, 0, 0, torch.arange(64)).abs().max() == 1


def test_an_items_noise_is_its_own():
    image, index = heads(4), torch.tensor([5, 1, 9, 2])
    whole = coarse_noise(image, 0.3, 7, 11, index)
    assert torch.equal(coarse_noise(image[2:3], 0.3, 7, 11, index[2:3]), whole[2:3])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(coarse_noise(image, 0.3, 7, 15, index), whole)
    assert not torch.equal(coarse_noise(image, 0.3, 8, 11, index), whole)
