"""Runs a service's workers while there are jobs: each is a child process, started anew when it dies, ended with it."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.jobs.queue import JobQueue
from app.settings import Settings

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
_STOP_SECONDS = 5.0


@contextmanager
def workers(settings: Settings) -> Iterator[None]:
    """Run `APP_FINETUNE_WORKERS` workers whenever there are jobs, until the block ends.

    A worker that waits costs processor time and memory, so one that finds nothing to do ends, and is started when
    there is a job, wherever that was sent to.
    """
    queue = JobQueue(settings)
    keepers = [_Keeper(queue) for _ in range(settings.finetune_workers)]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.stop()
        queue.close()


class _Keeper:
    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
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
        self._wait_for_job()
        while process := self._start():
            code = process.wait()
            if code == 0:
                pause = _FIRST_PAUSE
                self._wait_for_job()
            elif not self._stopping.is_set():
                log.error("The fine-tune worker ended with code %d; it is started again", code)
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _wait_for_job(self) -> None:
        reachable = True
        while not self._stopping.is_set():
            try:
                if self._queue.has_unfinished():
                    return
                reachable = True
            except Exception as error:  # whatever a database driver may raise: it can be back at the next look
                if reachable:
                    log.error("No fine-tune can run for now. %s: %s", type(error).__name__, error)  # noqa: TRY400
                reachable = False
            self._stopping.wait(_LOOK_SECONDS)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app", "worker", "--supervised"],
                stdin=subprocess.PIPE,  # see process.end_with_parent
                process_group=0,  # Ctrl-C is for the service, which then ends its workers
            )
            return self._process
