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

from mri_synth import identity, launching, locks, notes, relaunch
from mri_synth.callbacks import loggers
from mri_synth.callbacks.checkpoints import Interrupted, StopCleanly
from mri_synth.composer import plain
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


def start(*words: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "mri_synth.run", *words], cwd=cwd, env=environment, text=True,
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


@pytest.mark.slow
def test_repeated_sweep_skips_what_is_finished_and_names_what_fails(tmp_path: Path) -> None:
    """In a sweep folder of its own, with another logger and on a named device; the table has all jobs."""
    words = ["-m", *SMALL, "model.codebook_size=16,1,32"]
    status, output = finish(start(*words, cwd=tmp_path))
    assert status == 2, output
    (first,) = (tmp_path / "outputs/sweeps").iterdir()
    assert folders(first) == ["0_model.codebook_size-16", "2_model.codebook_size-32"]
    assert output.rstrip().endswith("model.codebook_size=1: allowed: a whole number of at least 2")
    assert "1 job of the sweep failed" in output
    kept = {p: p.stat().st_mtime_ns for p in first.glob("*/results.json")}
    status, output = finish(start(*words, "trainer.accelerator=cpu", "data.workers=0", cwd=tmp_path))
    assert status == 2, output
    assert output.count(" is finished: outputs/sweeps/") == 2
    assert "1 of 3 jobs are left" in output
    assert "1 job of the sweep failed" in output
    assert {p: p.stat().st_mtime_ns for p in first.glob("*/results.json")} == kept
    second = max((tmp_path / "outputs/sweeps").iterdir())
    assert second != first
    assert folders(second) == []
    table = list(csv.DictReader((second / "table.csv").open()))
    assert [(r["model.codebook_size"], bool(r["error"])) for r in table] == [("16", False), ("1", True), ("32", False)]
    assert f"../{first.name}/0_model.codebook_size-16/report.html" in (second / "table.html").read_text()


@pytest.mark.slow
def test_a_search_can_be_checked(tmp_path: Path) -> None:
    """It has no metric then, and so no best trial: no reason for a traceback. Mistakes end it as ever."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["experiment=vae_tuning", "task=check", "hydra.sweeper.n_trials=2"]
    status, output = finish(start(*words, cwd=tmp_path))
    assert status == 0, output
    assert output.count("the configuration is right: model=vae data=phantom") == 2
    assert "Traceback" not in output
    assert "Failed experiment" not in output
    status, output = finish(start(*words, "model.prior=other", cwd=tmp_path))
    assert status == 2, output
    assert "2 jobs of the sweep failed" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_killed_job_goes_on_when_the_sweep_is_repeated(tmp_path: Path) -> None:
    words = ["-m", *SMALL, "trainer.max_epochs=12", "trainer.checkpoint_every_steps=3", "seed=1,2"]
    process = start(*words, cwd=tmp_path)
    try:
        wait_for(lambda: any(len(rows(p.parent)) > 60 for p in tmp_path.rglob("0_seed-1/metrics.csv")))
    finally:
        process.kill()
        process.wait()
    (first,) = (tmp_path / "outputs/sweeps").iterdir()
    run = first / "0_seed-1"
    assert json.loads((run / "identity.json").read_text())["state"] == "running"
    before = (run / ".hydra/overrides.yaml").read_text()
    status, output = finish(start(*words, "data.workers=1", cwd=tmp_path))
    assert status == 0, output
    assert output.count(" goes on: outputs/sweeps/") == 1
    assert "workers: 1" in (run / "config.yaml").read_text(), "as typed now"
    assert finished(run)
    assert json.loads((run / "results.json").read_text())["resumed"]
    assert (run / ".hydra/overrides.yaml").read_text() == f"{before}- data.workers=1\n"
    counts = Counter(r["step"] for r in rows(run) if r["name"] == "train/loss")
    assert set(counts.values()) == {1}
    assert len(counts) == 12 * 5
    second = max((tmp_path / "outputs/sweeps").iterdir())
    assert folders(second) == ["1_seed-2"]
    status, output = finish(start(*words, cwd=tmp_path))
    assert (status, output.count(" is finished: ")) == (0, 2)
    status, output = finish(start(*words, "rerun=true", f"hydra.sweep.dir={second}", cwd=tmp_path))
    assert status == 0, output
    assert folders(second) == ["0_seed-1", "1_seed-2"]
    counts = Counter(r["step"] for r in rows(second / "1_seed-2") if r["name"] == "train/loss")
    assert set(counts.values()) == {1}, "what lay there of the run before is gone"


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
def test_job_of_submitit_that_is_killed_for_good_leaves_the_others_alone(tmp_path: Path) -> None:
    words = ["-m", *SMALL, "trainer.max_epochs=40", "seed=1,2", "hydra/launcher=submitit_local"]
    process = start(*words, f"hydra.sweep.dir={tmp_path}")
    try:
        wait_for(lambda: len(children(process.pid)) == 2 and all(children(c) for c in children(process.pid)))
        wait_for(lambda: (tmp_path / "0_seed-1/identity.json").exists())
        (job,) = children(min(children(process.pid)))
        os.kill(job, signal.SIGKILL)
        status, output = finish(process)
    finally:
        process.kill()
    assert status == 2, output
    assert finished(tmp_path / "1_seed-2")
    assert "1 job of the sweep failed" in output
    assert "job 0 (" in output.rpartition("1 job of the sweep failed")[2]


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


def test_jobs_of_a_sweep_are_a_group_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[str | None] = []
    monkeypatch.setattr(loggers, "WandbLogger", lambda **arguments: groups.append(arguments["group"]))
    loggers.wandb_logger(tmp_path / "outputs/sweeps/now/0_seed-1", mode="offline")
    loggers.wandb_logger(tmp_path / "outputs/sweeps/now/0_seed-1", group="mine", mode="offline")
    loggers.wandb_logger(tmp_path / "outputs/run", mode="offline")
    (tmp_path / "multirun.yaml").touch()
    loggers.wandb_logger(tmp_path / "0_seed-1", mode="offline")
    assert groups == ["now", "mine", None, tmp_path.name]


def test_a_job_that_waited_finds_what_was_done_meanwhile(
    compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg, other, mine = compose(*SMALL), tmp_path / "outputs/other", tmp_path / "sweep/0"
    other.mkdir(parents=True)
    mine.mkdir(parents=True)
    assert launching.begins(cfg, mine) is None
    values = plain(cfg)
    with locks.held(other):
        notes.note(other, values, "running")
        with pytest.raises(UserError, match="outputs/other: another process is running this job now"):
            launching.begins(cfg, mine)
    notes.note(mine, values, "running")
    for name in ("last.ckpt", "config.yaml"):
        (mine / name).touch()
    assert launching.begins(cfg, mine).folder == mine  # type: ignore[union-attr]
    notes.note(other, values, "finished", value=0.5)
    assert launching.begins(cfg, mine).value == 0.5  # type: ignore[union-attr]
    cfg.rerun = True
    assert launching.begins(cfg, mine) is None
    assert list(mine.iterdir()) == [], "cleared, to begin anew"


def test_a_job_that_goes_on_does_so_where_it_is_told_now() -> None:
    words = ["model=vqvae", "seed=1", "data.root=/new", "+data.workers=2", "trainer.accelerator=cpu", "logger=csv",
             "trainer.devices=2", "resume=outputs/x", "rerun=false", "trainer.max_epochs=3"]  # fmt: skip
    assert identity.placing(words) == ["data.root=/new", "+data.workers=2", "trainer.accelerator=cpu",
                                       "trainer.devices=2"]  # fmt: skip


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
    saved = published = 0

    def save(self, trainer: object, name: str, wait: bool = False) -> None:
        self.saved += 1
        self.published += not wait

    def publish(self, trainer: object) -> None:
        self.published = self.saved


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
        assert saver.saved == saver.published == 1
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
