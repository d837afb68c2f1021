"""Normalisation: measured exactly, and the same in prediction as in training."""

import numpy as np
import pytest
import torch

from training.normalisation import Normalisation

IMAGES = torch.randint(0, 256, (50, 3, 12, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_measured_by_channel() -> None:
    found = Normalisation.of(IMAGES)
    channels = IMAGES.numpy().swapaxes(0, 1).reshape(3, -1) / 255
    assert found.mean == pytest.approx(channels.mean(1), rel=1e-12)
    assert found.std == pytest.approx(np.std(channels, axis=1, ddof=1), rel=1e-12)


def test_pictures_come_out_with_mean_0_and_deviation_1() -> None:
    out = Normalisation.of(IMAGES)(IMAGES)
    assert out.dtype == torch.float32
    assert out.mean((0, 2, 3)).abs().max() < 1e-5
    assert (out.std((0, 2, 3)) - 1).abs().max() < 1e-5


def test_plain_pictures_do_not_divide_by_zero() -> None:
    assert Normalisation.of(torch.full_like(IMAGES, 7))(IMAGES).isfinite().all()


def test_what_was_scored_first_can_be_trained_on() -> None:
    normalise = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with torch.inference_mode():
        normalise(IMAGES)
    weight = torch.ones(1, requires_grad=True)
    (weight * normalise(IMAGES)).sum().backward()
    assert weight.grad is not None
