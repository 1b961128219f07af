"""VGG-19: both layouts of its weights, named features, preprocessing by hand; the real weights where they are here."""

from __future__ import annotations

from pathlib import Path

import layouts
import pytest
import torch
from torch.nn import functional

from mri_synth import weights
from mri_synth.errors import UserError
from mri_synth.networks import vgg19

REAL = weights.find("vgg19").path
"""Looked for before the tests get a cache of their own."""


@pytest.fixture(scope="module", params=[True, False], ids=["normalised", "torchvision"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.vgg19(tmp_path_factory.mktemp("vgg") / "vgg.pth", "conv3_1", request.param)


def test_features_are_those_of_the_convolutions_one_after_the_other(file: Path) -> None:
    network = vgg19.pretrained("conv3_1", "average", file)
    values = list(torch.load(file, weights_only=True).items())
    x = torch.rand(2, 3, 24, 24) * 2 - 1
    at = x / 2 + 0.5
    if "0.weight" in dict(values):  # RGB in [0, 1] by the file's own first layer: here BGR less a half
        at, values = at.flip(1) - 0.5, values[2:]
    else:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        at = (at - mean[:, None, None]) / std[:, None, None]
    by_hand = []
    for k in range(0, len(values), 2):
        if k in (4, 8):  # before the third and the fifth convolution
            at = functional.avg_pool2d(at, 2)
        at = functional.conv2d(at, values[k][1], values[k + 1][1], padding=1).relu()
        by_hand.append(at)
    found = network(x, ["conv1_1", "conv2_2", "conv3_1"])
    for name, k in (("conv1_1", 0), ("conv2_2", 3), ("conv3_1", 4)):
        torch.testing.assert_close(found[name], by_hand[k])
    assert found["conv3_1"].shape == (2, 256, 6, 6)


def test_grey_is_three_equal_channels_and_the_pool_is_a_choice(file: Path) -> None:
    x = torch.rand(1, 1, 16, 16) * 2 - 1
    average, largest = (vgg19.pretrained("conv2_1", pool, file) for pool in ("average", "max"))
    torch.testing.assert_close(average(x, ["conv2_1"]), average(x.expand(-1, 3, -1, -1), ["conv2_1"]))
    before = average(x, ["conv1_2"])["conv1_2"]
    layer = average.convolutions["conv2_1"]
    torch.testing.assert_close(average(x, ["conv2_1"])["conv2_1"], layer(functional.avg_pool2d(before, 2)).relu())
    torch.testing.assert_close(largest(x, ["conv2_1"])["conv2_1"], layer(functional.max_pool2d(before, 2)).relu())


def test_no_deeper_than_asked_for_and_frozen(file: Path) -> None:
    network = vgg19.pretrained("conv1_2", "average", file)
    assert list(network.convolutions) == ["conv1_1", "conv1_2"]
    assert not any(p.requires_grad for p in network.train().parameters())
    assert not network.training
    seen = []
    network.convolutions["conv1_2"].register_forward_hook(lambda *_: seen.append(1))
    assert list(network(torch.zeros(1, 1, 4, 4), ["conv1_1"])) == ["conv1_1"]
    assert not seen
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).requires_grad_()
    network(x, ["conv1_2"])["conv1_2"].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    with pytest.raises(ValueError, match="conv2_1: this network ends at conv1_2"):
        network(torch.zeros(1, 1, 8, 8), ["conv2_1"])
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\) of at least 1 pixels each way, got \(1, 2, 8, 8\)"):
        network(torch.zeros(1, 2, 8, 8), ["conv1_1"])


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"(19|features\.12)\.weight of conv3_2 should be \(256, 256, 3, 3\), there is nothing"
    ):
        vgg19.pretrained("conv4_1", "average", file)
    with pytest.raises(UserError, match="no such file; give torchvision's vgg19"):
        vgg19.pretrained("conv1_1", "average", tmp_path / "absent.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged, or no weights of torch"):
        vgg19.pretrained("conv1_1", "average", broken)
    named = tmp_path / "vgg19-dcbb9e9d.pth"
    named.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="its sha256 does not begin with dcbb9e9d, as its name says"):
        vgg19.pretrained("conv1_1", "average", named)
    torch.save({"fc.weight": torch.zeros(1)}, broken)
    with pytest.raises(UserError, match=r"not VGG-19: it has neither .* but fc\.weight"):
        vgg19.pretrained("conv1_1", "average", broken)
    torch.save([1], broken)
    with pytest.raises(UserError, match="holds a list and no weights by name"):
        vgg19.pretrained("conv1_1", "average", broken)


def test_without_weights_the_message_says_how_to_get_them() -> None:
    with pytest.raises(UserError, match="mri-synth weights get vgg19"):
        vgg19.pretrained("conv1_1")


def test_the_real_weights_are_normalised_to_a_mean_activation_of_one(shared_data: Path) -> None:
    """Of photographs, over which Gatys took the mean; MRI, half of it black, has less. Per layer, not per filter."""
    if REAL is None:
        pytest.skip("the weights vgg19 are not here; mri-synth weights get vgg19")
    from sklearn.datasets import load_sample_images

    network = vgg19.pretrained("conv5_4", "max", REAL)
    photos = torch.stack([torch.tensor(x[:256, :256]) for x in load_sample_images().images]).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = network(photos / 127.5 - 1, vgg19.LAYERS)
    means = {name: f.mean().item() for name, f in features.items()}
    assert all(0.4 < m < 2.5 for m in means.values()), means
    assert 0.7 < sum(means.values()) / 16 < 1.4, means
