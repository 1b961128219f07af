"""Normal numbers of each item: their moments, and that an item's do not depend on what else is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mri_synth import draws
from mri_synth.draws import normal, uniform

ITEMS = torch.arange(50_000)


def test_moments_are_those_of_the_standard_normal() -> None:
    x = normal(3, 5, ITEMS, 4).double()
    n = x.numel()
    assert x.mean().abs() < 5 / n**0.5
    assert x.var().item() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert x.pow(3).mean().abs() < 5 * (15 / n) ** 0.5
    assert x.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
    for k in (1, 2, 3):  # shares within k standard deviations
        share = math.erf(k / 2**0.5)
        assert (x.abs() < k).double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / n) ** 0.5)


def test_draws_items_steps_and_seeds_are_independent() -> None:
    """Draws 0 and 2 of four are the cosine and the sine of one radius: uncorrelated, and so are their squares."""
    x = normal(0, 0, ITEMS, 4).T
    others = [x[:, 1:], normal(0, 1, ITEMS, 4).T, normal(1, 0, ITEMS, 4).T]
    x = torch.cat([x[:, :-1], *(o[:, : x.shape[1] - 1] for o in others)])
    limit = 5 / x.shape[1] ** 0.5
    for values in (x, x.square()):
        correlation = torch.corrcoef(values) - torch.eye(len(values))
        assert correlation.abs().max() < limit


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_draws(count: int) -> None:
    x = normal(0, 0, torch.arange(5), count)
    assert x.shape == (5, count)
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    assert len(x.unique()) == 5 * count


def test_an_item_has_its_numbers_wherever_it_stands() -> None:
    every = normal(7, 11, torch.arange(64), 5)
    assert torch.equal(normal(7, 11, torch.arange(64), 5), every)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normal(7, 11, order, 5), every[order])
    assert torch.equal(normal(7, 11, torch.tensor([63]), 5), every[63:])
    assert torch.equal(torch.cat([normal(7, 11, part, 5) for part in torch.arange(64).split(9)]), every)
    for seed, epoch in ((8, 11), (7, 12)):
        assert not torch.isclose(normal(seed, epoch, torch.arange(64), 5), every).all(1).any()


@pytest.mark.parametrize("u, largest", [(0.0, 5.887), (1 - 2.0**-24, 0.001)])
def test_the_ends_of_the_uniform_numbers_give_no_infinity(
    u: float, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(seed: int, epoch: int, items: Tensor, draws: int) -> Tensor:
        return torch.full((len(items), draws), u)

    monkeypatch.setattr(draws, "uniform", ends)
    x = normal(0, 0, torch.arange(3), 4)
    assert torch.isfinite(x).all()
    assert x.abs().max().item() == pytest.approx(largest, abs=1e-3)  # sqrt(2 * 25 log 2) at u = 0


def test_uniform_and_normal_of_large_seeds_steps_and_items() -> None:
    items = torch.tensor([0, 2**31, 2**40, 2**62])
    for seed, epoch in ((2**32 - 1, 10**9), (0, -1), (2**41, 0)):
        u, x = uniform(seed, epoch, items, 3), normal(seed, epoch, items, 3)
        assert ((u >= 0) & (u < 1)).all()
        assert torch.isfinite(x).all()
        assert len(u.unique()) == len(x.unique()) == 12
