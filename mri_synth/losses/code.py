"""Likelihood of code grids under predicted distributions; per-sample tensors, float32 whatever the autocast.

Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks" (arXiv:1601.06759), eq. 1: the chain rule over a
grid makes its likelihood the product of what was predicted for every position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def nll(logits: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood of a grid of codes, per code: what training of a prior over codes minimises.

    `nll = -mean_ij log softmax(logits_ij)[c_ij]`

    Args:
        logits: (B, K, h, w) unnormalised log-probabilities of the K codes at every position.
        codes: (B, h, w) int64 in [0, K).

    Returns:
        (B,) float32, in nats per code, not negative; log K for a uniform prediction.
    """
    with torch.autocast(logits.device.type, enabled=False):
        rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])  # a view where the network made the logits
        each = F.cross_entropy(rows.float(), codes.reshape(-1), reduction="none")
        return each.view(codes.shape).flatten(1).mean(1)


def bits_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Bits that a code of a grid costs under the predicted distributions: exact, since they factorise the grid.

    `bits = -mean_ij log2 softmax(logits_ij)[c_ij]`

    Args:
        logits: (B, K, h, w) unnormalised log-probabilities of the K codes at every position.
        codes: (B, h, w) int64 in [0, K).

    Returns:
        (B,) float32, not negative; log2 K for a uniform prediction. The mean over grids estimates the cross-entropy
        of data and prior.
    """
    return nll(logits, codes) / math.log(2)


def linear_nll(x: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
    """`nll` of the logits that a linear layer makes of x, without ever holding all of them.

    `nll = -mean_ij log softmax(W x_ij + b)[c_ij]`

    On a CPU one grid at a time stays in the cache, and the gradient by the logits is kept in x's dtype: several times
    faster than float32 logits of a whole batch, whose memory the system hands out anew at every step.

    Args:
        x: (B, h, w, D) features.
        weight: (K, D) of the layer; cast to x's dtype, as an autocast would.
        bias: (K,) of the layer.
        codes: (B, h, w) int64 in [0, K).

    Returns:
        (B,) float32, in nats per code.
    """
    out: Tensor = _LinearNLL.apply(x, weight, bias, codes)  # type: ignore[no-untyped-call]
    return out


class _LinearNLL(torch.autograd.Function):
    """The gradient by the logits, softmax - one-hot, is made in the forward pass, where the logits lie in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            batch, size = len(x), codes[0].numel()
            flat, w, b = x.reshape(batch, size, -1), weight.to(x.dtype), bias.to(x.dtype)
            targets = codes.reshape(batch, size, 1)
            grad = x.new_empty(batch, size, len(weight)) if any(ctx.needs_input_grad) else None
            losses = []
            step = 1 if x.device.type == "cpu" else batch
            for at in range(0, batch, step):
                part = slice(at, at + step)
                log_p = torch.log_softmax(F.linear(flat[part], w, b), -1, dtype=torch.float32)
                chosen = log_p.gather(-1, targets[part])
                losses.append(-chosen.mean((1, 2)))
                if grad is not None:
                    p = log_p.exp_()
                    grad[part] = p.scatter_(-1, targets[part], chosen.exp_() - 1)
            if grad is not None:
                ctx.save_for_backward(flat, w, grad)
                ctx.shape, ctx.dtype = x.shape, weight.dtype
            return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        flat, w, grad = ctx.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            scale = (grad_outputs[0] / flat.shape[1])[:, None, None]
            by_x = (grad @ w).mul_(scale.to(w.dtype)).view(ctx.shape)
            scaled = torch.cat([flat * scale.to(w.dtype), scale.expand(*flat.shape[:2], 1).to(w.dtype)], -1)
            by_w = grad.flatten(0, 1).t() @ scaled.flatten(0, 1)  # the bias as one more column of the weight
            return by_x, by_w[:, :-1].to(ctx.dtype), by_w[:, -1].to(ctx.dtype), None
