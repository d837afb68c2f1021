"""The access log: a line for every answer, written many at a time."""

import asyncio
import logging
import sys
import time
from functools import lru_cache
from typing import Any, TextIO

# A line waits no longer than this. Each write lets another thread take Python's lock, and waiting to get it back costs
# a busy service more than making the answer.
_SECONDS = 0.05
# Characters of a longer line that are written: how long an address is, the client says.
_FIRST, _LAST = 1000, 40


class AccessLog(logging.Logger):
    """Makes the lines that handlers and formatters would, without a record of who called and from where for each.

    Belongs to the thread of the event loop; what is logged while none runs is written at once.

    Args:
        name: of the logger, as its lines show it.
        stream: where they go; standard error unless given.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        super().__init__(name, logging.INFO)
        self._stream = stream
        self._lines: list[str] = []

    def info(self, msg: object, *args: object, **_: Any) -> None:
        try:
            text = str(msg) % args
        except (TypeError, ValueError):  # a log never ends what is logged
            text = f"{msg} {args}"
        if len(text) > _FIRST + _LAST:
            text = f"{text[:_FIRST]}...{text[-_LAST:]}"
        now = time.time()
        milliseconds = int(1000 * (now % 1))
        self._lines.append(f"{_second(int(now))},{milliseconds:03d} INFO {self.name}: {text}\n")
        if len(self._lines) > 1:
            return
        try:
            asyncio.get_running_loop().call_later(_SECONDS, self.flush)
        except RuntimeError:  # none runs
            self.flush()

    def flush(self) -> None:
        """Write what waits; called at the end of the process too."""
        lines, self._lines = self._lines, []
        if lines:
            stream = self._stream or sys.stderr
            stream.write("".join(lines))
            stream.flush()


@lru_cache(maxsize=1)
def _second(since_epoch: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since_epoch))


ACCESS = AccessLog("uvicorn.access")
