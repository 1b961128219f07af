"""Adversarial losses against numbers worked out by hand, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mri_synth.losses import adversarial as adv

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)
# logit log 3: the sigmoid is 3/4
HAND = [
    (adv.logistic_discriminator, (0.0, 0.0), 2 * LOG2),
    (adv.logistic_discriminator, (LOG3, -LOG3), 2 * (LOG4 - LOG3)),
    (adv.logistic_discriminator, (-LOG3, LOG3), 2 * LOG4),
    (adv.logistic_discriminator, (100.0, -100.0), 0.0),
    (adv.logistic_discriminator, (-100.0, 100.0), 200.0),
    (adv.logistic_generator, (0.0,), LOG2),
    (adv.logistic_generator, (LOG3,), LOG4 - LOG3),
    (adv.logistic_generator, (-100.0,), 100.0),
    (adv.hinge_discriminator, (0.0, 0.0), 2.0),
    (adv.hinge_discriminator, (0.25, -0.5), 1.25),
    (adv.hinge_discriminator, (3.0, -7.0), 0.0),
    (adv.hinge_discriminator, (-3.0, 7.0), 12.0),
    (adv.wgan_discriminator, (3.0, -7.0), -10.0),
    (adv.wgan_generator, (-7.0,), 7.0),
    (adv.lsgan_discriminator, (1.0, 0.0), 0.0),
    (adv.lsgan_discriminator, (3.0, -2.0), 4.0),
    (adv.lsgan_generator, (1.0,), 0.0),
    (adv.lsgan_generator, (-2.0,), 4.5),
]


@pytest.mark.parametrize(("loss", "logits", "expected"), HAND)
def test_hand_worked_numbers(loss, logits, expected):
    given = [torch.tensor([v]) for v in logits]
    assert loss(*given).tolist() == pytest.approx([expected], abs=1e-6)
    maps = [v.view(1, 1, 1, 1).expand(1, 1, 2, 3) for v in given]
    assert loss(*maps).tolist() == pytest.approx([expected], abs=1e-6), "a map of equal logits is as one"


@pytest.mark.parametrize("loss", dict.fromkeys(adv.DISCRIMINATOR.values()), ids=lambda f: f.__name__)
def test_a_map_counts_as_the_mean_of_its_places_and_images_do_not_mix(loss):
    real, fake = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    each = torch.stack([loss(real[:, 0, i, j], fake[:, 0, i, j]) for i in range(2) for j in range(2)]).mean(0)
    torch.testing.assert_close(loss(real, fake), each)
    torch.testing.assert_close(loss(real[1:2], fake[1:2]), each[1:2])


def test_the_logistic_loss_is_binary_cross_entropy():
    real, fake = torch.randn(7), torch.randn(7)
    one, zero = torch.ones(7), torch.zeros(7)
    expected = binary_cross_entropy_with_logits(real, one) + binary_cross_entropy_with_logits(fake, zero)
    torch.testing.assert_close(adv.DISCRIMINATOR["bce"](real, fake).mean(), expected)
    torch.testing.assert_close(adv.GENERATOR["bce"](fake).mean(), binary_cross_entropy_with_logits(fake, one))


@pytest.mark.parametrize(
    "loss", dict.fromkeys([*adv.DISCRIMINATOR.values(), *adv.GENERATOR.values()]), ids=lambda f: f.__name__
)
def test_bfloat16_logits_are_taken_to_float32_first(loss):
    both = loss in adv.DISCRIMINATOR.values()
    logits = [torch.linspace(-9, 9, 64).view(4, 1, 4, 4).bfloat16() for _ in range(1 + both)]
    assert loss(*logits).dtype == torch.float32
    torch.testing.assert_close(loss(*logits), loss(*(v.float() for v in logits)), rtol=0, atol=0)


def slope(f, x: Tensor, eps: float = 1e-3) -> Tensor:
    """Central differences of a sum."""
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[i] = eps
        up, down = f(x + step.view_as(x)).double().sum(), f(x - step.view_as(x)).double().sum()
        out.view(-1)[i] = (up - down) / (2 * eps)
    return out


@pytest.mark.parametrize("name", list(adv.DISCRIMINATOR))
def test_gradients_are_those_of_finite_differences(name):
    real, fake = torch.tensor([-2.2, -0.4, 0.3, 1.7]), torch.tensor([-1.6, -0.2, 0.6, 2.1])
    for function, x in (
        (lambda r: adv.DISCRIMINATOR[name](r, fake), real),
        (lambda f: adv.DISCRIMINATOR[name](real, f), fake),
        (adv.GENERATOR[name], fake),
    ):
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(given).sum(), given)
        torch.testing.assert_close(gradient, slope(function, x), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", list(adv.DISCRIMINATOR))
def test_each_side_pulls_the_logits_its_way(name):
    real, fake = torch.tensor([0.2], requires_grad=True), torch.tensor([0.1], requires_grad=True)
    toward_real, toward_fake = torch.autograd.grad(adv.DISCRIMINATOR[name](real, fake).sum(), [real, fake])
    assert toward_real < 0 < toward_fake
    assert torch.autograd.grad(adv.GENERATOR[name](fake).sum(), fake)[0] < 0


def linear(x: Tensor) -> Tensor:
    """D(x) = 3 x_1 - 4 x_2: a gradient of length 5 everywhere."""
    return (x.flatten(1) * torch.tensor([3.0, -4.0])).sum(1)


def test_penalties_of_a_linear_discriminator():
    x = torch.randn(4, 1, 1, 2)
    assert adv.r1(linear, x).tolist() == pytest.approx([12.5] * 4)
    assert adv.gradient_penalty(linear, x, -x, torch.rand(4)).tolist() == pytest.approx([16.0] * 4)


def test_the_gradient_penalty_is_taken_between_the_images():
    def square(x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1) / 2  # the gradient is x

    real, fake = torch.full((3, 1, 1, 1), 5.0), torch.full((3, 1, 1, 1), 1.0)
    penalty = adv.gradient_penalty(square, real, fake, torch.tensor([0.0, 0.5, 1.0]))
    assert penalty.tolist() == pytest.approx([0.0, 4.0, 16.0])
    assert adv.r1(square, real).tolist() == pytest.approx([12.5] * 3)


@pytest.mark.parametrize("penalty", ["r1", "gradient_penalty"])
def test_gradients_of_penalties_are_those_of_finite_differences(penalty):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 1)).double()
    x, fake, share = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.rand(2)
    weight = critic[0].weight

    def value(w: Tensor) -> Tensor:
        def judge(images: Tensor) -> Tensor:
            return torch.func.functional_call(critic, {"0.weight": w}, (images.double(),)).double()

        made = adv.r1(judge, x) if penalty == "r1" else adv.gradient_penalty(judge, x, fake, share)
        return made.mean()

    given = weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(given), given)
    torch.testing.assert_close(gradient, slope(value, weight.detach()), rtol=2e-3, atol=5e-5)
    assert gradient.abs().max() > 5e-3


def test_penalties_are_computed_in_float32_under_autocast_and_without_gradients_around():
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 1))
    x = torch.randn(3, 1, 8, 8)
    plain = adv.r1(conv, x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(adv.r1(conv, x), plain, rtol=1e-6, atol=0)
    fake = x.flip(0).requires_grad_()
    adv.gradient_penalty(conv, x, fake, torch.rand(3)).sum().backward()
    assert fake.grad is None, "the penalty is the discriminator's alone"
    assert conv[0].weight.grad is not None
