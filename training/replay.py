"""Pictures of a base's classes, so that a fine-tune need not forget them and can say what it forgot."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from training import data
from training.artifact import Manifest
from training.data import Partition, Split
from training.errors import InputError
from training.lineage import partition

log = logging.getLogger(__name__)

REPLAY = "replay.safetensors"
_MAX_BYTES = 2_000_000  # an artifact stays small enough to be committed
_OF_DATA = 200  # pictures of each class that are taken where the base's whole data is at hand


@dataclass(frozen=True)
class Memory:
    """What is left of a base's data.

    Attributes:
        pool: pictures to train with; labels are the base's.
        test: pictures that the base was not trained on, only to measure with.
        origin: where they come from, for the report.
    """

    pool: Split
    test: Split
    origin: str


def store(folder: Path, parts: Partition, per_class: int) -> None:
    """Write up to `per_class` pictures of each class into `REPLAY`, two thirds to train with and one to measure with.

    Pictures that were not trained on come first: their features are like those of pictures to come, where a network is
    surer of what it was trained on. Nothing is written for `per_class` of 0.
    """
    classes = len(parts.train.labels.unique())
    fitting = _MAX_BYTES // (classes * parts.train.images[0].numel())
    count = min(per_class, fitting)
    if count < 1:
        return
    pool, test = _pool(parts, max(1, count * 2 // 3)), _sample(parts.test, max(1, count // 3))
    tensors = {
        "pool.images": pool.images,
        "pool.labels": pool.labels,
        "test.images": test.images,
        "test.labels": test.labels,
    }
    (folder / REPLAY).write_bytes(save(tensors))


def recall(folder: Path, manifest: Manifest, source: str | None = None) -> Memory | None:
    """Find pictures of a base's classes: its whole data where that is at hand, else what is stored beside its weights.

    Args:
        folder: the base's verified artifact.
        source: the SOURCE that the base was trained on; None looks for it among the cached data sets.

    Raises:
        InputError: `source` is not what the base was trained on.
    """
    size, digest = manifest.input_size, manifest.data.sha256
    dataset = data.load(source, size) if source else data.cached(digest, size)
    if dataset and dataset.sha256 != digest:
        raise InputError(
            f"{source!r} is not the data that {manifest.name} version {manifest.version} was trained on: its SHA-256 "
            f"is {dataset.sha256}, not {digest}. Leave it out to use the pictures stored with the model."
        )
    if dataset and set(dataset.classes) == set(manifest.classes):
        parts = partition(manifest, dataset.labelled(manifest.classes))
        return Memory(_pool(parts, _OF_DATA), parts.test, "the data it was trained on")
    if REPLAY not in manifest.files:
        log.warning(
            "%s version %d stores no pictures and its data is not at hand, so what it knew may be forgotten and cannot "
            "be measured: name its data with --base-data",
            manifest.name,
            manifest.version,
        )
        return None
    tensors = load_file(folder / REPLAY)
    pool, test = (_split(tensors, part) for part in ("pool", "test"))
    return Memory(pool, test, "pictures stored with it")


def _pool(parts: Partition, per_class: int) -> Split:
    first = _sample(parts.validation, per_class)
    return _sample(Split.joined(first, _sample(parts.train, per_class)), per_class, shuffled=False)


def _sample(split: Split, per_class: int, shuffled: bool = True) -> Split:
    """So many pictures of each class, the same ones every time."""
    count = len(split)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)) if shuffled else torch.arange(count)
    chosen = torch.zeros(count, dtype=torch.bool)
    for label in split.labels.unique():
        chosen[order[split.labels[order] == label][:per_class]] = True
    return split.subset(chosen)


def _split(tensors: dict[str, Tensor], part: str) -> Split:
    labels = tensors[f"{part}.labels"]
    names = tuple(f"{REPLAY}:{part}/{index}" for index in range(len(labels)))
    return Split(tensors[f"{part}.images"], labels, names, torch.arange(len(labels)))
