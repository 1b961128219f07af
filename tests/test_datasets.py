"""Which files a data set finds, and whose they are: every published layout, and every wrong one."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import layouts
import openpyxl
import pytest
import yaml
from omegaconf import DictConfig

from mri_synth.data.base import MRIDataModule
from mri_synth.data.brats import BraTS
from mri_synth.data.contrasts import contrast_in, contrast_of_path, is_brain_mask, is_mask, without_contrast, words
from mri_synth.data.demographics import Person, age_of, merge_people, read_table, sex_of
from mri_synth.data.folder import Folder
from mri_synth.data.ixi import IXI
from mri_synth.data.names import list_files, stem
from mri_synth.data.oasis import OASIS
from mri_synth.data.scan import Scan
from mri_synth.errors import UserError

CONF = Path(__file__).parents[1] / "conf/data"
SETS: dict[str, type[MRIDataModule]] = {"oasis": OASIS, "ixi": IXI, "brats": BraTS, "folder": Folder}


def contrasts(scans: list[Scan]) -> dict[str, int]:
    return dict(Counter(s.contrast for s in scans))


def subjects(scans: list[Scan]) -> list[str]:
    return list(dict.fromkeys(s.subject for s in scans))


def by_name(scans: list[Scan]) -> dict[str, Scan]:
    return {s.path.name: s for s in scans}


# -- the configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_yaml_names_every_field_and_only_those(name: str) -> None:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    target = config.pop("_target_")
    assert target == f"mri_synth.data.{name}.{SETS[name].__name__}"
    assert set(config) == {f.name for f in fields(SETS[name]) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(SETS[name])
    for key, value in config.items():
        if is_dataclass(hints[key]):
            assert set(value) == {f.name for f in fields(hints[key])}, key


@pytest.mark.parametrize("name", SETS)
def test_yaml_builds_the_data_set(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    config.pop("_target_")
    data = SETS[name](**config | {"root": str(tmp_path)})
    with pytest.raises(UserError, match="is empty"):
        data.scans()


# -- the root ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_no_root(name: str) -> None:
    layout = {"oasis": "keras_png_slices_train", "ixi": "IXI002-Guys-0828-T1", "brats": "BraTS2021_00000_t1.nii.gz",
              "folder": "sub-01_ses-1_T1w"}[name]  # fmt: skip
    message = f"(?s)neither data.root nor.*{layout}.*Where to get it.*data.root=/path/to/{name}"
    with pytest.raises(UserError, match=message):
        SETS[name]().scans()


def test_root_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRI_SYNTH_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"\$MRI_SYNTH_DATA/ixi = .*/ixi does not exist"):
        IXI().scans()
    layouts.ixi(tmp_path / "ixi")
    assert len(IXI().scans()) == 5


def test_root_that_is_no_folder(tmp_path: Path) -> None:
    archive = layouts.text(tmp_path / "IXI-T1.tar", "x")
    with pytest.raises(UserError, match=r"IXI-T1.tar is a file, not a folder: unpack it"):
        IXI(root=str(archive)).scans()
    with pytest.raises(UserError, match=r"data.root=.*/absent does not exist"):
        BraTS(root=str(tmp_path / "absent")).scans()


@pytest.mark.parametrize("name", SETS)
def test_root_of_something_else(name: str, tmp_path: Path) -> None:
    layouts.text(tmp_path / "notes/holiday.doc", "x")
    message = r"(?s)has a name like .*found 1 file\(s\), such as notes/holiday.doc.*data.root="
    with pytest.raises(UserError, match=message):
        SETS[name](root=str(tmp_path)).scans()


def test_listing(tmp_path: Path) -> None:
    for name in ("img10.png", "img2.png", ".DS_Store", "a/._b.nii", "__MACOSX/c.nii", "a/Thumbs.db", "a/b.nii"):
        layouts.text(tmp_path / name, "")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert list_files(tmp_path) == ["a/b.nii", "img2.png", "img10.png"]
    assert stem("x/case_1_slice_2.nii.png") == "case_1_slice_2"
    assert stem("x.y/a.b.nii.gz") == "a.b"


# -- oasis -------------------------------------------------------------------------------------------------------------


def test_oasis_slices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.oasis_png(tmp_path / "keras_png_slices_data")
    layouts.text(tmp_path / "keras_png_slices_data/keras_png_slices_train/readme.txt", "")
    scans = OASIS(root=str(tmp_path)).scans()
    assert len(scans) == 24
    assert Counter(s.split for s in scans) == {"train": 12, "val": 6, "test": 6}
    assert by_name(scans)["case_402_slice_2.nii.png"].subject == "case_402"
    assert by_name(scans)["case_402_slice_2.nii.png"].slice == 2
    assert contrasts(scans) == {"T1": 24}
    assert "24 file(s) left out (tissue maps" in caplog.text
    assert "1 file(s) left out (no case_NNN" in caplog.text


def test_oasis_case_in_two_splits_is_left_to_the_leak_check(tmp_path: Path) -> None:
    layouts.oasis_png(tmp_path, {"train": [1], "test": [1]}, slices=1)
    scans = OASIS(root=str(tmp_path)).scans()
    assert [(s.subject, s.split) for s in scans] == [("case_001", "test"), ("case_001", "train")]


def volumes(root: Path, **more: Any) -> OASIS:
    return OASIS(root=str(root), split={"by": "subject"}, **more)  # type: ignore[arg-type]


def test_oasis_volumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.oasis_volumes(tmp_path)
    layouts.text(tmp_path / "disc1/OAS1_0007_MR1/RAW/OAS1_0007_MR1_mpr-1_anon.img", "")
    scans = volumes(tmp_path).scans()
    assert [(s.subject, s.session) for s in sorted(scans, key=lambda s: (s.subject, s.session))] == [
        ("OAS1_0001", "MR1"), ("OAS1_0002", "MR1"), ("OAS1_0003", "MR1"), ("OAS1_0003", "MR2")]  # fmt: skip
    assert all(s.path.name.endswith("_t88_masked_gfc.img") for s in scans)
    ages = {s.subject: (s.age, s.sex, s.label) for s in scans}
    assert ages == {"OAS1_0001": (74, "F", None), "OAS1_0002": (55, "M", None), "OAS1_0003": (20, "F", None)}
    assert "1 visit(s) without a masked T88 volume" in caplog.text
    assert "OAS1_0007_MR1" in caplog.text


def test_oasis_labels(tmp_path: Path) -> None:
    layouts.oasis_volumes(tmp_path)
    labels = {s.subject: s.label for s in volumes(tmp_path, label="cdr").scans()}
    assert labels == {"OAS1_0001": "cdr0", "OAS1_0002": "cdr0.5", "OAS1_0003": None}
    (tmp_path / "oasis_cross-sectional.csv").unlink()
    with pytest.raises(UserError, match=r"data.label=cdr: no oasis_cross-sectional.csv"):
        volumes(tmp_path, label="cdr").scans()


def test_oasis_table_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    doubled = layouts.OASIS_TABLE.replace("OAS1_0009", "OAS1_0002")  # now two rows that contradict each other
    layouts.oasis_volumes(tmp_path, ("0001_MR1", "0002_MR1", "0005_MR1"), doubled)
    scans = volumes(tmp_path).scans()
    assert {s.subject: s.age for s in scans} == {"OAS1_0001": 74, "OAS1_0002": None, "OAS1_0005": None}
    assert "1 key(s) have more than one row: OAS1_0002_MR1" in caplog.text
    assert "1 contradiction(s) between rows, taken as unknown: OAS1_0002_MR1 (age 55.0 or 90.0)" in caplog.text
    assert "no row for 1 of 3: OAS1_0005_MR1" in caplog.text
    assert "2 row(s) without a scan here" in caplog.text


def test_oasis_plain_nifti_of_visits(tmp_path: Path) -> None:
    layouts.nifti(tmp_path / "OAS1_0001_MR1.nii.gz")
    layouts.nifti(tmp_path / "OAS1_0002_MR1/brain.nii.gz")
    assert subjects(volumes(tmp_path).scans()) == ["OAS1_0001", "OAS1_0002"]
    layouts.nifti(tmp_path / "OAS1_0002_MR1/other.nii.gz")
    with pytest.raises(UserError, match=r"visit OAS1_0002_MR1 has 2 NIfTI files and none is called"):
        volumes(tmp_path).scans()


def test_oasis_layouts_that_do_not_go_together(tmp_path: Path) -> None:
    layouts.oasis_volumes(tmp_path)
    with pytest.raises(UserError, match=r"Add: data.split.by=subject data.intensity.method=percentile"):
        OASIS(root=str(tmp_path), split={"by": "given"}, intensity={"method": "fixed", "range": [0, 255]}).scans()  # type: ignore[arg-type]
    layouts.oasis_png(tmp_path)
    with pytest.raises(UserError, match=r"choose with data.layout=png or data.layout=volumes"):
        OASIS(root=str(tmp_path)).scans()
    assert len(OASIS(root=str(tmp_path), layout="png").scans()) == 24
    assert len(volumes(tmp_path, layout="volumes").scans()) == 4
    with pytest.raises(UserError, match=r"data.label=cdr needs the OASIS-1 volumes"):
        OASIS(root=str(tmp_path), layout="png", label="cdr").scans()
    with pytest.raises(UserError, match=r"data.contrasts=\[T2\]: data=oasis has no T2; found T1 \(4 files\)"):
        volumes(tmp_path, layout="volumes", contrasts=["T2"]).scans()


# -- ixi ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_ixi(flat: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.ixi(tmp_path, contrasts=("T1", "T2", "PD"), flat=flat)
    layouts.text(tmp_path / "IXI002-Guys-0828-DTI-00.nii.gz", "")
    scans = IXI(root=str(tmp_path), contrasts=["T1", "T2"]).scans()
    assert contrasts(scans) == {"T1": 5, "T2": 5}
    people = {s.subject: (s.site, s.age, s.sex) for s in scans}
    assert people == {
        "IXI002": ("Guys", pytest.approx(35.80013689), "F"),
        "IXI012": ("HH", pytest.approx(38.7816564), "M"),
        "IXI013": ("HH", None, "M"),  # two rows of different age
        "IXI035": ("IOP", None, None),  # no age, sex code 0
        "IXI050": ("Guys", None, None),  # no row
    }
    assert "2 key(s) have more than one row: IXI012, IXI013" in caplog.text
    assert "1 contradiction(s)" in caplog.text
    assert "no row for 1 of 5: IXI050" in caplog.text
    assert "no age for 2 of 5: IXI013, IXI035" in caplog.text
    assert "1 file(s) left out (no T1, T2, PD or MRA by their name): IXI002-Guys-0828-DTI-00.nii.gz" in caplog.text


def test_ixi_workbook(tmp_path: Path) -> None:
    layouts.ixi(tmp_path, table=None)
    book = openpyxl.Workbook()
    for row in (["IXI_ID", "SEX_ID (1=m, 2=f)", "AGE"], [2, 2, 35.5], [12.0, 1.0, None], [None, None, None]):
        book.active.append(row)
    book.save(tmp_path / "IXI.xlsx")
    people = {s.subject: (s.age, s.sex) for s in IXI(root=str(tmp_path)).scans()}
    assert people["IXI002"] == (35.5, "F")
    assert people["IXI012"] == (None, "M")


def test_ixi_xls_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    layouts.ixi(tmp_path, table=None)
    layouts.text(tmp_path / "IXI.xls", "binary")
    monkeypatch.setitem(sys.modules, "xlrd", None)
    scans = IXI(root=str(tmp_path)).scans()
    assert {s.age for s in scans} == {None}
    assert "needs the package xlrd. Say: pip install 'mri-synth[tables]', or save the table as IXI.csv" in caplog.text


def test_ixi_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.ixi(tmp_path, table=None)
    assert len(IXI(root=str(tmp_path)).scans()) == 5
    assert "no IXI.xls, IXI.xlsx or IXI.csv" in caplog.text
    with pytest.raises(UserError, match=r"has no MRA; found T1 \(5 files\), T2 \(5 files\)\. Say .*\[T1,T2\]"):
        IXI(root=str(tmp_path), contrasts=["T1", "MRA"]).scans()
    layouts.nifti(tmp_path / "copy/IXI002-Guys-0828-T1.nii.gz")
    with pytest.raises(UserError, match=r"1 file.s. stand for a scan that another file is too"):
        IXI(root=str(tmp_path)).scans()
    layouts.nifti(tmp_path / "IXI-T1/IXI002-Guys-0828-T1.nii")
    message = r"(?s)twice, plain and compressed.*IXI002-Guys-0828-T1.nii  and .*delete the .nii"
    with pytest.raises(UserError, match=message):
        IXI(root=str(tmp_path)).scans()


# -- brats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("year", "subject", "session"), [
    (2023, "BraTS-GLI-00001", "000"), (2021, "BraTS2021_00001", ""), (2020, "BraTS20_Training_001", ""),
    (2018, "Brats18_TCIA01_001", "1")])  # fmt: skip
def test_brats_years(year: int, subject: str, session: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.brats(tmp_path, year, cases=(1, 2), without_seg=(2,))
    layouts.text(tmp_path / "name_mapping.csv", "x")
    scans = BraTS(root=str(tmp_path), contrasts=[]).scans()
    assert contrasts(scans) == {"T1": 2, "T1ce": 2, "T2": 2, "FLAIR": 2, "mask": 1}
    assert {(s.subject, s.session) for s in scans if s.contrast == "mask"} == {(subject, session)}
    assert {s.label for s in scans} == {None}
    assert {s.site for s in scans} == {"TCIA01" if year == 2018 else None}
    assert "1 file(s) left out (no BraTS name): name_mapping.csv" in caplog.text
    only = BraTS(root=str(tmp_path), contrasts=["T2", "FLAIR"]).scans()
    assert contrasts(only) == {"T2": 2, "FLAIR": 2, "mask": 1}


def test_brats_2013(tmp_path: Path) -> None:
    scans = BraTS(root=str(layouts.brats_2013(tmp_path)), contrasts=["T1", "T1ce", "T2", "FLAIR"]).scans()
    assert {(s.subject, s.session) for s in scans} == {
        ("HGG_brats_2013_pat0001", "1"), ("LGG_brats_2013_pat0001", "1"), ("brats_tcia_pat105", "0002")}  # fmt: skip
    assert contrasts(scans) == {"T1": 3, "T1ce": 2, "T2": 2, "FLAIR": 2, "mask": 1}


def test_brats_visits_of_one_patient_share_the_subject(tmp_path: Path) -> None:
    for visit in ("000", "001"):
        layouts.nifti(tmp_path / f"BraTS-GLI-00005-{visit}/BraTS-GLI-00005-{visit}-t1n.nii.gz")
    scans = BraTS(root=str(tmp_path)).scans()
    assert [(s.subject, s.session) for s in scans] == [("BraTS-GLI-00005", "000"), ("BraTS-GLI-00005", "001")]


def test_brats_2020_misnamed_segmentation(tmp_path: Path) -> None:
    layouts.brats(tmp_path, 2020, cases=(355,), without_seg=(355,))
    folder = tmp_path / "MICCAI_BraTS2020_TrainingData/BraTS20_Training_355"
    layouts.nifti(folder / "W39_1998.09.19_Segm.nii", array=layouts.tumour(0))
    scans = BraTS(root=str(tmp_path)).scans()
    assert by_name(scans)["W39_1998.09.19_Segm.nii"].subject == "BraTS20_Training_355"
    assert subjects(BraTS(root=str(folder)).scans()) == ["BraTS20_Training_355"]  # the patient's folder as root


def test_brats_years_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.brats(tmp_path, 2018, cases=(1,))
    layouts.brats(tmp_path, 2021, cases=(1,))
    BraTS(root=str(tmp_path)).scans()
    assert "several releases (BraTS2021, Brats18)" in caplog.text
    assert BraTS.label_from_mask == ("none", "tumour")


def test_brats_real(shared_data: Path) -> None:
    scans = BraTS(root=str(shared_data / "brats"), contrasts=["T1", "T1ce", "T2", "FLAIR"]).scans()
    assert contrasts(scans) == {"T1": 2, "T1ce": 2, "T2": 2, "FLAIR": 2, "mask": 1}
    assert {(s.subject, s.session) for s in scans} == {("BraTS-GLI-00001", "000"), ("BraTS2021_01306", "")}
    labels = BraTS(root=str(shared_data / "brats_labels"), contrasts=["FLAIR"]).scans()
    assert [(s.subject, s.session, s.contrast) for s in labels] == [
        ("brats_2013_pat0003", "1", "FLAIR"), ("brats_2013_pat0003", "1", "mask")]  # fmt: skip


# -- words in names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "contrast"), [
    ("sub-01_T1w", "T1"), ("study1_T1W", "T1"), ("x-t1n", "T1"), ("TrainT1", "T1"), ("T1_N4_regtoFLAIR", "T1"),
    ("T1_post", "T1ce"), ("T1-Gd", "T1ce"), ("t1ce", "T1ce"), ("T1POST_N4", "T1ce"),
    ("sub-1_ce-gadolinium_T1w", "T1ce"), ("T1_pre_contrast", "T1"),
    ("T2_FLAIR", "FLAIR"), ("t2f", "FLAIR"), ("Flair_subtrMeanDivStd", "FLAIR"),
    ("IXI002-PD", "PD"), ("s1_t2w", "T2"), ("regtoFLAIR", None), ("Tr1", None),
    ("structInSpace", None), ("AT1", None)])  # fmt: skip
def test_contrast_words(name: str, contrast: str | None) -> None:
    assert contrast_in(name) == contrast


def test_mask_words() -> None:
    masks = ["x_seg", "gt", "GOLD_STANDARD_N4", "lesion", "OTMultiClass", "label_3", "T1_mask", "TCGA_1_mask"]
    assert all(is_mask(m) for m in masks)
    assert not any(is_mask(m) for m in ("t88_masked_gfc", "segovia", "lesion12_T1", "T1"))
    assert is_brain_mask("brainmask")
    assert is_brain_mask("s1_brain_mask")
    assert not is_brain_mask("s1_mask")
    assert [w.text for w in words("sub-1_TrainT1w")] == ["sub", "1", "train", "t1w"]
    assert without_contrast("s01_T1_brain") == "s01"
    assert contrast_of_path("labelsTr/s01") == "mask"
    assert contrast_of_path("PD/s01") == "MRI"  # Parkinson's disease, perhaps


# -- folder ------------------------------------------------------------------------------------------------------------


def folder(root: Path, **more: Any) -> list[Scan]:
    return Folder(root=str(root), **{"contrasts": [], **more}).scans()


def test_folder_bids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scans = folder(layouts.bids(tmp_path))
    assert contrasts(scans) == {"T1": 7, "T2": 6}
    assert {(s.subject, s.session) for s in scans if s.contrast == "T2"} == {
        (f"sub-{n:02d}", str(k)) for n in (1, 2, 3) for k in (1, 2)}  # fmt: skip
    assert by_name(scans)["sub-01_ses-1_run-2_T1w.nii.gz"].session == "1_run-2"
    assert {s.subject: (s.age, s.sex) for s in scans} == {
        "sub-01": (31, "F"), "sub-02": (89, "M"), "sub-03": (None, None)}  # fmt: skip
    assert "1 file(s) left out (derivatives and sourcedata)" in caplog.text
    assert "1 file(s) left out (no anatomical contrast): sub-01/ses-1/func/sub-01_ses-1_task-rest_bold" in caplog.text
    assert "no row for 1 of 3: sub-03" in caplog.text
    inside = folder(tmp_path / "derivatives/bet")
    assert [(s.subject, s.contrast) for s in inside] == [("sub-01", "T1")]


def test_folder_per_subject(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        for name in ("T1.nii.gz", "T1_post.nii.gz", "scan_seg.nii.gz", "brain_mask.nii.gz"):
            layouts.text(tmp_path / f"p{n}/anat/{name}", "")
    layouts.text(tmp_path / "p2/anat/T1_brain.nii.gz", "")  # one subject with two T1 stays one subject
    scans = folder(tmp_path)
    assert contrasts(scans) == {"T1": 4, "T1ce": 3, "mask": 3}
    assert subjects(scans) == ["p1", "p2", "p3"]


@pytest.mark.parametrize("name", ["s{n}/visit{v}/T1.nii.gz", "visit{v}/s{n}/T1.nii.gz", "s{n}/visit{v}_T1.nii.gz",
                                  "s{n}_visit{v}_T1.nii.gz"])  # fmt: skip
def test_folder_visits_stay_with_their_subject(name: str, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        for v in (1, 2):
            layouts.text(tmp_path / name.format(n=n, v=v), "")
    scans = folder(tmp_path)
    assert {(s.subject, s.session) for s in scans} == {(f"s{n}", f"visit{v}") for n in (1, 2, 3) for v in (1, 2)}


def test_folder_of_classes(tmp_path: Path) -> None:
    for label in ("AD", "CN"):
        for n in range(4):
            layouts.text(tmp_path / f"train/{label}/{label}{n}_T1.nii.gz", "")
            layouts.text(tmp_path / f"train/{label}/{label}{n}_T2_brain.nii.gz", "")
    scans = folder(tmp_path, label="folder")
    assert subjects(scans) == ["AD0", "AD1", "AD2", "AD3", "CN0", "CN1", "CN2", "CN3"]
    assert {(s.subject[:2], s.label, s.split) for s in scans} == {("AD", "AD", "train"), ("CN", "CN", "train")}


def test_folder_of_classes_of_subject_folders(tmp_path: Path) -> None:
    for label in ("AD", "CN"):
        for n in range(3):
            layouts.text(tmp_path / f"{label}/{n}/T1.nii.gz", "")
    scans = folder(tmp_path, label="folder")
    assert subjects(scans) == ["AD/0", "AD/1", "AD/2", "CN/0", "CN/1", "CN/2"]
    assert Counter(s.label for s in scans) == {"AD": 3, "CN": 3}


def test_folder_per_contrast(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        for kind in ("T1", "T2"):
            layouts.text(tmp_path / f"{kind}/s{n}.nii.gz", "")
    assert [(s.subject, s.contrast) for s in folder(tmp_path)] == [
        (f"s{n}", kind) for kind in ("T1", "T2") for n in (1, 2, 3)]  # fmt: skip


def test_folder_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    layouts.pictures(tmp_path)
    scans = folder(tmp_path, label="folder")
    assert len(subjects(scans)) == len(scans) == 20
    assert Counter(s.label for s in scans) == {"glioma": 12, "none": 8}
    assert {s.contrast for s in scans} == {"MRI"}
    warned = [r for r in caplog.records if "say no patients" in r.message]
    assert [r.levelno for r in warned] == [logging.WARNING]
    assert "Use data.split.by=block" in warned[0].message
    caplog.clear()
    folder(tmp_path, label="folder", split={"by": "block"})
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert {s.label for s in folder(tmp_path)} == {None}


def test_folder_slices_with_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for case in (1, 2):
        for k in (0, 12):
            layouts.text(tmp_path / f"case_{case}_slice_{k}.png", "")
    scans = folder(tmp_path)
    assert {(s.subject, s.slice) for s in scans} == {("case_1", 0), ("case_1", 12), ("case_2", 0), ("case_2", 12)}
    assert "say no patients" not in caplog.text


def test_folder_pattern(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for case in ("A1", "B2"):
        for k in (3, 11):
            layouts.text(tmp_path / f"hgg/{case}/T2_{k:03d}.png", "")
            layouts.text(tmp_path / f"hgg/{case}/T2_{k:03d}_mask.png", "")
    layouts.text(tmp_path / "hgg/legend.png", "")
    scans = folder(tmp_path, pattern=r"(?P<label>\w+)/(?P<subject>\w+)/\w+?_(?P<slice>\d+)")
    assert contrasts(scans) == {"T2": 4, "mask": 4}
    assert {(s.subject, s.slice, s.label) for s in scans} == {(c, k, "hgg") for c in ("A1", "B2") for k in (3, 11)}
    assert "1 file(s) left out (do not match data.pattern): hgg/legend.png" in caplog.text
    assert "say no patients" not in caplog.text


@pytest.mark.parametrize(("pattern", "message"), [
    ("(?P<subject>", r"data.pattern=\(\?P<subject>: not a regular expression"),
    (r"(?P<patient>\d+)", r"unknown group patient; groups are written .* subject, session, contrast, label, slice"),
    (r"s\d+", "no named group"),
    (r"zz(?P<subject>\d+)", r"none of the 2 images under .* matches; paths that it is searched in: s1_T1.nii.gz"),
    (r"(?P<slice>s)\d", "the group slice is 's' in s1_T1.nii.gz; it must be digits")])  # fmt: skip
def test_folder_bad_pattern(pattern: str, message: str, tmp_path: Path) -> None:
    layouts.text(tmp_path / "s1_T1.nii.gz", "")
    layouts.text(tmp_path / "s2_T1.nii.gz", "")
    with pytest.raises(UserError, match=message):
        folder(tmp_path, pattern=pattern)


def test_folder_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(1, 6):
        layouts.text(tmp_path / f"i{n}.nii.gz", "")
    table = layouts.text(tmp_path / "who.csv", "file,subject,age,sex,site,label,split,session,contrast\n"
                         "i1.nii.gz,anna,7,F,X,tall,train,1,T1\ni[23].nii.gz,ben,8,male,,small,validation,,T1\n"
                         "./i4.nii.gz,carl,,,,,test,,T1\nabsent.nii.gz,dora,,,,,,,\n")  # fmt: skip
    scans = folder(tmp_path, subjects="who.csv")  # relative to the root
    assert scans == folder(tmp_path, subjects=str(table))
    anna = Scan(path=tmp_path / "i1.nii.gz", subject="anna", age=7, sex="F", site="X", label="tall", split="train",
                session="1", contrast="T1")  # fmt: skip
    assert scans[0] == anna
    others = [(s.subject, s.age, s.split) for s in scans[1:]]
    assert others == [("ben", 8, "val"), ("ben", 8, "val"), ("carl", None, "test")]
    assert "1 file(s) left out (no row in who.csv): i5.nii.gz" in caplog.text
    assert "1 row(s) without a file: absent.nii.gz" in caplog.text
    assert Folder.labelled({"subjects": "who.csv"})
    assert not Folder.labelled({"subjects": None, "label": "none"})


@pytest.mark.parametrize(("content", "message"), [
    ("name;age\na;3\n", r"needs a column subject .*found name, age\. Columns that are read: file, subject"),
    ("file,subject\n", "needs a line of column names and at least one row"),
    ("file,subject,split\ni1.nii.gz,a,holdout\n", "line 2: split holdout; allowed: train, val, test"),
    ("file,subject\ni1.nii.gz,\n", "line 2: no subject"),
    ("file,subject\n,a\n", "line 2: no file"),
    ("file,subject\ni1.nii.gz,a\ni1.nii.gz,b\n", "2 rows contradict each other about i1.nii.gz"),
    ("file,subject\nother.nii.gz,b\n", "no image under .* is left")])  # fmt: skip
def test_folder_bad_table(content: str, message: str, tmp_path: Path) -> None:
    layouts.text(tmp_path / "i1.nii.gz", "")
    layouts.text(tmp_path / "who.csv", content)
    with pytest.raises(UserError, match=message):
        folder(tmp_path, subjects="who.csv")
    with pytest.raises(UserError, match=r"data.subjects=whom.csv: no such file, neither here nor in "):
        folder(tmp_path, subjects="whom.csv")


def test_folder_refusals(tmp_path: Path) -> None:
    layouts.text(tmp_path / "s1_T1.nii.gz", "")
    with pytest.raises(UserError, match=r"has no T2; found T1 \(1 files\).*contrast_names"):
        folder(tmp_path, contrasts=["T1", "T2"])
    layouts.text(tmp_path / "s1_T1.nii", "")
    with pytest.raises(UserError, match=r"(?s)s1_T1.nii  and  s1_T1.nii.gz.*delete the .nii"):
        folder(tmp_path)
    layouts.text(tmp_path / "masks/s1_seg.nii.gz", "")
    with pytest.raises(UserError, match="only label maps were found, no images"):
        folder(tmp_path / "masks")


def test_folder_leaves_nothing_out_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("s1_T1.img", "s1_T1.hdr", "s1_T1.json", "s1.mha", "screenshot.png"):
        layouts.text(tmp_path / name, "")
    assert [s.path.name for s in folder(tmp_path)] == ["s1_T1.img"]
    assert "1 file(s) left out (not a kind of image that is read): s1.mha" in caplog.text
    assert "1 file(s) left out (pictures beside volumes or series" in caplog.text
    assert "data.pattern= can choose them): screenshot.png" in caplog.text


def test_folder_dicom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in (1, 2):
        layouts.dicom(tmp_path / f"case{n}/all", f"P{n}", "T1w MPRAGE", n)
        layouts.dicom(tmp_path / f"case{n}/all", f"P{n}", "t2_flair", 10 + n, number=2)
    layouts.dicom(tmp_path / "case3/a", "P3", "sag T2", 3, suffix="")  # no suffix: told by its first bytes
    layouts.dicom(tmp_path / "case3/b", "P3", "localizer", 4)
    layouts.dicom(tmp_path / "case3/c", "P3", "head", 5, modality="CT")
    layouts.text(tmp_path / "case3/README", "x")
    scans = folder(tmp_path)
    assert [(s.subject, s.contrast, s.session) for s in scans] == [
        ("P1", "T1", "20200102"), ("P1", "FLAIR", "20200102"), ("P2", "T1", "20200102"), ("P2", "FLAIR", "20200102"),
        ("P3", "T2", "20200102")]  # fmt: skip
    assert len({s.series for s in scans}) == 5
    assert (scans[0].path, scans[0].age, scans[0].sex) == (tmp_path / "case1/all", 45, "F")
    assert "b: localizer" in caplog.text
    assert "c: head" in caplog.text
    assert "not a kind of image that is read): case3/README" in caplog.text
    assert Folder(root=str(tmp_path)).read(scans[1]).array.shape == layouts.SHAPE
    named = folder(tmp_path, pattern=r"(?P<subject>case[12])/")
    assert subjects(named) == ["case1", "case2"]


@pytest.mark.parametrize(("override", "value"), [
    ("data.contrast_names={struct*: T1, T2_*: T2}", {"struct*": "T1", "T2_*": "T2"}),
    ("data.contrast_names={*t1*: T1}", {"*t1*": "T1"})])  # fmt: skip
def test_advice_can_be_typed(override: str, value: dict[str, str], compose: Callable[..., DictConfig]) -> None:
    assert compose("data=folder", override).data.contrast_names == value


# -- the real data -----------------------------------------------------------------------------------------------------


def test_folder_children(shared_data: Path, tmp_path: Path) -> None:
    rows = [f"i{n}.nii.gz,child{k:02d},T1" for k, child in enumerate(layouts.CHILDREN, 1) for n in child]
    table = layouts.text(tmp_path / "children.csv", "\n".join(["file,subject,contrast", *rows]))
    scans = folder(shared_data / "t1_children", subjects=str(table), contrasts=["T1"])
    assert len(scans) == 24
    assert len(subjects(scans)) == 14
    assert by_name(scans)["i7.nii.gz"].subject == by_name(scans)["i8.nii.gz"].subject == "child04"


def test_folder_tumour_slices(shared_data: Path) -> None:
    scans = folder(shared_data / "tumour_slices", label="folder", split={"by": "block"})
    assert Counter(s.label for s in scans) == {"glioma": 460, "meningioma": 240, "pituitary": 220, "none": 300}


def test_folder_coronal_pairs(shared_data: Path) -> None:
    names = {"T2_*": "T2", "struct*": "T1"}
    scans = folder(shared_data / "t1_t2_coronal", contrast_names=names, contrasts=["T1", "T2"])
    assert contrasts(scans) == {"T1": 11, "T2": 11}
    assert len(subjects(scans)) == 11


def test_folder_multiple_sclerosis(shared_data: Path) -> None:
    paired = folder(shared_data / "ms_paired")
    assert contrasts(paired) == {"T1": 2, "T1ce": 2, "T2": 2, "FLAIR": 2, "mask": 2}
    assert subjects(paired) == ["patient07", "patient19"]
    raw = folder(shared_data / "ms_raw")
    pattern = r"(?P<subject>patient\d+)/(?P<session>study\d)_(?P<contrast>\w+)\.nii"
    told = folder(shared_data / "ms_raw", pattern=pattern)
    assert [s for s in raw if s.contrast != "mask"] == told
    assert {(s.subject, s.session, s.contrast) for s in told} == {
        ("patient01", f"study{v}", c) for v in (1, 2) for c in ("T1", "T2", "FLAIR")}  # fmt: skip


def test_folder_brainweb_and_labels(shared_data: Path) -> None:
    assert contrasts(folder(shared_data / "t1_t2_brainweb", split={"by": "block"})) == {"T1": 43, "T2": 46}
    assert contrasts(folder(shared_data / "brats_labels")) == {"FLAIR": 1, "T1ce": 1, "mask": 1}


def test_oasis_layout_of_real_slices(shared_data: Path, tmp_path: Path) -> None:
    layouts.oasis_png_of_children(tmp_path, shared_data / "t1_children", slices=1)
    scans = OASIS(root=str(tmp_path)).scans()
    assert Counter(s.split for s in scans) == {"train": 16, "val": 4, "test": 4}


# -- tables ------------------------------------------------------------------------------------------------------------


def test_cells() -> None:
    assert [age_of(t) for t in ("34.5", "89+", "045Y", "34,5", "", "n/a", "0", "-3", "old", None)] == [
        34.5, 89, 45, 34.5, None, None, None, None, None, None]  # fmt: skip
    assert [sex_of(t) for t in ("f", "Male", "W", "1", "", None)] == ["F", "M", "F", None, None, None]


def test_rows_of_one_key_complete_each_other() -> None:
    rows = [("a", Person(age=3.0)), ("a", Person(sex="F", age=3.0)), ("b", Person(sex="M")), ("b", Person(sex="F"))]
    assert merge_people(rows, "t") == {"a": Person(age=3.0, sex="F"), "b": Person()}


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t.doc: a table must be one of .csv, .tsv, .xlsx, .xls"):
        read_table(layouts.text(tmp_path / "t.doc", "x"))
    with pytest.raises(UserError, match=r"t.xlsx: not a readable .xlsx table .*export it again"):
        read_table(layouts.text(tmp_path / "t.xlsx", "x"))
    latin = tmp_path / "t.csv"
    latin.write_bytes("name;city\nJos\xe9;K\xf6ln\n".encode("latin-1"))
    assert read_table(latin) == [{"name": "Jos\xe9", "city": "K\xf6ln"}]
