"""Files of the safetensors format, without its package: lengths, a header in JSON, and plain numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_synth.errors import UserError

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}  # fmt: skip
_LONGEST = 100_000_000
"""Bytes that the format allows a header."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name. The format holds nothing that could be run; its lengths are checked against the file's.

    Args:
        path: a .safetensors file.

    Returns:
        Tensors of their own memory, on the CPU.

    Raises:
        UserError: the file is damaged, cut off or of another format.
    """
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or not 2 <= size <= min(_LONGEST, len(content) - 8):
            raise ValueError("its first 8 bytes are no length of a header")
        header = json.loads(content[8 : 8 + size])
        body = memoryview(content)[8 + size :]
        return {str(n): _tensor(entry, body) for n, entry in header.items() if n != "__metadata__"}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # JSON's and Unicode's are ValueErrors
        raise UserError(f"{path}: damaged, or not of the safetensors format ({error})") from None


def _tensor(entry: Any, body: memoryview) -> Tensor:
    start, end = entry["data_offsets"]
    shape, kind = [int(n) for n in entry["shape"]], _TYPES[entry["dtype"]]
    if not 0 <= start <= end <= len(body) or min(shape, default=1) < 0:
        raise ValueError(f"offsets {start} to {end} of {len(body)} bytes")
    if end - start != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{end - start} bytes for the shape {shape}")
    if start == end:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(body[start:end]), dtype=kind).view(shape)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a file that `read_tensors`, and whatever else knows the format, reads.

    Args:
        path: the file.
        tensors: by name; written in row-major order.
        about: texts for the header.

    Raises:
        UserError: a type that the format does not know.
    """
    known = {kind: name for name, kind in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in known:
            raise UserError(f"{path}: {name} is {tensor.dtype}, which the safetensors format does not know")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": known[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
