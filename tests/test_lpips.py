"""LPIPS against torchmetrics, a published value, and numpy; with random backbones where the weights are not at hand."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as published
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from mri_synth import weights
from mri_synth.errors import UserError
from mri_synth.metrics import lpips as module
from mri_synth.metrics.lpips import LPIPS, PROTOCOL, lpips
from mri_synth.networks import backbones
from mri_synth.weights.known import WEIGHTS
from mri_synth.weights.unpickle import read_arrays

# Asked when tests are collected: later the cache is a temporary one.
PLACES = {net: weights.find(f"lpips_{net}").path for net in ("vgg16", "alexnet")}
BUILDERS = {"vgg16": backbones.vgg16, "alexnet": backbones.alexnet}


def place(net: str) -> Path:
    path = PLACES[net]
    if path is None:
        pytest.skip(f"weights not here: mri-synth weights get lpips_{net}")
    return path


def untrained(monkeypatch: pytest.MonkeyPatch, net: Any) -> LPIPS:
    """LPIPS with fitted heads on a random backbone: all but the weights."""
    torch.manual_seed(0)
    backbone = BUILDERS[net]()
    monkeypatch.setattr(module, "pretrained", lambda *_: backbone)
    return LPIPS(net)


def pair(shape: tuple[int, ...] = (3, 3, 48, 40)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand(shape, generator=generator), 3, 1, 1) * 2 - 1
    return (x + 0.1 * torch.randn(shape, generator=generator)).clamp(-1, 1), x


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_equals_torchmetrics_on_the_same_backbone(monkeypatch: pytest.MonkeyPatch, net: str) -> None:
    ours = untrained(monkeypatch, net)
    layers = nn.Sequential(*(layer for stage in ours.backbone.stages for layer in stage))
    monkeypatch.setattr(published, "_get_tv_model_features", lambda *_: layers)
    theirs = published._LPIPS(net={"vgg16": "vgg", "alexnet": "alex"}[net])
    x_hat, x = pair()
    distance = ours(x_hat, x)
    assert distance.shape == (3,)
    assert torch.allclose(distance, theirs(x_hat, x).flatten(), rtol=1e-5, atol=1e-8)


def test_zero_symmetric_per_sample_and_grey_is_three_equal_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    net = untrained(monkeypatch, "alexnet")
    x_hat, x = pair((3, 1, 40, 33))
    distance = lpips(x_hat, x, net)
    assert lpips(x, x, net).tolist() == [0.0] * 3
    assert torch.equal(distance, lpips(x, x_hat, net))
    assert torch.equal(distance, lpips(x_hat.expand(-1, 3, -1, -1), x.expand(-1, 3, -1, -1), net))
    assert torch.allclose(distance[1:2], lpips(x_hat[1:2], x[1:2], net), rtol=1e-4)
    assert (distance > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance, lpips(x_hat, x, net))


def test_gradient_is_finite_where_all_features_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    net = untrained(monkeypatch, "alexnet")
    for layer in net.backbone.convolutions():
        layer.bias.fill_(-1e3)
    x = torch.zeros(1, 1, 33, 33, requires_grad=True)
    lpips(x, torch.ones(1, 1, 33, 33), net).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_frozen_and_never_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    net = untrained(monkeypatch, "alexnet").train()
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_shapes_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    net = untrained(monkeypatch, "alexnet")
    with pytest.raises(
        ValueError, match=r"of one shape with 1 or 3 channels, got \(1, 1, 40, 40\) and \(1, 1, 40, 41\)"
    ):
        lpips(torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 41), net)
    with pytest.raises(ValueError, match=r"1 or 3 channels, got \(1, 2, 40, 40\)"):
        lpips(torch.zeros(1, 2, 40, 40), torch.zeros(1, 2, 40, 40), net)
    with pytest.raises(ValueError, match=r"at least 31 x 31, got \(1, 3, 30, 40\)"):
        lpips(torch.zeros(1, 1, 30, 40), torch.zeros(1, 1, 30, 40), net)


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_least_size_leaves_a_pixel_and_no_more(net: str) -> None:
    backbone = BUILDERS[net]()
    least = backbone.least
    features = backbone(torch.zeros(1, 3, least, least))
    assert [f.shape[1] for f in features] == list(backbone.widths)
    assert features[-1].shape[-1] == 1
    with pytest.raises(RuntimeError, match="too small"):
        nn.Sequential(*backbone.stages)(torch.zeros(1, 3, least - 1, least - 1))


def test_protocol_names_what_it_does() -> None:
    assert all(word in PROTOCOL for word in ("Zhang 2018", "[-1, 1]", "repeated to three", "AlexNet"))


def as_jax(backbone: backbones.Backbone, key: str) -> dict[str, Any]:
    convolutions = enumerate(backbone.convolutions())
    return {key: {f"Conv_{k}": {"kernel": c.weight.permute(2, 3, 1, 0).numpy(), "bias": c.bias.numpy()}
                  for k, c in convolutions}}  # fmt: skip


def pretend(monkeypatch: pytest.MonkeyPatch, path: Path, content: Any) -> None:
    """A file that counts as the weights lpips_alexnet."""
    path.write_bytes(pickle.dumps(content, 3))
    known = replace(WEIGHTS["lpips_alexnet"], sha256=weights.sha256(path), size=path.stat().st_size)
    monkeypatch.setitem(WEIGHTS, "lpips_alexnet", known)


def test_weights_are_loaded_from_jax_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    original = backbones.alexnet()
    pretend(monkeypatch, tmp_path / "a.ckpt", as_jax(original, "AlexNet_0"))
    loaded = backbones.pretrained("alexnet", tmp_path / "a.ckpt")
    for a, b in zip(original.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    pretend(monkeypatch, tmp_path / "b.ckpt", as_jax(original, "VGG16_0"))
    with pytest.raises(UserError, match=r"b.ckpt: has no AlexNet_0; it is not the weights lpips_alexnet"):
        backbones.pretrained("alexnet", tmp_path / "b.ckpt")
    content = as_jax(original, "AlexNet_0")
    del content["AlexNet_0"]["Conv_3"]["bias"]
    pretend(monkeypatch, tmp_path / "c.ckpt", content)
    with pytest.raises(UserError, match=r"c.ckpt: has no kernel and bias of convolution 3"):
        backbones.pretrained("alexnet", tmp_path / "c.ckpt")
    with pytest.raises(
        UserError, match=r"nowhere.ckpt: no such file\nFetch them .*mri-synth weights get lpips_alexnet"
    ):
        LPIPS("alexnet", tmp_path / "nowhere.ckpt")


def test_published_value() -> None:
    # torchmetrics 0.11 (with the authors' package lpips 0.1), image/lpip.py: seed 123, VGG-16, ten pairs of noise give
    # 0.3493. There the network was made after the seed was set, so that its initial weights are drawn here as well.
    net = LPIPS("vgg16", place("vgg16"))
    torch.manual_seed(123)
    backbones.vgg16()
    for sizes in ((25088, 4096), (4096, 4096), (4096, 1000)):
        nn.Linear(*sizes)
    for width in net.backbone.widths:
        nn.Conv2d(width, 1, 1, bias=False)
    x_hat, x = torch.rand(10, 3, 100, 100) * 2 - 1, torch.rand(10, 3, 100, 100) * 2 - 1
    with torch.no_grad():
        assert lpips(x_hat, x, net).mean().item() == pytest.approx(0.3493, abs=6e-5)


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_heads_are_those_that_came_with_the_backbone(net: Any) -> None:
    arrays = read_arrays(place(net))
    for k, head in enumerate(LPIPS(net, place(net)).heads):
        expected = arrays[f"NetLinLayer_{k}"]["Conv_0"]["kernel"]  # type: ignore[call-overload]
        np.testing.assert_array_equal(head.numpy().ravel(), expected.ravel())


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_grows_with_noise_and_with_blur(net: Any) -> None:
    model = LPIPS(net, place(net))
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    radius = ((rows - 32).square() + 0.6 * (columns - 32).square()).sqrt()
    x = (torch.sin(radius) * torch.exp(-((radius / 24) ** 4)))[None, None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.cat([(x + s * noise).clamp(-1, 1) for s in (0.02, 0.05, 0.1, 0.2)])
    blurred = torch.cat([torch.nn.functional.avg_pool2d(x, k, 1, k // 2) for k in (3, 5, 7)])
    with torch.no_grad():
        for images in (noisy, blurred):
            distance = lpips(images, x.expand_as(images), model)
            assert (distance.diff() > 0).all()
            assert 0 < distance[0] < distance[-1] < 1.5


def test_equals_numpy_from_the_raw_arrays() -> None:
    path = place("alexnet")
    arrays: Any = read_arrays(path)
    x_hat, x = pair((2, 3, 35, 39))

    def convolved(x: np.ndarray, k: int, stride: int, padding: int) -> np.ndarray:
        kernel, bias = arrays["AlexNet_0"][f"Conv_{k}"]["kernel"], arrays["AlexNet_0"][f"Conv_{k}"]["bias"]
        padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        windows = sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
        out = np.einsum("ijchw,hwcd->ijd", windows, kernel.astype(np.float64), optimize=True) + bias
        return np.maximum(out, 0)

    def pooled(x: np.ndarray) -> np.ndarray:
        return sliding_window_view(x, (3, 3), axis=(0, 1))[::2, ::2].max((-1, -2))

    def features(image: np.ndarray) -> list[np.ndarray]:
        x = (image.transpose(1, 2, 0) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        maps = [convolved(x, 0, 4, 2)]
        maps.append(convolved(pooled(maps[-1]), 1, 1, 2))
        maps.append(convolved(pooled(maps[-1]), 2, 1, 1))
        maps.append(convolved(maps[-1], 3, 1, 1))
        maps.append(convolved(maps[-1], 4, 1, 1))
        return [m / (np.linalg.norm(m, axis=2, keepdims=True) + 1e-10) for m in maps]  # as the authors' code

    expected = []
    for a, b in zip(x_hat.numpy().astype(np.float64), x.numpy().astype(np.float64), strict=True):
        heads = [arrays[f"NetLinLayer_{k}"]["Conv_0"]["kernel"].ravel() for k in range(5)]
        parts = zip(features(a), features(b), heads, strict=True)
        expected.append(sum(float(((f - g) ** 2 @ w).mean()) for f, g, w in parts))
    assert lpips(x_hat, x, LPIPS("alexnet", path)).tolist() == pytest.approx(expected, rel=1e-4)
