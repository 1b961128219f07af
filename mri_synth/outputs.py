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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mri_synth import __version__
from mri_synth.errors import UserError

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "monai", "torchmetrics", "wandb", "nibabel", "numpy")
_MARKS = ("identity.json", ".running")
"""Of `mri_synth.identity`."""


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
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".hydra", "run.log", "metrics.csv", *_MARKS}:
        above = sweep_of(folder)
        shutil.rmtree(folder)
        if of_sweep and above is not None and {p.name for p in above.iterdir()} <= {"multirun.yaml"}:
            (above / "multirun.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another job may just now make its folder there
                above.rmdir()


def clear(folder: Path) -> None:
    """Remove what a run left in its folder, before another begins there: its checkpoints and curves must not mix.

    Args:
        folder: of the run.
    """
    for name in ("results.json", "config.yaml", *_MARKS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "wandb", ignore_errors=True)
    (folder / "last.ckpt").unlink(missing_ok=True)
    clear_training(folder)


def clear_training(folder: Path, keep: str | None = None) -> None:
    """Remove what a training left in a folder, as another begins there: a killed one's rows would come twice.

    Its last checkpoint stays until the first of the new training is whole, and takes its place.

    Args:
        folder: of the run.
        keep: a checkpoint that the new one starts from, perhaps of this very folder.
    """
    for name in ("best.ckpt", "metrics.csv", "report.html", "training.gif", "codebook.npy"):
        if keep is None or Path(keep).resolve() != (folder / name).resolve():
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "pictures", ignore_errors=True)


def run_folders(place: Path) -> Iterator[Path]:
    """The run folders below a folder, in the order of their names: those with a result or a note of what they are.

    Args:
        place: such as outputs/.

    Yields:
        Each of them; in a run's folder no further one is looked for.
    """
    try:
        with os.scandir(place) as entries:
            found = sorted(entries, key=lambda e: e.name)
    except OSError:
        return
    if any(e.name in ("results.json", "identity.json") for e in found):
        yield place
        return
    for entry in found:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from run_folders(Path(entry.path))


def sweep_of(folder: Path) -> Path | None:
    """The sweep that a run is a job of.

    Args:
        folder: of the run.

    Returns:
        The sweep's folder; None for a run of its own.
    """
    above = folder.resolve().parent
    return above if above.parent.name == "sweeps" or (above / "multirun.yaml").is_file() else None


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


def forget_peak_memory() -> None:
    """Let `peak_memory_bytes` begin anew, where the system can: a sweep's jobs may share a process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Largest resident memory of this process, since `forget_peak_memory` where the system can tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    high = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return 1024 * (int(high) if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


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
