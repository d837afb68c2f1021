"""A job's folder: its archive, its log, and how far it has come. Shared by the service, the worker and the training."""

import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from app.jobs.job import Progress

log = logging.getLogger(__name__)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # what the system says where a disk is full

_UPLOAD = ".upload-"
_JOB = "[!.]*"  # an upload is no job yet: it is about to be renamed, or refused and deleted
_UNFINISHED = "unfinished"
_ABANDONED_SECONDS = 24 * 3600  # an upload that is still incomplete by then was interrupted
_FRESH_SECONDS = 600  # an archive may be in its folder before its job is in the queue


class State(BaseModel):
    """What a training process reports while it runs."""

    progress: Progress = Progress()
    warnings: list[str] = []


class JobFolder:
    """The folder of one job below the data folder.

    Attributes:
        path: the folder.
        log: what the training process has written to its standard error.
        checkpoint: what an interrupted training goes on from, in a folder of its own.
    """

    def __init__(self, data_dir: Path, job: str) -> None:
        self.path = _jobs(data_dir) / job
        self.log = self.path / "log.txt"
        self.checkpoint = self.path / _UNFINISHED / "checkpoint.pt"
        self._state = self.path / "state.json"

    def read_state(self) -> State:
        """The last report; an empty one before the first."""
        try:
            return State.model_validate_json(self._state.read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read: %s", self._state, error)
            return State()

    def write_state(self, state: State) -> None:
        """Replace the report in one step."""
        partial = self._state.with_suffix(".partial")
        partial.write_text(state.model_dump_json())
        partial.replace(self._state)

    def adopt(self, upload: Path, archive: str) -> None:
        """Make a finished upload this job's folder; if it has one, from a request before, the archive is put there."""
        try:
            upload.rename(self.path)
        except OSError:
            if not self.path.exists():
                raise
            (upload / archive).replace(self.path / archive)

    def discard(self, archive: str) -> None:
        """Delete an archive that the job is not to be trained on."""
        (self.path / archive).unlink(missing_ok=True)


def new_upload(data_dir: Path) -> Path:
    """An empty folder for an upload that is not complete yet."""
    _jobs(data_dir).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=_jobs(data_dir), prefix=_UPLOAD))


def find_dataset(data_dir: Path, sha256: str) -> Path | None:
    """The archive with that hash, if a job's folder still has it."""
    return next(iter(sorted(_jobs(data_dir).glob(f"{_JOB}/{sha256}.*"))), None)


def prune(data_dir: Path, active: Collection[str], keep_bytes: int) -> None:
    """Delete the oldest archives of ended jobs beyond `keep_bytes`, what killed ones left, and interrupted uploads.

    Args:
        active: the ids of the jobs that have not ended, whose archives are kept.
    """
    for folder in _jobs(data_dir).glob(f"{_UPLOAD}*"):
        if abs(_age(folder)) > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in _jobs(data_dir).glob(f"{_JOB}/{_UNFINISHED}"):
        if folder.parent.name not in active and abs(_age(folder)) > _FRESH_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    kept = 0
    for age, size, archive in sorted(_archives(data_dir)):
        if archive.parent.name not in active and abs(age) > _FRESH_SECONDS:
            kept += size
            if kept > keep_bytes:
                archive.unlink(missing_ok=True)


def _archives(data_dir: Path) -> Iterator[tuple[float, int, Path]]:
    """Jobs' archives, each with the seconds since it was written and its size in bytes."""
    for archive in _jobs(data_dir).glob(f"{_JOB}/{'[0-9a-f]' * 64}.*"):
        try:
            found = archive.stat()
        except FileNotFoundError:  # another worker prunes, too
            continue
        yield time.time() - found.st_mtime, found.st_size, archive


def _age(path: Path) -> float:
    """Seconds since the last change; 0 for what has just been moved or removed."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _jobs(data_dir: Path) -> Path:
    return data_dir / "jobs"
