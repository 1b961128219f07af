"""DICOM series written from NIfTI images, read back and compared with nibabel."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_volume import ORIENTATIONS, affine_of

from mri_synth.data.dicom import read_series, series_in
from mri_synth.data.volume import read, save_like
from mri_synth.errors import UserError

pydicom = pytest.importorskip("pydicom")


def write_series(folder: Path, image: nib.Nifti1Image, uid: str = "1.2.3.4", **tags: object) -> Path:
    """One file per last-axis slice; file names and instance numbers in another order than the slices.

    DICOM: ImagePositionPatient + column * (first cosines) * PixelSpacing[1] + row * (second cosines) * PixelSpacing[0]
    is the pixel's place in mm towards Left, Posterior, Superior (PS3.3 C.7.6.2.1.1).
    """
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    pixels = np.asarray(image.dataobj)
    order = np.random.default_rng(1).permutation(pixels.shape[2])
    for number, k in enumerate(order):
        data = pydicom.Dataset()
        data.SOPClassUID = pydicom.uid.MRImageStorage
        data.SOPInstanceUID = f"{uid}.{number + 1}"
        data.SeriesInstanceUID, data.SeriesDescription, data.SeriesNumber = uid, f"series {uid}", 3
        data.Modality, data.InstanceNumber = "MR", number + 1
        data.Rows, data.Columns = pixels.shape[1], pixels.shape[0]
        data.ImageOrientationPatient = [round(float(v), 9) for v in (lps[:3, :2] / size[:2]).T.ravel()]
        data.ImagePositionPatient = [round(float(v), 6) for v in (lps @ [0, 0, k, 1])[:3]]
        data.PixelSpacing, data.SliceThickness = [float(size[1]), float(size[0])], float(size[2])
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation = int(pixels.dtype == np.int16)
        data.PixelData = np.ascontiguousarray(pixels[:, :, k].T).tobytes()
        for key, value in tags.items():
            setattr(data, key, value)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.save_as(folder / f"{uid}-{number:03}.dcm", enforce_file_format=True)
    return folder


def image_of(codes: str = "LAS", dtype: type = np.int16) -> nib.Nifti1Image:
    values = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(dtype)
    return nib.Nifti1Image(values, affine_of(codes))


def remove(folder: Path, position: float) -> None:
    """Take away the slice at this z (LPS mm)."""
    for path in folder.iterdir():
        if abs(pydicom.dcmread(path).ImagePositionPatient[2] - position) < 1e-3:
            path.unlink()


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_series_is_where_its_nifti_is(tmp_path, codes, dtype):
    image = image_of(codes, dtype)
    volume = read(write_series(tmp_path / "s", image))
    expected = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(volume.array, expected.get_fdata())
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    assert volume.dtype == dtype


@pytest.mark.parametrize("codes", ["LPS", "PSR", "oblique"])
def test_series_is_where_simpleitk_has_it(tmp_path, codes):
    """A reader that shares no code with ours: every voxel has the same value at the same (LPS) place."""
    sitk = pytest.importorskip("SimpleITK")
    folder = write_series(tmp_path / "s", image_of(codes))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    theirs, ours = sitk.ReadImage(names), read(folder)
    for index in np.ndindex(*theirs.GetSize()):
        x, y, z = theirs.TransformIndexToPhysicalPoint([int(i) for i in index])
        voxel = np.linalg.inv(ours.affine) @ [-x, -y, z, 1]
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-3)
        assert ours.array[tuple(voxel[:3].round().astype(int))] == theirs.GetPixel([int(i) for i in index])


def test_series_becomes_nifti_at_the_same_place(tmp_path):
    image = image_of("oblique")
    volume = read(write_series(tmp_path / "s", image))
    save_like(volume.array, volume, tmp_path / "a.nii.gz", "synthetic")
    back = nib.load(tmp_path / "a.nii.gz")
    there, here = (nib.as_closest_canonical(i) for i in (image, back))
    np.testing.assert_array_equal(here.get_fdata(), there.get_fdata())
    np.testing.assert_allclose(here.affine, there.affine, atol=1e-4)
    np.testing.assert_allclose(back.get_qform(), back.get_sform(), atol=1e-4)
    assert back.get_data_dtype() == np.int16
    assert back.header.get_xyzt_units()[0] == "mm"


def test_rescale(tmp_path):
    image = image_of()
    volume = read(write_series(tmp_path / "s", image, RescaleSlope=0.5, RescaleIntercept=-100))
    np.testing.assert_array_equal(volume.array, nib.as_closest_canonical(image).get_fdata() * 0.5 - 100)
    assert volume.dtype == np.float32


def test_several_series_in_one_folder(tmp_path):
    first = image_of()
    write_series(tmp_path, first, "1.2.3")
    write_series(tmp_path, image_of("RAS"), "1.2.4")
    (tmp_path / "notes.txt").write_text("no DICOM")
    assert [(s.uid, len(s.files), s.description) for s in series_in(tmp_path)] == [
        ("1.2.3", 6, "series 1.2.3"),
        ("1.2.4", 6, "series 1.2.4"),
    ]
    with pytest.raises(UserError, match=r"2 series; name one by --series UID:\n  1\.2\.3  series 1\.2\.3, 6 files"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"no series=9; there is"):
        read(tmp_path, "9")
    expected = nib.as_closest_canonical(first)
    np.testing.assert_array_equal(read(tmp_path, "1.2.3").array, expected.get_fdata())


def test_one_slice_takes_its_thickness(tmp_path):
    image = nib.Nifti1Image(np.arange(20, dtype=np.int16).reshape(4, 5, 1), affine_of("LPS", (1, 1, 5)))
    volume = read(write_series(tmp_path / "s", image))
    assert volume.array.shape == (4, 5, 1)
    assert volume.spacing_mm == pytest.approx((1, 1, 5))


def test_stacks_that_are_no_volume(tmp_path):
    gap = write_series(tmp_path / "gap", image_of("LPS"))
    remove(gap, 27)
    with pytest.raises(UserError, match=r"not evenly spaced: 2\.00 mm mostly, but 4\.00 mm after slice 2; of 5 slices"):
        read(gap)
    twice = write_series(tmp_path / "twice", image_of("LPS"), EchoTime=20)
    for path in list(twice.iterdir()):
        data = pydicom.dcmread(path)
        data.EchoTime = 80
        data.save_as(path.with_suffix(".second"))
    with pytest.raises(UserError, match=r"6 of 12 slices share their position .*echo times 20\.?0?, 80\.?0? ms"):
        read(twice)
    mixed = write_series(tmp_path / "mixed", image_of("LPS"))
    write_series(mixed, image_of("PSR"), SeriesInstanceUID="1.2.3.4", SOPInstanceUID="1.2.9", Rows=5)
    one = sorted(mixed.iterdir())[0]
    data = pydicom.dcmread(one)
    data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    data.save_as(one)
    with pytest.raises(UserError, match="ImageOrientationPatient differs within one series"):
        read(mixed)


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no DICOM images in this folder"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="several frames in one file"):
        read(write_series(tmp_path / "frames", image_of(), NumberOfFrames=3))
    with pytest.raises(UserError, match=r"coloured \(RGB\)"):
        read(write_series(tmp_path / "rgb", image_of(), SamplesPerPixel=3, PhotometricInterpretation="RGB"))
    with pytest.raises(UserError, match="PixelSpacing missing"):
        read(write_series(tmp_path / "nowhere", image_of(), PixelSpacing=None))
    with pytest.raises(UserError, match="pixels cannot be read"):
        read(write_series(tmp_path / "short", image_of(), PixelData=b"12"))


def test_no_damaged_slice_is_dropped_in_silence(tmp_path, caplog):
    """A cut last slice would only make the volume shorter; reports and the like are no slices."""
    folder = write_series(tmp_path / "s", image_of("LPS"))
    report = pydicom.dcmread(sorted(folder.iterdir())[0])
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    del report.Rows
    report.save_as(folder / "report.dcm")
    assert read(folder).array.shape == (4, 5, 6)
    last = max(folder.glob("1*.dcm"), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    whole = last.read_bytes()
    for cut, why in ((0, ""), (140, ""), (whole.index(b"SH") - 30, "the header breaks off")):
        last.write_bytes(whole[:cut])
        with pytest.raises(
            UserError, match=rf"damaged DICOM files \(1\), slices may be missing:\n  {last.name}: {why}"
        ):
            read(folder)
    assert [len(s.files) for s in series_in(folder)] == [5]
    assert f"{last.name}: left out" in caplog.text


def test_missing_package_names_the_command(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s", image_of())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'mri-synth\[dicom\]'"):
        read_series(folder)
