"""An estimate is a length of time, and leaves the network as it was."""

import copy
import dataclasses
import math
import time

import pytest
import torch
from torch import Tensor, nn

from tests.training.runs import CPU, narrow, partition, split
from training import estimate, loop, recipe, resnet
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


def test_the_penalty_of_a_run_is_part_of_its_steps() -> None:
    parts = partition()
    chosen = recipe.load("resnet20", narrow("resnet20"))
    network = resnet.build(chosen.network.architecture, 2, chosen.network.arguments)
    seen: list[int] = []

    def penalty(images: Tensor, logits: Tensor) -> Tensor:
        seen.append(len(images))
        return logits.sum() * 0

    normalise = Normalisation.of(parts.train.images)
    estimate.run_seconds(network, parts, chosen, device=CPU, normalise=normalise, penalty=penalty)
    assert seen == [16] * 6  # two epochs of three steps


def test_a_rate_that_needs_its_warm_up_can_be_timed() -> None:
    parts = partition()
    chosen = recipe.load("resnet20", [*narrow("resnet20"), "optimizer.learning_rate=100.0"])
    network = resnet.build(chosen.network.architecture, 2, chosen.network.arguments)
    normalise = Normalisation.of(parts.train.images)
    assert estimate.run_seconds(network, parts, chosen, device=CPU, normalise=normalise) > 0


@pytest.mark.parametrize("attack", ["adversarial={radius=2, step=2.5}", None])
def test_an_epoch_is_its_steps_its_validation_and_the_attacks_on_a_part_of_that(
    attack: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []

    def look(_: nn.Module, given: tuple[Tensor]) -> None:
        shown.append(len(given[0]))

    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(shown)))  # a second for each picture that is looked at
    parts = dataclasses.replace(partition(), validation=split(502, 1))  # every second one is attacked
    chosen = recipe.load("resnet20", [*narrow("resnet20"), "epochs=1", "schedule.warmup=0", *filter(None, [attack])])
    network = resnet.build(chosen.network.architecture, 2, chosen.network.arguments)
    network.register_forward_pre_hook(look)
    normalise = Normalisation.of(parts.train.images)
    seconds = estimate.run_seconds(network, parts, chosen, device=CPU, normalise=normalise)
    (epoch,) = loop.train(network, parts, chosen, seed=0, device=CPU, normalise=normalise)
    assert seconds == pytest.approx(epoch.seconds)
