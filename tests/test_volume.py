"""Reading, orientation, slices, resampling and writing back of NIfTI and pictures."""

from __future__ import annotations

import errno
import gzip
import logging
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mri_synth.data.nifti import to_numbers
from mri_synth.data.volume import (
    Volume,
    from_slices,
    read,
    resample_to,
    same_grid,
    save_like,
    to_slices,
    to_source_order,
)
from mri_synth.errors import UserError

AXES = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ORIENTATIONS = ("RAS", "LAS", "PSR", "LPS", "IRP", "oblique")


def affine_of(codes: str, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> np.ndarray:
    """Affine whose array axes run as the codes say; "oblique" is LAS turned by 20 degrees about two axes."""
    c, s = np.cos(np.pi / 9), np.sin(np.pi / 9)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    axes = np.array([AXES[x] for x in ("LAS" if codes == "oblique" else codes)], float).T
    affine = np.eye(4)
    affine[:3, :3] = (turn @ axes if codes == "oblique" else axes) * spacing
    affine[:3, 3] = (-7, 11, 23)
    return affine


def world_ramp(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """x + 10 y + 100 z at every voxel: a value that knows its place."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (grid @ affine[:3, :3].T + affine[:3, 3]) @ np.array([1.0, 10.0, 100.0])


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def picture(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz"])
def test_every_voxel_keeps_its_place(tmp_path, codes, ending):
    affine = affine_of(codes)
    stored = world_ramp((4, 5, 6), affine).astype(np.float32)
    path = tmp_path / f"a{ending}"
    kind = nib.MGHImage if ending == ".mgz" else nib.Nifti1Image
    nib.save(kind(stored, affine), path)
    volume = read(path)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    np.testing.assert_allclose(volume.array, world_ramp(volume.array.shape, volume.affine), atol=2e-3)
    np.testing.assert_array_equal(to_source_order(volume.array, volume), stored)
    assert volume.source_axes == "".join(nib.aff2axcodes(affine))


def test_display_by_hand(tmp_path):
    """Voxel value 100 x + 10 y + z of a RAS array (2, 3, 4)."""
    x, y, z = np.meshgrid(range(2), range(3), range(4), indexing="ij")
    volume = read(write(tmp_path / "a.nii", (100 * x + 10 * y + z).astype(np.int16), np.diag([2.0, 3, 4, 1])))
    axial, coronal, sagittal = (to_slices(volume, p) for p in ("axial", "coronal", "sagittal"))
    # anterior (y=2) in the top row, patient's left (x=0) in the left column
    np.testing.assert_array_equal(axial.images[1], [[21, 121], [11, 111], [1, 101]])
    # superior (z=3) in the top row, patient's left in the left column
    np.testing.assert_array_equal(coronal.images[2], [[23, 123], [22, 122], [21, 121], [20, 120]])
    # superior in the top row, anterior in the left column
    np.testing.assert_array_equal(sagittal.images[1][0], [123, 113, 103])
    assert (axial.spacing_mm, coronal.spacing_mm, sagittal.spacing_mm) == ((3, 2), (4, 2), (4, 3))
    np.testing.assert_array_equal(axial.position_mm, [0, 4, 8, 12])
    np.testing.assert_array_equal(coronal.position_mm, [0, 3, 6])
    np.testing.assert_array_equal(sagittal.index, [0, 1])
    assert axial.images.flags.c_contiguous


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_invert(tmp_path, codes, plane):
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    volume = read(write(tmp_path / "a.nii", array, affine_of(codes)))
    slices = to_slices(volume, plane)
    np.testing.assert_array_equal(from_slices(slices.images, volume, plane), volume.array)
    assert (np.diff(slices.position_mm) > 0).all()


def test_orientation_does_not_change_the_picture(tmp_path):
    """One head stored in two ways gives the same slices."""
    image = nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype(np.float32), affine_of("RAS"))
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
    nib.save(image, tmp_path / "a.nii")
    nib.save(turned, tmp_path / "b.nii")
    a, b = (to_slices(read(tmp_path / n), "axial") for n in ("a.nii", "b.nii"))
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_allclose(a.position_mm, b.position_mm)


def test_one_slice_of_another_plane_is_refused(tmp_path):
    volume = read(write(tmp_path / "a.nii", np.arange(20.0, dtype=np.float32).reshape(4, 1, 5), np.eye(4)))
    assert to_slices(volume, "coronal").images.shape == (1, 5, 4)
    with pytest.raises(UserError, match=r"one coronal slice \(4x1x5\), but plane=axial. Set plane=coronal"):
        to_slices(volume, "axial")


def test_scale_factors_trailing_axes_and_negative_values(tmp_path):
    image = nib.Nifti1Image(np.arange(-12, 12, dtype=np.int16).reshape(2, 3, 4, 1), np.eye(4))
    image.header["scl_slope"], image.header["scl_inter"] = 0.5, 3
    nib.save(image, tmp_path / "a.nii")
    volume = read(tmp_path / "a.nii")
    assert volume.array.shape == (2, 3, 4)
    assert volume.array[0, 0, 0] == -12 * 0.5 + 3
    assert volume.dtype == np.int16


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> file, what its message must say."""
    ones, grid = np.ones((3, 3, 3), np.float32), np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    holes, frames = grid.copy(), np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)
    holes[0, 0, :2], holes[1, 1, 1] = np.nan, np.inf
    flat = np.eye(4)
    flat[:3, 2] = 0
    noise = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    whole = write(folder / "whole.nii.gz", noise, np.eye(4)).read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    raw = gzip.decompress(whole)
    (folder / "cut.nii").write_bytes(raw[: len(raw) // 2])
    (folder / "zero.png").touch()
    (folder / "text.nii").write_text("no image" * 100)
    (folder / "text.png").write_text("no image" * 100)
    rgb = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    singular = nib.Nifti1Image(grid, np.eye(4))
    singular.header.set_sform(flat, code=1)
    singular.header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(grid, None, singular.header), folder / "singular.nii")
    colour = np.full((8, 8, 3), 100, np.uint8)
    colour[0, 0] = (10, 20, 200)
    clear = np.full((8, 8, 2), 255, np.uint8)
    clear[0, 0, 1] = 0
    return {
        "missing": (folder / "none.nii", "no such file"),
        "kind": (folder / "whole.xyz", "not a kind of file that is read. Allowed: .nii"),
        "truncated gz": (folder / "cut.nii.gz", "damaged or not complete"),
        "truncated": (folder / "cut.nii", "damaged or not complete"),
        "zero bytes": (folder / "zero.png", r"empty \(0 bytes\)"),
        "text": (folder / "text.nii", "damaged or not complete"),
        "text picture": (folder / "text.png", "damaged or not a picture"),
        "nan": (write(folder / "nan.nii", holes, np.eye(4)), "2 NaN and 1 infinite of 27 values"),
        "constant": (write(folder / "ones.nii", ones, np.eye(4)), "constant, every value is 1"),
        "4-D": (write(folder / "four.nii", frames, np.eye(4)), r"4-D \(3x3x3x2\).*slicer\[..., 0\]"),
        "complex": (write(folder / "complex.nii", grid.astype(np.complex64), np.eye(4)), "voxels are complex"),
        "rgb": (write(folder / "rgb.nii", rgb, np.eye(4)), r"voxels are coloured \(RGB\)"),
        "singular": (folder / "singular.nii", "affine is singular"),
        "line": (write(folder / "line.nii", np.arange(9.0, dtype=np.float32), np.eye(4)), "is not an image"),
        "colour": (picture(folder / "colour.png", colour), r"differ by up to 190 of 255.*in 1\.6 % .*on_bad_file=skip"),
        "transparent": (picture(folder / "clear.png", clear), "1 transparent pixels"),
    }


def test_bad_files_say_why(tmp_path):
    for name, (path, message) in bad_files(tmp_path).items():
        if name == "kind":
            path.write_text("x")
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value), name


def test_constant_volume_is_allowed_for_masks(tmp_path):
    path = write(tmp_path / "mask.nii", np.zeros((3, 3, 3), np.uint8), np.eye(4))
    assert read(path, allow_constant=True).array.max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_pictures_keep_their_grey_values(tmp_path, dtype, ending):
    grey = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7), endpoint=True).astype(dtype)
    volume = read(picture(tmp_path / f"a{ending}", grey))
    np.testing.assert_array_equal(volume.array, grey)
    assert (volume.picture, volume.dtype, volume.spacing_mm) == (True, dtype, (1, 1))
    slices = to_slices(volume, "coronal")
    assert (slices.images.shape, slices.spacing_mm, slices.position_mm.tolist()) == ((1, 5, 7), (1, 1), [0])
    save_like(volume.array, volume, tmp_path / "b.png", "synthetic: test")
    with Image.open(tmp_path / "b.png") as back:
        assert back.info["synthetic"] == "synthetic: test"
        np.testing.assert_array_equal(np.asarray(back), grey)
        assert np.asarray(back).dtype == dtype


def test_grey_pictures_in_colour_modes(tmp_path):
    grey = np.tile(np.arange(16, dtype=np.uint8) * 15, (16, 1))
    rgb = np.stack([grey] * 3, -1)
    tinted = rgb.copy()
    tinted[..., 2] = np.minimum(255, tinted[..., 2] + 12)
    files = [picture(tmp_path / "rgb.png", rgb), picture(tmp_path / "alpha.png", np.dstack([rgb, 0 * grey + 255]))]
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    for path in (*files, tmp_path / "palette.png"):
        np.testing.assert_array_equal(read(path).array, grey)
    assert read(picture(tmp_path / "tinted.png", tinted)).array.shape == (16, 16)


def test_two_dimensional_nifti_by_hand(tmp_path):
    """(columns, rows upwards): the second axis's negative sign says that rows run downwards."""
    stored = np.array([[1, 2], [3, 4], [5, 6]], np.int16)
    up = read(write(tmp_path / "up.nii", stored, np.diag([0.5, 0.75, 1, 1])))
    down = read(write(tmp_path / "down.nii", stored, np.diag([0.5, -0.75, 1, 1])))
    mirrored = read(write(tmp_path / "mirrored.nii", stored, np.diag([-0.5, -0.75, 1, 1])))
    np.testing.assert_array_equal(up.array, [[2, 4, 6], [1, 3, 5]])
    np.testing.assert_array_equal(down.array, [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(mirrored.array, [[5, 3, 1], [6, 4, 2]])
    assert to_slices(up, "axial").spacing_mm == (0.75, 0.5)
    for volume in (up, down, mirrored):
        np.testing.assert_array_equal(to_source_order(volume.array, volume), stored)
        save_like(volume.array, volume, tmp_path / "out.nii", "synthetic")
        np.testing.assert_array_equal(nib.load(tmp_path / "out.nii").get_fdata(), stored)


def test_resampling_a_ramp_is_exact(tmp_path):
    """Linear interpolation gives a linear function of the world exactly, whatever the two grids."""
    small, large = affine_of("oblique", (1, 1, 1)), affine_of("PSR", (2, 2, 3))
    large[:3, 3] = (-40, 60, -40)
    reference = read(write(tmp_path / "r.nii", world_ramp((6, 6, 6), small).astype(np.float32), small))
    moving = read(write(tmp_path / "m.nii", world_ramp((60, 60, 60), large).astype(np.int16), large))
    shown = resample_to(replace(moving, array=world_ramp(moving.array.shape, moving.affine)), reference)
    np.testing.assert_allclose(shown.array, reference.array, rtol=1e-4)
    assert same_grid(shown, reference)
    assert shown.dtype == np.int16
    assert shown.source is not None
    assert shown.source.path == tmp_path / "m.nii"


def test_resampling_outside_and_nearest():
    box = np.ones((4, 4, 4), np.float32)
    moving = Volume(box * np.array([-3, 1, 2, 2], np.float32), np.eye(4), np.dtype(np.float32))
    wide = np.eye(4)
    wide[:3, 3] = -10
    reference = Volume(np.zeros((30, 4, 4), np.float32), wide, np.dtype(np.float32))
    assert resample_to(moving, reference).array[0, 0, 0] == -3
    assert resample_to(moving, reference, nearest=True).array[0, 0, 0] == 0
    half = np.eye(4)
    half[2, 3] = 0.4
    labels = resample_to(moving, Volume(box, half, np.dtype(np.uint8)), nearest=True)
    np.testing.assert_array_equal(labels.array[0, 0, :3], [-3, 1, 2])


def test_same_grid_tolerance():
    a = Volume(np.zeros((101, 2, 2), np.float32), np.eye(4), np.dtype(np.float32))
    shifted, turned = np.eye(4), np.eye(4)
    shifted[0, 3] = 5e-4
    turned[1, 0] = 1e-4  # 0.01 mm at the far end
    assert same_grid(a, replace(a, affine=shifted))
    assert not same_grid(a, replace(a, affine=turned))
    assert not same_grid(a, replace(a, array=np.zeros((101, 2, 3), np.float32)))


def test_pictures_of_two_sizes_are_not_resampled(tmp_path):
    a, b = (read(picture(tmp_path / f"{n}.png", np.arange(2 * n, dtype=np.uint8).reshape(2, n))) for n in (3, 4))
    with pytest.raises(UserError, match="2-D pictures carry no place"):
        resample_to(a, b)


@pytest.mark.parametrize("codes", ["PSR", "LAS", "RAS", "oblique"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_saving_keeps_file_and_header(tmp_path, codes, dtype, ending):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 200, (4, 5, 6, 1)).astype(dtype)
    image = nib.Nifti1Image(stored, affine_of(codes))
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"], image.header["intent_name"] = 150, b"T1"
    image.set_qform(affine_of(codes), code=2)
    nib.save(image, tmp_path / f"a{ending}")
    volume = read(tmp_path / f"a{ending}")
    save_like(volume.array, volume, tmp_path / "new" / f"b{ending}", "synthetic: test")
    before, after = nib.load(tmp_path / f"a{ending}"), nib.load(tmp_path / "new" / f"b{ending}")
    assert_same_header(tmp_path / f"a{ending}", tmp_path / "new" / f"b{ending}", "synthetic: test")
    np.testing.assert_array_equal(before.affine, after.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), stored)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [f"b{ending}"]


def assert_same_header(before: Path, after: Path, description: str) -> None:
    """Every field of the stored headers but `descrip`, as the bytes are."""
    headers = []
    for path in (before, after):
        content = path.read_bytes()
        raw = gzip.decompress(content) if path.suffix == ".gz" else content
        headers.append(nib.Nifti1Header(raw[:348], check=False))
    for field in headers[0]:
        if field == "descrip":
            assert headers[1]["descrip"].item().decode() == description
        else:
            np.testing.assert_array_equal(headers[0][field], headers[1][field], err_msg=field)


def test_saving_scaled_integers(tmp_path, caplog):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header["scl_slope"], image.header["scl_inter"] = 0.25, -1
    nib.save(image, tmp_path / "a.nii")
    volume = read(tmp_path / "a.nii")
    save_like(volume.array, volume, tmp_path / "b.nii", "synthetic")
    back = nib.load(tmp_path / "b.nii")
    assert (back.dataobj.slope, back.dataobj.inter) == (0.25, -1)
    np.testing.assert_array_equal(back.dataobj.get_unscaled(), np.arange(24).reshape(2, 3, 4))
    # beyond what 0.25 and -1 hold: the factors make room, within one of their steps
    wide = volume.array * 20000
    save_like(wide, volume, tmp_path / "c.nii", "synthetic")
    back = nib.load(tmp_path / "c.nii")
    np.testing.assert_allclose(back.get_fdata(), wide, atol=back.dataobj.slope)
    assert back.get_data_dtype() == np.int16
    save_like(wide, volume, tmp_path / "d.nii", "synthetic", dtype="float32")
    back = nib.load(tmp_path / "d.nii")
    np.testing.assert_array_equal(back.get_fdata(), wide)
    assert not caplog.records


def test_numbers_are_rounded_and_clipped(caplog):
    with caplog.at_level(logging.WARNING):
        numbers, *factors = to_numbers(np.array([-3.0, 1.4, 1.6, 300]), np.dtype(np.uint8), 1, 0, "file")
    assert (numbers.tolist(), factors) == ([0, 1, 2, 255], [1, 0])
    assert "file: 2 of 4 values clipped to the range of uint8" in caplog.text


def test_volume_made_in_memory_is_saved(tmp_path):
    volume = Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), affine_of("oblique"), np.dtype(np.float32))
    affine = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine)).affine
    volume = replace(volume, affine=affine)
    save_like(volume.array, volume, tmp_path / "a.nii.gz", "synthetic")
    back = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.get_fdata(), volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)
    assert back.header.get_xyzt_units()[0] == "mm"


def test_saving_refuses(tmp_path, monkeypatch):
    volume = read(write(tmp_path / "a.nii", np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4)))
    grey = read(picture(tmp_path / "a.png", np.arange(24, dtype=np.uint8).reshape(4, 6)))
    before = (tmp_path / "a.nii").read_bytes()
    with pytest.raises(UserError, match=r"a volume is written as \.nii or \.nii\.gz"):
        save_like(volume.array, volume, tmp_path / "b.png", "")
    with pytest.raises(UserError, match=r"a picture is written as \.png"):
        save_like(grey.array, grey, tmp_path / "b.jpg", "")
    with pytest.raises(UserError, match="is the input itself"):
        save_like(volume.array, volume, tmp_path / "a.nii", "")
    with pytest.raises(UserError, match="1 of the 24 values are NaN"):
        save_like(np.where(volume.array == 5, np.nan, volume.array), volume, tmp_path / "b.nii", "")
    with pytest.raises(UserError, match="cannot be written"):
        save_like(volume.array, volume, tmp_path / "a.png" / "b.nii", "")

    def full(image: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_like(volume.array, volume, tmp_path / "b.nii", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "a.png"]
    assert (tmp_path / "a.nii").read_bytes() == before


def test_coronal_slice_is_upright(shared_data):
    """A 2-D file whose affine cannot say that it is coronal: air above the head, the neck below."""
    volume = read(shared_data / "t1_t2_coronal/S1/structInSpaceOfTemplateCoronalSlice.nii.gz")
    assert volume.array.shape == (320, 200)
    assert volume.array[:25].mean() < 0.05 * volume.array[-25:].mean()


def test_stored_orders_of_real_files(shared_data):
    child = read(shared_data / "t1_children/i1.nii.gz")
    assert (child.source_axes, child.array.shape) == ("PSR", (182, 217, 18))
    flair, t1 = (read(shared_data / f"ms_raw/patient01/study1_{c}.nii.gz") for c in ("FLAIR", "T1W"))
    assert not same_grid(flair, t1)
    moved = resample_to(flair, t1)
    near = np.corrcoef(moved.array[::4, ::4].ravel() > 50, t1.array[::4, ::4].ravel() > 50)[0, 1]
    assert near > 0.7


def test_a_compressed_file_is_one_member_and_equal_content_gives_equal_files(tmp_path: Path) -> None:
    """Some readers stop behind a first member; a hash of a file should be of its content, not of its time."""
    volume = read(write(tmp_path / "source.nii.gz", world_ramp((5, 6, 7), np.eye(4)), np.eye(4)))
    for name in ("a.nii.gz", "b.nii.gz"):
        save_like(volume.array, volume, tmp_path / name, "as it was")
    file = (tmp_path / "a.nii.gz").read_bytes()
    assert file == (tmp_path / "b.nii.gz").read_bytes()
    assert file[4:8] == bytes(4)  # no time (RFC 1952)
    one = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert len(one.decompress(file)) > 352
    assert one.eof
    assert not one.unused_data
    changed = bytearray(file)
    changed[-6] ^= 1  # of the checksum
    (tmp_path / "c.nii.gz").write_bytes(changed)
    with pytest.raises(UserError, match=r"c.nii.gz: damaged or not complete \(.*CRC"):
        read(tmp_path / "c.nii.gz")
