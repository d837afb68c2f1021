"""Convolutions of small maps: the gradients that torch computes, by other means."""

import pytest
import torch
from torch import Tensor, nn

from tests.training.runs import CPU
from training.convolution import small_maps

OURS, TORCHS = "_ConvolutionBackward", "ConvolutionBackward0"


def gradients(layer: nn.Conv2d, x: Tensor) -> tuple[str, Tensor, Tensor]:
    """What computed the output, and the gradients of input and weight for some gradient of the output."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    kind = output.grad_fn.name()
    output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype))
    assert x.grad is not None
    assert layer.weight.grad is not None
    return kind, x.grad, layer.weight.grad


def layer_and_input(side: int = 4, count: int = 3, **settings: object) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, **({"kernel_size": 3, "padding": 1, "bias": False} | settings))  # type: ignore[arg-type]
    x = torch.randn(count, 6, side, side)
    return layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [3, 33])  # of pictures: less than lie in a row, and more
def test_gradients_of_small_maps_are_those_of_torch(side: int, count: int) -> None:
    layer, x = layer_and_input(side, count)
    _, *expected = gradients(layer, x)
    with small_maps(CPU):
        kind, *found = gradients(layer, x)
    assert kind == OURS
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("side", "kind"), [(5, OURS), (9, OURS), (10, TORCHS)])
def test_in_bfloat16_larger_maps_are_small_too(side: int, kind: str) -> None:
    layer, x = layer_and_input(side)
    _, *expected = gradients(layer, x)
    with small_maps(CPU), torch.autocast("cpu", torch.bfloat16):
        found_kind, *found = gradients(layer, x)
        assert layer(x).dtype == torch.bfloat16
    assert found_kind == kind
    assert [gradient.dtype for gradient in found] == [torch.float32, torch.float32]
    for gradient, exact in zip(found, expected, strict=True):
        assert (gradient - exact).norm() < 0.01 * exact.norm()


def test_gradients_in_bfloat16_are_those_of_float32_but_for_rounding() -> None:
    layer, x = layer_and_input(side=5)
    _, *expected = gradients(layer, x)
    with small_maps(CPU), torch.autocast("cpu", torch.bfloat16):
        _, *found = gradients(layer, x)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"side": 5},
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
    layer, x = layer_and_input(**settings)  # type: ignore[arg-type]
    with small_maps(CPU):
        kind, *_ = gradients(layer, x)
    assert kind == TORCHS


def test_what_does_not_learn_is_left_to_torch() -> None:
    layer, x = layer_and_input()
    with small_maps(CPU):
        with torch.no_grad():
            assert layer(x).grad_fn is None
        layer.requires_grad_(False)
        assert layer(x).grad_fn is None
