"""CUDA graphs change the time that a run takes, not its arithmetic."""

import pytest

from tests import needs
from tests.training.runs import Kept, partition, train
from training import recipe
from training.errors import InputError

GRAPHS = "compile=graphs"


@pytest.mark.parametrize("name", ["sprint", "resnet20"])
def test_losses_are_those_of_a_run_without_graphs(name: str) -> None:
    device = needs.cuda()

    def losses(*overrides: str) -> list[tuple[float, float]]:
        kept: Kept = train(partition(), name, *overrides, device=device)
        return [(epoch.loss, epoch.val_loss) for epoch in kept.epochs]

    assert losses(GRAPHS) == losses("compile=off")


def test_without_cuda_the_log_says_that_they_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(partition(), "resnet20", GRAPHS, "network.arguments={width=8}")
    assert any(message.startswith("compile = graphs is left out") for message in caplog.messages)


@pytest.mark.parametrize("override", ["accumulate=2", "freeze={ layers = 1, epochs = 1 }"])
def test_gradients_that_they_cannot_give_are_refused(override: str) -> None:
    with pytest.raises(InputError, match=r"takes no accumulate and no freeze\.epochs"):
        recipe.load("sprint", [override])
