"""Differentiable augmentation: by hand, by finite differences, item by item; and the strength that adapts."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mri_synth import diffaugment
from mri_synth.diffaugment import AdaptiveStrength, DiffAugment, change_intensity, cut_out, translate
from mri_synth.draws import normal
from mri_synth.errors import UserError

ALL = ["translation", "cutout", "intensity"]


def heads(n: int, size: int = 16, channels: int = 1) -> Tensor:
    """(n, channels, size, size): noise of [0, 0.9] in a square of half the size, air around it."""
    images = torch.full((n, channels, size, size), -1.0)
    at = slice(size // 4, 3 * size // 4)
    images[:, :, at, at] = 0.9 * torch.rand(
        n, channels, size // 2, size // 2, generator=torch.Generator().manual_seed(0)
    )
    return images


def run(images: Tensor, policy: Any = ALL, strength: float = 1.0, step: int = 3, use: int = 0, seed: int = 0,
        first: int = 0) -> Tensor:  # fmt: skip
    return DiffAugment(policy, strength)(images, seed, step, torch.arange(first, first + len(images)), use)


def test_translation_by_hand() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3).repeat(3, 2, 1, 1)
    x[:, 1] += 10
    moved = translate(x, torch.tensor([[0, 0], [1, -1], [-2, 0]]))
    assert torch.equal(moved[0], x[0])
    assert moved[1, 0].tolist() == [[-1, -1, -1], [1, 2, -1], [4, 5, -1]]
    assert moved[1, 1].tolist() == [[-1, -1, -1], [11, 12, -1], [14, 15, -1]]
    assert moved[2, 0].tolist() == [[6, 7, 8], [-1, -1, -1], [-1, -1, -1]]


def test_cutout_by_hand() -> None:
    x = torch.zeros(3, 1, 4, 5)
    cut = cut_out(x, torch.tensor([[1, 2], [0, 0], [4, 5]]), (2, 3))
    assert cut[0, 0].tolist() == [[0, -1, -1, -1, 0], [0, -1, -1, -1, 0], [0] * 5, [0] * 5]
    assert cut[1, 0].tolist() == [[-1, -1, 0, 0, 0], [0] * 5, [0] * 5, [0] * 5]
    assert cut[2, 0].tolist() == [[0] * 5, [0] * 5, [0] * 5, [0, 0, 0, 0, -1]]
    assert torch.equal(cut_out(x, torch.zeros(3, 2, dtype=torch.int64), (0, 0)), x)


def test_intensity_by_hand() -> None:
    x = 2 * torch.tensor([0.0, 0.5, 1.0, 0.0]).view(1, 1, 2, 2) - 1  # m = 1.25 / 1.5 = 5/6
    y = change_intensity(x, torch.tensor([1.2]), torch.tensor([0.3]))
    assert torch.allclose((y + 1).flatten() / 2, torch.tensor([0, 1.2 * 0.5 * 0.9, 1.2 * 1.05, 0.0]), atol=1e-6)
    assert y.flatten()[[0, 3]].tolist() == [-1, -1]
    x = heads(4, channels=2)
    c = torch.tensor([-0.5, -0.2, 0.3, 0.5])
    y = change_intensity(x, torch.tensor([0.5, 1.0, 1.2, 1.5]), c)
    assert torch.equal(y[x == -1], x[x == -1])
    assert torch.allclose((y + 1).mean((2, 3)), torch.tensor([[0.5], [1], [1.2], [1.5]]) * (x + 1).mean((2, 3)))
    spread = (
        (y + 1)[:, :, 4:12, 4:12].std((2, 3))
        / (y + 1).mean((2, 3))
        / (x[:, :, 4:12, 4:12].std((2, 3)) / (x + 1).mean((2, 3)))
    )
    assert ((spread > 1) == (c > 0)[:, None]).all()
    assert torch.equal(change_intensity(x, torch.ones(4), torch.zeros(4)), x)
    black = torch.full((1, 1, 4, 4), -1.0)
    assert torch.equal(change_intensity(black, torch.tensor([1.5]), torch.tensor([0.5])), black)


@pytest.mark.parametrize("contrast", [-0.5, 1.0])
def test_intensity_keeps_the_order_of_intensities(contrast: float) -> None:
    x = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    y = change_intensity(x, torch.tensor([1.0]), torch.tensor([contrast])).flatten()
    assert (y.diff() > 0).all()


@pytest.mark.parametrize("policy", [[name] for name in ALL] + [ALL])
def test_gradients_by_finite_differences_once_and_twice(policy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", lambda x: x)  # in float64: a difference of float32 would say little
    x = heads(2, 8).double().requires_grad_()

    def call(x: Tensor) -> Tensor:
        return run(x, policy)

    assert gradcheck(call, (x,))
    assert gradgradcheck(call, (x,))


def test_gradients_reach_what_is_seen_and_nothing_else() -> None:
    x = heads(8).requires_grad_()
    y = run(x, ["translation", "cutout"])
    y.sum().backward()
    assert x.grad is not None
    assert set(x.grad.unique().tolist()) == {0.0, 1.0}
    at = x.grad == 1  # every pixel that is left is there once
    assert torch.equal(x.detach()[at].sort().values[-200:], y.detach().flatten().sort().values[-200:])


def test_strength_0_and_no_policy_change_nothing() -> None:
    x = heads(4)
    assert torch.equal(run(x, ALL, 0), x)
    assert torch.equal(run(x, [], 1), x)
    assert torch.equal(run(x, ALL, 1e-9), x)


def test_items_do_not_see_one_another() -> None:
    x = heads(8)
    whole = run(x)
    assert torch.equal(torch.cat([run(x[:3]), run(x[3:], first=3)]), whole)
    other = x.clone()
    other[0] = x.flip(-1)[0] * 0.5
    assert torch.equal(run(other)[1:], whole[1:])
    assert not torch.equal(whole[0], run(x[:1].repeat(8, 1, 1, 1))[1])


@pytest.mark.parametrize("change", [{"step": 4}, {"use": 1}, {"use": 2}, {"seed": 1}, {"first": 8}])
def test_step_use_seed_and_item_each_have_draws_of_their_own(change: dict[str, int]) -> None:
    x = heads(8)
    assert torch.equal(run(x), run(x))
    assert all(not torch.equal(a, b) for a, b in zip(run(x), run(x, **change), strict=True))  # type: ignore[arg-type]


def test_draws_are_not_those_of_the_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    drawn = diffaugment.uniform
    monkeypatch.setattr(diffaugment, "uniform", lambda *a: seen.append(drawn(*a)) or seen[-1])
    items = torch.arange(2000)
    for use in range(3):
        DiffAugment(["cutout"])(torch.zeros(2000, 1, 2, 2), 5, 7, items, use)
    together = torch.cat([normal(5, 7, items, 9), drawn(5, 7, items, 9), *seen], 1)
    off = torch.corrcoef(together.T)[18:, :].abs()
    assert off[off < 0.999].max() < 0.09  # 4 standard deviations


def test_a_policy_draws_the_same_whatever_others_there_are() -> None:
    x = heads(4)
    assert torch.equal(run(x, ["translation", "cutout"]), run(run(x, ["translation"]), ["cutout"]))


def test_statistics_by_hand() -> None:
    n = 20000
    dot = torch.full((n, 1, 8, 8), -1.0)
    dot[:, :, 4, 4] = 1  # shifts of -1, 0, 1 along each axis, 1/9 each
    counts = (run(dot, ["translation"]) == 1).float().mean((0, 1))
    assert torch.allclose(counts[3:6, 3:6], torch.full((3, 3), 1 / 9), atol=0.01)
    assert counts.sum().item() == pytest.approx(1, abs=1e-4)
    # centres 0 to 8, side 4: 2, 3, 4, 4, 4, 4, 4, 3, 2 rows are cut, 10/3 of 8 in the mean
    cut = (run(torch.zeros(n, 1, 8, 8), ["cutout"]) == -1).float().mean((0, 1))
    assert cut.mean().item() == pytest.approx((10 / 3 / 8) ** 2, abs=0.003)
    assert torch.allclose(cut, cut.flip(0), atol=0.02)
    # gain of [0.5, 1.5): mean 1, variance 1/12; contrast leaves the mean alone
    x = heads(1, 8).repeat(n, 1, 1, 1)
    ratio = (run(x, ["intensity"]) + 1).mean((1, 2, 3)) / (x + 1).mean((1, 2, 3))
    assert ratio.mean().item() == pytest.approx(1, abs=0.01)
    assert ratio.var().item() == pytest.approx(1 / 12, rel=0.03)
    half = (run(x, ["intensity"], 0.5) + 1).mean((1, 2, 3)) / (x + 1).mean((1, 2, 3))
    assert half.var().item() == pytest.approx(1 / 48, rel=0.03)


def test_air_stays_air() -> None:
    x = torch.full((16, 1, 16, 16), -1.0)
    assert torch.equal(run(x), x)
    y = run(heads(64))
    assert y.min() == -1
    assert ((run(heads(64), ["intensity"]) == -1) == (heads(64) == -1)).all()


def test_images_far_below_the_range_stay_finite() -> None:
    y = run(torch.full((8, 1, 16, 16), -3.0) + heads(8), ["intensity"])
    assert y.abs().max() < 20


def test_float32_under_autocast_and_of_bf16_images() -> None:
    x = heads(2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = run(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, run(x.float()))


@pytest.mark.parametrize(
    "bad, message",
    [({"policy": ["colour"]}, r"policy=\['colour'\]"), ({"policy": ["cutout", "cutout"]}, "each once"),
     ({"strength": 1.5}, "strength=1.5"), ({"strength": float("nan")}, "strength=nan")],
)  # fmt: skip
def test_refuses(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiffAugment(**bad)


def test_adaptive_strength_by_hand() -> None:
    ada = AdaptiveStrength(target=0.6, kimg=1)
    for step in range(3):
        ada.observe(torch.tensor([2.0, 1.0, 0.5, -1.0]))
        ada.observe(torch.tensor([3.0, 4.0]))
        ada.adjust(step)
    assert (ada.p.item(), ada.seen.tolist()) == (0, [12, 18])
    ada.observe(torch.ones(6))
    ada.adjust(3)  # r = 18 / 24 = 0.75 > 0.6: up by 24 / 1000
    assert ada.r.item() == pytest.approx(0.75)
    assert ada.p.item() == pytest.approx(0.024)
    assert ada.seen.tolist() == [0, 0]
    for step in range(4, 8):  # r = 0.5: down by 4 / 1000
        ada.observe(torch.tensor([1.0 if step < 7 else -1.0]))
        ada.adjust(step)
    assert ada.p.item() == pytest.approx(0.020)
    for step in range(8, 12):
        ada.observe(-torch.ones(100))
        ada.adjust(step)
    assert ada.p.item() == 0
    for step in range(12, 28):
        ada.observe(torch.ones(100))
        ada.adjust(step)
    assert ada.p.item() == pytest.approx(0.8)  # not beyond


def test_adaptive_strength_of_patches_and_of_lsgan() -> None:
    ada = AdaptiveStrength()
    patches = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    ada.observe(patches)
    ada.adjust(0)
    assert ada.seen.tolist() == [1, 2]  # half of each of two images
    ada.observe(torch.tensor([0.4, 0.6, 0.7]), 0.5)
    ada.adjust(1)
    assert ada.seen.tolist() == [2, 5]


def test_adaptive_p_is_the_share_of_augmented_items_and_is_saved() -> None:
    augment = DiffAugment(ALL, adaptive=True)
    assert augment.adaptive is not None
    x, items = torch.zeros(4000, 1, 8, 8), torch.arange(4000)
    assert torch.equal(augment(x, 0, 0, items, 0), x)
    augment.adaptive.p.fill_(0.3)
    touched = (augment(x, 0, 0, items, 0) != x).flatten(1).any(1).float().mean().item()
    # a shift of (0, 0) leaves 1/9 as they are, intensity none, a cut none
    assert touched == pytest.approx(1 - (1 - 0.3 * 8 / 9) * 0.7 * 0.7, abs=0.03)
    file = io.BytesIO()
    torch.save(augment.state_dict(), file)
    file.seek(0)
    again = DiffAugment(ALL, adaptive=True)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(x, 0, 1, items, 1), augment(x, 0, 1, items, 1))
    assert not DiffAugment(ALL).state_dict()


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, x, items = DiffAugment(ALL, adaptive=True), heads(4), torch.arange(4)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, None)
    for step in range(4):
        augment(x, 0, step, items, 0)
        assert augment.adaptive is not None
        augment.adaptive.observe(x.mean((1, 2, 3)))
        augment.adaptive.adjust(step)


def test_adaptive_strength_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of 4 make the steps of one process of 8; the other rank is played by what the sum adds."""
    other = torch.tensor([-4.0, 4.0])
    monkeypatch.setattr(diffaugment.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(diffaugment.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(diffaugment.dist, "all_reduce", lambda message: message.add_(other))
    ada = AdaptiveStrength(kimg=1)
    for step in range(4):
        ada.observe(torch.ones(4))
        ada.adjust(step)
        assert ada.seen.tolist() == ([0, 8 * (step + 1)] if step < 3 else [0, 0])
    assert ada.r.item() == 0
    assert ada.p.item() == 0
