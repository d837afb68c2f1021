"""Pruning takes out the weakest filters and wires up the others as they were."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import pruning, resnet
from training.errors import InputError


def network(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """A network with random weights and statistics, in evaluation mode."""
    torch.manual_seed(0)
    made = resnet.build(architecture, 3, arguments).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
    return made


def chosen(count: int, of: int) -> Tensor:
    return torch.randperm(of)[:count]


def silence(layers: nn.Module, silent: dict[int, Tensor]) -> None:
    """Make channels carry nothing; `silent` names them by the number of channels that a layer has."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[silent[module.out_channels]] = 0
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.bias.data[silent[module.num_features]] = 0
            module.running_mean[silent[module.num_features]] = 0


@pytest.mark.parametrize(
    "arguments", [{}, {"convolutions": 2}, {"convolutions": 2, "shortcut": False, "whiten_bias": True}], ids=str
)
def test_channels_that_carry_nothing_go_without_effect_fast_resnet(arguments: dict[str, object]) -> None:
    wide = network("fast_resnet", {"widths": [16, 32, 64], **arguments})
    narrow = network("fast_resnet", {"widths": [8, 20, 24], **arguments})
    silence(wide.get_submodule("blocks"), {16: chosen(8, 16), 32: chosen(12, 32), 64: chosen(40, 64)})
    pruning.shrink(wide, narrow)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(narrow(images), wide(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet20"])
def test_channels_that_carry_nothing_go_without_effect_resnet(architecture: str) -> None:
    wide, narrow = network(architecture, {"width": 16}), network(architecture, {"width": 8})
    silent = {16: chosen(8, 16)}
    for width in (16, 32, 64):
        # A shortcut without weights passes its channels on in the middle of twice as many.
        pad = width // 2
        before, after = chosen(pad // 2, pad), chosen(pad // 2, pad) + width + pad
        silent[2 * width] = torch.cat([before, silent[width] + pad, after])
    silence(wide, silent)
    pruning.shrink(wide, narrow)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(narrow(images), wide(images), rtol=1e-4, atol=1e-4)


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be pruned"):
        pruning.shrink(nn.Linear(3, 3), nn.Linear(2, 2))
