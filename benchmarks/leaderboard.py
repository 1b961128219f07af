"""Many runs: `python -m benchmarks.leaderboard`. 1,000 of them ranked, and a finished sweep of 200 jobs given again.

The folders are made from one real run (trained first, a few batches): its results with other seeds and values, its
configuration and its note. Timed are whole processes, from the start of Python to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from benchmarks.common import store
from mri_synth import identity, notes

WORDS = ["data.subjects=[4,2,2]", "data.size=32", "data.batch_size=8", "logger=csv", "trainer=smoke",
         "model.hidden_channels=16", "model.codebook_dim=8", "model.codebook_size=16"]  # fmt: skip
WATCHED = ("import sys; sys.argv[0] = 'mri-synth'; from mri_synth.cli import app; app(standalone_mode=False);"
           "sys.exit(3 * ('torch' in sys.modules))")  # fmt: skip


def process(*words: str, cwd: Path) -> tuple[float, float, str]:
    """Seconds of a whole process on the clock and of its processor, and what it printed."""
    began, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode:
        raise SystemExit(f"status {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, used, done.stdout + done.stderr


def copies(run: Path, folder: Path, count: int, noted: bool) -> None:
    """Run folders of other seeds and figures.

    Args:
        run: a real one.
        folder: of the new ones.
        count: how many.
        noted: with the note that a sweep goes by, which takes a while to make.
    """
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    draw = random.Random(0)
    for seed in range(count):
        new = folder / f"{seed}_seed-{seed}"
        new.mkdir(parents=True)
        changed = results | {
            "config": config | {"seed": seed}, "metrics": results["metrics"] | {"test/ssim": draw.random()},
            "split_hash": f"split{seed % 3}",
        }  # fmt: skip
        (new / "results.json").write_text(json.dumps(changed))
        if noted:
            notes.note(new, config | {"seed": seed}, "finished", value=0.5)
        else:
            (new / identity.NOTE).write_text("{}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run of the words below; without, one is trained")
    parser.add_argument("--quick", action="store_true", help="few runs, nothing stored")
    given = parser.parse_args()
    runs, jobs, passes = (20, 5, 1) if given.quick else (1000, 200, 5)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        run = given.run or place / "real"
        if given.run is None:
            process("-m", "mri_synth.run", *WORDS, f"hydra.run.dir={run}", cwd=place)
        copies(run, place / "many", runs, False)
        pages = [process("-c", WATCHED, "leaderboard", "many", "-o", "page.html", cwd=place) for _ in range(passes)]
        copies(run, place / "sweep", jobs, True)
        sweep = ["-m", *WORDS, f"seed=range({jobs})", "hydra.sweep.dir=sweep"]
        again, again_used, said = process("-m", "mri_synth.run", *sweep, cwd=place)
        passed = said.count(" is finished: ")
        results_bytes = (place / "many/0_seed-0/results.json").stat().st_size
    store(
        "leaderboard",
        {
            "runs": runs,
            "bytes_per_results_json": results_bytes,
            "seconds_leaderboard": round(median(p[0] for p in pages), 2),
            "processor_seconds_leaderboard": round(median(p[1] for p in pages), 2),
            "torch_imported": False,  # else the process had ended with status 3
            "jobs": jobs,
            "jobs_passed_over": passed,
            "seconds_finished_sweep": round(again, 2),
            "processor_seconds_finished_sweep": round(again_used, 2),
            "load_average": round(os.getloadavg()[0], 1),
        },
        keep=not given.quick,
    )


if __name__ == "__main__":
    main()
