"""Sentinels: each catches what was planted and is quiet on a healthy run; and who hears an alarm."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from mri_synth.callbacks import loggers, sentinels, watches
from mri_synth.callbacks.judging import Judging, Verdict
from mri_synth.callbacks.sentinels import Alarms
from mri_synth.callbacks.watches import (
    ContrastInversion,
    DiscriminatorSaturation,
    ModeCollapse,
    Watch,
    remedies,
)
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.models.base import SynthModule
from mri_synth.models.vae import VAE
from mri_synth.run import run

SMALL = ["logger=csv", "data.subjects=[4,3,2]", "data.size=32", "data.batch_size=8", "trainer.progress=false",
         "trainer.pictures=0", "trainer.log_every_steps=1", "trainer.judge_features=pixels", "trainer.judge_samples=20",
         "samples=0"]  # fmt: skip
AE = ["model=vae", "model.hidden_channels=8", "model.latent_dim=8"]


class Stand(SynthModule):
    """Says what it is told to say, and reconstructs by a factor."""

    def __init__(self, factor: float = 1.0, known: dict[str, Any] | None = None) -> None:
        super().__init__(DataSpec(size=8))
        self.factor = factor
        self.hparams.update(known or {})
        self.said: list[str] = []

    def alarm(self, text: str) -> None:
        self.said.append(text)

    def reconstruct(self, image: Tensor) -> Tensor:
        return self.factor * image


class Strategy:
    """Of one process."""

    @staticmethod
    def reduce(tensor: Tensor, reduce_op: str) -> Tensor:
        return tensor

    @staticmethod
    def reduce_boolean_decision(decision: bool, all: bool) -> bool:
        return decision


def trainer(epoch: int = 9, **more: Any) -> Any:
    known = {"state": SimpleNamespace(fn="fit"), "current_epoch": epoch, "max_epochs": 10, "global_step": 0,
             "lightning_module": None, "strategy": Strategy(), "is_global_zero": True, "loggers": [],
             "should_stop": False,
             "precision_plugin": SimpleNamespace(forward_context=nullcontext)}  # fmt: skip
    return SimpleNamespace(**{**known, **more})


def verdict(fake: float | None = 0.5, real: float | None = 0.5, correlation: float = 0.9) -> Verdict:
    return Verdict(0.1, fake, real, correlation)


# -- mode collapse ---------------------------------------------------------------------------------------------------


def looked(watch: Any, judging: Judging, verdicts: list[Verdict | None], first: int = 3, known: Any = None) -> Stand:
    model = Stand(known=known)
    for epoch, found in enumerate(verdicts, first):
        judging.verdict = found
        watch.on_validation_epoch_end(trainer(epoch, global_step=1000), model)
    return model


def test_samples_that_are_alike_three_times_are_a_collapse() -> None:
    judging = Judging(1, 8)
    model = looked(ModeCollapse(judging), judging, [verdict(0.85)] * 3, known={"r1_gamma": 1.0, "lr_g": 1e-3})
    assert model.said == [
        "mode collapse: pairs of samples have an MS-SSIM of 0.85, pairs of real images of 0.50 (epoch 6); the model "
        "makes few different images. Remedies, in this order: a larger model.r1_gamma, a smaller model.lr_g, more "
        "data, init_from=best.ckpt of this run"
    ]


@pytest.mark.parametrize("verdicts, first", [
    ([verdict(0.75)] * 6, 3),  # blurred, not collapsed
    ([verdict(0.3)] * 6, 3),
    ([verdict(0.9), verdict(0.9), verdict(0.5)] * 2, 3),  # never three in a row
    ([verdict(1.0)] * 2, 0),  # at the start all samples are alike
    ([verdict(None), verdict(0.9, None), None] * 3, 3),
])  # fmt: skip
def test_what_is_no_collapse(verdicts, first) -> None:
    judging = Judging(1, 8)
    assert looked(ModeCollapse(judging), judging, verdicts, first).said == []


@pytest.mark.parametrize("epoch, max_steps, time_used, share", [
    (4, None, 0.0, 0.5), (4, 1000, 0.0, 0.5), (4, 200, 0.0, 0.5), (0, 200, 0.0, 0.5), (0, None, 0.7, 0.7),
])  # fmt: skip
def test_the_share_that_is_done_is_that_of_the_nearest_limit(epoch, max_steps, time_used, share) -> None:
    model = Stand()
    model.max_steps, model.time_used = max_steps, time_used
    assert watches.progress(trainer(epoch, global_step=100), model) == pytest.approx(share)


def test_a_method_that_grows_is_looked_at_once_it_has_grown() -> None:
    class Growing(Stand):
        grown = False  # type: ignore[assignment]

    judging = Judging(1, 8)
    watch, model = ModeCollapse(judging), Growing()
    judging.verdict = verdict(1.0)
    for epoch in range(3, 12):
        model.__class__.grown = epoch >= 7  # type: ignore[assignment]
        watch.on_validation_epoch_end(trainer(epoch, max_epochs=12, global_step=1000), model)
        assert bool(model.said) == (epoch >= 9)


def test_epochs_without_judgement_do_not_begin_the_count_anew() -> None:
    judging = Judging(2, 8)
    assert len(looked(ModeCollapse(judging), judging, [verdict(0.9), None] * 3).said) == 1


# -- contrast inversion ----------------------------------------------------------------------------------------------


def validated(watch: ContrastInversion, model: Any, epochs: int = 3, **fields: Any) -> Any:
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for epoch in range(epochs):
        for k in range(2):
            batch = Batch(image=image, index=torch.arange(4), **fields)
            watch.on_validation_batch_end(trainer(epoch), model, None, batch, k)
        watch.on_validation_epoch_end(trainer(epoch), model)
    return model


def test_inverted_reconstructions_are_noticed() -> None:
    model = validated(ContrastInversion(None), Stand(-0.5, {"lr": 1e-3}))
    assert len(model.said) == 1
    assert model.said[0].startswith("contrast inversion: outputs and their targets correlate by -1.00 (epoch 3)")
    assert "Remedies, in this order: a smaller model.lr, another seed" in model.said[0]


def test_right_reconstructions_and_short_lapses_are_not() -> None:
    assert validated(ContrastInversion(None), Stand(0.5)).said == []
    watch = ContrastInversion(None)
    assert validated(watch, Stand(-1), 2).said == []
    assert validated(watch, Stand(1), 1).said == []
    assert validated(watch, Stand(-1), 2).said == []


def test_translations_are_compared_with_their_targets() -> None:
    class Translator(Stand):
        def translate(self, source: Tensor) -> Tensor:
            return -source

    target = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1  # the image of `validated`
    assert len(validated(ContrastInversion(None), Translator(), target=target).said) == 1
    assert validated(ContrastInversion(None), Translator(), target=-target).said == []
    assert SynthModule(DataSpec(size=8)).outcome(Batch(image=target, index=torch.arange(4))) is None


def test_the_mean_sample_is_compared_with_the_mean_image_beside_reconstructions() -> None:
    """Right reconstructions in between, and epochs without judgement, do not hide inverted samples."""
    judging = Judging(2, 8)
    watch, model = ContrastInversion(judging), Stand(1)
    for k in range(6):
        judging.verdict = verdict(correlation=-0.5) if k % 2 else None
        validated(watch, model, 1)
    assert len(model.said) == 1
    assert "the mean sample and the mean real image correlate by -0.50" in model.said[0]


# -- discriminator saturation ----------------------------------------------------------------------------------------


def trained(watch: DiscriminatorSaturation, model: Stand, logits: list[tuple[float, float]], first: int = 0) -> Stand:
    for step, (real, fake) in enumerate(logits, first + 1):
        metrics = {"train/d_real": torch.tensor(real), "train/d_fake": torch.tensor(fake)}
        watch.on_train_batch_end(trainer(global_step=step, callback_metrics=metrics), model, None, None, 0)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("kind, sure, unsure", [
    ("logistic", (5.0, -6.0), (5.0, -3.0)), ("bce", (4.5, -4.5), (0.2, -0.2)), ("hinge", (1.2, -1.1), (0.8, -1.5)),
    ("lsgan", (0.97, 0.02), (0.7, 0.3)), (None, (5.0, -6.0), (2.0, -2.0)),
])  # fmt: skip
def test_a_discriminator_that_is_sure_for_long(kind, sure, unsure) -> None:
    known = {"gan_loss": kind, "r1_gamma": 0.0} if kind else {}
    model = trained(DiscriminatorSaturation(1, stretch=20), Stand(known=known), [sure] * 21)
    assert len(model.said) == 1
    assert model.said[0].startswith(f"discriminator saturation: its mean logits are {sure[0]:.1f} for real")
    assert "since step 1." in model.said[0]
    assert ("a larger model.r1_gamma, more data" in model.said[0]) == bool(kind)
    assert trained(DiscriminatorSaturation(1, 20), Stand(known=known), [sure] * 20).said == []
    assert trained(DiscriminatorSaturation(1, 20), Stand(known=known), [unsure] * 50).said == []
    assert trained(DiscriminatorSaturation(1, 20), Stand(known=known), ([sure] * 15 + [unsure]) * 4).said == []


def test_critics_of_wgan_and_methods_without_a_discriminator_are_left_alone() -> None:
    assert trained(DiscriminatorSaturation(1, 20), Stand(known={"gan_loss": "wgan"}), [(50.0, -50.0)] * 40).said == []
    none = trainer(global_step=400, callback_metrics={})
    DiscriminatorSaturation(1, 20).on_train_batch_end(none, Stand(), None, None, 0)  # type: ignore[arg-type]


def test_counts_go_on_after_a_resume() -> None:
    one, two = DiscriminatorSaturation(1, 20), DiscriminatorSaturation(1, 20)
    trained(one, Stand(), [(9.0, -9.0)] * 15)
    two.load_state_dict(one.state_dict())
    assert len(trained(two, Stand(), [(9.0, -9.0)] * 6, first=15).said) == 1
    before, after, model = Watch(), Watch(), Stand()
    for _ in range(2):
        before.look(model, "it", True, "text")
    after.load_state_dict(before.state_dict())
    after.look(model, "it", True, "text")
    assert model.said == ["text"]


def test_remedies_name_what_the_method_has() -> None:
    model = VAE(DataSpec(size=32), latent_dim=8, hidden_channels=8)
    said = remedies(model, ("augment", "r1_gamma", "beta"), "more data")
    assert said == "Remedies, in this order: a smaller model.beta, more data"
    assert remedies(model, ("r1_gamma",), "more data", "sleep") == "Remedies, in this order: more data, sleep"


# -- who hears -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [False, True])
def test_an_alarm_is_sent_once_and_may_stop_the_training(stop, monkeypatch) -> None:
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(sentinels, "alert", lambda loggers, title, text: sent.append((title, text)))
    model, alarms = SynthModule(DataSpec(size=8)), Alarms(stop)
    for new in ([], ["mode collapse: 0.9. Remedies: none"], []):
        model.alarms += new
        run_of = trainer()
        alarms.on_validation_end(run_of, model)
        assert run_of.should_stop == (stop and bool(new))
    assert sent == [("mode collapse", "mode collapse: 0.9. Remedies: none")]
    resumed, later = SynthModule(DataSpec(size=8)), Alarms(stop)
    later.load_state_dict(alarms.state_dict())
    later.on_fit_start(trainer(), resumed)
    assert resumed.alarms == model.alarms  # for the report
    run_of = trainer()
    later.on_validation_end(run_of, resumed)
    assert not run_of.should_stop
    assert len(sent) == 1


def test_alerts_go_to_wandb(tmp_path, monkeypatch) -> None:
    sent: list[dict[str, str]] = []
    experiment = SimpleNamespace(alert=lambda **given: sent.append(given))
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda _: experiment))
    wandb = WandbLogger.__new__(WandbLogger)
    loggers.alert([wandb, loggers.TidyCSV(tmp_path / "metrics.csv")], "mode collapse", "mode collapse: how much")
    assert sent == [{"title": "mode collapse", "text": "mode collapse: how much", "level": "WARN"}]


# -- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def collapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose samples are all one image, dark where brains are bright."""

    def sample(self: VAE, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        one = torch.ones(1, 1, 32, 32)
        one[..., 6:26, 8:24] = -1
        return one.repeat(len(seeds), 1, 1, 1)

    monkeypatch.setattr(VAE, "sample", sample)


@pytest.mark.usefixtures("collapsed")
def test_planted_collapse_and_inversion_stop_a_run_and_stand_in_its_report(
    tmp_path, compose, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(ModeCollapse, "LEAST_STEPS", 0)
    words = [*AE, *SMALL, "trainer.max_epochs=8", "trainer.judge_every=1", "trainer.sentinels=stop"]
    with caplog.at_level(logging.WARNING):
        run(compose(*words), tmp_path, words)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["epochs"] == 3  # inverted in the first three
    assert any(w.startswith("contrast inversion: the mean sample") for w in results["warnings"])
    assert "trainer.sentinels=stop: the training ends with this epoch" in caplog.text
    again = [f"resume={tmp_path}"]  # in spite of it; then the collapse is seen, epochs 2, 3, 4 of 8
    run(compose(*again), tmp_path, again)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["epochs"] == 4
    said = [w.partition(":")[0] for w in results["warnings"]]
    assert said == ["contrast inversion", "mode collapse", "posterior collapse"]  # each once, those before it too
    assert "contrast inversion" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("collapsed")
def test_sentinels_may_be_off(tmp_path: Path, compose) -> None:
    words = [*AE, *SMALL, "trainer.max_epochs=4", "trainer.judge_every=1", "trainer.sentinels=off"]
    run(compose(*words), tmp_path, words)
    said = json.loads((tmp_path / "results.json").read_text())["warnings"]
    assert not any(w.startswith(("contrast inversion", "mode collapse")) for w in said)


@pytest.mark.slow
def test_a_healthy_gan_hears_nothing(tmp_path, compose) -> None:
    words = ["model=dcgan", "model.channels_g=8", "model.channels_d=8", "model.latent_dim=16", *SMALL,
             "data.subjects=[24,6,2]", "trainer.max_epochs=24", "trainer.judge_every=2"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] > ModeCollapse.LEAST_STEPS + 3 * 60  # three judgements in which it would be heard
    assert results["warnings"] == []
