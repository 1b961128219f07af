"""The denoising autoencoder: nothing is done before training, what is left by hand, and sizes that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from mri_synth.config import check
from mri_synth.corruption import foreign_structures
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import ConfigError
from mri_synth.models.dae import DAE
from mri_synth.networks.unet import UNet


def batch(size: int = 32) -> Batch:
    image = torch.full((4, 1, size, size), -1.0)
    image[:, :, 4:-4, 4:-4] = 0
    return Batch(image=image, index=torch.arange(4))


def test_before_training_nothing_is_taken_off():
    model, x = DAE(DataSpec(size=32)).eval(), batch()
    assert torch.equal(model.reconstruct(x.image), x.image)
    losses = model.losses(x)
    assert losses["left"] == pytest.approx(1)
    assert losses["loss"] > 0


def test_left_is_zero_when_all_is_taken_off():
    """A network that says exactly what was put in and where: all is 0; one that says twice that leaves all again."""
    model, x = DAE(DataSpec(size=32)).eval(), batch()
    for factor, left in ((1, 0), (2, 1)):
        _, share = foreign_structures(x.image, 6, 0, -1, x.index)
        odds = torch.where(share > 0.5, 50.0, -50.0)
        model.network.forward = lambda seen, by=factor, odds=odds: torch.cat([by * (seen - x.image), odds], 1)
        losses = model.losses(x)
        assert losses["left"] == pytest.approx(left, abs=1e-6)
        assert losses["where"] < 1e-12
        assert bool(losses["loss"] < 1e-12) is (left == 0)


def test_suspicion_is_the_chance_that_something_is_there():
    """Before training it is one half everywhere, and its cross-entropy log 2; the loss is both terms, weighed."""
    model, x = DAE(DataSpec(size=32), lambda_where=0.3).eval(), batch()
    assert torch.equal(model.suspicion(x.image), torch.full((4, 1, 32, 32), 0.5))
    losses = model.losses(x)
    assert losses["where"].item() == pytest.approx(math.log(2))
    assert losses["loss"].item() == pytest.approx(losses["mse"].item() + 0.3 * math.log(2))


def test_evaluation_is_the_same_every_time_and_training_is_not():
    model, x = DAE(DataSpec(size=32)), batch()
    model.eval()
    assert model.losses(x)["loss"] == model.losses(x)["loss"]
    first = model.losses(x)["loss"]
    model.train()
    assert model.losses(x)["loss"] != first


def test_the_mirror_image_is_reconstructed_alike():
    """With `flip` reconstruction and suspicion of the mirror image are mirrored; without they are not."""
    torch.manual_seed(0)
    x = batch().image + 0.1 * torch.rand(4, 1, 32, 32)
    for flip in (True, False):
        model = DAE(DataSpec(size=32), flip=flip).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            says = (model.reconstruct, model.suspicion)
            same = [torch.allclose(f(x.flip(-1)), f(x).flip(-1), atol=1e-5) for f in says]
        assert same == [flip, flip]


def test_unet_sees_far():
    """The middle of the output depends on pixels 14 away, by way of the lowest resolution."""
    network = UNet(2, 3, 32, 8)
    torch.nn.init.normal_(network.last[0].weight)
    x = torch.rand(3, 2, 32, 32, requires_grad=True)
    y = network(x)
    assert y.shape == (3, 3, 32, 32)
    y[:, :, 16, 16].sum().backward()
    assert x.grad[:, :, 2, 16].abs().sum() > 0
    with pytest.raises(ValueError, match=r"size must be a multiple of 8 and hidden of 4, got 36 and 8"):
        UNet(1, 1, 36, 8)


def test_size_is_refused_before_anything_is_built(compose):
    with pytest.raises(ConfigError, match=r"data.size=36 is no multiple of that; try data.size=32"):
        check(compose("model=dae", "data.size=36"))
