"""Volume in, volume out: a model that changes nothing must give the file back."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from test_volume import affine_of, assert_same_header
from torch import Tensor

from mri_synth import __version__
from mri_synth.data.batch import DataSpec
from mri_synth.data.settings import IntensitySettings
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.reconstruct import reconstruct

CHECKPOINT = Path("outputs/some-run/best.ckpt")
DESCRIPTION = f"synthetic: mri_synth {__version__}, Identity"


class Identity(SynthModule):
    """Gives back what it gets, and remembers the sizes of its batches."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.seen: list[tuple[int, ...]] = []

    def reconstruct(self, image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        assert image.abs().max() <= 1 + 1e-6  # resampling rounds
        self.seen.append(tuple(image.shape))
        return image


class Half(Identity):
    """Halves the distance to the lowest intensity."""

    def reconstruct(self, image: Tensor) -> Tensor:
        return (super().reconstruct(image) - 1) / 2


class Beyond(Identity):
    """Leaves the range, as a network without a last tanh does."""

    def reconstruct(self, image: Tensor) -> Tensor:
        return super().reconstruct(image) * 3


class Seer(Identity):
    """Suspects the brighter half of the range."""

    def suspicion(self, image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return (image > 0).float()


class White(Identity):
    """Gives the highest intensity everywhere."""

    def reconstruct(self, image: Tensor) -> Tensor:
        return torch.ones_like(super().reconstruct(image))


class Broken(Identity):
    """Gives NaN."""

    def reconstruct(self, image: Tensor) -> Tensor:
        return super().reconstruct(image) * torch.nan


class Generator(SynthModule):
    """Does not reconstruct."""


@pytest.fixture
def model(monkeypatch):
    """`model(Identity, size=16, plane="axial", ...)` is what any checkpoint then holds."""

    def make(kind: type[SynthModule] = Identity, spec: dict[str, Any] | None = None, **changes: Any) -> SynthModule:
        how = {"plane": "axial", "fit": "crop", "size": 16, "spacing_mm": None, "contrasts": ("T1",)}
        how |= {"intensity": asdict(IntensitySettings(method="minmax"))} | changes
        made = kind(DataSpec(size=how["size"], preparation=how, **{"plane": "axial"} | (spec or {}))).eval()
        monkeypatch.setattr("mri_synth.reconstruct.load_model", lambda path: made)
        return made

    return make


def head(path: Path, codes: str = "LAS", dtype: type = np.int16, slope: float | None = None) -> Path:
    """A blob of 7 x 8 x 9 voxels, 0 around it."""
    z = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (7, 8, 9)), indexing="ij"))
    blob = np.clip(1 - (z**2).sum(0), 0, None)
    image = nib.Nifti1Image((blob * 200).astype(dtype), affine_of(codes))
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine_of(codes), code=1)
    if slope:
        image.header["scl_slope"], image.header["scl_inter"] = slope, -3
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", ["PSR", "LAS", "RAS", "oblique"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_identity_gives_the_file_back(tmp_path, model, codes, plane):
    model(plane=plane)
    source, output = head(tmp_path / "a.nii.gz", codes), tmp_path / "b.nii.gz"
    assert reconstruct(CHECKPOINT, source, output, device="cpu") == output
    before, after = nib.load(source), nib.load(output)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_array_equal(after.affine, before.affine)
    assert_same_header(source, output, DESCRIPTION)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_dtypes_are_kept(tmp_path, model, dtype):
    model()
    source, output = head(tmp_path / "a.nii", dtype=dtype), tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output)
    np.testing.assert_allclose(nib.load(output).get_fdata(), nib.load(source).get_fdata(), atol=1e-4)
    assert_same_header(source, output, DESCRIPTION)


def test_scale_factors_are_kept(tmp_path, model):
    model()
    source, output = head(tmp_path / "a.nii", slope=0.25), tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output)
    np.testing.assert_array_equal(nib.load(output).get_fdata(), nib.load(source).get_fdata())
    assert_same_header(source, output, DESCRIPTION)


def test_values_by_hand(tmp_path, model):
    """Half the distance to the lowest intensity, which is 0: every value halves, rounded to even."""
    made = model(Half)
    source, output = head(tmp_path / "a.nii"), tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output, batch_size=4)
    values = np.asarray(nib.load(source).dataobj)
    np.testing.assert_allclose(np.asarray(nib.load(output).dataobj), values / 2, atol=0.5)
    assert [s[0] for s in made.seen] == [4, 4, 1]
    assert {s[1:] for s in made.seen} == {(1, 16, 16)}
    about = json.loads((tmp_path / "b.json").read_text())
    assert about["errors_in_source_units"]["mae"] == pytest.approx(values.mean() / 2, rel=1e-4)
    assert about["intensity"] == {"low": 0, "high": values.max(), "clipped": 0}
    assert (about["slices"], about["share_of_view_covered"], about["share_of_foreground_outside"]) == (9, 1, 0)
    assert about["source"] == str(source)
    assert about["checkpoint"].endswith("outputs/some-run/best.ckpt")
    assert 0 < about["scores_in_frame"]["ssim"] < 1


def test_scores_of_a_perfect_model(tmp_path, model):
    model()
    reconstruct(CHECKPOINT, head(tmp_path / "a.nii"), tmp_path / "b.nii")
    scores = json.loads((tmp_path / "b.json").read_text())["scores_in_frame"]
    assert scores["ssim"] == pytest.approx(1)
    assert scores["mae"] == 0
    assert scores["psnr"] is None  # infinite


@pytest.mark.parametrize("fit", ["contain", "stretch"])
def test_interpolation_keeps_the_blob(tmp_path, model, fit):
    model(fit=fit, size=32)
    source, output = head(tmp_path / "a.nii"), tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output)
    before, after = (np.asarray(nib.load(p).dataobj, float) for p in (source, output))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    assert_same_header(source, output, DESCRIPTION)


def test_percentiles_clip_and_say_so(tmp_path, model):
    model(intensity=asdict(IntensitySettings(percentiles=[0, 99])))
    source, output = head(tmp_path / "a.nii"), tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output)
    values = nib.load(source).get_fdata()
    np.testing.assert_allclose(nib.load(output).get_fdata(), np.minimum(values, np.percentile(values, 99)), atol=0.5)
    assert 0.002 < json.loads((tmp_path / "b.json").read_text())["intensity"]["clipped"] < 0.02


def test_values_stay_in_the_source_range(tmp_path, model):
    model(Beyond)
    source, output = head(tmp_path / "a.nii", dtype=np.uint8), tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output)
    values = nib.load(source).get_fdata()
    assert nib.load(output).get_fdata().max() == values.max()
    assert nib.load(output).get_fdata().min() == values.min()


def test_small_frame_warns_and_leaves_the_rest_empty(tmp_path, model, caplog):
    """(8, 7) slices in a frame of 4: rows 2-5, columns 1-4 remain."""
    model(size=4)
    source, output = head(tmp_path / "a.nii", "RAS"), tmp_path / "b.nii"
    with caplog.at_level(logging.WARNING):
        reconstruct(CHECKPOINT, source, output)
    assert "of the foreground lie outside the model's 4x4 frame" in caplog.text
    before, after = (np.asarray(nib.load(p).dataobj) for p in (source, output))
    expected = np.zeros_like(before)
    expected[1:5, 2:6] = before[1:5, 2:6]
    np.testing.assert_array_equal(after, expected)
    about = json.loads((tmp_path / "b.json").read_text())
    assert about["share_of_view_covered"] == pytest.approx(16 / 56)
    assert 0 < about["share_of_foreground_outside"] < 1


def test_warns_of_what_the_model_has_not_seen(tmp_path, model, caplog):
    """The head's axial pixels are 1.5 x 1 mm."""
    source = head(tmp_path / "a.nii")
    with caplog.at_level(logging.WARNING):
        model(spec={"spacing_mm": (1.5, 1.0)})
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii")
        assert not caplog.records
        model(spec={"spacing_mm": (1.0, 1.0), "plane": None})
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii")
    assert "was trained on pictures of unknown plane; its slices are taken as axial" in caplog.text
    assert "pixels of 1.50 x 1.00 mm, the model was trained on 1.00 x 1.00 mm" in caplog.text


def test_picture(tmp_path, model):
    model(intensity=asdict(IntensitySettings(method="fixed", range=[0, 255])))
    grey = np.arange(150, dtype=np.uint8).reshape(10, 15)
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        grey = np.asarray(image)
    reconstruct(CHECKPOINT, tmp_path / "a.jpg", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as back:
        np.testing.assert_array_equal(np.asarray(back), grey)
        assert back.info["synthetic"] == DESCRIPTION
    assert (tmp_path / "b.json").exists()


def test_dicom_folder(tmp_path, model):
    pytest.importorskip("pydicom")
    from test_dicom import write_series

    model()
    image = nib.load(head(tmp_path / "a.nii", "oblique"))
    folder = write_series(tmp_path / "series", image)
    reconstruct(CHECKPOINT, folder, tmp_path / "b.nii.gz", series="1.2.3.4")
    there, here = (nib.as_closest_canonical(i) for i in (image, nib.load(tmp_path / "b.nii.gz")))
    np.testing.assert_array_equal(here.get_fdata(), there.get_fdata())
    np.testing.assert_allclose(here.affine, there.affine, atol=1e-4)


def test_refusals(tmp_path, model):
    source = head(tmp_path / "a.nii")
    head(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.json").write_text('{"Manufacturer": "X"}')
    model()
    with pytest.raises(UserError, match="is the input itself"):
        reconstruct(CHECKPOINT, source, source)
    with pytest.raises(UserError, match=r"a volume is written as \.nii or \.nii\.gz"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.png")
    with pytest.raises(UserError, match=r"scan.json: belongs to another file"):
        reconstruct(CHECKPOINT, source, tmp_path / "scan.nii")
    with pytest.raises(UserError, match="no such file"):
        reconstruct(CHECKPOINT, tmp_path / "none.nii", tmp_path / "b.nii")
    with pytest.raises(UserError, match="device=tpu9: not usable here"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii", device="tpu9")
    with pytest.raises(UserError, match="batch_size=0"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii", batch_size=0)
    model(Broken)
    with pytest.raises(UserError, match="504 of the 504 values are NaN"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii")
    model(Generator)
    with pytest.raises(UserError, match="its model, Generator, does not reconstruct images"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii")
    model(spec={"channels": 2})
    with pytest.raises(UserError, match="takes 2 channels"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii")
    made = model()
    del made.spec.preparation["fit"]
    with pytest.raises(UserError, match=r"does not say how its training files were prepared \(fit missing\)"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii")
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize("codes", ["PSR", "oblique"])
@pytest.mark.parametrize("fit", ["crop", "contain"])
def test_residual_and_score_beside_the_reconstruction(tmp_path, model, codes, fit):
    """`Half` makes every value half of what it was, so that the residual is the other half, to the last digit."""
    model(Half, fit=fit)
    source, output = head(tmp_path / "a.nii.gz", codes, slope=0.25), tmp_path / "b.nii.gz"
    image = nib.load(source)
    image.header["cal_max"] = 900
    nib.save(image, source)
    reconstruct(CHECKPOINT, source, output, residual=True)
    values, made = (nib.load(p).get_fdata() for p in (source, output))
    maps = {kind: nib.load(tmp_path / f"b_{kind}.nii.gz") for kind in ("residual", "score")}
    residual, score = (m.get_fdata() for m in maps.values())
    np.testing.assert_allclose(residual + made, values, atol=0.13)  # half a step of the stored reconstruction
    if fit == "crop":
        np.testing.assert_allclose(residual, (values - values.min()) / 2, atol=1e-4)
    assert score.min() == 0
    assert score.max() > 0.1
    assert (score[values > 0.2 * values.max()] > 0).mean() > 0.95
    for kind, image in maps.items():
        np.testing.assert_array_equal(image.affine, nib.load(source).affine)
        assert (image.shape, image.get_data_dtype()) == (values.shape, np.float32)
        assert image.header["descrip"].item().decode() == f"{kind}, derived: mri_synth {__version__}, Half"
        assert image.header["cal_max"] == 0  # the source's display window is not the map's
        assert image.header.get_xyzt_units() == nib.load(source).header.get_xyzt_units()
    said = json.loads((tmp_path / "b.json").read_text())["maps"]
    assert said["b_residual.nii.gz"] == "source less reconstruction, in source units; 0 outside the model's frame"
    assert "anomaly score: |G * (x - x_hat)|" in said["b_score.nii.gz"]
    assert not list(tmp_path.glob(".part*"))


def test_a_models_own_suspicion_is_the_score(tmp_path, model):
    """Where the model suspects nothing far and wide the score is 0, in the middle of what it suspects near 1."""
    model(Seer)
    source = head(tmp_path / "a.nii")
    reconstruct(CHECKPOINT, source, tmp_path / "b.nii", residual=True)
    values, score = (nib.load(tmp_path / n).get_fdata() for n in ("a.nii", "b_score.nii"))
    assert 0 < score.max() <= 1
    assert np.unravel_index(score.argmax(), score.shape) == np.unravel_index(values.argmax(), values.shape)
    said = json.loads((tmp_path / "b.json").read_text())["maps"]
    assert "p the model's own chance" in said["b_score.nii"]


def test_maps_are_signed_and_empty_outside_the_frame(tmp_path, model):
    """A model that gives white everywhere: what is darker is negative; rows 2-5, columns 1-4 are in the frame."""
    model(White, size=4)
    source = head(tmp_path / "a.nii", "RAS")
    reconstruct(CHECKPOINT, source, tmp_path / "b.nii", residual=True)
    values, residual = (nib.load(tmp_path / n).get_fdata() for n in ("a.nii", "b_residual.nii"))
    inside = np.zeros(values.shape, bool)
    inside[1:5, 2:6] = True
    np.testing.assert_allclose(residual[inside], (values - values.max())[inside], atol=1e-3)
    assert not residual[~inside].any()
    assert not nib.load(tmp_path / "b_score.nii").get_fdata()[~inside].any()


def test_no_maps_unless_asked(tmp_path, model):
    model()
    reconstruct(CHECKPOINT, head(tmp_path / "a.nii"), tmp_path / "b.nii")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "b.json", "b.nii"]
    assert "maps" not in json.loads((tmp_path / "b.json").read_text())


def test_maps_are_refused_before_anything_is_written(tmp_path, model):
    model(intensity=asdict(IntensitySettings(method="fixed", range=[0, 255])))
    Image.fromarray(np.arange(150, dtype=np.uint8).reshape(10, 15)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png: a picture, and its residual has signs .* Leave out --residual"):
        reconstruct(CHECKPOINT, tmp_path / "a.png", tmp_path / "b.png", residual=True)
    source = head(tmp_path / "b_score.nii")
    with pytest.raises(UserError, match=r"b_score.nii: is the input itself"):
        reconstruct(CHECKPOINT, source, tmp_path / "b.nii", residual=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b_score.nii"]


REAL = {
    "ms_paired": "ms_paired/patient07/T1_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz",
    "brats 2021": "brats/BraTS2021_01306/BraTS2021_01306_t1.nii.gz",
    "brats 2023": "brats/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz",
    "children": "t1_children/i1.nii.gz",
    "2-D": "t1_t2_coronal/S1/structInSpaceOfTemplateCoronalSlice.nii.gz",
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_come_back(tmp_path, model, shared_data, name):
    """Within the rounding of single precision, at the same place, with the same header."""
    model(size=320)
    source, output = shared_data / REAL[name], tmp_path / "b.nii"
    reconstruct(CHECKPOINT, source, output, batch_size=32)
    before, after = nib.load(source), nib.load(output)
    there, here = before.get_fdata(dtype=np.float32), after.get_fdata(dtype=np.float32)
    assert np.abs(there - here).max() <= 1e-6 * np.ptp(there)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    assert (after.shape, after.get_data_dtype()) == (before.shape, before.get_data_dtype())
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    assert_same_header(source, output, DESCRIPTION)
