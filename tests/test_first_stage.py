"""A prior stays with the first stage of its training: another one is refused, one that was moved is found again."""

from __future__ import annotations

import shutil

import pytest
import torch

from mri_synth.errors import ConfigError, UserError
from mri_synth.models.checkpoint import initialise_from, load_model
from mri_synth.run import build, run

DATA = ["logger=csv", "data.subjects=[2,1,1]", "data.size=32", "data.batch_size=4", "trainer.progress=false",
        "trainer.pictures=0", "trainer.max_epochs=1", "samples=0"]  # fmt: skip
VQ = ["model.hidden_channels=16", "model.codebook_size=16", "model.codebook_dim=8", "model.res_blocks=1"]
PIXELS = ["model=pixelcnn", "model.channels=8", "model.layers=2", "model.hidden=16"]
ANOTHER = "not the first stage that the checkpoint was trained with"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("stages")
    run(compose(*DATA, *VQ), folder / "a", [])
    run(compose(*DATA, *VQ, "seed=5"), folder / "b", [])
    run(compose(*DATA, *PIXELS, f"model.first_stage={folder / 'a/best.ckpt'}"), folder / "prior", [])
    return folder


def test_another_first_stage_than_the_checkpoints_is_refused(folder, compose, tmp_path):
    """Its weights would be those of the checkpoint, and the codes those of the other: silently wrong."""
    prior, other = folder / "prior/best.ckpt", f"model.first_stage={folder / 'b/best.ckpt'}"
    with pytest.raises(UserError, match=ANOTHER):
        run(compose(*DATA, *PIXELS, other, "task=test", f"ckpt={prior}"), tmp_path / "test", [])
    with pytest.raises(UserError, match=ANOTHER):
        run(compose(*DATA, *PIXELS, other, f"init_from={prior}"), tmp_path / "fit", [])
    _, model, _ = build(compose(*DATA, *PIXELS, f"model.first_stage={folder / 'a/best.ckpt'}"), tmp_path)
    initialise_from(model, prior)  # its own
    there = load_model(prior).state_dict()
    assert all(torch.equal(value, there[name]) for name, value in model.state_dict().items())


def test_a_run_goes_on_with_its_own_first_stage_wherever_it_is(folder, compose, tmp_path):
    prior, first = tmp_path / "prior", tmp_path / "best.ckpt"
    shutil.copytree(folder / "prior", prior)
    shutil.copy(folder / "a/best.ckpt", first)
    config = prior / "config.yaml"
    config.write_text(config.read_text().replace(str(folder / "a/best.ckpt"), str(first)))
    first.rename(tmp_path / "moved.ckpt")
    words = [f"resume={prior}", "trainer.max_epochs=2"]
    with pytest.raises(ConfigError, match=r"first_stage=.*best.ckpt: no such file; .*if it was moved, give where it"):
        run(compose(*words), prior, words)
    shutil.copy(folder / "b/best.ckpt", first)  # trained again in the same place
    with pytest.raises(UserError, match=ANOTHER):
        run(compose(*words), prior, words)
    words.append(f"model.first_stage={tmp_path / 'moved.ckpt'}")
    run(compose(words[0]), prior, words)
    assert load_model(prior / "last.ckpt").hparams["first_stage"]["path"] == str(tmp_path / "moved.ckpt")
