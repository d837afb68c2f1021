"""Augmentation of batches against slow, plain counterparts."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.augment import alternating_flip, cutmix, cutout, mixup, random_crop


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, height: int, width: int) -> Tensor:
    """Pictures float [N, 3, H, W] in which every number occurs once."""
    return torch.arange(count * 3 * height * width, dtype=torch.float32).reshape(count, 3, height, width)


def crops_of(picture: Tensor, padding: int) -> dict[bytes, tuple[int, int]]:
    """Every crop of one picture with its offset, made with NumPy alone."""
    _, height, width = picture.shape
    padded = np.pad(picture.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    return {
        padded[:, down : down + height, right : right + width].tobytes(): (down, right)
        for down in range(2 * padding + 1)
        for right in range(2 * padding + 1)
    }


@settings(max_examples=40)
@given(
    count=st.integers(1, 6),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    padding=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_crop_is_one_of_the_slow_ones(count: int, height: int, width: int, padding: int, seed: int) -> None:
    pictures = numbered(count, height, width)
    for picture, crop in zip(pictures, random_crop(pictures, padding, generator(seed)), strict=True):
        assert crop.numpy().tobytes() in crops_of(picture, padding)


def test_crop_reaches_every_offset_about_as_often() -> None:
    picture = numbered(1, 8, 8)
    offsets = crops_of(picture[0], 2)
    found = random_crop(picture.expand(2500, -1, -1, -1), 2, generator())
    counts = Counter(offsets[crop.numpy().tobytes()] for crop in found)
    assert len(counts) == 25
    assert max(abs(count - 100) for count in counts.values()) < 50


def test_pictures_of_a_batch_are_shifted_each_by_its_own() -> None:
    found = random_crop(numbered(1, 8, 8).expand(32, -1, -1, -1), 3, generator())
    assert len(found.flatten(1).unique(dim=0)) > 16


def test_crop_without_padding_is_the_picture() -> None:
    pictures = numbered(3, 6, 5)
    assert torch.equal(random_crop(pictures, 0, generator()), pictures)


@pytest.mark.parametrize("augment", [random_crop, cutout])
def test_generator_decides(augment: type) -> None:
    pictures = numbered(16, 12, 12) + 1
    first = augment(pictures, 4, generator(1))
    torch.manual_seed(5)
    assert torch.equal(augment(pictures, 4, generator(1)), first)
    assert not torch.equal(augment(pictures, 4, generator(2)), first)


@given(first=st.lists(st.booleans(), min_size=1, max_size=12), epoch=st.integers(0, 50))
def test_two_epochs_show_both_sides(first: list[bool], epoch: int) -> None:
    pictures = numbered(len(first), 3, 4)
    mirrored = torch.from_numpy(pictures.numpy()[..., ::-1].copy())
    now, then = (alternating_flip(pictures, torch.tensor(first), e) for e in (epoch, epoch + 1))
    for index, is_first in enumerate(first):
        turned = is_first == (epoch % 2 == 0)
        assert torch.equal(now[index], (mirrored if turned else pictures)[index])
        assert torch.equal(then[index], (pictures if turned else mirrored)[index])
    assert torch.equal(alternating_flip(pictures, torch.tensor(first), epoch + 2), now)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 12])
def test_cutout_clears_one_square_in_all_channels(size: int) -> None:
    height, width = 12, 10
    left = cutout(numbered(400, height, width) + 1, size, generator())
    cleared = left == 0
    assert torch.equal(cleared.all(1), cleared.any(1))
    for mask in cleared[:, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask.sum() == len(rows) * len(columns)  # a full rectangle
        assert rows.max() - rows.min() + 1 == len(rows) <= size
        assert columns.max() - columns.min() + 1 == len(columns) <= size
    assert (cleared[:, 0].sum((1, 2)) == min(size, height) * min(size, width)).any()


@pytest.mark.parametrize("size", [4, 7, 16])
def test_cutout_area_is_that_of_a_square_anywhere(size: int) -> None:
    side = 32
    # The mean over every centre, counted one by one; a square may lie partly outside.
    spans = [sum(-size / 2 <= place - centre < size / 2 for place in range(side)) for centre in range(side)]
    expected = (sum(spans) / side) ** 2
    area = (cutout(torch.ones(4000, 1, side, side), size, generator()) == 0).sum((1, 2, 3)).double()
    error = float(area.std()) / 4000**0.5
    assert abs(float(area.mean()) - expected) < 4 * error
    assert area.max() == size**2


def test_cutout_leaves_its_input_alone() -> None:
    pictures = torch.ones(4, 3, 8, 8)
    cutout(pictures, 4, generator())
    assert pictures.all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_changes_nothing(layout: torch.memory_format) -> None:
    pictures = numbered(8, 10, 10) + 1
    other = pictures.contiguous(memory_format=layout)
    assert torch.equal(random_crop(other, 2, generator()), random_crop(pictures, 2, generator()))
    assert torch.equal(cutout(other, 4, generator()), cutout(pictures, 4, generator()))


def one_hot(count: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.arange(count)).float()


@given(share=st.floats(0, 1), count=st.integers(1, 8), seed=st.integers(0, 99))
def test_mixup_blends_pictures_and_targets_alike(share: float, count: int, seed: int) -> None:
    # A picture of one value, so that its blend says which pictures it was made of.
    pictures = one_hot(count).view(count, count, 1, 1).expand(-1, -1, 4, 4)
    mixed, targets = mixup(pictures, one_hot(count), share, generator(seed))
    torch.testing.assert_close(mixed[:, :, 0, 0], targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert (targets.diagonal() >= share - 1e-6).all()


@given(share=st.floats(0, 1), count=st.integers(1, 8), seed=st.integers(0, 99))
def test_cutmix_takes_a_box_and_its_share_of_the_target(share: float, count: int, seed: int) -> None:
    pictures = one_hot(count).view(count, count, 1, 1).expand(-1, -1, 12, 10)
    mixed, targets = cutmix(pictures, one_hot(count), share, generator(seed))
    # Every place holds one picture whole, and targets are the areas.
    assert torch.equal(mixed.amax(1), torch.ones(count, 12, 10))
    torch.testing.assert_close(mixed.mean((2, 3)), targets)


def test_cutmix_boxes_have_the_area_of_the_share() -> None:
    pictures = torch.arange(2.0).view(2, 1, 1, 1).expand(-1, -1, 32, 32)
    inside = []
    for seed in range(200):
        mixed, _ = cutmix(pictures, one_hot(2), 0.75, generator(seed))
        changed = mixed[0, 0] != pictures[0, 0]
        rows, columns = changed.any(1).sum(), changed.any(0).sum()
        assert changed.sum() == rows * columns
        inside.append(float(changed.float().mean()))
    assert max(inside) == pytest.approx(0.25, abs=0.01)
