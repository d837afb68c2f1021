"""The store: predictions with their pictures and labels in one SQLite file, shared by all processes of a machine."""

import fcntl
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from app import uuid7
from app.errors import DiskFullError, FeedbackUnavailableError, UnknownPredictionError
from app.feedback.label import check_spelling

_BUSY_SECONDS = 10.0
_RETRY_SECONDS = 5
_DAY = 24 * 3600
# What is deleted in one go, so that nobody waits long for the file.
_MOST_ROWS = 1000
_MOST_BYTES = 64_000_000
_SPARE_PAGES = 1024  # empty pages that stay in the file for what comes next

# The picture is the last column: whoever reads the others does not read it. Pages hold several small pictures.
_SCHEMA = """
PRAGMA page_size = 16384;
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS predictions (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    filename TEXT,
    predicted TEXT NOT NULL,
    probability REAL NOT NULL,
    label TEXT,
    labelled REAL,
    api_key INTEGER,
    picture BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_label ON predictions (model, label);
CREATE INDEX IF NOT EXISTS by_confidence ON predictions (probability, id, model) WHERE label IS NULL;
CREATE INDEX IF NOT EXISTS by_worth ON predictions (label IS NOT NULL, id);
"""


class Prediction(NamedTuple):
    """What the service said of a picture; `label` is the most probable class."""

    id: str
    model: str
    version: int
    filename: str | None
    label: str
    probability: float


class Store:
    """Predictions that are kept. `add` and `close` belong to one thread, all else to any.

    All methods block, and raise `FeedbackUnavailableError` or `DiskFullError` if the file cannot be used. What was
    written stays whole whenever a process is killed. A label is on disk when `label` returns; pictures that were added
    in the last moments before a power failure may be lost.

    Args:
        folder: where the file lies; made when it is first needed.
        max_bytes: most that the file may hold. Beyond that the oldest pictures go, those without a label first.
        max_days: how long a picture is kept.
    """

    def __init__(self, folder: Path, max_bytes: int, max_days: float) -> None:
        self.max_bytes = max_bytes
        self.max_days = max_days
        self._folder = folder
        # Stays open: whoever closes a file that nobody else has open waits until all of it is on disk.
        self._writer: sqlite3.Connection | None = None

    def add(self, batch: Sequence[tuple[Prediction, bytes]]) -> None:
        """Keep predictions with their pictures as they were sent, if they are not kept yet, and delete what is too old
        or too much.
        """
        with self._writing() as database:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    "INSERT INTO predictions (id, model, version, filename, predicted, probability, picture)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    ((*prediction, picture) for prediction, picture in batch),
                )
            self._tidy(database)

    def close(self) -> None:
        """Let go of the file; the next `add` opens it again."""
        if self._writer:
            self._writer.close()
        self._writer = None

    def has(self, prediction: str) -> bool:
        """Whether a prediction is there."""
        with self._opened() as database:
            return database.execute("SELECT 1 FROM predictions WHERE id = ?", (prediction,)).fetchone() is not None

    def get(self, prediction: str) -> Prediction:
        """A prediction.

        Raises:
            UnknownPredictionError: it is not there.
        """
        with self._opened() as database:
            return _get(database, prediction)

    def label(self, prediction: str, label: str, classes: Collection[str], api_key: int | None) -> None:
        """Store the right label of a prediction, in place of an earlier one.

        Args:
            classes: what the model knows.
            api_key: who says so.

        Raises:
            UnknownPredictionError: it is not there.
            InvalidRequestError: the label is nearly, but not quite, one that is in use.
        """
        with self._opened(durable=True) as database, database:
            database.execute("BEGIN IMMEDIATE")
            model = _get(database, prediction).model
            others = database.execute(
                "SELECT DISTINCT label FROM predictions WHERE model = ? AND label IS NOT NULL AND id != ?",
                (model, prediction),
            )
            check_spelling(label, {*classes, *(other for (other,) in others)})
            database.execute(
                "UPDATE predictions SET label = ?, labelled = ?, api_key = ? WHERE id = ?",
                (label, time.time(), api_key, prediction),
            )

    def picture(self, prediction: str) -> bytes:
        """A prediction's picture, as it was sent.

        Raises:
            UnknownPredictionError: it is not there.
        """
        with self._opened() as database:
            picture = _picture(database, prediction)
        if picture is None:
            raise _unknown(prediction)
        return picture

    def delete(self, prediction: str) -> None:
        """Delete a prediction and overwrite its picture.

        Raises:
            UnknownPredictionError: it is not there.
        """
        with self._opened(durable=True) as database:
            if not database.execute("DELETE FROM predictions WHERE id = ?", (prediction,)).rowcount:
                raise _unknown(prediction)
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still holds it until then

    def queue(self, model: str | None, limit: int) -> list[Prediction]:
        """Predictions without a label, the least confident first; of all models for None."""
        with self._opened() as database:
            rows = database.execute(
                "SELECT id, model, version, filename, predicted, probability FROM predictions"
                " WHERE label IS NULL AND (:model IS NULL OR model = :model) ORDER BY probability, id LIMIT :limit",
                {"model": model, "limit": limit},
            )
            return [Prediction(*row) for row in rows]

    def counts(self) -> list[tuple[str, str | None, int]]:
        """Number of predictions by model and label; the label is None for those without one."""
        with self._opened() as database:
            return database.execute("SELECT model, label, count(*) FROM predictions GROUP BY 1, 2").fetchall()

    def size(self) -> int:
        """Bytes that pictures and all that is known of them take."""
        with self._opened() as database:
            return _size(database)

    def labelled(self, model: str) -> list[tuple[str, str]]:
        """Id and label of a model's labelled predictions, the one that was labelled last at the end."""
        with self._opened() as database:
            return database.execute(
                "SELECT id, label FROM predictions WHERE model = ? AND label IS NOT NULL ORDER BY labelled, id",
                (model,),
            ).fetchall()

    def pictures(self, predictions: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Predictions with their pictures; those that are there no more are left out."""
        with self._opened() as database:
            for prediction in predictions:
                if picture := _picture(database, prediction):
                    yield prediction, picture

    @contextmanager
    def _opened(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one call.

        Args:
            durable: what is written is on disk when it is committed.
        """
        with self._explained(), closing(self._open()) as database:
            if durable:
                database.execute("PRAGMA synchronous = FULL")
            yield database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._explained():
                self._writer = self._writer or self._open()
                yield self._writer
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise DiskFullError("The service's disk is full. Nothing was changed; try again later.") from error
            raise FeedbackUnavailableError(
                f"The predictions in {self._folder} cannot be used ({error}). Send the request again later; if that "
                "does not help, mend the rights or the disk of APP_DATA_DIR.",
                _RETRY_SECONDS,
            ) from error

    def _open(self) -> sqlite3.Connection:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(self._folder / "feedback.sqlite", _BUSY_SECONDS, isolation_level=None)
        try:
            # Two that make the file at once would be in each other's way.
            with (self._folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                database.executescript(_SCHEMA)
            database.executescript("PRAGMA secure_delete = ON; PRAGMA synchronous = NORMAL")
        except BaseException:
            database.close()
            raise
        return database

    def _tidy(self, database: sqlite3.Connection) -> None:
        while doomed := self._doomed(database):
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany("DELETE FROM predictions WHERE id = ?", doomed)
        if _pragma(database, "freelist_count") > _SPARE_PAGES:
            database.executescript(f"PRAGMA incremental_vacuum({_SPARE_PAGES})")  # execute() would stop after a page

    def _doomed(self, database: sqlite3.Connection) -> list[tuple[str]]:
        """Ids of some that have to go now: those that are too old, then the least worth if there are too many."""
        oldest_kept = uuid7.floor(time.time() - self.max_days * _DAY)
        old: list[tuple[str]] = database.execute(
            "SELECT id FROM predictions WHERE id < ? LIMIT ?", (oldest_kept, _MOST_ROWS)
        ).fetchall()
        if old:
            return old
        excess = min(_size(database) - self.max_bytes, _MOST_BYTES)
        doomed: list[tuple[str]] = []
        if excess > 0:
            for prediction, size in database.execute(
                "SELECT id, length(picture) FROM predictions ORDER BY label IS NOT NULL, id LIMIT ?", (_MOST_ROWS,)
            ):
                if excess <= 0:
                    break
                doomed.append((prediction,))
                excess -= size
        return doomed


def _get(database: sqlite3.Connection, prediction: str) -> Prediction:
    row = database.execute(
        "SELECT id, model, version, filename, predicted, probability FROM predictions WHERE id = ?", (prediction,)
    ).fetchone()
    if row is None:
        raise _unknown(prediction)
    return Prediction(*row)


def _picture(database: sqlite3.Connection, prediction: str) -> bytes | None:
    row = database.execute("SELECT picture FROM predictions WHERE id = ?", (prediction,)).fetchone()
    return row[0] if row else None


def _unknown(prediction: str) -> UnknownPredictionError:
    return UnknownPredictionError(
        f"There is no prediction {prediction!r}. It was deleted, is older than APP_FEEDBACK_MAX_DAYS, or made room for "
        "others (APP_FEEDBACK_MAX_MB). GET /feedback/queue lists some that are there."
    )


def _size(database: sqlite3.Connection) -> int:
    pages = _pragma(database, "page_count") - _pragma(database, "freelist_count")
    return pages * _pragma(database, "page_size")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    value: int = database.execute(f"PRAGMA {name}").fetchone()[0]
    return value
