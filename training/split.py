"""Splits without leaks: pictures that nearly repeat one another stay on one side."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Cosine between standardised 8x8 colour thumbnails above which two pictures count as the same one. On CIFAR-10
# it joins re-encoded, slightly cropped and recoloured repeats and hardly any two different photos.
SAME_PICTURE = 0.985
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
    thumbs = _thumbnails(images)
    for start in range(0, len(thumbs), _ROWS):
        near = thumbs[start : start + _ROWS] @ thumbs[start:].T > SAME_PICTURE
        near = near.triu(diagonal=0)  # a picture is its own repeat, and joins those behind it
        for row in (near.sum(dim=1) > 1).nonzero().flatten().tolist():
            joined = cluster[start:][near[row]].unique()
            if len(joined) > 1:
                cluster[torch.isin(cluster, joined)] = joined[0]
    return cluster


def _thumbnails(images: Tensor) -> Tensor:
    """Unit vectors float32 [N, 192]: the pictures' 8x8 thumbnails without mean brightness and contrast."""
    parts = torch.split(images, _ROWS)
    small = torch.cat([F.adaptive_avg_pool2d(part.float(), _THUMBNAIL) for part in parts])
    flat = small.flatten(1)
    return F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)


def held_out(labels: Tensor, clusters: Tensor, count: int, seed: int) -> Tensor:
    """Choose pictures to hold out: about `count`, the same share of each class, near-duplicates together.

    Args:
        labels: int64 [N].
        clusters: int64 [N], from `duplicate_clusters`.
        count: how many to hold out; each class gives at least one and keeps at least one.
        seed: the same seed holds out the same pictures.

    Returns:
        bool [N], True for the held-out pictures.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    sizes = torch.bincount(labels)
    wanted = (sizes * (count / len(labels))).round().long().clamp(min=1)
    left = torch.minimum(wanted, sizes - 1).tolist()
    members: dict[int, list[int]] = {}
    for index in order.tolist():
        members.setdefault(int(clusters[index]), []).append(index)
    for cluster in members.values():
        needs = torch.bincount(labels[cluster], minlength=len(left)).tolist()
        if all(need <= room for need, room in zip(needs, left, strict=True)):
            chosen[cluster] = True
            left = [room - need for need, room in zip(needs, left, strict=True)]
    return chosen
