"""The layers of the compiled module: what torch says of the same pictures, with vectors of every length."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from app.serving.plan import Plan, Step, Value
from tests import needs

pytestmark = pytest.mark.usefixtures("compiled")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
ACTIVATIONS = {"linear": nn.Identity(), "relu": nn.ReLU(), "gelu": nn.GELU()}


@pytest.fixture
def compiled() -> None:
    needs.compiled()


def widths() -> Sequence[int]:
    needs.compiled()
    from app.serving import kernels  # noqa: PLC0415  there may be none

    return kernels.WIDTHS


def pixels(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)


def answers(plan: Plan, pictures: NDArray[np.uint8], width: int, threads: int = 1) -> Any:
    from app.serving import kernels, layout  # noqa: PLC0415  there may be none

    return kernels.Computer(layout.arranged(plan, MEAN, STD, width), threads).compute(pictures)


def plan(side: int, *layers: dict[str, Any], channels: int = 7) -> Plan:
    """A chain of layers, each on what the one before gives, with random weights, and the mean over all places."""
    rng = np.random.default_rng(1)
    made = Plan([Value(side=side, channels=3)])
    last: dict[str, Any] = {"kind": "sum", "kernel": 0}
    for layer in (*layers, last):
        source = made.values[-1]
        options = {"stride": 1, "pad": 0, **layer, "kernel": layer["kernel"] or source.side}
        outputs = channels if layer["kind"] == "convolution" else source.channels
        shape = (outputs, source.channels, *[options["kernel"]] * 2) if layer["kind"] == "convolution" else (outputs,)
        made.weights.append(rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32))
        made.shifts.append(rng.normal(0, 1, outputs).astype(np.float32))
        at = len(made.values)
        made.steps.append(Step(source=at - 1, target=at, **options))
        reach = source.side + 2 * options["pad"] - options["kernel"]
        made.values.append(Value(side=reach // options["stride"] + 1, channels=outputs))
    return made


@torch.inference_mode()
def expected(made: Plan, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    values = [(torch.from_numpy(pictures).double() / 255 - mean) / std]
    for step, weights, shift in zip(made.steps, map(torch.from_numpy, made.weights), made.shifts, strict=True):
        source = values[step.source]
        if step.kind == "convolution":
            found = F.conv2d(source, weights.double(), stride=step.stride, padding=step.pad)
        else:
            pooled = (
                F.max_pool2d(source, step.kernel, step.stride, step.pad)
                if step.kind == "maximum"
                else F.avg_pool2d(source, step.kernel, step.stride, step.pad, divisor_override=1)
            )
            found = pooled * weights.view(1, -1, 1, 1)
        found = found + torch.from_numpy(shift).view(1, -1, 1, 1)
        if step.residual is not None:
            found = found + values[step.residual]
        values.append(ACTIVATIONS[step.activation](found))
    return values[-1].flatten(1).float().numpy()


def check(made: Plan, side: int, tolerance: float = 1e-5) -> None:
    pictures = pixels(7, side)
    wanted = expected(made, pictures)
    for width in widths():
        found = answers(made, pictures, width)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()


CONVOLUTION = {"kind": "convolution", "kernel": 3, "pad": 1}

layer = st.sampled_from(
    [
        *(CONVOLUTION | {"stride": stride, "activation": "relu"} for stride in (1, 1, 1, 2)),
        CONVOLUTION | {"kernel": 1, "pad": 0},
        {"kind": "maximum", "kernel": 3, "pad": 1, "stride": 2},
        {"kind": "sum", "kernel": 1, "pad": 0, "activation": "relu"},
    ]
)


@pytest.mark.parametrize("side", [4, 5, 7, 8, 13])
@pytest.mark.parametrize("channels", [7, 16, 40])
def test_convolutions_in_tiles(side: int, channels: int) -> None:
    check(plan(side, CONVOLUTION, CONVOLUTION, CONVOLUTION, channels=channels), side, 3e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 1, "pad": 0},
        {"kernel": 3, "pad": 1, "stride": 2},
        {"kernel": 3, "pad": 0},
        {"kernel": 7, "pad": 3, "stride": 2},
        {"kernel": 2, "pad": 0},
        {"kernel": 5, "pad": 2},
        {"kernel": 2, "pad": 0, "stride": 3},
    ],
)
@pytest.mark.parametrize("side", [8, 9])
def test_other_convolutions(options: dict[str, Any], side: int) -> None:
    check(plan(side, CONVOLUTION, CONVOLUTION | options), side)


@pytest.mark.parametrize("kind", ["maximum", "sum"])
@pytest.mark.parametrize("options", [{"kernel": 2, "stride": 2}, {"kernel": 3, "stride": 2, "pad": 1}, {"kernel": 1}])
def test_pooling_and_scaling(kind: str, options: dict[str, int]) -> None:
    check(plan(9, CONVOLUTION, {"kind": kind, "pad": 0, **options}, CONVOLUTION), 9)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations(activation: str) -> None:
    check(plan(8, CONVOLUTION | {"activation": activation}, CONVOLUTION | {"activation": activation}), 8)


def test_gelu_is_exact_for_all_sizes_of_numbers() -> None:
    made = plan(1, {"kind": "convolution", "kernel": 1, "activation": "gelu"}, channels=2000)
    made.weights[0] = np.zeros_like(made.weights[0])
    made.shifts[0] = np.concatenate([np.linspace(-100, 100, 1000), np.linspace(-6, 6, 1000)]).astype(np.float32)
    made.weights[1], made.shifts[1] = np.ones(2000, np.float32), np.zeros(2000, np.float32)
    pictures = pixels(1, 1)
    for width in widths():
        assert np.abs(answers(made, pictures, width) - expected(made, pictures)).max() < 2e-6


@pytest.mark.parametrize("kind", [CONVOLUTION, CONVOLUTION | {"kernel": 1, "pad": 0}, {"kind": "sum", "kernel": 1}])
@pytest.mark.parametrize("again", [False, True])
def test_residuals_are_added_before_the_activation(kind: dict[str, Any], again: bool) -> None:
    """Whether or not the value that is added is used once more."""
    last = [CONVOLUTION] if again else []
    made = plan(8, CONVOLUTION, CONVOLUTION, {"pad": 0, **kind, "activation": "relu"}, *last)
    made.steps[2] = made.steps[2].model_copy(update={"residual": 1})
    if again:
        made.steps[3] = made.steps[3].model_copy(update={"residual": 1})
    check(made, 8)


def test_answers_do_not_depend_on_the_batch_or_the_threads() -> None:
    made = plan(8, CONVOLUTION, CONVOLUTION, CONVOLUTION | {"stride": 2}, CONVOLUTION, channels=16)
    pictures = pixels(50, 8)
    for width in widths():
        alone = np.concatenate([answers(made, pictures[at : at + 1], width) for at in range(50)])
        for threads in (1, 2, 3, 7):
            assert np.array_equal(answers(made, pictures, width, threads), alone)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_are_kept_until_nobody_needs_them(data: st.DataObject) -> None:
    """However layers follow each other, and whatever earlier value is added to theirs."""
    side = data.draw(st.sampled_from([4, 9, 12]))
    made = plan(side, *data.draw(st.lists(layer, min_size=1, max_size=9)), channels=8)
    for at, step in enumerate(made.steps):
        alike = [number for number in range(1, step.target) if made.values[number] == made.values[step.target]]
        residual = data.draw(st.sampled_from([None, *alike]))
        made.steps[at] = step.model_copy(update={"residual": residual})
    pictures = pixels(data.draw(st.integers(1, 70)), side)
    wanted = expected(made, pictures)
    found = answers(made, pictures, widths()[-1], data.draw(st.integers(1, 2)))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_threads_answer_one_batch_after_another() -> None:
    from app.serving import kernels, layout  # noqa: PLC0415  there may be none

    made = plan(8, CONVOLUTION)
    computer = kernels.Computer(layout.arranged(made, MEAN, STD, kernels.WIDTHS[-1]), 3)
    pictures = pixels(64, 8)
    wanted = expected(made, pictures)
    for first, end in pairwise(sorted({*np.random.default_rng(0).integers(0, 64, 2000).tolist()})):
        found = computer.compute(pictures[first:end])
        assert np.allclose(found, wanted[first:end], atol=1e-5)
    for _ in range(500):
        assert np.allclose(computer.compute(pictures), wanted, atol=1e-5)


def test_networks_are_shared_by_computers() -> None:
    from app.serving import kernels, layout  # noqa: PLC0415  there may be none

    made = plan(8, CONVOLUTION, CONVOLUTION)
    network = layout.arranged(made, MEAN, STD, kernels.WIDTHS[-1])
    pictures = pixels(40, 8)
    computers = [kernels.Computer(network, 2) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda computer: computer.compute(pictures), computers))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_no_pictures_have_no_answers() -> None:
    assert answers(plan(8, CONVOLUTION), pixels(0, 8), widths()[-1]).shape == (0, 7)


@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (1, 3, 9, 8), (1, 4, 8, 8)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3 x 8 x 8"):
        answers(plan(8, CONVOLUTION), np.zeros(shape, np.uint8), widths()[-1])


def test_vectors_that_the_processor_lacks_are_refused() -> None:
    from app.serving import kernels  # noqa: PLC0415  there may be none

    none = np.zeros((1, 9), np.int64)
    with pytest.raises(ValueError, match="no vectors of 5"):
        kernels.Network(5, none, none, none, [], [], np.ones(3), np.ones(3), 1, 1)
