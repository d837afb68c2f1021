"""Calibration against logits whose true probabilities are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from training import evaluate
from training.calibration import Calibration

CLASSES = 5


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn with exactly their probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, CLASSES, generator=generator) * 2
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def test_temperature_undoes_a_known_scale() -> None:
    logits, labels = drawn(20_000)
    fitted = Calibration.fit(logits * 3, labels)
    assert fitted.undecided == pytest.approx(3, rel=0.1)
    assert evaluate.calibration_error(logits * 3, labels) > 0.05
    assert evaluate.calibration_error(fitted(logits * 3), labels) < 0.02


def test_two_temperatures_mend_what_label_smoothing_leaves() -> None:
    logits, labels = drawn(20_000)
    smoothed = (0.8 * logits.softmax(1) + 0.2 / CLASSES).log()
    new_logits, new_labels = drawn(20_000, seed=1)
    new_smoothed = (0.8 * new_logits.softmax(1) + 0.2 / CLASSES).log()
    fitted = Calibration.fit(smoothed, labels)
    assert fitted.certain < fitted.undecided
    one = min(
        (Calibration(math.exp(step / 50)) for step in range(-100, 100)),
        key=lambda single: float(F.cross_entropy(single(smoothed), labels)),
    )
    assert evaluate.calibration_error(fitted(new_smoothed), new_labels) < 0.015
    assert evaluate.calibration_error(one(new_smoothed), new_labels) > 0.02


def test_one_temperature_is_kept_where_a_second_gains_nothing() -> None:
    logits, labels = drawn(200, seed=3)
    fitted = Calibration.fit(logits, labels)
    assert fitted.certain == fitted.undecided


def test_a_few_right_answers_are_no_evidence_of_certainty() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(38) % CLASSES
    logits = 3 * F.one_hot(labels, CLASSES) + torch.rand(38, CLASSES, generator=generator)
    confidence = Calibration.fit(logits, labels)(logits).softmax(1).amax(1)
    assert float(confidence.mean()) == pytest.approx(39 / 40, abs=0.005)


@pytest.mark.parametrize("flip", [False, True])
def test_answers_that_are_all_right_or_all_wrong_still_give_finite_temperatures(flip: bool) -> None:
    labels = torch.arange(8) % 4
    out = F.one_hot((labels + flip) % 4, 4).float()
    fitted = Calibration.fit(out, labels)
    assert math.isfinite(fitted.undecided)
    assert fitted(out).isfinite().all()


@given(st.integers(0, 10_000), st.floats(0.05, 20), st.floats(0.05, 20), st.floats(0.01, 100))
def test_no_answer_changes(seed: int, undecided: float, certain: float, spread: float) -> None:
    logits = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(seed)) * spread
    calibrated = Calibration(undecided, certain)(logits)
    assert torch.equal(calibrated.argmax(1), logits.argmax(1))
    assert calibrated.isfinite().all()
