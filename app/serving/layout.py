"""The layout of a plan in memory: which maps hold its values, and weights in the order in which they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from app.serving import kernels
from app.serving.plan import Array, Plan, Step, Value

Form = tuple[int, int, int, int]  # of a map: room for pictures, side and border in pixels, channels

# Pictures that a thread computes at a time.
MOST = 32
# Floats in the largest map of a thread, and what it keeps while it computes a layer. Half of each, or twice as much,
# makes no difference to ResNet-18 and ResNet-20 on a Zen 3.
_MAP, _SCRATCH = 1 << 21, 1 << 16
# Tiles that are computed at a time, even if they take more than that: the weights pass through the caches once for each
# block. With 48 instead of 12, as many as 256 channels left, ResNet-18 takes 3.5 instead of 3.9 ms for a picture of 32
# on an Intel Xeon with vectors of 16, and 5.9 instead of 6.7 with vectors of 8.
_LEAST = 48

_LINE = 16  # floats in a line of the cache
_PLACES = 36  # in which the products of a tile are computed, 6 x 6 for 4 x 4 pixels
_TILE = 4
# Share of a convolution's multiplications up to which tiles are worth being transformed.
_SAVING = 0.7
_COLOURS = 3

# Lavin and Gray (2016, arXiv:1509.09308): G of F(4x4, 3x3).
_FILTER = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


def arranged(plan: Plan, mean: Sequence[float], std: Sequence[float], width: int) -> kernels.Network:
    """A network for vectors of a width: channels are filled up to whole vectors.

    Args:
        plan: of the network.
        mean: of the pixels of its input, scaled to 0..1, by colour.
        std: of those.
        width: floats in a vector, of `kernels.WIDTHS`.
    """
    largest = max(map(_floats, plan.values))
    most = max(1, min(MOST, _MAP // largest))
    groups = _groups(plan, most)
    maps, numbers = _maps(plan, width, groups, most)
    layers, weights, shifts, scratch = [], [], [], 0
    for step, weight, shift in zip(plan.steps, plan.weights, plan.shifts, strict=True):
        (*_, inputs), (*_, outputs) = (maps[numbers[value]] for value in (step.source, step.target))
        tiles = _in_tiles(step, plan)
        block, floats = _block(step, inputs, outputs, width, tiles)
        scratch = max(scratch, floats)
        layers.append([*_layer(step, numbers, tiles), block])
        if step.kind == "convolution":
            weights.append(_packed(weight, inputs, outputs, width, tiles))
        else:
            weights.append(_aligned(_filled(weight, outputs)))
        shifts.append(_aligned(_filled(shift, outputs)))
    scale = 1 / np.array(std)
    return kernels.Network(
        width,
        np.array(maps, np.int64),
        np.array([(group.steps.stop, group.pictures) for group in groups], np.int64),
        np.array(layers, np.int64),
        weights,
        shifts,
        scale / 255,
        -np.array(mean) * scale,
        plan.values[-1].channels,
        scratch,
    )


def _layer(step: Step, numbers: Mapping[int, int], tiles: bool) -> list[int]:
    return [
        kernels.KINDS["winograd" if tiles else step.kind],
        kernels.ACTIVATIONS[step.activation],
        numbers[step.source],
        numbers[step.target],
        -1 if step.residual is None else numbers[step.residual],
        step.kernel,
        step.stride,
        step.pad,
    ]


def _in_tiles(step: Step, plan: Plan) -> bool:
    side = plan.values[step.target].side
    return (
        (step.kind, step.kernel, step.stride, step.pad) == ("convolution", 3, 1, 1)
        and plan.values[step.source].channels > _COLOURS
        and _PLACES * (-(-side // _TILE)) ** 2 < _SAVING * 9 * side**2
    )


def _block(step: Step, inputs: int, outputs: int, width: int, tiles: bool) -> tuple[int, int]:
    """How many tiles or pixels are computed at a time, and the floats that this takes."""
    needs = _PLACES * (inputs + outputs) if tiles else step.kernel**2 * inputs + outputs
    rows = kernels.ROWS[width]
    block = max(_LEAST if tiles else rows, _SCRATCH // needs // rows * rows)
    return block, block * needs + 2 * _PLACES * _LINE


@dataclass(frozen=True)
class _Group:
    """Steps that are computed one after another for so many pictures, before they are for the next ones."""

    steps: range
    pictures: int


def _groups(plan: Plan, most: int) -> list[_Group]:
    """Groups of the steps whose pictures have the same size.

    What is between the steps of a group should stay in the caches, so its pictures should be few. But all its weights
    are read each time: so many pictures are taken that as many values as weights are read.
    """
    found: list[_Group] = []
    sides = [plan.values[step.target].side for step in plan.steps]
    for _, members in groupby(range(len(sides)), sides.__getitem__):
        first, *others = members
        steps = range(first, (others or [first])[-1] + 1)
        weights = sum(plan.weights[at].size * (4 if _in_tiles(plan.steps[at], plan) else 1) for at in steps)
        values = sum(_floats(plan.values[plan.steps[at].target]) for at in steps)
        found.append(_Group(steps, min(most, -(-weights // values))))
    return found


def _floats(value: Value) -> int:
    return value.side**2 * value.channels


def _maps(plan: Plan, width: int, groups: Sequence[_Group], most: int) -> tuple[list[Form], dict[int, int]]:
    """Maps for all values, and which value is in which: a map is used again when nobody needs what is in it."""
    of_step = [group for group in groups for _ in group.steps]
    last = {0: 0}
    border = dict.fromkeys(range(len(plan.values)), 0)
    room = {0: most}
    for at, step in enumerate(plan.steps):
        border[step.source] = max(border[step.source], step.pad)
        room[step.target] = of_step[at].pictures
        for value in (step.source,) if step.residual is None else (step.source, step.residual):
            last[value] = at
            if value and at not in of_step[value - 1].steps:
                room[value] = most
    room[plan.steps[-1].target] = most  # where the answers are

    def form(number: int) -> Form:
        value = plan.values[number]
        channels = -(-value.channels // width) * width if number else _COLOURS
        return room[number], value.side, border[number], channels

    maps, numbers = [form(0)], {0: 0}
    free: list[int] = []
    for at, step in enumerate(plan.steps):
        # What is added to a pixel may lie where the sum goes.
        if step.residual is not None and step.residual != step.source and last[step.residual] == at:
            free.append(numbers[step.residual])
        number = next((number for number in free if maps[number] == form(step.target)), len(maps))
        if number == len(maps):
            maps.append(form(step.target))
        else:
            free.remove(number)
        numbers[step.target] = number
        if last[step.source] == at:
            free.append(numbers[step.source])
    return maps, numbers


def _packed(weights: Array, inputs: int, outputs: int, width: int, tiles: bool) -> Array:
    """The weights of a convolution as `product` in layers.h reads them: strips of two vectors of outputs, by input."""
    filled = _filled(weights, outputs, inputs)
    if tiles:
        filters = np.matmul(_FILTER, np.matmul(filled.astype(np.float64), _FILTER.T)).astype(np.float32)
        matrices = filters.transpose(2, 3, 1, 0).reshape(_PLACES, inputs, outputs)
    else:
        matrices = filled.transpose(2, 3, 1, 0).reshape(1, -1, outputs)
    return _aligned(np.concatenate([strip.ravel() for matrix in matrices for strip in _strips(matrix, 2 * width)]))


def _strips(matrix: Array, width: int) -> Iterator[Array]:
    for first in range(0, matrix.shape[1], width):
        yield matrix[:, first : first + width]


def _filled(values: Array, *lengths: int) -> Array:
    """The values with zeros behind them, up to these lengths of the first axes."""
    behind = [(0, length - size) for size, length in zip(values.shape, lengths, strict=False)]
    return np.pad(values, behind + [(0, 0)] * (values.ndim - len(lengths)))


def _aligned(values: Array) -> NDArray[np.float32]:
    """A copy that begins with a line of the cache."""
    room = np.empty(values.size + _LINE, np.float32)
    first = -room.ctypes.data // room.itemsize % _LINE
    room[first : first + values.size] = values
    return room[first : first + values.size]
