"""Corruptions do what their names say, more so the stronger they are."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.shapes import draw
from training.corruption import CORRUPTIONS, STRENGTHS, accuracies, corrupt


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Pictures of discs, uint8 [20, 3, 32, 32]."""
    return torch.stack([torch.from_numpy(np.array(draw("disc", seed))).permute(2, 0, 1) for seed in range(20)])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_stronger_the_further_from_the_picture(images: Tensor, name: str) -> None:
    distances = []
    for strength in STRENGTHS:
        changed = corrupt(images, name, strength)
        assert changed.dtype == torch.uint8
        assert changed.shape == images.shape
        assert torch.equal(changed, corrupt(images, name, strength))
        distances.append(float((changed.float() - images).abs().mean()))
    assert 0 < distances[0] < distances[4] < 64
    assert distances == sorted(distances)


def test_noise_has_the_published_strength() -> None:
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    assert float(corrupt(grey, "gaussian_noise", 3).float().std()) == pytest.approx(0.08 * 255, rel=0.02)
    assert float(corrupt(grey, "shot_noise", 5).float().std()) == pytest.approx((128 / 255 / 50) ** 0.5 * 255, rel=0.02)
    spoiled = corrupt(grey, "impulse_noise", 5)
    assert float((spoiled != 128).double().mean()) == pytest.approx(0.07, rel=0.05)
    assert float((spoiled == 255).double().mean()) == pytest.approx(0.035, rel=0.1)


def test_contrast_and_blur_keep_the_brightness(images: Tensor) -> None:
    pale = corrupt(images, "contrast", 5).float()
    assert float(pale.std((2, 3)).mean()) == pytest.approx(0.15 * float(images.float().std((2, 3)).mean()), rel=0.03)
    for name in ("contrast", "defocus_blur"):
        assert float(corrupt(images, name, 5).float().mean()) == pytest.approx(float(images.float().mean()), abs=2)


def test_scores_are_shares_on_the_same_pictures(images: Tensor) -> None:
    def bright(batch: Tensor) -> Tensor:  # answers 1 where a picture's mean is above that of all
        level = batch.float().mean((1, 2, 3)) - images.float().mean()
        return torch.stack([-level, level], 1)

    labels = bright(images).argmax(1)
    found = accuracies(bright, images, labels)
    assert found["count"] == 20
    assert found["clean"] == 1
    rows = found["accuracy"]
    assert isinstance(rows, dict)
    assert rows.keys() == CORRUPTIONS.keys()
    assert all(len(row) == len(STRENGTHS) for row in rows.values())
    assert found["mean"] == pytest.approx(sum(map(sum, rows.values())) / (len(rows) * len(STRENGTHS)))
