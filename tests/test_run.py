"""A run from end to end: exact resume, clean stop, non-finite loss, init_from, task=test and plan, W&B offline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mri_synth.callbacks.checkpoints import Checkpoints, Interrupted, StopCleanly, random_state, set_random_state
from mri_synth.callbacks.loggers import TidyCSV, run_id
from mri_synth.callbacks.sentinels import NonFinite
from mri_synth.errors import UserError
from mri_synth.fit import _last_validation
from mri_synth.run import run

SMALL = ["logger=csv", "data.subjects=[4,2,2]", "data.size=32", "data.batch_size=8", "model.hidden_channels=8",
         "model.codebook_size=16", "model.codebook_dim=8", "model.res_blocks=1", "model.warmup_steps=3",
         "model.codebook_warmup=2", "data.augment.flip=0.5", "data.augment.gain=0.2", "trainer.progress=false",
         "trainer.pictures=2", "trainer.log_every_steps=1", "trainer.max_epochs=3"]  # fmt: skip
STEPS = 15  # 4 subjects x 10 slices / 8, 3 epochs


class Killed(BaseException):
    """As sudden as kill -9: no hook of ours runs on it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("whole")
    run(compose(*SMALL, "trainer.checkpoint_every_steps=2"), folder, SMALL)
    return folder


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["state_dict"]


def rows(folder: Path) -> list[str]:
    return [x for x in (folder / "metrics.csv").read_text().splitlines() if "images_per_second" not in x]


def kill_at(monkeypatch, step: int) -> None:
    before = NonFinite.on_train_batch_end

    def hook(self, trainer, *args):
        before(self, trainer, *args)
        if trainer.global_step == step:
            raise Killed

    monkeypatch.setattr(NonFinite, "on_train_batch_end", hook)


# steps: in mid-epoch between and on checkpoints (2), right after an epoch's last batch (5), after its validation (6)
@pytest.mark.parametrize("step, every", [(8, 3), (6, 1000), (11, 4), pytest.param(13, 2, marks=pytest.mark.slow)])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    whole, tmp_path, compose, monkeypatch, step, every
):
    cfg = compose(*SMALL, f"trainer.checkpoint_every_steps={every}")
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run(cfg, tmp_path, SMALL)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] < STEPS
    run(compose(f"resume={tmp_path}"), tmp_path, [f"resume={tmp_path}"])
    for name in ("last.ckpt", "best.ckpt"):
        a, b = weights(whole, name), weights(tmp_path, name)
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert rows(tmp_path) == rows(whole)
    assert len(list((tmp_path / "pictures").glob("epoch_*"))) == 4


def test_a_run_killed_between_a_checkpoint_and_the_rows_of_its_step_loses_none(whole, tmp_path, compose, monkeypatch):
    """Lightning logs a batch after its last hook, in which the checkpoint is written: it counts from then on only."""
    before = TidyCSV.log_metrics

    def hook(self, metrics, step=None):
        if step == 7 and "train/loss" in metrics:  # the checkpoint of step 8 is written
            raise Killed
        before(self, metrics, step)

    with monkeypatch.context() as patch:
        patch.setattr(TidyCSV, "log_metrics", hook)
        with pytest.raises(Killed):
            run(compose(*SMALL, "trainer.checkpoint_every_steps=2"), tmp_path, SMALL)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    run(compose(f"resume={tmp_path}"), tmp_path, [f"resume={tmp_path}"])
    assert rows(tmp_path) == rows(whole)


def test_resume_continues_a_finished_run_for_more_epochs(tmp_path, compose):
    short = [*SMALL, "model.lr_final=1", "trainer.max_epochs=2"]
    run(compose(*short), tmp_path / "a", short)
    words = [f"resume={tmp_path / 'a'}", "trainer.max_epochs=3"]
    run(compose(*words), tmp_path / "a", words)
    long = [*SMALL, "model.lr_final=1"]
    run(compose(*long), tmp_path / "b", long)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resume_refuses_another_model_or_data_set(whole, compose):
    with pytest.raises(UserError, match="data=ixi: a resumed run keeps its own"):
        run(compose(f"resume={whole}", "data=ixi"), whole, [f"resume={whole}", "data=ixi"])


def test_resume_names_what_is_missing(tmp_path, compose):
    with pytest.raises(UserError, match="not a run folder"):
        run(compose(f"resume={tmp_path}"), tmp_path, [])
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="before its first checkpoint; start it anew"):
        run(compose(f"resume={tmp_path}"), tmp_path, [])


def test_a_run_that_is_over_leaves_signals_as_they_were(tmp_path, compose):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    run(compose(*SMALL, "trainer.max_steps=2"), tmp_path, SMALL)
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_checkpoint_is_never_half_written(tmp_path, compose, monkeypatch):
    def full(self, path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    class FakeTrainer:
        is_global_zero = True
        save_checkpoint = full

    (tmp_path / "last.ckpt").write_bytes(b"good")
    with pytest.raises(UserError, match=r"No space left.*the checkpoint before it is untouched"):
        Checkpoints(tmp_path, ("val/loss", "min"), 1, None).save(FakeTrainer(), "last.ckpt")  # type: ignore[arg-type]
    assert (tmp_path / "last.ckpt").read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_two_steps_with_a_checkpoint(whole, tmp_path, compose, monkeypatch, number):
    before = NonFinite.on_train_batch_end

    def hook(self, trainer, *args):
        before(self, trainer, *args)
        if trainer.global_step == 7:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(NonFinite, "on_train_batch_end", hook)
        with pytest.raises(Interrupted, match=rf"stopped by {number.name}.*resume={tmp_path}"):
            run(compose(*SMALL), tmp_path, SMALL)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7
    assert signal.getsignal(number) is handler
    run(compose(f"resume={tmp_path}"), tmp_path, [f"resume={tmp_path}"])
    a, b = weights(whole), weights(tmp_path)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_second_signal_does_not_wait():
    stop = StopCleanly(None, 1)  # type: ignore[arg-type]
    stop._ask(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._ask(signal.SIGINT, None)


def test_a_non_finite_loss_stops_with_its_batch_saved_and_good_weights_kept(tmp_path, compose, monkeypatch):
    from mri_synth.models.vqvae import VQVAE

    losses = VQVAE.losses

    def spoiled(self, batch):
        out = losses(self, batch)
        if self.training and self.global_step == 8:
            out["loss"] = out["loss"] * float("nan")
        return out

    monkeypatch.setattr(VQVAE, "losses", spoiled)
    overrides = [*SMALL, "trainer.log_every_steps=4", "trainer.checkpoint_every_steps=3"]
    with pytest.raises(UserError, match=r"not finite at step 9 \(epoch 1\).*lower model.lr") as caught:
        run(compose(*overrides), tmp_path, overrides)
    saved = torch.load(tmp_path / "nonfinite_batch.pt", weights_only=True)
    assert str(tmp_path / "nonfinite_batch.pt") in str(caught.value)
    assert saved["step"] == 9
    assert saved["image"].shape == (8, 1, 32, 32)
    assert len(saved["subject"]) == 8
    assert all(torch.isfinite(v).all() for v in weights(tmp_path).values() if v.is_floating_point())


def test_task_test_scores_a_checkpoint_again_with_the_same_figures(whole, tmp_path, compose):
    overrides = [*SMALL, "task=test", f"ckpt={whole / 'best.ckpt'}"]
    value = run(compose(*overrides), tmp_path, overrides)
    old, new = (json.loads((f / "results.json").read_text()) for f in (whole, tmp_path))
    assert value == pytest.approx(old["metrics"]["test/ssim"])
    assert new["metrics"]["test/ssim"] == pytest.approx(old["metrics"]["test/ssim"])
    assert new["split_hash"] == old["split_hash"]


def test_init_from_starts_at_the_weights_of_another_run(whole, tmp_path, compose):
    overrides = [*SMALL, f"init_from={whole / 'best.ckpt'}", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
                 "model.lr=1e-12", "model.decay=0.99999"]  # fmt: skip
    run(compose(*overrides), tmp_path, overrides)
    a, b = weights(whole, "best.ckpt"), weights(tmp_path)
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a if k.startswith(("encoder", "decoder")))
    with pytest.raises(UserError, match="codebook_size=16 there, 32 here"):
        run(compose(*overrides, "model.codebook_size=32", "rerun=true"), tmp_path, overrides)


def test_results_say_what_was_run_and_how_well(whole):
    results = json.loads((whole / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["simulated"] is True
    detail = results["details"]["test/ssim"]
    assert detail["ci"] is None, "no interval from two subjects"
    assert detail["n_subjects"] == 2
    assert detail["n_slices"] == 20
    assert "data range 1" in detail["protocol"]
    assert detail["mean"] == pytest.approx(results["metrics"]["test/ssim"])
    assert results["references"]["ceiling/ssim"] > results["references"]["baseline/ssim"]
    for key in ("seconds", "images_per_second", "peak_memory_bytes", "split_hash", "data_hash", "versions", "command"):
        assert results[key], key


def test_val_ssim_and_ssim_10_stand_in_the_csv_every_epoch(whole):
    names = [x.split(",")[2] for x in rows(whole)]
    assert names.count("val/ssim") == names.count("val/ssim_10") == 3


def test_seed_zero_is_a_seed(whole, tmp_path, compose):
    run(compose(*SMALL, "seed=0"), tmp_path / "again", SMALL)
    a, b = weights(whole), weights(tmp_path / "again")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_random_state_goes_round():
    state = random_state()
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)


def test_the_csv_forgets_what_comes_again_and_a_torn_last_line(tmp_path):
    log = TidyCSV(tmp_path / "metrics.csv")
    for step in range(4):
        log.log_metrics({"train/loss": float(step), "epoch": 0}, step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0,train/l")
    log.forget_after(2)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,epoch,name,value", "0,0,train/loss,0.0",
                                                              "1,0,train/loss,1.0"]  # fmt: skip


def test_run_ids_are_stable_and_plain():
    assert run_id(Path("/x/outputs/sweeps/2026/0_seed-1")).startswith("sweeps-2026-0_seed-1-")
    assert run_id(Path("/x/outputs/run=1")) == run_id(Path("/x/outputs/run=1"))
    assert run_id(Path("/x/outputs/run1")) != run_id(Path("/y/outputs/run1"))


@pytest.mark.slow
def test_plan_prints_what_a_run_takes_and_keeps_nothing(tmp_path, compose, capsys):
    assert run(compose(*SMALL, "task=plan"), tmp_path / "plan", SMALL) is None
    text = capsys.readouterr().out
    for word in ("parameters", "seconds per batch", "hours", "40 / 20 / 20", "8 x 1 x 32 x 32"):
        assert word in text
    assert not (tmp_path / "plan").exists()


def leveldb_records(content: bytes):
    """Records of a LevelDB log (32 KiB blocks; header: CRC, length, type), after W&B's 7-byte file header."""
    position, parts = 7, []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0:  # the rest of a block may be zeros
            position += left
            continue
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield b"".join(parts)
            parts = []


def read_wandb(file: Path) -> tuple[set[str], dict[str, str], str]:
    """Logged keys, configuration (as JSON) and run id of what has been written so far."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    keys, configuration, identity = set(), {}, ""
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:  # its end is not yet written
            break
        keys |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        for item in (*record.config.update, *record.run.config.update):
            configuration[item.key or item.nested_key[0]] = item.value_json
        if record.HasField("run"):
            identity = record.run.run_id
    return keys, configuration, identity


@pytest.mark.slow
def test_an_offline_wandb_run_read_back_from_its_file(tmp_path, compose, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    overrides = [*(w for w in SMALL if w != "logger=csv"), "trainer.max_epochs=2"]
    run(compose(*overrides), tmp_path, overrides)
    (file,) = tmp_path.rglob("*.wandb")
    keys, configuration, identity = read_wandb(file)
    for _ in range(20):  # W&B's service may still be writing when the run has ended
        if "test/ssim" in keys:
            break
        time.sleep(0.5)
        keys, configuration, identity = read_wandb(file)
    assert {"train/loss", "val/ssim", "val/ssim_10", "test/ssim"} <= keys
    assert any(key.startswith("image/validation") for key in keys)
    assert json.loads(configuration["split_hash"])
    assert json.loads(configuration["config"])["model"]["codebook_size"] == 16
    assert identity == run_id(tmp_path)
    assert list(tmp_path.rglob("media/images/image/*.png"))


def test_resume_is_exact_with_accumulated_gradients_too(tmp_path, compose, monkeypatch):
    words = [*SMALL, "trainer.accumulate=3", "trainer.checkpoint_every_steps=1", "data.batch_size=4"]
    run(compose(*words), tmp_path / "a", words)
    with monkeypatch.context() as patch:
        patch.setattr(NonFinite, "on_train_batch_end", _kill_at_batch(16))
        with pytest.raises(Killed):
            run(compose(*words), tmp_path / "b", words)
    run(compose(f"resume={tmp_path / 'b'}"), tmp_path / "b", [f"resume={tmp_path / 'b'}"])
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def _kill_at_batch(batch: int):
    before = NonFinite.on_train_batch_end

    def hook(self, *args):
        before(self, *args)
        if self.seen == batch:
            raise Killed

    return hook


def test_a_run_that_reached_its_last_step_trains_no_further_when_resumed(tmp_path, compose):
    words = [*SMALL, "trainer.max_steps=7"]
    run(compose(*words), tmp_path, words)
    before = weights(tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7
    run(compose(f"resume={tmp_path}"), tmp_path, [f"resume={tmp_path}"])
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path).items())


def test_no_false_alarm_about_the_data_after_a_fit(tmp_path, compose, caplog):
    words = [*SMALL, "trainer.max_epochs=1"]
    run(compose(*words), tmp_path / "a", words)
    assert "prepared otherwise" not in caplog.text
    words = [*words, "task=test", f"ckpt={tmp_path / 'a/best.ckpt'}", "data.size=64"]
    run(compose(*words), tmp_path / "b", words)
    assert "trained on data prepared otherwise: size" in caplog.text


def test_a_short_training_is_not_all_warm_up(tmp_path, compose):
    words = [*SMALL, "model.codebook_warmup=1000", "trainer.max_epochs=2"]
    run(compose(*words), tmp_path, words)
    assert weights(tmp_path, "best.ckpt")["quantizer.initialised"]


def test_check_names_what_model_data_and_machine_cannot_do(compose):
    from mri_synth.config import check
    from mri_synth.errors import ConfigError

    with pytest.raises(ConfigError, match=r"1/16, and data.size=100 is no multiple of that; try data.size=96"):
        check(compose("data.size=100", "model.downsample=16"))
    with pytest.raises(ConfigError, match=r"model.betas=\[2,0.9\]"):
        check(compose("model.betas=[2,0.9]"))
    if not torch.cuda.is_available():
        from mri_synth.trainer import require_device

        with pytest.raises(UserError, match="finds no such device here; say trainer=cpu"):
            require_device("gpu")


def test_a_checkpoint_that_saw_the_test_data_is_named(tmp_path, compose, caplog):
    base = [*SMALL, "data.preset=custom", "trainer.max_epochs=1"]
    run(compose(*base), tmp_path / "a", base)  # subjects 0 to 3 train, 4 and 5 val, 6 and 7 test
    again = [*base, "task=test", f"ckpt={tmp_path / 'a/best.ckpt'}"]
    run(compose(*again), tmp_path / "b", again)
    assert json.loads((tmp_path / "b/results.json").read_text())["warnings"] == []
    again += ["data.subjects=[1,1,2]"]  # 2 and 3 are tested now
    run(compose(*again), tmp_path / "c", again)
    (said,) = json.loads((tmp_path / "c/results.json").read_text())["warnings"]
    assert said.startswith("2 of 2 test files were training files of this checkpoint")
    assert said in caplog.text


def test_resume_keeps_its_data(whole, compose):
    with pytest.raises(UserError, match=r"data.split.seed=7: a resumed run keeps its data"):
        run(compose(f"resume={whole}"), whole, [f"resume={whole}", "data.split.seed=7"])


@pytest.mark.slow
def test_a_key_without_a_network_goes_on_offline(tmp_path, monkeypatch, caplog):
    import wandb

    from mri_synth.callbacks.loggers import wandb_logger

    def refuse(*args, **kwargs):
        if kwargs.get("mode") != "offline":
            raise wandb.errors.CommError("no route to host")
        return "offline run"

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", refuse)
    (logger,) = wandb_logger(tmp_path)
    assert logger._offline
    assert "going on offline" in caplog.text


HALF = """
import os, sys
import lightning.pytorch as pl

def half(self, path, *args, **kwargs):
    if self.global_step >= 7:
        with open(path, "wb") as file:
            file.write(b"half a checkpoint")
            file.flush()
            os.fsync(file.fileno())
        os.kill(os.getpid(), 9)
    return whole(self, path, *args, **kwargs)

whole, pl.Trainer.save_checkpoint = pl.Trainer.save_checkpoint, half
from mri_synth.run import main
main()
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_checkpoint_leaves_the_one_before(whole, tmp_path, compose):
    words = [*SMALL, "trainer.checkpoint_every_steps=3", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", HALF, *words], capture_output=True, cwd=Path(__file__).parents[1])
    folder = tmp_path / "run"
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (folder / ".last.ckpt.partial").read_bytes() == b"half a checkpoint"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6
    run(compose(f"resume={folder}"), folder, [f"resume={folder}"])
    a, b = weights(whole), weights(folder)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list(folder.glob(".*.partial"))


def test_a_finished_run_is_not_overwritten_and_a_held_one_not_taken_away(tmp_path, compose):
    """The same folder twice: refused, and all is as it was; while another process is in it, a check leaves it there."""
    from mri_synth import locks

    words = ["trainer=smoke", "logger=csv", "data.subjects=[3,2,2]", "data.size=16", "trainer.progress=false"]
    run(compose(*words), tmp_path / "run", words)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds a finished run; give another hydra"):
        run(compose(*words), tmp_path / "run", words)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "held").mkdir()
    with locks.held(tmp_path / "held"):
        run(compose("task=check"), tmp_path / "held", [])
        assert (tmp_path / "held").is_dir()
    run(compose("task=check"), tmp_path / "held", [])
    assert not (tmp_path / "held").exists()


def test_a_run_killed_before_its_test_keeps_the_values_of_its_validation(whole, tmp_path, compose):
    """Nothing is left to train: what the report says of validation comes from the curves."""
    shutil.copytree(whole, tmp_path / "run")
    before = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    words = [f"resume={tmp_path / 'run'}"]
    run(compose(*words), tmp_path / "run", words)
    after = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    assert {k for k in before if k.startswith("val/")} <= set(after)
    assert after["val/ssim"] == pytest.approx(before["val/ssim"], abs=1e-6)


def test_what_was_logged_once_is_known_after_an_interruption(tmp_path):
    """The real images' value stands in the first epoch alone; a judgement counts in its epoch."""
    rows = [
        "2,0,val/ms_ssim_real,0.6",
        "2,0,val/kid,0.5",
        "2,0,val/loss,3",
        "2,0,train/loss,9",
        "4,1,val/loss,2",
        "4,1,va",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,epoch,name,value", *rows]))
    assert _last_validation(tmp_path / "metrics.csv") == {"val/ms_ssim_real": 0.6, "val/loss": 2}
    (tmp_path / "metrics.csv").write_text("\n".join(["step,epoch,name,value", *rows[:3]]))
    assert _last_validation(tmp_path / "metrics.csv") == {"val/ms_ssim_real": 0.6, "val/kid": 0.5, "val/loss": 3}
    assert _last_validation(tmp_path / "none.csv") == {}
