"""The parts of a gated PixelCNN that autograd would spend most memory traffic on, with their gradients by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gate(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gated unit `tanh(x_f) * sigmoid(x_g)` (eq. 2) of the two halves of the last dimension.

    Args:
        x: (B, h, w, 2C).
        bias: (B, 1, 1, 2C), added to x.

    Returns:
        (B, h, w, C) in x's dtype.
    """
    out: Tensor = _Gate.apply(x, bias)  # type: ignore[no-untyped-call]
    return out


class _Gate(torch.autograd.Function):
    """Half the passes over memory of the same in autograd, whose chunks are each padded and added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        f, g = (x if bias is None else x + bias.to(x.dtype)).chunk(2, -1)
        f, g = _tanh(f), torch.sigmoid(g)
        ctx.save_for_backward(f, g)
        ctx.bias = None if bias is None else bias.dtype
        return f * g

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        (f, g), grad = ctx.saved_tensors, grad_outputs[0]
        width = f.shape[-1]
        full = f.new_empty(*f.shape[:-1], 2 * width)
        torch.ops.aten.tanh_backward.grad_input(grad * g, f, grad_input=full[..., :width])
        torch.ops.aten.sigmoid_backward.grad_input(grad * f, g, grad_input=full[..., width:])
        by_bias = None if ctx.bias is None else full.sum((1, 2), keepdim=True, dtype=torch.float32).to(ctx.bias)
        return full, by_bias


def columns(v: Tensor, h: Tensor, reach: int, taps: int) -> Tensor:
    """Both stacks side by side, so that one matrix product is the horizontal convolution and the link from v.

    Args:
        v: (B, h, w, C) vertical stack.
        h: (B, h, w, C) horizontal stack, taken to be 0 left of the grid.
        reach: positions to the left where the window begins.
        taps: width of the window.

    Returns:
        (B, h, w, (1 + taps) * C): v, then h from the left to the right of the window, in v's dtype.
    """
    out: Tensor = _Columns.apply(v, h, reach, taps)  # type: ignore[no-untyped-call]
    return out


class _Columns(torch.autograd.Function):
    """One buffer filled by slices; the gradient of a window is a sum of shifted slices."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, h: Tensor, reach: int, taps: int) -> Tensor:
        ctx.reach, ctx.width, ctx.dtypes = reach, h.shape[-1], (v.dtype, h.dtype)
        out = v.new_empty(*v.shape[:3], taps + 1, ctx.width)
        out[..., 0, :] = v
        for tap in range(taps):
            shift = min(reach - tap, h.shape[2])
            out[:, :, :shift, tap + 1] = 0
            out[:, :, shift:, tap + 1] = h[:, :, : h.shape[2] - shift]
        return out.flatten(-2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad = grad_outputs[0].unflatten(-1, (-1, ctx.width))
        taps, width = grad.shape[-2] - 1, grad.shape[2]
        own = taps == ctx.reach + 1
        by_h = grad[..., -1, :].contiguous() if own else torch.zeros_like(grad[..., 0, :])
        for tap in range(ctx.reach):
            shift = min(ctx.reach - tap, width)
            by_h[:, :, : width - shift] += grad[:, :, shift:, tap + 1]
        return grad[..., 0, :].to(ctx.dtypes[0]), by_h.to(ctx.dtypes[1]), None, None


def _tanh(x: Tensor) -> Tensor:
    """tanh; in bf16 on a CPU by way of a float32 sigmoid, at a quarter of the time, equal to bf16's rounding."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return torch.tanh(x)
    return x.float().mul_(2).sigmoid_().mul_(2).sub_(1).to(x.dtype)
