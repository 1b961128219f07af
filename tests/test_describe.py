"""The page that describes a data set: built from made-up facts, and from real files through a data module."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pages import assert_self_contained

from mri_synth.data.base import MRIDataModule
from mri_synth.data.scan import Scan
from mri_synth.data.settings import IntensitySettings, SliceSettings, SplitSettings
from mri_synth.describe import describe, describe_overrides, gather, three_planes
from mri_synth.describe.page import Description, Sheet, Views, build, distinct
from mri_synth.errors import UserError
from mri_synth.outputs import table_hash

SHARED = Path(__file__).parents[1].parent / "shared/data"


def row(split: str, subject: str, contrast: str = "T1", **facts: object) -> dict[str, object]:
    """One record of a manifest."""
    usual = {"session": "", "path": f"/data/{subject}_{contrast}.nii.gz", "sha256": f"{subject}{contrast}",
             "slices": 10, "label": None, "age": None, "sex": None, "site": None, "shape": [90, 100, 80],
             "spacing_mm": [1.0, 1.0, 1.2], "orientation": "LAS", "dtype": "int16",
             "reason": "" if split else "truncated file"}  # fmt: skip
    return {"split": split, "subject": subject, "contrast": contrast} | usual | facts


def description() -> Description:
    """Made-up facts of five subjects."""
    rows = [
        row("train", "s1", age=20.0, sex="F", site="Guys"),
        row("train", "s1", "mask"),
        row("train", "s2", age=30.0, sex="M", site="HH", shape=[64, 64, 64]),
        row("val", "s3", age=41.0, sex="F", site="HH"),
        row("test", "s4", age=float("nan"), slices=7),
        row("", "s5<x>", slices=0, shape=None),
    ]
    counts = {"train": [900, *[1] * 62, 38], "val": [800, *[2] * 62, 76]}
    picture = np.linspace(-1, 1, 400, dtype=np.float32).reshape(20, 20)
    planes = dict.fromkeys(("axial", "coronal", "sagittal"), picture)
    two = np.stack([picture] * 2)
    return Description(
        name="Made up", root="/data", simulated=True, settings={"plane": "axial", "image size": "128 x 128 pixels"},
        rows=rows, labels={"train": {"tumour": 13, "none": 7}, "val": {"tumour": 4, "unlabelled": 6}},
        histograms={"T1": counts}, counted=37, leaks=["identical image in train and test: a and b"],
        notes=["No three-plane view of T2: its files are single pictures."],
        views=[Views(contrast="T1", name="T1: subject s1", planes=planes)],
        sheets=[Sheet(title="T1: 2 of the 10 chosen slices", images=two, captions=["slice 3", "slice 4"])],
    )  # fmt: skip


def test_page_says_what_it_was_given() -> None:
    raw = build(description())
    text = assert_self_contained(raw).text
    for said in (
        "Made up", "Data in /data", "SIMULATED DATA", "No subject is in two splits.", "128 x 128 pixels",
        "90 x 100 x 80", "64 x 64 x 64", "1 x 1 x 1.2 mm", "LAS", "int16", "37 images", "tumour", "13",
        "truncated file", "s5<x>", "identical image in train and test: a and b", "in two splits: 1 items",
        "No three-plane view of T2", "Guys", table_hash(description().rows),
    ):  # fmt: skip
        assert said in text, said
    assert "<x>" not in raw
    assert raw.count('src="data:image/png') == 2
    assert '<td class="number" data-label="T1 slices"><span>20</span>' in raw  # train: the mask adds none
    assert '<td class="number" data-label="mask files"><span>1</span>' in raw
    # train: mean 25, sd 7.07 (n - 1); the age that is not a number is not known
    assert "25.0 7.1 20.0 30.0" in text


def test_page_of_next_to_nothing() -> None:
    text = assert_self_contained(build(Description(name="empty"))).text
    for said in (
        "No file could be read.",
        "No images.",
        "Neither age nor sex nor site",
        "unlabelled",
        "No slice is in",
    ):
        assert said in text, said
    assert "SIMULATED" not in text


def test_subjects_in_two_splits_are_shown() -> None:
    text = assert_self_contained(build(Description(name="x", rows=[row("train", "a"), row("test", "a")]))).text
    assert "Subjects in more than one split: a" in text
    assert "No subject is in two splits" not in text


def test_distinct_counts_files_of_one_kind() -> None:
    found = distinct(description().rows)
    assert found[0] == ("T1", "90 x 100 x 80", "1 x 1 x 1.2 mm", "LAS", "int16", 3)
    assert sum(kind[-1] for kind in found) == 5
    picture = row("train", "p", shape=[512, 256], spacing_mm=[0.5, 0.5, 1.0], orientation="picture")
    assert distinct([picture])[0][1:3] == ("512 x 256", "0.5 x 0.5 mm")


def test_three_planes_are_the_right_way_up() -> None:
    volume = np.zeros((20, 30, 40))
    volume[10, 15, :20] = 1.0  # inferior half of the axis
    volume[:10, 15, 20] = 2.0  # left half
    volume[10, 15:, 20] = 3.0  # anterior half
    planes = three_planes(volume, (1.0, 1.0, 1.0))
    assert {name: plane.shape for name, plane in planes.items()} == {
        "axial": (30, 20), "coronal": (40, 20), "sagittal": (40, 30),
    }  # fmt: skip
    axial, coronal, sagittal = (planes[name] > -1 for name in ("axial", "coronal", "sagittal"))
    assert axial[:14, 10].all()  # anterior is up
    assert not axial[16:, 10].any()
    assert axial[14, :10].all()  # left is left
    assert not axial[14, 11:].any()
    assert coronal[20:, 10].all()  # inferior is down
    assert sagittal[19, :15].all()  # anterior is left
    assert not sagittal[19, 16:].any()


def test_three_planes_have_square_pixels() -> None:
    planes = three_planes(np.random.default_rng(0).random((10, 10, 5)), (1.0, 1.0, 3.0))
    assert planes["axial"].shape == (10, 10)
    assert planes["coronal"].shape == (15, 10)
    assert three_planes(np.ones((4, 4, 4)), (1, 1, 1))["axial"].tolist() == [[-1.0] * 4] * 4


@dataclass(kw_only=True, eq=False)
class Files(MRIDataModule):
    """Whatever files it is given."""

    files: list[Scan] = field(default_factory=list)

    def scans(self) -> list[Scan]:
        """The given files."""
        return self.files


def test_describe_a_data_module(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scans = []
    for i in range(5):
        path = tmp_path / f"sub-{i}.nii.gz"
        nib.save(nib.Nifti1Image(rng.integers(0, 900, (12, 14, 6), dtype=np.int16), np.diag([2.0, 2, 3, 1])), path)
        scans.append(Scan(path=path, subject=f"sub-{i}", contrast="T1", age=20.0 + i, sex="FM"[i % 2]))
    (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(b"nothing"))
    scans.append(Scan(path=tmp_path / "bad.nii.gz", subject="sub-bad", contrast="T1"))
    data = Files(
        files=scans, size=16, cache=str(tmp_path / "cache"), on_bad_file="skip",
        intensity=IntensitySettings(method="minmax"), slices=SliceSettings(unit="index", start=1, stop=4),
        split=SplitSettings(fractions=[0.6, 0.2, 0.2]),
    )  # fmt: skip
    path = describe(data, tmp_path / "out" / "page.html")
    text = assert_self_contained(path.read_text()).text
    for said in (
        "12 x 14 x 6",
        "2 x 2 x 3 mm",
        "RAS",
        "int16",
        "20 images",
        "bad.nii.gz",
    ):
        assert said in text, said
    assert 'alt="T1: 4 of the 4 chosen slices of subject sub-' in path.read_text()
    found = gather(data)
    assert [sum(r["split"] == s for r in found.rows) for s in ("train", "val", "test")] == [3, 1, 1]
    assert {s: sum(counts) for s, counts in found.histograms["T1"].items()} == {
        "train": 12 * 256, "val": 4 * 256, "test": 4 * 256,
    }  # fmt: skip
    assert found.labels["train"] == {"unlabelled": 12}
    assert [view.contrast for view in found.views] == ["T1"]
    # 28 mm by 24 mm by 18 mm at 2 mm
    assert found.views[0].planes["sagittal"].shape == (9, 14)


@pytest.mark.skipif(not (SHARED / "tumour_slices").is_dir(), reason="shared/data/tumour_slices is not here")
def test_describe_pictures_with_classes(tmp_path: Path) -> None:
    files = [
        Scan(path=path, subject=path.stem, contrast="T1ce", label=kind)
        for kind in ("glioma", "pituitary")
        for path in sorted((SHARED / "tumour_slices" / kind).iterdir())[:12]
    ]
    split = SplitSettings(by="block", block_size=4)
    data = Files(files=files, contrasts=["T1ce"], size=32, cache=str(tmp_path), split=split)
    text = assert_self_contained(describe(data, tmp_path / "page.html").read_text()).text
    for said in (
        "512 x 512",
        "glioma",
        "pituitary",
        "4 neighbours in natural order stay in one split",
        "single pictures",
    ):
        assert said in text, said
    assert "No subject is in two splits" not in text


def test_describe_from_the_command_line(tmp_path: Path) -> None:
    words = ["data=phantom", "data.subjects=[2,1,1]", "data.size=32", "data.preset=custom", "data.slices_per_subject=3"]
    path = describe_overrides([*words, f"data.cache={tmp_path / 'cache'}"], tmp_path / "page.html")
    text = assert_self_contained(path.read_text()).text
    for said in ("Phantom", "SIMULATED DATA", "lesion", "none", "No subject is in two splits."):
        assert said in text, said


@pytest.mark.parametrize(
    ("word", "message"), [("data=fantom", "fantom"), ("data.sise=32", "sise"), ("data.size=[", "data.size")]
)
def test_mistakes_in_the_command_line(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        describe_overrides([word], tmp_path / "page.html")
