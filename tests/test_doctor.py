"""The doctor: what is planted is found, with file, value and way out; what is clean passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from layouts import CHILDREN
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from mri_synth.cli import app
from mri_synth.data.folder import Folder
from mri_synth.data.phantom import Phantom
from mri_synth.doctor import doctor_overrides, examine
from mri_synth.doctor.findings import Diagnosis, Finding
from mri_synth.doctor.fingerprint import alike, fingerprint
from mri_synth.doctor.registration import offset
from mri_synth.errors import UserError

SHARED = Path(__file__).parents[1].parent / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")
Array = NDArray[Any]


def phantom(subjects: int, **settings: Any) -> Phantom:
    return Phantom(preset="custom", subjects=[subjects - 2, 1, 1], contrasts=["T1", "T2"], lesions="none", size=96,
                   slices_per_subject=8, **settings)  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight subjects with T1 and T2 on one grid, as NIfTI."""
    root = tmp_path_factory.mktemp("clean")
    data = phantom(8)
    for scan in data.scans():
        volume = data.read(scan)
        save(root / f"{scan.subject}/{scan.contrast}.nii.gz", volume.array, volume.affine)
    return root


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    """The clean data, to be spoilt."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


def save(path: Path, array: Array, affine: Array, dtype: Any = np.int16, *, codes: tuple[int, int] = (1, 1)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nib.save(image, path)
    return path


def change(path: Path, f: Callable[[Array], Array], dtype: Any = np.int16) -> Path:
    image = nib.load(path)
    return save(path, f(np.asarray(image.dataobj, np.float32)), image.affine, dtype)


def look(root: Path, **settings: Any) -> Diagnosis:
    settings = {"contrasts": ["T1", "T2"], "split": {"fractions": [0.5, 0.25, 0.25]}} | settings
    return examine(Folder(root=str(root), **settings))


def found(diagnosis: Diagnosis, check: str) -> list[Finding]:
    return [f for f in diagnosis.findings if f.check == check]


def only(diagnosis: Diagnosis, check: str, severity: str) -> Finding:
    """The one finding of a check, where nothing but it and the small test split is found."""
    assert {f.check for f in diagnosis.findings} <= {check, "split"}, diagnosis.text()
    (one,) = found(diagnosis, check)
    assert one.severity == severity
    return one


def test_a_clean_set_passes(clean: Path) -> None:
    diagnosis = look(clean)
    assert [(f.check, f.severity) for f in diagnosis.findings] == [("split", "note")], diagnosis.text()
    assert diagnosis.healthy
    assert (diagnosis.files, diagnosis.subjects, diagnosis.compared) == (16, 8, 8)
    assert "16 files of 8 subjects read, 8 pairs of contrasts compared" in diagnosis.text()


@pytest.mark.parametrize(
    ("axis", "by", "said"), [(0, 2, "2 px right (5.0 mm)"), (1, 2, "2 px up (5.0 mm)"), (2, -2, "2 slices back")]
)
def test_a_planted_shift_is_found(copy: Path, axis: int, by: int, said: str) -> None:
    path = change(copy / "phantom-0003/T2.nii.gz", lambda a: np.roll(a, by, axis))
    one = only(look(copy), "registration", "error")
    assert one.file == str(path)
    assert one.also == (str(path.with_name("T1.nii.gz")),)
    assert said in one.value
    assert "data.register=rigid registers T2 to T1" in one.fix


@pytest.mark.parametrize(("axis", "said"), [(0, "left-right"), (1, "up-down"), (2, "first slice for last")])
def test_a_planted_mirror_is_found(copy: Path, axis: int, said: str) -> None:
    path = change(copy / "phantom-0003/T2.nii.gz", lambda a: np.flip(a, axis))
    mirrored = [f for f in look(copy).findings if f.check == "mirrored"]
    assert [(f.file, f.severity) for f in mirrored] == [(str(path), "error")]
    assert f"fits T1 better mirrored {said}" in mirrored[0].value


def test_a_shift_of_a_pixel_is_a_note(copy: Path) -> None:
    change(copy / "phantom-0003/T2.nii.gz", lambda a: np.roll(a, 1, 0))
    assert "1 px right" in only(look(copy), "registration", "note").value


def test_grids_that_differ(copy: Path) -> None:
    path = copy / "phantom-0003/T2.nii.gz"
    image = nib.load(path)
    save(path, np.asarray(image.dataobj)[:40], image.affine)
    (one,) = found(look(copy), "grid")
    assert one.severity == "warning"
    assert "T2 has 40x96x8 voxels of 2.5x2.5x7.71 mm, T1 96x96x8" in one.value
    assert "% of what T1 shows lies outside of T2" in one.value


def test_a_turn_on_another_grid_is_measured_and_no_error_where_a_run_registers(copy: Path) -> None:
    path = copy / "phantom-0000/T2.nii.gz"
    image = nib.load(path)
    angle = np.radians(4)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    save(path, np.asarray(image.dataobj), turn @ image.affine)  # says that it lies turned, and does not
    one = next(f for f in look(copy).findings if f.check == "registration")
    assert (one.severity, one.file) == ("error", str(path))
    degrees = float(one.value.partition("turns it by ")[2].partition(" ")[0])
    assert degrees == pytest.approx(4, abs=0.5)
    assert {f.severity for f in found(look(copy, register="rigid"), "grid")} == {"note"}


def test_duplicates_within_and_across_splits(copy: Path, tmp_path: Path) -> None:
    for contrast in ("T1", "T2"):
        shutil.copy(copy / f"phantom-0001/{contrast}.nii.gz", copy / f"phantom-0005/{contrast}.nii.gz")
    table = tmp_path / "split.csv"
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    names = sorted(p.name for p in copy.iterdir())
    table.write_text("subject,split\n" + "".join(f"{n},{s}\n" for n, s in zip(names, splits, strict=True)))
    across = found(look(copy, split={"by": "given", "file": str(table)}), "duplicate")
    assert [f.severity for f in across] == ["error", "error"]
    assert across[0].value == "8 identical slices, such as 0 of both, in train and val"
    assert (across[0].file, across[0].also) == (
        str(copy / "phantom-0001/T1.nii.gz"),
        (str(copy / "phantom-0005/T1.nii.gz"),),
    )
    dropping = look(copy, split={"by": "given", "file": str(table), "on_leak": "drop"})
    assert {f.severity for f in found(dropping, "duplicate")} == {"warning"}
    table.write_text(table.read_text().replace("phantom-0005,val", "phantom-0005,train"))
    within = found(look(copy, split={"by": "given", "file": str(table)}), "duplicate")
    assert {(f.severity, f.value[-12:]) for f in within} == {("warning", "all in train")}


def test_a_copy_with_other_intensities_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    source = np.asarray(nib.load(copy / "phantom-0001/T1.nii.gz").dataobj, np.float32)
    change(copy / "phantom-0005/T1.nii.gz", lambda a: np.rint(source * 0.4 + rng.normal(0, 0.5, a.shape)))
    twins = found(look(copy), "near-duplicate")
    assert [Path(f).parent.name for f in (twins[0].file, *twins[0].also)] == ["phantom-0001", "phantom-0005"]
    assert "the same image" in twins[0].value


def test_a_subject_in_two_splits(copy: Path) -> None:
    folders = sorted(p for p in copy.iterdir() if p.is_dir())
    places = enumerate(zip(folders, ["train"] * 4 + ["val"] * 2 + ["test"] * 2, strict=True))
    (copy / "people.csv").write_text(
        "file,subject,split\n" + "".join(f"{p.name}/*,{'one' if k in (0, 7) else p.name},{s}\n" for k, (p, s) in places)
    )
    diagnosis = look(copy, contrasts=["T1"], subjects=str(copy / "people.csv"), split={"by": "given"})
    (one,) = found(diagnosis, "split overlap")
    assert one.severity == "error"
    assert "subject in train and test" in one.value


def test_too_few_subjects(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean / "phantom-0001", tmp_path / "data/phantom-0001")
    (one,) = look(tmp_path / "data").findings
    assert (one.check, one.severity) == ("split", "error")
    assert "1 subjects cannot fill train and val" in one.value


SPOILT: list[tuple[str, Callable[[Array], Array], Any, str, str, str]] = [
    ("nan", lambda a: np.where(a == a.max(), np.nan, a), np.float32, "unusable", "error", "NaN"),
    ("constant", np.zeros_like, np.int16, "unusable", "error", "constant"),
    ("4-D", lambda a: np.stack([a, a], -1), np.int16, "unusable", "error", "4-D"),
    ("8 bit", lambda a: np.clip(a / a.max() * 255, 0, 255), np.uint8, "grey levels", "warning", "distinct values"),
    ("clipped", lambda a: np.minimum(a, np.percentile(a, 98)), np.int16, "clipped", "warning", "the top was cut off"),
    ("gap", lambda a: np.where(np.arange(8) == 4, 0, a), np.int16, "empty slices", "warning", "between filled ones: 4"),
]


@pytest.mark.parametrize(("name", "f", "dtype", "check", "severity", "said"), SPOILT, ids=[s[0] for s in SPOILT])
def test_spoilt_files(copy: Path, name: str, f: Callable[[Array], Array], dtype: Any, check: str, severity: str,
                      said: str) -> None:  # fmt: skip
    path = change(copy / "phantom-0003/T1.nii.gz", f, dtype)
    mine = [x for x in found(look(copy, contrasts=["T1"]), check) if x.severity == severity]
    assert {x.file for x in mine} == {str(path)}
    assert any(said in x.value for x in mine)


def test_what_is_to_be_skipped_is_no_error(copy: Path) -> None:
    change(copy / "phantom-0003/T1.nii.gz", np.zeros_like)
    diagnosis = look(copy, on_bad_file="skip")
    assert diagnosis.healthy
    assert [f.severity for f in found(diagnosis, "unusable")] == ["warning"]


def test_orientations(copy: Path) -> None:
    image = nib.load(copy / "phantom-0002/T1.nii.gz")
    array, affine = np.asarray(image.dataobj), image.affine
    save(copy / "phantom-0002/T1.nii.gz", array, affine, codes=(0, 0))
    save(copy / "phantom-0003/T1.nii.gz", array, np.eye(4))
    both = nib.Nifti1Image(array, affine)
    both.set_sform(affine, 1)
    both.set_qform(affine @ np.diag([-1, 1, 1, 1]), 1)
    nib.save(both, copy / "phantom-0004/T1.nii.gz")
    flipped = np.diag([-1.0, 1, 1, 1])
    save(copy / "phantom-0005/T1.nii.gz", array[::-1], affine @ flipped)
    change(copy / "phantom-0006/T1.nii.gz", lambda a: a[:, ::-1])
    told: dict[str, list[tuple[str, str]]] = {}
    for f in found(look(copy, contrasts=["T1"]), "orientation"):
        told.setdefault(Path(f.file).parent.name[-1], []).append((f.severity, f.value))
    assert set(told) == {"2", "3", "4", "5", "6"}
    for number, severity, said in (
        ("2", "warning", "sform_code and qform_code are 0"),
        ("3", "warning", "the affine is the identity"),
        ("4", "error", "sform says RAS, qform LAS"),
        ("5", "note", "LAS; 6 of 8 T1 files have RAS"),
        ("6", "warning", "looks upside down beside the other 7 T1 files"),
    ):
        assert any(s == severity and said in value for s, value in told[number]), (number, told[number])


def test_contrasts_that_were_mixed_up(copy: Path) -> None:
    one, two = (copy / f"phantom-0005/{c}.nii.gz" for c in ("T1", "T2"))
    one.rename(copy / "x")
    two.rename(one)
    (copy / "x").rename(two)
    mistaken = found(look(copy), "contrast")
    assert {(f.file, f.value[:32]) for f in mistaken} == {
        (str(one), "is called T1, and looks like T2:"), (str(two), "is called T2, and looks like T1:"),
    }  # fmt: skip


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(8):
        pixels = np.clip(rng.normal(120, 30, (40 + 8 * (k == 3), 40)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"T1_{k}.png")
    diagnosis = look(tmp_path, contrasts=[])
    assert "2 sizes, from 40x40 to 48x40" in found(diagnosis, "size")[0].value
    assert "8 bits" in found(diagnosis, "grey levels")[0].value
    assert "say no patients" in found(diagnosis, "files")[0].value


def test_the_verb_writes_json_and_says_so_by_its_exit_status(copy: Path, tmp_path: Path) -> None:
    words = [
        "doctor",
        "data=folder",
        f"data.root={copy}",
        "data.contrasts=[T1,T2]",
        "data.split.fractions=[0.5,0.25,0.25]",
    ]
    good = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out/good.json")])
    assert good.exit_code == 0, good.output
    assert json.loads((tmp_path / "out/good.json").read_text())["errors"] == 0
    change(copy / "phantom-0003/T2.nii.gz", lambda a: np.roll(a, 2, 0))
    bad = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "bad.json")])
    assert bad.exit_code == 1
    assert "error: registration" in bad.output
    assert "T2 lies 2 px right" in bad.output
    table = json.loads((tmp_path / "bad.json").read_text())
    assert (table["errors"], table["findings"][0]["check"], table["findings"][0]["severity"]) == (
        1,
        "registration",
        "error",
    )
    with pytest.raises(UserError, match="fantom"):
        doctor_overrides(["data=fantom"])


def test_text_names_a_few_files_of_a_kind() -> None:
    diagnosis = Diagnosis(data="x")
    diagnosis.add(Finding("note", "size", f"{k}.nii", "odd", "look") for k in range(6))
    diagnosis.add([Finding("error", "unusable", "y.nii", "NaN", "mend")])
    assert diagnosis.text().splitlines()[:3] == ["error: unusable", "  y.nii: NaN", "  -> mend"]
    assert "note: size (6)" in diagnosis.text()
    assert "  and 2 more (-o FILE.json lists all)" in diagnosis.text()
    assert diagnosis.summary.endswith("1 error, 0 warnings, 6 notes")


def test_offset_inverts_what_is_done() -> None:
    rng = np.random.default_rng(0)
    data = phantom(3)
    first, second = (np.moveaxis(data.read(s).array, 2, 0) for s in data.scans()[:2])
    for shift in [(0, 0, 0), (0, 3, -5), (1, -8, 8)]:
        moved = np.roll(second, shift, (0, 1, 2)) + rng.normal(0, 5, second.shape)
        assert offset(first, moved).shift == shift


def test_alike_knows_copies_from_strangers() -> None:
    rng = np.random.default_rng(0)
    images = np.clip(rng.normal(0, 0.5, (8, 1, 128, 128)), -1, 1).astype(np.float32)
    prints = [fingerprint(i) for i in images]
    assert list(alike(prints)) == []
    noisy = fingerprint(np.clip(images[2] + rng.normal(0, 0.3, images[2].shape), -1, 1).astype(np.float32))
    assert [(i, j, kind) for i, j, kind, _ in alike([*prints, noisy, prints[5]])] == [(2, 8, "head"), (5, 9, "image")]


@needs_shared
def test_children_who_were_scanned_more_than_once_are_told() -> None:
    diagnosis = look(SHARED / "t1_children", contrasts=[], slices={"min_foreground": 0.05})
    groups = {frozenset(int(Path(n).name[1:-7]) for n in (f.file, *f.also)) for f in found(diagnosis, "same person")}
    assert groups == {frozenset(child) for child in CHILDREN if len(child) > 1}
    assert {f.check for f in diagnosis.findings} <= {"same person", "split", "unlike the others"}, diagnosis.text()
    assert [Path(f.file).name for f in found(diagnosis, "unlike the others")] == ["i13.nii.gz"]  # the bad scan


@needs_shared
@pytest.mark.slow
def test_real_pairs_are_not_accused_and_grids_that_differ_are_said() -> None:
    pairs = look(SHARED / "ms_paired", contrasts=["T1", "T2", "FLAIR"], split={"fractions": [0.5, 0.5, 0]})
    assert pairs.compared == 4
    assert not {f.check for f in pairs.findings} & {"registration", "mirrored", "grid"}, pairs.text()
    raw = look(SHARED / "ms_raw", contrasts=["T1", "T2", "FLAIR"])
    assert len(found(raw, "grid")) + len(found(raw, "registration")) == 4
    assert all("a registration turns it by" in f.value for f in (*found(raw, "grid"), *found(raw, "registration")))
