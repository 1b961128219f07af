"""Configurations of a sweep's jobs as plain values, without Hydra's slow way to each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """Configurations of a sweep's jobs: composed once for those that give the same keys, since Hydra takes its time.

    Args:
        loader: Hydra's.
        config: of the sweep.
    """

    def __init__(self, loader: Any, config: DictConfig) -> None:
        self.loader, self.config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._composed: dict[Any, DictConfig] = {}

    def values(self, words: list[str]) -> dict[str, Any] | None:
        """A job's configuration.

        Args:
            words: that compose it.

        Returns:
            Plain values; None where they cannot be resolved: the job itself says why.
        """
        overrides = [self._override(w) for w in words]
        values = [o for o in overrides if not self._is_group(o) and not o.key_or_group.startswith("hydra.")]
        key = (tuple(o.input_line for o in overrides if self._is_group(o)), tuple(o.key_or_group for o in values))
        if key not in self._composed or any(o.is_delete() for o in overrides):
            self._composed[key] = self.loader.load_sweep_config(self.config, words)
            del self._composed[key].hydra
        else:
            self.loader._apply_overrides_to_config(values, self._composed[key])
        try:
            return plain(self._composed[key])
        except OmegaConfBaseException:
            return None

    def subdir(self, number: int, words: list[str]) -> Path:
        """A job's folder, as seen from the sweep's.

        Args:
            number: of the job.
            words: that compose it.

        Returns:
            A relative path.
        """
        cfg = self.loader.load_sweep_config(self.config, words)
        with open_dict(cfg):
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        return Path(str(cfg.hydra.sweep.subdir))

    def _override(self, word: str) -> Override:
        if word not in self._parsed:
            (self._parsed[word],) = self._parser.parse_overrides([word])
        return self._parsed[word]

    def _is_group(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = override.package is not None or bool(self.loader.get_group_options(key))
        return self._groups[key]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, without Hydra's own.

    Args:
        cfg: as Hydra composed it.

    Returns:
        Resolved values.
    """
    ours = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    found: Any = OmegaConf.to_container(ours, resolve=True)
    return dict(found)
