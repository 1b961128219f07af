"""Terms of the bound against numbers worked by hand, and against exact likelihoods."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from mri_synth.losses import elbo as terms
from mri_synth.losses.elbo import (
    LEVELS,
    active_units,
    aggregate_normal,
    bits_per_dim,
    elbo,
    free_bits,
    gaussian_log_likelihood,
    kl_gaussian,
    laplace_log_likelihood,
)
from mri_synth.report.explanations import explain

LIKELIHOODS = [gaussian_log_likelihood, laplace_log_likelihood]


def levels() -> Tensor:
    """All 256 levels as 256 images of one pixel."""
    return (torch.arange(LEVELS) / 127.5 - 1).view(-1, 1, 1, 1)


def test_kl_by_hand() -> None:
    assert kl_gaussian(torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
    # (mu^2 + sigma^2 - log sigma^2 - 1) / 2: (1 + 1 - 0 - 1) / 2 and (0 + 4 - log 4 - 1) / 2
    kl = kl_gaussian(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4)]]))
    assert kl.tolist() == [pytest.approx([0.5, (3 - math.log(4)) / 2])]


def test_kl_is_that_of_torch_and_small_ones_keep_their_digits() -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(4, 5), torch.randn(4, 5)
    posterior = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    exact = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(kl_gaussian(mu, logvar), exact, atol=1e-6)
    tiny = kl_gaussian(torch.zeros(1, 1), torch.full((1, 1), 1e-2)).item()  # v^2 / 4 + v^3 / 12
    assert tiny == pytest.approx(1e-4 / 4 + 1e-6 / 12, rel=1e-3)
    assert kl_gaussian(mu.bfloat16(), logvar.bfloat16()).dtype == torch.float32


def test_the_normal_of_all_posteriors_together_by_hand() -> None:
    mu = torch.tensor([[1.0, 3.0], [-1.0, 1.0]])
    logvar = torch.tensor([[0.5, 3.0], [1.5, 5.0]]).log()
    mean, factor = aggregate_normal(mu, logvar)
    assert mean.tolist() == [0, 2]
    # covariance [[1, 1], [1, 1]] of the means, 1 and 4 of the posteriors: [[2, 1], [1, 5]]
    assert factor.flatten().tolist() == pytest.approx([2**0.5, 0, 0.5**0.5, 4.5**0.5])
    flat = aggregate_normal(1e3 * mu, torch.full((2, 2), -80.0))[1]  # points on a line
    torch.testing.assert_close(flat @ flat.T, torch.full((2, 2), 1e6))
    assert flat.diag().min() > 0
    unused = aggregate_normal(torch.zeros(1, 3), torch.zeros(1, 3))  # one image, and a posterior that is the prior
    assert torch.equal(unused[0], torch.zeros(3))
    assert torch.equal(unused[1], torch.eye(3))


def test_the_fit_recovers_a_known_normal() -> None:
    """Posteriors N(mu, diag s), mu from N(m, C): together they are N(m, C + diag s)."""
    generator = torch.Generator().manual_seed(0)
    m, a = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[2.0, 0, 0], [1.0, 0.5, 0], [0.3, 0, 1.0]])
    s = torch.tensor([0.1, 0.4, 0.2])
    mu = m + torch.randn(40_000, 3, generator=generator) @ a.T
    mean, factor = aggregate_normal(mu, s.log().expand_as(mu))
    torch.testing.assert_close(mean, m, atol=0.03, rtol=0)
    torch.testing.assert_close(factor @ factor.T, a @ a.T + s.diag(), atol=0.06, rtol=0)
    assert factor.diag().min() > 0
    assert torch.equal(factor, factor.tril())


def test_free_bits_by_hand() -> None:
    kl = torch.tensor([[0.1, 2.0, 0.0], [0.5, 0.5, 0.6]], requires_grad=True)
    free = free_bits(kl, 0.5)
    assert free.tolist() == pytest.approx([0.5 + 2.0 + 0.5, 1.6])
    assert free_bits(kl, 0.0).tolist() == pytest.approx([2.1, 1.6])
    free[0].backward()
    assert kl.grad is not None
    assert kl.grad[0].tolist() == [0, 1, 0], "nothing below the minimum is pushed to zero"


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("mean", [-3.0, -1.0, -0.301, 0.0, 0.77, 1.0, 2.5])
@pytest.mark.parametrize("scale", [0.001, 0.1, 1.0, 10.0])
def test_probabilities_of_the_256_levels_add_up_to_1(likelihood, mean: float, scale: float) -> None:
    log_p = likelihood(torch.full((LEVELS, 1, 1, 1), mean), levels(), torch.tensor(math.log(scale)))
    assert log_p.max() <= 0
    assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_gaussian_probabilities_by_hand() -> None:
    """Level 128 is the intensity 1/255, its bin [0, 2/255]; the first level's reaches from -254/255 down to nowhere."""
    at, scale = (lambda k: torch.tensor(k / 127.5 - 1).view(1, 1, 1, 1)), 2 / 255
    zero, log_scale = torch.zeros(1, 1, 1, 1), torch.tensor(math.log(scale))
    half = gaussian_log_likelihood(zero, at(128), log_scale)
    assert half.exp().item() == pytest.approx(0.341345, abs=2e-6)  # Phi(1) - Phi(0)
    edge = gaussian_log_likelihood(-torch.ones(1, 1, 1, 1), at(0), log_scale)
    assert edge.exp().item() == pytest.approx(0.691462, abs=2e-6)  # Phi(1/2)
    last = gaussian_log_likelihood(torch.ones(1, 1, 1, 1), at(255), log_scale)
    assert last.item() == pytest.approx(edge.item(), abs=1e-5)


def test_laplace_probabilities_by_hand() -> None:
    at, log_b = (lambda k: torch.tensor(k / 127.5 - 1).view(1, 1, 1, 1)), torch.tensor(math.log(2 / 255))
    p = laplace_log_likelihood(torch.zeros(1, 1, 1, 1), at(128), log_b).exp().item()
    assert p == pytest.approx((1 - math.exp(-1)) / 2, abs=1e-5)  # F(1) - F(0)
    edge = laplace_log_likelihood(-torch.ones(1, 1, 1, 1), at(0), log_b).exp().item()
    assert edge == pytest.approx(1 - math.exp(-0.5) / 2, abs=1e-5)  # F(1/2)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihood_is_of_the_nearest_level_and_sums_over_pixels(likelihood) -> None:
    mean, log_scale = torch.tensor([[[[0.2, -0.4]]]]), torch.tensor(-2.0)
    on, off = torch.tensor([[[[51 / 127.5 - 1, 1.0]]]]), torch.tensor([[[[51.4 / 127.5 - 1, 0.999]]]])
    assert torch.equal(likelihood(mean, on, log_scale), likelihood(mean, off, log_scale))
    parts = [likelihood(mean[..., k : k + 1], on[..., k : k + 1], log_scale) for k in (0, 1)]
    assert likelihood(mean, on, log_scale).item() == pytest.approx(sum(parts).item(), rel=1e-6)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_are_finite_and_right_even_far_out(likelihood) -> None:
    mean = torch.tensor([-50.0, -2.0, -0.7, 0.013, 0.5, 0.9, 1.7, 40.0]).view(-1, 1, 1, 1).requires_grad_()
    x = torch.tensor([1.0, -1.0, -0.7, 0.5, -0.3, 1.0, 1.0, -1.0]).view(-1, 1, 1, 1)
    log_scale = torch.tensor(-2.0, requires_grad=True)
    value = likelihood(mean, x, log_scale)
    value.sum().backward()
    assert mean.grad is not None
    assert log_scale.grad is not None
    assert torch.isfinite(value).all()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(log_scale.grad)
    step = 1e-3
    with torch.no_grad():
        slope = (likelihood(mean + step, x, log_scale) - likelihood(mean - step, x, log_scale)) / (2 * step)
    inner = slice(1, 7)
    assert torch.allclose(mean.grad.flatten()[inner], slope[inner], rtol=0.03, atol=0.02)
    assert mean.grad.flatten()[0] > 0 > mean.grad.flatten()[7], "towards the pixel"


def test_a_narrow_likelihood_at_the_pixel_costs_nothing_and_black_is_free_below_the_first_level() -> None:
    x = levels()
    assert gaussian_log_likelihood(x, x, torch.tensor(math.log(1e-4))).abs().max() < 1e-6
    black = -torch.ones(1, 1, 4, 4)
    assert gaussian_log_likelihood(black - 1, black, torch.tensor(math.log(0.1))).item() == pytest.approx(0, abs=1e-6)


def test_uniform_guess_is_8_bits() -> None:
    pixels = 3 * 5
    assert bits_per_dim(torch.tensor([-pixels * math.log(256)]), pixels).item() == pytest.approx(8, rel=1e-6)
    wide = gaussian_log_likelihood(torch.zeros(1, 1, 3, 5), torch.zeros(1, 1, 3, 5), torch.tensor(0.0))
    assert bits_per_dim(wide, pixels).item() == pytest.approx(-math.log2(0.3989423 * 2 / 255), rel=1e-4)


def test_bound_of_the_true_posterior_is_the_likelihood_itself() -> None:
    """z ~ N(0, 1), x | z ~ N(w z, s^2): p(x) and p(z | x) are normal and known. Any other posterior gives less."""
    w, s = 1.7, 0.6
    x = torch.tensor([[-1.2], [0.3], [2.0]], dtype=torch.float64)
    precision = 1 + w**2 / s**2
    mu, logvar = w * x / s**2 / precision, torch.full_like(x, -math.log(precision))
    exact = torch.distributions.Normal(0.0, math.sqrt(w**2 + s**2)).log_prob(x)[:, 0]

    def bound(mu: Tensor, logvar: Tensor) -> Tensor:
        nodes = torch.linspace(-8, 8, 4001, dtype=torch.float64)  # the mean over z, as an integral
        weights = torch.exp(-nodes.square() / 2)
        z = mu + torch.exp(0.5 * logvar) * nodes
        log_p = torch.distributions.Normal(w * z, s).log_prob(x)
        return elbo((log_p * weights).sum(1) / weights.sum(), kl_gaussian(mu, logvar))

    assert torch.allclose(bound(mu, logvar), exact.float(), atol=1e-5)
    assert (bound(mu + 0.1, logvar) < exact - 1e-3).all()
    assert (bound(mu, logvar + 0.3) < exact - 1e-3).all()


def test_elbo_and_active_units_by_hand() -> None:
    assert elbo(torch.tensor([-10.0]), torch.tensor([[1.0, 0.5]])).tolist() == [-11.5]
    assert active_units(torch.tensor([0.0, 0.009, 0.011, 1.0])).item() == 2


def test_every_term_says_its_sentence_and_formula() -> None:
    for name, function in inspect.getmembers(terms, inspect.isfunction):
        if function.__module__ == terms.__name__ and not name.startswith("_"):
            sentence, formula = explain(function).split("\n")
            assert sentence.endswith("."), name
            assert "=" in formula or "<=" in formula, name
