"""Noise cut off at black and white: its density by hand, that it is found again, and that it touches nothing else."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.losses.noise import LEAST, censored_draw, censored_nll, noise_level, noise_loss
from mri_synth.models.vqvae import VQVAE
from mri_synth.networks.autoencoder import Decoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("mean, scale", [(0.0, 0.5), (-1.08, 0.06), (0.9, 2.0)])
def test_density_by_hand(mean: float, scale: float) -> None:
    x = image(-1, -0.99, 0.25, 1)
    found = censored_nll(torch.full_like(x, mean), torch.full_like(x, math.log(scale)), x).double().flatten()
    exact = NormalDist(mean, scale)
    z = [(v - mean) / scale for v in (-0.99, 0.25)]
    inside = [0.5 * v * v + math.log(scale) + 0.5 * math.log(2 * math.pi) for v in z]
    assert found[1:3].tolist() == pytest.approx(inside, rel=1e-4)
    for k, p in ((0, exact.cdf(-1)), (3, exact.cdf(2 * mean - 1))):  # 1 - Phi((1 - m) / s) = Phi((m - 1) / s)
        if p > 1e-12:
            assert found[k].item() == pytest.approx(-math.log(p), rel=1e-4, abs=1e-6)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("mean, scale", [(0.0, 0.5), (-1.08, 0.06), (-0.7, 0.3), (0.9, 2.0)])
def test_probabilities_sum_to_one(mean: float, scale: float) -> None:
    n = 20_000
    middles = (torch.arange(n).double() + 0.5) / n * 2 - 1
    x = torch.cat([image(-1, 1), middles.float()[None, None, None]], 3)
    p = torch.exp(-censored_nll(torch.full_like(x, mean), torch.full_like(x, math.log(scale)), x)).double().flatten()
    assert (p[0] + p[1] + p[2:].mean() * 2).item() == pytest.approx(1, abs=1e-4)


def test_far_from_the_mean_value_and_gradient_are_finite() -> None:
    x = image(-1, 1, -1, 1, 0)
    mean = image(5, -5, -5, 5, 1).requires_grad_()
    log_scale = torch.full_like(x, -7.0).requires_grad_()
    loss = censored_nll(mean, log_scale, x)
    loss.sum().backward()
    assert loss[0, 0, 0, 0].item() == pytest.approx(0.5 * (6 * math.exp(7)) ** 2, rel=1e-3)
    assert loss.flatten()[2:4].tolist() == [0, 0]
    for of in (mean, log_scale):
        assert of.grad is not None
        assert torch.isfinite(of.grad).all()


def fitted(x: Tensor) -> tuple[float, float]:
    """(m, s) of the least cost."""
    values = torch.tensor([-0.9, math.log(0.2)], requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=60, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        mean, log_scale = (v.expand_as(x) for v in values)
        loss = censored_nll(mean, log_scale, x).mean()
        loss.backward()
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    return values[0].item(), math.exp(values[1].item())


def test_a_mean_below_black_is_found_again() -> None:
    """Nine of ten pixels are black, and the peaks alone tell of the others."""
    x = (-1.08 + 0.06 * torch.randn(1, 1, 300, 300, generator=generator())).clamp(-1, 1)
    assert 0.88 < (x == -1).float().mean() < 0.93
    m, s = fitted(x)
    assert m == pytest.approx(-1.08, abs=0.004)
    assert s == pytest.approx(0.06, rel=0.03)


def test_draws_have_the_shares_and_moments_of_the_distribution() -> None:
    shape = (1, 1, 400, 400)
    e = torch.randn(shape, generator=generator())
    for m, s in ((-1.08, 0.06), (0.95, 0.1), (0.0, 0.2)):
        x = censored_draw(torch.full(shape, m), torch.full(shape, math.log(s)), e)
        exact = NormalDist(m, s)
        assert (x == -1).float().mean().item() == pytest.approx(exact.cdf(-1), abs=0.004)
        assert (x == 1).float().mean().item() == pytest.approx(1 - exact.cdf(1), abs=0.004)
        middle = 0.9 if m > 0.9 else -0.9
        assert (x < middle).float().mean().item() == pytest.approx(exact.cdf(middle), abs=0.004)
    assert x.std().item() == pytest.approx(0.2, rel=0.01)


def smooth(size: int = 128) -> Tensor:
    """(1, 1, size, size) well inside (-1, 1), of structures some pixels wide."""
    noise = torch.rand(1, 1, size + 30, size + 30, generator=generator(1)) - 0.5
    for _ in range(3):
        noise = avg_pool2d(noise, 11, 1)
    return 0.5 * noise / noise.abs().max()


@pytest.mark.parametrize("kind", ["true", "shifted", "blurred", "edges"])
def test_the_level_is_that_of_the_noise_and_not_of_the_residual(kind: str) -> None:
    clean = smooth()
    if kind == "edges":  # a quarter of the blocks have an edge that the reconstruction puts elsewhere
        clean[..., ::8, :] += 0.4
    x = clean + 0.05 * torch.randn(clean.shape, generator=generator(2))
    shifted = clean.roll((3, 2), (2, 3))
    blurred = avg_pool2d(pad(clean, (12,) * 4, mode="reflect"), 25, 1)
    x_hat = {"true": clean, "shifted": shifted, "blurred": blurred, "edges": shifted}[kind]
    residual = (x - x_hat).square().mean().sqrt().item()  # what the likelihood of a normal distribution alone gives
    assert noise_level(x_hat, x).item() == pytest.approx(0.05, rel=0.04)
    assert residual == pytest.approx(0.05, rel=0.03) if kind == "true" else residual > 0.07


def test_a_noisy_reconstruction_lacks_only_the_rest() -> None:
    """Where half of the variance is in the reconstruction already, the other half is to be drawn."""
    clean = smooth(256)
    first, second = (0.05 / 2**0.5 * torch.randn(clean.shape, generator=generator(k)) for k in (3, 4))
    assert noise_level(clean + first, clean + first + second).item() == pytest.approx(0.05 / 2**0.5, rel=0.08)


def test_without_noise_or_without_a_block_to_see_it_in_the_level_is_the_least() -> None:
    flat, black = torch.full((1, 1, 4, 4), 0.1), torch.full((1, 1, 4, 4), -1.0)
    assert noise_level(flat, flat).item() == pytest.approx(LEAST)
    assert noise_level(black, black).item() == pytest.approx(LEAST)


def test_the_level_by_hand() -> None:
    """Four blocks; one has a black pixel; of the others two are flat in x_hat, with |d| 0.1 and 0.3: median 0.1."""
    x_hat = torch.zeros(1, 1, 4, 4)
    x_hat[0, 0, 2:, 2:] = torch.tensor([[0.0, 0.4], [0.0, 0.4]])
    x = x_hat.clone()
    x[0, 0, :2, :2] = torch.tensor([[0.1, 0.0], [0.0, 0.1]])  # d = (0.1 + 0.1) / 2
    x[0, 0, 2:, :2] = torch.tensor([[0.3, 0.0], [0.0, 0.3]])
    x[0, 0, 0, 2] = -1
    assert noise_level(x_hat, x).item() == pytest.approx(0.1 / 0.6745, rel=1e-5)


def test_the_mean_is_pulled_to_the_reconstruction_and_the_scale_to_the_level() -> None:
    clean = smooth(64)
    x = clean + 0.05 * torch.randn(clean.shape, generator=generator(2))
    x_hat = clean.clone().requires_grad_()
    mean = (clean + 0.1).requires_grad_()
    log_scale = torch.full((1, 1, 1, 1), -2.0).requires_grad_()
    loss = noise_loss(x_hat, mean, log_scale, x)
    assert loss.shape == (1,)
    loss.sum().backward()
    assert x_hat.grad is None
    assert mean.grad is not None
    assert log_scale.grad is not None
    torch.testing.assert_close(mean.grad, torch.full_like(x, 0.1 * math.exp(4) / x.numel()), rtol=1e-4, atol=1e-6)
    level = noise_level(clean, x).log().item()
    assert log_scale.grad.item() == pytest.approx(-2.0 - level, rel=1e-4)
    assert loss.item() == pytest.approx(0.5 * 0.01 * math.exp(4) + 0.5 * (-2 - level) ** 2, rel=1e-4)


def test_where_it_is_dark_the_mean_has_the_likelihood_and_the_scale_none_of_it() -> None:
    x_hat, x = torch.full((1, 1, 2, 2), -0.97), torch.tensor([[[[-1.0, -1.0], [-0.95, -1.0]]]])
    mean, log_scale = torch.full_like(x, -1.05).requires_grad_(), torch.full((1, 1, 1, 1), -3.0).requires_grad_()
    expected = censored_nll(mean, torch.full_like(x, -3.0), x).mean()
    loss = noise_loss(x_hat, mean, log_scale, x)
    assert loss.item() == pytest.approx(expected.item() + 0.5 * (-3 - math.log(LEAST)) ** 2, rel=1e-5)
    loss.sum().backward()
    assert log_scale.grad is not None
    assert log_scale.grad.item() == pytest.approx(-3 - math.log(LEAST), rel=1e-5)


SIZES: dict[str, Any] = {"hidden_channels": 16, "codebook_size": 16, "codebook_dim": 8, "res_blocks": 1,
                         "kmeans_init": False}  # fmt: skip


def pair() -> tuple[VQVAE, VQVAE]:
    """Without and with noise; the weights that both have are equal."""
    torch.manual_seed(0)
    plain = VQVAE(DataSpec(size=32), **SIZES)
    noisy = VQVAE(DataSpec(size=32), **SIZES, noise=True)
    missing, unexpected = noisy.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("decoder.noise.") for name in missing)
    return plain, noisy


def items() -> Batch:
    x = torch.rand(4, 1, 32, 32, generator=generator()) * 2 - 1
    return Batch(image=torch.where(x < -0.5, torch.tensor(-1.0), x), index=torch.arange(4))


def test_with_noise_reconstructions_and_gradients_are_bit_for_bit_the_same() -> None:
    plain, noisy = pair()
    head = noisy.decoder.noise
    assert isinstance(head, nn.Module)
    for parameter in head.parameters():  # its last layer starts at zero and would let no gradient through
        nn.init.normal_(parameter, std=0.1)
    found = [model.train().losses(items()) for model in (plain, noisy)]
    for losses in found:
        losses["loss"].backward()
    for name in ("l1", "commitment"):
        assert torch.equal(found[0][name], found[1][name]), name
    gradients = dict(noisy.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, gradients[name].grad), name  # type: ignore[arg-type]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    with torch.no_grad():
        x = items().image
        assert torch.equal(plain.eval().reconstruct(x), noisy.eval().reconstruct(x))


def test_the_decoder_says_its_noise_only_where_it_was_built_to() -> None:
    torch.manual_seed(0)
    decoder, z = Decoder(1, 16, 8, noise=True), torch.randn(2, 8, 4, 4)
    x_hat, mean, log_scale = decoder.noisy(z)
    assert torch.equal(x_hat, decoder(z))
    assert torch.equal(mean, x_hat)  # before training
    assert log_scale.shape == (2, 1, 1, 1)
    assert log_scale.unique().tolist() == pytest.approx([-2.5], abs=1e-3)
    with pytest.raises(ValueError, match="the decoder was built without noise"):
        Decoder(1, 16, 8).noisy(z)


@torch.no_grad()
def test_images_drawn_from_codes_are_fixed_by_their_seeds() -> None:
    plain, noisy = (model.eval() for model in pair())
    codes = torch.randint(16, (3, 8, 8), generator=generator())
    assert torch.equal(plain.draw(codes, torch.arange(3)), plain.decode(codes))
    drawn = noisy.draw(codes, torch.tensor([5, 6, 7]))
    assert drawn.shape == (3, 1, 32, 32)
    assert torch.equal(drawn, noisy.draw(codes, torch.tensor([5, 6, 7])))
    torch.testing.assert_close(noisy.draw(codes[1:2], torch.tensor([6])), drawn[1:2])
    other = noisy.draw(codes, torch.tensor([8, 6, 7]))
    assert not torch.allclose(other[0], drawn[0])
    torch.testing.assert_close(other[1:], drawn[1:])
    residual = (drawn - noisy.decode(codes))[noisy.decode(codes).abs() < 0.7]
    assert residual.std().item() == pytest.approx(math.exp(-2.5), rel=0.06)  # where an untrained head begins
