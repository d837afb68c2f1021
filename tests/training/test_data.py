"""Sources as tensors: decoded, cached, split."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.encoding import encode
from tests.training.sources import KINDS, add, classes, draw, make, png
from training import data
from training.data import Dataset, Split, Survey, _chunks, cache_folder, cached, load, partition, survey, trim
from training.errors import InputError
from training.picture import decode
from training.source import Entry

BOTH = {"cat": 6, "dog": 6}
BROKEN = png(1)[:100]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of one test's own."""
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def same(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets are equal to the last pixel and name."""
    return (
        (one.classes, one.sha256, one.splits.keys()) == (other.classes, other.sha256, other.splits.keys())
        and all(one.splits[name].names == other.splits[name].names for name in one.splits)
        and all(
            torch.equal(getattr(one.splits[name], field), getattr(other.splits[name], field))
            for name in one.splits
            for field in ("images", "labels", "clusters")
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_labels(tmp_path: Path, kind: str) -> None:
    files = {"dog/10.png": png(1), "dog/9.png": png(2), "cat/2.png": png(3), "cat/x.png": png(4), "cat/1.png": png(5)}
    files["dog/8.jpg"] = encode(draw(6, 50, 40), "JPEG")
    dataset = load(str(make(tmp_path, kind, files)), 32)
    train = dataset.splits["train"]
    assert list(dataset.splits) == ["train"]
    assert dataset.classes == ("cat", "dog")
    assert train.names == ("cat/1.png", "cat/2.png", "cat/x.png", "dog/8.jpg", "dog/9.png", "dog/10.png")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == torch.int64
    assert train.images.dtype == torch.uint8
    assert train.clusters.tolist() == list(range(6))
    for name, image in zip(train.names, train.images, strict=True):
        assert np.array_equal(image.numpy(), decode(files[name], 32))


@pytest.mark.parametrize("kind", KINDS)
def test_splits_of_the_source(tmp_path: Path, kind: str) -> None:
    files = classes(BOTH, "pets/Train/") | classes({"cat": 2, "dog": 1}, "pets/test/", 50)
    dataset = load(str(make(tmp_path, kind, files)), 32)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 12, "test": 3}
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1]


def test_last_picture_of_a_tar_that_was_added_to_counts(tmp_path: Path) -> None:
    path = make(tmp_path, ".tar", classes(BOTH))
    add(path, {"cat/0.png": png(99)})
    train = load(str(path), 32).splits["train"]
    assert len(train) == survey(str(path)).count == 12
    assert np.array_equal(train.images[0].numpy(), decode(png(99), 32))


@pytest.mark.parametrize("size", [16, 48])
def test_size(tmp_path: Path, size: int) -> None:
    dataset = load(str(make(tmp_path, "folder", classes(BOTH))), size)
    assert dataset.splits["train"].images.shape == (12, 3, size, size)


def test_more_pictures_than_are_decoded_at_once(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in BOTH for number in range(300)]
    colours = [(index // 256, index % 256, 99) for index in range(600)]
    pictures = {name: encode(Image.new("RGB", (16, 16), colour)) for name, colour in zip(names, colours, strict=True)}
    train = load(str(make(tmp_path, ".zip", pictures)), 16).splits["train"]
    assert list(train.names) == names
    assert train.images[:, :2, 0, 0].tolist() == [[red, green] for red, green, _ in colours]


def test_large_files_are_held_in_small_lots() -> None:
    bulky = [Entry(PurePosixPath("cat/1.bmp"), bytes(30 << 20))] * 7
    folder = Entry(PurePosixPath("cat"), None)
    assert [len(chunk) for chunk in _chunks([folder, *bulky])] == [4, 3, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("files", "problems"),
    [
        (classes({"cat": 4}), ["only one class, 'cat'"]),
        (classes({"cat": 4}, "train/") | classes({"cat": 2}, "test/", 9), ["only one class, 'cat'"]),
        (classes(BOTH) | {"fish": None}, ["Class 'fish' is empty"]),
        (classes(BOTH, "train/") | classes(BOTH, "test/", 20) | {"train/fish": None}, ["Class 'fish' is empty"]),
        (classes(BOTH, "train/") | {"test": None, "test/fish": None}, ["Class 'fish' is empty"]),
        (classes(BOTH, "pets/") | {"pets/fish": None}, ["Class 'fish' is empty"]),
        (classes(BOTH) | {"dog/bad.png": BROKEN}, ["dog/bad.png: The picture is damaged or cut short"]),
        (classes(BOTH) | {"dog/bad.gif": b"hello"}, ["dog/bad.gif: The file is not a picture"]),
        (classes(BOTH) | {"dog/bad.jpg": b""}, ["dog/bad.jpg: The file is empty"]),
        ({"cat": None, "notes.txt": b"hello"}, ["There are no pictures"]),
        ({}, ["There are no pictures"]),
    ],
    ids=[
        "one class",
        "one class in splits",
        "empty class",
        "empty class in train",
        "empty class in test",
        "empty class in a wrapping",
        "cut short",
        "no picture",
        "empty file",
        "no pictures",
        "nothing",
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, kind: str, files: dict[str, bytes | None], problems: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(str(make(tmp_path, kind, files)), 16)
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert expected in found


@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_is_listed_at_once(tmp_path: Path, kind: str) -> None:
    files = classes({"cat": 3}) | {"fish": None, "cat/a.png": BROKEN, "cat/b.jpg": b"hello", "bird": None}
    with pytest.raises(InputError) as caught:
        load(str(make(tmp_path, kind, files)), 16)
    assert [problem[:22] for problem in caught.value.problems] == [
        "cat/a.png: The picture",
        "cat/b.jpg: The file is",
        "Class 'bird' is empty.",
        "Class 'fish' is empty.",
        "There is only one clas",
    ]
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_huge_picture_in_an_archive_is_one_of_the_problems(tmp_path: Path) -> None:
    huge = encode(Image.new("1", (8000, 7000)))
    with pytest.raises(InputError, match=r"^dog/huge\.png: The picture has 8000 x 7000 pixels"):
        load(str(make(tmp_path, ".zip", classes(BOTH) | {"dog/huge.png": huge})), 16)


def test_limit_of_pixels_is_the_one_that_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_max_pixels", data._max_pixels)  # to have it put back
    huge = {"dog/huge.png": encode(Image.new("1", (8000, 6251)))}
    path = str(make(tmp_path, ".zip", {**classes(BOTH), **huge}))
    with pytest.raises(InputError, match="8000 x 6251 pixels; at most 50,000,000 are read"):
        load(path, 32)
    data.allow(8000 * 6251)
    assert len(load(path, 32).splits["train"]) == 13
    assert survey(path).side == 32
    data.allow(32 * 32 - 1)
    assert survey(path).side == 0


def test_warnings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(str(make(tmp_path, "folder", classes({"cat": 20, "dog": 5}) | {"dog/notes.txt": b"hello"})), 16)
    assert [record.getMessage() for record in caplog.records] == [
        "1 files are no pictures and are left out: dog/notes.txt",
        "Class 'dog' has only 5 pictures; 20 or more work better.",
    ]


def test_warnings_are_logged_again_when_the_cache_is_read(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = classes({"cat": 20, "dog": 5}) | {"dog/again.png": png(1), "dog/notes.txt": b"hello"}
    path = str(make(tmp_path, "folder", files))
    first = load(path, 16)
    said = [record.getMessage() for record in caplog.records]
    assert [message.split()[0] for message in said] == ["1", "Class", "2"]
    caplog.clear()
    (kept,) = own_cache.iterdir()
    written = kept.stat().st_ino
    assert same(load(path, 16), first)
    assert [record.getMessage() for record in caplog.records] == said
    assert kept.stat().st_ino == written


def test_warnings_of_a_source_with_errors_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="only one class"):
        load(str(make(tmp_path, "folder", classes({"cat": 20}) | {"notes.txt": b"hello"})), 16)
    assert [record.getMessage() for record in caplog.records] == ["1 files are no pictures and are left out: notes.txt"]


def test_repeats_across_classes_and_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = classes({"cat": 20, "dog": 20}, "train/") | classes({"cat": 3, "dog": 3}, "test/", first=90)
    files["train/dog/again.jpg"] = encode(draw(5), "JPEG", quality=85)  # train/cat/5.png
    files["test/cat/leak.png"] = png(21)  # train/dog/1.png
    load(str(make(tmp_path, "folder", files)), 16)
    assert [record.getMessage() for record in caplog.records] == [
        "2 pictures of the train split nearly repeat one of another class: train/cat/5.png, train/dog/again.jpg",
        "1 pictures of the test split nearly repeat training pictures: test/cat/leak.png",
    ]


def test_second_load_reads_the_cache(tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path, ".tar.gz", classes({"cat": 20, "dog": 20}, "train/") | classes(BOTH, "test/", 90))
    first = load(str(path), 16)
    (cached,) = own_cache.iterdir()
    assert same(load(str(path), 16), first)
    # Other pixels, put into the cached copy, can only come from there.
    with safe_open(cached, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    tensors["train.images"] = torch.full_like(tensors["train.images"], 7)
    save_file(tensors, cached, about)
    assert load(str(path), 16).splits["train"].images.unique().tolist() == [7]
    assert caplog.records == []


def test_cache_follows_the_content_and_the_size(tmp_path: Path, own_cache: Path) -> None:
    path = make(tmp_path, "folder", classes(BOTH))
    load(str(path), 16)
    load(str(path), 32)
    assert len(list(own_cache.iterdir())) == 2
    (path / "cat" / "new.png").write_bytes(png(77))
    assert "cat/new.png" in load(str(path), 16).splits["train"].names


def test_problem_that_comes_up_later_is_seen_in_spite_of_the_cache(tmp_path: Path, own_cache: Path) -> None:
    path = make(tmp_path, "folder", classes(BOTH))
    load(str(path), 16)
    (path / "fish").mkdir()
    with pytest.raises(InputError, match="Class 'fish' is empty"):
        load(str(path), 16)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no names", "no warnings"])
def test_damaged_cache_is_decoded_again(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = make(tmp_path, ".zip", classes({"cat": 20, "dog": 20}))
    first = load(str(path), 16)
    (cached,) = own_cache.iterdir()
    whole = cached.read_bytes()
    if damage == "no names":
        save_file({"train.images": torch.zeros(1)}, cached)
    elif damage == "no warnings":
        with safe_open(cached, framework="pt") as file:
            about = {key: value for key, value in file.metadata().items() if key != "warnings"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        save_file(tensors, cached, about)
    else:
        cached.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 99}[damage])
    assert same(load(str(path), 16), first)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith(f"the cached copy {cached} cannot be read")
    caplog.clear()
    assert same(load(str(path), 16), first)
    assert caplog.records == []
    assert list(own_cache.iterdir()) == [cached]


def test_cache_that_cannot_be_written_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "file"))
    dataset = load(str(make(tmp_path, "folder", classes({"cat": 20, "dog": 20}))), 16)
    assert len(dataset.splits["train"]) == 40
    assert "is not cached, so the next run decodes it again" in caplog.text


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, refit_cache: Path) -> None:
    assert cache_folder() == refit_cache
    monkeypatch.delenv("REFIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/refit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/refit")


def dataset_of(tmp_path: Path, **counts: int) -> Dataset:
    """A data set with so many pictures of each of two classes in each split."""
    files: dict[str, bytes] = {}
    for split, count in counts.items():
        files |= classes({"cat": count, "dog": count}, f"{split}/", len(files))
    return load(str(make(tmp_path, "folder", files)), 16)


def test_partition_cuts_what_is_missing(tmp_path: Path) -> None:
    parts = partition(dataset_of(tmp_path, train=50), 10, seed=0)
    assert parts.made == ("test", "validation")
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (70, 10, 20)
    assert torch.bincount(parts.test.labels).tolist() == [10, 10]
    assert torch.bincount(parts.validation.labels).tolist() == [5, 5]
    names = [*parts.train.names, *parts.validation.names, *parts.test.names]
    assert len(set(names)) == 100


def test_validation_is_at_most_a_fifth(tmp_path: Path) -> None:
    parts = partition(dataset_of(tmp_path, train=25, test=5), 2500, seed=0)
    assert parts.made == ("validation",)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (40, 10, 10)


def test_splits_of_the_source_stay_as_they_are(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, train=10, val=3, test=4)
    parts = partition(dataset, 2, seed=0)
    assert parts.made == ()
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (20, 6, 8)


def test_train_and_val_without_test(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, train=20, val=6)
    parts = partition(dataset, 4, seed=0)
    assert parts.test.names == dataset.splits["validation"].names
    assert parts.made == ("validation",)
    assert (len(parts.train), len(parts.validation)) == (36, 4)
    assert set(dataset.splits) == {"train", "validation"}  # what was given is not changed


def test_partition_keeps_pictures_with_their_labels(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, train=20)
    parts = partition(dataset, 8, seed=3)
    whole = dict(zip(dataset.splits["train"].names, dataset.splits["train"].images, strict=True))
    for split in (parts.train, parts.validation, parts.test):
        assert len(split) == len(split.names) == len(split.images) == len(split.clusters)
        for name, image, label in zip(split.names, split.images, split.labels, strict=True):
            assert torch.equal(image, whole[name])
            assert dataset.classes[int(label)] == Path(name).parts[1]


def test_repeats_stay_on_one_side(tmp_path: Path) -> None:
    files = {}
    for number in range(40):
        files[f"{'cat' if number % 2 else 'dog'}/{number}.png"] = png(number)
        files[f"{'cat' if number % 2 else 'dog'}/{number}-again.jpg"] = encode(draw(number), "JPEG", quality=80)
    parts = partition(load(str(make(tmp_path, "folder", files)), 32), 16, seed=0)
    splits = (parts.train, parts.validation, parts.test)
    sides = [{Path(name).stem.removesuffix("-again") for name in split.names} for split in splits]
    assert [len(side) for side in sides] == [26, 6, 8]
    assert set.union(*sides) == set(map(str, range(40)))
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


def test_fewest_pictures_that_pass_give_three_splits(tmp_path: Path) -> None:
    parts = partition(dataset_of(tmp_path, train=3), 2500, seed=0)
    for split in (parts.train, parts.validation, parts.test):
        assert split.labels.tolist() == [0, 1]


def test_pictures_that_are_all_the_same_cannot_be_split(tmp_path: Path) -> None:
    files = {f"{name}/{number}.png": png(index) for index, name in enumerate(BOTH) for number in range(10)}
    dataset = load(str(make(tmp_path, "folder", files)), 16)
    with pytest.raises(InputError, match=r"No test split can be cut from 20 training pictures.*test/ folder"):
        partition(dataset, 4, seed=0)


@pytest.mark.parametrize("qualities", [[90, 90, 90], range(30, 90)])
def test_a_class_that_repeats_itself_and_is_not_held_out_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, qualities: Sequence[int]
) -> None:
    files = classes({"cat": 60})
    for number, quality in enumerate(qualities):
        files[f"ship/{number}.jpg"] = encode(draw(60), "JPEG", quality=quality)
    dataset = load(str(make(tmp_path, "folder", files)), 32)
    assert len(dataset.splits["train"].clusters.unique()) == 61
    caplog.clear()
    partition(dataset, 10, seed=0, warn=False)
    assert caplog.messages == []
    partition(dataset, 10, seed=0)
    for said, split, folder in zip(caplog.messages, ("test", "validation"), ("test", "val"), strict=True):
        assert said.startswith(f"The {split} split has no pictures of ['ship'], so its figures tell nothing of them")
        assert said.endswith(f"stay in training. Add different ones, or a {folder}/ folder.")


def test_seed_decides_the_partition(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, train=30)
    first = partition(dataset, 10, seed=0)
    assert partition(dataset, 10, seed=0).validation.names == first.validation.names
    assert partition(dataset, 10, seed=1).validation.names != first.validation.names


@pytest.mark.parametrize("kind", KINDS)
def test_survey_tells_classes_count_and_median_side(tmp_path: Path, kind: str) -> None:
    sizes = [(40, 90), (50, 20), (30, 30)]
    files: dict[str, bytes | None] = {
        f"{label}/{number}.png": encode(draw(number, *size))
        for label in ("cat", "dog")
        for number, size in enumerate(sizes)
    }
    files |= {"dog/broken.png": BROKEN, "notes.txt": b"text"}
    assert survey(str(make(tmp_path, kind, files))) == Survey(("cat", "dog"), 7, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_survey_and_load_see_a_class_in_a_format_that_is_not_read_alike(tmp_path: Path, kind: str) -> None:
    files = classes({"cat/persian": 3, "cat/siamese": 3}, "pets/") | {"pets/dog/1.heic": b"heic"}
    path = str(make(tmp_path, kind, files))
    assert survey(path).classes == ("cat",)
    with pytest.raises(InputError, match=r"^The folder of class 'dog' holds no pictures"):
        load(path, 16)


def test_one_class_is_enough_where_it_is_said_and_the_cache_does_not_forget_it(tmp_path: Path, own_cache: Path) -> None:
    path = str(make(tmp_path, ".zip", classes({"cat": 20})))
    assert load(path, 16, least_classes=1).classes == ("cat",)
    assert len(list(own_cache.iterdir())) == 1
    with pytest.raises(InputError, match="only one class"):
        load(path, 16)


def test_cached_finds_what_was_loaded_by_its_hash(tmp_path: Path, own_cache: Path) -> None:
    dataset = load(str(make(tmp_path, ".zip", classes(BOTH))), 16)
    found = cached(dataset.sha256, 16)
    assert found
    assert same(found, dataset)
    assert cached(dataset.sha256, 17) is None
    assert cached("0" * 64, 16) is None


def unread(path: Path, hours: float) -> Path:
    """The file, last read so long ago."""
    read = time.time() - 3600 * hours
    os.utime(path, (read, read))
    return path


def test_data_sets_that_were_not_read_for_longest_are_deleted(tmp_path: Path, own_cache: Path) -> None:
    first = load(str(make(tmp_path, ".zip", classes(BOTH))), 16)
    (one,) = own_cache.iterdir()
    load(str(make(tmp_path, ".zip", classes(BOTH, first=50))), 16)
    (two,) = set(own_cache.iterdir()) - {one}
    old = own_cache / one.name.replace("-v", "-v0")
    old.write_bytes(b"of an earlier release")
    for path, hours in ((old, 30), (one, 20), (two, 10)):
        unread(path, hours)
    both = one.stat().st_size + two.stat().st_size
    trim(both + old.stat().st_size)
    assert set(own_cache.iterdir()) == {old, one, two}
    trim(both)
    assert set(own_cache.iterdir()) == {one, two}
    assert cached(first.sha256, 16)
    trim(both - 1)
    assert set(own_cache.iterdir()) == {one}
    trim(0)
    assert list(own_cache.iterdir()) == []


def test_files_that_are_being_written_are_left_alone(tmp_path: Path, own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    running, abandoned = (own_cache / f".partial-{name}" for name in ("running", "abandoned"))
    for path, hours in ((running, 1), (abandoned, 25)):
        path.write_bytes(b"pictures")
        unread(path, hours)
    trim(0)
    assert list(own_cache.iterdir()) == [running]


def test_jobs_that_trim_at_once_do_not_disturb_one_another(own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    for number in range(300):
        (own_cache / f"{number}.safetensors").write_bytes(b"pictures")
    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(trim, [0] * 8))
    assert list(own_cache.iterdir()) == []


def test_no_cache_to_trim(own_cache: Path) -> None:
    trim(0)
    assert not own_cache.exists()


def test_joined_splits_keep_clusters_apart(tmp_path: Path) -> None:
    train = load(str(make(tmp_path, ".zip", classes(BOTH))), 16).splits["train"]
    joined = Split.joined(train, train.relabelled(torch.tensor([2, 3])))
    assert torch.equal(joined.images, torch.cat([train.images, train.images]))
    assert joined.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    assert joined.names == train.names * 2
    assert len(joined.clusters.unique()) == 24
