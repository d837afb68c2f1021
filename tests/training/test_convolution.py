"""Convolutions by other means than torch's: the same numbers, where they pay and nowhere else."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import needs
from tests.training.runs import CPU, Kept, partition, train
from training import compiled
from training.convolution import fast_convolutions

IN_TILES, SIDE_BY_SIDE, TORCHS = "_InTilesBackward", "_SideBySideBackward", "ConvolutionBackward0"

# Inputs, outputs, side and count: whole tiles and parts of them; strips of two vectors, of one and of half a one.
IN_TILES_SHAPES = [
    (64, 64, 8, 24),
    (24, 64, 31, 3),
    (64, 24, 9, 11),
    (48, 80, 3, 100),
    (40, 32, 6, 24),
    (32, 256, 5, 33),
    (256, 32, 15, 6),
]


@pytest.fixture
def tiles() -> None:
    """Wherever there is a compiler and a processor that tiles are made for."""
    needs.compiled()
    if not compiled.winograd.available():
        pytest.skip("this processor has neither AVX2 nor AVX-512, or torch brings no OpenMP threads that GCC knows")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def results(layer: nn.Conv2d, x: Tensor) -> tuple[str, list[Tensor]]:
    """What computed the output; the output and the gradients of input and weight for some gradient of the output."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    kind = output.grad_fn.name()
    output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype))
    assert x.grad is not None
    assert layer.weight.grad is not None
    return kind, [output.detach(), x.grad, layer.weight.grad]


def layer_and_input(
    inputs: int = 6, outputs: int = 4, side: int = 4, count: int = 3, **settings: object
) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    settings = {"kernel_size": 3, "padding": 1, "bias": False} | settings
    layer = nn.Conv2d(inputs, outputs, **settings)  # type: ignore[arg-type]
    x = torch.randn(count, inputs, side, side)
    return layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def exact(layer: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The same in float64."""
    return [result.float() for result in results(copy.deepcopy(layer).double(), x.double())[1]]


def assert_close(found: list[Tensor], expected: list[Tensor], share: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < share * other.norm()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", IN_TILES_SHAPES)
def test_in_tiles_the_numbers_are_those_of_float64_but_for_rounding(shape: tuple[int, ...], count: int) -> None:
    layer, x = layer_and_input(*shape)
    with threads(count), fast_convolutions(CPU):
        kind, found = results(layer, x)
    assert kind == IN_TILES
    assert_close(found, exact(layer, x), 1e-5)


@pytest.mark.usefixtures("tiles")
def test_more_threads_than_tiles_add_nothing_to_a_gradient() -> None:
    x, gradient = (np.random.default_rng(seed).random((1, 4, 7, 16), np.float32) for seed in range(2))
    shares = np.full((5, 36, 16, 16), np.nan, np.float32)
    alone = np.empty((1, 36, 16, 16), np.float32)
    compiled.winograd.weight_gradient(x, gradient, shares)
    compiled.winograd.weight_gradient(x, gradient, alone)
    np.testing.assert_allclose(shares.sum(0), alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tiles")
def test_in_tiles_one_machine_repeats_its_numbers() -> None:
    layer, x = layer_and_input(64, 64, 15, 8)
    with fast_convolutions(CPU):
        _, first = results(layer, x)
        _, second = results(layer, x)
    assert all(map(torch.equal, first, second))


@pytest.mark.usefixtures("tiles")
def test_in_tiles_the_memory_may_lie_in_any_order() -> None:
    layer, x = layer_and_input(32, 32, 8, 24)
    with fast_convolutions(CPU):
        _, expected = results(layer, x)
        layer.to(memory_format=torch.contiguous_format)
        _, found = results(layer, x.contiguous())
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    "shape", [(16, 64, 8, 24), (64, 16, 8, 24), (36, 64, 8, 24), (64, 36, 8, 24), (64, 64, 8, 23), (64, 64, 2, 200)]
)
def test_what_tiles_do_not_pay_for_is_left_to_torch(shape: tuple[int, ...]) -> None:
    with fast_convolutions(CPU):
        kind, _ = results(*layer_and_input(*shape))
    assert kind == TORCHS


@pytest.mark.usefixtures("tiles")
def test_a_network_that_does_not_learn_is_computed_in_tiles_too() -> None:
    layer, x = layer_and_input(64, 64, 8, 24)
    with fast_convolutions(CPU):
        expected = layer(x)
        with torch.inference_mode():
            assert torch.equal(layer(x), expected)
        layer.requires_grad_(False)
        assert layer(x).grad_fn is None
        learning = x.clone().requires_grad_()
        layer(learning).sum().backward()
    assert learning.grad is not None
    assert layer.weight.grad is None


@pytest.mark.usefixtures("tiles")
def test_shapes_that_do_not_belong_together_are_refused() -> None:
    def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.zeros(shape, np.float32)

    maps = numbers(2, 5, 5, 8)
    convolve, weight_gradient = compiled.winograd.convolve, compiled.winograd.weight_gradient
    for weights, result in [
        (numbers(36 * 63), maps),
        (numbers(36 * 64), numbers(2, 5, 4, 8)),
        (numbers(36 * 56), numbers(2, 5, 5, 7)),
    ]:
        with pytest.raises(ValueError, match=r"shape|multiple of 8"):
            convolve(maps, weights, result, 1)
    for gradient, result in [
        (numbers(3, 5, 5, 8), numbers(1, 36, 8, 8)),
        (maps, numbers(1, 35, 8, 8)),
        (maps, numbers(1, 36, 8, 7)),
        (numbers(2, 5, 5, 4), numbers(1, 36, 8, 4)),
    ]:
        with pytest.raises(ValueError, match=r"shape|multiple of 8"):
            weight_gradient(maps, gradient, result)
    with pytest.raises(ValueError, match="no picture"):
        convolve(numbers(0, 5, 5, 8), numbers(36 * 64), numbers(0, 5, 5, 8), 1)


def wide_losses() -> list[float]:
    kept = Kept()
    widths = "network.arguments.widths=[24, 32, 40]"
    settings = (widths, "network.input_size=32", "batch_size=48", "epochs=4", "optimizer.learning_rate=0.01")
    train(partition(48), "cpu-quick", *settings, "optimizer.head_learning_rate=30", "precision=float32", kept=kept)
    return [epoch.loss for epoch in kept.epochs]


@pytest.mark.usefixtures("tiles")
def test_a_run_has_the_same_losses_without_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    in_tiles = wide_losses()
    monkeypatch.setattr(compiled, "AVAILABLE", False)
    assert in_tiles == pytest.approx(wide_losses(), rel=1e-3)
    assert in_tiles != wide_losses()  # the last digits tell the two apart


@pytest.mark.parametrize("side", [1, 2, 5, 9])
@pytest.mark.parametrize("count", [3, 33])  # of pictures: less than lie in a row, and more
def test_small_maps_in_bfloat16_lie_side_by_side(side: int, count: int) -> None:
    layer, x = layer_and_input(side=side, count=count)
    _, expected = results(layer, x)
    with fast_convolutions(CPU), torch.autocast("cpu", torch.bfloat16):
        kind, (output, *gradients) = results(layer, x)
    assert kind == SIDE_BY_SIDE
    assert output.dtype == torch.bfloat16
    assert_close(gradients, expected[1:], 0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"side": 10},
        {"stride": 2},
        {"padding": 0},
        {"padding": "same"},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"bias": True},
        {"kernel_size": 1, "padding": 0},
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_torch(settings: dict[str, object]) -> None:
    layer, x = layer_and_input(**({"inputs": 64, "outputs": 64, "count": 48} | settings))  # type: ignore[arg-type]
    with fast_convolutions(CPU), torch.autocast("cpu", torch.bfloat16):
        kind, _ = results(layer, x)
    assert kind == TORCHS
    if "side" not in settings:
        with fast_convolutions(CPU):
            kind, _ = results(layer, x)
        assert kind == TORCHS


def test_in_bfloat16_what_does_not_learn_is_left_to_torch() -> None:
    layer, x = layer_and_input()
    with fast_convolutions(CPU), torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert layer(x).grad_fn is None
        layer.requires_grad_(False)
        assert layer(x).grad_fn is None
