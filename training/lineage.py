"""Lineage: the data that a version and those before it were trained with, split as they were then."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from training import artifact, data
from training.artifact import Manifest
from training.data import Dataset, Partition
from training.errors import ArtifactError, InputError

TRAIN, VALIDATION, TEST, NOWHERE = range(4)  # where a picture of the source's training split is


def partition(manifest: Manifest, dataset: Dataset) -> Partition:
    """The splits of a version's own data as it was trained with them.

    Args:
        manifest: of the version.
        dataset: what `manifest.data` names.
    """
    parts = data.partition(dataset, manifest.recipe["validation"], manifest.data.seed, warn=False)
    where = manifest.data.places
    return parts if where is None else placed(dataset, parts, torch.tensor(list(map(int, where))))


def lineage(models: Path, manifest: Manifest) -> Iterator[tuple[Manifest, Partition]]:
    """A version and those that it was made from, newest first, with their data's splits; without data, left out."""
    if dataset := data.cached(manifest.data.sha256, manifest.input_size):
        yield manifest, partition(manifest, dataset)
    if manifest.parent is None:
        return
    with contextlib.suppress(InputError, ArtifactError):  # it was removed since
        folder = artifact.folder(models, *artifact.resolve(models, manifest.parent))
        yield from lineage(models, artifact.read_manifest(folder))


def places(dataset: Dataset, parts: Partition) -> Tensor:
    """Where each picture of the source's training split is: int64 [N]."""
    splits = ((TRAIN, parts.train), (VALIDATION, parts.validation), (TEST, parts.test))
    place = {name: number for number, split in reversed(splits) for name in split.names}
    return torch.tensor([place.get(name, NOWHERE) for name in dataset.splits["train"].names])


def placed(dataset: Dataset, parts: Partition, where: Tensor) -> Partition:
    """The splits with the pictures of the source's training split where int64 [N] says; brought splits stay."""
    source = dataset.splits["train"]
    return Partition(
        source.subset(where == TRAIN),
        source.subset(where == VALIDATION) if "validation" in parts.made else parts.validation,
        source.subset(where == TEST) if "test" in parts.made else parts.test,
        parts.made,
    )
