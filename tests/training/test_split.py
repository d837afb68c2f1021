"""Near-duplicates found, and kept on one side of a split."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torch import Tensor

from tests.encoding import encode
from tests.training.sources import draw
from training.picture import decode
from training.source import read
from training.split import duplicate_clusters, folds, held_out, repeating


def tensor(*pictures: Image.Image) -> Tensor:
    """Pictures as uint8 [N, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def reencoded(picture: Image.Image, quality: int) -> Image.Image:
    """The picture after a lossy JPEG."""
    return Image.open(io.BytesIO(encode(picture, "JPEG", quality=quality))).convert("RGB")


def test_different_pictures_are_not_joined() -> None:
    assert duplicate_clusters(tensor(*map(draw, range(300)))).tolist() == list(range(300))


def test_different_pictures_of_little_contrast_are_not_joined() -> None:
    pale = tensor(*map(draw, range(50))) // 8 + 200
    assert duplicate_clusters(pale).tolist() == list(range(50))


def test_repeats_are_joined() -> None:
    photo, other = draw(1), draw(2)
    brighter = ImageEnhance.Brightness(photo).enhance(1.1)
    flatter = ImageEnhance.Contrast(photo).enhance(0.8)
    pictures = tensor(other, photo, brighter, flatter, reencoded(photo, 60), photo, reencoded(other, 60))
    assert duplicate_clusters(pictures).tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_chain_of_repeats_is_one_cluster_named_by_its_first() -> None:
    # Each picture is a little further from the first; only neighbours are alike.
    steps = torch.linspace(0, 1, 30).view(-1, 1, 1, 1)
    chain = (tensor(draw(1)) * (1 - steps) + tensor(draw(2)) * steps).to(torch.uint8)
    assert duplicate_clusters(chain[[0, 29]]).tolist() == [0, 1]
    mixed = torch.cat([tensor(draw(3)), chain.flip(0), tensor(draw(4))])
    assert duplicate_clusters(mixed).tolist() == [0, *[1] * 30, 31]


def test_clusters_across_the_blocks_of_the_comparison() -> None:
    count = 2048 + 7  # one more than a block
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pictures[[2047, 2050]] = pictures[3].clone()
    pictures[2054] = pictures[2053].clone()
    expected = torch.arange(count)
    expected[[2047, 2050]] = 3
    expected[2054] = 2053
    assert torch.equal(duplicate_clusters(pictures), expected)


def test_many_repeats_of_one_picture() -> None:
    pictures = torch.cat([tensor(draw(1)).expand(2500, -1, -1, -1), tensor(draw(2))])
    assert duplicate_clusters(pictures).tolist() == [0] * 2500 + [2500]


def test_one_picture() -> None:
    assert duplicate_clusters(tensor(draw(1))).tolist() == [0]


def test_repeats_of_real_photos_are_joined_and_different_photos_are_not(cifar10_archive: Path) -> None:
    pictures = (entry.data for entry in read(cifar10_archive) if entry.data)
    photos = tensor(*(Image.fromarray(decode(data, 32).transpose(1, 2, 0)) for data in islice(pictures, 200)))
    repeats = tensor(*(reencoded(Image.fromarray(photo.permute(1, 2, 0).numpy()), 75) for photo in photos))
    clusters = duplicate_clusters(torch.cat([photos, repeats]))
    assert (clusters[:200] == torch.arange(200)).sum() >= 198
    assert (clusters[200:] == clusters[:200]).sum() >= 190


def test_held_out_is_stratified() -> None:
    labels = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
    chosen = held_out(labels, torch.arange(1000), 100, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [50, 30, 20]


def test_held_out_pictures_are_drawn_at_random() -> None:
    chosen = held_out(torch.zeros(1000, dtype=torch.long), torch.arange(1000), 100, seed=0)
    assert 25 <= chosen[:500].sum() <= 75


def test_seed_decides() -> None:
    labels = torch.arange(1000) % 4
    first = held_out(labels, torch.arange(1000), 100, seed=7)
    assert torch.equal(held_out(labels, torch.arange(1000), 100, seed=7), first)
    assert not torch.equal(held_out(labels, torch.arange(1000), 100, seed=8), first)


def test_global_random_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = held_out(torch.arange(100) % 2, torch.arange(100), 20, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(held_out(torch.arange(100) % 2, torch.arange(100), 20, seed=0), first)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    share=st.floats(0, 0.5),
    repeats=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_clusters_stay_whole_and_no_class_is_used_up(sizes: list[int], share: float, repeats: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    # Clusters cross the borders of classes: labels can disagree about the same picture.
    clusters = torch.arange(len(labels)) // repeats * repeats
    chosen = held_out(labels, clusters, int(share * len(labels)), seed)
    for cluster in clusters.unique():
        assert chosen[clusters == cluster].unique().numel() == 1
    for label, size in enumerate(sizes):
        held = int(chosen[labels == label].sum())
        assert held <= size - 1
        assert held <= max(1, round(size * share) + 1)


@given(sizes=st.lists(st.integers(2, 30), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_without_repeats_each_class_gives_one_or_more(sizes: list[int], seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen = held_out(labels, torch.arange(len(labels)), 0, seed)
    assert torch.bincount(labels[chosen], minlength=len(sizes)).tolist() == [1] * len(sizes)


@pytest.mark.parametrize("count", [1, 10, 50])
def test_cluster_larger_than_what_is_wanted_stays_in_training(count: int) -> None:
    clusters = torch.cat([torch.zeros(60, dtype=torch.long), torch.arange(60, 100)])
    chosen = held_out(torch.zeros(100, dtype=torch.long), clusters, count, seed=0)
    assert not chosen[:60].any()
    assert chosen.sum() == min(count, 40)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    repeats=st.integers(1, 3),
    count=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_folds_keep_clusters_whole_and_classes_even(sizes: list[int], repeats: int, count: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), repeats * torch.tensor(sizes))
    clusters = torch.arange(len(labels)) // repeats * repeats
    fold = folds(labels, clusters, count, seed)
    assert all(fold[clusters == cluster].unique().numel() == 1 for cluster in clusters.unique())
    for label in range(len(sizes)):
        dealt = torch.bincount(fold[labels == label], minlength=count)
        assert dealt.max() - dealt.min() <= repeats


def test_folds_of_small_classes_are_of_the_same_size() -> None:
    labels = torch.arange(10).repeat_interleave(7)
    fold = folds(labels, torch.arange(70), 5, seed=0)
    assert torch.bincount(fold).tolist() == [14] * 5


def test_of_no_pictures_none_are_held_out() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert held_out(none, none, 0, seed=0).shape == (0,)


def test_repeats_are_found_across_sizes() -> None:
    images = tensor(*map(draw, range(20)))
    others = tensor(*(draw(seed, 48, 48) for seed in (3, 7, 50, 51)))
    assert repeating(images, others).nonzero().flatten().tolist() == [3, 7]
    assert not repeating(images, others[:0]).any()
    assert repeating(images[:0], others).shape == (0,)
