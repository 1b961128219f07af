"""Translated files: a model whose answer is known at every voxel, saved and loaded as any checkpoint is."""

from __future__ import annotations

import errno
import gzip
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import layouts
import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from test_reconstruct import head
from test_volume import affine_of
from torch import Tensor, nn
from typer.testing import CliRunner

from mri_synth import __version__
from mri_synth.cli import app
from mri_synth.data.batch import DataSpec
from mri_synth.data.frame import Frame
from mri_synth.data.settings import IntensitySettings
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.tiles import Tiles, convolutional, starts
from mri_synth.translate import Outcome, translate
from mri_synth.translate.names import output_name
from mri_synth.translate.translator import Options

SEEN: list[tuple[int, ...]] = []
Checkpoint = Callable[..., Path]


class Invert(SynthModule):
    """The negative of the first source."""

    def translate(self, source: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        assert source.abs().max() <= 1 + 1e-6
        SEEN.append(tuple(source.shape))
        return -source[:, :1]


class Mean(SynthModule):
    """The mean of the sources that are there; says which those were."""

    asked: Sequence[str] | None = None

    def __init__(self, spec: DataSpec | dict[str, Any], contrast_dropout: float = 0.0) -> None:
        super().__init__(spec)

    def translate(self, source: Tensor, *, available: Sequence[str] | None = None) -> Tensor:
        Mean.asked = available
        there = [k for k, name in enumerate(self.spec.sources) if available is None or name in available]
        return source[:, there].mean(1, keepdim=True)


class BothWays(SynthModule):
    """The negative one way, black the other."""

    def translate(self, source: Tensor, *, to: str | None = None) -> Tensor:
        return -source if to in (None, self.spec.goal) else torch.full_like(source, -1)


class Places(Invert):
    """Knows where in the frame a pixel is."""

    def __init__(self, spec: DataSpec | dict[str, Any]) -> None:
        super().__init__(spec)
        self.places = nn.Parameter(torch.zeros(1, 1, self.spec.size, self.spec.size))


class Convolution(SynthModule):
    """Copies by a convolution of 1x1 and says in what it computed."""

    dtype_seen: torch.dtype | None = None

    def __init__(self, spec: DataSpec | dict[str, Any]) -> None:
        super().__init__(spec)
        self.layer = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def translate(self, source: Tensor) -> Tensor:
        assert source.is_contiguous(memory_format=torch.channels_last)
        out: Tensor = self.layer(source)
        Convolution.dtype_seen = out.dtype
        return out


class Broken(SynthModule):
    """Gives NaN."""

    def translate(self, source: Tensor) -> Tensor:
        return source * torch.nan


class Large(SynthModule):
    """Gives another shape."""

    def translate(self, source: Tensor) -> Tensor:
        return source[:, :, 1:]


@pytest.fixture(scope="module")
def trainer() -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


@pytest.fixture
def checkpoint(tmp_path: Path, trainer: pl.Trainer) -> Checkpoint:
    """`checkpoint(Invert, size=16, sources=("T1",), ...)`: a file as a run writes it."""

    def make(
        kind: type[SynthModule] = Invert, sources: tuple[str, ...] = ("T1",), goal: str = "T2", spacing: Any = None,
        arguments: dict[str, Any] | None = None, name: str = "best.ckpt", **changes: Any,
    ) -> Path:  # fmt: skip
        SEEN.clear()
        how = {"plane": "axial", "fit": "crop", "size": 16, "spacing_mm": None, "contrasts": (*sources, goal)}
        how |= {"intensity": asdict(IntensitySettings(method="minmax"))} | changes
        spec = DataSpec(size=how["size"], contrasts=(*sources, goal), sources=sources, goal=goal, plane=how["plane"],
                        preparation=how, spacing_mm=spacing)  # fmt: skip
        model = kind(spec, **(arguments or {}))
        model.trainer = trainer
        trainer.strategy.connect(model)
        trainer.save_checkpoint(tmp_path / "run" / name, weights_only=True)
        return tmp_path / "run" / name

    return make


def run(*arguments: Any, **options: Any) -> list[Outcome]:
    options.setdefault("device", "cpu")
    return list(translate(*arguments, **options))


def about(path: Path) -> dict[str, Any]:
    return dict(json.loads(Path(str(path).removesuffix(".gz").removesuffix(".nii") + ".json").read_text()))


def header_of(path: Path) -> nib.Nifti1Header:
    content = path.read_bytes()
    return nib.Nifti1Header((gzip.decompress(content) if path.suffix == ".gz" else content)[:348], check=False)


def assert_same_place(before: Path, after: Path, name: str = "Invert") -> None:
    """Every field of the stored header but those that say what the numbers are."""
    one, two = header_of(before), header_of(after)
    changed = {
        "descrip": f"synthetic: mri_synth {__version__}, {name}, T2", "datatype": 16, "bitpix": 32, "scl_slope": 1.0,
        "scl_inter": 0.0, "cal_min": 0.0, "cal_max": 0.0,
    }  # fmt: skip
    for field in one:
        value = two[field].item() if two[field].ndim == 0 else two[field]
        if field in changed:
            assert (value.decode() if isinstance(value, bytes) else value) == changed[field], field
        else:
            np.testing.assert_array_equal(one[field], two[field], err_msg=field)


def inverted(path: Path) -> np.ndarray:
    """What `Invert` makes of a file, in the units of the output."""
    values = nib.load(path).get_fdata()
    return 1000 * (values.max() - values) / (values.max() - values.min())


# -- one file: values, place, header ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["PSR", "LAS", "RAS", "oblique"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_every_voxel_is_known_and_stays_in_its_place(tmp_path, checkpoint, codes, plane):
    source, output = head(tmp_path / "a.nii.gz", codes, slope=0.25), tmp_path / "b.nii.gz"
    (done,) = run(checkpoint(plane=plane), [source], output, batch_size=4)
    assert (done.state, done.job.output) == ("written", output)
    np.testing.assert_allclose(nib.load(output).get_fdata(), inverted(source), atol=1e-3)
    np.testing.assert_array_equal(nib.load(output).affine, nib.load(source).affine)
    assert_same_place(source, output)
    assert {shape[1:] for shape in SEEN} == {(1, 16, 16)}
    assert max(shape[0] for shape in SEEN) == 4


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((6, 7, 8, 1), (1, 1, 1)), ((2, 2, 2), (1, 1, 1)), ((9, 8, 3), (0.9, 0.9, 6.0)), ((5, 1, 4), (1, 4, 1)),
     ((7, 9), (1, 2))],
    ids=["4-D of one frame", "tiny", "anisotropic", "one slice", "2-D"],
)  # fmt: skip
def test_odd_shapes_come_back(tmp_path, checkpoint, shape, spacing):
    rng = np.random.default_rng(0)
    affine = affine_of("LPS", (*spacing, 1.0)[:3])
    image = nib.Nifti1Image(rng.integers(0, 900, shape).astype(np.int16), affine)
    image.header["cal_max"], image.header["aux_file"] = 700, b"kept"
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "a.nii")
    plane = "coronal" if shape[1] == 1 else "axial"
    run(checkpoint(plane=plane), [tmp_path / "a.nii"], tmp_path / "b.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").get_fdata(), inverted(tmp_path / "a.nii"), atol=1e-3)
    assert nib.load(tmp_path / "b.nii").shape == shape
    assert_same_place(tmp_path / "a.nii", tmp_path / "b.nii")


def test_what_the_json_says(tmp_path, checkpoint):
    source = head(tmp_path / "a.nii")
    path = checkpoint()
    run(path, [source], tmp_path / "b.nii")
    said = about(tmp_path / "b.nii")
    assert said["synthetic"] == f"T2 made by mri_synth {__version__} from T1; not a measured image"
    assert said["units"] == {"low": 0, "high": 1000,
                             "meaning": "arbitrary: the model's darkest is 0 and its brightest 1000"}  # fmt: skip
    assert said["sources"]["T1"]["path"] == str(source)
    assert said["sources"]["T1"]["intensity"] == {"low": 0, "high": nib.load(source).get_fdata().max(), "clipped": 0}
    assert said["Sources"] == [str(source)]
    assert said["checkpoint"] == str(path)
    assert len(said["made_by"]["checkpoint_sha256"]) == 64
    assert said["versions"]["torch"] == torch.__version__
    assert (said["goal"], said["missing"], said["slices"], said["frame"]["tiles"]) == ("T2", [], 9, 1)
    assert said["slice_consistency"]["against_source"]["ratio"] == pytest.approx(1, abs=1e-5)  # its negative
    assert "scores_in_frame" not in said


@pytest.mark.parametrize(
    ("changes", "ends"),
    [({"intensity": asdict(IntensitySettings(method="fixed", range=[-50, 350]))}, (-50, 350)),
     ({"ranges": {"T2": [10, 410], "T1": [0, 1]}}, (10, 410))],
    ids=["fixed", "typical of training"],
)  # fmt: skip
def test_units_of_the_training_files_where_they_are_known(tmp_path, checkpoint, changes, ends):
    source = head(tmp_path / "a.nii")
    run(checkpoint(**changes), [source], tmp_path / "b.nii")
    values, made = nib.load(source).get_fdata(), nib.load(tmp_path / "b.nii").get_fdata()
    low, high = (-50, 350) if "intensity" in changes else (values.min(), values.max())
    expected = ends[0] + (ends[1] - ends[0]) * (high - values) / (high - low)
    np.testing.assert_allclose(made, expected, atol=1e-3)


def test_picture(tmp_path, checkpoint):
    grey = np.arange(150, dtype=np.uint8).reshape(10, 15)
    Image.fromarray(grey).save(tmp_path / "a.png")
    run(checkpoint(), [tmp_path / "a.png"], tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as back:
        np.testing.assert_array_equal(np.asarray(back), np.rint(255 * (149 - grey.astype(float)) / 149))
        assert back.info["synthetic"].startswith("synthetic: mri_synth")


def test_a_slice_larger_than_the_frame_goes_in_tiles(tmp_path, checkpoint):
    source = head(tmp_path / "a.nii", "RAS")
    run(checkpoint(size=4), [source], tmp_path / "b.nii", batch_size=3)
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").get_fdata(), inverted(source), atol=1e-3)
    assert {shape[2:] for shape in SEEN} == {(4, 4)}
    assert about(tmp_path / "b.nii")["frame"]["tiles"] == 6  # 7 x 8 pixels: 2 x 3 of 4, a quarter in common
    assert about(tmp_path / "b.nii")["share_of_view_covered"] == 1


@pytest.mark.parametrize("kind", [Places, Invert])
def test_without_tiles_what_is_outside_the_frame_is_empty(tmp_path, checkpoint, caplog, kind):
    """Of a network that knows places, and where it is asked: (8, 7) slices in a frame of 4, rows 2-5, columns 1-4."""
    source = head(tmp_path / "a.nii", "RAS")
    with caplog.at_level(logging.WARNING):
        run(checkpoint(kind, size=4), [source], tmp_path / "b.nii", options=Options(tiles=kind is Places))
    assert "of the foreground lie outside the model's 4x4 frame" in caplog.text
    expected = np.zeros((7, 8, 9))
    expected[1:5, 2:6] = inverted(source)[1:5, 2:6]
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").get_fdata(), expected, atol=1e-3)


def test_a_scaled_frame_is_the_models_own(tmp_path, checkpoint):
    source = head(tmp_path / "a.nii")
    run(checkpoint(fit="contain", size=32), [source], tmp_path / "b.nii")
    assert {shape[1:] for shape in SEEN} == {(1, 32, 32)}
    made = nib.load(tmp_path / "b.nii").get_fdata()
    assert np.corrcoef(made.ravel(), inverted(source).ravel())[0, 1] > 0.99


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("32", torch.float32)])
def test_precision(tmp_path, checkpoint, precision, dtype):
    source = head(tmp_path / "a.nii")
    run(checkpoint(Convolution), [source], tmp_path / "b.nii", options=Options(precision=precision))
    assert Convolution.dtype_seen is dtype
    values = nib.load(source).get_fdata()
    made = nib.load(tmp_path / "b.nii").get_fdata()
    np.testing.assert_allclose(made, 1000 * values / values.max(), atol=4 if precision == "bf16" else 1e-3)


def test_a_target_gives_scores(tmp_path, checkpoint):
    values = np.random.default_rng(0).integers(0, 900, (16, 16, 5)).astype(np.int16)
    source = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(values, np.eye(4)), source)
    nib.save(nib.Nifti1Image(3 * (values.max() - values), np.eye(4)), tmp_path / "t2.nii")
    run(checkpoint(), [source], tmp_path / "b.nii", target=tmp_path / "t2.nii")
    said = about(tmp_path / "b.nii")
    assert said["scores_in_frame"]["ssim"] == pytest.approx(1, abs=1e-5)
    assert said["scores_in_frame"]["mae"] < 1e-6
    assert said["slice_consistency"]["against_target"]["ratio"] == pytest.approx(1, abs=1e-5)
    assert said["scores_in_frame"].keys() == said["protocols"].keys() >= {"ssim", "nmse", "psnr_foreground"}


# -- several sources, and both ways ----------------------------------------------------------------------------------


def two_contrasts(folder: Path, subject: str = "p1") -> tuple[Path, Path]:
    return (layouts.nifti(folder / subject / "T1.nii.gz", 1), layouts.nifti(folder / subject / "FLAIR.nii.gz", 2))


def scaled(path: Path) -> np.ndarray:
    values = nib.load(path).get_fdata()
    return (values - values.min()) / (values.max() - values.min())


def test_sources_of_a_subject_are_found_by_name(tmp_path, checkpoint):
    pairs = [two_contrasts(tmp_path / "in", name) for name in ("p1", "p2")]
    path = checkpoint(Mean, sources=("T1", "FLAIR"), size=24)
    done = run(path, [tmp_path / "in"], tmp_path / "out")
    assert [o.job.output.relative_to(tmp_path / "out").as_posix() for o in done] == [
        "p1/synthetic_T2.nii.gz", "p2/synthetic_T2.nii.gz"]  # fmt: skip
    for (t1, flair), outcome in zip(pairs, done, strict=True):
        expected = 500 * (scaled(t1) + scaled(flair))
        np.testing.assert_allclose(nib.load(outcome.job.output).get_fdata(), expected, atol=1e-2)
    flat = [file for pair in pairs for file in pair]
    assert [o.state for o in run(path, flat, tmp_path / "flat")] == ["written", "written"]


def test_sources_on_other_grids_come_onto_the_firsts(tmp_path, checkpoint, caplog):
    """The second source is a ramp on a finer and shifted grid, which a linear interpolation gives back exactly."""
    t1, flair = tmp_path / "x.nii", tmp_path / "y.nii"
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.integers(0, 900, (8, 8, 6)).astype(np.int16), np.diag([2.0, 2, 2, 1])), t1)
    fine = np.eye(4)
    fine[:3, 3] = -3
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None] - 3, (24, 24, 20))
    nib.save(nib.Nifti1Image(np.ascontiguousarray(ramp), fine), flair)
    path = checkpoint(Mean, sources=("T1", "FLAIR"))
    given = {"T1": str(t1), "FLAIR": str(flair)}
    with caplog.at_level(logging.WARNING):
        run(path, [], tmp_path / "b.nii", given=given)
    assert "y.nii: not on the grid of" in caplog.text
    x_mm = 2.0 * np.arange(8)[:, None, None]
    expected = 500 * (scaled(t1) + (x_mm + 3) / 23)
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").get_fdata(), expected, atol=1e-2)
    assert_same_place(t1, tmp_path / "b.nii", "Mean")
    assert [s["resampled"] for s in about(tmp_path / "b.nii")["sources"].values()] == [False, True]


def test_a_missing_source_is_refused_or_done_without(tmp_path, checkpoint):
    t1, flair = two_contrasts(tmp_path / "in")
    layouts.nifti(tmp_path / "in/p2/FLAIR.nii.gz", 3)
    plain = checkpoint(Mean, sources=("T1", "FLAIR"), size=24)
    good, bad = run(plain, [tmp_path / "in"], tmp_path / "out")
    assert (good.state, bad.state) == ("written", "failed")
    assert "T1 of the same subject and visit not found, and the model was trained with all of T1, FLAIR" in bad.reason
    assert Mean.asked is None
    trained = checkpoint(Mean, ("T1", "FLAIR"), size=24, arguments={"contrast_dropout": 0.5}, name="dropout.ckpt")
    _, done = run(trained, [tmp_path / "in"], tmp_path / "out2")
    assert tuple(Mean.asked or ()) == ("FLAIR",)
    assert done.about is not None
    assert done.about["missing"] == ["T1"]
    expected = 1000 * scaled(tmp_path / "in/p2/FLAIR.nii.gz")
    np.testing.assert_allclose(nib.load(done.job.output).get_fdata(), expected, atol=1e-2)
    (only,) = run(trained, [], tmp_path / "o.nii", given={"T1": str(t1), "FLAIR": str(flair)},
                  options=Options(available=("T1",)))  # fmt: skip
    np.testing.assert_allclose(nib.load(only.job.output).get_fdata(), 1000 * scaled(t1), atol=1e-2)


def test_label_maps_are_minus_one_and_one(tmp_path, checkpoint):
    mask = layouts.nifti(tmp_path / "mask.nii.gz", array=layouts.tumour(0))
    run(checkpoint(sources=("mask",), size=24), [mask], tmp_path / "b.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").get_fdata(), 1000 * (layouts.tumour(0) == 0), atol=1e-3)


def test_back_to_the_other_contrast(tmp_path, checkpoint):
    two = tmp_path / "in"
    layouts.nifti(two / "a_T1.nii.gz", 1)
    layouts.nifti(two / "a_T2.nii.gz", 2)
    path = checkpoint(BothWays, size=24)
    (there,) = run(path, [two], tmp_path / "there")
    (back,) = run(path, [two], tmp_path / "back", options=Options(to="T1"))
    assert (there.job.output.name, back.job.output.name) == ("a_synthetic_T2.nii.gz", "a_synthetic_T1.nii.gz")
    assert there.about is not None
    assert back.about is not None
    assert (list(there.about["sources"]), list(back.about["sources"])) == (["T1"], ["T2"])
    assert not nib.load(back.job.output).get_fdata().any()


# -- folders, BIDS, DICOM ---------------------------------------------------------------------------------------------


def test_a_bids_tree_becomes_bids_derivatives(tmp_path, checkpoint):
    raw, out = layouts.bids(tmp_path / "raw", 2), tmp_path / "out"
    done = run(checkpoint(size=24), [raw], out)
    assert {o.state for o in done} == {"written"}
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz"))
    assert names == sorted(
        [f"sub-0{n}/ses-{s}/anat/sub-0{n}_ses-{s}_desc-synthetic_T2w.nii.gz" for n in (1, 2) for s in (1, 2)]
        + ["sub-01/ses-1/anat/sub-01_ses-1_run-2_desc-synthetic_T2w.nii.gz"]
    )
    assert len(list(out.rglob("*.json"))) == len(names) + 1
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0] == {"Name": "mri_synth", "Version": __version__,
                                           "Description": "mri-synth translate, Invert"}  # fmt: skip
    assert described["DatasetLinks"]["raw"] == raw.as_uri()
    assert about(out / names[0])["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"]
    inside = raw / "derivatives/mri_synth"
    assert len(run(checkpoint(size=24), [raw], inside)) == len(run(checkpoint(size=24), [raw], inside)) == len(names)
    with pytest.raises(UserError, match=r"is another BIDS data set .* Give a folder of its own"):
        run(checkpoint(size=24), [raw], layouts.text(tmp_path / "b/dataset_description.json", "{}").parent)


@pytest.mark.parametrize(
    ("source", "goal", "name"),
    [
        ("sub-01_T1w.nii.gz", "T2", "sub-01_desc-synthetic_T2w.nii.gz"),
        ("sub-01_ses-a_acq-hi_run-2_T1w.nii", "T1ce", "sub-01_ses-a_acq-hi_ce-gadolinium_run-2_desc-synthetic_T1w.nii"),
        ("sub-01_ce-gd_desc-brain_T1w.nii.gz", "FLAIR", "sub-01_desc-synthetic_FLAIR.nii.gz"),
        ("s01_T1.nii.gz", "T2", "s01_synthetic_T2.nii.gz"),
        ("T1.mgz", "PD", "synthetic_PD.nii.gz"),
        ("brain_7.jpg", "T2", "7_synthetic_T2.png"),
    ],
)
def test_names(source, goal, name):
    assert output_name(Path(source), goal) == name


def test_the_layout_of_a_folder_is_kept_and_names_do_not_clash(tmp_path, checkpoint):
    for name in ("p1/T1.nii", "p2/T1.nii.gz", "p2/T1_brain.nii.gz", "p2/T2.nii.gz", "p3/seg.nii.gz"):
        layouts.nifti(tmp_path / "in" / name, len(name))
    done = run(checkpoint(size=24), [tmp_path / "in"], tmp_path / "in/out")
    assert sorted(o.job.output.relative_to(tmp_path / "in/out").as_posix() for o in done) == [
        "p1/synthetic_T2.nii", "p2/T1_brain_synthetic_T2.nii.gz", "p2/T1_synthetic_T2.nii.gz"]  # fmt: skip
    again = run(checkpoint(size=24), [tmp_path / "in"], tmp_path / "in/out")  # what was made is no source
    assert len(again) == 3
    above = run(checkpoint(size=24), [tmp_path / "in"], tmp_path)  # and hides nothing where it holds the input
    assert (tmp_path / "p1/synthetic_T2.nii").exists()
    assert len(above) > 3  # those of in/out too


def test_names_that_say_nothing_are_told_by_a_glob(tmp_path, checkpoint):
    for name in ("p1/anatomy", "p1/other", "p2/anatomy", "p2/other"):
        layouts.nifti(tmp_path / f"in/{name}.nii.gz", 1)
    path = checkpoint(Mean, sources=("T1", "FLAIR"), size=24)
    with pytest.raises(UserError, match=r"no T1 and no FLAIR in it, by the names .* --source T1="):
        run(path, [tmp_path / "in"], tmp_path / "out")
    done, _ = run(path, [tmp_path / "in"], tmp_path / "out", given={"T1": "anat*", "FLAIR": "oth*"})
    assert done.about is not None
    assert list(done.about["sources"]) == ["T1", "FLAIR"]


def test_dicom_in_nifti_out(tmp_path, checkpoint):
    pytest.importorskip("pydicom")
    from test_dicom import write_series

    image = nib.load(head(tmp_path / "a.nii", "oblique"))
    (tmp_path / "in").mkdir()
    folder = write_series(tmp_path / "in/series", image)
    (one,) = run(checkpoint(), [folder], tmp_path / "b.nii.gz")
    there, here = (nib.as_closest_canonical(i) for i in (image, nib.load(one.job.output)))
    values = there.get_fdata()
    np.testing.assert_allclose(here.get_fdata(), 1000 * (1 - values / values.max()), atol=1e-2)
    np.testing.assert_allclose(here.affine, there.affine, atol=1e-4)
    (tree,) = run(checkpoint(), [tmp_path / "in"], tmp_path / "out")
    assert tree.job.output == tmp_path / "out/series_synthetic_T2.nii.gz"
    (named,) = run(checkpoint(), [], tmp_path / "c.nii", given={"T1": str(folder)}, series="1.2.3.4")
    np.testing.assert_array_equal(nib.load(named.job.output).get_fdata(), nib.load(one.job.output).get_fdata())


def test_one_bad_file_is_reported_and_the_rest_is_done(tmp_path, checkpoint):
    for n in (1, 2, 3):
        layouts.nifti(tmp_path / f"in/s{n}_T1.nii.gz", n)
    (tmp_path / "in/s2_T1.nii.gz").write_bytes(b"no image")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 5), np.int16), np.eye(4)), tmp_path / "in/s4_T1.nii.gz")
    path = checkpoint(size=24)
    call = ["translate", str(path), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1, result.output
    assert "2 written, 2 failed" in result.output
    assert "s2_T1.nii.gz: damaged or not complete" in result.output
    assert "s4_T1.nii.gz: 4-D (4x4x4x5), several frames in one file" in result.output
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [
        "s1_synthetic_T2.nii.gz", "s3_synthetic_T2.nii.gz"]  # fmt: skip
    for n in (2, 4):
        layouts.nifti(tmp_path / f"in/s{n}_T1.nii.gz", n)
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0
    assert result.output.count("is there already") == 2
    assert "2 written, 2 skipped" in result.output


# -- going on, and what is not written over --------------------------------------------------------------------------


def test_files_are_made_one_by_one(tmp_path, checkpoint):
    """The first is whole before the second is read: memory does not grow with their number."""
    for n in (1, 2):
        layouts.nifti(tmp_path / f"in/s{n}_T1.nii.gz", n)
    outcomes = translate(checkpoint(size=24), [tmp_path / "in"], tmp_path / "out", device="cpu", batch_size=64)
    first = next(outcomes)
    assert len(SEEN) == 1
    assert first.job.output.exists()
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_a_stopped_call_goes_on(tmp_path, checkpoint, monkeypatch):
    source, output = head(tmp_path / "a.nii"), tmp_path / "b.nii"
    path = checkpoint()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mri_synth.translate.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run(path, [source], output)
    assert output.exists()
    assert run(path, [source], output)[0].state == "written"
    made = output.stat().st_mtime_ns
    assert run(path, [source], output, batch_size=3)[0].state == "skipped"
    assert output.stat().st_mtime_ns == made
    output.write_bytes(output.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"b.nii: is there, made with other bytes. Give --overwrite"):
        run(path, [source], output)
    assert run(path, [source], output, overwrite=True)[0].state == "written"
    assert not list(tmp_path.glob(".part*"))


def test_what_was_made_otherwise_stays(tmp_path, checkpoint):
    source, output = head(tmp_path / "a.nii"), tmp_path / "b.nii"
    path = checkpoint()
    run(path, [source], output)
    with pytest.raises(UserError, match=r"made with other options. Give --overwrite"):
        run(path, [source], output, options=Options(overlap=0.5))
    with pytest.raises(UserError, match=r"made with other checkpoint_sha256\. Give"):
        run(checkpoint(Mean, name="other.ckpt"), [source], output)
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.int16) + np.eye(3, dtype=np.int16), np.eye(4)), source)
    with pytest.raises(UserError, match=r"made with other sources\. Give"):
        run(path, [source], output)
    assert run(path, [source], output, overwrite=True)[0].state == "written"
    measured = head(tmp_path / "c.nii")
    with pytest.raises(UserError, match=r"c.nii: is there, and not known to be of mri-synth translate"):
        run(path, [source], measured)
    layouts.text(tmp_path / "d.json", '{"Manufacturer": "X"}')
    with pytest.raises(UserError, match=r"d.json: belongs to another file"):
        run(path, [source], tmp_path / "d.nii")


def test_a_full_disk_ends_it(tmp_path, checkpoint, monkeypatch):
    for n in (1, 2):
        layouts.nifti(tmp_path / f"in/s{n}_T1.nii.gz", n)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mri_synth.data.nifti.igzip_lib.compress", full)
    with pytest.raises(UserError, match="the disk is full"):
        run(checkpoint(size=24), [tmp_path / "in"], tmp_path / "out")
    assert len(SEEN) == 2  # 14 slices in batches of 8: the second file was not begun
    assert not list((tmp_path / "out").glob("*"))


def test_refusals(tmp_path, checkpoint):
    source = head(tmp_path / "a_T1.nii")
    out = tmp_path / "b.nii"
    path = checkpoint()
    several = [source, head(tmp_path / "c_T1.nii")]
    for message, call in {
        r"makes T2 here": lambda: run(path, [source], out, options=Options(to="T1")),
        r"--available=T9: T9 is no source of this Invert; allowed: T1": lambda: run(
            path, [source], out, options=Options(available=("T9",))),
        r"--overlap=1: allowed": lambda: Options(overlap=1),
        r"--precision=8: allowed: auto, bf16, 32": lambda: Options(precision="8"),
        r"--batch-size=0": lambda: run(path, [source], out, batch_size=0),
        r"--source T2=...: not a source": lambda: run(path, [], out, given={"T2": str(source)}),
        r"--source T1: says no file": lambda: run(path, [], out, given={"T1": ""}),
        r"nothing to translate: give files": lambda: run(path, [], out),
        r"leave out the other files": lambda: run(path, [source], out, given={"T1": str(source)}),
        r"one file for 2 results": lambda: run(path, several, out),
        r"--target=.*: one file for 2 results": lambda: run(path, several, tmp_path / "out", target=source),
        r"makes T2 of what was derived from T2 itself \(tissue, edges\), which no file holds": lambda: run(
            checkpoint(Mean, ("tissue", "edges"), name="t.ckpt"), [source], out),
        r"-o .*b\.mgz: files are written as \.nii": lambda: run(path, [source], tmp_path / "b.mgz"),
        r"a_T1\.nii/x: cannot be written, .*a_T1\.nii is no folder": lambda: run(path, several, source / "x"),
        r"is the input itself": lambda: run(path, [source], source),
        r"Give the output another folder": lambda: run(path, [tmp_path], tmp_path),
        r"none.nii: no such file": lambda: run(path, [tmp_path / "none.nii"], out),
        r"504 of the 504 values are NaN": lambda: run(checkpoint(Broken, name="c.ckpt"), [source], out),
        r"Large gave \(8, 1, 15, 16\) for \(8, 1, 16, 16\): not usable": lambda: run(
            checkpoint(Large, name="d.ckpt"), [source], out),
        r"its model, SynthModule, does not translate": lambda: run(
            checkpoint(SynthModule, name="e.ckpt"), [source], out),
        r"a volume is written as \.nii": lambda: run(path, [source], tmp_path / "b.png"),
        r"--available=T1: this Mean was trained with all of T1, FLAIR": lambda: run(
            checkpoint(Mean, ("T1", "FLAIR"), name="m.ckpt"), [source], out, options=Options(available=("T1",))),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            call()
    assert not out.exists()
    assert not out.with_suffix(".json").exists()


# -- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [(40, 40), (33, 21), (10, 47), (16, 16)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_weights_of_tiles_sum_to_one(scaled, overlap):
    frame = Frame(scaled, (1.0, 1.0), scaled, max(16, *scaled))
    tiles = Tiles.over(frame, 16, overlap)
    total = torch.zeros(frame.size, frame.size)
    for (row, column), weight in zip(tiles.corners, tiles.weights, strict=True):
        total[row : row + 16, column : column + 16] += weight
    torch.testing.assert_close(total, tiles.covered.float(), atol=5e-6, rtol=0)
    assert tiles.covered[torch.from_numpy(frame.apply(np.ones((1, *scaled), np.float32), fill=0)[0] > 0)].all()
    images = torch.rand(3, 2, frame.size, frame.size) * 2 - 1
    out = tiles.through(lambda x: x[:, :1], images)
    torch.testing.assert_close(out[:, 0][:, tiles.covered], images[:, 0][:, tiles.covered], atol=5e-6, rtol=0)
    assert (out[:, 0][:, ~tiles.covered] == -1).all()


def test_where_tiles_begin():
    """A slice of 240 in tiles of 128, a quarter in common: every 96 at most, so three; one of 100 in the middle."""
    assert starts(240, 240, 128, 0.25) == [0, 56, 112]
    assert starts(240, 240, 256, 0.25) == [-8]
    assert starts(100, 240, 128, 0.25) == [56]
    assert starts(10, 12, 4, 0.0) == [1, 4, 7]


def test_seams_are_smooth():
    """Tiles that disagree by 1: from pixel to pixel the blend moves a tenth of that at most."""
    tiles = Tiles.over(Frame((32, 80), (1.0, 1.0), (32, 80), 80), 32, 0.5)
    values = iter(torch.arange(len(tiles.corners)).float())
    out = tiles.through(lambda x: torch.full_like(x, float(next(values))), torch.zeros(1, 1, 80, 80))
    row = out[0, 0, 40]
    assert row.diff().abs().max() < 0.1
    assert (row[0], row[-1]) == (0, 3)


def test_which_networks_know_no_place():
    from mri_synth.networks.generators import generator

    assert convolutional(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.ConvTranspose2d(4, 1, 2)))
    assert convolutional(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)))
    assert convolutional(generator("resnet9", 1, 1, 32, 4))
    assert convolutional(generator("attention_unet", 1, 1, 32, 4))
    assert not convolutional(nn.Sequential(nn.Flatten(), nn.Linear(16, 16)))


# -- a run, and real files --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_then_its_checkpoint(tmp_path, compose):
    """The phantom's T1 to T2 by a small U-Net: units are those of the training files' T2, in their typical range."""
    from mri_synth.data.phantom import Phantom
    from mri_synth.data.volume import save_like
    from mri_synth.run import run as fit

    words = ["model=unet_l1", "model.width=8", "data.contrasts=[T1,T2]", "data.subjects=[2,2,2]", "data.size=32",
             "data.batch_size=8", "logger=csv", "trainer=cpu", "trainer.max_epochs=1", "trainer.pictures=0",
             "trainer.progress=false", "samples=0"]  # fmt: skip
    fit(compose(*words), tmp_path / "run", words)
    data = Phantom(contrasts=["T1", "T2"], subjects=[1, 1, 1])
    for scan in data.scans()[:2]:
        volume = data.read(scan)
        save_like(volume.array, volume, tmp_path / f"{scan.subject}_{scan.contrast}.nii.gz", "phantom", "float32")
        truth = volume.array
    call = ["translate", str(tmp_path / "run/best.ckpt"), str(next(tmp_path.glob("*_T1.nii.gz"))), "-o",
            str(tmp_path / "out.nii.gz"), "--target", str(next(tmp_path.glob("*_T2.nii.gz")))]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    said = about(tmp_path / "out.nii.gz")
    assert said["units"]["meaning"].startswith("typical of the training files: the median T2 runs from")
    assert said["units"]["high"] == pytest.approx(np.percentile(truth, 99.9), rel=0.3)
    assert said["trained_on_simulated_images"]
    assert 0 < said["scores_in_frame"]["ssim"] < 1
    assert "times the source's, slice-to-slice gradient" in result.output


def test_real_files_stay_in_place(tmp_path, checkpoint, shared_data):
    folder = shared_data / "ms_paired/patient07"
    sources = {next(c for c in ("T1", "FLAIR") if p.name.startswith(c)): str(p)
               for p in folder.glob("*.nii.gz") if p.name.startswith(("T1", "FLAIR"))}  # fmt: skip
    path = checkpoint(Mean, sources=("T1", "FLAIR"), size=128)
    (done,) = run(path, [], tmp_path / "b.nii.gz", given=sources, batch_size=32)
    assert done.about is not None
    assert done.about["frame"]["tiles"] > 1
    before, after = nib.load(sources["T1"]), nib.load(done.job.output)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert_same_place(Path(sources["T1"]), done.job.output, "Mean")
    expected = 500 * (scaled(Path(sources["T1"])) + scaled(Path(sources["FLAIR"])))
    np.testing.assert_allclose(after.get_fdata(), expected, atol=0.01)
