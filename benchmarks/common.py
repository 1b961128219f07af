"""What every benchmark shares: fair timing, the machine's name, and where results go."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def alternate(fns: dict[str, Callable[[], object]], passes: int = 7, warmup: int = 2) -> dict[str, list[float]]:
    """Time functions in turns, so that a busy neighbour slows all of them alike.

    Args:
        fns: what to time, by name.
        passes: rounds that count; every function runs once a round.
        warmup: rounds before, not counted.

    Returns:
        Seconds of every counted run, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for round_ in range(warmup + passes):
        for name, fn in fns.items():
            _wait()
            start = time.perf_counter()
            fn()
            _wait()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def speedup(seconds: dict[str, list[float]], ours: str, peer: str) -> float:
    """Median time of the peer over median time of ours."""
    return median(seconds[peer]) / median(seconds[ours])


def machine() -> dict[str, Any]:
    """Processor, cores, threads, accelerator and versions: what a time means nothing without."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def store(name: str, result: dict[str, Any], keep: bool = True) -> None:
    """Write `benchmarks/results/<name>.json` with the machine in it, and print it as one last line.

    Args:
        name: of the benchmark.
        result: its figures, plain values.
        keep: write the file; not for a quick look at small sizes.
    """
    record = {"benchmark": name, **result, "machine": machine()}
    if keep:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
