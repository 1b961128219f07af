"""pix2pix and unet_l1: losses by hand, passes counted, contrast dropout from its numbers to the report's table."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mri_synth.config import check
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import ConfigError, UserError
from mri_synth.metrics.scores import image_scores
from mri_synth.models import sources
from mri_synth.models.checkpoint import load_model
from mri_synth.models.pix2pix import Pix2Pix
from mri_synth.models.unet_l1 import UNetL1
from mri_synth.run import run

NAMES = ("T1", "FLAIR", "PD")
SPEC = DataSpec(size=32, contrasts=(*NAMES, "T2"), sources=NAMES, goal="T2")
SMALL: dict[str, Any] = {"width": 8}
BOTH = [(UNetL1, SMALL), (Pix2Pix, SMALL | {"d_width": 8, "d_layers": 2})]
log2 = math.log(2)


def batch(count: int = 4, channels: int = 3, first: int = 0) -> Batch:
    g = torch.Generator().manual_seed(0)
    image, target = (torch.rand(20, c, 32, 32, generator=g)[first : first + count] * 2 - 1 for c in (channels, 1))
    return Batch(image=image, index=torch.arange(first, first + count), target=target)


class Constant(nn.Module):
    """Says one number of every pixel, and keeps what it was shown."""

    draws = 0

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.shown = value, []

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        self.shown.append(x)
        return torch.full_like(x[:, :1], self.value)


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, d_loss, adversarial", [
    ("bce", log2, log2), ("lsgan", 0.25, 0.5), ("hinge", 1.0, 0.0),
])  # fmt: skip
def test_losses_by_hand(loss: Any, d_loss: float, adversarial: float) -> None:
    """Targets 0.5, translations 0 and logits 0: L_1 is 0.5, L_D of bce 2 log 2 and halved log 2."""
    model, x = Pix2Pix(SPEC, **BOTH[1][1], gan_loss=loss), batch()
    model.generator, model.discriminator = Constant(0), Constant(0)
    x.target = torch.full_like(x.target, 0.5)
    terms = model.losses(x)
    assert terms["d_loss"] == pytest.approx(d_loss)
    assert terms["g_adversarial"] == pytest.approx(adversarial)
    assert terms["g_l1"] == pytest.approx(0.5)
    assert terms["g_loss"] == pytest.approx(adversarial + 100 * 0.5)


def test_discriminator_sees_sources_with_targets_and_with_translations_in_one_pass() -> None:
    model, x = Pix2Pix(SPEC, **BOTH[1][1]), batch()
    model.generator, model.discriminator = Constant(0.25), Constant(0)
    model.losses(x)
    assert len(model.generator.shown) == 1, "fakes are made once, for both sides"
    both, fake = model.discriminator.shown
    made = torch.full_like(x.target, 0.25)
    assert torch.equal(both, torch.cat([torch.cat([x.image, x.target], 1), torch.cat([x.image, made], 1)]))
    assert torch.equal(fake, torch.cat([x.image, made], 1))


def test_each_side_learns_from_its_own_loss_alone() -> None:
    model, x = Pix2Pix(SPEC, **BOTH[1][1]), batch()
    fakes = model.generate(x)
    model.discriminator_losses(x, {k: v.detach() for k, v in fakes.items()})["loss"].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model.generator_losses(x, fakes)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.generator.parameters())


def test_unet_l1_is_the_mean_absolute_difference() -> None:
    model, x = UNetL1(SPEC, **SMALL), batch()
    model.generator = Constant(0.25)
    assert model.losses(x)["loss"] == pytest.approx(float((x.target - 0.25).abs().mean()))


@pytest.mark.parametrize("cls, settings", BOTH)
def test_the_average_translates(cls: Any, settings: Any) -> None:
    """(B, S, H, W) to (B, 1, H, W) float32; of pix2pix with an average that is the one which acts in evaluation."""
    model, x = cls(SPEC, **settings).eval(), batch()
    y = model.translate(x.image)
    assert y.shape == (4, 1, 32, 32)
    assert y.dtype == torch.float32
    if cls is Pix2Pix:
        averaged = Pix2Pix(SPEC, **settings, ema_decay=0.9).eval()
        averaged.generator = Constant(0)
        assert averaged.translate(x.image).std() > 0


# -- contrast dropout --------------------------------------------------------------------------------------------------


def test_drawn_by_hand() -> None:
    """Below the rate a source is missing; where all are, the last number says which one stays."""
    u = torch.tensor([[0.1, 0.5, 0.9, 0.0], [0.1, 0.2, 0.3, 0.0], [0.1, 0.2, 0.3, 0.34], [0.4, 0.0, 0.1, 0.99]])
    assert sources.drawn(u, 0.5).int().tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_sources_are_missing_as_often_as_they_should_and_never_all() -> None:
    """P(missing) = rate - P(all) / S; the subsets are those of independent coins but for the empty one."""
    u = torch.rand(20000, 4, generator=torch.Generator().manual_seed(0))
    there = sources.drawn(u, 0.6)
    assert there.any(1).all()
    missing = (~there).float().mean(0)
    torch.testing.assert_close(missing, torch.full((3,), 0.6 - 0.6**3 / 3), atol=0.015, rtol=0)


def test_shown_by_hand() -> None:
    source = torch.tensor([[0.5, 0.25], [0.5, 0.25]])[:, :, None, None]
    seen = sources.shown(source, torch.tensor([[True, False], [False, True]]))
    assert seen[:, :, 0, 0].tolist() == [[0.5, -1, 1, -1], [-1, 0.25, -1, 1]]


@pytest.mark.parametrize("cls, settings", BOTH)
def test_what_an_item_misses_is_of_seed_step_and_item_alone(cls: Any, settings: Any) -> None:
    model = cls(SPEC, **settings, contrast_dropout=0.5, dropout=0.5)
    draws = model.generator.draws
    whole, noise = sources.given(model, batch(8), draws)
    part, its = sources.given(model, batch(3, first=4), draws)
    assert torch.equal(part, whole[4:7])
    assert torch.equal(its, noise[4:7])
    assert whole.shape == (8, 6, 32, 32)
    model.seed = 1
    assert not torch.equal(sources.given(model, batch(8), draws)[0], whole)
    model.eval()
    seen, none = sources.given(model, batch(8), draws)
    assert none is None
    assert torch.equal(seen[:, :3], batch(8).image)
    assert bool((seen[:, 3:] == 1).all())


@pytest.mark.parametrize("cls, settings", BOTH)
def test_without_contrast_dropout_the_generator_sees_the_sources_and_nothing_else(cls: Any, settings: Any) -> None:
    model = cls(SPEC, **settings)
    assert torch.equal(sources.given(model, batch(), 0)[0], batch().image)
    assert model.protocols == {}


@pytest.mark.parametrize("cls, settings", BOTH)
def test_a_missing_source_is_not_looked_at(cls: Any, settings: Any) -> None:
    model, image = cls(SPEC, **settings, contrast_dropout=0.5).eval(), batch().image
    spoilt = image.clone()
    spoilt[:, 1] = float("nan")
    out = model.translate(spoilt, available=["T1", "PD"])
    assert torch.equal(out, model.translate(image, available=("PD", "T1")))
    assert torch.isfinite(out).all()
    assert (out - model.translate(image)).abs().max() > 1e-4
    assert torch.equal(model.translate(image), model.translate(image, available=NAMES))


@pytest.mark.parametrize("cls, settings", BOTH)
def test_what_cannot_be_had_is_refused(cls: Any, settings: Any) -> None:
    model, image = cls(SPEC, **settings, contrast_dropout=0.5).eval(), batch().image
    with pytest.raises(
        UserError, match=r"available=T1,T9: T9 is no source of this model; the sources are T1, FLAIR, PD"
    ):
        model.translate(image, available=["T1", "T9"])
    with pytest.raises(UserError, match="available is empty, and of nothing nothing is made"):
        model.translate(image, available=[])
    plain = cls(SPEC, **settings).eval()
    assert torch.equal(plain.translate(image, available=NAMES), plain.translate(image))
    with pytest.raises(UserError, match=r"cannot do without FLAIR, PD.*Train one with model.contrast_dropout=0.5"):
        plain.translate(image, available=["T1"])


def test_subsets_by_hand() -> None:
    assert sources.subsets(["a", "b"]) == [("a",), ("b",)]
    assert sources.subsets("abc") == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]
    assert len(sources.subsets("abcd")) == 2**4 - 2
    five = sources.subsets("abcde")
    assert [len(s) for s in five] == [1] * 5 + [4] * 5
    assert len(set(five)) == 10


@pytest.mark.parametrize("cls, settings", BOTH)
def test_every_subset_is_scored_at_test(cls: Any, settings: Any) -> None:
    model, x = cls(SPEC, **settings, contrast_dropout=0.5).eval(), batch()
    found = model.item_scores(x)
    named = {n for n in found if "_" in n} - {"ssim_foreground"}
    named = {n for n in named if n.split("_", 1)[1].split("+")[0] in NAMES}
    assert len(named) == 2 * 6
    assert set(model.protocols) == named
    expected = image_scores(model.translate(x.image, available=["T1", "PD"]), x.target)
    assert torch.equal(found["ssim_T1+PD"], expected["ssim"])
    assert torch.equal(found["psnr_T1+PD"], expected["psnr"])
    assert torch.equal(found["ssim"], image_scores(model.translate(x.image), x.target)["ssim"])


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, message", [
    (["model=pix2pix", "model.contrast_dropout=0.5"], r"needs two sources or more to do without some; try data.contr"),
    (["model=unet_l1", "model.contrast_dropout=0.5", "data.source=mask"], r"needs two sources or more"),
    (["model=unet_l1", "data.size=36"], r"model=unet_l1 .*multiple of 8 from 8 on, not data.size=36; try data.size=32"),
    (["model=pix2pix", "data.size=16"], r"with model.d_layers=3 judges images of at least 24 pixels, and data.size=16"),
    (["model=pix2pix", "data.contrasts=[T1]"], r"model=pix2pix needs pairs"),
    (["model=pix2pix", "model.generator=resnet6"], r"=resnet6: allowed: unet, attention_unet, resnet9 or local"),
    (["model=pix2pix", "model.gan_loss=wgan"], r"model.gan_loss=wgan: allowed: bce, logistic, lsgan or hinge"),
])  # fmt: skip
def test_mistakes_are_found_before_anything_is_built(words: list[str], message: str, compose: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        check(compose(*words))


@pytest.mark.parametrize("words", [
    ["data.source=mask"], ["data.source=derived", "model.contrast_dropout=0.3"],
    ["data.contrasts=[T1,PD,FLAIR,T2]", "model.contrast_dropout=0.5"], ["model.generator=resnet9", "data.size=100"],
])  # fmt: skip
@pytest.mark.parametrize("model", ["pix2pix", "unet_l1"])
def test_what_only_looks_like_a_mistake(model: str, words: list[str], compose: Any) -> None:
    check(compose(f"model={model}", *words))


DATA = ["logger=csv", "trainer=smoke", "data.subjects=[3,1,1]", "data.size=32", "data.batch_size=6", "model.width=8"]


def test_each_subset_has_its_number_in_one_table(tmp_path, compose) -> None:
    words = ["model=unet_l1", *DATA, "data.contrasts=[T1,FLAIR,T2]", "model.contrast_dropout=0.5"]
    run(compose(*words), tmp_path, words)
    details = json.loads((tmp_path / "results.json").read_text())["details"]
    assert {"test/ssim", "test/ssim_T1", "test/psnr_T1", "test/ssim_FLAIR", "test/psnr_FLAIR"} <= set(details)
    assert details["test/ssim_T1"]["protocol"].endswith("of the named sources alone")
    page = (tmp_path / "report.html").read_text()
    assert all(f"{score} {name}" in page for score in ("SSIM", "PSNR") for name in ("T1", "FLAIR"))
    model = load_model(tmp_path / "best.ckpt")
    assert (model.spec.sources, model.spec.goal) == (("T1", "FLAIR"), "T2")
    assert model.translate(torch.zeros(1, 2, 32, 32), available=["FLAIR"]).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("source, names", [("mask", ("mask",)), ("derived", ("tissue", "edges", "class:none"))])
def test_an_image_is_made_of_a_mask_or_of_what_is_derived(
    source: str, names: tuple[str, ...], tmp_path, compose
) -> None:
    words = ["model=pix2pix", *DATA, "model.d_width=8", "model.d_layers=2", f"data.source={source}", "data.lesions=all"]
    run(compose(*words), tmp_path, words)
    spec = load_model(tmp_path / "best.ckpt").spec
    assert spec.sources[: len(names)] == names
    assert spec.goal == "T2"
    assert len(list((tmp_path / "pictures").glob("epoch_*.png"))) == 3
