"""One run in several processes: Lightning starts the command again for every further one, and Hydra must survive it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mri_synth import outputs
from mri_synth.errors import UserError

if TYPE_CHECKING:
    import lightning.pytorch as pl

_RUN = "MRI_SYNTH_RUN"
_OURS = (_RUN, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED",
         "PL_SEED_WORKERS")  # fmt: skip
_SECONDS = 5.0
"""How long a further process with an error of the user's waits for the first one to have it too, and to say it."""


def is_further_process() -> bool:
    """Whether this process was started beside another one of the same run (rank above 0 on its machine)."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def is_first_process() -> bool:
    """Whether this process is the first of its run, on all machines: it alone writes what the run says of itself."""
    names = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def shared_folder(own: Path, given: bool) -> Path:
    """The run's folder: the one of the process that started this one, else its own.

    Args:
        own: as Hydra made it for this process.
        given: the user named it, so that all processes have the same.

    Returns:
        The folder.

    Raises:
        UserError: torchrun or srun started several processes, and each would have a folder of its own.
    """
    if _RUN in os.environ:
        return Path(os.environ[_RUN])
    tasks = max(int(os.environ.get(n, 1)) for n in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    if tasks > 1 and not given:
        with suppress(FileNotFoundError):  # another process may be quicker
            outputs.discard_unused(own)
        raise UserError(f"{tasks} processes were started from outside (torchrun, srun) and must share one run folder: "
                        "add hydra.run.dir=outputs/NAME")  # fmt: skip
    return own


def goes_on(folder: Path) -> bool:
    """Whether this is a job of submitit that was preempted, queued again, and can go on from its checkpoint.

    Args:
        folder: of the run; the job's number is noted in it.

    Returns:
        True when the same job began in this folder before and left last.ckpt.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ or is_further_process():
        return False
    names = ("SUBMITIT_LOCAL_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID")
    job = "-".join(os.environ.get(n, "") for n in names)  # requeueing keeps them; a sweep started anew has others
    note = folder / ".hydra" / "job"
    before = note.read_text() if note.exists() else None
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(job)
    return before == job and (folder / "last.ckpt").is_file() and (folder / "config.yaml").is_file()


@contextmanager
def relaunchable(folder: Path, overrides: list[str]) -> Iterator[None]:
    """While this lasts, starting the program again does this very job in this very folder.

    Lightning repeats `__main__` with `sys.argv`: in a sweep that would be the whole sweep, under joblib, submitit or
    the console script another program. Afterwards everything is as before, so that the next job of a sweep begins
    afresh: Lightning leaves LOCAL_RANK behind, which would make it wait for processes that nobody starts.

    Args:
        folder: of the run.
        overrides: words that compose this job.

    Yields:
        Nothing.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    main = sys.modules["__main__"]
    argv, spec, before = sys.argv, main.__spec__, {name: os.environ.get(name) for name in _OURS}
    words = list(overrides)
    if HydraConfig.initialized():
        hydra_cfg: Any = HydraConfig.instance().cfg
        sources = hydra_cfg.hydra.runtime.config_sources
        words += [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
        OmegaConf.set_readonly(hydra_cfg.hydra, False)
        hydra_cfg.hydra.run.dir = str(folder)
        OmegaConf.set_readonly(hydra_cfg.hydra, True)
    os.environ[_RUN] = str(folder)
    try:
        sys.argv = [str(Path(__file__).with_name("run.py")), *words]
        main.__spec__ = importlib.util.find_spec("mri_synth.run")
        yield
    finally:
        sys.argv, main.__spec__ = argv, spec
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def ended_together(trainer: pl.Trainer) -> Iterator[None]:
    """The processes that the trainer started end with this one, and their connection too.

    Lightning kills this process when one of them fails (else it might wait for ever in a collective); when this one
    fails first, that must not happen: its message would be lost, and in a sweep the jobs to come.

    Args:
        trainer: of the run.

    Yields:
        Nothing.
    """
    import torch.distributed as dist

    failed = True
    try:
        yield
        failed = False
    finally:
        children: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
        mine = children[:]
        children.clear()  # Lightning's observer holds this very list
        for child in mine:
            if failed:
                child.kill()
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
        if (mine or not failed) and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()  # else a process may abort at its exit, and a sweep's next job find this
        for empty in Path(trainer.default_root_dir).glob("train_ddp_process_*.log"):
            if not empty.stat().st_size:
                empty.unlink()


def let_first_process_speak() -> None:
    """Wait before saying what went wrong: the first process mostly knows, says it, and ends this one."""
    if is_further_process():
        time.sleep(_SECONDS)


def hush() -> None:
    """What all processes know, only the first one logs."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its news of every checkpoint hides ours
    if is_further_process():
        logging.getLogger().setLevel(logging.ERROR)
