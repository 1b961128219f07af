"""The run folder: what a run writes beside its checkpoints, and how long, how fast and with what it ran."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mri_synth import __version__
from mri_synth.errors import UserError

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "monai", "torchmetrics", "wandb", "nibabel", "numpy")


def create(folder: Path) -> Path:
    """The run's folder, made and proven writable before anything long begins.

    Args:
        folder: where the run goes.

    Returns:
        Its absolute path.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("x" * 4096)
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder.resolve()


def cannot_write(error: OSError) -> bool:
    """Whether an error says that a place cannot be written, or has no room left."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
                           errno.EEXIST)  # fmt: skip


def unwritable(folder: Path, error: OSError) -> UserError:
    """The error for a run folder that cannot be written, with the way out.

    Args:
        folder: of the run.
        error: why.

    Returns:
        To be raised.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        way_out = f"free space; if it holds a last.ckpt, go on with: python -m mri_synth.run resume={folder}"
        return UserError(f"cannot write the run folder {folder}: the disk is full; {way_out}")
    return UserError(f"cannot write the run folder {folder}: {error.strerror}; give another by hydra.run.dir=/path")


def discard_unused(folder: Path, of_sweep: bool = False) -> None:
    """Remove a folder that holds nothing but Hydra's own files: nothing was run in it.

    Args:
        folder: made by Hydra for this command.
        of_sweep: no other job of the sweep, if it is one, leaves anything either, so its folder may go too.
    """
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".hydra", "run.log", "metrics.csv"}:
        shutil.rmtree(folder)
        above = folder.parent
        sweep = (above / "multirun.yaml").is_file() or above.parent.name == "sweeps"
        if of_sweep and sweep and {p.name for p in above.iterdir()} <= {"multirun.yaml"}:
            (above / "multirun.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another job may just now make its folder there
                above.rmdir()


def save_config(cfg: DictConfig, run: Path) -> None:
    """The resolved configuration as config.yaml.

    Args:
        cfg: as composed.
        run: the run's folder.
    """
    write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))


def write_text(path: Path, text: str) -> None:
    """Write by rename: a reader never meets half a file.

    Args:
        path: the file.
        text: its content.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def write_results(run: Path, results: Mapping[str, Any]) -> None:
    """results.json, by rename.

    Args:
        run: the run's folder.
        results: plain values.
    """
    write_text(run / "results.json", json.dumps(_finite(results), indent=2, default=str) + "\n")


def _finite(value: Any) -> Any:
    """The same, null for NaN and infinity: JSON has neither."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """What the run ran with: command, versions, commit, machine.

    Returns:
        Plain values.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    program = "python -m mri_synth.run" if sys.argv[0].endswith("run.py") else Path(sys.argv[0]).name
    return {
        "command": shlex.join([*program.split(), *sys.argv[1:]]),
        "versions": {"mri_synth": __version__, "python": platform.python_version(), **versions},
        "git": git_state(Path(__file__).parent),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the checkout, and whether files differ from it; empty outside a checkout.

    Args:
        folder: inside the checkout.

    Returns:
        commit and dirty.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table_hash(rows: list[dict[str, Any]]) -> str:
    """Hash of who is in which split, by subject and file content, and of slices that were dropped from one.

    Args:
        rows: the manifest.

    Returns:
        16 hexadecimal digits.
    """
    lines = sorted(
        f"{r['split']} {r['subject']} {r['session']} {r['contrast']} {r['sha256'] or r['path']}"
        + (f" {r['reason']}" if r.get("slices_dropped") else "")
        for r in rows
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
