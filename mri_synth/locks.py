"""One process at a time in a run's folder: who holds it, and whether a run that another machine noted is alive.

Torch is not imported.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mri_synth.errors import UserError
from mri_synth.identity import NOTE

log = logging.getLogger(__name__)

LOCK = ".running"
BEAT = 60.0
"""Seconds between two signs of life of a run, however long it computes without writing anything."""
QUIET = 600.0
"""Seconds without a sign of life or a change in its folder after which a run counts as dead, where no lock can tell."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """While this lasts no other process runs in the folder. The system lets go when the process dies, however it does.

    Args:
        folder: of the run.

    Yields:
        Nothing.

    Raises:
        UserError: another process is at it.
    """
    # a file server may keep the lock of a machine that failed for a while; Slurm has queued its job again by then.
    # Two seconds are for those who only look (`is_held`), or have just ended
    end = time.monotonic() + (180 if _restarted() else 2)
    path = folder / LOCK
    while (file := _hold(path)) is None:
        if time.monotonic() >= end:
            raise UserError(f"{folder}: another process is running this job now; wait for it, or stop it first")
        time.sleep(0.2)
    with file, _beating(path):
        try:
            yield
        finally:
            with suppress(OSError):
                if _still(file, path):  # and still locked: whoever waits for this file sees that it is gone
                    path.unlink()


@contextmanager
def _beating(path: Path) -> Iterator[None]:
    """While this lasts the file's time is that of the last minute: where no lock can tell, that does."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def is_held(folder: Path) -> bool:
    """Whether a process is running in the folder now: its lock tells.

    Some file systems know no locks, or only those of one machine. Where there are none, and of a run that another
    machine noted as running, it is taken for alive while its lock's file or anything it writes changed within the last
    `QUIET` seconds; that is logged.

    Args:
        folder: of the run.

    Returns:
        True where it is, or may be.
    """
    try:
        with (folder / LOCK).open() as file:
            free = _locked(file, fcntl.LOCK_SH)  # shared: two who look at once do not meet
    except FileNotFoundError:
        return False
    except OSError:
        free = None
    if free is False:
        return True
    try:
        said = json.loads((folder / NOTE).read_text())
        state, host, job = said["state"], said.get("host"), said.get("slurm")
    except (OSError, ValueError, KeyError, TypeError):
        state, host, job = "running", None, None
    if state != "running" or (free and host in (None, socket.gethostname())):
        return False
    if _restarted() and job is not None and job == slurm_job():  # noted by this very job, on a machine that failed
        return False
    seconds = time.time() - _changed(folder)
    if seconds >= QUIET:
        return False
    log.warning("%s: counts as running: it changed %.0f s ago%s, and its lock cannot tell from here; if it was killed, "
                "give the command again when nothing changed there for %.0f minutes", os.path.relpath(folder),
                max(seconds, 0.0), f", noted by {host}" if host else "", QUIET / 60)  # fmt: skip
    return True


def slurm_job() -> str | None:
    """Slurm's number of this job, which it keeps when it is queued again."""
    return os.environ.get("SLURM_JOB_ID")


def _restarted() -> bool:
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _changed(folder: Path) -> float:
    """When anything that a run writes changed last; Hydra writes into a folder before it is known what is in it."""
    latest = 0.0
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if name == LOCK or not (name.startswith(".") or name.endswith(".log")):
                with suppress(OSError):
                    latest = max(latest, Path(place, name).stat().st_mtime)
    return latest


def _hold(path: Path) -> IO[str] | None:
    """The file, locked; None where another has it. Where the file system knows no locks it is had by all."""
    file = path.open("a")
    if _locked(file, fcntl.LOCK_EX) is not False and _still(file, path):
        return file
    file.close()
    return None


def _still(file: IO[str], path: Path) -> bool:
    """Whether the file is the one of this name: who had its lock before removed it, and another may have come."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(file: IO[str], how: int) -> bool | None:
    """Whether this process has the lock now; None where the file system knows no locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
