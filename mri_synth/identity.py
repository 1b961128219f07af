"""What a run is: a hash of all that decides its result, noted in its folder, so that a sweep knows what it has done.

Torch is not imported.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
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

NOTE = "identity.json"
LOCK = ".running"
State = Literal["running", "finished", "failed", "stopped"]
WITHOUT = frozenset({
    "resume", "rerun", "logger", "data.root", "data.cache", "data.workers", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.progress", "trainer.checkpoint_every_steps",
})  # fmt: skip
"""Keys that say where and on what a job runs, and what is shown of it meanwhile; every other one is part of it."""


def parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a job's result: every key but those of `WITHOUT`, the data's files and the package's version.

    A value that names a file, such as a first stage's checkpoint, counts by the file's content, and the data by the
    names, sizes and times of the files below their root: wherever they lie.

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
            value = {k: v for k, v in value.items() if f"{key}.{k}" not in WITHOUT}
        root[key] = _by_content(value)
    return root | {"files": files_below(data_root(config.get("data") or {})), "version": __version__}


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
    times = {"began": before.get("began", now), "changed": now, "host": socket.gethostname()}
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
    # a file server may keep the lock of a machine that failed for a while; Slurm has queued its job again by then
    end = time.monotonic() + (180 if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else 0)
    with (folder / LOCK).open("a") as file:
        while not _locked(file):
            if time.monotonic() >= end:
                raise UserError(f"{folder}: another process is running this job now; wait for it, or stop it first")
            time.sleep(1)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a process is running in the folder now."""
    try:
        with (folder / LOCK).open("r") as file:
            return not _locked(file)
    except OSError:
        return False


def _locked(file: IO[str]) -> bool:
    """Whether this process has the lock now; True where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
