"""What a run's folder says of itself: which job it is and where that stands.

Torch is not imported.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mri_synth import outputs
from mri_synth.identity import NOTE, digest, parts
from mri_synth.locks import held, slurm_job

State = Literal["running", "finished", "failed", "stopped"]


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
    times = {"began": before.get("began", now), "changed": now, "host": socket.gethostname(), "slurm": slurm_job()}
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
