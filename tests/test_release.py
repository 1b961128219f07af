"""Releases: graphs that do what the checkpoint does, with torch alone; what was changed or is not whole is refused."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import CASES, DATA
from torch import Tensor, nn
from typer.testing import CliRunner

from mri_synth import release as releases
from mri_synth.cli import app
from mri_synth.data.batch import DataSpec
from mri_synth.errors import UserError
from mri_synth.metrics.scores import PROTOCOLS
from mri_synth.models.checkpoint import FORMAT, load_model
from mri_synth.models.cyclegan import CycleGAN
from mri_synth.models.dae import DAE
from mri_synth.models.dcgan import DCGAN
from mri_synth.models.encoder import Encoder
from mri_synth.models.progan import ProGAN
from mri_synth.models.style_gan import StyleTransferGAN
from mri_synth.release import graphs, load_release, model_of, release
from mri_synth.release import loader as release_loader
from mri_synth.release.graphs import TOLERANCE
from mri_synth.release.loader import MANIFEST, ReleaseError, manifest_of, verify
from mri_synth.release.operation import fixed_inputs, operations
from mri_synth.run import run
from mri_synth.weights.tensors import read_tensors, write_tensors

ONNX = all(find_spec(name) for name in graphs.ONNX_PACKAGES)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, compose: Any) -> Any:
    """The checkpoint of a model of `test_models.CASES`, trained for two epochs when it is first asked for."""
    made: dict[str, Path] = {}

    def call(model: str) -> Path:
        if model not in made:
            folder = tmp_path_factory.mktemp(f"released_{model}") / "run"
            folder.mkdir()
            words = [f"model={model}", *DATA, *CASES[model][0], "trainer.pictures=0", "trainer.max_epochs=2"]
            run(compose(*words), folder, words)
            made[model] = folder / "best.ckpt"
        return made[model]

    return call


@pytest.fixture(scope="session")
def released(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The release of such a checkpoint, without ONNX, and the checkpoint's own model."""
    made: dict[str, Path] = {}

    def call(model: str) -> tuple[Path, Any]:
        if model not in made:
            made[model] = release(trained(model), tmp_path_factory.mktemp("release") / model, licence="CC0", onnx=False)
        return made[model], load_model(trained(model))

    return call


def saved(model: Any, path: Path) -> Path:
    """A checkpoint of a model that was not trained."""
    target = f"{type(model).__module__}.{type(model).__name__}"
    about = {"target": target, "format": FORMAT, "version": "0", "trained_on": ["secret"]}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "mri_synth": about}, path)
    return path


def pictures(n: int, channels: int = 1) -> Tensor:
    """Other images than those that a release is compared on."""
    return torch.rand(n, channels, 32, 32, generator=torch.Generator().manual_seed(7)) * 2 - 1


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


# -- the same outputs --------------------------------------------------------------------------------------------------


def test_a_sampler_makes_the_images_of_its_seeds(released: Any) -> None:
    folder, model = released("vae")
    made = load_release(folder)
    assert made.operations == ["latent", "from_latent", "reconstruct"]
    with torch.no_grad():
        near(made.sample([5, 900, 2**40]), model.sample(torch.tensor([5, 900, 2**40])))
        z = 3 * model.latent(torch.tensor([1]))
        near(made.from_latent(z), model.from_latent(z))
        near(made.reconstruct(pictures(4)), model.reconstruct(pictures(4)))
        near(made.from_latent(0 * z), model.decode(model.prior_mean[None]))
    assert "normal distribution with full covariance that was fitted" in (folder / "README.md").read_text()


def test_a_translator_translates(released: Any) -> None:
    folder, model = released("pix2pix")
    made = load_release(folder)
    with torch.no_grad():
        for n in (1, 3):
            near(made.translate(pictures(n, 2)), model.translate(pictures(n, 2)))


def test_a_reconstructor_reconstructs_and_any_batch_will_do(released: Any) -> None:
    folder, model = released("vqvae")
    made = load_release(folder)
    with torch.no_grad():
        for n in (1, 7):
            near(made.reconstruct(pictures(n)), model.reconstruct(pictures(n)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda spec: DCGAN(spec, latent_dim=4, channels_g=4, channels_d=4, condition="label"),
         ["latent", "from_latent"]),
        (lambda spec: ProGAN(spec, latent_dim=4, fmap_base=64, fmap_max=8), ["latent", "from_latent"]),
        (lambda spec: CycleGAN(spec, generator="unet", width=4, d_width=4, d_layers=1),
         ["translate", "translate_to_T1"]),
        (lambda spec: StyleTransferGAN(spec, width=4, d_width=4, d_layers=1), ["reconstruct"]),
        (lambda spec: DAE(DataSpec(size=32), hidden_channels=8), ["reconstruct", "suspicion"]),
    ],
)  # fmt: skip
def test_what_other_methods_offer(tmp_path: Path, make: Any, expected: list[str]) -> None:
    spec = DataSpec(size=32, contrasts=("T1", "T2"), sources=("T1",), goal="T2", classes=("none", "lesion"))
    torch.manual_seed(0)
    model = make(spec).eval()
    made = load_release(release(saved(model, tmp_path / "best.ckpt"), tmp_path / "out", onnx=False))
    assert made.operations == expected
    with torch.no_grad():
        if model.conditions():
            near(made.sample([3, 4], "lesion"), model.sample(torch.tensor([3, 4]), torch.tensor([1, 1])))
            near(made.sample([3, 4]), model.sample(torch.tensor([3, 4]), torch.tensor([-1, -1])))
            with pytest.raises(ReleaseError, match="label=tumour: allowed: none, lesion"):
                made.sample([1], "tumour")
        elif model.samples():
            near(made.sample([3, 4]), model.sample(torch.tensor([3, 4])))
        if "suspicion" in expected:
            near(made.run("suspicion", pictures(2)), model.suspicion(pictures(2)))
        if "translate_to_T1" in expected:
            near(made.translate(pictures(2), to="T1"), model.translate(pictures(2), to="T1"))
            with pytest.raises(
                ReleaseError, match="translate_to_PD is not part of it; it has translate, translate_to_T1"
            ):
                made.translate(pictures(2), to="PD")


def test_weights_travel_and_the_model_can_be_gone_on_with(released: Any) -> None:
    folder, model = released("vqvae")
    again = model_of(folder)
    assert type(again) is type(model)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert again.spec == model.spec


def test_tensors_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3).t(), "b": torch.tensor(5), "c": torch.randn(1, 4, 2, 2).bfloat16(),
               "d": torch.empty(0), "e": torch.tensor([True, False])}  # fmt: skip
    write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    read = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(v, read[k]) and v.dtype == read[k].dtype for k, v in tensors.items())
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = safetensors.load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(v, theirs[k]) for k, v in tensors.items())


@pytest.mark.slow
@pytest.mark.skipif(not ONNX, reason="the packages of the extra `release` are not installed")
@pytest.mark.parametrize("model", ["vae", "pix2pix", "vqvae"])
def test_onnx_gives_the_same(trained: Any, tmp_path: Path, model: str) -> None:
    folder = release(trained(model), tmp_path / "out", onnx=True)
    known = json.loads((folder / "release.json").read_text())["operations"]
    own = load_model(trained(model))
    for operation in operations(own):
        about = known[operation.name]
        assert about["difference"]["onnx"] <= TOLERANCE
        inputs = fixed_inputs(operation, 5)
        with torch.no_grad():
            near(graphs.onnx_outputs(folder / about["onnx"], about["batch"])(inputs), operation.network(*inputs))
    assert b"/home" not in (folder / about["onnx"]).read_bytes()
    assert str(Path(graphs.__file__).parent).encode() not in (folder / about["onnx"]).read_bytes()


@pytest.mark.slow
def test_torch_alone_is_enough(released: Any) -> None:
    folder, model = released("vae")
    code = ("import sys; sys.modules.update(dict.fromkeys(['mri_synth', 'lightning', 'monai', 'nibabel'])); "
            "import loader; print(float(loader.load_release('.').sample([11]).double().mean()))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(float(model.sample(torch.tensor([11])).double().mean()), abs=1e-6)
    assert verify(folder)  # what Python leaves beside a module that it ran is no harm


# -- what was changed --------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_any_file_is_refused_and_a_missing_file_named(released: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released("vqvae")[0], tmp_path / "copy"))
    names = [p.name for p in folder.iterdir()]
    assert {"README.md", "release.json", "loader.py", "weights.safetensors", "reconstruct.pt2", MANIFEST} == set(names)
    for name in names:
        content = (folder / name).read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(UserError, match=r"changed|is missing|not a file"):
                load_release(folder)
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            load_release(folder)
        (folder / name).write_bytes(content)
    assert load_release(folder).operations == ["reconstruct"]


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    content = manifest_of(tmp_path).encode()
    (tmp_path / MANIFEST).write_bytes(content)
    assert sorted(verify(tmp_path)) == ["README.md", "release.json"]
    for at in range(len(content)):
        (tmp_path / MANIFEST).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ReleaseError, match=r"changed|is missing|not a file"):
            verify(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"".join(line for line in content.splitlines(True) if b"README" not in line))
    with pytest.raises(ReleaseError, match=r"README\.md: not a file of this release"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ReleaseError, match=f"its SHA-256 is not {'0' * 64}"):
        verify(tmp_path, "0" * 64)


def test_a_change_after_loading_is_refused(released: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released("vqvae")[0], tmp_path / "copy"))
    made = load_release(folder)
    (folder / "reconstruct.pt2").write_bytes(b"other")
    with pytest.raises(ReleaseError, match=r"reconstruct\.pt2: changed since it was verified"):
        made.reconstruct(pictures(1))


def test_wrong_inputs_are_named(released: Any) -> None:
    made = load_release(released("vqvae")[0])
    with pytest.raises(ReleaseError, match=r"reconstruct: image must be \(n, 1, 32, 32\), n at least 1, and is"):
        made.reconstruct(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ReleaseError, match="latent is not part of it; it has reconstruct"):
        made.sample([1])


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_outputs_that_differ_are_not_released(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network(x) + 2e-4
            return out

    def wrong(operation: Any) -> Any:
        right, operation.network = operation.network, Off(operation.network)
        try:
            return program(operation)
        finally:
            operation.network = right

    program = graphs._program
    monkeypatch.setattr(graphs, "_program", wrong)
    with pytest.raises(UserError, match=r"reconstruct\.pt2: its outputs differ by 0\.0002 .*nothing was written"):
        release(trained("vqvae"), tmp_path / "out", onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(releases, "write_tensors", full)
    with pytest.raises(UserError, match=r"cannot be written \(the disk is full\); nothing is left there"):
        release(trained("vqvae"), tmp_path / "out", onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_will_not_do(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="mine: is there and not empty"):
        release(trained("vqvae"), tmp_path / "mine", onnx=False)
    with pytest.raises(UserError, match=r"notes\.txt: a file; give a folder"):
        release(trained("vqvae"), tmp_path / "mine/notes.txt", onnx=False)
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        release(trained("vqvae"), tmp_path / "mine/notes.txt/out", onnx=False)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_what_makes_no_image_is_refused_and_what_it_is_for_said(tmp_path: Path) -> None:
    path = saved(Encoder(DataSpec(size=32, contrasts=("T1",)), width=4, dim=8), tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"Encoder, makes no image of one or of a seed: there is nothing .* features="):
        release(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_no_graph_is_said_and_the_rest_released(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = type(load_model(trained("vae")))
    monkeypatch.setattr(model, "no_graph", {"from_latent": "a loop"})
    folder = release(trained("vae"), tmp_path / "out", onnx=False)
    made = load_release(folder)
    assert made.operations == ["latent", "reconstruct"]
    assert "Not here: from_latent in torch.export, from_latent in ONNX: a loop." in (folder / "README.md").read_text()
    with pytest.raises(ReleaseError, match=r"from_latent is not part of it \(a loop\); it has latent, reconstruct"):
        made.sample([1])


def test_onnx_that_is_not_installed(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "missing_packages", lambda: ["onnx", "onnxscript"])
    with pytest.raises(
        UserError, match=r"--onnx: onnx, onnxscript are not installed: pip install 'mri-synth\[release\]'"
    ):
        release(trained("vqvae"), tmp_path / "out", onnx=True)
    folder = release(trained("vqvae"), tmp_path / "out")
    assert "reconstruct in ONNX: onnx, onnxscript are not installed" in (folder / "README.md").read_text()


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_run_found(released: Any, trained: Any) -> None:
    text = (released("vqvae")[0] / "README.md").read_text()
    results = json.loads((trained("vqvae").parent / "results.json").read_text())
    found = results["details"]["test/ssim"]
    assert "SIMULATED" in text
    assert f"| ssim | {found['mean']:.4g} | " in text
    assert f"baseline {results['references']['baseline/ssim']:.4g}" in text
    for words in (results["split_hash"], results["data_hash"], PROTOCOLS["ssim"], "licence: CC0", "| train | 6 |",
                  "Not for diagnosis", f"parameters: {results['parameters']:,}", "peak memory"):  # fmt: skip
        assert words in text
    for path in released("vqvae")[0].iterdir():
        content = path.read_bytes()
        assert str(trained("vqvae").parent).encode() not in content, f"{path.name} says where its author's files lie"
        assert str(Path(graphs.__file__).parent).encode() not in content


@pytest.mark.slow
def test_figures_of_another_checkpoint_are_not_taken(trained: Any, tmp_path: Path) -> None:
    run_folder = Path(shutil.copytree(trained("vqvae").parent, tmp_path / "run"))
    text = (release(run_folder / "last.ckpt", tmp_path / "last", onnx=False) / "README.md").read_text()
    assert "None of this checkpoint: those of its run are of best.ckpt, and this is last.ckpt." in text
    (run_folder / "results.json").unlink()
    text = (release(run_folder / "best.ckpt", tmp_path / "alone", onnx=False) / "README.md").read_text()
    assert "results.json is missing from the run folder" in text
    assert "licence: not stated" in text


def test_memorisation_and_kid_with_their_intervals() -> None:
    from mri_synth.release.model_card import card
    from mri_synth.run_folder import Run

    spec = DataSpec(size=32, contrasts=("T1",)).to_dict()
    about = {"target": "mri_synth.models.vae.VAE", "simulated": False, "synthetic": "synthetic", "spec": spec,
             "operations": {"from_latent": {"inputs": [], "makes": "images", "torch": "x.pt2", "onnx": None,
                                            "missing": {}, "difference": {"torch": 1e-7}}},
             "parameters": 5, "checkpoint_sha256": "0", "mri_synth": "0", "torch": "2"}  # fmt: skip
    generation = {
        "samples": 1000, "kid": {"value": 0.0138, "ci": [0.0122, 0.0155], "real_against_real": 0.0},
        "fid": {"value": 22.0, "real_against_real": 7.4}, "features": {"name": "inception", "hash": "7ff4"},
        "prdc": {"fake": {"precision": 0.63}, "real_against_real": {"precision": 0.9}}, "pool": "val+test", "n": 1000,
        "ms_ssim": {"fake": {"mean": 0.64}, "real": {"mean": 0.62}}, "protocol": {"kid": "unbiased"},
        "memorisation": {"features": {"copy_rate": 0.366, "copy_rate_ci": [0.34, 0.39], "near_duplicates": 0.001,
                                      "near_duplicates_held_out": 0.01}},
    }  # fmt: skip
    run = Run(Path("run"), {"status": "finished", "checkpoint": "/x/best.ckpt", "generation": generation})
    text = card(about, run, "best.ckpt")
    assert "| KID | 0.0138 | 0.0122 to 0.0155 | 0 |" in text
    assert "| in features | 0.366 | 0.34 to 0.39 | 0.001 | 0.01 |" in text
    assert "SIMULATED" not in text


def test_the_card_names_no_patient_and_no_folder() -> None:
    from mri_synth.release.model_card import _limits, _tested

    about = {"spec": DataSpec(size=32, contrasts=("T1",)).to_dict(), "simulated": False}
    warnings = [
        "data/Jane Doe/T1.nii.gz: not used: damaged or not NIfTI (/data/Jane Doe/T1.nii.gz)",
        "sub-smith_T1w.nii: not used: every voxel is 0",
        "and 3 more files that were not used; split.csv lists them",
        "dropped: subject in train and test: smith/a.nii and smith/b.nii",
        "3 of 9 test files were training files of /home/Jane Doe/runs/best.ckpt: the test scores are no measure of "
        "what it does on unseen data. Use its split: data.split.by=given data.split.file=<its run>/split.csv",
        "no comparison: my runs/Jane Doe/vae.ckpt: samples nothing; mend Jane Doe.nii.gz",
        "feature collapse: val/feature_std is 0.1 at step 3. Remedies, in this order: a lower model.lr",
    ]
    notes = ["features: encoder of C:\\Jane\\best.ckpt"]
    text = _limits(about, {"warnings": warnings, "generation": {"notes": notes}})
    assert not any(word in text.lower() for word in ("jane", "smith", "home", "my runs", ".nii"))
    for line in (
        "- 5 files were not used",
        "- 1 item was dropped, since",
        "- 3 of 9 test files were training files of another checkpoint: the test scores are no measure",
        "- no comparison: vae.ckpt: samples nothing; a file",
        "- feature collapse: val/feature_std is 0.1 at step 3. Remedies, in this order: a lower",
        "- features: best.ckpt",
    ):
        assert line in text
    assert "after its training. Whether it was looked at before, by other runs" in _tested({"task": "fit"})
    assert "without training" in _tested({"task": "test"})


def test_released_settings_name_no_folder() -> None:
    given = {"first_stage": {"path": "runs/Jane Doe/best.ckpt"}, "vgg": "/home/jane/vgg.pth", "lr": 0.1,
             "classes": ("MCI/AD",), "many": ["a/b.png", "none"]}  # fmt: skip
    assert releases._public(given) == {"first_stage": {"path": "best.ckpt"}, "vgg": "vgg.pth", "lr": 0.1,
                                       "classes": ("MCI/AD",), "many": ["b.png", "none"]}  # fmt: skip


def test_the_command(trained: Any, tmp_path: Path) -> None:
    words = ["release", str(trained("vqvae")), "-o", str(tmp_path / "out"), "--licence", "CC0", "--no-onnx"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    digest = done.output.split()[-1]
    assert release_loader.load_release(tmp_path / "out", digest).operations == ["reconstruct"]
