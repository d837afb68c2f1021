"""The store of predictions: what goes in comes out, what has to go goes, and nothing is torn."""

import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import uuid7
from app.errors import FeedbackUnavailableError, InvalidRequestError, UnknownPredictionError
from app.feedback.store import Prediction, Store

DAY = 24 * 3600
MANY = 10**9


def prediction(probability: float = 0.5, model: str = "pets", age: float = 0.0) -> Prediction:
    """A prediction that was made so many seconds ago."""
    name = uuid7.floor(time.time() - age)[:13] + uuid7.new()[13:]
    return Prediction(name, model, 1, "1.png", "cat", probability)


def picture(size: int = 1000) -> bytes:
    return b"\x89PNG" + os.urandom(size - 4)


def filled(store: Store, *predictions: Prediction, size: int = 1000) -> list[str]:
    store.add([(made, picture(size)) for made in predictions])
    return [made.id for made in predictions]


def kept(store: Store) -> list[str]:
    return sorted(found.id for found in store.queue(None, 10_000))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "feedback", MANY, 90)


def test_what_goes_in_comes_out(store: Store) -> None:
    made, data = prediction(0.25), picture(100_000)
    store.add([(made, data)])
    assert store.has(made.id)
    assert store.get(made.id) == made
    assert store.picture(made.id) == data
    assert store.queue(None, 5) == [made]
    assert store.counts() == [("pets", None, 1)]
    assert 100_000 < store.size() < 300_000


def test_the_same_batch_again_changes_nothing(store: Store) -> None:
    made, data = prediction(), picture()
    store.add([(made, data)])
    store.label(made.id, "dog", (), None)
    store.add([(made, b"other")])
    assert store.picture(made.id) == data
    assert store.labelled("pets") == [(made.id, "dog")]


def test_the_least_confident_come_first(store: Store) -> None:
    names = filled(store, *(prediction(share) for share in (0.9, 0.3, 0.6)), prediction(0.1, "cars"))
    assert [found.id for found in store.queue("pets", 2)] == [names[1], names[2]]
    assert [found.id for found in store.queue(None, 2)] == [names[3], names[1]]
    store.label(names[1], "dog", (), None)
    assert [found.id for found in store.queue("pets", 2)] == [names[2], names[0]]


def test_labels_replace_each_other_and_are_counted(store: Store) -> None:
    first, second, other = filled(store, prediction(), prediction(), prediction(model="cars"))
    for label in ("dog", "bird"):
        store.label(first, label, (), 2)
    store.label(other, "bird", (), None)
    assert store.labelled("pets") == [(first, "bird")]
    assert sorted(store.counts(), key=str) == [("cars", "bird", 1), ("pets", "bird", 1), ("pets", None, 1)]
    assert second in kept(store)


def test_labels_that_would_become_a_second_class_are_refused(store: Store) -> None:
    first, second, other = filled(store, prediction(), prediction(), prediction(model="cars"))
    with pytest.raises(InvalidRequestError, match="'dog'"):
        store.label(first, "Dog", ("dog", "cat"), None)
    store.label(first, "Owl", ("dog", "cat"), None)
    with pytest.raises(InvalidRequestError, match="'Owl'"):
        store.label(second, "owl", ("dog", "cat"), None)
    store.label(other, "owl", (), None)  # of another model
    store.label(first, "owl", ("dog", "cat"), None)  # nobody else has it spelt otherwise
    assert store.labelled("pets") == [(first, "owl")]


def test_pictures_of_those_that_are_there(store: Store) -> None:
    first, second = filled(store, prediction(), prediction())
    assert dict(store.pictures([first, uuid7.new(), second])) == {
        first: store.picture(first),
        second: store.picture(second),
    }


def test_unknown_ones(store: Store) -> None:
    for ask in (store.get, store.picture, store.delete, lambda name: store.label(name, "cat", (), None)):
        with pytest.raises(UnknownPredictionError, match="APP_FEEDBACK_MAX_DAYS"):
            ask(uuid7.new())
    assert not store.has("x")


@pytest.mark.parametrize("size", [1000, 500_000])
def test_what_is_deleted_is_on_disk_no_more(store: Store, tmp_path: Path, size: int) -> None:
    made, data = prediction(), picture(size)
    filled(store, prediction())
    store.add([(made, data)])
    middle = data[size // 2 : size // 2 + 100]
    assert any(middle in path.read_bytes() for path in (tmp_path / "feedback").iterdir())
    store.delete(made.id)
    assert not store.has(made.id)
    assert not any(middle in path.read_bytes() for path in (tmp_path / "feedback").iterdir())


def test_the_oldest_without_a_label_make_room_first_and_then_the_oldest_with_one(tmp_path: Path) -> None:
    store = Store(tmp_path, 1_000_000, 90)
    names = filled(store, *(prediction(age=100 - number) for number in range(8)), size=100_000)
    labelled, unlabelled = names[:4], names[4:]
    for name in labelled:
        store.label(name, "dog", (), None)
    new = filled(store, *(prediction(age=50 - number) for number in range(4)), size=100_000)
    assert store.size() <= 1_000_000
    left = kept(store)
    assert left == [*unlabelled, *new][-len(left) :]
    assert 3 <= len(left) < 8
    assert [name for name, _ in store.labelled("pets")] == labelled
    for name in left:
        store.label(name, "dog", (), None)
    newest = filled(store, *(prediction() for _ in range(4)), size=100_000)
    assert kept(store) == []
    assert not any(map(store.has, newest)), "those with a label are worth more"
    assert [name for name, _ in store.labelled("pets")] == [*labelled, *left]


def test_those_with_a_label_go_too_when_there_are_too_many_of_them(tmp_path: Path) -> None:
    names = filled(Store(tmp_path, MANY, 90), *(prediction(age=100 - number) for number in range(8)), size=100_000)
    store = Store(tmp_path, 500_000, 90)
    for name in names:
        store.label(name, "dog", (), None)
    store.add([])
    assert store.size() <= 500_000
    left = [name for name, _ in store.labelled("pets")]
    assert left == names[-len(left) :]
    assert 2 <= len(left) < 8


def test_those_that_are_too_old_go_with_and_without_a_label(tmp_path: Path) -> None:
    ages = (31 * DAY, 30.1 * DAY, 29.9 * DAY, 0)
    names = filled(Store(tmp_path, MANY, 90), *(prediction(age=age) for age in ages))
    store = Store(tmp_path, MANY, 30)
    for name in (names[0], names[2]):
        store.label(name, "dog", (), None)
    store.add([])
    assert [store.has(name) for name in names] == [False, False, True, True]


def test_a_file_that_has_become_too_large_shrinks(tmp_path: Path) -> None:
    large = Store(tmp_path, MANY, 90)
    filled(large, *(prediction() for _ in range(500)), size=100_000)
    large.close()
    store = Store(tmp_path, 1_000_000, 90)
    before = (tmp_path / "feedback.sqlite").stat().st_size
    for _ in range(4):
        store.add([])
    store.close()
    assert store.size() <= 1_000_000
    assert before > 50_000_000
    assert (tmp_path / "feedback.sqlite").stat().st_size < 20_000_000


def test_many_write_at_once(tmp_path: Path) -> None:
    def write(number: int) -> Sequence[str]:
        own = Store(tmp_path / "new", MANY, 90)  # the file is made by whoever comes first
        names = [name for _ in range(5) for name in filled(own, prediction(), prediction())]
        own.label(names[0], "dog", (), number)
        own.close()
        return names

    with ThreadPoolExecutor(8) as threads:
        names = [name for found in threads.map(write, range(8)) for name in found]
    store = Store(tmp_path / "new", MANY, 90)
    assert len(names) == 80
    assert all(map(store.has, names))
    assert len(store.labelled("pets")) == 8


def test_only_the_owner_may_read_the_pictures(store: Store, tmp_path: Path) -> None:
    filled(store, prediction())
    assert (tmp_path / "feedback").stat().st_mode & 0o077 == 0


def test_a_file_that_is_none_is_left_alone_and_said(tmp_path: Path) -> None:
    (tmp_path / "feedback.sqlite").write_bytes(b"this is no database" * 1000)
    store = Store(tmp_path, MANY, 90)
    with pytest.raises(FeedbackUnavailableError, match=r"cannot be used \(file is not a database\)"):
        filled(store, prediction())
    assert (tmp_path / "feedback.sqlite").read_bytes() == b"this is no database" * 1000


def test_the_key_is_recorded(store: Store, tmp_path: Path) -> None:
    (name,) = filled(store, prediction())
    store.label(name, "dog", (), 3)
    with sqlite3.connect(tmp_path / "feedback" / "feedback.sqlite") as database:
        ((key, moment),) = database.execute("SELECT api_key, labelled FROM predictions").fetchall()
    database.close()
    assert key == 3
    assert abs(moment - time.time()) < 60
