"""What all tests share: a quiet offline environment, real MRI where it is at hand, and the composed config."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
Compose = Callable[..., DictConfig]

# Set here and not in a fixture: OpenMP reads its variable once, when torch is first imported.
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MPLBACKEND": "Agg", "HYDRA_FULL_ERROR": "1"}
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = str(max(1, 2 // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One store for all tests and test processes; nothing of the user's own data, cache or keys is touched."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    os.environ["MRI_SYNTH_CACHE"] = str(base / "cache")
    os.environ["WANDB_DIR"] = str(base)
    for name in ("MRI_SYNTH_DATA", "WANDB_API_KEY"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real MRI beside the checkout."""
    path = ROOT.parent / "shared/data"
    if not path.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return path


@pytest.fixture(scope="session")
def compose() -> Compose:
    """`compose("data=phantom", "model.lr=1e-3")`: the config that ships, composed by Hydra as the command line does.

    Overrides may also come as one list. `return_hydra_config=True` adds the `hydra` node.
    """

    def call(*overrides: str | Sequence[str], return_hydra_config: bool = False) -> DictConfig:
        flat = [o for item in overrides for o in ([item] if isinstance(item, str) else item)]
        with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
            return hydra_compose("run", overrides=flat, return_hydra_config=return_hydra_config)

    return call
