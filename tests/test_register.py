"""Registration: a head turned and shifted by known numbers is found again; what is not to be believed is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mri_synth.data import register
from mri_synth.data.folder import Folder
from mri_synth.data.register import Registrar, Rigid, information, rigid
from mri_synth.data.settings import SliceSettings, SplitSettings
from mri_synth.data.template import load_template
from mri_synth.data.volume import Volume, resample_to, same_grid
from mri_synth.errors import UserError

CENTRE = np.array([0.0, -17.0, 10.0])
WEIGHTS = {"T1": (1.0, 0.65, 0.2), "T2": (0.35, 0.5, 1.0), "PD": (0.6, 0.75, 1.0)}  # of white, grey, fluid


def grid(spacing: Sequence[float], turn_deg: Sequence[float] = (0, 0, 0),
         fov: Sequence[float] = (170, 200, 150)) -> tuple[tuple[int, ...], np.ndarray]:  # fmt: skip
    """Shape and affine of voxels around the middle of the head, oblique by three angles."""
    shape = tuple(round(f / s) for f, s in zip(fov, spacing, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return shape, affine


@cache
def tissue(contrast: str) -> np.ndarray:
    t, w = load_template(), WEIGHTS[contrast]
    white, grey = (x.astype(np.float32) / 255 for x in (t.wm, t.gm))
    return 1000 * (w[0] * white + w[1] * grey + w[2] * np.clip((t.brain > 0) - white - grey, 0, 1))


def head(contrast: str, shape: Sequence[int], affine: np.ndarray, seed: int = 0) -> Volume:
    """MNI152's tissue in a contrast, averaged over each voxel's thickness (third axis), with noise (SNR 30)."""
    image, to_template = tissue(contrast), np.eye(4)
    to_template[:3, 3] = -np.array(load_template().origin_mm)
    parts = max(1, round(float(np.linalg.norm(affine[:3, 2]))))
    total = np.zeros(shape)
    for k in range(parts):
        m = to_template @ affine
        m[:3, 3] += m[:3, 2] * ((k + 0.5) / parts - 0.5)
        total += ndimage.affine_transform(image, m[:3, :3], m[:3, 3], shape, order=1) / parts
    rng, sd = np.random.default_rng(seed), 1000 / 30
    noisy = np.hypot(total + rng.normal(0, sd, shape), rng.normal(0, sd, shape))
    return Volume(noisy.astype(np.float32), affine, np.dtype(np.int16))


def move(turn_deg: Sequence[float], shift_mm: Sequence[float]) -> np.ndarray:
    """(4, 4) a turn about the middle of the head, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE + shift_mm - matrix[:3, :3] @ CENTRE
    return matrix


def moved(volume: Volume, by: np.ndarray) -> Volume:
    """The same voxels elsewhere: exact, nothing is interpolated."""
    return replace(volume, affine=by @ volume.affine)


def error(found: Rigid, true: np.ndarray) -> tuple[float, float]:
    """Degrees, and mm at the middle of the head, between what was found and what is true."""
    rest = np.linalg.inv(true) @ np.array(found.matrix)
    return (float(np.degrees(Rotation.from_matrix(rest[:3, :3]).magnitude())),
            float(np.linalg.norm(rest[:3, :3] @ CENTRE + rest[:3, 3] - CENTRE)))  # fmt: skip


@pytest.mark.parametrize("fixed, moving, oblique, turn, shift", [
    ((1.5, 1.5, 1.5), (1.5, 1.5, 1.5), (0, 0, 0), (3, -4, 5), (4, -3, 2)),
    ((1.2, 1.2, 1.5), (1, 1, 3), (8, -5, 3), (-6, 2, 7), (-5, 6, 9)),
    ((1, 1, 3), (1.5, 1.5, 1.5), (4, 5, -6), (12, -8, 10), (15, -10, 12)),
])  # fmt: skip
@pytest.mark.slow
def test_known_turn_and_shift_are_found(fixed: Any, moving: Any, oblique: Any, turn: Any, shift: Any) -> None:
    true = move(turn, shift)
    t1 = head("T1", *grid(fixed))
    t2 = moved(head("T2", *grid(moving, oblique), seed=1), true)
    found = rigid(t2, t1)
    degrees, mm = error(found, true)
    assert degrees < 0.1
    assert mm < 0.1
    assert found.after > found.before + 0.1
    assert found.rotation_deg == pytest.approx(np.degrees(Rotation.from_euler("xyz", turn, True).magnitude()), abs=0.1)
    assert found.shift_mm == pytest.approx(np.linalg.norm(shift), abs=1.0)  # of the head's centre, not of CENTRE
    put = found.onto(t2, t1)
    assert put.array is t2.array
    truth = head("T2", *grid(fixed), seed=1).array[20:-20, 20:-20, 8:-8]
    assert np.corrcoef(resample_to(put, t1).array[20:-20, 20:-20, 8:-8].ravel(), truth.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_what_is_registered_stays_put() -> None:
    t1, t2 = (head(c, *grid((1.5, 1.5, 1.5)), seed=i) for i, c in enumerate(("T1", "T2")))
    found = rigid(t2, t1)
    assert found.furthest_mm < register.STAY_MM
    assert found.onto(t2, t1) is t2
    other = head("T2", *grid((1.2, 1.2, 2)), seed=1)  # another grid, so it is resampled anyway
    found = rigid(other, t1)
    assert max(error(found, np.eye(4))) < 0.1


@pytest.mark.slow
def test_origin_that_says_nothing_and_the_same_numbers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "LEVELS", register.LEVELS[:1])
    true = move((2, 3, -4), (300, -250, 100))
    t1, t2 = head("T1", *grid((3, 3, 3))), moved(head("T2", *grid((3, 3, 3)), seed=1), true)
    found = rigid(t2, t1)
    assert found.before == 0
    assert error(found, true)[1] < 3
    assert rigid(t2, t1) == found  # bit by bit
    with pytest.raises(UserError, match=r"moved by 40\d.\d mm; no more than 30 deg and 60 mm are believed"):
        found.onto(t2, t1)


def volume(array: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(array.astype(np.float32), np.eye(4) if affine is None else affine, np.dtype(np.int16))


def found(**changes: Any) -> Rigid:
    values = {"matrix": move((0, 0, 10), (3, 0, 0)).tolist(), "rotation_deg": 10.0, "shift_mm": 3.0,
              "furthest_mm": 12.0, "before": 0.5, "after": 0.8}  # fmt: skip
    return Rigid(**(values | changes))


def test_judgement() -> None:
    a, b = volume(np.zeros((4, 4, 4))), volume(np.zeros((4, 4, 5)))
    assert np.allclose(np.array(found().matrix) @ found().onto(b, a).affine, b.affine)
    with pytest.raises(UserError, match=r"turned by 31.0 deg and moved by 3.0 mm; .* data.register=none goes by"):
        found(rotation_deg=31.0).onto(b, a)
    with pytest.raises(UserError, match=r"lowered mutual information from 0.500 to 0.499 nats"):
        found(after=0.499).onto(b, a)
    assert found(furthest_mm=0.2).onto(a, a) is a
    assert found(furthest_mm=0.2).onto(b, a) is not b  # on another grid it is resampled anyway
    assert found(furthest_mm=0.2, after=0.499).onto(b, a) is b


def test_information_by_hand() -> None:
    half = np.zeros((40, 40, 40))
    half[20:] = 1
    at = np.random.default_rng(0).random((20_000, 3)) * 39
    at = at[np.abs(at[:, 0] - 19.5) > 0.5]  # not between the two values
    p = (at[:, 0] < 19.5).mean()
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert information(volume(half), volume(half), np.eye(4), at) == pytest.approx(entropy)
    assert information(volume(half), volume(7 - 5 * half), np.eye(4), at) == pytest.approx(entropy)
    across = np.moveaxis(half, 0, 1)
    assert information(volume(half), volume(across), np.eye(4), at[np.abs(at[:, 1] - 19.5) > 0.5]) < 1e-3
    away = np.eye(4)
    away[0, 3] = 38  # nearly nothing of one lies in the other
    assert information(volume(half), volume(half), away, at) == 0


def test_refusals() -> None:
    picture = Volume(np.zeros((8, 8), np.float32), np.eye(4), np.dtype(np.uint8), picture=True)
    with pytest.raises(UserError, match=r"data.register=rigid needs volumes; .* is a picture"):
        rigid(picture, picture)
    noise = volume(np.random.default_rng(0).random((6, 6, 6)))
    slab = volume(np.random.default_rng(1).random((6, 6, 1)), np.diag([1, 1, 50, 1]))
    with pytest.raises(UserError, match=r"does not overlap|failed \("):
        rigid(slab, noise)


# -- the cache --------------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def quick(*_: Any) -> Rigid:
        calls.append(1)
        return found()

    monkeypatch.setattr(register, "rigid", quick)
    return calls


def test_each_pair_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, a, b = counted(monkeypatch), volume(np.zeros((3, 3, 3))), volume(np.ones((3, 3, 3)))
    ask = Registrar(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert set(map(str, pool.map(lambda _: ask(a, b, ("x", "y")), range(8)))) == {str(found())}
    assert len(calls) == 1
    assert Registrar(tmp_path)(a, b, ("x", "y")) == found()  # another process
    assert len(calls) == 1
    for hashes in (("x", "z"), ("y", "x"), ("", "y")):
        ask(a, b, hashes)
    assert len(calls) == 4
    ask(b, a, ("", "y"))  # no file: by its voxels
    assert len(calls) == 5
    monkeypatch.setattr(register, "SEED", 2)
    ask(a, b, ("x", "y"))
    assert len(calls) == 6


def test_damaged_and_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    calls, a = counted(monkeypatch), volume(np.zeros((3, 3, 3)))
    Registrar(tmp_path)(a, a, ("x", "y"))
    (kept,) = (tmp_path / "registrations").glob("*.json")
    for damage in ("", "{", "[]", json.dumps({"matrix": []})):
        kept.write_text(damage)
        Registrar(tmp_path)(a, a, ("x", "y"))
    assert len(calls) == 5
    (tmp_path / "file").write_text("")
    assert Registrar(tmp_path / "file")(a, a, ("x", "y")) == found()
    assert "a registration could not be kept there" in caplog.text


# -- in a data set ----------------------------------------------------------------------------------------------------


def save(path: Path, shown: Volume) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.rint(shown.array).astype(np.int16), shown.affine), path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects; T2 is elsewhere by 14 mm, on its own grid, and has the lesion mask."""
    root = tmp_path_factory.mktemp("heads")
    for i, name in enumerate(("a", "b")):
        t1, t2 = head("T1", *grid((3, 3, 3)), seed=i), head("T2", *grid((2.5, 2.5, 4), (5, 0, 3)), seed=i + 2)
        mark = np.zeros_like(t2.array)
        mark[30:36, 36:42, 18:21] = 1
        there = move((0, 0, 8 + i), (10, -8, 6))
        save(root / name / "T1.nii.gz", t1)
        save(root / name / "T2.nii.gz", moved(t2, there))
        save(root / name / "seg.nii.gz", moved(replace(t2, array=mark), there))
    return root


def data(tree: Path, cache: Path, **settings: Any) -> Folder:
    made = Folder(root=str(tree), contrasts=["T1", "T2"], size=64, cache=str(cache), slices=SliceSettings(step=4),
                  split=SplitSettings(fractions=[0.5, 0.5, 0], on_leak="drop"), **settings)  # fmt: skip
    made.setup()
    return made


@pytest.mark.slow
def test_data_register_rigid(tree: Path, tmp_path: Path) -> None:
    truth = head("T2", *grid((3, 3, 3)), seed=1).array
    before, after = data(tree, tmp_path), data(tree, tmp_path, register="rigid")
    assert before.store_key != after.store_key
    assert before.data_hash != after.data_hash
    assert len(list((tmp_path / "registrations").glob("*.json"))) == 2
    agree, marks = [], []
    for made in (before, after):
        rows = np.flatnonzero(made.store.table["study"] == 0)
        shown = made.store.read("T2", made.store.table["row_T2"][rows]).astype(float)
        slices = np.flip(truth.transpose(2, 1, 0), 1)[made.store.table["slice"][rows]]
        inside = (slice(None), slice(10, 54), slice(12, 52))
        h, w = slices.shape[1:]
        zoomed = ndimage.zoom(slices, (1, 64 / max(h, w), 64 / max(h, w)), order=1)
        framed = np.zeros(shown.shape)
        y, x = (64 - zoomed.shape[1]) // 2, (64 - zoomed.shape[2]) // 2
        framed[:, y : y + zoomed.shape[1], x : x + zoomed.shape[2]] = zoomed[:, :64, :64]
        agree.append(np.corrcoef(shown[inside].ravel(), framed[inside].ravel())[0, 1])
        mask = made.store.read("mask", made.store.table["row_mask"][rows])
        marks.append(np.array([*np.argwhere(mask).mean(0)[1:], (made.store.table["position_mm"][rows] *
                               mask.sum((1, 2))).sum() / max(mask.sum(), 1)]))  # fmt: skip
    assert agree[1] > agree[0] + 0.1
    assert agree[1] > 0.9
    assert np.linalg.norm(marks[1] - marks[0]) > 2  # the mask goes with the T2 it was drawn on
    record = next(f for f in after.store.files if f["contrast"] == "T2")
    assert record["registration"]["after"] > record["registration"]["before"]
    assert record["registration"]["rotation_deg"] == pytest.approx(8, abs=0.5)


def test_a_pair_that_cannot_be_registered_is_listed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "rigid", lambda *_: found(rotation_deg=44.0))
    with pytest.raises(
        UserError, match=r"2 file\(s\) cannot be used:\n  .*T2.nii.gz: registration found it turned by 44"
    ):
        data(tree, tmp_path, register="rigid")
    made = data(tree, tmp_path, register="rigid", on_bad_file="skip")
    assert [f["contrast"] for f in made.store.files if f["bad"]] == ["T2", "T2"]
    assert set(made.store.counts) == {"T1", "mask"}


def test_key_is_as_before_without_registration(tree: Path, tmp_path: Path) -> None:
    """Grids that differ are resampled by their affines alone."""
    made = data(tree, tmp_path)
    assert not (tmp_path / "registrations").exists()
    assert "register" not in made._own()
    assert not any("registration" in f for f in made.store.files)
    t1, t2 = (head(c, *g) for c, g in (("T1", grid((3, 3, 3))), ("T2", grid((2.5, 2.5, 4), (5, 0, 3)))))
    assert not same_grid(t1, t2)


def test_one_contrast_has_nothing_to_register() -> None:
    (message,) = Folder.problems({"register": "rigid", "contrasts": ["T1"]})
    assert message.startswith("data.register=rigid: data.contrasts=[T1] leaves nothing to register; name two")
    assert not Folder.problems({"register": "rigid", "contrasts": ["T1", "T2"]})
