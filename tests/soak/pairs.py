"""Every model on every data set that it goes with: a run of a few steps that ends with its results."""

from __future__ import annotations

import functools
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mri_synth.matrix import matrix
from soak import commands, small
from soak.whole import half_written, left_over

SHORT = ["trainer.max_epochs=2", "trainer.limit_train_batches=2", "trainer.limit_val_batches=2",
         "trainer.limit_test_batches=2"]  # fmt: skip


@functools.cache
def pairs() -> list[tuple[str, str]]:
    """(model, data set), those first whose checkpoints others need."""
    table = matrix()
    made = {m for arguments in small.NEEDS.values() for m in arguments.values()}
    return [(m, d) for m in sorted(table, key=lambda m: (m not in made, m)) for d in table[m] if not table[m][d]]


def chosen(count: int | None, seed: int) -> list[tuple[str, str]]:
    """All of them, or so many that are drawn, with what they need."""
    known = pairs()
    if count is None:
        return known
    drawn = set(random.Random(seed).sample(known, min(count, len(known))))
    drawn |= {(m, data) for model, data in drawn for m in small.NEEDS.get(model, {}).values()}
    return [pair for pair in known if pair in drawn]


def words(model: str, data: str, checkpoints: Mapping[str, Path], root: Path) -> list[str]:
    """Of a small run; `checkpoints`: model to best.ckpt, of what it needs."""
    needed = [f"model.{argument}={checkpoints[m]}" for argument, m in small.NEEDS.get(model, {}).items()]
    vgg = [f"model.vgg={root / 'vgg.pth'}"] if model in ("style_transfer", "utility") else []
    folder, about = small.ELSEWHERE.get((model, data), (data, small.DATA[data]))
    place = [] if data == "phantom" else [f"data.root={root / folder}"]
    return [
        "run",
        f"model={model}",
        f"data={data}",
        *place,
        *small.RUN,
        *about,
        *small.MODELS[model],
        *needed,
        *vgg,
    ]


def play(base: Path, root: Path, chosen: list[tuple[str, str]], end: float = math.inf) -> Iterator[tuple[str, str]]:
    """Play each until `end` (monotonic seconds); its line, and what is wrong ("": nothing)."""
    made: dict[tuple[str, str], Path] = {}
    for model, data in chosen:
        name = f"{model} x {data}"
        absent = [m for m in small.NEEDS.get(model, {}).values() if (m, data) not in made]
        if absent or time.monotonic() > end:
            yield name, f"needs {absent[0]} x {data}, which has not ended well" if absent else "no time was left"
            continue
        cwd, log = base / data, base / f"{model}_{data}.log"
        run = cwd / model
        known = {m: path for (m, d), path in made.items() if d == data}
        status, seconds = commands.play([*words(model, data, known, root), *SHORT, f"hydra.run.dir={run}"], cwd, log)
        wrong = f"status {status}\n{commands.tail(log)}" if status != 0 else _wrong(run)
        if not wrong:
            made[model, data] = run / "best.ckpt"
        yield f"{name}: {seconds:.1f} s{'' if wrong else ', ' + _said(run)}", wrong


def _wrong(run: Path) -> str:
    results = json.loads((run / "results.json").read_text())
    found = [f"status {results['status']}"] if results["status"] != "finished" else []
    found += [f"no {name}" for name in ("best.ckpt", "last.ckpt", "report.html") if not (run / name).is_file()]
    return "; ".join(found + half_written(run) + [f"left: {n}" for n in left_over(run)])


def _said(run: Path) -> str:
    best = {k: v for k, v in json.loads((run / "results.json").read_text())["metrics"].items() if k.startswith("best/")}
    return ", ".join(f"{k} {v:.4g}" for k, v in best.items() if v is not None and math.isfinite(v)) or "no value"
