"""ProGAN: its layers by hand, its schedule by a table, fades that begin and end in the stages beside them."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from mri_synth import config
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import ConfigError, UserError
from mri_synth.losses.adversarial import drift
from mri_synth.models.checkpoint import load_model
from mri_synth.models.growth import Growth, Phase, each, shares
from mri_synth.models.progan import ProGAN
from mri_synth.networks import progan as net
from mri_synth.networks.progan import EqualizedConv2d, EqualizedLinear, ProDiscriminator, ProGenerator
from mri_synth.run import build, run

SMALL: dict[str, Any] = {
    "latent_dim": 4, "fmap_base": 32, "fmap_max": 4, "fade_kimg": [1.0], "steady_kimg": [1.0],
}  # fmt: skip

# -- layers ------------------------------------------------------------------------------------------------------------


def test_weights_are_scaled_when_used() -> None:
    conv = EqualizedConv2d(3, 2)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.fill_(0.5)
    middle = conv(torch.ones(1, 3, 5, 5))[0, :, 2, 2]  # 27 ones, each weighing sqrt(2 / 27)
    assert middle.tolist() == pytest.approx([27 * math.sqrt(2 / 27) + 0.5] * 2)
    dense = EqualizedLinear(16, 1, gain=1.0)
    with torch.no_grad():
        dense.weight.fill_(2.0)
    assert dense(torch.ones(1, 16)).item() == pytest.approx(16 * 2 / 4)


def test_weights_begin_standard_normal_and_keep_the_variance() -> None:
    torch.manual_seed(0)
    conv = EqualizedConv2d(64, 64, gain=1.0)
    assert conv.weight.std().item() == pytest.approx(1, abs=0.02)
    assert conv(torch.randn(2, 64, 16, 16))[..., 1:-1, 1:-1].var().item() == pytest.approx(1, abs=0.1)


def test_all_layers_learn_at_one_speed() -> None:
    """One step of Adam changes every weight by lr, and the weight that is used by lr gain / sqrt(fan_in)."""
    convs = [EqualizedConv2d(2, 4), EqualizedConv2d(32, 4)]
    before = [c.weight.detach().clone() for c in convs]
    optimizer = torch.optim.Adam([p for c in convs for p in c.parameters()], lr=0.01)
    sum(c(torch.ones(1, c.weight.shape[1], 4, 4)).sum() for c in convs).backward()  # type: ignore[union-attr]
    optimizer.step()
    for conv, old in zip(convs, before, strict=True):
        assert (conv.weight.detach() - old).abs().mean().item() == pytest.approx(0.01, rel=1e-3)


def test_doubling_is_enlarging_and_halving_is_pooling() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, 8)
    up, down, plain = (EqualizedConv2d(5, 3, resize=r) for r in ("up", "down", "none"))
    for layer in (up, down):
        layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(up(x), plain(net.enlarged(x)), atol=1e-5, rtol=0)
    torch.testing.assert_close(down(x), net.halved(plain(x)), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a kernel of 3 can double or halve, got 1"):
        EqualizedConv2d(5, 3, kernel=1, resize="up")


def test_pixel_norm_by_hand() -> None:
    x = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)  # pixels (3, 4) and (0, 2)
    expected = torch.tensor([[3 / math.sqrt(12.5), 0.0], [4 / math.sqrt(12.5), math.sqrt(2)]]).view(1, 2, 1, 2)
    torch.testing.assert_close(net.pixel_norm(x), expected)
    torch.testing.assert_close(net.pixel_norm(torch.tensor([[0.0, 2.0]])), torch.tensor([[0.0, math.sqrt(2)]]))
    assert net.pixel_norm(x.bfloat16()).dtype == torch.bfloat16


def test_minibatch_stddev_by_hand() -> None:
    """Images 0 and 2 are one group, 1 and 3 the other: sd (1, 0) over the two pixels, and (2, 3)."""
    x = torch.tensor([[1.0, 5.0], [0.0, 0.0], [3.0, 5.0], [4.0, 6.0]]).view(4, 1, 1, 2)
    out = net.minibatch_stddev(x, 2)
    assert out.shape == (4, 2, 1, 2)
    assert torch.equal(out[:, :1], x)
    of_image = torch.tensor([0.5, 2.5, 0.5, 2.5])
    torch.testing.assert_close(out[:, 1], of_image[:, None, None].expand(4, 1, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("items, group, size", [(4, 4, 4), (6, 4, 3), (5, 4, 1), (2, 4, 2), (1, 4, 1), (12, 4, 4)])
def test_a_group_divides_the_batch(items: int, group: int, size: int) -> None:
    x = torch.randn(items, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    spread = net.minibatch_stddev(x, group)[:, 3, 0, 0]
    groups = items // size
    assert len(spread.unique()) == (groups if size > 1 else 1)
    for m in range(groups):
        expected = (x[m::groups].var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(spread[m::groups], expected.expand(size))


def test_two_processes_have_the_groups_of_one() -> None:
    x = torch.randn(16, 3, 4, 4)
    whole = net.minibatch_stddev(x, 4)
    for rank in range(2):  # every second image, as the loader shares them out
        torch.testing.assert_close(net.minibatch_stddev(x[rank::2], 4), whole[rank::2])


def test_real_images_of_a_fade_by_hand() -> None:
    model = ProGAN(DataSpec(size=8), latent_dim=4, fmap_base=16, fmap_max=4, fade_kimg=[1.0], steady_kimg=[1.0])
    image = torch.arange(64.0).view(1, 1, 8, 8)
    assert torch.equal(model.real(image)[0, 0, 0], torch.tensor([4.5, 6.5, 8.5, 10.5]))  # means of 0 1 8 9, ...
    model.seen = 1250
    assert model.phase == Phase(1, 0.25)
    assert model.real(image)[0, 0, 0, :2].tolist() == [0.75 * 4.5 + 0.25 * 0, 0.75 * 4.5 + 0.25 * 1]
    model.seen = 2000
    assert torch.equal(model.real(image), image)


def test_reals_and_fakes_in_one_pass_keep_their_groups() -> None:
    model = ProGAN(DataSpec(size=8), **SMALL, group=2)
    real, fake = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4) + 1
    for n in (6, 5):  # groups of 2 in one pass, and of 1 in two
        together = model._judged(real[:n], fake[:n], None)
        for logits, images in zip(together, (real[:n], fake[:n]), strict=True):
            torch.testing.assert_close(logits, model.discriminator(images, 0))


def test_drift_by_hand() -> None:
    assert drift(torch.tensor([3.0, -0.5])).tolist() == [9.0, 0.25]


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[ProGenerator, ProDiscriminator]:
    torch.manual_seed(1)
    return ProGenerator(6, 1, 16, base=64, most=8), ProDiscriminator(1, 16, base=64, most=8, group=2)


def test_widths_are_the_papers() -> None:
    assert net.widths(1024, 8192, 512) == [512, 512, 512, 512, 256, 128, 64, 32, 16]  # table 2
    assert net.stages(4) == 1
    with pytest.raises(ValueError, match="a power of 2 of at least 4, got 48"):
        net.stages(48)


def test_a_fade_begins_in_the_stage_below_and_ends_in_the_new_one(pair: Any) -> None:
    generator, discriminator = pair
    z, image = torch.randn(4, 6), torch.randn(4, 1, 16, 16)
    for stage in (1, 2):
        side = 4 << stage
        below, new = net.enlarged(generator(z, stage - 1)), generator(z, stage)
        assert new.shape == (4, 1, side, side)
        assert torch.equal(generator(z, stage, 0.0), below)
        torch.testing.assert_close(generator(z, stage, 0.25), 0.75 * below + 0.25 * new)
        x = F.avg_pool2d(image, 16 // side) if side < 16 else image
        torch.testing.assert_close(discriminator(x, stage, 0.0), discriminator(net.halved(x), stage - 1))
        torch.testing.assert_close(discriminator(x, stage, 1 - 1e-7), discriminator(x, stage), atol=1e-5, rtol=0)
        assert not torch.allclose(discriminator(x, stage, 0.5), discriminator(x, stage))


@pytest.mark.parametrize("stage, alpha", [(0, 1.0), (1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)])
def test_gradients_flow_to_what_a_stage_has_and_nowhere_else(pair: Any, stage: int, alpha: float) -> None:
    generator, discriminator = pair
    discriminator(generator(torch.randn(4, 6), stage, alpha), stage, alpha).sum().backward()
    stages = {stage, stage - 1} if alpha < 1 else {stage}
    always = {"first", "dense"}, {"last", "dense", "out"}
    for network, names, image in ((generator, always[0], "to_image"), (discriminator, always[1], "from_image")):
        for name, parameter in network.named_parameters():
            part, _, at = name.partition(".")
            number = at.partition(".")[0]
            wanted = part in names or (int(number) in stages if part == image else int(number) < stage)
            assert (parameter.grad is not None) == wanted, name
            assert not wanted or parameter.grad.abs().max() > 0, name


def test_images_of_one_channel_become_channels_last() -> None:
    layer, x = EqualizedConv2d(1, 8, kernel=1), torch.randn(2, 1, 4, 6)
    expected = torch.nn.functional.conv2d(x, layer.weight * layer.scale, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_mixed_precision_and_channels_last_agree(pair: Any) -> None:
    generator, discriminator = pair
    z = torch.randn(4, 6)
    expected = discriminator(generator(z, 2, 0.5), 2, 0.5)
    for network in pair:
        network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(z, 2, 0.5)
        logits = discriminator(image, 2, 0.5)
    assert image.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)


# -- schedule ----------------------------------------------------------------------------------------------------------

SCHEDULE = Growth.of(4, [99.0, 1.0, 2.0, 0.0], [1.0, 2.0], [16, 8], [1.0, 0.5, 0.25])
TABLE = [  # images seen, stage, alpha
    (0, 0, 1.0), (999, 0, 1.0), (1000, 1, 0.0), (1250, 1, 0.25), (1999, 1, 0.999), (2000, 1, 1.0), (3999, 1, 1.0),
    (4000, 2, 0.0), (5000, 2, 0.5), (6000, 2, 1.0), (7999, 2, 1.0), (8000, 3, 1.0), (9999, 3, 1.0), (10**9, 3, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("seen, stage, alpha", TABLE)
def test_the_schedule_is_the_table(seen: int, stage: int, alpha: float) -> None:
    assert SCHEDULE.phase(seen) == Phase(stage, alpha)


def test_the_papers_schedule_and_what_is_told_of_it() -> None:
    paper = Growth.of(9, [600.0], [600.0], [16], [1.0])
    assert paper.phase(600_000 + 7 * 1_200_000) == Phase(8, 0.0)  # 1024x1024 begins at 9 million
    assert paper.whole == 9_600_000
    assert SCHEDULE.whole == 8000
    assert SCHEDULE.minibatch == (16, 8, 8, 8)
    assert SCHEDULE.lr_factor == (1.0, 0.5, 0.25, 0.25)
    assert each("ab", 4) == ["a", "b", "b", "b"]
    assert str(Phase(2, 0.4)) == "16x16, 40% faded in"
    assert str(Phase(3)) == "32x32"


@pytest.mark.parametrize(
    "items, minibatch, world, group, lengths",
    [(16, 16, 1, 4, [16]), (16, 8, 1, 4, [8, 8]), (8, 8, 2, 4, [4, 4]), (16, 99, 1, 4, [16]), (4, 1, 2, 1, [1] * 4),
     (100, 16, 1, 4, [12, 16, 12, 16, 12, 16, 16]), (6, 4, 1, 4, [6]), (7, 4, 1, 2, [2, 5])],
)  # fmt: skip
def test_a_batch_is_shared_out_among_updates(
    items: int, minibatch: int, world: int, group: int, lengths: list[int]
) -> None:
    found = shares(items, minibatch, world, group)
    assert [s.stop - s.start for s in found] == lengths
    assert [i for s in found for i in range(items)[s]] == list(range(items))


# -- method ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, near", [(4, 8), (48, 32), (100, 128)])
def test_sizes_that_do_not_double_are_refused(size: int, near: int, compose: Any) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"data.size={size} is no power of 2 from 8 on; try data.size={near}")
    ):
        config.check(compose("model=progan", f"data.size={size}"))


def test_samples_have_full_size_at_every_stage() -> None:
    model = ProGAN(DataSpec(size=16), **SMALL).eval()
    seeds = torch.arange(3)
    for seen, side in ((0, 4), (2500, 8), (5000, 16)):
        model.seen = seen
        image = model.sample(seeds)
        assert image.shape == (3, 1, 16, 16)
        assert torch.equal(image, net.enlarged(image[..., :: 16 // side, :: 16 // side], 16 // side))
    with pytest.raises(UserError, match="trained without labels"):
        model.sample(seeds, torch.zeros(3, dtype=torch.int64))


def test_vectors_of_seeds_are_what_samples_are_made_of_at_every_stage() -> None:
    model = ProGAN(DataSpec(size=16, classes=("none", "tumour")), **SMALL, condition="label").eval()
    seeds, label = torch.arange(6), torch.tensor([0, 1, -1, 0, 1, -1])
    z = model.latent(seeds)
    assert z.shape == (6, 4 + 1)
    for seen in (0, 1500, 2500, 5000):
        model.seen = seen
        for asked in (None, label):
            made = model.sample(seeds, asked, truncation=0.7)
            assert torch.equal(model.from_latent(z, asked, truncation=0.7), made)
        assert torch.equal(made[[2, 5]], model.sample(seeds, truncation=0.7)[[2, 5]])


def test_truncation_is_no_factor_on_a_latent_that_is_normed() -> None:
    torch.manual_seed(0)
    model = ProGAN(DataSpec(size=16), **SMALL).eval()
    model.seen = 5000
    spread = [model.sample(torch.arange(8), truncation=t).std(0).mean() for t in (1.0, 0.5, 0.0)]
    assert spread[0] > 1.1 * spread[1] > 0
    assert spread[2] < 1e-6


def test_pictures_are_of_the_classes_of_their_items() -> None:
    model = ProGAN(DataSpec(size=8, classes=("none", "tumour")), **SMALL, condition="label").eval()
    model.seen = 5000
    labels = torch.tensor([1, 0, 1])
    rows = model.visuals(Batch(image=torch.zeros(3, 1, 8, 8), index=torch.arange(3), label=labels))
    assert torch.equal(rows["sample (8x8)"], model.sample(torch.arange(3), labels))
    assert not torch.equal(rows["sample (8x8)"], model.sample(torch.arange(3), 1 - labels))


def test_the_average_starts_anew_with_every_stage() -> None:
    model = ProGAN(DataSpec(size=16), **SMALL)
    decays = []
    for made, began in ((0, 0), (8, 0), (10**6, 0), (10**6, 10**6 - 2)):
        model.made, model.began = made, began
        decays.append(model.decay())
    assert decays == [0.1, 0.5, 0.999, 0.25]


def test_a_label_is_heard_by_both_sides() -> None:
    torch.manual_seed(0)
    model = ProGAN(DataSpec(size=8, classes=("none", "tumour")), **SMALL, condition="label").eval()
    seeds, labels = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, -1])
    assert model.conditions() == ("none", "tumour")
    image = model.sample(seeds, labels)
    assert not torch.equal(image[0], image[1])
    assert torch.equal(model.sample(seeds), model.sample(seeds, torch.full((3,), -1)))
    logits = model.discriminator(image[:1, :, ::2, ::2].expand(3, -1, -1, -1), 0, 1.0, labels)
    h = model.discriminator.out
    assert len(logits.unique()) == 3
    assert (h.weight.shape[0], h.scale) == (3, 4**-0.5)
    batch = Batch(image=torch.zeros(3, 1, 8, 8), index=torch.arange(3), label=labels)
    loss = model.generator_losses(batch, model.generate(batch))["loss"]
    loss.backward()
    assert model.generator.input.embedding.weight.grad is None  # type: ignore[union-attr]  # its average generated
    model.train().generator_losses(batch, model.generator(torch.randn(3, 4), 0, 1.0, labels))["loss"].backward()
    assert model.generator.input.embedding.weight.grad.abs().min() > 0  # type: ignore[union-attr]


RUN = ["model=progan", "model.latent_dim=8", "model.fmap_base=64", "model.fmap_max=8", "model.ema_decay=0.9",
       "model.minibatch=[8,8,4]", "model.lr_factor=[1,0.5]", "model.r1_every=3", "data.preset=custom",
       "data.subjects=[4,2,1]", "data.size=16", "data.slices.stop=8", "data.batch_size=8", "logger=csv", "trainer=cpu",
       "trainer.log_every_steps=1", "trainer.pictures=2", "trainer.progress=false", "trainer.judge_features=pixels",
       "trainer.judge_samples=8", "trainer.sentinels=off", "model.steady_kimg=[0.024]", "model.fade_kimg=[0.04]",
       "trainer.max_epochs=5"]  # fmt: skip
"""36 images, 4 steps of 8 an epoch: 8x8 is faded in from step 3 to 8, 16x16 from step 11 to 16, by fours."""


class Note(pl.Callback):
    """Where a run stands after every step; may end it before one, as a power cut would."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.rows = stop, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        states = [int(max((s["step"] for s in o.state.values()), default=0)) for o in trainer.optimizers]
        self.rows.append((trainer.global_step, pl_module.seen, pl_module.phase, pl_module.made, states,
                          trainer.optimizers[0].param_groups[0]["lr"]))  # fmt: skip

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop:
            raise TimeoutError


def train(compose: Any, folder: Path, *words: str, stop: int | None = None, resume: bool = False) -> Any:
    folder.mkdir(exist_ok=True)
    data, model, trainer = build(compose(*RUN, *words), folder)
    note = Note(stop)
    trainer.callbacks.append(note)  # type: ignore[attr-defined]  # last: the checkpoint of the step before counts by then
    checkpoint = folder / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except TimeoutError:
        assert trainer.global_step == stop
    return model, note.rows


@pytest.fixture(scope="module")
def whole(compose: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(compose, folder)


@pytest.mark.slow
def test_a_run_grows_as_the_schedule_says(whole: Any) -> None:
    folder, model, rows = whole
    assert [(step, seen) for step, seen, *_ in rows] == [(n, 8 * n) for n in range(1, 21)]
    assert [str(p) for _, _, p, *_ in rows[2:8]] == [
        f"8x8, {k}% faded in" for k in (0, 20, 40, 60, 80)
    ] + ["8x8"]  # fmt: skip
    assert [made for _, _, _, made, *_ in rows] == [*range(1, 12), *range(13, 30, 2)]  # two updates a step from 16x16
    began = [step for step, *_, states, _ in rows if states == [0, 0]]
    assert began == [3, 8, 11, 16], "Adam starts anew when a fade begins and when it ends"
    assert [lr for *_, lr in rows] == [0.001] * 3 + [0.0005] * 17  # set before an update
    assert model.began == 11
    assert model.grown
    assert load_model(folder / "last.ckpt").phase == Phase(2)


@pytest.mark.slow
def test_compiled_networks_switch_stages_and_keep_their_names(
    whole: Any, compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, original, made = [], torch.nn.Module.compile, Counter[str]()

    def backend(graph: Any, example: Any) -> Any:
        made["graphs"] += 1
        return graph.forward

    def quick(self: torch.nn.Module) -> None:
        compiled.append(type(self).__name__)
        original(self, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    _, rows = train(compose, tmp_path, "trainer.compile=true", "trainer.pictures=0")
    assert {"ProGenerator", "ProDiscriminator"} <= set(compiled)
    assert made["graphs"] >= 10, "one of each network and phase at least"
    assert [row[2] for row in rows] == [row[2] for row in whole[2]]
    saved, plain = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (tmp_path, whole[0]))
    assert saved.keys() == plain.keys()
    assert load_model(tmp_path / "last.ckpt").phase == Phase(2)
    for key in ("generator.dense.weight", "generator.up.1.weight", "discriminator.down.1.weight"):
        torch.testing.assert_close(saved[key], plain[key], rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_a_plan_is_of_the_last_stage(compose: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(compose(*RUN, "task=plan"), tmp_path / "plan", RUN) is None
    text = capsys.readouterr().out
    assert "16x16, the last stage" in text
    assert "hours at most" in text


@pytest.mark.slow
def test_no_coarse_stage_is_chosen(whole: Any) -> None:
    lines = [line.split(",") for line in (whole[0] / "metrics.csv").read_text().splitlines()]
    assert [epoch for _, epoch, name, _ in lines if name == "val/kid"] == ["3", "4"], "16x16 is there from epoch 3 on"
    assert [epoch for _, epoch, name, _ in lines if name == "val/ms_ssim"] == list("01234")
    assert load_model(whole[0] / "best.ckpt").grown


@pytest.mark.slow
def test_pictures_show_every_stage(whole: Any) -> None:
    folder, model, _ = whole
    batch = Batch(image=torch.zeros(10, 1, 16, 16), index=torch.arange(10))
    rows = model.eval().visuals(batch)
    assert list(rows) == ["original", "sample (16x16)", "at the end of 8x8", "at the end of 4x4"]
    kept = rows["at the end of 4x4"]
    assert kept.shape == (10, 1, 4, 4)
    assert (kept[8:] == -1).all(), "eight seeds are kept"
    assert kept[:8].std() > 0.01
    assert len(list((folder / "pictures").glob("epoch_*.png"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 14], ids=["fading in 8x8", "fading in 16x16"])
def test_a_run_killed_in_a_fade_resumes_bit_for_bit(stop: int, whole: Any, compose: Any, tmp_path: Path) -> None:
    words = f"trainer.checkpoint_every_steps={stop}"
    _, before = train(compose, tmp_path, words, stop=stop)
    assert before[-1][2].fading
    _, rows = train(compose, tmp_path, words, resume=True)
    assert before + rows == whole[2]
    one, two = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole[0], tmp_path))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(v, two["state_dict"][k]) for k, v in one["state_dict"].items())
    for a, b in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        assert all(torch.equal(v, b["state"][i][k]) for i, s in a["state"].items() for k, v in s.items())


@pytest.mark.slow
def test_accumulated_batches_are_counted_as_one_large_batch(compose: Any, tmp_path: Path) -> None:
    words = ["trainer.max_epochs=2", "trainer.precision=32-true", "model.minibatch=[8]"]
    one, rows = train(compose, tmp_path / "one", *words, "data.batch_size=8")
    two, more = train(compose, tmp_path / "two", *words, "data.batch_size=4", "trainer.accumulate=2")
    assert rows[-1][:2] == (8, 64)
    assert more[-1][:2] == (10, 72), "36 images are 4 batches of 8, and 9 of 4: the ninth is a step of its own"
    assert one.made == 8
    assert two.made == 10


@pytest.mark.slow
def test_wgan_has_its_penalties(compose: Any, tmp_path: Path) -> None:
    train(compose, tmp_path, "model.gan_loss=wgan", "trainer.max_epochs=3")
    names = {line.split(",")[2] for line in (tmp_path / "metrics.csv").read_text().splitlines()}
    assert {"train/d_gp", "train/d_drift", "train/kimg", "train/resolution", "train/alpha"} <= names
    assert "train/d_r1" not in names


@pytest.mark.slow
def test_a_training_that_ends_too_soon_says_so(compose: Any, tmp_path: Path) -> None:
    model, _ = train(compose, tmp_path, "trainer.max_epochs=1", "trainer.pictures=0")
    assert model.alarms == [
        "the growth ends too soon: at 8x8, 20% faded in, after 0.032 kimg; full size takes 0.128. Samples are "
        "enlarged. Remedies, in this order: a larger trainer.max_epochs or trainer.max_minutes, a smaller "
        "model.steady_kimg and model.fade_kimg"
    ]
    assert not model.grown


@pytest.mark.slow
def test_a_training_that_is_stopped_too_soon_says_so(compose: Any, tmp_path: Path) -> None:
    """As by a limit on time, of which the schedule knows nothing."""
    model, rows = train(compose, tmp_path, "trainer.max_minutes=1e-6")
    assert len(rows) == 1
    assert [said.partition(",")[0] for said in model.alarms] == ["the growth ends too soon: at 4x4"]
    assert "val/ms_ssim" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["label", "contrast", "slice"])
def test_every_condition_trains(condition: str, compose: Any, tmp_path: Path) -> None:
    model, rows = train(compose, tmp_path, f"model.condition={condition}", "trainer.max_epochs=1",
                        "trainer.pictures=0", "data.contrasts=[T1,T2]")  # fmt: skip
    assert rows
    assert len(model.conditions()) > 1
