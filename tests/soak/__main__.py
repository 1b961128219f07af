"""`make soak`: every model on every data set that it goes with, then 50 kills; a line each, status 1 if any is wrong.

make soak ARGS='--pairs 5 --kills 10 --seed 7'
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, help="so many of them, drawn by the seed; all")
    parser.add_argument("--kills", type=int, default=50, help="50")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn, the moments of the kills among it; 0")
    parser.add_argument("--minutes", type=float, default=25, help="what has not been played by then is a failure; 25")
    parser.add_argument("--keep", action="store_true", help="keep the folder; it is kept where something is wrong")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="mri-synth-soak-"))
    began, done, wrong = time.monotonic(), {"pair": 0, "kill": 0}, 0
    for what, line, why in lines(base, args.pairs, args.kills, args.seed, began + 60 * args.minutes):
        done[what] += 1
        wrong += bool(why)
        say(f"{what} {done[what]:2d} {'WRONG' if why else 'ok   '} {line}" + (f"\n{why}" if why else ""))
    minutes = (time.monotonic() - began) / 60
    say(f"{done['pair']} pairs, {done['kill']} kills, {wrong} wrong, {minutes:.1f} minutes"
        + (f"; all files are kept in {base}" if wrong or args.keep else ""))  # fmt: skip
    if not wrong and not args.keep:
        shutil.rmtree(base)
    return int(wrong > 0)


def lines(base: Path, pairs: int | None, kills: int, seed: int, end: float) -> Iterator[tuple[str, str, str]]:
    """("pair" or "kill", its line, what is wrong with it) of each."""
    from soak import small
    from soak.kills import ORDER, Kills
    from soak.pairs import chosen, play

    root = small.data_sets(base / "data")
    for line, why in play(base / "pairs", root, chosen(pairs, seed), end):
        yield "pair", line, why
    player = Kills(base / "kills", root, seed)
    for number in range(kills):
        name = ORDER[number % len(ORDER)]
        if time.monotonic() > end:
            yield "kill", name, "no time was left"
            continue
        yield "kill", *player.kill(number, name)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    # read once, when the libraries are first imported, which is in the server of the processes
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "disabled", "HYDRA_FULL_ERROR": "1"}
    sys.exit(main())
