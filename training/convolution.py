"""3x3 convolutions by means that a CPU is quicker with than with torch's: the same numbers, but for rounding."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

from training import compiled

# What tiles of 4x4 pixels pay for in float32. Two threads of an Intel Xeon with AVX-512 need 1.1 to 1.4 times as long
# for a convolution and its gradients with 32 tiles or maps of 2x2, and as long with 16 channels; with 128 maps of 8x8
# or more, and 64 to 512 channels, they need 0.4 to 0.5 of the time.
_FEWEST_TILES = 96
_FEWEST_CHANNELS = 24
_SMALLEST_SIDE = 3
_MOST_SUMS = 1 << 27  # floats, of all threads together, in which the gradient of a layer's weights is added up

# Pixels of the largest map that pictures side by side pay for in bfloat16. AMX, a Xeon's matrix unit, takes 32 numbers
# of a row at once. With 256 channels, 1,980 pictures and two threads the gradient of the weights takes 239 ms instead
# of 569 at 7x7 and 51 instead of 283 at 3x3; nothing is gained from 11x11 on.
_LARGEST_MAP = 81
_ROW = 64  # pixels of a row of pictures side by side; 32 and 128 are no faster


def fast_convolutions(device: torch.device) -> AbstractContextManager[object]:
    """Inside the block, 3x3 convolutions on a CPU and their gradients are computed in these ways where that pays."""
    return _Fast() if device.type == "cpu" else nullcontext()


class _Fast(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not torch.conv2d or kwargs or not _usual(*args):
            return func(*args, **(kwargs or {}))
        x, weight = args[:2]
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if precision == torch.float32 and _pays_in_tiles(x, weight):
            return _InTiles.apply(x.float(), weight.float())
        learns = torch.is_grad_enabled() and weight.requires_grad
        if precision == torch.bfloat16 and learns and x.shape[2] * x.shape[3] <= _LARGEST_MAP:
            return _SideBySide.apply(x.to(precision), weight.to(precision))
        return func(*args)


def _usual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> bool:
    usual = (bias, tuple(stride), tuple(padding), tuple(dilation), groups) == (None, (1, 1), (1, 1), (1, 1), 1)
    return usual and x.dim() == 4 and weight.shape[2:] == (3, 3)


def _pays_in_tiles(x: Tensor, weight: Tensor) -> bool:
    if not compiled.AVAILABLE or not compiled.winograd.available():
        return False
    outputs, inputs = weight.shape[:2]
    height, width = x.shape[2:]
    tiles = len(x) * -(-height // 4) * -(-width // 4)
    large = tiles >= _FEWEST_TILES and min(height, width) >= _SMALLEST_SIDE and min(inputs, outputs) >= _FEWEST_CHANNELS
    return large and inputs % 8 == outputs % 8 == 0


class _InTiles(torch.autograd.Function):
    """A 3x3 convolution of x [N, C, H, W] with a weight [K, C, 3, 3], stride 1, padding 1, to [N, K, H, W]; float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        return (
            _convolved(gradient, weight.flip(2, 3).transpose(0, 1)) if to_x else None,
            _weight_gradient(x, gradient) if to_weight else None,
        )


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    outputs, inputs = weight.shape[:2]
    strips = weight.detach().permute(2, 3, 1, 0).reshape(9, inputs, outputs).split(compiled.winograd.strip(outputs), 2)
    transformed = _transform() @ torch.cat([strip.flatten(1) for strip in strips], 1)
    result = x.new_empty(len(x), *x.shape[2:], outputs)
    compiled.winograd.convolve(
        _channels_last(x), transformed.flatten().numpy(), result.numpy(), torch.get_num_threads()
    )
    return result.permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    inputs, outputs = x.shape[1], gradient.shape[1]
    shares = min(torch.get_num_threads(), max(1, _MOST_SUMS // (36 * inputs * outputs)))
    found = x.new_empty(shares, 36, inputs, outputs)
    compiled.winograd.weight_gradient(_channels_last(x), _channels_last(gradient), found.numpy())
    weight = _transform().T @ found.sum(0).flatten(1)
    return weight.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)


@cache
def _transform() -> Tensor:
    """From the nine weights of a filter to the 36 of a tile, [36, 9]: G of Lavin and Gray, by both axes."""
    rows = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    by_axis = torch.tensor(rows, dtype=torch.float32) / 24
    return torch.kron(by_axis, by_axis)


def _channels_last(x: Tensor) -> NDArray[np.float32]:
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


class _SideBySide(torch.autograd.Function):
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
