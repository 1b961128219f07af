"""What two sides that train in turns do with their parameters, gradients and averages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


@contextmanager
def frozen(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Parameters without gradients: what passes through is differentiated for its input alone.

    Args:
        networks: to freeze for a while.

    Yields:
        Nothing.
    """
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@torch.no_grad()
def average_gradients(optimizer: Optimizer) -> None:
    """Mean of an optimizer's gradients over all processes, in one message.

    Args:
        optimizer: its gradients are those of this process, and of the same parameters in all.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])


@torch.no_grad()
def average_buffers(networks: Iterable[nn.Module]) -> None:
    """Mean over all processes of what networks gather beside their parameters, such as the statistics of batch norm.

    What is in evaluation gathers nothing and stays as it is, to the bit, which a mean of equal numbers might not.

    Args:
        networks: the same in all processes.
    """
    gathering = (m for network in networks for m in network.modules() if m.training)
    buffers = [b for m in gathering for b in m.buffers(recurse=False) if b.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([b.reshape(-1).float() for b in buffers])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for part, buffer in zip(flat.split([b.numel() for b in buffers]), buffers, strict=True):
        buffer.copy_(part.view(buffer.shape))


@torch.no_grad()
def follow(averages: Sequence[nn.Module], networks: Sequence[nn.Module], decay: float) -> None:
    """Move averages of networks a little towards them; buffers, such as batch statistics, are copied.

    Args:
        averages: copies of the networks.
        networks: in the same order.
        decay: share that stays.
    """
    kept: list[Tensor] = [p for network in averages for p in network.parameters()]
    now: list[Tensor] = [p for network in networks for p in network.parameters()]
    torch._foreach_lerp_(kept, now, 1 - decay)
    for average, network in zip(averages, networks, strict=True):
        for old, new in zip(average.buffers(), network.buffers(), strict=True):
            old.copy_(new)


def forget_others(trainer: pl.Trainer, names: Collection[str]) -> None:
    """Lightning writes what was logged once again with every later value of anything; of other names it then does not.

    Args:
        trainer: in training.
        names: that are logged at this step.
    """
    known: Any = trainer._results
    start = "training_step."
    for key in [k for k in known if k.startswith(f"{start}train/") and k.removeprefix(start) not in names]:
        del known[key]


def detached(fakes: Any) -> Any:
    """The same without graphs.

    Args:
        fakes: a tensor, or a dict or tuple of them.

    Returns:
        Of the same structure.
    """
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, fakes)
