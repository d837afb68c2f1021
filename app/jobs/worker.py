"""The worker: takes jobs from the queue, one at a time, until it is stopped. `python -m app worker`."""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import signal
import time
from pathlib import Path
from secrets import token_hex

from dbos import DBOS, WorkflowStatus
from sqlalchemy.engine import make_url

from app.jobs import workflow
from app.jobs.folder import prune
from app.jobs.queue import APPLICATION, QUEUE, SERIALIZER, UNFINISHED, WORKFLOW, database_url
from app.settings import Settings

log = logging.getLogger(__name__)

# Jobs are taken up only by workers of the version that they were begun with. Raise it when the workflow's steps change.
_WORKFLOW_VERSION = "1"
_POLL_SECONDS = 1.0
_LOOK_SECONDS = 2
_LOOKS_A_PRUNE = 30
_IDLE_LOOKS = 8


class Worker:
    """One worker. Its id is new at every start, and a file that it keeps locked says that it lives.

    The lock is let go of when the process ends, however it does: whoever can take it knows that the worker is dead,
    and puts its unfinished job back into the queue.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers = settings.data_dir / "workers"
        self._own = self._workers / _digest(database_url(settings))
        self._id = token_hex(8)
        self._unrecorded: set[str] = set()

    def run(self, *, stay: bool) -> None:
        """Work until SIGTERM or Ctrl-C; a job that is running then goes on from its last epoch after the next start.

        The process ends with code 1 if it cannot go on. It ends at once, with the training: a worker whose lock is free
        has no job that still runs.

        Args:
            stay: whether to wait for further jobs after a while without any; the process ends with code 0 if not.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            # No tidy end: the training process ends with this one, and its job must not be recorded as failed.
            signal.signal(number, lambda *_: os._exit(0))
        self._own.mkdir(parents=True, exist_ok=True)
        hidden = self._own / f".{self._id}"
        with hidden.open("w") as own:
            fcntl.flock(own, fcntl.LOCK_EX)
            hidden.rename(self._own / self._id)  # seen by other workers only now that it is locked
            # As untidy as a signal's, and as safe: a job that it took up just now goes on with the next worker.
            os._exit(self._work(stay))

    def _work(self, stay: bool) -> int:
        """Work as long as there is a reason to, and give the code to end with."""
        try:
            self._launch()
            log.info("Worker %s, process %d, waits for jobs", self._id, os.getpid())
            self._look_after_jobs(stay)
        except BaseException:  # DBOS has errors that are no Exception
            log.critical("Worker %s ends: it cannot go on", self._id, exc_info=True)
            return 1
        log.info("Worker %s ends: there are no jobs", self._id)
        return 0

    def _look_after_jobs(self, stay: bool) -> None:
        idle = 0
        for look in itertools.count():
            self._recover_others()
            unfinished = DBOS.list_workflows(name=WORKFLOW, status=UNFINISHED, load_input=False)
            self._check_recorded(unfinished)
            idle = 0 if unfinished else idle + 1
            ends = idle > _IDLE_LOOKS and not stay
            if ends or look % _LOOKS_A_PRUNE == 0:
                self._prune(unfinished)
            if ends:
                return
            time.sleep(_LOOK_SECONDS)

    def _launch(self) -> None:
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": database_url(self._settings),
                "serializer": SERIALIZER,
                "executor_id": self._id,
                "application_version": _WORKFLOW_VERSION,
                "log_level": "WARNING",
            }
        )
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=1,
            partition_concurrency=1,
            polling_interval_sec=_POLL_SECONDS,
            on_conflict="always_update",
        )

    def _recover_others(self) -> None:
        for path in self._workers.rglob("[!.]*"):
            if path.name != self._id and path.is_file():
                self._recover(path)

    def _recover(self, path: Path) -> None:
        with contextlib.ExitStack() as until_recovered:
            try:
                file = until_recovered.enter_context(path.open("r+"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                return  # another worker has recovered it
            except BlockingIOError:
                return  # it lives
            # No public call does this. `DBOS.launch` recovers what a worker with this one's own id left behind.
            # `DBOS.resume_workflow` revives a job that is cancelled at that moment, and counts its attempts from 0:
            # one that kills every worker would never end.
            recovered = DBOS._recover_pending_workflows([path.name])
            for handle in recovered:
                log.warning("Worker %s is dead; its job %s goes on", path.name, handle.get_workflow_id())
            # A file in another folder is the only trace of a worker of another database, or of this one when it had
            # another address. Those outside the folders are of workers that knew no second database.
            if recovered or path.parent in {self._own, self._workers}:
                path.unlink(missing_ok=True)

    def _check_recorded(self, unfinished: list[WorkflowStatus]) -> None:
        """End this process if it is done with a job and could not store what came of it, as on a full disk.

        The job is taken up again by the next worker, and there is no other way back: the queue takes it for running.
        """
        begun = {job.workflow_id for job in unfinished if job.status == "PENDING" and job.executor_id == self._id}
        unrecorded = begun - workflow.RUNNING
        # Seen twice, or it may be a job that begins or ends just now.
        if lost := unrecorded & self._unrecorded:
            log.error("What came of the jobs %s cannot be stored; this worker ends", ", ".join(sorted(lost)))
            os._exit(1)
        self._unrecorded = unrecorded

    def _prune(self, unfinished: list[WorkflowStatus]) -> None:
        active = {job.workflow_id for job in unfinished}
        prune(self._settings.data_dir, active, self._settings.keep_datasets_bytes)


def _digest(url: str) -> str:
    """A name for the database at an address, made without its passwords, which nobody can guess from it then."""
    address = make_url(url).difference_update_query(["password", "sslpassword"])  # shown, it hides the other one
    return hashlib.sha256(address.render_as_string().encode()).hexdigest()[:16]
