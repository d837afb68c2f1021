"""The processes in which engines are tried."""

import signal
import subprocess
import sys
from collections.abc import Sequence

from app.serving import tryout
from app.serving.engine import AnyKind
from app.serving.tryout import Result, Started
from training.errors import ArtifactError

LIMIT_SECONDS = 60  # of one process


class Processes:
    """Starts them, and ends them from another thread.

    Args:
        seconds: after which one is ended.
    """

    def __init__(self, seconds: float = LIMIT_SECONDS) -> None:
        self._seconds = seconds
        self._running: set[subprocess.Popen[str]] = set()
        self._closed = False

    def close(self) -> None:
        """End the processes that run, and let no other begin."""
        self._closed = True
        for process in list(self._running):
            process.kill()

    def try_out(self, request: tryout.Request) -> tuple[Result, ...]:
        """Try engines in a process, and those after one that crashes in another.

        A single one of torch's, which this process runs on in any case, is tried in this process.

        Raises:
            ArtifactError: as `run`.
        """
        if len(request.kinds) == 1 and request.kinds[0].startswith("torchscript"):
            return tuple(line for line in tryout.run(request) if isinstance(line, Result))
        results: list[Result] = []
        left = request.kinds
        while left:
            # By name and not by import, so that the process begins without anything of this one.
            asked = request.model_copy(update={"kinds": left}).model_dump_json()
            found = self.run([sys.executable, "-m", tryout.__name__, asked])
            results += found
            left = left[len(found) :]
        return tuple(results)

    def run(self, command: Sequence[str]) -> list[Result]:
        """Run one that tries engines; the engine that it was trying when it crashed gets the reason as its error.

        One that was ended, because it took too long or all memory, may do better the next time.

        Raises:
            ArtifactError: it ended before it began with an engine, or `close` was called.
        """
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
            self._running.add(process)
            if self._closed:
                process.kill()
            try:
                out, complaints = process.communicate(timeout=self._seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                out, complaints = process.communicate()
                complaints += f"it took longer than {self._seconds:g} s"
            self._running.discard(process)
        if self._closed:
            raise ArtifactError("The service is shutting down: no engine is chosen any more.")
        results, begun = _read(out)
        if process.returncode == 0:
            return results
        if begun is None:
            raise ArtifactError(f"Engines cannot be tried: {complaints.strip()[-1000:] or process.returncode}")
        reason = f"the process that tried it ended with {process.returncode}: {complaints.strip()[-300:]}"
        return [*results, Result(kind=begun, error=reason, passing=process.returncode == -signal.SIGKILL)]


def _read(out: str) -> tuple[list[Result], AnyKind | None]:
    """What came of the engines, and the one that was begun and came to nothing."""
    results: list[Result] = []
    begun: AnyKind | None = None
    for line in map(tryout.Line.validate_json, out.splitlines()):
        if isinstance(line, Started):
            begun = line.started
        else:
            results.append(line)
            begun = None
    return results, begun
