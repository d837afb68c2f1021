"""Class balance: how unequal classes are, and what each picture weighs to make up for it."""

import torch
from torch import Tensor


def class_weights(labels: Tensor, classes: int = 0) -> Tensor:
    """Weights float32 [classes] that give every class the same sum over the pictures (King & Zeng 2001, section 4.2).

    Their mean over the pictures is 1; a class that does not occur weighs 0.

    Args:
        labels: int64 [N].
        classes: how many there are; those after the largest label may be left out.
    """
    counts = torch.bincount(labels, minlength=classes)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.float()), 0.0)


def picture_weights(labels: Tensor) -> Tensor:
    """The weight of each picture's class, float32 [N].

    Args:
        labels: int64 [N].
    """
    return class_weights(labels)[labels]


def weighted(targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh each class that a picture shows a part of, not the picture by one of them.

    The cross entropy with the new targets times the weights of the pictures is, picture by picture, what torch's
    `cross_entropy` gives for the old targets with `weight=weights`. Its mean is over the number of pictures, as torch's
    is for probabilities; for labels torch divides by the sum of the weights. Smoothing the new targets spreads a
    picture's weight evenly over the classes, which leaves them in balance; torch's spreads more to those that weigh
    more.

    Args:
        targets: the probability of each class, float [N, classes]; the possible ones weigh more than 0.
        weights: of the classes, float [classes].

    Returns:
        Targets float [N, classes], probabilities again, and the weights of the pictures, float [N].
    """
    parts = targets * weights
    sums = parts.sum(1)
    return parts / sums.unsqueeze(1), sums


def imbalance(labels: Tensor) -> float:
    """How many times more pictures the largest class has than the smallest that occurs, of labels int64 [N]."""
    counts = torch.bincount(labels)
    return float(counts.max() / counts[counts > 0].min())
