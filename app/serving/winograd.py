"""3x3 convolutions by Winograd's minimal filtering, which takes fewer multiplications for a tile of pixels than 9 each.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, https://arxiv.org/abs/1509.09308,
section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving import openvino
from training.errors import ArtifactError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Filtering:
    """F(m x m, 3x3) by the matrices of the paper, for tiles of t = m + 2 pixels on each side.

    Attributes:
        input: B^T, float32 [t, t].
        filter: G, float32 [t, 3].
        output: A^T, float32 [m, t].
        by_axis: whether the input is transformed in one direction after the other, which takes fewer operations for
            large tiles; for small ones it takes as many, and stores more in between.
    """

    input: Array
    filter: Array
    output: Array
    by_axis: bool

    @property
    def step(self) -> int:
        """Pixels on each side of what a tile gives."""
        return len(self.output)


def _matrix(*rows: Sequence[float]) -> Array:
    return np.array(rows, np.float32)


# F(2x2, 3x3): four pixels for 16 multiplications. The last row of G and the last column of A^T have the other sign:
# less is negated.
_SMALL = Filtering(
    input=_matrix([1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]),
    filter=_matrix([1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, -1]),
    output=_matrix([1, 1, 1, 0], [0, 1, -1, 1]),
    by_axis=False,
)

# F(4x4, 3x3): 16 pixels for 36 multiplications, of numbers so unlike that their sums need the digits of float32.
_LARGE = Filtering(
    input=_matrix(
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ),
    filter=_matrix(
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ),
    output=_matrix([1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]),
    by_axis=True,
)

# What is saved grows with the number of channels on both sides, what the transforms cost with those on one.
_LEAST_CHANNELS = 64


def convert(source: Path, batch: int, target: Path, large: bool) -> None:
    """Rewrite a converted network whose batches all have the same number of pictures.

    Args:
        source: of `openvino.convert`.
        batch: pictures in every batch; only then does OpenVINO fuse the sums that the transforms consist of.
        target: where the result goes.
        large: tiles of 4x4 pixels instead of 2x2 where a picture has several, for a network that computes in float32.

    Raises:
        ArtifactError: none of its convolutions is of the kind, or large enough.
    """
    model = openvino.library().Core().read_model(source)
    found = [node for node in model.get_ordered_ops() if _suits(node)]
    if not found:
        raise ArtifactError(f"{source} has no 3x3 convolution with {_LEAST_CHANNELS} channels or more.")
    for node in found:
        # Pictures of a single tile leave so little to each of the 36 products that reading their weights takes longer.
        by = _LARGE if large and min(_sides(node)) > _LARGE.step else _SMALL
        node.output(0).replace(_filtered(node, by).output(0))
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


def _filtered(node: Any, by: Filtering) -> Any:
    """The same convolution by tiles: input and filter are transformed, multiplied, and their products summed up."""
    ops = openvino.operations()
    weights, sides = node.input_value(1).get_node().get_data(), _sides(node)
    filters = np.einsum("ia,jb,kcab->ijkc", by.filter, by.filter, weights)[..., None, None]

    def product_of(tiles: Any, kernel: Array) -> Any:
        return ops.convolution(tiles, ops.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])

    tiles = _transformed(node.input_value(0), by, weights.shape[1], sides)
    products = [list(map(product_of, *row)) for row in zip(tiles, filters, strict=True)]
    columns = [[_sum(factors, of_column) for of_column in zip(*products, strict=True)] for factors in by.output]
    results = [_sum(factors, columns[row]) for row, factors in product(range(by.step), by.output)]
    whole = ops.depth_to_space(ops.concat(results, 1), "blocks_first", by.step)
    # The last tile of a row or column may reach beyond the picture.
    return ops.slice(whole, *(ops.constant(np.array(values)) for values in ([0, 0], sides, [1, 1], [2, 3])))


def _transformed(pixels: Any, by: Filtering, channels: int, sides: Sequence[int]) -> list[list[Any]]:
    """The values of every tile, by row and column, each as a picture of all tiles."""

    def taken(pixels: Any, *lines: Array | None) -> Any:
        return _taken(pixels, lines, by.step, channels, sides)

    if not by.by_axis:
        return [[taken(pixels, row, column) for column in by.input] for row in by.input]
    rows = [taken(pixels, row, None) for row in by.input]
    return [[taken(row, None, column) for column in by.input] for row in rows]


def _taken(pixels: Any, lines: Sequence[Array | None], step: int, channels: int, sides: Sequence[int]) -> Any:
    """A convolution of each channel that takes the sum of a line of each tile, in one or both directions."""
    options: list[tuple[int, ...]] = []
    kernel = np.ones((1, 1), np.float32)
    for axis, (line, side) in enumerate(zip(lines, sides, strict=True)):
        if line is None:
            options.append((1, 0, 0, 1))
            continue
        first, second, *_ = taps = np.flatnonzero(line).tolist()  # equally far apart, as a convolution can be dilated
        last_pixel = (-(-side // step) - 1) * step + taps[-1] - 1
        options.append((step, 1 - first, last_pixel - (side - 1), second - first))
        kernel = kernel * np.expand_dims(line[taps], 1 - axis)
    ops = openvino.operations()
    kernels = ops.constant(np.tile(kernel, (channels, 1, 1, 1, 1)))
    return ops.group_convolution(pixels, kernels, *map(list, zip(*options, strict=True)))


def _sum(factors: Array, terms: Sequence[Any]) -> Any:
    ops = openvino.operations()
    total = None
    for factor, term in zip(factors, terms, strict=True):
        if not factor:
            continue
        size = abs(factor)
        scaled = term if size == 1 else ops.multiply(term, ops.constant(size))
        # The first factor of every line is positive.
        total = scaled if total is None else (ops.add if factor > 0 else ops.subtract)(total, scaled)
    return total
