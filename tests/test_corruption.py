"""Coarse noise and foreign structures: on the head only, as asked, smooth or as large as said, and each item's own."""

from __future__ import annotations

import math

import pytest
import torch

from mri_synth.corruption import CELLS, SIZES, coarse_noise, foreign_structures


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


def test_structures_lie_on_the_head_and_within_their_range():
    """One each: as often as said, of both signs, at most the largest with its edge; black and empty images stay."""
    image, index = heads(400), torch.arange(400)
    change = foreign_structures(image, 1, 3, 5, index) - image
    assert change[image == -1].abs().max() == 0
    assert change.min() < -0.5 < 0.5 < change.max()
    area = (change != 0).sum((1, 2, 3))
    assert (area > 0).float().mean() == pytest.approx(0.8, abs=0.06)
    reach = 1.5 * SIZES[1] * 64  # with an edge of the whole radius, half of which lies outside
    assert area.max() <= math.pi * (reach + 1) ** 2
    assert abs(change.sum() / change.abs().sum()) < 0.2
    blank = torch.full((2, 1, 64, 64), -1.0)
    assert torch.equal(foreign_structures(blank, 3, 0, 0, index[:2]), blank)
    assert foreign_structures(image, 20, 0, 0, index).abs().max() <= 1


def test_centres_are_anywhere_on_the_head():
    """The mean place of what changed is the middle of the head, and its spread that of the uniform distribution."""
    image = heads(400)
    change = (foreign_structures(image, 1, 3, 5, torch.arange(400)) != image)[:, 0].float()
    there = change.sum((1, 2)) > 0
    place = torch.arange(64.0)
    rows = ((change.sum(2) * place).sum(1) / change.sum((1, 2)))[there]
    assert rows.mean() == pytest.approx(31.5, abs=2)
    assert rows.std() == pytest.approx(48 / 12**0.5, rel=0.15)


def test_an_items_structures_are_its_own():
    image, index = heads(4), torch.tensor([5, 1, 9, 2])
    whole = foreign_structures(image, 4, 7, 11, index)
    assert torch.equal(foreign_structures(image[2:3], 4, 7, 11, index[2:3]), whole[2:3])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(foreign_structures(image, 4, 7, 12, index), whole)
    assert not torch.equal(foreign_structures(image, 4, 8, 11, index), whole)
