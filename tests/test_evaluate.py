"""`mri-synth evaluate`: distances by hand, sets whose figures are known, planted copies, refusals."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import layouts
import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from mri_synth import drawing
from mri_synth.cli import app
from mri_synth.data.stored import cache_folder
from mri_synth.errors import UserError
from mri_synth.evaluate import evaluate, figures, usefulness
from mri_synth.evaluate.figures import by_subject
from mri_synth.evaluate.folder import Reading
from mri_synth.evaluate.images import ImageSet
from mri_synth.evaluate.sources import open_set
from mri_synth.metrics.appearance import FLOOR, compared, histograms, radial_power, spectrum_distance, wasserstein
from mri_synth.run import run

SIDE = 32
PHANTOM = "data=phantom data.subjects=[4,2,2] data.size=32"


def brain(seed: int, blot: bool = False) -> NDArray[np.float64]:
    """A soft ellipse in [0, 1], every seed another; with a bright square where asked."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    (a, b), (cx, cy) = rng.uniform(0.5, 0.9, 2), rng.uniform(-0.2, 0.2, 2)
    r = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2
    image = (r < 1) * (0.5 + 0.2 * np.cos(5 * r + rng.uniform(0, 6))) + 0.02 * rng.standard_normal((SIDE, SIDE))
    if blot:
        v, u = rng.integers(6, 16, 2)
        image[v : v + 10, u : u + 10] = 1
    clipped: NDArray[np.float64] = np.clip(image, 0, 1)
    return clipped


def write(path: Path, image: NDArray[Any], bits: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.rint(image * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(values).save(path)
    return path


def brains(folder: Path, first: int, n: int = 24, name: str = "p") -> Path:
    """Pictures of two slices a subject."""
    for k in range(n):
        write(folder / f"{name}{k // 2:02d}_slice_{k % 2}.png", brain(first + k))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def judged(real: Path | str, fake: Path | str, output: Path, **given: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"features": ["pixels"], "with_utility": False} | given
    return evaluate(str(real), str(fake), output, **chosen)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brains(tmp_path_factory.mktemp("real"), 0)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brains(tmp_path_factory.mktemp("train"), 1000, name="q")


# -- distances by hand ---------------------------------------------------------------------------------------------


def test_a_histogram_that_is_moved_is_as_far_as_it_was_moved() -> None:
    dark, bright = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)
    half = torch.cat([dark, bright], 2)
    a, b, c = (histograms(x)[0] for x in (dark, bright, half))
    assert (a[0], b[-1], c[0], c[-1]) == (1, 1, 0.5, 0.5)
    assert wasserstein(a, a) == 0
    assert wasserstein(a, b) == pytest.approx(255 / 256)
    assert wasserstein(a, c) == pytest.approx(255 / 512)  # half of the pixels go all the way
    assert wasserstein(np.eye(256)[10], np.eye(256)[13]) == pytest.approx(3 / 256)


def test_a_wave_has_power_at_its_frequency_alone() -> None:
    """A wave of amplitude A on [0, 1] has power A^2 / 4 at two points of the ring."""
    x = torch.arange(32) / 32
    wave = 0.6 * torch.cos(2 * math.pi * 5 * x).expand(32, 32)  # of [-1, 1], so that A is 0.3
    power = radial_power(wave[None, None])[0]
    assert power.shape == (16,)
    freq = np.fft.fftfreq(32) * 32
    ring = np.rint(np.hypot(freq[:, None], freq[None]))
    assert power[4] == pytest.approx(2 * 0.3**2 / 4 / (ring == 5).sum(), rel=1e-5)
    assert np.delete(power, 4).max() < 1e-12


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (8, 13)])
def test_power_is_that_of_the_full_transform(shape: tuple[int, int]) -> None:
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = np.abs(np.fft.fft2((image[0, 0].double().numpy() + 1) / 2)) ** 2 / math.prod(shape) ** 2
    down, across = (np.fft.fftfreq(n) * min(shape) for n in shape)
    ring = np.rint(np.hypot(down[:, None], across[None]))
    expected = [whole[ring == k].mean() for k in range(1, min(shape) // 2 + 1)]
    np.testing.assert_allclose(radial_power(image)[0], expected, rtol=1e-4)


def test_twice_the_amplitude_is_six_decibels() -> None:
    a = np.array([1e-3, 1e-4, 1e-5])
    assert spectrum_distance(a, a) == 0
    assert spectrum_distance(4 * a, a) == pytest.approx(20 * math.log10(2))
    assert spectrum_distance(a * 0, np.full(3, FLOOR / 7)) == 0  # below the floor all are alike


def test_halves_and_interval_of_a_distance() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = compared(rows, rows, wasserstein, np.array(list("aabb")), [(np.array([0, 2]), np.array([1, 3]))])
    assert found == {"value": 0.0, "ci": None, "real_against_real": 0.5}
    many = np.tile(rows, (5, 1))
    low, high = compared(many, many, wasserstein, np.arange(20), [])["ci"]
    assert low == 0 < high < 0.5


# -- sets whose figures are known ----------------------------------------------------------------------------------


def test_two_images_of_each_are_enough(tmp_path: Path) -> None:
    for name, first in (("real", 0), ("fake", 5), ("train", 9)):
        brains(tmp_path / name, first, n=2, name=name)
    found = judged(tmp_path / "real", tmp_path / "fake", tmp_path / "out", train=str(tmp_path / "train"))
    assert found["counts"] == {"fake": 2, "real": 2, "real_subjects": 1}
    assert found["kid"]["ci"] is None
    assert found["fid"]["real_against_real"] is None
    assert any("one subject" in note for note in found["notes"])


def test_a_set_against_itself(real: Path, tmp_path: Path) -> None:
    found = judged(real, shutil.copytree(real, tmp_path / "same"), tmp_path / "out")
    assert abs(found["kid"]["value"]) < abs(found["kid"]["real_against_real"]) + 0.05
    assert found["fid"]["all"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["shares"] == {"covered": 1.0, "precise": 1.0}
    assert all(share == 1 for _, _, share in found["by_subject"]["real"])
    assert found["looks"]["histogram"]["value"] == found["looks"]["spectrum"]["value"] == 0
    assert found["overlaps"][0]["files"] == found["overlaps"][0]["images"] == 24
    assert "FAKE and REAL share 24 files, 24 images" in found["verdicts"][0]
    assert "judged against themselves" in (tmp_path / "out/evaluation.html").read_text()


def test_noise_is_nothing_like_brains(real: Path, tmp_path: Path) -> None:
    for k in range(24):
        write(tmp_path / f"noise/{k}.png", np.random.default_rng(k).random((SIDE, SIDE)))
    found = judged(real, tmp_path / "noise", tmp_path / "out")
    assert found["kid"]["ci"][0] > 10 * abs(found["kid"]["real_against_real"])
    assert found["fid"]["ratio"] > 3
    assert found["shares"] == {"covered": 0.0, "precise": 0.0}
    assert found["prdc"]["fake"]["precision"] == 0
    assert found["looks"]["histogram"]["value"] > 3 * found["looks"]["histogram"]["real_against_real"]
    assert found["looks"]["spectrum"]["value"] > 3 * found["looks"]["spectrum"]["real_against_real"]
    assert not found["overlaps"]


def test_brains_of_the_same_kind_are_as_far_as_reals_from_one_another(real: Path, tmp_path: Path) -> None:
    fake = brains(tmp_path / "fake", 2000, name="f")
    found, again = (judged(real, fake, tmp_path / name) for name in ("a", "b"))
    assert 0.5 < found["fid"]["ratio"] < 2
    assert found["fid"]["n"] <= 12  # half of the real images
    low, high = found["kid"]["ci"]
    assert low <= found["kid"]["value"] <= high
    low, high = found["looks"]["histogram"]["ci"]
    assert low <= found["looks"]["histogram"]["value"] <= high
    assert found["kid"] == again["kid"]
    assert found["looks"] == again["looks"]


# -- copies --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return brains(tmp_path / "fake", 2000, name="f")


def test_without_a_copy_none_is_found(real: Path, train: Path, fake: Path, tmp_path: Path) -> None:
    found = judged(real, fake, tmp_path / "out", train=str(train))
    assert found["memorisation"]["copies"] == []
    assert found["memorisation"]["held_out_below"] == 0
    low, high = found["memorisation"]["features"]["copy_rate_ci"]
    assert low < 0.5 < high
    assert "no copies" in found["verdicts"][-1]
    assert (tmp_path / "out/pictures/nearest_pixels.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["the file", "in 16 bits", "noisy", "mirrored"])
def test_a_planted_copy_is_caught(real: Path, train: Path, fake: Path, tmp_path: Path, kind: str) -> None:
    source = train / "q03_slice_1.png"
    with Image.open(source) as opened:
        image = np.asarray(opened) / 255
    if kind == "the file":
        shutil.copy(source, fake / "planted.png")
    elif kind == "in 16 bits":
        write(fake / "planted.png", image, bits=16)
    else:
        image = image[:, ::-1] if kind == "mirrored" else image
        write(fake / "planted.png", np.clip(image + 0.01 * np.random.default_rng(0).standard_normal(image.shape), 0, 1))
    found = judged(real, fake, tmp_path / "out", train=str(train))
    (copy,) = found["memorisation"]["copies"]
    assert copy["places"] == {"fake": "planted.png", "train": "q03_slice_1.png"}
    assert copy["mirrored"] == (kind == "mirrored")
    assert ("every pixel" in copy["by"]) == (kind in ("the file", "in 16 bits"))
    assert any(v.startswith("COPIES: 1 of the 25 fakes") for v in found["verdicts"])
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "planted.png" in page
    assert (tmp_path / "out/pictures/copies.png").exists()


def test_a_held_out_image_that_was_trained_on_is_said(real: Path, train: Path, fake: Path, tmp_path: Path) -> None:
    leaked = shutil.copytree(train, tmp_path / "leaked")
    shutil.copy(real / "p00_slice_0.png", leaked / "other.png")
    found = judged(real, fake, tmp_path / "out", train=str(leaked))
    assert found["overlaps"][0]["sets"] == ["real", "train"]
    assert "p00_slice_0.png = other.png): held-out images were trained on" in found["verdicts"][0]
    assert found["memorisation"]["limits"]["pixels"] > 0  # the leaked image does not hide copies
    assert found["memorisation"]["held_out_below"] == 1


def test_no_copies_are_said_of_what_was_looked_at_alone(real: Path, train: Path, fake: Path, tmp_path: Path) -> None:
    found = judged(real, fake, tmp_path / "out", train=str(train), at_most=10)
    assert found["verdicts"][-1].endswith("were found among 10 of 24 training images (--at-most).")
    assert "or all but one among 10 of 24 training images" in (tmp_path / "out/evaluation.html").read_text()


def test_figures_by_subject_are_of_images_drawn_at_random(
    real: Path, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet("real", "here", tmp_path)
    images.add(np.zeros((200, 4, 4), np.float32), "a", subjects=["first"] * 100 + ["second"] * 100)
    vectors = dict.fromkeys(("fake", "real"), np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32))
    found = [by_subject(images, images, vectors, 3, most=40, seed=seed)["by_subject"]["real"] for seed in (0, 0, 1)]
    assert {name: 10 < n < 30 for name, n, _ in found[0]} == {"first": True, "second": True}
    assert found[0] == found[1] != found[2]
    monkeypatch.setattr(figures, "MOST", 20)
    notes = judged(real, fake, tmp_path / "out")["notes"]
    assert "figures by subject are of 20 of the 24 real images, drawn at random by the seed" in notes


def test_fakes_that_repeat_one_another_are_counted(real: Path, fake: Path, tmp_path: Path) -> None:
    shutil.copy(fake / "f00_slice_0.png", fake / "again.png")
    assert judged(real, fake, tmp_path / "out")["repeated"] == 1


# -- sources -------------------------------------------------------------------------------------------------------


def test_volumes_of_bids_names_and_their_subjects(tmp_path: Path, out: Path) -> None:
    for k in range(3):
        layouts.nifti(tmp_path / f"bids/sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz", seed=k)
    found = open_set("real", str(tmp_path / "bids"), Reading(output=out, size=16))
    assert sorted(set(found.subjects)) == ["sub-00", "sub-01", "sub-02"]
    assert found.shape == (16, 16)
    assert found.about["intensity"] == ["percentile"]
    assert found.about["empty_slices_left_out"] > 0  # below and above the head
    assert len(found) + found.about["empty_slices_left_out"] == 3 * 14
    images = found.images([0, len(found) - 1])
    assert images.min() >= -1
    assert images.max() <= 1


def test_a_table_in_the_folder_says_whose_images_they_are(tmp_path: Path, out: Path) -> None:
    for k in range(4):
        write(tmp_path / f"set/{k}.png", brain(k))
    lines = ["file,subject,label", *(f"{k}.png,s{k // 2},{'ab'[k // 2]}" for k in range(4))]
    (tmp_path / "set/subjects.csv").write_text("\n".join(lines) + "\n")
    found = open_set("real", str(tmp_path / "set"), Reading(output=out))
    assert (found.subjects.tolist(), found.labels.tolist()) == (["s0", "s0", "s1", "s1"], list("aabb"))
    few = open_set("real", str(tmp_path / "set"), Reading(output=out, at_most=3))
    assert (len(few), few.record()["of"]) == (3, 4)


def test_a_set_gives_back_what_was_put_in(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (5, 6, 7)).astype(np.float32)
    found = ImageSet("real", "here", tmp_path)
    found.add(images[:3], "a", numbers=[4, 5, 6])
    found.add(images[3:], "b", subjects=["x", "y"])
    np.testing.assert_allclose(found.images([4, 0, 2])[:, 0], images[[4, 0, 2]], atol=2e-5)
    assert found.places.tolist() == ["a slice 4", "a slice 5", "a slice 6", "b", "b"]
    assert not list(tmp_path.iterdir())  # the file has no name


def test_data_words_with_their_training_split_and_a_checkpoint(tmp_path: Path, compose: Any) -> None:
    words = [*PHANTOM.split(), "model=vae", "model.hidden_channels=8", "logger=csv", "data.batch_size=8", "samples=0",
             "trainer.max_epochs=1", "trainer.progress=false", "trainer.pictures=0"]  # fmt: skip
    run(compose(*words), tmp_path / "run", [])
    done = CliRunner().invoke(app, ["evaluate", PHANTOM, str(tmp_path / "run/best.ckpt"), "-o", str(tmp_path / "out"),
                                    "-n", "12", "--features", "pixels"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "KID" in done.output
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["sets"]["real"]["splits"] == ["val", "test"]
    assert found["sets"]["train"]["splits"] == ["train"]
    assert (found["sets"]["fake"]["kind"], found["sets"]["fake"]["images"]) == ("checkpoint", 12)
    assert found["memorisation"]["copies"] == []
    assert "SIMULATED DATA" in (tmp_path / "out/evaluation.html").read_text()
    assert {"command", "versions", "git", "machine"} <= set(found)
    with (tmp_path / "out/files.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["set"] for r in rows} == {"real", "fake", "train"}
    store = next(p for p in cache_folder(None).iterdir() if (p / "meta.json").exists() and "phantom" in p.name)
    assert len(open_set("fake", str(store), Reading(output=tmp_path))) > 2


# -- utility -------------------------------------------------------------------------------------------------------


def test_fakes_of_the_wrong_class_are_good_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(48):
        marked = k % 2 == 1
        write(tmp_path / f"real/{('none', 'tumour')[marked]}/p{k}.png", brain(k, marked))
        write(tmp_path / f"right/{('none', 'tumour')[marked]}/f{k}.png", brain(3000 + k, marked))
        write(tmp_path / f"wrong/{('tumour', 'none')[marked]}/f{k}.png", brain(3000 + k, marked))
    monkeypatch.setattr(usefulness, "STEPS", 100)
    monkeypatch.setattr(usefulness, "BATCH", 12)
    monkeypatch.setattr(usefulness, "SEEDS", 1)
    right, wrong = (judged(tmp_path / "real", tmp_path / n, tmp_path / f"{n}_out", with_utility=True)["utility"]
                    for n in ("right", "wrong"))  # fmt: skip
    assert 8 <= right["n_per_class"] == wrong["n_per_class"] <= 12  # of half of the real images
    assert right["by_seed"]["fake"][0] > 0.8
    assert wrong["by_seed"]["fake"][0] < 0.2
    assert right["by_seed"]["real"] == wrong["by_seed"]["real"]
    assert "told_fake" in right["by_seed"]
    assert (
        "Told apart on 24 real test images: none against tumour" in (tmp_path / "right_out/evaluation.html").read_text()
    )


def test_what_is_trained_on_is_not_tested_on(tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(32):
        name = ("none", "tumour")[k % 2]
        write(tmp_path / f"real/{name}/p{k // 2:02d}_slice_{k % 2}.png", brain(k))
        write(tmp_path / f"fake/{name}/f{k}.png", brain(3000 + k))
        person = f"p{k // 2:02d}" if k < 4 else f"q{k // 2:02d}"  # two of REAL's subjects, with other slices
        write(tmp_path / f"train/{name}/{person}_slice_{k % 2}.png", brain(31 if k == 6 else 5000 + k))  # and one image
    for name, value in (("STEPS", 1), ("BATCH", 2), ("SEEDS", 1)):
        monkeypatch.setattr(usefulness, name, value)
    found = judged(tmp_path / "real", tmp_path / "fake", tmp_path / "out", train=str(tmp_path / "train"),
                   with_utility=True)["utility"]  # fmt: skip
    assert found["test_images"] == 32 - 4 - 1
    assert found["notes"][0] == ("5 of 32 images of REAL are left out of the test: they, or images of their subjects, "
                                 "are in TRAIN.")  # fmt: skip
    found = judged(tmp_path / "real", tmp_path / "fake", tmp_path / "out", train=str(tmp_path / "real"),
                   with_utility=True)["utility"]  # fmt: skip
    assert "there are 16 and 0. Give more of none in REAL to test on, tumour in REAL to test on. 32 of 32" in (
        found["missing"])  # fmt: skip


def test_without_classes_there_is_no_utility(real: Path, fake: Path, tmp_path: Path) -> None:
    found = judged(real, fake, tmp_path / "out", with_utility=True)
    assert "two classes or more in common" in found["utility"]["missing"]


# -- refusals ------------------------------------------------------------------------------------------------------


def test_sizes_that_differ_are_refused_with_the_way_out(real: Path, tmp_path: Path) -> None:
    for k in range(12):
        write(tmp_path / f"large/{k}.png", np.kron(brain(4000 + k), np.ones((2, 2))))
    with pytest.raises(UserError, match=r"real 32x32.* fake 64x64.*--size 32 brings all"):
        judged(real, tmp_path / "large", tmp_path / "out")
    assert judged(real, tmp_path / "large", tmp_path / "out", size=32)["sets"]["fake"]["size"] == [32, 32]
    write(tmp_path / "large/small.png", brain(1))
    with pytest.raises(UserError, match=r"fake: images of several sizes: 64x64 .* and 32x32 \(small.png\); --size 32"):
        judged(real, tmp_path / "large", tmp_path / "out")


@pytest.mark.parametrize(("given", "message"), [
    ({"fake": "nowhere"}, "fake: nowhere: no such folder; allowed: a folder"),
    ({"fake": "data=nothing"}, "nothing"),
    ({"n": 1}, "-n=1: allowed: a whole number from 2"),
    ({"size": 4}, "--size=4: allowed"),
    ({"plane": "oblique"}, "--plane=oblique: allowed: axial"),
    ({"intensity": "raw"}, "--intensity=raw: allowed: auto"),
    ({"features": ["resnet"]}, "features=resnet: no such file"),
])  # fmt: skip
def test_words_that_mean_nothing(real: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    given = {"real": str(real), "fake": str(real)} | given
    with pytest.raises(UserError, match=message):
        judged(given.pop("real"), given.pop("fake"), tmp_path / "out", **given)


def test_folders_that_cannot_be_used(real: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"fake: .*empty: no picture and no volume"):
        judged(real, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match=r"-o .*: is the folder of real itself"):
        judged(real, tmp_path / "empty", real)
    lone = write(tmp_path / "one/a.png", brain(0))
    with pytest.raises(UserError, match=r"fake: 1 image\(s\) in .*; at least 2 are needed"):
        judged(real, tmp_path / "one", tmp_path / "out")
    with pytest.raises(UserError, match=r"real: .*a\.png: one file; allowed"):
        judged(lone, tmp_path / "one", tmp_path / "out")
    (tmp_path / "one/broken.png").write_bytes(lone.read_bytes()[:60])
    (tmp_path / "one/void.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)fake: 2 of 3 files cannot be used.*broken\.png.*void\.png"):
        judged(real, tmp_path / "one", tmp_path / "out")
    write(tmp_path / "one/b.png", brain(1))
    found = judged(real, tmp_path / "one", tmp_path / "out", skip_bad=True)
    assert len(found["sets"]["fake"]["left_out"]) == 2
    assert any("2 files could not be used and were left out" in note for note in found["notes"])


def test_a_folder_with_files_that_are_not_of_an_evaluation_is_left_alone(
    real: Path, fake: Path, tmp_path: Path
) -> None:
    for name in ("files.csv", "pictures/copies.png"):
        mine = layouts.text(tmp_path / f"{Path(name).stem}/{name}", "mine")
        out = tmp_path / Path(name).stem
        with pytest.raises(UserError, match=rf"{name} is there and would be replaced.*give another folder"):
            judged(real, fake, out)
        assert mine.read_text() == "mine"
        assert [p for p in out.rglob("*") if p.is_file()] == [mine]
    mine.rename(tmp_path / "copies/notes.txt")
    for _ in range(2):  # other files are no hindrance, nor an evaluation before
        assert judged(real, fake, tmp_path / "copies")["verdicts"]
    images = brains(tmp_path / "all/pictures", 0)
    with pytest.raises(UserError, match=r"-o .*all: pictures of the results would be written among the images of"):
        judged(images, fake, tmp_path / "all")


def test_inputs_below_the_output_are_read(real: Path, fake: Path, tmp_path: Path) -> None:
    shutil.copytree(real, tmp_path / "real")
    found = judged(tmp_path / "real", fake, tmp_path)
    assert found["counts"] | {"real_subjects": 0} == {"fake": 24, "real": 24, "real_subjects": 0}
    with Image.open(tmp_path / "pictures/real.png") as image:
        assert "Description" not in image.info  # nothing on it is synthetic
    with Image.open(tmp_path / "pictures/fake.png") as image:
        assert image.info["Description"] == drawing.SIGN


def test_volumes_in_units_and_in_arbitrary_ones_are_not_mixed(tmp_path: Path, out: Path) -> None:
    (tmp_path / "mixed").mkdir()
    for name, scale in (("a", 1000), ("b", 1)):
        nib.save(nib.Nifti1Image(layouts.brain(0) / scale, layouts.AFFINE), tmp_path / f"mixed/{name}.nii.gz")
    with pytest.raises(UserError, match=r"some volumes lie in \[0, 1\] \(a.nii.gz\) and others do not \(b.nii.gz\)"):
        open_set("real", str(tmp_path / "mixed"), Reading(output=out))
