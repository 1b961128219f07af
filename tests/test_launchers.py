"""Many processes by the command line: Lightning's further ones, and the jobs of a sweep under every launcher."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mri_synth import relaunch
from mri_synth.callbacks.checkpoints import Interrupted, StopCleanly
from mri_synth.errors import UserError
from mri_synth.sweep import job_folder, name_by_swept

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.subjects=[4,2,2]", "data.size=32", "data.batch_size=8", "logger=csv", "trainer.max_epochs=2",
    "trainer.log_every_steps=1", "trainer.pictures=0", "trainer.progress=false", "model.hidden_channels=16",
    "model.codebook_dim=8",
]  # fmt: skip
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
sweeps = pytest.mark.skipif(
    not all(importlib.util.find_spec(f"hydra_plugins.hydra_{n}_launcher") for n in ("joblib", "submitit")),
    reason="needs pip install mri-synth[sweep]",
)


def start(*words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "mri_synth.run", *words], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def folders(sweep: Path) -> list[str]:
    return sorted(p.name for p in sweep.iterdir() if p.is_dir() and not p.name.startswith("."))


def finished(run: Path) -> bool:
    return json.loads((run / "results.json").read_text())["status"] == "finished"


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(w) for w in listing.stdout.split()]


def wait_for(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


@pytest.mark.slow
def test_sweep_of_two_process_runs_survives_a_failing_one(tmp_path: Path) -> None:
    """One folder per run, every row once; the first job's mistake is told once and stops neither process nor sweep."""
    words = ["-m", *SMALL, *DDP, "model.lr=1e30,1e-3", "model.warmup_steps=0", f"hydra.sweep.dir={tmp_path}"]
    status, output = finish(start(*words))
    assert status == 2, output
    assert folders(tmp_path) == ["0_model.lr-1e+30", "1_model.lr-0.001"]
    good = tmp_path / "1_model.lr-0.001"
    assert finished(good)
    assert json.loads((good / "results.json").read_text())["world_size"] == 2
    assert not finished(tmp_path / "0_model.lr-1e+30")
    counts = Counter((r["step"], r["name"]) for r in rows(good))
    assert set(counts.values()) == {1}
    assert counts[("0", "train/loss")] == 1
    assert output.count("job 0 failed: the loss was not finite") == 1
    assert output.count("the loss was not finite") == 2, "when it fails, and at the sweep's end"
    assert "Traceback" not in output
    assert not list(tmp_path.glob("*/train_ddp_process_*.log"))


@pytest.mark.slow
def test_killed_process_takes_the_other_with_it(tmp_path: Path) -> None:
    process = start(*SMALL, *DDP, "trainer.max_epochs=100000", f"hydra.run.dir={tmp_path / 'run'}")
    try:
        wait_for(lambda: (tmp_path / "run/metrics.csv").exists())
        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
        status, _ = finish(process, 60)
    finally:
        process.kill()
    assert status != 0


@sweeps
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit_local"])
def test_sweep_in_parallel_finishes_all_but_the_failing_job(launcher: str, tmp_path: Path) -> None:
    words = ["-m", *SMALL, "model.codebook_size=1,16,32", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}"]
    status, output = finish(start(*words))
    assert status == 2, output
    names = folders(tmp_path)
    assert names == ["1_model.codebook_size-16", "2_model.codebook_size-32"]
    assert all(finished(tmp_path / n) for n in names)
    configs = [json.loads((tmp_path / n / "results.json").read_text())["config"] for n in names]
    assert [c["model"]["codebook_size"] for c in configs] == [16, 32]
    assert "job 0 (" in output
    assert "model.codebook_size=1" in output
    assert "Traceback" not in output


@sweeps
@pytest.mark.slow
def test_preempted_job_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    """submitit's own signal: a checkpoint first, then its handler; the job comes back into the same folder."""
    words = ["-m", *SMALL, "trainer.max_epochs=40", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}"]
    process = start(*words)
    run = tmp_path / "0"
    try:
        wait_for(lambda: (run / "metrics.csv").exists() and len(rows(run)) > 30)
        (controller,) = children(process.pid)
        (job,) = children(controller)
        os.kill(job, signal.SIGUSR2)
        status, output = finish(process)
    finally:
        process.kill()
    log = "\n".join(p.read_text() for p in tmp_path.glob(".submitit/*/*_log.*"))
    assert status == 0, output + log
    assert "Requeued job" in log
    assert finished(run)
    counts = Counter((r["step"], r["name"]) for r in rows(run) if r["name"].startswith("train/"))
    assert set(counts.values()) == {1}, "it went on where it was"
    assert len({step for step, _ in counts}) == 40 * 5


@sweeps
def test_slurm_config_composes(compose) -> None:
    launcher = compose("hydra/launcher=slurm", "hydra.launcher.partition=gpu", return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.partition == "gpu"
    assert launcher.max_num_timeout > 0
    assert launcher.tasks_per_node == 1


@sweeps
def test_local_launcher_runs_two_jobs_at_a_time(compose) -> None:
    launcher = compose("hydra/launcher=local", return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("JoblibLauncher")
    assert launcher.n_jobs == 2


def test_folders_of_a_sweep_are_named_by_what_is_swept() -> None:
    words = ["-m", "data.root=/a/b", "model.codebook_size=64,128", "trainer=smoke", "seed=1,2"]
    assert name_by_swept(words)[1] == "hydra.job.config.override_dirname.exclude_keys=[data.root,trainer]"
    assert name_by_swept(words)[2:] == words[1:]
    assert name_by_swept(words[1:]) == words[1:]
    assert job_folder(3, "model.codebook_size-64_seed-1") == "3_model.codebook_size-64_seed-1"
    assert job_folder(0, "") == "0"
    assert job_folder(1, "data.root-/my/niftis_model.betas-[0.9,0.99]") == "1_data.root--my-niftis_model.betas-0.9-0.99"
    assert len(job_folder(1, "x" * 300)) == 100


def test_processes_from_outside_must_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes .*torchrun.*hydra.run.dir=outputs/NAME"):
        relaunch.shared_folder(Path("own"), given=False)
    assert relaunch.shared_folder(Path("own"), given=True) == Path("own")
    monkeypatch.setenv("MRI_SYNTH_RUN", "first")
    assert relaunch.shared_folder(Path("own"), given=False) == Path("first")


def test_a_job_leaves_nothing_behind_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    argv, spec = sys.argv, sys.modules["__main__"].__spec__
    with relaunch.relaunchable(tmp_path, ["seed=1"]):
        assert os.environ["MRI_SYNTH_RUN"] == str(tmp_path)
        assert sys.argv[1:] == ["seed=1"]
        assert sys.modules["__main__"].__spec__.name == "mri_synth.run"  # type: ignore[union-attr]
        os.environ["LOCAL_RANK"] = "0"  # as Lightning does
    assert "MRI_SYNTH_RUN" not in os.environ
    assert "LOCAL_RANK" not in os.environ
    assert sys.argv is argv
    assert sys.modules["__main__"].__spec__ is spec


def test_only_the_same_job_queued_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "last.ckpt").touch()
    assert not relaunch.goes_on(tmp_path), "not a job of submitit"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not relaunch.goes_on(tmp_path), "the first time"
    assert relaunch.goes_on(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not relaunch.goes_on(tmp_path), "another job in a folder used before"


class Saver:
    """Stands for Checkpoints."""

    folder = Path("run")
    saved = 0

    def save(self, trainer: object, name: str) -> None:
        self.saved += 1


class Steps:
    """Stands for a trainer in mid-epoch."""

    world_size, global_step, is_last_batch, current_epoch, accumulate_grad_batches = 1, 5, False, 0, 1


@pytest.mark.parametrize(("number", "ends"), [
    (signal.SIGUSR2, "requeued"), (signal.SIGTERM, ""), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "SIGINT"),
])  # fmt: skip
def test_signals_in_a_job_of_submitit(number: signal.Signals, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    saver, trainer = Saver(), Steps()

    def requeue(*_: object) -> None:
        assert saver.saved == 1
        raise SystemExit("requeued")

    before = signal.signal(signal.SIGUSR2, requeue)
    stop = StopCleanly(saver, 1)  # type: ignore[arg-type]
    try:
        stop.on_train_start(trainer, None)  # type: ignore[arg-type]
        os.kill(os.getpid(), number)
        if number == signal.SIGUSR2:
            os.kill(os.getpid(), signal.SIGTERM)  # Slurm sends both
        stop.on_train_batch_end(trainer, None, None, None, 4)  # type: ignore[arg-type]
        assert saver.saved == 1
        if ends:
            with pytest.raises((Interrupted, SystemExit), match=ends):
                stop.on_train_batch_start(trainer, None, None, 5)  # type: ignore[arg-type]
        else:
            stop.on_train_batch_start(trainer, None, None, 5)  # type: ignore[arg-type]
            stop.on_train_batch_end(trainer, None, None, None, 5)  # type: ignore[arg-type]
            assert saver.saved == 1, "once, and on it goes"
    finally:
        stop.teardown(trainer, None, "fit")  # type: ignore[arg-type]
        assert signal.signal(signal.SIGUSR2, before) is requeue
