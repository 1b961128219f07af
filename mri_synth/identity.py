"""What a run is: a hash of all that decides its result, so that a sweep knows what it has done.

Torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mri_synth import __version__
from mri_synth.data.names import ENVIRONMENT

log = logging.getLogger(__name__)

NOTE = "identity.json"
"""In a run's folder: what it is, and where it stands."""
WITHOUT = frozenset({
    "resume", "rerun", "logger", "data.root", "data.cache", "data.workers", "trainer.accelerator", "trainer.strategy",
    "trainer.progress", "trainer.checkpoint_every_steps",
})  # fmt: skip
"""Keys that say where and on what a job runs, and what is shown of it meanwhile; every other one is part of it."""
PROCESSES = frozenset({"trainer.devices", "trainer.num_nodes"})
"""Of these the product counts: data.batch_size is of one process, so that it decides the batch of a step."""


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
