"""The experiment: compose -> check -> build data, model, trainer -> fit, test, report.

`python -m mri_synth.run model=vqvae data=oasis`. Everything heavy is imported after the configuration was checked.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from mri_synth import config, outputs
from mri_synth.errors import ConfigError, UserError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from mri_synth.data.base import MRIDataModule
    from mri_synth.models.base import SynthModule

log = logging.getLogger(__name__)


def main() -> None:
    """The command line. A user's mistake ends with its message and status 2, without a traceback."""
    if not any(w in ("--help", "-h", "--version", "--info", "--cfg") for w in sys.argv[1:]):
        sys.argv[1:] = config.admit_unknown(sys.argv[1:])
    _register_resolvers()
    _hydra()


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("mri_synth.folder", lambda resume, new: resume or new, replace=True)


@hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="run")
def _hydra(cfg: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    try:
        return run(
            cfg, Path(os.environ.get("MRI_SYNTH_RUN") or settings.runtime.output_dir), list(settings.overrides.task)
        )
    except UserError as error:
        if settings.mode == RunMode.MULTIRUN:
            raise  # the launcher records it; a SystemExit would end the sweep
        print(f"\n{error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except Exception as error:
        if type(error).__name__ != "Interrupted" or settings.mode == RunMode.MULTIRUN:
            raise
        print(f"\n{error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None


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
    if cfg.get("resume"):
        folder = Path(cfg.resume)
        cfg = resumed_config(cfg, folder, overrides)
    try:
        config.check(cfg)
    except ConfigError:
        outputs.discard_unused(folder)
        raise
    if cfg.task == "check":
        log.info("the configuration is right: model=%s data=%s", _name(cfg.model), _name(cfg.data))
        outputs.discard_unused(folder)
        return None
    started = time.monotonic()
    folder = outputs.create(folder)
    _survive_relaunch(folder, overrides)
    data, model, trainer = build(cfg, folder)
    if cfg.task == "plan":
        from mri_synth.plan import plan

        plan(data, model, trainer)
        outputs.discard_unused(folder)
        return None
    if trainer.is_global_zero:
        outputs.save_config(cfg, folder)
    from mri_synth.fit import fit_and_test

    return fit_and_test(cfg, folder, data, model, trainer, started)


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
    merged = OmegaConf.merge(old, OmegaConf.from_dotlist(changes))
    assert isinstance(merged, DictConfig)
    merged.resume = str(folder)
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
    from hydra.utils import get_class, instantiate

    from mri_synth.callbacks.loggers import TidyCSV

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its news of every checkpoint hides ours
    for text in (".*your dataloader is not resumable", ".*LeafSpec", ".*does not have many workers"):
        warnings.filterwarnings("ignore", text)  # not so here: the data module's state resumes it; batches are read whole
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data: MRIDataModule = instantiate(cfg.data, _convert_="all")
    data.seed = cfg.seed
    arguments: Any = OmegaConf.to_container(cfg.model, resolve=True)
    model_class: Any = get_class(arguments["_target_"])
    data.view_class = config.called(model_class.needs, arguments)
    data.prepare_data()
    data.setup()
    model: SynthModule = instantiate(cfg.model, spec=data.spec, _convert_="all")
    if cfg.init_from:
        from mri_synth.models.base import initialise_from

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


def _survive_relaunch(folder: Path, overrides: list[str]) -> None:
    """Lightning starts this command again for every further process: they must share the folder, and in a multirun
    do this job alone."""
    from hydra.core.hydra_config import HydraConfig

    os.environ["MRI_SYNTH_RUN"] = str(folder)
    if HydraConfig.initialized():
        if {"-m", "--multirun"} & set(sys.argv):
            sys.argv[1:] = overrides
        hydra_cfg: Any = HydraConfig.instance().cfg
        assert hydra_cfg is not None
        OmegaConf.set_readonly(hydra_cfg.hydra, False)
        hydra_cfg.hydra.run.dir = str(folder)
        OmegaConf.set_readonly(hydra_cfg.hydra, True)


__all__ = ["ConfigError", "main", "run"]

if __name__ == "__main__":
    main()
