"""Loss formulas against numbers worked by hand."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from mri_synth.losses import reconstruction, vq
from mri_synth.losses.reconstruction import l1, mse, ssim_loss
from mri_synth.losses.region import presence
from mri_synth.losses.vq import commitment


def test_l1_and_mse_per_sample() -> None:
    x = torch.zeros(2, 1, 1, 2)
    x_hat = torch.tensor([[1.0, -3.0], [0.5, 0.5]]).reshape(2, 1, 1, 2)
    assert l1(x_hat, x).tolist() == [2.0, 0.5]
    assert mse(x_hat, x).tolist() == [5.0, 0.25]


def test_bf16_is_averaged_in_float32() -> None:
    x_hat = torch.full((1, 1, 64, 64), 0.1, dtype=torch.bfloat16)
    assert l1(x_hat, torch.zeros(1, 1, 64, 64)).item() == pytest.approx(x_hat[0, 0, 0, 0].item(), rel=1e-6)
    assert ssim_loss(x_hat, x_hat.float()).dtype == torch.float32


def test_ssim_loss_of_equal_images_is_zero_and_of_constants_by_hand() -> None:
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    assert ssim_loss(x, x).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    # constants -1 and 1 are 0 and 1 on [0, 1]: only the luminance term differs from 1: C1 / (1 + C1)
    low, high = -torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert ssim_loss(low, high).item() == pytest.approx(1 - 1e-4 / (1 + 1e-4), abs=1e-5)


def test_ssim_loss_gradient_equals_finite_differences_and_improves_the_image() -> None:
    torch.manual_seed(0)
    x, x_hat = (torch.rand(1, 1, 12, 12, dtype=torch.float64) * 2 - 1 for _ in range(2))
    image = x_hat.float().requires_grad_()
    ssim_loss(image, x.float()).sum().backward()
    assert image.grad is not None
    better = ssim_loss((image - 10 * image.grad).detach(), x.float())
    assert better.item() < ssim_loss(image.detach(), x.float()).item()
    step, at = 1e-2, (0, 0, 6, 7)
    up, down = image.detach().clone(), image.detach().clone()
    up[at] += step
    down[at] -= step
    slope = (ssim_loss(up, x.float()) - ssim_loss(down, x.float())).item() / (2 * step)
    assert image.grad[at].item() == pytest.approx(slope, rel=0.02)


def test_presence_by_hand_and_least_at_the_true_chance() -> None:
    """Odds of 3 to 1 that are right on one pixel and wrong on another; the third is outside. And an empty region."""
    odds = torch.tensor([math.log(3), math.log(3), 50.0] * 2).reshape(2, 1, 1, 3)
    there = torch.tensor([1.0, 0.0, 0.0] * 2).reshape(2, 1, 1, 3)
    region = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).reshape(2, 1, 1, 3)
    assert presence(odds, there, region).tolist() == pytest.approx([(math.log(4 / 3) + math.log(4)) / 2, 0.0])
    guess = torch.full((1, 1, 1, 4), math.log(1 / 3), requires_grad=True)
    presence(guess, torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 1, 4), torch.ones(1, 1, 1, 4)).sum().backward()
    assert guess.grad is not None
    assert guess.grad.sum().item() == pytest.approx(0, abs=1e-7)


def test_commitment_pulls_z_and_not_the_codebook() -> None:
    z = torch.tensor([[1.0, 2.0]]).reshape(1, 2, 1, 1).requires_grad_()
    e = torch.zeros(1, 2, 1, 1, requires_grad=True)
    loss = commitment(z, e)
    assert loss.tolist() == [2.5]
    loss.sum().backward()
    assert z.grad is not None
    assert z.grad.flatten().tolist() == [1.0, 2.0]
    assert e.grad is None


@pytest.mark.parametrize("module", [reconstruction, vq])
def test_every_loss_says_its_sentence_and_formula(module: object) -> None:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != getattr(module, "__name__", None):
            continue
        sentence, formula = (inspect.getdoc(function) or "").split("\n\n")[:2]
        assert sentence.rstrip().endswith("."), name
        assert formula.startswith("`L_"), name
