"""Scores under their protocols: parity with scikit-image and with the published formulas; nothing is mixed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from mri_synth import fit, table
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.phantom import Phantom
from mri_synth.metrics import protocols
from mri_synth.metrics.lpips import LPIPS
from mri_synth.metrics.protocols import AT, HABITS, full_scores, habit_details, habit_scores
from mri_synth.metrics.scores import EXPLAINED, PROTOCOLS, image_scores
from mri_synth.metrics.ssim import foreground_mae, foreground_nmse, foreground_psnr, uniform_ssim
from mri_synth.models.base import SynthModule
from mri_synth.report import habits as report_habits
from mri_synth.weights import find

Array = NDArray[np.float64]
PLACE = find("lpips_alexnet").path  # before the tests have a cache of their own


def pair(noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Three smooth images with a black border, and the same with a gain, noise and an offset; in [-1, 1]."""
    rng = torch.Generator().manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand((3, 1, 44, 38), generator=rng), 5, 1, 2)
    x[..., :8, :] = x[..., :, :6] = 0
    x = x / x.amax((1, 2, 3), keepdim=True) * torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1, 1)
    x_hat = (0.85 * x + noise * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return x_hat * 2 - 1, x * 2 - 1


def unit(images: Tensor) -> list[Array]:
    return [i.double().numpy() for i in (images[:, 0] + 1) / 2]


def syndiff(fake: Array, real: Array) -> float:
    """test.py of SynDiff, without its crop: `20 log10(img1.max() / sqrt(mse))`, both over their maximum before."""
    fake, real = fake / fake.max(), real / real.max()
    return float(20 * np.log10(fake.max() / np.sqrt(np.mean((fake - real) ** 2))))


def resvit(fake: Array, real: Array) -> float:
    """train.py of ResViT: scikit-image's PSNR of floats without a range, which is 1 where nothing is negative."""
    return float(peak_signal_noise_ratio(fake / fake.max(), real / real.max()))


def selfrdb(pred: Array, gt: Array) -> tuple[float, float]:
    """compute_metrics of SelfRDB's utils.py, norm="mean", without a mask."""
    gt, pred = np.abs(gt) / np.abs(gt).mean(), np.abs(pred) / np.abs(pred).mean()
    return (float(peak_signal_noise_ratio(gt, pred, data_range=gt.max())),
            float(structural_similarity(gt, pred, data_range=gt.max())))  # fmt: skip


def ganslate(pred: Array, gt: Array) -> tuple[float, float]:
    """psnr and ssim of ganslate's val_test_metrics.py."""
    return (float(peak_signal_noise_ratio(gt, pred, data_range=gt.max())),
            float(structural_similarity(gt, pred, data_range=gt.max())))  # fmt: skip


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_habits_equal_the_published_formulas(noise: float) -> None:
    x_hat, x = pair(noise)
    found = habit_scores(x_hat, x)
    each = list(zip(unit(x_hat), unit(x), strict=True))
    close = {"abs": 2e-4}
    assert found["psnr@own_max"].tolist() == pytest.approx([syndiff(a, b) for a, b in each], **close)
    assert found["psnr@own_max"].tolist() == pytest.approx([resvit(a, b) for a, b in each], **close)
    for name, published in (("own_mean", selfrdb), ("gt_max", ganslate)):
        assert found[f"psnr@{name}"].tolist() == pytest.approx([published(a, b)[0] for a, b in each], **close)
        assert found[f"ssim@{name}"].tolist() == pytest.approx([published(a, b)[1] for a, b in each], abs=2e-5)
    own = [structural_similarity(b / b.max(), a / a.max(), data_range=1.0) for a, b in each]
    assert found["ssim@own_max"].tolist() == pytest.approx(own, abs=2e-5)
    default = [structural_similarity(b, a, data_range=2.0) for a, b in each]
    assert found["ssim@skimage_default"].tolist() == pytest.approx(default, abs=2e-5)
    assert set(found) == {f"{s}{AT}{name}" for name, habit in HABITS.items() for s in habit.scores}


@pytest.mark.parametrize("size", [(7, 7), (20, 33), (6, 9), (5, 5)])
@pytest.mark.parametrize("data_range", [0.5, 1.0, 255.0])
def test_uniform_ssim_equals_scikit_image(size: tuple[int, int], data_range: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, *size)) * data_range
    side = min(7, min(size) - 1 + min(size) % 2)
    expected = structural_similarity(a, b, data_range=data_range, win_size=side)
    x_hat, x = (torch.from_numpy(v)[None, None].float() for v in (a, b))
    assert uniform_ssim(x_hat, x, torch.tensor([data_range])).item() == pytest.approx(expected, abs=1e-5)
    assert uniform_ssim(x, x, torch.tensor([data_range])).item() == pytest.approx(1, abs=1e-6)


def test_plain_scores_equal_scikit_image_at_range_1() -> None:
    x_hat, x = pair()
    found = full_scores(x_hat, x)
    each = list(zip(unit(x_hat), unit(x), strict=True))
    psnr = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in each]
    assert found["psnr"].tolist() == pytest.approx(psnr, abs=1e-4)
    ssim = [structural_similarity(b, a, data_range=1, gaussian_weights=True, use_sample_covariance=False)
            for a, b in each]  # fmt: skip
    assert found["ssim"].tolist() == pytest.approx(ssim, abs=1e-5)
    nmse = [np.linalg.norm(a - b) ** 2 / np.linalg.norm(b) ** 2 for a, b in each]
    assert found["nmse"].tolist() == pytest.approx(nmse, rel=1e-5)
    assert {k: found[k].tolist() for k in image_scores(x_hat, x)} == {
        k: v.tolist() for k, v in image_scores(x_hat, x).items()
    }


def test_foreground_by_hand() -> None:
    x = torch.tensor([[1.0, 0.5], [0.0, 0.0]])[None, None]
    x_hat = torch.tensor([[0.9, 0.3], [0.5, 0.5]])[None, None]
    mask = x > 0.1
    assert foreground_mae(x_hat, x, mask).item() == pytest.approx(0.15)
    assert foreground_psnr(x_hat, x, mask).item() == pytest.approx(10 * math.log10(2 / 0.05))
    assert foreground_nmse(x_hat, x, mask).item() == pytest.approx(0.05 / 1.25)
    assert foreground_mae(x_hat, x, torch.zeros_like(mask)).isnan().all()
    whole = torch.ones_like(mask)
    assert foreground_mae(x_hat, x, whole).item() == pytest.approx((x_hat - x).abs().mean().item())


def test_scores_over_the_foreground_do_not_see_the_background() -> None:
    x_hat, x = pair()
    other = torch.where(x > -0.8, x_hat, torch.rand_like(x) * 0.2 - 1)
    before, after = full_scores(x_hat, x), full_scores(other, x)
    for name in ("psnr_foreground", "mae_foreground", "nmse_foreground"):
        assert after[name].tolist() == pytest.approx(before[name].tolist())
    assert (after["psnr"] != before["psnr"]).all()


def test_a_gain_error_costs_nothing_where_it_is_divided_away() -> None:
    _, x = pair()
    x_hat = ((x + 1) / 2 * 0.85) * 2 - 1
    plain, found = full_scores(x_hat, x), habit_scores(x_hat, x)
    power = [float((b**2).mean()) for b in unit(x)]
    assert plain["psnr"].tolist() == pytest.approx([-10 * math.log10(0.15**2 * p) for p in power], abs=1e-3)
    assert plain["nmse"].tolist() == pytest.approx([0.15**2] * 3, rel=1e-4)
    for name in ("own_max", "own_mean"):
        assert (found[f"psnr@{name}"] > 100).all()
        assert found[f"ssim@{name}"].tolist() == pytest.approx([1] * 3, abs=1e-5)
    peaks = [20 * math.log10(b.max()) for b in unit(x)]  # the lower the target's maximum, the lower the PSNR under it
    assert found["psnr@gt_max"].tolist() == pytest.approx(
        [p + g for p, g in zip(plain["psnr"].tolist(), peaks, strict=True)], abs=1e-3
    )


def test_one_brain_has_as_many_scores_as_there_are_habits() -> None:
    """A simulated T1 slice made 15 % too dark, with noise: what a paper reports depends on its habit."""
    data = Phantom(preset="custom", subjects=[1, 0, 0], size=128, slices_per_subject=3, lesions="none")
    x = torch.from_numpy(data.read(data.scans()[0]).array[..., 1])[None, None]
    x = (x / x.max()).clamp(0, 1)
    x_hat = (0.85 * x + 0.005 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    plain, found = full_scores(x_hat * 2 - 1, x * 2 - 1), habit_scores(x_hat * 2 - 1, x * 2 - 1)
    assert found["psnr@own_max"].item() > plain["psnr"].item() + 6
    assert plain["psnr_foreground"].item() < plain["psnr"].item() - 2
    assert found["ssim@skimage_default"].item() > found["ssim@gt_max"].item()


def test_black_images_are_undefined_under_habits_that_divide() -> None:
    x_hat, x = pair()
    found = habit_scores(-torch.ones_like(x_hat), x)
    assert found["psnr@own_max"].isnan().all()
    assert found["psnr@gt_max"].isfinite().all()


def test_details_name_their_protocol_and_stand_apart() -> None:
    x_hat, x = pair()
    both = full_scores(x_hat, x) | habit_scores(x_hat, x)
    results = {k: v.double().numpy() for k, v in both.items()} | {"index": np.arange(3)}
    details = habit_details(results, ["a", "a", "b"])
    assert set(details) == {k for k in both if AT in k}
    one = details["psnr@own_max"]
    values = both["psnr@own_max"].tolist()
    assert one["mean"] == pytest.approx(sum(values) / 3)
    assert one["sd"] == pytest.approx(abs((values[0] + values[1]) / 2 - values[2]) / math.sqrt(2))
    assert (one["n_subjects"], one["n_slices"], one["ci"]) == (2, 3, None)
    assert "SynDiff" in one["protocol"]
    assert all(k in PROTOCOLS for k in both if AT not in k)
    assert not any(AT in k for k in (*PROTOCOLS, *EXPLAINED, *table.METRICS))


def test_a_run_keeps_habits_out_of_its_metrics_and_its_details() -> None:
    x_hat, x = pair()
    both = full_scores(x_hat, x) | habit_scores(x_hat, x)
    results = {k: v.double().numpy() for k, v in both.items()} | {"index": np.arange(3)}
    data: Any = SimpleNamespace(view=lambda split: SimpleNamespace(subjects=np.array(["a", "b", "c"])))
    model: Any = SimpleNamespace(test_results=results, protocols={})
    assert set(fit.score_details(data, model)) == {f"test/{k}" for k in both if AT not in k}
    found = fit.habits(data, model)
    assert set(found) == {k for k in both if AT in k}
    assert fit.habits(data, SimpleNamespace()) == {}  # type: ignore[arg-type]
    page = "".join(map(str, report_habits.habits({"habits": found})))
    assert page.count("<table") == len(HABITS)
    for name, habit in HABITS.items():
        assert f"PSNR @ {name}" in page or "psnr" not in habit.scores
        assert habit.protocol.replace("'", "&#x27;") in page
    assert report_habits.habits({}) == []


class Scaled(SynthModule):
    """Translates by a gain of 0.85: for what the base makes of it."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": batch.image.sum()}

    def translate(self, source: Tensor, *, to: str | None = None) -> Tensor:
        return (source + 1) * 0.85 - 1


def test_what_translates_is_scored_under_every_habit_and_what_reconstructs_is_not() -> None:
    _, x = pair()
    spec = DataSpec(size=44, contrasts=("T1", "T2"), sources=("T1",), goal="T2")
    model = Scaled(spec)
    batch = Batch(image=x, target=x, index=torch.arange(3))
    found = model.item_scores(batch)
    assert {k for k in found if AT in k} == set(habit_scores(x, x))
    assert (found["psnr@own_max"] > 100).all()
    assert (found["psnr"] < 40).all()


def test_lpips_where_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x_hat, x = pair()
    monkeypatch.setattr(protocols, "_local_lpips", lambda device: None)
    assert "lpips" not in full_scores(x_hat, x)
    monkeypatch.undo()
    if PLACE is None:
        pytest.skip("weights lpips_alexnet are not here: mri-synth weights get lpips_alexnet")
    net = LPIPS("alexnet", PLACE)
    monkeypatch.setattr(protocols, "_local_lpips", lambda device: net)
    found = full_scores(x_hat, x)
    assert found["lpips"].tolist() == pytest.approx(net(x_hat, x).tolist(), rel=1e-5)
    assert full_scores(x, x)["lpips"].tolist() == [0, 0, 0]
    blank = full_scores(x_hat, -torch.ones_like(x))
    assert blank["lpips_foreground"].isnan().all()
    assert "lpips" not in full_scores(x_hat[..., :30, :], x[..., :30, :])
