"""Fine-tuning: a model made of another one and a few pictures. First the head, on features that stay as they are."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training import artifact, data, evaluate, forgetting, loop, lora, packaging, replay, run
from training.artifact import Manifest
from training.base import Base
from training.checkpoint import Checkpoint
from training.data import Partition, Split
from training.device import choose_device, memory_errors
from training.errors import InputError
from training.head import Choice, Examples, Scale, cross_validate, features, fit
from training.layers import head_of
from training.lineage import NOWHERE, TEST, TRAIN, VALIDATION, lineage, placed, places
from training.plan import MOST_VALIDATION, Plan, make_plan, make_recipe
from training.recipe import Recipe
from training.replay import Memory
from training.sink import Epoch, Sink, Step
from training.split import duplicate_clusters, held_out, repeating

log = logging.getLogger(__name__)

_HEAD_WORK = 16_000  # pictures of 32x32 whose features the first epoch computes at most: a minute of two CPU cores
_FEW = 500  # pictures below which figures of single folds are recorded


@dataclass(frozen=True)
class FinetuneJob:
    """What a fine-tune is asked to do; what is None or `auto` is chosen from the data.

    Attributes:
        base: `name`, meaning its version in production, or `name@version`.
        source: as on the command line.
        name: the model whose next version is written.
        models: folder of the models.
        method: which weights are trained after the head: none (`head`), all (`full`), or low-rank adapters (`lora`).
        epochs: of the whole run; the first one fits the head alone.
        learning_rate: share of its own size by which a weight may change in a step.
        classes: `replace` gives a new head for the source's classes, `add` keeps the base's and adds the source's,
            `auto` keeps the head if the classes are the same and replaces it otherwise.
        device: one of auto, cpu, cuda.
        command: what the card says to repeat the run with.
        input_size: side of the network's square input, in pixels.
        base_data: the SOURCE that the base was trained on, to remind it of; None: the cache or what is stored with it.
        unfinished: file of the checkpoint until the run is done; None for that of runs on the command line.
    """

    base: str
    source: str
    name: str
    models: Path
    method: Literal["auto", "head", "full", "lora"] = "auto"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    classes: Literal["auto", "replace", "add"] = "auto"
    seed: int = 0
    device: str = "auto"
    command: Sequence[str] = ()
    input_size: int | None = None
    base_data: str | None = None
    unfinished: Path | None = None


def finetune(job: FinetuneJob, sinks: Sequence[Sink] = (), resume: bool = False) -> Manifest:
    """Adapt a model to a source's pictures and write the result as the next version of `job.name`.

    Raises:
        InputError: the arguments or the data are wrong, or there is no interrupted run to resume.
        TrainingError: the run failed. Its last checkpoint is kept for `resume`.
    """
    artifact.check_name(job.name)
    device = choose_device(job.device)
    base = Base.read(job.models, job.base)
    plan = make_plan(job, base.manifest, data.survey(job.source), device.type)
    dataset = data.load(job.source, plan.input_size, 2 if plan.fate == "replace" else 1).labelled(plan.classes)
    memory = None if plan.fate == "replace" else replay.recall(base.folder, base.manifest, job.base_data)
    parts, memory, where = _partition(dataset, job, base.manifest, memory)
    recipe = make_recipe(job, plan, base.manifest, str(base), parts.train.labels)
    network = base.adapted(plan.classes, plan.levels).to(device).to(memory_format=torch.channels_last)
    work = _Work(job, base, plan, parts, device, sinks)
    with memory_errors(f"Lower batch_size, now {recipe.batch_size}. The last good checkpoint is kept."):
        head, choice = _fit_head(work, recipe, network)
        recipe = _with_flips(recipe, choice.mirrored)
        identity = _identity(work, recipe, dataset.sha256, where)
        written = run.Job(recipe, job.source, job.name, job.models, job.seed, job.device, job.command, job.unfinished)
        checkpoint = Checkpoint(written.checkpoint, identity, resume)
        history = _unfreeze(work, recipe, network, head, checkpoint)
    network.cpu().eval().load_state_dict(packaging.stored(network, recipe.weights))
    metrics: dict[str, Any] = {"forgetting": _forgotten(work, network, memory)}
    if sum(map(len, dataset.splits.values())) < _FEW:
        metrics["cross_validation"] = choice.figures()
    origin = run.Origin(str(base), _record(plan, choice, history, memory), metrics, where)
    manifest = run.write(written, dataset, parts, network, base.normalise, history, device, origin)
    checkpoint.path.unlink(missing_ok=True)
    return manifest


@dataclass(frozen=True)
class _Work:
    """What every stage works with."""

    job: FinetuneJob
    base: Base
    plan: Plan
    parts: Partition
    device: torch.device
    sinks: Sequence[Sink]


def _partition(
    dataset: data.Dataset, job: FinetuneJob, base: Manifest, memory: Memory | None
) -> tuple[Partition, Memory | None, str | None]:
    """The source's splits, and what is remembered of the base's data in each of them.

    No held-out picture nearly repeats one that is trained on, or that the base was trained on as far as that is known.
    The test split takes remembered pictures only of classes of which it has none: it is the user's own.

    Returns:
        The splits; what is remembered and repeats none of the source's pictures that it must not repeat; the `places`
        of the source's pictures (see `DataRecord`) if they are not those that the seed alone gives.
    """
    if memory is None:
        _check_known(dataset)
    cut = data.partition(dataset, MOST_VALIDATION, job.seed)
    known = _known(job.models, base, memory)
    own = _apart(_followed(dataset, cut, known, memory))
    before, after = ("".join(map(str, places(dataset, parts).tolist())) for parts in (cut, own))
    where = None if before == after else after
    if memory is None:
        return own, None, where
    memory = _beside(memory, own)
    pool, mask = memory.pool, held_out(memory.pool.labels, memory.pool.clusters, len(memory.pool) // 5, job.seed)
    parts = Partition(
        Split.joined(own.train, pool.subset(~mask)),
        Split.joined(own.validation, pool.subset(mask)),
        Split.joined(own.test, memory.test.subset(~torch.isin(memory.test.labels, own.test.labels))),
        own.made,
    )
    return parts, memory, where


def _check_known(dataset: data.Dataset) -> None:
    """See that there are pictures of every class where no others are remembered."""
    found = torch.cat([split.labels for split in dataset.splits.values()]).unique().tolist()
    missing = [name for label, name in enumerate(dataset.classes) if label not in found]
    if missing:
        raise InputError(
            f"There are no pictures of {missing} to keep these classes by: the base stores none and its data is "
            "not at hand. Name that with --base-data, or put pictures of these classes beside the new ones."
        )


def _known(models: Path, base: Manifest, memory: Memory | None) -> list[Partition]:
    """Splits of the data that the base and those before it were trained with, as far as they are at hand."""
    found = list(lineage(models, base))
    known = [parts for _, parts in found]
    if memory and not (found and found[0][0] == base):
        none = memory.pool.subset(torch.zeros(len(memory.pool), dtype=torch.bool))
        known.insert(0, Partition(memory.pool, none, memory.test, ()))
    return known


def _followed(dataset: data.Dataset, cut: Partition, known: Sequence[Partition], memory: Memory | None) -> Partition:
    """The source's splits, but pictures that repeat known ones are in the split in which those were.

    Only splits that were cut take or give any. A class that a split would lose stays as it was cut.
    """
    source, before = dataset.splits["train"], places(dataset, cut)
    had = _had(source, known)
    made = [TRAIN, *(number for number, name in enumerate(("validation", "test"), 1) if name in cut.made)]
    moved = torch.where(torch.isin(had, torch.tensor(made)), had, before)
    lost = torch.tensor(sorted(_lost(source.labels, before, moved, memory)), dtype=torch.long)
    if len(lost):
        log.warning(
            "the base knows so many of the pictures of %s that its splits would leave one without any: these classes "
            "are split anew, so pictures that the base was trained on may be held out and their figures too good",
            [dataset.classes[label] for label in lost.tolist()],
        )
        moved = torch.where(torch.isin(source.labels, lost), before, moved)
    if "test" not in cut.made and any(repeating(cut.test.images, parts.train.images).any() for parts in known):
        log.warning("the base was trained on pictures of the source's test split, so its figures are too good")
    if (moved != before).any():
        count = int((had != NOWHERE).sum())
        log.info("%d of %d pictures are known to the base and stay in the splits where it had them", count, len(had))
    return placed(dataset, cut, moved)


def _had(source: Split, known: Sequence[Partition]) -> Tensor:
    """Where the picture, or one of its cluster, was in the known data: int64 [N]."""
    had = torch.full((len(source),), NOWHERE)
    for age, parts in reversed(list(enumerate(known))):
        had[repeating(source.images, parts.test.images)] = TEST
        # What those before the base were chosen by, a fine-tune of them trains on again.
        had[repeating(source.images, parts.validation.images)] = TRAIN if age else VALIDATION
    for parts in known:
        had[repeating(source.images, parts.train.images)] = TRAIN
    return torch.full_like(had, NOWHERE).scatter_reduce(0, source.clusters, had, "amin")[source.clusters]


def _lost(labels: Tensor, before: Tensor, after: Tensor, memory: Memory | None) -> set[int]:
    """Classes of which a split has pictures before, but none after and none remembered; training takes the user's."""
    spare = {} if memory is None else {VALIDATION: memory.pool.labels, TEST: memory.test.labels}
    lost: set[int] = set()
    for number in (TRAIN, VALIDATION, TEST):
        left = torch.cat([labels[after == number], spare.get(number, labels[:0])])
        lost |= set(labels[before == number].tolist()) - set(left.tolist())
    return lost


def _apart(parts: Partition) -> Partition:
    """The splits without training pictures that repeat held-out ones, and validation pictures that repeat test ones."""
    validation = _without(parts.validation, parts.test.images, "validation")
    held = torch.cat([validation.images, parts.test.images])
    return dataclasses.replace(parts, train=_without(parts.train, held, "training"), validation=validation)


def _without(split: Split, others: Tensor, name: str) -> Split:
    """The pictures that repeat none of `others`; of a class that would have none left, all."""
    keep = ~repeating(split.images, others)
    torn = ~torch.isin(split.labels, split.labels[keep])
    if torn.any():
        log.warning(
            "%d pictures of the %s split repeat held-out ones, and are all of their class", int(torn.sum()), name
        )
    left_out = int((~(keep | torn)).sum())
    if left_out:
        log.warning("%d pictures of the %s split are left out: they repeat held-out ones", left_out, name)
    return split.subset(keep | torn)


def _beside(memory: Memory, own: Partition) -> Memory:
    """What is remembered beside the source's own splits.

    Those to train with repeat none of the source's pictures and no remembered test picture; those to measure with
    repeat none that is trained on or chosen by.
    """
    fitted = torch.cat([own.train.images, own.validation.images])
    test = memory.test.subset(~repeating(memory.test.images, fitted))
    pool = memory.pool
    for images in (fitted, own.test.images, test.images):
        pool = pool.subset(~repeating(pool.images, images))
    return Memory(dataclasses.replace(pool, clusters=duplicate_clusters(pool.images)), test, memory.origin)


def _fit_head(work: _Work, recipe: Recipe, network: nn.Module) -> tuple[Epoch, Choice]:
    """Fit the network's head on frozen features: the first epoch of the run, and the first validation figure."""
    started = time.perf_counter()
    shown = _shown_to_head(work, recipe)
    report = _Progress(work.sinks, recipe.epochs, 2 * len(shown) + len(work.parts.validation)).add

    def found(images: Tensor) -> Tensor:
        return features(network, work.base.normalise, images, work.device, report)

    plain, mirrored, validation = found(shown.images), found(shown.images.flip(3)), found(work.parts.validation.images)
    head = head_of(network)
    scale = Scale(plain, head.bias is not None)
    balanced = recipe.class_weights == "balanced"
    examples = Examples(scale.features(plain), scale.features(mirrored), shown.labels, shown.clusters, balanced)
    start = scale.matrix(head)
    # The answers between classes that are kept beside new ones stay as they are.
    fixed = len(work.base.manifest.classes) if work.plan.fate == "add" else 0
    choice = cross_validate(examples, start, fixed, work.job.seed)
    chosen = examples if choice.mirrored else dataclasses.replace(examples, mirrored=None)
    matrix = fit(chosen, start, choice.strength, fixed)
    scale.write(matrix, head)
    trained = evaluate.scores(examples.plain @ matrix.T, shown.labels)
    scores = evaluate.scores(scale.features(validation) @ matrix.T, work.parts.validation.labels)
    seconds = round(time.perf_counter() - started, 3)
    figures = (scores.loss, scores.accuracy, scores.macro_f1)
    return Epoch(1, recipe.epochs, trained.loss, trained.accuracy, *figures, seconds), choice


def _shown_to_head(work: _Work, recipe: Recipe) -> Split:
    """All training pictures; a random part if they are so many that the first figure would be long in coming."""
    train = work.parts.train
    limit = int(_HEAD_WORK / (2 * (work.plan.input_size / 32) ** 2))
    if recipe.epochs == 1 or len(train) <= limit:
        return train
    chosen = torch.zeros(len(train), dtype=torch.bool)
    chosen[torch.randperm(len(train), generator=torch.Generator().manual_seed(work.job.seed))[:limit]] = True
    return train.subset(chosen)


def _unfreeze(work: _Work, recipe: Recipe, network: nn.Module, head: Epoch, checkpoint: Checkpoint) -> list[Epoch]:
    """Train the whole network, or adapters, from the fitted head on; the best epoch's weights are kept."""
    if recipe.epochs == 1:
        if checkpoint.resume:
            checkpoint.read()
        for sink in work.sinks:
            sink.epoch(head)
        return [head]
    torch.manual_seed(work.job.seed)
    if work.plan.method == "lora":
        lora.add_adapters(network)
    penalty = None
    if work.plan.fate != "replace":
        teacher = work.base.network().to(work.device)
        penalty = forgetting.distillation(teacher, len(work.base.manifest.classes))
    history = loop.train(
        network,
        work.parts,
        recipe,
        seed=work.job.seed,
        device=work.device,
        normalise=work.base.normalise,
        sinks=work.sinks,
        checkpoint=checkpoint,
        earlier=[head],
        penalty=penalty,
    )
    lora.merge_adapters(network)
    return history


def _with_flips(recipe: Recipe, mirrored: bool) -> Recipe:
    augment = recipe.augment.model_copy(update={"flip": "alternating" if mirrored else "none"})
    return recipe.model_copy(update={"augment": augment})


def _identity(work: _Work, recipe: Recipe, data_sha256: str, where: str | None) -> dict[str, Any]:
    """What a resumed run has to agree in with the one that was interrupted."""
    return {
        "base": str(work.base),
        "data": data_sha256,
        "classes": list(work.plan.classes),
        "recipe": recipe.model_dump(mode="json"),
        "seed": work.job.seed,
        "places": where and hashlib.sha256(where.encode()).hexdigest(),
    }


def _forgotten(work: _Work, network: nn.Module, memory: Memory | None) -> dict[str, Any]:
    kept = [name for name in work.base.manifest.classes if name in work.plan.classes]
    about = {"classes": work.plan.fate, "dropped": [n for n in work.base.manifest.classes if n not in kept]}
    if memory is None or not len(memory.test):
        return about
    before = work.base.network()
    return about | forgetting.measure(before, network, work.base.normalise, memory, work.base.manifest.classes)


def _record(plan: Plan, choice: Choice, history: Sequence[Epoch], memory: Memory | None) -> dict[str, Any]:
    """How the version was made of its base, for the manifest."""
    best = max(history, key=lambda epoch: (epoch.val_macro_f1, -epoch.val_loss))
    return {
        "method": plan.method,
        "classes": plan.fate,
        "epochs": len(history),
        "best_epoch": best.epoch,
        "head": {"strength": choice.strength, "mirrored": choice.mirrored},
        "replayed": 0 if memory is None else len(memory.pool),
        "replayed_from": None if memory is None else memory.origin,
    }


class _Progress:
    """Tells the sinks how far the first epoch is, at most twice a second."""

    def __init__(self, sinks: Sequence[Sink], epochs: int, total: int) -> None:
        self._sinks, self._epochs, self._total = sinks, epochs, total
        self._count = 0
        self._started = self._told = time.perf_counter()

    def add(self, pictures: int) -> None:
        self._count += pictures
        now = time.perf_counter()
        if now - self._told < 0.5:
            return
        self._told = now
        done = self._count / self._total / self._epochs
        spent = now - self._started
        for sink in self._sinks:
            sink.step(Step(1, done, None, None, self._count / spent, spent / done * (1 - done)))
