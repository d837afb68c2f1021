"""An estimate is a length of time, and leaves the network as it was."""

import copy
import math

import pytest
import torch

from tests.training.runs import CPU, narrow, partition
from training import estimate, recipe, resnet
from training.normalisation import Normalisation


@pytest.mark.parametrize("override", ["epochs=3", "low_resolution={size=16, fraction=0.5, grow_to=20}"])
def test_it_is_positive_and_the_network_stays_fresh(override: str) -> None:
    parts = partition()
    chosen = recipe.load("cpu", [*narrow("cpu"), override])
    torch.manual_seed(0)
    network = resnet.build(chosen.network.architecture, 2, chosen.network.arguments)
    before = copy.deepcopy(network.state_dict())
    normalise = Normalisation.of(parts.train.images)
    seconds = estimate.run_seconds(network, parts, chosen, device=CPU, normalise=normalise)
    assert 0 < seconds < math.inf
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
