"""The configuration: where it is found, and `check`: every mistake in one message, before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mri_synth.errors import ConfigError

TASKS = ("fit", "test", "check", "plan")
GROUPS = ("model", "data", "trainer", "logger")
ROOT: dict[str, Any] = {
    "seed": int, "task": str, "resume": str | None, "init_from": str | None, "ckpt": str | None,
}  # fmt: skip
PROVIDED = frozenset({"spec", "run", "model", "loggers"})
"""Constructor arguments that `run.py` gives and no YAML may: what the data know, the run's folder, ...."""


def config_dir() -> Path:
    """The folder `conf`: inside an installed package, or at the top of a checkout.

    Returns:
        Its absolute path.
    """
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "conf", package.parent / "conf") if (p / "run.yaml").exists())


def choices(group: str) -> list[str]:
    """Names of a config group, such as the models.

    Args:
        group: folder under `conf`.

    Returns:
        Names that `group=NAME` accepts.
    """
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))


def admit_unknown(overrides: Sequence[str]) -> list[str]:
    """Let Hydra take overrides of keys that do not exist, so that `check` names them with all other mistakes.

    Hydra stops at the first unknown key and knows no "did you mean".

    Args:
        overrides: words of the command line.

    Returns:
        The same words, `+` before the assignments to unknown keys.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    words = [w for w in overrides if not w.startswith("-") and "=" in w]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
    except OverrideParseException:
        return list(overrides)  # Hydra's own message shows the place
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        groups = [p.input_line for p in parsed if p.key_or_group in (*GROUPS, "experiment") and p.input_line]
        try:
            known = compose("run", [_first_choice(g) for g in groups])
        except (HydraException, OmegaConfBaseException):
            return list(overrides)
    unknown = {
        p.input_line
        for p in parsed
        if p.type is not None and p.type.name == "CHANGE" and p.package is None
        and p.key_or_group not in ("experiment",) and not p.key_or_group.startswith("hydra")
        and not (config_dir() / p.key_or_group).is_dir() and not _exists(known, p.key_or_group)
    }  # fmt: skip
    return [f"+{w}" if w in unknown else w for w in overrides]


def _first_choice(word: str) -> str:
    """`model=vae,vqvae` of a sweep -> `model=vae`: enough to know the keys."""
    return word.split(",", 1)[0]


def _exists(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node._get_node(part)
    return True


def check(cfg: DictConfig) -> None:
    """Find every mistake in a composed configuration. Opens no data and builds no model.

    Args:
        cfg: as Hydra composed it.

    Raises:
        ConfigError: lists all mistakes: unknown keys with the nearest known one, wrong types, choices and ranges,
            missing values, and a model that needs what the data do not offer.
    """
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]) from error
    values.pop("hydra", None)
    problems = _root(values)
    targets = {}
    for group in GROUPS:
        if isinstance(values.get(group), dict):
            targets[group] = target = _target(group, values[group], problems)
            if target is not None:
                problems += _arguments(group, values[group], target)
        elif values.get(group) is not None or group in ("model", "data", "trainer"):
            problems.append(f"{group}={values.get(group)!r}: choose one of {choices(group)}, such as {group}="
                            f"{choices(group)[0] if choices(group) else '...'}")  # fmt: skip
    if not problems and targets.get("model") and targets.get("data"):
        problems += needs_against_offers(targets["model"], targets["data"], values)
    if problems:
        raise ConfigError(problems)


def _root(values: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, value in values.items():
        if key in GROUPS:
            continue
        if key not in ROOT:
            problems.append(_unknown(key, (*ROOT, *GROUPS)))
        else:
            problems += _value(key, value, ROOT[key])
    task = values.get("task")
    if task not in TASKS:
        problems.append(f"task={task}: allowed: {', '.join(TASKS)}")
    if isinstance(values.get("seed"), int) and not 0 <= values["seed"] < 2**32:
        problems.append(f"seed={values['seed']}: allowed: 0 to 4294967295")
    for key in ("ckpt", "init_from"):
        path = values.get(key)
        if isinstance(path, str) and not Path(path).is_file():
            problems.append(f"{key}={path}: no such file; give a checkpoint such as outputs/<run>/best.ckpt")
    if task == "test" and not values.get("ckpt"):
        problems.append("task=test needs ckpt=outputs/<run>/best.ckpt")
    return problems


def _target(group: str, section: Mapping[str, Any], problems: list[str]) -> Callable[..., Any] | None:
    from hydra.utils import get_object

    path = section.get("_target_")
    if not isinstance(path, str):
        problems.append(f"{group}._target_ is missing: choose {group}=NAME, one of {choices(group)}")
        return None
    try:
        target: Callable[..., Any] = get_object(path)
    except Exception as error:
        problems.append(f"{group}._target_={path}: cannot be imported ({error})")
        return None
    return target


def _arguments(prefix: str, section: Mapping[str, Any], target: Callable[..., Any]) -> list[str]:
    """Mistakes of a mapping against the signature of a class, a function or a settings dataclass."""
    parameters = inspect.signature(target).parameters
    hints = _hints(target)
    known = [n for n in parameters if n not in PROVIDED]
    problems = [_unknown(f"{prefix}.{k}", [f"{prefix}.{n}" for n in known])
                for k in section if k not in known and k != "_target_"]  # fmt: skip
    for name in known:
        if section.get(name) == "???" or (name not in section and parameters[name].default is inspect.Parameter.empty):
            problems.append(f"{prefix}.{name} is missing: give {prefix}.{name}=VALUE ({_words(hints[name])})")
        elif name in section:
            problems += _value(f"{prefix}.{name}", section[name], hints[name])
    extra: Callable[[Mapping[str, Any]], list[str]] | None = getattr(target, "problems", None)
    if not problems and extra is not None:
        problems += extra({k: v for k, v in section.items() if k != "_target_"})
    return problems


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    if not inspect.isclass(target):
        return typing.get_type_hints(target, include_extras=True)
    if not dataclasses.is_dataclass(target):
        return typing.get_type_hints(target.__init__, include_extras=True)
    hints: dict[str, Any] = {}
    for cls in reversed(target.__mro__):  # each class's annotations are read in its own module
        if dataclasses.is_dataclass(cls):
            space = vars(sys.modules[cls.__module__])
            for name, text in inspect.get_annotations(cls).items():
                hints[name] = eval(text, space) if isinstance(text, str) else text
    return hints


def _value(key: str, value: Any, hint: Any) -> list[str]:
    """Mistakes of one value against an annotation: strict for scalars, lenient for list against tuple."""
    from pydantic import TypeAdapter, ValidationError

    if value == "???":
        return [f"{key} is missing: give {key}=VALUE ({_words(hint)})"]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return []
        rest = [a for a in arguments if a is not type(None)]
        if len(rest) == 1:
            return _value(key, value, rest[0])
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _arguments(key, value, typing.cast("Callable[..., Any]", hint))
        return [f"{key}={value!r}: needs keys: {', '.join(f.name for f in dataclasses.fields(hint))}"]
    if origin in (list, tuple) and isinstance(value, list):
        if origin is tuple and Ellipsis not in arguments and len(arguments) != len(value):
            return [f"{key}={value}: needs {len(arguments)} values"]
        kinds = [arguments[0]] * len(value) if origin is list or Ellipsis in arguments else arguments
        return [p for i, (v, kind) in enumerate(zip(value, kinds, strict=True)) for p in _value(f"{key}[{i}]", v, kind)]
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        return [
            f"{key}={value!r}: {'; '.join(dict.fromkeys(e['msg'].replace('Input s', 's') for e in error.errors()))}"
        ]
    return []


def _words(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    names = ", ".join(k.rpartition(".")[2] for k in known)
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"known: {names}")


def needs_against_offers(model: Any, data: Any, values: Mapping[str, Any]) -> list[str]:
    """Whether the data offer the view that the model needs.

    Args:
        model: class of the model.
        data: class of the data module.
        values: the whole configuration.

    Returns:
        The mistakes, with the way out.
    """
    needs = called(model.needs, values["model"])
    reason = data.refuses(needs, values["data"])
    name = Path(values["model"]["_target_"].rpartition(".")[0].replace(".", "/")).name
    return [f"model={name} {reason}"] if reason else []


def called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a function with those of the arguments that it takes.

    Args:
        function: any.
        arguments: more than enough.

    Returns:
        Its result.
    """
    return function(**{n: arguments[n] for n in inspect.signature(function).parameters if n in arguments})
