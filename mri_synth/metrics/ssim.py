"""How like two images are, one value per image: SSIM, PSNR, MAE, NMSE. Images are (B, C, H, W) in [0, data_range].

Each has a twin over the foreground: air is most of a frame, easily right, and lifts every mean.

SSIM is computed here because torchmetrics' takes ten times as long on a CPU; tests hold it equal to torchmetrics
(`structural_similarity_index_measure`, its border of 5 pixels cut off) and to scikit-image
(`structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

PROTOCOL = (
    "SSIM of Wang 2004: Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, population statistics, data range 1 on "
    "images in [0, 1] without rescaling of either, mean over the windows that lie wholly inside the image"
)
"""Said beside every SSIM."""

WINDOW = 11
SIGMA = 1.5
_EMPTY = 1e-6
"""Mean square, on [0, 1], below which a reference is as good as empty."""


def ssim_map(x_hat: Tensor, x: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity at every window that lies wholly inside the image (Wang et al. 2004, eq. 13).

    `SSIM = (2 mu_x mu_y + C1)(2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(sigma_x^2 + sigma_y^2 + C2))` with
    `C1 = (0.01 R)^2`, `C2 = (0.03 R)^2`, R the data range. Differentiable in both arguments.

    Args:
        x_hat: (B, C, H, W) float32 in [0, data_range].
        x: (B, C, H, W) float32 in [0, data_range].
        data_range: highest less lowest possible intensity.

    Returns:
        (B, C, H - 10, W - 10) in [-1, 1]; entry (i, j) belongs to pixel (i + 5, j + 5). For sides below 11 the window
        shrinks to the largest odd size that fits.

    Raises:
        ValueError: the shapes differ or are not 4-dimensional.
    """
    if x_hat.shape != x.shape or x.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W) of one shape, got {tuple(x_hat.shape)} and {tuple(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):  # under autocast the blurs would be bf16: three digits
        return _ssim_map(x_hat.float(), x.float(), data_range)


def _ssim_map(x_hat: Tensor, x: Tensor, data_range: float) -> Tensor:
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    window = _gaussian(_window_size(x), x)
    # variances do not change with a shift, and lose fewer digits when the middle of the range is zero
    middle = data_range / 2
    a, b = x_hat - middle, x - middle
    mu_a, mu_b = _blur(a, window), _blur(b, window)
    covariance = _blur(a * b, window) - mu_a * mu_b
    variances = _blur(a.square() + b.square(), window) - mu_a.square() - mu_b.square()
    mu_x, mu_y = mu_a + middle, mu_b + middle
    luminance = (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def ssim(x_hat: Tensor, x: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity of each image with its original: 1 is equality.

    `SSIM = mean (2 mu_x mu_y + C1)(2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(sigma_x^2 + sigma_y^2 + C2))`, by
    `PROTOCOL`

    Args:
        x_hat: (B, C, H, W) float32 in [0, data_range].
        x: (B, C, H, W) float32 in [0, data_range].
        data_range: highest less lowest possible intensity.

    Returns:
        (B,) in [-1, 1].
    """
    return ssim_map(x_hat, x, data_range).mean(dim=(1, 2, 3))


def foreground_ssim(x_hat: Tensor, x: Tensor, foreground: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity over the windows centred on foreground.

    `SSIM_fg = sum_p m_p SSIM_p / sum_p m_p`, m the foreground

    Args:
        x_hat: (B, C, H, W) float32 in [0, data_range].
        x: (B, C, H, W) float32 in [0, data_range].
        foreground: (B, 1, H, W) in {0, 1} or bool, where there is head or brain.
        data_range: highest less lowest possible intensity.

    Returns:
        (B,) in [-1, 1]; NaN for an image without foreground.
    """
    similarity = ssim_map(x_hat, x, data_range).mean(dim=1, keepdim=True)
    border = _window_size(x) // 2
    height, width = similarity.shape[-2:]
    inside = foreground[..., border : border + height, border : border + width].to(similarity.dtype)
    return (similarity * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3))


def psnr(x_hat: Tensor, x: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB.

    `PSNR = 10 log10(R^2 / mean (x_hat - x)^2)`, R the data range

    Args:
        x_hat: (B, C, H, W).
        x: (B, C, H, W).
        data_range: highest less lowest possible intensity.

    Returns:
        (B,) in dB; infinite for equal images.
    """
    return 10 * torch.log10(data_range**2 / (x_hat - x).square().mean(dim=(1, 2, 3)))


def mae(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of each image, in units of intensity.

    `MAE = mean |x_hat - x|`

    Args:
        x_hat: (B, C, H, W).
        x: (B, C, H, W).

    Returns:
        (B,).
    """
    return (x_hat - x).abs().mean(dim=(1, 2, 3))


def nmse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Normalised mean squared error of each image, `|x_hat - x|^2 / |x|^2` (as fastMRI has it).

    Args:
        x_hat: (B, C, H, W), on [0, 1].
        x: (B, C, H, W), the reference: not symmetric.

    Returns:
        (B,); NaN where x is as good as empty, its mean square below 1e-6: one such slice would be all of a mean.
    """
    power = x.square().mean(dim=(1, 2, 3))
    error = (x_hat - x).square().mean(dim=(1, 2, 3)) / power
    return torch.where(power < _EMPTY, torch.nan, error)


def foreground_psnr(x_hat: Tensor, x: Tensor, foreground: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio over the foreground, in dB.

    `PSNR_fg = 10 log10(R^2 sum_p m_p / sum_p m_p (x_hat_p - x_p)^2)`, R the data range, m the foreground

    Args:
        x_hat: (B, C, H, W).
        x: (B, C, H, W).
        foreground: (B, 1, H, W) in {0, 1} or bool.
        data_range: highest less lowest possible intensity.

    Returns:
        (B,) in dB; infinite for equal images, NaN for an image without foreground.
    """
    return 10 * torch.log10(data_range**2 / _mean_over((x_hat - x).square(), foreground))


def foreground_mae(x_hat: Tensor, x: Tensor, foreground: Tensor) -> Tensor:
    """Mean absolute error over the foreground, in units of intensity.

    `MAE_fg = sum_p m_p |x_hat_p - x_p| / sum_p m_p`, m the foreground

    Args:
        x_hat: (B, C, H, W).
        x: (B, C, H, W).
        foreground: (B, 1, H, W) in {0, 1} or bool.

    Returns:
        (B,); NaN for an image without foreground.
    """
    return _mean_over((x_hat - x).abs(), foreground)


def foreground_nmse(x_hat: Tensor, x: Tensor, foreground: Tensor) -> Tensor:
    """Normalised mean squared error over the foreground.

    `NMSE_fg = sum_p m_p (x_hat_p - x_p)^2 / sum_p m_p x_p^2`, m the foreground

    Args:
        x_hat: (B, C, H, W).
        x: (B, C, H, W), the reference: not symmetric.
        foreground: (B, 1, H, W) in {0, 1} or bool.

    Returns:
        (B,); NaN for an image without foreground.
    """
    return _mean_over((x_hat - x).square(), foreground) / _mean_over(x.square(), foreground)


def uniform_ssim(x_hat: Tensor, x: Tensor, data_range: Tensor) -> Tensor:
    """Mean structural similarity as scikit-image's `structural_similarity` has it unless told otherwise.

    `SSIM = mean (2 mu_x mu_y + C1)(2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(s_x^2 + s_y^2 + C2))` over the 7x7 windows
    that lie wholly inside the image, all pixels of a window weighing alike, with sample (n - 1) statistics,
    `C1 = (0.01 R)^2`, `C2 = (0.03 R)^2`, R the data range. Published habits use it; our own is `ssim`.

    Args:
        x_hat: (B, C, H, W) float32.
        x: (B, C, H, W) float32.
        data_range: (B,) R of each image.

    Returns:
        (B,) in [-1, 1]. For sides below 7 the window shrinks to the largest odd size that fits.
    """
    with torch.autocast(x.device.type, enabled=False):
        side = min(7, min(x.shape[-2:]) - 1 + min(x.shape[-2:]) % 2)
        n = side * side
        # variances do not change with a shift, and lose fewer digits about zero
        middle = x.float().mean((1, 2, 3), keepdim=True)
        a, b = x_hat.float() - middle, x.float() - middle
        mu_a, mu_b, aa, bb, ab = (avg_pool2d(v, side, 1) for v in (a, b, a * a, b * b, a * b))
        covariance = (ab - mu_a * mu_b) * n / (n - 1)
        variances = (aa - mu_a.square() + bb - mu_b.square()) * n / (n - 1)
        mu_x, mu_y = mu_a + middle, mu_b + middle
        c1, c2 = ((k * data_range.float()).square().view(-1, 1, 1, 1) for k in (0.01, 0.03))
        luminance = (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
        return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _mean_over(values: Tensor, foreground: Tensor) -> Tensor:
    inside = foreground.to(values.dtype).expand_as(values)
    return (values * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))


def _window_size(x: Tensor) -> int:
    side = min(x.shape[-2:])
    return min(WINDOW, side - 1 + side % 2)


def _gaussian(size: int, like: Tensor) -> Tensor:
    offsets = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def _blur(images: Tensor, window: Tensor) -> Tensor:
    """Each plane blurred, borders lost. Planes go through as channels of one image: 30 times faster on a CPU."""
    planes = images.flatten(0, 1)
    n = len(planes)
    rows = window.view(1, 1, 1, -1).expand(n, 1, 1, -1)
    columns = window.view(1, 1, -1, 1).expand(n, 1, -1, 1)
    blurred = conv2d(conv2d(planes[None], rows, groups=n), columns, groups=n)[0]
    return blurred.view(*images.shape[:2], *blurred.shape[1:])
