"""`mri-synth list`: the model x data matrix, made from the code and the configs."""

from __future__ import annotations

import inspect
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from mri_synth import config


def matrix() -> dict[str, dict[str, str]]:
    """What goes with what.

    Returns:
        Model -> data set -> "" where it goes with the defaults of both, else the reason why not.
    """
    out: dict[str, dict[str, str]] = {}
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        for model in config.choices("model"):
            out[model] = {}
            for data in config.choices("data"):
                cfg = compose("run", [f"model={model}", f"data={data}"])
                values: dict[str, Any] = {g: OmegaConf.to_container(cfg[g]) for g in ("model", "data")}
                classes = get_class(cfg.model._target_), get_class(cfg.data._target_)
                out[model][data] = "; ".join(config.needs_against_offers(*classes, values))
    return out


def show() -> None:
    """Print the matrix, and one line about every model and data set."""
    table = matrix()
    console = Console()
    sets = config.choices("data")
    grid = Table("model", "what it is", *sets, title="models and the data they train on with default settings")
    reasons = []
    for model, row in table.items():
        grid.add_row(model, _first_line("model", model), *("yes" if not row[d] else "no" for d in sets))
        reasons += [r for r in row.values() if r]
    console.print(grid)
    for data in sets:
        console.print(f"  data={data}: {_first_line('data', data)}")
    for reason in dict.fromkeys(reasons):
        console.print(f"  no: {reason}")


def _first_line(group: str, name: str) -> str:
    target = OmegaConf.load(config.config_dir() / group / f"{name}.yaml")._target_
    return (inspect.getdoc(get_class(target)) or "").splitlines()[0]
