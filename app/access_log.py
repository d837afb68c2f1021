"""The access log: a line for every answer, written many at a time."""

import asyncio
import contextlib
import logging

# A line waits no longer than this. Each write lets another thread take Python's lock, and waiting to get it back costs
# a busy service more than making the answer.
_SECONDS = 0.05


class AccessLog(logging.StreamHandler):  # type: ignore[type-arg]  # it is generic in stubs only
    """Writes to standard error what an event loop has logged in the last `_SECONDS`; without a loop, at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
        except Exception:  # as the handlers of the library do: a log never ends what is logged
            self.handleError(record)
            return
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # none runs in this thread
            self.flush()
            return
        if len(self._lines) == 1:
            loop.call_later(_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits; called at the end of the process too."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()
