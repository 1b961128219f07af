"""VQGAN: patches, perceptual loss, the adaptive weight by hand, warm-up, averages, codes for a prior, two processes."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from mri_synth import weights
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import ConfigError, UserError
from mri_synth.losses import perceptual as look
from mri_synth.losses.adaptive import adaptive_weight, pulled
from mri_synth.losses.perceptual import Perceptual, feature_distance
from mri_synth.models.checkpoint import load_model
from mri_synth.models.encoder import Encoder
from mri_synth.models.vqgan import VQGAN
from mri_synth.networks import backbones
from mri_synth.networks.patch import PatchDiscriminator, least_size, receptive_field
from mri_synth.run import build, run

SPEC = DataSpec(size=32)
DATA = ["data.preset=custom", "data.subjects=[3,1,1]", "data.size=32", "data.batch_size=4", "logger=csv", "trainer=cpu",
        "trainer.precision=32-true", "trainer.progress=false", "trainer.pictures=0", "trainer.log_every_steps=1",
        "trainer.max_epochs=2", "samples=0"]  # fmt: skip
SMALL = ["model=vqgan", "model.hidden_channels=16", "model.res_blocks=1", "model.codebook_size=16",
         "model.codebook_dim=8", "model.d_width=8", "model.d_layers=2", "model.perceptual=none",
         "model.codebook_warmup=0"]  # fmt: skip


def small(**settings: Any) -> VQGAN:
    torch.manual_seed(0)
    known = {"hidden_channels": 16, "res_blocks": 1, "codebook_size": 16, "codebook_dim": 8, "d_width": 8,
             "d_layers": 1, "perceptual": "none", "kmeans_init": False, "revive_below": 0.0}  # fmt: skip
    return VQGAN(SPEC, **{**known, **settings})


def attached(model: VQGAN, step: int = 10, total: int = 10) -> VQGAN:
    model._trainer = SimpleNamespace(world_size=1, global_step=step, estimated_stepping_batches=total)  # type: ignore
    model._jit_is_scripting = False
    return model


def images(count: int = 4) -> Batch:
    x = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Batch(image=torch.nn.functional.avg_pool2d(x, 5, 1, 2), index=torch.arange(count))


# -- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_verdict_depends_on_its_field_and_on_nothing_else(n_layers: int, field: int) -> None:
    network = PatchDiscriminator(1, 4, n_layers)
    assert network.field == receptive_field(n_layers) == field
    x = torch.randn(1, 1, 2 * field, 2 * field, requires_grad=True)
    verdicts = network(x)
    middle = verdicts.shape[-1] // 2
    verdicts[0, 0, middle, middle].backward()
    assert x.grad is not None
    for touched in (x.grad[0, 0].abs().sum(k) > 0 for k in (0, 1)):
        where = touched.nonzero().flatten()
        assert int(where[-1] - where[0]) + 1 == field


@pytest.mark.parametrize("norm", ["none", "group", "instance"])
def test_thirty_by_thirty_verdicts_on_256_pixels(norm: Any) -> None:
    network = PatchDiscriminator(2, 4, 3, norm)
    with torch.autocast("cpu", torch.bfloat16):
        verdicts = network(torch.randn(1, 2, 256, 256))
    assert verdicts.shape == (1, 1, 30, 30)
    assert verdicts.dtype == torch.float32
    widths = [m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 1]
    one, both = (network(x) for x in torch.randn(3, 2, 64, 64).split([1, 2]))
    assert torch.isfinite(torch.cat([one, both])).all()


@pytest.mark.parametrize("norm", ["none", "group", "instance"])
def test_an_image_is_judged_by_itself(norm: Any) -> None:
    network = PatchDiscriminator(1, 16, 2, norm)
    x = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_least_size_leaves_one_verdict(n_layers: int) -> None:
    network, least = PatchDiscriminator(1, 4, n_layers), least_size(n_layers)
    assert network(torch.zeros(1, 1, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError, match=r"Kernel size can't be greater|too small"):
        network(torch.zeros(1, 1, least - 2, least - 2))


def test_counts_of_patches_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 1, 64 and 0"):
        PatchDiscriminator(1, n_layers=0)


# -- the perceptual loss ----------------------------------------------------------------------------------------------


def test_feature_distance_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    x_hat = (x + torch.tensor([[1.0, 0.0], [0.0, -2.0]]).view(2, 1, 1, 2)).requires_grad_()

    def maps(image: Tensor) -> list[Tensor]:
        return [image, 3 * image, image[..., :1] + image[..., 1:]]

    distance = feature_distance(x_hat, x, maps)  # 1/25, 1/25, 1/49; 4/4, 4/4, 4/4
    assert distance.tolist() == pytest.approx([(2 / 25 + 1 / 49) / 3, 1.0], rel=1e-5)
    assert feature_distance(x, x, maps).tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(feature_distance(x_hat, x, lambda i: [i]).sum(), x_hat)
    assert gradient.flatten().tolist() == pytest.approx([2 / 25, 0, 0, -4 / 4], rel=1e-5)


def test_auto_is_lpips_where_its_weights_are_here_and_else_says_that_there_is_none(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(weights, "find", lambda name: weights.Found(tmp_path / name, "cache"))
    assert look.resolved("auto", "vgg16", 32)[0] == "lpips"
    assert look.resolved("auto", "alexnet", 30) == (
        "none", "model.perceptual=auto: no perceptual loss, as alexnet needs images of 31 pixels")  # fmt: skip
    monkeypatch.setattr(weights, "find", lambda *_: weights.Found(None, ""))
    choice, why = look.resolved("auto", "vgg16", 32)
    assert choice == "none"
    assert "mri-synth weights get lpips_vgg16" in why
    for given in ("lpips", "encoder", "none"):
        assert look.resolved(given, "vgg16", 32) == (given, "")
    assert {net: build_one().least for net, build_one in (("vgg16", backbones.vgg16), ("alexnet", backbones.alexnet))} \
        == look.LEAST  # fmt: skip


def test_what_was_chosen_is_said_and_kept(caplog, monkeypatch) -> None:
    monkeypatch.setattr(weights, "find", lambda *_: weights.Found(None, ""))
    with caplog.at_level(logging.INFO):
        model = small(perceptual="auto")
    assert "no perceptual loss, as the weights of alexnet are not here" in caplog.text
    assert model.hparams["perceptual"] == "none"
    small().on_load_checkpoint({"hyper_parameters": {"perceptual": "none"}})
    away = small(perceptual="lpips")  # codes and images of a checkpoint do without the weights
    assert away.reconstruct(images().image).shape == (4, 1, 32, 32)
    with pytest.raises(UserError, match=r"the weights 'lpips_alexnet' .* are not here"):
        away.perceptual(images().image, images().image)
    with pytest.raises(UserError, match=r"with model.perceptual=lpips, and here .* with none: .* get lpips_alexnet"):
        model.on_load_checkpoint({"hyper_parameters": {"perceptual": "lpips"}})


def test_mistakes_are_found_before_anything_is_built(compose, tmp_path, monkeypatch) -> None:
    def message(*words: str) -> str:
        with pytest.raises(ConfigError) as error:
            run(compose("model=vqgan", "task=check", *words), tmp_path / "check", [])
        return str(error.value)

    monkeypatch.setenv("MRI_SYNTH_CACHE", str(tmp_path))
    assert "model.perceptual=lpips: the weights 'lpips_vgg16'" in message(
        "model.perceptual=lpips", "model.perceptual_net=vgg16"
    )
    assert "model.perceptual_encoder is missing" in message("model.perceptual=encoder")
    assert "gone.ckpt: no such file" in message("model.perceptual=encoder", "model.perceptual_encoder=gone.ckpt")
    assert "is for model.perceptual=encoder, and not for none" in message(
        "model.perceptual=none", "model.perceptual_encoder=gone.ckpt"
    )
    assert "judges images of at least 24 pixels, and data.size=16; try model.d_layers=1" in message("data.size=16")
    assert "no multiple of that; try data.size=64" in message("data.size=66")
    assert "model.gan_loss=wgan: allowed: hinge, logistic, bce or lsgan" in message("model.gan_loss=wgan")


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    torch.manual_seed(0)
    encoder = Encoder(SPEC, width=4, dim=16)
    path = tmp_path_factory.mktemp("encoder") / "best.ckpt"
    about = {"trained_on": [], "format": 1, "version": "0", "target": "mri_synth.models.encoder.Encoder"}
    torch.save({"state_dict": encoder.state_dict(), "hyper_parameters": dict(encoder.hparams), "mri_synth": about},
               path)  # fmt: skip
    return path


def test_features_of_an_encoder_serve_as_perceptual_loss(encoder_file) -> None:
    loss = Perceptual("encoder", "vgg16", str(encoder_file), SPEC)
    x = images().image
    x_hat = (x + 0.1).requires_grad_()
    distance = loss(x_hat, x)
    assert distance.shape == (4,)
    assert (distance > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance, loss(x_hat, x))
    distance.sum().backward()
    assert x_hat.grad is not None
    assert torch.isfinite(x_hat.grad).all()
    assert x_hat.grad.abs().max() > 0
    with pytest.raises(UserError, match=r"trained on images of .* \(1, 32\), and these are \(1, 64\)"):
        Perceptual("encoder", "vgg16", str(encoder_file), DataSpec(size=64))(x, x)


def test_nothing_of_the_perceptual_network_is_kept_or_trained(encoder_file) -> None:
    model = attached(small(perceptual="encoder", perceptual_encoder=str(encoder_file), adversarial_start=1.0))
    names = set(model.state_dict())
    losses = model.generator_losses(images(), model.generate(images()))
    assert losses["perceptual"] > 0
    losses["loss"].backward()
    assert set(model.state_dict()) == names
    assert model.perceptual.network is not None
    assert all(p.grad is None for p in model.perceptual.network.parameters())


# -- the adaptive weight ----------------------------------------------------------------------------------------------


def test_adaptive_weight_by_hand_of_a_linear_decoder() -> None:
    """x_hat = W z: the gradient at W of a loss with gradient g at x_hat is g z^T, of norm |g| |z|."""
    z = torch.tensor([1.0, 2.0])  # |z|^2 = 5
    layer = torch.diag(torch.tensor([3.0, 4.0])).requires_grad_()
    x_hat = layer @ z  # (3, 8)
    rec = 0.5 * (x_hat - torch.tensor([0.0, 4.0])).square().sum()  # gradient (3, 4), of norm 5
    adv = -(x_hat * torch.tensor([0.6, -0.8])).sum()  # of norm 1
    at_layer = [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (rec, adv)]
    assert float(at_layer[0].norm()) == pytest.approx(5 * 5**0.5)
    assert float(adaptive_weight(*at_layer)) == pytest.approx(5.0, rel=1e-5)
    assert float(adaptive_weight(at_layer[0], torch.zeros(2, 2))) == 1e4
    assert float(adaptive_weight(torch.zeros(2, 2), at_layer[1])) == 0

    loss = pulled(x_hat, rec + 5 * adv, torch.tensor([3.0, 4.0]) + 5 * torch.tensor([-0.6, 0.8]))
    assert float(loss.detach()) == pytest.approx(12.5 + 5 * (-1.8 + 6.4))
    (gradient,) = torch.autograd.grad(loss, layer)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [8.0, 16.0]]), atol=1e-5, rtol=0)


class Squared(torch.nn.Module):
    """In the place of a perceptual loss."""

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return (x_hat - x).square().mean((1, 2, 3))


def test_the_loss_has_the_gradient_of_the_papers() -> None:
    """Against the plain form: everything differentiated through the whole graph."""
    batch, settings = images(), {"lambda_ssim": 0.5, "noise": True, "lambda_adv": 0.7}
    model = attached(small(**settings))
    model.perceptual, model.hparams["perceptual"] = Squared(), "encoder"
    plain = attached(copy.deepcopy(model))
    losses = model.generator_losses(batch, model.generate(batch))
    losses["loss"].backward()

    made = plain.generate(batch)
    terms: Any = {k: v for k, v in losses.items() if k in ("l1", "ssim_loss")}
    assert set(terms) == {"l1", "ssim_loss"}
    rec = (made["x_hat"] - batch.image).abs().mean()
    from mri_synth.losses.noise import noise_loss
    from mri_synth.losses.reconstruction import ssim_loss

    rec = rec + 0.5 * ssim_loss(made["x_hat"], batch.image).mean()
    assert made["grain"].abs().max() > 0.01
    rec = rec + (made["x_hat"] + made["grain"] - batch.image).square().mean()
    adv = -plain.discriminator(made["x_hat"] + made["grain"]).mean()
    last = plain.generator.decoder.layers[-2].weight
    norms = [torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (rec, adv)]
    weight = norms[0] / (norms[1] + 1e-6)
    code = 0.25 * made["commitment"].mean() + noise_loss(made["x_hat"], *made["noise"], batch.image).mean()
    total = rec + code + 0.7 * weight * adv
    total.backward()

    assert float(losses["weight"]) == pytest.approx(float(weight), rel=1e-4)
    assert float(losses["loss"].detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for (name, a), b in zip(model.generator.named_parameters(), plain.generator.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-3)


def test_the_weight_is_of_the_gradients_of_all_processes(monkeypatch) -> None:
    """Two processes at half the batch have one weight, that of the whole batch."""
    batch = images(4)
    halves = [Batch(image=batch.image[k::2], index=batch.index[k::2]) for k in (0, 1)]
    model = attached(small(decay=0.0))
    state = copy.deepcopy(model.state_dict())
    model.generator_losses(batch, model.generate(batch))
    whole = float(model.adversarial_weight)

    sent: list[Tensor] = []
    for exchange in (lambda t: sent.append(t.clone()) or t, lambda t: torch.stack(sent).mean(0)):
        weights_of = []
        for half in halves:
            model.load_state_dict(state)
            model._trainer.world_size = 2
            model._trainer.strategy = SimpleNamespace(reduce=lambda t, reduce_op, f=exchange: f(t))
            model.generator_losses(half, model.generate(half))
            weights_of.append(float(model.adversarial_weight))
    assert weights_of == pytest.approx([whole, whole], rel=1e-5)


# -- training ---------------------------------------------------------------------------------------------------------


class Watch(pl.Callback):
    """The discriminator after every step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.keep(pl_module)

    def keep(self, model: VQGAN) -> None:
        self.seen.append(torch.cat([p.detach().flatten() for p in model.discriminator.parameters()]).clone())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("vqgan")
    words = [*DATA, *SMALL, "model.adversarial_start=0.5", "model.ema_decay=0.9"]
    data, model, trainer = build(compose(*words), folder)
    watch = Watch()
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    return model, trainer, watch, folder


def test_the_discriminator_starts_after_its_share_of_the_steps(trained) -> None:
    model, trainer, watch, folder = trained
    steps = trainer.global_step
    assert steps == len(watch.seen) - 1
    assert steps == model.total_steps
    moved = [not torch.equal(a, b) for a, b in zip(watch.seen, watch.seen[1:], strict=False)]
    start = round(steps / 2)
    assert moved == [False] * start + [True] * (steps - start)
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    for key in ("train/d_loss", "train/g_adversarial", "train/g_weight"):
        assert [int(r[0]) for r in rows if r[2] == key] == list(range(start, steps))
    assert [int(r[0]) for r in rows if r[2] == "train/g_loss"] == list(range(steps))


def test_all_options_train_together(compose, tmp_path) -> None:
    words = [*DATA, *SMALL, "model.adversarial_start=0", "model.noise=true", "model.r1_gamma=1", "model.r1_every=2",
             "model.d_norm=group", "model.reconstruction=mse", "model.lambda_ssim=0", "model.ema_decay=0",
             "trainer.accumulate=2", "trainer.gradient_clip=1", "trainer.precision=bf16-mixed"]  # fmt: skip
    assert run(compose(*words), tmp_path / "all", words) is not None
    rows = [line.split(",") for line in (tmp_path / "all/metrics.csv").read_text().splitlines()[1:]]
    assert {"train/d_r1", "train/g_noise_loss", "train/g_mse", "train/g_weight"} <= {r[2] for r in rows}
    assert "train/g_ssim_loss" not in {r[2] for r in rows}


def test_weights_and_codebook_are_averaged_with_one_decay() -> None:
    model = attached(small(ema_decay=0.5), step=90)
    before = copy.deepcopy(model.parts)
    model.generate(images())  # moves the codebook
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(0.25)
    model._average()
    now, kept = model.generator, model.parts
    assert (now.quantizer.embedding - before.quantizer.embedding).abs().max() > 1e-4
    half = (before.quantizer.embedding + now.quantizer.embedding) / 2
    torch.testing.assert_close(kept.quantizer.embedding, half)
    for a, b, c in zip(kept.parameters(), before.parameters(), now.parameters(), strict=True):
        torch.testing.assert_close(a, (b + c) / 2)
    assert torch.equal(kept.quantizer.cluster_size, now.quantizer.cluster_size)
    assert int(kept.quantizer.num_updates) == 1


def test_codes_and_reconstructions_are_those_of_the_averages(trained) -> None:
    model = trained[0].cpu().eval()
    x = images().image
    with torch.no_grad():
        codes = model.encode(x)
        assert torch.equal(codes, model.ema[0].quantizer.encode(model.ema[0].encoder(x)))
        assert codes.shape == (4, 8, 8)
        assert torch.equal(model.reconstruct(x), model.decode(codes))
        assert torch.equal(model.draw(codes, torch.arange(4)), model.decode(codes))
        noisy = small(noise=True).eval()
        drawn = noisy.draw(codes, torch.arange(4))
        assert (drawn - noisy.decode(codes)).abs().max() > 0.01
        torch.testing.assert_close(drawn[1:2], noisy.draw(codes[1:2], torch.tensor([1])), atol=1e-5, rtol=0)
    alone = small(ema_decay=0.0)
    assert alone.ema is None
    assert alone.parts is alone.generator


def test_a_prior_is_trained_on_its_codes_unchanged(trained, compose, tmp_path) -> None:
    first = trained[3] / "best.ckpt"
    words = [*DATA, "model=pixelcnn", "model.channels=8", "model.layers=2", "model.hidden=16", "trainer.max_epochs=1",
             f"model.first_stage={first}"]  # fmt: skip
    bits = run(compose(*words), tmp_path / "prior", words)
    assert bits is not None
    assert 0 < bits < 6
    prior = load_model(tmp_path / "prior/best.ckpt")
    vqgan = load_model(first)
    assert isinstance(vqgan, VQGAN)
    x = images(2).image
    with torch.no_grad():
        assert torch.equal(prior.first_stage.encode(x), vqgan.encode(x))  # type: ignore
        made = prior.sample(torch.tensor([1, 2]))
    assert made.shape == (2, 1, 32, 32)
    assert made.abs().max() <= 1
