"""Batched TrivialAugment against torchvision's, one picture at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import TrivialAugmentWide, _apply_op

from training.trivial import OPERATIONS, trivial_augment

# torchvision's names, in our order.
NAMES = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)


def pictures(count: int, height: int = 24, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 256, (count, 3, 6, 5), generator=generator).float()
    large = torch.nn.functional.interpolate(low, size=(height, width), mode="bilinear")
    return (large * 0.8 + 20).to(torch.uint8)


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_operations_are_those_of_torchvision(number: int, name: str) -> None:
    magnitudes, signed = TrivialAugmentWide()._augmentation_space(31)[name]
    operation, two_directions = OPERATIONS[number]
    assert signed == two_directions
    bins = torch.tensor([0, 3, 4, 7, 8, 13, 16, 19, 22, 25, 28])  # at others theirs rounds a whole pixel down
    images = pictures(len(bins))
    level = bins / 30 * (torch.where(bins % 2 == 0, 1.0, -1.0) if signed else 1.0)
    found = operation(images.float(), level).to(torch.uint8)
    for index, image in enumerate(images):
        magnitude = float(magnitudes[bins[index]]) if magnitudes.ndim else 0.0
        magnitude = magnitude if level[index] >= 0 else -magnitude
        expected = _apply_op(image, name, magnitude, InterpolationMode.NEAREST, None)
        away = (found[index].int() - expected.int()).abs() > 1
        # A place half-way between two pixels may fall to either.
        assert away.float().mean() <= (0.02 if 1 <= number <= 5 else 0)


def test_every_operation_is_chosen_about_as_often() -> None:
    images = pictures(1, 8, 8).expand(2800, -1, -1, -1)
    changed = trivial_augment(images, np.random.default_rng(0))
    same = float((changed == images).flatten(1).all(1).float().mean())
    # The identity, and the weakest of operations that then change nothing.
    assert 1 / 14 < same < 4 / 14
    assert changed.dtype == torch.uint8
    assert len(changed.flatten(1).unique(dim=0)) > 150


def test_chance_decides() -> None:
    images = pictures(64)
    first = trivial_augment(images, np.random.default_rng(1))
    assert torch.equal(trivial_augment(images, np.random.default_rng(1)), first)
    assert not torch.equal(trivial_augment(images, np.random.default_rng(2)), first)


def test_the_input_is_left_alone() -> None:
    images = pictures(64)
    before = images.clone()
    trivial_augment(images, np.random.default_rng(0))
    assert torch.equal(images, before)


def test_plain_pictures_survive() -> None:
    images = torch.full((200, 3, 16, 16), 7, dtype=torch.uint8)
    assert trivial_augment(images, np.random.default_rng(0)).shape == images.shape
