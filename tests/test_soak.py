"""The soak's checks find what is wrong, its list is complete, and three of its kills; all of them: `make soak`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import layouts
import pytest
import torch
from soak import commands, pairs, small
from soak.kills import ORDER, TRAINED, Kills
from soak.whole import half_written, left_over, other_files, other_run

from mri_synth import config
from mri_synth.data.nifti import whole_file


def test_every_model_and_data_set_is_small_there() -> None:
    assert sorted(small.MODELS) == config.choices("model")
    assert sorted(small.DATA) == config.choices("data")
    assert {f"train {model}" for model, _, _ in TRAINED.values()} == set(TRAINED)
    assert len(ORDER) == len(set(ORDER)) >= 25
    assert set(TRAINED) <= set(ORDER)


def test_pairs_are_drawn_with_what_they_need() -> None:
    every = pairs.chosen(None, 0)
    assert len(every) == len(set(every)) > 60
    assert ("pix2pix", "oasis") not in every
    assert [m for m, _ in every].index("vqvae") < [m for m, _ in every].index("pixelcnn")
    for seed in range(20):
        drawn = pairs.chosen(5, seed)
        assert 5 <= len(drawn) <= 10
        assert all((m, d) in drawn for model, d in drawn for m in small.NEEDS.get(model, {}).values())


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """One file of each kind."""
    folder = tmp_path / "good"
    layouts.png(folder / "a.png")
    layouts.nifti(folder / "b.nii.gz")
    layouts.nifti(folder / "c.nii")
    torch.save({"x": torch.zeros(1000)}, folder / "d.ckpt")
    layouts.text(folder / "e.json", '{"a": 1}\n')
    layouts.text(folder / "f.html", "<html></html>\n")
    layouts.text(folder / "g.csv", "a,b\n1,2\n")
    return folder


@pytest.mark.parametrize("name", ["a.png", "b.nii.gz", "c.nii", "d.ckpt", "e.json", "f.html", "g.csv"])
def test_half_a_file_is_found(good: Path, name: str) -> None:
    assert half_written(good) == []
    path = good / name
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    assert [x.partition(":")[0] for x in half_written(good)] == [name]
    path.rename(good / f".part-1-{name}")  # not under its final name: what is being written
    assert half_written(good) == []
    assert left_over(good) == [f".part-1-{name}"]


def test_another_content_is_found(good: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(good, other)
    layouts.nifti(other / "b.nii.gz")  # at another time
    assert other_files(good, other, (".png", ".gz", ".nii")) == []
    layouts.png(other / "a.png", seed=1)
    (other / "c.nii").unlink()
    assert other_files(good, other, (".png", ".gz", ".nii")) == ["a.png", "c.nii"]


def test_another_training_is_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for checkpoint in ("last.ckpt", "best.ckpt"):
            (tmp_path / name).mkdir(exist_ok=True)
            torch.save({"state_dict": {"w": torch.ones(3)}}, tmp_path / name / checkpoint)
        layouts.text(tmp_path / name / "metrics.csv", "step,epoch,name,value\n0,0,train/loss,0.5\n")
        results = {"status": "finished", "metrics": {"test/ssim": 0.5}, "seconds": len(name)}
        layouts.text(tmp_path / name / "results.json", json.dumps(results))
    one, two = tmp_path / "one", tmp_path / "two"
    assert other_run(one, two) == []
    torch.save({"state_dict": {"w": torch.ones(3) + 1e-7}}, two / "last.ckpt")
    layouts.text(two / "metrics.csv", "step,epoch,name,value\n" + 2 * "0,0,train/loss,0.5\n")
    assert other_run(one, two) == ["last.ckpt: w", "metrics.csv"]


def test_a_command_ends_with_its_status(tmp_path: Path) -> None:
    status, _ = commands.play(["run", "model=none"], tmp_path / "run", tmp_path / "log")
    assert status == 2
    assert "model=none" in commands.tail(tmp_path / "log")


def test_what_a_killed_process_was_writing_goes_when_it_is_old(tmp_path: Path) -> None:
    old, young = (layouts.text(tmp_path / f".part-{n}-a.json", "{") for n in (1, 2))
    os.utime(old, (0, 0))
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("{}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, "a.json"]


@pytest.mark.slow
def test_a_run_begun_again_in_its_folder_has_its_rows_once(tmp_path: Path) -> None:
    """As one that was killed before its first checkpoint: it is started anew there."""
    words = [*pairs.words("vqvae", "oasis", {}, small.data_sets(tmp_path / "data")), *pairs.SHORT, "hydra.run.dir=run"]
    for more in ([], ["rerun=true"]):
        assert commands.play([*words, *more], tmp_path / "cwd", tmp_path / "log")[0] == 0, commands.tail(
            tmp_path / "log"
        )
    run = tmp_path / "cwd/run"
    rows = [x.split(",")[0:3:2] for x in (run / "metrics.csv").read_text().splitlines() if ",train/" in x]
    assert len(set(map(tuple, rows))) == len(rows) > 10
    assert half_written(run) == []


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    player = Kills(tmp_path / "kills", small.data_sets(tmp_path / "data"), seed=5)
    for number, name in enumerate(ORDER[:3]):
        line, wrong = player.kill(number, name)
        assert not wrong, f"{line}\n{wrong}"
