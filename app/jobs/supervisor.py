"""Keeps a service's workers running: each is a child process, started anew when it dies, ended with the service."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.serving.placement import unplaced

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
_STOP_SECONDS = 5.0


@contextmanager
def workers(count: int) -> Iterator[None]:
    """Keep `count` workers running until the block ends."""
    keepers = [_Keeper() for _ in range(count)]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.stop()


class _Keeper:
    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="worker-keeper")
        self._lock = threading.Lock()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            if self._process:
                self._process.terminate()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive() and self._process:
            self._process.kill()
            self._thread.join()

    def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            process = self._start()
            if process is None:
                return
            code = process.wait()
            if self._stopping.is_set():
                return
            log.error("The fine-tune worker ended with code %d; it is started again", code)
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            with unplaced():
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "app", "worker", "--supervised"],
                    stdin=subprocess.PIPE,  # see process.end_with_parent
                    process_group=0,  # Ctrl-C is for the service, which then ends its workers
                )
            return self._process
