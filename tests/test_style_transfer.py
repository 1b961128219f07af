"""Style transfer: jobs that do not see each other, regions, styles from data and files, a run and its resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image
from test_data import built, prepared

from mri_synth import config, weights
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.sampler import EpochBatches
from mri_synth.data.style_pairs import style_pairs
from mri_synth.data.views import Reading
from mri_synth.data.volume import read, to_slices
from mri_synth.errors import ConfigError, UserError
from mri_synth.models import style_images
from mri_synth.models.canvas import paint, rounds
from mri_synth.models.checkpoint import load_model
from mri_synth.models.style_region import brain, correlation, lending
from mri_synth.models.style_transfer import StyleTransfer
from mri_synth.run import run

REAL = weights.find("vgg19").path
SIZE = 32


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(layouts.vgg19(tmp_path_factory.mktemp("vgg") / "vgg.pth", "conv2_2"))


def model(vgg: str, **more: Any) -> StyleTransfer:
    small: dict[str, Any] = {"vgg": vgg, "content_layers": ["conv2_2"], "style_layers": ["conv1_1", "conv2_1"],
                             "steps": 20, "style_weight": 300.0}  # fmt: skip
    return StyleTransfer(DataSpec(size=SIZE, contrasts=("T1", "T2")), **small | more)


def jobs(count: int, seed: int = 0) -> Batch:
    """Discs of smooth texture in the content, of fine texture in the style."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]  # type: ignore[misc]
    disc = (x**2 + y**2 < 0.7)[None, None]
    smooth = np.stack([np.sin(3 * x + p) * np.cos(4 * y - p) for p in draw.uniform(0, 6, count)])[:, None] * 0.4 + 0.2
    fine = draw.uniform(-0.5, 0.9, (count, 1, SIZE, SIZE))
    image, target = (torch.tensor(np.where(disc, v, -1), dtype=torch.float32) for v in (smooth, fine))
    mask = torch.zeros(count, 1, SIZE, SIZE)
    mask[..., 10:20, 12:18] = 1
    return Batch(image=image, target=target, mask=mask, index=torch.arange(count))


def scores(method: StyleTransfer, batch: Batch, canvas: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return method.eval().terms(batch, canvas)


def test_the_style_comes_and_the_content_stays(vgg: str) -> None:
    method, batch = model(vgg, steps=60), jobs(2)
    before = scores(method, batch, batch.image)
    torch.testing.assert_close(before["style_left"], torch.ones(2))
    torch.testing.assert_close(before["correlation"], torch.ones(2))
    assert before["content"].abs().max() == 0
    after = scores(method, batch, paint(method, batch))
    assert (after["style_left"] < 0.05).all()
    assert (after["loss"] < 0.2 * before["loss"]).all()
    assert (after["correlation"] > 0.3).all()
    keener = model(vgg, steps=60, content_weight=100.0)
    assert (scores(keener, batch, paint(keener, batch))["correlation"] > after["correlation"]).all()


@pytest.mark.parametrize(("optimizer", "precision"), [("lbfgs", "bf16-mixed"), ("adam", "32-true")])
def test_a_pair_in_a_batch_is_as_it_is_alone(vgg: str, optimizer: str, precision: Any) -> None:
    """L-BFGS makes much of a last bit, and convolutions of so small float32 images depend on their number in it."""
    whole = jobs(3)
    together = paint(model(vgg, optimizer=optimizer), whole, precision)
    for k in range(3):
        one = whole.part(slice(k, k + 1))
        one.index = torch.tensor([0])
        alone = paint(model(vgg, optimizer=optimizer), one, precision)
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-3, rtol=0)
    assert (together - whole.image).abs().amax((1, 2, 3)).min() > 0.1


def test_nothing_changes_outside_the_region(vgg: str) -> None:
    batch = jobs(2)
    for region, inside in (
        ("mask", batch.mask),
        ("brain", brain(batch.image)),
        ("image", torch.ones(2, 1, SIZE, SIZE)),
    ):
        method = model(vgg, region=region)
        paint(method, batch)
        changed = method.results(batch) != batch.image
        assert inside is not None
        assert not changed[inside == 0].any()
        assert changed[(inside > 0) & (batch.image > -1)].float().mean() > 0.95
    with pytest.raises(UserError, match=r"model\.region=mask: a mask of .* is needed, there is none"):
        paint(model(vgg, region="mask"), Batch(image=batch.image, target=batch.target, index=batch.index))
    batch.mask = torch.zeros(2, 1, 8, 8)
    with pytest.raises(UserError, match=r"a mask of \(2, 1, 32, 32\) is needed, it is \(2, 1, 8, 8\)"):
        paint(model(vgg, region="mask"), batch)


def test_of_a_style_image_with_a_mask_the_masked_features_count(vgg: str) -> None:
    batch = jobs(2)
    assert batch.mask is not None
    assert batch.target is not None
    batch.target_mask = torch.zeros(2, 1, SIZE, SIZE)
    batch.target_mask[0, :, 4:9, 6:11] = 1  # the second image's has nothing in it
    method = model(vgg, region="mask", style_layers=["conv1_1", "conv2_1"])
    method.start([batch])
    method.terms(batch, batch.image)
    (targets,) = method._targets.values()
    f = method.objective.network(torch.float32, torch.device("cpu"))(batch.target, {"conv1_1"})["conv1_1"]
    inside = f[0, :, 4:9, 6:11].flatten(1)
    torch.testing.assert_close(targets.grams["conv1_1"][0], inside @ inside.T / 25)
    whole = f[1, :, brain(batch.target)[1, 0]]
    torch.testing.assert_close(targets.grams["conv1_1"][1], whole @ whole.T / whole.shape[1])
    assert lending(batch.target[:1], None, "image") is None
    assert lending(batch.target[:1].expand(-1, 3, -1, -1), None, "brain") is None  # a painting has no background
    with pytest.raises(UserError, match="mask and style image are of two sizes, 8x8 and 32x32"):
        lending(batch.target[:1], torch.ones(1, 1, 8, 8), "mask")
    painted = paint(method, batch)
    lent = model(vgg, region="mask")  # the same by `lend`
    lent.lend(list(batch.target.split(1)), list(batch.target_mask.split(1)))
    torch.testing.assert_close(paint(lent, Batch(image=batch.image, mask=batch.mask, index=batch.index)), painted)


def test_starts_and_further_terms(vgg: str) -> None:
    batch = jobs(2)
    method = model(vgg, init="noise", region="image", tv_weight=0.1, histogram_weight=1.0, steps=30)
    method.start([batch])
    first = method.canvas.detach()
    assert first.std() == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(first[0], first[1])
    one = batch.part(slice(1, 2))  # the second job's noise is its own, alone too
    torch.testing.assert_close(method.begin(one), first[1:])
    before = scores(method, batch, first)
    after = scores(method, batch, paint(method, batch))
    assert (after["loss"] < before["loss"]).all()
    loose, matched = (scores(m, batch, paint(m, batch))["histogram"]
                      for m in (model(vgg, histogram_weight=w) for w in (1e-6, 50.0)))  # fmt: skip
    assert (matched < 0.8 * loose).all()
    rough, smooth = (scores(m, batch, paint(m, batch))["tv"] for m in (model(vgg), model(vgg, tv_weight=1.0)))
    assert (smooth < 0.5 * rough).all()


def test_correlation_and_brain_by_hand() -> None:
    x = torch.arange(8.0).view(1, 1, 2, 4)
    where = torch.ones(1, 1, 2, 4, dtype=torch.bool)
    torch.testing.assert_close(correlation(x, 3 * x + 1, where), torch.ones(1))
    torch.testing.assert_close(correlation(x, -x, where), -torch.ones(1))
    assert correlation(x, torch.zeros_like(x), where) == 0
    where[..., 2:] = False  # 0 1 4 5 against 0 1 5 4
    y = torch.tensor([[[[0.0, 1, 9, 9], [5, 4, 9, 9]]]])
    torch.testing.assert_close(correlation(x, y, where), torch.tensor([16 / 17]))
    ring = torch.full((1, 1, 32, 32), -1.0)
    ring[..., 8:24, 8:24] = 0.5
    ring[..., 15:17, 15:17] = -1
    assert brain(ring)[0, 0, 8:24, 8:24].all()
    assert brain(ring).sum() == 256


def test_the_view_lends_styles_of_other_subjects_nearest_in_place(tmp_path: Path) -> None:
    studies = [prepared(k, 3, ("T1", "T2")) for k in range(4)]
    store = built(tmp_path, *studies)
    items = style_pairs(None, 2)(store, np.arange(12), ["T1", "T2"], Reading(seed=1))
    assert items.jobs
    assert items.rounds == 2
    subject, place = store.table["study"], store.table["position_mm"]
    assert (subject[items.styles] != subject[items.rows]).all()
    assert (place[items.styles] == place[items.rows]).all()
    batch = items.__getitems__([5, 2])
    torch.testing.assert_close(batch.image, items.read("T1", items.rows[[5, 2]]))
    torch.testing.assert_close(batch.target, items.read("T2", items.styles[[5, 2]]))
    few = style_pairs(4, 1)(store, np.arange(12), ["T1", "T2"], Reading(seed=1))
    assert sorted(subject[few.rows]) == [0, 1, 2, 3]
    same = style_pairs(None, 1)(store, np.arange(3), ["T1", "T2"])  # one subject: its own other contrast
    assert (subject[same.styles] == 0).all()
    assert all(
        a != b for a, b in zip(items.rows, style_pairs(None, 1)(store, np.arange(3), ["T1"]).styles, strict=False)
    )
    with pytest.raises(UserError, match="no slice of the training split has anything in its mask"):
        style_pairs(None, 1, masked=True)(store, np.arange(12), ["T1", "T2"])
    marked = [prepared(k, 3, ("T1", "T2"), mask=k > 0) for k in range(3)]
    marked[1].images["mask"][:2] = 0  # of the second subject only the last slice has something in its mask
    held = built(tmp_path / "marked", *marked)
    lesions = style_pairs(None, 1, masked=True)(held, np.arange(9), ["T1", "T2"], Reading(seed=1))
    assert lesions.rows.tolist() == [5, 6, 7, 8]
    assert lesions.styles is not None
    assert lesions.styles.tolist() == [8, 5, 5, 5]  # of the other subject, and of what has a mask
    torch.testing.assert_close(lesions.__getitems__([0]).target_mask, lesions.read("mask", np.array([8])))
    assert items.__getitems__([0]).target_mask is None
    assert style_pairs(None, 1, styled=False)(store, np.arange(3), ["T1"]).__getitems__([0]).target is None


def test_an_epoch_goes_through_the_jobs_several_times_and_resumes_among_them() -> None:
    batches = EpochBatches(5, 2, rounds=3)
    assert list(batches) == [[0, 1], [2, 3], [4]] * 3
    assert len(batches) == 9
    batches.resume_at = (0, 4)
    assert list(batches) == [[2, 3], [4], [0, 1], [2, 3], [4]]
    assert rounds(100, None) == 5
    assert rounds(7, None) == 1
    assert rounds(100, 8) == 8


def test_style_files(vgg: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "a_painting.png")
    Image.fromarray(draw.integers(0, 65535, (64, 64)).astype(np.uint16)).save(tmp_path / "b_sample.png")
    Image.new("L", (64, 64)).save(tmp_path / "sheet_000.png")
    layouts.nifti(tmp_path / "c.nii.gz", 1)
    paths = style_images.files(tmp_path)
    assert [p.name for p in paths] == ["a_painting.png", "b_sample.png", "c.nii.gz"]
    shapes = [tuple(style_images.load(p, SIZE).shape) for p in paths]
    assert shapes == [(1, 3, 32, 48), (1, 1, 32, 32), (1, 1, 36, 32)]
    batch = jobs(3)
    batch.target = None
    method = model(vgg, style=str(tmp_path))
    after = scores(method, batch, paint(method, batch))
    assert (after["style_left"] < 0.6).all()
    assert [s.shape[1] for s, _ in method.styles(batch)] == [3, 1, 1]
    assert method.visuals(batch)["style"].shape == (3, 1, SIZE, SIZE)
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="png: damaged or not a picture"):
        style_images.load(tmp_path / "d.png", SIZE)
    with pytest.raises(UserError, match="the jobs have no style image"):
        paint(model(vgg), batch)


def test_mistakes_are_found_before_anything_is_built(compose: Compose, vgg: str) -> None:
    def message(*words: str) -> str:
        with pytest.raises(ConfigError) as caught:
            config.check(compose("model=style_transfer", *words))
        return str(caught.value)

    config.check(compose("model=style_transfer", f"model.vgg={vgg}"))
    assert "model.vgg=nowhere.pth: no such file" in message("model.vgg=nowhere.pth")
    assert "model.style=nowhere: no such file or folder" in message("model.style=nowhere")
    assert "an image is given with model.init=image" in message("model.init=image")
    assert "model.style_layers" in message("model.style_layers=[conv6_1]")
    assert "needs images of 32 pixels for conv5_1, and data.size=16" in message("data.size=16")
    assert "data.augment changes them" in message("data.augment.flip=0.5")


def test_a_run_ends_after_its_steps_and_its_checkpoint_has_the_canvases(
    compose: Compose, vgg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=style_transfer", f"model.vgg={vgg}", "model.style_layers=[conv1_1]",
             "model.content_layers=[conv2_1]", "model.steps=6", "model.every=4", "model.jobs=3",
             "data.subjects=[4,2,2]", "data.size=32", "data.batch_size=2", "logger=csv", "trainer.progress=false",
             "trainer.log_every_steps=1"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 12  # six of each of two batches
    assert saved["state_dict"]["canvas"].shape == (3, 1, 32, 32)
    assert list(saved["state_dict"]) == ["canvas"]
    assert load_model(tmp_path / "last.ckpt").canvas.shape == (3, 1, 32, 32)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [f"epoch_{k:04d}.png" for k in range(3)]
    with Image.open(tmp_path / "training.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 3
    lines = (tmp_path / "metrics.csv").read_text()
    assert {"val/style_left", "val/correlation", "test/style_left", "train/style"} <= {
        line.split(",")[2] for line in lines.splitlines()[1:]
    }
    with pytest.raises(UserError, match="mri-synth weights get vgg19"):
        run(compose(*words, "model.vgg=null"), tmp_path / "none", words)


def test_real_mri_in_the_style_of_t2(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if REAL is None:
        pytest.skip("the weights vgg19 are not here; mri-synth weights get vgg19")

    def middle(patient: str, contrast: str) -> torch.Tensor:
        file = next((shared_data / "ms_paired" / patient).glob(f"{contrast}_N4*"))
        volume = read(file)
        slices = to_slices(volume, "axial").images
        low, high = np.percentile(volume.array, [0.1, 99.9])
        image = torch.tensor(np.clip((slices[len(slices) // 2] - low) / (high - low), 0, 1))[None, None].float()
        return torch.nn.functional.interpolate(image, (64, 64), mode="area") * 2 - 1

    monkeypatch.setenv("MRI_SYNTH_VGG19", str(REAL))
    batch = Batch(image=middle("patient07", "T1"), target=middle("patient19", "T2"), index=torch.tensor([0]))
    method = StyleTransfer(DataSpec(size=64), steps=30)
    after = scores(method, batch, paint(method, batch))
    assert after["style_left"] < 0.1
    assert after["correlation"] > 0.6
