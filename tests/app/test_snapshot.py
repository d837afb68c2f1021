"""Snapshots: the labelled pictures of a model as an archive that training reads."""

import zipfile
from pathlib import Path

import pytest

from app import uuid7
from app.errors import DatasetError
from app.feedback import snapshot
from app.feedback.store import Prediction, Store
from tests.app.pictures import draw, png
from tests.encoding import encode
from training import data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "feedback", 10**9, 90)


def labelled(store: Store, label: str | None, *pictures: bytes, model: str = "pets") -> list[str]:
    names = [uuid7.new() for _ in pictures]
    store.add(
        [(Prediction(name, model, 1, None, "cat", 0.5), data) for name, data in zip(names, pictures, strict=True)]
    )
    for name in names:
        if label:
            store.label(name, label, (), None)
    return names


@pytest.mark.parametrize(
    ("format_", "media_type", "ending"),
    [
        ("JPEG", "image/jpeg", ".jpg"),
        ("PNG", "image/png", ".png"),
        ("WebP", "image/webp", ".webp"),
        ("GIF", "image/gif", ".gif"),
        ("BMP", "image/bmp", ".bmp"),
    ],
)
def test_kinds_of_pictures(format_: str, media_type: str, ending: str) -> None:
    assert snapshot.kind(encode(draw(1), format_)) == (media_type, ending)


def test_labelled_pictures_become_class_folders_that_training_reads(store: Store, tmp_path: Path) -> None:
    cats = labelled(store, "cat", *(png(seed) for seed in range(5)))
    labelled(store, "Größe 1.5 猫", *(encode(draw(seed), "JPEG") for seed in range(5, 9)))
    labelled(store, None, png(20))
    labelled(store, "dog", *(png(seed) for seed in range(30, 34)), model="others")
    assert snapshot.write(store, "pets", tmp_path / "a.zip") == []
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert sorted(archive.namelist())[-5:] == sorted(f"cat/{name}.png" for name in cats)
        assert archive.read(f"cat/{cats[0]}.png") == png(0)
    dataset = data.load(str(tmp_path / "a.zip"), 16)
    assert dataset.classes == ("cat", "Größe 1.5 猫")
    assert dataset.splits["train"].labels.bincount().tolist() == [5, 4]


def test_the_same_labels_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    names = labelled(store, "cat", *(png(seed) for seed in range(5)))
    archives = []
    for number in range(2):
        snapshot.write(store, "pets", tmp_path / f"{number}.zip")
        archives.append((tmp_path / f"{number}.zip").read_bytes())
        store.label(names[0], "cat", (), None)
    assert archives[0] == archives[1]


def test_classes_with_too_few_pictures_are_left_out_and_named(store: Store, tmp_path: Path) -> None:
    labelled(store, "cat", *(png(seed) for seed in range(3)))
    labelled(store, "owl", png(10), png(11))
    assert snapshot.write(store, "pets", tmp_path / "a.zip") == [
        "Class 'owl' is left out: it has 2 labelled pictures and needs 3."
    ]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"cat"}


def test_copies_of_one_picture_are_one_picture(store: Store, tmp_path: Path) -> None:
    labelled(store, "cat", *(png(seed) for seed in range(3)))
    labelled(store, "owl", png(10), png(10), png(10))
    assert snapshot.write(store, "pets", tmp_path / "a.zip") == [
        "Class 'owl' is left out: it has 1 labelled picture and needs 3.",
        "Copies among the labelled pictures: 2. A picture counts once, with its latest label.",
    ]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"cat"}


def test_of_copies_with_several_labels_the_latest_label_counts(store: Store, tmp_path: Path) -> None:
    labelled(store, "cat", *(png(seed) for seed in range(3)))
    first, *_ = labelled(store, "owl", *(png(seed) for seed in range(10, 14)))
    (copy,) = labelled(store, "cat", png(10))
    snapshot.write(store, "pets", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert f"cat/{first}.png" in archive.namelist()
        assert len(archive.namelist()) == 7
    store.label(first, "owl", (), None)
    snapshot.write(store, "pets", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert f"owl/{first}.png" in archive.namelist()
        assert not any(copy in name for name in archive.namelist())


def test_too_little_says_what_to_do(store: Store, tmp_path: Path) -> None:
    labelled(store, None, png(1))
    with pytest.raises(DatasetError, match=r"GET /feedback/queue\?model=pets") as none:
        snapshot.write(store, "pets", tmp_path / "a.zip")
    assert len(none.value.problems) == 1
    labelled(store, "owl", png(2), png(3))
    with pytest.raises(DatasetError, match="'owl' is left out"):
        snapshot.write(store, "pets", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
