"""Real MRI in the layouts people have it, through the command line: counts worked out by hand, sides, headers."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from layouts import CHILDREN, IXI_TABLE, oasis_png_of_children, text
from nibabel.affines import apply_affine
from test_dicom import write_series
from test_volume import assert_same_header

from mri_synth import __version__, cli
from mri_synth import run as run_module
from mri_synth.data.brats import BraTS
from mri_synth.data.folder import Folder
from mri_synth.data.settings import SliceSettings, SplitSettings
from mri_synth.data.volume import read

pytestmark = pytest.mark.slow

SMALL = ["model=vqvae", "trainer=smoke", "logger=csv", "data.size=64", "data.batch_size=8", "model.hidden_channels=8",
         "model.codebook_size=16", "model.codebook_dim=8", "model.res_blocks=1", "trainer.max_epochs=1",
         "trainer.limit_train_batches=2"]  # fmt: skip
HALVES = "data.split.fractions=[0.5,0.5,0]"
MS = "_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"


def type_in(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command line in this process, as its console script does.

    Args:
        monkeypatch: takes the words back.
        words: "run" for `python -m mri_synth.run`, else a verb of `mri-synth`; then its arguments.

    Returns:
        The exit status.
    """
    GlobalHydra.instance().clear()
    monkeypatch.delenv("MRI_SYNTH_RUN", raising=False)
    first, *rest = map(str, words)
    monkeypatch.setattr(sys, "argv", ["run", *rest] if first == "run" else ["mri-synth", first, *rest])
    try:
        run_module.main() if first == "run" else cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def children_table(path: Path) -> Path:
    """The CSV of which scan is of which child; the bad scan 13 is left out."""
    rows = [f"i{scan}.nii.gz,child{n:02d}" for n, child in enumerate(CHILDREN) for scan in child if scan != 13]
    return text(path, "\n".join(["file,subject", *rows]) + "\n")


def items(folder: Path) -> dict[str, int]:
    """Slices per split of a finished run, over all contrasts."""
    found: Counter[str] = Counter()
    with (folder / "split.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["split"]] += int(row["slices"]) if row["contrast"] != "mask" else 0
    return {split: found[split] for split in ("train", "val", "test")}


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A short training on the children: the checkpoint of the tests of reconstruct."""
    folder = tmp_path_factory.mktemp("children")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert type_in(
            monkeypatch, "run", "data=folder", f"data.root={shared_data / 't1_children'}",
            "data.contrast_names={i*:T1}", f"data.subjects={children_table(folder / 'children.csv')}", *SMALL,
            "trainer.max_epochs=8", "trainer.limit_train_batches=1.0", f"hydra.run.dir={folder / 'run'}",
        ) == 0  # fmt: skip
    return folder / "run"


def test_children_stay_whole_in_one_split(children: Path) -> None:
    # 23 scans of 13 children; 10 of the 18 slices of each slab hold anything. 80:10:10 of 13 are 11, 1, 1.
    assert sum(items(children).values()) == 230
    with (children / "split.csv").open(newline="") as file:
        split_of = {(row["subject"], row["split"]) for row in csv.DictReader(file)}
    assert Counter(split for _, split in split_of) == {"train": 11, "val": 1, "test": 1}
    results = json.loads((children / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["metrics"]["test/ssim"] > 0.3


# what is typed, and the slices in train, val, test
LAYOUTS: dict[str, tuple[str, Sequence[int]]] = {
    # 11 pairs: 80:10:10 of 11 subjects are 9, 1, 1
    "coronal": (
        "data=folder data.root={shared}/t1_t2_coronal data.contrast_names={{T2_*:T2,struct*:T1}} "
        "data.contrasts=[T1,T2]",
        (18, 2, 2),
    ),
    # 60, 60, 40 pictures of tumours and 97 without one, for 3 of the 100 are coloured: 13 blocks of 20, the last of
    # class none of 17; 80:10:10 of 13 are 11, 1, 1
    "tumour": (
        "data=folder data.root={tmp}/slices data.label=folder data.split.by=block data.on_bad_file=skip",
        (217, 20, 20),
    ),
    # 43 T1 and 46 T2 pictures in 18 blocks of 5, the last of 4: 14, 2, 2
    "brainweb": (
        "data=folder data.root={shared}/t1_t2_brainweb data.split.by=block data.split.block_size=5",
        (69, 10, 10),
    ),
    # the two visits of one patient, told apart as subjects: T1 has 39 and 48 slices, T2 and FLAIR come onto its grid
    "visits": (
        'data=folder data.root={shared}/ms_raw data.pattern="(?P<subject>study\\d)_" data.contrasts=[T1,T2,FLAIR] '
        + HALVES,
        (3 * 39, 3 * 48, 0),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_trains_tests_and_counts_right(
    name: str, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, number in {"glioma": 60, "meningioma": 60, "none": 100, "pituitary": 40}.items():
        (tmp_path / "slices" / kind).mkdir(parents=True)
        for file in sorted((shared_data / "tumour_slices" / kind).iterdir(), key=lambda f: int(f.stem))[:number]:
            (tmp_path / "slices" / kind / file.name).symlink_to(file)
    words, counts = LAYOUTS[name]
    typed = words.format(shared=shared_data, tmp=tmp_path).split()
    assert type_in(monkeypatch, "run", *typed, *SMALL, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert tuple(items(tmp_path / "run").values()) == counts
    assert len(list((tmp_path / "run/pictures").glob("*.png"))) == 2  # before training and after the epoch
    assert (tmp_path / "run/report.html").is_file()


def test_oasis_slices_keep_their_own_split(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = oasis_png_of_children(tmp_path / "oasis", shared_data / "t1_children")
    typed = ["data=oasis", f"data.root={root}"]
    assert type_in(monkeypatch, "run", *typed, *SMALL, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert tuple(items(tmp_path / "run").values()) == (16 * 6, 4 * 6, 4 * 6)
    assert type_in(monkeypatch, "describe", *typed, "-o", tmp_path / "page.html") == 0
    assert "case_001" in (tmp_path / "page.html").read_text()


def shown(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Axial slices of a NIfTI as they must look, by nibabel alone: rows from anterior, columns from the left.

    Args:
        path: the file.

    Returns:
        (N, rows, columns) in [-1, 1], and the share of each slice above 10 % of the range.
    """
    array = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, np.float32)
    low, high = np.percentile(array, [0.1, 99.9])
    scaled = np.clip((array - low) / (high - low) * 2 - 1, -1, 1)
    return scaled[:, ::-1].transpose(2, 1, 0), (scaled > -0.8).mean((0, 1))


def test_brats_of_both_years_side_slices_and_labels(
    tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = BraTS(root=str(shared_data / "brats"), contrasts=["FLAIR", "T1ce"], size=240, fit="crop",
                 slices=SliceSettings(start=0.2, stop=0.9, min_foreground=0.05),
                 split=SplitSettings(fractions=[0.5, 0.5, 0]))  # fmt: skip
    data.prepare_data()
    data.setup()
    names = {"BraTS2021_01306": "flair", "BraTS-GLI-00001": "t2f"}
    seen = {}
    for split in ("train", "val"):
        view = data.view(split)
        batch = view.__getitems__(list(range(0, len(view), 2)))  # every second item is the first contrast
        (subject,) = set(batch.subject)
        seen[subject] = batch
        (path,) = (shared_data / "brats").glob(f"{subject}*/*{names[subject]}.nii.gz")
        images, share = shown(path)
        extent = np.flatnonzero(share > 0.01)
        where = (np.arange(len(share)) - extent[0]) / (extent[-1] - extent[0])
        expected = np.flatnonzero((where >= 0.2) & (where <= 0.9) & (share >= 0.05))
        assert batch.slice.tolist() == expected.tolist()
        pad = (240 - images.shape[1]) // 2
        inside = batch.image[:, 0, pad : 240 - pad, pad : 240 - pad].numpy()
        np.testing.assert_allclose(inside, images[expected], atol=2e-5)
    # no segmentation: unlabelled, never "none"; with one: labelled slice by slice
    assert set(seen["BraTS-GLI-00001"].label.tolist()) == {-1}
    seg = nib.load(shared_data / "brats/BraTS2021_01306/BraTS2021_01306_seg.nii.gz")
    values = np.asarray(seg.dataobj)
    tumour = (values > 0) & (values < 4)  # 4 marks the brain in this copy
    batch = seen["BraTS2021_01306"]
    turned = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(tumour.astype(np.uint8), seg.affine)).dataobj)
    assert batch.label.tolist() == turned.any((0, 1))[batch.slice.numpy()].astype(int).tolist()
    assert "label 4 fills 1161 ml, which is no tumour but the brain" in caplog.text
    # the tumour is right of the middle of the head in the world, so right in the image
    middle = apply_affine(seg.affine, (np.array(seg.shape) - 1) / 2)[0]
    assert apply_affine(seg.affine, np.argwhere(tumour))[:, 0].mean() > middle + 10
    assert np.argwhere(batch.mask[:, 0].numpy() > 0)[:, 2].mean() > 120 + 10


def test_ixi_takes_the_middle_of_the_head(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = []
    for visit, name in enumerate(("IXI002-Guys-0828", "IXI012-HH-1211"), start=1):
        for contrast in ("T1", "T2"):
            folder = tmp_path / f"ixi/IXI-{contrast}"
            folder.mkdir(parents=True, exist_ok=True)
            source = shared_data / f"ms_raw/patient01/study{visit}_{contrast}W.nii.gz"
            (folder / f"{name}-{contrast}.nii.gz").symlink_to(source)
        _, share = shown(shared_data / f"ms_raw/patient01/study{visit}_T1W.nii.gz")
        extent = np.flatnonzero(share > 0.01)
        where = (np.arange(len(share)) - extent[0]) / (extent[-1] - extent[0])
        expected.append(2 * int(((where >= 0.3) & (where <= 0.8)).sum()))
    text(tmp_path / "ixi/IXI.csv", IXI_TABLE)
    typed = ["data=ixi", f"data.root={tmp_path / 'ixi'}", "data.contrasts=[T1,T2]", HALVES]
    assert type_in(monkeypatch, "run", *typed, *SMALL, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert sorted(items(tmp_path / "run").values()) == [0, *sorted(expected)]
    with (tmp_path / "run/split.csv").open(newline="") as file:
        people = {
            row["subject"]: (round(float(row["age"]), 1), row["sex"], row["site"]) for row in csv.DictReader(file)
        }
    assert people == {"IXI002": (35.8, "F", "Guys"), "IXI012": (38.8, "M", "HH")}


def test_three_grids_come_onto_the_first(shared_data: Path) -> None:
    data = Folder(root=str(shared_data / "ms_raw"), contrasts=["T1", "T2", "FLAIR"], size=160, fit="contain",
                  pattern=r"(?P<subject>study\d)_", split=SplitSettings(fractions=[0.5, 0.5, 0]))  # fmt: skip
    data.prepare_data()
    data.setup()
    view = data.view("val")
    heads = {}
    rows = np.unique(view.rows)
    for contrast in ("T1", "T2", "FLAIR"):
        heads[contrast] = view.read(contrast, rows)[:, 0].numpy() > -0.9
    for other in ("T2", "FLAIR"):  # the patient moved a little between scans; a swapped side or slice gives far less
        dice = 2 * (heads["T1"] & heads[other]).sum() / (heads["T1"].sum() + heads[other].sum())
        assert dice > 0.8


def test_one_patient_alone_can_be_looked_at_but_not_split(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["data=folder", f"data.root={shared_data / 'ms_raw'}", "data.contrasts=[T1,T2,FLAIR]", "data.size=64"]
    assert type_in(monkeypatch, "run", *typed, *SMALL, f"hydra.run.dir={tmp_path / 'run'}") == 2
    said = "".join(capsys.readouterr())
    assert "gt.nii.gz" in said  # left out: of which visit it is, its name does not say
    assert "one subject (patient01) cannot be in both" in said
    assert 'data.pattern="(?P<subject>visit\\d)"' in said
    assert not (tmp_path / "run").exists()
    assert type_in(monkeypatch, "describe", *typed, "-o", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "Not enough to train on: nothing is in val." in page


@pytest.mark.parametrize(
    "file",
    [f"ms_paired/patient19/FLAIR{MS}",
     "brats/BraTS2021_01306/BraTS2021_01306_flair.nii.gz", "brats/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz"],
)  # fmt: skip
def test_a_reconstruction_lies_where_its_source_lies(
    file: str, children: Path, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = shared_data / file, tmp_path / "rec.nii.gz"
    assert type_in(monkeypatch, "reconstruct", children / "best.ckpt", source, "-o", output) == 0
    assert_same_header(source, output, f"synthetic: mri_synth {__version__}, VQVAE")
    before, after = nib.load(source), nib.load(output)
    for place in ("get_sform", "get_qform"):
        np.testing.assert_array_equal(getattr(before, place)(), getattr(after, place)())
    np.testing.assert_array_equal(before.affine, after.affine)
    assert before.header.get_zooms() == after.header.get_zooms()
    assert before.header.get_xyzt_units() == after.header.get_xyzt_units()
    a, b = (np.asarray(image.dataobj, np.float64) for image in (before, after))
    assert a.min() <= b.min() < b.max() <= a.max()
    right = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert right > 0.85
    assert right > np.corrcoef(a.ravel(), b[::-1].ravel())[0, 1]  # not left for right


def test_a_dicom_tree_is_the_nifti_it_was_made_of(
    children: Path, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for patient in ("patient07", "patient19"):
        for n, contrast in enumerate(("T1", "T2")):
            image = nib.load(shared_data / f"ms_paired/{patient}/{contrast}{MS}").slicer[:, :, 60:100:8]
            array = np.clip(image.get_fdata(), 0, 4000).astype(np.int16)
            thin = nib.Nifti1Image(array, image.affine)
            folder = tmp_path / f"{patient}-{contrast}"
            write_series(folder, thin, f"1.2.{int(patient[-2:])}.{n}", SeriesDescription=contrast, PatientID=patient)
            there = tmp_path / "tree" / patient / "study"
            there.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                file.rename(there / f"{contrast}_{file.name}")
            volume = read(there, f"1.2.{int(patient[-2:])}.{n}")
            nib.save(thin, tmp_path / "thin.nii")
            np.testing.assert_array_equal(volume.array, read(tmp_path / "thin.nii").array)
            np.testing.assert_allclose(volume.affine, read(tmp_path / "thin.nii").affine, atol=1e-4)
    typed = ["data=folder", f"data.root={tmp_path / 'tree'}", "data.contrasts=[T1,T2]", HALVES, "data.plane=axial"]
    assert type_in(monkeypatch, "run", *typed, *SMALL, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert tuple(items(tmp_path / "run").values()) == (10, 10, 0)  # 5 slices in each of two contrasts
    series = tmp_path / "tree/patient07/study"
    words = ["reconstruct", children / "best.ckpt", series, "-o", tmp_path / "rec.nii.gz"]
    assert type_in(monkeypatch, *words) == 2
    assert "2 series; name one by --series UID:" in capsys.readouterr().err
    assert type_in(monkeypatch, *words, "--series", "1.2.7.1") == 0
    made = read(tmp_path / "rec.nii.gz")
    np.testing.assert_allclose(made.affine, read(series, "1.2.7.1").affine, atol=1e-4)


def test_reconstruct_refuses_what_cannot_be(
    children: Path, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good, source = children / "best.ckpt", shared_data / "t1_children/i12.nii.gz"
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(source.read_bytes())
    (tmp_path / "empty.ckpt").touch()
    cases: list[tuple[Any, Any, Any, str]] = [
        (good, tmp_path / "none.nii.gz", "x.nii.gz", "none.nii.gz: no such file"),
        (good, copy, "copy.nii.gz", "is the input itself, and would be overwritten"),
        (good, source, "x.png", "a volume is written as .nii or .nii.gz"),
        (children, source, "x.nii.gz", "a folder, not a checkpoint; give a file such as outputs/<run>/best.ckpt"),
        (tmp_path / "none.ckpt", source, "x.nii.gz", "no such checkpoint"),
        (tmp_path / "empty.ckpt", source, "x.nii.gz", "damaged or not a checkpoint of mri_synth"),
    ]
    for checkpoint, volume, output, said in cases:
        assert type_in(monkeypatch, "reconstruct", checkpoint, volume, "-o", tmp_path / output) == 2
        assert said in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.nii.gz", "empty.ckpt"]
    assert copy.read_bytes() == source.read_bytes()
