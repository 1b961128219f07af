"""Rician noise in a window: its moments, that level and depth are found again, and that nothing else is touched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.losses.noise import LEAST, black_depth, noise_draws, noise_level, noise_loss, rician_draw
from mri_synth.models.vqvae import VQVAE
from mri_synth.networks.autoencoder import Decoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(value: float, s: float, b: float, spread: float = 0.0, images: int = 4, side: int = 200) -> Tensor:
    """Images whose reconstruction is the same everywhere, with noise."""
    x_hat = torch.full((images, 1, side, side), value)
    e = torch.randn(images, noise_draws(1, side * side), generator=generator())
    level, depth = (torch.full((images, 1), v) for v in (math.log(s), b))
    return rician_draw(x_hat, level, depth, torch.full((1,), spread).log(), e)


@pytest.mark.parametrize("s, b", [(0.065, 2.17), (0.1, 1.0), (0.02, 3.0)])
def test_air_has_the_specks_that_a_rayleigh_distribution_leaves_above_black(s: float, b: float) -> None:
    x = drawn(-1.0, s, b)
    share = math.exp(-b * b / 2)
    assert (x > -1).float().mean().item() == pytest.approx(share, rel=0.06)
    # E[R - b s | R > b s] = s sqrt(2 pi) (1 - Phi(b)) / exp(-b^2 / 2)
    excess = s * math.sqrt(2 * math.pi) * 0.5 * math.erfc(b / math.sqrt(2)) / share
    assert (x[x > -1] + 1).mean().item() == pytest.approx(excess, rel=0.04)
    assert torch.equal(x, drawn(-0.96, s, b)), "dark is air"


@pytest.mark.parametrize("s, b", [(0.065, 2.17), (0.05, 0.0)])
def test_where_there_is_signal_noise_has_its_level_about_the_reconstruction(s: float, b: float) -> None:
    x = drawn(0.0, s, b)
    assert x.mean().item() == pytest.approx(0.0, abs=0.001)
    assert x.std().item() == pytest.approx(s, rel=0.01)


def test_a_signal_of_three_deviations_has_the_mean_of_a_rician_distribution() -> None:
    """E[R] = s sqrt(pi / 2) L_1/2(-A^2 / (2 s^2)) is 3.1729 s for A = 3 s, and E[R^2] = A^2 + 2 s^2."""
    s, b = 0.1, 1.0
    x = drawn(-1 - b * s + s * math.sqrt(10), s, b, side=400)
    assert (x + 1 + b * s).mean().item() == pytest.approx(3.1729 * s, rel=0.002)
    assert (x + 1 + b * s).square().mean().item() == pytest.approx(11 * s * s, rel=0.004)


def test_what_is_beyond_white_is_white() -> None:
    x = drawn(0.999, 0.1, 2.0)
    assert x.max() == 1
    assert (x == 1).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_without_noise_the_image_stays() -> None:
    x_hat = torch.linspace(-0.94, 0.99, 64).view(1, 1, 8, 8)
    e = torch.randn(1, noise_draws(1, 64), generator=generator())
    x = rician_draw(x_hat, torch.full((1, 1), -12.0), torch.full((1, 1), 2.0), torch.full((1,), -1.0), e)
    torch.testing.assert_close(x, x_hat, atol=1e-4, rtol=0)


def test_the_depth_is_drawn_for_each_image() -> None:
    x = drawn(-1.0, 0.05, 2.0, spread=0.2, images=100, side=64)
    depths = black_depth(torch.full_like(x, -1.0), x)
    assert depths.mean().item() == pytest.approx(2.0, abs=0.06)
    assert depths.std().item() == pytest.approx(0.2, rel=0.2)


def test_a_depth_is_found_again() -> None:
    x = drawn(-1.0, 0.065, 2.17, images=1, side=256)
    assert black_depth(torch.full_like(x, -1.0), x).item() == pytest.approx(2.17, abs=0.03)


def test_the_depth_by_hand() -> None:
    """8 x 8 of air with 4 specks; a bright pixel at the edge takes 3 x 5 of air away, and one speck with it."""
    x_hat, x = torch.full((1, 1, 8, 12), -1.0), torch.full((1, 1, 8, 12), -1.0)
    x[0, 0, 0, :4] = -0.9
    assert black_depth(x_hat, x).item() == pytest.approx(math.sqrt(-2 * math.log(4.5 / 97)), rel=1e-5)
    x_hat[0, 0, 0, 0] = 0.3
    assert black_depth(x_hat, x).item() == pytest.approx(math.sqrt(-2 * math.log(1.5 / 88)), rel=1e-5)
    assert black_depth(x_hat[..., :4], x[..., :4]).isnan().all(), "23 pixels are too few"


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


def test_the_loss_by_hand() -> None:
    """Level and depth are pulled to what is found, each by its difference; the spread to the error that is left."""
    x_hat = torch.full((1, 1, 8, 16), -1.0)
    x_hat[..., 8:] = 0.2 * smooth(16)[..., :8, :8]
    x_hat.requires_grad_()
    x = torch.where(x_hat < -0.9, -1.0, x_hat + 0.05 * torch.randn(x_hat.shape, generator=generator(2))).detach()
    level = torch.full((1, 1), -2.0).requires_grad_()
    depth = torch.full((1, 1), 2.5).requires_grad_()
    log_spread = torch.full((1,), -1.5).requires_grad_()
    x_hat_wide, x_wide = (torch.cat([v, v], 2) for v in (x_hat, x))  # 96 pixels of air
    by_level = -2.0 - noise_level(x_hat_wide, x_wide).log().item()
    by_depth = 2.5 - math.sqrt(-2 * math.log(0.5 / 97))
    loss = noise_loss(x_hat_wide, level, depth, log_spread, x_wide)
    assert loss.shape == (1,)
    of_spread = by_depth**2 / 2 * math.exp(3) - 1.5
    assert loss.item() == pytest.approx(by_level**2 / 2 + by_depth**2 / 2 + of_spread, rel=1e-4)
    loss.sum().backward()
    assert x_hat.grad is None
    for of, expected in ((level, by_level), (depth, by_depth), (log_spread, 1 - by_depth**2 * math.exp(3))):
        assert of.grad is not None
        assert of.grad.item() == pytest.approx(expected, rel=1e-4)


def test_without_air_the_loss_is_the_levels() -> None:
    x_hat, x = 0.2 * smooth(16), 0.2 * smooth(16)
    values = [v.requires_grad_() for v in (torch.full((1, 1), -2.0), torch.full((1, 1), 2.5), torch.full((1,), -1.5))]
    loss = noise_loss(x_hat, *values, x)
    assert loss.item() == pytest.approx((-2.0 - math.log(LEAST)) ** 2 / 2, rel=1e-4)
    loss.sum().backward()
    assert [bool(v.grad) for v in values] == [True, False, False]


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
    found = [model.train().losses(items()) for model in (plain, noisy)]
    for losses in found:
        losses["loss"].backward()
    for name in ("l1", "commitment"):
        assert torch.equal(found[0][name], found[1][name]), name
    gradients = dict(noisy.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, gradients[name].grad), name  # type: ignore[arg-type]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.linear.parameters())  # type: ignore[union-attr,operator]
    with torch.no_grad():
        x = items().image
        assert torch.equal(plain.eval().reconstruct(x), noisy.eval().reconstruct(x))


def test_the_decoder_says_its_noise_only_where_it_was_built_to() -> None:
    torch.manual_seed(0)
    decoder, z = Decoder(1, 16, 8, noise=True), torch.randn(2, 8, 4, 4)
    x_hat, (log_level, depth, log_spread) = decoder.noisy(z)
    assert torch.equal(x_hat, decoder(z))
    assert log_level.flatten().tolist() == pytest.approx([-2.5, -2.5], abs=1e-3)  # before training
    assert depth.flatten().tolist() == [2, 2]
    assert log_spread.shape == (1,)
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
