"""Whether what lies in a folder is whole, and whether two folders hold the same."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from mri_synth.data.store import Store

TIMES = ("images_per_second", "seconds", "peak_memory_bytes", "resumed", "checkpoint")
PARTS = (".part-", ".partial", "-partial")
"""In the names of what is being written."""


def half_written(folder: Path) -> list[str]:
    """Files below a folder under their final names that are not whole, and why."""
    found = []
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if not path.is_file() or any(n.startswith(".") or any(p in n for p in PARTS) for n in names):
            continue
        try:
            _open(path)
        except Exception as error:  # of whatever kind the readers raise
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    return found


def left_over(folder: Path) -> list[str]:
    """What was being written and still lies there: a command that was given again and ended leaves none."""
    return [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if any(part in p.name for part in PARTS)]


def _open(path: Path) -> None:
    """Read a file to its end; nothing of kinds that are appended to, whose last line may be short."""
    name = path.name
    if name == "meta.json" and (path.parent / "table.npz").exists():
        Store(path.parent)
    elif name.endswith(".json"):
        json.loads(path.read_text())
    elif name.endswith((".png", ".gif", ".jpg")):
        with Image.open(path) as picture:
            for frame in range(getattr(picture, "n_frames", 1)):
                picture.seek(frame)
                picture.load()
    elif name.endswith((".nii", ".nii.gz")):
        np.asarray(nib.load(path).dataobj)
    elif name.endswith((".ckpt", ".pt", ".pth")):
        torch.load(path, weights_only=True)
    elif name.endswith((".npy", ".npz")):
        read = np.load(path, allow_pickle=False)
        for part in read.files if isinstance(read, np.lib.npyio.NpzFile) else []:
            _ = read[part]
    elif name.endswith(".html"):
        assert path.read_text().rstrip().endswith("</html>"), "has no end"
    elif name.endswith(".csv") and name != "metrics.csv":
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(r) for r in rows}) == 1, "rows of several lengths"


def other_run(one: Path, two: Path) -> list[str]:
    """What differs between two finished runs, beside times."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (torch.load(p / name, weights_only=True)["state_dict"] for p in (one, two))
        found += [
            f"{name}: {k}" for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])
        ]
    a, b = (
        [x for x in (p / "metrics.csv").read_text().splitlines() if not any(t in x for t in TIMES)] for p in (one, two)
    )
    found += ["metrics.csv"] if a != b else []
    results = [json.loads((p / "results.json").read_text()) for p in (one, two)]
    assert {r["status"] for r in results} == {"finished"}
    found += [f"results.json: {k}" for k in ("metrics", "details", "references")
              if _text(results[0].get(k)) != _text(results[1].get(k))]  # fmt: skip
    return found + _other_names(one, two, ("pictures",)) + other_files(one / "pictures", two / "pictures", (".png",))


def other_files(one: Path, two: Path, endings: Iterable[str]) -> list[str]:
    """Files of some kinds that are not in both folders with the same content."""
    a, b = ({str(p.relative_to(f)): p for p in f.rglob("*") if p.name.endswith(tuple(endings)) and not _hidden(p, f)}
            for f in (one, two))  # fmt: skip
    return [n for n in sorted(a.keys() | b.keys()) if n not in a or n not in b or _content(a[n]) != _content(b[n])]


def _other_names(one: Path, two: Path, inside: Iterable[str]) -> list[str]:
    a, b = ({str(p.relative_to(f)) for d in (".", *inside) for p in (f / d).glob("*")} for f in (one, two))
    return [f"{n}: in one of them" for n in sorted(a ^ b) if not any(part in n for part in PARTS)]


def _hidden(path: Path, folder: Path) -> bool:
    return any(n.startswith(".") for n in path.relative_to(folder).parts)


def _content(path: Path) -> Any:
    if path.suffix == ".gz":  # its header has the time
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as table:
            return {n: table[n].tobytes() for n in table.files}
    return path.read_bytes()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
