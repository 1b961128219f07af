"""The configuration: where it is found, and `check`: every mistake in one message, before anything is built."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mri_synth.allowed import allowed, choice_meant, fits, nearest, settings_of, show
from mri_synth.errors import ConfigError

GROUPS = ("model", "data", "trainer", "logger")
ROOT: dict[str, Any] = {
    "seed": Annotated[int, Ge(0), Le(2**32 - 1)], "task": Literal["fit", "test", "check", "plan"],
    "resume": str | None, "init_from": str | None, "ckpt": str | None, "samples": Annotated[int, Ge(0)],
    "features": list[str], "rerun": bool,
}  # fmt: skip
FEATURES = ("auto", "inception", "inception_bf16", "pixels")
"""Words for the feature spaces of `features`; "auto" is Inception where its weights are here, and nothing where not."""
BASES = {"model": ("mri_synth.models.base", "SynthModule"), "data": ("mri_synth.data.base", "MRIDataModule")}
PROVIDED = frozenset({"spec", "run", "model", "loggers"})
"""Constructor arguments that `run.py` gives and no YAML may: what the data know, the run's folder, ...."""


def config_dir() -> Path:
    """The folder `conf`: inside an installed package, or at the top of a checkout.

    Returns:
        Its absolute path.
    """
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "conf", package.parent / "conf") if (p / "run.yaml").exists())


def checkpoint_beside(path: Path) -> str:
    """What to give in place of a checkpoint that is not there, for a message.

    Args:
        path: that was given.

    Returns:
        The run's last.ckpt where it has one, as without a value of the metric that chooses best.ckpt; else a pattern.
    """
    last = path.with_name("last.ckpt")
    return f"{last}, which its run has" if last.is_file() else "outputs/<run>/best.ckpt"


def choices(group: str) -> list[str]:
    """Names of a config group, such as the models.

    Args:
        group: folder under `conf`.

    Returns:
        Names that `group=NAME` accepts.
    """
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))


def check(cfg: DictConfig) -> None:
    """Find every mistake in a composed configuration. Opens no data and builds no model.

    Args:
        cfg: as Hydra composed it.

    Raises:
        ConfigError: lists all mistakes: unknown keys with the nearest known one, wrong types, choices and ranges,
            missing values, and a model that needs what the data do not offer.
    """
    try:
        ours = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
        values: Any = OmegaConf.to_container(ours, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]) from error
    problems: list[str] = []
    targets = {}
    for group in GROUPS:
        if isinstance(values.get(group), dict):
            targets[group] = _target(group, values[group], problems)
        else:
            problems.append(f"{group}={show(values.get(group))}: {_way_out(group)}")
    every = [f"{g}.{n}" for g, target in targets.items() if target for n in _parameters(target)]
    problems += _root(values, every)
    for group, target in targets.items():
        if target is not None:
            problems += _arguments(group, values[group], target, every)
    if not problems and targets.get("model") and targets.get("data"):
        problems += needs_against_offers(targets["model"], targets["data"], values)
    if problems:
        raise ConfigError(problems)


def _root(values: Mapping[str, Any], every: Sequence[str]) -> list[str]:
    problems = []
    for key, value in values.items():
        if key in ROOT:
            problems += _value(key, value, ROOT[key], every)
        elif key not in GROUPS:
            problems.append(_unknown(key, (*ROOT, *GROUPS), every))
    for key in ("ckpt", "init_from"):
        path = values.get(key)
        if isinstance(path, str) and path != "???" and not Path(path).is_file():
            what = f"a folder; did you mean {key}={Path(path) / 'best.ckpt'}?" if Path(path).is_dir() else (
                f"no such file; give a checkpoint such as {checkpoint_beside(Path(path))}")  # fmt: skip
            problems.append(f"{key}={path}: {what}")
    judges = values["trainer"].get("judge_features") if isinstance(values.get("trainer"), dict) else None
    words = [("features", w, f"[{w}]") for w in values["features"]] if isinstance(values.get("features"), list) else []
    for key, word, shown in [
        *words,
        *([("trainer.judge_features", judges, judges)] if isinstance(judges, str) else []),
    ]:
        if word not in FEATURES and not Path(str(word)).is_file():
            problems.append(f"{key}={shown}: no such file; allowed: {', '.join(FEATURES)}, or the checkpoint of "
                            "a run with model=encoder")  # fmt: skip
    if values.get("task") == "test" and not values.get("ckpt"):
        problems.append("task=test: ckpt is missing: say which checkpoint, such as ckpt=outputs/<run>/best.ckpt")
    return problems


def _target(group: str, section: Mapping[str, Any], problems: list[str]) -> Callable[..., Any] | None:
    path = section.get("_target_")
    if not isinstance(path, str) or path == "???":
        problems.append(f"{group}._target_={show(path)}: {_way_out(group)}")
        return None
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module) if module else None
        target: Callable[..., Any] = getattr(found, name)
        base = getattr(importlib.import_module(BASES[group][0]), BASES[group][1]) if group in BASES else None
    except AttributeError:
        near = nearest(name, list(vars(found))) if found else None
        hint = f"did you mean {module}.{near}?" if near else _way_out(group)
        problems.append(f"{group}._target_={path}: there is no {name} in {module or 'it'}; {hint}")
        return None
    except (ImportError, ValueError) as error:
        problems.append(f"{group}._target_={path}: cannot be imported ({error}); {_way_out(group)}")
        return None
    if not callable(target) or (base is not None and not (inspect.isclass(target) and issubclass(target, base))):
        what = f"a subclass of {'.'.join(BASES[group])}" if base is not None else "a class or a function"
        problems.append(f"{group}._target_={path}: not {what}; {_way_out(group)}")
        return None
    return target


def _way_out(group: str) -> str:
    return f"choose {group}=NAME; there is: {', '.join(choices(group))}"


def _parameters(target: Callable[..., Any]) -> list[str]:
    return [n for n in inspect.signature(target).parameters if n not in PROVIDED]


def _arguments(prefix: str, section: Mapping[str, Any], target: Callable[..., Any], every: Sequence[str]) -> list[str]:
    """Mistakes of a mapping against the signature of a class, a function or a settings dataclass."""
    parameters, hints, known = inspect.signature(target).parameters, _hints(target), _parameters(target)
    problems = [_unknown(f"{prefix}.{k}", [f"{prefix}.{n}" for n in known], every)
                for k in section if k not in known and k != "_target_"]  # fmt: skip
    for name in known:
        if name in section:
            problems += _value(f"{prefix}.{name}", section[name], hints[name], every)
        elif parameters[name].default is inspect.Parameter.empty:
            problems += _value(f"{prefix}.{name}", "???", hints[name], every)
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


def _value(key: str, value: Any, hint: Any, every: Sequence[str]) -> list[str]:
    """Mistakes of one value against its annotation; of nested settings, key by key."""
    if value == "???":
        return [f"{key} is missing: give {key}=VALUE; allowed: {allowed(hint)}"]
    nested = settings_of(hint)
    if nested is not None and isinstance(value, Mapping):
        return _arguments(key, value, nested, every)
    if fits(value, hint):
        return []
    near = choice_meant(value, hint)
    return [f"{key}={show(value)}: allowed: {allowed(hint)}" + (f"; did you mean {near}?" if near else "")]


def _unknown(key: str, known: Sequence[str], every: Sequence[str]) -> str:
    """Names the nearest key of the same place, else one of the same name elsewhere, else all that are known."""
    names = {k.rpartition(".")[2]: k for k in known}
    name = key.rpartition(".")[2]
    near = nearest(name, list(names))
    elsewhere = [k for k in every if k.rpartition(".")[2] == name]
    if near or elsewhere:
        return f"unknown key {key}; did you mean {names[near] if near else elsewhere[0]}?"
    return f"unknown key {key}; " + (f"known: {', '.join(names)}" if names else "it takes none")


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
    reason = data.refuses(needs, values["data"]) or called(model.refuses, {**values["data"], **values["model"]})
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
