"""The words of the command line, before Hydra composes them: their mistakes are found together with all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mri_synth import config
from mri_synth.allowed import nearest, show
from mri_synth.errors import ConfigError


def admit_unknown(overrides: Sequence[str]) -> list[str]:
    """Let Hydra take overrides of keys that do not exist, so that `check` names them with all other mistakes.

    Hydra stops at the first unknown key or choice and knows no "did you mean".

    Args:
        overrides: words of the command line.

    Returns:
        The same words, `+` before the assignments to unknown keys.

    Raises:
        ConfigError: words that cannot be read, or choices of a group that do not exist; with the other mistakes.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    parsed, problems = _parse(overrides)
    mistakes = {p.key_or_group: mistake for p in parsed if (mistake := _wrong_choice(p))}
    problems += mistakes.values()
    good = [p for p in parsed if p.key_or_group.partition(".")[0] not in mistakes]
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        chosen = [_first_choice(p.input_line) for p in good if _is_group(p.key_or_group)]
        try:
            known = compose("run", chosen)
        except (HydraException, OmegaConfBaseException):
            return list(overrides)  # Hydra's own message is the best there is
        unknown = {p.input_line for p in good if _assigns(p) and not _exists(known, p.key_or_group)}
        words = [f"+{w}" if w in unknown else w for w in overrides]
        if problems:
            plain = [f"+{p.input_line}" if p.input_line in unknown else p.input_line
                     for p in good if not p.is_sweep_override()]  # fmt: skip
            raise ConfigError(problems + _further(lambda: compose("run", plain)))
    return words


def _parse(overrides: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Hydra's overrides, and a message for each word that is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser = OverridesParser.create()
    options = [w for w in overrides if w.startswith("-") and w not in ("-m", "--multirun")]
    parsed: list[Any] = []
    problems: list[str] = []
    for word in overrides:
        if word.startswith("-") or (options and "=" not in word):  # an option's own value
            continue
        if "=" not in word and not word.startswith("~"):
            problems.append(f"{word}: not of the form key=value, such as model=vqvae or model.lr=1e-3")
            continue
        try:
            parsed += parser.parse_overrides([word])
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{word}: cannot be read ({reason}); in a shell, put quotes round it: '{_quoted(word)}'")
    return parsed, problems


def _quoted(word: str) -> str:
    """The word with quotes of Hydra's own round a plain value, which brackets, "=" and the like need."""
    key, _, value = word.partition("=")
    plain = bool(value) and value[0] not in "[{\"'" and '"' not in value
    return f'{key}="{value}"' if plain else word


def _wrong_choice(override: Any) -> str:
    """What is wrong with the choice of a config group; "" if nothing is."""
    group = override.key_or_group
    if not _is_group(group) or override.is_delete() or group.startswith("hydra"):
        return ""
    known = config.choices(group)
    value = override.value()
    values = value if isinstance(value, list) else [value]
    if override.is_choice_sweep():
        values = [str(v) for v in value.list]
    wrong = [v for v in values if not isinstance(v, str) or v not in known]
    if not wrong:
        return ""
    near = nearest(str(wrong[0]), known)
    there = f"there is: {', '.join(known) or 'none'}"
    return f"{group}={show(wrong[0])}: no such choice; " + (f"did you mean {near}? ({there})" if near else there)


def _is_group(key: str) -> bool:
    return (config.config_dir() / key).is_dir()


def _assigns(override: Any) -> bool:
    """Whether it is `key=value` of a key of ours (not of a group, not of Hydra, nothing added or deleted)."""
    key: str = override.key_or_group
    change = override.type is not None and override.type.name == "CHANGE" and override.package is None
    return change and not key.startswith("hydra") and not _is_group(key)


def _first_choice(word: str) -> str:
    """`model=vae,vqvae` of a sweep -> `model=vae`: enough to know the keys."""
    return word if "[" in word else word.split(",", 1)[0]


def _exists(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node._get_node(part)
    return True


def _further(composed: Any) -> list[str]:
    """The mistakes that `check` finds beside those that keep Hydra from composing."""
    from hydra.errors import HydraException

    try:
        config.check(composed())
    except ConfigError as error:
        return error.problems
    except (HydraException, OmegaConfBaseException):
        return []
    return []
