"""A training process on a CPU touches its memory once."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = 2**24
SCRIPT = f"""
import resource, torch
from mri_synth.devices import keep_memory
if {{keep}} and not keep_memory():
    raise SystemExit(77)
x = torch.zeros({BLOCK})
for i in range(30):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.add(1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def touched(keep: bool) -> int:
    """Bytes that were touched for the first time while ten blocks of 64 MiB were made and freed, one by one."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("no glibc here")
    assert not done.returncode, done.stderr
    return int(done.stdout)


def test_what_is_freed_is_kept_for_the_next_block() -> None:
    assert touched(keep=False) >= 10 * 4 * BLOCK, "else there is nothing to keep, and the setting can go"
    assert touched(keep=True) <= 4 * BLOCK
