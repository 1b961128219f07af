"""Intensities worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mri_synth.data.intensity import Intensity, fit_intensity
from mri_synth.data.settings import IntensitySettings
from mri_synth.errors import UserError


def test_line_by_hand():
    line = Intensity(100, 300)
    y = line.apply(np.array([50.0, 100, 150, 200, 300, 900]))
    np.testing.assert_array_equal(y, np.float32([-1, -1, -0.5, 0, 1, 1]))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(line.invert(y), [100, 100, 150, 200, 300, 300])
    assert line.clipped(np.array([50.0, 100, 150, 301])) == 0.5


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "f8"])
def test_volumes_larger_than_a_part_in_any_order_of_memory(dtype: str):
    line, values = Intensity(-500, 1500), (np.arange(60 * 40 * 50) % 1000).astype(dtype).reshape(60, 40, 50)
    want = ((values.astype(np.float64) + 500) * (2.0 / 2000) - 1).astype(np.float32)
    for turn in (lambda a: a, np.asfortranarray, lambda a: a.transpose(2, 0, 1), lambda a: a[::-1, ::2]):
        np.testing.assert_array_equal(line.apply(turn(values)), turn(want))
        np.testing.assert_allclose(line.invert(turn(want)), turn(values).astype(np.float32), atol=1e-3)


def test_settings_by_hand():
    values = np.arange(-50, 51, dtype=np.float32)  # percentile p is p - 50
    assert fit_intensity(values, IntensitySettings(method="percentile", percentiles=[10, 90])) == Intensity(-40, 40)
    assert fit_intensity(values, IntensitySettings(method="minmax")) == Intensity(-50, 50)
    assert fit_intensity(values, IntensitySettings(method="fixed", range=[0, 255])) == Intensity(0, 255)


def test_all_integers_of_12_bits_come_back():
    values = np.arange(4096, dtype=np.float32)
    line = fit_intensity(values, IntensitySettings(method="minmax"))
    np.testing.assert_array_equal(np.rint(line.invert(line.apply(values))), values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IntensitySettings(method="fixed"), r"intensity.range=None: two increasing numbers, such as \[0, 255\]"),
        (IntensitySettings(method="fixed", range=[5, 5]), r"intensity.range=\[5, 5\]"),
        (IntensitySettings(percentiles=[50]), r"intensity.percentiles=\[50\]"),
        (IntensitySettings(percentiles=[-1, 50]), r"intensity.percentiles=\[-1.0, 50.0\]: .* in 0..100"),
        (IntensitySettings(percentiles=[1, 50]), r"a.nii: \[1, 50\] percent .* both 0.*intensity.method=minmax"),
    ],
)
def test_mistakes(settings, message):
    values = np.zeros(100)
    values[:3] = 7
    with pytest.raises(UserError, match=message):
        fit_intensity(values, settings, "a.nii")
