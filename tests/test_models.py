"""One line per method: CASES. What every method must do is tested once, for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest
import torch

from mri_synth import config
from mri_synth.callbacks.sentinels import NonFinite
from mri_synth.models.checkpoint import load_model
from mri_synth.run import run

DATA = ["logger=csv", "data.subjects=[6,2,2]", "data.size=32", "data.batch_size=6", "trainer.progress=false",
        "trainer.log_every_steps=1", "trainer.pictures=2", "seed=3", "samples=8"]  # fmt: skip
FIRST_STAGE = "model.first_stage=a small VQ-VAE"
GENERATOR = "model.generator=the same VQ-VAE"
GUIDE = "model.weights=a small mri_clip"
SMALL_VGG = "model.vgg=the first layers of VGG-19, with random weights"
# model: (settings for a small one, epochs, metric that must improve, "max" or "min")
CASES = {
    "clip_guided": ([GENERATOR, GUIDE, "model.prompts=['axial T2 slice','T1 | T2:-1']", "model.jobs=6",
                     "model.steps=40", "model.every=10", "model.cutouts=4"], 4, "val/loss", "min"),
    "cyclegan": (["model.generator=unet", "model.width=16", "model.d_width=16", "model.d_layers=1", "model.lr_g=2e-3",
                  "model.lr_d=1e-3"], 10, "val/kid", "min"),
    "dae": (["model.hidden_channels=16", "model.warmup_steps=10"], 16, "val/where", "min"),
    "dcgan": (["model.channels_g=16", "model.channels_d=16", "model.latent_dim=16", "model.ema_decay=0.9"], 8,
              "val/kid", "min"),
    "encoder": (["model.width=8", "model.dim=64", "model.lr=2e-3"], 20, "val/top1", "max"),
    "mri_clip": (["data.contrasts=[T1,T2]", "data.batch_size=12", "model.width=8", "model.dim=32",
                  "model.text_width=32", "model.lr=3e-3", "model.warmup_steps=10"], 16, "val/zero_shot", "max"),
    "pix2pix": (["data.contrasts=[T1,FLAIR,T2]", "model.contrast_dropout=0.3", "model.width=16", "model.dropout=0.2",
                 "model.lr_g=2e-3", "model.d_width=8", "model.d_layers=2", "model.lr_d=1e-3", "model.ema_decay=0.5"],
                12, "val/ssim", "max"),
    "pixelcnn": ([FIRST_STAGE, "model.channels=16", "model.layers=3", "model.hidden=32", "model.dropout=0.1",
                  "model.exchanged=0.02", "model.condition=label", "model.lr=5e-3"], 8, "val/bits_per_code", "min"),
    "progan": (["model.fmap_base=256", "model.fmap_max=32", "model.latent_dim=32", "model.minibatch=[6]",
                "model.group=3", "model.ema_decay=0.9", "model.fade_kimg=[0.06]", "model.steady_kimg=[0.06]"], 12,
               "val/kid", "min"),
    "style_gan": (["data.preset=custom", "data.subjects=[18,2,2]", "data.lesions=all", "data.contrasts=[FLAIR]",
                   "data.lesion_radius_mm=[12.0,20.0]", "model.width=16", "model.d_width=8", "model.d_layers=1",
                   "model.lr_g=5e-3", "model.ema_decay=0.5", "model.lambda_outside=10", "model.lambda_identity=5"], 14,
                  "val/mae_inside", "min"),
    "style_transfer": ([SMALL_VGG, "model.jobs=null", "model.steps=50", "model.every=1", "model.style_weight=1e4",
                        "model.content_layers=[conv2_1]", "model.style_layers=[conv1_1,conv2_1]"], 10,
                       "val/loss", "min"),
    "unet_l1": (["model.width=16", "model.lr=2e-3"], 12, "val/ssim", "max"),
    "utility": (["data.contrasts=[FLAIR]", "data.preset=custom", "data.lesion_radius_mm=[20,30]", "model.width=8",
                 "data.batch_size=20", "data.subjects=[20,6,2]", "model.n_per_class=40", "model.translate=0",
                 "model.gain=0"], 8, "val/accuracy", "max"),
    "vae": (["model.hidden_channels=32", "model.latent_dim=16", "model.lr=3e-3", "model.warmup_steps=10"], 16,
            "val/elbo", "max"),
    "vqgan": (["model.hidden_channels=24", "model.codebook_size=64", "model.lr_g=3e-3", "model.d_width=8",
               "model.d_layers=2", "model.warmup_steps=10", "model.codebook_warmup=10"], 16, "val/ssim", "max"),
    "vqvae": (["model.hidden_channels=24", "model.codebook_size=64", "model.codebook_dim=16", "model.lr=3e-3",
               "model.warmup_steps=10", "model.codebook_warmup=10"], 16, "val/ssim", "max"),
}  # fmt: skip


def history(folder: Path, name: str) -> list[float]:
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [float(value) for _, _, key, value in lines if key == name]


def test_every_model_has_a_case():
    assert sorted(CASES) == config.choices("model")


@pytest.fixture(scope="session")
def settings_of(tmp_path_factory, compose):
    """The words of a small run of each model; what other runs make for it is trained when it is first asked for."""
    made: dict[str, str] = {}
    vgg = layouts.vgg19(tmp_path_factory.mktemp("vgg") / "vgg.pth", "conv2_1")

    def best(model: str, epochs: int) -> str:
        if model not in made:
            folder = tmp_path_factory.mktemp(f"of_{model}")
            run(compose(*call(model), f"trainer.max_epochs={epochs}"), folder, [])
            made[model] = str(folder / "best.ckpt")
        return made[model]

    def call(model: str) -> list[str]:
        words = [f"model={model}", *DATA, *CASES[model][0]]
        for placeholder, other, epochs in ((FIRST_STAGE, "vqvae", 8), (GENERATOR, "vqvae", 8), (GUIDE, "mri_clip", 8)):
            if placeholder in words:
                words[words.index(placeholder)] = f"{placeholder.partition('=')[0]}={best(other, epochs)}"
        return [f"model.vgg={vgg}" if word == SMALL_VGG else word for word in words]

    return call


@pytest.fixture(scope="module", params=list(CASES))
def trained(request, tmp_path_factory, compose, settings_of):
    model = request.param
    _, epochs, metric, mode = CASES[model]
    folder = tmp_path_factory.mktemp(model)
    overrides = [*settings_of(model), f"trainer.max_epochs={epochs}"]
    value = run(compose(*overrides), folder, overrides)
    return model, folder, value, metric, mode


def test_training_improves_the_metric_that_matters(trained):
    _, folder, value, metric, mode = trained
    values = history(folder, metric)
    best = max(values) if mode == "max" else min(values)
    assert value == pytest.approx(best)
    if metric == "val/ssim":
        baseline = json.loads((folder / "results.json").read_text())["references"]["baseline/ssim"]
        assert best > baseline + 0.05, "no better than the mean training image"
    assert (best > values[0] + 0.02) if mode == "max" else (best < values[0] - 0.02)


def test_the_checkpoint_rebuilds_without_its_config(trained):
    _, folder, _, _, _ = trained
    model = load_model(folder / "best.ckpt")
    saved = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        made = [model.reconstruct(x)] if model.reconstructs() else []
        made += [model.sample(torch.tensor([4, 9]))] if model.samples() else []
        made += [model.translate(x.repeat(1, len(model.spec.sources), 1, 1))] if model.translates() else []
    for y in made:
        assert y.shape == x.shape
        assert y.dtype == torch.float32
        assert y.abs().max() <= 1


def test_a_seed_is_an_image_whatever_else_is_in_the_batch(trained):
    model = load_model(trained[1] / "best.ckpt")
    if not model.samples():
        pytest.skip(f"{trained[0]} does not sample")
    with torch.no_grad():
        three, one = model.sample(torch.tensor([5, 6, 7])), model.sample(torch.tensor([6]))
    torch.testing.assert_close(three[1:2], one, atol=1e-4, rtol=0)
    assert (three[0] - three[1]).abs().max() > 0.01


def test_every_run_leaves_its_pictures_animation_and_report(trained):
    from PIL import Image

    model, folder, _, _, _ = trained
    epochs = CASES[model][1]
    results = json.loads((folder / "results.json").read_text())
    made = load_model(folder / "best.ckpt")
    pictures = sorted(p.name for p in (folder / "pictures").iterdir())
    others = (["anomaly.png"] if made.reconstructs() else []) + (["samples.png"] if made.samples() else [])
    assert pictures == sorted([f"epoch_{i:04d}.png" for i in range(epochs + 1)] + others)
    with Image.open(folder / "training.gif") as gif:
        assert gif.n_frames == epochs + 1
    page = (folder / "report.html").read_text()
    assert "SIMULATED" in page.upper()
    assert 'src="http' not in page
    assert ("Samples" in page) == made.samples()
    if made.samples():
        assert results["generation"]["samples"] == 8
        assert "mri-synth weights get inception" in results["generation"]["missing"]


class Killed(BaseException):
    """As sudden as kill -9: no hook of ours runs on it."""


@pytest.mark.slow
@pytest.mark.parametrize("model", list(CASES))
def test_a_killed_run_of_any_model_resumes_bit_for_bit(model, tmp_path, compose, settings_of, monkeypatch):
    words = [*settings_of(model), "trainer.max_epochs=3", "trainer.checkpoint_every_steps=3", "samples=0"]
    run(compose(*words), tmp_path / "whole", words)
    before = NonFinite.on_train_batch_end

    def hook(self, trainer, *args):
        before(self, trainer, *args)
        if trainer.global_step == 16:  # the second of the second epoch's last checkpoints is at 15, in mid-epoch
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(NonFinite, "on_train_batch_end", hook)
        with pytest.raises(Killed):
            run(compose(*words), tmp_path / "killed", words)
    again = [f"resume={tmp_path / 'killed'}"]
    run(compose(*again), tmp_path / "killed", again)
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "killed"))
    assert one["global_step"] == two["global_step"] == 30
    assert all(torch.equal(v, two["state_dict"][k]) for k, v in one["state_dict"].items())
    curves = [
        [x for x in (tmp_path / name / "metrics.csv").read_text().splitlines() if "images_per_second" not in x]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1]
