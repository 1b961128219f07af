"""The VAE: its networks, what is drawn for whom, its bound, its alarm; and the table a sweep ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mri_synth import config
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.draws import normal
from mri_synth.errors import ConfigError
from mri_synth.losses.elbo import aggregate_normal, kl_gaussian
from mri_synth.models import vae as module
from mri_synth.models.checkpoint import load_model
from mri_synth.models.vae import VAE, slerp
from mri_synth.networks.vae import VAEDecoder, VAEEncoder, latent_channels
from mri_synth.run import build, run
from mri_synth.sweep import name_by_swept
from mri_synth.table import FAILED, METRICS, Job, disagreements, metric, read_sweep, swept_keys, write_table

ARCHITECTURES = ["plain", "residual", "spatial"]
SMALL: dict[str, Any] = {"latent_dim": 8, "hidden_channels": 16}


def vae(**changes: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(DataSpec(size=32), **{**SMALL, **changes})


def batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(image=torch.rand(n, 1, 32, 32, generator=generator) * 2 - 1, index=torch.arange(10, 10 + n))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_budget_of_latent_numbers_for_all(architecture: Any, norm: Any, channels: int) -> None:
    sizes = (channels, 32, 16, 12, 16, 1, norm)
    encoder, decoder = VAEEncoder(architecture, *sizes), VAEDecoder(architecture, *sizes)
    mu, logvar = encoder(torch.randn(2, channels, 32, 32))
    assert mu.shape == logvar.shape == (2, 12)
    x_hat = decoder(mu)
    assert x_hat.shape == (2, channels, 32, 32)
    (x_hat.sum() + logvar.sum()).backward()
    assert all(p.grad is not None for n in (encoder, decoder) for p in n.parameters())


def test_spatial_latent_keeps_places_and_the_signal_does_not_fade() -> None:
    """What changes in one corner changes the numbers there most; without norms no layer lets the signal fade."""
    assert latent_channels(128, 128, 16) == 2
    with pytest.raises(ValueError, match="12 is no multiple of the 64 places"):
        latent_channels(12, 128, 16)
    torch.manual_seed(0)
    encoder = VAEEncoder("spatial", 1, 64, 16, 16, 16, 1, "none")
    x = torch.randn(1, 1, 64, 64)
    y = x.clone()
    y[..., :8, :8] += 1
    moved = (encoder(y)[0] - encoder(x)[0]).abs().view(4, 4)
    assert moved.argmax() == 0
    assert moved[2:, 2:].max() < 0.1 * moved.max()
    for architecture in ("plain", "residual"):
        decoder = VAEDecoder(architecture, 1, 64, 32, 16, 16, 1, "none")
        body = decoder.layers[:-2]  # without the last convolution, which starts small
        assert 0.3 < body(decoder.constant + decoder.first(torch.randn(8, 16))).std() < 5, architecture


@pytest.mark.parametrize("words, message", [
    (["data.size=40"], r"model=vae halves images down to 1/16, and data.size=40 is no multiple of that; try data."),
    (["model.architecture=spatial", "model.latent_dim=100"],
     r"keeps a map of 8 x 8 places, and model.latent_dim=100 is no multiple of 64; try model.latent_dim=128"),
    (["model.architecture=dense"], r"model.architecture=dense: allowed: .*plain"),
    (["model.hidden_channels=18"], r"model.hidden_channels=18: allowed: "),
    (["model.scale=0"], r"model.scale=0: allowed: "),
])  # fmt: skip
def test_mistakes_are_told(words: list[str], message: str, compose) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check(compose("model=vae", "data=phantom", *words))


def test_loss_is_the_bound_per_pixel() -> None:
    model, items = vae(), batch()
    losses = model.train().losses(items)
    assert losses["loss"].item() == pytest.approx(-losses["elbo"].item() / 32**2, rel=1e-5)
    bits = -losses["elbo"].item() / (32**2 * 0.6931472)
    assert losses["bits_per_dim"].item() == pytest.approx(bits, rel=1e-5)
    mu, logvar = model.encode(items.image)
    assert losses["kl"].item() == pytest.approx(kl_gaussian(mu, logvar).sum(1).mean().item(), rel=1e-5)
    assert losses["scale"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("changes", [{"beta": 4.0}, {"free_bits": 3.0}, {"kl_warmup": 10}])
def test_what_training_weighs_differently_leaves_the_bound_alone(changes: dict[str, Any]) -> None:
    items = batch()
    plain, other = vae().train().losses(items), vae(**changes).train().losses(items)
    assert other["elbo"].item() == pytest.approx(plain["elbo"].item(), rel=1e-6)
    assert not torch.equal(other["loss"], plain["loss"])
    in_evaluation = vae(**changes).eval().losses(items)["elbo"].item()
    assert in_evaluation == pytest.approx(vae().eval().losses(items)["elbo"].item(), rel=1e-6)


def test_beta_free_bits_and_warmup_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    items = batch()
    plain = vae().train().losses(items)
    nll, kl = -plain["gaussian_log_likelihood"].item(), plain["kl"].item()
    assert vae(beta=4.0).train().losses(items)["loss"].item() == pytest.approx((nll + 4 * kl) / 1024, rel=1e-5)
    # each of the 8 numbers costs 50 nats, more than any has
    assert vae(free_bits=50.0).train().losses(items)["loss"].item() == pytest.approx((nll + 400) / 1024, rel=1e-5)
    model = vae(kl_warmup=10)
    monkeypatch.setattr(VAE, "global_step", 3)
    assert model.warmup_factor() == pytest.approx(0.4)
    monkeypatch.setattr(VAE, "global_step", 10)
    assert model.warmup_factor() == 1


def test_warmup_is_at_most_a_third_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vae(kl_warmup=1000)
    monkeypatch.setattr(VAE, "total_steps", 90)
    model.on_fit_start()
    assert model.kl_warmup == 30


def test_ssim_stands_in_the_loss_and_not_in_the_bound() -> None:
    items = batch()
    mixed = vae(likelihood="l1_ssim", lambda_ssim=2.0).train().losses(items)
    laplace = vae(likelihood="l1_ssim", lambda_ssim=0.0).train().losses(items)
    assert mixed["elbo"].item() == pytest.approx(laplace["elbo"].item(), rel=1e-6)
    assert "laplace_log_likelihood" in mixed
    assert "ssim_loss" not in laplace
    expected = laplace["loss"].item() + 2 * mixed["ssim_loss"].item()
    assert mixed["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_noise_is_of_item_step_and_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of a batch cost what the whole does; another step or seed draws anew; evaluation never."""
    model, items = vae().train(), batch()
    halves = [Batch(image=items.image[k : k + 2], index=items.index[k : k + 2]) for k in (0, 2)]

    def cost(part: Batch) -> Tensor:
        return model.losses(part)["elbo"].detach()

    whole = cost(items)
    assert torch.allclose(whole, (cost(halves[0]) + cost(halves[1])) / 2, rtol=1e-5)
    torch.manual_seed(7)
    assert torch.equal(whole, cost(items))
    model.seed = 1
    reseeded = cost(items)
    assert not torch.equal(whole, reseeded)
    monkeypatch.setattr(VAE, "global_step", 5)
    assert not torch.equal(reseeded, cost(items))
    model.eval()
    at_5 = cost(items)
    model.seed = 0
    monkeypatch.setattr(VAE, "global_step", 6)
    assert torch.equal(at_5, cost(items))


def test_a_sample_is_of_its_seed_alone() -> None:
    model = vae().eval()
    with torch.no_grad():
        some, one = model.sample(torch.tensor([3, 5, 8])), model.sample(torch.tensor([5]))
        cold = model.sample(torch.tensor([3, 5]), temperature=0.0)
        drawn = model.decode(normal(0, 0, torch.tensor([5]), 8))
    assert some.shape == (3, 1, 32, 32)
    assert some.abs().max() <= 1
    assert torch.allclose(some[1:2], one, atol=1e-6)
    assert torch.allclose(drawn, one)
    assert torch.allclose(cold[0], cold[1])


def fitted(**changes: Any) -> VAE:
    """A model whose prior was fitted to what cannot be mistaken for the standard one."""
    model = vae(prior="fitted", **changes).eval()
    generator = torch.Generator().manual_seed(2)
    mean, factor = aggregate_normal(3 + torch.randn(20, 8, generator=generator), torch.zeros(20, 8))
    model.prior_mean.copy_(mean)
    model.prior_factor.copy_(factor)
    return model


def test_a_standard_prior_is_as_before_and_an_unfitted_one_is_standard() -> None:
    plain, other = vae().eval(), vae(prior="fitted").eval()
    assert not [k for k in plain.state_dict() if "prior" in k], "checkpoints of before fit"
    seeds = torch.arange(3)
    with torch.no_grad():
        assert torch.equal(plain.sample(seeds), plain.decode(normal(0, 0, seeds, 8)))
        torch.testing.assert_close(other.sample(seeds), plain.sample(seeds))
        assert torch.equal(plain.losses(batch())["elbo"], fitted().losses(batch())["elbo"]), "the bound is the same"
    assert "standard normal prior, that of ELBO" in plain.origin
    assert "fitted to the encoded training images" in other.origin


def test_samples_have_the_moments_of_a_fitted_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted()
    monkeypatch.setattr(model, "decode", lambda z: z)
    z = model.sample(torch.arange(40_000))
    covariance = model.prior_factor @ model.prior_factor.T
    torch.testing.assert_close(z.mean(0), model.prior_mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), covariance, atol=0.05, rtol=0.02)
    cold = model.sample(torch.arange(40_000), temperature=0.5)
    torch.testing.assert_close(torch.cov(cold.T), covariance / 4, atol=0.02, rtol=0.02)
    mu = torch.randn(5, 8)
    torch.testing.assert_close(model.from_latent(model.whitened(mu)), mu, atol=1e-5, rtol=1e-5)
    assert torch.equal(vae().whitened(mu), mu)


def test_pictures_and_images_to_start_from_are_the_same_with_a_fitted_prior() -> None:
    model, items = fitted(), batch(5)
    model.activity[3] = 2.0
    with torch.no_grad():
        rows, mu = model.visuals(items), model.encode(items.image)[0]
        space = model.latent_space()
        torch.testing.assert_close(space.decode(space.encode(items.image)), model.reconstruct(items.image))
        end = mu[0].clone()
        end[3] = model.prior_mean[3] + 3 * (model.prior_factor @ model.prior_factor.T)[3, 3].sqrt()
        torch.testing.assert_close(rows["traversal"][-1:], model.decode(end[None]))
    torch.testing.assert_close(rows["interpolation"][0], rows["reconstruction"][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(rows["interpolation"][-1], rows["reconstruction"][1], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("most", [2048, 5])
def test_a_checkpoint_alone_has_the_prior_of_its_training_images(
    most: int, tmp_path: Path, compose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ENCODED", most)
    words = ["model=vae", "data=phantom", "data.subjects=[2,1,1]", "data.slices_per_subject=4", "data.size=32",
             "data.batch_size=4", "data.preset=custom", "model.hidden_channels=8", "model.latent_dim=4", "samples=2",
             "model.prior=fitted", "trainer=cpu", "trainer.max_epochs=2", "trainer.precision=32-true", "logger=csv",
             "trainer.progress=false", "trainer.pictures=0", "features=[pixels]"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    data = build(compose(*words), tmp_path / "again")[0]
    data.prepare_data()
    data.setup()
    train = data.view("train")
    chosen = [k * len(train) // min(most, len(train)) for k in range(min(most, len(train)))]
    assert len(set(chosen)) == (8 if most == 2048 else 5)
    for name in ("best.ckpt", "last.ckpt"):
        model = load_model(tmp_path / name)
        assert isinstance(model, VAE)
        with torch.no_grad():
            mean, factor = aggregate_normal(*model.encode(train.__getitems__(chosen).image))
        torch.testing.assert_close(model.prior_mean, mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.prior_factor, factor, atol=1e-5, rtol=1e-4)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["generation"]["origin"] == model.origin
    assert "not from the standard normal prior" in (tmp_path / "report.html").read_text()


def test_numbers_that_are_not_finite_leave_the_prior_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted()
    before = model.prior_factor.clone()
    items = type("View", (), {"__len__": lambda _: 4, "__getitems__": lambda _, chosen: batch(len(chosen))})()
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), datamodule=SimpleNamespace(view=lambda split: items),
                              precision_plugin=SimpleNamespace(forward_context=nullcontext))  # fmt: skip
    monkeypatch.setattr(VAE, "trainer", trainer)
    monkeypatch.setattr(model, "encode", lambda x: (torch.full((len(x), 8), torch.nan), torch.zeros(len(x), 8)))
    model.on_validation_epoch_start()
    assert torch.equal(model.prior_factor, before)


def test_slerp_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    middle = slerp(a, b, torch.tensor([[0.5]]))
    assert middle[0].tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-5)
    assert torch.allclose(slerp(a, b, torch.tensor([[0.0], [1.0]])), torch.cat([a, b]), atol=1e-5)
    assert torch.allclose(slerp(a, 3 * a, torch.tensor([[0.5]])), 2 * a), "straight along one direction"
    assert torch.isfinite(slerp(a * 0, b, torch.tensor([[0.3]]))).all()


def test_pictures_are_rows_of_equal_length_and_the_traversal_moves_one_number() -> None:
    model, items = vae().eval(), batch(5)
    model.activity[3] = 2.0
    with torch.no_grad():
        rows = model.visuals(items)
        mu = model.encode(items.image)[0]
        end = mu[0].clone()
        end[3] = 3
        last = model.decode(end[None])
    assert list(rows) == ["original", "reconstruction", "sample", "interpolation", "traversal"]
    assert {tuple(r.shape) for r in rows.values()} == {(5, 1, 32, 32)}
    assert torch.allclose(rows["traversal"][-1:], last, atol=1e-5)
    assert torch.allclose(rows["interpolation"][0], rows["reconstruction"][0], atol=1e-4)
    assert torch.allclose(rows["interpolation"][-1], rows["reconstruction"][1], atol=1e-4)
    with torch.no_grad():
        assert model.visuals(batch(1))["interpolation"].shape == (1, 1, 32, 32)


def ended(model: VAE, monkeypatch: pytest.MonkeyPatch, step: int, total: int = 60) -> dict[str, float]:
    """The end of a validation epoch without a trainer; what it logs."""
    logged: dict[str, float] = {}
    strategy = SimpleNamespace(reduce=lambda t, reduce_op: t)
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), strategy=strategy, is_global_zero=True)
    monkeypatch.setattr(VAE, "trainer", trainer)
    monkeypatch.setattr(VAE, "global_step", step)
    monkeypatch.setattr(VAE, "total_steps", total)
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    model.val_scores.update(torch.zeros(12, 1, 32, 32), torch.ones(12, 1, 32, 32), torch.arange(12))
    model.on_validation_epoch_end()
    return logged


def test_active_units_are_counted_over_batches_and_collapse_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vae(kl_warmup=10).eval()
    means = torch.zeros(12, 8)
    means[:, 2] = torch.arange(12) / 5.0
    means[:, 4] = 0.01 * torch.arange(12)
    means[:, 5] = 7.0  # not zero, and the same for every image
    for part in means.split(5):
        monkeypatch.setattr(model, "encode", lambda x, part=part: (part, torch.zeros_like(part)))
        model.losses(batch(len(part)))
    logged = ended(model, monkeypatch, 20)
    assert logged["val/active_units"] == 1
    assert model.activity[2].item() == pytest.approx(means[:, 2].var(correction=0).item(), rel=1e-4)
    assert not model.alarms, "1 of 8 is no collapse"
    assert model.count == 0

    for part in torch.zeros(12, 8).split(6):
        monkeypatch.setattr(model, "encode", lambda x, part=part: (part, torch.zeros_like(part)))
        model.losses(batch(len(part)))
    ended(model, monkeypatch, 5)
    assert not model.alarms, "still warming up"
    ended(model, monkeypatch, 12, total=12)
    assert not model.alarms, "a few steps, such as those of task=plan, teach nothing"
    ended(model, monkeypatch, 30)
    ended(model, monkeypatch, 40)
    assert len(model.alarms) == 1
    assert "posterior collapse: 0 of 8 latent numbers are active at step 30" in model.alarms[0]
    assert "model.free_bits" in model.alarms[0]


def test_a_learned_scale_moves_and_a_fixed_one_stays() -> None:
    items = batch()
    for learned in (True, False):
        model = vae(learn_scale=learned).train()
        model.losses(items)["loss"].backward()
        assert (model.log_scale.grad is not None) == learned
        groups = model.adam([{"params": [model.log_scale]}], 1e-3).param_groups
        assert len(groups) == 1


# -- the table of a sweep ------------------------------------------------------------------------------------------


def job_folder(sweep: Path, name: str, words: list[str], **results: Any) -> None:
    folder = sweep / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text("".join(f"- {w}\n" for w in words))
    content = {"status": "finished", "model": "vae", "data": "phantom", "simulated": True, "split_hash": "a",
               "data_hash": "b", "protocol": {"ssim": "plain"}, "parameters": 1000, "epochs": 7, "seconds": 61.0,
               "images_per_second": 99.5, **results}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    words = ["experiment=vae_architectures", "model.architecture="]
    job_folder(
        tmp_path, "0_plain", [words[0], words[1] + "plain"], metrics={"test/ssim": 0.5, "test/elbo": -900.0},
        details={"test/ssim": {"ci": [0.4, 0.6]}}, generation={"kid": {"value": 0.02, "ci": [0.01, 0.03]}},
    )  # fmt: skip
    job_folder(tmp_path, "10_spatial", [words[0], words[1] + "spatial"], metrics={"test/ssim": 0.7})
    failed = {"job": 2, "overrides": [words[0], words[1] + "residual"], "error": "no room"}
    (tmp_path / FAILED).write_text(json.dumps(failed) + "\n")
    return tmp_path


def test_table_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = read_sweep(sweep)
    assert [job.name for job in jobs] == ["0_plain", "2", "10_spatial"]
    assert swept_keys(jobs) == ["model.architecture"]
    write_table(sweep, jobs, METRICS)
    lines = (sweep / "table.csv").read_text().splitlines()
    assert lines[0] == ("job,model.architecture,test/elbo,test/ssim,test/ssim_low,test/ssim_high,generation/kid,"
                        "generation/kid_low,generation/kid_high,parameters,epochs,seconds,images_per_second,"
                        "split_hash,data_hash,error")  # fmt: skip
    assert lines[1] == "0_plain,plain,-900.0,0.5,0.4,0.6,0.02,0.01,0.03,1000,7,61.0,99.5,a,b,"
    assert lines[2].startswith("2,residual,")
    assert lines[2].endswith(",no room")
    page = (sweep / "table.html").read_text()
    for text in ("0.5000 [0.4000, 0.6000]", "2 of 3 jobs finished", "job 2 (residual) failed: no room", "SIMULATED",
                 'href="0_plain/report.html"'):  # fmt: skip
        assert text in page
    assert "plain" in capsys.readouterr().out


def test_numbers_that_a_sweeper_drew_are_short_on_the_page_and_whole_in_the_file(tmp_path: Path) -> None:
    for number, drawn in enumerate(("0.0013284672458763", "0.0031221716211583")):
        words = [f"model.lr={drawn}", f"model.architecture={'residual' if number else 'spatial_x'}"]
        job_folder(tmp_path, f"{number}_a", words)
    page = write_table(tmp_path, read_sweep(tmp_path)).read_text()
    assert "<span>0.001328</span>" in page
    assert "<span>spatial_x</span>" in page
    assert "0.0031221716211583," in (tmp_path / "table.csv").read_text()


def test_table_says_when_figures_do_not_compare(sweep: Path) -> None:
    assert not disagreements(read_sweep(sweep))
    job_folder(sweep, "3_other", ["model.architecture=plain"], split_hash="c", protocol={"ssim": "own max"})
    said = disagreements(read_sweep(sweep))
    assert [s.split(" is not")[0] for s in said] == ["the split", "the protocol of the scores"]


def test_broken_and_unfinished_jobs_are_named(tmp_path: Path) -> None:
    job_folder(tmp_path, "0_a", ["seed=1"], status="started")
    job_folder(tmp_path, "1_b", ["seed=2"])
    (tmp_path / "1_b/results.json").write_text("{")
    first, second = read_sweep(tmp_path)
    assert first.error == "started, not finished"
    assert "cannot be read" in second.error
    write_table(tmp_path, [first, second])
    assert "0 of 2 jobs finished" in (tmp_path / "table.html").read_text()
    assert metric({}, "generation/kid") == (None, None)
    assert metric({"generation": {"kid": {"value": 0.1, "ci": [0, 1]}}}, "generation/kid") == (0.1, (0.0, 1.0))
    assert swept_keys([Job("0", {"seed": "1"})]) == []


def test_table_needs_no_torch() -> None:
    code = "import sys, mri_synth.table; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_vae_samples_and_reconstructs() -> None:
    assert VAE.samples()
    assert VAE.reconstructs()


def test_an_experiment_may_be_a_sweep_whose_folders_are_named_by_what_is_swept() -> None:
    words = name_by_swept(["experiment=vae_architectures", "trainer.max_epochs=1"])
    assert words[0] == "hydra.job.config.override_dirname.exclude_keys=[experiment,trainer.max_epochs]"
    assert name_by_swept(["experiment=seed_002_vae_ixi"]) == ["experiment=seed_002_vae_ixi"]


def test_the_best_checkpoint_is_chosen_by_the_bound_or_by_ssim() -> None:
    spec = DataSpec(size=32)
    assert VAE(spec, latent_dim=8, hidden_channels=8).monitor == ("val/elbo", "max")
    assert VAE(spec, latent_dim=8, hidden_channels=8, choose_by="ssim").monitor == ("val/ssim", "max")
    assert VAE.monitor == ("val/elbo", "max")  # of the class, whatever a model chose
