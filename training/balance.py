"""Class balance: how unequal classes are, and what each picture weighs to make up for it."""

import torch
from torch import Tensor


def picture_weights(labels: Tensor) -> Tensor:
    """Weights float32 [N] of mean 1 that give every class the same sum (King & Zeng 2001, section 4.2).

    Args:
        labels: int64 [N].
    """
    counts = torch.bincount(labels)
    present = int((counts > 0).sum())
    return len(labels) / (present * counts[labels].float())


def imbalance(labels: Tensor) -> float:
    """How many times more pictures the largest class has than the smallest that occurs, of labels int64 [N]."""
    counts = torch.bincount(labels)
    return float(counts.max() / counts[counts > 0].min())
