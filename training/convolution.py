"""Gradients of convolutions of small maps with pictures side by side, which a CPU computes several times as fast."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

# Pixels of the largest map that this pays for. AMX, a Xeon's matrix unit, takes 32 numbers of a row at once. With 256
# channels, 1,980 pictures and two threads the gradient of the weights in bfloat16 takes 239 ms instead of 569 at 7x7
# and 51 instead of 283 at 3x3; nothing is gained from 11x11 on. In float32 it takes 135 instead of 180 at 3x3, and
# as long at 5x5.
_LARGEST_MAP = {torch.bfloat16: 81, torch.float32: 16}
_ROW = 64  # pixels of a row of pictures side by side; 32 and 128 are no faster


def small_maps(device: torch.device) -> AbstractContextManager[object]:
    """Inside the block, 3x3 convolutions of small maps get their gradients this way; on a CPU, and nowhere else."""
    return _SmallMaps() if device.type == "cpu" else nullcontext()


class _SmallMaps(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not torch.conv2d or kwargs or not _fits(*args):
            return func(*args, **(kwargs or {}))
        precision = _precision(args[0])
        return _Convolution.apply(args[0].to(precision), args[1].to(precision))


def _precision(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _fits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> bool:
    usual = (bias, tuple(stride), tuple(padding), tuple(dilation), groups) == (None, (1, 1), (1, 1), (1, 1), 1)
    small = x.dim() == 4 and x.shape[2] * x.shape[3] <= _LARGEST_MAP.get(_precision(x), 0)
    learns = torch.is_grad_enabled() and weight.requires_grad
    return usual and small and learns and weight.shape[2:] == (3, 3)


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution of x [N, C, H, W] with a weight [K, C, 3, 3], stride 1, padding 1, to [N, K, H, W].

    The gradient of the weight adds up over pictures, so it is that of a few wide pictures in which all of them lie side
    by side, a column of zeros between any two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        to_x = conv2d_input(x.shape, weight, gradient, padding=1) if ctx.needs_input_grad[0] else None
        return to_x, conv2d_weight(_side_by_side(x), weight.shape, _side_by_side(gradient), padding=1)


def _side_by_side(x: Tensor) -> Tensor:
    """The pictures of x [N, C, H, W] in rows, [N / P, C, H, P * (W + 1)], the last row filled up with zeros."""
    count = max(1, _ROW // (x.shape[3] + 1))
    missing = -len(x) % count
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 0, 0, missing))
    rows: Tensor = padded.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)
    return rows.permute(0, 3, 1, 2)
