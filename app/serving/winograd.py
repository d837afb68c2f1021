"""3x3 convolutions by Winograd's minimal filtering, which takes fewer multiplications for a tile of pixels than 9 each.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, https://arxiv.org/abs/1509.09308,
section 4.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving import openvino
from training.errors import ArtifactError

Array = NDArray[np.float32]


def _matrix(*rows: Sequence[float]) -> Array:
    return np.array(rows, np.float32)


# F(2x2, 3x3): B^T, G and A^T of the paper, four pixels for 16 multiplications. The last row of G and the last column of
# A^T have the other sign: less is negated. Larger tiles need the digits of float32.
_INPUT = _matrix([1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1])
_FILTER = _matrix([1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, -1])
_OUTPUT = _matrix([1, 1, 1, 0], [0, 1, -1, 1])
_STEP = len(_OUTPUT)  # pixels on each side of what a tile gives

# What is saved grows with the number of channels on both sides, what the transforms cost with those on one.
_LEAST_CHANNELS = 64


def convert(source: Path, batch: int, target: Path) -> None:
    """Rewrite a converted network whose batches all have the same number of pictures.

    Args:
        source: of `openvino.convert`.
        batch: pictures in every batch; only then does OpenVINO fuse the sums that the transforms consist of.
        target: where the result goes.

    Raises:
        ArtifactError: none of its convolutions is of the kind, or large enough.
    """
    model = openvino.library().Core().read_model(source)
    found = [node for node in model.get_ordered_ops() if _suits(node)]
    if not found:
        raise ArtifactError(f"{source} has no 3x3 convolution with {_LEAST_CHANNELS} channels or more.")
    for node in found:
        node.output(0).replace(_filtered(node).output(0))
    model.reshape([batch, *(dimension.get_length() for dimension in list(model.input().partial_shape)[1:])])
    openvino.save(model, target)


def _suits(node: Any) -> bool:
    if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    outputs, inputs, *kernel = node.input_value(1).get_shape()
    options = node.get_attributes()
    steps = [*options["strides"], *options["dilations"], *options["pads_begin"], *options["pads_end"]]
    sides = list(node.get_output_partial_shape(0))[2:]
    return (
        kernel == [3, 3]
        and steps == [1] * 8
        and min(outputs, inputs) >= _LEAST_CHANNELS
        and all(side.is_static for side in sides)
    )


def _sides(node: Any) -> list[int]:
    return [side.get_length() for side in list(node.get_output_partial_shape(0))[2:]]


def _filtered(node: Any) -> Any:
    """The same convolution by tiles: input and filter are transformed, multiplied, and their products summed up."""
    ops = openvino.operations()
    weights, sides = node.input_value(1).get_node().get_data(), _sides(node)
    filters = np.einsum("ia,jb,kcab->ijkc", _FILTER, _FILTER, weights)[..., None, None]

    def product_of(row: Array, column: Array, kernel: Array) -> Any:
        tiles = _taken(node.input_value(0), (row, column), weights.shape[1], sides)
        return ops.convolution(tiles, ops.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])

    products = [
        [product_of(row, *column) for column in zip(_INPUT, line, strict=True)]
        for row, line in zip(_INPUT, filters, strict=True)
    ]
    columns = [[_sum(factors, of_column) for of_column in zip(*products, strict=True)] for factors in _OUTPUT]
    results = [_sum(factors, columns[row]) for row, factors in product(range(_STEP), _OUTPUT)]
    whole = ops.depth_to_space(ops.concat(results, 1), "blocks_first", _STEP)
    # The last tile of a row or column may reach beyond the picture.
    return ops.slice(whole, *(ops.constant(np.array(values)) for values in ([0, 0], sides, [1, 1], [2, 3])))


def _taken(pixels: Any, lines: Sequence[Array], channels: int, sides: Sequence[int]) -> Any:
    """A convolution of each channel that takes the sum of a line of each tile, in both directions."""
    options: list[tuple[int, ...]] = []
    kernel = np.ones((1, 1), np.float32)
    for axis, (line, side) in enumerate(zip(lines, sides, strict=True)):
        first, second = taps = np.flatnonzero(line).tolist()
        last_pixel = (-(-side // _STEP) - 1) * _STEP + second - 1
        options.append((_STEP, 1 - first, last_pixel - (side - 1), second - first))
        kernel = kernel * np.expand_dims(line[taps], 1 - axis)
    ops = openvino.operations()
    kernels = ops.constant(np.tile(kernel, (channels, 1, 1, 1, 1)))
    return ops.group_convolution(pixels, kernels, *map(list, zip(*options, strict=True)))


def _sum(factors: Array, terms: Sequence[Any]) -> Any:
    ops = openvino.operations()
    total = None
    for factor, term in zip(factors, terms, strict=True):
        if factor:
            # The first factor of every line is positive.
            total = term if total is None else (ops.add if factor > 0 else ops.subtract)(total, term)
    return total
