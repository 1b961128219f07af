"""One line per method: CASES. What every method must do is tested once, for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mri_synth import config
from mri_synth.run import run

DATA = ["logger=csv", "data.subjects=[6,2,2]", "data.size=32", "data.batch_size=6", "trainer.progress=false",
        "trainer.log_every_steps=1", "trainer.pictures=2", "seed=3"]  # fmt: skip
# model: (settings for a small one, epochs, metric that must improve, "max" or "min")
CASES = {
    "vqvae": (["model.hidden_channels=24", "model.codebook_size=64", "model.codebook_dim=16", "model.lr=3e-3",
               "model.warmup_steps=10", "model.codebook_warmup=10"], 16, "val/ssim", "max"),
}  # fmt: skip


def history(folder: Path, name: str) -> list[float]:
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [float(value) for _, _, key, value in lines if key == name]


def test_every_model_has_a_case():
    assert sorted(CASES) == config.choices("model")


@pytest.fixture(scope="module", params=list(CASES))
def trained(request, tmp_path_factory, compose):
    model = request.param
    settings, epochs, metric, mode = CASES[model]
    folder = tmp_path_factory.mktemp(model)
    overrides = [f"model={model}", *DATA, *settings, f"trainer.max_epochs={epochs}"]
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
    assert (best > values[0] + 0.02) if mode == "max" else (best < values[0])


def test_the_checkpoint_rebuilds_without_its_config(trained):
    from mri_synth.models.base import load_model

    _, folder, _, _, _ = trained
    model = load_model(folder / "best.ckpt")
    saved = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())
    assert not model.training
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        y = model.reconstruct(x)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.abs().max() <= 1


def test_every_run_leaves_its_pictures_animation_and_report(trained):
    from PIL import Image

    _, folder, _, _, _ = trained
    epochs = CASES[trained[0]][1]
    pictures = sorted(p.name for p in (folder / "pictures").iterdir())
    assert pictures == [f"epoch_{i:04d}.png" for i in range(epochs + 1)]
    with Image.open(folder / "training.gif") as gif:
        assert gif.n_frames == epochs + 1
    page = (folder / "report.html").read_text()
    assert "SIMULATED" in page.upper()
    assert 'src="http' not in page
