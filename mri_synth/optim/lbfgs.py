"""L-BFGS of many images at once, each with its own history, its own scale and its own step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mri_synth.optim.canvas import CanvasOptimizer

DECREASE = 1e-4
"""Share of the decrease which the gradient promises that a step must bring (Armijo; Nocedal and Wright 2006, 3.4)."""
NOISE = 1e-3
"""Share of the objective that a step may seem to add: about what bf16 features leave uncertain."""
TRIES = 4
"""Times that a step is shortened; after them it is taken as it is."""


class CanvasLBFGS(CanvasOptimizer):
    """L-BFGS (Nocedal and Wright 2006, algorithms 7.4 and 7.5): one evaluation a step.

    `x' = x - t H g`, H from the last `history` pairs s = x_k+1 - x_k, y = g_k+1 - g_k, H_0 = s.y / y.y. As in
    torch.optim.LBFGS t is 1, and at the start, without a pair, min(1, 1 / |g|_1). A step which does not bring the
    objective down is halved or more, by the parabola through what is known, at the price of an evaluation; torch's
    takes it. Pixels at the ends of [-1, 1] that would go on outwards stay out of the direction.

    torch's on a batch has one history and one step for all of its items; here an item's steps are the same
    whatever else is in the batch.

    Args:
        canvas: (N, C, H, W).
        lr: t.
        history: pairs that are kept of each image; 2 x history images of memory each.
    """

    def __init__(self, canvas: nn.Parameter, lr: float = 1.0, history: int = 10) -> None:
        super().__init__(canvas, {"lr": lr, "history": history})

    def moved(self, rows: Tensor, x: Tensor, g: Tensor, f: Tensor) -> Tensor:
        """The next point of each image: onwards, or back and less far."""
        pixels, history, lr = (x.shape[1],), self.param_groups[0]["history"], self.param_groups[0]["lr"]
        state = self.kept(
            ("x", pixels), ("g", pixels), ("d", pixels), ("f", ()), ("t", ()), ("tries", ()), ("begun", ()),
            ("pairs", ()), ("s", (history, *pixels)), ("y", (history, *pixels)),
        )  # fmt: skip
        x0, g0, f0, t = (state[k][rows] for k in ("x", "g", "f", "t"))
        first = state["begun"][rows] == 0
        slope = _dot(g0, x - x0)  # of the step that was made, which the ends of [-1, 1] may have cut
        good = torch.isfinite(f) & (f <= f0 + DECREASE * slope + NOISE * f0.abs())
        taken = first | good | ((state["tries"][rows] >= TRIES) & torch.isfinite(f))
        self._remember(state, rows, x - x0, g - g0, taken & ~first)
        d, fresh = self._direction(state, rows, x, g, taken)
        onward = torch.where(fresh, (1 / _dot(g, g.sign()).clamp(min=1e-12)).clamp(max=1.0), torch.ones_like(f)) * lr
        parabola = -slope * t / (2 * (f - f0 - slope)).clamp(min=1e-12)
        back = torch.where(torch.isfinite(f), torch.minimum(torch.maximum(parabola, 0.1 * t), 0.5 * t), 0.1 * t)
        t = torch.where(taken, onward, back)
        at = taken[:, None]
        x0, g0, d = torch.where(at, x, x0), torch.where(at, g, g0), torch.where(at, d, state["d"][rows])
        state["x"][rows], state["g"][rows], state["d"][rows] = x0, g0, d
        state["f"][rows], state["t"][rows] = torch.where(taken, f, f0), t
        state["tries"][rows] = torch.where(taken, 0.0, state["tries"][rows] + 1)
        state["begun"][rows] = torch.ones_like(f)
        return x0 + t[:, None] * d

    @torch.no_grad()
    def settle(self) -> None:
        """Back from a step that was not evaluated to where it started, the last place that was taken."""
        state = self.state[self.canvas]
        if "begun" in state:
            begun = (state["begun"] > 0).nonzero()[:, 0]
            self.canvas[begun] = state["x"][begun].view_as(self.canvas[begun])

    def _remember(self, state: dict[str, Tensor], rows: Tensor, s: Tensor, y: Tensor, here: Tensor) -> None:
        """Pairs of positive curvature, each in the place of its image's oldest."""
        here = here & (_dot(s, y) > 1e-10 * _dot(y, y))
        chosen = rows[here]
        place = (state["pairs"][chosen] % state["s"].shape[1]).long()
        state["s"][chosen, place], state["y"][chosen, place] = s[here], y[here]
        state["pairs"][chosen] += 1

    def _direction(self, state: dict[str, Tensor], rows: Tensor, x: Tensor, g: Tensor,
                   taken: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(B, P) descent directions, and (B,) whether they are the gradient's own, for want of pairs."""
        size = state["s"].shape[1]
        pairs = state["pairs"][rows].long()
        free = ~(((x <= -1) & (g > 0)) | ((x >= 1) & (g < 0)))
        q = g * free
        alphas = []
        scale = torch.ones_like(q[:, 0])
        for k in range(min(size, int(pairs.max()))):  # from the newest pair to the oldest
            known = pairs > k
            place = (pairs - 1 - k) % size
            s, y = state["s"][rows, place], state["y"][rows, place]
            rho = torch.where(known, 1 / _dot(s, y).clamp(min=1e-30), 0.0)
            alpha = rho * _dot(s, q)
            q = q - alpha[:, None] * y
            if k == 0:
                scale = torch.where(known, 1 / (rho * _dot(y, y)).clamp(min=1e-30), 1.0)
            alphas.append((place, rho, alpha))
        r = q * scale[:, None]
        for place, rho, alpha in reversed(alphas):
            beta = rho * _dot(state["y"][rows, place], r)
            r = r + (alpha - beta)[:, None] * state["s"][rows, place]
        d = -r * free
        fresh = (pairs == 0) | (_dot(d, g) >= 0)  # also where it does not lead down: then its pairs are forgotten
        state["pairs"][rows] = torch.where(fresh & taken, 0.0, state["pairs"][rows])
        return torch.where(fresh[:, None], -g * free, d), fresh


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) products of the rows. A row alone is summed as one among others: torch would have all threads sum it, in
    another order, and images that are told apart by their last bits part company in a hundred steps."""
    products = a * b
    return products.expand(2, -1).sum(1)[:1] if len(a) == 1 else products.sum(1)
