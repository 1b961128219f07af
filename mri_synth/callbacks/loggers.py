"""Where metrics go: always a CSV in the run folder; W&B by default, offline without a key."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mri_synth import outputs

log = logging.getLogger(__name__)


class TidyCSV(Logger):
    """`metrics.csv` with the columns step, epoch, name, value: rows are only ever appended, so a kill loses none.

    `pandas.read_csv(path).pivot_table(index="step", columns="name", values="value")` makes it wide.
    """

    def __init__(self, path: Path) -> None:
        """Append to a file.

        Args:
            path: metrics.csv of the run.
        """
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """A run has one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row per metric, in the order of names: Lightning's is that of their first logging."""
        new = not self.path.exists()
        epoch = metrics.get("epoch", "")
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", "epoch", "name", "value"])
            writer.writerows([step, int(epoch) if epoch != "" else "", name, repr(float(value))]
                             for name, value in sorted(metrics.items()) if name != "epoch")  # fmt: skip

    def forget_after(self, step: int) -> None:
        """Drop the rows of a killed run that its resumed run will write again.

        Args:
            step: of the checkpoint; rows from later steps go.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [x for i, x in enumerate(lines) if x.endswith("\n") and (i == 0 or int(x.split(",", 1)[0]) < step)]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(self.path)


def wandb_logger(
    run: Path,
    project: str = "mri_synth",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
) -> list[Logger]:
    """Weights & Biases; the run's id is its folder's name, so that a resumed run goes on in the same curves.

    Args:
        run: the run's folder.
        project: of W&B.
        entity: user or team; None for the key's own.
        group: runs shown together; None: those of one sweep.
        tags: any words.
        mode: "auto" is online with an API key and offline without, or when W&B does not answer; never a prompt.

    Returns:
        One logger; none with WANDB_MODE=disabled.
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        return []
    keyed = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_key()
    offline = mode == "offline" or (mode == "auto" and not keyed) or os.environ.get("WANDB_MODE") == "offline"
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    sweep = outputs.sweep_of(run)
    group = group or (sweep.name if sweep else None)

    def make(offline: bool) -> WandbLogger:
        return WandbLogger(name=run.name, id=run_id(run), project=project, entity=entity, group=group, tags=tags,
                           save_dir=str(run), offline=offline, log_model=False, resume="allow",
                           settings=wandb.Settings(init_timeout=30))  # fmt: skip

    logger = make(offline)
    if mode == "auto" and not offline:
        try:
            _ = logger.experiment
        except wandb.errors.Error as error:
            log.warning("W&B cannot be reached (%s); going on offline: wandb sync %s/wandb/offline-*", error, run)
            logger = make(True)
    return [logger]


def csv_only() -> list[Logger]:
    """Nothing beside metrics.csv.

    Returns:
        No logger.
    """
    return []


def describe(loggers: Sequence[Logger], about: Mapping[str, Any]) -> None:
    """What was run, on what and with what, where a logger has a place for it.

    Args:
        loggers: of the run.
        about: plain values.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(dict(about), allow_val_change=True)


def summarise(loggers: Sequence[Logger], metrics: Mapping[str, float]) -> None:
    """The final metrics, where a logger has a place for them.

    Args:
        loggers: of the run.
        metrics: name to value.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(metrics))
            logger.finalize("success")


def alert(loggers: Sequence[Logger], title: str, text: str) -> None:
    """A message to whoever waits for the run, where a logger can send one: W&B by mail or Slack.

    Args:
        loggers: of the run.
        title: what.
        text: how much, and the remedy.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.alert(title=title, text=text, level="WARN")


@contextmanager
def ended(loggers: Sequence[Logger]) -> Iterator[None]:
    """A run of W&B ends with ours, however that ends: the next job of a sweep must not log into it.

    Args:
        loggers: of the run.

    Yields:
        Nothing.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            import wandb  # half a second that other loggers need not wait

            wandb.finish(exit_code=int(failed))


def forget_after(loggers: Sequence[Logger], step: int) -> None:
    """Drop what the killed run logged after its last checkpoint: the resumed run logs it again.

    Args:
        loggers: of the run.
        step: of the checkpoint.
    """
    for logger in loggers:
        if isinstance(logger, TidyCSV):
            logger.forget_after(step)


def run_id(run: Path) -> str:
    """A stable id from the run's place: its path below outputs/ (else its name) and a hash of the whole path.

    Args:
        run: the run's folder.

    Returns:
        At most 128 letters, digits, - and _.
    """
    parts = run.resolve().parts
    mark = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]  # two projects may both have an outputs/run1
    below = parts[parts.index("outputs") + 1 :] if "outputs" in parts else parts[-1:]
    return "-".join("".join(c if c.isalnum() or c in "-_" else "_" for c in p) for p in below)[-119:] + f"-{mark}"


def _netrc_has_key() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "api.wandb.ai" in path.read_text()
    except OSError:
        return False
