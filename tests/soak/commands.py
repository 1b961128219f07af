"""Commands of the package in processes of their own that start at once: forked by a server that imported what all need.

A process can be killed at any moment as if a machine had failed (SIGKILL: no hook of anyone's runs on it).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [f"mri_synth.{m}" for m in ("run", "cli", "fit", "sample", "describe", "translate", "models.vqvae", "data.phantom")]
)
# what a killed process had of the system is given back by a server that says so when all ends
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
LONGEST = 300.0
"""Seconds that a command of this size may take on a machine with other work."""


def start(words: list[str], cwd: Path, log: Path) -> ForkServerProcess:
    """`mri-synth WORDS` in `cwd`, which is made and holds its cache; what it says is appended to `log`."""
    cwd.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_play, args=(words, cwd, log))
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = LONGEST) -> int | None:
    """Its exit status; None where it had to be ended, since it took too long."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def play(words: list[str], cwd: Path, log: Path) -> tuple[int | None, float]:
    """A whole command: exit status and seconds."""
    began = time.monotonic()
    return finish(start(words, cwd, log)), time.monotonic() - began


def tail(log: Path, lines: int = 12) -> str:
    return "\n".join("    " + x for x in log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _play(words: list[str], cwd: Path, log: Path) -> None:
    """What the process does."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ["MRI_SYNTH_CACHE"] = str(cwd / "cache")
    sys.argv = ["mri-synth", *words]
    from mri_synth.cli import main

    try:
        main()
    except Exception:  # as Python ends with one; multiprocessing would say it at a place that is closed by then
        traceback.print_exc()
        raise SystemExit(1) from None
