"""Sheets, grids and animations: pixels at known places, frames and their durations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mri_synth import drawing
from mri_synth.drawing import GAP, GROUND, MAGMA, MARGIN


def _frame(value: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def test_grey_maps_minus_one_zero_one_and_marks_what_is_not_finite() -> None:
    values = np.array([[[-1.0, 1.0], [3.0, np.nan]]], dtype=np.float32)
    pixels = drawing.grey(values)
    assert pixels.shape == (2, 2, 3)
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 1].tolist() == [255, 255, 255]
    assert pixels[1, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [255, 0, 255]


def test_magma_ends_and_middle() -> None:
    ends = drawing.magma(np.array([0, 0.5, 1, 7], dtype=np.float32))
    assert ends.tolist() == [list(MAGMA[0]), list(MAGMA[5]), list(MAGMA[-1]), list(MAGMA[-1])]


def test_error_is_a_share_of_the_intensity_range() -> None:
    row = drawing.error(np.full((1, 4, 4), 0.5), np.zeros((1, 4, 4)))
    assert row.kind == "error"
    assert np.allclose(row.images, 0.25)


def test_sheet_puts_every_pixel_where_it_belongs() -> None:
    x = np.full((2, 4, 4), -1.0)
    x[1, 0, 0] = 1.0
    x_hat = x.copy()
    x_hat[0] = -0.5  # off by a quarter of the range: brightest in the error row
    picture = drawing.sheet({"original": x, "error": drawing.error(x_hat, x)}, "title", ["a", "b"])
    first = MARGIN + 26 + 10 + 20 + 4  # margin, title, gap, row name, gap
    assert picture.getpixel((0, 0)) == GROUND
    assert picture.getpixel((MARGIN, first)) == (0, 0, 0)
    second = MARGIN + 128 + GAP
    # 4 pixels became 128: one pixel is a square of 32.
    assert picture.getpixel((second + 31, first + 31)) == (255, 255, 255)
    assert picture.getpixel((second + 32, first + 31)) == (0, 0, 0)
    error_row = first + 128 + 10 + 20 + 4
    assert picture.getpixel((MARGIN + 64, error_row + 64)) == MAGMA[-1]
    assert picture.getpixel((second + 64, error_row + 64)) == MAGMA[0]


def test_error_row_has_a_colour_bar_from_dark_to_bright() -> None:
    wide = np.zeros((4, 8, 8))
    picture = np.asarray(drawing.sheet({"error": drawing.error(wide, wide)}, "t"))
    line = picture[MARGIN + 26 + 10 + 8]  # through the bar beside the row's name
    matches = [int(np.flatnonzero((line == colour).all(1)).max(initial=-1)) for colour in (MAGMA[0], MAGMA[-1])]
    assert matches[1] - matches[0] == pytest.approx(119, abs=2)


@pytest.mark.parametrize(("side", "factor"), [(4, 32), (28, 5), (64, 2), (100, 2), (128, 1), (256, 1)])
def test_cells_are_enlarged_by_whole_factors_to_at_least_128(side: int, factor: int) -> None:
    assert drawing.enlargement(np.zeros((1, 1, side, side), np.float32), 128) == factor


def test_tensors_channels_and_half_precision_are_taken() -> None:
    x = torch.ones(2, 1, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    assert drawing.array(x).shape == (2, 1, 8, 8)
    colour = torch.stack([torch.ones(8, 8), -torch.ones(8, 8), torch.zeros(8, 8)])[None]
    picture = drawing.grid(colour, "art")
    assert picture.getpixel((MARGIN + 5, MARGIN + 26 + 8 + 5)) == (255, 0, 128)


def test_grid_wraps_rows_and_keeps_within_a_page() -> None:
    picture = drawing.grid(np.ones((20, 128, 128)), "slices", captions=[f"slice {i}" for i in range(20)])
    assert picture.width == 2 * MARGIN + 8 * (128 + GAP) - GAP
    assert drawing.grid(np.ones((20, 256, 256)), "slices").width == 2 * MARGIN + 4 * (256 + GAP) - GAP
    assert drawing.grid(np.ones((3, 128, 128)), "s", columns=2).getpixel((MARGIN, MARGIN + 34 + 128 + GAP)) == (
        255,
        255,
        255,
    )


def test_long_words_and_titles_are_wrapped_not_cut() -> None:
    face = drawing.font(13)
    lines = drawing.wrap("sub-0000000000000000000000000000001 slice 7", 100, face)
    assert "".join(lines).replace(" ", "") == "sub-0000000000000000000000000000001slice7"
    assert all(face.getlength(line) <= 100 for line in lines)


def test_letters_the_font_lacks_become_ascii() -> None:
    assert drawing.plain("Müller – 3 × 4 日") == "Muller - 3 x 4 ?"


def test_wrong_shapes_and_counts_are_named() -> None:
    with pytest.raises(ValueError, match=r"not \(2, 2, 4, 4\)"):
        drawing.array(np.zeros((2, 2, 4, 4)))
    with pytest.raises(ValueError, match="equally many"):
        drawing.sheet({"a": np.zeros((2, 4, 4)), "b": np.zeros((3, 4, 4))}, "t")
    with pytest.raises(ValueError, match="2 columns but 1 captions"):
        drawing.sheet({"a": np.zeros((2, 4, 4))}, "t", ["one"])
    with pytest.raises(ValueError, match="at least one frame"):
        drawing.gif([], Path("never.gif"))


def test_gif_frames_durations_and_still_greys(tmp_path: Path) -> None:
    path = drawing.gif([_frame(v) for v in (0, 100, 200)], tmp_path / "deep" / "t.gif", ms=300, last_ms=1500)
    with Image.open(path) as opened:
        assert opened.n_frames == 3
        assert opened.info["loop"] == 0
        durations, values = [], []
        for i in range(3):
            opened.seek(i)
            durations.append(opened.info["duration"])
            values.append(opened.convert("RGB").getpixel((5, 5)))
    assert durations == [300, 300, 1500]
    assert values == [(0,) * 3, (100,) * 3, (200,) * 3]
    assert [p.name for p in path.parent.iterdir()] == ["t.gif"]


def test_gif_pads_smaller_frames(tmp_path: Path) -> None:
    path = drawing.gif([_frame(9), _frame(90, (50, 60))], tmp_path / "t.gif")
    with Image.open(path) as opened:
        assert opened.size == (50, 60)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = drawing.save(_frame(1), tmp_path / "p.png")
    before = path.read_bytes()

    class Broken:
        def save(self, file: object, format: str, pnginfo: object) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        drawing.save(Broken(), path)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
