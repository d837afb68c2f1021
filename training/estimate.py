"""How long a run will take, from a few timed steps before it starts."""

import copy
import dataclasses
import time

import torch
from torch import nn

from training import evaluate, loop
from training.adversarial import robust_accuracy, strong
from training.data import Partition, Split
from training.normalisation import Normalisation
from training.recipe import LowResolution, Optimizer, Recipe
from training.sink import Epoch, Step

_STEPS = 3  # that are timed, after as many to warm up
_SLOW = 1e-3  # of the recipe's learning rates


def run_seconds(
    network: nn.Module,
    data: Partition,
    recipe: Recipe,
    *,
    device: torch.device,
    normalise: Normalisation,
    penalty: loop.Penalty | None = None,
) -> float:
    """Estimate the training time of a run, its validation included, by training a copy of the network for a few steps.

    What else the machine will do meanwhile is not foreseen, nor is the time for decoding and exporting.

    Args:
        network: fresh; it stays as it is.
        normalise: maps uint8 pictures to the network's input.
        penalty: what the run adds to the loss of each batch; it takes its time, too.
    """
    few = dataclasses.replace(
        data,
        train=_first(data.train, _STEPS * recipe.batch_size),
        validation=_first(data.validation, recipe.batch_size),
    )
    low = recipe.low_resolution
    parts: list[tuple[float, LowResolution | None]] = [(1.0, None)]
    if low:
        share = low.fraction / len(low.sizes)
        parts = [(share, LowResolution(size=size, fraction=1)) for size in low.sizes] + [(1 - low.fraction, None)]
    seconds = 0.0
    for share, resolution in parts:
        copied = copy.deepcopy(network)
        short = recipe.model_copy(update={"epochs": 2, "low_resolution": resolution, "optimizer": _slow(recipe)})
        speed = _Speed()
        loop.train(copied, few, short, seed=0, device=device, normalise=normalise, sinks=[speed], penalty=penalty)
        seconds += share * len(data.train) / speed.images_per_second
    started = time.perf_counter()
    evaluate.score(copied, normalise, few.validation, device, loop.autocast_dtype(recipe, device))
    seconds += (time.perf_counter() - started) * len(data.validation) / len(few.validation)
    if recipe.adversarial:
        part = loop.attacked(data.validation)
        some = _first(part, recipe.batch_size)
        started = time.perf_counter()
        robust_accuracy(copied, normalise, some, strong(recipe.adversarial.radius), seed=0)
        seconds += (time.perf_counter() - started) * len(part) / len(some)
    return recipe.epochs * seconds


def _slow(recipe: Recipe) -> Optimizer:
    """The optimiser with rates that nothing diverges at: they change no time, and a few steps allow no warm-up."""
    rates = ("learning_rate", "head_learning_rate", "bias_learning_rate")
    slower = {rate: _SLOW * getattr(recipe.optimizer, rate) for rate in rates}
    return recipe.optimizer.model_copy(update=slower)


class _Speed:
    """Remembers the speed of the last step that it was told of, counted over its epoch."""

    images_per_second = 0.0

    def step(self, step: Step) -> None:
        self.images_per_second = step.images_per_second

    def epoch(self, epoch: Epoch) -> None:
        """Epochs are not timed: they hold validation too."""


def _first(split: Split, count: int) -> Split:
    return split.subset(torch.arange(len(split)) < count)
