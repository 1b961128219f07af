"""Bad input of every kind, through the data modules and `run`: one clear message, nothing lost.

`MRI_SYNTH_SHOW_MESSAGES=messages.txt pytest tests/test_bad_input.py` writes every message to that file.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from mri_synth import outputs
from mri_synth.data import identity
from mri_synth.data.folder import Folder
from mri_synth.data.ixi import IXI
from mri_synth.data.oasis import OASIS
from mri_synth.data.settings import IntensitySettings, SliceSettings, SplitSettings
from mri_synth.errors import UserError
from mri_synth.models.checkpoint import load_model
from mri_synth.run import run

Compose = Callable[..., DictConfig]
Refused = Callable[..., str]
TINY = ["data=folder", "trainer=smoke", "logger=csv", "data.size=16", "model.hidden_channels=8", "model.res_blocks=1",
        "model.codebook_size=8", "model.codebook_dim=4", "model.lambda_ssim=0", "data.batch_size=4",
        "trainer.max_epochs=1",
        "trainer.pictures=0", "trainer.precision=32-true", "data.split.fractions=[0.5,0.25,0.25]"]  # fmt: skip


@pytest.fixture
def refused(request: pytest.FixtureRequest) -> Refused:
    """`refused(r"pattern", call)`: the call raises a UserError whose message matches; the message is returned."""

    def check(pattern: str, call: Callable[[], object]) -> str:
        with pytest.raises(UserError, match=pattern) as caught:
            call()
        said = str(caught.value)
        show = os.environ.get("MRI_SYNTH_SHOW_MESSAGES")
        if show:
            with Path(show).open("a") as file:
                file.write(
                    f"--- {request.node.name}\n{re.sub(r'/[^ ]*/pytest-of-[^/]+/pytest-[0-9]+/[^/ ]+', '', said)}\n"
                )
        return said

    return check


def folder(root: Path, **more: Any) -> Folder:
    return Folder(**{"root": str(root), "cache": str(root.parent / "cache"), "size": 16, "contrasts": [],
                     "split": SplitSettings(fractions=[0.5, 0.25, 0.25])} | more)  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four good subjects."""
    for s in range(4):
        layouts.nifti(tmp_path / f"data/s{s}_T1.nii.gz", s)
    return tmp_path / "data"


# -- the root ----------------------------------------------------------------------------------------------------------


def test_roots(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    way_out = r"[\s\S]*The layout that is read:[\s\S]*Where to get it: [\s\S]*Then type: data\.root=/path/to/"
    for cls in (OASIS, IXI, Folder):
        refused(f"does not exist{way_out}", cls(root=str(tmp_path / "absent")).prepare_data)
        refused(f"is empty{way_out}", cls(root=str(tmp_path / "empty")).prepare_data)
        refused(f"neither data.root nor .* is set{way_out}", cls().prepare_data)
        refused(f"no file under .*notes.txt{way_out}", cls(root=str(tmp_path / "other")).prepare_data)


# -- files -------------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (16, 18, 14)).astype(np.int16)
    whole = layouts.nifti(path, array=noise).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flipped_bit(path: Path) -> None:
    """Every byte is there, and all are read: only the checksum at the end knows."""
    noise = np.random.default_rng(0).integers(0, 1000, (16, 18, 14)).astype(np.int16)
    whole = bytearray(gzip.compress(layouts.nifti(path.with_suffix(""), array=noise).read_bytes(), compresslevel=0))
    path.with_suffix("").unlink()
    whole[len(whole) // 2] ^= 64
    path.write_bytes(whole)


def not_a_number(path: Path) -> None:
    array = layouts.brain(9)
    array[3, 3, 3:5] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def constant(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 7, np.int16), np.eye(4)), path)


def four_d(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 6, 6, 5)).astype(np.float32), np.eye(4)), path)


def almost_all_air(path: Path) -> None:
    array = np.zeros((16, 16, 16), np.int16)
    array[8, 8, 8] = 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def colour(path: Path) -> None:
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[4:20, 4:20] = (200, 40, 40)
    Image.fromarray(pixels).save(path)


FILES = [
    ("s9_T1.nii.gz", truncated, r"damaged or not complete"),
    ("s9_T1.nii.gz", flipped_bit, r"damaged or not complete \(CRC check failed"),
    ("s9_T1.nii.gz", not_a_number, r"2 NaN and 0 infinite of 4032 values"),
    ("s9_T1.nii.gz", constant, r"constant, every value is 7"),
    ("s9_T1.nii.gz", four_d, r"4-D \(6x6x6x5\)"),
    ("s9_T1.nii.gz", almost_all_air, r"percent of its values are both 0.*data\.intensity\.method=minmax"),
    ("s9.png", Path.touch, r"the file is empty \(0 bytes\)"),
    ("s9.png", colour, r"coloured: the channels differ by up to 160 of 255"),
]


@pytest.mark.parametrize("name, make, reason", FILES, ids=[make.__name__ for _, make, _ in FILES])
def test_a_bad_file_is_an_error_or_left_out_and_listed(name: str, make: Callable[[Path], None], reason: str,
                                                       tmp_path: Path, refused: Refused) -> None:  # fmt: skip
    root = tmp_path / "data"
    for s in range(4):
        good = root / f"s{s}{name[2:]}"
        layouts.png(good, s) if name.endswith("png") else layouts.nifti(good, s)
    make(root / name)
    said = refused(rf"1 file\(s\) cannot be used:\n  .*{name}: .*{reason}.*\nMend or remove .*data\.on_bad_file=skip",
                   folder(root).prepare_data)  # fmt: skip
    assert said.count("on_bad_file=skip") == 1 or "coloured" in said or "4-D" in said  # which say what else helps
    assert not list((tmp_path / "cache").glob("*[!k]"))  # but for the lock
    data = folder(root, on_bad_file="skip")
    data.setup()
    listed = {Path(r["path"]).name: (r["split"], r["reason"]) for r in data.manifest}
    assert len(listed) == 5
    split, why = listed.pop(name)
    assert split == ""
    assert re.search(reason, why)
    assert all(split and not why for split, why in listed.values())


def test_every_bad_file_is_listed_at_once(tree: Path, refused: Refused) -> None:
    truncated(tree / "a_T1.nii.gz")
    constant(tree / "b_T1.nii.gz")
    said = refused(r"2 file\(s\) cannot be used", folder(tree).prepare_data)
    assert "a_T1.nii.gz: damaged" in said
    assert "b_T1.nii.gz: constant" in said


def test_nothing_usable_is_an_error_even_with_skip(tmp_path: Path, refused: Refused) -> None:
    for s in range(3):
        layouts.nifti(tmp_path / f"data/s{s}_T1.nii.gz", array=np.full((8, 8, 8), s, np.int16))
    data = folder(tmp_path / "data", on_bad_file="skip")
    refused(
        r"no slice of 3 file\(s\) can be used; the commonest reasons:\n  3 file\(s\), such as: constant", data.setup
    )


def test_slices_that_leave_nothing(tree: Path, refused: Refused) -> None:
    data = folder(tree, slices=SliceSettings(unit="index", start=500))
    refused(r"no slice of 4 .*\n  4 file\(s\), such as: no slice left by data\.slices \(14 slices, largest", data.setup)


def test_a_file_that_may_not_be_read(tree: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root everything may be read, so the refusal is made."""

    def fail(path: Path) -> str:
        if "s2" in path.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return ""

    monkeypatch.setattr(identity, "sha256", fail)
    refused(
        r"1 file\(s\) cannot be used:\n  .*s2_T1\.nii\.gz: cannot be read \(Permission denied\)", folder(tree).setup
    )


def test_negative_values_are_fine(tmp_path: Path) -> None:
    for s in range(4):
        layouts.nifti(tmp_path / f"data/s{s}_T1.nii.gz", array=layouts.brain(s) - 1200)
    data = folder(tmp_path / "data", intensity=IntensitySettings(method="minmax"), slices=SliceSettings())
    data.setup()
    assert all(r["low"] == -1200 and r["high"] < 0 for r in data.manifest)
    batch = next(iter(data.val_dataloader()))
    assert -1 == batch.image.min() < 0 < batch.image.max() <= 1


def test_mixed_sizes_meet_in_one_frame(tmp_path: Path) -> None:
    for s, size in enumerate((24, 24, 40, 31, 18)):
        layouts.png(tmp_path / f"data/s{s}.png", s, size)
    data = folder(tmp_path / "data")
    data.setup()
    assert [r["shape"][0] for r in data.manifest] == [24, 24, 40, 31, 18]
    assert data.spec.spacing_mm is None  # they differ
    assert next(iter(data.train_dataloader())).image.shape[1:] == (1, 16, 16)


def test_pictures_of_a_pair_must_have_one_size(tmp_path: Path, refused: Refused) -> None:
    for s in range(3):
        layouts.png(tmp_path / f"data/s{s}_T1.png", s, 24)
        layouts.png(tmp_path / f"data/s{s}_T2.png", 9 + s, 24 if s else 30)
    refused(r"1 file\(s\) cannot be used:\n  .*s0_T2\.png: T2 has \(30, 30\) pixels, T1 \(24, 24\): pictures of a pair",
            folder(tmp_path / "data", contrasts=["T1", "T2"]).setup)  # fmt: skip
    data = folder(tmp_path / "data", contrasts=["T1", "T2"], on_bad_file="skip")
    data.setup()
    assert [Path(r["path"]).name for r in data.manifest if not r["split"]] == ["s0_T2.png"]


def test_a_background_that_becomes_grey_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for s in range(3):
        head = layouts.brain(s)
        z_scored = np.where(head > 0, (head - 500) / 200, 0).astype(np.float32)
        path = tmp_path / f"data/s{s}_T1.nii.gz"
        layouts.nifti(path)
        nib.save(nib.Nifti1Image(z_scored if s else head, layouts.AFFINE), path)
    folder(tmp_path / "data").setup()
    said = r"2 file\(s\) have a background that is not black, such as .*s1_T1\.nii\.gz: .*data\.intensity\.method=fixed"
    assert re.search(said, caplog.text)


def test_contrasts_that_are_not_there(tree: Path, refused: Refused) -> None:
    refused(r"data\.contrasts=\[T1,T2\]: data=folder has no T2; found T1 \(4 files\)\. Say for example",
            folder(tree, contrasts=["T1", "T2"]).setup)  # fmt: skip


# -- leaks -------------------------------------------------------------------------------------------------------------


def test_leaks(tmp_path: Path, refused: Refused) -> None:
    layouts.oasis_png(tmp_path / "data", {"train": [1, 2], "validate": [2, 3], "test": [4]})
    arguments: dict[str, Any] = {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "size": 24,
                                 "split": SplitSettings(by="given"),
                                 "intensity": IntensitySettings(method="fixed", range=[0, 255])}  # fmt: skip
    way_out = r"[\s\S]*Mend the split, or say data\.split\.on_leak=drop: they are then dropped"
    refused(rf"the split leaks: 3 item\(s\) .*\n  subject in train and val: .*case_002_slice_0{way_out}",
            OASIS(**arguments).setup)  # fmt: skip
    shutil.rmtree(tmp_path / "data")
    layouts.oasis_png(tmp_path / "data", {"train": [1, 2], "validate": [3], "test": [4]})
    for k in range(3):
        shutil.copy(tmp_path / f"data/keras_png_slices_train/case_001_slice_{k}.nii.png",
                    tmp_path / f"data/keras_png_slices_test/case_004_slice_{k}.nii.png")  # fmt: skip
    refused(rf"the split leaks: 3 item\(s\) .*\n  identical image in train and test: .*case_001_slice_0{way_out}",
            OASIS(**arguments).setup)  # fmt: skip
    arguments["split"] = SplitSettings(by="given", on_leak="drop")
    data = OASIS(**arguments)
    data.setup()
    dropped = [r for r in data.manifest if not r["split"]]
    assert {r["subject"] for r in dropped} == {"001"} or all("001" in r["subject"] for r in dropped)
    assert len(dropped) == len(data.leaks) == 3
    assert all(r["reason"].startswith("identical image in train and test") for r in dropped)


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a moment."""
    base = tmp_path_factory.mktemp("trained")
    for s in range(8):
        layouts.png(base / f"data/s{s}.png", s)
    run(
        compose(TINY, f"data.root={base / 'data'}", f"data.cache={base / 'cache'}", "data.contrasts=[]"),
        base / "run",
        [],
    )
    return base


@pytest.fixture
def tiny(trained: Path, compose: Compose) -> Callable[..., DictConfig]:
    """The same configuration, with overrides."""
    words = [*TINY, f"data.root={trained / 'data'}", f"data.cache={trained / 'cache'}", "data.contrasts=[]"]
    return lambda *more: compose(words, *more)


def test_a_run_folder_that_cannot_be_written(tiny: Any, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    refused(r"cannot write the run folder .*file/run: Not a directory; give another by hydra\.run\.dir=/path",
            lambda: run(tiny(), tmp_path / "file/run", []))  # fmt: skip


def test_a_disk_that_is_full(tiny: Any, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_in_torch(self: pl.Trainer, path: Path, *args: object, **kwargs: object) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")  # what torch says

    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.ckpt").write_text("the one before")
    for fails in (full, full_in_torch):
        with monkeypatch.context() as patch:
            patch.setattr(pl.Trainer, "save_checkpoint", fails)
            refused(r"cannot write .*(last|best)\.ckpt: .*; the checkpoint before it is untouched\. Free space, then: ",
                    lambda: run(tiny(), tmp_path / "run", []))  # fmt: skip
        assert (tmp_path / "run/last.ckpt").read_text() == "the one before"
        assert not list((tmp_path / "run").glob(".*partial"))
    monkeypatch.setattr(outputs, "write_results", full)
    refused(r"cannot write the run folder .*: the disk is full; free space; if it holds a last\.ckpt, go on with: ",
            lambda: run(tiny(), tmp_path / "run2", []))  # fmt: skip


def test_a_cache_that_cannot_be_written(tiny: Any, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    refused(r"cannot write the store of prepared slices in .*file: it is a file; .*data\.cache=/path or the var",
            lambda: run(tiny(f"data.cache={tmp_path / 'file'}"), tmp_path / "run", []))  # fmt: skip


# -- checkpoints -------------------------------------------------------------------------------------------------------


def changed(source: Path, to: Path, **about: object) -> Path:
    content = torch.load(source, weights_only=True)
    content["mri_synth"] |= about
    torch.save(content, to)
    return to


def test_checkpoints_that_do_not_fit(trained: Path, tiny: Any, tmp_path: Path, refused: Refused) -> None:
    best = trained / "run/best.ckpt"
    whole = best.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "hello.ckpt").write_text("hello\n")  # unpickled, it looks up what is not there: a KeyError
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    (tmp_path / "zero.ckpt").touch()
    changed(best, tmp_path / "old.ckpt", format=0, version="0.0.1")
    changed(best, tmp_path / "model.ckpt", target="mri_synth.models.vae.VAE")
    damaged = r"damaged or not a checkpoint of mri_synth; give one that `python -m mri_synth\.run` wrote"
    for name, message in (
        ("cut.ckpt", damaged),
        ("text.ckpt", damaged),
        ("hello.ckpt", damaged),
        ("zero.ckpt", damaged),
        ("other.ckpt", r"a checkpoint, but not one of mri_synth; give one that"),
        ("list.ckpt", r"a checkpoint, but not one of mri_synth; give one that"),
        ("old.ckpt", r"checkpoint format 0 of mri_synth 0\.0\.1; this is mri_synth .*, format \d+: use that version"),
    ):
        path = tmp_path / name
        refused(f"{name}: {message}", lambda: load_model(path))  # noqa: B023 (called at once)
        refused(f"{name}: {message}", lambda: run(tiny("task=test", f"ckpt={path}"), tmp_path / "run", []))  # noqa: B023
    missing = trained / "run/none.ckpt"  # as best.ckpt of a run whose metric had no value, such as one cut short
    refused(r"none\.ckpt: no such checkpoint; give a file such as .*last\.ckpt, which its run has",
            lambda: load_model(missing))  # fmt: skip
    refused(r"ckpt=.*none\.ckpt: no such file; give a checkpoint such as .*last\.ckpt, which its run has",
            lambda: run(tiny("task=test", f"ckpt={missing}"), tmp_path / "run", []))  # fmt: skip
    for key in ("ckpt", "init_from"):
        words = [f"{key}={tmp_path / 'model.ckpt'}"] + (["task=test"] if key == "ckpt" else [])
        refused(rf"{key}=.*model\.ckpt: a checkpoint of mri_synth\.models\.vae\.VAE, the model here is .*; choose",
                lambda: run(tiny(*words), tmp_path / "run", []))  # noqa: B023  # fmt: skip


def test_a_checkpoint_of_other_sizes(trained: Path, tiny: Any, tmp_path: Path, refused: Refused) -> None:
    best = trained / "run/best.ckpt"
    for words in (["task=test", f"ckpt={best}"], [f"init_from={best}"]):
        refused(r"best\.ckpt: .*codebook_size=8 there, 16 here\. Give .*: model\.codebook_size=8",
                lambda: run(tiny("model.codebook_size=16", *words), tmp_path / "run", []))  # noqa: B023  # fmt: skip


def test_a_checkpoint_whose_class_is_gone(trained: Path, tmp_path: Path, refused: Refused) -> None:
    path = changed(trained / "run/best.ckpt", tmp_path / "gone.ckpt", target="mri_synth.models.vqvae.Gone")
    refused(r"gone\.ckpt: made by mri_synth\.models\.vqvae\.Gone of mri_synth .*, which does not fit this version",
            lambda: load_model(path))  # fmt: skip


def test_a_run_lists_what_was_left_out(tiny: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    (tmp_path / "data/s99.png").touch()
    cfg = tiny(f"data.root={tmp_path / 'data'}", "data.on_bad_file=skip")
    run(cfg, tmp_path / "run", [])
    lines = (tmp_path / "run/split.csv").read_text().splitlines()
    assert len(lines) == 10
    bad = next(line for line in lines if "s99.png" in line)
    assert bad.startswith(",s99")
    assert "the file is empty (0 bytes)" in bad
