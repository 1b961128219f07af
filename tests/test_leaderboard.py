"""The leaderboard: what is ranked with what, what differs, and what is refused."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from mri_synth.cli import app
from mri_synth.errors import UserError
from mri_synth.leaderboard import boards, direction, read_runs
from mri_synth.leaderboard.page import AfterSweep, leaderboard
from mri_synth.table import SweepTable, note_elsewhere, note_failed, read_sweep

BASE: dict[str, Any] = {
    "status": "finished", "model": "vae", "data": "phantom", "data_title": "bench-v1", "data_hash": "d",
    "view": "images", "split_hash": "s", "simulated": True, "precision": "bf16-mixed", "device": "cuda:0",
    "world_size": 1, "seconds": 61.0, "images_per_second": 99.5, "peak_memory_bytes": 2**30, "parameters": 1000,
    "config": {"seed": 0, "model": {"_target_": "m.VAE", "lr": 1e-3}, "data": {"root": "/a", "contrasts": ["T1"]},
               "trainer": {"max_epochs": 3, "devices": 1, "limit_test_batches": 1.0}, "logger": {"mode": "auto"}},
    "metrics": {"test/ssim": 0.5}, "details": {"test/ssim": {"ci": [0.4, 0.6], "protocol": "plain"}},
}  # fmt: skip


def make(place: Path, name: str, **changes: Any) -> None:
    """A run folder; `config__model__lr=1` sets a nested value."""
    results = deepcopy(BASE)
    for key, value in changes.items():
        *above, last = key.split("__")
        section = results
        for part in above:
            section = section[part]
        section[last] = value
    (place / name).mkdir(parents=True)
    (place / name / "results.json").write_text(json.dumps(results))


def kid(value: float, features: str = "abc", n: int = 1000) -> dict[str, Any]:
    return {"kid": {"value": value, "ci": [value - 0.01, value + 0.01]},
            "features": {"name": "inception", "hash": features}, "n": n, "pool": "val+test",
            "protocol": {"kid": "unbiased"}}  # fmt: skip


def test_runs_are_ranked_by_each_metric_in_its_own_direction(tmp_path: Path) -> None:
    make(tmp_path, "a", metrics={"test/ssim": 0.5}, generation=kid(0.02))
    make(tmp_path, "sweeps/now/1_b", metrics={"test/ssim": 0.9}, generation=kid(0.03), config__model__lr=1e-2)
    make(tmp_path, "c", metrics={"test/ssim": 0.7}, generation=kid(0.01))
    entries, left_out = read_runs(tmp_path)
    by_kid, by_ssim = boards(entries)
    assert [e.name for e in by_kid.entries] == ["c", "a", "sweeps/now/1_b"]
    assert [e.name for e in by_ssim.entries] == ["sweeps/now/1_b", "c", "a"]
    assert (by_kid.lower, by_ssim.lower) == (True, False)
    assert by_ssim.varied == ["model.lr"]
    assert left_out == {}
    assert [direction(n) for n in ("test/psnr", "test/mae", "test/bits_per_dim", "test/elbo", "generation/fid")] == [
        "max", "min", "min", "max", "min"]  # fmt: skip


@pytest.mark.parametrize(("changes", "word"), [
    ({"data_hash": "other"}, "another data"),
    ({"split_hash": "other"}, "another split"),
    ({"details__test/ssim__protocol": "own max"}, "another protocol"),
    ({"view": "pairs", "config__data__contrasts": ["T1", "T2"]}, "another task"),
    ({"config__trainer__limit_test_batches": 2}, "another share of the test images"),
    ({"split_hash": "other", "data_hash": "other"}, "another data, another split"),
])  # fmt: skip
def test_what_does_not_compare_is_not_ranked_together(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    make(tmp_path, "a")
    make(
        tmp_path,
        "b",
        config__seed=1,
        config__data__root="/b",
        config__trainer__devices=2,
        config__logger__mode="offline",
    )
    make(tmp_path, "best", **{**changes, "metrics": {"test/ssim": 0.99}})
    first, second = boards(read_runs(tmp_path)[0])
    assert [e.name for e in first.entries] == ["a", "b"]
    assert first.varied == ["seed", "trainer.devices"], "not where and on what it ran; devices change the batch"
    assert first.why == ""
    assert [e.name for e in second.entries] == ["best"]
    assert second.why == f"not ranked with the first group of test/ssim: {word}"


def test_samples_compare_in_one_feature_space_and_number_only(tmp_path: Path) -> None:
    make(tmp_path, "a", metrics={}, generation=kid(0.3), model="dcgan", view="images")
    make(tmp_path, "b", metrics={}, generation=kid(0.2), model="pixelcnn", view="codes", config__model__first_stage="x")
    make(tmp_path, "c", metrics={}, generation=kid(0.1, features="other"))
    make(tmp_path, "d", metrics={}, generation=kid(0.1, n=64))
    assert [[e.name for e in b.entries] for b in boards(read_runs(tmp_path)[0])] == [["b", "a"], ["c"], ["d"]]


def test_codes_compare_by_the_content_of_their_first_stage(tmp_path: Path) -> None:
    def prior(name: str, path: str, stage: str) -> None:
        make(tmp_path, name, model="pixelcnn", view="codes", config__model__first_stage=path)
        (tmp_path / name / "identity.json").write_text(json.dumps({"parts": {"model": {"first_stage": stage}}}))

    prior("a", "runs/best.ckpt", "sha256 1")
    prior("b", "/moved/best.ckpt", "sha256 1")
    prior("c", "runs/best.ckpt", "sha256 2")
    make(tmp_path, "d", model="pixelcnn", view="codes", config__model__first_stage="runs/best.ckpt")
    first, *others = boards(read_runs(tmp_path)[0])
    assert {e.name for e in first.entries} == {"a", "b"}
    assert [[e.name for e in b.entries] for b in others] == [["c"], ["d"]]
    assert first.mark["task"] == "codes of sha256 1"
    assert others[1].mark["task"] == "codes of runs/best.ckpt"


def test_failures_of_another_sweep_in_the_folder_are_not_this_one_s(tmp_path: Path) -> None:
    make(tmp_path, "0_seed-1", status="started")
    (tmp_path / "0_seed-1/.hydra").mkdir()
    (tmp_path / "0_seed-1/.hydra/overrides.yaml").write_text("- seed=1\n")
    note_failed(tmp_path, 0, ["seed=8"], "of days ago")
    note_failed(tmp_path, 3, ["seed=1", "hydra.verbose=true"], "no room")
    assert [(j.name, j.error) for j in read_sweep(tmp_path)] == [("0", "of days ago"), ("0_seed-1", "no room")]
    sweep: dict[str, Any] = {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": ["seed=1,2", "task=check"]}}
    SweepTable().on_multirun_start(OmegaConf.create({"hydra": sweep}))
    assert len(read_sweep(tmp_path)) == 2, "a check forgets nothing"
    sweep["overrides"] = {"task": ["seed=1,2"]}
    SweepTable().on_multirun_start(OmegaConf.create({"hydra": sweep}))
    assert [(j.name, j.error) for j in read_sweep(tmp_path)] == [("0_seed-1", "started, not finished")]


def test_only_keys_that_differ_within_a_method_or_between_all_are_shown(tmp_path: Path) -> None:
    make(tmp_path, "a", config__model={"_target_": "m.VAE", "lr": 1e-3, "beta": 1.0})
    make(tmp_path, "b", config__model={"_target_": "m.VAE", "lr": 1e-3, "beta": 2.0})
    make(tmp_path, "c", model="vqvae", config__model={"_target_": "m.VQVAE", "lr": 1e-2, "codebook_size": 512})
    (board,) = boards(read_runs(tmp_path)[0])
    assert board.varied == ["model.beta"]


def test_page_table_and_terminal(tmp_path: Path) -> None:
    place = tmp_path / "outputs"
    make(place, "a", world_size=2)
    make(place, "b", config__data__contrasts=["none"], metrics={"test/ssim": 0.6, "test/psnr": 20.0})
    make(place, "odd", split_hash="other")
    make(place, "killed", status="started")
    (place / "broken").mkdir()
    (place / "broken/results.json").write_text("{")
    (place / "just_begun").mkdir()
    (place / "just_begun/identity.json").write_text("{}")
    done = CliRunner().invoke(app, ["leaderboard", str(place), "-o", str(tmp_path / "pages/board.html")])
    assert done.exit_code == 0, done.output
    for text in ("test/ssim (higher is better): 2 runs of phantom bench-v1 (d), split s", 'data.contrasts=["none"]',
                 "0.6000 [0.4000, 0.6000]", "1 min 01 s", "1.0 GiB", "2 x cuda:0", "bf16-mixed",
                 "not ranked with the first group of test/ssim: another split", "3 run(s) not finished"):  # fmt: skip
        assert text in done.output
    page = (tmp_path / "pages/board.html").read_text()
    for text in (
        'href="../outputs/b/report.html"',
        "SIMULATED DATA",
        "another split",
        "just_begun",
        "test/psnr",
        "20.0",
    ):
        assert text in page
    leaderboard(place, tmp_path / "board.csv")
    rows = {r["run"]: r for r in csv.DictReader((tmp_path / "board.csv").open())}
    assert [(rows[n]["test/ssim group"], rows[n]["test/ssim rank"]) for n in ("b", "a", "odd")] == [
        ("1", "1"), ("1", "2"), ("2", "1")]  # fmt: skip
    assert rows["a"]["test/ssim low"] == "0.4"
    assert rows["a"]["test/ssim protocol"] == "plain"


def test_what_cannot_be_ranked_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in it; give the folder that holds run folders"):
        leaderboard(tmp_path)
    make(tmp_path, "a")
    with pytest.raises(UserError, match=r"--by test/dice: no finished run has it; there is: .*test/ssim"):
        leaderboard(tmp_path, by=["test/dice"])
    with pytest.raises(UserError, match=r"board.txt: allowed: a name that ends in .html or .csv"):
        leaderboard(tmp_path, tmp_path / "board.txt")


def test_a_sweep_ends_with_its_own_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "outputs/sweeps/now"
    make(tmp_path / "outputs", "before", metrics={"test/ssim": 0.8})
    make(tmp_path / "outputs", "of_no_concern", metrics={"test/ssim": 0.9})
    make(sweep, "1_seed-1", config__seed=1)
    note_elsewhere(sweep, 0, ["seed=0"], tmp_path / "outputs/before")
    AfterSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}}))
    page = (sweep / "leaderboard.html").read_text()
    assert page.index('href="./../../before/report.html"') < page.index('href="./1_seed-1/report.html"')
    assert "of_no_concern" not in page
    assert "2 runs of phantom" in capsys.readouterr().out
    AfterSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "checked")}}}))
    assert not (tmp_path / "checked").exists()
