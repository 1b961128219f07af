"""Pickled arrays, read without running what a pickle may ask to run.

`pickle.load` calls whatever a file names. Here three names are known, those with which numpy writes an array, and each
stands for an inert record: not even numpy's own reconstruction, whose `__setstate__` trusts its input, is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_synth.errors import UserError

_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}

Arrays = dict[str, "Arrays | NDArray[Any]"]


class _Type:
    """What a pickle calls `numpy.dtype`: a plain number type and its byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        if kind not in _KINDS:
            raise pickle.UnpicklingError(f"arrays of type {kind!r}")
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self.order = state[1]


class _Array:
    """What a pickle calls `numpy.ndarray`: shape, type, order and bytes."""

    value: NDArray[Any]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array that is not plain numbers")
        flat = np.frombuffer(content, np.dtype(kind.order + kind.kind))
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def read_arrays(path: Path) -> Arrays:
    """Arrays of a pickle that holds nothing but (nested) dicts of them.

    Args:
        path: the pickle.

    Returns:
        The same nesting of dicts, with read-only arrays.

    Raises:
        UserError: the file is no pickle, is damaged, or holds or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Unpickler(file).load())
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
            OverflowError, MemoryError) as error:  # fmt: skip
        raise UserError(f"{path}: refused, a pickle of plain arrays is expected: {error}") from None


def _plain(value: object) -> Arrays:
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    return {k: v.value if isinstance(v, _Array) else _plain(v) for k, v in value.items()}
