"""k-fold cross-validation: how good a recipe is on a data source, and how much that depends on the split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from training import data, run
from training.data import Partition, Split
from training.device import choose_device, tune_for_training
from training.errors import InputError
from training.recipe import Recipe
from training.sink import Epoch, Sink
from training.split import duplicate_clusters, folds, held_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The epoch of each fold's run whose weights were kept, its `val_` figures those of the fold; and the data."""

    epochs: tuple[Epoch, ...]
    pictures: int
    data_sha256: str

    @property
    def accuracies(self) -> list[float]:
        """Share of right answers on each held-out fold, 0 to 1."""
        return [epoch.val_accuracy for epoch in self.epochs]

    @property
    def accuracy(self) -> float:
        """Their mean."""
        return mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Their standard deviation."""
        return stdev(self.accuracies)


def crossvalidate(
    recipe: Recipe,
    source: str,
    count: int,
    *,
    models: Path,
    seed: int = 0,
    device: str = "auto",
    sinks: Sequence[Sink] = (),
) -> Result:
    """Train `count` networks, each without one fold of the pictures, and score each on the fold that it did not see.

    The test split is never touched: the folds are cut from the other pictures. No artifact is written.

    With early stopping a run is stopped by a part of the other folds, and the sinks are told of that: the best of many
    epochs on a fold would be too good a figure of it.

    Args:
        count: how many folds, 2 or more.
        models: where a teacher is looked for, if the recipe names one.

    Raises:
        InputError: the arguments or the data are wrong.
        TrainingError: a run failed.
    """
    place = choose_device(device)
    tune_for_training(place)
    dataset = data.load(source, recipe.network.input_size)
    parts = data.partition(dataset, recipe.validation, seed)
    pool = _together(parts)
    if count < 2 or count > min(torch.bincount(pool.labels)):
        raise InputError(
            f"{count} folds cannot be cut: give 2 or more, and no more than the smallest class has pictures."
        )
    fold = folds(pool.labels, pool.clusters, count, seed)
    if len(fold.unique()) < count:
        raise InputError(
            f"{count} folds cannot be cut: only {len(pool.clusters.unique())} of the {len(pool)} pictures are "
            "different, the others nearly repeat them. Give fewer folds or more pictures."
        )
    # All are cut before the first run: what cannot be cut is said at once.
    stopping = [_stopping(recipe, pool, fold != number, seed) for number in range(count)]
    kept = []
    for number, stops in enumerate(stopping):
        log.info("fold %d of %d", number + 1, count)
        held, others = pool.subset(fold == number), fold != number
        cut = Partition(pool.subset(others), held, parts.test, parts.made)
        if stops is not None:
            cut = Partition(pool.subset(others & ~stops), pool.subset(stops), held, parts.made)
        tested = stops is not None
        kept.append(run.fit(recipe, cut, dataset.classes, models, seed=seed, device=place, sinks=sinks, tested=tested))
    return Result(tuple(kept), len(pool), dataset.sha256)


def _stopping(recipe: Recipe, pool: Split, others: Tensor, seed: int) -> Tensor | None:
    """The pictures outside a fold that its run is stopped by: bool [N]; None for a recipe that stops no run early.

    Args:
        others: those outside the fold, bool [N].

    Raises:
        InputError: there are too few different pictures to hold any out.
    """
    if recipe.early_stopping is None:
        return None
    labels = pool.labels[others]
    mask = held_out(labels, pool.clusters[others], min(recipe.validation, len(labels) // 5), seed)
    if not mask.any():
        raise InputError(
            f"No validation split for early stopping can be cut from the {len(labels)} pictures outside a fold: they "
            "are too few or nearly the same. Add pictures, or take early_stopping out of the recipe."
        )
    return torch.zeros_like(others).masked_scatter(others, mask)


def _together(parts: Partition) -> Split:
    """The pictures of the training and the validation split, with clusters that hold over both."""
    train, validation = parts.train, parts.validation
    images = torch.cat([train.images, validation.images])
    known = "validation" in parts.made  # cut from the training split, after its clusters were found
    clusters = torch.cat([train.clusters, validation.clusters]) if known else duplicate_clusters(images)
    return Split(images, torch.cat([train.labels, validation.labels]), train.names + validation.names, clusters)
