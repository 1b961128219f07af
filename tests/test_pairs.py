"""What belongs together: pairs by name, unpaired sets, the table of hidden pairs, and splits that keep both sides."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from PIL import Image

from mri_synth.data.brats import BraTS
from mri_synth.data.folder import Folder
from mri_synth.data.oasis import OASIS
from mri_synth.data.pairs import PRESETS, read_pairs
from mri_synth.data.scan import SPLITS, Scan
from mri_synth.data.settings import SplitSettings
from mri_synth.data.split import assign
from mri_synth.data.views import Images, Pairs, Unpaired
from mri_synth.errors import UserError

BLOCKS = {"by": "block", "block_size": 5}


def opened(root: Path, view: type[Images] = Pairs, kind: type[Folder] | type[BraTS] = Folder, **more: Any) -> Any:
    data = kind(root=str(root), **{"contrasts": ["T1", "T2"], "size": 16, **more})
    data.view_class = view
    data.prepare_data()
    data.setup()
    return data


def sizes(data: Any) -> list[int]:
    return [len(data.view(split)) for split in SPLITS]


def numbers(data: Any, split: str, contrast: str) -> list[int]:
    """The numbers in the names of the pictures of a contrast in a split."""
    studies = [data.store.studies[k] for k in data.store.table["study"][data.split_rows[split]]]
    return sorted(int(re.findall(r"\d+", Path(s["path"]).name)[0]) for s in studies if contrast in s["path"])


def sets(root: Path, a: str = "TrainT1", b: str = "TrainT2", count: int = 20, shift: int = 100) -> Path:
    """Two unpaired sets of pictures; A's number k shows what B's k + shift shows."""
    for k in range(count):
        layouts.png(root / f"{a}/im{k}.png", k)
        layouts.png(root / f"{b}/im{k + shift}.png", 1000 + k)
    return root


# -- pairs by name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "sub-{n:02d}_{kind}w.nii.gz", "s{n}_{kind}.nii.gz", "s{n}/{kind}.nii.gz", "{kind}/s{n}.nii.gz",
    "{kind}/00{n}.png", "00{n}_{kind}.png", "train{kind}/00{n}.png", "images/{kind}/00{n}.png",
    "s{n}/{kind}_slice_3.png", "{kind}/case_{n}_slice_3.png"])  # fmt: skip
def test_names_that_agree_but_for_the_contrast(name: str, tmp_path: Path) -> None:
    for n in range(1, 7):
        for k, kind in enumerate(("T1", "T2")):
            path = tmp_path / name.format(n=n, kind=kind)
            layouts.nifti(path, 10 * n + k) if "nii" in name else layouts.png(path, 10 * n + k)
    data = opened(tmp_path, split={"fractions": [0.5, 0.25, 0.25]})
    slices = layouts.SHAPE[2] if "nii" in name else 1
    assert sizes(data)[0] >= 3
    assert sum(sizes(data)) <= 6 * slices
    assert len(data.store.studies) == 6
    assert data.spec.sources, data.spec.goal == (("T1",), "T2")
    batch = data.view("train").__getitems__([0])
    assert batch.image.shape == batch.target.shape == (1, 1, 16, 16)


def test_two_dimensional_nifti_and_folders_called_like_a_wanted_contrast(tmp_path: Path) -> None:
    for n in range(5):
        for k, kind in enumerate("AB"):
            layouts.nifti(tmp_path / f"{kind}/p{n}.nii", 10 * n + k, shape=(20, 24))
    assert sizes(opened(tmp_path, contrasts=["A", "B"])) == [3, 1, 1]


def test_a_file_without_partner_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(9):
        layouts.png(tmp_path / f"T1/{n}.png", n)
        if n not in (2, 4):
            layouts.png(tmp_path / f"T2/{n}.png", 10 + n)
    layouts.png(tmp_path / "T2/9.png", 99)
    data = opened(tmp_path, split={"fractions": [0.6, 0.4, 0]})
    assert sum(sizes(data)) == 7
    assert "3 of 10 visits or slices have no partner and are in no pair" in caplog.text
    for file, lacks in (("T1/2", "T2"), ("T1/4", "T2"), ("T2/9", "T1")):
        assert re.search(rf"{file}.png \({file[3:]} has no {lacks}\)", caplog.text)
    assert len(data.manifest) == 17  # all of them are listed with the split
    caplog.clear()
    opened(tmp_path, Images)  # who wants no pairs is not warned of them
    assert "partner" not in caplog.text


def test_no_pair_at_all_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)pairs of T1, T2 .* not one of 40 .*\(T1 20, T2 20\).*im0.png \(.*has no "
                                        r"T2\).*differ in nothing but the contrast, or the group subject"):  # fmt: skip
        opened(sets(tmp_path))


def test_one_nameless_contrast_is_guessed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(4):
        layouts.nifti(tmp_path / f"S{n}/struct.nii.gz", n)
        layouts.nifti(tmp_path / f"S{n}/T2_struct.nii.gz", 10 + n)
    assert Counter(s.contrast for s in Folder(root=str(tmp_path), contrasts=["T1", "T2"]).scans()) == {"T1": 4, "T2": 4}
    assert "4 file(s) are taken as T1, since their names say no contrast and no other file is T1: struct.nii.gz" in (
        caplog.text)  # fmt: skip
    with pytest.raises(UserError, match="has no T1 and no FLAIR"):  # which of the two it is nobody can know
        Folder(root=str(tmp_path), contrasts=["T1", "FLAIR", "T2"]).scans()


def test_names_that_agree_by_accident(tmp_path: Path) -> None:
    for n in range(10):
        layouts.png(tmp_path / f"T1/{n}.png", n)
        layouts.png(tmp_path / f"T2/{n}.png", 50 + n)
    assert len(opened(tmp_path).store.studies) == 10
    data = opened(tmp_path, Unpaired, pairs="none")
    assert len(data.store.studies) == 20
    assert not any(data.view("val").__getitems__([0]).paired)
    for said in ("none", "pairs.csv"):
        reason = Folder.refuses(Pairs, {"contrasts": ["T1", "T2"], "pairs": said})
        assert f"data.pairs={said} keeps them apart, to score what trains without; say data.pairs=null" in reason
        assert not Folder.refuses(Unpaired, {"contrasts": ["T1", "T2"], "pairs": said})
        assert not Folder.refuses(Pairs, {"contrasts": ["T1"], "pairs": said, "source": "derived"})


# -- unpaired sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split", [{}, BLOCKS, {"seed": 7}, {"by": "block", "block_size": 3, "fractions": [0.6, 0.2, 0.2]}]
)
def test_every_split_has_both_sides(split: dict[str, Any], tmp_path: Path) -> None:
    data = opened(sets(tmp_path), Unpaired, split=split)
    for name in SPLITS:
        ours, theirs = numbers(data, name, "TrainT1"), numbers(data, name, "TrainT2")
        assert len(ours) == len(theirs) >= 2
        if split.get("by") == "block":  # as many blocks of each: the same ones go together, in case they show the same
            assert theirs == [k + 100 for k in ours]
    assert sum(sizes(data)) == 20


def test_shares_of_sets_of_different_size() -> None:
    names = [f"{c}{k}" for c, n in (("a", 30), ("b", 10)) for k in range(n)]
    studies = [{"subject": name, "label": None, "split": None, "path": name} for name in names]
    domains = [s["subject"][0] for s in studies]
    splits = assign(studies, SplitSettings(), domains=domains)
    assert Counter(zip(domains, splits, strict=True)) == {
        ("a", "train"): 24,
        ("a", "val"): 3,
        ("a", "test"): 3,
        ("b", "train"): 8,
        ("b", "val"): 1,
        ("b", "test"): 1,
    }
    one = [s for s in studies if s["subject"][0] == "a"]
    assert assign(one, SplitSettings(), domains=["a"] * 30) == assign(one, SplitSettings()) == splits[:30]


def test_folders_of_the_cyclegan_repository(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets(tmp_path, "trainA", "trainB")
    for k in range(4):
        layouts.png(tmp_path / f"testA/im{k}.png", 500 + k)  # names of trainA again: they are others
        layouts.png(tmp_path / f"testB/im{k}.png", 600 + k)
    data = opened(tmp_path, Unpaired, contrasts=["A", "B"], split={**BLOCKS, "by": "given"})
    assert sizes(data) == [15, 5, 4]
    assert numbers(data, "val", "trainB") == [k + 100 for k in numbers(data, "val", "trainA")]
    assert "the data set has no val, so 10 of its 40 train files become val, 5 neighbours at a time" in caplog.text
    assert numbers(data, "test", "testB") == [0, 1, 2, 3]
    for k in range(3):
        layouts.png(tmp_path / f"valA/im{k}.png", 700 + k)
        layouts.png(tmp_path / f"val_B/im{k}.png", 800 + k)
    assert sizes(opened(tmp_path, Unpaired, contrasts=["A", "B"], split={"by": "given"})) == [20, 3, 4]
    named = {"*A/*": "T1", "*B/*": "T2"}
    assert sizes(opened(tmp_path, Unpaired, contrast_names=named, split={"by": "given"})) == [20, 3, 4]
    with pytest.raises(UserError, match=r"has no T1 and no T2; found A \(27 files\), B \(27 files\)"):
        opened(tmp_path, Unpaired)


# -- the table ---------------------------------------------------------------------------------------------------------


def table(root: Path, rows: Sequence[tuple[str, str]], name: str = "pairs.csv") -> str:
    layouts.text(root / name, "a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
    return name


def test_hidden_pairs_stay_together_and_score_but_do_not_train(tmp_path: Path) -> None:
    sets(tmp_path)
    rows = [(f"im{k}.png", f"im{119 - k}.png") for k in range(18)]  # 18, 19, and B's 100, 101 are alone
    data = opened(tmp_path, Unpaired, split=BLOCKS, pairs=table(tmp_path, rows))
    assert len(data.store.studies) == 40
    partner = dict(zip(range(18), range(119, 101, -1), strict=True))
    for split in SPLITS:
        ours, theirs = numbers(data, split, "TrainT1"), numbers(data, split, "TrainT2")
        assert {partner[k] for k in ours if k in partner} <= set(theirs)
    every = data.store.table
    path = [data.store.studies[k]["path"] for k in every["study"]]
    for row, other in data.partners().items():
        a, b = (int(re.findall(r"\d+", Path(path[r]).name)[0]) for r in (row, other))
        assert (b, "TrainT1" in path[row], "TrainT2" in path[other]) == (119 - a, True, True)
    assert len(data.partners()) == 18
    for split in ("val", "test"):
        view = data.view(split)
        batch = view.__getitems__(list(range(len(view))))
        assert batch.paired.tolist() == [row in data.partners() for row in view.rows.tolist()]
    train = data.view("train")
    assert train.__getitems__([0, 1]).paired is None
    drawn = [(row, other) for epoch in range(20) for row, other in zip(train.rows, train.drawn(epoch), strict=True)]
    assert not {(r, o) for r, o in drawn} & set(data.partners().items())
    turned = opened(tmp_path, Unpaired, contrasts=["T2", "T1"], split=BLOCKS, pairs="pairs.csv")
    assert turned.partners() != data.partners()
    assert len(turned.partners()) == 18


def test_hidden_pairs_of_volumes_are_told_by_slice_number(tmp_path: Path) -> None:
    for n in range(6):
        layouts.nifti(tmp_path / f"T1/a{n}.nii.gz", n)
        layouts.nifti(tmp_path / f"T2/b{n}.nii.gz", 10 + n)
    said = table(tmp_path, [(f"T1/a{n}.nii.gz", f"b{5 - n}.nii.gz") for n in range(6)])
    data = opened(tmp_path, Unpaired, pairs=said)
    number = data.store.table["slice"]
    assert len(data.partners()) > 6 * 5
    assert all(number[a] == number[b] for a, b in data.partners().items())
    layouts.nifti(tmp_path / "T2/b0.nii.gz", 10, shape=(16, 18, 20))
    with pytest.raises(UserError, match=r"a5.nii.gz has \(16, 18, 14\) voxels, .*b0.nii.gz \(16, 18, 20\).*one grid"):
        opened(tmp_path, Unpaired, pairs=said)


@pytest.mark.parametrize(("content", "message"), [
    ("x,y\n1,2\n", "needs the columns a and b; its columns: x, y"),
    ("a,b\nim0.png,\n", "line 2: a file is missing"),
    ("a,b\nim0.png,im100.png\nim0.png,im101.png\n", "im0.png more than once in one column"),
    ("a,b\nim0.png,im1.png\n", "im0.png and im1.png are both T1"),
    ("a,b\nno.png,none.png\n", "not one of its 1 pairs is under")])  # fmt: skip
def test_bad_tables(content: str, message: str, tmp_path: Path) -> None:
    sets(tmp_path, count=3)
    layouts.text(tmp_path / "pairs.csv", content)
    with pytest.raises(UserError, match=message):
        Folder(root=str(tmp_path), contrasts=["T1", "T2"], pairs="pairs.csv").scans()


def test_more_that_is_said_of_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets(tmp_path, count=3)
    layouts.png(tmp_path / "more/TrainT1/im0.png", 70)
    where = {"root": str(tmp_path), "contrasts": ["T1", "T2"]}
    table(tmp_path, [("im0.png", "im100.png")])
    with pytest.raises(UserError, match=r"2 files are called im0.png .*write the path relative to the root"):
        Folder(**where, pairs="pairs.csv").scans()
    with pytest.raises(UserError, match=r"data.pairs=other.csv: no such file, neither here nor in"):
        Folder(**where, pairs="other.csv").scans()
    with pytest.raises(UserError, match="no such preset; there is preset:pairs_brainweb"):
        Folder(**where, pairs="preset:x").scans()
    table(tmp_path, [("TrainT1/im0.png", "im100.png"), ("im7.png", "im101.png")])
    Folder(**where, pairs="pairs.csv").scans()
    assert "1 file(s) are not among those that are used: im7.png" in caplog.text
    assert Folder.problems({"pairs": "x.csv", "contrasts": ["T1"]}) == [
        "data.pairs=x.csv: a table of pairs is of two contrasts; it is data.contrasts=[T1]"]  # fmt: skip
    assert Folder.problems({"pairs": "none", "contrasts": ["T1"]}) == []


# -- other data sets ---------------------------------------------------------------------------------------------------


def test_brats_of_any_contrasts_and_a_case_that_lacks_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.brats(tmp_path, 2021, range(1, 6), without_seg=(2,))
    (tmp_path / "BraTS2021_00003/BraTS2021_00003_flair.nii.gz").unlink()
    wanted = ["T1", "T2", "FLAIR", "T1ce"]
    data = opened(tmp_path, kind=BraTS, contrasts=wanted)
    assert data.spec.sources == ("T1", "T2", "FLAIR")
    assert data.spec.goal == "T1ce"
    subjects = {s for split in SPLITS for s in data.view(split).subjects}
    assert subjects == {f"BraTS2021_0000{n}" for n in (1, 2, 4, 5)}
    assert "1 of 5 visits or slices have no partner and are in no pair" in caplog.text
    assert "BraTS2021_00003 has no FLAIR" in caplog.text
    caplog.clear()
    masked = opened(tmp_path, kind=BraTS, contrasts=["T2"], source="mask")
    assert "BraTS2021_00002 has no mask" in caplog.text
    assert masked.spec.sources == ("mask",)


def test_oasis_course_split_is_that_of_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9,664 + 1,120 + 544 slices of 302, 35 and 17 cases of 32: the course's own split, and the default."""
    cases = {"train": range(1, 303), "validate": range(402, 437), "test": range(441, 458)}
    files = [f"keras_png_slices_{split}/case_{c:03d}_slice_{k}.nii.png" for split, every in cases.items() for c in every
             for k in range(32)]  # fmt: skip
    layouts.text(tmp_path / "keras_png_slices_train/x", "")
    monkeypatch.setattr("mri_synth.data.names.list_files", lambda root: files)
    data = OASIS(root=str(tmp_path), split=SplitSettings(by="given"))
    scans: list[Scan] = data.scans()
    records = [{"subject": s.subject, "split": s.split, "label": None, "path": str(s.path)} for s in scans]
    assert Counter(assign(records, data.split)) == {"train": 9664, "val": 1120, "test": 544}


# -- the real data -----------------------------------------------------------------------------------------------------


def test_coronal_pairs(shared_data: Path) -> None:
    data = opened(shared_data / "t1_t2_coronal")
    assert sizes(data) == [9, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("contrasts", [["T1", "T2"], ["T1", "FLAIR", "T2"]])
def test_multiple_sclerosis_pairs(contrasts: list[str], shared_data: Path) -> None:
    mm = {"unit": "mm", "start": 0, "stop": 9}
    data = opened(shared_data / "ms_paired", contrasts=contrasts, slices=mm, split={"fractions": [0.5, 0.5, 0]})
    assert sizes(data) == [10, 10, 0]  # 1 mm, z from 0 to 9, of one patient each
    assert data.spec.sources == tuple(contrasts[:-1])


@pytest.mark.slow
def test_brats_cases_of_two_years(shared_data: Path) -> None:
    data = opened(shared_data / "brats", kind=BraTS, contrasts=["T1", "T2", "FLAIR", "T1ce"],
                  slices={"unit": "index", "start": 60, "stop": 69}, split={"fractions": [0.5, 0.5, 0]})  # fmt: skip
    assert sizes(data) == [10, 10, 0]
    assert data.view("train").__getitems__([0]).image.shape == (1, 3, 16, 16)


def test_brainweb_by_its_hidden_pairs(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = shared_data / "t1_t2_brainweb"
    caplog.set_level(logging.INFO)
    data = opened(root, Unpaired, split=BLOCKS, pairs="preset:pairs_brainweb")
    assert sizes(data) == [33, 5, 5]
    assert len(data.partners()) == 43
    every = {c: [n for s in SPLITS for n in numbers(data, s, c)] for c in ("TrainT1", "TrainT2")}
    assert {c: len(n) for c, n in every.items()} == {"TrainT1": 43, "TrainT2": 46}
    for split in SPLITS:  # README of the data: #10-40 with #k+60, #41-55 with #k+70
        theirs = numbers(data, split, "TrainT2")
        assert {k + (60 if k <= 40 else 70) for k in numbers(data, split, "TrainT1")} <= set(theirs)
    assert {80, 81, 82} <= set(numbers(data, "train", "TrainT2"))  # without partner: where 79 is
    for split in ("val", "test"):
        assert data.view(split).__getitems__(list(range(5))).paired.all()


def test_brainweb_preset_pairs_what_shares_most_information(shared_data: Path) -> None:
    root = shared_data / "t1_t2_brainweb"

    def grey(path: Path) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(path).convert("L").resize((64, 64))).ravel() // 16

    def information(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
        joint = np.bincount(16 * x.astype(int) + y, minlength=256).reshape(16, 16) / len(x)
        apart = joint.sum(1, keepdims=True) * joint.sum(0)
        return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())

    second = {p.name: grey(p) for p in (root / "Tr2/TrainT2").iterdir()}
    pairs = read_pairs(PRESETS / "pairs_brainweb.csv")
    assert len(pairs) == 43
    for pair in pairs[::6]:
        first = grey(root / "Tr1/TrainT1" / pair.a)
        assert max(second, key=lambda name: information(first, second[name])) == pair.b
