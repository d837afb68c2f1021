"""The training process of a job, as its worker sees it: started, watched, killed when the job is cancelled."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from app.jobs.folder import JobFolder
from app.jobs.job import JobFailure, Request
from app.settings import Settings
from training import artifact

_WATCH_SECONDS = 0.5
_SHOWN = 300  # characters of the log's end that a failure names


class Outcome(BaseModel):
    """What a training process says at its end; everything but `failure` is about the version that it wrote."""

    failure: JobFailure | None = None
    version: int = 0
    metrics: dict[str, Any] = {}
    comparison: dict[str, Any] | None = None


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however it did.

    The parent keeps the other end of this process's standard input, and writes nothing into it.
    """

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(
    job: str, request: Request, settings: Settings, cancelled: Callable[[], bool], *, supervised: bool
) -> Outcome | None:
    """Run a job to its end in a process of its own; None if it was cancelled and is killed.

    In its own process, its memory comes back whatever happens, and running out of memory costs the job alone.

    Args:
        cancelled: asked again and again.
        supervised: whether this worker is one of a service, and shares its session.
    """
    folder = JobFolder(settings.data_dir, job)
    with (
        folder.log.open("ab") as log,
        subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-m", "app.jobs.child", job, request.model_dump_json()],
            stdin=subprocess.PIPE,  # see end_with_parent
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=not supervised,  # see child._give_way
            process_group=0 if supervised else None,
        ) as process,
    ):
        said: list[bytes] = []
        reader = threading.Thread(target=lambda: said.append(process.stdout.read() if process.stdout else b""))
        reader.start()
        try:
            while _runs(process):
                if cancelled():
                    return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
            if process.wait():  # it may have been writing a version
                artifact.remove_partial(settings.models_dir, request.name)
    if process.returncode == 0:
        return Outcome.model_validate_json(said[0])
    return Outcome(failure=_died(process.returncode, folder))


def _runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_WATCH_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _died(code: int, folder: JobFolder) -> JobFailure:
    if code == -signal.SIGKILL:
        return JobFailure(
            detail="The training process was killed, most likely because memory ran out. Lower batch_size, send "
            "smaller pictures, or give the machine more memory.",
            errors=[],
        )
    end = folder.log.read_text(errors="replace").strip()[-_SHOWN:].splitlines()
    last = end[-1] if end else "it wrote none"
    return JobFailure(detail=f"The training process failed with code {code}. Its log ends with: {last}", errors=[])
