"""Splits without leaks: pictures that nearly repeat one another stay on one side."""

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

# Cosine between the colour steps of two pictures' 8x8 thumbnails above which they count as the same picture. Steps
# from one cell to the next, because whole thumbnails of different ships at sea or planes in the sky are alike to 0.98.
# Of the pairs that this joins in CIFAR-10 about five in six show one photo twice: re-encoded, recoloured or cropped.
SAME_PICTURE = 0.88
_THUMBNAIL = 8
_ROWS = 2048


def duplicate_clusters(images: Tensor) -> Tensor:
    """Give every picture the number of its cluster of near-duplicates.

    Args:
        images: uint8 [N, 3, H, W].

    Returns:
        int64 [N]: the smallest index in the picture's cluster; a picture without a repeat has its own index.
    """
    cluster = torch.arange(len(images))
    steps = _steps(images)
    for start in range(0, len(steps), _ROWS):
        near = steps[start : start + _ROWS] @ steps[start:].T > SAME_PICTURE
        near = near.triu(diagonal=1)  # a picture joins those behind it
        for row in near.any(dim=1).nonzero().flatten().tolist():
            near[row, row] = True
            joined = cluster[start:][near[row]].unique()
            if len(joined) > 1:
                cluster[torch.isin(cluster, joined)] = joined[0]
    return cluster


def repeating(images: Tensor, others: Tensor) -> Tensor:
    """Which pictures nearly repeat one of the others.

    Args:
        images: uint8 [N, 3, H, W].
        others: uint8 [M, 3, H2, W2].

    Returns:
        bool [N].
    """
    if not len(images) or not len(others):
        return torch.zeros(len(images), dtype=torch.bool)
    against = _steps(others).T
    return torch.cat([(part @ against).amax(1) > SAME_PICTURE for part in _steps(images).split(_ROWS)])


def _steps(images: Tensor) -> Tensor:
    """Unit vectors float32 [N, 336]: how the colour changes between neighbouring cells of 8x8 thumbnails."""
    parts = torch.split(images, _ROWS)
    small = torch.cat([F.adaptive_avg_pool2d(part.float(), _THUMBNAIL) for part in parts])
    return F.normalize(torch.cat([small.diff(dim=2).flatten(1), small.diff(dim=3).flatten(1)], dim=1), dim=1)


def held_out(labels: Tensor, clusters: Tensor, count: int, seed: int) -> Tensor:
    """Choose pictures to hold out: about `count`, the same share of each class, near-duplicates together.

    Args:
        labels: int64 [N]; N may be 0.
        clusters: int64 [N], from `duplicate_clusters`.
        count: how many to hold out; each class gives at least one and keeps at least one.
        seed: the same seed holds out the same pictures.

    Returns:
        bool [N], True for the held-out pictures.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    sizes = torch.bincount(labels)
    wanted = (sizes * (count / max(1, len(labels)))).round().long().clamp(min=1)
    left = torch.minimum(wanted, sizes - 1).clamp(min=0).tolist()  # a class may have no picture
    label = labels.tolist()
    for cluster in _members(order, clusters):
        needs = Counter(label[index] for index in cluster)
        if all(left[number] >= need for number, need in needs.items()):
            chosen[cluster] = True
            for number, need in needs.items():
                left[number] -= need
    return chosen


def _members(order: Tensor, clusters: Tensor) -> Collection[list[int]]:
    """The pictures of each cluster, pictures and clusters in the given order of all pictures."""
    members: dict[int, list[int]] = {}
    for index, cluster in zip(order.tolist(), clusters[order].tolist(), strict=True):
        members.setdefault(cluster, []).append(index)
    return members.values()


def folds(labels: Tensor, clusters: Tensor, count: int, seed: int) -> Tensor:
    """Divide pictures into `count` folds with about the same share of each class, near-duplicates together.

    Args:
        labels: int64 [N].
        clusters: int64 [N], from `duplicate_clusters`.
        count: how many folds, 2 or more.
        seed: the same seed gives the same folds.

    Returns:
        int64 [N]: each picture's fold, from 0. With fewer clusters than folds, some folds stay empty.
    """
    fold = torch.full((len(labels),), -1)
    filled = torch.zeros(count, int(labels.max()) + 1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # The largest first: what is left can then even out the folds.
    for cluster in sorted(_members(order, clusters), key=len, reverse=True):
        here = torch.bincount(labels[cluster], minlength=filled.shape[1])
        alike, size = filled @ here.float(), filled.sum(1)
        emptiest = min(range(count), key=lambda number: (float(alike[number]), float(size[number])))
        fold[cluster] = emptiest
        filled[emptiest] += here
    return fold
