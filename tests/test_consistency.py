"""Slice consistency by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mri_synth.metrics.consistency import consistency, plane_gradient, slice_gradient

EVERYWHERE = np.ones((6, 5, 4), bool)


def test_identical_slices_have_no_gradient_across():
    image = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    slices = np.repeat(image[None], 6, 0)
    assert slice_gradient(slices, EVERYWHERE) == 0
    real = np.random.default_rng(1).normal(size=(6, 5, 4)).astype(np.float32)
    assert consistency(slices, real, EVERYWHERE)["ratio"] == 0


def test_a_volume_is_as_consistent_as_itself_in_any_units():
    real = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    assert consistency(real, real, EVERYWHERE)["ratio"] == 1
    assert consistency(5 - 3 * real, real, EVERYWHERE)["ratio"] == pytest.approx(1, abs=1e-6)


def test_gradients_of_a_ramp_by_hand():
    """v = 3 k + i + 2 j: 3 from slice to slice, and (1 + 2) / 2 within."""
    k, i, j = np.meshgrid(*map(np.arange, (6, 5, 4)), indexing="ij")
    ramp = (3 * k + i + 2 * j).astype(np.float32)
    assert slice_gradient(ramp, EVERYWHERE) == 3
    assert plane_gradient(ramp, EVERYWHERE) == 1.5
    flicker = ramp + 10 * (k % 2)  # steps of 13 and -7
    found = consistency(flicker, ramp, EVERYWHERE)
    assert found["slice_gradient"] == pytest.approx((3 * 13 + 2 * 7) / 5)
    assert found["ratio"] == pytest.approx((3 * 13 + 2 * 7) / 5 / 3)


def test_only_pairs_of_foreground_count():
    values = np.zeros((3, 2, 2), np.float32)
    values[1] = 4
    values[2] = 100
    foreground = np.zeros((3, 2, 2), bool)
    foreground[:2, 0, 0] = True
    assert slice_gradient(values, foreground) == 4


def test_what_is_not_defined_is_none():
    one = np.ones((1, 5, 4), np.float32)
    assert consistency(one, one, np.ones((1, 5, 4), bool))["ratio"] is None
    flat = np.ones((6, 5, 4), np.float32)
    assert consistency(flat, flat, EVERYWHERE)["ratio"] is None
    assert consistency(flat, flat, ~EVERYWHERE)["slice_gradient"] is None
