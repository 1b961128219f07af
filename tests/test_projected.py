"""The projected discriminator, and decoders that are trained for codes that stay: alone, and for a prior's samples."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mri_synth import weights
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import ConfigError, UserError
from mri_synth.losses.adversarial import DISCRIMINATOR
from mri_synth.metrics import lpips
from mri_synth.models.checkpoint import initialise_from, load_model
from mri_synth.models.first_stage import redecode
from mri_synth.models.vqgan import VQGAN, drawn_codes
from mri_synth.networks import backbones, projected
from mri_synth.networks.projected import WIDTHS, ProjectedDiscriminator
from mri_synth.run import build, run
from mri_synth.sample import sample

DATA = ["data.preset=custom", "data.subjects=[3,1,1]", "data.size=32", "data.batch_size=4", "logger=csv", "trainer=cpu",
        "trainer.precision=32-true", "trainer.progress=false", "trainer.pictures=0", "trainer.log_every_steps=1",
        "trainer.max_epochs=1", "samples=0"]  # fmt: skip
SMALL = ["model=vqgan", "model.hidden_channels=16", "model.res_blocks=1", "model.codebook_size=16",
         "model.codebook_dim=8", "model.perceptual=none", "model.codebook_warmup=0", "model.ema_decay=0.9",
         "model.noise=true"]  # fmt: skip
FIRST = [*DATA, *SMALL, "model.d_width=8", "model.d_layers=2", "model.adversarial_start=1"]
PRIOR = [*DATA, "model=pixelcnn", "model.channels=8", "model.layers=2", "model.hidden=16", "model.condition=slice"]
DECODER = [*DATA, *SMALL, "model.trained=decoder", "model.discriminator=projected", "model.adversarial_start=0",
           "model.d_width=8", "model.lr_g=1e-2"]  # fmt: skip


@pytest.fixture(autouse=True)
def eyes(monkeypatch):
    """An AlexNet of random weights, the same at every load."""

    def random(net: str, path: Path | None = None) -> backbones.Backbone:
        torch.manual_seed(7)
        return backbones.alexnet()

    monkeypatch.setattr(lpips, "pretrained", random)
    monkeypatch.setattr(weights, "resolve", lambda name, *_: Path(name))


def images(count: int = 4, seed: int = 3) -> Tensor:
    x = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return functional.avg_pool2d(x, 3, 1, 1) * 2


# -- the discriminator ------------------------------------------------------------------------------------------------


def test_each_depth_judges_each_image_by_itself_and_has_an_equal_say() -> None:
    network, x = ProjectedDiscriminator(8), images()
    verdicts = network(x)
    assert verdicts.dtype == torch.float32
    features = network.eyes(x.device).features(functional.interpolate(x, scale_factor=2, mode="bilinear"))
    assert verdicts.shape == (4, 5, *features[0].shape[-2:])
    torch.testing.assert_close(network(x[1:2]), verdicts[1:2], atol=1e-5, rtol=1e-4)
    for k, (head, f) in enumerate(zip(network.heads, features, strict=True)):
        assert f.shape[1] == WIDTHS[k]
        own = head(f * WIDTHS[k] ** 0.5)
        assert set(own.flatten().tolist()) == set(verdicts[:, k].flatten().tolist())


def test_alexnet_is_frozen_kept_in_no_checkpoint_and_lets_gradients_through() -> None:
    network, x = ProjectedDiscriminator(8), images().requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().flatten(1).sum(1) > 0).all()
    assert all(name.startswith("heads.") for name in network.state_dict())
    assert sum(p.numel() for p in network.parameters()) == sum(8 * c + 8 + 8 * 8 * 9 + 8 + 8 for c in WIDTHS)
    assert not any(p.requires_grad for p in network.eyes(x.device).parameters())


def test_it_learns_to_tell_images_from_smoothed_ones() -> None:
    torch.manual_seed(0)
    network = ProjectedDiscriminator(16)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, (0.5, 0.9))

    def both(seed: int) -> tuple[Tensor, Tensor]:
        x = images(8, seed)
        real, fake = network(torch.cat([x, functional.avg_pool2d(x, 3, 1, 1)])).chunk(2)
        return real, fake

    for step in range(40):
        loss = DISCRIMINATOR["hinge"](*both(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, fake = (v.mean((1, 2, 3)) for v in both(1000))
    assert float((real[:, None] > fake).float().mean()) > 0.9, "a random one is right in half of the pairs"


def test_missing_weights_and_small_images_are_said_before_anything_is_built(compose, tmp_path, monkeypatch) -> None:
    def message(*words: str) -> str:
        with pytest.raises(ConfigError) as error:
            run(compose("task=check", *words), tmp_path / "check", [])
        return str(error.value)

    def away(name: str) -> Path:
        raise UserError(f"the weights '{name}' are not here")

    monkeypatch.setattr(projected.weights, "resolve", away)
    for model in ("vqgan", "cyclegan"):
        said = message(f"model={model}", "model.discriminator=projected")
        assert "model.discriminator=projected: the weights 'lpips_alexnet' are not here" in said
    monkeypatch.setattr(projected.weights, "resolve", lambda name: Path(name))
    words = ("model=vqgan", "model.perceptual=none", "model.discriminator=projected", "data.size=8")
    assert "judges images of at least 16 pixels, and data.size=8; try model.discriminator=patch" in message(*words)
    assert "model.trained=all changes" in message("model=vqgan", "model.prior=p.ckpt")
    said = message("model=vqgan", "model.prior=p.ckpt", "model.trained=decoder")
    assert "model.prior=p.ckpt: no such file; train one with model=pixelcnn" in said


def test_cyclegan_trains_with_two_of_them(compose, tmp_path) -> None:
    words = [*DATA, "model=cyclegan", "model.generator=local", "model.norm=none", "model.width=4", "model.d_width=4",
             "model.discriminator=projected", "model.pool_size=4", "trainer.judge_features=pixels",
             "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
             "trainer.limit_test_batches=1"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    assert load_model(tmp_path / "best.ckpt").d_b.heads[4][0].in_channels == 256  # type: ignore


# -- a decoder for codes that stay ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("decoder")
    run(compose(*FIRST), folder / "first", [])
    run(compose(*PRIOR, f"model.first_stage={folder / 'first/best.ckpt'}"), folder / "prior", [])
    return folder


@pytest.mark.parametrize("with_prior", [False, True])
def test_a_decoder_changes_and_no_code_does_and_a_prior_goes_on_with_it(folder, compose, tmp_path, with_prior) -> None:
    first, prior = folder / "first/best.ckpt", folder / "prior/best.ckpt"
    further = [f"model.prior={prior}", "model.prior_samples=20"] if with_prior else []
    words = [*DECODER, f"init_from={first}", *further]
    run(compose(*words), tmp_path / "fine", words)
    before: Any = load_model(first)
    after: Any = load_model(tmp_path / "fine/best.ckpt")
    x = images()
    with torch.no_grad():
        assert torch.equal(before.encode(x), after.encode(x))
        codes = before.encode(x)
        assert (before.decode(codes) - after.decode(codes)).abs().max() > 0.01
        assert torch.equal(after.generator.quantizer(after.generator.encoder(x)).codes, codes), "nor of the trained one"
    rows = (tmp_path / "fine/metrics.csv").read_text()
    assert "train/d_loss" in rows
    # the prior draws by the file that is given, and by its own where none is
    given = f"model.first_stage={tmp_path / 'fine/best.ckpt'}"
    _, model, _ = build(compose(*PRIOR, given), tmp_path / "test")
    initialise_from(model, prior, "ckpt")
    seeds, label = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    own: Any = load_model(prior)
    drawn = own.sample_codes(seeds, label)
    assert torch.equal(model.sample_codes(seeds, label), drawn)  # type: ignore[operator]
    assert torch.equal(model.sample(seeds, label), after.draw(drawn, seeds))
    assert torch.equal(own.sample(seeds, label), before.draw(drawn, seeds))
    redecode(own, tmp_path / "fine/best.ckpt")
    assert torch.equal(own.sample(seeds, label), after.draw(drawn, seeds))


def test_a_decoder_without_codes_and_a_prior_of_others_are_refused(folder, compose, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no codes to decode yet; give init_from="):
        run(compose(*DECODER), tmp_path / "none", [])
    first: Any = load_model(folder / "first/best.ckpt")
    with pytest.raises(UserError, match=r"first/best.ckpt: a VQGAN, which draws no codes"):
        drawn_codes(str(folder / "first/best.ckpt"), 2, first.parts)
    with torch.no_grad():
        first.parts.quantizer.embedding[0, 0] += 1
    with pytest.raises(UserError, match=r"its codes are not those of init_from"):
        drawn_codes(str(folder / "prior/best.ckpt"), 2, first.parts)


def test_samples_are_drawn_by_the_decoder_that_is_given_and_a_folder_holds_those_of_one(
    folder, compose, tmp_path
) -> None:
    first, prior = folder / "first/best.ckpt", folder / "prior/best.ckpt"
    label = str(load_model(prior).conditions()[0])
    sample(prior, 2, tmp_path / "own", label=label)
    sample(prior, 2, tmp_path / "same", label=label, first_stage=first)
    name = "sample_000001.png"
    assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    with pytest.raises(UserError, match="first_stage_sha256"):
        sample(prior, 2, tmp_path / "same", label=label)
    run(compose(*FIRST, "seed=5"), tmp_path / "other", [])
    with pytest.raises(UserError, match=r"--first-stage=.*: its codes are not those that the prior was trained on"):
        sample(prior, 2, tmp_path / "own", label=label, first_stage=tmp_path / "other/best.ckpt")
    with pytest.raises(UserError, match=r"--first-stage=.*: a VQGAN has none; leave it out"):
        sample(first, 2, tmp_path / "none", first_stage=first)


def test_samples_of_a_prior_are_of_every_condition_and_not_those_that_are_judged(folder) -> None:
    first, prior = load_model(folder / "first/best.ckpt"), load_model(folder / "prior/best.ckpt")
    known = len(prior.conditions())  # type: ignore[operator]
    codes = drawn_codes(str(folder / "prior/best.ckpt"), 2 * known, first.parts)  # type: ignore[arg-type]
    assert codes.shape == (2 * known, 8, 8)
    judged = prior.sample_codes(torch.arange(2 * known), torch.arange(2 * known) % known)  # type: ignore[operator]
    assert not any(torch.equal(a, b) for a in codes for b in judged)
    assert torch.equal(codes, drawn_codes(str(folder / "prior/best.ckpt"), 2 * known, first.parts))  # type: ignore[arg-type]


def test_discriminator_judges_reconstructions_and_samples_half_each() -> None:
    torch.manual_seed(0)
    model = VQGAN(DataSpec(size=32), hidden_channels=16, res_blocks=1, codebook_size=16, codebook_dim=8, d_width=8,
                  perceptual="none", discriminator="projected", trained="decoder", noise=True, adversarial_start=0.0,
                  ema_decay=0.0)  # fmt: skip
    trainer: Any = SimpleNamespace(world_size=1, global_step=3, estimated_stepping_batches=10)
    model._trainer, model._jit_is_scripting = trainer, False
    model.train()
    assert not any(m.training for m in (model.generator.encoder, model.generator.quantizer))
    kept = VQGAN(DataSpec(size=32), d_layers=1, perceptual="none", trained="decoder").parts
    assert not any(m.training for m in (kept.encoder, kept.quantizer)), "nor are averages averaged over processes"
    model.drawn = torch.randint(16, (20, 8, 8))
    batch = Batch(image=images(), index=torch.arange(4))
    fakes = model.generate(batch)
    assert fakes["x_hat"].shape == (8, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fakes["x_hat"][:4], model.reconstruct(batch.image), atol=1e-5, rtol=0)
    again = model.generate(batch)["x_hat"]
    assert torch.equal(again, fakes["x_hat"]), "of item and step alone"
    model.trainer.global_step = 4  # type: ignore[misc]
    assert not torch.equal(model.generate(batch)["x_hat"][4:], fakes["x_hat"][4:])
    detached = {k: v.detach() if isinstance(v, Tensor) else v for k, v in fakes.items()}
    real, rec, drawn = model.discriminator(torch.cat([batch.image, detached["x_hat"] + detached["grain"]])).split(4)
    losses = model.discriminator_losses(batch, detached)
    by_hand = sum(DISCRIMINATOR["hinge"](real, fake).mean() for fake in (rec, drawn)) / 2
    torch.testing.assert_close(losses["loss"], by_hand)
    losses = model.generator_losses(batch, fakes)
    torch.testing.assert_close(losses["adversarial"], -torch.cat([rec, drawn]).mean())
    torch.testing.assert_close(losses["l1"], (fakes["x_hat"][:4] - batch.image).abs().mean())
    losses["loss"].backward()
    assert all(p.grad is None for p in model.generator.encoder.parameters())
    model.eval()
    assert model.generate(batch)["x_hat"].shape == (4, 1, 32, 32)
