"""Sources made from the target: tissue clusters, edges and class planes, against answers known by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from mri_synth.data.derived import LEVELS, REACH, STRONG, channels, derive, edges, tissue


def step(amplitude: float, size: int = 32) -> Tensor:
    """Black on the left, `amplitude` of [0, 1] brighter from the middle on."""
    image = torch.full((1, 1, size, size), -1.0)
    image[..., size // 2 :] += 2 * amplitude
    return image


def test_channels_have_the_classes_by_name() -> None:
    assert channels(()) == ("tissue", "edges")
    assert channels(("none", "glioma")) == ("tissue", "edges", "class:none", "class:glioma")


def test_three_grey_values_are_three_tissues_on_a_background() -> None:
    image = torch.full((1, 1, 8, 8), -1.0)
    image[..., 2, :], image[..., 3, :], image[..., 4, :], image[..., 5, :] = -0.5, 0.1, 0.9, -0.82
    found = tissue(image)[0, 0, :, 0]
    torch.testing.assert_close(found, torch.tensor([-1, -1, -1 / 3, 1 / 3, 1, -1, -1, -1]))


def test_clusters_are_the_best_of_all() -> None:
    levels = torch.tensor([20, 22, 25, 40, 44, 47, 60, 90, 91, 91, 100, 101, 103, 110, 127, 127])
    image = ((levels + 0.5) / (LEVELS / 2) - 1).view(1, 1, 4, 4)
    found = tissue(image).flatten()

    def within(parts: list[list[float]]) -> float:
        return sum(float(((np.asarray(p) - np.mean(p)) ** 2).sum()) for p in parts)

    x = levels.tolist()
    best = min(
        itertools.combinations(range(1, len(x)), 2), key=lambda c: within([x[: c[0]], x[c[0] : c[1]], x[c[1] :]])
    )
    assert [int((found < v).sum()) for v in (0.0, 0.5)] == list(best)
    assert (found.diff() >= 0).all()


def test_one_grey_value_and_an_empty_image_have_an_answer() -> None:
    assert tissue(torch.full((1, 1, 8, 8), -1.0)).unique().tolist() == [-1.0]
    assert tissue(torch.full((1, 1, 8, 8), 0.3)).unique().numel() == 1
    assert tissue(torch.full((1, 1, 8, 8), 0.3)).min() > -1
    assert edges(torch.full((1, 1, 8, 8), 0.3)).unique().tolist() == [-1.0]


def test_a_step_is_one_line() -> None:
    expected = torch.full((1, 1, 32, 32), -1.0)
    expected[..., 16] = 1
    torch.testing.assert_close(edges(step(0.5)), expected)
    torch.testing.assert_close(edges(step(0.5).mT.contiguous()), expected.mT)


def test_a_disc_has_its_rim() -> None:
    at = torch.arange(64) - 31.5
    radius = (at[:, None] ** 2 + at**2).sqrt()
    found = edges(torch.where(radius < 20, 0.6, -1.0)[None, None])[0, 0] > 0
    assert ((radius[found] - 20).abs() < 1.5).all()
    angles = torch.atan2(at[:, None].expand(64, 64)[found], at.expand(64, 64)[found]).sort().values
    assert angles.diff().max() < 2.5 / 20  # nowhere open by more than two pixels
    assert int(found.sum()) < 8 * 20  # thinner than a line of which every pixel touches the next by a side


def test_weak_edges_need_a_strong_one_near() -> None:
    """A step of a in [0, 1] has a Sobel sum of 4 a (0.399 + 0.242) = 2.6 a after the blur: strong from a = 0.08 on."""
    assert edges(step(0.03)).max() == -1
    assert edges(step(0.06)).max() == -1
    assert edges(step(0.1)).max() == 1
    amplitude = torch.linspace(0.1, 0.05, 32)
    image = torch.full((1, 1, 32, 32), -1.0)
    image[..., 16:] += 2 * amplitude[:, None]
    line = edges(image)[0, 0, :, 16] > 0
    strong = int((4 * 0.64109 * amplitude >= STRONG).sum())
    assert 10 < strong < 16
    assert line.tolist() == [True] * (strong + REACH) + [False] * (32 - strong - REACH)


def test_planes_say_the_class() -> None:
    image = torch.rand(3, 1, 16, 16) * 2 - 1
    made = derive(image, torch.tensor([1, 0, -1]), ("a", "b"))
    assert made.shape == (3, 4, 16, 16)
    assert made.dtype == torch.float32
    assert made[:, 2:].flatten(2).unique(dim=2)[..., 0].tolist() == [[-1, 1], [1, -1], [-1, -1]]
    torch.testing.assert_close(made[:, :1], tissue(image))
    torch.testing.assert_close(made[:, 1:2], edges(image))
    alone = torch.cat([derive(image[k : k + 1], torch.tensor([c]), ("a", "b")) for k, c in enumerate((1, 0, -1))])
    assert torch.equal(made, alone)
    assert derive(image, torch.tensor([-1, -1, -1]), ()).shape == (3, 2, 16, 16)


def test_edges_are_those_of_scikit_image(shared_data: Path) -> None:
    feature = pytest.importorskip("skimage.feature")
    path = next((shared_data / "ms_paired/patient07").glob("T1_N4*"))
    volume = np.asarray(nib.load(path).dataobj, np.float32)[:, :, 60:90:6]
    images = np.moveaxis(np.clip(volume / np.percentile(volume, 99.9), 0, 1), 2, 0)
    ours = edges(torch.from_numpy(images[:, None] * 2 - 1))[:, 0].numpy() > 0
    theirs = np.stack(
        [feature.canny(i, sigma=1, mode="nearest", low_threshold=0.1, high_threshold=0.2) for i in images]
    )
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.9
