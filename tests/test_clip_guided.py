"""Images drawn to texts: optima that are known, seeds, schedules, averages, a run and its resume, and the verb."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image
from test_guidance import small_vqvae
from torch import Tensor
from torch.nn.functional import normalize
from typer.testing import CliRunner

from mri_synth import config, imagine
from mri_synth.cli import app
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import ConfigError, UserError
from mri_synth.guided import space_of
from mri_synth.guides import Guide, looked_at, present
from mri_synth.losses.guidance import structure_loss
from mri_synth.models.canvas import paint
from mri_synth.models.checkpoint import FORMAT, load_model
from mri_synth.models.clip_guided import ClipGuided
from mri_synth.models.latent_space import LatentSpace
from mri_synth.run import run

SIZE = 8


class Linear(Guide):
    """An embedding is some of the image's own pixels: which image a text asks for is known."""

    size, dims = SIZE, SIZE * SIZE

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """A text is a number: of the pixel that is bright."""
        found = torch.zeros(len(texts), self.dims)
        for row, text in zip(found, present(texts), strict=True):
            if len(text) > 8:
                raise UserError(f'"{text}": 8 letters at most')
            row[int(text)] = 1.0
        return found

    def encode_image(self, image: Tensor) -> Tensor:
        """Brightness above -1, pixel by pixel."""
        return normalize(looked_at(image, self.size, 1).flatten(1).float() + 1, dim=1)


class Pixels(LatentSpace):
    """Latents that are the image."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels, SIZE)

    def start(self, seeds: Tensor, size: int) -> Tensor:
        return torch.stack([torch.rand(self.channels, size, size, generator=torch.Generator().manual_seed(int(s)))
                            for s in seeds]) - 0.5  # fmt: skip

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def keep(self, latent: Tensor) -> Tensor:
        return latent.clamp(-1, 1)


def model(*prompts: str, seed: int = 0, channels: int = 1, **more: Any) -> ClipGuided:
    given: dict[str, Any] = {"steps": 150, "cutouts": 1, "whole": 1, "noise": 0.0, "rotate_deg": 0.0,
                             "ema_decay": 0.0, **more}  # fmt: skip
    made = ClipGuided(DataSpec(size=SIZE, channels=channels), "pixels", list(prompts), **given)
    made.seed = seed
    made.hold(Pixels(channels), made.spec, Linear())
    return made


def jobs(count: int = 1) -> Batch:
    return Batch(image=torch.zeros(count, 1, SIZE, SIZE), index=torch.arange(count))


def painted(method: ClipGuided, count: int = 1) -> Tensor:
    paint(method, jobs(count))
    return method.results(torch.arange(count))


def embedded(images: Tensor) -> Tensor:
    return Linear().encode_image(images)


# -- optima that are known ---------------------------------------------------------------------------------------------


def test_the_optimum_of_a_text_is_reached() -> None:
    made = painted(model("12", "40"), 2)
    cosine = embedded(made)[torch.arange(2), torch.tensor([12, 40])]
    assert (cosine > 0.999).all()
    assert (made.flatten(1).argmax(1) == torch.tensor([12, 40])).all()


def test_weights_share_an_image_and_negatives_empty_it() -> None:
    both, left, less = painted(model("12 | 40", "12:1 | 40:-0.5", "12:3 | 40:1"), 3).flatten(1) + 1
    torch.testing.assert_close(normalize(both, dim=0)[[12, 40]], torch.full((2,), 0.5**0.5), atol=0.02, rtol=0)
    assert left[40] == 0
    assert normalize(left, dim=0)[12] > 0.99
    # 3 a^2 / 2 + (90 deg - a)^2 / 2 is least at a = 22.5 degrees from the heavier one
    assert normalize(less, dim=0)[12] == pytest.approx(math.cos(math.pi / 8), abs=0.02)


def test_an_image_prompt_is_come_near_to(tmp_path: Path) -> None:
    aim = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)
    Image.fromarray(aim).save(tmp_path / "aim.png")
    method = model(f"{tmp_path / 'aim.png'}", steps=100)
    start = Pixels().start(torch.tensor([0]), SIZE)
    target = embedded(torch.from_numpy(aim)[None, None].float() / 127.5 - 1)
    before, after = ((embedded(x) * target).sum() for x in (start, painted(method)))
    assert before < 0.85
    assert after > 0.999


def test_later_prompts_take_over_at_their_step() -> None:
    short = model("12 => 30: 40", steps=30 + 1)
    assert painted(short).flatten().argmax() == 12
    made = painted(model("12 => 30: 40", steps=200))
    assert embedded(made)[0, 40] > 0.99
    with pytest.raises(UserError, match=r"step 300 must be more than 0 and less than steps=200"):
        model("12 => 300: 40", steps=200)


def test_the_start_is_kept_by_its_weight(tmp_path: Path) -> None:
    Image.fromarray(np.full((SIZE, SIZE), 127, np.uint8)).save(tmp_path / "grey.png")
    given = {"init": "image", "init_image": str(tmp_path / "grey.png")}
    free, kept = (painted(model("12", init_weight=w, **given)) for w in (0.0, 50.0))
    start = torch.full((1, 1, SIZE, SIZE), 127 / 127.5 - 1)
    assert (free - start).abs().mean() > 0.5
    assert (kept - start).abs().mean() < 0.1
    assert kept.flatten().argmax() == 12


def test_edges_of_the_start_are_kept_by_their_weight_and_brightness_is_free(tmp_path: Path) -> None:
    bar = np.full((SIZE, SIZE), 60, np.uint8)
    bar[:, 3:5] = 120
    Image.fromarray(bar).save(tmp_path / "bar.png")
    given = {"init": "image", "init_image": str(tmp_path / "bar.png")}
    start = torch.from_numpy(bar)[None, None].float() / 127.5 - 1
    free, kept = (painted(model("12", structure_weight=w, **given)) for w in (0.0, 20.0))
    far = [float(structure_loss(x, start)) for x in (free, kept)]
    assert far[0] > 0.5
    assert far[1] < 0.1
    assert embedded(kept)[0, 12] > 1.5 * embedded(start)[0, 12]


def test_the_average_is_free_of_its_start() -> None:
    method = model("12", ema_decay=0.5, steps=2)
    seen = []
    stepped = method.stepped
    method.stepped = lambda rows: (seen.append(method.canvas.detach().clone()), stepped(rows))  # type: ignore[method-assign, assignment]
    made = painted(method)
    first, second = seen
    torch.testing.assert_close(made, (0.25 * first + 0.5 * second) / 0.75)
    assert method.taken.tolist() == [2]


def test_a_colour_decoder_and_a_palette() -> None:
    colour = painted(model("12", channels=3, steps=100))
    assert colour.shape == (1, 3, SIZE, SIZE)
    assert embedded(colour)[0, 12] > 0.95
    made = painted(model("12", palette="volcano", steps=100))
    assert made.shape == (1, 3, SIZE, SIZE)
    assert made.mean(1).flatten().argmax() == 12


# -- jobs and seeds ----------------------------------------------------------------------------------------------------


def test_a_seed_is_a_picture() -> None:
    given = {"steps": 20, "cutouts": 4, "noise": 0.2, "cut_scale": (0.4, 0.8), "rotate_deg": 10.0}
    four = painted(model("12", "40", jobs=4, **given), 4)
    assert torch.equal(four, painted(model("12", "40", jobs=4, **given), 4)), "bit for bit"
    assert not torch.equal(four[0], four[2])
    later = painted(model("12", "40", jobs=2, seed=1, **given), 2)
    torch.testing.assert_close(four[2:], later, atol=1e-3, rtol=0)  # seed 1 is seed 1, whatever the run began with
    told = model("40", jobs=1, **given)
    told.hold(seeds=torch.tensor([1]))
    torch.testing.assert_close(painted(told), four[3:], atol=1e-3, rtol=0)


def test_jobs_without_slices_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 jobs \(1 prompt sets, model\.jobs=3\), and there are 2 slices"):
        paint(model("12", jobs=3), jobs(2))
    with pytest.raises(UserError, match=r"size=24: the generator makes images of only 8 pixels; give size=8"):
        paint(model("12", size=24), jobs())
    with pytest.raises(UserError, match=r"init=data: the data's images are 1 x 16 x 16, the generator's 1 x 8 x 8"):
        paint(model("12", init="data"), Batch(image=torch.zeros(1, 1, 16, 16), index=torch.arange(1)))
    with pytest.raises(UserError, match="8 letters at most"):
        paint(model("1234567890"), jobs())


# -- configurations ----------------------------------------------------------------------------------------------------


@pytest.fixture
def generator(tmp_path: Path) -> str:
    """A checkpoint of a small VQ-VAE."""
    made = small_vqvae()
    torch.save({"state_dict": made.state_dict(), "hyper_parameters": dict(made.hparams),
                "mri_synth": {"target": "mri_synth.models.vqvae.VQVAE", "format": FORMAT, "version": "0",
                              "trained_on": []}}, tmp_path / "small.ckpt")  # fmt: skip
    return str(tmp_path / "small.ckpt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"model\.weights=None: model\.guide=mri_clip needs the best\.ckpt of a run: train one with python -m"),
        (["model.guide=clip"], r"model\.weights=null: model\.guide=clip needs a hub name"),
        (["model.guide=clap"], r"model\.guide=clap: allowed: mri_clip, clip or conse; did you mean clip\?"),
        (["model.guide=conse", "model.generator=no.ckpt"], r"model\.generator=no\.ckpt: no such checkpoint; train one"),
        (["model.guide=conse", "model.prompts=['a:x']"], r'model\.prompts: prompt "a:x": the weight "x" is no number'),
        (["model.guide=conse", "model.prompts=['']"], r"model\.prompts: the prompt is empty; give words"),
        (["model.guide=conse", "model.prompts=[]"], r"model\.prompts="),
        (["model.guide=conse", "model.prompts=['a:0']"], r"all weights are 0"),
        (["model.guide=conse", "model.init=image"], r"an image is given with model\.init=image, and only then"),
        (["model.guide=conse", "model.cut_scale=[0.9,0.5]"], r"the least side is above the largest"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(
    compose: Compose, generator: str, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check(compose("model=clip_guided", f"model.generator={generator}", *words))


def test_a_generator_without_latents_is_refused(tmp_path: Path) -> None:
    from mri_synth.models.unet_l1 import UNetL1

    made = UNetL1(DataSpec(size=32, sources=("T1",), goal="T2"), width=8)
    torch.save({"state_dict": made.state_dict(), "hyper_parameters": dict(made.hparams),
                "mri_synth": {"target": "mri_synth.models.unet_l1.UNetL1", "format": FORMAT, "version": "0",
                              "trained_on": []}}, tmp_path / "unet.ckpt")  # fmt: skip
    with pytest.raises(UserError, match=r"unet\.ckpt: UNetL1 has no latents to optimise images by"):
        space_of(str(tmp_path / "unet.ckpt"))


def test_a_run_goes_on_where_it_was_stopped(
    compose: Compose, tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mri_synth.models.clip_guided.guide", lambda kind, weights: Linear())
    words = ["model=clip_guided", f"model.generator={generator}", "model.guide=conse", "model.prompts=['12','40']",
             "model.jobs=4", "model.init=data", "model.lr=1.0", "model.steps=12", "model.every=3", "model.cutouts=2",
             "logger=csv", "data.subjects=[2,1,1]", "data.size=16", "data.batch_size=2", "trainer.progress=false",
             "trainer.pictures=2"]  # fmt: skip
    value = run(compose(*words), tmp_path / "whole", words)
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert value is not None
    assert results["metrics"]["test/gained"] > 0
    halves = [*words, "trainer.max_epochs=2"]
    run(compose(*halves), tmp_path / "halves", halves)
    assert load_model(tmp_path / "halves/last.ckpt").taken.tolist() == [6] * 4  # type: ignore[operator, union-attr]
    more = [f"resume={tmp_path / 'halves'}", "trainer.max_epochs=20"]
    run(compose(*more), tmp_path / "other", more)
    one, other = (torch.load(tmp_path / f / "last.ckpt", weights_only=True)["state_dict"] for f in ("whole", "halves"))
    assert one.keys() >= {"canvas", "initial", "average", "taken"}
    assert not any("encoder" in k or "quantizer" in k for k in one), "the generator is not in the checkpoint"
    assert all(torch.equal(one[k], other[k]) for k in one)


# -- the verb ----------------------------------------------------------------------------------------------------------


def called(*words: str) -> Any:
    return CliRunner().invoke(app, ["imagine", *words])


def test_the_verb_makes_pictures_and_how_they_came_about(
    tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagine, "load_guide", lambda kind, weights: Linear())
    volume = layouts.nifti(tmp_path / "brain.nii.gz")
    out = tmp_path / "out"
    words = [generator, "12", "40:1 | 3:-0.5", "--guide", "conse", "--init", str(volume), "--slice", "4", "--steps",
             "6", "--every", "2", "--set", "cutouts=2", "--batch-size", "4", "--device",
             "cpu", "-o", str(out)]  # fmt: skip
    done = called(*words)
    assert done.exit_code == 0, done.output
    for folder in ("00_12_s0", "01_40_s0"):
        stills = sorted(p.name for p in (out / folder / "stills").iterdir())
        assert stills == [f"step_{k:05d}.png" for k in (0, 2, 4, 6)]
        with Image.open(out / folder / "evolution.gif") as gif:
            assert gif.n_frames == 4  # type: ignore[attr-defined]
        assert (out / folder / "evolution.mp4").stat().st_size > 0
        assert "<svg" in (out / folder / "loss.svg").read_text()
        losses = [float(line.split(",")[1]) for line in (out / folder / "loss.csv").read_text().splitlines()[1:]]
        assert len(losses) == 6
        assert all(math.isfinite(v) for v in losses)
        with Image.open(out / folder / "final.png") as final:
            assert final.size == (16, 16)
            assert "synthetic" in final.info["Description"]
            last = np.asarray(final)
        with Image.open(out / folder / "stills/step_00006.png") as still:
            assert (np.asarray(still) == last).all()
    assert (out / "sheet.png").exists()
    record = json.loads((out / "imagine.json").read_text())
    assert record["prompts"] == ["12", "40:1 | 3:-0.5"]

    bytes_of = {p: p.read_bytes() for p in out.rglob("final.png")}
    times = {p: p.stat().st_mtime_ns for p in bytes_of}
    again = called(*words, "-n", "2")
    assert again.exit_code == 0, again.output
    assert {p: p.stat().st_mtime_ns for p in bytes_of} == times, "what is there is not made again"
    assert (out / "01_40_s1/final.png").read_bytes() != (out / "01_40_s0/final.png").read_bytes()
    fresh = called(*words[:-1], str(tmp_path / "fresh"))
    assert fresh.exit_code == 0, fresh.output
    for path, content in bytes_of.items():
        assert (tmp_path / "fresh" / path.relative_to(out)).read_bytes() == content, "same seed, same picture"
    other = called(*words, "--steps", "8")
    assert isinstance(other.exception, UserError)
    assert "holds results of other settings (settings" in str(other.exception)


def test_several_generators_share_one_sheet(tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagine, "load_guide", lambda kind, weights: Linear())
    second = tmp_path / "second.ckpt"
    second.write_bytes(Path(generator).read_bytes())
    done = called(generator, "12", "--also", str(second), "--guide", "conse", "--steps", "2", "--device", "cpu",
                  "--palette", "copper", "-o", str(tmp_path / "out"))  # fmt: skip
    assert done.exit_code == 0, done.output
    pictures = []
    for name in ("small", "second"):
        with Image.open(tmp_path / "out" / name / "00_12_s0/final.png") as final:
            assert final.mode == "RGB"
            pictures.append(np.asarray(final))
    assert (pictures[0] == pictures[1]).all(), "equal weights, prompt and seed"


def test_a_generators_config_counts_and_simulated_images_are_said_to_be(
    tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagine, "load_guide", lambda kind, weights: Linear())
    space, spec = imagine.space_of(generator)
    monkeypatch.setattr(imagine, "space_of", lambda *_: (space, replace(spec, simulated=True)))
    titles, sheet = [], imagine.drawing.sheet
    monkeypatch.setattr(
        imagine.drawing, "sheet", lambda rows, title, *more: titles.append(title) or sheet(rows, title, *more)
    )
    words = [generator, "12", "--guide", "conse", "--steps", "2", "--device", "cpu", "--generator-config",
             str(layouts.text(tmp_path / "a.yaml", "a: 1")), "-o", str(tmp_path / "out")]  # fmt: skip
    assert called(*words).exit_code == 0
    assert "trained on SIMULATED images" in titles[0]
    assert called(*words).exit_code == 0
    layouts.text(tmp_path / "a.yaml", "a: 2")
    other = called(*words)
    assert "holds results of other settings (generator_configs_sha256" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["12"], "model.guide=mri_clip needs the best.ckpt of a run"),
        (["a:x", "--guide", "conse"], 'prompt "a:x": the weight "x" is no number'),
        (["", "--guide", "conse"], "the prompt is empty"),
        (["1234567890", "--guide", "conse"], '"1234567890": 8 letters at most'),
        (["12", "--guide", "conse", "--slice", "3"], "--slice=3: of what? give --init VOLUME with it"),
        (["12", "--guide", "conse", "--init", "no.png"], "model.init_image=no.png: no such file"),
        (["12", "--guide", "conse", "--init", "VOLUME"], "a volume of"),
        (["12", "--guide", "conse", "--size", "18"], "size=18: the generator makes images of multiples of 4 pixels; "
                                                     "give size=16"),
        (["12", "--guide", "conse", "--set", "prompts=[a]"], "--set prompts=[a]: prompts are the arguments"),
        (["12", "--guide", "conse", "--set", "stepz=3"], "did you mean model.steps?"),
        (["12", "--guide", "conse", "-n", "0"], "--n=0: allowed: a whole number from 1 on"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_call_is_said(
    tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(imagine, "load_guide", lambda kind, weights: Linear())
    volume = str(layouts.nifti(tmp_path / "brain.nii.gz"))
    words = [volume if w == "VOLUME" else w for w in words]
    done = called(generator, *words, "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, UserError), done.output
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
