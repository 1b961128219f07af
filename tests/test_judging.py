"""Samples judged in training: the space of pixels, when it is done, what it says, and that training does not notice."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mri_synth.callbacks import judging
from mri_synth.callbacks.checkpoints import Checkpoints, random_state
from mri_synth.callbacks.judging import Judging, correlation, make_judging, space_of
from mri_synth.callbacks.sentinels import NonFinite
from mri_synth.data.base import MRIDataModule
from mri_synth.data.phantom import Phantom
from mri_synth.errors import UserError
from mri_synth.metrics.features import PixelFeatures, load_features
from mri_synth.metrics.kid import kernels, kid
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.models.vae import VAE
from mri_synth.report.explanations import UNEXPLAINED
from mri_synth.run import run

SMALL = ["logger=csv", "data.subjects=[4,3,2]", "data.size=32", "data.batch_size=8", "trainer.progress=false",
         "trainer.pictures=1", "trainer.log_every_steps=1", "trainer.max_epochs=5", "trainer.judge_every=2",
         "trainer.judge_samples=20", "samples=0", "trainer.precision=32-true"]  # fmt: skip
GAN = ["model=dcgan", "model.channels_g=4", "model.channels_d=4", "model.latent_dim=8"]
AE = ["model=vae", "model.hidden_channels=8", "model.latent_dim=8"]
SIDE = 32


def history(folder: Path, name: str) -> list[tuple[int, float]]:
    """(epoch, value) of a metric."""
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [(int(epoch), float(value)) for _, epoch, key, value in lines if key == name]


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRI_SYNTH_INCEPTION", str(tmp_path / "nowhere.pt"))  # "auto" is pixels


@pytest.fixture(scope="module")
def gan(tmp_path_factory, compose):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRI_SYNTH_INCEPTION", "/nowhere.pt")
        folder = tmp_path_factory.mktemp("gan")
        value = run(compose(*GAN, *SMALL), folder, GAN + SMALL)
    return folder, value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MRIDataModule:
    made = Phantom(subjects=[2, 3, 1], size=SIDE, cache=str(tmp_path_factory.mktemp("store")))
    made.setup()
    return made


# -- the space of pixels ---------------------------------------------------------------------------------------------


def test_pixel_features_are_block_means() -> None:
    space = load_features("pixels")
    assert isinstance(space, PixelFeatures)
    assert (space.name, space.dim, len(space.hash)) == ("pixels (16 x 16 block means)", 256, 16)
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, :2, 2:4] = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    vector = space(image)
    assert vector.shape == (1, 256)
    assert vector[0, 1] == 0.5
    assert vector.sum() == 0.5


def test_pixel_features_are_blind_to_what_is_finer_than_a_block() -> None:
    board = torch.ones(1, 1, 64, 64)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = -1
    assert PixelFeatures()(board).abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 24), (1, 128, 128)])
def test_pixel_features_take_any_size_and_channels(shape: tuple[int, int, int]) -> None:
    assert torch.equal(PixelFeatures()(torch.full((2, *shape), 0.25)), torch.full((2, 256), 0.25))


def test_auto_is_pixels_without_weights_and_inception_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert space_of("auto", "cpu").name.startswith("pixels")
    assert "mri-synth weights get inception" in caplog.text
    with pytest.raises(UserError, match=r"(?s)trainer\.judge_features: .*mri-synth weights get inception"):
        space_of("inception", "cpu")


# -- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every, val_every, last, expected", [
    (1, 1, 4, [1, 2, 3, 4]), (2, 1, 5, [2, 4, 5]), (3, 1, 7, [3, 6, 7]), (10, 1, 3, [3]), (3, 2, 8, [4, 6, 8]),
    (2, 4, 8, [4, 8]), (1, 3, 8, [3, 6]),
])  # fmt: skip
def test_judgements_come_every_so_many_epochs_and_at_the_end(every, val_every, last, expected) -> None:
    callback = Judging(every, 8, val_every=val_every)
    epochs = [e for e in range(1, last + 1) if e % val_every == 0]
    trainer = SimpleNamespace(should_stop=False, max_epochs=last)
    assert [e for e in epochs if callback.due(SimpleNamespace(current_epoch=e - 1, **vars(trainer)))] == expected


def test_a_training_that_stops_early_is_judged_once_more() -> None:
    assert Judging(10, 8).due(SimpleNamespace(should_stop=True, max_epochs=50, current_epoch=3))


def test_who_is_judged(data: MRIDataModule) -> None:
    vae = VAE(data.spec, hidden_channels=8, latent_dim=8)
    assert make_judging(vae, None, 8, "auto", 1) is None
    asked = make_judging(vae, 3, 8, "auto", 1)
    assert asked is not None
    assert (asked.every, asked.samples) == (3, 8)
    vae.monitor = ("val/kid", "min")  # type: ignore[misc]
    chosen = make_judging(vae, None, 8, "pixels", 1)
    assert chosen is not None
    assert chosen.every == 1
    with pytest.raises(UserError, match=r"trainer\.judge_every=1: SynthModule makes no new images to judge"):
        make_judging(SynthModule(data.spec), 1, 8, "auto", 1)
    with pytest.raises(
        UserError, match=r"trainer\.judge_features=nowhere: no such file; allowed: auto, inception, inc"
    ):
        make_judging(vae, 1, 8, "nowhere", 1)


# -- what ------------------------------------------------------------------------------------------------------------


def test_correlation_by_hand() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert correlation(a, 5 * a - 7) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(np.array([1.0, 0, -1, 0]), np.array([0.0, 1, 0, -1])) == pytest.approx(0)
    assert correlation(a, np.ones((2, 2))) == 0


def test_values_are_there_in_judged_epochs_and_nowhere_else(gan) -> None:
    folder, _ = gan
    assert [e for e, _ in history(folder, "val/kid")] == [1, 3, 4]
    assert [e for e, _ in history(folder, "val/ms_ssim")] == [1, 3, 4]
    assert [e for e, _ in history(folder, "val/ms_ssim_real")] == [1]


def test_the_best_checkpoint_is_that_of_the_least_kid(gan) -> None:
    folder, value = gan
    epoch, least = min(history(folder, "val/kid"), key=lambda pair: pair[1])
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert value == pytest.approx(least)
    assert best["epoch"] == epoch
    said = json.loads((folder / "results.json").read_text())["explanations"]["val/kid"]
    assert "20 samples against 30 validation images, in pixels (16 x 16 block means)" in said
    page = (folder / "report.html").read_text()
    assert "Here of 20 samples" in page
    assert UNEXPLAINED not in page, "a curve without a sentence"


def test_the_value_is_that_of_the_same_seeds_against_validation_images(gan, compose) -> None:
    from mri_synth.run import build

    folder, _ = gan
    model, space = load_model(folder / "last.ckpt"), PixelFeatures()
    with torch.no_grad():
        fake = space(model.sample(torch.arange(20))).numpy()
    items = build(compose(*GAN, *SMALL), folder / "again")[0].view("val")
    real = space(items.__getitems__(range(len(items))).image).numpy()
    assert history(folder, "val/kid")[-1][1] == pytest.approx(kid(kernels(fake, real)), rel=1e-4)


def test_of_two_ways_it_is_the_mean(tmp_path, compose) -> None:
    from mri_synth.run import build

    words = ["model=cyclegan", "model.generator=unet", "model.width=4", "model.d_width=4", "model.d_layers=1", *SMALL,
             "trainer.max_epochs=1"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    model, space = load_model(tmp_path / "last.ckpt"), PixelFeatures()
    items = build(compose(*words), tmp_path / "again")[0].view("val")
    every = items.__getitems__(range(len(items)))
    drawn = items.__getitems__(np.random.default_rng(0).permutation(len(items))[:20].tolist())
    assert drawn.target is not None
    assert every.target is not None
    with torch.no_grad():
        there, back = model.translate(drawn.image), model.translate(drawn.target, to="T1")  # type: ignore[call-arg]
    values = [kid(kernels(space(made).numpy(), space(real).numpy()))
              for made, real in ((there, every.target), (back, every.image))]  # fmt: skip
    assert abs(values[0] - values[1]) > 1e-3
    assert history(tmp_path, "val/kid")[-1][1] == pytest.approx(np.mean(values), rel=1e-4)
    said = json.loads((tmp_path / "results.json").read_text())["explanations"]["val/kid"]
    assert "20 translations each way against 30 validation images" in said


def test_samples_that_are_not_finite_are_said_and_have_no_value(tmp_path, compose, monkeypatch, caplog) -> None:
    def sample(self: VAE, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.full((len(seeds), 1, SIDE, SIDE), float("nan"))

    monkeypatch.setattr(VAE, "sample", sample)
    words = [*AE, *SMALL, "trainer.max_epochs=1", "trainer.pictures=0"]
    with caplog.at_level(logging.WARNING):
        run(compose(*words), tmp_path, words)
    assert history(tmp_path, "val/kid") == []
    assert "samples are not finite: no val/kid" in caplog.text


# -- training does not notice ----------------------------------------------------------------------------------------


def test_training_is_the_same_with_and_without(tmp_path, compose, monkeypatch) -> None:
    states = []

    def sample(self: VAE, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        states.append(torch.rand(3))  # what a careless method might do
        np.random.rand()  # noqa: NPY002
        return self.from_latent(self.latent(seeds))

    monkeypatch.setattr(VAE, "sample", sample)
    before = Judging.on_validation_epoch_end

    def same(self: Judging, *args: Any) -> None:
        state = random_state()
        before(self, *args)
        assert torch.equal(random_state()["torch"], state["torch"])
        assert torch.equal(random_state()["numpy"][1], state["numpy"][1])
        assert random_state()["numpy"][2] == state["numpy"][2]

    monkeypatch.setattr(Judging, "on_validation_epoch_end", same)
    words = [*AE, *SMALL, "trainer.max_epochs=2", "trainer.pictures=0", "data.augment.gain=0.2"]
    run(compose(*words, "trainer.judge_every=1"), tmp_path / "judged", words)
    assert len(states) == 2
    run(compose(*words, "trainer.judge_every=null"), tmp_path / "plain", words)
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("judged", "plain"))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


class Killed(BaseException):
    """As sudden as kill -9."""


def test_a_killed_run_is_judged_as_if_it_had_not_been(gan, tmp_path, compose, monkeypatch) -> None:
    folder, value = gan
    words = [*GAN, *SMALL, "trainer.checkpoint_every_steps=3"]
    before = NonFinite.on_train_batch_end

    def hook(self: NonFinite, trainer: Any, *args: Any) -> None:
        before(self, trainer, *args)
        if trainer.global_step == 14:  # of 25; in the third epoch, whose validation is not judged
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(NonFinite, "on_train_batch_end", hook)
        with pytest.raises(Killed):
            run(compose(*words), tmp_path, words)
    again = [f"resume={tmp_path}"]
    assert run(compose(*again), tmp_path, again) == value
    rows = [[x for x in (f / "metrics.csv").read_text().splitlines() if "images_per_second" not in x]
            for f in (folder, tmp_path)]  # fmt: skip
    assert rows[0] == rows[1]
    for name in ("best.ckpt", "last.ckpt"):
        one, two = (torch.load(f / name, weights_only=True) for f in (folder, tmp_path))
        assert one["epoch"] == two["epoch"]
        assert all(torch.equal(v, two["state_dict"][k]) for k, v in one["state_dict"].items())


def test_another_feature_space_after_a_resume_chooses_the_best_anew(tmp_path, caplog) -> None:
    checkpoints = Checkpoints(tmp_path, ("val/kid", "min"), 1, None)
    other = Checkpoints(tmp_path, ("val/elbo", "max"), 1, None)
    checkpoints.best, checkpoints.waited, other.best = 0.1, 2, 5.0
    callback = Judging(1, 8, "pixels")
    callback.space = PixelFeatures()
    trainer: Any = SimpleNamespace(callbacks=[checkpoints, other])
    callback.load_state_dict(callback.state_dict())
    callback.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert (checkpoints.best, checkpoints.waited) == (0.1, 2)
    callback.load_state_dict({"space": "inception (0123)", "real_logged": True})
    with caplog.at_level(logging.WARNING):
        callback.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert (checkpoints.best, checkpoints.waited, other.best) == (None, 0, 5.0)
    assert "inception (0123) before, and are in pixels" in caplog.text


def test_epochs_without_a_value_cost_no_patience(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)
    checkpoints = Checkpoints(tmp_path, ("val/kid", "min"), 1, patience=1)
    stops = []
    for epoch, value in enumerate([None, 0.5, None, None, 0.6, None, None, 0.7]):
        trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False, current_epoch=epoch,
                                       callback_metrics={} if value is None else {"val/kid": torch.tensor(value)},
                                       should_stop=False)  # fmt: skip
        checkpoints.on_validation_end(trainer, None)  # type: ignore[arg-type]
        stops.append(trainer.should_stop)
    assert (checkpoints.best, checkpoints.best_epoch) == (0.5, 1)
    assert stops == [False] * 7 + [True]


class Stand(SynthModule):
    """Its images are their seeds; remembers what it was asked for."""

    def sample(self, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        self.asked = [*getattr(self, "asked", []), *seeds.tolist()]
        return (seeds[:, None, None, None] / 100).expand(-1, 1, SIDE, SIDE).clone()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_samples_without_repeats(data, monkeypatch, world) -> None:
    """Whole parts of 32, so that figures do not depend on how many processes draw them."""
    kept: list[Any] = []
    asked, found = [], []

    def gather(into: list[Any], mine: Any) -> None:
        kept.append(mine)
        into[:] = kept + [{}] * (world - len(kept))

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(world):
        model, callback = Stand(data.spec), Judging(1, 100, "pixels")
        callback.space = PixelFeatures()
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=world, datamodule=data)
        found.append(callback._draw(trainer, model))
        asked += getattr(model, "asked", [])
    assert sorted(asked) == list(range(100))
    images, vectors = found[-1]  # the last has all
    assert images[:, 0, 0, 0].mul(100).round().tolist() == list(range(100))
    assert vectors[:, 0] == pytest.approx(np.arange(100) / 100)


def test_real_images_are_looked_at_once(data, monkeypatch) -> None:
    callback = Judging(1, 8, "pixels")
    callback.space = PixelFeatures()
    trainer: Any = SimpleNamespace(global_rank=0, world_size=1, datamodule=data)
    real = data.view("val").__getitems__(range(len(data.view("val")))).image
    first = callback._compare(trainer, real, PixelFeatures()(real).numpy())
    monkeypatch.setattr(judging, "stored_features", lambda *_: pytest.fail("computed again"))
    inverted = callback._compare(trainer, -real, PixelFeatures()(-real).numpy())
    assert first.mean_correlation == pytest.approx(1)
    assert first.kid < 0  # unbiased, and a copy of the set
    assert inverted.mean_correlation == pytest.approx(-1)
    assert inverted.kid > 0.5
    assert first.ms_ssim_real == inverted.ms_ssim_real
    assert first.ms_ssim == pytest.approx(
        first.ms_ssim_real, abs=0.1
    )  # one subject's slices are paired among fakes only
