"""Names of a sweep's run folders: the job's number and what is swept, in characters that need no quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mri_synth.config import config_dir

_LONGEST = 100
"""Characters; file systems allow 255 in a name, and W&B and Slurm show fewer."""


def name_by_swept(words: Sequence[str]) -> list[str]:
    """Let a sweep's folders be named by the keys that differ: Hydra names them by every word of the command line.

    Args:
        words: of the command line, `-m` among them or not; an experiment may be a sweep by itself.

    Returns:
        The same words; in a sweep one more.
    """
    if not {"-m", "--multirun"} & set(words) and not any(_sweeps(w) for w in words):
        return list(words)
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    overrides = [w for w in words if "=" in w and not w.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException:
        return list(words)
    fixed = dict.fromkeys(p.key_or_group for p in parsed if not p.is_sweep_override())
    first = words.index(overrides[0]) if overrides else len(words)  # argparse wants all overrides in one row
    return [*words[:first], f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]", *words[first:]]


def _sweeps(word: str) -> bool:
    """Whether a word chooses an experiment that says `hydra.mode: MULTIRUN`."""
    group, _, name = word.partition("=")
    file = config_dir() / "experiment" / f"{name}.yaml"
    return group == "experiment" and file.is_file() and bool(re.search(r"^  mode: MULTIRUN$", file.read_text(), re.M))


def job_folder(number: int | str, swept: str) -> str:
    """Folder of one job of a sweep.

    Args:
        number: of the job.
        swept: such as model.codebook_size-64_seed-1.

    Returns:
        One path component of letters, digits and . + - _ only.
    """
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", re.sub(r"[][{}()'\" ]", "", swept)).strip("-")
    return f"{number}_{safe}"[:_LONGEST].rstrip("_-.") if safe else str(number)
