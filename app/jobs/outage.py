"""What DBOS logs while the jobs' database is away: one line a minute, and not several texts of each thread a second."""

import logging
import sys
import threading
import time
from collections.abc import Callable

import psycopg
from sqlalchemy.exc import DBAPIError

_SECONDS = 60.0
# Connections that are lost or refused, and a server that is shut down or starts (PostgreSQL's manual, appendix A).
_STATES = ("08", "57P")


class Outage(logging.Filter):
    """Passes on one record about a lost connection a minute, as one line that counts those left out before it.

    DBOS logs such an error where it handles it, often with its traceback in the text.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._told = -_SECONDS
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged; one about a lost connection is shortened to a line."""
        error = _lost(sys.exception())
        if error is None:
            return True
        with self._lock:
            if self._clock() - self._told < _SECONDS:
                self._left_out += 1
                return False
            self._told = self._clock()
            count, self._left_out = self._left_out, 0
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        record.msg = "The database of the jobs cannot be reached and is tried again. %s (messages left out before: %d)"
        record.args = (reason, count)
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def _lost(error: BaseException | None) -> BaseException | None:
    """The driver's own error if this one says that PostgreSQL cannot be reached, else None."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.OperationalError):
        return None
    # Without a state, it is the client that says so: there is no server at the other end.
    return cause if cause.sqlstate is None or cause.sqlstate.startswith(_STATES) else None
