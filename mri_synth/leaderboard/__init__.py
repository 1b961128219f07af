"""All runs below a folder, ranked where their figures compare, and only there. Torch is not imported."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mri_synth import outputs
from mri_synth.errors import UserError
from mri_synth.identity import NOTE, WITHOUT
from mri_synth.table import metric

RANKED = {"generation/kid": "min", "test/ssim": "max", "test/elbo": "max", "test/bits_per_code": "min"}
"""What runs are ranked by, each metric by itself, and which end is the good one."""
BESIDE = ("generation/fid", "test/ssim", "test/psnr", "test/mae", "test/bits_per_dim", "test/anomaly_auroc")
LOWER = ("kid", "fid", "loss", "mae", "mse", "nmse", "l1", "lpips", "bits", "copy_rate")
"""Words in the names of metrics of which less is better."""
TRANSLATED = ("pairs", "unpaired")
PARTS = {
    "data": "data", "split": "split", "protocol": "protocol", "task": "task", "items": "share of the test images",
}  # fmt: skip
"""What must be the same for two figures to compare."""


@dataclass
class Entry:
    """A run that finished.

    Attributes:
        name: its folder, as seen from the place that was looked through.
        results: of results.json.
        config: key to value, flat, without where and on what it ran.
        stage: hash of its first stage's checkpoint; "" where there is none, or its note does not say.
    """

    name: str
    results: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    stage: str = ""

    def value(self, name: str) -> tuple[float | None, tuple[float, float] | None]:
        """A metric and its interval, None where the run has none."""
        return metric(self.results, name)


@dataclass
class Board:
    """Runs whose figures of one metric compare.

    Attributes:
        metric: its name.
        mark: what is the same in all of them: PARTS to words.
        entries: the best first.
        why: what sets it apart from the first board of this metric, a sentence; "" of the first.
    """

    metric: str
    mark: dict[str, str]
    entries: list[Entry]
    why: str = ""

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return direction(self.metric) == "min"

    @cached_property
    def varied(self) -> list[str]:
        """Keys of the configuration that differ, but for those in which only methods differ: those name themselves."""
        values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for entry in self.entries:
            method = entry.results.get("model")
            for key, value in entry.config.items():
                values[key][str(method) if key.startswith("model.") else ""].add(repr(value))
        return [key for key, by in values.items() if any(len(v) > 1 for v in by.values()) and key != "model._target_"]


def read_runs(place: Path, folders: Iterable[Path] | None = None) -> tuple[list[Entry], dict[str, str]]:
    """The runs below a folder.

    Args:
        place: such as outputs/.
        folders: of the runs, where they are not all below it; None looks for them.

    Returns:
        Those that finished, and why not of each that did not.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    entries, left_out = [], {}
    for folder in outputs.run_folders(place) if folders is None else folders:
        name = os.path.relpath(folder, place)
        try:
            results = json.loads((folder / "results.json").read_text())
            if results.get("status") == "finished":
                config = _flat(results.get("config") or {})
                stage = _stage(folder) if config.get("model.first_stage") else ""
                entries.append(Entry(name, results, config, stage))
            else:
                left_out[name] = str(results.get("status"))
        except FileNotFoundError:
            left_out[name] = "ended before it had any result"
        except (OSError, ValueError, AttributeError) as error:
            left_out[name] = f"results.json cannot be read: {error}"
    if folders is None and not entries and not left_out:
        raise UserError(f"{place}: no run in it; give the folder that holds run folders, such as outputs")
    return entries, left_out


def _stage(folder: Path) -> str:
    """A run's first stage by its content, as `mri_synth.identity` noted it."""
    try:
        noted = json.loads((folder / NOTE).read_text())["parts"]["model"]["first_stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return noted if isinstance(noted, str) and noted.startswith("sha256 ") else ""


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if name in WITHOUT:
            continue
        if isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def direction(name: str) -> str:
    """ "min" for a metric of which less is better, else "max"."""
    last = name.rpartition("/")[2]
    return RANKED.get(name) or ("min" if any(word in last for word in LOWER) else "max")


def mark(entry: Entry, name: str) -> dict[str, str]:
    """What must be the same for figures of this metric to compare.

    Args:
        entry: the run.
        name: of the metric.

    Returns:
        PARTS to words.
    """
    r = entry.results
    found = {"data": f"{r.get('data')} {r.get('data_title') or ''} ({r.get('data_hash')})",
             "split": str(r.get("split_hash")), "protocol": _protocol(r, name), "task": "", "items": ""}  # fmt: skip
    if not name.startswith("generation/"):
        found["task"] = _task(entry)
        share = entry.config.get("trainer.limit_test_batches", 1.0)
        found["items"] = "" if share == 1.0 and isinstance(share, float) else f"limit_test_batches={share}"
    return found


def _protocol(results: Mapping[str, Any], name: str) -> str:
    group, _, rest = name.partition("/")
    if group == "generation":
        section = results.get("generation") or {}
        space = section.get("features") or {}
        said = (section.get("protocol") or {}).get(rest, "")
        return (f"features {space.get('name')} ({space.get('hash')}), n={section.get('n')} against "
                f"{section.get('pool')}; {said}")  # fmt: skip
    own = (results.get("details") or {}).get(name) or {}
    return str(own.get("protocol") or (results.get("protocol") or {}).get(rest, ""))


def _task(entry: Entry) -> str:
    """What a score is a score of."""
    view = entry.results.get("view")
    if view in TRANSLATED:
        contrasts = list(entry.config.get("data.contrasts") or [])
        source = entry.config.get("data.source", "contrasts")
        made = ", ".join(map(str, contrasts[:-1])) if source == "contrasts" else str(source)
        return f"{contrasts[-1] if contrasts else '?'} made of {made}"
    stage = entry.config.get("model.first_stage")
    stage = entry.stage or stage  # one that was moved is the same, one that was trained anew at its place is another
    return f"codes of {stage}" if view == "codes" or (view is None and stage) else "the image itself"


def boards(entries: Sequence[Entry], by: Sequence[str] = tuple(RANKED)) -> list[Board]:
    """The runs in groups whose figures compare, the best of each first.

    Args:
        entries: runs.
        by: metrics to rank by, each by itself.

    Returns:
        Boards, of each metric the largest first.
    """
    found = []
    for name in by:
        groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.value(name)[0] is not None:
                groups[tuple(mark(entry, name).values())].append(entry)
        first: Board | None = None
        sign = 1 if direction(name) == "min" else -1
        for group in sorted(groups.values(), key=len, reverse=True):
            group.sort(key=lambda e: sign * (e.value(name)[0] or 0.0))
            board = Board(name, mark(group[0], name), group)
            if first is not None:
                other = [word for part, word in PARTS.items() if board.mark[part] != first.mark[part]]
                board.why = f"not ranked with the first group of {name}: another {', another '.join(other)}"
            first = first or board
            found.append(board)
    return found
