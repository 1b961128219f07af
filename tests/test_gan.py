"""The alternation of `GANModule`: every fact of Lightning's manual optimization that it relies on, on a toy."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mri_synth.callbacks.loggers import TidyCSV
from mri_synth.config import check
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.draws import normal
from mri_synth.errors import ConfigError, UserError
from mri_synth.losses.adversarial import logistic_discriminator, logistic_generator, r1
from mri_synth.models.dcgan import DCGAN
from mri_synth.models.gan import GANModule
from mri_synth.models.turns import frozen
from mri_synth.networks.conditional import truncated
from mri_synth.run import build, run
from mri_synth.trainer import make_trainer


class Toy(GANModule):
    """Two small networks on 4 x 4 pixels; notes what it is asked."""

    monitor = ("val/g_loss", "min")

    def __init__(
        self, spec: Any, n_critic: int = 1, ema_decay: float = 0.9, lr_g: float = 0.01, lr_d: float = 0.02,
        betas: tuple[float, float] = (0.5, 0.99), lr_final: float = 1.0, penalty_every: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(spec, n_critic, ema_decay)
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 16))
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 1))
        if penalty_every:  # of an accumulated batch, whose statistics are not those of its parts
            self.generator[2] = nn.Identity()
        self.start_ema()
        self.calls: list[tuple[str, int, bool]] = []

    def generate(self, batch: Batch) -> Tensor:
        self.calls.append(("generate", len(batch), torch.is_grad_enabled()))
        images: Tensor = self.acting()(self.noise(batch, 3)).view(-1, 1, 4, 4)
        return images

    def discriminator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        self.calls.append(("d", len(batch), fakes.requires_grad))
        real, fake = self.discriminator(batch.image), self.discriminator(fakes)
        losses = {"loss": logistic_discriminator(real, fake).mean(), "real": real.mean(), "fake": fake.mean()}
        every = self.hparams["penalty_every"]
        if every and self.due(every):
            losses["r1"] = r1(self.discriminator.forward, batch.image).mean()
            losses["loss"] = losses["loss"] + every * losses["r1"]
        return losses

    def generator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        self.calls.append(("g", len(batch), fakes.requires_grad))
        return {"loss": logistic_generator(self.discriminator(fakes)).mean()}


SPEC = DataSpec(size=4)


def batches(*sizes: int) -> list[Batch]:
    """Batches of these sizes, of the same items however they are cut."""
    index = torch.arange(sum(sizes))
    images = normal(7, 0, index, 16).view(-1, 1, 4, 4)
    return [Batch(image=x, index=i) for x, i in zip(images.split(sizes), index.split(sizes), strict=True)]


def toy(seed: int = 0, **arguments: Any) -> Toy:
    torch.manual_seed(seed)
    return Toy(SPEC, **arguments)


def fit(model: GANModule, data: list[Batch], folder: Path, epochs: int = 1, val: list[Batch] | None = None,
        plugins: Any = None, **settings: Any) -> pl.Trainer:  # fmt: skip
    folder.mkdir(exist_ok=True)
    settings = {"precision": "32-true", "log_every_steps": 1} | settings
    trainer = make_trainer(folder, model, [TidyCSV(folder / "metrics.csv")], accelerator="cpu", max_epochs=epochs,
                           pictures=0, progress=False, **settings)  # fmt: skip
    if plugins is not None:
        trainer.strategy.precision_plugin = plugins
    loaders = [DataLoader(x, batch_size=None) for x in (data, val) if x is not None]  # type: ignore[arg-type]
    trainer.fit(model, *loaders)
    return trainer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def rows(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [(int(step), float(value)) for step, _, key, value in lines if key == name]


def steps_of(optimizer: torch.optim.Optimizer) -> int:
    return int(next(iter(optimizer.state.values()))["step"])


@pytest.mark.parametrize("n_critic", [1, 2])
def test_it_is_the_hand_written_loop_to_the_bit(n_critic: int, tmp_path: Path) -> None:
    data = batches(5, 5, 5, 5)
    model = toy(n_critic=n_critic)
    g, d, average = model.generator, model.discriminator, deepcopy(model.generator)
    state, start = weights(model), deepcopy([g, d])
    g, d = start
    opt_d = torch.optim.Adam(d.parameters(), lr=0.02, betas=(0.5, 0.99), fused=True)
    opt_g = torch.optim.Adam(g.parameters(), lr=0.01, betas=(0.5, 0.99), fused=True)
    for step, batch in enumerate(data * 2):
        fakes = g(normal(0, step, batch.index, 3)).view(-1, 1, 4, 4)
        opt_d.zero_grad()
        logistic_discriminator(d(batch.image), d(fakes.detach())).mean().backward()
        opt_d.step()
        if (step + 1) % n_critic == 0:
            opt_g.zero_grad()
            logistic_generator(d(fakes)).mean().backward()
            opt_g.step()
            t = step // n_critic
            for kept, now in zip(average.parameters(), g.parameters(), strict=True):
                kept.data.lerp_(now.data, 1 - min(0.9, (1 + t) / (10 + t)))
            average[2].load_state_dict(g[2].state_dict())
    assert all(torch.equal(v, state[k]) for k, v in weights(model).items())
    trainer = fit(model, data, tmp_path, epochs=2)
    for mine, ours in ((g, model.generator), (d, model.discriminator), (average, model.ema[0])):
        assert all(torch.equal(v, mine.state_dict()[k]) for k, v in ours.state_dict().items())
    assert trainer.global_step == 8
    assert [steps_of(o) for o in trainer.optimizers] == [8, 8 // n_critic]


def test_one_step_is_counted_per_batch_and_the_curves_count_these(tmp_path: Path) -> None:
    model = toy(n_critic=2)
    trainer = fit(model, batches(*[4] * 6), tmp_path, epochs=2, log_every_steps=2)
    assert trainer.global_step == model.total_steps == 12
    assert [s for s, _ in rows(tmp_path, "train/d_loss")] == [1, 3, 5, 7, 9, 11]
    assert [s for s, _ in rows(tmp_path, "train/g_loss")] == [1, 3, 5, 7, 9, 11]
    limited = toy(n_critic=2)
    assert fit(limited, batches(*[4] * 6), tmp_path, epochs=2, max_steps=8).global_step == limited.total_steps == 8


@pytest.mark.parametrize("limit", [{}, {"max_steps": 4}, {"max_minutes": 1e-6}])
def test_a_training_ends_where_a_limit_falls(limit: dict[str, Any], tmp_path: Path) -> None:
    model = toy()
    trainer = fit(model, batches(4, 4), tmp_path, epochs=5, val=batches(4), **limit)
    steps = {"max_steps": 4, "max_minutes": 1}.get(next(iter(limit), ""), 10)
    assert trainer.global_step == steps
    assert [s for s, _ in rows(tmp_path, "val/g_loss")][-1] == steps - 1
    assert (model.time_used > 1) == ("max_minutes" in limit)


def test_fakes_are_made_once_and_without_a_graph_where_the_generator_waits(tmp_path: Path) -> None:
    model = toy(n_critic=2)
    fit(model, batches(4, 4), tmp_path)
    assert model.calls == [
        ("generate", 4, False), ("d", 4, False),
        ("generate", 4, True), ("d", 4, False), ("g", 4, True),
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [(4, 4), (6, 2)])
@pytest.mark.parametrize("n_critic", [1, 2])
def test_accumulated_batches_are_one_large_batch(n_critic: int, sizes: tuple[int, int], tmp_path: Path) -> None:
    whole, parts = (toy(n_critic=n_critic, penalty_every=2, lr_final=0.1) for _ in range(2))
    one = fit(whole, batches(*[8] * 5), tmp_path / "1", epochs=2, gradient_clip=0.1)
    two = fit(parts, batches(*sizes * 5), tmp_path / "2", epochs=2, gradient_clip=0.1, accumulate=2)
    assert one.global_step == two.global_step == whole.total_steps == parts.total_steps == 10
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[key], value, rtol=1e-6, atol=1e-6)
    for name in ("train/d_loss", "train/g_loss", "train/d_r1", "train/lr_g"):
        expected, found = rows(tmp_path / "1", name), rows(tmp_path / "2", name)
        assert [s for s, _ in found] == [s for s, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-5)
    assert len(rows(tmp_path / "1", "train/d_r1")) == 5, "the penalty is logged at its own steps alone"


def test_what_an_epoch_leaves_over_is_a_step_of_its_own(tmp_path: Path) -> None:
    model = toy()
    trainer = fit(model, batches(4, 4, 4), tmp_path, epochs=2, accumulate=2)
    assert trainer.global_step == model.total_steps == 4
    assert [(name, n) for name, n, _ in model.calls if name == "d"] == [("d", 4)] * 6
    assert not model._collected


def test_an_incomplete_step_is_in_no_checkpoint(tmp_path: Path) -> None:
    saved = []

    class Watched(Toy):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            super().on_save_checkpoint(checkpoint)
            saved.append((self.global_step, len(self._collected)))

    fit(Watched(SPEC), batches(*[4] * 6), tmp_path, accumulate=2, checkpoint_every_steps=1)
    assert saved == [(1, 0), (2, 0), (3, 0)]


class Norms(Toy):
    """Norm of each side's gradients before and after the clip."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        def norm() -> float:
            grads = [p.grad.flatten() for p in optimizer.param_groups[0]["params"]]
            return float(torch.cat(grads).norm())

        before = norm()
        super().on_before_optimizer_step(optimizer)
        self.seen.append((before, norm()))


def test_each_side_is_clipped_after_it_was_unscaled(tmp_path: Path) -> None:
    found = {}
    for name in ("32", "16"):
        torch.manual_seed(0)
        model, Norms.seen = Norms(SPEC), []
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
        fit(model, batches(8, 8), tmp_path / name, gradient_clip=0.02, plugins=plugin if name == "16" else None)
        found[name] = Norms.seen
    assert len(found["16"]) == len(found["32"]) == 4
    for (before, after), (exact, _) in zip(found["16"], found["32"], strict=True):
        assert before == pytest.approx(exact, rel=0.1), "not 1,024 times as large"
        assert after == pytest.approx(min(before, 0.02), rel=1e-3)
    assert max(before for before, _ in found["32"]) > 0.02


def test_a_warm_up_of_both_rates_where_a_method_has_one(tmp_path: Path) -> None:
    model = toy(lr_final=0.1)
    model.hparams["warmup_steps"] = 99  # at most a tenth of all
    fit(model, batches(*[4] * 10), tmp_path, epochs=2)
    assert [v for _, v in rows(tmp_path, "train/lr_g")][:3] == pytest.approx([0.005, 0.01, 0.01])
    assert [v for _, v in rows(tmp_path, "train/lr_d")][:3] == pytest.approx([0.01, 0.02, 0.02])


class Scheduled(Toy):
    """One schedule by steps, one by epochs."""

    def configure_optimizers(self) -> Any:
        d, g = super().configure_optimizers()
        by_step, by_epoch = (torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (d, g))
        return [d, g], [{"scheduler": by_step, "interval": "step"}, {"scheduler": by_epoch, "interval": "epoch"}]


def test_schedulers_are_stepped_by_steps_and_by_epochs(tmp_path: Path) -> None:
    fit(Scheduled(SPEC), batches(4, 4, 4), tmp_path, epochs=2)
    assert [v for _, v in rows(tmp_path, "train/lr_d")] == pytest.approx([0.02 * 0.5**k for k in range(6)])
    assert [v for _, v in rows(tmp_path, "train/lr_g")] == pytest.approx([0.01] * 3 + [0.005] * 3)


def test_both_rates_fall_as_a_cosine_over_all_steps(tmp_path: Path) -> None:
    fit(toy(lr_final=0.1), batches(*[4] * 5), tmp_path, epochs=2)
    rates = [v for _, v in rows(tmp_path, "train/lr_g")]
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(0.01 * 0.55)
    assert [v for _, v in rows(tmp_path, "train/lr_d")] == pytest.approx([2 * v for v in rates])


def test_evaluation_is_of_the_average_on_fixed_noise_without_penalties(tmp_path: Path) -> None:
    model = toy(penalty_every=1)
    val = batches(4, 3)
    trainer = fit(model, batches(4, 4), tmp_path, val=val)
    names = {k for k in trainer.callback_metrics if k.startswith("val/")}
    assert names == {"val/d_loss", "val/d_real", "val/d_fake", "val/g_loss"}
    model.eval()
    fakes = [model.ema[0](normal(0, -1, b.index, 3)) for b in val]
    expected = logistic_generator(model.discriminator(torch.cat(fakes).view(-1, 1, 4, 4))).mean()
    assert float(trainer.callback_metrics["val/g_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert model.acting() is model.ema[0]
    model.train()
    assert model.acting() is model.generator


def test_without_an_average_the_generator_itself_samples(tmp_path: Path) -> None:
    model = toy(ema_decay=0.0)
    fit(model, batches(4, 4), tmp_path)
    assert model.ema is None
    assert not any(k.startswith("ema") for k in model.state_dict())
    assert model.eval().acting() is model.generator


def test_the_average_is_frozen_and_in_no_optimizer(tmp_path: Path) -> None:
    model = toy()
    trainer = fit(model, batches(4), tmp_path)
    trained = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
    assert not any(p.requires_grad or id(p) in trained for p in model.ema.parameters())
    assert trained == {id(p) for p in [*model.generator.parameters(), *model.discriminator.parameters()]}


def test_a_side_is_frozen_for_the_other_and_thawed_after_an_exception() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)

    def turn() -> None:
        with frozen([network]):
            assert not any(p.requires_grad for p in network.parameters())
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        turn()
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]


def test_neither_side_gets_gradients_of_the_other(tmp_path: Path) -> None:
    seen: list[tuple[list[Tensor | None], list[Tensor | None]]] = []

    class Watched(Toy):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            sides = (self.discriminator, self.generator)
            d, g = ([None if p.grad is None else p.grad.clone() for p in side.parameters()] for side in sides)
            seen.append((d, g))

    fit(Watched(SPEC), batches(4), tmp_path)
    (first_d, first_g), (then_d, then_g) = seen
    assert all(x is None for x in first_g)
    assert all(torch.equal(x, y) for x, y in zip(first_d, then_d, strict=True)), "not added to in the generator's turn"
    assert all(x is not None and x.abs().max() > 0 for x in then_g)


class Waits(Toy):
    """The discriminator begins at step 2, and each batch is worked off in two updates."""

    def discriminates(self) -> bool:
        return self.global_step >= 2

    def updates(self, parts: list[Batch]) -> list[list[Batch]]:
        (batch,) = parts
        return [[Batch(image=x, index=i)] for x, i in zip(batch.image.split(2), batch.index.split(2), strict=True)]


def test_a_warm_up_and_several_updates_within_a_step(tmp_path: Path) -> None:
    model = Waits(SPEC)
    trainer = fit(model, batches(4, 4, 4), tmp_path)
    assert trainer.global_step == 3
    assert [steps_of(o) for o in trainer.optimizers] == [2, 6]
    assert [s for s, _ in rows(tmp_path, "train/d_loss")] == [2]


def test_compiled_networks_keep_their_names_and_r1_is_taken_past_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, original = [], nn.Module.compile

    def quick(self: nn.Module) -> None:
        compiled.append(type(self).__name__)
        original(self, backend="aot_eager")  # as inductor, it knows one derivative only

    monkeypatch.setattr(nn.Module, "compile", quick)
    plain, model = (toy(penalty_every=1) for _ in range(2))
    fit(plain, batches(4, 4), tmp_path / "plain")
    fit(model, batches(4, 4), tmp_path / "compiled", compile=True)
    assert len(compiled) == 3
    saved = torch.load(tmp_path / "compiled/last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(saved[key], value, rtol=1e-5, atol=1e-6)


def test_bf16_trains_with_losses_in_float32(tmp_path: Path) -> None:
    exact, model = toy(), toy()
    fit(exact, batches(8, 8), tmp_path / "32")
    fit(model, batches(8, 8), tmp_path / "16", precision="bf16-mixed")
    for name in ("train/d_loss", "train/g_loss"):
        (_, one), (_, two) = rows(tmp_path / "16", name)[1], rows(tmp_path / "32", name)[1]
        assert one == pytest.approx(two, rel=0.02)
        assert one != two


class Many(Toy):
    """Four updates within a step."""

    def updates(self, parts: list[Batch]) -> list[list[Batch]]:
        return [parts] * 4


def test_autocast_forgets_its_copies_of_weights_with_every_update(tmp_path: Path) -> None:
    found: dict[str, list[float]] = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        model = Many(SPEC, lr_g=0.3, lr_d=0.3)
        trainer = fit(model, batches(16), tmp_path / precision, precision=precision)
        found[precision] = [float(trainer.callback_metrics[f"train/{k}"]) for k in ("d_loss", "g_loss")]
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=0.1), "all updates but the first saw old weights"


def test_accumulation_in_bf16_gives_the_generator_its_gradients(tmp_path: Path) -> None:
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        model, Norms.seen = Norms(SPEC), []
        fit(model, batches(8, 8), tmp_path / precision, accumulate=2, precision=precision)
        found[precision] = [before for before, _ in Norms.seen]
    assert len(found["32-true"]) == 2
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=0.1)


@pytest.mark.parametrize("side", ["discriminator_losses", "generator_losses"])
def test_a_loss_that_is_not_finite_stops_the_run_on_either_side(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = getattr(Toy, side)

    def planted(self: Toy, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        factor = float("nan") if self.training and self.global_step == 1 else 1.0
        return {k: v * factor for k, v in losses(self, batch, fakes).items()}

    monkeypatch.setattr(Toy, side, planted)
    with pytest.raises(UserError, match=r"not finite at step 2 .* order: a lower model\.lr_g and model\.lr_d, trainer"):
        fit(toy(), batches(4, 4, 4), tmp_path)


def test_a_discriminator_that_wins_is_noticed_and_stops_the_training(tmp_path: Path) -> None:
    """Real images are all ones, and the generator does not learn."""
    data = [Batch(image=torch.ones_like(b.image), index=b.index) for b in batches(*[4] * 50)]
    for lr_g, lost in ((1e-9, True), (0.02, False)):
        model = toy(lr_g=lr_g)
        trainer = fit(
            model, data, tmp_path / str(lost), epochs=12, val=batches(4), sentinels="stop", log_every_steps=10
        )
        said = [text.partition(":")[0] for text in model.alarms]
        assert said == ["discriminator saturation"] * lost
        assert (trainer.global_step < 600) == lost


# -- dcgan, on real loaders and checkpoints ------------------------------------------------------------------------

SMALL = [
    "model=dcgan", "model.channels_g=8", "model.channels_d=8", "model.latent_dim=8", "model.lr_final=0.1",
    "model.r1_every=3", "model.ema_decay=0.9", "model.augment=[translation,cutout]", "model.augment_adaptive=true",
    "model.pixel_noise=true", "logger=csv", "data.subjects=[6,2,2]", "data.size=32", "data.batch_size=6", "seed=3",
    "trainer=cpu", "trainer.progress=false", "trainer.log_every_steps=1", "trainer.pictures=0", "trainer.max_epochs=2",
    "trainer.judge_features=pixels", "trainer.judge_samples=4",
]  # fmt: skip


class Kill(pl.Callback):
    """Ends a run before its next step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise TimeoutError


def play(compose: Any, folder: Path, words: list[str], kill_at: int | None = None, resume: bool = False) -> Any:
    folder.mkdir(exist_ok=True)
    data, model, trainer = build(compose(*SMALL, *words), folder)
    if kill_at:
        trainer.callbacks.append(Kill(kill_at))
    last = folder / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True if resume else None)
    except TimeoutError:
        assert trainer.global_step == kill_at
    return torch.load(folder / "last.ckpt", weights_only=True)


CASES = {  # words, steps of an unbroken run, killed at, last checkpoint by then
    "in mid-epoch": (["trainer.checkpoint_every_steps=3"], 20, 14, 12),
    "between epochs": (["trainer.checkpoint_every_steps=99"], 20, 13, 10),
    "n_critic, spectral norm and clipping": (
        ["trainer.checkpoint_every_steps=3", "model.n_critic=2", "model.spectral=true", "trainer.gradient_clip=1",
         "model.norm_d=group"], 20, 17, 15),
    "accumulation": (["trainer.checkpoint_every_steps=3", "trainer.accumulate=2"], 10, 7, 6),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(case: str, tmp_path: Path, compose: Any) -> None:
    words, steps, killed_at, at = CASES[case]
    whole = play(compose, tmp_path / "whole", words)
    assert play(compose, tmp_path / "killed", words, kill_at=killed_at)["global_step"] == at
    resumed = play(compose, tmp_path / "killed", words, resume=True)
    assert whole["global_step"] == resumed["global_step"] == steps
    assert all(torch.equal(v, resumed["state_dict"][k]) for k, v in whole["state_dict"].items())
    assert any("adaptive" in k for k in whole["state_dict"])
    for one, two in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        for index, state in one["state"].items():
            assert all(torch.equal(v, two["state"][index][k]) for k, v in state.items())
        assert one["param_groups"] == two["param_groups"]
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]


ALL = ["data.preset=custom", "data.subjects=[9,2,2]", "data.slices.stop=8", "model.betas=[0.5,0.9]",
       "trainer.precision=32-true", "trainer.max_epochs=1"]  # fmt: skip
METHODS = {
    "dcgan": ["model.r1_every=3", "model.pixel_noise=true"],
    "progan": ["model=progan", "model.fmap_base=64", "model.fmap_max=16", "model.latent_dim=8", "model.group=2",
               "model.minibatch=[8,8,8,4]", "model.fade_kimg=[0.016]", "model.steady_kimg=[0.008]", "model.r1_every=3",
               "model.augment=[intensity]"],
    "vqgan": ["model=vqgan", "model.hidden_channels=16", "model.codebook_size=16", "model.codebook_dim=8",
              "model.kmeans_init=false", "model.revive_below=0", "model.codebook_warmup=0", "model.d_width=8",
              "model.d_layers=1", "model.perceptual=none", "model.adversarial_start=0.2", "model.gan_loss=logistic"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_accumulated_batches_of_every_method_are_one_large_batch(name: str, tmp_path: Path, compose: Any) -> None:
    shared = [w for w in SMALL if name == "dcgan" or not w.startswith("model")]
    found = []
    for batch, accumulate in ((8, 1), (4, 2)):
        words = [*shared, *ALL, *METHODS[name], f"data.batch_size={batch}", f"trainer.accumulate={accumulate}",
                 f"trainer.limit_train_batches={10 * accumulate}"]  # fmt: skip
        (tmp_path / str(batch)).mkdir()
        data, model, trainer = build(compose(*words), tmp_path / str(batch))
        trainer.fit(model, datamodule=data)
        assert trainer.global_step == 10
        found.append((model.state_dict(), tmp_path / str(batch)))
    (one, first), (two, second) = found
    for key, value in one.items():
        if value.is_floating_point():
            assert (two[key] - value).norm() <= 1e-5 * value.norm(), key
    for side in ("train/d_loss", "train/g_loss"):
        curve = [v for _, v in rows(first, side)]
        assert len(curve) >= 7
        assert [v for _, v in rows(second, side)] == pytest.approx(curve, rel=1e-5)


def small(**arguments: Any) -> DCGAN:
    torch.manual_seed(0)
    spec = DataSpec(size=32, classes=("none", "lesion"), contrasts=("T1", "T2"))
    return DCGAN(spec, **({"channels_g": 8, "channels_d": 8, "latent_dim": 8} | arguments))


@pytest.mark.parametrize("norm", ["none", "group"])
def test_samples_are_of_the_average_and_know_truncation(norm: Any) -> None:
    model = small(pixel_noise=True, norm_g=norm).eval()
    seeds = torch.arange(4)
    with torch.no_grad():
        for weight in model.ema.parameters():
            weight.mul_(10)  # those of the start hardly listen to z
        first = model.sample(seeds)
        model.generator.dense.weight.zero_()
        assert torch.equal(model.sample(seeds), first)
        assert torch.equal(model.from_latent(model.latent(seeds)), first)
        model.ema[0].dense.weight.mul_(2)
        assert not torch.equal(model.sample(seeds), first)
        spread = [model.sample(seeds, truncation=t).std(0).mean() for t in (1.0, 0.5, 1e-6)]
        model.ema[0].scanner = None
        assert torch.equal(model.sample(seeds, truncation=0), model.sample(seeds + 4, truncation=0))
    assert spread[0] > spread[1] > spread[2] > 0, "pixel noise is left as it is"


def test_truncation_by_hand_goes_to_the_mean_of_a_label_at_the_length_of_all() -> None:
    """Features (k, k) or (k, -k), k the label and one: their mean is (k, 0), and at their length k (sqrt 2, 0)."""

    def begin(z: Tensor, label: Tensor | None) -> Tensor:
        x = torch.stack([torch.ones(len(z)), z[:, 0].sign()], 1)
        return x if label is None else x * (label[:, None] + 2)

    z, label = torch.tensor([[0.5], [-0.5], [0.5]]), torch.tensor([2, -1, 2])
    plain = truncated(begin(z, None), begin, 1, None, 0.25)
    by_hand = 0.75 * 2**0.5 * torch.tensor([1.0, 0.0]) + 0.25 * begin(z, None)
    torch.testing.assert_close(plain, by_hand, atol=0.1, rtol=0)  # 512 signs
    mean = (plain - 0.25 * begin(z, None)) / 0.75
    torch.testing.assert_close(mean.norm(dim=1), torch.full((3,), 2**0.5))
    torch.testing.assert_close(truncated(begin(z, label), begin, 1, label, 0.25), plain * (label[:, None] + 2))
    assert truncated(z, begin, 1, label, 1.0) is z


@pytest.mark.parametrize(("condition", "names"), [("label", ("none", "lesion")), ("contrast", ("T1", "T2"))])
def test_conditions_reach_both_networks(condition: Any, names: tuple[str, ...]) -> None:
    model = small(condition=condition).eval()
    assert model.conditions() == names
    with torch.no_grad():
        seeds = torch.tensor([5, 5, 5])
        zero, one, again = model.sample(seeds, torch.tensor([0, 1, 0]))
        assert torch.equal(zero, again)
        assert not torch.equal(zero, one)
        x = torch.randn(1, 1, 32, 32).expand(3, -1, -1, -1)
        batch = Batch(image=x, index=seeds, label=torch.tensor([0, 1, -1]), contrast=("T1", "T2", "PD"))
        label = model.condition(batch)
        assert label.tolist() == [0, 1, -1]
        assert len(set(model.discriminator(x, label).tolist())) == 3
        losses = model.losses(batch)
    assert all(torch.isfinite(v) for v in losses.values())


def test_vectors_of_seeds_are_what_samples_are_made_of_whatever_is_asked_for() -> None:
    plain, model = small(pixel_noise=True).eval(), small(condition="label", pixel_noise=True).eval()
    seeds = torch.arange(12)
    with torch.no_grad():
        assert plain.latent(seeds).shape == (12, 8 + 32**2)
        z = model.latent(seeds)
        assert z.shape == (12, 8 + 32**2 + 1)
        torch.testing.assert_close(z[:, :-1], plain.latent(seeds))
        chosen = (torch.special.ndtr(z[:, -1]) * 2).long()
        assert {0, 1} == set(chosen.tolist()), "the last number is the class, where none is asked for"
        for label, truncation in ((None, 1.0), (torch.full((12,), -1), 0.5), (torch.arange(12) % 3 - 1, 1.0)):
            made = model.sample(seeds, label, truncation=truncation)
            assert torch.equal(model.from_latent(z, label, truncation=truncation), made)
            asked = chosen if label is None else torch.where(label >= 0, label, chosen)
            assert torch.equal(model.sample(seeds, asked, truncation=truncation), made)


def test_r1_is_of_augmented_images_and_their_gradient_at_the_images_before() -> None:
    """D is the sum of the pixels: its slope at an image moved out of the frame in part is 1 where it stayed, else 0."""
    model = small(augment=["translation"], r1_gamma=1.0, r1_every=1).train()
    model.discriminator.forward = lambda x, label: x.sum((1, 2, 3))  # type: ignore[method-assign]
    x = torch.zeros(64, 1, 32, 32)
    batch = Batch(image=x, index=torch.arange(64))
    losses = model.discriminator_losses(batch, x)
    inside = model.augmented(x, batch, 0) == 0  # air, at -1, came in where it is not
    assert 0.7 < inside.float().mean() < 0.95
    assert float(losses["r1"]) == pytest.approx(0.5 * float(inside.sum((1, 2, 3)).float().mean()))


@pytest.mark.parametrize(("words", "message"), [
    (["model.norm_d=batch"], r"model\.norm_d=batch: R1 is of each image's own logit, .* give model\.r1_gamma=0, or"),
    (["model.gan_loss=wgan"], r"model\.gan_loss=wgan: the slope .* has no gradient penalty; give model\.spectral=true"),
])  # fmt: skip
def test_penalties_that_are_none_are_refused(words: list[str], message: str, compose: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        check(compose("model=dcgan", *words))


@pytest.mark.parametrize("words", [
    ["model.norm_d=batch", "model.r1_gamma=0"], ["model.gan_loss=wgan", "model.spectral=true"],
    ["experiment=seed_004_dcgan"],
])  # fmt: skip
def test_what_needs_no_such_penalty_is_not(words: list[str], compose: Any, tmp_path: Path) -> None:
    check(compose("model=dcgan", f"+data.root={tmp_path}" if "experiment" in words[0] else "seed=0", *words))


@pytest.mark.slow
def test_a_tested_checkpoint_has_the_distance_of_its_samples(compose: Any, tmp_path: Path) -> None:
    words = [*SMALL, "trainer.max_epochs=1", "samples=16", "features=[pixels]"]
    assert run(compose(*words), tmp_path / "fit", words) is not None
    again = [*words, "task=test", f"ckpt={tmp_path / 'fit/best.ckpt'}"]
    value = run(compose(*again), tmp_path / "test", again)
    results = json.loads((tmp_path / "test/results.json").read_text())
    assert value == results["generation"]["kid"]["value"] == results["metrics"]["test/kid"]
    assert run(compose(*again, "samples=0"), tmp_path / "none", again) is None


def test_the_published_report_is_not_moved_by_our_defaults(compose: Any, tmp_path: Path) -> None:
    chosen = dict(compose("model=dcgan", f"+data.root={tmp_path}", "experiment=seed_004_dcgan").model)
    assert set(chosen) == set(compose("model=dcgan").model)
    chosen.pop("_target_")
    generator = DCGAN(DataSpec(size=128), **chosen).generator
    assert [type(m) for m in generator.layers[:4]] == [nn.BatchNorm2d, nn.LeakyReLU, nn.Upsample, nn.Conv2d]
    assert (generator.draws, generator.scanner) == (100, None)


def test_labels_for_an_unconditional_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"trained without labels \(model.condition=none\)"):
        small().sample(torch.arange(2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("size", [16, 64, 256])
def test_sizes(size: int) -> None:
    spec = DataSpec(size=size, channels=2)
    model = DCGAN(spec, channels_g=4, channels_d=4, most_channels=16, latent_dim=8, spectral=True, norm_d="group")
    images = model.sample(torch.arange(2))
    assert images.shape == (2, 2, size, size)
    assert images.abs().max() <= 1
    assert model.discriminator(images).shape == (2,)
    assert DCGAN.refuses(size) == ""


def test_sizes_that_are_no_power_of_two_are_refused() -> None:
    assert "data.size=96 is no power of 2" in DCGAN.refuses(96)
    with pytest.raises(ValueError, match="power of 2 of at least 8, got 96"):
        DCGAN(DataSpec(size=96))


def test_a_lazy_penalty_falls_on_steps_that_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default every 16th step has one and every 10th is logged: of 160 steps two are both."""
    model, both = small().train(), []
    for step in range(160):
        monkeypatch.setattr(type(model), "global_step", step)
        both.append(model.due(16) and (step + 1) % 10 == 0)
    assert sum(both) == 2
