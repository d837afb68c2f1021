"""The recorder: every id that is given out can be used, and none is given out where that is not so."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.feedback.recorder import Recorder
from app.feedback.store import Store
from app.serving.upload import Upload
from tests.app.pictures import png

LONG = 60.0  # seconds; only ends a test that hangs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder, 10**9, 90)


@contextmanager
def recording(store: Store) -> Iterator[Recorder]:
    recorder = Recorder(store)
    try:
        yield recorder
    finally:
        recorder.close()


def keep(recorder: Recorder, *pictures: bytes) -> list[dict[str, Any]]:
    """The answers to a request with these pictures; an empty one could not be classified."""
    entries: list[dict[str, Any]] = [
        {"label": "cat", "probability": 0.5} if data else {"error": {"status": 415}} for data in pictures
    ]
    recorder.keep("pets", 3, [Upload("1.png", data) for data in pictures], entries)
    return entries


def wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_only_what_was_classified_gets_an_id(store: Store) -> None:
    with recording(store) as recorder:
        first, failed, second = keep(recorder, png(1), b"", png(2))
        assert keep(recorder, b"") == [{"error": {"status": 415}}]
    assert "id" not in failed
    assert store.picture(first["id"]) == png(1)
    assert store.get(second["id"]) == (second["id"], "pets", 3, "1.png", "cat", 0.5)
    assert len(store.queue(None, 10)) == 2


def test_what_waits_when_the_service_ends_is_written(store: Store) -> None:
    with recording(store) as recorder:
        entries = [entry for number in range(300) for entry in keep(recorder, png(number))]
    assert sorted(found.id for found in store.queue(None, 1000)) == sorted(entry["id"] for entry in entries)


def test_pictures_that_come_too_fast_are_answered_without_an_id(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with recording(store) as recorder:
        (first,) = keep(recorder, png(1))
        wait(lambda: store.has(first["id"]))
        large = b"\x89PNG" + bytes(15_000_000)
        with closing(sqlite3.connect(folder / "feedback.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody else can write meanwhile
            entries = [keep(recorder, large)[0] for _ in range(5)]
            assert ["id" in entry for entry in entries] == [True, True, False, False, False]
            other.execute("COMMIT")
        wait(lambda: "id" in keep(recorder, png(2))[0])
    assert all(store.has(entry["id"]) for entry in entries[:2])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "Predictions carry no id, 1 so far, and are not kept: pictures come faster than they can be written"
    ]


def test_a_request_larger_than_what_may_wait_is_kept_all_the_same(store: Store) -> None:
    with recording(store) as recorder:
        entries = keep(recorder, *(b"\x89PNG" + bytes(9_000_000) for _ in range(4)))
    assert all(store.has(entry["id"]) for entry in entries)


def test_while_nothing_can_be_written_there_are_no_ids_and_afterwards_there_are(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file, not a folder")
    with recording(store) as recorder:
        wait(lambda: caplog.records)
        assert [["id" in entry for entry in keep(recorder, png(2), png(3))] for _ in range(3)] == [[False, False]] * 3
        folder.unlink()
        wait(lambda: "id" in keep(recorder, png(4))[0])
    assert len(store.queue(None, 10)) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "once a minute is enough"
    assert "File exists" in caplog.text


def test_a_service_that_ends_while_nothing_can_be_written_says_what_is_lost(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.feedback.recorder._STOP_SECONDS", 0.1)
    with recording(store) as recorder:
        (first,) = keep(recorder, png(1))
        wait(lambda: store.has(first["id"]))
        with closing(sqlite3.connect(folder / "feedback.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            keep(recorder, png(2))
            recorder.close()
    assert "their ids are unknown from now on" in caplog.text
