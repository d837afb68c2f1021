"""Weights that make up for unequal classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.balance import imbalance, picture_weights


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_every_class_weighs_the_same_and_the_mean_is_one(values: list[int]) -> None:
    labels = torch.tensor(values)
    weights = picture_weights(labels)
    sums = torch.stack([weights[labels == label].sum() for label in labels.unique()])
    torch.testing.assert_close(sums, sums[:1].expand_as(sums))
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)


def test_imbalance_is_the_ratio_of_the_classes_that_occur() -> None:
    assert imbalance(torch.tensor([0, 0, 0, 3])) == 3
