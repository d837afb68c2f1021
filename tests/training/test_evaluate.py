"""Figures against cases whose answer is known."""

import pytest
import torch
from torch.nn import functional as F

from training import evaluate


def test_accuracy_and_confusion_count_what_they_say() -> None:
    out = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert evaluate.accuracy(out, labels) == 0.75
    assert evaluate.confusion(out, labels).tolist() == [[2, 0], [1, 1]]
    rows = evaluate.per_class(evaluate.confusion(out, labels), ["a", "b"])
    assert rows["a"]["precision"] == pytest.approx(2 / 3)
    assert rows["b"]["recall"] == 0.5
    assert rows["b"]["f1"] == pytest.approx(2 / 3)


def test_a_class_that_is_never_answered_counts_as_zero() -> None:
    rows = evaluate.per_class(torch.tensor([[3, 0], [2, 0]]), ["a", "b"])
    assert rows["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 2}


def test_wilson_interval_of_nine_in_ten() -> None:
    low, high = evaluate.accuracy_interval(0.9, 100)
    assert low == pytest.approx(0.8256, abs=1e-4)
    assert high == pytest.approx(0.9448, abs=1e-4)
    assert evaluate.accuracy_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_macro_f1_is_of_the_classes_that_occur() -> None:
    labels = torch.tensor([0, 0, 2, 2])
    right = F.one_hot(torch.tensor([0, 0, 2, 1]), 3).float()
    assert evaluate.scores(right, labels).macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    figures = evaluate.metrics(right, labels, ("a", "b", "c"))
    assert figures["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_calibration_error_is_the_distance_of_confidence_from_accuracy() -> None:
    confidence = torch.tensor([0.9] * 10 + [0.6] * 10).double()
    out = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    labels = torch.tensor([0] * 9 + [1] + [0] * 4 + [1] * 6)  # 9 of 10 at 0.9: right; 4 of 10 at 0.6: 0.2 too sure
    assert evaluate.calibration_error(out, labels) == pytest.approx(0.1)
    low, high = evaluate.reliability(out, labels)
    assert low == {"confidence": pytest.approx(0.6), "accuracy": pytest.approx(0.4), "count": 10}
    assert high == {"confidence": pytest.approx(0.9), "accuracy": pytest.approx(0.9), "count": 10}
