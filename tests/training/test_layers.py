"""The order of layers, and what freezing leaves alone."""

from typing import Any

import pytest
import torch
from torch import nn

from training.layers import freeze, head_of, layers, train_mode, without_head
from training.recipe import Freeze
from training.resnet import build

NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "fast_resnet": ({"widths": [8, 16, 16]}, 5),
    "resnet20": ({"width": 8}, 11),
    "resnet18": ({"width": 8}, 10),
}


def network(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return build(architecture, 3, NETWORKS[architecture][0])


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("levels", [1, 2])
def test_layers_hold_every_weight_once_and_end_with_the_head(architecture: str, levels: int) -> None:
    arguments, count = NETWORKS[architecture]
    model = build(architecture, 3, {**arguments, "levels": levels})
    order = layers(model)
    assert len(order) == count
    assert order[-1] is head_of(model)
    found = [id(parameter) for layer in order for parameter in layer.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("architecture", NETWORKS)
def test_without_its_head_a_network_gives_what_the_head_takes(architecture: str) -> None:
    model = network(architecture).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with without_head(model) as trunk:
        features = trunk(pictures)
    torch.testing.assert_close(head_of(model)(features), model(pictures))


@pytest.mark.parametrize("shared", [False, True])
def test_frozen_layers_and_statistics_stay_as_they_are_in_a_step(shared: bool) -> None:
    model = network("resnet20")
    if shared:  # as several processes with GPUs have it
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    settings = Freeze(layers=3, statistics=True)
    freeze(model, settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    train_mode(model, settings)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "head.weight" in changed
    assert not any(name.startswith(("stem.", "stages.0.", "stages.1.")) for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)


def test_statistics_follow_the_pictures_unless_they_are_frozen() -> None:
    model = network("resnet20")
    train_mode(model, Freeze())
    before = model.state_dict()["stem.1.running_mean"].clone()
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(model.state_dict()["stem.1.running_mean"], before)
