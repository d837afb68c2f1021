"""One training run, from a network with fresh weights to a trained one."""

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import evaluate
from training.augment import alternating_flip, cutout, random_crop
from training.checkpoint import Checkpoint
from training.data import Partition, Split
from training.errors import TrainingError
from training.machine import fast_bfloat16
from training.normalisation import Normalisation
from training.optim import make_optimizers, rate
from training.recipe import Augment, Recipe

log = logging.getLogger(__name__)

_PREPARED_WITH = 5000  # training pictures that a first layer is set from; more change nothing


@dataclass(frozen=True)
class Step:
    """Progress inside an epoch: the share of the run that is done, and running figures of this epoch."""

    epoch: int
    done: float
    loss: float
    accuracy: float
    images_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class Epoch:
    """A finished epoch; `seconds` is the training time of the run so far, validation included."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


class Sink(Protocol):
    """Something that wants to know how a run goes: a progress bar, a log, a job's status."""

    def step(self, step: Step) -> None:
        """Called about once a second."""

    def epoch(self, epoch: Epoch) -> None:
        """Called after every epoch, once its checkpoint is on disk; a resumed run begins with those before it."""


def train(
    network: nn.Module,
    data: Partition,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    normalise: Normalisation,
    sinks: Sequence[Sink] = (),
    checkpoint: Checkpoint | None = None,
) -> list[Epoch]:
    """Train `network` in place and return what each epoch gave.

    Order, augmentation and dropout of an epoch depend on `seed` and the epoch's number alone, so a run that is resumed
    after its last finished epoch goes on exactly as it would have without the interruption.

    Args:
        normalise: maps uint8 pictures to the network's input.
        checkpoint: written after every epoch; None for no checkpoints.

    Raises:
        TrainingError: the loss is no longer finite, or memory ran out; the last good checkpoint is kept.
    """
    prepare = getattr(network, "prepare", None)
    if prepare:
        prepare(normalise(data.train.images[:: max(1, len(data.train) // _PREPARED_WITH)]))
    network.to(device).to(memory_format=torch.channels_last)
    optimizers = make_optimizers(network, recipe.optimizer)
    precision = autocast_dtype(recipe, device)
    history: list[Epoch] = []
    if checkpoint and checkpoint.resume:
        history = _restore(checkpoint.read(), network, optimizers)
        for sink in sinks:
            for earlier in history:
                sink.epoch(earlier)
    parts = _Parts(network, optimizers, _on_device(data.train, device), recipe, normalise, precision, seed)
    log.info("training %d epochs of %d pictures in %s on %s", recipe.epochs, len(data.train), precision, device)
    for epoch in range(len(history), recipe.epochs):
        started = time.perf_counter()
        before = history[-1].seconds if history else 0.0
        loss, accuracy = _train_epoch(parts, epoch, _Watch(sinks, epoch, recipe.epochs, before))
        scores = evaluate.score(network, normalise, data.validation, device, precision)
        seconds = round(before + time.perf_counter() - started, 3)
        history.append(Epoch(epoch + 1, recipe.epochs, loss, accuracy, scores.loss, scores.accuracy, seconds))
        if checkpoint:
            checkpoint.write(_state(network, optimizers, history))
        for sink in sinks:
            sink.epoch(history[-1])
    return history


def autocast_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The number format of the forward pass: bfloat16 where the recipe leaves it open and hardware runs it faster."""
    if recipe.precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


@dataclass(frozen=True)
class _Parts:
    """What every epoch of a run works with."""

    network: nn.Module
    optimizers: list[torch.optim.Optimizer]
    split: Split
    recipe: Recipe
    normalise: Normalisation
    precision: torch.dtype
    seed: int


def _train_epoch(parts: _Parts, epoch: int, watch: "_Watch") -> tuple[float, float]:
    recipe, split = parts.recipe, parts.split
    device, count, batch = split.images.device, len(split), recipe.batch_size
    batches = count // batch
    torch.manual_seed(_mix(parts.seed, epoch))
    generator = torch.Generator(device).manual_seed(_mix(parts.seed, epoch))
    order = torch.randperm(count, device=device, generator=generator)
    of_run = torch.Generator(device).manual_seed(parts.seed)
    mirrored_first = torch.rand(count, device=device, generator=of_run) < 0.5
    total_loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    parts.network.train()
    for step in range(batches):
        done = (epoch + step / batches) / recipe.epochs
        chosen = order[step * batch : (step + 1) * batch]
        labels = split.labels[chosen]
        images = parts.normalise(split.images[chosen])
        images = _augmented(images, mirrored_first[chosen], recipe.augment, epoch, generator)
        if recipe.low_resolution and done < recipe.low_resolution.fraction:
            images = F.interpolate(images, size=(recipe.low_resolution.size,) * 2, mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, parts.precision, enabled=parts.precision != torch.float32):
            logits = parts.network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        for optimizer in parts.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate(recipe.schedule, done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total_loss += loss.detach()
        correct += (logits.argmax(1) == labels).sum()
        watch.after(step + 1, batches, batch, total_loss, correct)
    mean_loss = float(total_loss) / batches
    if not math.isfinite(mean_loss):
        raise TrainingError(
            f"The loss is no longer finite in epoch {epoch + 1}. Lower optimizer.learning_rate, add a warm-up "
            "(schedule.warmup=0.1), or train in float32 (precision=float32). The last good checkpoint is kept."
        )
    return mean_loss, float(correct) / (batches * batch)


def _augmented(images: Tensor, mirrored: Tensor, settings: Augment, epoch: int, generator: torch.Generator) -> Tensor:
    if settings.flip == "alternating":
        images = alternating_flip(images, mirrored, epoch)
    if settings.crop_padding:
        images = random_crop(images, settings.crop_padding, generator)
    if settings.cutout:
        images = cutout(images, settings.cutout, generator)
    return images


def _mix(seed: int, epoch: int) -> int:
    """One number for a seed and an epoch, different for neighbouring pairs."""
    return (seed * 1_000_003 + epoch) % 2**63


def _on_device(split: Split, device: torch.device) -> Split:
    return dataclasses.replace(split, images=split.images.to(device), labels=split.labels.to(device))


def _state(network: nn.Module, optimizers: list[torch.optim.Optimizer], history: list[Epoch]) -> dict[str, Any]:
    return {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "history": [dataclasses.asdict(epoch) for epoch in history],
    }


def _restore(state: dict[str, Any], network: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Epoch]:
    network.load_state_dict(state["network"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return [Epoch(**epoch) for epoch in state["history"]]


class _Watch:
    """Tells the sinks about steps, at most once a second: reading the figures waits for the device."""

    def __init__(self, sinks: Sequence[Sink], epoch: int, epochs: int, before: float) -> None:
        self._sinks, self._epoch, self._epochs, self._before = sinks, epoch, epochs, before
        self._started = self._told = time.perf_counter()

    def after(self, step: int, batches: int, batch: int, total_loss: Tensor, correct: Tensor) -> None:
        now = time.perf_counter()
        if not self._sinks or (now - self._told < 1 and step < batches):
            return
        self._told = now
        done = (self._epoch + step / batches) / self._epochs
        spent = self._before + now - self._started
        figures = Step(
            epoch=self._epoch + 1,
            done=done,
            loss=float(total_loss) / step,
            accuracy=float(correct) / (step * batch),
            images_per_second=step * batch / (now - self._started),
            eta_seconds=spent / done * (1 - done),
        )
        for sink in self._sinks:
            sink.step(figures)
