"""Ten steps of every recipe give the losses recorded before: what should not change the arithmetic is seen not to.

To record them anew after a change that means to alter it: python -m tests.training.test_golden
"""

import json
from pathlib import Path

import pytest
import torch

from tests.training.runs import narrow, partition, train
from training import recipe

RECORDED = Path(__file__).with_name("golden_losses.json")
# Relative. Another instruction set adds up in another order, and training magnifies that a thousandfold with each few
# steps in some recipes; of 16 digits enough are left.
TOLERANCE = 1e-3


def ten_losses(name: str) -> list[float]:
    """The loss of each step, in float64: an epoch is one batch of 16 out of 24 pictures."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        kept = train(partition(24), name, "epochs=10", *narrow(name))
    finally:
        torch.set_default_dtype(usual)
    return [epoch.loss for epoch in kept.epochs]


@pytest.mark.parametrize("name", recipe.names())
def test_losses_are_the_recorded_ones(name: str) -> None:
    assert ten_losses(name) == pytest.approx(json.loads(RECORDED.read_text())[name], rel=TOLERANCE)


def test_every_recorded_recipe_exists() -> None:
    assert list(json.loads(RECORDED.read_text())) == list(recipe.names())


if __name__ == "__main__":
    losses = {name: [round(loss, 6) for loss in ten_losses(name)] for name in recipe.names()}
    RECORDED.write_text(json.dumps(losses, indent=1) + "\n")
