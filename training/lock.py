"""The lock on a run's folder: two runs of one name would overwrite each other's checkpoint and log."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from training.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def exclusive(folder: Path, command: str, *, wait: bool = False) -> Iterator[None]:
    """Keep every other run, on any machine that shares the folder, out of it until the block or the process ends.

    Args:
        folder: of the run, see `run.runs_folder`; its name is the model's. It need not be there yet.
        command: what the run was started by, for others to be told.
        wait: whether to wait for a run that is at work there.

    Raises:
        InputError: another run is at work there; it is named.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, which may be deleted while the lock is held. No model's name begins with a dot.
    with folder.with_name(f".{folder.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "a process that has just begun"
            if not wait:
                raise InputError(
                    f"Another run of {folder.name} is at work: {holder}. Wait for its end, stop it, or train under "
                    "another name."
                ) from None
            log.info("waiting for another run of %s to end: %s", folder.name, holder)
            fcntl.flock(file, fcntl.LOCK_EX)
        _write_holder(file, command)
        yield


def _write_holder(file: TextIOWrapper, command: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})")
    file.flush()
