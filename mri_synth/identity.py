"""What a run is: a hash of all that decides its result, noted in its folder, so that a sweep knows what it has done.

Torch is not imported.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from mri_synth import __version__, outputs
from mri_synth.data.names import ENVIRONMENT
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

NOTE = "identity.json"
LOCK = ".running"
State = Literal["running", "finished", "failed", "stopped"]
WITHOUT = frozenset({
    "resume", "rerun", "logger", "data.root", "data.cache", "data.workers", "trainer.accelerator", "trainer.strategy",
    "trainer.progress", "trainer.checkpoint_every_steps",
})  # fmt: skip
"""Keys that say where and on what a job runs, and what is shown of it meanwhile; every other one is part of it."""
PROCESSES = frozenset({"trainer.devices", "trainer.num_nodes"})
"""Of these the product counts: data.batch_size is of one process, so that it decides the batch of a step."""
QUIET = 600.0
"""Seconds without a change in its folder after which a run counts as dead, where no lock can tell."""


def parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a job's result: every key but those of `WITHOUT`, the data's files and the package's version.

    A value that names a file, such as a first stage's checkpoint, counts by the file's content. Devices and nodes
    count by how many processes they ask for. The data count by the names, sizes and modification times of the files
    below their root: a copy that keeps the times (`cp -p`, `rsync -a`) is the same data wherever it lies, one that
    does not makes other jobs, and so does a file that was touched.

    Args:
        config: of the run, plain values, without `hydra`.

    Returns:
        Plain values, for `identity` and for seeing in what two jobs differ.
    """
    root: dict[str, Any] = {}
    for key, value in config.items():
        if key in WITHOUT:
            continue
        if isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if f"{key}.{k}" not in WITHOUT | PROCESSES}
        root[key] = _by_content(value)
    return root | {"processes": _processes(config.get("trainer") or {}),
                   "files": files_below(data_root(config.get("data") or {})), "version": __version__}  # fmt: skip


def _processes(section: Mapping[str, Any]) -> int | str:
    """How many processes the configuration's `trainer` asks for; "auto" is as many as the machine has devices."""
    devices, nodes = section.get("devices", "auto"), section.get("num_nodes", 1)
    return devices * nodes if isinstance(devices, int) and isinstance(nodes, int) else f"{devices} x {nodes}"


def placing(words: Iterable[str]) -> list[str]:
    """The words that say where and on what a job runs: those typed now hold also for a job that goes on.

    Args:
        words: that compose it.

    Returns:
        Some of them, in their order.
    """
    keys = (WITHOUT | PROCESSES) - {"resume", "rerun", "logger"}
    return [w for w in words if w.lstrip("+").partition("=")[0] in keys]


def identity(config: Mapping[str, Any]) -> str:
    """Hash of what decides a job's result (see `parts`): two jobs of one identity are one job.

    Args:
        config: of the run, plain values, without `hydra`.

    Returns:
        16 hexadecimal digits.
    """
    return digest(parts(config))


def digest(found: Mapping[str, Any]) -> str:
    """Hash of the parts of a job.

    Args:
        found: as `parts` gives them.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()[:16]


def data_root(section: Mapping[str, Any]) -> Path | None:
    """Folder that a data set is read from, by the rule of `mri_synth.data.names.resolve_root`; None where none is.

    Args:
        section: the configuration's `data`.

    Returns:
        An existing folder.
    """
    given, base = section.get("root"), os.environ.get(ENVIRONMENT)
    name = str(section.get("_target_", "")).split(".")[-2:-1]
    path = Path(given).expanduser() if given else Path(base, *name).expanduser() if base and name else None
    return path if path is not None and path.is_dir() else None


def files_below(root: Path | None) -> str:
    """Hash of the names, sizes and times of all files below a folder, hidden ones excepted; nothing is read.

    Args:
        root: the folder.

    Returns:
        16 hexadecimal digits; "" without a folder.
    """
    if root is None:
        return ""
    if _FILES is None:
        return _look_below(root)
    if root not in _FILES:
        _FILES[root] = _look_below(root)
    return _FILES[root]


_FILES: dict[Path, str] | None = None


@contextmanager
def files_remembered() -> Iterator[None]:
    """While this lasts, `files_below` looks through each root once, however many jobs name it.

    Yields:
        Nothing.
    """
    global _FILES
    before, _FILES = _FILES, {}
    try:
        yield
    finally:
        _FILES = before


def _look_below(root: Path) -> str:
    lines = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.exists():
                stat = path.stat()
                lines.append(f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _by_content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _by_content(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(v) for v in value]
    if isinstance(value, str) and ("/" in value or "." in value) and len(value) < 4096 and "\n" not in value:
        path = Path(value).expanduser()
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
            return f"sha256 {_content(str(path), path.stat().st_size, path.stat().st_mtime_ns)}"
    return value


_CONTENTS: dict[tuple[str, int, int], str] = {}


def _content(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file: once, however many jobs of a sweep name it."""
    key = (path, size, changed)
    if key not in _CONTENTS:
        with Path(path).open("rb") as file:
            _CONTENTS[key] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return _CONTENTS[key]


@dataclass(frozen=True)
class Known:
    """A run that was begun.

    Attributes:
        folder: of the run.
        identity: of its job.
        state: where it stands; "running" also of one that was killed.
        value: the monitored metric, of one that is finished.
    """

    folder: Path
    identity: str
    state: State
    value: float | None

    @property
    def goes_on(self) -> bool:
        """Whether it can go on from a checkpoint of its own."""
        unfinished = self.state != "finished"
        return unfinished and all((self.folder / name).is_file() for name in ("last.ckpt", "config.yaml"))


def read(folder: Path) -> Known | None:
    """What a run's folder says of itself; None where it says nothing that can be read."""
    try:
        note = json.loads((folder / NOTE).read_text())
        return Known(folder, note["identity"], note["state"], note.get("value"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def known(places: Iterable[Path]) -> dict[str, Known]:
    """The runs below some folders by identity: of several of one identity a finished one, else one that can go on.

    Args:
        places: such as outputs/; those that do not exist are passed over.

    Returns:
        Identity to run.
    """
    found: dict[str, Known] = {}
    for place in dict.fromkeys(p.resolve() for p in places):
        for folder in outputs.run_folders(place):
            run = read(folder)
            if run is not None and _rank(run) > _rank(found.get(run.identity)):
                found[run.identity] = run
    return found


def _rank(run: Known | None) -> int:
    return 0 if run is None else 3 if run.state == "finished" else 2 if run.goes_on else 1


def note(folder: Path, config: Mapping[str, Any], state: State, **more: Any) -> None:
    """Write into a run's folder what it is and where it stands; what was noted before and is not given now stays.

    Args:
        folder: of the run.
        config: of the run, plain values.
        state: where it stands.
        more: further plain values, such as the metric of one that is finished.
    """
    try:
        before = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        before = {}
    found = parts(config)
    if config.get("resume"):  # the weights it once started from are in its own checkpoint
        found["init_from"] = (before.get("parts") or {}).get("init_from")
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    times = {"began": before.get("began", now), "changed": now, "host": socket.gethostname(), "slurm": _slurm()}
    content = {"identity": digest(found), "state": state, **times, **more, "parts": found}
    outputs.write_text(folder / NOTE, json.dumps({**before, **content}, indent=2, default=str) + "\n")


@contextmanager
def noted(folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """The run's folder says what it is, and how it ended if without success; no other process runs in it meanwhile.

    Args:
        folder: of the run.
        config: of the run, plain values.

    Yields:
        Nothing.

    Raises:
        UserError: another process is at it.
    """
    with held(folder):
        note(folder, config, "running", error=None)
        try:
            yield
        except BaseException as error:
            asked = type(error).__name__ == "Interrupted" or not isinstance(error, Exception)
            with suppress(OSError):  # a full disk is said already
                note(folder, config, "stopped" if asked else "failed", error=str(error))
            raise


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
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                if _still(file, path):  # and still locked: whoever waits for this file sees that it is gone
                    path.unlink()


def is_held(folder: Path) -> bool:
    """Whether a process is running in the folder now: its lock tells.

    Some file systems know no locks, or only those of one machine. Where there are none, and of a run that another
    machine noted as running, it is taken for alive while anything it writes changed within the last `QUIET` seconds;
    that is logged.

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
    if _restarted() and job is not None and job == _slurm():  # noted by this very job, on a machine that failed
        return False
    seconds = time.time() - _changed(folder)
    if seconds >= QUIET:
        return False
    log.warning("%s: counts as running: it changed %.0f s ago%s, and its lock cannot tell from here; if it was killed, "
                "give the command again when nothing changed there for %.0f minutes", os.path.relpath(folder),
                max(seconds, 0.0), f", noted by {host}" if host else "", QUIET / 60)  # fmt: skip
    return True


def _slurm() -> str | None:
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
