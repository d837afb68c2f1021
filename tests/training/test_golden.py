"""Twenty steps of every recipe give the losses recorded before: what should not change the arithmetic is seen not to.

To record them anew after a change that means to alter it: python -m tests.training.test_golden
"""

import json
from pathlib import Path

import pytest
import torch

from tests.training.runs import narrow, partition, train
from training import recipe

RECORDED = Path(__file__).with_name("golden_losses.json")
# Relative. One machine repeats its losses exactly; another instruction set adds up in another order.
TOLERANCE = 1e-3
# Twenty steps of a deep and narrow network turn a difference in the last digit into one of ten percent, so the deep
# ones are tried with a single block in each stage.
SHALLOW = {
    "resnet": ["network.arguments.blocks=[1, 1, 1, 1]"],
    "resnet18": ["network.arguments.blocks=[1, 1, 1, 1]"],
    "resnet50": ["network.arguments.blocks=[1, 1, 1, 1]", "network.arguments.block=bottleneck"],
    "wide_resnet28_10": ["network.arguments.blocks=[1, 1, 1]", "network.arguments.block=wide"],
}


def shallow(name: str) -> list[str]:
    """What makes a recipe's network shallow, if it is one of the deep ones."""
    blocks = SHALLOW.get(recipe.load(name).network.architecture)
    return ["network.architecture=resnet", *blocks] if blocks else []


def twenty_losses(name: str) -> list[float]:
    """The loss of each step, by one thread: an epoch is one batch of 16 out of 24 pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kept = train(partition(24), name, "epochs=20", *narrow(name), *shallow(name))
    finally:
        torch.set_num_threads(threads)
    return [epoch.loss for epoch in kept.epochs]


@pytest.mark.parametrize("name", recipe.names())
def test_losses_are_the_recorded_ones(name: str) -> None:
    assert twenty_losses(name) == pytest.approx(json.loads(RECORDED.read_text())[name], rel=TOLERANCE)


def test_every_recorded_recipe_exists() -> None:
    assert list(json.loads(RECORDED.read_text())) == list(recipe.names())


if __name__ == "__main__":
    losses = {name: [round(loss, 6) for loss in twenty_losses(name)] for name in recipe.names()}
    RECORDED.write_text(json.dumps(losses, indent=1) + "\n")
