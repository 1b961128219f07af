"""IXI as it is published: oblique scans on different grids, paired and unpaired, registered, through a run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from layouts import text
from test_register import grid, head, move, moved

from mri_synth import run as run_module
from mri_synth.data import split_presets
from mri_synth.data.ixi import IXI
from mri_synth.data.settings import SliceSettings, SplitSettings
from mri_synth.data.split import assign
from mri_synth.data.views import Pairs, Unpaired
from mri_synth.errors import UserError

PEOPLE = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-HH-1212", "IXI035-IOP-0873")
TABLE = """IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,WEIGHT,ETHNIC_ID,AGE
2,2,164,58,1,35.80013689
12,1,175,70,1,38.78165640
13,1,182,70,1,46.71047228
35,2,170,60,1,52.1
"""
SHIFT, TURN = (6.0, -5.0, 4.0), (2.0, -3.0, 4.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T1 stored sagittally, T2 and PD of one echo train axially, all oblique; the head moved in between."""
    base = tmp_path_factory.mktemp("ixi")
    for i, name in enumerate(PEOPLE):
        shape, affine = grid((4, 4, 4), (4, -2, 6 + i))
        t1 = head("T1", shape, affine, seed=i)
        save(base / f"IXI-T1/{name}-T1.nii.gz", t1.array, t1.affine, (1, 2, 0))  # axes A, S, R as the sagittal ones are
        for k, contrast in enumerate(("T2", "PD")):
            scan = moved(head(contrast, *grid((3.5, 3.5, 5), (-3, 1, i)), seed=9 + 2 * i + k), move(TURN, SHIFT))
            save(base / f"IXI-{contrast}/{name}-{contrast}.nii.gz", scan.array, scan.affine, (0, 1, 2))
    text(base / "IXI.csv", TABLE)
    return base


def save(path: Path, array: np.ndarray, affine: np.ndarray, order: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.rint(array).astype(np.int16).transpose(order), affine[:, [*order, 3]])
    nib.save(image, path)


def data(root: Path, cache: Path, **settings: Any) -> IXI:
    plain = {"contrasts": ["T1", "T2", "PD"], "size": 48, "slices": SliceSettings(start=0.3, stop=0.8, step=2),
             "split": SplitSettings(fractions=[0.5, 0.25, 0.25]), "root": str(root), "cache": str(cache)}  # fmt: skip
    made = IXI(**(plain | settings))
    return made


def test_pairs_with_demographics(root: Path, tmp_path: Path) -> None:
    made = data(root, tmp_path)
    made.view_class = Pairs
    made.setup()
    assert made.spec.sources == ("T1", "T2")
    assert made.spec.goal == "PD"
    facts = {f["contrast"]: (f["orientation"], tuple(f["shape"])) for f in made.store.files}
    assert facts["T1"][0] == "ASR"
    assert facts["T2"][0] == "RAS"
    assert facts["T1"][1] != facts["T2"][1] == facts["PD"][1]
    people = {s["subject"]: (s["age"], s["sex"], s["site"]) for s in made.store.studies}
    assert people["IXI002"] == (pytest.approx(35.80013689), "F", "Guys")
    assert people["IXI035"] == (52.1, "F", "IOP")
    view = made.view("train")
    batch = view.__getitems__([0, 1])
    assert batch.image.shape == (2, 2, 48, 48)
    assert batch.target is not None
    assert batch.target.shape == (2, 1, 48, 48)
    subjects = [set(made.view(s).subjects) for s in ("train", "val", "test")]
    assert [len(s) for s in subjects] == [2, 1, 1]
    assert not set.intersection(*subjects)


def test_unpaired(root: Path, tmp_path: Path) -> None:
    made = data(root, tmp_path, contrasts=["T1", "T2"])
    made.view_class = Unpaired
    made.setup()
    train = made.view("train")
    batch = train.__getitems__(list(range(len(train))))
    assert batch.image.shape == batch.target.shape == (len(train), 1, 48, 48)  # type: ignore[union-attr]
    held = made.view("val")
    assert held.__getitems__([0]).paired is not None
    assert bool(held.__getitems__([0]).paired.all())  # type: ignore[union-attr]


@pytest.mark.slow
def test_registered_onto_the_t1(root: Path, tmp_path: Path) -> None:
    before, after = data(root, tmp_path), data(root, tmp_path, register="rigid")
    likeness = {}
    for name, made in (("before", before), ("after", after)):
        made.setup()
        t1, t2 = (made.store.read(c, np.arange(made.store.rows)) / 32767 for c in ("T1", "T2"))
        head_t1, head_t2 = t1 > -0.7, t2 > -0.7
        likeness[name] = 2 * (head_t1 & head_t2).sum() / (head_t1.sum() + head_t2.sum())
    assert likeness["after"] > likeness["before"] + 0.03
    assert likeness["after"] > 0.95
    shift = np.linalg.norm(SHIFT)
    for record in after.store.files:
        if record["contrast"] != "T1":
            assert record["registration"]["shift_mm"] == pytest.approx(shift, abs=1.5)
            assert record["registration"]["after"] > record["registration"]["before"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ("unet_l1", "pix2pix", "cyclegan"))
def test_through_run(model: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.delenv("MRI_SYNTH_RUN", raising=False)
    words = ["run", f"model={model}", "data=ixi", f"data.root={root}", "data.contrasts=[T1,T2]", "data.register=rigid",
             "data.size=32", "data.batch_size=4", "data.slices.step=2", "data.split.fractions=[0.5,0.25,0.25]",
             "trainer=smoke", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=csv", "model.width=4",
             f"hydra.run.dir={tmp_path / 'run'}"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    run_module.main()
    with (tmp_path / "run/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["contrast"], r["split"]) for r in rows} == {
        (c, s) for c in ("T1", "T2") for s in ("train", "val", "test")
    }
    assert {r["age"] for r in rows if r["subject"] == "IXI012"} == {"38.7816564"}
    assert list((tmp_path / "run").rglob("*.ckpt"))


# -- the preset -------------------------------------------------------------------------------------------------------


def studies(numbers: list[int], lacks: dict[int, str] | None = None) -> list[dict[str, Any]]:
    every = {"T1", "T2", "PD"}
    return [{"subject": f"IXI{n:03d}", "label": None, "split": None, "path": f"IXI{n:03d}-T1.nii.gz",
             "contrasts": sorted(every - {(lacks or {}).get(n, "")})} for n in numbers]  # fmt: skip


def test_preset_takes_the_first_forty() -> None:
    numbers = [*range(90, 2, -2)]  # 44 subjects, the other way round
    settings = SplitSettings(by="given", file="preset:ixi40")
    got = dict(zip(numbers, assign(studies(numbers, {4: "PD", 10: "T2"}), settings), strict=True))
    whole = [n for n in sorted(numbers) if n not in (4, 10)]
    assert [got[n] for n in whole[:40]] == ["train"] * 25 + ["val"] * 5 + ["test"] * 10
    assert {got[n] for n in (4, 10, *whole[40:])} == {""}


def test_preset_mistakes() -> None:
    with pytest.raises(UserError, match=r"preset:ixi40 needs 40 subjects with PD, T1, T2; there are 11 of 12"):
        assign(studies([*range(12)], {3: "T1"}), SplitSettings(by="given", file="preset:ixi40"))
    (message,) = SplitSettings.problems({"by": "given", "file": "preset:ixi44"})
    assert message.startswith("data.split.file=preset:ixi44: there is no such preset; there is preset:ixi40")
    (message,) = SplitSettings.problems({"by": "subject", "file": "preset:ixi40"})
    assert "needs data.split.by=given" in message


def test_preset_that_is_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_presets, "FOLDER", tmp_path)
    text(tmp_path / "mine.csv", "subject,split\nIXI002,train\nIXI004,val\n")
    text(tmp_path / "pairs.csv", "a,b\nx,y\n")
    assert split_presets.names() == ["ixi40", "mine"]
    settings = SplitSettings(by="given", file="preset:mine")
    assert not SplitSettings.problems(vars(settings))
    assert assign(studies([2, 4, 6]), settings) == ["train", "val", ""]
