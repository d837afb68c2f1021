"""Averages of weights over the steps of a run."""

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """Exponential moving average of a network's weights and norm statistics (Polyak & Juditsky 1992).

    At first the average covers about the last ninth of all steps, until that is what `decay` says, so that the random
    start is forgotten soon; TensorFlow's ExponentialMovingAverage does the same.

    Attributes:
        network: a copy of the network that holds the averages.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.steps = 0
        self._live = list(network.state_dict().values())
        self._kept = list(self.network.state_dict().values())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it is after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for kept, live in zip(self._kept, self._live, strict=True):
            if kept.is_floating_point():
                kept.lerp_(live, 1 - decay)
            else:  # batch norm counts its batches
                kept.copy_(live)

    def state(self) -> dict[str, Any]:
        """What `restore` needs, for a checkpoint."""
        return {"network": self.network.state_dict(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.network.load_state_dict(state["network"])
        self.steps = state["steps"]
