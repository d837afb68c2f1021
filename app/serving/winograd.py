"""3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3): four pixels for 16 multiplications instead of 36.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, https://arxiv.org/abs/1509.09308,
section 4.1. Larger tiles save more multiplications, but were no faster (docs/performance.md).
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

# A tile of 4x4 pixels, of which neighbours share two rows or columns, gives one of 2x2.
_TILE, _STEP = 4, 2

# B^T, G and A^T of the paper, with the other sign in the last row of G and the last column of A^T: less is negated.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, 1]], np.float32)

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


def _filtered(node: Any) -> Any:
    """The same convolution by tiles: input and filter are transformed, multiplied, and their products summed up."""
    ops = openvino.operations()
    pixels, weights = node.input_value(0), node.input_value(1).get_node().get_data()
    sides = [side.get_length() for side in list(node.get_output_partial_shape(0))[2:]]
    filters = np.einsum("ia,jb,kcab->ijkc", _FILTER, _FILTER, weights)[..., None, None]

    def product_of(row: int, column: int) -> Any:
        tiles = _transformed(pixels, _INPUT[row], _INPUT[column], weights.shape[1], sides)
        return ops.convolution(tiles, ops.constant(filters[row, column]), [1, 1], [0, 0], [0, 0], [1, 1])

    products = [[product_of(row, column) for column in range(_TILE)] for row in range(_TILE)]
    columns = [[_sum(signs, of_column) for of_column in zip(*products, strict=True)] for signs in _OUTPUT]
    results = [_sum(signs, columns[row]) for row, signs in product(range(_STEP), _OUTPUT)]
    whole = ops.depth_to_space(ops.concat(results, 1), "blocks_first", _STEP)
    # The last tile of a row or column with an odd number of pixels reaches beyond it.
    return ops.slice(whole, *(ops.constant(np.array(values)) for values in ([0, 0], sides, [1, 1], [2, 3])))


def _transformed(pixels: Any, rows: Array, columns: Array, channels: int, sides: Sequence[int]) -> Any:
    """One of 16 values of every tile: two of its rows times two of its columns, as a convolution of each channel."""
    begins, ends, dilations, kernels = [], [], [], []
    for line, side in zip((rows, columns), sides, strict=True):
        first, second = np.flatnonzero(line)
        last = (-(-side // _STEP) - 1) * _STEP + second - 1  # pixel that the last tile takes
        begins.append(1 - first)
        ends.append(last - (side - 1))
        dilations.append(second - first)
        kernels.append(line[[first, second]])
    kernel = np.tile(np.outer(*kernels), (channels, 1, 1, 1, 1))
    ops = openvino.operations()
    return ops.group_convolution(pixels, ops.constant(kernel), [_STEP, _STEP], begins, ends, dilations)


def _sum(signs: Array, terms: Sequence[Any]) -> Any:
    ops = openvino.operations()
    signed = [(sign, term) for sign, term in zip(signs, terms, strict=True) if sign]
    total = signed[0][1]
    for sign, term in signed[1:]:
        total = ops.add(total, term) if sign > 0 else ops.subtract(total, term)
    return total
