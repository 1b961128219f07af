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
    seen, share = foreign_structures(image, 1, 3, 5, index)
    change = seen - image
    assert change[image == -1].abs().max() == 0
    assert change.min() < -0.5 < 0.5 < change.max()
    assert (share[change != 0] > 0).all()
    assert share.aminmax() == (0, 1)
    area = (change != 0).sum((1, 2, 3))
    assert (area > 0).float().mean() == pytest.approx(0.8, abs=0.06)
    reach = 1.5 * SIZES[1] * 64  # with an edge of the whole radius, half of which lies outside
    assert area.max() <= math.pi * (reach + 1) ** 2
    assert abs(change.sum() / change.abs().sum()) < 0.2
    blank = torch.full((2, 1, 64, 64), -1.0)
    assert torch.equal(foreign_structures(blank, 3, 0, 0, index[:2])[0], blank)
    assert foreign_structures(image, 20, 0, 0, index)[0].abs().max() <= 1


@pytest.mark.parametrize("kind", ["shifted", "one grey"])
def test_contents_of_a_structure_by_hand(monkeypatch, kind):
    """In the middle of a ramp with one bright pixel, in a structure that covers both: the ramp stays, or is level."""
    image = heads(1)
    image[..., 8:56] += torch.linspace(-0.47, 0.47, 48) * (image[..., 8:56] > -1)
    image[..., 32, 32] += 0.09
    added = {"shifted": 0.3, "one grey": 0.5}[kind]
    draws = torch.tensor([[0.5105, 0, 0, 1, 0.75, added, 1, 1, 0]])  # centre, there, edge, a, d, kind, shape
    monkeypatch.setattr("mri_synth.corruption.uniform", lambda *_: draws)
    seen, share = foreign_structures(image, 1, 0, 0, torch.zeros(1, dtype=torch.int64))
    centre = share[0, 0].nonzero().float().mean(0)
    assert centre.tolist() == pytest.approx([32, 32], abs=0.01)
    assert (share[..., 30:35, 30:35] == 1).all()
    level = image[0, 0, 29, 32].expand(5, 5) + 0.1**0.5
    level = level - 0.01 * torch.nn.functional.pad(torch.ones(3, 3), (1, 1, 1, 1))
    level[2, 2] += 0.09
    wanted = {"shifted": image[0, 0, 30:35, 30:35] + 0.1**0.5, "one grey": level}[kind]
    torch.testing.assert_close(seen[0, 0, 30:35, 30:35], wanted, atol=2e-3, rtol=0)


def test_centres_are_anywhere_on_the_head():
    """The mean place of what changed is the middle of the head, and its spread that of the uniform distribution."""
    image = heads(400)
    change = (foreign_structures(image, 1, 3, 5, torch.arange(400))[0] != image)[:, 0].float()
    there = change.sum((1, 2)) > 0
    place = torch.arange(64.0)
    rows = ((change.sum(2) * place).sum(1) / change.sum((1, 2)))[there]
    assert rows.mean() == pytest.approx(31.5, abs=2)
    assert rows.std() == pytest.approx(48 / 12**0.5, rel=0.15)


def test_an_items_structures_are_its_own():
    image, index = heads(4), torch.tensor([5, 1, 9, 2])
    whole, share = foreign_structures(image, 4, 7, 11, index)
    alone = foreign_structures(image[2:3], 4, 7, 11, index[2:3])
    assert torch.equal(alone[0], whole[2:3])
    assert torch.equal(alone[1], share[2:3])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(foreign_structures(image, 4, 7, 12, index)[0], whole)
    assert not torch.equal(foreign_structures(image, 4, 8, 11, index)[0], whole)
