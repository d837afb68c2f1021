"""A whole run, from a source to a finished artifact. The command line and the service's worker both call this."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import artifact, data, evaluate, loop, packaging, pretrained, replay, report, resnet
from training.artifact import Aliases, DataRecord, Manifest
from training.checkpoint import Checkpoint
from training.device import choose_device, describe, memory_errors, tune_for_training
from training.distillation import Teacher
from training.distributed import ALONE, Group, group_of
from training.early_stopping import BestEpoch
from training.errors import InputError
from training.estimate import run_seconds
from training.normalisation import Normalisation
from training.preload import preload, preload_cuda
from training.recipe import Recipe
from training.sink import Epoch, Sink

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
_NEEDED_LATE = ("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg")  # the first by optimisers


@dataclass(frozen=True)
class Job:
    """What a run is asked to do; `source` as on the command line, `device` one of auto, cpu, cuda.

    Its checkpoint is the file `unfinished` until it is done; None for one in the model's `runs_folder`.
    """

    recipe: Recipe
    source: str
    name: str
    models: Path
    seed: int = 0
    device: str = "auto"
    command: Sequence[str] = ()
    unfinished: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted run goes on from."""
        return self.unfinished or runs_folder(self.models, self.name) / CHECKPOINT


@dataclass(frozen=True)
class Origin:
    """Where a fine-tuned version comes from: what its manifest says beyond a freshly trained one's.

    Attributes:
        parent: the base's `name@version`.
        finetune: how it was made of the base, ready for JSON.
        metrics: figures beside those of the validation and the test split.
        places: of the data's pictures, see `DataRecord`.
    """

    parent: str | None = None
    finetune: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    places: str | None = None


def runs_folder(models: Path, name: str) -> Path:
    """Where the checkpoint and the log of a run on the command line lie."""
    return models / ".runs" / name


def train(job: Job, sinks: Sequence[Sink] = (), resume: bool = False) -> Manifest:
    """Train a network as the recipe says and write it as the model's next version.

    The first version of a model goes into production; later ones wait to be promoted. Under torchrun every process
    calls this; the first one reports and writes, and all return what it wrote.

    Raises:
        InputError: the arguments or the data are wrong.
        TrainingError: the run failed. Its last checkpoint is kept for `resume`.
    """
    artifact.check_name(job.name)
    device = choose_device(job.device)
    tune_for_training(device)
    if device.type == "cuda":  # where a whole run may take less time than all imports
        preload(*_NEEDED_LATE)
    with _memory_errors(job.recipe, " The last good checkpoint is kept."), group_of(device) as group:
        if device.type == "cuda" and group.size == 1:  # a thread of one among several would take the first one's GPU
            preload_cuda()
        job, dataset, parts = prepare(job, group)
        recipe = job.recipe
        run = {
            "recipe": recipe.model_dump(mode="json", exclude={"description", "reached"}),
            "data": dataset.sha256,
            "seed": job.seed,
        }
        checkpoint = Checkpoint(job.checkpoint, run, resume)
        network, normalise = _start(recipe, parts, dataset.classes, job.seed)
        history = loop.train(
            network,
            parts,
            recipe,
            seed=job.seed,
            device=device,
            normalise=normalise,
            sinks=sinks if group.is_first else (),
            checkpoint=checkpoint,
            penalty=load_teacher(job.models, recipe, dataset.classes, device, normalise),
            group=group,
        )
        if group.is_first:
            write(job, dataset, parts, network, normalise, history, device)
            checkpoint.path.unlink()
        group.wait()
        newest = artifact.versions(job.models, job.name)[-1]
        return artifact.read_manifest(artifact.folder(job.models, job.name, newest))


def fit(
    recipe: Recipe,
    parts: data.Partition,
    classes: tuple[str, ...],
    models: Path,
    *,
    seed: int,
    device: torch.device,
    sinks: Sequence[Sink] = (),
    tested: bool = False,
) -> Epoch:
    """Train a network for its figures alone: no checkpoint, no artifact.

    Args:
        models: where a teacher is looked for, if the recipe names one.
        tested: whether to score the network that the run ends with on the test split, once.

    Returns:
        The epoch whose weights the network ends with: the best one with early stopping, else the last. If `tested`, the
        figures that it names after the validation split are those of the test split.

    Raises:
        InputError: the recipe does not fit the data.
        TrainingError: the run failed.
    """
    recipe = _fitted(recipe, len(parts.train), ALONE)
    with _memory_errors(recipe):
        network, normalise = _start(recipe, parts, classes, seed)
        best = BestEpoch(recipe.early_stopping)
        history = loop.train(
            network,
            parts,
            recipe,
            seed=seed,
            device=device,
            normalise=normalise,
            sinks=sinks,
            penalty=load_teacher(models, recipe, classes, device, normalise),
            best=best,
        )
        kept = history[best.epoch - 1] if best.epoch else history[-1]
        return _tested(kept, network, normalise, parts, recipe, device) if tested else kept


def _tested(
    epoch: Epoch,
    network: nn.Module,
    normalise: Normalisation,
    parts: data.Partition,
    recipe: Recipe,
    device: torch.device,
) -> Epoch:
    """The epoch with the figures of the test split."""
    scores = evaluate.score(network, normalise, parts.test, device, loop.autocast_dtype(recipe, device))
    robustness = packaging.robustness(network, normalise, parts, recipe).get("robustness", {})
    return replace(
        epoch,
        val_loss=scores.loss,
        val_accuracy=scores.accuracy,
        val_macro_f1=scores.macro_f1,
        val_robust_accuracy=robustness.get("accuracy"),
    )


def _memory_errors(recipe: Recipe, kept: str = "") -> AbstractContextManager[None]:
    changed = f"Lower batch_size, now {recipe.batch_size}, or raise accumulate, now {recipe.accumulate}."
    return memory_errors(changed + kept)


def _start(recipe: Recipe, parts: data.Partition, classes: Sequence[str], seed: int) -> tuple[nn.Module, Normalisation]:
    """The network that a run begins with, and what its pictures go through."""
    torch.manual_seed(seed)
    settings = recipe.network
    network = resnet.build(settings.architecture, len(classes), settings.arguments)
    if settings.pretrained is None:
        return network, Normalisation.of(parts.train.images)
    pretrained.load(network, settings.architecture, settings.pretrained)
    return network, pretrained.NORMALISATION


def _fitted(recipe: Recipe, pictures: int, group: Group) -> Recipe:
    """The recipe with no larger batch than there are pictures: about a quarter of them if it has to be lowered.

    Raises:
        InputError: there are fewer than two pictures for each process.
    """
    if pictures >= recipe.batch_size:
        return recipe
    if pictures < 2 * group.size:
        raise InputError(
            f"{pictures} training pictures are too few: each of {group.size} processes needs 2 in every step. Add "
            "pictures, or start fewer processes."
        )
    accumulate = recipe.accumulate
    if pictures < 2 * group.size * accumulate:
        accumulate = max(1, pictures // 4 // (2 * group.size))
        log.warning("accumulate lowered to %d: each part needs 2 of %d training pictures", accumulate, pictures)
    unit = group.size * accumulate
    batch = max(2 * unit, pictures // 4 // unit * unit)
    log.warning("batch_size lowered to %d: there are %d training pictures", batch, pictures)
    return recipe.model_copy(update={"batch_size": batch, "accumulate": accumulate})


def load_teacher(
    models: Path, recipe: Recipe, classes: tuple[str, ...], device: torch.device, student: Normalisation
) -> Teacher | None:
    """The teacher that a recipe names, ready for `loop.train`; None if it names none.

    Args:
        models: where it is looked for.
        classes: of the run's data, in order.
        student: what the pictures of the run go through.

    Raises:
        InputError: there is no such version, or it knows other classes.
        ArtifactError: a file of it was changed after it was written.
    """
    settings = recipe.distillation
    if settings is None:
        return None
    folder = artifact.folder(models, *artifact.resolve(models, settings.teacher))
    manifest = artifact.verify(folder)
    if manifest.classes != classes:
        raise InputError(
            f"The teacher {settings.teacher} knows the classes {list(manifest.classes)}, the data has {list(classes)}. "
            "Choose a teacher that was trained on the same classes."
        )
    return Teacher(
        network=packaging.restore(folder, manifest)
        .requires_grad_(False)
        .to(device)
        .to(memory_format=torch.channels_last),
        normalise=Normalisation(manifest.mean, manifest.std),
        size=manifest.input_size,
        student=student,
        weight=settings.weight,
        temperature=settings.temperature,
        precision=loop.autocast_dtype(recipe, device),
    )


def estimate(job: Job) -> float:
    """Seconds that training would take here, from a few steps of it; nothing is written.

    Raises:
        InputError: the arguments or the data are wrong.
        TrainingError: these steps failed, or the teacher cannot be read.
    """
    device = choose_device(job.device)
    tune_for_training(device)
    job, dataset, parts = prepare(job)
    recipe = job.recipe
    with _memory_errors(recipe):
        network, normalise = _start(recipe, parts, dataset.classes, job.seed)
        teacher = load_teacher(job.models, recipe, dataset.classes, device, normalise)
        return run_seconds(network, parts, recipe, device=device, normalise=normalise, penalty=teacher)


def prepare(job: Job, group: Group = ALONE) -> tuple[Job, data.Dataset, data.Partition]:
    """Read a job's data, and fit its recipe to how many there are.

    Raises:
        InputError: the data are wrong.
    """
    dataset = data.load(job.source, job.recipe.network.input_size)
    parts = data.partition(dataset, job.recipe.validation, job.seed)
    return replace(job, recipe=_fitted(job.recipe, len(parts.train), group)), dataset, parts


def write(
    job: Job,
    dataset: data.Dataset,
    parts: data.Partition,
    network: nn.Module,
    normalise: Normalisation,
    history: Sequence[Epoch],
    device: torch.device,
    origin: Origin | None = None,
) -> Manifest:
    """Write a trained network as the model's next version; the first one of a model goes into production.

    Args:
        dataset: its classes name the network's outputs in order.
        device: where it was trained, and is scored.

    Raises:
        ArtifactError: the exported file disagrees with the network, or the disk is full; nothing was written.
    """
    recipe, origin = job.recipe, origin or Origin()
    # Drawing is Python's work, and scoring that of torch or a GPU: side by side they take the time of the longer one.
    with artifact.new_version(job.models, job.name) as folder, ThreadPoolExecutor(1) as meanwhile:
        curves = meanwhile.submit(report.write_curves, history, packaging.pictures_folder(folder) / "curves.png")
        calibration, metrics = packaging.write_network(
            folder, network, normalise, parts, dataset.classes, recipe, device
        )
        curves.result()
        manifest = Manifest(
            name=job.name,
            version=artifact.next_version(job.models, job.name),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(job.command),
            architecture=recipe.network.architecture,
            arguments=recipe.network.arguments,
            classes=dataset.classes,
            input_size=recipe.network.input_size,
            mean=normalise.mean,
            std=normalise.std,
            temperature=calibration.undecided,
            temperature_certain=calibration.certain,
            metrics=metrics | dict(origin.metrics),
            data=DataRecord(
                sha256=dataset.sha256,
                counts={
                    "train": len(parts.train),
                    "validation": len(parts.validation),
                    "test": len(parts.test),
                },
                made_splits=parts.made,
                seed=job.seed,
                places=origin.places,
            ),
            recipe=recipe.model_dump(mode="json"),
            seed=job.seed,
            libraries=packaging.libraries(),
            training_seconds=history[-1].seconds,
            machine=describe(device),
            precision=str(loop.autocast_dtype(recipe, device)).removeprefix("torch."),
            parent=origin.parent,
            finetune=None if origin.finetune is None else dict(origin.finetune),
            files={},
        )
        replay.store(folder, parts, recipe.replay)
        manifest = packaging.write_report(folder, manifest)
    if artifact.read_aliases(job.models, job.name).production is None:
        artifact.write_aliases(job.models, job.name, Aliases(production=manifest.version, history=(manifest.version,)))
    return manifest
