"""CycleGAN: its pool, its passes, its losses worked out by hand, both directions; and its sentinel's planted cases."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from test_models import history
from torch import Tensor, nn

from mri_synth.callbacks.unpaired import Unfaithful, measured
from mri_synth.callbacks.watches import remedies
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.views import Reading, Unpaired
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses.cycle import cycle_consistency, structure
from mri_synth.metrics.structure import BINS, tissue_order, tissues, unexplained
from mri_synth.models.base import SynthModule
from mri_synth.models.cyclegan import CycleGAN, mirrored
from mri_synth.models.pix2pix import Pix2Pix
from mri_synth.models.replay import ReplayPool
from mri_synth.models.schedule import LinearDecay
from mri_synth.run import run

SPEC = DataSpec(size=16, contrasts=("T1", "T2"), sources=("T1",), goal="T2")
TINY: dict[str, Any] = {"generator": "unet", "width": 4, "d_width": 4, "d_layers": 1, "pool_size": 3}


def images(count: int, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(count: int = 2, paired: Tensor | None = None) -> Batch:
    return Batch(image=images(count), target=images(count, 1), index=torch.arange(count), paired=paired)


# -- the pool --------------------------------------------------------------------------------------------------------


def marks(*values: int) -> Tensor:
    """Images of one pixel each."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def test_what_fills_the_pool_comes_out_as_it_went_in() -> None:
    pool = ReplayPool(5, 1, 1)
    assert torch.equal(pool.exchange(marks(1, 2, 3), 0, 0, torch.arange(3)), marks(1, 2, 3))
    assert int(pool.filled) == 3
    assert torch.equal(pool.exchange(marks(4, 5, 6), 0, 1, torch.arange(3)), marks(4, 5, 6))  # the last finds no place
    assert pool.images.flatten().tolist() == [1, 2, 3, 4, 5]
    assert int(pool.filled) == 5


def test_a_full_pool_exchanges_every_second_image_for_one_that_it_kept() -> None:
    """Against the published rule, image by image: heads, and an older one comes out and the new one takes its place."""
    pool = ReplayPool(4, 1, 1)
    pool.exchange(marks(0, 1, 2, 3), 7, 0, torch.arange(4))
    known, exchanged = [0.0, 1.0, 2.0, 3.0], 0
    for step in range(1, 401):
        item = torch.tensor([step % 10])
        heads = bool(uniform(7, step, item, 1) < 0.5)
        place = int(uniform(7, step, item, 5)[0, 1:].argsort()[0])
        expected = known[place] if heads else float(100 + step)
        known[place] = float(100 + step) if heads else known[place]
        assert pool.exchange(marks(100 + step), 7, step, item).item() == expected
        assert pool.images.flatten().tolist() == known
        exchanged += heads
    assert 160 < exchanged < 240  # four standard deviations of 400 coins


def test_images_of_a_batch_go_to_different_places_and_none_is_lost_or_doubled() -> None:
    pool = ReplayPool(6, 1, 1)
    pool.exchange(marks(*range(6)), 0, 0, torch.arange(6))
    before = pool.images.clone()
    for step in range(1, 30):
        new = marks(*range(10 * step, 10 * step + 4))
        shown = pool.exchange(new, 0, step, torch.arange(4))
        assert sorted([*shown.flatten(), *pool.images.flatten()]) == sorted([*new.flatten(), *before.flatten()])
        before = pool.images.clone()
    many = marks(*range(1000, 1010))  # more than it has places: the rest pass
    shown = pool.exchange(many, 0, 40, torch.arange(10))
    assert sorted([*shown.flatten(), *pool.images.flatten()]) == sorted([*many.flatten(), *before.flatten()])


def test_a_pool_goes_on_from_its_state_and_does_not_ask_for_the_order() -> None:
    one = ReplayPool(4, 1, 1)
    one.exchange(marks(0, 1, 2, 3), 0, 0, torch.arange(4))
    two = ReplayPool(4, 1, 1)
    two.load_state_dict(one.state_dict())
    order = torch.tensor([2, 0, 1])
    shown = one.exchange(marks(5, 6, 7), 0, 1, torch.arange(3))
    assert torch.equal(two.exchange(marks(5, 6, 7)[order], 0, 1, order), shown[order])
    assert torch.equal(one.images, two.images)
    assert torch.equal(ReplayPool(0, 1, 1).exchange(marks(8), 0, 0, torch.arange(1)), marks(8))


def test_the_learning_rate_stays_and_then_falls_in_a_straight_line() -> None:
    assert [LinearDecay(8, 0.5)(step) for step in range(9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert [LinearDecay(8, 1.0)(step) for step in (0, 7)] == [1, 1]
    assert [LinearDecay(4, 0.0)(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]


# -- passes and losses -----------------------------------------------------------------------------------------------


def counted(model: CycleGAN) -> dict[str, list[int]]:
    """Images of every forward pass of each network from now on."""
    sizes: dict[str, list[int]] = {}
    for name in ("g_ab", "g_ba", "d_a", "d_b"):
        sizes[name] = []
        getattr(model, name).register_forward_pre_hook(lambda _, given, name=name: sizes[name].append(len(given[0])))
    return sizes


def step(model: CycleGAN, batch: Batch) -> None:
    """The passes of one step."""
    fakes = model.generate(batch)
    model.discriminator_losses(batch, {k: v.detach() for k, v in fakes.items()})
    model.generator_losses(batch, fakes)


@pytest.mark.parametrize("settings, g_ab, g_ba", [
    ({}, [4, 2], [6]),  # a and b; fake_a. b, fake_b and a
    ({"lambda_identity": 0.0}, [2, 2], [4]),
    ({"lambda_cycle": 0.0}, [2, 2], [4]),  # of which the identity's weight is a share
    ({"norm": "batch"}, [2, 2, 2], [2, 2, 2]),
])  # fmt: skip
def test_a_step_has_three_generator_passes_and_two_of_each_discriminator(settings, g_ab, g_ba) -> None:
    model = CycleGAN(SPEC, **TINY, **settings)
    sizes = counted(model)
    step(model, pair())
    assert sizes == {"g_ab": g_ab, "g_ba": g_ba, "d_a": [4, 2], "d_b": [4, 2]}  # real and fake, and fake again


def test_passes_together_are_passes_apart() -> None:
    model, batch = CycleGAN(SPEC, **TINY), pair()
    assert batch.target is not None
    made = model.generate(batch)
    apart = {"fake_b": model.g_ab(batch.image), "fake_a": model.g_ba(batch.target)}
    apart |= {"back_a": model.g_ba(apart["fake_b"]), "back_b": model.g_ab(apart["fake_a"])}
    apart |= {"same_a": model.g_ba(batch.image), "same_b": model.g_ab(batch.target)}
    assert made.keys() == apart.keys()
    for name, value in apart.items():
        torch.testing.assert_close(made[name], value, atol=1e-5, rtol=1e-5, msg=name)


class Times(nn.Module):
    """Multiplies, or says the same of every patch."""

    draws = 0

    def __init__(self, factor: float = 0.0, verdict: float | None = None) -> None:
        super().__init__()
        self.factor, self.verdict = factor, verdict

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x * self.factor if self.verdict is None else torch.full((len(x), 1, 2, 2), float(self.verdict))


def test_losses_by_hand() -> None:
    """With G_AB(x) = x / 2, G_BA(x) = 4 x, images of 0.25 and 0.5, and verdicts of 0.5 in a and of 3 in b."""
    model = CycleGAN(SPEC, **TINY, lambda_identity=0.25, lambda_structure=2).eval()
    model.g_ab, model.g_ba = Times(0.5), Times(4)  # type: ignore[assignment]
    model.d_a, model.d_b = Times(verdict=0.5), Times(verdict=3)  # type: ignore[assignment]
    batch = Batch(image=torch.full((2, 1, 16, 16), 0.25), target=torch.full((2, 1, 16, 16), 0.5), index=torch.arange(2))
    losses = {k: float(v) for k, v in model.losses(batch).items()}
    cycle, same = 0.25 + 0.5, 0.75 + 0.25  # |2 a - a| + |2 b - b|; |4 a - a| + |b / 2 - b|
    adversarial = 0.5**2 + 2**2  # (D - 1)^2, as published
    assert losses["g_cycle"] == pytest.approx(cycle)
    assert losses["g_identity"] == pytest.approx(same)
    assert losses["g_adversarial"] == pytest.approx(adversarial)
    assert losses["g_structure"] == 0  # images without structure
    assert losses["g_loss"] == pytest.approx(adversarial + 10 * cycle + 2.5 * same)
    assert losses["d_loss_a"] == pytest.approx(0.5**2)  # ((0.5 - 1)^2 + 0.5^2) / 2
    assert losses["d_loss_b"] == pytest.approx((2**2 + 3**2) / 2)
    assert losses["d_loss"] == pytest.approx(0.25 + 6.5)
    assert (losses["d_real"], losses["d_fake"]) == (1.75, 1.75)
    assert set(model.explained) <= {*losses, "cycle_ssim", "made_up", "made_up_real"}


def test_the_structure_loss_sees_what_the_cycle_does_not() -> None:
    """One way moves everything by two pixels, the other moves it back; half as bright is no fault."""
    a, b = images(2, 7, 32), images(2, 8, 32)
    there, back = a.roll(2, 3) / 2, b.roll(-2, 3) / 2
    assert cycle_consistency(2 * there.roll(-2, 3), a, 2 * back.roll(2, 3), b).max() == 0
    assert structure(there, a, back, b).min() > 1.8  # strangers have 2 (1 - 1 / 24)
    assert structure(a / 2, a, -b / 2, b).max() < 0.02

    model = CycleGAN(SPEC, **TINY, lambda_structure=3).eval()
    images_of = {"image": a[..., :16, :16], "target": b[..., :16, :16]}
    losses = model.losses(Batch(**images_of, index=torch.arange(2)))
    rest = losses["g_adversarial"] + 10 * losses["g_cycle"] + 5 * losses["g_identity"]
    torch.testing.assert_close(losses["g_loss"], rest + 3 * losses["g_structure"])


class Shift(nn.Module):
    """A generator that moves everything rightwards."""

    draws = 0

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x.roll(self.by, 3)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_way_back_does_not_take_back_the_shift_of_mirrored_passes(mirror: bool) -> None:
    batch = pair(64)
    model = CycleGAN(SPEC, **TINY, mirror=mirror, lambda_identity=0)
    model.g_ab, model.g_ba = Shift(2), Shift(-2)
    for training in (True, False):
        model.train(training)
        out = model.generate(batch)
        share = float((out["back_a"] != batch.image).flatten(1).any(1).float().mean())
        # half of the items are mirrored in one way and not in the other, and end four pixels away
        assert share == pytest.approx(0.5 if mirror and training else 0, abs=0.2)
        there = out["fake_b"]
        right, left = ((there == batch.image.roll(by, 3)).flatten(1).all(1) for by in (2, -2))
        assert (right | left).all()
        assert bool(left.any()) == (mirror and training)
        assert torch.equal(out["fake_b"], model.generate(batch)["fake_b"]), "drawn of item and step alone"


def test_what_is_mirrored_twice_is_as_it_was() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(4, 1, 2, 2)
    numbers = torch.tensor([[0.9, 0.9], [0.1, 0.9], [0.9, 0.1], [0.1, 0.1]])
    found = mirrored(x, numbers)
    assert found.flatten(1).tolist() == [[1, 2, 3, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 3, 2, 1]]
    assert torch.equal(mirrored(found, numbers), x)
    assert mirrored(x, None) is x


def test_the_weight_of_the_structure_loss_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CycleGAN(SPEC, **TINY, lambda_structure=3, structure_rise=0.5)
    monkeypatch.setattr(CycleGAN, "total_steps", 40)
    weights = []
    for step in (0, 9, 19, 30):
        monkeypatch.setattr(CycleGAN, "global_step", step)
        weights.append(model.structure_weight)
    assert weights == pytest.approx([3 / 20, 3 / 2, 3, 3])
    monkeypatch.undo()
    assert model.eval().structure_weight == 3, "a test of a checkpoint, which has no step"


def test_the_gradient_of_the_structure_loss_leads_back() -> None:
    """An image between its source and the source moved by a pixel is led to the source, by its exact slope."""
    a = images(2, 9, 32)
    share = torch.tensor(0.5, requires_grad=True)

    def loss(s: Tensor) -> Tensor:
        moved = (1 - s) * a + s * a.roll(1, 3)
        return structure(moved, a, a, a).mean()

    (slope,) = torch.autograd.grad(loss(share), share)
    with torch.no_grad():
        differences = (loss(share + 1e-2) - loss(share - 1e-2)) / 2e-2
    assert slope > 0.1
    assert slope == pytest.approx(float(differences), rel=0.01)


def test_only_discriminators_in_training_see_the_pool() -> None:
    model, batch = CycleGAN(SPEC, **TINY), pair()
    fakes = model.generate(batch)
    model.generator_losses(batch, fakes)
    assert int(model.pool_a.filled) == int(model.pool_b.filled) == 0
    model.discriminator_losses(batch, {k: v.detach() for k, v in fakes.items()})
    assert int(model.pool_a.filled) == int(model.pool_b.filled) == 2
    assert torch.equal(model.pool_b.images[:2].flip(0), fakes["fake_b"].detach())
    model.eval().losses(batch)
    assert int(model.pool_a.filled) == 2


def test_dropout_is_of_item_and_step_and_no_pass_has_that_of_another() -> None:
    model, batch = CycleGAN(SPEC, **TINY | {"dropout": 0.5}), pair(4)
    order = torch.tensor([2, 0, 3, 1])
    assert batch.target is not None
    there = model.generate(batch)
    again = model.generate(Batch(image=batch.image[order], target=batch.target[order], index=batch.index[order]))
    for name, value in there.items():
        torch.testing.assert_close(again[name], value[order], atol=1e-5, rtol=1e-5)
    same = Batch(image=batch.image[:1].repeat(2, 1, 1, 1), target=batch.image[:1].repeat(2, 1, 1, 1),
                 index=torch.arange(2))  # fmt: skip
    made = model.generate(same)
    assert not torch.allclose(made["fake_b"][0], made["fake_b"][1])
    assert not torch.allclose(made["fake_b"], made["same_b"])
    still = model.eval().generate(same)
    torch.testing.assert_close(still["fake_b"], still["same_b"])


# -- translation -----------------------------------------------------------------------------------------------------


def test_translation_goes_both_ways_by_the_average_where_there_is_one() -> None:
    model, x = CycleGAN(SPEC, **TINY, ema_decay=0.9).eval(), images(2)
    assert model.ema is not None
    torch.testing.assert_close(model.translate(x), model.g_ab(x))
    torch.testing.assert_close(model.translate(x, to="T1"), model.g_ba(x))
    assert torch.equal(model.translate(x, to="T2"), model.translate(x))
    model.ema[1].load_state_dict(copy.deepcopy(model.g_ab).state_dict())
    assert torch.equal(model.translate(x, to="T1"), model.translate(x))
    with pytest.raises(UserError, match="to=FLAIR: this CycleGAN translates to T2 or T1"):
        model.translate(x, to="FLAIR")
    assert model.goes_back()
    assert not Pix2Pix.goes_back()
    assert not SynthModule.goes_back()


def test_pictures_show_both_directions_and_do_not_compare_strangers() -> None:
    model = CycleGAN(SPEC, **TINY).eval()
    rows = model.visuals(pair(2, torch.tensor([True, True])))
    both = ["T1 there and back", "T2 there and back"]
    assert list(rows) == ["T1", "synthetic T2", "T2", "synthetic T1", *both]
    assert all(v.shape == (2, 1, 16, 16) for v in rows.values())
    rows = model.visuals(pair(2, torch.tensor([True, False])))
    assert list(rows) == ["T1", "synthetic T2", "T2 of others", "synthetic T1 of them", *both]


def test_sizes_that_do_not_fit_are_refused() -> None:
    assert CycleGAN.needs() is Unpaired
    assert CycleGAN.refuses("unet", 32, 3, "patch") == ""
    assert "images of at least 24 pixels, and data.size=16; try model.d_layers=1" in CycleGAN.refuses(
        "unet", 16, 3, "patch"
    )
    assert CycleGAN.refuses("local", 16, 3, "projected") == ""
    assert "at least 16 pixels, and data.size=8; try model.discriminator=patch" in CycleGAN.refuses(
        "local", 8, 3, "projected"
    )
    assert "model.generator=resnet9 takes images whose side is a multiple of 4" in CycleGAN.refuses(
        "resnet9", 30, 2, "patch"
    )


@pytest.mark.slow
def test_unpaired_training_makes_translations_that_their_hidden_pairs_confirm(tmp_path: Path, compose: Any) -> None:
    words = ["model=cyclegan", "model.generator=resnet9", "model.width=8", "model.d_width=16", "model.d_layers=1",
             "model.lr_g=2e-3", "model.lr_d=1e-3", "data.subjects=[6,2,2]", "data.size=32", "data.batch_size=6",
             "logger=csv", "trainer.progress=false", "trainer.max_epochs=10", "trainer.judge_features=pixels", "seed=3",
             "trainer.pictures=2"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    ssim, psnr, cycle = (history(tmp_path, f"val/{k}") for k in ("ssim", "psnr", "cycle_ssim"))
    assert max(ssim) > ssim[0] + 0.1
    assert max(psnr) > psnr[0] + 2
    assert max(cycle) > 0.5
    assert len(history(tmp_path, "val/made_up")) == 10
    assert 0 < history(tmp_path, "val/made_up_real")[0] < 0.5
    page = (tmp_path / "report.html").read_text()
    assert "Share of an image&#x27;s structure that its source does not have" in page.replace("'", "&#x27;")


# -- what a translation keeps ----------------------------------------------------------------------------------------


def test_structure_that_a_source_explains() -> None:
    s, other = images(4, 2, 64), images(4, 3, 64)
    for same in (s, -s, 0.5 * s + 0.3):
        assert unexplained(same, s).abs().max() < 0.01  # what is left is the noise's share
    # of 25 independent pixels a line explains 1/24 by chance
    torch.testing.assert_close(unexplained(other, s), torch.full((4,), 1 - 1 / 24), atol=0.01, rtol=0)
    torch.testing.assert_close(unexplained(s + other, s), torch.full((4,), 0.5 - 0.5 / 24), atol=0.02, rtol=0)
    assert torch.equal(unexplained(torch.zeros(2, 1, 16, 16), s[:2, :, :16, :16]), torch.zeros(2))
    assert unexplained(s, torch.zeros_like(s)).min() == 1
    assert unexplained(torch.full_like(s, 0.9), s).max() < 1e-3  # constant, but for what is lost in rounding
    faint = (1e-4 * other).requires_grad_()
    (slope,) = torch.autograd.grad(unexplained(faint, s).sum(), faint)
    assert slope.abs().max() < 1, "an image that is nearly flat, as contrasts are that turn over"


def test_tissues_are_told_by_the_source_and_put_in_order() -> None:
    source = torch.tensor([-1.0, -0.8, -0.7, -0.4, 0.9, 1.0]).view(1, 1, 1, 6)
    found = tissues(source)
    assert found.shape == (1, BINS, 1, 6)
    assert found.sum(1).flatten().tolist() == [0, 0, 1, 1, 1, 1]
    assert found.argmax(1).flatten()[2:].tolist() == [0, 1, 7, 7]
    count = torch.tensor([2.0, 3, 4, 0, 0, 0, 0, 0])
    x = torch.tensor([1.0, 2, 5, 0, 0, 0, 0, 0])
    assert tissue_order(x * count, (3 * x + 1) * count, count) == pytest.approx(1)
    assert tissue_order(x * count, -x * count, count) == pytest.approx(-1)
    assert tissue_order(x * count, count, count) == 0


# -- the sentinel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brains(compose: Any) -> Batch:
    """T1 and T2 of the same 60 slices of six phantoms."""
    words = ["data=phantom", "data.subjects=[6,2,2]", "data.size=32", "data.contrasts=[T1,T2]"]
    data = instantiate(compose(*words).data, _convert_="all")
    data.view_class = Unpaired
    data.prepare_data()
    data.setup()
    items = Unpaired(data.store, data.split_rows["train"], ["T1", "T2"], Reading())
    return items.__getitems__(list(range(len(items))))


class Planted(SynthModule):
    """Translates as it is told; the way back always restores the source, as generators learn to."""

    def __init__(self, made: Tensor, sources: Tensor) -> None:
        super().__init__(SPEC)
        self.hparams["lambda_identity"] = 0.5
        self.known = {self.key(s): m for s, m in zip(sources, made, strict=True)}
        self.way_back = {self.key(m): s for s, m in zip(sources, made, strict=True)}
        self.said: list[str] = []
        self.logged: dict[str, float] = {}

    @staticmethod
    def key(image: Tensor) -> float:
        return float((image.flatten() * torch.arange(image.numel()).sin()).sum())

    def translate(self, source: Tensor, *, to: str | None = None) -> Tensor:
        known = self.known if to is None else self.way_back
        return torch.stack([known[self.key(s)] for s in source])

    def alarm(self, text: str) -> None:
        self.said.append(text)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logged[name] = float(value)


def trainer(items: int, epoch: int = 9) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(fn="fit"), current_epoch=epoch, max_epochs=10, global_step=0, lightning_module=None,
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        datamodule=SimpleNamespace(view=lambda split: [None] * items),
    )  # fmt: skip


def watched(brains: Batch, made: Tensor, paired: bool, epochs: int = 3, first: int = 7) -> Planted:
    """What is said of translations; where they are not paired, targets are of other subjects."""
    model, watch, count = Planted(made, brains.image), Unfaithful(), len(brains)
    assert brains.target is not None
    target = brains.target if paired else brains.target.roll(20, 0)
    known = torch.full((count,), paired)
    for epoch in range(first, first + epochs):
        for start in range(0, count, 12):
            here = slice(start, start + 12)
            batch = Batch(image=brains.image[here], target=target[here], index=brains.index[here], paired=known[here])
            watch.on_validation_batch_end(trainer(count, epoch), model, None, batch, start // 12)
        watch.on_validation_epoch_end(trainer(count, epoch), model)
    return model


@pytest.mark.parametrize("paired", [True, False])
def test_right_translations_hear_nothing(brains: Batch, paired: bool) -> None:
    assert brains.target is not None
    model = watched(brains, brains.target, paired)
    assert model.said == []
    assert model.logged["val/cycle_ssim"] == pytest.approx(1)
    assert 0.1 < model.logged["val/made_up"] < 0.35
    assert ("val/made_up_real" in model.logged) == paired
    if paired:
        assert model.logged["val/made_up_real"] == pytest.approx(model.logged["val/made_up"])
    blurred = nn.functional.avg_pool2d(brains.target, 3, 1, 1)
    assert watched(brains, blurred, paired).said == []


def test_remedies_are_what_the_method_has_and_what_is_not_on_already(brains: Batch) -> None:
    model = Planted(brains.image, brains.image)
    model.hparams.update(lambda_structure=0.5, mirror=False)
    keys = ("mirror", "lambda_structure", "lambda_cycle")
    assert remedies(model, keys, "x").endswith("order: model.mirror=true, a larger model.lambda_structure, x")
    model.hparams["mirror"] = True
    assert remedies(model, keys, "x").endswith("order: a larger model.lambda_structure, x")


def test_a_good_cycle_does_not_hide_bad_translations(brains: Batch) -> None:
    """Outputs are noise in which the way back finds the source."""
    noise = images(60, 5, 32)
    model = watched(brains, noise, True)
    assert model.said[0].startswith("hallucination: the way there and back restores sources (SSIM 1.00), but")
    assert "(epoch 10); what they show need not be there. Remedies, in this order: a larger model." in model.said[0]
    assert [said.partition(":")[0] for said in model.said][:2] == ["hallucination", "hallucination"]


@pytest.mark.parametrize("paired", [True, False])
def test_outputs_that_are_strangers_to_their_sources_are_hallucinated(brains: Batch, paired: bool) -> None:
    """Perfect T2 images, of somebody else: a discriminator and the cycle are content."""
    assert brains.target is not None
    model = watched(brains, brains.target.roll(23, 0), paired)
    said = [s for s in model.said if "of the structure in translations is not in their sources" in s]
    assert len(said) == 1
    assert ("of real pairs" in said[0]) == paired


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("wrong", ["inverted", "copied"])
def test_tissues_in_the_wrong_order_are_an_inversion_with_and_without_pairs(
    brains: Batch, wrong: str, paired: bool
) -> None:
    """Brains inverted within black air; and T1 in place of T2, in which white matter is the bright one."""
    assert brains.target is not None
    dark = brains.target < -0.8
    made = torch.where(dark, brains.target, -brains.target) if wrong == "inverted" else brains.image
    said = [
        s for s in watched(brains, made, paired).said if s.startswith("contrast inversion: tissues in translations")
    ]
    assert len(said) == 1
    assert ("in the same slices" if paired else "at the same places") in said[0]
    assert "Remedies, in this order: a larger model.lambda_identity" in said[0]


def test_the_first_quarter_and_short_lapses_are_not_judged(brains: Batch) -> None:
    assert watched(brains, brains.image, True, first=0, epochs=4).said == []  # judged from the third of ten on
    assert watched(brains, brains.image, True, epochs=2).said == []
    assert len(watched(brains, brains.image, True, first=1, epochs=4).said) == 1


def test_a_split_in_parts_sums_to_the_whole(brains: Batch) -> None:
    """As processes do; but for what compares an item with others of its part, its strangers and the core."""
    assert brains.target is not None
    a, b, known = brains.image[:8], brains.target[:8], torch.ones(8, dtype=torch.bool)
    whole = measured(a, b, a, b, known)
    parts = measured(a[:4], b[:4], a[:4], b[:4], known[:4]) + measured(a[4:], b[4:], a[4:], b[4:], known[4:])
    same = [k for k in range(8) if k != 3]
    torch.testing.assert_close(parts[same], whole[same])
    assert measured(a[:1], b[:1], a[:1], b[:1], known[:1])[3] == 1  # alone: no stranger, and the most there can be
