"""What an annotation allows: whether a value fits it, and how to say it in a message."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at

_ONE = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", None: "null"}
_MANY = {int: "whole numbers", float: "numbers", bool: "true or false", str: "words, such as [a,b]", Path: "paths"}
_BOUNDS: dict[type, tuple[str, str]] = {
    at.Ge: ("ge", "of at least"), at.Gt: ("gt", "above"), at.Le: ("le", "at most"), at.Lt: ("lt", "below"),
}  # fmt: skip


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML fits an annotation.

    Strict for scalars (no text for a number, no number for true or false), lenient for lists, which YAML has only one
    kind of. A whole number is a number; NaN and infinity are none.

    Args:
        value: plain value.
        hint: annotation, bounds included.

    Returns:
        True when it does.
    """
    from pydantic import TypeAdapter, ValidationError

    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if Ellipsis in inner else list(inner)
        return len(kinds) == len(value) and all(map(fits, value, kinds))
    if hint is Path:
        return isinstance(value, str)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def allowed(hint: Any) -> str:
    """What an annotation allows, such as "a whole number of at least 1" or "none or group".

    Args:
        hint: annotation, bounds included.

    Returns:
        Words that follow "allowed:".
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(inner[0], inner[1:], many=False)
    if origin is Literal:
        return either([show(value) for value in inner])
    if origin in (Union, types.UnionType):
        return either([allowed(kind) for kind in inner])
    if origin in (list, tuple):
        return _list(origin, inner, "")
    if origin is dict:
        return "pairs such as {name: value}"
    if dataclasses.is_dataclass(hint):
        return f"the keys {', '.join(f.name for f in dataclasses.fields(hint))}"
    return _ONE.get(None if hint is type(None) else hint, str(getattr(hint, "__name__", hint)))


def _list(origin: Any, inner: Sequence[Any], count: str) -> str:
    if origin is tuple and Ellipsis not in inner:
        count = f"{len(inner)} "
    kind = inner[0]
    if get_origin(kind) is Annotated:
        return f"a list of {count}{_bounded(get_args(kind)[0], get_args(kind)[1:], many=True)}"
    return f"a list of {count}{_MANY.get(kind) or allowed(kind)}"


def _bounded(kind: Any, limits: Sequence[Any], many: bool) -> str:
    lengths = [x for x in limits if isinstance(x, at.Len)]
    if lengths and get_origin(kind) in (list, tuple):
        low, high = lengths[0].min_length, lengths[0].max_length
        count = f"{low} " if low == high else f"{low} to {high} " if high is not None else f"{low} or more "
        return _list(get_origin(kind), get_args(kind), count)
    words = (_MANY if many else _ONE).get(kind) or allowed(kind)
    ends = [(how, getattr(x, name)) for x in limits for cls, (name, how) in _BOUNDS.items() if isinstance(x, cls)]
    if [how for how, _ in ends] == ["of at least", "at most"]:
        return f"{words} from {show(ends[0][1])} to {show(ends[1][1])}"
    return " and ".join([f"{words} {how} {show(end)}" if i == 0 else f"{how} {show(end)}"
                         for i, (how, end) in enumerate(ends)]) or words  # fmt: skip


def either(words: Sequence[str]) -> str:
    """Words as an enumeration: "a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def show(value: Any) -> str:
    """A value as it is typed on the command line: true, null, [1,2]; a text that looks like a number in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(show(v) for v in value) + "]"
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return value if value and value not in ("true", "false", "null") else repr(value)
        return value if value in ("nan", "inf") else repr(value)
    return str(value)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant.

    Args:
        word: as typed.
        known: the right ones.

    Returns:
        One of them, None when none is near.
    """
    lower = {k.lower(): k for k in known}
    begun = [k for k in lower if len(word) > 2 and k.startswith(word.lower())]
    found = begun or difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def choice_meant(value: Any, hint: Any) -> str | None:
    """The choice of a `Literal` that was probably meant; None for other annotations, or when none is near."""
    inner = get_args(hint)
    if not isinstance(value, str):
        return None
    if get_origin(hint) is Literal:
        return nearest(value, [x for x in inner if isinstance(x, str)])
    if get_origin(hint) in (Union, types.UnionType):
        return next((near for kind in inner if (near := choice_meant(value, kind))), None)
    return None


def settings_of(hint: Any) -> Any:
    """The settings dataclass that an annotation names, alone or with None beside it; else None."""
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if union else [hint]
    return kinds[0] if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]) else None
