"""Frames worked out by hand, and inverted."""

from __future__ import annotations

import numpy as np
import pytest

from mri_synth.data.frame import Frame
from mri_synth.errors import UserError


def smooth(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w] + 0.5
    return (np.sin(2 * np.pi * y / h) * np.cos(2 * np.pi * x / w))[None].astype(np.float32)


def disc(h: int, w: int, spacing: tuple[float, float], radius_mm: float) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    distance = np.hypot((y - (h - 1) / 2) * spacing[0], (x - (w - 1) / 2) * spacing[1])
    return (distance <= radius_mm)[None].astype(np.float32)


@pytest.mark.parametrize("fit", ["contain", "crop", "stretch"])
def test_identity_is_exact(fit):
    images = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    frame = Frame.fit((16, 16), (1.5, 1.5), 16, fit)
    np.testing.assert_array_equal(frame.apply(images, fill=-9), images)
    np.testing.assert_array_equal(frame.invert(images, fill=-9), images)
    assert (frame.spacing_mm, frame.covered) == ((1.5, 1.5), 1)


def test_padding_and_cropping_by_hand():
    """(2, 5) into 3x3: rows get one line below, columns lose one on either side."""
    images = np.arange(1, 11, dtype=np.float32).reshape(1, 2, 5)
    frame = Frame.fit((2, 5), (1, 1), 3, "crop")
    inside = frame.apply(images, fill=-1)
    np.testing.assert_array_equal(inside[0], [[2, 3, 4], [7, 8, 9], [-1, -1, -1]])
    np.testing.assert_array_equal(frame.invert(inside, fill=0)[0], [[0, 2, 3, 4, 0], [0, 7, 8, 9, 0]])
    np.testing.assert_array_equal(frame.shown(), [[False, True, True, True, False]] * 2)
    assert frame.covered == pytest.approx(3 / 5)


def test_contain_pads_the_short_side():
    frame = Frame.fit((20, 40), (1, 1), 20, "contain")
    assert frame.scaled == (10, 20)
    inside = frame.apply(np.ones((1, 20, 40), np.float32), fill=-1)
    np.testing.assert_array_equal(inside[0, :5], -1)
    np.testing.assert_allclose(inside[0, 5:15], 1)
    np.testing.assert_array_equal(inside[0, 15:], -1)
    assert (frame.spacing_mm, frame.covered) == ((2, 2), 1)


def test_anisotropic_pixels_become_isotropic():
    """A disc of radius 30 mm on pixels of 1 x 3 mm is round in the frame, with the diameter its spacing says."""
    frame = Frame.fit((90, 30), (1, 3), 45, "contain")
    assert frame.spacing_mm == (2, 2)
    inside = frame.apply(disc(90, 30, (1, 3), 30), fill=0)[0] > 0.5
    height, width = inside.any(1).sum(), inside.any(0).sum()
    assert abs(height - 30) <= 1
    assert abs(width - 30) <= 1


@pytest.mark.parametrize("fit", ["contain", "crop"])
def test_target_spacing(fit):
    """60 x 20 mm at 2 mm: 30 x 10 pixels; the 30 are cropped to 16, the 10 padded."""
    frame = Frame.fit((60, 10), (1, 2), 16, fit, 2.0)
    assert (frame.scaled, frame.spacing_mm) == ((30, 10), (2, 2))
    assert frame.covered == pytest.approx(16 / 30)
    inside = frame.apply(np.ones((1, 60, 10), np.float32), fill=-1)
    np.testing.assert_array_equal(inside[0].max(0), [-1] * 3 + [1] * 10 + [-1] * 3)
    outside = frame.invert(inside, fill=-5)
    np.testing.assert_array_equal(outside[0, :, 5], [-5] * 14 + [1] * 32 + [-5] * 14)


def test_stretch():
    frame = Frame.fit((20, 40), (1, 1), 10, "stretch")
    assert (frame.scaled, frame.spacing_mm, frame.covered) == ((10, 10), (2, 4), 1)
    with pytest.raises(UserError, match="fit=stretch sets the spacing itself: drop spacing_mm=2"):
        Frame.fit((20, 40), (1, 1), 10, "stretch", 2)


@pytest.mark.parametrize("source", [(90, 60), (60, 90), (37, 53)])
@pytest.mark.parametrize("fit", ["contain", "stretch"])
@pytest.mark.parametrize("size", [48, 128])
def test_round_trip_of_a_smooth_image(source, fit, size):
    images = smooth(*source)
    frame = Frame.fit(source, (1, 1), size, fit)
    back = frame.invert(frame.apply(images, fill=-1), fill=-1)
    assert back.shape == images.shape
    error = np.abs(back - images)[0]
    assert error[3:-3, 3:-3].max() < 0.02
    assert error.max() < 0.08  # borders are repeated, not continued


def test_fill_does_not_bleed():
    """Enlarged and cropped, then back: constant inside, the fill outside, nothing between (16 px of 0.7 mm: 11 px)."""
    frame = Frame.fit((30, 30), (1, 1), 16, "crop", 0.7)
    back = frame.invert(frame.apply(np.ones((1, 30, 30), np.float32), fill=-1), fill=-1)
    np.testing.assert_allclose(np.unique(back.round(5)), [-1, 1])
    assert (back > 0).sum() == frame.shown().sum() == 11**2


def test_masks_stay_masks():
    mask = disc(64, 48, (1, 1), 12)
    frame = Frame.fit((64, 48), (1, 1), 40, "contain")
    inside = frame.apply(mask, fill=0, nearest=True)
    assert set(np.unique(inside)) == {0, 1}
    back = frame.invert(inside, fill=0, nearest=True)
    assert set(np.unique(back)) == {0, 1}
    assert 2 * (back * mask).sum() / (back.sum() + mask.sum()) > 0.95


def test_wrong_shapes_are_refused():
    frame = Frame.fit((4, 5), (1, 1), 8, "contain")
    with pytest.raises(ValueError, match=r"slices are \(5, 4\), the frame was made for \(4, 5\)"):
        frame.apply(np.zeros((1, 5, 4), np.float32), fill=0)
    with pytest.raises(ValueError, match="the frame is 8x8"):
        frame.invert(np.zeros((1, 4, 5), np.float32), fill=0)
