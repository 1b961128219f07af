"""Ways through latent space: the vectors, the sheets, the films, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from mri_synth import drawing, walk
from mri_synth.cli import app
from mri_synth.data.batch import DataSpec
from mri_synth.errors import UserError
from mri_synth.latent import line, loop
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.run import run
from mri_synth.walk import explore, mp4, numbers

DATA = ["logger=csv", "data.subjects=[2,1,1]", "data.size=32", "data.batch_size=8", "trainer.progress=false",
        "trainer.pictures=0", "trainer.max_epochs=1", "samples=0"]  # fmt: skip


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("vae")
    run(compose(*DATA, "model=vae", "model.hidden_channels=8", "model.latent_dim=4"), folder, [])
    return folder / "best.ckpt"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows of the last sheet, and images of all grids."""
    seen: dict[str, Any] = {"frames": []}

    def sheet(rows: dict[str, Any], title: str, captions: Any = None) -> Image.Image:
        seen.update(rows=rows, title=title, captions=captions)
        return Image.new("RGB", (16, 16))

    def grid(images: Tensor, title: str, columns: int, cell: int) -> Image.Image:
        seen["frames"].append(images[0])
        frame = Image.new("RGB", (16, 16))
        frame.putpixel(divmod(len(seen["frames"]), 16), (255, 255, 255))  # equal frames of a GIF become one
        return frame

    monkeypatch.setattr(drawing, "sheet", sheet)
    monkeypatch.setattr(drawing, "grid", grid)
    return seen


# -- vectors ------------------------------------------------------------------------------------------


def test_a_line_goes_from_each_vector_to_the_next() -> None:
    anchors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    ways = line(anchors, 4)
    assert ways.shape == (2, 4, 5)
    torch.testing.assert_close(ways[:, 0], anchors[:-1])
    torch.testing.assert_close(ways[:, -1], anchors[1:])
    right = line(torch.tensor([[1.0, 0], [0, 1]]), 3)[0, 1]
    torch.testing.assert_close(right, torch.tensor([0.5, 0.5]).sqrt())  # along the circle, not the chord


@pytest.mark.parametrize("frames", [3, 12, 13])
def test_a_loop_visits_all_vectors_and_has_no_seam(frames: int) -> None:
    anchors = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    way = loop(anchors, frames)
    assert way.shape == (frames, 64)
    torch.testing.assert_close(way[0], anchors[0])
    if frames % 3 == 0:
        torch.testing.assert_close(way[:: frames // 3], anchors)
    if frames > 3:
        steps = (way - way.roll(-1, 0)).norm(dim=1)  # the last is the one back to the first
        assert steps.max() < 3 * steps.min()
    assert way.norm(dim=1).min() > 0.8 * anchors.norm(dim=1).min()  # never through the middle, where the prior is empty


def test_latent_vectors_of_seeds_are_what_samples_are_made_of(ckpt) -> None:
    model = load_model(ckpt)
    seeds = torch.tensor([3, 8])
    z = model.latent(seeds)
    assert z.shape == (2, 4)
    assert torch.equal(model.latent(torch.tensor([8])), z[1:])
    with torch.no_grad():
        for options in ({}, {"temperature": 0.5}):
            assert torch.equal(model.from_latent(z, **options), model.sample(seeds, **options))


def test_methods_without_a_latent_vector_say_so() -> None:
    with pytest.raises(UserError, match="SynthModule has no latent vector to go from one image to another by"):
        SynthModule(DataSpec(size=8)).latent(torch.arange(2))
    with pytest.raises(UserError, match="SynthModule has no latent vector"):
        SynthModule(DataSpec(size=8)).from_latent(torch.zeros(1, 4))


# -- sheets and films ---------------------------------------------------------------------------------


def test_interpolation_ends_on_the_samples_of_its_seeds(ckpt, tmp_path, drawn) -> None:
    assert explore(ckpt, tmp_path, interpolate=5, seed=2, batch_size=2) == [tmp_path / "interpolation.png"]
    assert list(drawn["rows"]) == [f"seed {s} to seed {s + 1}" for s in range(2, 8)]
    with torch.no_grad():
        expected = load_model(ckpt).sample(torch.arange(2, 9))
    for row, images in enumerate(drawn["rows"].values()):
        assert images.shape == (5, 1, 32, 32)
        torch.testing.assert_close(images[[0, -1]], expected[row : row + 2], atol=1e-4, rtol=0)
    assert "synthetic" in drawn["title"]
    assert "SIMULATED" in drawn["title"]
    assert json.loads((tmp_path / "latent.json").read_text())["interpolate"] == 5


def test_a_row_of_each_truncation(ckpt, tmp_path, drawn) -> None:
    explore(ckpt, tmp_path, truncate="0.5,1", seed=4)
    assert list(drawn["rows"]) == ["temperature 0.5", "temperature 1"]
    assert drawn["captions"] == [f"seed {s}" for s in range(4, 12)]
    model = load_model(ckpt)
    with torch.no_grad():
        expected = model.sample(torch.arange(4, 12), temperature=0.5)
    torch.testing.assert_close(drawn["rows"]["temperature 0.5"], expected)


def test_a_walk_has_its_frames_and_begins_at_its_seed(ckpt, tmp_path, drawn, monkeypatch) -> None:
    monkeypatch.setattr(walk, "mp4", lambda frames, path, fps, comment: path)
    made = explore(ckpt, tmp_path, walk=30, seed=1, options={"temperature": 0.8, "top_k": None})
    assert made == [tmp_path / "walk.gif", tmp_path / "walk.mp4"]
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 30
    with torch.no_grad():
        first, middle = load_model(ckpt).sample(torch.tensor([1, 2]), temperature=0.8)
    torch.testing.assert_close(drawn["frames"][0], first, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn["frames"][15], middle, atol=1e-4, rtol=0)
    assert len(drawn["frames"]) == 30


def test_a_film_has_its_frames(tmp_path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    frames = [Image.new("RGB", (33, 24), (8 * k, 8 * k, 8 * k)) for k in range(20)]
    assert mp4(frames, tmp_path / "new" / "film.mp4", 10, "synthetic: by a test") == tmp_path / "new/film.mp4"
    with av.open(str(tmp_path / "new/film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.average_rate) == ("h264", 32, 24, 10)
        assert film.metadata["comment"] == "synthetic: by a test"
        grey = [frame.to_ndarray(format="rgb24").mean() for frame in film.decode(video=0)]
    assert np.abs(np.array(grey) - 8 * np.arange(20)).max() < 4
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["film.mp4"]


def test_without_pyav_the_gif_is_written_and_the_way_out_named(ckpt, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"walk\.mp4: MP4 needs PyAV, .*: pip install av\. walk\.gif is written"):
        explore(ckpt, tmp_path, walk=2)
    assert (tmp_path / "walk.gif").exists()
    assert not (tmp_path / "walk.mp4").exists()


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, message", [
    ({"interpolate": 1}, "--interpolate=1: allowed: a whole number from 2 on"),
    ({"walk": 0}, "--walk=0: allowed: a whole number from 2 on"),
    ({"walk": 4, "batch_size": 0}, "--batch-size=0: allowed: a whole number from 1 on"),
    ({"walk": 4, "seed": -1}, "--seed=-1: allowed: a whole number from 0 on"),
    ({"truncate": "0.5,x"}, "--truncate=0.5,x: allowed: numbers above 0 with commas between, such as 0.3,0.5,0.7,1"),
    ({"truncate": "0,1"}, "--truncate=0,1: allowed"),
    ({"truncate": ""}, "--truncate=: allowed"),
    ({"walk": 4, "label": "lesion"},
     "VAE was trained without labels; train one with model=pixelcnn model.condition=label"),
    ({"walk": 4, "options": {"truncation": 0.5}}, "--truncation: VAE has no such option; it takes temperature"),
])  # fmt: skip
def test_what_is_wrong_is_named_before_anything_is_written(ckpt, tmp_path, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        explore(ckpt, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_numbers() -> None:
    assert numbers("truncate", "0.3, 1") == [0.3, 1]
    with pytest.raises(UserError, match="--truncate=nan"):
        numbers("truncate", "nan")


class Plain(SynthModule):
    """Samples, and that is all."""

    def sample(self, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros(len(seeds), 1, 8, 8)


@pytest.mark.parametrize("arguments, message", [
    ({"walk": 4}, "Plain has no latent vector to go from one image to another by"),
    ({"interpolate": 4}, "Plain has no latent vector"),
    ({"truncate": "1"}, "--truncate: Plain has neither truncation nor temperature"),
])  # fmt: skip
def test_a_method_that_only_samples_is_refused(ckpt, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.setattr(walk, "load_model", lambda _: Plain(DataSpec(size=8)))
    with pytest.raises(UserError, match=message):
        explore(ckpt, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_command(ckpt, tmp_path: Path) -> None:
    out = tmp_path / "o"
    done = CliRunner().invoke(app, ["sample", str(ckpt), "-o", str(out), "--interpolate", "3", "--truncate", "0.5,1"])
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in out.iterdir()) == ["interpolation.png", "latent.json", "truncation.png"]
    assert str(out / "interpolation.png") in done.output
    done = CliRunner().invoke(app, ["sample", str(ckpt), "-o", str(out), "--truncate", "1", "-n", "1"])
    assert done.exit_code == 0, done.output
    assert (out / "sample_000000.png").exists()
