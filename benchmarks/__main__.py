"""The stored results as a table: `python -m benchmarks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

PROMISED = {
    "speedup_plain": ">= 2",
    "speedup_augmented": ">= 5",
    "first_batch_s": "< 1",
    "overhead_vs_loop": "<= 0.05",
    "speedup_vs_fp32": ">= 1.6",
    "dcgan_overhead_vs_loop": "<= 0.05",
    "dcgan_speedup_vs_fp32": ">= 1.5",
    "progan_overhead_vs_loop": "<= 0.05",
    "progan_speedup_vs_fp32": ">= 1.5",
    "cyclegan_resnet9_1_speedup_vs_published": ">= 1.8",
    "cyclegan_resnet9_8_speedup_vs_published": ">= 1.8",
    "cyclegan_unet_1_speedup_vs_published": ">= 1.8",
    "cyclegan_unet_8_speedup_vs_published": ">= 1.8",
    "pix2pix_unet_1_speedup_vs_published": ">= 1.8",
    "pix2pix_unet_8_speedup_vs_published": ">= 1.8",
    "network_share": ">= 0.9",
    "peak_memory_mib": "< 2048",
    "speedup_vs_monai": ">= 1",
    "batch_share": "<= 0.8",
    "speedup_vs_plain": ">= 3",
    "seconds_one": "< 120",
    "batch_difference": "<= 1e-3",
    "improved": "9",
    "prompts_improved": "3",
    "seconds_leaderboard": "< 3",
    "seconds_finished_sweep": "< 30",
}
"""Figures that were promised, and how much."""


def table(folder: Path) -> str:
    """Every stored result in Markdown.

    Args:
        folder: of the JSON files.

    Returns:
        One row per figure; lists and tables within a result are written as they are.
    """
    lines = ["| benchmark | figure | value | promised |", "| --- | --- | --- | --- |"]
    machines: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        result: dict[str, Any] = json.loads(path.read_text())
        name = result.pop("benchmark", path.stem)
        machines[name] = ", ".join(f"{k} {v}" for k, v in result.pop("machine", {}).items() if v is not None)
        lines += [f"| {name} | {k} | {_written(v)} | {PROMISED.get(k, '')} |" for k, v in result.items()]
    return "\n".join([*lines, "", *(f"{name}: {machine}" for name, machine in machines.items())])


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} {_written(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " to ".join(map(str, value)) if len(value) == 2 else " ".join(map(str, value))
    return str(value)


if __name__ == "__main__":
    print(table(RESULTS))
