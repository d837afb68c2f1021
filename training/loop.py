"""One training run, from a network with fresh weights, or with those of earlier epochs, to a trained one."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import evaluate
from training.adversarial import Attack, robust_accuracy, strong
from training.augment import augmented, mixed
from training.average import Average
from training.balance import class_weights, weighted
from training.checkpoint import Checkpoint
from training.convolution import fast_convolutions
from training.data import Partition, Split
from training.device import choose_algorithms, fast_bfloat16
from training.distributed import ALONE, Group
from training.early_stopping import BestEpoch
from training.errors import InputError, TrainingError
from training.evaluate import Scores
from training.graphs import Graphed
from training.layers import drop_gradients, freeze, train_mode
from training.normalisation import Normalisation
from training.optim import make_optimizers, retire, set_rates
from training.recipe import Freeze, Recipe
from training.sink import Epoch, Sink, Watch
from training.trivial import trivial_augment

log = logging.getLogger(__name__)

Penalty = Callable[[Tensor, Tensor], Tensor]

_PREPARED_WITH = 5000  # training pictures that a first layer is set from; more change nothing
_ATTACKED = 500  # validation pictures that are attacked after each epoch; an attack costs ten steps of training


def train(  # noqa: PLR0913  the parts of a run, each by its name
    network: nn.Module,
    data: Partition,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    normalise: Normalisation,
    sinks: Sequence[Sink] = (),
    checkpoint: Checkpoint | None = None,
    earlier: Sequence[Epoch] = (),
    penalty: Penalty | None = None,
    group: Group = ALONE,
    best: BestEpoch | None = None,
) -> list[Epoch]:
    """Train `network` in place and return what each epoch gave; with early stopping it keeps the best epoch's weights.

    Order, augmentation and dropout of an epoch depend on `seed` and the epoch's number alone, dropout on the process
    too, so a run that is resumed after its last finished epoch goes on exactly as it would have without the
    interruption.

    Args:
        normalise: maps uint8 pictures to the network's input.
        checkpoint: written after epochs when it is due; None for no checkpoints.
        earlier: epochs of this run that the network has been through already; a first layer that is set from the
            pictures then stays as it is.
        penalty: maps a batch's input and logits to a number that is added to its loss.
        group: the processes that train it together; each is given the same arguments.
        best: remembers the epoch that is kept; None for one of the run's own.

    Raises:
        InputError: the batch cannot be divided among the processes, or there are fewer pictures.
        TrainingError: the loss is no longer finite; the last good checkpoint is kept.
    """
    _check_batch(recipe, len(data.train), group)
    choose_algorithms(device, recipe.epochs * (len(data.train) // recipe.batch_size))
    network.to(device).to(memory_format=torch.channels_last)
    split = _on_device(data.train, device)
    prepare = getattr(network, "prepare", None)
    if prepare and not earlier:
        prepare(normalise(split.images[:: max(1, len(split) // _PREPARED_WITH)]))
    freeze(network, recipe.freeze)
    parts = _Parts(
        network=network,
        forward=_compiled(group.wrap(network), recipe, device, group),
        optimizers=make_optimizers(network, recipe.optimizer),
        average=Average(network, recipe.average.decay) if recipe.average else None,
        attack=Attack(**recipe.adversarial.model_dump()) if recipe.adversarial else None,
        group=group,
        split=split,
        classes=1 + int(max(part.labels.max() for part in (data.train, data.validation, data.test) if len(part))),
        recipe=recipe,
        normalise=normalise,
        precision=autocast_dtype(recipe, device),
        seed=seed,
        penalty=penalty,
    )
    best = best or BestEpoch(recipe.early_stopping)
    history = _begin(parts, best, checkpoint, earlier)
    for sink in sinks:
        for finished in history:
            sink.epoch(finished)
    _get_ready(parts, data.validation, device)
    log.info("training %d epochs of %d pictures in %s on %s", recipe.epochs, len(data.train), parts.precision, device)
    for epoch in range(len(history), recipe.epochs):
        if best.is_over(epoch):
            log.info("stopped after epoch %d: none was better than epoch %d", epoch, best.epoch)
            break
        started = time.perf_counter()
        before = history[-1].seconds if history else 0.0
        loss, accuracy = _train_epoch(parts, epoch, Watch(sinks, epoch, recipe.epochs, before))
        scores = _validate(parts, epoch, data.validation, device)
        robust = _robust_accuracy(parts, data.validation)
        seconds = round(before + time.perf_counter() - started, 3)
        figures = (scores.loss, scores.accuracy, scores.macro_f1, seconds, robust)
        history.append(Epoch(epoch + 1, recipe.epochs, loss, accuracy, *figures))
        if not _low_size(recipe, _last_step(parts, epoch)):
            best.consider(epoch + 1, scores, parts.judged)
        if checkpoint and group.is_first and checkpoint.is_due:
            checkpoint.write(_state(parts, best, history))
        for sink in sinks:
            sink.epoch(history[-1])
    if parts.average:
        network.load_state_dict(parts.average.network.state_dict())
    best.apply(network)
    return history


def _check_batch(recipe: Recipe, pictures: int, group: Group) -> None:
    if recipe.batch_size % (group.size * recipe.accumulate):
        raise InputError(
            f"batch_size {recipe.batch_size} is not a multiple of {group.size} processes x {recipe.accumulate} parts "
            "(accumulate). Change batch_size."
        )
    if pictures < recipe.batch_size:
        raise InputError(f"batch_size {recipe.batch_size} is more than the {pictures} training pictures. Lower it.")


def autocast_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The number format of the forward pass: bfloat16 where the recipe leaves it open and hardware runs it faster."""
    if recipe.precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


@dataclass(frozen=True)
class _Parts:
    """What every epoch of a run works with; `forward` is the network as training calls it."""

    network: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizers: list[torch.optim.Optimizer]
    average: Average | None
    attack: Attack | None
    group: Group
    split: Split
    classes: int
    recipe: Recipe
    normalise: Normalisation
    precision: torch.dtype
    seed: int
    penalty: Penalty | None

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.average.network if self.average else self.network


@dataclass(frozen=True)
class _Batch:
    """Pictures float [N, 3, H, W] of one step, and what goes with each.

    Attributes:
        targets: int64 [N], or a probability of each class, float [N, classes].
        labels: int64 [N].
        weights: how much each counts, float [N]; None where all count the same.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    weights: Tensor | None

    def pieces(self, group: Group, count: int) -> Iterator["_Batch"]:
        """This process's shares of the batch's `count` parts.

        Every process makes the whole batch and takes its share of each part here, so that their number changes neither
        a random choice nor what batch norm measures.
        """
        cut = [
            [None] * count if whole is None else [group.share(part) for part in whole.chunk(count)]
            for whole in (self.images, self.targets, self.labels, self.weights)
        ]
        return (_Batch(*piece) for piece in zip(*cut, strict=True))


def _get_ready(parts: _Parts, validation: Split, device: torch.device) -> None:
    """Do beforehand what is no training: a GPU loads its libraries, chooses its algorithms and captures graphs."""
    if not isinstance(parts.forward, Graphed):
        return
    train_mode(parts.network, parts.recipe.freeze)
    some = parts.normalise(parts.split.images[: parts.recipe.batch_size])
    some = _resized(some, _low_size(parts.recipe, 0)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, parts.precision, enabled=parts.precision != torch.float32):
        parts.forward.capture(some)
    _validate(parts, 0, validation, device)


def _begin(parts: _Parts, best: BestEpoch, checkpoint: Checkpoint | None, earlier: Sequence[Epoch]) -> list[Epoch]:
    """The epochs that are behind the run: those of the checkpoint that it resumes from, or those done before it."""
    if checkpoint and checkpoint.resume:
        return _restore(checkpoint.read(), parts, best)
    history = list(earlier)
    if history:
        last = history[-1]
        best.consider(last.epoch, Scores(last.val_loss, last.val_accuracy, last.val_macro_f1), parts.network)
        if checkpoint and parts.group.is_first:
            checkpoint.write(_state(parts, best, history))
    return history


def _validate(parts: _Parts, epoch: int, split: Split, device: torch.device) -> Scores:
    """Score the validation split at the size that the epoch's last step was trained at.

    Raises:
        TrainingError: its loss is not finite. That of the training pictures is computed before each step, and cannot
            tell what the last one did.
    """
    size = _low_size(parts.recipe, _last_step(parts, epoch))
    scores = evaluate.score(
        parts.judged, lambda images: _resized(parts.normalise(images), size), split, device, parts.precision
    )
    if not math.isfinite(scores.loss):
        raise _diverged(epoch)
    return scores


def _diverged(epoch: int) -> TrainingError:
    return TrainingError(
        f"The loss is no longer finite in epoch {epoch + 1}. Lower optimizer.learning_rate, add a warm-up "
        "(schedule.warmup=0.1), or train in float32 (precision=float32). The last good checkpoint is kept."
    )


def _low_size(recipe: Recipe, done: float) -> int | None:
    """Side of the pictures, in pixels, up to the share `done` of all steps; None for the full size."""
    return recipe.low_resolution.at(done) if recipe.low_resolution else None


def _last_step(parts: _Parts, epoch: int) -> float:
    """The share of all steps that is done when an epoch's last one begins."""
    batches = len(parts.split) // parts.recipe.batch_size
    return (epoch + (batches - 1) / batches) / parts.recipe.epochs


def _resized(images: Tensor, size: int | None) -> Tensor:
    return images if size is None else F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _robust_accuracy(parts: _Parts, validation: Split) -> float | None:
    """Watched during the run: training on weak attacks can fail all at once (Wong et al. 2020, section 5.4)."""
    if not parts.attack:
        return None
    attack = strong(parts.attack.radius)
    return robust_accuracy(parts.judged, parts.normalise, attacked(validation), attack, parts.seed)


def attacked(validation: Split) -> Split:
    """The part of the validation split that is attacked after each epoch of adversarial training."""
    return validation.subset(torch.arange(len(validation)) % math.ceil(len(validation) / _ATTACKED) == 0)


def _compiled(forward: nn.Module, recipe: Recipe, device: torch.device, group: Group) -> Callable[[Tensor], Tensor]:
    if recipe.compile == "off":
        return forward
    if device.type != "cuda":
        log.info("compile = %s is left out: it pays on CUDA only, and this run is on %s", recipe.compile, device)
        return forward
    if recipe.compile == "graphs" and group.size > 1:
        log.info("compile = graphs is left out: it is for one process, and %d share this run", group.size)
        return forward
    if recipe.compile == "graphs":
        return Graphed(forward)
    compiled: Callable[[Tensor], Tensor] = torch.compile(forward, mode=recipe.compile, dynamic=False)
    return compiled


def _train_epoch(parts: _Parts, epoch: int, watch: Watch) -> tuple[float, float]:
    recipe, split = parts.recipe, parts.split
    device, count, batch = split.images.device, len(split), recipe.batch_size
    batches = count // batch
    torch.manual_seed(_mix(parts.seed + parts.group.rank, epoch))  # for dropout: each process drops other values
    generator = torch.Generator(device).manual_seed(_mix(parts.seed, epoch))
    chance = np.random.default_rng(_mix(parts.seed, epoch))  # for what is decided on the host
    order = torch.randperm(count, device=device, generator=generator)
    of_run = torch.Generator(device).manual_seed(parts.seed)
    mirrored_first = torch.rand(count, device=device, generator=of_run) < 0.5
    total_loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    weights = class_weights(split.labels, parts.classes) if recipe.class_weights == "balanced" else None
    frozen = recipe.freeze if recipe.freeze.covers(epoch) else Freeze()
    train_mode(parts.network, frozen)
    for step in range(batches):
        done = (epoch + step / batches) / recipe.epochs
        chosen = order[step * batch : (step + 1) * batch]
        labels = split.labels[chosen]
        images = split.images[chosen]
        if recipe.augment.policy == "trivial":
            images = trivial_augment(images, chance)
        images = augmented(parts.normalise(images), mirrored_first[chosen], recipe.augment, epoch, generator)
        images, targets = mixed(images, labels, parts.classes, recipe.augment, chance, generator)
        images = _resized(images, _low_size(recipe, done))
        whole = _weighed(_Batch(images, targets, labels, None), weights)
        if parts.forward is parts.network:  # compiled, or shared by processes, it expects the same gradients throughout
            retire(parts.optimizers, done)
        loss, right = _backward(parts, whole, generator)
        drop_gradients(parts.network, frozen)
        _take_step(parts, epoch, done)
        total_loss += loss
        correct += right
        watch.after(step + 1, batches, batch, total_loss, correct)
    loss_sum, right_sum = parts.group.mean(torch.stack([total_loss, correct])).tolist()
    if not math.isfinite(loss_sum):
        raise _diverged(epoch)
    return loss_sum / batches, right_sum / (batches * batch)


def _weighed(batch: _Batch, weights: Tensor | None) -> _Batch:
    """The batch with the weights of its pictures, from those of the classes, float [classes]."""
    if weights is None:
        return batch
    if batch.targets.ndim == 1:
        return dataclasses.replace(batch, weights=weights[batch.targets])
    targets, of_pictures = weighted(batch.targets, weights)
    return dataclasses.replace(batch, targets=targets, weights=of_pictures)


def _backward(parts: _Parts, whole: _Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add up the gradients of one step, and give its loss and how many of the batch were answered rightly."""
    recipe, device = parts.recipe, whole.images.device
    total_loss, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    for piece in whole.pieces(parts.group, recipe.accumulate):
        images = piece.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, parts.precision, enabled=parts.precision != torch.float32):
            if parts.attack:
                images = parts.attack(parts.network, images, piece.targets, parts.normalise, generator, parts.group)
            with fast_convolutions(device):  # not the attack, which asks for no gradient of the weights
                logits = parts.forward(images).float()
        loss = _loss(logits, piece.targets, piece.weights, recipe.label_smoothing)
        if parts.penalty:
            loss = loss + parts.penalty(images, logits)
        loss = loss / recipe.accumulate
        loss.backward()
        total_loss += loss.detach()
        correct += parts.group.size * (logits.argmax(1) == piece.labels).sum()
    return total_loss, correct


def _take_step(parts: _Parts, epoch: int, done: float) -> None:
    settings = parts.recipe.optimizer
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(parts.network.parameters(), settings.clip_norm)
    set_rates(parts.optimizers, parts.recipe.schedule, done)
    for optimizer in parts.optimizers:
        try:
            optimizer.step()
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise _diverged(epoch) from error  # some steps are refused for their size before a loss can show it
        optimizer.zero_grad(set_to_none=True)
    if parts.average:
        parts.average.update()


def _loss(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")).mean()


def _mix(seed: int, epoch: int) -> int:
    """One number for a seed and an epoch, different for neighbouring pairs."""
    return (seed * 1_000_003 + epoch) % 2**63


def _on_device(split: Split, device: torch.device) -> Split:
    return dataclasses.replace(split, images=split.images.to(device), labels=split.labels.to(device))


def _state(parts: _Parts, best: BestEpoch, history: list[Epoch]) -> dict[str, Any]:
    return {
        "network": parts.network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in parts.optimizers],
        "average": parts.average.state() if parts.average else None,
        "best": best.state(),
        "history": [dataclasses.asdict(epoch) for epoch in history],
    }


def _restore(state: dict[str, Any], parts: _Parts, best: BestEpoch) -> list[Epoch]:
    parts.network.load_state_dict(state["network"])
    for optimizer, saved in zip(parts.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if parts.average:
        parts.average.restore(state["average"])
    best.restore(state["best"])
    return [Epoch(**epoch) for epoch in state["history"]]
