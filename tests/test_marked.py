"""Whatever the package writes that is synthetic says so of itself: a walk over all writers, file by file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from test_clip_guided import Linear
from test_release import saved

from mri_synth import imagine as imagining
from mri_synth.imagine import imagine
from mri_synth.models.checkpoint import load_model
from mri_synth.models.unet_l1 import UNetL1
from mri_synth.models.vqvae import VQVAE
from mri_synth.reconstruct import reconstruct
from mri_synth.refine import refine
from mri_synth.run import run
from mri_synth.sample import sample
from mri_synth.translate import translate
from mri_synth.walk import explore

SIGN = "synthetic: mri_synth"
DATA = ["logger=csv", "data.subjects=[2,1,1]", "data.size=16", "data.batch_size=8", "trainer.progress=false",
        "trainer.pictures=2", "trainer.max_epochs=1", "samples=4"]  # fmt: skip
NO_IMAGE = (".csv", ".svg")


def sign_of(path: Path) -> str:
    """What a file says of itself."""
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending == ".png":
        with Image.open(path) as image:
            return str(image.info.get("Description", ""))
    if ending == ".gif":
        with Image.open(path) as image:
            return bytes(image.info.get("comment", b"")).decode()
    if ending == ".mp4":
        av: Any = pytest.importorskip("av")
        with av.open(str(path)) as film:
            return str(film.metadata.get("comment", ""))
    if ending in (".nii", ".nii.gz"):
        header: Any = nib.load(path).header
        return str(header["descrip"].item().decode())
    if ending == ".json":
        said = str(json.loads(path.read_text()).get("synthetic", ""))
        return f"{SIGN}: {said}" if "mri_synth" in said else ""
    raise AssertionError(f"{path}: a kind of file of which this test does not know where it says what it is")


def assert_marked(folder: Path, *endings: str) -> None:
    """Every file of a folder says that it is synthetic, and there are some of each ending."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    for ending in endings:
        assert any(p.name.endswith(ending) for p in files), f"no {ending} was written"
    for path in files:
        if path.suffix not in NO_IMAGE:
            said = sign_of(path)
            assert said.startswith(SIGN) or "derived: mri_synth" in said, f"{path.relative_to(folder)} says '{said}'"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory, compose: Any) -> Path:
    """A run, of a model that samples and reconstructs."""
    folder = tmp_path_factory.mktemp("marked") / "run"
    folder.mkdir()
    run(compose(*DATA, "model=vae", "model.hidden_channels=8", "model.latent_dim=4"), folder, [])
    return folder / "best.ckpt"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """A volume and a picture."""
    values = np.random.default_rng(0).integers(0, 60000, (16, 16)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    Image.fromarray(values).save(tmp_path / "in/slice.png")
    return [layouts.nifti(tmp_path / "in/brain.nii.gz"), tmp_path / "in/slice.png"]


def test_a_run(vae: Path) -> None:
    assert_marked(vae.parent / "pictures", ".png")
    assert sign_of(vae.parent / "training.gif").startswith(SIGN)


def test_sample_and_walk(vae: Path, tmp_path: Path) -> None:
    sample(vae, 2, tmp_path / "samples", format="both")
    assert_marked(tmp_path / "samples", ".png", ".nii.gz", "samples.json", "sheet_000.png")
    explore(vae, tmp_path / "walk", interpolate=2, truncate="0.5,1", walk=3)
    assert_marked(tmp_path / "walk", ".gif", ".mp4", "interpolation.png", "truncation.png", ".json")


def test_reconstruct(vae: Path, tmp_path: Path, sources: list[Path]) -> None:
    reconstruct(vae, sources[0], tmp_path / "out/brain.nii.gz", residual=True)
    reconstruct(vae, sources[1], tmp_path / "out/slice.png")
    assert_marked(tmp_path / "out", "brain.nii.gz", "brain_residual.nii.gz", "brain.json", "slice.png", "slice.json")


def test_translate(vae: Path, tmp_path: Path, sources: list[Path]) -> None:
    spec = replace(load_model(vae).spec, sources=("T1",), goal="T2")
    checkpoint = saved(UNetL1(spec, width=4), tmp_path / "unet.ckpt")
    for source, name in zip(sources, ("brain.nii.gz", "slice.png"), strict=True):
        assert [o.state for o in translate(checkpoint, [source], tmp_path / "out" / name)] == ["written"]
    assert_marked(tmp_path / "out", "brain.nii.gz", "brain.json", "slice.png", "slice.json")


def test_refine(tmp_path: Path, sources: list[Path]) -> None:
    vgg = layouts.vgg19(tmp_path / "vgg.pth", "conv2_2")
    words = [f"vgg={vgg}", "content_layers=[conv2_2]", "style_layers=[conv1_1,conv2_1]", "steps=1"]
    done = list(refine(sources, tmp_path / "out", style=str(sources[1]), settings=words, device="cpu"))
    assert [o.state for o in done] == ["written"] * 2, [o.reason for o in done]
    assert_marked(tmp_path / "out", ".nii.gz", ".png", ".json")


def test_imagine(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagining, "load_guide", lambda kind, weights: Linear())
    torch.manual_seed(0)
    made = VQVAE(load_model(vae).spec, hidden_channels=8, codebook_size=8, codebook_dim=4, res_blocks=0)
    generator = saved(made, tmp_path / "vqvae.ckpt")
    imagine([str(generator)], ["12"], tmp_path / "out", guide="conse", settings=["steps=2", "cutouts=2"], device="cpu")
    assert_marked(tmp_path / "out", "final.png", "start.png", "sheet.png", ".gif", ".mp4", "imagine.json")
