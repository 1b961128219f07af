"""Optimizers of many images at once that do not see each other: each has its own state and its own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class CanvasOptimizer(Optimizer):
    """One parameter of N images, of which a step moves those that were evaluated, each for itself.

    State is kept in tensors whose first axis is the image, so that checkpoints hold it and any batch may come next.

    Args:
        canvas: (N, C, H, W).
        settings: numbers of the method.

    Attributes:
        keep: brings images back to what they may be, after each step; by default clips them to [-1, 1].
        stepped: is told which were moved, afterwards.
    """

    def __init__(self, canvas: nn.Parameter, settings: dict[str, Any]) -> None:
        super().__init__([canvas], settings)
        self.canvas = canvas
        self.evaluated = torch.zeros(len(canvas), dtype=torch.bool)
        self.values = torch.zeros(len(canvas))
        self.keep: Callable[[Tensor], Tensor] = _clipped
        self.stepped: Callable[[Tensor], None] | None = None

    def tell(self, evaluated: Tensor, values: Tensor) -> None:
        """What was evaluated since the last step. Images of several batches may come together.

        Args:
            evaluated: (N,) bool.
            values: (N,) the objective of each, where it was.
        """
        before = self.evaluated.to(values.device)
        self.values = torch.where(evaluated, values, self.values.to(values.device))
        self.evaluated = before | evaluated

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each image that was evaluated; exactly one evaluation, the closure's.

        Args:
            closure: evaluates the objective and its gradient; None where that was done.

        Returns:
            What the closure did.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradient = self.canvas.grad
        rows = self.evaluated.nonzero()[:, 0].to(self.canvas.device)
        self.evaluated = torch.zeros_like(self.evaluated)
        if gradient is not None and len(rows):
            with torch.no_grad():
                x, g = self.canvas[rows], gradient[rows]
                moved = self.moved(rows, x.flatten(1), g.flatten(1), self.values.to(x.device)[rows])
                self.canvas[rows] = self.keep(moved.view_as(x))
                if self.stepped is not None:
                    self.stepped(rows)
        return loss

    def settle(self) -> None:
        """Leave no image at a place that was not found good; at the end of a run."""

    def moved(self, rows: Tensor, x: Tensor, g: Tensor, f: Tensor) -> Tensor:
        """Where the images go next.

        Args:
            rows: (B,) which of the N images.
            x: (B, P) they.
            g: (B, P) their gradients.
            f: (B,) their objectives.

        Returns:
            (B, P); `keep` has the last word.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def kept(self, *names_and_shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """State by name, made of zeros when it is first asked for.

        Args:
            names_and_shapes: of each state but its first axis.

        Returns:
            Name to (N, *shape) float32: numbers that count are floats too, as torch turns all state into the
            parameter's type when it loads a checkpoint.
        """
        state: dict[str, Tensor] = self.state[self.canvas]
        for name, shape in names_and_shapes:
            if name not in state:
                state[name] = torch.zeros(len(self.canvas), *shape, device=self.canvas.device)
        return state


class CanvasAdam(CanvasOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), with the moments and the step count of each image its own.

    Args:
        canvas: (N, C, H, W).
        lr: step size, in units of the images.
        betas: decay rates of the moments.
        eps: added to the root of the second.
    """

    def __init__(self, canvas: nn.Parameter, lr: float, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8) -> None:  # fmt: skip
        super().__init__(canvas, {"lr": lr, "betas": betas, "eps": eps})

    def moved(self, rows: Tensor, x: Tensor, g: Tensor, f: Tensor) -> Tensor:
        """One step of Adam."""
        settings, pixels = self.param_groups[0], (x.shape[1],)
        state = self.kept(("m", pixels), ("v", pixels), ("steps", ()))
        one, two = settings["betas"]
        m, v = torch.lerp(g, state["m"][rows], one), torch.lerp(g.square(), state["v"][rows], two)
        steps = state["steps"][rows] + 1
        state["m"][rows], state["v"][rows], state["steps"][rows] = m, v, steps
        m_hat, v_hat = m / (1 - one**steps)[:, None], v / (1 - two**steps)[:, None]
        out: Tensor = x - settings["lr"] * m_hat / (v_hat.sqrt() + settings["eps"])
        return out


def _clipped(images: Tensor) -> Tensor:
    return images.clamp(-1, 1)
