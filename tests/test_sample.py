"""`mri-synth sample`: one image a seed, whatever is beside it; files, labels, options, going on, refusals."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mri_synth.cli import app
from mri_synth.data.codes import code_counts
from mri_synth.data.volume import read, to_slices
from mri_synth.errors import UserError
from mri_synth.models.checkpoint import load_model
from mri_synth.run import run
from mri_synth.sample import RECORD, sample

DATA = ["logger=csv", "data.subjects=[4,2,2]", "data.size=32", "data.batch_size=8", "trainer.progress=false",
        "trainer.pictures=0", "trainer.max_epochs=1", "samples=0"]  # fmt: skip
VQ = ["model.hidden_channels=16", "model.codebook_size=16", "model.codebook_dim=8", "model.res_blocks=1"]
PIXELS = ["model=pixelcnn", "model.channels=8", "model.layers=2", "model.hidden=16", "model.condition=label"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("runs")
    run(compose(*DATA, *VQ), folder / "vqvae", [])
    run(compose(*DATA, *PIXELS, f"model.first_stage={folder / 'vqvae/best.ckpt'}"), folder / "pixelcnn", [])
    return folder


@pytest.fixture(scope="module")
def ckpt(folder):
    return folder / "pixelcnn/best.ckpt"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(float) / 65535


def test_files_are_what_the_model_samples(ckpt, tmp_path):
    assert sample(ckpt, 5, tmp_path / "out", seed=3, format="both", batch_size=2) == tmp_path / "out"
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted([f"sample_{s:06d}.{e}" for s in range(3, 8) for e in ("png", "nii.gz")]
                           + [RECORD, "sheet_000.png"])  # fmt: skip
    model = load_model(ckpt)
    with torch.no_grad():
        expected = (model.sample(torch.tensor([5]))[0, 0].numpy() + 1) / 2
    assert np.abs(pixels(tmp_path / "out/sample_000005.png") - expected).max() < 1e-4
    volume = read(tmp_path / "out/sample_000005.nii.gz")
    assert np.abs(to_slices(volume, "axial").images[0] - expected).max() < 1e-4


def test_a_nifti_has_place_spacing_and_the_word_synthetic(ckpt, tmp_path):
    sample(ckpt, 1, tmp_path, format="nifti")
    image = nib.load(tmp_path / "sample_000000.nii.gz")
    assert image.shape == (32, 32, 1)
    assert image.header.get_zooms() == pytest.approx((7.5, 7.5, 1.0))  # 240 mm / 32
    assert image.header["descrip"].item().startswith(b"synthetic: mri_synth")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.affine @ [15.5, 15.5, 0, 1] == pytest.approx([0, 0, 0, 1])
    with Image.open(tmp_path / "sheet_000.png") as sheet:
        assert sheet.width > 100


def test_png_says_that_it_is_synthetic(ckpt, tmp_path):
    sample(ckpt, 1, tmp_path)
    with Image.open(tmp_path / "sample_000000.png") as image:
        assert image.mode.startswith("I")  # 16 bits
        assert image.text["Description"].startswith("synthetic")
    assert "not measured" in json.loads((tmp_path / RECORD).read_text())["synthetic"]


def test_a_stopped_call_goes_on_and_a_larger_n_adds(ckpt, tmp_path, monkeypatch):
    sample(ckpt, 6, tmp_path / "whole", batch_size=2)
    sample(ckpt, 4, tmp_path / "parts", batch_size=2)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("sample_*.png")}
    sample(ckpt, 6, tmp_path / "parts", batch_size=2)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    for path in sorted((tmp_path / "whole").glob("sample_*.png")):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_labels_change_what_is_drawn_and_are_known_by_name(ckpt, tmp_path):
    model = load_model(ckpt)
    assert model.conditions() == ("none", "lesion")
    sample(ckpt, 2, tmp_path / "a", label="lesion")
    with torch.no_grad():
        expected = (model.sample(torch.tensor([0, 1]), torch.tensor([1, 1]))[1, 0].numpy() + 1) / 2
    assert np.abs(pixels(tmp_path / "a/sample_000001.png") - expected).max() < 1e-4
    with pytest.raises(UserError, match=r"--label=leson: allowed: none, lesion; did you mean lesion\?"):
        sample(ckpt, 2, tmp_path / "b", label="leson")
    assert not (tmp_path / "b").exists()


def test_temperature_towards_zero_is_the_likeliest_code(ckpt):
    model = load_model(ckpt)
    with torch.no_grad():
        cold, cold_too = model.sample(torch.tensor([0, 1]), temperature=1e-4, noise=False)
        greedy = model.sample(torch.tensor([2]), top_k=1, noise=False)[0]
    torch.testing.assert_close(cold, cold_too)
    torch.testing.assert_close(cold, greedy)


@pytest.mark.parametrize("arguments, message", [
    ({"n": 0}, "n=0: allowed: a whole number from 1 on"),
    ({"seed": -1}, "seed=-1: allowed: a whole number from 0 on"),
    ({"batch_size": 0}, "batch_size=0: allowed: a whole number from 1 on"),
    ({"format": "jpg"}, "--format=jpg: allowed: png, nifti, both"),
    ({"options": {"temperature": 0.0}}, r"--temperature=0.0: allowed: a number above 0"),
    ({"options": {"top_k": 0}}, r"--top-k=0: allowed: a number above 0"),
    ({"options": {"temperature": float("nan")}}, r"--temperature=nan: allowed: a number above 0"),
    ({"options": {"temperature": float("inf")}}, r"--temperature=inf: allowed: a number above 0"),
    ({"seed": 2**63}, "seed=9223372036854775808: allowed: a whole number from 0 to"),
    ({"options": {"truncation": 0.5}}, "--truncation: PixelCNN has no such option; it takes temperature, top_k, noise"),
])  # fmt: skip
def test_what_is_wrong_is_named(ckpt, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        sample(ckpt, **({"n": 1, "output": tmp_path / "x"} | arguments))
    assert not (tmp_path / "x").exists()


def test_other_settings_are_not_mixed_into_a_folder(ckpt, tmp_path):
    sample(ckpt, 1, tmp_path)
    with pytest.raises(UserError, match=r"holds samples of other settings \(options: {} there, {'top_k': 2} here\)"):
        sample(ckpt, 1, tmp_path, options={"top_k": 2})
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(UserError, match="not readable; delete it"):
        sample(ckpt, 1, tmp_path)


def test_a_refused_call_leaves_the_folder_free(ckpt, tmp_path):
    with pytest.raises(UserError, match="top_k=1000: allowed"):
        sample(ckpt, 1, tmp_path, options={"top_k": 1000})
    sample(ckpt, 1, tmp_path, options={"top_k": 2})
    assert (tmp_path / "sample_000000.png").exists()


def test_a_stopped_call_may_go_on_in_smaller_batches(ckpt, tmp_path):
    sample(ckpt, 2, tmp_path, batch_size=2)
    sample(ckpt, 3, tmp_path, batch_size=1)
    assert (tmp_path / "sample_000002.png").exists()


def test_a_model_that_does_not_sample_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="its model, VQVAE, makes no new images"):
        sample(folder / "vqvae/best.ckpt", 1, tmp_path)


def test_the_command_ends_with_the_message_and_the_folder(ckpt, tmp_path):
    done = CliRunner().invoke(app, ["sample", str(ckpt), "-n", "2", "-o", str(tmp_path / "o"), "--top-k", "4"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "o") in done.output
    assert json.loads((tmp_path / "o" / RECORD).read_text())["options"] == {"top_k": 4}


def test_the_first_stage_travels_in_the_checkpoint(ckpt, folder, tmp_path):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(ckpt.read_bytes())
    first = folder / "vqvae/best.ckpt"
    hidden = first.rename(first.with_name("elsewhere.ckpt"))
    try:
        model, stage = load_model(alone), load_model(hidden)
    finally:
        hidden.rename(first)
    assert all(torch.equal(v, model.first_stage.state_dict()[k]) for k, v in stage.state_dict().items())


def test_a_slice_that_was_asked_for_lies_in_its_place(folder, tmp_path, compose):
    words = [*DATA, *PIXELS, "model.condition=slice", "model.label_dropout=0"]
    run(compose(*words, f"model.first_stage={folder / 'vqvae/best.ckpt'}"), tmp_path / "run", [])
    sample(tmp_path / "run/best.ckpt", 1, tmp_path / "out", label="+20mm", format="nifti")
    image = nib.load(tmp_path / "out/sample_000000.nii.gz")
    assert image.affine @ [15.5, 15.5, 0, 1] == pytest.approx([0, 0, 20, 1])
    with pytest.raises(UserError, match=r"label_dropout=0, knows no 'slice' .* ask for one of -10mm, .* by --label"):
        sample(tmp_path / "run/best.ckpt", 1, tmp_path / "any")


def test_bits_are_read_against_how_often_codes_are(folder):
    results = json.loads((folder / "pixelcnn/results.json").read_text())
    assert 0 < results["references"]["baseline/bits_per_code"] <= 4.1  # of 16 codes, and one of each more counted
    assert "how often" in results["notes"]["baseline/bits_per_code"]


def test_codes_are_counted_by_view():
    from types import SimpleNamespace

    table = {"row_T1": np.array([0, -1, 1]), "row_T2": np.array([1, 0, -1])}
    codes = {"T1": np.array([[[0, 1]], [[2, 2]]]), "T2": np.array([[[3, 3]], [[1, 3]]])}
    items = SimpleNamespace(contrasts=("T1", "T2"), contrast=np.array([0, 1, 1]), rows=np.array([2, 0, 1]),
                            codes=codes, store=SimpleNamespace(table=table))  # fmt: skip
    assert code_counts(items, 5).tolist() == [0, 1, 2, 3, 0]  # [2, 2] of T1; [1, 3] and [3, 3] of T2
