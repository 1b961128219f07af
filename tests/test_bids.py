"""BIDS trees: who, which visit, which contrast; what is left out, and that it is said."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import layouts
import pytest

from mri_synth.data import bids
from mri_synth.data.folder import Folder
from mri_synth.data.names import Place
from mri_synth.data.scan import Scan
from mri_synth.data.views import Pairs
from mri_synth.errors import UserError


def folder(root: Path, **more: Any) -> list[Scan]:
    return Folder(root=str(root), **{"contrasts": [], **more}).scans()


@pytest.mark.parametrize(("file", "place"), [
    ("sub-01/anat/sub-01_T1w.nii.gz", ("sub-01", "", "T1")),
    ("sub-01_T1w.nii.gz", ("sub-01", "", "T1")),
    ("sub-A7/ses-02/anat/sub-A7_ses-02_acq-x_run-01_T2w.nii", ("sub-A7", "02", "T2")),
    ("sub-01/ses-1/anat/sub-01_ses-1_run-03_FLAIR.nii.gz", ("sub-01", "1_run-3", "FLAIR")),
    ("sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz", ("sub-01", "", "T1ce")),
    ("sub-01/anat/sub-01_PDw.nii.gz", ("sub-01", "", "PD")),
    ("sub-01/anat/sub-01_angio.nii.gz", ("sub-01", "", "MRA")),
    ("sub-01/anat/sub-01_UNIT1.nii.gz", ("sub-01", "", "T1")),
    ("sub-01/anat/sub-01_space-orig_label-lesion_mask.nii.gz", ("sub-01", "", "mask")),
    ("sub-01/anat/sub-01_label-lesion_roi.nii.gz", ("sub-01", "", "mask"))])  # fmt: skip
def test_names(file: str, place: tuple[str, str, str]) -> None:
    found, out = bids.places([file])
    assert found == {file: Place(subject=place[0], session=place[1], contrast=place[2])}
    assert not out


@pytest.mark.parametrize(("file", "reason"), [
    ("derivatives/fs/sub-01/anat/sub-01_T1w.nii.gz", "derivatives and sourcedata"),
    ("sourcedata/sub-01/anat/sub-01_T1w.nii.gz", "derivatives and sourcedata"),
    ("sub-01/func/sub-01_task-rest_bold.nii.gz", "no anatomical contrast"),
    ("sub-01/fmap/sub-01_T1w.nii.gz", "no anatomical contrast"),
    ("sub-01/dwi/sub-01_dwi.nii.gz", "no anatomical contrast"),
    ("sub-01/anat/sub-01_T1map.nii.gz", "no anatomical contrast"),
    ("sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz", "no anatomical contrast"),
    ("sub-01/anat/sub-01_dseg.nii.gz", "no anatomical contrast"),
    ("template_T1w.nii.gz", "no sub-XX name")])  # fmt: skip
def test_what_is_left_out(file: str, reason: str) -> None:
    assert bids.places([file]) == ({}, {reason: [file]})


def test_recognised_by_the_description_or_by_the_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    layouts.nifti(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz")
    folder(tmp_path)
    assert "BIDS names (sub-XX/anat; there is no dataset_description.json)" in caplog.text
    layouts.text(tmp_path / "dataset_description.json", '{"Name": "Heads", "BIDSVersion": "1.8.0"}')
    folder(tmp_path)
    assert "BIDS names (dataset_description.json: Heads, BIDS 1.8.0)" in caplog.text
    layouts.text(tmp_path / "dataset_description.json", "{")
    assert len(folder(tmp_path)) == 1
    assert "dataset_description.json: not readable as JSON" in caplog.text
    assert not bids.is_tree(["s1/T1.nii.gz", "subject-1_T1.nii.gz"])


def test_people_pairs_and_what_has_no_partner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.bids(tmp_path)
    (tmp_path / "sub-02/ses-2/anat/sub-02_ses-2_T2w.nii.gz").unlink()
    table = "participant_id\tage\tsex\tsite\nsub-01\t31\tF\tRome\nsub-02\t40\tM\tOslo\nsub-03\t50\tM\tOslo\n"
    layouts.text(tmp_path / "participants.tsv", table)
    data = Folder(root=str(tmp_path), contrasts=["T1", "T2"])
    data.view_class = Pairs
    scans = data.scans()
    assert {(s.subject, s.age, s.sex, s.site) for s in scans} == {
        ("sub-01", 31, "F", "Rome"), ("sub-02", 40, "M", "Oslo"), ("sub-03", 50, "M", "Oslo")}  # fmt: skip
    visits = Counter((s.subject, s.session) for s in scans)
    assert sorted(n for n in visits.values()) == [1, 1, 2, 2, 2, 2, 2]
    assert "2 of 7 visits or slices have no partner and are in no pair" in caplog.text
    assert "sub-02_ses-2_T1w.nii.gz (sub-02 session 2 has no T2)" in caplog.text
    assert "sub-01_ses-1_run-2_T1w.nii.gz (sub-01 session 1_run-2 has no T2)" in caplog.text
    assert "1 file(s) left out (derivatives and sourcedata): derivatives/bet/" in caplog.text


def test_variants_of_one_scan_are_told_with_the_way_to_choose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in (1, 2, 3):
        for name in ("acq-a_T1w", "acq-b_T1w", "T2w"):
            layouts.nifti(tmp_path / f"sub-{n}/anat/sub-{n}_{name}.nii.gz", n)
    data = Folder(root=str(tmp_path), contrasts=["T1", "T2"], cache=str(tmp_path / "cache"), size=16)
    with pytest.raises(UserError, match=r"subject sub-1 has 2 scans of T1 .*the group 'session' in data.pattern"):
        data.prepare_data()
    assert "3 visit(s) have several scans of one contrast, such as 2 T1 of sub-1: sub-1_acq-a_T1w" in caplog.text
    advice = r"(?P<subject>sub-[^/_]+).*(acq-a.*_T1w|_OTHERCONTRAST)"
    assert advice in caplog.text
    chosen = folder(tmp_path, pattern=advice.replace("OTHERCONTRAST", "T2w"))
    assert Counter((s.subject, s.contrast) for s in chosen) == {
        (f"sub-{n}", c): 1 for n in (1, 2, 3) for c in ("T1", "T2")
    }
