"""A network in 8-bit integers answers nearly as it did, and reads nothing but integers."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import quantiser, resnet
from training.quantiser import QuantisedConv2d, Quantiser

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("fast_resnet", {"widths": [8, 16, 16]}),
    "no shortcuts": (
        "fast_resnet",
        {"widths": [8, 16, 16], "convolutions": 2, "shortcut": False, "whiten_bias": True},
    ),
    "projections": ("resnet18", {"width": 8}),
    "padding": ("resnet20", {"width": 8}),
    "bottlenecks behind a pooling": ("resnet", {"block": "bottleneck", "blocks": [1, 1], "stem": "imagenet"}),
    "norms before convolutions": ("resnet", {"block": "wide", "blocks": [2, 1], "width": 8, "block_dropout": 0.1}),
    "several scales": ("resnet20", {"width": 8, "levels": 2}),
}


def network(name: str) -> nn.Module:
    """A network with random weights and statistics, in evaluation mode."""
    torch.manual_seed(0)
    architecture, arguments = NETWORKS[name]
    made = resnet.build(architecture, 3, arguments).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
    return made


def pictures(count: int) -> Tensor:
    """Uint8 [count, 3, 32, 32], of patches in random colours."""
    generator = torch.Generator().manual_seed(count)
    small = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3)


def normalise(images: Tensor) -> Tensor:
    return images.float() / 128 - 1


@cache
def fitted(name: str) -> nn.Module:
    """The same network in integers, fitted to other pictures."""
    made = quantiser.quantised(network(name))
    quantiser.fit(made, normalise, pictures(32))
    return made


# The finer the weights, the less rounding hides that something was folded or placed wrongly.
@pytest.mark.parametrize(("largest", "bound"), [(63, 0.5), (127, 0.05)])
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_its_answers_are_nearly_those_of_the_network_it_was_made_of(
    name: str, largest: int, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantiser, "_LARGEST", largest)
    images = normalise(pictures(20))
    expected, found = network(name)(images), fitted.__wrapped__(name)(images)
    assert not torch.equal(found, expected)
    assert (found - expected).square().mean() < bound * expected.var(0).mean()


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_every_convolution_reads_integers_with_integers(name: str) -> None:
    made = fitted(name)
    convolutions = [part for part in made.modules() if isinstance(part, QuantisedConv2d)]
    levels = []
    for part in convolutions:
        part.register_forward_pre_hook(lambda _, arguments: levels.append(len(arguments[0].unique())))
    made(normalise(pictures(20)))
    assert len(levels) >= len(convolutions)
    assert all(2 < count <= 256 for count in levels)
    assert not any(isinstance(part, nn.Conv2d) for part in made.modules())
    assert all(part.weight.dtype is torch.int8 for part in convolutions)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_its_state_is_all_that_it_consists_of(name: str) -> None:
    first = fitted(name)
    architecture, arguments = NETWORKS[name]
    second = quantiser.quantised(resnet.build(architecture, 3, arguments).eval())
    second.load_state_dict(first.state_dict())
    images = normalise(pictures(4))
    assert torch.equal(first(images), second(images))


def test_a_quantiser_rounds_to_the_nearest_level_and_keeps_zero() -> None:
    made = Quantiser()
    values = torch.cat([torch.linspace(-0.5, 3, 1000), torch.zeros(1)])
    assert torch.equal(made(values), values)  # until it is fitted
    made.fit(values)
    rounded = made(values)
    assert len(rounded.unique()) <= 256
    assert (rounded - values).abs().max() <= 3.5 / 255
    assert rounded[-1] == 0


def test_a_quantiser_cuts_off_outliers_for_finer_steps() -> None:
    made = Quantiser()
    crowd = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    made.fit(torch.cat([crowd, torch.tensor([3.0])]))
    assert (made(crowd) - crowd).abs().max() < 0.6 * 3 / 255


@pytest.mark.parametrize("value", [-2.0, 0.0, 2.0])
def test_a_quantiser_fits_values_that_are_all_the_same(value: float) -> None:
    made = Quantiser()
    made.fit(torch.full((10,), value))
    assert float(made(torch.tensor(value))) == pytest.approx(value)


def test_weights_are_rounded_by_half_a_step_of_their_own_channel_at_most() -> None:
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        conv.weight *= torch.tensor([1e-3, 1, 1e3, 0]).view(4, 1, 1, 1)
    made = QuantisedConv2d(conv)
    distance = (made.weight * made.scale.view(4, 1, 1, 1) - conv.weight).abs().amax((1, 2, 3))
    assert (distance <= conv.weight.abs().amax((1, 2, 3)) / 63 * 0.5001).all()
