"""Refusals: what an overloaded service answers most often, before a request for a prediction is even parsed."""

import asyncio
import re
from functools import lru_cache

from starlette.responses import Response

from app.errors import OverloadedError, respond
from app.serving.admission import Admission
from app.telemetry import count_refusal

_MOST_HEAD_BYTES = 2048

# Header lines of which none changes how the request is framed, or what happens to the connection.
_LINES = (
    rb"(?:\r\n(?i:(?!content-length|transfer-encoding|expect|upgrade|connection:(?! keep-alive(?:\r|$))))"
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*)*"
)
_ORDINARY = re.compile(
    rb"POST /predict(?:\?[!-~]*)? HTTP/1\.1" + _LINES + rb"\r\n(?i:content-length): ?([0-9]{1,9})" + _LINES
)


class Refusals:
    """Answers ordinary requests for predictions while there is no room for them.

    A parser, a task and the entrance take several times as long to come to the same answer, which is taken from the
    requests that were let in. Whether a request carries an API key is not looked at: it learns nothing but that the
    service is busy. Belongs to the event loop in which it is made.

    Args:
        admission: says whether there is room.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._passed = 0  # of these requests, those that are about to enter

    def answer(self, data: bytes) -> Response | None:
        """The answer to a request, or None if it is to be treated as any other.

        Args:
            data: what a connection between two requests received at once.
        """
        if not _is_whole(data):
            return None
        error = self._admission.refusal(self._passed)
        if error is None:
            self._passed += 1
            self._loop.call_soon(self._enter)  # before its task, which is about to be made
            return None
        count_refusal(error.status)
        return _respond(str(error), error.retry_after)

    def _enter(self) -> None:
        self._passed -= 1


def _is_whole(data: bytes) -> bool:
    """Whether these are the bytes of one ordinary request for a prediction, all of them and no others."""
    head, blank, body = data.partition(b"\r\n\r\n")
    return bool(blank) and len(head) < _MOST_HEAD_BYTES and len(body) == _body_bytes(head)


@lru_cache(maxsize=256)  # clients send the same again and again
def _body_bytes(head: bytes) -> int:
    found = _ORDINARY.fullmatch(head)
    return int(found[1]) if found else -1


@lru_cache(maxsize=1)
def _respond(detail: str, retry_after: int) -> Response:
    return respond(OverloadedError(detail, retry_after))
