"""The noise of generated images: what is measured of it, by hand; that it is found; and that images get no gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.losses.grain import black_loss, grain, grain_loss
from mri_synth.models.dcgan import DCGAN
from mri_synth.networks.dcgan import Scanner


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_grain_by_hand() -> None:
    """Four blocks with h^2 + v^2 of 0, 0.08, 0.5 and none: the one flattest of them counts."""
    flat = torch.tensor([[0.3, 0.1], [0.1, 0.3]])  # d = 0.2
    sloped = torch.tensor([[0.2, 0.0], [0.0, -0.4]])
    edge = torch.tensor([[0.5, 0.0], [0.5, 0.0]])
    black = torch.tensor([[-1.0, -0.9], [-0.9, -0.8]])
    x = torch.cat([torch.cat([flat, sloped], 1), torch.cat([edge, black], 1)])[None, None]
    assert grain(x).tolist() == [[pytest.approx(0.2)]]
    assert grain(x.rot90(2, (2, 3))).tolist() == [[pytest.approx(0.2)]]
    assert grain(torch.full((2, 3, 4, 4), -1.0)).tolist() == [[0.0] * 3] * 2, "nothing but black"


@pytest.mark.parametrize("s", [0.02, 0.1])
def test_grain_of_white_noise_is_its_mean_size_and_no_slope_adds_to_it(s: float) -> None:
    ramp = torch.linspace(-0.4, 0.4, 128).expand(1, 1, 128, 128)
    assert grain(ramp).item() == pytest.approx(0, abs=1e-6)
    assert grain(s * noise(4, 1, 128, 128)).mean().item() == pytest.approx(s * math.sqrt(2 / math.pi), rel=0.05)
    assert grain(ramp + s * noise(1, 1, 128, 128)).item() == pytest.approx(s * math.sqrt(2 / math.pi), rel=0.08)


def test_losses_by_hand_and_without_gradients_of_images() -> None:
    fake, real = 0.1 * noise(3, 2, 16, 16), 0.2 * noise(3, 2, 16, 16, seed=1)
    fake[0, 0, :4] = -1.0  # a quarter is black
    fake.requires_grad_()
    log_level, depth = torch.tensor([-2.0, -3.0], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    g, b = grain_loss(log_level, fake, real), black_loss(depth, fake, real)
    difference = (grain(fake) - grain(real)).detach()
    torch.testing.assert_close(g, (difference * torch.tensor([-2.0, -3.0])).mean(1).detach(), check_stride=False)
    assert b.tolist() == pytest.approx([0.5 * 0.25 / 2, 0, 0])
    (g.mean() + b.mean()).backward()
    torch.testing.assert_close(log_level.grad, difference.mean(0) / 2)
    assert (log_level.grad < 0).all(), "real images are grainier: a step against it makes the noise stronger"
    assert depth.grad.tolist() == pytest.approx([0.25 / 6, 0]), "too much is black: a step against it lifts air"
    assert fake.grad is None


def scanner(s: float, k: float) -> Scanner:
    out = Scanner(1)
    with torch.no_grad():
        out.log_level.fill_(math.log(s))
        out.depth.fill_(math.log(k / (4 - k)))
    return out


def test_scanner_by_hand() -> None:
    t = torch.tensor([-1.0, -1.0, -1.0, 0.0, 0.5, 1.0]).reshape(1, 1, 1, -1).requires_grad_()
    e = torch.tensor([1.0, 2.0, 3.0, -1.0, 1.0, 0.0]).reshape(t.shape)
    network = scanner(0.1, 2.0)
    x = network(t, e)
    assert x.flatten().tolist() == pytest.approx([-1, -1, -0.9, -0.1, 0.7, 1])
    x.sum().backward()
    assert t.grad.flatten().tolist() == pytest.approx([0, 1.2, 1.2, 1.2, 1.2, 0], abs=1e-6), "of what is seen"
    assert network.log_level.grad is None
    assert network.depth.grad is None


def test_level_and_depth_are_found_again() -> None:
    """Real images of a known scanner, and a generator that draws the same disk: only s and k are to be found."""
    rows = torch.linspace(-1, 1, 32)
    clean = torch.where(rows[:, None].square() + rows.square() < 0.5, 0.4, -1.0).expand(16, 1, -1, -1)
    real, ours = scanner(0.05, 2.0)(clean, noise(16, 1, 32, 32)), scanner(0.15, 0.8)
    by = torch.optim.Adam(ours.parameters(), lr=0.02, betas=(0.0, 0.99))
    for step in range(200):
        fake = ours(clean, noise(16, 1, 32, 32, seed=step + 1))
        by.zero_grad()
        (grain_loss(ours.log_level, fake, real) + black_loss(ours.depth, fake, real)).mean().backward()
        by.step()
    assert ours.level.item() == pytest.approx(0.05, rel=0.1)
    assert ours.deviations.item() == pytest.approx(2.0, rel=0.1)


def small(pixel_noise: bool) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(DataSpec(size=16), latent_dim=4, channels_g=4, channels_d=4, pixel_noise=pixel_noise)


def test_one_seed_is_one_image_and_noise_lies_beside_z() -> None:
    model, seeds = small(True).eval(), torch.tensor([3, 7, 3])
    with torch.no_grad():
        x, z = model.sample(seeds), model.latent(seeds)
        assert z.shape == (3, 4 + 16 * 16)
        assert torch.equal(x[0], x[2])
        torch.testing.assert_close(model.sample(seeds[1:2])[0], x[1])
        z[:, 4:] = 0
        without = model.from_latent(z)
    inside = (x.abs() < 1) & (without.abs() < 1)
    assert (x - without)[inside].std().item() == pytest.approx(0.08, rel=0.2)


def test_both_learn_in_the_generators_turn_by_no_other_loss() -> None:
    model = small(True)
    batch = Batch(image=0.3 * noise(4, 1, 16, 16).clamp(-1, 1), index=torch.arange(4))
    fakes = model.generate(batch)
    losses = model.generator_losses(batch, fakes)
    adversarial = model.generator_losses(batch, fakes)["loss"].item()
    losses["loss"].backward()
    found: Any = model.generator.scanner
    torch.testing.assert_close(found.log_level.grad, (grain(fakes) - grain(batch.image)).mean(0).detach())
    assert torch.isfinite(found.depth.grad).all()
    with torch.no_grad():
        assert adversarial == pytest.approx(torch.nn.functional.softplus(-model.discriminator(fakes)).mean().item())
    assert (losses["noise"].item(), losses["depth"].item()) == (pytest.approx(0.08), pytest.approx(1.3))
    assert set(small(False).generator_losses(batch, fakes.detach())) == {"loss"}
