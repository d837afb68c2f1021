"""Weights that make up for unequal classes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from training.augment import mixup
from training.balance import class_weights, imbalance, picture_weights, weighted


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_every_class_weighs_the_same_and_the_mean_is_one(values: list[int]) -> None:
    labels = torch.tensor(values)
    weights = picture_weights(labels)
    sums = torch.stack([weights[labels == label].sum() for label in labels.unique()])
    torch.testing.assert_close(sums, sums[:1].expand_as(sums))
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)


def test_imbalance_is_the_ratio_of_the_classes_that_occur() -> None:
    assert imbalance(torch.tensor([0, 0, 0, 3])) == 3


def test_a_class_that_does_not_occur_weighs_nothing() -> None:
    assert class_weights(torch.tensor([0, 0, 0, 2]), classes=4).tolist() == pytest.approx([2 / 3, 0, 2, 0])


def test_weighted_targets_give_the_loss_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 3, generator=generator), torch.rand(6, 3, generator=generator).softmax(1)
    weights = torch.tensor([0.3, 1.0, 4.0])
    reweighted, sums = weighted(targets, weights)
    torch.testing.assert_close(reweighted.sum(1), torch.ones(6))
    found = (sums * F.cross_entropy(logits, reweighted, reduction="none")).mean()
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, weight=weights))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_pictures_keep_the_classes_in_balance(smoothing: float) -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    targets = F.one_hot(labels, 2).float()
    share = np.random.default_rng(0).uniform(0.3, 0.7)
    _, mixed = mixup(torch.zeros(1000, 1, 1, 1), targets, share, torch.Generator().manual_seed(0))
    reweighted, sums = weighted(mixed, class_weights(labels))
    smooth = reweighted * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close((sums.unsqueeze(1) * smooth).sum(0), torch.tensor([500.0, 500.0]))
