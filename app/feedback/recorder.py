"""The recorder: takes pictures from the event loop, which never waits for it, and writes them in its own thread."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from app import uuid7
from app.feedback.store import Prediction, Store
from app.serving.upload import Upload

log = logging.getLogger(__name__)

_MOST_BYTES = 32_000_000  # of pictures that wait to be written
_GATHER_SECONDS = 0.1  # what comes within it is written together
_TIDY_SECONDS = 60.0
_RETRY_SECONDS = 1.0
_WARN_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Recorder:
    """Gives predictions their ids, and has them stored. While that is not possible, predictions carry no id.

    Args:
        store: where they go; its `add` and `close` are called by nobody else.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._changed = threading.Condition()
        self._waiting: list[tuple[Prediction, bytes]] = []
        self._bytes = 0  # of pictures that wait or are being written
        self._defect: str | None = None  # why nothing can be written now
        self._refused = 0
        self._warned = -_WARN_SECONDS
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="feedback", daemon=True)
        self._thread.start()

    def keep(self, model: str, version: int, uploads: Sequence[Upload], entries: Sequence[dict[str, Any]]) -> None:
        """Put an id on every prediction of a request, and see to it that they are stored soon.

        Args:
            model: who answered.
            version: of the model.
            uploads: the pictures.
            entries: the answers in the same order; those with an error instead of a label are passed over.
        """
        kept = [
            (
                Prediction(uuid7.new(), model, version, upload.filename, entry["label"], entry["probability"]),
                upload.data,
                entry,
            )
            for upload, entry in zip(uploads, entries, strict=True)
            if "label" in entry
        ]
        if kept and self._accept([(prediction, data) for prediction, data, _ in kept]):
            for prediction, _, entry in kept:
                entry["id"] = prediction.id

    def close(self) -> None:
        """Write what waits, and let go of the store."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(_STOP_SECONDS)
        if self._waiting or self._bytes:
            log.error("Pictures of the last predictions could not be stored; their ids are unknown from now on")

    def _accept(self, kept: Sequence[tuple[Prediction, bytes]]) -> bool:
        size = sum(len(data) for _, data in kept)
        with self._changed:
            full = self._bytes > 0 and self._bytes + size > _MOST_BYTES  # a large request goes alone
            if not self._defect and not full:
                self._waiting += kept
                self._bytes += size
                self._changed.notify()
                return True
            self._refused += len(kept)
        self._warn()
        return False

    def _warn(self) -> None:
        """Say once a minute at most why predictions carry no id."""
        now = time.monotonic()
        if now - self._warned >= _WARN_SECONDS:
            self._warned = now
            reason = self._defect or "pictures come faster than they can be written"
            log.warning("Predictions carry no id, %d so far, and are not kept: %s", self._refused, reason)

    def _write_all(self) -> None:
        self._write([])  # what is wrong with the store is known before the first picture comes
        while (batch := self._next()) is not None:
            self._write(batch)
        self.store.close()

    def _next(self) -> list[tuple[Prediction, bytes]] | None:
        """What waits; nothing if nothing came for a while; None if nothing comes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping.is_set(), _TIDY_SECONDS)
        self._stopping.wait(_GATHER_SECONDS)
        with self._changed:
            batch, self._waiting = self._waiting, []
        return None if self._stopping.is_set() and not batch else batch

    def _write(self, batch: Sequence[tuple[Prediction, bytes]]) -> None:
        """Store a batch, as often as it takes; then those who got an id can use it."""
        while True:
            try:
                self.store.add(batch)
                break
            except Exception as error:
                self._defect = str(error.__cause__ or error)
                self._warn()
                if self._stopping.wait(_RETRY_SECONDS):
                    return
        self._defect = None
        with self._changed:
            self._bytes -= sum(len(data) for _, data in batch)
