"""Distributions for the report: histograms by hand, the plane of the largest variance, and its drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mri_synth import plots
from mri_synth.metrics import distributions
from mri_synth.metrics.distributions import features, intensities, principal


def test_intensities_by_hand() -> None:
    real = [torch.tensor([[[[-1.0, -0.9], [0.1, 1.0]]]]), torch.tensor([[[[1.0, 1.5], [-2.0, 0.9]]]])]
    found = intensities(real, [torch.zeros(3, 1, 2, 2)], bins=4)
    assert found["edges"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["real"] == [3, 0, 1, 4]  # what lies outside counts at the ends
    assert found["fake"] == [0, 0, 12, 0]


def test_the_plane_is_that_of_the_largest_variance() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 5)) * [0.1, 3, 0.1, 0.1, 1]
    axes, shares = principal(x - x.mean(0))
    assert np.abs(axes) @ [0, 1, 0, 0, 0] == pytest.approx([1, 0], abs=0.05)
    assert np.abs(axes) @ [0, 0, 0, 0, 1] == pytest.approx([0, 1], abs=0.05)
    assert axes[0, 1] > 0
    assert axes[1, 4] > 0
    assert shares == pytest.approx([0.9, 0.1], abs=0.02)
    flipped, _ = principal(x.mean(0) - x)
    assert flipped == pytest.approx(axes)


def test_one_direction_only_leaves_the_second_at_zero() -> None:
    axes, shares = principal(np.array([[-1.0, 0, 0], [1, 0, 0]]))
    assert axes.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert shares.tolist() == [1, 0]
    assert principal(np.zeros((3, 4)))[1].tolist() == [0, 0]


def test_points_and_distances_of_features(monkeypatch) -> None:
    real = np.array([[-2.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, -1, 0]]) + 5
    fake = np.array([[5.0, 5, 8], [9, 5, 5]])
    found = features(real, fake, bins=3)
    assert found["components"]["fake"] == [[0, 0], [4, 0]]
    assert found["components"]["explained"] == [0.8, 0.2]
    assert sorted(found["components"]["real"]) == [[-2, 0], [0, -1], [0, 1], [2, 0]]
    assert found["distances"]["edges"] == [1, 2, 3, 4]  # fakes are 3 and 4 away, also where the plane hides it
    assert (sum(found["distances"]["real"]), sum(found["distances"]["fake"])) == (4, 2)
    assert found["distances"]["fake"] == [0, 0, 2]
    monkeypatch.setattr(distributions, "MOST", 2)
    monkeypatch.setattr(distributions, "POINTS", 1)
    few = features(real, fake)
    assert (len(few["components"]["real"]), sum(few["distances"]["real"])) == (1, 2)


@pytest.mark.parametrize("count", [1, 2, 7, 60, 500])
def test_a_scatter_draws_every_point_once(count: int) -> None:
    drawn = plots.scatter({"real": [(k, -k) for k in range(count)], "fake": [(math.nan, 0), (0.5, 1)]}, "places", "x")
    assert drawn.count("<circle") == count
    assert drawn.count("<path") == 1
    assert "real" in drawn
    assert "places: no values." in plots.scatter({"real": []}, "places", "x")
