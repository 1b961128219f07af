"""Where one computes, and in which precision."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from mri_synth.errors import UserError


def device_of(name: str) -> torch.device:
    """The device of a word, tried out.

    Args:
        name: "auto" (CUDA where there is some), "cpu", "cuda", "cuda:1", ...

    Returns:
        The device.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not usable here ({str(error).splitlines()[0]}). Use auto or cpu.") from error
    return device


def computes_in_bf16(on_gpu: bool) -> bool:
    """Whether bf16 arithmetic is in the hardware, and not emulated.

    Args:
        on_gpu: ask the GPU, else the CPU.

    Returns:
        True from Ampere (compute capability 8) on, or on CPUs with AVX512-BF16 or AMX.
    """
    if on_gpu:
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def in_bf16(precision: str, place: torch.device) -> bool:
    """Whether to compute in bf16.

    Args:
        precision: "auto", "bf16" or "32".
        place: the device.

    Returns:
        True for "bf16", and for "auto" where the device has it in hardware.
    """
    return precision == "bf16" or (precision == "auto" and computes_in_bf16(place.type == "cuda"))


_TRIM, _PAD, _MAPS = -1, -2, -4
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX of glibc's malloc.h."""


def keep_memory() -> bool:
    """Let the process keep what it frees, for what it needs next: on a CPU every step frees and needs the same.

    By itself glibc asks the system for each block above 32 MiB and gives it back when it is freed. All its pages are
    then touched for the first time again, at every layer of every step: in bf16 that takes longer than a ReLU does. The
    process stays as large as it once was; of a training that is little more than it needs anyway.

    Returns:
        Whether it is so now; False without glibc, where nothing is changed.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all(libc.mallopt(what, value) for what, value in ((_MAPS, 0), (_TRIM, 2**31 - 1), (_PAD, 2**26)))
    except (OSError, AttributeError):
        return False
