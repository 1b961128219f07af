"""What a job is: which keys count, which do not, and what a run's folder says of itself."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mri_synth import identity, locks, notes, outputs
from mri_synth.composer import plain
from mri_synth.errors import UserError


@pytest.fixture
def config(compose) -> dict[str, Any]:
    return plain(compose("model=vqvae", "data=folder", "data.root=/nowhere", "logger=csv"))


def leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def changed(values: dict[str, Any], key: str) -> dict[str, Any]:
    values = deepcopy(values)
    *above, last = key.split(".")
    section = values
    for name in above:
        section = section[name]
    section[last] = "another" if section[last] != "another" else "third"
    return values


def test_identity_counts_every_key_but_where_and_on_what_it_runs(config: dict[str, Any]) -> None:
    mine = identity.identity(config)
    counted = {key for key, _ in leaves(config) if identity.identity(changed(config, key)) != mine}
    left_out = {key for key, _ in leaves(config)} - counted
    assert left_out == {
        "resume", "rerun", "logger._target_", "data.root", "data.cache", "data.workers", "trainer.accelerator",
        "trainer.strategy", "trainer.progress", "trainer.checkpoint_every_steps",
    }  # fmt: skip
    assert {"seed", "model.lr", "data.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.max_epochs",
            "trainer.max_steps", "trainer.precision", "samples", "init_from", "data.split.seed"} <= counted  # fmt: skip


def test_processes_count_by_their_number(config: dict[str, Any]) -> None:
    """data.batch_size is of one of them, so that the batch of a step is another."""

    def of(devices: int | str, nodes: int) -> str:
        trainer = config["trainer"] | {"devices": devices, "num_nodes": nodes, "strategy": "ddp"}
        return identity.identity(config | {"trainer": trainer})

    assert of(4, 1) == of(2, 2) != of(1, 1)
    assert of("auto", 1) == identity.identity(config)
    assert len({of("auto", 1), of("auto", 2), of(1, 1)}) == 3


def test_identity_is_of_the_logger_s_group_whole_and_of_the_version(
    config: dict[str, Any], compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = identity.identity(config)
    other = plain(compose("model=vqvae", "data=folder", "data.root=/else", "logger=wandb", "trainer=ddp"))
    assert identity.identity(other) == mine
    monkeypatch.setattr(identity, "__version__", "9.9")
    assert identity.identity(config) != mine


def test_identity_goes_with_the_files_and_not_with_their_place(config: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    (first / "s1").mkdir(parents=True)
    (first / "s1/T1.nii.gz").write_bytes(b"one")
    shutil.copytree(first, second)
    there, moved = (config | {"data": config["data"] | {"root": str(p)}} for p in (first, second))
    mine = identity.identity(there)
    assert mine != identity.identity(config)
    assert identity.identity(moved) == mine
    (second / ".DS_Store").touch()
    assert identity.identity(moved) == mine
    (second / "s1/T2.nii.gz").write_bytes(b"two")
    assert identity.identity(moved) != mine
    (second / "s1/T2.nii.gz").unlink()
    (second / "s1/T1.nii.gz").write_bytes(b"new")
    assert identity.identity(moved) != mine, "the same size, another time"
    with identity.files_remembered():
        mine = identity.identity(moved)
        (second / "s1/T3.nii.gz").write_bytes(b"three")
        assert identity.identity(moved) == mine, "looked through once"
    assert identity.identity(moved) != mine


def test_a_checkpoint_counts_by_its_content(config: dict[str, Any], tmp_path: Path) -> None:
    one, two, other = (tmp_path / n for n in ("one.ckpt", "two.ckpt", "other.ckpt"))
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    other.write_bytes(b"further")
    of = {p.stem: identity.identity(config | {"init_from": str(p)}) for p in (one, two, other)}
    assert of["one"] == of["two"] != of["other"]
    assert identity.parts(config | {"init_from": "a" * 9000 + "/x"})["init_from"].startswith("aaa")


def test_a_folder_says_where_its_run_stands(config: dict[str, Any], tmp_path: Path) -> None:
    def fail() -> None:
        assert notes.read(tmp_path).state == "running"  # type: ignore[union-attr]
        assert locks.is_held(tmp_path)
        with pytest.raises(UserError, match="another process is running this job now"), locks.held(tmp_path):
            pass
        raise ValueError("the loss")

    with pytest.raises(ValueError, match="the loss"), notes.noted(tmp_path, config):
        fail()
    failed = json.loads((tmp_path / identity.NOTE).read_text())
    assert (failed["state"], failed["error"]) == ("failed", "the loss")
    assert not locks.is_held(tmp_path)
    with pytest.raises(KeyboardInterrupt), notes.noted(tmp_path, config):
        raise KeyboardInterrupt
    assert notes.read(tmp_path).state == "stopped"  # type: ignore[union-attr]
    notes.note(tmp_path, config, "finished", value=0.5, data_hash="d")
    known = notes.read(tmp_path)
    assert known == notes.Known(tmp_path, identity.identity(config), "finished", 0.5)
    assert not known.goes_on


def without_locks(file: Any, how: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def quiet(folder: Path, seconds: float) -> None:
    """As if what the run writes had last changed so long ago."""
    for path in folder.iterdir():
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("why", ["no locks", "another machine"])
def test_where_no_lock_can_tell_what_changed_lately_is_alive(
    why: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if why == "no locks":
        monkeypatch.setattr(fcntl, "flock", without_locks)
    notes.note(tmp_path, config, "running")
    (tmp_path / locks.LOCK).touch()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert locks.is_held(tmp_path)
    assert "counts as running: it changed 0 s ago, noted by" in caplog.text
    quiet(tmp_path, locks.QUIET + 9)
    (tmp_path / ".hydra").mkdir()
    for name in (".hydra/job", "run.log"):
        (tmp_path / name).touch()  # by Hydra, as the job begins that asks
    assert not locks.is_held(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.png").touch()
    assert locks.is_held(tmp_path)
    notes.note(tmp_path, config, "failed")
    assert not locks.is_held(tmp_path)
    with locks.held(tmp_path):
        pass


def test_a_run_that_writes_nothing_for_long_gives_signs_of_life(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch may last hours; where there are no locks the time of the lock's file tells."""
    monkeypatch.setattr(fcntl, "flock", without_locks)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    notes.note(tmp_path, config, "running")
    with locks.held(tmp_path):
        quiet(tmp_path, locks.QUIET + 9)
        end = time.monotonic() + 20
        while not locks.is_held(tmp_path):
            assert time.monotonic() < end, "no sign of life"
            time.sleep(0.05)
    notes.note(tmp_path, config, "running")
    (tmp_path / locks.LOCK).touch()
    quiet(tmp_path, locks.QUIET + 9)
    time.sleep(0.3)
    assert not locks.is_held(tmp_path), "it ended with the run"


def test_a_job_that_slurm_queued_again_is_not_held_by_itself(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    notes.note(tmp_path, config, "running")
    (tmp_path / locks.LOCK).touch()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert locks.is_held(tmp_path), "another step of the same allocation"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not locks.is_held(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert locks.is_held(tmp_path)


def test_a_lock_of_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for it has the lock of a file that nobody else will ever see."""
    path, flock = tmp_path / locks.LOCK, fcntl.flock

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()  # as by who had it until now
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locks.held(tmp_path):
        assert locks.is_held(tmp_path)
        with pytest.raises(UserError, match="another process is running"), locks.held(tmp_path):
            pass
        assert locks.is_held(tmp_path), "who gave up took nothing away"
    assert not path.exists()


def test_waiting_jobs_run_one_after_the_other(tmp_path: Path) -> None:
    inside, most, done = [0], [0], [0]

    def job() -> None:
        with locks.held(tmp_path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.1)
            inside[0] -= 1
            done[0] += 1

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == ([1], [3])


def test_who_looks_does_not_keep_a_job_from_beginning(tmp_path: Path) -> None:
    path = tmp_path / locks.LOCK
    path.touch()
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not locks.is_held(tmp_path), "two who look do not meet"
        threading.Timer(0.3, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with locks.held(tmp_path):
            assert locks.is_held(tmp_path)


def test_a_resumed_run_keeps_what_it_started_from(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "w.ckpt").write_bytes(b"weights")
    begun = config | {"init_from": str(tmp_path / "w.ckpt")}
    notes.note(tmp_path, begun, "running")
    notes.note(tmp_path, config | {"resume": str(tmp_path)}, "finished")
    assert notes.read(tmp_path).identity == identity.identity(begun)  # type: ignore[union-attr]


def test_of_several_runs_of_a_job_the_finished_one_counts(config: dict[str, Any], tmp_path: Path) -> None:
    job = identity.identity(config)
    for name, state in (("0_killed", "running"), ("1_done", "finished"), ("2_failed", "failed")):
        (tmp_path / name).mkdir()
        notes.note(tmp_path / name, config, state)  # type: ignore[arg-type]
    assert notes.known([tmp_path, tmp_path / "missing"])[job].folder.name == "1_done"
    shutil.rmtree(tmp_path / "1_done")
    for name in ("last.ckpt", "config.yaml"):
        (tmp_path / "2_failed" / name).touch()
    assert notes.known([tmp_path])[job].folder.name == "2_failed"
    (tmp_path / "2_failed" / identity.NOTE).write_text("{")
    assert notes.known([tmp_path])[job].folder.name == "0_killed"


def test_what_a_run_left_goes_before_another_begins_there(config: dict[str, Any], tmp_path: Path) -> None:
    notes.note(tmp_path, config, "running")
    for name in ("best.ckpt", "last.ckpt", "metrics.csv", "my_notes.txt"):
        (tmp_path / name).touch()
    outputs.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["my_notes.txt"]


def test_needs_no_torch() -> None:
    code = "import sys, mri_synth.notes, mri_synth.launching, mri_synth.leaderboard.page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
