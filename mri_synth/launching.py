"""A sweep launches what is left of it: what is finished is passed over, what was killed goes on, failures are named.

Hydra takes launchers and sweepers only of packages called `hydra_plugins`, and each launcher would need one of its own;
so while a sweep lasts, whatever launcher is chosen is wrapped. Torch is not imported: nothing is decided by more than
the configuration and the notes in the run folders.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mri_synth import identity, locks, notes, table
from mri_synth.composer import Composer, plain
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

OUTPUTS = Path("outputs")
# of a trial that is only checked or planned Optuna's sweeper says that it failed, since it gives no metric
_OPTUNA = logging.getLogger("hydra_plugins.hydra_optuna_sweeper._impl")
_OPTUNA.addFilter(lambda said: "Got 'None'" not in said.getMessage())


@dataclass
class Sweep:
    """What came of a sweep's jobs.

    Attributes:
        failed: one entry per job that failed: its number and words, and why.
        unmeasured: whether a job was one of task=check or plan, without a metric: a search has no best one then.
    """

    failed: list[str] = field(default_factory=list)
    unmeasured: bool = False

    def said(self) -> str:
        """The message of the jobs that failed."""
        count = len(self.failed)
        return "\n".join([f"{count} job{'s' if count > 1 else ''} of the sweep failed; the same command again passes "
                          "over those that are finished:", *self.failed])  # fmt: skip


@contextmanager
def idempotent(sweep: Sweep) -> Iterator[None]:
    """While this lasts, every launcher of Hydra launches only what is not finished.

    Args:
        sweep: is told what comes of the jobs.

    Yields:
        Nothing.
    """
    make = Plugins.instantiate_launcher
    launchers: list[Idempotent] = []

    def instantiate(plugins: Plugins, hydra_context: HydraContext, task_function: TaskFunction,
                    config: DictConfig) -> Launcher:  # fmt: skip
        inner = make(plugins, hydra_context, task_function, config)
        launchers.append(Idempotent(inner, hydra_context, config, sweep))
        return launchers[-1]

    # the wrapper composes every job, as the sweeper would once more to see whether it can
    with (
        _replaced(Plugins, "instantiate_launcher", instantiate),
        _replaced(Sweeper, "validate_batch_is_legal", lambda self, batch: None),
    ):
        try:
            yield
        except Exception:
            for launcher in launchers:  # a sweeper that gave up; Hydra's callbacks would not hear of the end
                launcher.context.callbacks.on_multirun_end(config=launcher.config, config_name=None)
            raise


class Idempotent(Launcher):
    """Another launcher, which gets the jobs that are left.

    Args:
        inner: what launches them.
        context: of Hydra.
        config: of the sweep.
        sweep: is told what comes of the jobs.
    """

    def __init__(self, inner: Launcher, context: HydraContext, config: DictConfig, sweep: Sweep) -> None:
        self.inner, self.context, self.config, self.sweep = inner, context, config, sweep
        self.composer = Composer(context.config_loader, config)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Done with the inner one."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch what is left.

        Args:
            job_overrides: words of each job.
            initial_job_idx: number of the first.

        Returns:
            What came of each, in their order. To a grid a job that failed has ended, or its sweeper would leave out
            the batches to come; a search counts its failures itself.
        """
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "multirun.yaml").exists():  # a sweep is known by it; Optuna leaves none
            OmegaConf.save(self.config, folder / "multirun.yaml")
        known = notes.known([OUTPUTS, folder])
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        with identity.files_remembered():
            jobs = [self._decided(n, list(w), folder, known) for n, w in zip(numbers, job_overrides, strict=True)]
        left = [i for i, job in enumerate(jobs) if not isinstance(job, JobReturn)]
        if len(left) < len(jobs):
            log.info("%d of %d jobs are left", len(left), len(jobs))
        if left:
            with _each_for_itself() if "submitit" in type(self.inner).__module__ else nullcontext():
                returns = self.inner.launch([jobs[i] for i in left], initial_job_idx)
            for i, returned in zip(left, returns, strict=True):
                jobs[i] = returned
        return [self._ended(n, list(w), job) for n, w, job in zip(numbers, job_overrides, jobs, strict=True)]

    def _decided(self, number: int, words: list[str], sweep: Path, known: dict[str, notes.Known]) -> Any:
        """What came of a job already, or the words to launch it by."""
        said = " ".join(filter_overrides(words))
        values = self.composer.values(words)
        if values is None or values["task"] != "fit" or values["resume"]:
            return [*words, _subdir(self.composer.subdir(number, words))]
        job = identity.identity(values)
        if not values["rerun"]:
            run = known.get(job)
            if run is not None and run.state == "finished":
                log.info("job %d (%s) is finished: %s", number, said, os.path.relpath(run.folder))
                table.note_elsewhere(sweep, number, words, run.folder)
                return JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=run.value)
            if run is not None and locks.is_held(run.folder):
                error = UserError(f"{os.path.relpath(run.folder)}: another process is running this job now")
                return JobReturn(overrides=words, status=JobStatus.FAILED, _return_value=error)
            if run is not None and run.goes_on:
                log.info("job %d (%s) goes on: %s", number, said, os.path.relpath(run.folder))
                table.note_elsewhere(sweep, number, words, run.folder)
                return [*words, _subdir(run.folder)]
        subdir = self.composer.subdir(number, words)
        before = notes.read(sweep / subdir)
        if before is not None and before.identity != job:  # another job's, perhaps of days
            subdir = Path(f"{subdir}_{job[:6]}")
        return [*words, _subdir(subdir)]

    def _ended(self, number: int, words: list[str], job: JobReturn) -> JobReturn:
        """Note a job that failed, with its number and words."""
        if job.status != JobStatus.FAILED:
            looked = job.cfg is not None and job.cfg.get("task") in ("check", "plan")
            self.sweep.unmeasured |= looked and job._return_value is None
            return job
        error = job._return_value  # the property would raise it
        kind = "" if type(error).__module__.startswith(("mri_synth", "hydra")) else f"{type(error).__name__}: "
        said = f"{kind}{str(error).strip()}"
        self.sweep.failed.append(f"job {number} ({' '.join(filter_overrides(words))}) failed: {said}")
        if job.cfg is None or job.cfg.get("task") != "check":  # which leaves nothing behind
            table.note_failed(Path(str(self.config.hydra.sweep.dir)), number, words, said)
        if not str(self.config.hydra.sweeper._target_).endswith(".BasicSweeper"):
            return job
        return JobReturn(overrides=words, cfg=job.cfg, hydra_cfg=job.hydra_cfg, status=JobStatus.COMPLETED)


def begins(cfg: DictConfig, folder: Path) -> notes.Known | None:
    """What a sweep's job finds when it begins: it may have waited for days.

    Args:
        cfg: of the job.
        folder: of its run; cleared, where what it holds is of no more use.

    Returns:
        A run of the same job: finished, or in this very folder and able to go on; None where it must begin anew.

    Raises:
        UserError: another process is running the same job, or the folder holds another one.
    """
    own = notes.read(folder)
    try:
        job = identity.identity(plain(cfg))
    except OmegaConfBaseException:
        return None
    if not cfg.rerun:
        run = notes.known([OUTPUTS, folder.parent]).get(job)
        if run is not None and run.state == "finished":
            return run
        if run is not None and locks.is_held(run.folder):
            raise UserError(f"{os.path.relpath(run.folder)}: another process is running this job now")
        if own is not None and own.identity == job and own.goes_on:
            return own
    if own is not None and not locks.is_held(folder):
        if own.identity != job and not cfg.rerun and (folder / "last.ckpt").is_file():
            raise UserError(f"{os.path.relpath(folder)}: holds another job, or the data have changed since it began; "
                            "give another hydra.sweep.dir, or rerun=true, which takes its place")  # fmt: skip
        from mri_synth import outputs

        outputs.clear(folder)
    return None


def _subdir(path: Path) -> str:
    """The word that gives a job its folder: in the sweep's, or absolute."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.subdir='{text}'"


@contextmanager
def _each_for_itself() -> Iterator[None]:
    """A job of submitit that was killed for good is a job that failed; its launcher would leave the others alone."""
    import submitit

    many = submitit.AutoExecutor.map_array

    def map_array(executor: Any, *arguments: Any) -> list[_Outcome]:
        return [_Outcome(job) for job in many(executor, *arguments)]

    with _replaced(submitit.AutoExecutor, "map_array", map_array):
        yield


@contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Outcome:
    """A job of submitit whose results are never an exception."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def results(self) -> list[JobReturn]:
        try:
            return list(self.job.results())
        except Exception as error:  # of many kinds: submitit's own, and whatever cannot be unpickled
            return [JobReturn(status=JobStatus.FAILED, _return_value=error)]
