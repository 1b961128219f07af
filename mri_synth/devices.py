"""Where a verb computes."""

from __future__ import annotations

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
