"""Short runs by as many processes as torchrun starts; each writes what came of them into `RANK.json` of a folder."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.runs import CPU, partition, train
from training import loop, recipe
from training.distributed import Group, group_of
from training.normalisation import Normalisation

SMALL = (
    "network.architecture=resnet",
    "network.arguments={block='basic', blocks=[1, 1], width=8}",
    "optimizer.learning_rate=0.05",
)
RUNS = {
    "accumulate": ("accumulate=2",),
    "adversarial": ("adversarial={radius=2, step=2.5}",),
    "both": ("accumulate=2", "adversarial={radius=2, step=2.5}"),
}


class Masked(nn.Module):
    """Keeps what dropout leaves of ones in each step of training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.masks: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.masks.append(F.dropout(torch.ones(8)).tolist())
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def masks(group: Group) -> list[list[float]]:
    """What dropout leaves in each step of two epochs."""
    network, parts = Masked(), partition()
    chosen = recipe.load("resnet20", ["epochs=2", "batch_size=16", "precision='float32'"])
    normalise = Normalisation.of(parts.train.images)
    loop.train(network, parts, chosen, seed=0, device=CPU, normalise=normalise, group=group)
    return network.masks


def outcome(group: Group) -> dict[str, Any]:
    """Losses of each run's epochs, in training and validation, and the masks of dropout."""
    kept = {name: train(partition(), "resnet20", *SMALL, *settings, group=group) for name, settings in RUNS.items()}
    losses = {name: [(epoch.loss, epoch.val_loss) for epoch in run.epochs] for name, run in kept.items()}
    return {"losses": losses, "masks": masks(group)}


if __name__ == "__main__":
    with group_of(CPU) as joined:
        Path(sys.argv[1], f"{joined.rank}.json").write_text(json.dumps(outcome(joined)))
