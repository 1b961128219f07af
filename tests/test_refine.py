"""Style transfer as a last step: pairs, files in and out, volumes slice after slice, going on where it was stopped."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import layouts
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_reconstruct import assert_same_header
from test_volume import affine_of
from typer.testing import CliRunner

from mri_synth import __version__
from mri_synth.cli import app
from mri_synth.errors import UserError
from mri_synth.models.style_images import read_style
from mri_synth.refine import refine
from mri_synth.refine.files import _contents, find
from mri_synth.refine.outputs import Outcome
from mri_synth.refine.restyler import Restyler, settings

SIZE = 32


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that make it quick: the first layers of VGG-19, with random weights."""
    vgg = layouts.vgg19(tmp_path_factory.mktemp("vgg") / "vgg.pth", "conv2_2")
    return [f"vgg={vgg}", "content_layers=[conv2_2]", "style_layers=[conv1_1,conv2_1]", "steps=8", "style_weight=300"]


def disc(seed: int, size: int = SIZE, fine: bool = False) -> np.ndarray:
    """(size, size) in [0, 1]: a disc of smooth or of fine texture on black."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]  # type: ignore[misc]
    inside = draw.uniform(0.25, 1, (size, size)) if fine else 0.6 + 0.2 * np.sin(3 * x + seed) * np.cos(4 * y)
    return np.where(x**2 + y**2 < 0.7, inside, 0)


def pictures(folder: Path, count: int, size: int = SIZE, fine: bool = False, start: int = 0) -> Path:
    """A folder as `mri-synth sample` writes it."""
    folder.mkdir(exist_ok=True, parents=True)
    for k in range(start, start + count):
        values = disc(k, size, fine) * 65535
        Image.fromarray(values.astype(np.uint16)).save(folder / f"sample_{k:06d}.png")
    Image.new("L", (64, 64)).save(folder / "sheet_000.png")
    return folder


def ball(path: Path, codes: str = "LAS", seed: int = 0, fine: bool = False) -> Path:
    """A volume of 20 x 22 x 9 voxels of int16; the first and the last slice are empty."""
    slices = np.stack([disc(seed, 22, fine)[1:-1] * (0.9 + 0.01 * k) for k in range(9)], -1)
    slices[..., [0, -1]] = 0
    image = nib.Nifti1Image((slices * 900).astype(np.int16), affine_of(codes, (1, 1, 2)))
    image.set_qform(affine_of(codes, (1, 1, 2)), code=1)
    nib.save(image, path)
    return path


def run(*inputs: Path, output: Path, style: Path | str, words: list[str], **more: Any) -> list[Outcome]:
    more = {"precision": "32", "device": "cpu"} | more
    return list(refine(inputs, output, style=str(style), settings=words, **more))


def grey(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def test_samples_in_the_style_of_others(tmp_path: Path, small: list[str]) -> None:
    samples, real = pictures(tmp_path / "samples", 3), pictures(tmp_path / "real", 3, fine=True)
    for content, style, out in ((samples, real, tmp_path / "a"), (real, samples, tmp_path / "b")):
        outcomes = run(content, output=out, style=style, words=[*small, "steps=20"])
        assert [o.state for o in outcomes] == ["written"] * 3
        names = [f"sample_{k:06d}" for k in range(3)]
        assert sorted(p.name for p in out.iterdir()) == sorted(["refined.csv", *(f"{n}{e}" for n in names
                                                                              for e in (".json", ".png"))])  # fmt: skip
        with (out / "refined.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [r["content"] for r in rows] == [str(content / f"{n}.png") for n in names]
        assert sorted(r["style"] for r in rows) == [str(style / f"{n}.png") for n in names]  # each is dealt once
        for row, name in zip(rows, names, strict=True):
            before, after = grey(content / f"{name}.png"), grey(out / f"{name}.png")
            assert after.shape == (SIZE, SIZE)
            assert (after == before)[disc(0) == 0].mean() > 0.9  # but for what closing the brain's holes adds
            assert (after != before)[disc(0) > 0].mean() > 0.95
            about = json.loads((out / f"{name}.json").read_text())
            assert about["synthetic"].startswith("restyled by mri_synth")
            assert about["style"] == row["style"]
            assert about["scores"]["style_left"] == pytest.approx(float(row["style_left"]), rel=1e-3)
            assert about["scores"]["style_left"] < 0.3
            assert row["state"] == "written"
        with Image.open(out / "sample_000000.png") as image:
            assert image.info["synthetic"] == f"synthetic: mri_synth {__version__}, refine, style transfer"
            assert image.mode.startswith("I;16")


def test_a_pair_in_a_batch_is_as_it_is_alone_whatever_its_size(tmp_path: Path, small: list[str]) -> None:
    """In bf16: convolutions in float32 are summed in another order for another batch on some processors."""
    content, style = pictures(tmp_path / "c", 3), pictures(tmp_path / "s", 1, 40, fine=True)
    pictures(content, 2, 48, start=3)
    words = [*small, "init=noise"]
    run(content, output=tmp_path / "a", style=style, words=words, batch_size=8, precision="bf16")
    run(content, output=tmp_path / "b", style=style, words=words, batch_size=1, precision="bf16")
    for k in range(5):
        one, other = (grey(tmp_path / d / f"sample_{k:06d}.png") for d in "ab")
        assert one.shape == ((32, 32) if k < 3 else (48, 48))
        np.testing.assert_allclose(one, other, atol=65)  # of 65535
    run(content, output=tmp_path / "c2", style=style, words=words, seed=1, precision="bf16")
    assert np.abs(grey(tmp_path / "c2/sample_000000.png") - grey(tmp_path / "a/sample_000000.png")).max() > 65


def test_styles_are_dealt_out_by_seed(tmp_path: Path) -> None:
    content, style = pictures(tmp_path / "c", 8), pictures(tmp_path / "s", 4)
    pairs = [find([content], str(style), tmp_path / "o", seed) for seed in (0, 0, 3)]
    assert pairs[0] == pairs[1] != pairs[2]
    for k in (0, 4):
        assert len({p.style for p in pairs[0][k : k + 4]}) == 4
    assert [p.output.name for p in pairs[0]] == [f"sample_{k:06d}.png" for k in range(8)]
    own = find([style], str(style), tmp_path / "o", 0)
    assert all(p.style != p.content for p in own)
    some = find([content], f"{style}/*_00000[12].png", tmp_path / "o", 0)
    assert {p.style.name for p in some} == {"sample_000001.png", "sample_000002.png"}


def test_what_is_there_is_not_made_again(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    content, style, out = pictures(tmp_path / "c", 3), pictures(tmp_path / "s", 1, fine=True), tmp_path / "o"

    def killed(path: Path, about: Any) -> None:
        if path.name == "sample_000001.json":
            raise KeyboardInterrupt
        path.write_text(json.dumps(about))

    with monkeypatch.context() as patch:
        patch.setattr("mri_synth.refine.outputs.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run(content, output=out, style=style, words=small, batch_size=1)
    assert not list(out.glob(".part*"))
    assert "written" in (out / "refined.csv").read_text()
    states = [o.state for o in run(content, output=out, style=style, words=small)]
    assert sorted(states) == ["skipped", "written", "written"]
    at = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert {o.state for o in run(content, output=out, style=style, words=small)} == {"skipped"}
    pictures(content, 1, start=7)
    outcomes = run(content, output=out, style=style, words=[*small, "steps=9"])
    assert [o.state for o in outcomes] == ["failed"] * 3 + ["written"]
    assert "sample_000000.png: is there, made with other settings. Give --overwrite" in outcomes[0].reason
    assert {p: p.stat().st_mtime_ns for p in at} == at
    assert {o.state for o in run(content, output=out, style=style, words=small, overwrite=True)} == {
        "skipped", "written"}  # fmt: skip
    measured = pictures(tmp_path / "m", 1) / "sample_000000.png"
    with pytest.raises(UserError, match="is there, and not known to be of mri-synth refine"):
        run(content / "sample_000000.png", output=measured, style=style, words=small)


@pytest.mark.parametrize("sign", ["VAE", 'VAE, "refine, style transfer"', "Pix2Pix, T2"])
def test_files_of_other_verbs_stay(tmp_path: Path, small: list[str], sign: str) -> None:
    content, style = pictures(tmp_path / "c", 1) / "sample_000000.png", pictures(tmp_path / "s", 1)
    sampled = pictures(tmp_path / "samples", 1, start=3) / "sample_000003.png"
    text = PngInfo()
    text.add_text("synthetic", f"synthetic: mri_synth {__version__}, {sign}")
    with Image.open(sampled) as image:
        image.save(sampled, pnginfo=text)
    before = sampled.read_bytes()
    with pytest.raises(UserError, match=r"is there, and not known to be of mri-synth refine\. Give --overwrite"):
        run(content, output=sampled, style=style, words=small)
    assert sampled.read_bytes() == before


def test_an_output_above_the_inputs_hides_none_of_them(tmp_path: Path) -> None:
    content, style = pictures(tmp_path / "c", 2), pictures(tmp_path / "s", 2)
    pairs = find([content], str(style), tmp_path, 0)
    assert [p.output for p in pairs] == [tmp_path / f"sample_{k:06d}.png" for k in range(2)]
    pictures(content / "out", 3, start=5)
    assert len(find([content], str(content), content / "out", 0)) == 2  # below them it holds no input
    with pytest.raises(UserError, match="is the folder of the styles itself"):
        find([content], str(style), style, 0)


def test_one_bad_file_is_reported_and_the_rest_is_done(tmp_path: Path, small: list[str]) -> None:
    content, style = pictures(tmp_path / "c", 3), pictures(tmp_path / "s", 3, fine=True)
    (content / "sample_000001.png").write_bytes(b"no picture")
    Image.new("RGB", (32, 32), (250, 0, 0)).save(content / "x.png")
    call = ["refine", str(content), "-o", str(tmp_path / "o"), "--style", str(style), "--device", "cpu",
            *(w for word in small for w in ("--set", word))]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1, result.output
    assert "2 written, 2 failed" in result.output
    assert "sample_000001.png: damaged or not a picture" in result.output
    assert "x.png: coloured" in result.output
    assert (tmp_path / "o/refined.csv").read_text().count("failed") == 2
    (content / "x.png").unlink()
    pictures(content, 1, start=1)
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "1 written, 2 skipped" in result.output or "2 written, 1 skipped" in result.output


@pytest.mark.parametrize(("codes", "plane"), [("LAS", "axial"), ("PSR", "coronal"), ("oblique", "axial")])
def test_a_volume_stays_in_its_place(tmp_path: Path, small: list[str], codes: str, plane: str) -> None:
    content = ball(tmp_path / "a.nii.gz", codes)
    style = pictures(tmp_path / "s", 1, fine=True)
    (outcome,) = run(content, output=tmp_path / "b.nii.gz", style=style, words=small, plane=plane)
    before, after = nib.load(content), nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == before.get_data_dtype()
    assert_same_header(content, tmp_path / "b.nii.gz", f"synthetic: mri_synth {__version__}, refine, style transfer")
    one, other = before.get_fdata(), after.get_fdata()
    assert (one == other)[one == 0].mean() > 0.9
    assert (one != other)[one > 0].mean() > 0.8
    if codes == "LAS":
        assert (one == other)[..., [0, -1]].all()
    about = outcome.about
    assert about is not None
    assert about["slice_consistency"]["against_source"]["ratio"] > 0
    assert not (tmp_path / "refined.csv").exists()


def test_slices_go_outwards_from_the_middle_each_from_its_neighbour(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, style = ball(tmp_path / "a.nii"), ball(tmp_path / "s.nii", seed=1, fine=True)
    calls: list[Any] = []

    def painted(self: Restyler, images: Any, styles: Any, seeds: Any, begin: Any = None, times: int = 1) -> Any:
        calls.append((images, begin, [float(s.max()) for s in styles], times))
        return images / 2 - len(calls) / 100, {"style_left": np.zeros(len(images))}

    monkeypatch.setattr(Restyler, "painted", painted)
    run(content, output=tmp_path / "o.nii", style=style, words=[*small, "region=image"])
    assert [len(c[0]) for c in calls] == [1, 2, 2, 2, 2]  # 9 slices: all are restyled, from the fifth
    assert calls[0][1] is None
    assert [c[3] for c in calls] == [4, 1, 1, 1, 1]
    for k in (2, 3, 4):  # the change of the slice before, on its own content
        torch.testing.assert_close(calls[k][1], (calls[k][0] - calls[k - 1][0] / 2 - k / 100).clamp(-1, 1))
    calls.clear()
    run(content, output=tmp_path / "p.nii", style=style, words=small, neighbours=False, batch_size=4)
    assert [len(c[0]) for c in calls] == [4, 3]  # of the brain's region, 7 slices that show something
    assert calls[0][1] is None
    assert calls[0][2][0] < calls[1][2][-1]  # styles of the same height, brighter upwards


def test_a_volume_at_a_smaller_size_and_alone_as_in_a_batch(tmp_path: Path, small: list[str]) -> None:
    content, style = ball(tmp_path / "a.nii"), ball(tmp_path / "s.nii", seed=1, fine=True)
    run(content, output=tmp_path / "b.nii", style=style, words=small, size=16)
    one, other = (nib.load(tmp_path / f"{n}.nii").get_fdata() for n in "ab")
    assert other.shape == one.shape
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8
    assert read_style(style).scaled(0, 8, (2.0, 1.0)).shape == (1, 1, 11, 20)
    assert read_style(style).scaled(None, 10).shape == (1, 1, 11, 10)
    assert read_style(style).filled.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_painting_lends_its_style(tmp_path: Path, small: list[str]) -> None:
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "painting.jpg")
    content = pictures(tmp_path / "c", 1) / "sample_000000.png"
    (outcome,) = run(content, output=tmp_path / "o.png", style=tmp_path / "painting.jpg", words=small)
    assert outcome.about is not None
    assert outcome.about["scores"]["style_left"] < 0.9


def test_an_image_in_two_formats_is_taken_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = pictures(tmp_path / "c", 2)
    ball(content / "sample_000001.nii.gz")
    ball(content / "sample_000001_mask.nii.gz")
    pairs = find([content], str(pictures(tmp_path / "s", 1)), tmp_path / "o", 0)
    assert [p.name for p in pairs] == ["sample_000000.png", "sample_000001.nii.gz"]
    assert "1 pictures left out, which are there as NIfTI too" in caplog.text
    assert "1 label maps left out: sample_000001_mask.nii.gz" in caplog.text


def test_refusals(tmp_path: Path, small: list[str]) -> None:
    content, style, out = pictures(tmp_path / "c", 2), pictures(tmp_path / "s", 1), tmp_path / "o"
    volume = ball(tmp_path / "a.nii")
    (tmp_path / "empty").mkdir()
    plain: dict[str, Any] = {"style": style, "words": small}
    deep = ["content_layers=[conv5_1]"]
    for message, call in {
        r"unknown key model\.stepz; did you mean model\.steps\?": lambda: settings(["stepz=3"]),
        r"model\.pooling=avg: allowed: average or max": lambda: settings(["pooling=avg"]),
        r"--set style=x: style is given by --style": lambda: settings(["style=x"]),
        r"--set region=mask: files come without masks": lambda: settings(["region=mask"]),
        r"model\.vgg=none\.pth: no such file": lambda: settings(["vgg=none.pth"]),
        r"mri-synth weights get vgg19": lambda: run(content, output=out, style=style, words=[]),
        r"ends before|of conv2_1|not VGG-19": lambda: run(content, output=out, style=style, words=[*small, *deep]),
        r"--style=nowhere: no such file or folder": lambda: run(content, output=out, style="nowhere", words=small),
        r"--style=.*empty: no picture": lambda: run(content, output=out, style=tmp_path / "empty", words=small),
        r"empty: no picture and no volume": lambda: run(tmp_path / "empty", output=out, **plain),
        r"one file for 2 results": lambda: run(content, output=tmp_path / "o.png", **plain),
        r"is the input itself": lambda: run(content, output=content, **plain),
        r"a folder beside other inputs": lambda: run(content, volume, output=out, **plain),
        r"nothing to refine": lambda: run(output=out, **plain),
        r"none\.png: no such file": lambda: run(tmp_path / "none.png", output=out, **plain),
        r"a volume is written as \.nii": lambda: run(volume, output=tmp_path / "o.png", **plain),
        r"--size=3: 4 pixels or more are needed": lambda: run(content, output=out, size=3, **plain),
        r"--batch-size=0": lambda: run(content, output=out, batch_size=0, **plain),
        r"--plane=top: allowed: sagittal, coronal, axial": lambda: run(content, output=out, plane="top", **plain),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            call()
    assert not out.exists()
    assert not list(tmp_path.glob("o.*"))
    layouts.text(tmp_path / "other/refined.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match=r"refined\.csv: belongs to something else"):
        run(content, output=tmp_path / "other", **plain)


def test_an_output_above_an_input_with_a_subfolder_of_its_own_name_is_refused(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/in/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"in/b\.png would be written among the inputs\. Give the output another"):
        _contents([tmp_path / "in"], tmp_path)
    assert [n for n, _ in _contents([tmp_path / "in/in"], tmp_path)] == ["b.png"]
    assert [n for n, _ in _contents([tmp_path / "in"], tmp_path / "in/out")] == ["a.png", "in/b.png"]
