"""The experiment: compose -> check -> build data, model, trainer -> fit, test, report.

`python -m mri_synth.run model=vqvae data=oasis`. Everything heavy is imported after the configuration was checked.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mri_synth import config, identity, locks, notes, outputs, relaunch
from mri_synth.errors import ConfigError, UserError
from mri_synth.overrides import admit_unknown
from mri_synth.sweep import job_folder, name_by_swept

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from mri_synth.data.base import MRIDataModule
    from mri_synth.models.base import SynthModule

log = logging.getLogger(__name__)


def main() -> None:
    """The command line. A user's mistake ends with its message and status 2, without a traceback."""
    from hydra.errors import HydraException

    gc.set_threshold(100_000, 50)  # what imports make stays: looking for garbage among it takes a second of every start
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here whole, and not as Hydra prints them
    _register_resolvers()
    try:
        if not any(w in ("--help", "-h", "--version", "--info", "--cfg") for w in sys.argv[1:]):
            sys.argv[1:] = name_by_swept(admit_unknown(sys.argv[1:]))
        from mri_synth import launching

        sweep = launching.Sweep()
        try:
            with launching.idempotent(sweep):
                _hydra()
        except Exception as error:
            if not sweep.failed and not (sweep.unmeasured and isinstance(error, ValueError)):
                raise  # else it is theirs, or a search's that has no trial with a metric
            log.info("the sweep ended with: %s", error)
        if sweep.failed:
            _end(sweep.said(), 2)
    except (UserError, HydraException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
        _end(f"{error}" + (f"\n{cause}" if cause else ""), 2)
    except KeyboardInterrupt:  # in training it is a clean stop; here nothing was begun that could be lost
        _end("stopped", 130)
    except OSError as error:  # Hydra makes the run's folder before any code of ours
        if not outputs.cannot_write(error):
            raise
        _end(str(outputs.unwritable(Path(error.filename or "outputs"), error)), 2)


def _end(message: str, status: int) -> NoReturn:
    print(f"\n{message}", file=sys.stderr)  # noqa: T201
    raise SystemExit(status) from None


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("mri_synth.folder", lambda resume, new: resume or new, replace=True)
    OmegaConf.register_new_resolver("mri_synth.job", job_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="run")
def _hydra(cfg: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    settings = HydraConfig.get()
    sweep, words = settings.mode == RunMode.MULTIRUN, list(settings.overrides.task)
    number = Path(settings.runtime.output_dir).name.partition("_")[0]
    try:
        given = sweep or any(w.startswith("hydra.run.dir=") for w in settings.overrides.hydra)
        folder = relaunch.shared_folder(Path(settings.runtime.output_dir), given or bool(cfg.resume))
        if cfg.task == "fit" and relaunch.goes_on(folder):
            cfg.resume, words = str(folder), [f"resume={folder}", *identity.placing(words)]
        elif cfg.task == "fit" and sweep and not cfg.resume:
            from mri_synth import launching

            if found := launching.begins(cfg, folder):
                if found.state == "finished":
                    return _finished_before(found, folder, number)
                cfg.resume, words = str(folder), [f"resume={folder}", *identity.placing(words)]
        return run(cfg, folder, words)
    except UserError as error:
        if sweep:  # the launcher records it; a SystemExit would end the sweep
            log.error("job %s failed: %s", number, error)
            raise CompactHydraException(str(error)) from None
        relaunch.let_first_process_speak()
        _end(str(error), 2)
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            if sweep:
                log.exception("job %s failed", number)
            raise
        relaunch.let_first_process_speak()
        _end(str(error), 130)


def _finished_before(found: notes.Known, folder: Path, number: str) -> float | None:
    """A sweep's job that another run has done meanwhile: its metric; the sweep's table is told where it is."""
    from hydra.core.hydra_config import HydraConfig

    from mri_synth import table

    settings = HydraConfig.get()
    log.info("finished: %s", found.folder)
    if found.folder.resolve() != folder.resolve():
        outputs.discard_unused(folder)
    at = int(number) if number.isdigit() else settings.job.num
    table.note_elsewhere(Path(settings.sweep.dir), at, list(settings.overrides.task), found.folder)
    return found.value


def run(cfg: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    """Run one experiment.

    Args:
        cfg: as Hydra composed it.
        folder: of the run; a resumed run goes on in its own.
        overrides: words of the command line, applied to a resumed run's configuration.

    Returns:
        The monitored metric (for a sweeper); None for task=check and plan.

    Raises:
        UserError: any mistake of the user's, each with the way out.
    """
    try:
        if cfg.get("resume"):
            folder = Path(cfg.resume)
            cfg = resumed_config(cfg, folder, overrides)
        config.check(cfg)
    except UserError:
        if not cfg.get("resume") or (folder / ".hydra").is_dir():  # else it is the user's own folder
            _discard(folder, cfg.get("task") == "check")
        raise
    if cfg.task == "check":
        log.info("the configuration is right: model=%s data=%s", _name(cfg.model), _name(cfg.data))
        _discard(folder, True)
        return None
    try:
        return _run(cfg, outputs.create(folder), overrides)
    except UserError:
        if not cfg.resume:
            _discard(folder)
        raise
    except OSError as error:
        if not outputs.cannot_write(error):
            raise
        raise outputs.unwritable(folder, error) from error


def _discard(folder: Path, of_sweep: bool = False) -> None:
    """Remove a folder in which nothing was run, unless another process is in it: it writes little before it trains."""
    if not locks.is_held(folder):
        outputs.discard_unused(folder, of_sweep)


def _take(cfg: DictConfig, folder: Path) -> None:
    """Refuse a folder that holds a finished run; take away what an unfinished one left, as this one begins anew.

    Args:
        cfg: of this run.
        folder: of it.

    Raises:
        UserError: a finished run lies there.
    """
    before = notes.read(folder)
    if before is None or locks.is_held(folder):
        return
    if before.state == "finished" and not cfg.get("rerun"):
        raise UserError(f"{folder}: holds a finished run; give another hydra.run.dir, or rerun=true, which takes its "
                        "place")  # fmt: skip
    outputs.clear_training(folder, cfg.get("init_from"))


def _run(cfg: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    """What `run` does after the check."""
    started = time.monotonic()
    if cfg.task == "fit" and not cfg.get("resume") and relaunch.is_first_process():
        _take(cfg, folder)
    outputs.forget_peak_memory()
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    first = relaunch.is_first_process() and cfg.task != "plan"
    with notes.noted(folder, plain) if first else nullcontext(), relaunch.relaunchable(folder, overrides):
        data, model, trainer = build(cfg, folder)
        if first:  # once more: the data may have been fetched just now
            notes.note(folder, plain, "running", data_hash=data.data_hash)
        with relaunch.ended_together(trainer):
            if cfg.task == "plan":
                from mri_synth.plan import plan

                plan(data, model, trainer)
                if trainer.is_global_zero:
                    _discard(folder)
                return None
            if trainer.is_global_zero:
                outputs.save_config(cfg, folder)
            from mri_synth.callbacks import loggers
            from mri_synth.fit import fit_and_test

            with loggers.ended(trainer.loggers):
                value = fit_and_test(plain, folder, data, model, trainer, started)
            if first:
                notes.note(folder, plain, "finished", value=value)
            return value


def resumed_config(cfg: DictConfig, folder: Path, overrides: list[str]) -> DictConfig:
    """The configuration of the run that is resumed, with the values given now.

    Args:
        cfg: composed now; only its root keys matter.
        folder: of the run.
        overrides: words of the command line.

    Returns:
        The saved configuration; `resume` set.

    Raises:
        UserError: no such run, no checkpoint in it, or another model or data set is asked for.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(f"resume={folder}: not a run folder (no config.yaml); give one such as outputs/<run>")
    if not (folder / "last.ckpt").is_file():
        raise UserError(f"resume={folder}: it was stopped before its first checkpoint; start it anew")
    old = OmegaConf.load(saved)
    assert isinstance(old, DictConfig)
    changes = [w.lstrip("+") for w in overrides if not w.lstrip("+").startswith("resume=")]
    for word in changes:
        key = word.partition("=")[0]
        if (config.config_dir() / key).is_dir():
            raise UserError(
                f"{word}: a resumed run keeps its own; change single values, such as trainer.max_epochs=40, or start "
                "a new run with init_from=<ckpt>"
            )
        if key.startswith("data.") and key not in ("data.root", "data.cache", "data.workers"):
            raise UserError(
                f"{word}: a resumed run keeps its data, their split and batches, or its figures would be of none; "
                "start a new run with init_from=<ckpt>"
            )
    newer = OmegaConf.masked_copy(cfg, [k for k in config.ROOT if k in cfg and k not in old])
    merged = OmegaConf.merge(newer, old, OmegaConf.from_dotlist(changes))
    assert isinstance(merged, DictConfig)
    merged.resume, merged.init_from = str(folder), None  # its weights are in last.ckpt
    return merged


def build(cfg: DictConfig, folder: Path) -> tuple[MRIDataModule, SynthModule, pl.Trainer]:
    """Data, model and trainer of a checked configuration.

    Args:
        cfg: checked.
        folder: of the run.

    Returns:
        The data module (set up), the model and the trainer.
    """
    import lightning.pytorch as lightning
    import torch
    from hydra.errors import InstantiationException
    from hydra.utils import get_class, instantiate

    from mri_synth.callbacks.loggers import TidyCSV
    from mri_synth.trainer import require_device

    relaunch.hush()
    # not so here: the data module's state resumes it; batches are read whole; what is logged is the same on all
    # ranks; schedules count batches, also where a generator waits for n_critic of them
    for text in (
        "your dataloader is not resumable",
        "LeafSpec",
        "does not have many workers",
        "sync_dist=True",
        "in eval mode at the start",
        "Detected call of `lr_scheduler.step",
    ):
        warnings.filterwarnings("ignore", f".*{text}")
    require_device(cfg.trainer.accelerator)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()  # of the sweep's job before
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data: MRIDataModule = instantiate(cfg.data, _convert_="all")
    data.seed = cfg.seed
    arguments: Any = OmegaConf.to_container(cfg.model, resolve=True)
    model_class: Any = get_class(arguments["_target_"])
    data.view_class = config.called(model_class.needs, arguments)
    data.prepare_data()
    data.setup()
    try:
        model: SynthModule = instantiate(cfg.model, spec=data.spec, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # without the words that Hydra wraps around it
            raise error.__cause__ from None
        raise
    model.seed = cfg.seed
    model.prepare(data)
    if cfg.init_from:
        from mri_synth.models.checkpoint import initialise_from

        initialise_from(model, Path(cfg.init_from))
    loggers = [TidyCSV(folder / "metrics.csv")]
    if cfg.task != "plan":
        loggers += instantiate(cfg.logger, run=folder) if "run" in _parameters(cfg.logger) else instantiate(cfg.logger)
    trainer: pl.Trainer = instantiate(cfg.trainer, run=folder, model=model, loggers=loggers, _convert_="all")
    return data, model, trainer


def _parameters(section: DictConfig) -> list[str]:
    import inspect

    from hydra.utils import get_object

    return list(inspect.signature(get_object(section._target_)).parameters)


def _name(section: DictConfig) -> str:
    return str(section._target_).split(".")[-2]


__all__ = ["ConfigError", "main", "run"]

if __name__ == "__main__":
    main()
