"""Image metrics against hand-worked values, scikit-image and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from mri_synth.metrics.ssim import PROTOCOL, foreground_ssim, mae, nmse, psnr, ssim, ssim_map


def pair(noise: float = 0.1, shape: tuple[int, ...] = (3, 1, 40, 33)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand(shape, generator=generator), 3, 1, 1)
    return (x + noise * torch.randn(shape, generator=generator)).clamp(0, 1), x


def test_identical_images_score_one() -> None:
    _, x = pair()
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert ssim(torch.zeros_like(x), torch.zeros_like(x)).tolist() == [1.0] * 3


def test_constants_by_hand() -> None:
    a, b = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-5)


def test_image_against_constant_by_hand() -> None:
    # a checkerboard of 0 and 1: under a symmetric window its mean is 1/2 at every pixel up to the window's own
    # alternating sum s; the constant 1/2 has no variance and no covariance
    x = (torch.arange(16)[:, None] + torch.arange(16)[None]).remainder(2).float()[None, None]
    window = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5)
    window = window / window.sum()
    s = float((window * (-1.0) ** torch.arange(11)).sum()) ** 2
    value = 0.0
    for mean in (0.5 + s / 2, 0.5 - s / 2):
        value += (mean + 1e-4) / (0.25 + mean**2 + 1e-4) * 9e-4 / (mean - mean**2 + 9e-4) / 2
    assert ssim(torch.full_like(x, 0.5), x).item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_equals_scikit_image(noise: float) -> None:
    x_hat, x = pair(noise)
    expected = [
        structural_similarity(
            a.numpy(), b.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for a, b in zip(x_hat[:, 0], x[:, 0], strict=True)
    ]
    assert ssim(x_hat, x).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_equals_torchmetrics_inside_the_border(data_range: float) -> None:
    x_hat, x = pair(shape=(2, 3, 32, 24))
    x_hat, x = x_hat * data_range, x * data_range
    _, full = structural_similarity_index_measure(
        x_hat, x, data_range=data_range, reduction="none", return_full_image=True
    )
    assert isinstance(full, Tensor)
    assert torch.allclose(ssim_map(x_hat, x, data_range), full[..., 5:-5, 5:-5], atol=1e-4)
    assert torch.allclose(ssim(x_hat, x, data_range), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-5)


def test_bright_flat_regions_keep_their_digits() -> None:
    torch.manual_seed(0)
    x = torch.full((1, 1, 64, 64), 0.9)
    x_hat = x + 0.02 * torch.randn_like(x)
    exact = ssim(x_hat.double(), x.double()).item()
    assert ssim(x_hat, x).item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("side", [4, 8, 10, 11])
def test_small_images_get_a_smaller_window(side: int) -> None:
    x = torch.rand(1, 1, side, side)
    assert ssim(x, x).item() == pytest.approx(1.0, abs=1e-6)


def test_foreground_is_the_mean_over_its_windows() -> None:
    x_hat, x = pair()
    everywhere = torch.ones(3, 1, 40, 33)
    assert torch.allclose(foreground_ssim(x_hat, x, everywhere), ssim(x_hat, x))
    one = torch.zeros(3, 1, 40, 33)
    one[:, :, 12, 20] = 1
    assert torch.allclose(foreground_ssim(x_hat, x, one), ssim_map(x_hat, x)[:, 0, 7, 15])
    assert foreground_ssim(x_hat, x, torch.zeros_like(one)).isnan().all()


def test_psnr_mae_nmse_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])[None, None]
    x_hat = x - 0.1
    assert psnr(x_hat, x).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(2 * x_hat, 2 * x, data_range=2.0).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(x, x).item() == math.inf
    assert mae(x_hat, x).item() == pytest.approx(0.1)
    assert nmse(x_hat, x).item() == pytest.approx(0.04 / 3)
    assert nmse(x_hat, 2e-3 * x).isfinite()
    assert nmse(x_hat, 1e-4 * x).isnan(), "an empty slice would be all of a volume's mean"


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"of one shape, got \(1, 1, 16, 16\) and \(1, 1, 16, 17\)"):
        ssim_map(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 17))


def test_protocol_names_what_it_does() -> None:
    assert all(word in PROTOCOL for word in ("11x11", "1.5", "data range 1", "inside the image"))
