"""Tiny runs of the loop, on pictures that are brighter on one side."""

from typing import Any

import torch

from training import loop, recipe, resnet
from training.data import Partition, Split
from training.normalisation import Normalisation
from training.sink import Epoch, Step

CPU = torch.device("cpu")


def split(count: int, seed: int) -> Split:
    """Pictures that are brighter on the left or on the right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :16] += 120
    images[labels == 1, :, 16:] += 120
    return Split(images, labels, tuple(map(str, range(count))), torch.arange(count))


def partition(count: int = 64) -> Partition:
    """So many pictures to train on, and a few for the other splits."""
    return Partition(split(count, 0), split(16, 1), split(16, 2), ())


def narrow(name: str) -> list[str]:
    """What makes a recipe's network small, its pictures 32 pixels and its batches 16; the rates fall with the batch."""
    chosen = recipe.load(name)
    fast = chosen.network.architecture == "fast_resnet"
    width = "network.arguments.widths=[8, 16, 16]" if fast else "network.arguments.width=8"
    rates = ("learning_rate", "head_learning_rate", "bias_learning_rate")
    share = 16 / chosen.batch_size
    scaled = [f"optimizer.{rate}={getattr(chosen.optimizer, rate) * share}" for rate in rates]
    return [width, "network.input_size=32", "batch_size=16", *scaled]


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.epochs: list[Epoch] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


def train(
    parts: Partition,
    name: str,
    *overrides: str,
    kept: Kept | None = None,
    device: torch.device = CPU,
    **options: Any,
) -> Kept:
    """Train by a shipped recipe in three epochs of small batches; `options` go to the loop."""
    kept = kept or Kept()
    chosen = recipe.load(name, ["epochs=3", "batch_size=16", "precision='float32'", *overrides])
    torch.manual_seed(0)
    network = resnet.build(chosen.network.architecture, 2, chosen.network.arguments)
    normalise = Normalisation.of(parts.train.images)
    history = loop.train(network, parts, chosen, seed=0, device=device, normalise=normalise, sinks=[kept], **options)
    assert history == kept.epochs
    return kept
